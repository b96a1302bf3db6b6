"""What the tests of evaluations share: a network that trains in a moment, clips of two data sets, and short names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from fsmer.backbones import Backbone, TrainRecipe, register_backbone
from fsmer.cli.app import app
from fsmer.data import ClipSet, concat
from fsmer.evaluation import METRICS, Report
from fsmer.synthetic.clips import synthetic_clips
from fsmer.transfer import Method, load_method
from fsmer.transfer.full_training import Train
from fsmer.transfer.linear_head import Finetune

from tiny_backbone import TinyBackbone  # isort: skip

RECIPE = TrainRecipe(learning_rate=5e-3, epochs=3, batch_size=16, schedule="constant", augment=("flip",))


@register_backbone("random-tiny-for-tests")
class RandomTiny(TinyBackbone):
    """`TinyBackbone` whose weights come from torch's own generator, as those of real networks do."""

    recipe = RECIPE

    def __init__(self, embed_dim: int = 8) -> None:
        super().__init__(embed_dim)
        self.config = {"embed_dim": embed_dim}
        for value in self.parameters():
            value.data = 0.3 * torch.randn(value.shape)


def tiny() -> Backbone:
    """The network with weights that are always the same."""
    torch.manual_seed(0)
    return RandomTiny().eval()


def two_sets() -> ClipSet:
    """Two data sets of three people each, with action units and a further column."""
    sets = []
    for number, name in enumerate(("one", "two")):
        made = synthetic_clips("lab", n=24, seed=number)
        frame = pd.DataFrame(
            {
                "clip": [f"{name}-{place:02d}" for place in range(len(made))],
                "dataset": name,
                "subject": [f"{place % 3 + 1:03d}" for place in range(len(made))],
                "label": made.labels,
                "aus": [f"{place % 9 + 1}" for place in range(len(made))],
                "emotion": [f"felt {label}" for label in made.labels],
            }
        )
        media = ClipSet.from_arrays(made.media(), None)
        sets.append(ClipSet.from_table(frame, media._base.media))
    return concat(sets)


def trained(**params: Any) -> Train:
    return load_method("train", **params)  # type: ignore[return-value]


def tuned(name: str = "finetune", **params: Any) -> Method:
    return load_method(name, train_backbone=True, **{"steps": 2, "encoder_rate": 1e-2} | params)


def figures(report: Report) -> dict[str, float]:
    return {name: report.figures[name] for name in METRICS}


class Stop(Exception):
    pass


def untrained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the fine-tunings from now on."""
    fitted: list[int] = []
    fit = Finetune.fit
    monkeypatch.setattr(
        Finetune, "fit", lambda self, *rest, **more: fitted.append(self.seed) or fit(self, *rest, **more)
    )
    monkeypatch.setattr(Finetune, "_learn_many", Method._learn_many)
    return fitted


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def command(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "160"})
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result
