"""An episode: a support set to learn from and a query set to be judged on, as indices into a clip set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Episode", "Ints", "Mask"]

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


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
