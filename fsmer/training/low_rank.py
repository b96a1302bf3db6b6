"""Fine-tuning of few parameters: scale and shift of normalisation layers alone, or low-rank changes of weights."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from fsmer.backbones import Backbone
from fsmer.errors import SupportError

__all__ = ["add_adapters", "merge_adapters", "train_norms_only"]

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_ADAPTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _LowRank(nn.Module):
    """A weight W, as a matrix with a row for each output, plus B A, where B begins as zero (Hu et al. 2021)."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        rank = min(rank, rows, columns)
        drawn = (2 * torch.rand(rank, columns, generator=generator) - 1) / math.sqrt(columns)
        self.a = nn.Parameter(drawn.to(weight))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.b @ self.a).view_as(weight)


def train_norms_only(backbone: Backbone) -> None:
    """Train scale and shift of normalisation layers and nothing else; `SupportError` where there are none."""
    norms = [layer for layer in backbone.modules() if isinstance(layer, _NORMS)]
    trained = {id(value) for layer in norms for value in layer.parameters(recurse=False) if value.requires_grad}
    if not trained:
        raise SupportError(
            f"layers='norms' trains scale and shift of normalisation layers, and {backbone.name!r} has none that can "
            "be trained; give layers='all', or adapter_rank=4 for low-rank adapters."
        )
    for value in backbone.parameters():
        value.requires_grad_(id(value) in trained)


def add_adapters(backbone: Backbone, rank: int, seed: int) -> None:
    """Train, in place of all that would be trained, low-rank changes of the weights of linear and convolutional layers.

    Raises `SupportError` where no such layer would be trained.
    """
    layers = [one for one in backbone.modules() if isinstance(one, _ADAPTED) and one.weight.requires_grad]
    if not layers:
        raise SupportError(
            f"adapter_rank={rank} adapts linear and convolutional layers, and {backbone.name!r} has none among the "
            "layers that are trained; give layers='all', or adapter_rank=0."
        )
    backbone.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        adapter = _LowRank(layer.weight.detach(), rank, generator)
        parametrize.register_parametrization(layer, "weight", adapter)


def merge_adapters(backbone: Backbone) -> None:
    """Add to the weights what `add_adapters` has put beside them; the backbone is then without adapters again."""
    for layer in list(backbone.modules()):
        if not isinstance(layer, _ADAPTED) or not parametrize.is_parametrized(layer, "weight"):
            continue
        adapted = cast(nn.ModuleDict, layer.parametrizations)["weight"]
        if isinstance(cast(nn.ModuleList, adapted)[0], _LowRank):
            weight = layer.weight.detach().clone()
            # torch's own way back alters a class that copies of the layer share, and puts the weight behind the bias.
            layer.__class__ = type(layer).__bases__[0]
            del layer.parametrizations
            layer._parameters = {"weight": nn.Parameter(weight, requires_grad=False), **layer._parameters}
