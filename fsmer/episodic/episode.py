"""An episode: a support set to learn from and a query set to be judged on, as indices into a clip set."""

from dataclasses import dataclass
from typing import Any

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
        The classes that its clips are recognized as.
    name : str
        What to call it in results, e.g. ``"episode 17"`` or ``"casme2/sub05"``.
    source : ndarray of int64, optional
        Indices of labelled clips of another domain that may be learnt from first (source-then-target protocols).

    Examples
    --------
    >>> import fsmer
    >>> episode = fsmer.Episode([0, 3], [1, 2, 4], ("negative", "positive"), "episode 0")
    >>> episode.support.dtype.name, len(episode.query)
    ('int64', 3)
    """

    support: NDArray[np.int64]
    query: NDArray[np.int64]
    classes: tuple[str, ...]
    name: str
    source: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        for name in ("support", "query", "source"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.int64))

    def __eq__(self, other: object) -> bool:
        return self._plain() == other._plain() if isinstance(other, Episode) else NotImplemented

    def _plain(self) -> tuple[Any, ...]:
        arrays = (self.support, self.query, self.source)
        return self.name, self.classes, *(None if one is None else one.tolist() for one in arrays)

    def __repr__(self) -> str:
        source = "" if self.source is None else f", {len(self.source)} source"
        return (
            f"Episode({self.name!r}: {len(self.support)} support, {len(self.query)} query{source}, "
            f"classes {', '.join(self.classes)})"
        )
