"""An episode: a support set to learn from and a query set to be judged on, as indices into a clip set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fsmer.data.display import maps_by_class
from fsmer.drawing import grid_figure
from fsmer.errors import DataError
from fsmer.html import Facts, object_html
from fsmer.text import one_line, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fsmer.data import ClipSet

__all__ = ["Accept", "Episode", "Ints", "Mask", "Words"]

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Words = NDArray[np.uint64]
# Whether clips (or ranks), shape (draws, columns), may be drawn in those columns (second argument: their numbers).
Accept = Callable[[Ints, Ints], Mask]


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
        classes = shortened(one_line(", ".join(self.classes)), 90)
        name = shortened(repr(self.name), 60)
        return f"Episode({name}: {len(self.support)} support, {len(self.query)} query{source}, classes {classes})"

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the SHA-256 of name, classes and indices; equal episodes have the same."""
        return hashlib.sha256(json.dumps(self._plain()).encode()).hexdigest()[:16]

    def _repr_html_(self) -> str:
        facts = [("classes", ", ".join(self.classes)), ("hash", self.hash)]
        for name in ("support", "query", "source"):
            places = getattr(self, name)
            if places is not None:
                shown = ", ".join(map(str, places[:40].tolist()))
                facts.append((name, f"{len(places):,} clips at {shown}{', …' * (len(places) > 40)}"))
        note = "The clip set holds the labels: plot(clips) draws support and query by class."
        return object_html(f"Episode: {self.name}", Facts(facts), note=note)

    def plot(self, clips: ClipSet, count: int = 4) -> Figure:
        """A matplotlib figure of flow maps: a row a class, with `count` clips of its support beside as many queries.

        Parameters
        ----------
        clips : ClipSet
            What the episode was made from: its indices are positions in it.
        count : int, default 4
            Clips of each class and side, from the first.

        Returns
        -------
        Figure
            Not shown and not saved.

        Raises
        ------
        DataError
            The set has too few clips to be the one that the episode is from.
        SpecMismatchError
            The clips hold no flow.
        MediaError
            A map that is drawn cannot be read.

        Examples
        --------
        >>> import fsmer
        >>> clips = fsmer.synthetic_clips(n=12)
        >>> episode = next(iter(fsmer.load_protocol("kshot", shot=1, episodes=1).split(clips)))
        >>> len(episode.hash)
        16
        >>> episode.plot(clips, count=2).savefig("episode.png")
        """
        last = max((int(side.max()) for side in (self.support, self.query) if len(side)), default=-1)
        if last >= len(clips):
            raise DataError(
                f"episode {self.name!r} has a clip at position {last}, but the set has {len(clips)} clips; give the "
                "set that was split, which is protocol.prepare(clips) where the protocol relabels or leaves out clips."
            )
        sides = {"support": self.support, "query": self.query}
        # Without labelled examples there is no support.
        maps = {name: maps_by_class(clips[side], count, self.classes) for name, side in sides.items() if len(side)}
        return grid_figure(maps, title=f"{self.name}, the first {count} clips of each class and side")
