"""Supervised training of a backbone and a linear classifier by a recipe: seeded, resumable, augmented."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.backbones import Backbone, Targets, TrainRecipe, check_clips, read_inputs
from fsmer.backbones.base import Inputs, backbone_call, check_weights
from fsmer.backbones.embedding import mirror_media
from fsmer.backbones.recipe import CompiledEpochs, schedule_factor
from fsmer.backbones.targets import take
from fsmer.data import ClipSet
from fsmer.data.spec import InputSpec
from fsmer.errors import SupportError, WeightsError
from fsmer.kernels.noise import Draws
from fsmer.training.checkpoints import TrainingState
from fsmer.training.loop import Step, make_optimizer
from fsmer.training.preparation import train_part
from fsmer.training.stacked import Member

__all__ = ["Augmentation", "Trainer", "augment", "for_classes", "for_training", "prepare_backbone"]

# Media of a set that fits in here are read once and kept; larger sets are read batch by batch.
CACHE_BYTES = 1 << 30


def for_classes(backbone: Backbone, classes: tuple[str, ...], seed: int) -> Backbone:
    """A float32 copy of the backbone, ready to be trained on `classes`; one trained on the same keeps what it learnt.

    Raises `WeightsError` where its weights are not finite.
    """
    check_weights(backbone)
    made = copy.deepcopy(backbone).float()
    made.adaptation = None  # that belongs to the weights before
    if made.classes == classes:
        return made
    made.classes = classes
    with Draws(seed).used(), backbone_call(made, "set_classes"):
        made.set_classes(classes)
    return made


def for_training(backbone: Backbone, clips: ClipSet, classes: tuple[str, ...], seed: int) -> Backbone:
    """As `for_classes`, with what its paper trains first trained on `clips`: what every training of a backbone with a
    classifier begins with."""
    made = for_classes(backbone, classes, seed)
    prepare_backbone(made, clips, seed)
    return made


def prepare_backbone(backbone: Backbone, clips: ClipSet, seed: int) -> None:
    """Train in place what the backbone's paper trains first (`Backbone.preparations`)."""
    with backbone_call(backbone, "preparations"):
        for part in backbone.preparations(clips, seed=seed):
            train_part(part)


def augment(
    media: Tensor,
    spec: InputSpec,
    flip: NDArray[np.bool_],
    angle: NDArray[np.float64],
    shift: NDArray[np.float64],
    zoom: NDArray[np.float64] | None = None,
) -> Tensor:
    """Media of a batch, (B, \\*spec.shape), mirrored, turned, shifted and resized clip by clip.

    `angle` is in radians, `shift` in parts of width and height, (B, 2), and `zoom` a factor on the size about the
    middle; edges are repeated. That a turn of a few degrees also turns flow vectors, and that another size makes them
    longer or shorter, is neglected.
    """
    if flip.any():
        chosen = torch.from_numpy(flip).to(media.device).view(-1, *(1,) * (media.ndim - 1))
        media = torch.where(chosen, mirror_media(media, spec), media)
    if angle.any() or shift.any() or zoom is not None:
        flat = media.flatten(1, -3) if media.ndim == 5 else media
        height, width = spec.size
        cos, sin = (torch.from_numpy(part).float().to(media.device) for part in (np.cos(angle), np.sin(angle)))
        if zoom is not None:
            smaller = torch.from_numpy(1 / zoom).float().to(media.device)
            cos, sin = cos * smaller, sin * smaller
        moved = 2 * torch.from_numpy(shift).float().to(media.device)
        rows = [cos, -sin * height / width, moved[:, 0]], [sin * width / height, cos, moved[:, 1]]
        theta = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=1)
        grid = F.affine_grid(theta, [len(flat), 1, height, width], align_corners=False)
        media = F.grid_sample(flat, grid, padding_mode="border", align_corners=False).view(media.shape)
    return media


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training clips as a recipe says, for media of a network's first size."""

    recipe: TrainRecipe
    specs: tuple[InputSpec, ...]

    def draw(self, rng: np.random.Generator, count: int) -> tuple[NDArray[Any], ...]:
        """How each of `count` clips is changed: flip, angle, shift and, where it resizes, zoom; see `augment`."""
        recipe, (height, width) = self.recipe, self.specs[0].size
        changes = (
            rng.random(count) < (0.5 if "flip" in recipe.augment else 0.0),
            np.deg2rad(recipe.rotate_degrees) * (2 * rng.random(count) - 1) * ("rotate" in recipe.augment),
            # In parts of the picture, so that all media of a clip move alike whatever their sizes.
            (rng.integers(-recipe.crop_pixels, recipe.crop_pixels + 1, (count, 2)) / (width, height))
            * ("crop" in recipe.augment),
        )
        if "resize" not in recipe.augment:
            return changes
        return (*changes, 1 + recipe.resize_share * (2 * rng.random(count) - 1))

    def apply(self, inputs: Inputs, changes: Sequence[NDArray[Any]]) -> Inputs:
        """Media as the network gets them, changed."""
        if isinstance(inputs, Tensor):
            return augment(inputs, self.specs[0], *changes)
        return {spec.kind: augment(inputs[spec.kind], spec, *changes) for spec in self.specs}


class Trainer(Member):
    """One training: network, classifier, optimiser and the random numbers of every step.

    The random numbers of an epoch depend on the seed and the number of the epoch alone, so that a training that was
    stopped and taken up again ends with the same weights. The precision ``"auto"`` of the network's arithmetic is
    bfloat16 on a GPU and float32 on a CPU.
    """

    schema = TrainingState

    def __init__(
        self,
        backbone: Backbone,
        classifier: nn.Module,
        clips: ClipSet,
        targets: Targets,
        recipe: TrainRecipe,
        *,
        seed: int = 0,
        precision: str = "auto",
    ) -> None:
        check_clips(backbone, clips)
        self.clips = clips
        self.recipe = recipe
        self.augmentation = Augmentation(recipe, backbone.input_specs)
        self.seed = seed
        # Mean loss of every epoch.
        self.losses: list[float] = []
        # Compiled code that takes whole epochs, and the losses of steps that it has taken already.
        self._compiled: CompiledEpochs | None = None
        self._taken: Iterator[float] = iter(())
        self._loss_sum, self._clips_seen = 0.0, 0
        how = {"epochs": recipe.epochs, "seed": seed, "clip_gradient": recipe.clip_gradient}
        super().__init__(backbone, classifier, targets, **how)
        self.half = precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")
        self._media: dict[str, Tensor] | None = None
        clip_bytes = sum(4 * int(np.prod(spec.shape)) for spec in self.backbone.input_specs)
        if clip_bytes * len(clips) <= CACHE_BYTES:
            self._media = self._inputs(np.arange(len(clips)))

    @property
    def steps_an_epoch(self) -> int:  # type: ignore[override]
        # A remainder of one clip joins its neighbour, since batch statistics need two.
        return max(1, math.ceil((len(self.clips) - 1) / self.recipe.batch_size))

    def signature(self) -> tuple[Any, ...]:
        return (self.recipe.to_dict(), len(self.clips))

    def make_optimizer(self, named: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        recipe = self.recipe
        groups: dict[float, list[nn.Parameter]] = {}
        for name, value in named:
            # A recipe names the layers of the backbone without that prefix.
            own = name.removeprefix("backbone.")
            fitting = [prefix for prefix in recipe.rates if own.startswith(prefix)]
            rate = recipe.rates[max(fitting, key=len)] if fitting else recipe.learning_rate
            groups.setdefault(rate, []).append(value)
        if not groups:
            raise SupportError(f"nothing of {self.backbone.name!r} can be trained; every parameter is frozen.")
        return make_optimizer(recipe, [{"params": values, "lr": rate} for rate, values in groups.items()], fused=True)

    def begin(self) -> None:
        """Take whole epochs in compiled code where the network has some."""
        self._compiled = None
        if self._media is not None and self.device.type == "cpu" and not self.half:
            given = self.classifier, self.optimizer, self._media, self.targets, self.recipe
            self._compiled = self.backbone.compiled_epochs(*given)

    def steps(self) -> Generator[Step, None, None]:
        self.backbone.train()
        self.classifier.train()
        for epoch in range(self.epoch, self.epochs):
            self._loss_sum, self._clips_seen = 0.0, 0
            for number, (rows, *changes) in enumerate(self._batches(epoch)):
                inputs = None if self._compiled else self.augmentation.apply(self._given(rows), changes)
                targets = take(self.targets, rows, self.device)
                seed = None if number else (self.seed << 20) + epoch
                last = number + 1 == self.steps_an_epoch
                yield Step(inputs, targets, self._factor(epoch, number), seed, last)

    def advance(self, step: Step) -> dict[str, float]:
        """One step, or a whole epoch in compiled code before its first step is counted."""
        if self._compiled is None:
            return super().advance(step)
        if step.seed is not None:
            rows = [batch[0] for batch in self._batches(self.epoch)]
            factors = [self._factor(self.epoch, number) for number in range(len(rows))]
            self._taken = iter(self._compiled(rows, factors))
        return {"loss": next(self._taken)}

    def on_step(self, step: Step, figures: Mapping[str, float]) -> None:
        clips = len(step.targets.labels)
        self._loss_sum += figures["loss"] * clips
        self._clips_seen += clips

    def on_epoch(self) -> None:
        self.losses.append(self._loss_sum / self._clips_seen)
        if not math.isfinite(self.losses[-1]):
            raise SupportError(
                f"the training loss of {self.backbone.name!r} is {self.losses[-1]} after epoch {self.epoch}; "
                "give a lower learning rate."
            )

    def end(self) -> None:
        self.backbone.eval()
        self.classifier.eval()

    def figures(self) -> dict[str, float]:
        """Mean loss of the last epoch, and the recipe's learning rate as it was in its last step."""
        return {"loss": self.losses[-1], "learning_rate": self.recipe.learning_rate * self._factor(self.epoch, -1)}

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "losses": self.losses}

    def take_state(self, state: Mapping[str, Any], folder: Path) -> None:
        if not state["epoch"] == len(state["losses"]) <= self.epochs:
            raise WeightsError(
                f"the checkpoint in {folder} is of epoch {state['epoch']} with {len(state['losses'])} losses, but the "
                f"training has {self.epochs} epochs; remove it or start with resume off (--no-resume)."
            )
        self.epoch, self.losses = state["epoch"], list(state["losses"])

    def _factor(self, epoch: int, number: int) -> float:
        """On the learning rates in a step of an epoch; step -1 is the last one of the epoch before."""
        return schedule_factor(self.recipe, epoch + number / self.steps_an_epoch, 1 / self.steps_an_epoch)

    def _batches(self, epoch: int) -> Iterator[tuple[NDArray[Any], ...]]:
        """Rows of the clips of every step, and how each clip is changed, see `Augmentation.draw`."""
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        for rows in np.array_split(rng.permutation(len(self.clips)), self.steps_an_epoch):
            yield rows, *self.augmentation.draw(rng, len(rows))

    def _inputs(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        if self._media is not None:
            index = torch.from_numpy(rows).to(self.device)
            return {kind: media.index_select(0, index) for kind, media in self._media.items()}
        inputs = read_inputs(self.backbone, self.clips, rows, self.device)
        return inputs if isinstance(inputs, dict) else {self.backbone.input_specs[0].kind: inputs}

    def _given(self, rows: NDArray[np.int64]) -> Inputs:
        inputs = self._inputs(rows)
        return inputs if len(inputs) > 1 else next(iter(inputs.values()))
