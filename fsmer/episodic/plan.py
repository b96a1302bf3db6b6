"""Clips indexed for a K-shot sampler, from which any range of its episodes is drawn as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from fsmer.episodic.episode import Accept, Episode, Ints, Mask, Words
from fsmer.episodic.shuffles import CLASSES, FIRST_CLASS, POOLED, RETRY, SUBJECTS, child_keys, first_accepted, shuffled
from fsmer.errors import ProtocolError

if TYPE_CHECKING:
    from fsmer.episodic.samplers import KShotSampler

__all__ = ["EpisodeBatch", "EpisodePlan"]

# Clips drawn at once: few enough for the cache, enough to hide the overhead of calls.
_BLOCK = 1 << 16
# Tries to find a subject-disjoint episode before it is called impossible; the first are made for all episodes together.
_TRIES, _JOINT_TRIES, _TRIES_AT_ONCE = 2064, 16, 256
# Quarters of the subjects that go to the support side, tried in turn: an even deal, then a smaller and a larger one.
_SUPPORT_QUARTERS = (2, 1, 3)


@dataclass(frozen=True, eq=False)
class EpisodeBatch:
    """Several K-shot episodes as arrays.

    Attributes
    ----------
    start : int
        Number of the first episode.
    classes : ndarray of int64, shape (E, way)
        Class codes of each episode, ascending.
    support : ndarray of int64, shape (E, way * shot)
        Clip indices, class after class.
    query : ndarray of int64, shape (E, Q), or None
        Clip indices (class after class where balanced). None where the query is every remaining clip: then `query_mask`
        says which clips are asked, and nothing of the size of the clip set is stored.
    """

    start: int
    classes: Ints
    support: Ints
    query: Ints | None
    plan: EpisodePlan = field(repr=False)

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def way(self) -> int:
        """Classes an episode."""
        return self.classes.shape[1]

    @property
    def support_labels(self) -> Ints:
        """Position of each support clip's class among its episode's classes, shape (E, way * shot)."""
        shot = self.support.shape[1] // self.way
        return np.broadcast_to(np.repeat(np.arange(self.way), shot), self.support.shape)

    def labels(self, indices: Ints) -> Ints:
        """Position of each clip's class among its episode's classes, int64 of shape (E, K); -1 for other classes.

        `indices` are those of clips, int64 of shape (E, K), one row an episode, or (K,), the same for all.
        """
        # One column more than there are classes: code -1 of clips that are left out lands there.
        position = np.full((len(self), len(self.plan.names) + 1), -1, dtype=np.int64)
        np.put_along_axis(position, self.classes, np.arange(self.way, dtype=np.int64)[None, :], axis=1)
        codes = self.plan.codes[np.asarray(indices)]
        return position[:, codes] if codes.ndim == 1 else position[np.arange(len(self))[:, None], codes]

    def query_mask(self, columns: ArrayLike | None = None) -> Mask:
        """Which clips are queries of which episode, boolean of shape (E, M).

        `columns`, (M,), are the clips to answer for, all N by default; go through a large set in parts to bound memory.
        """
        plan = self.plan
        chosen = np.arange(len(plan.codes)) if columns is None else np.asarray(columns, dtype=np.int64)
        column = np.full(len(plan.codes), -1, dtype=np.int64)
        column[chosen] = np.arange(len(chosen))

        def mark(mask: Mask, clips: Ints, value: bool) -> Mask:
            rows, places = np.nonzero(column[clips] >= 0)
            mask[rows, column[clips[rows, places]]] = value
            return mask

        if self.query is not None:
            return mark(np.zeros((len(self), len(chosen)), dtype=bool), self.query, True)
        rows = np.arange(len(self))[:, None]
        # One column more than there are classes, for clips of code -1.
        asked = np.zeros((len(self), len(plan.names) + 1), dtype=bool)
        asked[rows, self.classes] = True
        mask = asked[:, plan.codes[chosen]]
        if plan.sampler.subject_disjoint and plan.subject_codes is not None:
            known = np.zeros((len(self), plan.subjects), dtype=bool)
            known[rows, plan.subject_codes[self.support]] = True
            return mask & ~known[:, plan.subject_codes[chosen]]
        return mark(mask, self.support, False)

    def __getitem__(self, index: int) -> Episode:
        """One of the episodes, with its query written out."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index} of a batch of {len(self)}.")
        i = index % len(self)
        one = EpisodeBatch(self.start + i, self.classes[i : i + 1], self.support[i : i + 1], None, self.plan)
        query = np.flatnonzero(one.query_mask()[0]) if self.query is None else self.query[i]
        names = tuple(self.plan.names[code] for code in self.classes[i])
        return Episode(self.support[i], query, names, f"episode {self.start + i}")


class EpisodePlan:
    """Clips indexed by class (and subject) for one sampler; `draw` makes any range of its endless list of episodes.

    Made by `KShotSampler.plan`.

    Attributes
    ----------
    sampler : KShotSampler
    names : tuple of str
        Class names, indexed by code.
    codes : ndarray of int64, shape (N,)
        Class of each clip; -1 for clips that no episode uses.
    candidates : ndarray of int64
        Codes of the classes that episodes draw from, ascending.
    counts : ndarray of int64
        Clips of each candidate class.
    way : int
        Classes an episode.
    """

    def __init__(
        self,
        sampler: KShotSampler,
        codes: ArrayLike,
        subject_codes: ArrayLike | None = None,
        *,
        names: Sequence[str] | None = None,
        order: ArrayLike | None = None,
    ) -> None:
        self.sampler = sampler
        given = _codes_of("codes", codes)
        highest = int(given.max(initial=-1))
        self.names: tuple[str, ...] = tuple(names) if names is not None else tuple(str(c) for c in range(highest + 1))
        if highest >= len(self.names):
            raise ProtocolError(f"a clip has class code {highest}, but there are only {len(self.names)} class names.")
        per_class = np.bincount(given[given >= 0], minlength=len(self.names))
        self.candidates = self._choose_candidates(per_class)
        self.counts: Ints = per_class[self.candidates]
        position = np.full(len(self.names) + 1, -1, dtype=np.int64)
        position[self.candidates] = np.arange(len(self.candidates))
        places = position[np.maximum(given, -1)]
        self.codes: Ints = np.where(places >= 0, given, -1)
        self.way = len(self.candidates) if sampler.way is None else int(sampler.way)

        self.subject_codes: Ints | None = None
        self.subjects = 0
        if subject_codes is not None:
            self.subject_codes = _codes_of("subject_codes", subject_codes, len(given))
            if self.subject_codes.min(initial=0) < 0:
                raise ProtocolError("subject_codes holds negative numbers; number the subjects from 0.")
            self.subjects = int(self.subject_codes.max(initial=-1)) + 1
        elif sampler.subject_disjoint:
            raise ProtocolError("subject_disjoint needs the subject of every clip; give subject_codes.")
        self._check()
        first = np.arange(len(given)) if order is None else _codes_of("order", order, len(given))
        ranked = places[first]
        if len(self.candidates) <= np.iinfo(np.int16).max:
            ranked = ranked.astype(np.int16)  # numpy sorts 16-bit integers by radix: linear time
        # Clips of all candidate classes, class after class.
        self._order: Ints = first[np.argsort(ranked, kind="stable")][len(given) - int(self.counts.sum()) :]
        self._starts: Ints = np.cumsum(self.counts) - self.counts
        if sampler.subject_disjoint:
            self._check_subjects()

    def __repr__(self) -> str:
        return f"EpisodePlan({self.sampler}, clips: {self._held})"

    @property
    def _held(self) -> str:
        return ", ".join(f"{self.names[c]} {n}" for c, n in zip(self.candidates, self.counts, strict=True))

    def draw(self, start: int, stop: int) -> EpisodeBatch:
        """Draw the episodes `start` to `stop` - 1; an episode is the same in whichever range it is drawn.

        A `ProtocolError` says that `start` is negative, or that there is no subject-disjoint episode of these subjects.
        """
        if not 0 <= start <= stop:
            raise ProtocolError(f"cannot draw episodes {start} to {stop}: numbers start at 0 and must not go down.")
        sampler, n = self.sampler, stop - start
        classes = np.empty((n, self.way), dtype=np.int64)
        support = np.empty((n, self.way * sampler.shot), dtype=np.int64)
        query = None if sampler.query == "rest" else np.empty((n, self._query_total), dtype=np.int64)
        step = max(1, _BLOCK // max(1, self.way * sampler.shot + self._query_total))
        root = child_keys(np.array([sampler.seed], dtype=np.uint64), 0)
        for low in range(0, n, step):
            rows = slice(low, min(low + step, n))
            keys = child_keys(root, np.arange(start + rows.start, start + rows.stop))
            places = self._draw_classes(keys)
            draw = self._draw_disjoint if sampler.subject_disjoint else self._draw_clips
            drawn, asked = draw(keys, places, start + low)
            classes[rows], support[rows] = self.candidates[places], drawn
            if query is not None and asked is not None:
                query[rows] = asked
        return EpisodeBatch(start, classes, support, query, self)

    def _choose_candidates(self, per_class: Ints) -> Ints:
        wanted = self.sampler.classes
        present = [name for name, count in zip(self.names, per_class, strict=True) if count]
        if not present:
            raise ProtocolError("there are no labelled clips to draw episodes from; give clips with labels.")
        if wanted is None:
            candidates = np.flatnonzero(per_class)
        else:
            absent = [name for name in wanted if name not in present]
            if absent:
                raise ProtocolError(f"no clip has the class {absent[0]!r}; the clips have {', '.join(present)}.")
            candidates = np.array(sorted(self.names.index(name) for name in wanted), dtype=np.int64)
        if len(candidates) < 2:
            raise ProtocolError(f"all clips have one class ({present[0]}); an episode needs at least two.")
        return candidates

    def _check(self) -> None:
        sampler = self.sampler
        held = self._held
        if self.way > len(self.candidates):
            raise ProtocolError(f"way={self.way} is too high for {len(self.candidates)} classes ({held}); lower it.")
        for code, count in zip(self.candidates.tolist(), self.counts.tolist(), strict=True):
            if count < sampler.shot + self._query_each:
                asked = f" and {self._query_each} for query" if self._query_each else ""
                raise ProtocolError(
                    f"class {self.names[code]!r} has {count} clip{'s' * (count != 1)}, but an episode needs "
                    f"{sampler.shot} for support{asked} (clips: {held}); lower shot or query, or leave that class out."
                )
        left = int(np.sort(self.counts)[: self.way].sum()) - self.way * sampler.shot
        if left < self._query_total:
            raise ProtocolError(
                f"a natural query of {self.way} x {sampler.query} clips needs more than {left} clips ({held})."
            )

    def _check_subjects(self) -> None:
        """Refuse a class of one subject, where support and query must hold that class from different subjects."""
        if not (self.sampler.shot and self._query_each):
            return
        owners = self._owners(self._order)
        alone = np.minimum.reduceat(owners, self._starts) == np.maximum.reduceat(owners, self._starts)
        if alone.any():
            place = int(alone.argmax())
            raise ProtocolError(
                f"all {self.counts[place]} clips of class {self.names[self.candidates[place]]!r} come from one "
                "subject, which cannot be on both sides; leave that class out or set subject_disjoint to false."
            )

    @property
    def _query_each(self) -> int:
        """Query clips that every class of an episode must be able to give."""
        if self.sampler.query == "rest":
            return 1
        return int(self.sampler.query) if self.sampler.balance == "class" else 0

    @property
    def _query_total(self) -> int:
        """Query clips that are drawn for an episode."""
        return 0 if self.sampler.query == "rest" else self.way * int(self.sampler.query)

    def _owners(self, clips: Ints) -> Ints:
        assert self.subject_codes is not None  # __init__ checks it
        return self.subject_codes[clips]

    # ---- drawing B episodes at once; arrays are (draws, columns), a column being a class of an episode or an episode

    def _draw_classes(self, keys: Words) -> Ints:
        """Positions among the candidates, ascending, shape (B, way)."""
        total = len(self.candidates)
        if self.way == total:
            return np.broadcast_to(np.arange(total), (len(keys), total))
        drawn = shuffled(child_keys(keys, CLASSES), np.full(len(keys), total), self.way)
        return np.sort(drawn.T, axis=1)

    def _draw_clips(self, keys: Words, places: Ints, start: int) -> tuple[Ints, Ints | None]:
        """Support (B, way * shot) and query (B, Q), without regard to subjects."""
        shot, episodes = self.sampler.shot, len(keys)
        balanced = self.sampler.query != "rest" and self.sampler.balance == "class"
        length = shot + (int(self.sampler.query) if balanced else 0)
        columns = child_keys(keys[:, None], places + FIRST_CLASS).ravel()
        ranks = shuffled(columns, self.counts[places].ravel(), length)
        clips = self._order[ranks.reshape(length, episodes, self.way) + self._starts[places]].transpose(1, 2, 0)
        support = clips[:, :, :shot].reshape(episodes, -1)
        if self.sampler.query == "rest":
            return support, None
        if balanced:
            return support, clips[:, :, shot:].reshape(episodes, -1)

        def outside_support(clips: Ints, columns: Ints) -> Mask:
            outside = np.ones(clips.shape, dtype=bool)
            for taken in support[columns].T:
                outside &= clips != taken
            return outside

        # There are enough: _check counted them.
        query, _ = self._draw_pooled(keys, places, outside_support)
        return support, query

    def _draw_disjoint(self, keys: Words, places: Ints, start: int) -> tuple[Ints, Ints | None]:
        """The same with every subject on one side only; tried anew where a side has too few clips."""
        pending = np.arange(len(keys))
        support = np.empty((len(keys), self.way * self.sampler.shot), dtype=np.int64)
        query = np.empty((len(keys), self._query_total), dtype=np.int64)
        # Together while most episodes are still found; then each of the others by many tries at once.
        for number in range(_JOINT_TRIES):
            drawn, asked, fits = self._deal_subjects(keys[pending], places[pending], np.full(len(pending), number))
            done = fits.all(axis=1)
            support[pending[done]] = drawn[done]
            query[pending[done]] = asked[done][:, : self._query_total]
            pending = pending[~done]
            if not len(pending):
                break
        for episode in pending.tolist():
            support[episode], asked = self._deal_alone(keys[episode : episode + 1], places[episode], start + episode)
            query[episode] = asked[: self._query_total]
        return support, None if self.sampler.query == "rest" else query

    def _deal_alone(self, key: Words, places: Ints, number: int) -> tuple[Ints, Ints]:
        """Support and query of one episode by the first try that succeeds."""
        lacking = np.zeros(self.way, dtype=np.int64)
        for low in range(_JOINT_TRIES, _TRIES, _TRIES_AT_ONCE):
            tries = np.arange(low, low + _TRIES_AT_ONCE)
            own = np.broadcast_to(key, tries.shape), np.broadcast_to(places, (len(tries), self.way))
            drawn, asked, fits = self._deal_subjects(*own, tries)
            done = fits.all(axis=1)
            if done.any():
                return drawn[done.argmax()], asked[done.argmax()]
            lacking += np.count_nonzero(~fits, axis=0)
        place = places[int(lacking.argmax())]
        raise ProtocolError(
            f"no subject-disjoint episode {number} was found in {_TRIES} tries, most often for lack of class "
            f"{self.names[self.candidates[place]]!r} ({self.counts[place]} clips) on one side; lower shot or query "
            "or set subject_disjoint to false."
        )

    def _deal_subjects(self, keys: Words, places: Ints, tries: Ints) -> tuple[Ints, Ints, Mask]:
        """Toss a coin for each subject of each episode and draw support and query from their sides.

        Returns support (B, way * shot), query (B, Q), and which classes (B, way) have enough clips on both sides.
        """
        keys = np.where(tries == 0, keys, child_keys(child_keys(keys, RETRY), tries))
        quarters = np.array(_SUPPORT_QUARTERS, dtype=np.uint64)[tries % len(_SUPPORT_QUARTERS)]
        sides = child_keys(keys, SUBJECTS)

        def in_support(clips: Ints, columns: Ints) -> Mask:
            coins = child_keys(sides[columns], self._owners(clips))
            return (coins >> np.uint64(62)) < quarters[columns]

        def in_query(clips: Ints, columns: Ints) -> Mask:
            return ~in_support(clips, columns)

        support, enough = self._draw_each(keys, places, self.sampler.shot, in_support)
        query, left = self._draw_each(keys, places, self._query_each, in_query)
        if self._query_total and self.sampler.balance == "natural":
            query, together = self._draw_pooled(keys, places, in_query)
            left = left & together[:, None]
        return support, query, enough & left

    def _draw_each(self, keys: Words, places: Ints, need: int, accept: Accept) -> tuple[Ints, Mask]:
        """The first `need` accepted clips of each class, (B, way * need), and where there are that many, (B, way)."""
        episodes = len(keys)
        starts = self._starts[places].ravel()
        episode = np.repeat(np.arange(episodes), self.way)

        def clips(ranks: Ints, columns: Ints) -> Ints:
            return self._order[ranks + starts[columns]]

        def accepted(ranks: Ints, columns: Ints) -> Mask:
            return accept(clips(ranks, columns), episode[columns])

        streams = child_keys(keys[:, None], places + FIRST_CLASS).ravel()
        ranks, enough = first_accepted(streams, self.counts[places].ravel(), need, accepted)
        drawn = clips(ranks, np.arange(len(starts))).reshape(need, episodes, self.way)
        return drawn.transpose(1, 2, 0).reshape(episodes, -1), enough.reshape(episodes, self.way)

    def _draw_pooled(self, keys: Words, places: Ints, accept: Accept) -> tuple[Ints, Mask]:
        """The first accepted clips of all the episode's classes together, (B, Q), and where there are that many."""
        ends = np.cumsum(self.counts[places], axis=1)
        # From a rank in the pool of chosen classes to a place among the sorted clips: the offset of the class it is in.
        offsets = self._starts[places] - (ends - self.counts[places])

        def clips(ranks: Ints, columns: Ints) -> Ints:
            offset = offsets[columns, 0]
            for w in range(1, self.way):
                offset = np.where(ranks >= ends[columns, w - 1], offsets[columns, w], offset)
            return self._order[ranks + offset]

        def accepted(ranks: Ints, columns: Ints) -> Mask:
            return accept(clips(ranks, columns), columns)

        ranks, enough = first_accepted(child_keys(keys, POOLED), ends[:, -1], self._query_total, accepted)
        return clips(ranks, np.arange(len(keys))).T, enough


def _codes_of(name: str, values: ArrayLike, length: int | None = None) -> Ints:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ProtocolError(f"{name} must be a one-dimensional list of whole numbers, not {array.dtype} {array.shape}.")
    if length is not None and len(array) != length:
        raise ProtocolError(f"{name} has {len(array)} entries for {length} clips; give one for each clip.")
    return array.astype(np.int64, copy=False)
