"""Classifier heads over embeddings, one for each of many episodes at a time, and the optimiser that fits them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fsmer.backbones import ClassDirections
from fsmer.errors import FsmerError
from fsmer.outside import outside_call, outside_value

__all__ = [
    "KINDS", "Adam", "FittedHead", "Head", "balanced_weights", "base_centre", "batched_product", "class_means",
    "one_hot",
]  # fmt: skip

KINDS = ("linear", "cosine", "distance")

# Shared queries scored at a time; bounds the centred copies of them.
_QUERY_BLOCK = 4096


class MethodError(FsmerError, ValueError):
    """A method has a value that it cannot work with, fails, or gives something else than it should."""


class FittedHead(ABC):
    """What a recognizer holds: fitted classifiers of E episodes over the same C classes (E = 1 in a recognizer)."""

    # What the config of a recognizer calls it.
    kind: str

    @abstractmethod
    def __len__(self) -> int:
        """Number of episodes E."""

    @abstractmethod
    def logits(self, queries: Tensor) -> Tensor:
        """Class scores of shape (E, Q, C), whose softmax are probabilities.

        `queries` are each episode's own, (E, Q, D), or those that all episodes share, (Q, D).
        """

    @property
    def shares_queries(self) -> bool:
        """Whether queries that all episodes share cost much less than as many of each episode's own."""
        return False

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, for a weights file."""
        return {}


@dataclass(frozen=True)
class Head(FittedHead):
    """Linear, cosine and distance classifiers as tensors.

    Parameters
    ----------
    kind : {"linear", "cosine", "distance"}
        How an embedding z scores against the weight w and bias b of a class:

        * ``"linear"``: z . w + b (MERAU eq. 5);
        * ``"cosine"``: u . w + b, where u is z - μ scaled to unit length (MERAU eq. 6-7; w carries the scale);
        * ``"distance"``: b - ||z - w||^2 (MERAU eq. 9-10; w is the prototype).
    weight : Tensor of shape (E, C, D)
    bias : Tensor of shape (E, C)
        Minus infinity for a class that nothing is known of: its probability is 0.
    centre : Tensor of shape (E, D) or (1, D), optional
        μ, subtracted before the cosine; only ``"cosine"`` reads it.
    """

    kind: str
    weight: Tensor
    bias: Tensor
    centre: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MethodError(f"a Head was made with kind={self.kind!r}; use one of {', '.join(map(repr, KINDS))}.")
        for name, value in (("weight", self.weight), ("bias", self.bias)):
            if not isinstance(value, Tensor):
                raise MethodError(f"a Head was made with {name}={outside_value(value)}; give a Tensor.")

    def __len__(self) -> int:
        return len(self.weight)

    def logits(self, queries: Tensor) -> Tensor:
        if queries.ndim == 3 or len(queries) <= _QUERY_BLOCK:
            return self._score(queries)
        scores = queries.new_empty(len(self), len(queries), self.weight.shape[1])
        for start in range(0, len(queries), _QUERY_BLOCK):
            scores[:, start : start + _QUERY_BLOCK] = self._score(queries[start : start + _QUERY_BLOCK])
        return scores

    @property
    def shares_queries(self) -> bool:
        """Unless episodes have centres of their own."""
        return self.centre is None or len(self.centre) == 1

    def tensors(self) -> dict[str, Tensor]:
        found = {"weight": self.weight, "bias": self.bias}
        return found if self.centre is None else {**found, "centre": self.centre}

    @classmethod
    def from_tensors(cls, kind: str, tensors: Mapping[str, Tensor]) -> Head:
        """Inverse of `tensors`."""
        return cls(kind=kind, weight=tensors["weight"], bias=tensors["bias"], centre=tensors.get("centre"))

    def _score(self, queries: Tensor) -> Tensor:
        own = queries.ndim == 3
        if self.kind == "distance":
            # Distances do not depend on the origin; one near the prototypes keeps the expanded square accurate in
            # float32. Episodes that share queries share an origin, which their labels have no part in: not even the
            # last digit of one episode depends on what another has learnt.
            if own:
                origin = self.weight.mean(dim=1, keepdim=True)
            else:
                origin = self.weight[0].mean(dim=0) if len(self.weight) == 1 else queries.mean(dim=0)
            near, prototypes = queries - origin, self.weight - origin
            lengths = near.square().sum(dim=-1)
            squared = (lengths if own else lengths[None])[..., None] + prototypes.square().sum(dim=-1)[:, None]
            return self.bias[:, None] - (squared - 2 * _products(near, prototypes)).clamp_min_(0)
        if self.kind == "linear" or self.centre is None or own or len(self.centre) == 1:
            if self.kind == "cosine":
                if self.centre is not None:
                    queries = queries - (self.centre[:, None] if own else self.centre)
                queries = F.normalize(queries, dim=-1)
            return _products(queries, self.weight) + self.bias[:, None]
        # Shared queries, but a centre an episode: one episode at a time, so that E centred copies never exist together.
        each = zip(self.weight, self.bias, self.centre, strict=True)
        return torch.stack([F.normalize(queries - centre, dim=-1) @ weight.T + bias for weight, bias, centre in each])


def checked_head(head: Any, episodes: int, way: int, who: str) -> FittedHead:
    """What the method `who` has fitted to so many episodes; `MethodError` where it is no head of these."""
    given = f"a {type(head).__name__}"
    if isinstance(head, Head):
        parts = head.weight, head.bias
        given += " with weight {} and bias {}".format(*(f"{tuple(one.shape)} of {one.dtype}" for one in parts))
        fits = head.weight.shape[:-1] == head.bias.shape == (episodes, way)
        fits = fits and all(one.dtype == torch.float32 for one in parts)
    else:
        fits = isinstance(head, FittedHead) and len(head) == episodes
    if not fits:
        raise MethodError(
            f"fit_head of {who} gives {given}, but a FittedHead of {episodes} episodes and {way} classes is expected "
            f"(of a Head, float32 weight ({episodes}, {way}, D) and bias ({episodes}, {way})); mend its fit_head."
        )
    return head


def class_scores(head: FittedHead, queries: Tensor, way: int) -> Tensor:
    """``head.logits(queries)``; `MethodError` where it fails or gives anything but logits of the right shape."""
    with outside_call(f"logits of {type(head).__name__}", MethodError):
        found: Any = head.logits(queries)
    shape = (len(head), queries.shape[-2], way)
    if not isinstance(found, Tensor) or found.shape != shape or not found.is_floating_point():
        raise MethodError(
            f"logits of {type(head).__name__} gives {outside_value(found)}, but a floating-point tensor of shape "
            f"{shape} (episodes, queries, classes) is expected; mend it."
        )
    return found


class Adam:
    """Adam on one tensor with gradients given by hand, in place and without autograd.

    The update is that of `torch.optim.Adam` with its default betas and epsilon; the bias corrections are folded into
    the step size, which saves two passes over the tensor.
    """

    def __init__(self, values: Tensor, learning_rate: float) -> None:
        self.values = values
        self.learning_rate = learning_rate
        self._mean = torch.zeros_like(values)
        self._square = torch.zeros_like(values)
        self._buffer = torch.empty_like(values)
        self._steps = 0

    def step(self, gradient: Tensor) -> None:
        """Move `values` by one step against `gradient`."""
        beta1, beta2, epsilon = 0.9, 0.999, 1e-8
        self._steps += 1
        square_correction = math.sqrt(1 - beta2**self._steps)
        self._mean.lerp_(gradient, 1 - beta1)
        self._square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        torch.sqrt(self._square, out=self._buffer).add_(epsilon * square_correction)
        size = self.learning_rate * square_correction / (1 - beta1**self._steps)
        self.values.addcdiv_(self._mean, self._buffer, value=-size)


def batched_product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """``torch.bmm`` into `out` for tensors on the CPU, through numpy: its BLAS takes a third of the time on matrices as
    small as one episode's (3 x 512 by 512 x 15)."""
    np.matmul(left.numpy(), right.numpy(), out=out.numpy())
    return out


def one_hot(codes: Tensor, way: int) -> Tensor:
    """Float indicators of shape (E, C, S) for `codes` of shape (E, S); padding (-1) belongs to no class."""
    return (codes[:, None, :] == torch.arange(way, device=codes.device)[:, None]).float()


def class_means(embeddings: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Mean embedding of each class, shape (E, C, D), zero where a class has no clip, and the counts, shape (E, C).

    Embeddings are (E, S, D), `members` indicators as `one_hot` gives them, (E, C, S).
    """
    counts = members.sum(dim=-1)
    return torch.bmm(members / counts.clamp_min(1)[..., None], embeddings), counts


def base_centre(embeddings: Tensor, members: Tensor, prior: ClassDirections | None) -> Tensor:
    """What embeddings are centred on, (1, D) or (E, D): the known centre, else the mean of each support's class means.

    Embeddings are (E, S, D), `members` indicators as `one_hot` gives them, (E, C, S).
    """
    if prior is not None:
        return prior.centre[None]
    means, counts = class_means(embeddings, members)
    return means.sum(dim=1) / (counts > 0).sum(dim=1, keepdim=True)


def balanced_weights(members: Tensor, *, balanced: bool) -> Tensor:
    """Weight of each support clip in the loss, shape (E, S), summing to 1 over an episode; padding weighs nothing.

    With `balanced` every class that is present weighs the same, otherwise every clip does.
    """
    weights = (members / members.sum(dim=-1, keepdim=True).clamp_min(1)).sum(dim=1) if balanced else members.sum(dim=1)
    return weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-12)


def _products(queries: Tensor, weight: Tensor) -> Tensor:
    if queries.ndim == 3:
        return torch.bmm(queries, weight.transpose(1, 2))
    episodes, classes, _ = weight.shape
    return (queries @ weight.flatten(0, 1).T).unflatten(1, (episodes, classes)).transpose(0, 1)


def prior_head(prior: ClassDirections, episodes: int, way: int) -> tuple[Tensor, Tensor]:
    """Weight (E, C, D) and bias (E, C) of a cosine head that scores as ``prior.logits`` does."""
    known = prior.known.expand(episodes, way)
    share = known.float() / known.sum(dim=-1, keepdim=True).clamp_min(1)
    weight = (prior.scale * F.normalize(prior.weight, dim=-1)).expand(episodes, -1, -1)
    bias = prior.bias.expand(episodes, way)
    mean_weight = torch.einsum("ec,ecd->ed", share, weight)[:, None]
    mean_bias = (share * bias).sum(dim=-1, keepdim=True)
    return torch.where(known[..., None], weight, mean_weight), torch.where(known, bias, mean_bias)
