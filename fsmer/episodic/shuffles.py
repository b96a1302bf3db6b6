"""Random orders from a seed: the same on every machine and with every version of NumPy.

Random numbers come from a tree of SplitMix64 generators (Steele, Lea, Flood 2014) in plain 64-bit integer arithmetic:
the seed gives one key an episode, the episode's key one key a stream (one for its classes, one for each class's clips,
...), and the stream's key the words. So an episode depends on the seed and on its own number alone, not on how many
others are drawn with it, and no change of `numpy.random` can move it.

A draw without replacement is the head of a Fisher-Yates shuffle. It touches only the drawn positions, so its cost does
not depend on the number of clips, and a longer draw begins with the shorter one: the support of an episode is the same
whatever the number of queries, and the 1-shot support is part of the 5-shot support (subject-disjoint episodes apart).
"""

import numpy as np
from numpy.typing import ArrayLike

from fsmer.episodic.episode import Accept, Ints, Mask, Words

__all__ = ["query_orders", "random_order"]

_GAMMA = 0x9E3779B97F4A7C15  # the increment of SplitMix64
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
# Streams of an episode. Numbers are part of the frozen definition: never reuse one for something else.
CLASSES, POOLED, SUBJECTS, RETRY, QUERY_ORDER, SHARES, TASK, FIRST_CLASS = 0, 1, 2, 3, 4, 5, 6, 8
# Above this many draws a real array is shuffled where it is not much longer than the bookkeeping of the sparse shuffle.
_SPARSE_DRAWS = 64
# Entries of the largest temporary arrays.
_BUDGET = 1 << 22


def _mix(words: Words) -> Words:
    """Finaliser of SplitMix64, in place."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(_MIX_1)
    words ^= words >> np.uint64(27)
    words *= np.uint64(_MIX_2)
    words ^= words >> np.uint64(31)
    return words


def child_keys(keys: Words, indices: ArrayLike) -> Words:
    """Output number `indices` (from 0) of the SplitMix64 generators with the states `keys`; shapes broadcast."""
    # Arrays throughout: numpy warns when a scalar wraps around, which is what is meant here.
    steps = (np.atleast_1d(np.asarray(indices)).astype(np.uint64) + np.uint64(1)) * np.uint64(_GAMMA)
    return _mix(keys + steps)


def below(words: Words, bounds: Ints) -> Ints:
    """Map words to 0..bounds-1 by the high half of their product (bounds below 2**31; bias below bounds / 2**64)."""
    wide = bounds.astype(np.uint64)
    low = ((words & np.uint64(0xFFFFFFFF)) * wide) >> np.uint64(32)
    return (((words >> np.uint64(32)) * wide + low) >> np.uint64(32)).astype(np.int64)


def shuffled(keys: Words, bounds: Ints, count: int) -> Ints:
    """Heads of Fisher-Yates shuffles of ``range(bound)``, one a column: int64 of shape (count, B).

    `keys` are the streams, uint64 of shape (B,), and `bounds` the lengths, int64 of shape (B,). Where one is shorter
    than `count`, the surplus rows of its column mean nothing.
    """
    if count == 0 or not len(keys):
        return np.empty((count, len(keys)), dtype=np.int64)
    steps = np.arange(count, dtype=np.int64)[:, None]
    targets = below(child_keys(keys[None, :], steps), np.maximum(bounds[None, :] - steps, 1)) + steps
    length = max(count, int(bounds.max()))
    if count > _SPARSE_DRAWS and length <= count * count:
        return _swap_dense(targets, length)
    return _swap_sparse(targets)


def random_order(seed: int, index: int, length: int, attempt: int = 0) -> Ints:
    """Order number `index` of ``range(length)`` for a seed, made like everything here; `attempt` gives further ones."""
    key = child_keys(child_keys(np.array([seed], dtype=np.uint64), 0), index)
    if attempt:
        key = child_keys(child_keys(key, RETRY), attempt)
    return shuffled(child_keys(key, SUBJECTS), np.array([length]), length)[:, 0]


def query_orders(seed: int, numbers: ArrayLike, length: int) -> Ints:
    """Orders in which the queries of some episodes are handed over, drawn for each: int64 of shape (E, length).

    Episodes list their queries class by class or in the order of the table, and so a recognizer could answer by row
    number. `seed` is that of the episodes, `numbers` says which of them, `length` how many queries each has.
    """
    keys = child_keys(child_keys(np.array([seed], dtype=np.uint64), 0), numbers)
    return shuffled(child_keys(keys, QUERY_ORDER), np.full(len(keys), length), length).T


def _swap_sparse(targets: Ints) -> Ints:
    """Shuffle without the array: only displaced positions are kept, so the cost does not depend on its length."""
    count, columns = targets.shape
    # Row i says: position where[i] holds what[i]. A position is listed once; an unlisted one holds its own number.
    where = np.empty((count, columns), dtype=np.int32)
    what = np.empty((count, columns), dtype=np.int32)
    drawn = targets.copy()
    for j, target in enumerate(targets.astype(np.int32)):
        moved = np.full(columns, j, dtype=np.int32)
        rows, hits = np.nonzero(where[:j] == np.int32(j))
        moved[hits] = what[rows, hits]
        where[j], what[j] = target, moved
        rows, hits = np.nonzero(where[:j] == target)
        drawn[j, hits] = what[rows, hits]
        what[rows, hits] = moved[hits]
        where[j, hits] = -1
    return drawn


def _swap_dense(targets: Ints, length: int) -> Ints:
    """Shuffle real arrays of this length, a bounded number of columns at a time."""
    drawn = np.empty_like(targets)
    step = max(1, _BUDGET // length)
    for low in range(0, targets.shape[1], step):
        part = targets[:, low : low + step]
        columns = np.arange(part.shape[1])
        array = np.tile(np.arange(length, dtype=np.int32), (len(columns), 1))
        for j, target in enumerate(part):
            drawn[j, low : low + step] = array[columns, target]
            array[columns, target] = array[:, j]
    return drawn


def first_accepted(keys: Words, bounds: Ints, need: int, accept: Accept) -> tuple[Ints, Mask]:
    """Shuffle ``range(bound)`` in each column and take the first `need` ranks that `accept` takes.

    Returns the ranks, int64 of shape (need, B) with zeros in columns that have too few, and which have enough, shape
    (B,).
    """
    taken = np.zeros((need, len(keys)), dtype=np.int64)
    enough = np.zeros(len(keys), dtype=bool)
    if not need:
        return taken, ~enough
    head = 2 * need + 8
    pending = np.arange(len(keys))
    while len(pending):
        step = max(1, _BUDGET // head)  # heads may grow long where few clips are accepted
        for low in range(0, len(pending), step):
            part = pending[low : low + step]
            length = min(head, int(bounds[part].max()))
            ranks = np.minimum(shuffled(keys[part], bounds[part], length), bounds[part] - 1)
            good = accept(ranks, part) & (np.arange(length)[:, None] < bounds[part])
            fits = np.count_nonzero(good, axis=0) >= need
            first = np.argsort(~good[:, fits], axis=0, kind="stable")[:need]
            taken[:, part[fits]] = np.take_along_axis(ranks[:, fits], first, axis=0)
            enough[part[fits]] = True
        pending = pending[~enough[pending] & (bounds[pending] > head)]
        head *= 4
    return taken, enough
