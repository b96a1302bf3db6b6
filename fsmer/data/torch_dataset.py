"""Clips for torch data loaders: a map-style data set and a collate function; torch loads on first use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from fsmer.data.clip import Clip
    from fsmer.data.clips import ClipSet

__all__ = ["TorchClips", "collate_clips"]


class TorchClips:
    """Map-style data set of ``(tensor, class index)``; made by `ClipSet.as_torch`.

    The clips' media of one `kind` are read when asked for; `codes`, int64 of shape (N,), are their class indices.
    """

    def __init__(self, clips: ClipSet, kind: str, codes: NDArray[np.int64]) -> None:
        self.clips = clips
        self.kind = kind
        self.codes = codes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a data set of {len(self)} clips.")
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        """Read one batch at once; torch calls this when it is there."""
        import torch

        places = np.asarray(indices, np.int64)
        tensors = torch.from_numpy(self.clips.read(self.kind, places))
        return list(zip(tensors.unbind(), self.codes[places].tolist(), strict=True))


def collate_clips(clips: Sequence[Clip], kind: str = "flow") -> dict[str, Any]:
    """Collate function for a torch DataLoader over a `ClipSet`.

    Returns
    -------
    dict
        ``inputs``: float32 tensor of shape ``(B, channels, height, width)``; ``clip``, ``dataset``, ``subject``,
        ``label``: lists of B.
    """
    import torch

    stacked = np.stack([clip.read(kind) for clip in clips])
    words = {name: [getattr(clip, name) for clip in clips] for name in ("dataset", "subject", "label")}
    return {"inputs": torch.from_numpy(stacked), "clip": [clip.id for clip in clips], **words}
