"""Training of what a paper trains first: a part of a backbone on inputs that stay as they are."""

from __future__ import annotations

from collections.abc import Generator, Mapping

import numpy as np
import torch
from torch import Tensor

from fsmer.backbones.recipe import Preparation
from fsmer.kernels.noise import Draws
from fsmer.training.loop import Progress, Step, Training

__all__ = ["train_part"]


def train_part(part: Preparation, *, progress: Progress | None = None) -> list[float]:
    """Train a part of a backbone in place from fresh weights, freeze it and return the mean loss of every epoch.

    `progress` is called with (epochs done, epochs in all).
    """
    with Draws(part.seed).used():
        for layer in part.module:
            layer.reset_parameters()  # type: ignore[operator]
    part.module.requires_grad_(True).train()
    training = _Preparing(part)
    training.run(after_epoch=None if progress is None else lambda epoch, _: progress(epoch, part.epochs))
    part.module.requires_grad_(False).eval()
    part.finish()
    return training.losses


class _Preparing(Training):
    def __init__(self, part: Preparation) -> None:
        self.part = part
        self.losses: list[float] = []
        optimizer = torch.optim.Adam(part.module.parameters(), lr=part.learning_rate)
        super().__init__({"part": part.module}, optimizer, epochs=part.epochs, seed=part.seed)

    def steps(self) -> Generator[Step, None, None]:
        part, rng, count = self.part, np.random.default_rng(self.part.seed), len(self.part.inputs)
        # Batches of nearly equal size: batch statistics of a single clip do not exist.
        parts = max(1, count // max(2, part.batch_size))
        for _ in range(self.epochs):
            self.loss_sum = 0.0
            for number, rows in enumerate(np.array_split(rng.permutation(count), parts), start=1):
                yield Step(part.inputs[rows], part.targets[rows], ends_epoch=number == parts)

    def loss(self, step: Step) -> tuple[Tensor, dict[str, float]]:
        return self.part.loss(self.part.module(step.inputs), step.targets), {}

    def on_step(self, step: Step, figures: Mapping[str, float]) -> None:
        self.loss_sum += figures["loss"] * len(step.inputs)

    def on_epoch(self) -> None:
        self.losses.append(self.loss_sum / len(self.part.inputs))
