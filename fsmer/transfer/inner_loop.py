"""Adaptation by a few plain gradient steps, from where episodic training has left the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from fsmer.backbones import Backbone, ClassDirections, embed, read_inputs
from fsmer.data import ClipSet
from fsmer.errors import SupportError
from fsmer.training.frozen_layers import FrozenLayers
from fsmer.training.inner_loop import BATCH_NORM, HEAD, Tensors, adaptable, head_steps, inner_loop
from fsmer.transfer.heads import Head, one_hot
from fsmer.transfer.method import Method
from fsmer.transfer.recognizer import Recognizer
from fsmer.transfer.registry import register_method
from fsmer.transfer.source_model import Classes, Progress, SourceModel, absent_bias, require, support_codes

__all__ = ["RATE", "InnerLoop", "adapts_upper", "first_head"]

# Of the names of learned rates among learned tensors.
RATE = "rate."
# The whole support passes the network in each.
MOST_STEPS = 1000


@register_method("inner_loop")
@dataclass(frozen=True)
class InnerLoop(Method):
    """Plain gradient steps on the support, the inner loop of MAML and its kin (Finn et al. 2017; Raghu et al. 2020).

    A backbone that `fsmer.meta_train` has trained brings its first classifier and learned rates along. Any other one
    begins with a classifier of zeros.

    Parameters
    ----------
    steps : int
        Gradient steps, each on the whole support (Finn et al. 2017, section 5.2 take 5 in training).
    learning_rate : float
        Of all parameters, unless rates were learned. Finn et al. take 0.01 for five classes of Omniglot and
        MiniImagenet.
    adapts : {"all", "head"}
        Whether the backbone takes part, or the classifier alone (ANIL, Raghu et al. 2020).
    layers : {"auto", "all", "upper"}
        Which layers of the backbone take part, as of the method ``finetune``.
    batch_norm : {"inherited", "task"}
        Statistics of batch normalisation: those of the backbone, or those of the support.
    """

    batched: ClassVar[bool] = True

    steps: int = 5
    learning_rate: float = 0.01
    adapts: str = "all"
    layers: str = "auto"
    batch_norm: str = "inherited"
    # What episodic training has taught; see `for_model`.
    learned: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._require_choice("adapts", "all", "head")
        self._require_choice("layers", "auto", "all", "upper")
        self._require_choice("batch_norm", *BATCH_NORM)
        require(0 <= self.steps <= MOST_STEPS, f"steps={self.steps}: give a number from 0 to {MOST_STEPS}.")
        self._require_in_range("learning_rate")

    @property
    def keeps_backbone(self) -> bool:
        """True with ``adapts="head"``."""
        return self.adapts == "head"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "learned"}

    def for_model(self, model: SourceModel) -> Self:
        taught = model.backbone.adaptation
        fits = taught is not None and taught.method == self.name
        return replace(self, learned=taught.tensors if taught is not None and fits else {})

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None) -> Head:
        """A linear classifier after the steps, on embeddings that stay as they are."""
        self._need_support(codes)
        members = one_hot(codes, way)
        weight, bias = (one.expand(len(embeddings), *one.shape) for one in first_head(self.learned, way, embeddings))
        weight, bias = head_steps(weight, bias, embeddings, members, self.steps, self.learning_rate)
        return Head("linear", weight.contiguous(), bias + absent_bias(codes, way))

    def _learn(self, model: SourceModel, support: ClipSet, classes: Classes, progress: Progress | None) -> Recognizer:
        if self.keeps_backbone:
            return super()._learn(model, support, classes, progress)
        method = self.for_model(model)
        names, codes = support_codes(support, classes)
        self._need_support(codes[None])
        backbone = copy.deepcopy(model.backbone).float().eval()
        upper = adapts_upper(backbone, self.layers)
        frozen, rows = FrozenLayers(backbone, support) if upper else None, np.arange(len(support))
        device = next((one.device for one in backbone.parameters()), torch.device("cpu"))
        inputs = frozen(rows) if frozen else read_inputs(backbone, support, rows, device)
        weights: dict[str, Tensor] = dict(adaptable(backbone, upper=upper))
        weight, bias = first_head(method.learned, len(names), torch.zeros(1, backbone.embed_dim, device=device))
        weights |= dict(zip(HEAD, (weight.requires_grad_(), bias.requires_grad_()), strict=True))
        learned = _rates(method.learned, weights)
        with torch.enable_grad():
            found = inner_loop(
                backbone,
                weights,
                inputs,
                codes.to(device),
                steps=self.steps,
                rates=learned or self.learning_rate,
                statistics=self.batch_norm,
            )
        with torch.no_grad():
            taken = {**found.weights, **found.statistics}
            for name, value in (*backbone.named_parameters(), *backbone.named_buffers()):
                if name in taken:
                    value.copy_(taken[name])
        fitted = [found.weights[name].detach().cpu()[None] for name in HEAD]
        head = Head("linear", fitted[0].contiguous(), fitted[1] + absent_bias(codes[None], len(names)))
        return Recognizer(replace(model, backbone=backbone), method, names, head, embed(backbone, support), codes)


def _rates(learned: Tensors, weights: Tensors) -> dict[str, Tensor]:
    """Learned rates of these weights; none where none were learned. `SupportError` where they do not fit."""
    held = {name: learned[RATE + name].to(value) for name, value in weights.items() if RATE + name in learned}
    if not held:
        return {}
    # A first row of the classifier that all classes share has rates that they share.
    for name in HEAD:
        if name in held and held[name].shape == (1, *weights[name].shape[1:]):
            held[name] = held[name].expand_as(weights[name])
    if any(name not in held or held[name].shape != value.shape for name, value in weights.items()):
        raise SupportError(
            "the learned rates of the model do not fit its weights and the number of classes; train it on episodes "
            "again, or choose another method such as 'cosine'."
        )
    return held


def adapts_upper(backbone: Backbone, layers: str) -> bool:
    """Whether lower layers are left alone, by the parameter `InnerLoop.layers`; `FsmerError` where there are none."""
    if layers == "upper" and not backbone.lower_layers():
        backbone.lower(None)  # says what is missing
    return layers != "all" and bool(backbone.lower_layers())


def first_head(learned: Tensors, way: int, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,) of a classifier before the first step, on the device of `embeddings`, (..., D).

    Zeros where none was learned; `SupportError` where one was for another number of classes.
    """
    if HEAD[0] not in learned:
        return embeddings.new_zeros(way, embeddings.shape[-1]), embeddings.new_zeros(way)
    weight, bias = (learned.get(name, embeddings.new_zeros(())).to(embeddings) for name in HEAD)
    if weight.shape[1:] != embeddings.shape[-1:] or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise SupportError(
            f"the first classifier of the model has a weight of shape {tuple(weight.shape)} and a bias of shape "
            f"{tuple(bias.shape)}, but embeddings of {embeddings.shape[-1]} numbers need (classes, "
            f"{embeddings.shape[-1]}) and (classes,); train the model again."
        )
    if len(weight) not in (1, way):
        raise SupportError(
            f"the model was trained on episodes of {len(weight)} classes, each with a first classifier of its own, but "
            f"{way} classes are asked for; train it with shared_head=True, which serves any number of classes, or "
            "choose another method such as 'cosine'."
        )
    return weight.expand(way, -1).clone(), bias.expand(way).clone()
