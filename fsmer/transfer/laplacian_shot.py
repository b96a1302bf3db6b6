"""LaplacianShot: nearest class means, with query clips that lie close together drawn to the same class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fsmer.backbones import ClassDirections
from fsmer.transfer.heads import one_hot
from fsmer.transfer.registry import register_method
from fsmer.transfer.source_model import require
from fsmer.transfer.transductive import Transductive

__all__ = ["LaplacianShot"]

_TINY = 1e-12
# Change of the bound, as a share of it, below which an episode is at rest.
_REST = 1e-6
# Nearest queries up to which they are looked for one by one.
_FEW = 4
# Products between queries that are held at a time.
_PRODUCTS = 1 << 22
# Up to this many clips all inner products fit in 64 MiB, and episodes become look-ups in that table.
_TABLE_CLIPS = 4096


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
    # Many passes go over what belongs to a chunk.
    _fit_bytes: ClassVar[int] = 3 << 20

    regularization: float = 0.7
    neighbours: int = 3
    rectify: bool = True
    steps: int = 20

    def __post_init__(self) -> None:
        self._require_in_range("regularization", "neighbours", "steps")
        require(self.neighbours > 1, f"neighbours={self.neighbours} leaves none but the clip itself; give at least 2.")

    def answers(self, support: Tensor, members: Tensor, queries: Tensor) -> Tensor:
        """Logits (E, Q, C) of queries (E, Q, D) by the support (E, S, D) with its `members` (E, C, S)."""
        rows = torch.cat([support, queries], dim=1)
        turned = rows.transpose(1, 2)
        nearest = _nearest_of(queries, self._others(queries.shape[1]))
        return self._answers(lambda sums: torch.bmm(sums @ rows, turned), rows.square().sum(dim=-1), nearest, members)

    def _others(self, asked: int) -> int:
        return min(self.neighbours, asked) - 1

    def _scorer(
        self, embeddings: Tensor, support: Tensor, codes: Tensor, query: Tensor | None, *, way: int
    ) -> Callable[[slice, ClassDirections | None], Tensor]:
        direct = super()._scorer(embeddings, support, codes, query, way=way)
        # The table costs N products a clip, the direct way as many as an episode has clips, and reading all of them.
        episodes, shots = support.shape
        if query is None or len(embeddings) > min(_TABLE_CLIPS, episodes * query.shape[1]) or bool((query < 0).any()):
            return direct
        self._need_support(codes)
        origin = embeddings.mean(dim=0)
        near = embeddings - origin
        products = near @ near.T
        rows = torch.cat([support, query], dim=1)

        def score(part: slice, prior: ClassDirections | None) -> Tensor:
            if query.shape[1] < 2:
                return direct(part, prior)
            members, own = one_hot(codes[part], way), rows[part]
            found = products.take(own[:, :, None] * len(products) + own[:, None])
            if prior is None:
                # The centre is a mean of clips, so that products with it are means of products.
                counts = members.sum(dim=-1, keepdim=True)
                shares = (members / counts.clamp_min(1)).sum(dim=1) / (counts > 0).sum(dim=1)
                along = torch.bmm(found[:, :, :shots], shares[..., None])
                length = torch.bmm(shares[:, None], along[:, :shots])
            else:
                centre = prior.centre - origin
                along = (near @ centre)[own][..., None]
                length = centre @ centre
            found = found - along - along.transpose(1, 2) + length
            scales = found.diagonal(dim1=1, dim2=2).clamp_min(_TINY).rsqrt()
            scales[:, :shots] *= codes[part] >= 0
            found.mul_(scales[..., None]).mul_(scales[:, None])
            squares = found.diagonal(dim1=1, dim2=2)
            nearest = _nearest(found[:, shots:, shots:], squares[:, shots:], self._others(query.shape[1]))
            return self._answers(lambda sums: torch.bmm(sums, found), squares, nearest, members)

        return score

    def _answers(self, along: Callable[[Tensor], Tensor], squares: Tensor, nearest: Tensor, members: Tensor) -> Tensor:
        """Logits by inner products alone, since class means are sums of clips.

        `along` gives those of sums of support and queries, (E, K, S + Q), with all of these; `squares` (E, S + Q) are
        their squared lengths.
        """
        shots = members.shape[-1]
        counts = members.sum(dim=-1, keepdim=True)
        sums = F.pad(members / counts.clamp_min(1), (0, squares.shape[1] - shots))
        absent = torch.zeros_like(counts).masked_fill_(counts == 0, -torch.inf)
        if self.rectify:
            sums = _rectified(sums, absent, members, along, squares)
        means = along(sums)
        lengths = squares[:, None, shots:] + (means * sums).sum(dim=-1, keepdim=True)
        distances = (lengths - 2 * means[:, :, shots:]).clamp_min_(0)
        return self._settled(absent, distances, nearest)

    def _settled(self, absent: Tensor, distances: Tensor, nearest: Tensor) -> Tensor:
        """Logits (E, Q, C) after the repetitions of Algorithm 1, for distances (E, C, Q)."""
        episodes, way, asked = distances.shape
        # Class by class, in rows as long as all queries of all episodes, since there are few classes.
        start = (absent - distances).transpose(0, 1).flatten(1)
        others = (nearest + asked * torch.arange(episodes)[:, None, None]).flatten(0, 1).unbind(dim=-1)
        logits, before = start.clone(), distances.new_full((episodes,), torch.inf)
        moving = torch.ones(episodes, dtype=torch.bool)
        answers, logs = _softmax(logits)
        for step in range(self.steps + 1):
            pull = answers.index_select(1, others[0])
            for rows in others[1:]:
                pull += answers.index_select(1, rows)
            pull *= self.regularization
            if step:
                # log y is known from the softmax: the bound is that of y (log y + a - pull).
                bound = (
                    (answers * (logs - start - pull).nan_to_num_(0, 0, 0)).sum(dim=0).view(episodes, asked).sum(dim=1)
                )
                if step > 2:
                    moving &= (bound - before).abs() > _REST * before.abs()
                    if not bool(moving.any()):
                        break
                before = bound
            if step == self.steps:
                break
            further = start + pull
            logits = further if bool(moving.all()) else torch.where(moving.repeat_interleave(asked), further, logits)
            answers, logs = _softmax(logits)
        return logits.view(way, episodes, asked).permute(1, 2, 0).contiguous()


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax of logits (C, N) over the classes, and its logarithm."""
    logs = logits - logits.logsumexp(dim=0)
    return logs.exp(), logs


def _rectified(
    sums: Tensor, absent: Tensor, members: Tensor, along: Callable[[Tensor], Tensor], squares: Tensor
) -> Tensor:
    """Weights (E, C, S + Q) of support and queries in the class means, each query counted for its nearest class.

    Queries are shifted by the difference of both means first, which is a sum of clips too.
    """
    shots = members.shape[-1]
    asked = squares.shape[1] - shots
    labelled = members.sum(dim=1)
    shift = F.pad(labelled / labelled.sum(dim=-1, keepdim=True), (0, asked), value=-1 / asked)
    shifted = torch.cat([torch.zeros(shots), torch.ones(asked)])
    towards = along(torch.cat([sums, shift[:, None]], dim=1))
    means, moved = towards[:, :-1], towards[:, -1]
    length = (moved * shift).sum(dim=-1, keepdim=True)
    dots = means + shifted * (means * shift[:, None]).sum(dim=-1, keepdim=True)
    lengths = (squares + shifted * (2 * moved + length))[:, None] * (means * sums).sum(dim=-1, keepdim=True)
    cosines = dots / lengths.clamp_min(_TINY).sqrt()
    told = (cosines[:, :, shots:] + absent).argmax(dim=1)
    counted = cosines.exp() * torch.cat([members, one_hot(told, members.shape[1])], dim=-1)
    counted = counted / counted.sum(dim=-1, keepdim=True).clamp_min(_TINY)
    # Every counted query brings the shift with it.
    return counted + counted[:, :, shots:].sum(dim=-1, keepdim=True) * shift[:, None]


def _nearest(products: Tensor, squares: Tensor, count: int, first: int = 0) -> Tensor:
    """The `count` nearest others (E, B, count) of the queries from number `first`, by inner products (E, B, Q)."""
    distances = squares[:, None] - 2 * products
    own = torch.arange(products.shape[1])
    distances[:, own, first + own] = torch.inf
    if count > _FEW:
        return distances.topk(count, dim=-1, largest=False).indices
    # For a few, one pass for each is faster than sorting.
    found = []
    for _ in range(count):
        found.append(distances.argmin(dim=-1, keepdim=True))
        distances.scatter_(-1, found[-1], torch.inf)
    return torch.cat(found, dim=-1)


def _nearest_of(queries: Tensor, count: int) -> Tensor:
    """As `_nearest`, of all queries (E, Q, D), some of them at a time."""
    episodes, asked, _ = queries.shape
    squares, turned = queries.square().sum(dim=-1), queries.transpose(1, 2)
    block = max(1, _PRODUCTS // (episodes * asked))
    starts = range(0, asked, block)
    parts = [_nearest(queries[:, low : low + block] @ turned, squares, count, low) for low in starts]
    return torch.cat(parts, dim=1)
