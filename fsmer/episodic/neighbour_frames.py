"""Neighbours of the apex frame as further training samples, more of them for rare classes (MERAU, section IV.A)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from fsmer.errors import DataError

__all__ = ["FramePair", "NeighbourFrames", "neighbour_counts", "neighbours_of"]


@dataclass(frozen=True)
class FramePair:
    """One training sample that is made of a clip: its onset, and a frame that stands for its apex.

    Parameters
    ----------
    clip : str
        Id of the clip.
    onset, apex : int
        Frame numbers, counted as in the clip's table.
    label : str
    added : bool
        False for the clip itself, True for a neighbour of its apex.
    """

    clip: str
    onset: int
    apex: int
    label: str
    added: bool


def neighbour_counts(counts: Mapping[str, int], *, factor: int = 5) -> dict[str, int]:
    """How many neighbours of the apex to add to every clip of a class (MERAU, eq. 11).

    max(round(5 N_min / N_i) - 1, 0), with N_i the clips of class i and N_min those of the rarest class, so that each
    class ends up with about 5 N_min samples unless it has more by itself.

    Parameters
    ----------
    counts : mapping of str to int
        Clips of every class; classes without clips are left out.
    factor : int
        Samples that a clip of the rarest class becomes; the paper's is 5.

    Returns
    -------
    dict of str to int
        Neighbours a clip, by class. Halves are rounded up; the paper does not say how it rounds them.

    Raises
    ------
    DataError
        A count is negative, no class has a clip, or the factor is not positive.

    Examples
    --------
    >>> neighbour_counts({"surprise": 25, "repression": 27, "happiness": 32, "disgust": 63, "others": 99})
    {'surprise': 4, 'repression': 4, 'happiness': 3, 'disgust': 1, 'others': 0}
    """
    if factor < 1:
        raise DataError(f"factor={factor} was given, but each clip of the rarest class becomes at least 1 sample.")
    negative = {name: count for name, count in counts.items() if count < 0}
    if negative:
        name, count = next(iter(negative.items()))
        raise DataError(f"class {name!r} is said to have {count} clips; give counts of 0 or more.")
    present = {name: count for name, count in counts.items() if count > 0}
    if not present:
        raise DataError("no class has a clip, so there is nothing to balance; give at least one labelled clip.")
    target = factor * min(present.values())
    return {name: max((2 * target + count) // (2 * count) - 1, 0) for name, count in present.items()}


def neighbours_of(onset: int, apex: int, offset: int, count: int) -> list[int]:
    """The `count` frames nearest to the apex: the one before, the one after, two before, and so on.

    Only frames after the onset and up to the offset are taken, so there may be fewer than asked for.

    Raises
    ------
    DataError
        The frames are not in the order onset < apex <= offset, or `count` is negative.

    Examples
    --------
    >>> neighbours_of(onset=10, apex=13, offset=20, count=5)
    [12, 14, 11, 15, 16]
    """
    if not onset < apex <= offset:
        raise DataError(
            f"onset {onset}, apex {apex} and offset {offset} were given, but an apex lies after its onset and not "
            "after its offset."
        )
    if count < 0:
        raise DataError(f"{count} neighbours were asked for; give 0 or more.")
    near = sorted(
        (frame for frame in range(onset + 1, offset + 1) if frame != apex), key=lambda at: (abs(at - apex), at)
    )
    return near[:count]


@dataclass(frozen=True)
class NeighbourFrames:
    """Balances the classes of a training set by neighbours of the apex frame (MERAU, section IV.A and eq. 11).

    Neighbouring frames look alike and show the same expression, so a pair of onset and neighbour gets the clip's label.
    Use it on training clips alone: a neighbour in a test set would count one clip several times.

    Parameters
    ----------
    factor : int
        See `neighbour_counts`; the paper's is 5.
    """

    factor: int = 5

    def pairs(self, table: pd.DataFrame, *, classes: Sequence[str] | None = None) -> list[FramePair]:
        """All training samples of the clips of `table`: each clip's own pair, then its neighbours.

        Parameters
        ----------
        table : DataFrame
            One row a clip with the columns ``clip``, ``label``, ``onset``, ``apex`` and ``offset`` (as
            ``ClipSet.table`` has them where the data set codes them).
        classes : sequence of str, optional
            Classes to use; default all of the table. Clips without a label are left out.

        Raises
        ------
        DataError
            A column is missing, a frame number is missing, or the frames of a clip are not in order; the message names
            the clip.
        """
        missing = [name for name in ("clip", "label", "onset", "apex", "offset") if name not in table.columns]
        if missing:
            raise DataError(
                f"the table has no column {missing[0]!r}, but neighbours of the apex are found from the frame numbers "
                "of onset, apex and offset; add them."
            )
        used = table[table["label"].notna() & (table["label"].isin(list(classes)) if classes is not None else True)]
        labels = [str(label) for label in used["label"]]
        extra = neighbour_counts(Counter(labels), factor=self.factor)
        found = []
        for row, label in zip(used.itertuples(index=False), labels, strict=True):
            clip = str(row.clip)
            onset, apex, offset = (
                _frame_number(clip, name, getattr(row, name)) for name in ("onset", "apex", "offset")
            )
            try:
                near = neighbours_of(onset, apex, offset, extra[label])
            except DataError as error:
                raise DataError(f"clip {clip!r}: {error}") from error
            found.append(FramePair(clip, onset, apex, label, added=False))
            found += [FramePair(clip, onset, frame, label, added=True) for frame in near]
        return found


def _frame_number(clip: str, name: str, value: object) -> int:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise DataError(f"clip {clip!r} has {value!r} as {name} frame; give a whole number or leave the clip out.")
    return int(number)
