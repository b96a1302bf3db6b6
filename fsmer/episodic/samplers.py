"""K-shot episodes drawn many at a time: the same seed gives the same episodes on every machine and with every numpy.

Random numbers come from a tree of SplitMix64 generators (Steele, Lea, Flood 2014) in plain 64-bit integer arithmetic:
the seed gives one key an episode, the episode's key one key a stream (one for its classes, one for each class's clips,
...), and the stream's key the words. So an episode depends on the seed and on its own number alone, not on how many
others are drawn with it, and no change of `numpy.random` can move it.

A draw without replacement is the head of a Fisher-Yates shuffle. It touches only the drawn positions, so its cost does
not depend on the number of clips, and a longer draw begins with the shorter one: the support of an episode is the same
whatever the number of queries, and the 1-shot support is part of the 5-shot support (subject-disjoint episodes apart).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.episodic.episode import Episode
from fsmer.errors import ProtocolError

__all__ = ["EpisodeBatch", "EpisodePlan", "KShotSampler", "query_orders", "random_order"]

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Words = NDArray[np.uint64]
# Whether clips (or ranks), shape (draws, columns), may be drawn in those columns (second argument: their numbers).
Accept = Callable[[Ints, Ints], Mask]

_MASK = 0xFFFFFFFFFFFFFFFF
_GAMMA = 0x9E3779B97F4A7C15  # the increment of SplitMix64
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB

# Streams of an episode. Numbers are part of the frozen definition: never reuse one for something else.
_CLASSES, _NATURAL_QUERY, _SUBJECTS, _RETRY, _QUERY_ORDER, _FIRST_CLASS = 0, 1, 2, 3, 4, 8

# Clips drawn at once: few enough for the cache, enough to hide the overhead of calls.
_BLOCK = 1 << 16
# Above this many draws a real array is shuffled where it is not much longer than the bookkeeping of the sparse shuffle.
_SPARSE_DRAWS = 64
# Entries of the largest temporary arrays.
_BUDGET = 1 << 22
# Tries to find a subject-disjoint episode before it is called impossible; the first are made for all episodes together.
_TRIES, _JOINT_TRIES, _TRIES_AT_ONCE = 2064, 16, 256
# Quarters of the subjects that go to the support side, tried in turn: an even deal, then a smaller and a larger one.
_SUPPORT_QUARTERS = (2, 1, 3)


@dataclass(frozen=True)
class KShotSampler:
    """Draws K-shot episodes: `way` classes, `shot` support clips of each, and query clips outside the support.

    Parameters
    ----------
    way : int or None
        Classes an episode, drawn anew for each; None takes all of them.
    shot : int
        Support clips of each class (K). 0 gives empty supports.
    query : int or "rest"
        Query clips of each class, or every remaining clip of the episode's classes (what MERAU calls D_test).
    balance : {"class", "natural"}
        How a counted query is spread: `query` clips of each class, or ``way * query`` clips drawn from all that remain,
        so that frequent classes are asked for more often. The support always has `shot` clips of each class. With
        ``query="rest"`` nothing is drawn and the setting has no effect.
    subject_disjoint : bool
        No subject has clips in both support and query. For each episode a coin deals every subject to one of the sides,
        and the clips are drawn from theirs; with ``query="rest"`` the query is every clip of the subjects that the
        support does not hold.
    classes : tuple of str or None
        Fixed subset of classes to draw from; None takes every class that has clips.
    seed : int
        From 0 to 2**64 - 1. One seed, one list of episodes.

    Raises
    ------
    ProtocolError
        A setting is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> sampler = KShotSampler(way=2, shot=1, query=2, seed=7)
    >>> batch = sampler.draw(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 3)
    >>> batch.support.shape, batch.query.shape
    ((3, 2), (3, 4))
    """

    way: int | None = None
    shot: int = 5
    query: int | Literal["rest"] = "rest"
    balance: Literal["class", "natural"] = "class"
    subject_disjoint: bool = False
    classes: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))
            twice = [name for name, count in Counter(self.classes).items() if count > 1]
            if twice:
                raise ProtocolError(f"classes names {twice[0]!r} more than once; name each class once.")
            if len(self.classes) < 2:
                raise ProtocolError(f"classes={self.classes!r}: an episode needs at least two classes to tell apart.")
        if self.way is not None:
            _check_count("way", self.way, 2)
            if self.classes is not None and self.way > len(self.classes):
                raise ProtocolError(
                    f"way={self.way} asks for more classes than the {len(self.classes)} named ones "
                    f"({', '.join(self.classes)}); lower way or name more classes."
                )
        _check_count("shot", self.shot, 0)
        if self.query != "rest":
            if isinstance(self.query, str):
                raise ProtocolError(f"query={self.query!r} is not understood; give clips per class or 'rest'.")
            _check_count("query", self.query, 1)
        if self.balance not in ("class", "natural"):
            raise ProtocolError(f"balance={self.balance!r} is not understood; choose 'class' or 'natural'.")
        if not isinstance(self.subject_disjoint, bool):
            raise ProtocolError(f"subject_disjoint={self.subject_disjoint!r} is not understood; choose true or false.")
        _check_count("seed", self.seed, 0, _MASK)

    def plan(
        self,
        codes: ArrayLike,
        subject_codes: ArrayLike | None = None,
        *,
        names: Sequence[str] | None = None,
        order: ArrayLike | None = None,
    ) -> EpisodePlan:
        """Index the clips once, so that any number of episodes can be drawn from them.

        Parameters
        ----------
        codes : array of int, shape (N,)
            Class of each clip as an index into `names`; negative for clips to leave out.
        subject_codes : array of int, shape (N,), optional
            Subject of each clip (needed for `subject_disjoint`).
        names : sequence of str, optional
            Class names; without them classes are called by their code.
        order : array of int, shape (N,), optional
            Order in which to take the clips, so that episodes need not depend on the row order (protocols take the
            clips by id).

        Raises
        ------
        ProtocolError
            The clips cannot give such episodes; the message names the class and its count.
        """
        return EpisodePlan(self, codes, subject_codes, names=names, order=order)

    def draw(
        self,
        codes: ArrayLike,
        n_episodes: int,
        subject_codes: ArrayLike | None = None,
        *,
        names: Sequence[str] | None = None,
        start: int = 0,
    ) -> EpisodeBatch:
        """Draw the episodes ``start`` to ``start + n_episodes - 1`` from clips with these class codes (see `plan`)."""
        return self.plan(codes, subject_codes, names=names).draw(start, start + n_episodes)


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
        """Position of each clip's class among its episode's classes; -1 for clips of other classes.

        Parameters
        ----------
        indices : ndarray of int64, shape (E, K) or (K,)
            Clip indices, one row an episode or the same for all.

        Returns
        -------
        ndarray of int64, shape (E, K)
        """
        # One column more than there are classes: code -1 of clips that are left out lands there.
        position = np.full((len(self), len(self.plan.names) + 1), -1, dtype=np.int64)
        np.put_along_axis(position, self.classes, np.arange(self.way, dtype=np.int64)[None, :], axis=1)
        codes = self.plan.codes[np.asarray(indices)]
        if codes.ndim == 1:
            return position[:, codes]
        return np.take_along_axis(position, codes % position.shape[1], axis=1)

    def query_mask(self, columns: ArrayLike | None = None) -> Mask:
        """Which clips are queries of which episode.

        Parameters
        ----------
        columns : array of int, shape (M,), optional
            Clips to answer for, all N by default; go through a large set in parts to bound memory.

        Returns
        -------
        ndarray of bool, shape (E, M)
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
        if self.query is None:
            one = EpisodeBatch(self.start + i, self.classes[i : i + 1], self.support[i : i + 1], None, self.plan)
            query = np.flatnonzero(one.query_mask()[0])
        else:
            query = self.query[i]
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
        given = _as_codes("codes", codes)
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
            self.subject_codes = _as_codes("subject_codes", subject_codes, len(given))
            if self.subject_codes.min(initial=0) < 0:
                raise ProtocolError("subject_codes holds negative numbers; number the subjects from 0.")
            self.subjects = int(self.subject_codes.max(initial=-1)) + 1
        elif sampler.subject_disjoint:
            raise ProtocolError("subject_disjoint needs the subject of every clip; give subject_codes.")
        self._check()
        first = np.arange(len(given)) if order is None else _as_codes("order", order, len(given))
        ranked = places[first]
        if len(self.candidates) <= np.iinfo(np.int16).max:
            ranked = ranked.astype(np.int16)  # numpy sorts 16-bit integers by radix: linear time
        # Clips of all candidate classes, class after class.
        self._order: Ints = first[np.argsort(ranked, kind="stable")][len(given) - int(self.counts.sum()) :]
        self._starts: Ints = np.cumsum(self.counts) - self.counts
        if sampler.subject_disjoint:
            self._check_subjects()

    def __repr__(self) -> str:
        held = ", ".join(f"{self.names[c]} {n}" for c, n in zip(self.candidates, self.counts, strict=True))
        return f"EpisodePlan({self.sampler}, clips: {held})"

    def draw(self, start: int, stop: int) -> EpisodeBatch:
        """Draw the episodes `start` to `stop` - 1; an episode is the same in whichever range it is drawn.

        Raises
        ------
        ProtocolError
            `start` is negative, or subjects are spread so that a subject-disjoint episode cannot be found.
        """
        if not 0 <= start <= stop:
            raise ProtocolError(f"cannot draw episodes {start} to {stop}: numbers start at 0 and must not go down.")
        sampler, n = self.sampler, stop - start
        classes = np.empty((n, self.way), dtype=np.int64)
        support = np.empty((n, self.way * sampler.shot), dtype=np.int64)
        query = None if sampler.query == "rest" else np.empty((n, self._query_total), dtype=np.int64)
        step = max(1, _BLOCK // max(1, self.way * sampler.shot + self._query_total))
        root = _children(np.array([sampler.seed], dtype=np.uint64), 0)
        for low in range(0, n, step):
            rows = slice(low, min(low + step, n))
            keys = _children(root, np.arange(start + rows.start, start + rows.stop))
            places = self._draw_classes(keys)
            if sampler.subject_disjoint:
                drawn, asked = self._draw_disjoint(keys, places, start + low)
            else:
                drawn, asked = self._draw_clips(keys, places)
            classes[rows], support[rows] = self.candidates[places], drawn
            if query is not None and asked is not None:
                query[rows] = asked
        return EpisodeBatch(start, classes, support, query, self)

    # ---- checks and indexing, once

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
            raise ProtocolError(
                f"all clips have one class ({present[0]}); an episode needs at least two to tell apart."
            )
        return candidates

    def _check(self) -> None:
        sampler = self.sampler
        held = ", ".join(f"{self.names[c]} {n}" for c, n in zip(self.candidates, self.counts, strict=True))
        if self.way > len(self.candidates):
            raise ProtocolError(
                f"way={self.way} asks for more classes than the {len(self.candidates)} that the clips have ({held}); "
                "lower way or add clips of other classes."
            )
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
                f"a natural query of {self.way} x {sampler.query} clips is asked for, but the support may leave only "
                f"{left} (clips: {held}); lower shot or query."
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
                "subject, so support and query cannot have different subjects; leave that class out or set "
                "subject_disjoint to false."
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
        if self.subject_codes is None:
            raise ProtocolError("subject_disjoint needs the subject of every clip; give subject_codes.")
        return self.subject_codes[clips]

    # ---- drawing B episodes at once; arrays are (draws, columns), a column being a class of an episode or an episode

    def _draw_classes(self, keys: Words) -> Ints:
        """Positions among the candidates, ascending, shape (B, way)."""
        total = len(self.candidates)
        if self.way == total:
            return np.broadcast_to(np.arange(total), (len(keys), total))
        drawn = _shuffled(_children(keys, _CLASSES), np.full(len(keys), total), self.way)
        return np.sort(drawn.T, axis=1)

    def _draw_clips(self, keys: Words, places: Ints) -> tuple[Ints, Ints | None]:
        """Support (B, way * shot) and query (B, Q), without regard to subjects."""
        shot, episodes = self.sampler.shot, len(keys)
        balanced = self.sampler.query != "rest" and self.sampler.balance == "class"
        length = shot + (int(self.sampler.query) if balanced else 0)
        columns = _children(keys[:, None], places + _FIRST_CLASS).ravel()
        ranks = _shuffled(columns, self.counts[places].ravel(), length)
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
        sampler, episodes = self.sampler, len(keys)
        support = np.empty((episodes, self.way * sampler.shot), dtype=np.int64)
        query = None if sampler.query == "rest" else np.empty((episodes, self._query_total), dtype=np.int64)
        pending = np.arange(episodes)
        # Together while most episodes are still found; then each of the others by many tries at once.
        for number in range(_JOINT_TRIES):
            drawn, asked, fits = self._deal_subjects(keys[pending], places[pending], np.full(len(pending), number))
            done = fits.all(axis=1)
            support[pending[done]] = drawn[done]
            if query is not None:
                query[pending[done]] = asked[done]
            pending = pending[~done]
            if not len(pending):
                return support, query
        for episode in pending.tolist():
            drawn, asked = self._deal_alone(keys[episode : episode + 1], places[episode], start + episode)
            support[episode] = drawn
            if query is not None:
                query[episode] = asked
        return support, query

    def _deal_alone(self, key: Words, places: Ints, number: int) -> tuple[Ints, Ints]:
        """Support and query of one episode by the first try that succeeds."""
        lacking = np.zeros(self.way, dtype=np.int64)
        for low in range(_JOINT_TRIES, _TRIES, _TRIES_AT_ONCE):
            tries = np.arange(low, low + _TRIES_AT_ONCE)
            drawn, asked, fits = self._deal_subjects(
                np.broadcast_to(key, tries.shape), np.broadcast_to(places, (len(tries), self.way)), tries
            )
            done = fits.all(axis=1)
            if done.any():
                return drawn[done.argmax()], asked[done.argmax()]
            lacking += np.count_nonzero(~fits, axis=0)
        place = places[int(lacking.argmax())]
        raise ProtocolError(
            f"no subject-disjoint episode {number} was found in {_TRIES} tries: the subjects could not be dealt to two "
            f"sides, {self.sampler.shot} support clips of each class on one and the query on the other, most often for "
            f"lack of class {self.names[self.candidates[place]]!r} ({self.counts[place]} clips); lower shot or query "
            "or set subject_disjoint to false."
        )

    def _deal_subjects(self, keys: Words, places: Ints, tries: Ints) -> tuple[Ints, Ints, Mask]:
        """Toss a coin for each subject of each episode and draw support and query from their sides.

        Returns support (B, way * shot), query (B, Q), and which classes (B, way) have enough clips on both sides.
        """
        keys = np.where(tries == 0, keys, _children(_children(keys, _RETRY), tries))
        quarters = np.array(_SUPPORT_QUARTERS, dtype=np.uint64)[tries % len(_SUPPORT_QUARTERS)]
        sides = _children(keys, _SUBJECTS)

        def learns(clips: Ints, columns: Ints) -> Mask:
            coins = _children(sides[columns], self._owners(clips))
            return (coins >> np.uint64(62)) < quarters[columns]

        def asked(clips: Ints, columns: Ints) -> Mask:
            return ~learns(clips, columns)

        support, enough = self._draw_each(keys, places, self.sampler.shot, learns)
        query, left = self._draw_each(keys, places, self._query_each, asked)
        if self._query_total and self.sampler.balance == "natural":
            query, together = self._draw_pooled(keys, places, asked)
            left = left & together[:, None]
        return support, query, enough & left

    def _draw_each(self, keys: Words, places: Ints, need: int, accept: Accept) -> tuple[Ints, Mask]:
        """The first `need` accepted clips of each class, (B, way * need), and where there are that many, (B, way)."""
        episodes = len(keys)
        starts = self._starts[places].ravel()
        episode = np.repeat(np.arange(episodes), self.way)

        def clips(ranks: Ints, columns: Ints) -> Ints:
            return self._order[ranks + starts[columns]]

        ranks, enough = _first_accepted(
            _children(keys[:, None], places + _FIRST_CLASS).ravel(),
            self.counts[places].ravel(),
            need,
            lambda ranks, columns: accept(clips(ranks, columns), episode[columns]),
        )
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

        ranks, enough = _first_accepted(
            _children(keys, _NATURAL_QUERY),
            ends[:, -1],
            self._query_total,
            lambda ranks, columns: accept(clips(ranks, columns), columns),
        )
        return clips(ranks, np.arange(len(keys))).T, enough


# ---- random numbers


def _mix(words: Words) -> Words:
    """Finaliser of SplitMix64, in place."""
    words ^= words >> np.uint64(30)
    words *= np.uint64(_MIX_1)
    words ^= words >> np.uint64(27)
    words *= np.uint64(_MIX_2)
    words ^= words >> np.uint64(31)
    return words


def _children(keys: Words, indices: ArrayLike) -> Words:
    """Output number `indices` (from 0) of the SplitMix64 generators with the states `keys`; shapes broadcast."""
    # Arrays throughout: numpy warns when a scalar wraps around, which is what is meant here.
    steps = (np.atleast_1d(np.asarray(indices)).astype(np.uint64) + np.uint64(1)) * np.uint64(_GAMMA)
    return _mix(keys + steps)


def _below(words: Words, bounds: Ints) -> Ints:
    """Map words to 0..bounds-1 by the high half of their product (bounds below 2**31; bias below bounds / 2**64)."""
    wide = bounds.astype(np.uint64)
    low = ((words & np.uint64(0xFFFFFFFF)) * wide) >> np.uint64(32)
    return (((words >> np.uint64(32)) * wide + low) >> np.uint64(32)).astype(np.int64)


def _shuffled(keys: Words, bounds: Ints, count: int) -> Ints:
    """Heads of Fisher-Yates shuffles of ``range(bound)``, one a column.

    Parameters
    ----------
    keys : ndarray of uint64, shape (B,)
        One stream a column.
    bounds : ndarray of int64, shape (B,)
        Lengths of the shuffled ranges. Where one is shorter than `count`, the surplus rows of its column mean nothing.
    count : int

    Returns
    -------
    ndarray of int64, shape (count, B)
    """
    if count == 0 or not len(keys):
        return np.empty((count, len(keys)), dtype=np.int64)
    steps = np.arange(count, dtype=np.int64)[:, None]
    targets = _below(_children(keys[None, :], steps), np.maximum(bounds[None, :] - steps, 1)) + steps
    length = max(count, int(bounds.max()))
    if count > _SPARSE_DRAWS and length <= count * count:
        return _swap_dense(targets, length)
    return _swap_sparse(targets)


def random_order(seed: int, index: int, length: int, attempt: int = 0) -> Ints:
    """Order number `index` of ``range(length)`` for a seed, made like everything here; `attempt` gives further ones."""
    key = _children(_children(np.array([seed], dtype=np.uint64), 0), index)
    if attempt:
        key = _children(_children(key, _RETRY), attempt)
    return _shuffled(_children(key, _SUBJECTS), np.array([length]), length)[:, 0]


def query_orders(seed: int, numbers: ArrayLike, length: int) -> Ints:
    """Orders in which the queries of some episodes of `length` queries are handed over, drawn for each episode.

    Episodes list their queries class by class or in the order of the table, and so a recognizer could answer by row
    number.

    Parameters
    ----------
    seed : int
        Of the episodes.
    numbers : array of int, shape (E,)
        Which episodes.
    length : int
        Queries of each.

    Returns
    -------
    ndarray of int64, shape (E, length)
    """
    keys = _children(_children(np.array([seed], dtype=np.uint64), 0), numbers)
    return _shuffled(_children(keys, _QUERY_ORDER), np.full(len(keys), length), length).T


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


def _first_accepted(keys: Words, bounds: Ints, need: int, accept: Accept) -> tuple[Ints, Mask]:
    """Shuffle ``range(bound)`` in each column and take the first `need` ranks that `accept` takes.

    Returns
    -------
    ranks : ndarray of int64, shape (need, B)
        Zeros in columns that have too few.
    enough : ndarray of bool, shape (B,)
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
            ranks = np.minimum(_shuffled(keys[part], bounds[part], length), bounds[part] - 1)
            good = accept(ranks, part) & (np.arange(length)[:, None] < bounds[part])
            fits = np.count_nonzero(good, axis=0) >= need
            first = np.argsort(~good[:, fits], axis=0, kind="stable")[:need]
            taken[:, part[fits]] = np.take_along_axis(ranks[:, fits], first, axis=0)
            enough[part[fits]] = True
        pending = pending[~enough[pending] & (bounds[pending] > head)]
        head *= 4
    return taken, enough


# ---- small checks


def _check_count(name: str, value: Any, low: int, high: int | None = None) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        most = f" and at most {high}" if high is not None else ""
        raise ProtocolError(f"{name}={value!r} is not possible; give a whole number of at least {low}{most}.")


def _as_codes(name: str, values: ArrayLike, length: int | None = None) -> Ints:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise ProtocolError(
            f"{name} must be a one-dimensional array of whole numbers, not {array.dtype} {array.shape}."
        )
    if length is not None and len(array) != length:
        raise ProtocolError(f"{name} has {len(array)} entries for {length} clips; give one for each clip.")
    return array.astype(np.int64, copy=False)
