"""Random changes of media in training: mirrored, turned, shifted."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fsmer.backbones.embedding import mirror_media
from fsmer.data.spec import InputSpec


def augment(
    media: Tensor,
    spec: InputSpec,
    flip: NDArray[np.bool_],
    angle: NDArray[np.float64],
    shift: NDArray[np.float64],
) -> Tensor:
    """Media of a batch, (B, \\*spec.shape), mirrored, turned and shifted clip by clip.

    `angle` is in radians and `shift` in parts of width and height, (B, 2); edges are repeated. That a turn of a few
    degrees also turns flow vectors is neglected.
    """
    if flip.any():
        chosen = torch.from_numpy(flip).to(media.device).view(-1, *(1,) * (media.ndim - 1))
        media = torch.where(chosen, mirror_media(media, spec), media)
    if angle.any() or shift.any():
        flat = media.flatten(1, -3) if media.ndim == 5 else media
        height, width = spec.size
        cos, sin = (torch.from_numpy(part).float().to(media.device) for part in (np.cos(angle), np.sin(angle)))
        moved = 2 * torch.from_numpy(shift).float().to(media.device)
        theta = torch.stack(
            [
                torch.stack([cos, -sin * height / width, moved[:, 0]], dim=-1),
                torch.stack([sin * width / height, cos, moved[:, 1]], dim=-1),
            ],
            dim=1,
        )
        grid = F.affine_grid(theta, [len(flat), 1, height, width], align_corners=False)
        media = F.grid_sample(flat, grid, padding_mode="border", align_corners=False).view(media.shape)
    return media
