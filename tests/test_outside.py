"""Code from outside: results of other code are not taken over, and what goes wrong in it is told in one sentence."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import fake_trees
import numpy as np
import pytest
import torch

import fsmer
from fsmer.backbones import Backbone, ClassDirections, register_backbone
from fsmer.data.clips import concat
from fsmer.datasets import Adapter, load_adapter, register_dataset
from fsmer.episodic import (
    Episode,
    EpisodeBatch,
    Episodes,
    FoldEpisodes,
    LeaveOneSubjectOut,
    Protocol,
    register_protocol,
)  # fmt: skip
from fsmer.errors import DataError, FsmerError, OutputError, PluginError, ProtocolError
from fsmer.evaluation import evaluate
from fsmer.evaluation.embedding_cache import embed_cached
from fsmer.outside import code_digest
from fsmer.plugins import BACKBONES, METHODS, METRICS, PROTOCOLS
from fsmer.transfer import Head, Method, load_method
from fsmer.transfer.heads import FittedHead, MethodError
from fsmer.transfer.linear_head import Finetune
from fsmer.transfer.method import solves_together
from fsmer.transfer.protonet import ProtoNet

from tiny_backbone import TinyBackbone  # isort: skip

HELPER = "FACTOR = 1.0\n"
CODE = """
from dataclasses import dataclass
import numpy as np
import torch
from fsmer.backbones import Backbone, register_backbone
from fsmer.data import InputSpec
from fsmer.episodic import FoldEpisodes, Protocol, register_protocol
from fsmer.evaluation import register_metric
from fsmer.transfer import Head, Method, register_method
import edited_helper

SPEC = InputSpec(kind="flow", size=(28, 28), channels=("u", "v", "strain"), normalisation="minmax")


@register_backbone("edited-net")
class EditedNet(Backbone):
    def __init__(self):
        super().__init__(input_spec=SPEC, embed_dim=3, config={})

    def forward(self, inputs):
        return edited_helper.FACTOR * inputs.mean(dim=(2, 3))


class Plain(torch.nn.Module):
    def forward(self, inputs):
        return edited_helper.FACTOR * inputs.mean(dim=(2, 3))


@register_method("edited-method")
@dataclass(frozen=True)
class EditedMethod(Method):
    def fit_head(self, embeddings, codes, way, prior=None):
        count = len(embeddings)
        return Head("linear", torch.zeros(count, way, embeddings.shape[-1]), torch.zeros(count, way))


@register_protocol("edited_protocol")
@dataclass(frozen=True)
class EditedProtocol(Protocol):
    def deal(self, clips, classes, codes):
        learnt = np.arange(len(clips.subject_names)) % 2 == 0
        return FoldEpisodes(classes, codes, clips.subject_codes(), ["even"], lambda index: (learnt, ~learnt))
"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], ModuleType]]:
    """The module made of two files with this content, as a new process would import it."""
    before = [(one, set(one)) for one in (BACKBONES, METHODS, PROTOCOLS, METRICS)]

    def forget() -> None:
        for name in ("edited_plugin", "edited_helper"):
            sys.modules.pop(name, None)
        for registry, names in before:
            registry._forget(set(registry) - names)

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def imported(code: str = CODE, helper: str = HELPER) -> ModuleType:
        (tmp_path / "edited_plugin.py").write_text(code)
        (tmp_path / "edited_helper.py").write_text(helper)
        importlib.invalidate_caches()
        forget()
        return importlib.import_module("edited_plugin")

    yield imported
    forget()


@pytest.fixture(scope="module")
def clips() -> fsmer.ClipSet:
    made = fsmer.synthetic_clips("lab", 24, seed=1)
    return fsmer.ClipSet.from_arrays(made.media(), made.labels, subjects=[f"{place % 4}" for place in range(24)])


EDITS = {
    "its own file": {"code": CODE.replace("edited_helper.FACTOR *", "3.0 *")},
    "a file beside it": {"helper": "FACTOR = 3.0\n"},
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_backbone_whose_code_was_edited_does_not_keep_its_embeddings(
    edit: dict[str, str], wrapped: bool, load: Callable[..., Any], clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    def embeddings(module: Any) -> torch.Tensor:
        backbone = fsmer.wrap(module.Plain(), expects=module.SPEC) if wrapped else module.EditedNet()
        return embed_cached(backbone, clips, folder=tmp_path / "kept")[0]

    first = embeddings(load())
    torch.testing.assert_close(embeddings(load(**edit)), 3 * first)
    kept = len(list((tmp_path / "kept").rglob("*.npy")))
    torch.testing.assert_close(embeddings(load()), first)
    assert len(list((tmp_path / "kept").rglob("*.npy"))) == kept  # the same code again


@pytest.mark.parametrize("changed", ["model", "method", "protocol"])
def test_a_finished_run_whose_code_was_edited_is_another_run(
    changed: str, load: Callable[..., Any], clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    own = {"model": TinyBackbone(8).eval(), "method": load_method("protonet"), "protocol": "loso"}

    def run(module: Any) -> fsmer.Report:
        outside = {"model": module.EditedNet, "method": module.EditedMethod, "protocol": module.EditedProtocol}
        given = own | {changed: outside[changed]()}
        return evaluate(given["protocol"], given["model"], given["method"], clips=clips, out=tmp_path / "out")

    first = run(load())
    written = (tmp_path / "out" / "run.json").read_bytes()
    assert run(load()).to_dict() == first.to_dict()
    assert (tmp_path / "out" / "run.json").read_bytes() == written
    with pytest.raises(OutputError, match=f"code of the {changed}.*overwrite"):
        run(load(code=CODE + "# edited\n"))


def test_the_code_of_fsmer_is_named_by_its_version_alone(clips: fsmer.ClipSet, tmp_path: Path) -> None:
    assert code_digest([fsmer.load_model("facs-flow"), load_method("cosine"), fsmer.load_protocol("loso")]) == ""
    report = evaluate("loso", "facs-flow", "sklearn:SVC", clips=clips, out=tmp_path)
    assert not [name for name in report.run["identity"] if "code" in name]


def test_code_without_its_source_is_never_the_same(load: Callable[..., Any], tmp_path: Path) -> None:
    module = load()
    assert code_digest([module.EditedNet()]) == code_digest([module.EditedNet()])
    # Edited, but not loaded anew: what runs is not what is there to read.
    (tmp_path / "edited_plugin.py").write_text(CODE.replace("edited_helper.FACTOR *", "3.0 *"))
    assert code_digest([module.EditedNet()]) != code_digest([module.EditedNet()])
    cell: dict[str, Any] = {"__name__": "a_notebook"}
    exec("class Cell: pass", cell)
    assert code_digest([cell["Cell"]()]) != code_digest([cell["Cell"]()])


def test_a_report_is_made_anew_when_a_metric_was_edited(
    load: Callable[..., Any], clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    metric = '\n\n@register_metric("edited_metric")\ndef edited(confusion):\n    return {value}\n'
    found = []
    for value in ("0.25", "0.75", "0.75"):
        load(code=CODE + metric.format(value=value))
        report = evaluate("loso", TinyBackbone(8).eval(), "protonet", clips=clips, out=tmp_path / "out")
        found.append((report.figures["edited_metric"], report.run["started"], report.run["seconds"]))
    assert [one[0] for one in found] == [0.25, 0.75, 0.75]
    assert found[1] == found[2]


class Ends(BaseException):
    """Neither an error nor a key press."""


def fails(error: BaseException) -> Callable[..., Any]:
    def failing(*given: Any, **options: Any) -> Any:
        raise error

    return failing


class Broken(FittedHead):
    """Scores by `answer`, whatever that gives."""

    kind = "broken"

    def __init__(self, episodes: int, answer: Callable[..., Any]) -> None:
        self.episodes, self.answer = episodes, answer

    def __len__(self) -> int:
        return self.episodes

    def logits(self, queries: torch.Tensor) -> Any:
        return self.answer(queries)


@dataclass(frozen=True)
class BrokenMethod(Method):
    """Fits what `made` gives for embeddings of shape (E, S, D)."""

    name: ClassVar[str] = "broken-method"
    made: Any = None

    def fit_head(self, embeddings: torch.Tensor, codes: torch.Tensor, way: int, prior: Any = None) -> Any:
        return self.made(embeddings)


HEADS = {
    "raises": (fails(RuntimeError("no idea")), ["broken-method", "RuntimeError", "no idea"]),
    "ends": (fails(Ends("over")), ["broken-method", "Ends", "over"]),
    "leaves": (fails(SystemExit(0)), ["broken-method", "SystemExit"]),
    "nothing": (lambda embeddings: None, ["fit_head", "BrokenMethod", "NoneType", "FittedHead"]),
    "other episodes": (lambda embeddings: Broken(7, len), ["fit_head", "Broken", "1 episodes"]),
    "other classes": (
        lambda embeddings: Head("linear", torch.zeros(1, 9, 8), torch.zeros(1, 9)),
        ["(1, 9, 8)", "(1, 3)"],
    ),
    "logits raise": (lambda embeddings: Broken(1, fails(KeyError("lost"))), ["logits", "Broken", "KeyError", "lost"]),
    "no logits": (lambda embeddings: Broken(1, lambda queries: None), ["logits", "Broken", "None", "(1, "]),
    "long logits": (lambda embeddings: Broken(1, lambda queries: torch.zeros(1, 2, 9)), ["(1, 2, 9)", "Broken"]),
    "whole logits": (lambda embeddings: Broken(1, lambda of: torch.zeros(1, of.shape[-2], 3).long()), ["torch.int64"]),
}


@pytest.mark.parametrize(("made", "facts"), HEADS.values(), ids=HEADS)
def test_a_method_that_fails_or_gives_something_else_is_one_sentence(
    made: Callable[..., Any], facts: list[str], clips: fsmer.ClipSet
) -> None:
    backbone, method = TinyBackbone(8).eval(), BrokenMethod(made)
    for call in (
        lambda: evaluate("loso", backbone, method, clips=clips, cache=False),
        lambda: fsmer.adapt(backbone, clips, method).predict(clips),
    ):
        with pytest.raises(MethodError) as told:
            call()
        said = str(told.value)
        assert all(fact in said for fact in facts), said
        assert said.count("\n") == 0
        assert said.endswith(".")
        caught = isinstance(told.value.__cause__, (RuntimeError, Ends, SystemExit, KeyError))
        assert caught == any(word in said for word in ("RuntimeError", "Ends", "SystemExit", "KeyError"))


@pytest.mark.parametrize("made", [fails(ZeroDivisionError("by 0")), lambda *given, **options: "recognizer"])
def test_a_method_that_trains_the_network_and_fails_is_one_sentence(made: Any, clips: fsmer.ClipSet) -> None:
    @dataclass(frozen=True)
    class Tuned(Finetune):
        name: ClassVar[str] = "tuned-from-outside"
        fit = made

    for call in (evaluate, lambda protocol, model, method, clips: fsmer.adapt(model, clips, method)):
        with pytest.raises(MethodError, match=r"tuned-from-outside.*Tuned.*(ZeroDivisionError.*by 0|Recognizer)"):
            call("loso", TinyBackbone(8).eval(), Tuned(train_backbone=True), clips=clips)


FORWARDS = {
    "raises": (fails(Ends("over")), ["Ends", "over"]),
    "nothing": (lambda inputs: None, ["None", "(24, 8)"]),
    "other width": (lambda inputs: torch.zeros(len(inputs), 9), ["(24, 9)", "(24, 8)"]),
    "integers": (lambda inputs: torch.zeros(len(inputs), 8).long(), ["torch.int64", "floating-point"]),
}


@pytest.mark.parametrize(("forward", "facts"), FORWARDS.values(), ids=FORWARDS)
def test_a_network_that_fails_or_gives_something_else_is_one_sentence(
    forward: Callable[..., Any], facts: list[str], clips: fsmer.ClipSet
) -> None:
    backbone = TinyBackbone(8).eval()
    backbone.forward = forward  # type: ignore[method-assign]
    for call in (
        lambda: fsmer.embed(backbone, clips),
        lambda: evaluate("loso", backbone, "protonet", clips=clips, cache=False),
        lambda: fsmer.adapt(backbone, clips),
    ):
        with pytest.raises(FsmerError) as told:
            call()
        assert all(fact in str(told.value) for fact in ["TinyBackbone", *facts]), told.value
        assert isinstance(told.value.__cause__, Ends) == ("Ends" in facts)
    if "Ends" in facts:
        with pytest.raises(FsmerError, match=r"TinyBackbone.*Ends"):
            fsmer.train(backbone, clips, epochs=1)


def test_embeddings_without_a_number_are_refused(clips: fsmer.ClipSet) -> None:
    with pytest.raises(FsmerError, match=r"TinyBackbone.*\(24, 0\).*1 or more"):
        fsmer.embed(TinyBackbone(0).eval(), clips)


def test_a_network_in_bfloat16_is_evaluated(clips: fsmer.ClipSet, tmp_path: Path) -> None:
    backbone = TinyBackbone(8).eval().bfloat16()
    report = evaluate("loso", backbone, "protonet", clips=clips, cache=tmp_path)
    again = evaluate("loso", backbone, "protonet", clips=clips, cache=tmp_path)
    assert report.predictions.equals(again.predictions)
    assert len(list(tmp_path.rglob("*.npy"))) == 1


DEALS = {
    "raises": (fails(LookupError("no such side")), ["LookupError", "no such side"]),
    "a list": (lambda clips, classes, codes: [1, 2], ["[1, 2]", "Episodes"]),
    "other clips": (
        lambda clips, classes, codes: FoldEpisodes(classes, codes[:3], codes[:3] * 0, ["one"], lambda index: (1, 1)),
        ["24 clips"],
    ),
    "sides that fail": (
        lambda clips, classes, codes: FoldEpisodes(classes, codes, codes * 0, ["one"], fails(KeyError("side"))),
        ["episode 0", "KeyError", "side"],
    ),
    "rows that are none": (
        lambda clips, classes, codes: Rows(classes, codes, codes * 0, ["one"], lambda index: (1, 1)),
        ["episode 0", "24 clips"],
    ),
}


class Rows(FoldEpisodes):
    """Names a clip that is not there."""

    def _make(self, index: int) -> Episode:
        return Episode(np.array([0, 99]), np.array([1]), self.classes, "one")


@pytest.mark.parametrize(("deal", "facts"), DEALS.values(), ids=DEALS)
def test_a_protocol_that_fails_or_gives_something_else_is_one_sentence(
    deal: Callable[..., Any], facts: list[str], clips: fsmer.ClipSet
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class BrokenProtocol(Protocol):
        kind: ClassVar[str] = "broken_protocol"

        def deal(self, *given: Any) -> Any:
            return deal(*given)

    with pytest.raises(ProtocolError) as told:
        evaluate(BrokenProtocol(), TinyBackbone(8).eval(), "protonet", clips=clips, cache=False)
    assert all(fact in str(told.value) for fact in facts), told.value
    assert str(told.value).count("\n") == 0


def halves(classes: tuple[str, ...], codes: Any, made: Any = None, **changes: Any) -> Episodes:
    """Two episodes, learnt from the first ten clips and judged on the next ten, with these attributes in place."""

    class Halves(Episodes):
        def __init__(self) -> None:
            vars(self).update({"classes": classes, "codes": codes} | changes)

        def __len__(self) -> int:
            return 2

        def _make(self, index: int) -> Any:
            return made or Episode(np.arange(10), np.arange(10, 20), classes, f"half {index}")

    return Halves()


def batch(**changes: Any) -> Any:
    arrays = {"classes": [[0, 1, 2]], "support": [[0, 1, 2]], "query": [[3, 4]]} | changes
    whole = {name: np.array(value) if isinstance(value, list) else value for name, value in arrays.items()}
    return lambda size=64: iter([EpisodeBatch(changes.get("start", 0), plan=None, **whole)])  # type: ignore[arg-type]


OTHER_EPISODES = {
    "no classes": (lambda cl, co: halves(None, co), ["classes=None"]),  # type: ignore[arg-type]
    "codes as a list": (lambda cl, co: halves(cl, co.tolist()), ["codes="]),
    "other codes": (lambda cl, co: halves(cl, co + 9), ["codes="]),
    "a source of text": (lambda cl, co: halves(cl, co, source="lab"), ["source='lab'"]),
    "other rows": (lambda cl, co: halves(cl, co, Episode([0], [99], cl, "x")), ["episode 0", "24 clips"]),
    "pairs": (lambda cl, co: halves(cl, co, ([0], [1])), ["episode 0", "([0], [1])"]),
    "no name": (lambda cl, co: halves(cl, co, Episode([0], [1], cl, None)), ["episode 0", "name"]),  # type: ignore[arg-type]
    "masks": (lambda cl, co: halves(cl, co, Episode(co == 0, co != 0, cl, "x")), ["episode 0", "mask"]),
    "nested rows": (lambda cl, co: halves(cl, co, Episode([[0]], [[1]], cl, "x")), ["episode 0"]),  # type: ignore[list-item]
    "both sides": (lambda cl, co: halves(cl, co, Episode([0, 1], [1, 2], cl, "x")), ["1 clips are in the support and"]),
    "no query": (lambda cl, co: halves(cl, co, Episode([0, 1], [], cl, "x")), ["no query"]),
    "other classes": (lambda cl, co: halves(cl, co, Episode([0], [1], ("q",), "x")), ["episode 0", "negative"]),
    "missing classes": (
        lambda cl, co: halves(cl, co, missing_classes=lambda: ["a"]),
        ["missing_classes", "ValueError"],
    ),
    "no batches": (lambda cl, co: halves(cl, co, uniform=True, batches=lambda size: None), ["batches", "NoneType"]),
    "batches fail": (
        lambda cl, co: halves(cl, co, uniform=True, batches=fails(KeyError("k"))),
        ["batches", "KeyError"],
    ),
    "no batch": (lambda cl, co: halves(cl, co, uniform=True, batches=lambda size: [1]), ["gives 1", "EpisodeBatch"]),
    "rows of a batch": (lambda cl, co: halves(cl, co, uniform=True, batches=batch(support=[[0, 1, 99]])), ["support"]),
    "negative rows": (lambda cl, co: halves(cl, co, uniform=True, batches=batch(query=[[3, -4]])), ["query"]),
    "broken rows": (lambda cl, co: halves(cl, co, uniform=True, batches=batch(support=[[0.0, 1.0]])), ["float64"]),
    "classes of a batch": (
        lambda cl, co: halves(cl, co, uniform=True, batches=batch(classes=[[0, 1, 9]])),
        ["classes"],
    ),
    "a clip twice": (lambda cl, co: halves(cl, co, uniform=True, batches=batch(query=[[2, 3]])), ["twice"]),
    "too few": (lambda cl, co: halves(cl, co, uniform=True, batches=batch()), ["1 of 2 episodes"]),
}


@pytest.mark.parametrize(("made", "facts"), OTHER_EPISODES.values(), ids=OTHER_EPISODES)
def test_episodes_of_another_form_are_refused_by_what_is_wrong(
    made: Callable[..., Any], facts: list[str], clips: fsmer.ClipSet
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Dealt(Protocol):
        kind: ClassVar[str] = "dealt"

        def deal(self, clips: Any, classes: Any, codes: Any) -> Any:
            return made(classes, codes)

    with pytest.raises(ProtocolError) as told:
        evaluate(Dealt(), TinyBackbone(8).eval(), "protonet", clips=clips, cache=False)
    assert all(fact in str(told.value) for fact in facts), told.value
    assert str(told.value).count("\n") == 0


@pytest.mark.parametrize("judged", [lambda self, clips: np.ones(3, bool), lambda self, clips: {}["side"]])
def test_a_protocol_that_judges_other_clips_is_named(judged: Any, clips: fsmer.ClipSet) -> None:
    made = dataclass(frozen=True)(type("Judging", (LeaveOneSubjectOut,), {"judged": judged}))
    with pytest.raises(ProtocolError, match=r"judged.*Judging"):
        made().split(clips)


def test_parameters_of_a_protocol_that_are_no_plain_values_are_refused(clips: fsmer.ClipSet) -> None:
    @dataclass(frozen=True)
    class Sets(LeaveOneSubjectOut):
        people: Any = None

    for people in ({1}, float("nan")):
        with pytest.raises(ProtocolError, match=r"Sets.*plain"):
            evaluate(Sets(people=people), TinyBackbone(8).eval(), "protonet", clips=clips)


@dataclass(frozen=True)
class Together(ProtoNet):
    """Solves episodes and learns supports together, by what a test puts in place."""

    name: ClassVar[str] = "together"
    batched: ClassVar[bool] = True
    trains: bool = False

    @property
    def keeps_backbone(self) -> bool:
        return not self.trains


MANY = {
    "no iterator": (lambda *given, **options: None, "NoneType"),
    "fails": (fails(KeyError("lost")), "KeyError.*lost"),
    "nothing": (lambda *given, **options: iter([]), "answers 0 of|gives no recognizer"),
    "other things": (lambda *given, **options: iter([(slice(0, 1), torch.zeros(1, 1, 1))]), "gives .*slice"),
}


@pytest.mark.parametrize(("made", "facts"), MANY.values(), ids=MANY)
@pytest.mark.parametrize("name", ["solve", "fit_many"])
def test_a_method_that_does_many_at_once_is_checked(
    name: str, made: Callable[..., Any], facts: str, clips: fsmer.ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Together, name, made)
    backbone = TinyBackbone(8).eval()
    monkeypatch.setattr(TinyBackbone, "trusted", True)
    with pytest.raises(MethodError, match=rf"together.*Together.*({facts})"):
        evaluate("loso", backbone, Together(trains=name == "fit_many"), clips=clips, cache=False)


@pytest.mark.parametrize("made", [None, "a backbone", TinyBackbone(8)])
def test_a_method_that_learns_a_source_into_something_else_is_named(
    made: Any, clips: fsmer.ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Together, "train_source", lambda *given, **options: made)
    source, backbone = fsmer.synthetic_clips("clinic", 12, seed=3), TinyBackbone(8).eval()
    for ask in (
        lambda: fsmer.adapt(backbone, clips, Together(), source=source),
        lambda: Together().fit(backbone, clips, source=source),
        lambda: evaluate(
            fsmer.load_protocol("source_target", shot=1, source="clinic", target="mine", episodes=2),
            backbone, Together(), clips=concat([clips, source]),
        ),
    ):  # fmt: skip
        with pytest.raises(MethodError, match=r"train_source.*together.*SourceModel"):
            ask()


def test_a_class_in_place_of_what_it_makes_is_refused(clips: fsmer.ClipSet) -> None:
    backbone = TinyBackbone(8).eval()
    for ask in (
        lambda: fsmer.adapt(backbone, clips, Together),  # type: ignore[arg-type]
        lambda: fsmer.load_protocol(LeaveOneSubjectOut),  # type: ignore[arg-type]
        lambda: fsmer.load_protocol(None),  # type: ignore[arg-type]
        lambda: fsmer.read_dataset(Adapter, "release"),
    ):
        with pytest.raises(FsmerError, match=r"given as .*; give"):
            ask()


def test_a_method_that_is_no_dataclass_says_so(clips: fsmer.ClipSet) -> None:
    class Plain(Method):
        name = "plain"

        def __init__(self, factor: float) -> None:
            object.__setattr__(self, "factor", factor)

        def fit_head(self, embeddings: Any, codes: Any, way: int, prior: Any = None) -> Any: ...

    with pytest.raises(MethodError, match=r"Plain.*factor.*frozen dataclass"):
        fsmer.adapt(TinyBackbone(8).eval(), clips, Plain(1.0))


@pytest.mark.parametrize(
    ("values", "fact"),
    [
        (("nearest", torch.zeros(1, 3, 8), torch.zeros(1, 3)), "'nearest'.*'linear'"),
        (("linear", np.zeros((1, 3, 8)), torch.zeros(1, 3)), "weight"),
        (("linear", torch.zeros(1, 3, 8).double(), torch.zeros(1, 3)), "float64.*float32"),
    ],
)
def test_a_head_of_another_form_is_refused(values: Any, fact: str, clips: fsmer.ClipSet) -> None:
    with pytest.raises(MethodError, match=fact):
        fsmer.adapt(TinyBackbone(8).eval(), clips, BrokenMethod(lambda embeddings: Head(*values)))


HOOKS = {
    "class_directions": [lambda self, classes: "known", lambda self, classes: ClassDirections(*WRONG)],
    "set_classes": [fails(KeyError("lost"))],
    "preparations": [lambda self, clips, seed: [1], fails(KeyError("lost"))],
    "finish_training": [fails(KeyError("lost"))],
    "lower_layers": [lambda self: torch.nn.Linear(2, 2)],
    "explain_maps": [lambda self, inputs: torch.zeros(3), fails(KeyError("lost"))],
    "recipe": [{"epochs": 1}],
}
WRONG = torch.zeros(7, 3), torch.zeros(7), torch.ones(7, dtype=torch.bool), 1.0, torch.zeros(3)


@pytest.mark.parametrize(("name", "made"), [(name, made) for name, all_made in HOOKS.items() for made in all_made])
def test_a_part_of_a_network_that_fails_or_gives_something_else_is_named(
    name: str, made: Any, clips: fsmer.ClipSet
) -> None:
    backbone = type("Odd", (TinyBackbone,), {name: made})(8).eval()
    asks: dict[str, Callable[[], Any]] = {
        "class_directions": lambda: fsmer.adapt(backbone, clips),
        "lower_layers": lambda: fsmer.adapt(backbone, clips, "finetune", train_backbone=True, steps=2),
        "explain_maps": lambda: fsmer.adapt(backbone, clips, "protonet").explain(clips[:1]),
    }
    with pytest.raises(FsmerError, match=rf"{name} of the model 'tiny-for-tests' \(Odd\)"):
        asks.get(name, lambda: fsmer.train(backbone, clips, epochs=1))()


@pytest.mark.parametrize(
    "changes", [{"input_spec": "flow"}, {"input_spec": ()}, {"embed_dim": "8"}, {"config": None}], ids=str
)
def test_a_network_that_describes_itself_wrongly_is_refused_when_it_is_made(changes: dict[str, Any]) -> None:
    class Described(Backbone):
        def __init__(self) -> None:
            super().__init__(**{"input_spec": fsmer.InputSpec(), "embed_dim": 8, "config": {}} | changes)  # type: ignore[arg-type]

        def forward(self, inputs: Any) -> Any: ...

    with pytest.raises(FsmerError, match=rf"Described.*{next(iter(changes))}="):
        Described()


def test_arguments_that_are_no_json_are_refused_when_a_network_is_saved(tmp_path: Path) -> None:
    backbone = TinyBackbone(8)
    backbone.config = {"start": torch.zeros(1)}
    with pytest.raises(FsmerError, match=r"JSON.*Tensor"):
        backbone.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_name_with_a_preset_stands_for_its_values() -> None:
    register_protocol("folds_of_two", class_subset=("negative", "positive"))(LeaveOneSubjectOut)
    register_backbone("tiny-and-narrow", embed_dim=3)(TinyBackbone)
    try:
        found = fsmer.load_protocol("folds-of-two")
        assert (found.name, found.params["class_subset"]) == ("folds-of-two", ["negative", "positive"])
        assert found.hash == fsmer.load_protocol("loso", class_subset=("negative", "positive")).hash
        assert Protocol.from_dict({"kind": "folds_of_two"}).hash == found.hash
        assert Protocol.from_dict(found.to_dict()) == found
        assert fsmer.create_model("tiny-and-narrow").embed_dim == 3
        assert fsmer.create_model("tiny-and-narrow", embed_dim=4).embed_dim == 4
        assert [one.embed_dim for one in fsmer.list_models("tiny-and-narrow")] == [3]
    finally:
        PROTOCOLS._forget({"folds_of_two"})
        BACKBONES._forget({"tiny-and-narrow"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frames_per_second", "fast"),
        ("sheets", "sheet*.csv"),
        ("places", "recordings"),
        ("aliases", (1,)),
        ("labels", ["happiness"]),
        ("columns", ["Person"]),
        ("needed", ("subject", "mood")),
        ("published", 5),
        ("title", None),
    ],
)
def test_a_data_set_that_states_something_in_another_form_is_refused(key: str, value: Any) -> None:
    facts = {"title": "Odd", "frames_per_second": 100.0, "sheets": ("sheet*.csv",)} | {key: value}
    with pytest.raises(PluginError, match=rf"Odd.*odd-release.*({key}|mood)"):
        register_dataset("odd-release")(type("Odd", (Adapter,), facts))


@pytest.mark.parametrize("name", ["survey", "clips", "folder"])
def test_an_adapter_that_fails_is_one_sentence(name: str, tmp_path: Path) -> None:
    root, base = fake_trees.build("casme2", tmp_path), type(load_adapter("casme2"))
    adapter = type("Odd", (base,), {name: fails(KeyError("lost"))})()
    with pytest.raises(DataError, match=r"Odd.*casme2.*KeyError.*lost"):
        adapter.check(root)


def test_batched_as_a_parameter_is_refused_and_as_a_declaration_counts() -> None:
    with pytest.raises(MethodError, match=r"Parameter.*batched: ClassVar\[bool\] = True"):

        @dataclass(frozen=True)
        class Parameter(BrokenMethod):
            batched: bool = True

    @dataclass(frozen=True)
    class Declared(BrokenMethod):
        batched = True

    assert solves_together(Declared())
