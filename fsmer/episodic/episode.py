"""An episode: a support set to learn from and a query set to be judged on, as indices into a clip set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from fsmer.errors import ProtocolError

if TYPE_CHECKING:
    from fsmer.episodic.samplers import EpisodeBatch

__all__ = ["Episode", "Episodes"]


@dataclass(frozen=True, eq=False)
class Episode:
    """One round of learning and being judged.

    Parameters
    ----------
    support, query : ndarray of int64
        Indices of the clips to learn from and of the clips to be judged on; no clip is in both.
    classes : tuple of str
        The classes that a recognizer of this episode tells apart.
    name : str
        What to call it in results, e.g. ``"episode 17"`` or ``"casme2/sub05"``.
    source : ndarray of int64 or None
        Indices of labelled clips of another domain that may be learnt from first (source-then-target protocols).

    Examples
    --------
    >>> episode = Episode([0, 3], [1, 2, 4], ("negative", "positive"), "episode 0")
    >>> episode.support.dtype.name, len(episode.query)
    ('int64', 3)
    """

    support: NDArray[np.int64]
    query: NDArray[np.int64]
    classes: tuple[str, ...]
    name: str
    source: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "support", np.asarray(self.support, dtype=np.int64))
        object.__setattr__(self, "query", np.asarray(self.query, dtype=np.int64))
        object.__setattr__(self, "classes", tuple(self.classes))
        if self.source is not None:
            object.__setattr__(self, "source", np.asarray(self.source, dtype=np.int64))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Episode):
            return NotImplemented
        return (
            (self.name, self.classes) == (other.name, other.classes)
            and np.array_equal(self.support, other.support)
            and np.array_equal(self.query, other.query)
            and (self.source is None) == (other.source is None)
            and (self.source is None or np.array_equal(self.source, other.source))  # type: ignore[arg-type]
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        source = "" if self.source is None else f", {len(self.source)} source"
        return (
            f"Episode({self.name!r}: {len(self.support)} support, {len(self.query)} query{source}, "
            f"classes {', '.join(self.classes)})"
        )


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
    """

    classes: tuple[str, ...]
    codes: NDArray[np.int64]
    source: NDArray[np.int64] | None = None
    uniform: bool = False

    @abstractmethod
    def _make(self, index: int) -> Episode:
        """Make the episode of a valid, non-negative index."""

    @overload
    def __getitem__(self, index: int) -> Episode: ...

    @overload
    def __getitem__(self, index: slice) -> list[Episode]: ...

    def __getitem__(self, index: int | slice) -> Episode | list[Episode]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(*index.indices(len(self)))]
        i = int(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"episode {i} of {len(self)}: valid indices are 0 to {len(self) - 1}.")
        return self._make(i % len(self))

    def __iter__(self) -> Iterator[Episode]:
        return (self._make(i) for i in range(len(self)))

    def __repr__(self) -> str:
        count = len(self)
        return f"{type(self).__name__}({count} episode{'s' * (count != 1)}, classes {', '.join(self.classes)})"

    def batches(self, size: int = 64) -> Iterator[EpisodeBatch]:
        """Yield the episodes as arrays, `size` at a time (only where `uniform` is true).

        Raises
        ------
        ProtocolError
            The episodes differ in shape, as the folds of LOSO do; iterate over them one by one instead.
        """
        raise ProtocolError(
            f"these {len(self)} episodes differ in shape and cannot be stacked; iterate over them one by one."
        )

    def missing_classes(self) -> tuple[tuple[str, str], ...]:
        """Pairs (episode name, class) where the support has no clip of a class that the protocol judges.

        K-shot protocols have none by construction. A LOSO fold may: the protocol allows it, the fold's queries still
        count, and the report can say how often it happened.
        """
        return ()
