"""The 3D-ResNet of Song et al. (2022), Table I, one stream of `fsmer.backbones.r3d_attribute`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ResNet3D"]

# Table I: blocks of conv2_x to conv5_x.
DEPTHS: Mapping[int, tuple[int, int, int, int]] = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}

Stem = Literal["table", "hara"]
Shortcut = Literal["A", "B"]


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions with batch normalisation and a shortcut (Table I; He et al. 2016).

    The first has the `stride`. Where the shape changes, shortcut ``"A"`` subsamples and adds empty channels, ``"B"`` is
    a 1x1x1 convolution with batch normalisation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm3d(outputs)
        self.stride = stride
        self.added_channels = outputs - inputs
        self.shortcut: nn.Module | None = None
        if shortcut == "B" and (stride != 1 or self.added_channels):
            convolution = nn.Conv3d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm3d(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Features of shape (B, outputs, T / stride, H / stride, W / stride)."""
        if self.shortcut is not None:
            beside = self.shortcut(inputs)
        else:
            beside = inputs[:, :, :: self.stride, :: self.stride, :: self.stride]
            beside = F.pad(beside, (0, 0, 0, 0, 0, 0, 0, self.added_channels))
        features = F.relu(self.norm1(self.conv1(inputs)))
        return F.relu(self.norm2(self.conv2(features)) + beside)


class ResNet3D(nn.Sequential):
    """One stream: the 3D-ResNet of Table I with a linear layer in place of its softmax.

    The layers carry the table's names: ``conv1``, ``conv2_x`` to ``conv5_x`` (`width` channels, doubled at every later
    stage), ``average_pool``, ``fc``. Stem ``"table"``: 3x7x7 convolution of stride 1x2x2, then a maximum over three
    frames with stride 2, which gives the 8x56x56 of Table I; ``"hara"``: 7x7x7 convolution of stride 1x2x2, then 3x3x3
    max pooling of stride 2 in all three axes (8x28x28), as in the code of the cited 3D-ResNets.
    """

    def __init__(
        self,
        channels: int,
        *,
        depth: int = 10,
        width: int = 64,
        embed_dim: int = 128,
        stem: Stem = "table",
        shortcut: Shortcut = "B",
    ) -> None:
        if stem == "table":
            convolution = nn.Conv3d(channels, width, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False)
            pool = nn.MaxPool3d((3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0))
        else:
            convolution = nn.Conv3d(channels, width, 7, stride=(1, 2, 2), padding=3, bias=False)
            pool = nn.MaxPool3d(3, stride=2, padding=1)
        super().__init__()
        self.conv1 = nn.Sequential(convolution, nn.BatchNorm3d(width), nn.ReLU(inplace=True), pool)
        inputs = width
        for number, blocks in enumerate(DEPTHS[depth]):
            outputs, stride = width << number, 1 if number == 0 else 2
            first = BasicBlock(inputs, outputs, stride, shortcut)
            further = (BasicBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1))
            self.add_module(f"conv{number + 2}_x", nn.Sequential(first, *further))
            inputs = outputs
        self.average_pool = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())
        self.fc = nn.Linear(inputs, embed_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
