"""Training of a backbone together with the classifier of a support set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.backbones import Backbone, Targets, read_inputs
from fsmer.backbones.base import Inputs
from fsmer.backbones.targets import take
from fsmer.kernels.noise import Draws
from fsmer.training.frozen_layers import LowerLayers
from fsmer.training.stacked import Step, Training
from fsmer.training.supervised import draws_noise_alone

if TYPE_CHECKING:
    from fsmer.data import ClipSet

__all__ = [
    "Classifier",
]


class Classifier(nn.Module):
    """A trainable classifier over embeddings: linear (MERAU eq. 5) or, with a scale, cosine (eq. 6-7).

    Parameters
    ----------
    weight : Tensor of shape (C, D)
    bias : Tensor of shape (C,)
        Not trained here; minus infinity for a class that is absent.
    scale : float, optional
        Factor on the cosine; ``None`` makes the classifier linear.
    centre : Tensor of shape (D,), optional
        Subtracted before the cosine.
    pull : float
        Weight of the penalty 1 - cos(w, start) of every class.
    """

    start: Tensor
    centre: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        scale: float | None = None,
        centre: Tensor | None = None,
        pull: float = 0.0,
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
        """How far the directions have moved from where they started."""
        return self.pull * (1 - (F.normalize(self.weight, dim=-1) * self.start).sum(dim=-1)).sum()


class _Tuning(Training):
    """One fine-tuning of backbone and classifier, in given batches.

    Parameters
    ----------
    backbone : Backbone
        In the mode that it is trained in.
    classifier : Classifier
    clips : ClipSet
    targets : Targets
        Of all the clips.
    batches : sequence of int arrays
        Rows of each step.
    rates : tuple of float
        Learning rates of encoder, projection layers and classifier.
    seed : int
        Of dropout.
    lower : LowerLayers, optional
        Layers of the backbone that are not trained.
    """

    def __init__(
        self,
        backbone: Backbone,
        classifier: Classifier,
        clips: ClipSet,
        targets: Targets,
        batches: Sequence[np.ndarray],
        rates: tuple[float, float, float],
        seed: int,
        lower: LowerLayers | None = None,
    ) -> None:
        self.backbone = backbone
        self.classifier: Classifier = classifier
        self.clips = clips
        self.targets = targets
        self.batches = batches
        self.rates = rates
        self.seed = seed
        self.lower = lower
        self.device = next((value.device for value in backbone.parameters()), torch.device("cpu"))
        classifier.to(self.device)
        self.let_train_lower(False)

    def let_train_lower(self, trained: bool) -> None:
        """Keep the lower layers from being trained, or let them be trained again."""
        names = self.lower.names if self.lower else set()
        for name, value in self.backbone.named_parameters():
            if name in names:
                value.requires_grad_(trained)

    def train_alone(self, progress: Callable[[int, int], None] | None = None) -> None:
        """All steps by themselves; `progress` is told (steps done, steps in all)."""
        for _ in self.until([len(self.batches)], progress):
            pass

    def until(self, stops: Sequence[int], progress: Callable[[int, int], None] | None = None) -> Iterator[int]:
        """The same, pausing after each of these numbers of steps, which rise."""
        named = {"backbone": self.backbone, "classifier": self.classifier}
        optimizer = self.make_optimizer(
            [
                (f"{prefix}.{name}", value)
                for prefix, module in named.items()
                for name, value in module.named_parameters()
                if value.requires_grad
            ]
        )
        steps, done, draws = self.steps(), 0, Draws(self.seed)
        for stop in stops:
            with draws.used(everywhere=not draws_noise_alone(self.backbone)), torch.enable_grad():
                for step in islice(steps, stop - done):
                    if step.seed is not None:
                        draws.seed(step.seed)
                    loss = self.backbone.training_loss(step.inputs, step.targets, self.classifier)
                    optimizer.zero_grad()
                    (loss + self.classifier.penalty()).backward()
                    optimizer.step()
                    done += 1
                    if progress is not None:
                        progress(done, len(self.batches))
            yield stop

    def signature(self) -> tuple[Any, ...]:
        """Learning rates and the size of every batch."""
        sizes = [len(rows) for rows in self.batches]
        head = (self.classifier.scale, self.classifier.pull, self.classifier.centre is None)
        units = self.targets.action_units is None
        weights = self.targets.class_weights is None
        return (self.rates, sizes, head, len(self.targets.classes), units, weights)

    def steps(self) -> Iterator[Step]:
        """All steps in order; media of a set that fits in one batch are read once."""
        kept: tuple[np.ndarray, Inputs, Targets] | None = None
        for number, rows in enumerate(self.batches):
            if kept is None or kept[0] is not rows:
                inputs = self.lower(rows) if self.lower else read_inputs(self.backbone, self.clips, rows, self.device)
                kept = (rows, inputs, take(self.targets, rows, self.device))
            yield Step(kept[1], kept[2], seed=None if number else self.seed)

    def make_optimizer(self, named: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Adam with a learning rate for encoder, projection layers and classifier each."""
        groups: list[list[nn.Parameter]] = [[], [], []]
        for name, value in named:
            groups[2 if name.startswith("classifier.") else int(_is_projection(name))].append(value)
        listed = [{"params": values, "lr": rate} for values, rate in zip(groups, self.rates, strict=True) if values]
        return torch.optim.Adam(listed, fused=True)

    def on_step(self, step: Step, loss: float) -> None:
        """Nothing is made of the losses."""

    def penalty(self, classifier: nn.Module) -> Tensor:
        """That of the classifier, see `Classifier.penalty`."""
        return cast(Classifier, classifier).penalty()


def _is_projection(parameter: str) -> bool:
    return any(part.startswith("projection") for part in parameter.split("."))
