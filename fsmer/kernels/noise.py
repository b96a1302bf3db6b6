"""Random numbers that can be handed in, so that neither other threads nor networks trained beside change them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Draws", "draw_noise", "drop_below", "dropout", "given_noise", "noise", "own_generator", "redirected"]

T = TypeVar("T")
# Shape and device of what is asked for, to that many random bytes.
Source = Callable[[tuple[int, ...], torch.device], Tensor]


def draw_noise(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Random bytes, uint8 of that shape; from torch's global generator unless another is given.

    Eight bytes come from one random number, which makes them several times cheaper than one draw a value.
    """
    count = math.prod(shape)
    # What a CPU draws is the same on every CPU; a GPU gets the same numbers from there.
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(1 << 63), None, generator=generator)
    return words.view(torch.uint8)[:count].view(shape).to(device)


_SOURCE: ContextVar[Source] = ContextVar("source of noise", default=draw_noise)


@contextmanager
def set_inside(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Set a variable of the context, in this thread and only inside."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def given_noise(source: Source) -> AbstractContextManager[None]:
    """Have `dropout` ask `source` for its random bytes."""
    return set_inside(_SOURCE, source)


def noise(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Random bytes from wherever they come at the moment, see `given_noise`."""
    return _SOURCE.get()(shape, device)


def drop_below(share: float) -> int:
    """The byte below which a value is dropped, so that `share` of all are, to the next 256th."""
    return min(255, round(256 * share))


def dropout(values: Tensor, share: float, training: bool) -> Tensor:
    """Values of which a share below 1, to the next 256th, is set to zero in training and the rest scaled up."""
    limit = drop_below(share)
    if not training or not limit:
        return values
    kept = noise(tuple(values.shape), values.device) >= limit
    return values * kept * (256 / (256 - limit))


class Draws:
    """Random numbers of one piece of work, which no other thread can change: torch's global generators stay untouched.

    They are those that the global generators would give after ``torch.manual_seed(seed)``.
    """

    def __init__(self, seed: int) -> None:
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Begin anew with another seed."""
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def on(self, device: torch.device) -> torch.Generator:
        """The generator of a device."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]

    @contextmanager
    def used(self, *, everywhere: bool = True) -> Iterator[None]:
        """Take random numbers from here: all of them, or those alone that are asked for in this module.

        Every operation of torch takes a few microseconds longer where all of them are redirected.
        """
        # The generator is asked for each time: `seed` makes new ones.
        source = given_noise(lambda shape, device: draw_noise(shape, device, self.on(_CPU)))
        with set_inside(_DRAWS, self), source, Redirected(self) if everywhere else nullcontext():
            yield


def own_generator(device: torch.device) -> torch.Generator | None:
    """The generator of the `Draws` in use, for operations that take one; ``None`` (torch's global one) outside."""
    draws = _DRAWS.get()
    return None if draws is None else draws.on(device)


def redirected() -> AbstractContextManager[Any]:
    """In a forward pass: have layers of others, which know no generator, draw from the `Draws` in use."""
    draws = _DRAWS.get()
    return nullcontext() if draws is None else Redirected(draws)


_DRAWS: ContextVar[Draws | None] = ContextVar("random numbers in use", default=None)
_CPU = torch.device("cpu")
# Overloads of one operation, by the name of the one that takes no generator.
_TAKING_GENERATORS = {"default": "generator", "low": "low_generator"}


class Redirected(TorchDispatchMode):
    """Hands generators of its own to operations of this thread that would use a global one."""

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self.draws = draws

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {key: value for key, value in (kwargs or {}).items() if key != "generator" or value is not None}
        if torch.Tag.nondeterministic_seeded not in func.tags or "generator" in kwargs:
            return func(*args, **kwargs)
        given = next((value.device for value in args if isinstance(value, Tensor)), kwargs.get("device") or _CPU)
        device = torch.device(given)
        if device.type == "meta":
            return func(*args, **kwargs)
        own = self.draws.on(device)
        if any(argument.name == "generator" for argument in func._schema.arguments):
            return func(*args, **kwargs, generator=own)
        taking = getattr(func.overloadpacket, _TAKING_GENERATORS.get(func._overloadname, ""), None)
        if taking is not None:
            return taking(*args, **kwargs, generator=own)
        # What takes no generator, such as dropout on a GPU, gets the global one in the state of the own.
        shared = torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index or 0]
        found = shared.get_state()
        shared.set_state(own.get_state())
        try:
            return func(*args, **kwargs)
        finally:
            own.set_state(shared.get_state())
            shared.set_state(found)
