"""LaplacianShot: nearest class means, with query clips that lie close together drawn to the same class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
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
# Products of clips of some episodes that are held at a time, which should stay in the nearest caches.
_NEAR = 1 << 17
# Up to this many clips all inner products fit in 64 MiB, and episodes become look-ups in that table.
_TABLE_CLIPS = 4096
# Episodes whose steps are taken together at least.
_TOGETHER = 64

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Along = Callable[[Floats], Floats]


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
        rows = torch.cat([support, queries], dim=1).numpy()
        turned = rows.swapaxes(1, 2)
        nearest = _nearest_of(queries.numpy(), self._others(queries.shape[1]))
        squares = np.square(rows).sum(axis=-1)
        start = self._start(lambda sums: np.matmul(sums @ rows, turned), squares, members.numpy())
        return torch.from_numpy(self._settled(start, nearest))

    def _others(self, asked: int) -> int:
        return min(self.neighbours, asked) - 1

    def _scorer(
        self, embeddings: Tensor, support: Tensor, codes: Tensor, query: Tensor | None, *, way: int
    ) -> Callable[[slice, ClassDirections | None], Tensor]:
        direct = super()._scorer(embeddings, support, codes, query, way=way)
        # The table costs N products a clip, the direct way as many as an episode has clips, and reading all of them.
        (episodes, shots), clips = support.shape, len(embeddings)
        if query is None or clips > min(_TABLE_CLIPS, episodes * query.shape[1]) or bool((query < 0).any()):
            return direct
        self._need_support(codes)
        asked, rows = query.shape[1], torch.cat([support, query], dim=1).numpy()
        at_once = max(1, _NEAR // rows.shape[1] ** 2)
        centre: Tensor | None = None
        table = np.empty(0, np.float32)

        def score(part: slice, prior: ClassDirections | None) -> Tensor:
            nonlocal centre, table
            if asked < 2:
                return direct(part, prior)
            # All episodes have the known centre, or each has its own, by which products are adjusted below.
            wanted = embeddings.mean(dim=0) if prior is None else prior.centre
            if centre is None or not torch.equal(centre, wanted):
                centre = wanted
                near = embeddings - centre if prior is None else F.normalize(embeddings - centre, dim=-1)
                table = (near @ near.T).numpy()
            members = one_hot(codes[part], way).numpy()
            starts, nearest = [], []
            for low in range(part.start, part.stop, at_once):
                own = rows[low : min(low + at_once, part.stop)]
                # Look-ups by one number a place are three times as fast as by two; of `take` as of `[...]`.
                found = table.take(own[:, :, None] * clips + own[:, None])
                theirs = members[low - part.start : low - part.start + len(own)]
                if prior is None:
                    _centre(found, theirs)
                squares = np.diagonal(found, axis1=1, axis2=2)
                starts.append(self._start(lambda sums, found=found: sums @ found, squares, theirs))  # type: ignore[misc]
                nearest.append(_nearest(found[:, shots:, shots:], squares[:, shots:], self._others(asked)))
            return torch.from_numpy(self._settled(np.concatenate(starts), np.concatenate(nearest)))

        return score

    def _chunk_size(self, embeddings: Tensor, shots: int, query: Tensor | None, way: int) -> int:
        # Steps of many episodes together cost little more than of one, and their answers take little room.
        found = super()._chunk_size(embeddings, shots, query, way)
        return found if query is None else max(found, _TOGETHER)

    def _start(self, along: Along, squares: Floats, members: Floats) -> Floats:
        """Minus squared distances (E, C, Q) to class means by inner products alone, since these are sums of clips.

        `along` gives those of sums of support and queries, (E, K, S + Q), with all of these; `squares` (E, S + Q) are
        their squared lengths. Minus infinity for a class without support.
        """
        shots = members.shape[-1]
        counts = members.sum(axis=-1, keepdims=True)
        sums = np.zeros((*members.shape[:2], squares.shape[1]), np.float32)
        np.divide(members, np.maximum(counts, 1), out=sums[:, :, :shots])
        absent = np.where(counts == 0, np.float32(-np.inf), np.float32(0))
        if self.rectify:
            sums = _rectified(sums, absent, members, along, squares)
        means = along(sums)
        lengths = squares[:, None, shots:] + (means * sums).sum(axis=-1, keepdims=True)
        distances: Floats = np.maximum(lengths - 2 * means[:, :, shots:], 0)
        return absent - distances

    def _settled(self, start: Floats, nearest: Ints) -> Floats:
        """Logits (E, Q, C) after the repetitions of Algorithm 1, which begin at logits (E, C, Q)."""
        episodes, way, asked = start.shape
        # Class by class, in rows as long as all queries of all episodes, since there are few classes.
        start = np.ascontiguousarray(start.swapaxes(0, 1)).reshape(way, -1)
        others = (nearest + asked * np.arange(episodes)[:, None, None]).reshape(episodes * asked, -1).T
        logits, moving = start, np.ones(episodes, bool)
        answers, _ = _softmax(logits)
        pull, before = self._pull(answers, others), np.zeros(0, np.float32)
        for step in range(1, self.steps + 1):
            further = start + pull
            logits = further if moving.all() else np.where(moving.repeat(asked), further, logits)
            answers, norms = _softmax(logits)
            last, pull = pull, self._pull(answers, others)
            # With log y = a + last - norm the bound, that of y (log y - a - pull), needs no logarithm a class.
            bound = (answers * (last - pull)).sum(axis=0) - norms
            bound = bound.reshape(episodes, asked).sum(axis=1)
            if step > 2:
                moving &= np.abs(bound - before) > _REST * np.abs(before)
                if not moving.any():
                    break
            before = bound
        return np.ascontiguousarray(logits.reshape(way, episodes, asked).transpose(1, 2, 0))

    def _pull(self, answers: Floats, others: Ints) -> Floats:
        """λ times the sum of the answers (C, N) to the `others` (K, N) of each query."""
        # All indices are in range, which "clip" need not check.
        found = answers.take(others[0], axis=1, mode="clip")
        for rows in others[1:]:
            found += answers.take(rows, axis=1, mode="clip")
        found *= np.float32(self.regularization)
        return found


def _softmax(logits: Floats) -> tuple[Floats, Floats]:
    """Softmax of logits (C, N) over the classes, and the logarithm of what it divides by, (N,)."""
    largest = logits.max(axis=0)
    found = np.exp(logits - largest)
    total = found.sum(axis=0)
    found /= total
    return found, largest + np.log(total)


def _centre(products: Floats, members: Floats) -> None:
    """Turn inner products (E, N, N) of support and queries into those of vectors of unit length from the mean of class
    means, in place; the centre is a mean of clips, so that products with it are means of products."""
    shots = members.shape[-1]
    counts = members.sum(axis=-1, keepdims=True)
    shares = (members / np.maximum(counts, 1)).sum(axis=1) / (counts > 0).sum(axis=1).astype(np.float32)
    # By sums and not by BLAS, which adds up in another order for a single episode.
    along = (products[:, :, :shots] * shares[:, None]).sum(axis=-1, keepdims=True)
    length = (shares[..., None] * along[:, :shots]).sum(axis=1, keepdims=True)
    products -= along
    products -= along.swapaxes(1, 2)
    products += length
    scales = 1 / np.sqrt(np.maximum(np.diagonal(products, axis1=1, axis2=2), np.float32(_TINY)))
    products *= scales[..., None]
    products *= scales[:, None]


def _rectified(sums: Floats, absent: Floats, members: Floats, along: Along, squares: Floats) -> Floats:
    """Weights (E, C, S + Q) of support and queries in the class means, each query counted for its nearest class.

    Queries are shifted by the difference of both means first, which is a sum of clips too.
    """
    (episodes, way, shots), clips = members.shape, squares.shape[1]
    labelled = members.sum(axis=1)
    shift = np.full((episodes, 1, clips), -1 / (clips - shots), np.float32)
    shift[:, 0, :shots] = labelled / labelled.sum(axis=-1, keepdims=True)
    towards = along(np.concatenate([sums, shift], axis=1))
    means, moved = towards[:, :-1], towards[:, -1]
    length = (moved * shift[:, 0]).sum(axis=-1, keepdims=True)
    dots, squares = means.copy(), squares.copy()
    dots[:, :, shots:] += (means * shift).sum(axis=-1, keepdims=True)
    squares[:, shots:] += 2 * moved[:, shots:] + length
    lengths = squares[:, None] * (means * sums).sum(axis=-1, keepdims=True)
    cosines = dots / np.sqrt(np.maximum(lengths, np.float32(_TINY)))
    told = _largest(cosines[:, :, shots:] + absent)
    counted = np.exp(cosines)
    counted[:, :, :shots] *= members
    counted[:, :, shots:] *= told[:, None] == np.arange(way)[:, None]
    counted /= np.maximum(counted.sum(axis=-1, keepdims=True), np.float32(_TINY))
    # Every counted query brings the shift with it.
    found: Floats = counted + counted[:, :, shots:].sum(axis=-1, keepdims=True) * shift
    return found


def _largest(values: Floats) -> Ints:
    """``argmax`` over the axis 1 of a few, class by class, which numpy would go over value by value."""
    best, found = values[:, 0].copy(), np.zeros((len(values), values.shape[2]), np.int64)
    for number in range(1, values.shape[1]):
        found[values[:, number] > best] = number
        np.maximum(best, values[:, number], out=best)
    return found


def _nearest(products: Floats, squares: Floats, count: int, first: int = 0) -> Ints:
    """The `count` nearest others (E, B, count) of the queries from number `first`, by inner products (E, B, Q)."""
    nearness = 2 * products
    nearness -= squares[:, None]
    own = np.arange(products.shape[1])
    nearness[:, own, first + own] = -np.inf
    if count > _FEW:
        return np.argpartition(nearness, -count, axis=-1)[:, :, -count:]
    # For a few, one pass for each is faster than sorting.
    found = np.empty((*products.shape[:2], count), np.int64)
    flat = nearness.reshape(-1, nearness.shape[-1])
    for number in range(count):
        chosen = flat.argmax(axis=-1)
        flat[np.arange(len(flat)), chosen] = -np.inf
        found[:, :, number] = chosen.reshape(found.shape[:2])
    return found


def _nearest_of(queries: Floats, count: int) -> Ints:
    """As `_nearest`, of all queries (E, Q, D), some of them at a time."""
    episodes, asked, _ = queries.shape
    squares, turned = np.square(queries).sum(axis=-1), queries.swapaxes(1, 2)
    block = max(1, _PRODUCTS // (episodes * asked))
    starts = range(0, asked, block)
    parts = [_nearest(queries[:, low : low + block] @ turned, squares, count, low) for low in starts]
    return np.concatenate(parts, axis=1)
