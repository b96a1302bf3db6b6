"""Nobody who answers by the place of a query among the others is better than chance, whatever the protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fsmer.backbones import Backbone, register_backbone
from fsmer.data import ClipSet
from fsmer.episodic import load_protocol
from fsmer.episodic.shuffles import query_orders
from fsmer.errors import FsmerError
from fsmer.evaluation import evaluate
from fsmer.plugins import PROTOCOLS as KINDS
from fsmer.transfer import Recognizer, load_method
from fsmer.transfer.linear_head import Finetune

from tiny_backbone import TinyBackbone  # isort: skip

CLASSES = ("negative", "positive", "surprise")
EACH = 5  # clips of a class and subject
# Chance is 1/3; the runs are seeded, so the margin is for another number of clips, not for luck.
CHANCE = 0.45


@pytest.fixture(scope="module")
def clips() -> ClipSet:
    """Noise, sorted by data set, subject and label."""
    rows = [
        (dataset, f"{person:02d}", label)
        for dataset in ("one", "two")
        for person in range(6)
        for label in CLASSES
        for _ in range(EACH)
    ]
    datasets, subjects, labels = zip(*rows, strict=True)
    maps = np.random.default_rng(0).random((len(rows), 3, 28, 28), dtype=np.float32)
    return ClipSet.from_arrays(maps, labels, subjects=subjects, datasets=datasets)


@pytest.fixture(scope="module")
def by_label(clips: ClipSet) -> ClipSet:
    """The same, sorted by label alone, the arrays too."""
    some = clips[np.argsort(clips.labels.astype(str), kind="stable")]
    return ClipSet.from_arrays(some.media(), some.labels, subjects=some.subjects, datasets=some.datasets)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return TinyBackbone(8).eval()


# Every kind of protocol, and the ways in which K-shot episodes ask.
PROTOCOLS: dict[str, tuple[str, dict[str, Any]]] = {
    "counted": ("kshot", {"way": 3, "shot": 2, "query": 5, "episodes": 12}),
    "two classes": ("kshot", {"way": 2, "shot": 1, "query": 8, "episodes": 12}),
    "uneven": ("uneven", {"way": 3, "shot": 2, "query": 4, "episodes": 12}),
    "rest": ("kshot", {"shot": 2, "episodes": 4}),
    "disjoint": ("kshot", {"shot": 2, "query": 5, "subject_disjoint": True, "episodes": 12}),
    "source_target": ("source-target", {"source": ["one"], "target": ["two"], "shot": 1, "query": 5, "episodes": 12}),
    "loso": ("loso", {}),
    "cde": ("cde", {}),
    "holdout": ("holdout", {"train": ["one"], "test": ["two"]}),
    "one_by_one": ("holdout", {}),
    "ratio": ("ratio", {"repeats": 4}),
}


@pytest.mark.parametrize("trains", [False, True])
def test_an_unsound_answer_is_named_by_its_episode_and_its_number_there(
    trains: bool, clips: ClipSet, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where many episodes are solved together, and whatever the order in which the queries are handed over."""
    protocol = load_protocol("kshot", way=3, shot=1, query=4, episodes=4)
    solve, answer = Finetune.solve, Recognizer.predict_proba
    asked: list[int] = []

    def wrong(*args: Any, **options: Any) -> Iterator[Any]:
        for part, logits in solve(*args, **options):
            logits[2, 7] = torch.nan
            yield part, logits

    def wrong_once(self: Recognizer, some: Any, **options: Any) -> Any:
        found = answer(self, some, **options)
        asked.append(len(found))
        if len(asked) == 3:
            found[7] = [0.5, 0.5, 0.5]
        return found

    monkeypatch.setattr(Finetune, "solve", wrong)
    monkeypatch.setattr(Recognizer, "predict_proba", wrong_once)
    number = query_orders(protocol.params["seed"], [2], 12)[0][7]
    with pytest.raises(FsmerError, match=rf"'finetune'.*episode 2\b.*query {number}\b"):
        evaluate(protocol, backbone, load_method("finetune", train_backbone=trains, steps=1), clips=clips, cache=False)


def test_every_kind_of_protocol_is_asked() -> None:
    assert {load_protocol(name, **settings).kind for name, settings in PROTOCOLS.values()} == set(KINDS)


def blocks(count: int, way: int) -> np.ndarray:
    """As many queries of each class, class after class."""
    return np.arange(count) * way // max(count, 1)


def rows_of(clips: ClipSet) -> np.ndarray | None:
    """Where the maps of clips lie in the array that they are a part of, if that can be found out."""
    store: Any = clips._base.media["flow"]
    while hasattr(store, "_stores") and len(store._stores) == 1:
        found = store._rows
        if not hasattr(store._stores[0], "_rows"):
            return np.asarray(found)
        store = store._stores[0]
    return None


def nearest(support: np.ndarray, codes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The class of the support clip that lies next in the table."""
    return codes[np.abs(rows[:, None] - support[None]).argmin(axis=1)]


def one_hot(codes: np.ndarray, way: int) -> np.ndarray:
    return np.eye(way, dtype=np.float32)[codes]


class PlacedRecognizer(Recognizer):
    """Answers by the place of a clip."""

    how: str
    taught: tuple[np.ndarray | None, np.ndarray]

    def predict_proba(self, clips: Any, **options: Any) -> Any:
        rows, (support, codes) = rows_of(clips), self.taught
        way = len(self.classes_)
        if self.how == "nearest" and rows is not None and support is not None:
            return one_hot(nearest(support, codes, rows), way)
        return one_hot(blocks(len(clips), way), way)


@dataclass(frozen=True)
class Placed(Finetune):
    """From outside: looks at no clip, but at the place where it stands."""

    name: ClassVar[str] = "placed"
    how: str = "blocks"

    def solve(self, embeddings: Tensor, support: Any, codes: Any, query: Any = None, **options: Any) -> Iterator[Any]:
        way = options["way"]
        for episode, (rows, labels) in enumerate(zip(np.asarray(support), np.asarray(codes), strict=True)):
            asked = np.arange(len(embeddings)) if query is None else np.asarray(query)[episode]
            # The support is known, and not asked where all clips are.
            counted = np.cumsum(~np.isin(asked, rows)) - 1
            if self.how == "nearest" and len(rows):
                said = nearest(rows, labels, asked)
            else:
                said = blocks(counted[-1] + 1, way)[np.maximum(counted, 0)]
            yield slice(episode, episode + 1), torch.from_numpy(9 * one_hot(said, way))[None]

    def fit(self, backbone: Any, support: ClipSet, **options: Any) -> Recognizer:
        found = Finetune(train_backbone=True, steps=0).fit(backbone, support, **options)
        found.__class__ = PlacedRecognizer
        found.how, found.taught = self.how, (rows_of(support), support.codes(options["classes"]))  # type: ignore
        return found


@pytest.mark.parametrize("how", ["blocks", "nearest"])
@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_answers_by_row_number_are_chance(
    name: str, trains: bool, how: str, backbone: Backbone, clips: ClipSet, by_label: ClipSet
) -> None:
    kind, settings = PROTOCOLS[name]
    method = Placed(train_backbone=trains, steps=0, source_epochs=0, how=how)
    for some in (clips, by_label):
        report = evaluate(load_protocol(kind, **settings), backbone, method, clips=some, cache=False)
        assert report.acc < CHANCE + 0.17 * (settings.get("way") == 2)


def test_no_shots_and_choices_on_inner_folds_and_on_the_test_side_are_chance_too(
    backbone: Backbone, by_label: ClipSet
) -> None:
    frozen = Placed(steps=0)
    assert evaluate(load_protocol("kshot", shot=0), backbone, frozen, clips=by_label, cache=False).acc < CHANCE
    for rule in ("nested", "oracle"):
        for method in (frozen, Placed(train_backbone=True, steps=0)):
            report = evaluate(
                "loso", backbone, method, clips=by_label, select=rule, grid={"learning_rate": [0.1]}, cache=False
            )
            # Two candidates of chance level, of which the oracle takes the better one: both say the same here.
            assert report.acc < CHANCE


@register_backbone("placed-for-tests")
class PlacedBackbone(TinyBackbone):
    """From outside: embeds a clip by its place in the batch."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.linspace(0, 1, len(inputs))[:, None].expand(-1, self.embed_dim).clone()


@pytest.mark.parametrize("method", ["protonet", "logistic"])
def test_a_network_that_embeds_by_row_number_is_chance(method: str, by_label: ClipSet) -> None:
    for protocol in (load_protocol("kshot", shot=5, query=5, episodes=30), load_protocol("loso")):
        report = evaluate(protocol, PlacedBackbone(4).eval(), method, clips=by_label, cache=False)
        assert report.acc < CHANCE


def test_the_order_is_drawn_by_seed_and_episode_and_is_the_same_for_every_method(
    backbone: Backbone, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[np.ndarray] = []
    predict = Recognizer.predict_proba
    monkeypatch.setattr(
        Recognizer, "predict_proba", lambda self, some: asked.append(some.media()[:, 0, 0, 0]) or predict(self, some)
    )
    protocol = load_protocol("kshot", shot=2, query=5, episodes=3, seed=4)
    for name in ("finetune", "cosine"):
        evaluate(protocol, backbone, load_method(name, train_backbone=True, steps=0), clips=clips)
    episodes = list(protocol.split(clips))
    for first, second, number in zip(asked[:3], asked[3:], range(3), strict=True):
        assert np.array_equal(first, second)
        order = query_orders(4, [number], 15)[0]
        assert np.array_equal(first, clips[episodes[number].query[order]].media()[:, 0, 0, 0])
        assert sorted(order) == list(range(15))
    assert len({tuple(row) for row in query_orders(4, range(50), 15).tolist()}) == 50
    assert not np.array_equal(query_orders(4, [0], 15), query_orders(5, [0], 15))
    # Every place is as likely as any other.
    counts = np.stack([np.bincount(column, minlength=4) for column in query_orders(0, range(4000), 4).T])
    assert np.abs(counts / 4000 - 0.25).max() < 0.03


def test_rows_of_a_report_stay_in_the_order_of_the_episode(backbone: Backbone, clips: ClipSet) -> None:
    for method in (load_method("protonet"), load_method("finetune", train_backbone=True, steps=1), Placed(steps=0)):
        protocol = load_protocol("kshot", shot=2, query=5, episodes=3)
        report = evaluate(protocol, backbone, method, clips=clips)
        wanted = [clip for episode in protocol.split(clips) for clip in clips.ids[episode.query]]
        assert report.predictions["clip"].tolist() == wanted


def test_whoever_comes_from_outside_holds_no_array_of_other_clips(backbone: Backbone, clips: ClipSet) -> None:
    part = clips[[7, 3]].isolated(labelled=False, in_memory=True)
    assert rows_of(part) is None
    assert part._base.media["flow"].array.base is None
    assert np.array_equal(part.media(), clips[[7, 3]].media())
    assert part.table.index.tolist() == part._base.frame.index.tolist() == [0, 1]
