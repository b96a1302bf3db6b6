"""Encoder and flow decoder of the Twin-Cycle Autoencoder (`fsmer.backbones.tcae`), whose encoder MERAU takes over."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from fsmer.errors import FsmerError

__all__ = ["AuEncoder", "Encoder", "FlowDecoder"]

# Stride-2 convolutions of each branch; those before them are shared.
BRANCH_DEPTH = 3
WIDEST = 8


class AuEncoder(nn.Module):
    """From a frame to its action unit code: stride-2 convolutions, the last `BRANCH_DEPTH` on a branch of their own.
    log2(size) of them bring the frame to 1x1; `width` channels after the first are doubled by each further one up to 8
    times."""

    def __init__(self, size: int = 256, width: int = 32, code_dim: int = 256) -> None:
        super().__init__()
        depth = int(math.log2(size))
        widths = [width * min(2**stage, WIDEST) for stage in range(depth - BRANCH_DEPTH)]
        self.shared = nn.Sequential(*(_down(before, after) for before, after in pairwise([3, *widths])))
        self.au_branch = _branch(widths[-1], width * WIDEST, code_dim)

    def forward(self, frames: Tensor) -> Tensor:
        """Action unit codes (B, code_dim) of frames (B, 3, size, size) in 0..1."""
        return self.au_branch(self.shared(frames)).flatten(1)


class Encoder(AuEncoder):
    """`AuEncoder` with a second branch for the pose code."""

    def __init__(self, size: int = 256, width: int = 32, code_dim: int = 256) -> None:
        super().__init__(size, width, code_dim)
        last = self.shared[-1][0].out_channels  # type: ignore[index]
        self.pose_branch = _branch(last, width * WIDEST, code_dim)

    def codes(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Action unit and pose codes, each (B, code_dim), of frames (B, 3, size, size)."""
        features = self.shared(frames)
        return self.au_branch(features).flatten(1), self.pose_branch(features).flatten(1)


class FlowDecoder(nn.Module):
    """From the codes of two frames to the flow between them and a mixing logit. log2(size) times bilinear upsampling by
    2 and a 3x3 convolution, with batch normalisation and ReLU in between and tanh at the end."""

    def __init__(self, size: int = 256, width: int = 32, code_dim: int = 256) -> None:
        super().__init__()
        depth = int(math.log2(size))
        inner = [width * min(2 ** (depth - 2 - stage), WIDEST) for stage in range(depth - 1)]
        layers: list[nn.Module] = [nn.ReLU()]
        for before, after in pairwise([2 * code_dim, *inner]):
            layers += [_up(), nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, _up(), nn.Conv2d(inner[-1], 3, 3, padding=1), nn.Tanh())

    def forward(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Flow (B, 2, size, size) in grid units, x before y, and logits (B, 1, size, size), for two codes (B, D). A
        grid unit is half the distance between the centres of the first and the last pixel."""
        out = self.layers(torch.cat([source, target], dim=1)[:, :, None, None])
        return out[:, :2], out[:, 2:]


def check_frame_size(size: int) -> None:
    """Raise `FsmerError` unless frames of that side can be halved down to one pixel."""
    least = 2 ** (BRANCH_DEPTH + 1)
    if size < least or size & (size - 1):
        raise FsmerError(
            f"TCAE's frame size is {size}, but its convolutions halve the frame down to one pixel; give a power of "
            f"two from {least} on (the paper's is 256)."
        )


def _down(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.LeakyReLU(0.2))


def _branch(before: int, inner: int, code_dim: int) -> nn.Sequential:
    middle = [_down(before if not stage else inner, inner) for stage in range(BRANCH_DEPTH - 1)]
    return nn.Sequential(*middle, nn.Conv2d(inner, code_dim, 4, 2, 1))


def _up() -> nn.Upsample:
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
