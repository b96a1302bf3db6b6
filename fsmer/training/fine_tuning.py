"""Training of a backbone together with the classifier of a support set."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.backbones import Backbone, Targets, read_inputs
from fsmer.backbones.base import Inputs, backbone_call
from fsmer.backbones.targets import take
from fsmer.data import ClipSet
from fsmer.training.frozen_layers import FrozenLayers
from fsmer.training.loop import Step
from fsmer.training.low_rank import add_adapters, merge_adapters, train_norms_only
from fsmer.training.stacked import Member
from fsmer.training.supervised import Augmentation

__all__ = ["Classifier", "Tuning"]


class Classifier(nn.Module):
    """A trainable classifier over embeddings: linear (MERAU eq. 5) or, with a scale on the cosine, cosine (eq. 6-7).

    `weight` is (C, D). `bias`, (C,), is not trained here; it is minus infinity for a class that is absent. `centre`,
    (D,), is subtracted before the cosine, and `pull` is the weight of the penalty 1 - cos(w, start) of every class.
    """

    start: Tensor
    centre: Tensor | None

    def __init__(
        self, weight: Tensor, bias: Tensor, scale: float | None = None, centre: Tensor | None = None, pull: float = 0.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(bias.clone(), requires_grad=False)
        self.scale = scale
        self.pull = pull
        self.register_buffer("start", F.normalize(weight, dim=-1).clone())
        self.register_buffer("centre", None if centre is None else centre.clone())

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits of shape (B, C)."""
        if self.scale is None:
            return embeddings @ self.weight.T + self.bias
        centred = embeddings if self.centre is None else embeddings - self.centre
        return self.scale * F.normalize(centred, dim=-1) @ F.normalize(self.weight, dim=-1).T + self.bias

    def penalty(self) -> Tensor:
        """How far the directions have moved from where they started; added to the loss of every step."""
        return self.pull * (1 - (F.normalize(self.weight, dim=-1) * self.start).sum(dim=-1)).sum()


class Tuning(Member):
    """One fine-tuning of backbone and classifier; an epoch of it is one step on a batch, given as rows of `clips`.

    `rates` are the learning rates of encoder, projection layers and classifier, `seed` is that of dropout and
    augmentation, `frozen` the layers of the backbone that are not trained, and `augmentation` changes clips that no
    frozen layers have read. Of the layers that are trained, `norms_only` trains scale and shift of normalisation layers
    and `adapter_rank`, if not 0, low-rank changes of weights; `finish` ends both.
    """

    classifier: Classifier

    def __init__(
        self,
        backbone: Backbone,
        classifier: Classifier,
        clips: ClipSet,
        targets: Targets,
        batches: Sequence[np.ndarray],
        rates: tuple[float, float, float],
        seed: int,
        frozen: FrozenLayers | None = None,
        augmentation: Augmentation | None = None,
        *,
        norms_only: bool = False,
        adapter_rank: int = 0,
    ) -> None:
        self.clips = clips
        self.batches = batches
        self.rates = rates
        self.seed = seed
        self.frozen = frozen
        self.augmentation = augmentation
        # Adapters change these names, and what is trained later is what could be trained before.
        self._trainable = [name for name, value in backbone.named_parameters() if value.requires_grad]
        if frozen is not None:
            frozen.freeze(backbone)
        if norms_only:
            train_norms_only(backbone)
        if adapter_rank:
            add_adapters(backbone, adapter_rank, seed)
        super().__init__(backbone, classifier, targets, epochs=len(batches), seed=seed)

    def signature(self) -> tuple[Any, ...]:
        head = (self.classifier.scale, self.classifier.pull, self.classifier.centre is None)
        changes = None if self.augmentation is None else self.augmentation.recipe.to_dict()
        return (self.rates, [len(rows) for rows in self.batches], head, changes)

    def finish(self) -> None:
        """Leave a backbone of plain weights, all of which can be trained that could be before."""
        merge_adapters(self.backbone)
        for name, value in self.backbone.named_parameters():
            if name in self._trainable:
                value.requires_grad_(True)
        with backbone_call(self.backbone, "finish_training"):
            self.backbone.finish_training()

    def steps(self) -> Generator[Step, None, None]:
        """All steps that are left; media of a set that fits in one batch are read once."""
        kept: tuple[np.ndarray, Inputs, Targets] | None = None
        for number in range(self.epoch, self.epochs):
            rows = self.batches[number]
            if kept is None or kept[0] is not rows:
                inputs = self.frozen(rows) if self.frozen else read_inputs(self.backbone, self.clips, rows, self.device)
                kept = (rows, inputs, take(self.targets, rows, self.device))
            yield Step(self._changed(kept[1], number), kept[2], seed=None if number else self.seed)

    def _changed(self, inputs: Inputs, number: int) -> Inputs:
        """Media of a step as it takes them; how they are changed depends on its number alone."""
        if self.augmentation is None:
            return inputs
        rng = np.random.Generator(np.random.PCG64([self.seed, number]))
        return self.augmentation.apply(inputs, self.augmentation.draw(rng, len(self.batches[number])))

    def make_optimizer(self, named: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Adam with a learning rate for encoder, projection layers and classifier each."""
        groups: list[list[nn.Parameter]] = [[], [], []]
        for name, value in named:
            groups[2 if name.startswith("classifier.") else int(_is_projection(name))].append(value)
        listed = [{"params": values, "lr": rate} for values, rate in zip(groups, self.rates, strict=True) if values]
        return torch.optim.Adam(listed, fused=True)


def _is_projection(parameter: str) -> bool:
    return any(part.startswith("projection") for part in parameter.split("."))
