"""α-TIM: class prototypes that are trained until the query clips get certain answers of every class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsmer.memory import cache_share
from fsmer.transfer.heads import Adam, batched_product, class_means
from fsmer.transfer.registry import register_method
from fsmer.transfer.source_model import require
from fsmer.transfer.transductive import Transductive

__all__ = ["AlphaTim"]

_TINY = 1e-12
# The paper's α: for one clip a class, and for five and more. Between them fewer than this many clips count as one.
_FEW, _ALPHA_FEW, _ALPHA_MORE = 3, 2.0, 7.0


@register_method("alpha_tim")
@dataclass(frozen=True)
class AlphaTim(Transductive):
    """α-TIM, transductive: prototypes trained by support labels and information of queries (Veilleux et al. 2021).

    Prototypes start as class means of embeddings of unit length. Adam minimises the cross-entropy of the support, minus
    the α-entropy of the mean answer to the queries, plus the mean α-entropy of single answers (eq. 6). Small answers
    matter less to an α-entropy, so that classes may have unequal shares of the queries, which Shannon's entropy (TIM,
    Boudiaf et al. 2020) draws towards equal shares.

    Defaults are those of the paper and of its code for queries of unequal classes. With ``alpha=1, distance="cosine",
    scale=10, conditional_weight=0.1, steps=50`` it is the ``TIM`` of easyfsl.

    Parameters
    ----------
    alpha : float or None
        α, above 0; 1 is Shannon's entropy. ``None``: the paper's 2 for one clip a class and its 7 for five
        and more, where fewer than 3 clips a class on average count as one.
    support_weight, marginal_weight, conditional_weight : float
        Weights of the cross-entropy, the entropy of the mean answer and the mean entropy of answers.
    distance : {"euclidean", "cosine"}
        How a clip scores against a prototype: minus half the squared distance (the paper), or the cosine.
    scale : float
        Factor on the scores before the softmax; 15 in the paper's code.
    centre : bool
        Centre embeddings first, as ``simpleshot`` does; not so in the paper.
    steps : int
        Adam steps.
    learning_rate : float
        Of Adam.
    """

    batched: ClassVar[bool] = True
    # A chunk is gone over twice a step and should stay in cache.
    _fit_bytes: ClassVar[int] = cache_share() // 2

    alpha: float | None = None
    support_weight: float = 1.0
    marginal_weight: float = 1.0
    conditional_weight: float = 1.0
    distance: str = "euclidean"
    scale: float = 15.0
    centre: bool = False
    steps: int = 1000
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        self._require_choice("distance", "euclidean", "cosine")
        self._require_in_range("support_weight", "marginal_weight", "conditional_weight", "steps", "learning_rate")
        for name in ("alpha", "scale"):
            value = getattr(self, name)
            if value is not None:
                self._require_in_range(name)
                require(value > 0, f"{name}={value} is not positive; give a number above 0.")

    @property
    def centres(self) -> bool:
        return self.centre

    def answers(self, support: Tensor, members: Tensor, queries: Tensor) -> Tensor:
        """Logits (E, Q, C) of queries (E, Q, D) by the support (E, S, D) with its `members` (E, C, S).

        The gradients are written out. For the answer p of a query and the mean answer m, a logit's slope is
        p (g - sum_c p g) with g = (m**(α-1) - p**(α-1)) α / (α - 1) / Q, where both powers have their weights; in the
        limit of α = 1 it is g = (log m - log p) / Q.
        """
        weight, counts = class_means(support, members)
        absent = torch.zeros_like(counts).masked_fill_(counts == 0, -torch.inf)[..., None]
        clips = support.shape[1]
        rows = torch.cat([support, queries], dim=1)
        turned = rows.transpose(1, 2)
        scores, slopes = (rows.new_empty(*weight.shape[:2], rows.shape[1]) for _ in range(2))
        gradient = torch.empty_like(weight)
        labelled = members.sum(dim=1, keepdim=True)
        share = self.support_weight * labelled / labelled.sum(dim=-1, keepdim=True)
        alpha = self._alphas(counts)
        adam = Adam(weight, self.learning_rate)
        for _ in range(self.steps):
            lengths = self._score(weight, turned, scores)
            answers = torch.softmax(torch.add(absent, scores, alpha=self.scale), dim=1)
            torch.mul(answers[:, :, :clips] - members, share, out=slopes[:, :, :clips])
            slopes[:, :, clips:] = self._information_slopes(answers[:, :, clips:], alpha)
            if lengths is None:
                batched_product(slopes, rows, out=gradient)
                gradient.addcmul_(weight, slopes.sum(dim=-1, keepdim=True), value=-1)
            else:
                radial = (slopes * scores).sum(dim=-1, keepdim=True).div_(lengths.square())
                batched_product(slopes / lengths, rows, out=gradient).addcmul_(weight, radial, value=-1)
            adam.step(gradient.mul_(self.scale))
        self._score(weight, turned, scores)
        return torch.add(absent, scores, alpha=self.scale)[:, :, clips:].transpose(1, 2).contiguous()

    def _score(self, weight: Tensor, turned: Tensor, out: Tensor) -> Tensor | None:
        """Scores (E, C, N) into `out`, up to a constant a clip; the prototypes' lengths where they are cosines."""
        batched_product(weight, turned, out=out)
        if self.distance == "euclidean":
            out.sub_(weight.square().sum(dim=-1, keepdim=True), alpha=0.5)
            return None
        lengths = torch.linalg.vector_norm(weight, dim=-1, keepdim=True).clamp_min_(_TINY)
        out.div_(lengths)
        return lengths

    def _information_slopes(self, answers: Tensor, alpha: Tensor | float) -> Tensor:
        """Slopes of the entropies with respect to the scaled scores of the queries, (E, C, Q)."""
        mean = answers.mean(dim=-1, keepdim=True)
        if isinstance(alpha, float) and alpha == 1:
            inner = self.marginal_weight * mean.clamp_min(_TINY).log()
            inner = inner - self.conditional_weight * answers.clamp_min(_TINY).log()
        else:
            power, factor = alpha - 1, alpha / (alpha - 1)
            inner = self.marginal_weight * mean**power - self.conditional_weight * answers**power
            inner *= factor
        inner = inner.mul_(answers)
        return inner.addcmul_(answers, inner.sum(dim=1, keepdim=True), value=-1).div_(answers.shape[-1])

    def _alphas(self, counts: Tensor) -> Tensor | float:
        """The α of all episodes, or of each, (E, 1, 1), for the counts (E, C) of their labelled clips."""
        if self.alpha is not None:
            return float(self.alpha)
        shots = counts.sum(dim=1) / (counts > 0).sum(dim=1)
        # One of each even where all are equal: not the last digit of an episode depends on those solved with it.
        return torch.where(shots < _FEW, _ALPHA_FEW, _ALPHA_MORE)[:, None, None]
