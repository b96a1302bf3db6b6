"""Inception blocks with few filters in compiled code, for the training of `fr` and `basic_inception` on CPUs."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fsmer.kernels.compiled import compiled, plain_in_memory

__all__ = ["compiled_features"]

# Numbers of filters that the source is written for, and blocks at most.
FILTERS = (6, 16)
MOST_BLOCKS = 4
# Clips side by side in a vector.
LANES = 16
# Rooms of a backward pass that are kept for the next forward pass; a fresh one costs as much as half of that pass.
KEPT_ROOMS = 4

_rooms: list[Tensor] = []


def compiled_features(maps: Tensor, filters: Sequence[int], weights: Sequence[Tensor]) -> Tensor | None:
    """Flattened features of a stream of Inception blocks, or None where compiled code cannot make them.

    It can on a CPU with a compiler, for float32, in training (what is asked for weights alone). The features and the
    slopes of the weights are those of torch's layers but for rounding. Under autocast they stay in float32, which is
    both faster than torch's bfloat16 layers and nearer to the truth. `maps` is (B, 1, side, side); each block has 6 or
    16 filters and weights of its three 1x1 convolutions side by side, of 3x3, 5x5 and the one after pooling, each
    followed by its biases.
    """
    library = _library()
    possible = library is not None and torch.is_grad_enabled() and not maps.requires_grad
    possible = possible and len(filters) <= MOST_BLOCKS and all(count in FILTERS for count in filters)
    possible = possible and plain_in_memory(maps, *weights)
    return _Features.apply(maps, tuple(filters), *weights) if possible else None


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, filters: tuple[int, ...], *weights: Tensor) -> Tensor:
        library, side = cast(ctypes.CDLL, _library()), maps.shape[-1]
        maps = maps.contiguous()
        laid = [value.contiguous() for value in weights]
        shape = (side, len(filters), (ctypes.c_int64 * len(filters))(*filters))
        room = _room(-(-len(maps) // LANES) * library.inception_room(*shape))
        rest = side // 2 ** len(filters)
        features = torch.empty(len(maps), 4 * filters[-1] * rest * rest)
        kept = room.data_ptr(), features.data_ptr()
        library.inception_forward(maps.data_ptr(), len(maps), *shape, _layers(laid), *kept)
        ctx.save_for_backward(*laid)
        ctx.room, ctx.shape = room, shape
        return features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        library, shape, laid, room = cast(ctypes.CDLL, _library()), ctx.shape, ctx.saved_tensors, ctx.room
        if room is None:
            raise RuntimeError("the way back through compiled Inception blocks can be taken once only.")
        ctx.room = None
        scratch = _room(library.inception_scratch(*shape))
        turned = [torch.zeros_like(value) for value in laid]
        # Slopes of biases are the same either way.
        found = [torch.empty_like(value) if value.ndim > 1 else value for value in turned]
        slopes = slopes.contiguous()
        kept = room.data_ptr(), scratch.data_ptr(), _layers(turned), _layers(found)
        library.inception_backward(slopes.data_ptr(), len(slopes), *shape, _layers(laid), *kept)
        _rooms.extend((room, scratch))
        del _rooms[:-KEPT_ROOMS]
        return None, None, *found


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = compiled("inception")
    if library is not None:
        number, address = ctypes.c_int64, ctypes.c_void_p
        shape = (number, number, address)
        library.inception_room.restype = library.inception_scratch.restype = number
        library.inception_room.argtypes = library.inception_scratch.argtypes = shape
        library.inception_forward.argtypes = (address, number, *shape, *[address] * 3)
        library.inception_backward.argtypes = (address, number, *shape, *[address] * 5)
    return library


def _room(count: int) -> Tensor:
    """Room for vectors, which begin where a processor wants them."""
    for number, held in enumerate(_rooms):
        if len(held) == count * LANES:
            return _rooms.pop(number)
    values = torch.empty((count + 1) * LANES)
    skipped = -values.data_ptr() % (4 * LANES) // 4
    return values[skipped : skipped + count * LANES]


def _layers(values: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(values))(*(value.data_ptr() for value in values))
