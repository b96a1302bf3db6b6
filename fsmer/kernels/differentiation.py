"""Layers whose gradients can be differentiated again: where fast code goes back once, torch's own layers take over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["is_second_order", "second_order"]

_wanted = ContextVar("second order", default=False)


@contextmanager
def second_order() -> Iterator[None]:
    """Forward passes inside give graphs that gradients of gradients go through, any number of times; also a decorator.

    Compiled layers, layers of oneDNN and fused attention go back once only and give no second derivatives, so torch's
    own layers and the plain formula of attention stand in for them. Values and gradients differ by rounding alone. The
    backward pass may be taken outside. It holds for this thread.

    Examples
    --------
    >>> import torch
    >>> import fsmer
    >>> from fsmer.kernels.differentiation import second_order
    >>> network, maps = fsmer.create_model("fr", branches=5), torch.rand(4, 2, 28, 28)
    >>> with second_order():
    ...     loss = network(maps).square().mean()
    >>> weight = network.shared.weight
    >>> (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
    >>> torch.autograd.grad(slope.square().sum(), weight)[0].shape == weight.shape
    True
    """
    before = _wanted.set(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _wanted.reset(before)


def is_second_order() -> bool:
    """Whether the caller is inside `second_order`."""
    return _wanted.get()
