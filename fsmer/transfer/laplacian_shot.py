"""LaplacianShot: nearest class means, with query clips that lie close together drawn to the same class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fsmer.transfer.heads import class_means, one_hot
from fsmer.transfer.registry import register_method
from fsmer.transfer.source_model import require
from fsmer.transfer.transductive import Transductive

__all__ = ["LaplacianShot"]

_TINY = 1e-12
# Change of the bound, as a share of it, below which an episode is at rest.
_REST = 1e-6
# Products between queries that are held at a time.
_PRODUCTS = 1 << 22


@register_method("laplacian_shot")
@dataclass(frozen=True)
class LaplacianShot(Transductive):
    """LaplacianShot, transductive: class means and agreement of neighbouring queries (Ziko et al. 2020).

    Embeddings are centred and scaled to unit length (see ``simpleshot``). The answer y to a query starts as the softmax
    of minus its squared distances a to the class means, and Algorithm 1 repeats y = softmax(-a + λ sum of the answers
    to its nearest queries) until the bound of eq. 7 is at rest.

    It is the ``LaplacianShot`` of easyfsl, with its defaults. Class means are corrected by the queries as there: clips
    count by the exponential of their cosine to the mean, normalised over the clips of a class, where the paper's code
    takes a softmax over the classes.

    Parameters
    ----------
    regularization : float
        λ, 0 or more; 0.7 serves the paper for one clip a class.
    neighbours : int
        Nearest queries of a query, itself among them: 3 makes two others. Fewer where there are fewer queries.
    rectify : bool
        Correct class means by the queries (Liu et al. 2020).
    steps : int
        Most repetitions.
    """

    batched: ClassVar[bool] = True

    regularization: float = 0.7
    neighbours: int = 3
    rectify: bool = True
    steps: int = 20

    def __post_init__(self) -> None:
        self._require_in_range("regularization", "neighbours", "steps")
        require(self.neighbours > 1, f"neighbours={self.neighbours} leaves none but the clip itself; give at least 2.")

    def answers(self, support: Tensor, members: Tensor, queries: Tensor) -> Tensor:
        """Logits (E, Q, C) of queries (E, Q, D) by the support (E, S, D) with its `members` (E, C, S)."""
        episodes, asked, _ = queries.shape
        prototypes, counts = class_means(support, members)
        absent = torch.zeros_like(counts).masked_fill_(counts == 0, -torch.inf)[:, None]
        if self.rectify:
            prototypes = _rectified(prototypes, absent, support, members, queries)
        lengths = queries.square().sum(dim=-1, keepdim=True) + prototypes.square().sum(dim=-1)[:, None]
        distances = (lengths - 2 * torch.bmm(queries, prototypes.transpose(1, 2))).clamp_min_(0)
        nearest = _nearest(queries, min(self.neighbours, asked) - 1)
        # One table for all episodes: each has its own rows.
        nearest = (nearest + asked * torch.arange(episodes)[:, None, None]).flatten(0, 1)

        def drawn(answers: Tensor) -> Tensor:
            table = answers.flatten(0, 1)
            return F.embedding_bag(nearest, table, mode="sum").unflatten(0, (episodes, asked)).mul_(self.regularization)

        logits = absent - distances
        answers = torch.softmax(logits, dim=-1)
        pull, before = drawn(answers), distances.new_full((episodes,), torch.inf)
        moving = torch.ones(episodes, dtype=torch.bool)
        for step in range(self.steps):
            logits = torch.where(moving[:, None, None], absent - distances + pull, logits)
            answers = torch.softmax(logits, dim=-1)
            pull = drawn(answers)
            bound = (answers * ((answers + _TINY).log() + distances - pull)).sum(dim=(1, 2))
            if step > 1:
                moving &= (bound - before).abs() > _REST * before.abs()
                if not bool(moving.any()):
                    break
            before = bound
        return logits


def _rectified(prototypes: Tensor, absent: Tensor, support: Tensor, members: Tensor, queries: Tensor) -> Tensor:
    """Class means (E, C, D) of support and queries, each query counted for its nearest class."""
    labelled = members.sum(dim=(1, 2))[:, None, None]
    shift = support.sum(dim=1, keepdim=True) / labelled - queries.mean(dim=1, keepdim=True)
    rows = torch.cat([support, queries + shift], dim=1)
    cosines = torch.bmm(F.normalize(prototypes, dim=-1), F.normalize(rows, dim=-1).transpose(1, 2))
    told = (cosines[:, :, support.shape[1] :] + absent.transpose(1, 2)).argmax(dim=1)
    counted = cosines.exp() * torch.cat([members, one_hot(told, prototypes.shape[1])], dim=-1)
    return torch.bmm(counted / counted.sum(dim=-1, keepdim=True).clamp_min(_TINY), rows)


def _nearest(queries: Tensor, count: int) -> Tensor:
    """The `count` nearest other queries of each query, (E, Q, count)."""
    episodes, asked, _ = queries.shape
    lengths = queries.square().sum(dim=-1)[:, None]
    found = torch.empty(episodes, asked, count, dtype=torch.int64)
    block = max(1, _PRODUCTS // (episodes * asked))
    for start in range(0, asked, block):
        rows = queries[:, start : start + block]
        distances = lengths - 2 * torch.bmm(rows, queries.transpose(1, 2))
        own = torch.arange(rows.shape[1])
        distances[:, own, start + own] = torch.inf
        found[:, start : start + block] = distances.topk(count, dim=-1, largest=False).indices
    return found
