"""Code from outside fsmer: results of other code are not taken over, and what goes wrong in it is said in one sentence."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import fsmer
from fsmer.errors import OutputError
from fsmer.evaluation import evaluate
from fsmer.evaluation.embedding_cache import embed_cached
from fsmer.outside import code_digest
from fsmer.plugins import BACKBONES, METHODS, METRICS, PROTOCOLS
from fsmer.transfer import load_method

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
    before = [(one, dict(one), dict(one._origins)) for one in (BACKBONES, METHODS, PROTOCOLS, METRICS)]
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def imported(code: str = CODE, helper: str = HELPER) -> ModuleType:
        (tmp_path / "edited_plugin.py").write_text(code)
        (tmp_path / "edited_helper.py").write_text(helper)
        importlib.invalidate_caches()
        for name in ("edited_plugin", "edited_helper"):
            sys.modules.pop(name, None)
        return importlib.import_module("edited_plugin")

    yield imported
    for name in ("edited_plugin", "edited_helper"):
        sys.modules.pop(name, None)
    for one, held, origins in before:
        one._held, one._origins = held, origins


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
