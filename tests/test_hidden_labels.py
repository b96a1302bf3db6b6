"""What learns and what answers can reach no label of the query side."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

import fsmer
from fsmer.backbones import Backbone, model_hash, register_backbone
from fsmer.data import ClipSet, concat
from fsmer.data.media import ConcatStore, ImageStore, ListStore
from fsmer.episodic import load_protocol
from fsmer.errors import MediaError
from fsmer.evaluation import Report, evaluate
from fsmer.evaluation.predictions import Predictions
from fsmer.transfer import Recognizer, list_methods, load_method
from fsmer.transfer.linear_head import Finetune
from fsmer.transfer.source_model import SourceModel

from tiny_backbone import TinyBackbone  # isort: skip

from tiny_runs import RECIPE, RandomTiny, trained, tuned  # isort: skip


def reachable(*roots: Any) -> Iterator[Any]:
    """Every object that can be reached by attributes, items, closures and array bases; not through modules or types."""
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, (types.ModuleType, type, types.CodeType, types.FrameType)):
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, types.FunctionType):
            waiting += [one.__closure__, one.__defaults__, one.__kwdefaults__, vars(one)]
        elif isinstance(one, np.ndarray):
            waiting += [one.base, *(one.ravel().tolist() if one.dtype.kind in "OUS" else [])]
        elif isinstance(one, (pd.DataFrame, pd.Series, pd.Index)):
            values = one.to_frame() if not isinstance(one, pd.DataFrame) else one
            waiting += [*values.astype(object).to_numpy().ravel().tolist(), *gc.get_referents(one)]
        else:
            waiting += gc.get_referents(one)


def secrets_in(clips: ClipSet, queries: set[str], *roots: Any) -> list[str]:
    """What of the query clips' names and annotations, or of everybody's labels, lies within reach."""
    codes = clips.codes()
    found = []
    for one in reachable(*roots):
        if isinstance(one, str) and one in queries:
            found.append(one)
        if isinstance(one, str) and "the secret of" in one:
            found.append(one)
        if isinstance(one, Tensor):
            one = one.detach().cpu().numpy()
        if isinstance(one, np.ndarray) and one.shape == codes.shape and one.dtype.kind in "iu":
            found += ["codes of all clips"] if len(np.unique(one)) == 3 else []
        if isinstance(one, list) and len(one) == len(codes) and set(one) == set(clips.classes):
            found.append("labels of all clips")
    return found


def marked(clips: ClipSet, query: np.ndarray) -> ClipSet:
    """The clips with annotations of some of them that exist nowhere else."""
    table = clips.table
    for column in ("aus", "emotion"):
        table[column] = np.where(query, [f"the secret of {name}" for name in clips.ids], table[column].to_numpy(object))
    return ClipSet.from_table(table, clips._base.media)


SEEN: list[tuple[str, tuple[Any, ...]]] = []


class Snooping(Finetune):
    """A method that looks at everything it is given."""

    name = "snooping"

    def fit(self, backbone: Any, support: Any, **options: Any) -> Recognizer:
        SEEN.append(("fit", (self, backbone, support, options)))
        return super().fit(backbone, support, **options)

    def fit_many(self, model: Any, supports: Any, **options: Any) -> Iterator[tuple[int, Recognizer]]:
        SEEN.append(("fit_many", (self, model, list(supports), options)))
        return super().fit_many(model, supports, **options)

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: Any = None) -> Any:
        SEEN.append(("fit_head", (self, embeddings, codes, prior)))
        return super().fit_head(embeddings, codes, way, prior)

    def train_source(self, backbone: Any, source: Any, *, progress: Any = None) -> Any:
        SEEN.append(("train_source", (self, backbone, source, progress)))
        return super().train_source(backbone, source, progress=progress)


@register_backbone("snooping-for-tests")
class SnoopingBackbone(RandomTiny):
    """A backbone that looks at everything it is given."""

    def forward(self, inputs: Tensor) -> Tensor:
        SEEN.append(("forward", (self, inputs)))
        return super().forward(inputs)

    def training_loss(self, inputs: Any, targets: Any, classifier: Any) -> Tensor:
        SEEN.append(("training_loss", (self, inputs, targets, classifier)))
        return super().training_loss(inputs, targets, classifier)


@pytest.mark.parametrize("trains", [True, False])
def test_a_prying_method_and_backbone_find_no_query_label(trains: bool, clips: ClipSet) -> None:
    query = (clips.datasets == "two") & (clips.subjects == "001")
    queries = {f"the secret of {name}" for name in clips.ids[query]} | set(clips.ids[query])
    some = marked(clips, query)
    SEEN.clear()
    heard: list[Any] = []
    evaluate(
        load_protocol("holdout", train=["one"], test=["two"]),
        SnoopingBackbone().eval(),
        Snooping(train_backbone=trains, steps=1),
        clips=some,
        cache=False,
        progress=lambda *said: heard.extend(said),
    )
    kinds = {kind for kind, _ in SEEN}
    assert kinds >= ({"fit", "training_loss", "forward"} if trains else {"fit_head", "forward"})
    for kind, held in SEEN:
        assert not secrets_in(some, queries, *held), kind
    assert {type(one) for one in heard} == {str, int}
    # The search does find them where they are.
    assert secrets_in(some, queries, some[~query])
    assert secrets_in(some, queries, some[~query].isolated()) == []


def test_no_support_of_loso_leads_to_a_query_and_others_methods_get_one_fold_at_a_time(
    backbone: Backbone, clips: ClipSet
) -> None:
    SEEN.clear()
    evaluate("loso", backbone, Snooping(train_backbone=True, steps=1), clips=clips)
    supports = [held[2] for kind, held in SEEN if kind == "fit"]
    assert not [kind for kind, _ in SEEN if kind == "fit_many"]
    for support, episode in zip(supports, load_protocol("loso").split(clips), strict=True):
        assert support.ids.tolist() == clips.ids[episode.support].tolist()
        assert not secrets_in(clips, set(clips.ids[episode.query]), support)
    SEEN.clear()
    evaluate("loso", backbone, Snooping(steps=1), clips=clips)
    assert [len(held[2]) for kind, held in SEEN if kind == "fit_head"] == [1] * 6


@dataclass(frozen=True)
class Careless(Finetune):
    """From outside, and trains the backbone that it was given instead of a copy."""

    name: ClassVar[str] = "careless"
    starts: ClassVar[list[str]] = []
    memory: list[int] = field(default_factory=list)

    @property
    def keeps_backbone(self) -> bool:
        return False

    def fit(self, backbone: Any, support: ClipSet, **options: Any) -> Recognizer:
        model = SourceModel.wrap(backbone)
        assert not self.memory
        self.memory.append(len(support))
        self.starts.append(model_hash(model.backbone))
        with torch.no_grad():
            for value in model.backbone.parameters():
                value += 0.1
        return Finetune(steps=2).fit(model, support, **options)


def test_a_careless_method_from_outside_starts_every_fold_alike(backbone: Backbone, clips: ClipSet) -> None:
    before = model_hash(backbone)
    Careless.starts.clear()
    evaluate("loso", backbone, Careless(), clips=clips)
    assert Careless.starts == [before] * 6
    assert model_hash(backbone) == before


def test_the_source_is_handed_over_apart_from_the_target(clips: ClipSet) -> None:
    SEEN.clear()
    protocol = load_protocol("synthetic-source-target", episodes=1, query=2)
    made = protocol.make_clips()
    method = Snooping(train_backbone=True, steps=1, source_epochs=1)
    evaluate(protocol, RandomTiny().eval(), method, clips=made, progress=lambda *said: None)
    (held,) = [held for kind, held in SEEN if kind == "train_source"]
    target = set(made.ids[made.datasets == protocol.target[0]])  # type: ignore[attr-defined]
    assert target
    assert not secrets_in(made, target, *held)


def test_queries_are_asked_about_without_anything_that_was_annotated(
    backbone: Backbone, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ClipSet] = []
    predict = Recognizer.predict_proba
    monkeypatch.setattr(Recognizer, "predict_proba", lambda self, one: asked.append(one) or predict(self, one))
    evaluate("loso", backbone, tuned(), clips=clips)
    assert len(asked) == 6
    for query in asked:
        assert query.labels.tolist() == [None] * len(query)
        assert set(query.table["aus"]) == {""}
        assert "emotion" not in query.table
        assert not [one for one in reachable(query) if isinstance(one, str) and one.startswith("felt ")]


class Peeping(Recognizer):
    """A recognizer that looks at everything that it is asked about."""

    def predict_proba(self, clips: Any) -> Any:
        SEEN.append(("asked", (clips,)))
        return super().predict_proba(clips)


class PeepingMethod(Finetune):
    name = "peeping"

    def fit(self, *args: Any, **options: Any) -> Recognizer:
        found = super().fit(*args, **options)
        found.__class__ = Peeping
        return found


def labelled_files(clips: ClipSet, root: Path) -> ClipSet:
    """The clips as images whose names and folders hold the labels, as in published layouts."""
    rows = []
    for place, (values, row) in enumerate(zip(clips.media(), clips.table.to_dict("records"), strict=True)):
        file = root / str(row["subject"]) / "u_test" / str(row["label"]) / f"{row['label'][:3]}-{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(values * 255).astype(np.uint8).transpose(1, 2, 0)).save(file)
        rows.append(row | {"clip": f"s1_{row['label']}_{place}", "file": str(file)})
    table = pd.DataFrame(rows)
    return concat(
        [fsmer.read_frame(part.reset_index(drop=True)) for _, part in table.groupby("dataset", observed=True)]
    )


def test_whoever_answers_is_shown_no_name_that_holds_a_label(
    backbone: Backbone, clips: ClipSet, tmp_path: Path
) -> None:
    files = labelled_files(clips, tmp_path)
    plain = ClipSet.from_arrays(
        files.media(), files.labels, subjects=files.subjects, datasets=files.datasets, ids=files.ids
    )
    words = (*clips.classes, ".png", *(name[:3] + "-" for name in clips.classes), str(tmp_path))

    def telling(*roots: Any) -> list[str]:
        return [one for one in reachable(*roots) if isinstance(one, str) and any(word in one for word in words)]

    SEEN.clear()
    report = evaluate("loso", backbone, PeepingMethod(train_backbone=True, steps=2, encoder_rate=1e-2), clips=files)
    assert [kind for kind, _ in SEEN] == ["asked"] * 6
    for (_, held), episode in zip(SEEN, load_protocol("loso").split(files), strict=True):
        shown, asked = ({one.tobytes() for one in some.media()} for some in (held[0], files[episode.query]))
        assert shown == asked
        assert telling(*held) == []
    # The search does find them where they are, and what is hidden changes no answer.
    assert telling(files[:3]) != [] != telling(files[:3].isolated())
    assert report.predictions.equals(evaluate("loso", backbone, tuned(), clips=plain).predictions)


def test_a_broken_query_is_named_though_it_was_asked_about_under_no_name(backbone: Backbone, clips: ClipSet) -> None:
    maps = clips.media()
    maps[30] = 0.5
    broken = ClipSet.from_arrays(maps, clips.labels, subjects=clips.subjects, datasets=clips.datasets, ids=clips.ids)
    # Fold by fold the clip is a query before it is in a support.
    order = np.r_[30, np.delete(np.arange(48), 30)]
    protocol = load_protocol("holdout", train=["one"], test=["two"])
    with pytest.raises(MediaError, match=f"clip '{clips.ids[30]}' of data set 'two'"):
        evaluate(protocol, backbone, tuned(), clips=broken[order])


def test_images_without_names_are_the_same_pixels_and_name_the_clip_that_is_missing(
    clips: ClipSet, tmp_path: Path
) -> None:
    files = labelled_files(clips, tmp_path)[[5, 40, 2]]
    hidden = files.isolated(labelled=False)
    assert np.array_equal(hidden.media(), files.media())
    assert hidden.ids.tolist() == ["clip-0", "clip-1", "clip-2"]
    assert hidden.subjects.tolist() == files.subjects.tolist()
    next(tmp_path.glob("*/u_test/*/*-40.png")).unlink()
    with pytest.raises(MediaError, match=f"clip '{files.ids[1]}'.*does not exist"):
        files.isolated(labelled=False)


def test_clips_apart_know_no_other_file(tmp_path: Path) -> None:
    spec = fsmer.InputSpec()
    files = ImageStore([f"negative/{row}.png" for row in range(6)], spec)
    arrays = ListStore([np.full(spec.shape, row / 6, np.float32) for row in range(6)], spec)
    both = ConcatStore([files, arrays], np.array([0, 1] * 6), np.arange(6).repeat(2))
    table = pd.DataFrame({"clip": [f"c{row}" for row in range(12)], "label": list("ab") * 6})
    part = ClipSet.from_table(table, {"flow": both})[[1, 2, 3, 7]].isolated()
    assert part.ids.tolist() == ["c1", "c2", "c3", "c7"]
    paths = [one for one in reachable(part) if isinstance(one, str) and one.endswith(".png")]
    assert paths == ["negative/1.png"]
    read = part[[0, 2, 3]]._base.media["flow"].read(np.array([3, 0, 2]))
    assert read[:, 0, 0, 0] == pytest.approx([3 / 6, 0, 1 / 6])
    assert len(part[[]].isolated()) == 0


def captured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Report, Predictions, list[Tensor]]]:
    """`evaluate` that also gives the answers to the last bit and what was fitted."""

    def run(*args: Any, **options: Any) -> tuple[Report, Predictions, list[Tensor]]:
        held: list[Any] = []
        fitted: list[Tensor] = []
        make = Report.from_predictions.__func__  # type: ignore[attr-defined]
        learn = Recognizer.__init__

        def keep(cls: Any, clips: ClipSet, predictions: Any, **rest: Any) -> Report:
            held.append(predictions)
            return make(cls, clips, predictions, **rest)  # type: ignore[no-any-return]

        def look(self: Recognizer, *rest: Any) -> None:
            learn(self, *rest)
            fitted.append(torch.cat([self.head.weight.ravel(), *(v.ravel() for v in self.backbone.parameters())]))

        with monkeypatch.context() as patch:
            patch.setattr(Report, "from_predictions", classmethod(keep))
            patch.setattr(Recognizer, "__init__", look)
            report = evaluate(*args, **options)
        (predictions,) = held[0].values()
        return report, predictions, fitted

    return run


METHODS = [
    *(pytest.param(one.name, {}, id=one.name) for one in list_methods() if one.name != "train"),
    pytest.param("train", {}, id="train"),
    pytest.param("finetune", {"train_backbone": True, "steps": 2}, id="finetune+backbone"),
    pytest.param("cosine", {"train_backbone": True, "steps": 2}, id="cosine+backbone"),
    pytest.param("train", {"select": "nested"}, id="train, nested"),
    pytest.param("protonet", {"select": "nested", "grid": {"distance": ["cosine"]}}, id="protonet, nested"),
]


@pytest.mark.parametrize(("name", "params"), METHODS)
def test_poisoned_query_labels_change_nothing_that_is_learnt_or_answered(
    name: str, params: dict[str, Any], clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = dict(params)
    how = {key: params.pop(key) for key in ("select", "grid") if key in params}
    knowing = TinyBackbone(8, knows=clips.classes).eval()
    monkeypatch.setattr(TinyBackbone, "recipe", RECIPE)
    run = captured(monkeypatch)
    labels = clips.labels.copy()
    mine = (clips.datasets == "two") & (clips.subjects == "002")
    labels[mine] = np.roll(labels[mine], 1)
    poisoned = ClipSet.from_table(
        clips.table.assign(label=labels, aus=np.where(mine, "12", clips.table["aus"])), clips._base.media
    )
    names = [episode.name for episode in load_protocol("loso").split(clips)]
    fold = names.index("two/002")
    method = load_method(name, **params)
    honest, before, learnt = run("loso", knowing, method, clips=clips, **how)
    lied, after, relearnt = run("loso", knowing, method, clips=poisoned, **how)
    rows = before.episode == fold
    assert np.array_equal(before.probabilities[rows], after.probabilities[rows])
    if learnt and not how:
        assert torch.equal(learnt[fold], relearnt[fold])
    if how:
        chosen = [
            [one for one in report.selection["chosen"] if one["episode"] == "two/002"] for report in (honest, lied)
        ]
        assert chosen[0] == chosen[1]
    # The lie was told: others learn from these labels, and the answers are held against other truths.
    assert name == "zero_shot" or not np.array_equal(before.probabilities, after.probabilities)
    assert honest.predictions["label"].tolist() != lied.predictions["label"].tolist()


def test_the_oracle_is_what_poison_does_change(clips: ClipSet, backbone: Backbone) -> None:
    labels = clips.labels.copy()
    mine = (clips.datasets == "two") & (clips.subjects == "002")
    labels[mine] = np.roll(labels[mine], 1)
    poisoned = ClipSet.from_table(clips.table.assign(label=labels), clips._base.media)
    picks = []
    for some in (clips, poisoned):
        report = evaluate("loso", backbone, trained(epochs=10, learning_rate=0.02), clips=some, select="oracle")
        picks.append([one["epochs"] for one in report.selection["chosen"] if one["episode"] == "two/002"])
    assert picks[0] != picks[1]
