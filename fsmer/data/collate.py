"""A collate function for torch data loaders over clips; torch loads on first use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fsmer.data.clips import Clip, ClipSet

__all__ = ["collate_clips"]


def collate_clips(clips: Sequence[Clip], kind: str = "flow") -> dict[str, Any]:
    """Collate function for a torch DataLoader over a `ClipSet`.

    Returns
    -------
    dict
        ``inputs``: float32 tensor of shape ``(B, channels, height, width)``; ``clip``, ``dataset``, ``subject``,
        ``label``: lists of B.
    """
    import torch

    batch: dict[str, Any] = {
        "inputs": torch.from_numpy(ClipSet.from_clips(clips).media(kind)),
        "clip": [clip.id for clip in clips],
    }
    return batch | {name: [getattr(clip, name) for clip in clips] for name in ("dataset", "subject", "label")}
