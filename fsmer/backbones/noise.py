"""Dropout whose random numbers can be handed in, so that networks trained side by side draw what each draws alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

__all__ = ["draw_noise", "drop_below", "dropout", "given_noise", "noise"]

# Shape and device of what is asked for, to that many random bytes.
Source = Callable[[tuple[int, ...], torch.device], Tensor]

_LARGEST = 1 << 63


def draw_noise(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Random bytes, uint8 of that shape; from torch's global generator unless another is given.

    Eight bytes come from one random number, which makes them several times cheaper than one draw a value.
    """
    count = 1
    for length in shape:
        count *= length
    # What a CPU draws is the same on every CPU; a GPU gets the same numbers from there.
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-_LARGEST, None, generator=generator)
    return words.view(torch.uint8)[:count].view(shape).to(device)


_SOURCE: ContextVar[Source] = ContextVar("source of noise", default=draw_noise)


@contextmanager
def given_noise(source: Source) -> Iterator[None]:
    """Have `dropout` ask `source` for its random bytes."""
    token = _SOURCE.set(source)
    try:
        yield
    finally:
        _SOURCE.reset(token)


def noise(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Random bytes from wherever they come at the moment, see `given_noise`."""
    return _SOURCE.get()(shape, device)


def drop_below(share: float) -> int:
    """The byte below which a value is dropped, so that `share` of all are, to the next 256th."""
    return min(255, round(256 * share))


def dropout(values: Tensor, share: float, training: bool) -> Tensor:
    """Values of which a share, to the next 256th, is set to zero in training and the rest scaled up (inverted dropout).

    Parameters
    ----------
    values : Tensor
    share : float
        From 0 to below 1.
    training : bool
        False returns `values` as they are.
    """
    limit = drop_below(share)
    if not training or not limit:
        return values
    kept = noise(tuple(values.shape), values.device) >= limit
    return values * kept * (256 / (256 - limit))
