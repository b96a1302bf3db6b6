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
from fsmer.outside import outside_call, outside_value

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
        fault = self._fault(found)
        if fault:
            raise ProtocolError(
                f"{who} is {outside_value(found)}, but {fault}; give an Episode with a name, classes among "
                f"{', '.join(self.classes)}, and the numbers (no mask) of some of {clips} clips."
            )
        if self.parents is None:
            return found
        query = found.query[self.parents[found.query] == NO_NEIGHBOUR]
        return replace(found, support=with_neighbours(found.support, self.parents), query=query)

    def _fault(self, found: Any) -> str:
        if not isinstance(found, Episode) or not isinstance(found.name, str):
            return "it is no Episode with a name"
        if not all(_are_rows(side, len(self.codes), 1) for side in (found.support, found.query)):
            return "its rows are not those of clips"
        if not set(found.classes) <= set(self.classes):
            return "it has other classes"
        if not len(found.query):
            return "it has no query"
        if both := len(np.intersect1d(found.support, found.query)):
            return f"{both} clips are in the support and in the queries"
        return "a clip is there twice" if _repeated(found.support[None], found.query[None]) else ""

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


def episodes_fault(found: Any, clips: int) -> str:
    """What a deal gave, in words, where that is no `Episodes` of so many clips; else nothing."""
    if not isinstance(found, Episodes):
        return outside_value(found)
    classes, codes, count = found.classes, found.codes, len(found)
    if not isinstance(classes, (tuple, list)) or not all(isinstance(name, str) for name in classes):
        return f"{type(found).__name__} with classes={outside_value(classes)}"
    if not isinstance(codes, np.ndarray) or codes.shape != (clips,) or not _are_rows(codes + 1, len(classes) + 1, 1):
        return f"{type(found).__name__} with codes={outside_value(codes)} for {len(classes)} classes"
    if found.source is not None and not _are_rows(found.source, clips, 1):
        return f"{type(found).__name__} with source={outside_value(found.source)}"
    return "" if count else f"{type(found).__name__} without an episode"


def checked_batches(episodes: Episodes, size: int) -> Iterator[EpisodeBatch]:
    """The `batches` of episodes; `ProtocolError` where they are no whole batches of all episodes, in their order."""
    who, clips, done = f"batches of {type(episodes).__name__}", len(episodes.codes), 0
    with outside_call(who, ProtocolError, "mend the deal of the protocol"):
        found: Any
        for found in episodes.batches(size):
            fault = _batch_fault(found, done, clips, len(episodes.classes))
            if fault:
                raise ProtocolError(
                    f"{who} gives {fault}, but an EpisodeBatch from episode {done} on is expected, with int64 arrays "
                    f"of rows of {clips} clips; mend it, or leave uniform false."
                )
            done += len(found)
            yield found
    if done != len(episodes):
        raise ProtocolError(f"{who} gives {done} of {len(episodes)} episodes; mend it, or leave uniform false.")


def _batch_fault(found: Any, start: int, clips: int, classes: int) -> str:
    if not isinstance(found, EpisodeBatch):
        return outside_value(found)
    if found.start != start:
        return f"one from episode {outside_value(found.start)} on"
    limits = {"classes": classes, "support": clips, "query": clips}
    arrays = {name: getattr(found, name) for name in limits}
    if arrays["query"] is None and isinstance(found.plan, EpisodePlan):
        del arrays["query"]
    for name, value in arrays.items():
        if not _are_rows(value, limits[name], 2) or len(value) != len(found.classes):
            return f"one with {name}={outside_value(value)}"
    if _repeated(*(arrays[name] for name in ("support", "query") if name in arrays)):
        return "one with a clip that is there twice"
    return "" if len(found) else "one of no episode"


def _repeated(*sides: Ints) -> bool:
    """Whether a clip is twice in an episode, of sides (E, K)."""
    rows = np.sort(np.concatenate(sides, axis=1), axis=1)
    return bool((rows[:, 1:] == rows[:, :-1]).any())


def _are_rows(value: Any, count: int, dimensions: int) -> bool:
    """Whether it is an array of whole numbers from 0 to `count` - 1."""
    whole = isinstance(value, np.ndarray) and value.ndim == dimensions and np.issubdtype(value.dtype, np.integer)
    return whole and not ((value < 0) | (value >= count)).any()


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
