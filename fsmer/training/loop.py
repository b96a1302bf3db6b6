"""The loop that every training of this library runs in, and the hooks by which one training differs from another."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from fsmer.backbones import Backbone, TrainRecipe
from fsmer.backbones.recipe import PretrainRecipe
from fsmer.errors import FsmerError
from fsmer.io import check_writable
from fsmer.kernels.noise import Draws
from fsmer.outside import outside_call
from fsmer.plugins import declared
from fsmer.training.checkpoints import load_checkpoint, optimizer_tensors, restore, save_checkpoint

__all__ = ["AfterEpoch", "Progress", "Step", "Training", "make_optimizer", "prefetched", "tensorboard_log"]

# Called with the number of epochs done and figures of the last one by name.
AfterEpoch = Callable[[int, Mapping[str, float]], None]
# Called with (steps done, steps in all).
Progress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One step of a training: what goes in, and how."""

    # Media of the batch, or whatever else the training's `Training.loss` takes, and what outputs are compared with.
    inputs: Any
    targets: Any = None
    # Factor on all learning rates.
    rate: float = 1.0
    # Of random numbers from this step on; None goes on with those of the step before.
    seed: int | None = None
    # Whether the training may stop after this step, for a checkpoint or for good.
    ends_epoch: bool = True


class Training:
    """One training: `run` is the loop, and the other methods are its hooks.

    An epoch is what lies between two places where a training may stop: a pass over the clips, or a single step where
    steps are what is counted. Checkpoints hold the `modules`; `seed` is that of random numbers where no step says
    otherwise, `clip_gradient` the largest norm of the gradient, and `half` makes the arithmetic bfloat16.
    """

    # What the state in a checkpoint must be, see `load_checkpoint`.
    schema: ClassVar[type[Any]] = dict
    steps_an_epoch: int = 1

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        *,
        epochs: int,
        seed: int = 0,
        clip_gradient: float | None = None,
        half: bool = False,
    ) -> None:
        self.modules = dict(modules)
        self.optimizer = optimizer
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.epochs = epochs
        self.draws = Draws(seed)
        self.clip_gradient = clip_gradient
        self.half = half
        # Epochs done.
        self.epoch = 0
        values = (value for module in self.modules.values() for value in module.parameters())
        self.device = next((value.device for value in values), torch.device("cpu"))

    def run(
        self,
        *,
        folder: Path | None = None,
        key: Any = None,
        resume: bool = True,
        checkpoint_every: int = 1,
        until: int | None = None,
        progress: Progress | None = None,
        after_epoch: AfterEpoch | None = None,
    ) -> None:
        """Train to the end; a training that was stopped and taken up again ends with the same weights.

        Checkpoints are kept in `folder` every so many epochs; with `resume` one that has the same plain value `key` is
        gone on from. The last one stays until `fsmer.training.checkpoints.remove_checkpoint`. After the epoch `until`
        the training stops on the way to the same end: calling again goes on as if there had been no stop. `progress` is
        called with (steps done, steps in all), `after_epoch` with (epochs done, `figures`).
        """
        if folder is not None and resume and (found := load_checkpoint(folder, key, self.schema, self.device.type)):
            tensors, state = found
            self.take_state(state, folder)
            restore(tensors, self.modules, self.optimizer)
        stop = self.epochs if until is None else min(until, self.epochs)
        done, total = self.epoch * self.steps_an_epoch, self.epochs * self.steps_an_epoch
        if self.epoch < stop:
            self.begin()
            with self.context(), torch.enable_grad(), closing(self.steps()) as steps:
                for step in steps:
                    if step.seed is not None:
                        self.draws.seed(step.seed)
                    for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
                        group["lr"] = rate * step.rate
                    figures = self.advance(step)
                    done += 1
                    if progress is not None:
                        progress(done, total)
                    self.count(step, figures)
                    if not step.ends_epoch:
                        continue
                    if after_epoch is not None:
                        after_epoch(self.epoch, self.figures())
                    if folder is not None and self.epoch % checkpoint_every == 0 and self.epoch < self.epochs:
                        self._save(folder, key)
                    if self.epoch >= stop:
                        break
        self.end()

    def steps(self) -> Generator[Step, None, None]:
        """All steps that are left, in order; what a step holds depends on its number alone, not on those before."""
        raise NotImplementedError

    def begin(self) -> None:
        """Called before the first step of a `run`."""

    def context(self) -> AbstractContextManager[Any]:
        """What steps are taken in: random numbers of the training's own, which no other thread can change."""
        # Whether all random numbers of a step come from `fsmer.kernels.noise`, as each network declares.
        parts = (part for module in self.modules.values() for part in module.modules() if isinstance(part, Backbone))
        alone = all(declared(type(part), "stackable") or declared(type(part), "trusted") for part in parts)
        return self.draws.used(everywhere=not alone)

    def loss(self, step: Step) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step, and figures to report beside it or, as ``"loss"``, in its place."""
        raise NotImplementedError

    def advance(self, step: Step) -> dict[str, float]:
        """Take a step and return its figures, ``"loss"`` among them; by default one step of the optimiser."""
        names = " and ".join(type(module).__name__ for module in self.modules.values())
        with outside_call(f"a training step of {names}"):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
                loss, figures = self.loss(step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self.move()
        return {"loss": float(loss.detach()), **figures}

    def move(self) -> None:
        """Move the weights by the gradients that they have."""
        if self.clip_gradient is not None:
            parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip_gradient)
        self.optimizer.step()

    def count(self, step: Step, figures: Mapping[str, float]) -> None:
        """Note a step that was taken."""
        self.on_step(step, figures)
        if step.ends_epoch:
            self.epoch += 1
            self.on_epoch()

    def on_step(self, step: Step, figures: Mapping[str, float]) -> None:
        """Told every step that was taken; raises where training has failed."""

    def on_epoch(self) -> None:
        """Called after every epoch; raises where training has failed."""

    def end(self) -> None:
        """Called when a `run` stops, at the end or before."""

    def figures(self) -> dict[str, float]:
        """What is logged of the last epoch."""
        return {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors: plain values."""
        return {}

    def take_state(self, state: Mapping[str, Any], folder: Path) -> None:
        """Go on from the `state` of a checkpoint in `folder`."""

    def _save(self, folder: Path, key: Any) -> None:
        tensors = nn.ModuleDict(self.modules).state_dict() | optimizer_tensors(self.optimizer)
        save_checkpoint(folder, tensors, self.state(), key, self.device.type)


def make_optimizer(
    recipe: TrainRecipe | PretrainRecipe, parameters: Iterable[Any], **options: Any
) -> torch.optim.Optimizer:
    """The recipe's optimiser of parameters, or of groups of them with rates of their own."""
    options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, **options}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.momentum, **options)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, **options)


def prefetched(make: Callable[[int], T], numbers: range) -> Generator[T, None, None]:
    """``make`` of each number in order, the next one made in a second thread while one is used."""
    with ThreadPoolExecutor(max_workers=1) as threads:
        waiting = deque(threads.submit(make, number) for number in numbers[:1])
        for place in range(len(numbers)):
            waiting.extend(threads.submit(make, number) for number in numbers[place + 1 : place + 2])
            yield waiting.popleft().result()


@contextmanager
def tensorboard_log(folder: str | os.PathLike[str] | None) -> Iterator[AfterEpoch | None]:
    """Give a hook that writes what a training tells it after every epoch; look with ``tensorboard --logdir FOLDER``.

    The hook is ``after_epoch`` of `Training.run` and writes scalars ``train/loss`` and ``train/learning_rate``; a
    training that is taken up again in the same folder goes on where its curve ended. Without a folder there is none.
    Raises `FsmerError` without the package tensorboard and `OutputError` for a folder that cannot be written.
    """
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise FsmerError(
            "logging for TensorBoard needs the package tensorboard; run: pip install 'fsmer[tensorboard]'."
        ) from error
    check_writable(folder)
    writer = SummaryWriter(log_dir=os.fspath(folder))

    def after_epoch(epoch: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(f"train/{name}", value, epoch)
        # A training takes hours, and its curve is looked at meanwhile.
        writer.flush()

    try:
        yield after_epoch
    finally:
        writer.close()
