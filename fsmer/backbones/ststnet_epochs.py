"""Training of `ststnet` in which whole epochs are compiled code: forward, backward and Adam without a call between."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from fsmer.backbones.ststnet import FILTERS, GAIN, STSTNet
from fsmer.kernels.compiled import compiled
from fsmer.kernels.noise import draw_noise, drop_below

if TYPE_CHECKING:
    from fsmer.training.supervised import Trainer

__all__ = ["train_compiled"]

MOST_CLASSES = 64


def train_compiled(trainer: Trainer) -> bool:
    """Train to the recipe's end and say True, or do nothing and say False where compiled code cannot do it.

    It can on a CPU, with a compiler, float32 and media in memory, by Adam or AdamW, without augmentation or a limit on
    gradients. Weights, batch statistics and losses are those of `Trainer.run` but for rounding.
    """
    recipe, network, classifier = trainer.recipe, trainer.backbone, trainer.classifier
    library = compiled("shallow")
    possible = (
        library is not None
        and isinstance(network, STSTNet)
        and isinstance(classifier, nn.Linear)
        and classifier.bias is not None
        and trainer._media is not None
        and trainer.device.type == "cpu"
        and not trainer.half
        and not trainer.epoch
        and recipe.optimizer in ("adam", "adamw")
        and not recipe.augment
        and recipe.clip_gradient is None
        and len(trainer.targets.classes) <= MOST_CLASSES
        and all(value.requires_grad and value.dtype == torch.float32 for value in network.parameters())
    )
    if not possible:
        return False
    _Run(trainer, cast(ctypes.CDLL, library)).all_epochs()
    network.eval()
    classifier.eval()
    return True


class _Run:
    """All that compiled epochs read and write."""

    def __init__(self, trainer: Trainer, library: ctypes.CDLL) -> None:
        self.trainer = trainer
        self.library = library
        self.network = cast(STSTNet, trainer.backbone)
        self.classifier = cast(nn.Linear, trainer.classifier)
        norm = self.network.normalisation
        self.parts: list[Tensor] = [
            self.network.convolution.weight,
            cast(Tensor, self.network.convolution.bias),
            norm.weight,
            norm.bias,
            self.classifier.weight,
            self.classifier.bias,
        ]
        rates = {id(value): group["lr"] for group in trainer.optimizer.param_groups for value in group["params"]}
        self.parameters = torch.cat([_laid_out(value.detach()) for value in self.parts])
        self.rates = torch.cat(
            [torch.full((value.numel(),), rates[id(value)], dtype=torch.float64) for value in self.parts]
        )
        self.moments = torch.zeros(2, len(self.parameters))
        self.means = cast(Tensor, norm.running_mean).clone()
        self.variances = cast(Tensor, norm.running_var).clone()
        self.media = cast("dict[str, Tensor]", trainer._media)[self.network.input_spec.kind].contiguous()
        padding, (high, wide) = self.network.padding, self.media.shape[-2:]
        tall, broad = high + 2 * padding - 2, wide + 2 * padding - 2
        self.windows = ((tall - 1) // 3 + 1) * ((broad - 1) // 3 + 1)
        clips = max(len(batch.rows) for batch in trainer._batches(0))
        width = self.network.embed_dim
        self.rooms = (
            torch.zeros(3, high + 2 * padding, wide + 2 * padding),
            torch.empty(clips, tall * broad, FILTERS),
            torch.empty(clips, self.windows, FILTERS),
            torch.empty(clips, width),
            torch.empty(clips, width),
            torch.empty(clips, self.windows, FILTERS),
            torch.empty(5, broad, FILTERS),
            torch.empty(len(self.parameters), dtype=torch.float64),
        )
        weights = trainer.targets.class_weights
        classes = len(trainer.targets.classes)
        self.class_weights = torch.ones(classes) if weights is None else weights.float().contiguous()

    def all_epochs(self) -> None:
        """Train, then hand weights and batch statistics back to the network."""
        trainer = self.trainer
        try:
            while trainer.epoch < trainer.recipe.epochs:
                trainer._end_epoch(self._epoch())
        finally:
            self._hand_back()

    def _epoch(self) -> float:
        trainer, recipe, network = self.trainer, self.trainer.recipe, self.network
        batches = [batch.rows for batch in trainer._batches(trainer.epoch)]
        sizes = [len(rows) for rows in batches]
        rows, ends = torch.from_numpy(np.concatenate(batches)), torch.tensor(sizes).cumsum(0)
        limit = drop_below(network.dropout)
        trainer.draws.seed(trainer._epoch_seed(trainer.epoch))
        drawn = None
        if limit:
            # Every batch begins with a fresh word, as it does where each draws for itself.
            words = sum((size * self.windows * FILTERS + 7) // 8 for size in sizes)
            drawn = draw_noise((8 * words,), trainer.device, trainer.draws.on(trainer.device))
        factors = torch.tensor(
            [trainer._factor(trainer.epoch, number) for number in range(len(sizes))], dtype=torch.float64
        )
        losses = torch.empty(len(sizes), dtype=torch.float64)
        labels = trainer.targets.labels[rows]
        norm = network.normalisation
        whole, real = ctypes.c_int64, ctypes.c_double
        self.library.shallow_epoch(
            _at(self.media),
            real(GAIN),
            _at(rows),
            _at(ends),
            *map(whole, (len(sizes), *self.media.shape[-2:], network.padding, len(self.class_weights))),
            *map(_at, (self.parameters, self.moments[0], self.moments[1], self.rates, factors)),
            whole(trainer.epoch * len(sizes)),
            real(recipe.weight_decay),
            whole(recipe.optimizer == "adamw"),
            real(norm.eps),
            real(0.1 if norm.momentum is None else norm.momentum),
            _at(drawn),
            whole(limit),
            *map(_at, (labels, self.class_weights)),
            real(network.recipe.label_smoothing),
            *map(_at, (self.means, self.variances, *self.rooms, losses)),
        )
        return float(np.average(losses.numpy(), weights=sizes))

    def _hand_back(self) -> None:
        norm, start = self.network.normalisation, 0
        with torch.no_grad():
            for value in self.parts:
                part = self.parameters[start : start + value.numel()]
                value.copy_(part.view(3, 3, 3, FILTERS).permute(3, 0, 1, 2) if value.ndim == 4 else part.view_as(value))
                start += value.numel()
            cast(Tensor, norm.running_mean).copy_(self.means)
            cast(Tensor, norm.running_var).copy_(self.variances)
            cast(Tensor, norm.num_batches_tracked).add_(self.trainer.epoch * self.trainer.steps_an_epoch)


def _laid_out(value: Tensor) -> Tensor:
    """A weight as compiled code wants it: filters last."""
    return (value.permute(1, 2, 3, 0) if value.ndim == 4 else value).reshape(-1)


def _at(values: Tensor | None) -> ctypes.c_void_p | None:
    return None if values is None else ctypes.c_void_p(values.data_ptr())
