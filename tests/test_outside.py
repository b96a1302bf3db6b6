"""Code from outside: results of other code are not taken over, and what goes wrong in it is told in one sentence."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import fsmer
from fsmer.episodic import FoldEpisodes, Protocol
from fsmer.episodic.episode import Episode
from fsmer.errors import FsmerError, OutputError, ProtocolError
from fsmer.evaluation import evaluate
from fsmer.evaluation.embedding_cache import embed_cached
from fsmer.outside import code_digest
from fsmer.plugins import BACKBONES, METHODS, METRICS, PROTOCOLS
from fsmer.transfer import Head, Method, load_method
from fsmer.transfer.heads import FittedHead, MethodError
from fsmer.transfer.linear_head import Finetune
from fsmer.transfer.method import solves_together

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


def test_batched_as_a_parameter_is_refused_and_as_a_declaration_counts() -> None:
    with pytest.raises(MethodError, match=r"Parameter.*batched: ClassVar\[bool\] = True"):

        @dataclass(frozen=True)
        class Parameter(BrokenMethod):
            batched: bool = True

    @dataclass(frozen=True)
    class Declared(BrokenMethod):
        batched = True

    assert solves_together(Declared())
