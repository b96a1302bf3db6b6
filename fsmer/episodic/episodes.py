"""All episodes of a protocol over one clip set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from fsmer.episodic.episode import Episode
from fsmer.errors import ProtocolError

if TYPE_CHECKING:
    from fsmer.episodic.samplers import EpisodeBatch

__all__ = [
    "Episodes",
]


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
