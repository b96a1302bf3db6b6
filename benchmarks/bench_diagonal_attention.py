"""µ-BERT's diagonal of attention without the map, beside the dense formula: memory and time, in the same run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.figures import Figure, best_rates, peak_memory
from fsmer.backbones.mubert_networks import log_diagonal_attention

PATCHES = 784
WIDTH = 512
BATCH = 16


def run() -> list[Figure]:
    """Peak memory and time of diag(Â) (Micron-BERT, eq. 8) at the paper's size, forward alone and with the gradient."""
    figures = []
    rows, columns = _tokens()
    difference = float((without_map(rows, columns) - with_map(rows, columns)).abs().max())
    figures.append(
        Figure("DMA without the map: largest difference", f"{difference:.1e}", "", None, "1e-5", difference <= 1e-5)
    )
    for name, gradient in (("forward", False), ("forward and backward", True)):
        label = f"DMA, {PATCHES} patches, {name}"
        ours, dense = (needed_memory(kind, gradient) for kind in ("without_map", "with_map"))
        if ours is not None and dense is not None:
            figures.append(
                Figure(f"{label}: memory", f"{ours:.0f} MiB", f"{dense:.0f} MiB", dense / ours, "2x", dense >= 2 * ours)
            )
        fast, slow = best_rates(_work("without_map", gradient), _work("with_map", gradient))
        figures.append(Figure(label, f"{fast:.1f} pairs/s", f"{slow:.1f} pairs/s", fast / slow))
    return figures


def without_map(rows: Tensor, columns: Tensor) -> Tensor:
    """The diagonal as fsmer takes it."""
    return log_diagonal_attention(rows, columns).exp()


def with_map(rows: Tensor, columns: Tensor) -> Tensor:
    """The diagonal of the whole map, as the published code takes it."""
    return (rows @ columns.mT).softmax(dim=-1).diagonal(dim1=-2, dim2=-1)


def needed_memory(kind: str, gradient: bool) -> float | None:
    """MiB that the work needs at most beyond its inputs, measured in a process of its own; None where nobody tells."""
    # In this process, memory that earlier work gave back to the allocator would be taken again unseen.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (kind, gradient))


def _measure(kind: str, gradient: bool) -> float | None:
    torch.set_num_threads(1)
    # Libraries take memory of their own at the first call.
    _do(kind, [one[:1].clone().requires_grad_(gradient) for one in _tokens()], gradient)
    tokens = [one.requires_grad_(gradient) for one in _tokens()]
    return peak_memory(lambda: _do(kind, tokens, gradient))


def _work(kind: str, gradient: bool) -> Callable[[], int]:
    tokens = [one.requires_grad_(gradient) for one in _tokens()]

    def work() -> int:
        _do(kind, tokens, gradient)
        return BATCH

    return work


def _do(kind: str, tokens: list[Tensor], gradient: bool) -> None:
    diagonal = {"without_map": without_map, "with_map": with_map}[kind](*tokens)
    if gradient:
        diagonal.sum().backward()
        for one in tokens:
            one.grad = None


def _tokens() -> list[Tensor]:
    """Scaled queries and keys of the paper's size."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.randn(2, BATCH, PATCHES, WIDTH, generator=generator)
    return [rows, columns / WIDTH**0.5]
