"""Many trainings of one architecture at once: the folds, seeds or episodes of a run, each with its own support.

Every member of a stack keeps its own weights, batch statistics, optimiser state, order of clips, augmentation and
dropout, and gives what it gives when it is trained alone. Two engines do the work:

``"stack"``
    Weights of all members lie in one tensor a layer; one vectorised forward and backward pass (``torch.func``) and one
    step of the optimiser serve them all, where all their batches have the same size.
``"one_by_one"``
    Members are trained to the end one after the other, through the networks' own compiled code where they have some.

A GPU is far from busy with one small network and takes the stack. On a CPU a stack of these networks does the same
arithmetic with larger tensors, which fit its caches worse (measured in docs/results/speed_single.csv), and `ststnet` is
several times as fast through its compiled epochs. So a CPU trains members one after the other.
"""

from __future__ import annotations

import copy
import itertools
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from fsmer.backbones import Backbone, Targets
from fsmer.backbones.base import Inputs
from fsmer.errors import FsmerError
from fsmer.kernels.noise import draw_noise, given_noise
from fsmer.memory import free_memory, out_of_memory
from fsmer.training.loop import Step, Training

__all__ = ["Engine", "Member", "can_stack", "train_together"]

Engine = Literal["auto", "stack", "one_by_one"]
T = TypeVar("T", bound="Member")

# "A few million": beyond this one member alone fills a machine.
LARGEST = 12_000_000
# Weights, their gradients (twice while the optimiser steps) and two moments of Adam.
COPIES_OF_WEIGHTS = 5
# Members that go together at most; larger stacks gain nothing more.
LARGEST_STACK = 256


class Member(Training, ABC):
    """A training of a backbone and a classifier that can run alone or, step by step, in a stack.

    Both are trained in place and are in the mode, training or evaluation, that they are trained in; `targets` are those
    of all the clips.
    """

    def __init__(self, backbone: Backbone, classifier: nn.Module, targets: Targets, **how: Any) -> None:
        self.backbone = backbone
        self.classifier = classifier
        self.targets = targets
        modules = {"backbone": backbone, "classifier": classifier}
        named = [(name, one) for name, one in nn.ModuleDict(modules).named_parameters() if one.requires_grad]
        super().__init__(modules, self.make_optimizer(named), **how)
        classifier.to(self.device)

    @abstractmethod
    def signature(self) -> tuple[Any, ...]:
        """What members of one stack must have in common beside their architecture, so that their steps are alike."""

    @abstractmethod
    def make_optimizer(self, named: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """The optimiser of parameters named ``backbone.*`` and ``classifier.*``, which may be stacked."""

    def loss(self, step: Step) -> tuple[Tensor, dict[str, float]]:
        return _Network(self, step.targets.classes)(*_given(step)), {}


def can_stack(backbone: Backbone) -> bool:
    """Whether copies of the backbone can be trained as one: a small network that says it is `Backbone.stackable`."""
    return type(backbone).stackable and sum(value.numel() for value in backbone.parameters()) <= LARGEST


def train_together(
    count: int, make: Callable[[int], T], *, memory: int | None = None, engine: Engine = "auto"
) -> Iterator[tuple[int, T]]:
    """Train many members and hand over the number of each, and the member, when it is finished.

    `make` gives the untrained member of a number, again for members that have to start anew. The members of a stack
    take at most `memory` bytes together, by default a third of what is free. The engine ``"auto"`` is the stack on a
    GPU and one by one on a CPU. Warns where memory has run out and fewer members go on together; raises `FsmerError`
    where a single one takes more than there is.
    """
    if not count:
        return
    first = make(0)
    if engine == "one_by_one" or (engine == "auto" and first.device.type == "cpu"):
        for number, member in enumerate(itertools.chain([first], map(make, range(1, count)))):
            try:
                member.run()
            except Exception as error:
                if not out_of_memory(error):
                    raise
                raise _too_large(member) from error
            yield number, member
        return
    groups: dict[str, list[int]] = {}
    for number in range(count):
        groups.setdefault(_signature(first if number == 0 else make(number)), []).append(number)
    for numbers in groups.values():
        yield from _in_stacks(numbers, make, memory)


def _in_stacks(numbers: list[int], make: Callable[[int], T], memory: int | None) -> Iterator[tuple[int, T]]:
    """Members of one signature, as many at once as memory allows."""
    allowed, at_once = memory, 0
    waiting = list(numbers)
    while waiting:
        try:
            first = make(waiting[0])
            if not at_once:
                if allowed is None:
                    gpu = first.device.type == "cuda"
                    allowed = (torch.cuda.mem_get_info(first.device)[0] if gpu else free_memory()) // 3
                at_once = max(1, min(LARGEST_STACK, allowed // _bytes_of(first)))
            members = [first, *(make(number) for number in waiting[1:at_once])]
            _Stack(members).run()
        except Exception as error:
            if not out_of_memory(error):
                raise
            if at_once <= 1:
                raise _too_large(make(waiting[0])) from error
            tried = min(at_once, len(waiting))
            at_once = max(1, tried // 2)
            words = f"memory ran out with {tried} trainings at once; going on with {at_once} at a time."
            warnings.warn(words, stacklevel=2)
            continue
        for member in members:
            yield waiting.pop(0), member


class _Network(nn.Module):
    """Backbone, classifier and loss as one module, so that one functional call does a step."""

    def __init__(self, member: Member, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.backbone = member.backbone
        self.classifier = member.classifier
        self.classes = classes

    def forward(self, inputs: Inputs, labels: Tensor, units: Tensor | None, weights: Tensor | None) -> Tensor:
        loss = self.backbone.training_loss(inputs, Targets(labels, self.classes, units, weights), self.classifier)
        penalty = getattr(self.classifier, "penalty", None)
        return loss if penalty is None else loss + penalty()


class _Stack(Training):
    """Members of one signature as one model with a leading dimension; a step of it is one of every member."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        parts = [_parts(member) for member in members]
        stacked = {name: torch.stack([part[name].detach() for part in parts]) for name in parts[0]}
        self.trained = {name: nn.Parameter(stacked[name]) for name, value in parts[0].items() if value.requires_grad}
        # Parameters that stay, and batch statistics, which every step changes in place.
        self.kept = {name: value for name, value in stacked.items() if name not in self.trained}
        optimizer = members[0].make_optimizer(list(self.trained.items()))
        super().__init__({}, optimizer, epochs=1, half=members[0].half, clip_gradient=members[0].clip_gradient)
        self.device = members[0].device
        self.generators = [torch.Generator() for _ in members]
        self.noise_shapes: dict[int, list[tuple[int, ...]]] = {}

    def steps(self) -> Generator[Step, None, None]:
        for steps in zip(*(member.steps() for member in self.members), strict=True):
            yield Step(steps, rate=steps[0].rate, ends_epoch=False)

    def context(self) -> AbstractContextManager[Any]:
        """Members have random numbers of their own."""
        return nullcontext()

    def end(self) -> None:
        """Hand over to the members' networks what was learnt."""
        held = self.kept | self.trained
        for place, member in enumerate(self.members):
            with torch.no_grad():
                for name, value in _parts(member).items():
                    value.copy_(held[name][place])
            member.end()

    def advance(self, step: Step) -> dict[str, float]:
        """One step of all members, which are told its loss."""
        for generator, own in zip(self.generators, step.inputs, strict=True):
            if own.seed is not None:
                generator.manual_seed(own.seed)
        for member, own, loss in zip(self.members, step.inputs, self._losses(step.inputs), strict=True):
            member.count(own, {"loss": loss})
        return {}

    def _losses(self, steps: Sequence[Step]) -> list[float]:
        network = _Network(self.members[0], steps[0].targets.classes)
        given = [_stacked(values) for values in zip(*map(_given, steps), strict=True)]
        noise = self._noise(network, steps[0])

        def loss(trained: dict[str, Tensor], kept: dict[str, Tensor], drawn: list[Tensor], *inputs: Any) -> Tensor:
            waiting = iter(drawn)
            with given_noise(lambda shape, device: next(waiting)):
                found: Tensor = functional_call(network, (trained, kept), inputs)
            return found

        alike = tuple(0 if one is not None else None for one in given)
        stepped = vmap(grad_and_value(loss), in_dims=(0, 0, 0 if noise else None, *alike))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            weights = {name: value.detach() for name, value in self.trained.items()}
            gradients, losses = stepped(weights, self.kept, noise, *given)
        if (limit := self.clip_gradient) is not None:
            squares = torch.stack([one.flatten(1).square().sum(dim=1) for one in gradients.values()])
            factors = (limit / (squares.sum(dim=0).sqrt() + 1e-6)).clamp_max(1)
            gradients = {name: one * factors.view(-1, *(1,) * (one.ndim - 1)) for name, one in gradients.items()}
        for name, value in self.trained.items():
            value.grad = gradients[name]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return [float(one) for one in losses.detach().cpu()]

    def _noise(self, network: _Network, step: Step) -> list[Tensor]:
        """Random bytes of every dropout of the network, member by member from its own generator."""
        clips = len(step.targets.labels)
        if clips not in self.noise_shapes:
            self.noise_shapes[clips] = _dry_run(network, step)[0]
        shapes = self.noise_shapes[clips]
        drawn = [[draw_noise(shape, self.device, generator) for shape in shapes] for generator in self.generators]
        return [torch.stack(one) for one in zip(*drawn, strict=True)]


def _dry_run(network: _Network, step: Step) -> tuple[list[tuple[int, ...]], int]:
    """Shapes of the noise that a step asks for, in order, and the bytes that it keeps for its backward pass."""
    shapes: list[tuple[int, ...]] = []
    kept: dict[int, int] = {}

    def source(shape: tuple[int, ...], device: torch.device) -> Tensor:
        shapes.append(shape)
        return torch.full(shape, 255, dtype=torch.uint8, device=device)

    def keep(value: Tensor) -> Tensor:
        kept[value.data_ptr()] = value.numel() * value.element_size()
        return value

    # A copy, since batch statistics change.
    tried = copy.deepcopy(network)
    with given_noise(source), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        tried(*_given(step))
    return shapes, sum(kept.values())


def _given(step: Step) -> tuple[Inputs, Tensor, Tensor | None, Tensor | None]:
    """What a `_Network` takes of a step."""
    return step.inputs, step.targets.labels, step.targets.action_units, step.targets.class_weights


def _bytes_of(member: Member) -> int:
    """About how much memory a member takes in a stack."""
    step = next(member.steps())
    weights = sum(value.numel() * value.element_size() for value in _parts(member).values())
    return COPIES_OF_WEIGHTS * weights + 2 * _dry_run(_Network(member, step.targets.classes), step)[1]


def _signature(member: Member) -> str:
    shapes = {name: [list(one.shape), str(one.dtype), one.requires_grad] for name, one in _parts(member).items()}
    backbone, targets = member.backbone, member.targets
    modes = [module.training for module in (*backbone.modules(), *member.classifier.modules())]
    return json.dumps(
        [
            [type(backbone).__module__, type(backbone).__qualname__, backbone.config, shapes, modes],
            [member.half, member.clip_gradient, member.signature()],
            [len(targets.classes), targets.action_units is None, targets.class_weights is None],
        ],
        sort_keys=True,
        default=str,
    )


def _parts(member: Member) -> dict[str, Tensor]:
    """Every tensor of a member by name, those that are not saved included."""
    whole = nn.ModuleDict(member.modules)
    return dict(itertools.chain(whole.named_parameters(), whole.named_buffers()))


def _stacked(values: tuple[Any, ...]) -> Any:
    if values[0] is None:
        return None
    if isinstance(values[0], dict):
        return {kind: torch.stack([one[kind] for one in values]) for kind in values[0]}
    return torch.stack(values)


def _too_large(member: Member) -> FsmerError:
    return FsmerError(
        f"training {member.backbone.name!r} takes more memory than there is, even one member at a time; give a smaller "
        "batch_size or a smaller backbone."
    )
