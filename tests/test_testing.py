"""The public contract checks fail on what breaks a contract, and their message names the thing and the promise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fake_trees
import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from tiny_backbone import TinyBackbone
from torch import Tensor, nn

import fsmer
from fsmer.backbones import Backbone
from fsmer.data import ClipSet, InputSpec
from fsmer.datasets import Audit, load_adapter
from fsmer.episodic import Episode, Episodes, FoldEpisodes, LeaveOneSubjectOut
from fsmer.errors import DataError, FsmerError, UnknownNameError
from fsmer.testing import (
    Check,
    check_adapter,
    check_backbone,
    check_method,
    check_protocol,
    checks,
    parametrize_with_checks,
)
from fsmer.transfer import Head, Recognizer
from fsmer.transfer.protonet import ProtoNet


def broken(kind: str, subject: Any, **options: Any) -> dict[str, str]:
    """Name of each check that fails -> what it says."""
    found = {}
    for check in checks(kind, subject):
        try:
            check(**options)
        except AssertionError as error:
            found[check.function.__name__.removeprefix(f"{kind}_")] = str(error)
    return found


class Mixing(TinyBackbone):
    """Subtracts the mean of the batch, so that a clip's embedding depends on the others."""

    def forward(self, inputs: Tensor) -> Tensor:
        found = super().forward(inputs)
        return found - found.mean(dim=0)


class Noisy(TinyBackbone):
    def forward(self, inputs: Tensor) -> Tensor:
        found = super().forward(inputs)
        return found + 0.1 * torch.randn_like(found)


class Wide(TinyBackbone):
    def __init__(self) -> None:
        super().__init__()
        self.embed_dim += 1


class Unused(TinyBackbone):
    def __init__(self) -> None:
        super().__init__()
        self.forgotten = nn.Linear(2, 2)


class Forgetful(TinyBackbone):
    """Has an attribute that forward depends on, but that is neither saved nor in its config."""

    power = 1.0

    def forward(self, inputs: Tensor) -> Tensor:
        return self.power * super().forward(inputs)

    def finish_training(self) -> None:
        self.power = 2.0


def test_a_backbone_that_keeps_the_contract_passes() -> None:
    check_backbone(lambda: TinyBackbone(knows=["positive", "negative"]))


@pytest.mark.parametrize(
    ("made", "check", "facts"),
    [
        (Mixing, "embeds_each_clip_alone", ["tiny-for-tests", "together and apart", "differ by"]),
        (Noisy, "gives_a_vector_a_clip", ["tiny-for-tests", "two passes"]),
        (Wide, "gives_a_vector_a_clip", ["(12, 16)", "(12, 17)"]),
        (Unused, "gets_gradients", ["forgotten.weight", "no gradient"]),
        (Forgetful, "is_saved_to_the_bit", ["embeddings", "after loading"]),
    ],
)
def test_a_broken_backbone_is_found(made: type[TinyBackbone], check: str, facts: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("fsmer.plugins.BACKBONES._held", {**_held("BACKBONES"), "tiny-for-tests": made})
    (one,) = (one for one in checks("backbone", made) if one.function.__name__.endswith(check))
    with pytest.raises(AssertionError) as caught:
        one()
    assert all(fact in str(caught.value) for fact in facts), caught.value


def _held(registry: str) -> dict[str, Any]:
    from fsmer import plugins

    return dict(getattr(plugins, registry)._held)


@dataclass(frozen=True)
class ByPlace(ProtoNet):
    """Answers by the place of a query among the queries."""

    def solve(self, embeddings: Any, support: Any, codes: Any, query: Any = None, **options: Any) -> Iterator[Any]:
        for part, logits in super().solve(embeddings, support, codes, query, **options):
            yield part, logits + torch.arange(logits.shape[1])[:, None] * torch.eye(logits.shape[2])[0]


class Peeking(Recognizer):
    def decision_function(self, clips: Any, **options: Any) -> Any:
        found = super().decision_function(clips, **options)
        return np.where(clips.codes(self.classes_.tolist())[:, None] == np.arange(found.shape[1]), 9.0, found)


@dataclass(frozen=True)
class Cheating(ProtoNet):
    """Its recognizer reads the labels of the clips that it is asked about."""

    def fit(self, *args: Any, **options: Any) -> Recognizer:
        made = super().fit(*args, **options)
        made.__class__ = Peeking
        return made


@dataclass(frozen=True)
class Shared(ProtoNet):
    """Centres the support of all episodes that are fitted together by their common mean."""

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: Any = None) -> Head:
        return super().fit_head(embeddings - 3 * embeddings.mean(dim=(0, 1)), codes, way, prior)


@dataclass(frozen=True)
class Drawing(ProtoNet):
    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: Any = None) -> Head:
        head = super().fit_head(embeddings, codes, way, prior)
        return replace(head, weight=head.weight + torch.randn_like(head.weight))


@pytest.mark.parametrize(
    ("made", "check", "facts"),
    [
        (ByPlace, "answers_each_query_by_its_media", ["queries in another order", "differ by"]),
        (Cheating, "answers_each_query_by_its_media", ["other labels"]),
        (Shared, "solves_each_episode_alone", ["together and alone"]),
        (Drawing, "repeats_its_results", ["two results"]),
    ],
)
def test_a_broken_method_is_found(made: type[ProtoNet], check: str, facts: list[str]) -> None:
    found = broken("method", made)
    assert check in found
    assert all(fact in found[check] for fact in ["protonet", *facts]), found


@dataclass(frozen=True, kw_only=True)
class Leaking(LeaveOneSubjectOut):
    """Asks about every person, those of the support too."""

    def deal(self, clips: ClipSet, classes: tuple[str, ...], codes: Any) -> Episodes:
        fold = super().deal(clips, classes, codes)[0]
        half = np.arange(len(clips)) % 4 < 2
        return Once(Episode(np.flatnonzero(half), np.flatnonzero(~half), fold.classes, "halves"), codes)


class Once(Episodes):
    def __init__(self, episode: Episode, codes: Any) -> None:
        self.episode, self.codes, self.classes = episode, codes, episode.classes

    def __len__(self) -> int:
        return 1

    def _make(self, index: int) -> Episode:
        return self.episode


@dataclass(frozen=True, kw_only=True)
class Doubling(LeaveOneSubjectOut):
    """Asks about clips of the support."""

    def deal(self, clips: ClipSet, classes: tuple[str, ...], codes: Any) -> Episodes:
        units, names = clips.subject_codes(), [str(person) for person in range(len(clips.subject_names))]
        everybody = np.ones(len(names), dtype=bool)
        return FoldEpisodes(classes, codes, units, names, lambda fold: (everybody, np.arange(len(names)) == fold))


def test_a_protocol_with_a_person_or_a_clip_on_both_sides_is_found() -> None:
    found = broken("protocol", Leaking)
    assert "subjects on both sides of halves: casme2/001" in found["keeps_sides_apart"]
    assert "ignores_the_order_of_rows" in found
    check_protocol(LeaveOneSubjectOut)
    assert "in the support and in the queries" in broken("protocol", Doubling)["keeps_sides_apart"]
    assert "keeps_sides_apart" not in broken("protocol", Leaking, subject_disjoint=False)


def test_an_adapter_that_loses_clips_or_moves_an_apex_is_found(tmp_path: Path) -> None:
    root, base = fake_trees.build("casme2", tmp_path), load_adapter("casme2")
    audit = base.check(root)
    check_adapter("casme2", root, clips=audit.annotated)

    class Losing(type(base)):
        def check(self, *args: Any, **options: Any) -> Audit:
            found = super().check(*args, **options)
            return replace(found, clips=found.clips[1:])

    class Moving(type(base)):
        def check(self, *args: Any, **options: Any) -> Audit:
            found = super().check(*args, **options)
            table = found.clips.table
            table["apex_index"] = table["onset_index"]
            return replace(found, clips=ClipSet.from_table(table))

    lost = broken("adapter", Losing, root=root)
    assert set(lost) == {"loses_no_clip"}
    assert f"{audit.annotated} clips are annotated, {audit.usable - 1} read" in lost["loses_no_clip"]
    assert "apex of clip" in broken("adapter", Moving, root=root)["gives_the_annotated_frames"]
    with pytest.raises(AssertionError, match=f"the release has {audit.annotated + 1}"):
        check_adapter(base, root, clips=audit.annotated + 1)


def test_what_is_no_such_thing_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"is no backbone.*Backbone"):
        check_backbone(lambda: nn.Linear(2, 2))
    with pytest.raises(AssertionError, match=r"is no method.*Method"):
        check_method(InputSpec)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: check_backbone(nn.Linear),
        lambda: check_method(3),
        lambda: check_adapter("casme2", None),
        lambda: check_protocol("loso", 3),
        lambda: check_protocol("loso", subject_disjoint="yes"),
        lambda: check_adapter("casme2", "release", clips="2"),
        lambda: check_backbone("tiny-for-tests", untrained=None),
        lambda: check_backbone("tiny-for-tests", untrained="bias"),
        lambda: check_backbone("tiny-for-tests", untrained=[1]),
        lambda: parametrize_with_checks("method", "cosine"),
    ],
)
def test_a_wrong_argument_is_one_sentence(ask: Any) -> None:
    with pytest.raises((AssertionError, DataError)) as caught:
        ask()
    assert "; give " in str(caught.value)


class Failing(TinyBackbone):
    def training_loss(self, *given: Any) -> Any:
        raise KeyError("lost")


class Textual(TinyBackbone):
    def training_loss(self, *given: Any) -> Any:
        return "0.7"


class Listing(TinyBackbone):
    def forward(self, inputs: Tensor) -> Any:
        return [0.0]


@pytest.mark.parametrize(("made", "facts"), [(Failing, "KeyError.*lost"), (Textual, "ndim"), (Listing, "shape")])
def test_code_that_fails_inside_a_check_is_a_broken_promise_of_the_thing(made: type[TinyBackbone], facts: str) -> None:
    with pytest.raises(AssertionError, match=f"backbone 'tiny-for-tests'.*{facts}"):
        check_backbone(made)


def test_a_backbone_whose_constructor_leaves_out_the_one_of_its_base_is_named() -> None:
    class Bare(Backbone):
        def __init__(self) -> None: ...

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs

    clips = fsmer.synthetic_clips(n=4)
    for ask in (lambda: check_backbone(Bare), lambda: fsmer.adapt(Bare(), clips), lambda: fsmer.embed(Bare(), clips)):
        with pytest.raises(FsmerError, match=r"Bare.*super\(\).__init__"):
            ask()


@pytest.mark.parametrize("kind", ["metod", None, ["method"]])
def test_an_unknown_kind_of_checks_is_refused(kind: Any) -> None:
    with pytest.raises(UnknownNameError, match="method"):
        checks(kind, "cosine")


def test_a_classifier_of_scikit_learn_is_checked_as_the_method_that_it_is() -> None:
    for subject in (KNeighborsClassifier(1), KNeighborsClassifier):
        (one,) = (one for one in checks("method", subject) if "tells_classes" in one.function.__name__)
        one()


@parametrize_with_checks("method", ["protonet", ProtoNet(), ProtoNet])
def test_pytest_runs_each_check_by_name(check: Check, request: pytest.FixtureRequest) -> None:
    assert check.function.__name__.removeprefix("method_") in request.node.name
    assert isinstance(check, Check)


def test_every_kind_has_checks_with_a_sentence_each() -> None:
    kinds: Sequence[tuple[Any, Any]] = (("backbone", "ststnet"), ("method", "cosine"), ("protocol", "loso"))
    for kind, name in (*kinds, ("adapter", "samm")):
        held = checks(kind, name)
        assert len(held) >= 3
        assert all(check.function.__doc__ for check in held)
