"""How a backbone is trained: recipes as data, parts that a paper trains first, and epochs in code of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fsmer.errors import FsmerError, unknown_name
from fsmer.parameters import typed_value

__all__ = ["CompiledEpochs", "Preparation", "PretrainRecipe", "TrainRecipe", "schedule_factor"]

AUGMENTATIONS = ("crop", "flip", "resize", "rotate")


@dataclass(frozen=True)
class _Recipe:
    source: str = "fsmer's own choice"
    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    momentum: float = 0.9

    def _check(self, positive: Sequence[str], not_negative: Sequence[str] = ()) -> None:
        for name in (*positive, *not_negative):
            value = getattr(self, name)
            if value is not None and (value < 0 or (value == 0 and name in positive)):
                wanted = "positive" if name in positive else "0 or more"
                raise FsmerError(f"the recipe's {name} is {value}, but it must be {wanted}.")
        for name, kind in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(kind)
            if get_origin(kind) is Literal and value not in choices:
                raise FsmerError(f"the recipe's {name} is {value!r}, but it must be one of {', '.join(choices)}.")


@dataclass(frozen=True)
class TrainRecipe(_Recipe):
    """Supervised training of a backbone and a linear classifier; a backbone's default is its paper's.

    Parameters
    ----------
    source : str
        Where the values come from (paper and section), with deviations.
    optimizer : {"adam", "adamw", "sgd"}
    learning_rate, weight_decay : float
    momentum : float
        Of ``"sgd"``.
    rates : mapping of str to float
        Learning rate of parameters whose name begins with the key (the longest that fits), in place of
        `learning_rate`; ``"classifier"`` is the classifier.
    random_rates : mapping of str to float
        In place of those in `rates` where the network's weights are random still (`Backbone.untrained`).
    epochs, batch_size : int
        Passes over the clips and clips a step; a smaller set is taken whole. The last, smaller batch is kept.
    schedule : {"constant", "cosine", "exponential", "step"}
        Of the learning rate, epoch by epoch (``"cosine"``: step by step to zero).
    gamma : float
        Factor an epoch (``"exponential"``) or at each of `milestones` (``"step"``).
    milestones : tuple of int
        Epochs at which ``"step"`` multiplies by `gamma`.
    warmup_epochs : float
        Linear rise of the learning rate, which the first step begins.
    label_smoothing : float
        Of the cross-entropy.
    balanced : bool
        Classes weigh alike in the loss whatever their number of clips.
    augment : tuple of {"flip", "rotate", "crop", "resize"}
        Random changes of training clips, alike for all media of a clip: mirrored left to right (horizontal flow
        changes sign), turned by up to `rotate_degrees`, shifted by up to `crop_pixels`, made larger or smaller by up
        to the share `resize_share` of width and height (edges repeated).
    rotate_degrees, crop_pixels, resize_share : float, int, float
    clip_gradient : float or None
        Largest norm of the gradient.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    random_rates: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 30
    batch_size: int = 32
    schedule: Literal["constant", "cosine", "exponential", "step"] = "cosine"
    gamma: float = 0.1
    milestones: tuple[int, ...] = ()
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    balanced: bool = False
    augment: tuple[str, ...] = ()
    rotate_degrees: float = 3.0
    crop_pixels: int = 4
    resize_share: float = 0.1
    clip_gradient: float | None = None

    def __post_init__(self) -> None:
        self._check(("epochs", "batch_size", "learning_rate", "gamma"))
        unknown = sorted(set(self.augment) - set(AUGMENTATIONS))
        if unknown:
            raise FsmerError(
                f"the recipe's augment names {', '.join(unknown)}, but only {', '.join(AUGMENTATIONS)} are known."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "rates": dict(self.rates), "random_rates": dict(self.random_rates)}

    def for_weights(self, *, untrained: bool) -> TrainRecipe:
        """The recipe with the rates for random weights, or with those for trained ones."""
        rates = {**self.rates, **self.random_rates} if untrained else self.rates
        return replace(self, rates=rates, random_rates={})


@dataclass(frozen=True)
class PretrainRecipe(_Recipe):
    """Self-supervised training on pairs of frames without labels; a backbone's default is its paper's. Fields that
    `TrainRecipe` has too mean the same; the learning rate is its peak."""

    steps: int = 10_000  # of the optimiser
    batch_size: int = 32  # pairs of frames a step
    # Lowest and highest number of frames from one frame of a pair to the other, inside one sequence; every whole number
    # between is equally likely, and either of the two comes first.
    distance: tuple[int, int] = (5, 11)
    warmup_steps: int = 0  # linear rise of the learning rate from zero
    schedule: Literal["constant", "cosine"] = "cosine"  # of it after the rise; the cosine falls step by step to zero
    clip_gradient: float | None = None  # largest norm of the gradient

    def __post_init__(self) -> None:
        self._check(
            ("learning_rate", "steps", "batch_size", "clip_gradient"), ("weight_decay", "momentum", "warmup_steps")
        )
        low, high = self.distance
        if not 1 <= low <= high:
            raise FsmerError(f"the recipe's distance is {low} to {high} frames, but 1 or more to no less is expected.")

    def with_params(self, params: Mapping[str, Any]) -> Self:
        """This recipe with some fields changed, by name. Text is read as the field's type: ``{"batch_size": "16",
        "clip_gradient": "none", "distance": [3, 6]}``. `UnknownNameError` names the nearest fields, and a value of
        another type or out of range is an `FsmerError`."""
        kinds = {one.name: str(one.type) for one in fields(self)}
        changes = dict(params)
        for key, value in params.items():
            if key not in kinds:
                raise unknown_name("parameter", key, kinds, of="the recipe of training without labels")
            if kinds[key].startswith("Literal"):
                continue  # the new recipe checks its choices itself
            try:
                changes[key] = typed_value(value, kinds[key])
            except ValueError as error:
                raise FsmerError(f"the recipe's {key} is {value!r}, but it must be {error}.") from error
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "distance": list(self.distance)}


@dataclass(frozen=True)
class Preparation:
    """A part of a backbone that is trained before all else, by Adam on inputs that stay as they are. The module is
    trained in place, and frozen and in evaluation mode afterwards. `loss` gives the mean loss of its outputs and the
    targets, (N, ...) as the inputs; `finish` is called at the end. The seed is that of the order of the inputs and of
    the module's initial weights."""

    module: nn.Sequential
    inputs: Tensor
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    finish: Callable[[], None]
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int


# Takes the steps of one epoch, given the rows of each and the factor on all learning rates in each, and returns the
# loss of each. Network, classifier and the state of the optimiser then are as after so many of its steps.
CompiledEpochs = Callable[[Sequence[NDArray[np.int64]], Sequence[float]], list[float]]


def schedule_factor(recipe: TrainRecipe, epochs_done: float, step: float = 0.0) -> float:
    """Factor on the learning rate after that many epochs (parts of one count for warm-up and cosine). In a warm-up the
    rate is that at the end of the next step, a share `step` of an epoch: the first one learns too."""
    warm = min(1.0, (epochs_done + step) / recipe.warmup_epochs) if recipe.warmup_epochs else 1.0
    whole = math.floor(epochs_done)
    if recipe.schedule == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, epochs_done / recipe.epochs)))
    if recipe.schedule == "exponential":
        return warm * recipe.gamma**whole
    if recipe.schedule == "step":
        return warm * recipe.gamma ** sum(whole >= milestone for milestone in recipe.milestones)
    return warm
