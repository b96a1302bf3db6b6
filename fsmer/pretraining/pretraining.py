"""What all pretrainings have in common: counted steps, a history, and the folder that is written at the end.

The folder holds a model card in Hugging Face format: what weights were made from, and what they are and are not for.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fsmer.backbones.base import Backbone, model_hash
from fsmer.errors import FsmerError
from fsmer.io import write_json, write_text
from fsmer.training.checkpoints import PretrainingState, remove_checkpoint
from fsmer.training.loop import Step, Training
from fsmer.version import __version__

__all__ = ["HISTORY", "CardText", "Pretraining", "StepProgress"]

HISTORY = "history.json"

# Called with (steps done, steps in all, losses by name).
StepProgress = Callable[[int, int, dict[str, float]], None]

MISUSE = """Facial movement is not emotion: a micro-expression says that muscles moved, not what a person feels,
thinks or hides. Do not use this model to detect lies, to screen, hire, grade, diagnose, police or profile people,
to watch anyone without their informed consent, or to take any decision about a person. Reading emotions at work and
in education is prohibited by law in some places (in the European Union by Article 5 of the AI Act)."""


@dataclass(frozen=True)
class CardText:
    """The words of one model's card."""

    summary: str  # what the network is and what it was made from
    use: str  # lines of Python
    limits: str  # what it cannot do and what was not tested, as Markdown
    command: str  # the shell command that makes such weights
    tags: tuple[str, ...] = ()  # of the hub, beside micro-expression-recognition
    licence: str = "apache-2.0"  # of the weights, as the hub writes it


class Pretraining(Training):
    """A training of a backbone from nothing; an epoch of it is one step.

    Checkpoints hold `modules`, of which ``"model"`` is trained; `key` holds recipe, seed and whatever else decides on
    the weights, as plain values. Every `history_every` steps the losses enter the history, rounded to `digits`;
    `progress` is called with (step, steps, losses) after every step.
    """

    schema = PretrainingState

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        seed: int,
        key: Mapping[str, Any],
        history_every: int,
        digits: int,
        clip_gradient: float | None,
        progress: StepProgress | None,
    ) -> None:
        super().__init__(modules, optimizer, epochs=steps, seed=seed, clip_gradient=clip_gradient)
        self.seed, self.key = seed, dict(key)
        self.history: list[dict[str, int | float]] = []
        self.history_every, self.digits, self.progress = history_every, digits, progress
        self.seconds, self.started = 0.0, time.perf_counter()

    def seed_of(self, step: int) -> int:
        """The step is the seed, so a resumed run draws what an uninterrupted one would have drawn."""
        return (self.seed << 32) + step

    def on_step(self, step: Step, figures: Mapping[str, float]) -> None:
        """Note the losses; raises `FsmerError` where they are no longer numbers."""
        done = self.epoch + 1
        if not math.isfinite(figures["loss"]):
            raise FsmerError(
                f"the pretraining loss is {figures['loss']} at step {done}; give a lower learning rate than "
                f"{max(self.base_rates)} or a limit for the gradient (clip_gradient)."
            )
        if done % self.history_every == 0 or done == self.epochs:
            losses = {name: round(value, self.digits) for name, value in figures.items()}
            self.history.append({"step": done, **losses})
        if self.progress is not None:
            self.progress(done, self.epochs, dict(figures))

    def state(self) -> dict[str, Any]:
        """Steps done, seconds taken and history."""
        now = time.perf_counter()
        self.seconds, self.started = self.seconds + now - self.started, now
        return {"step": self.epoch, "seconds": self.seconds, "history": self.history}

    def take_state(self, state: Mapping[str, Any], folder: Path) -> None:
        """Go on from a checkpoint."""
        self.epoch, self.seconds, self.history = state["step"], state["seconds"], state["history"]

    def write_results(self, folder: Path, model: Backbone, text: CardText, settings: Mapping[str, Any]) -> None:
        """Weights, history and model card; the checkpoint is removed."""
        seconds = self.state()["seconds"]
        model.save_pretrained(folder)
        write_json(folder / HISTORY, {**self.key, "seconds": round(seconds), "losses": self.history})
        write_text(folder / "README.md", _model_card(model, text, {**settings, "seed": self.seed}, seconds))
        remove_checkpoint(folder)


def _model_card(backbone: Backbone, text: CardText, settings: Mapping[str, Any], seconds: float) -> str:
    tags = "\n".join(f"- {tag}" for tag in ("micro-expression-recognition", *text.tags))
    rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
    return f"""---
license: {text.licence}
library_name: fsmer
tags:
{tags}
pipeline_tag: image-classification
---

# {backbone.name}

{text.summary}

## Use

```python
{text.use}
```

## What it is for, and what it must not be used for

For research on micro-expression recognition, and for building recognizers that people consent to and that their makers
evaluate on their own labelled clips.

{MISUSE}

## Limits

{text.limits}

## Training

`{text.command}`: {seconds / 60:.0f} minutes on {torch.get_num_threads()} threads
(fsmer {__version__}, torch {torch.__version__.split("+")[0]}, numpy {np.__version__}, Python
{platform.python_version()}).

| setting | value |
|---|---|
{rows}
| hash of the weights | {model_hash(backbone)} |
"""
