"""What all pretrainings have in common: counted steps, a history, and the folder that is written at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fsmer.backbones import Backbone
from fsmer.errors import FsmerError
from fsmer.io import write_json
from fsmer.pretraining.cards import CardText, write_model_card
from fsmer.training.checkpoints import PretrainingState, remove_checkpoint
from fsmer.training.loop import Step, Training

__all__ = ["HISTORY", "Pretraining", "StepProgress"]

HISTORY = "history.json"

# Called with (steps done, steps in all, losses by name).
StepProgress = Callable[[int, int, dict[str, float]], None]


class Pretraining(Training):
    """A training of a backbone from nothing; an epoch of it is one step.

    Parameters
    ----------
    modules : mapping of str to nn.Module
        What checkpoints hold; ``"model"`` is trained.
    optimizer : torch.optim.Optimizer
    steps : int
    seed : int
    key : mapping
        Recipe, seed and whatever else decides on the weights: plain values.
    history_every : int
        Steps from one entry of the history to the next.
    digits : int
        Of the losses in the history.
    clip_gradient : float, optional
    progress : callable, optional
        Called with (step, steps, losses) after every step.
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
        self.seed = seed
        self.key = dict(key)
        self.history: list[dict[str, int | float]] = []
        self.history_every = history_every
        self.digits = digits
        self.progress = progress
        self.seconds = 0.0
        self.started = time.perf_counter()

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
        write_model_card(folder, model, text=text, recipe=settings, seed=self.seed, seconds=seconds)
        remove_checkpoint(folder)
