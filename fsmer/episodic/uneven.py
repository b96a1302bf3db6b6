"""Queries whose classes are not equally frequent: shares of a Dirichlet distribution, by integers alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fsmer.episodic.episode import Ints, Words
from fsmer.episodic.plan import EpisodeBatch, EpisodePlan
from fsmer.episodic.samplers import KShotSampler
from fsmer.episodic.shuffles import SHARES, child_keys

__all__ = ["UnevenPlan", "uneven_counts"]


def uneven_counts(keys: Words, way: int, total: int, shares: int) -> Ints:
    """How many of `total` query clips each class gets, int64 (T, way), for the streams `keys`, (T,).

    The shares are drawn from a Dirichlet distribution whose parameters all are `shares`, as sums of so many spacings
    between sorted uniform numbers, and rounded so that the largest remainders go up. A class may get no clip.
    """
    cuts = np.sort(child_keys(keys[:, None], np.arange(way * shares - 1)) >> np.uint64(32), axis=1).astype(np.int64)
    whole = np.int64(1) << 32
    edges = np.concatenate([np.zeros((len(keys), 1), np.int64), cuts[:, shares - 1 :: shares]], axis=1)
    parts = np.diff(edges, axis=1, append=whole) * total
    counts, remainders = parts // whole, parts % whole
    missing = total - counts.sum(axis=1)
    ranks = np.argsort(np.argsort(-remainders, axis=1, kind="stable"), axis=1, kind="stable")
    return counts + (ranks < missing[:, None])


class UnevenPlan(EpisodePlan):
    """`EpisodePlan` whose ``way * query`` query clips are dealt to the classes of an episode by `uneven_counts`.

    The sampler has a way and a counted query; `shares` is that of `uneven_counts`.
    """

    def __init__(self, sampler: KShotSampler, *arguments: Any, shares: int, **named: Any) -> None:
        self._shares = shares
        # One class may get all of the query, and its clips are outside the support then, too.
        self._asked = int(sampler.way or 0) * int(sampler.query)
        super().__init__(replace(sampler, query=self._asked), *arguments, **named)

    def draw(self, start: int, stop: int) -> EpisodeBatch:
        drawn = super().draw(start, stop)
        assert drawn.query is not None  # the sampler counts queries
        root = child_keys(np.array([self.sampler.seed], dtype=np.uint64), 0)
        keys = child_keys(child_keys(root, np.arange(start, stop)), SHARES)
        counts = uneven_counts(keys, self.way, self._asked, self._shares)
        taken = np.arange(self._asked) < counts[:, :, None]
        query = drawn.query[taken.reshape(len(drawn), -1)].reshape(len(drawn), self._asked)
        return replace(drawn, query=query)
