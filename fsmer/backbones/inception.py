"""Inception streams and proposal branches of feature refinement (`fsmer.backbones.fr`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.kernels.dense import OneDnnLinear
from fsmer.kernels.inception import compiled_features

__all__ = ["InceptionBlock", "InceptionStream", "ProposalModule", "proposal_loss"]

L = TypeVar("L", nn.Conv2d, nn.Linear)


def glorot(weight: Tensor, fan_in: int, fan_out: int) -> None:
    bound = math.sqrt(6 / (fan_in + fan_out))
    nn.init.uniform_(weight, -bound, bound)


def keras_start(layer: L, *, side_by_side: int = 1) -> L:
    """The layer with the start that Keras gives it: Glorot uniform weights, zero biases.

    `side_by_side` says how many layers of the paper it holds.
    """
    outputs, inputs = layer.weight.shape[:2]
    area = layer.weight[0, 0].numel()
    glorot(layer.weight, inputs * area, outputs * area // side_by_side)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class InceptionBlock(nn.Module):
    """Inception-V1 block of four paths, each with the same number of filters (FR section 3.1).

    The paths are a 1x1 convolution, 1x1 then 3x3, 1x1 then 5x5, and 3x3 max pooling then 1x1; every convolution is
    followed by ReLU and the paths are joined along the channels, ``4 * filters`` in all.
    """

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        # The three 1x1 convolutions that read the input itself are one convolution, cut in three afterwards.
        self.points = keras_start(nn.Conv2d(inputs, 3 * filters, 1), side_by_side=3)
        self.conv3 = keras_start(nn.Conv2d(filters, filters, 3, padding=1))
        self.conv5 = keras_start(nn.Conv2d(filters, filters, 5, padding=2))
        self.pooled = keras_start(nn.Conv2d(inputs, filters, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps of shape (B, 4 * filters, H, W)."""
        point, before3, before5 = _pointwise(self.points, inputs).chunk(3, dim=1)
        pooled = _pointwise(self.pooled, F.max_pool2d(inputs, 3, stride=1, padding=1))
        paths = [point, self.conv3(F.relu(before3)), self.conv5(F.relu(before5)), pooled]
        return F.relu(torch.cat(paths, dim=1))


def _pointwise(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """A 1x1 convolution.

    That of a single map is a product, written so that channels come to lie together: nothing in the layout of one
    channel says that they should, and without it all that follows takes a third longer.
    """
    if inputs.shape[1] > 1 or layer.bias is None:
        return layer(inputs)
    return (inputs.movedim(1, -1) * layer.weight.flatten() + layer.bias).movedim(-1, 1)


class InceptionStream(nn.Sequential):
    """Inception blocks, each followed by 2x2 max pooling, on the map of one flow component; flattened."""

    def __init__(self, filters: Sequence[int]) -> None:
        super().__init__()
        for inputs, count in zip((1, *(4 * count for count in filters)), filters, strict=False):
            self.extend([InceptionBlock(inputs, count), nn.MaxPool2d(2)])
        self.append(nn.Flatten())
        self.filters = tuple(filters)

    def forward(self, inputs: Tensor) -> Tensor:
        """Features (B, 4 * filters * pixels) of maps (B, 1, side, side)."""
        weights = [
            value
            for block in self
            if isinstance(block, InceptionBlock)
            for layer in (block.points, block.conv3, block.conv5, block.pooled)
            for value in (layer.weight, cast(Tensor, layer.bias))
        ]
        found = compiled_features(inputs, self.filters, weights)
        return super().forward(inputs) if found is None else found


class ProposalModule(nn.Module):
    """K branches, each with its own attention and its own detector of one class (FR section 3.2).

    Branches lie side by side in single tensors, so that all of them cost one matrix product a layer. With `attention`
    False, fully connected layers alone make their features (FR-fc, section 4.3).
    """

    def __init__(self, width: int, branches: int, detector_width: int, attention: bool) -> None:
        super().__init__()
        self.branches = branches
        self.attention = attention
        self.units = keras_start(OneDnnLinear(width, branches * width), side_by_side=branches)
        self.detector_weight = nn.Parameter(torch.empty(branches, width, detector_width))
        self.detector_bias = nn.Parameter(torch.zeros(branches, 1, detector_width))
        self.decision_weight = nn.Parameter(torch.empty(branches, detector_width, 1))
        self.decision_bias = nn.Parameter(torch.zeros(branches, 1, 1))
        glorot(self.detector_weight, width, detector_width)
        glorot(self.decision_weight, detector_width, 1)

    def weights(self, shared: Tensor) -> Tensor:
        """Attention weights a_k (eq. 2), (B, K, D) for shared features (B, D); each branch's sum to 1."""
        return self.units(shared).unflatten(1, (self.branches, -1)).softmax(dim=-1)

    def forward(self, shared: Tensor) -> Tensor:
        """Expression-specific features z*_k (eq. 3), (B, K, D) for shared features (B, D)."""
        if self.attention:
            return self.weights(shared) * shared[:, None]
        return F.relu(self.units(shared)).unflatten(1, (self.branches, -1))

    def detect(self, specific: Tensor) -> Tensor:
        """Logits of the detectors, (B, K), for expression-specific features (B, K, D)."""
        hidden = F.relu(torch.baddbmm(self.detector_bias, specific.transpose(0, 1), self.detector_weight))
        return torch.baddbmm(self.decision_bias, hidden, self.decision_weight)[..., 0].T


def proposal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the detectors of their binary cross-entropies, "this class or not" (FR eq. 4-5).

    The paper sums over clips; here it is their mean, as in the classification loss beside it, so that the balance of
    the two is the paper's whatever the size of a batch. `logits` are (B, K), before the sigmoid; `labels` int64, (B,).
    """
    truth = (labels[:, None] == torch.arange(logits.shape[1], device=labels.device)).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, truth)
