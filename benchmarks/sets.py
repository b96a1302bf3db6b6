"""The made-up embeddings that the benchmarks share, as many in each class as MEGC 2019 has clips."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["COUNTS", "WAY", "cached_set", "five_classes"]

COUNTS = (250, 109, 83)
WAY = 3


def cached_set(*, width: int, repeats: int = 1) -> tuple[Tensor, np.ndarray]:
    """Embeddings of shape (442 * repeats, width) of three overlapping classes, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = np.tile(np.repeat(np.arange(WAY), COUNTS), repeats)
    means = torch.randn(WAY, width, generator=generator)
    noise = torch.randn(len(labels), width, generator=generator)
    return 0.1 * means[torch.from_numpy(labels)] + noise, labels


def five_classes(*, width: int, clips: int = 100) -> tuple[Tensor, np.ndarray]:
    """Embeddings of shape (5 * clips, width) of five overlapping classes of as many clips each, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = np.repeat(np.arange(5), clips)
    means = torch.randn(5, width, generator=generator)
    return 0.15 * means[torch.from_numpy(labels)] + torch.randn(len(labels), width, generator=generator), labels
