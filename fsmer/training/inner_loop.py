"""Gradient steps on a support set as a function of the weights before them, which can be differentiated again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fsmer.backbones import Backbone
from fsmer.kernels import differentiation

__all__ = ["BATCH_NORM", "HEAD", "Adapted", "adaptable", "embedded", "head_steps", "inner_loop"]

# Names of the classifier's parameters among those that are adapted; no layer of a backbone is called so.
HEAD = ("head.weight", "head.bias")
# Which statistics batch normalisation uses: those of the backbone, or those of the support.
BATCH_NORM = ("inherited", "task")

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Adapted:
    """Weights after the steps: of the backbone and the classifier by name, and batch statistics of the support."""

    weights: dict[str, Tensor]
    statistics: dict[str, Tensor]

    def logits(self, backbone: Backbone, inputs: Any) -> Tensor:
        """Class scores, (B, C)."""
        return _logits(backbone, self.weights, self.statistics, inputs)


def adaptable(backbone: Backbone, *, upper: bool) -> dict[str, nn.Parameter]:
    """Parameters that the steps change, by name; with `upper` those of `Backbone.lower_layers` are left out."""
    lower = {id(value) for layer in backbone.lower_layers() for value in layer.parameters()} if upper else set()
    named = backbone.named_parameters()
    return {name: value for name, value in named if value.requires_grad and id(value) not in lower}


def inner_loop(
    backbone: Backbone,
    weights: Tensors,
    inputs: Any,
    codes: Tensor,
    *,
    steps: int,
    rates: float | Tensors,
    second_order: bool = False,
    statistics: str = "inherited",
) -> Adapted:
    """Take gradient steps on the cross-entropy of a support set (Finn et al. 2017, Algorithm 1, line 6).

    Parameters
    ----------
    backbone : Backbone
        In evaluation mode; its own parameters stay as they are.
    weights : mapping of str to Tensor
        Where the steps begin: parameters of the backbone that they change, and those of the classifier (`HEAD`), of
        shape (C, D) and (C,). The result can be differentiated with respect to them.
    inputs : tensor of shape (S, \\*spec.shape), or dict of such tensors
        Media of the support, or what `Backbone.lower` makes of them.
    codes : int64 Tensor of shape (S,)
        -1 marks padding, which counts for nothing.
    steps : int
    rates : float or mapping of str to Tensor
        Learning rate; one tensor a parameter for rates that were learned (Li et al. 2017).
    second_order : bool
        Whether the gradients themselves are differentiated too; otherwise they count as constants.
    statistics : {"inherited", "task"}
        Of batch normalisation: those of the backbone, or those of the support, which queries are then normalised by.
    """
    changed = dict(weights)
    for _ in range(steps):
        again = differentiation.second_order() if second_order else nullcontext()
        with _support_statistics(backbone, statistics) as passing, again:
            loss = F.cross_entropy(_logits(backbone, changed, passing, inputs), codes, ignore_index=-1)
        # Parts that the embedding does not depend on, such as detectors, get no gradient.
        found = torch.autograd.grad(loss, list(changed.values()), create_graph=second_order, allow_unused=True)
        for (name, value), gradient in zip(list(changed.items()), found, strict=True):
            if gradient is not None:
                changed[name] = value - (rates if isinstance(rates, float) else rates[name]) * gradient
    # Statistics of the support with the weights that queries meet.
    with _support_statistics(backbone, statistics) as kept, torch.no_grad():
        if statistics == "task":
            _logits(backbone, changed, kept, inputs)
    return Adapted(changed, kept)


def embedded(backbone: Backbone, weights: Tensors, statistics: Tensors, inputs: Any) -> Tensor:
    """Embeddings, (B, D), with these weights in place of the backbone's own."""
    own = {name: value for name, value in weights.items() if name not in HEAD}
    found: Tensor = functional_call(backbone, {**own, **statistics}, (inputs,))
    return found


def head_steps(
    weight: Tensor, bias: Tensor, embeddings: Tensor, members: Tensor, steps: int, rate: float
) -> tuple[Tensor, Tensor]:
    """Gradient steps of the classifiers of many episodes, by the closed form of their gradient.

    Parameters
    ----------
    weight, bias : Tensors of shape (E, C, D) and (E, C)
        Where they begin; the result can be differentiated with respect to them.
    embeddings : Tensor of shape (E, S, D)
    members : Tensor of shape (E, C, S)
        1 where a clip is of a class; a column of zeros is padding.
    steps : int
    rate : float
    """
    present = members.sum(dim=1, keepdim=True)
    share = present / present.sum(dim=2, keepdim=True).clamp_min(1)
    for _ in range(steps):
        scores = torch.baddbmm(bias[..., None], weight, embeddings.transpose(1, 2))
        errors = (torch.softmax(scores, dim=1) - members) * share
        weight = weight - rate * torch.bmm(errors, embeddings)
        bias = bias - rate * errors.sum(dim=2)
    return weight, bias


def _logits(backbone: Backbone, weights: Tensors, statistics: Tensors, inputs: Any) -> Tensor:
    weight, bias = (weights[name] for name in HEAD)
    return embedded(backbone, weights, statistics, inputs) @ weight.T + bias


@contextmanager
def _support_statistics(backbone: Backbone, rule: str) -> Iterator[dict[str, Tensor]]:
    """Inside, batch normalisation uses the statistics of what passes and writes them to the buffers handed over."""
    layers = [layer for layer in backbone.named_modules() if isinstance(layer[1], _BatchNorm)] if rule == "task" else []
    buffers = {
        f"{name}.{kind}": value.clone() for name, layer in layers for kind, value in layer.named_buffers(recurse=False)
    }
    before = [(layer, layer.training, layer.momentum) for _, layer in layers]
    for _, layer in layers:
        layer.training, layer.momentum = True, 1.0
    try:
        yield buffers
    finally:
        for layer, training, momentum in before:
            layer.training, layer.momentum = training, momentum
