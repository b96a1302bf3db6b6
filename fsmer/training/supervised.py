"""Supervised training of a backbone and a linear classifier by a recipe: seeded, resumable, augmented."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fsmer.backbones import Backbone, Targets, TrainRecipe, check_clips, read_inputs
from fsmer.backbones.base import Inputs, check_weights
from fsmer.backbones.recipe import schedule_factor
from fsmer.backbones.ststnet_epochs import train_compiled
from fsmer.backbones.targets import take
from fsmer.errors import SupportError, WeightsError
from fsmer.kernels.noise import Draws
from fsmer.plugins import declared
from fsmer.training.augmentation import augment
from fsmer.training.checkpoints import (
    TrainingState,
    load_checkpoint,
    optimizer_tensors,
    remove_checkpoint,
    restore,
    save_checkpoint,
)
from fsmer.training.stacked import Step, Training
from fsmer.training.tensorboard import AfterEpoch

if TYPE_CHECKING:
    from fsmer.data import ClipSet

__all__ = [
    "Trainer",
    "for_classes",
]


# Media of a set that fits in here are read once and kept; larger sets are read batch by batch.
CACHE_BYTES = 1 << 30


def for_classes(backbone: Backbone, classes: tuple[str, ...], seed: int) -> Backbone:
    """A float32 copy of the backbone, ready to be trained on `classes`; one trained on the same keeps what it learnt.

    Raises
    ------
    WeightsError
        Its weights are not finite.
    """
    check_weights(backbone)
    made = copy.deepcopy(backbone).float()
    if made.classes == classes:
        return made
    made.classes = classes
    with Draws(seed).used():
        made.set_classes(classes)
    return made


def draws_noise_alone(backbone: Backbone) -> bool:
    """Whether all random numbers of a training step come from `fsmer.kernels.noise`, as each network declares."""
    parts = (module for module in backbone.modules() if isinstance(module, Backbone))
    return all(declared(type(part), "stackable") or declared(type(part), "trusted") for part in parts)


@dataclass(frozen=True)
class _Batch:
    """Clips of one step and how each of them is changed."""

    rows: NDArray[np.int64]
    flip: NDArray[np.bool_]
    angle: NDArray[np.float64]
    shift: NDArray[np.float64]


class Trainer(Training):
    """One training: network, classifier, optimiser and the random numbers of every step.

    The random numbers of an epoch depend on the seed and the number of the epoch alone, so that a training that was
    stopped and taken up again ends with the same weights.

    Parameters
    ----------
    backbone : Backbone
        Trained in place.
    classifier : nn.Module
        From embeddings to logits; trained too.
    clips : ClipSet
    targets : Targets
        One entry a clip, see `make_targets`.
    recipe : TrainRecipe
    seed : int
    precision : {"auto", "float32", "bfloat16"}
        Of the network's arithmetic; ``"auto"`` is bfloat16 on a GPU and float32 on a CPU.
    """

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
        self.backbone = backbone
        self.classifier = classifier
        self.clips = clips
        self.targets = targets
        self.recipe = recipe
        self.seed = seed
        self.draws = Draws(seed)
        self.device = next((value.device for value in backbone.parameters()), torch.device("cpu"))
        classifier.to(self.device)
        self.half = precision == "bfloat16" or (precision == "auto" and self.device.type == "cuda")
        self.epoch = 0
        self.losses: list[float] = []
        self._taken: list[tuple[float, int]] = []
        self.clip_gradient = recipe.clip_gradient
        self.optimizer = self.make_optimizer(_named_parameters(backbone, classifier))
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._media = self._read_all()

    @property
    def steps_an_epoch(self) -> int:
        """Batches an epoch; a remainder of one clip joins its neighbour, since batch statistics need two."""
        return max(1, math.ceil((len(self.clips) - 1) / self.recipe.batch_size))

    def run(
        self,
        *,
        folder: Path | None = None,
        key: Any = None,
        resume: bool = True,
        checkpoint_every: int = 1,
        until: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        after_epoch: AfterEpoch | None = None,
    ) -> list[float]:
        """Train to the recipe's end and return the mean loss of every epoch.

        Parameters
        ----------
        folder : Path, optional
            Where checkpoints are kept while training goes on.
        key : plain value
            What a checkpoint there must have in common with this training, see `save_checkpoint`.
        resume : bool
            Whether to go on from such a checkpoint.
        checkpoint_every : int
            Epochs between checkpoints.
        until : int, optional
            Stop after this epoch, on the way to the same end: calling again goes on as if there had been no stop.
        progress : callable, optional
            Called with (steps done, steps in all).
        after_epoch : callable, optional
            Called with (epochs done, {"loss": its mean, "learning_rate": that of the last step}).
        """
        if folder is not None and resume:
            self._load(folder, key)
        total = self.recipe.epochs * self.steps_an_epoch
        stop = self.recipe.epochs if until is None else min(until, self.recipe.epochs)
        with self.draws.used(everywhere=not draws_noise_alone(self.backbone)), torch.enable_grad():
            while self.epoch < stop:
                self._train_epoch(total, progress)
                if after_epoch is not None:
                    after_epoch(self.epoch, {"loss": self.losses[-1], "learning_rate": self._rate()})
                if folder is not None and self.epoch % checkpoint_every == 0 and self.epoch < self.recipe.epochs:
                    self._save(folder, key)
        self.backbone.eval()
        self.classifier.eval()
        if folder is not None and self.epoch == self.recipe.epochs:
            remove_checkpoint(folder)
        return self.losses

    def train_alone(self) -> None:
        """Train to the recipe's end, see `run`; whole epochs in compiled code where the network has some."""
        if not train_compiled(self):
            self.run()

    def signature(self) -> tuple[Any, ...]:
        """Recipe and number of clips: they decide on the size of every batch and on learning rates."""
        units = self.targets.action_units is None
        weights = self.targets.class_weights is None
        return (self.recipe.to_dict(), len(self.clips), len(self.targets.classes), units, weights)

    def steps(self) -> Iterator[Step]:
        """All steps in order; the network is set to training mode."""
        self.backbone.train()
        self.classifier.train()
        for epoch in range(self.recipe.epochs):
            for number, batch in enumerate(self._batches(epoch)):
                inputs = self._augmented(self._inputs(batch.rows), batch)
                rate = self._factor(epoch, number)
                seed = None if number else self._epoch_seed(epoch)
                yield Step(inputs, take(self.targets, batch.rows, self.device), rate, seed)
        self.backbone.eval()
        self.classifier.eval()

    def make_optimizer(self, named: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The recipe's optimiser of parameters named ``backbone.*`` and ``classifier.*``."""
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
        listed = [{"params": values, "lr": rate} for rate, values in groups.items()]
        if recipe.optimizer == "sgd":
            return torch.optim.SGD(listed, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True)
        kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        return kind(listed, weight_decay=recipe.weight_decay, fused=True)

    def on_step(self, step: Step, loss: float) -> None:
        """Count the loss of a step."""
        self._taken.append((loss, len(step.targets.labels)))
        if len(self._taken) == self.steps_an_epoch:
            losses, clips = zip(*self._taken, strict=True)
            self._taken = []
            self._end_epoch(float(np.average(losses, weights=clips)))

    def _factor(self, epoch: int, number: int) -> float:
        """On the learning rates in a step of an epoch; step -1 is the last one of the epoch before."""
        return schedule_factor(self.recipe, epoch + number / self.steps_an_epoch, 1 / self.steps_an_epoch)

    def _epoch_seed(self, epoch: int) -> int:
        return (self.seed << 20) + epoch

    def _train_epoch(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self.draws.seed(self._epoch_seed(self.epoch))
        self.backbone.train()
        self.classifier.train()
        sums, clips = 0.0, 0
        first = self.epoch * self.steps_an_epoch
        for number, batch in enumerate(self._batches(self.epoch)):
            self._set_rates(number)
            loss = self._step(batch)
            sums += loss * len(batch.rows)
            clips += len(batch.rows)
            if progress is not None:
                progress(first + number + 1, total)
        self._end_epoch(sums / clips)

    def _end_epoch(self, loss: float) -> None:
        self.epoch += 1
        self.losses.append(loss)
        if not math.isfinite(self.losses[-1]):
            raise SupportError(
                f"the training loss of {self.backbone.name!r} is {self.losses[-1]} after epoch {self.epoch}; "
                "give a lower learning rate."
            )

    def _step(self, batch: _Batch) -> float:
        inputs = self._augmented(self._inputs(batch.rows), batch)
        targets = take(self.targets, batch.rows, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            loss = self.backbone.training_loss(inputs, targets, self.classifier)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.recipe.clip_gradient is not None:
            parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip_gradient)
        self.optimizer.step()
        return float(loss.detach())

    def _batches(self, epoch: int) -> Iterator[_Batch]:
        recipe = self.recipe
        rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        height, width = self.backbone.input_specs[0].size
        for rows in np.array_split(rng.permutation(len(self.clips)), self.steps_an_epoch):
            count = len(rows)
            yield _Batch(
                rows,
                rng.random(count) < (0.5 if "flip" in recipe.augment else 0.0),
                np.deg2rad(recipe.rotate_degrees) * (2 * rng.random(count) - 1) * ("rotate" in recipe.augment),
                # In parts of the picture, so that all media of a clip move alike whatever their sizes.
                (rng.integers(-recipe.crop_pixels, recipe.crop_pixels + 1, (count, 2)) / (width, height))
                * ("crop" in recipe.augment),
            )

    def _set_rates(self, number: int) -> None:
        factor = self._factor(self.epoch, number)
        for group, rate in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor

    def _rate(self) -> float:
        """The recipe's learning rate as it was in the last step of the last epoch."""
        return self.recipe.learning_rate * self._factor(self.epoch, -1)

    def _read_all(self) -> dict[str, Tensor] | None:
        clip_bytes = sum(4 * int(np.prod(spec.shape)) for spec in self.backbone.input_specs)
        if clip_bytes * len(self.clips) > CACHE_BYTES:
            return None
        return self._by_kind(read_inputs(self.backbone, self.clips, np.arange(len(self.clips)), self.device))

    def _inputs(self, rows: NDArray[np.int64]) -> dict[str, Tensor]:
        if self._media is None:
            return self._by_kind(read_inputs(self.backbone, self.clips, rows, self.device))
        index = torch.from_numpy(rows).to(self.device)
        return {kind: media.index_select(0, index) for kind, media in self._media.items()}

    def _by_kind(self, inputs: Inputs) -> dict[str, Tensor]:
        return inputs if isinstance(inputs, dict) else {self.backbone.input_specs[0].kind: inputs}

    def _augmented(self, inputs: dict[str, Tensor], batch: _Batch) -> Inputs:
        specs = {spec.kind: spec for spec in self.backbone.input_specs}
        changed = {
            kind: augment(media, specs[kind], batch.flip, batch.angle, batch.shift) for kind, media in inputs.items()
        }
        return changed if len(specs) > 1 else next(iter(changed.values()))

    def _save(self, folder: Path, key: Any) -> None:
        tensors = {f"backbone.{name}": value for name, value in self.backbone.state_dict().items()}
        tensors |= {f"classifier.{name}": value for name, value in self.classifier.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer)
        save_checkpoint(folder, tensors, {"epoch": self.epoch, "losses": self.losses}, key)

    def _load(self, folder: Path, key: Any) -> None:
        found = load_checkpoint(folder, key, TrainingState)
        if found is None:
            return
        tensors, state = found
        if not state["epoch"] == len(state["losses"]) <= self.recipe.epochs:
            raise WeightsError(
                f"the checkpoint in {folder} is of epoch {state['epoch']} with {len(state['losses'])} losses, but the "
                f"training has {self.recipe.epochs} epochs; remove it or start with resume off (--no-resume)."
            )
        restore(tensors, {"backbone": self.backbone, "classifier": self.classifier}, self.optimizer)
        self.epoch, self.losses = state["epoch"], state["losses"]


def _named_parameters(backbone: Backbone, classifier: nn.Module) -> list[tuple[str, nn.Parameter]]:
    named = {"backbone": backbone, "classifier": classifier}
    return [
        (f"{prefix}.{name}", value)
        for prefix, module in named.items()
        for name, value in module.named_parameters()
        if value.requires_grad
    ]
