"""All episodes of a protocol over one clip set."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from fsmer.episodic.checks import check_whole
from fsmer.episodic.episode import Episode, Ints, Mask
from fsmer.episodic.plan import EpisodeBatch, EpisodePlan
from fsmer.episodic.sides import NO_NEIGHBOUR, clips_per_unit
from fsmer.errors import ProtocolError
from fsmer.outside import outside_call

__all__ = ["Episodes", "FoldEpisodes", "KShotEpisodes", "with_neighbours"]

Sides = Callable[[int], tuple[Mask, Mask]]


def with_neighbours(rows: Ints, parents: Ints) -> Ints:
    """The clips of their own among `rows`, with all their neighbour frames; `parents` as `neighbour_parents` gives."""
    held = np.zeros(len(parents), dtype=bool)
    held[rows[parents[rows] == NO_NEIGHBOUR]] = True
    return np.flatnonzero(held | ((parents >= 0) & held[np.maximum(parents, 0)]))


class Episodes(Sequence[Episode], ABC):
    """The episodes of a protocol on a clip set: a sequence of known length whose items are made when asked for.

    It can be iterated again and again and always gives the same episodes.

    Attributes
    ----------
    classes : tuple of str
        Every class that occurs in some episode, in the order of `codes`.
    codes : ndarray of int64, shape (N,)
        For each clip the index of its label in `classes`; -1 for clips that are in no support and no query.
    source : ndarray of int64 or None
        The source clips, the same for every episode (source-then-target protocols).
    uniform : bool
        Whether all episodes have supports of one shape, so that `batches` gives many of them as one array.
    parents : ndarray of int64, shape (N,), or None
        Where neighbour frames are learnt from: for each the row of its clip, negative for all other clips. They join
        their clip in a support and are in no query.
    """

    classes: tuple[str, ...]
    codes: Ints
    source: Ints | None = None
    uniform: bool = False
    parents: Ints | None = None

    @abstractmethod
    def _make(self, index: int) -> Episode:
        """Make the episode of a valid, non-negative index."""

    @overload
    def __getitem__(self, index: int) -> Episode: ...

    @overload
    def __getitem__(self, index: slice) -> list[Episode]: ...

    def __getitem__(self, index: int | slice) -> Episode | list[Episode]:
        if isinstance(index, slice):
            return [self._checked(i) for i in range(*index.indices(len(self)))]
        i = int(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"episode {i} of {len(self)}: valid indices are 0 to {len(self) - 1}.")
        return self._checked(i % len(self))

    def __iter__(self) -> Iterator[Episode]:
        return (self._checked(i) for i in range(len(self)))

    def _checked(self, index: int) -> Episode:
        who, clips = f"episode {index} of {type(self).__name__}", len(self.codes)
        with outside_call(who, ProtocolError, "mend the deal of the protocol"):
            found: Any = self._make(index)
        rows = np.concatenate([found.support, found.query]) if isinstance(found, Episode) else np.array([-1])
        if ((rows < 0) | (rows >= clips)).any():
            raise ProtocolError(
                f"{who} is {found!r:.200}, but an Episode with rows of {clips} clips is expected; mend the protocol."
            )
        if self.parents is None:
            return found
        query = found.query[self.parents[found.query] == NO_NEIGHBOUR]
        return replace(found, support=with_neighbours(found.support, self.parents), query=query)

    def __repr__(self) -> str:
        count = len(self)
        return f"{type(self).__name__}({count} episode{'s' * (count != 1)}, classes {', '.join(self.classes)})"

    def batches(self, size: int = 64) -> Iterator[EpisodeBatch]:
        """Yield the episodes as arrays, `size` at a time, where `uniform` is true; else it is a `ProtocolError`.

        The folds of LOSO differ in shape, for instance; iterate over them one by one instead.
        """
        raise ProtocolError(f"these {len(self)} episodes differ in shape and cannot be stacked; take them one by one.")

    def missing_classes(self) -> tuple[tuple[str, str], ...]:
        """Pairs (episode name, class) where the support has no clip of a class that the protocol judges.

        K-shot protocols have none by construction. A LOSO fold may: the protocol allows it, the fold's queries still
        count, and the report can say how often it happened.
        """
        return ()


class KShotEpisodes(Episodes):
    """Episodes of a K-shot protocol, made one by one or as arrays; `plan` draws them, by the class codes of `codes`."""

    uniform = True

    def __init__(self, plan: EpisodePlan, count: int, source: Ints | None = None) -> None:
        self.plan, self.source, self._count = plan, source, count
        self.classes, self.codes = plan.names, plan.codes

    def __len__(self) -> int:
        return self._count

    @property
    def pool(self) -> Ints:
        """Indices of the clips that can be in support or query."""
        return np.flatnonzero(self.codes >= 0)

    def _make(self, index: int) -> Episode:
        return replace(self.plan.draw(index, index + 1)[0], source=self.source)

    def batches(self, size: int = 64) -> Iterator[EpisodeBatch]:
        """Yield the episodes as arrays, `size` at a time; class codes are indices into `classes`."""
        check_whole("size", size, 1)
        return (self.plan.draw(low, min(low + size, len(self))) for low in range(0, len(self), size))


class FoldEpisodes(Episodes):
    """Episodes that deal whole units (subjects, data sets) to support and query.

    Parameters
    ----------
    classes : tuple of str
    codes : ndarray of int64, shape (N,)
        Class of each clip; -1 leaves it out.
    units : ndarray of int64, shape (N,)
        Unit of each clip, from 0.
    names : sequence of str
        One name an episode.
    sides : callable
        Episode number -> two boolean arrays over the units: those of the support and those of the query.
    """

    def __init__(self, classes: tuple[str, ...], codes: Ints, units: Ints, names: Iterable[str], sides: Sides) -> None:
        self.classes, self.codes = classes, codes
        self._units, self._names, self._sides = units, tuple(names), sides

    def __len__(self) -> int:
        return len(self._names)

    def _make(self, index: int) -> Episode:
        support, query = (np.flatnonzero(side[self._units] & (self.codes >= 0)) for side in self._sides(index))
        return Episode(support, query, self.classes, self._names[index])

    def missing_classes(self) -> tuple[tuple[str, str], ...]:
        """Pairs (episode name, class) where the support has no clip of a class; the protocol still judges it."""
        held = clips_per_unit(self.codes, self._units, len(self.classes)) > 0
        missing = []
        for index, name in enumerate(self._names):
            there = held[self._sides(index)[0]].any(axis=0)
            missing += [(name, self.classes[code]) for code in np.flatnonzero(~there)]
        return tuple(missing)
