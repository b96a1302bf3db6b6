"""What a backbone may hand to a training: whole epochs in code of its own, and what a paper trains first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["CompiledEpochs", "Preparation"]


class CompiledEpochs(Protocol):
    """Code of a backbone's own that takes all steps of an epoch, see `Backbone.compiled_epochs`."""

    def train(self, batches: Sequence[NDArray[np.int64]], factors: Sequence[float]) -> list[float]:
        """Take the steps of one epoch and return the loss of each.

        Network, classifier and the state of the optimiser then are as after so many of its steps.

        Parameters
        ----------
        batches : sequence of int arrays
            Rows of each step.
        factors : sequence of float
            On all learning rates in each step.
        """
        ...


@dataclass(frozen=True)
class Preparation:
    """A part of a backbone that is trained before all else, by Adam on inputs that stay as they are.

    Parameters
    ----------
    module : nn.Module
        Trained in place, and frozen and in evaluation mode afterwards.
    inputs, targets : Tensor of shape (N, ...)
        What goes into the module, and what its outputs are compared with.
    loss : callable
        Mean loss of outputs and targets.
    finish : callable
        Called when the module is trained.
    epochs, batch_size : int
    learning_rate : float
    seed : int
        Of the order of the inputs and of the module's initial weights.
    """

    module: nn.Sequential
    inputs: Tensor
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[], None]
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
