"""Neighbours of the apex frame as further training samples, more of them for rare classes (MERAU, section IV.A)."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pandas as pd

from fsmer.errors import DataError

__all__ = ["NeighbourFrames", "neighbour_counts", "neighbours_of"]

# Numbers as a data set writes them, and places in the sequence counted from 0.
FRAMES = ("onset", "apex", "offset")
INDICES = ("onset_index", "apex_index", "offset_index")


def neighbour_counts(counts: Mapping[str, int], *, factor: int = 5) -> dict[str, int]:
    """How many neighbours of the apex to add to every clip of a class (MERAU, eq. 11).

    max(round(5 N_min / N_i) - 1, 0), with N_i the clips of class i and N_min those of the rarest class, so that each
    class ends up with about 5 N_min samples unless it has more by itself; `factor` stands for the paper's 5. Classes
    without clips are left out. Halves are rounded up; the paper does not say how it rounds them. A `DataError` is
    raised where a count is negative, no class has a clip, or the factor is not positive.

    Examples
    --------
    >>> neighbour_counts({"surprise": 25, "repression": 27, "happiness": 32, "disgust": 63, "others": 99})
    {'surprise': 4, 'repression': 4, 'happiness': 3, 'disgust': 1, 'others': 0}
    """
    if factor < 1:
        raise DataError(f"factor={factor} was given, but each clip of the rarest class becomes at least 1 sample.")
    for name, count in counts.items():
        if count < 0:
            raise DataError(f"class {name!r} is said to have {count} clips; give counts of 0 or more.")
    present = {name: count for name, count in counts.items() if count > 0}
    if not present:
        raise DataError("no class has a clip, so there is nothing to balance; give at least one labelled clip.")
    target = factor * min(present.values())
    return {name: max((2 * target + count) // (2 * count) - 1, 0) for name, count in present.items()}


def neighbours_of(onset: int, apex: int, offset: int, count: int) -> list[int]:
    """The `count` frames nearest to the apex: the one before, the one after, two before, and so on.

    Only frames after the onset and up to the offset are taken, so there may be fewer than asked for. A `DataError` is
    raised where the frames are not in the order onset < apex <= offset, or `count` is negative.

    Examples
    --------
    >>> neighbours_of(onset=10, apex=13, offset=20, count=5)
    [12, 14, 11, 15, 16]
    """
    if not onset < apex <= offset:
        raise DataError(f"onset {onset}, apex {apex}, offset {offset} are given; onset < apex <= offset is expected.")
    if count < 0:
        raise DataError(f"{count} neighbours were asked for; give 0 or more.")
    near = sorted(range(onset + 1, offset + 1), key=lambda at: (abs(at - apex), at))
    return near[1 : count + 1]


@dataclass(frozen=True)
class NeighbourFrames:
    """Balances the classes of a training set by neighbours of the apex frame (MERAU, section IV.A and eq. 11).

    Neighbouring frames show the same expression, so a pair of onset and neighbour gets the clip's label.
    Use it on training clips alone: a neighbour in a test set would count one clip several times. The `factor` is that
    of `neighbour_counts`; the paper's is 5.
    """

    factor: int = 5

    def table(self, table: pd.DataFrame, *, classes: Sequence[str] | None = None) -> pd.DataFrame:
        """All training samples as a table of clips, from which `fsmer.preprocess.prepare` makes their media.

        A neighbour is its clip's row with another apex, named after the clip and how far its frame is from the apex
        (``"EP02_01f@-1"``). The new column ``neighbour_of`` holds the clip's id there, and nothing in the clip's own
        row. A clip whose apex only stands in for a missing annotation (``apex_from``) gets no neighbours.

        The `table` has one row a clip with ``clip``, ``label`` and the frames as `fsmer.preprocess.prepare` takes them:
        ``onset_index``, ``apex_index`` and ``offset_index`` (as in ``read_dataset(...).table``) or, in their absence,
        ``onset``, ``apex`` and ``offset``. Clips without a label, or of none of the `classes`, are left out. A
        `DataError` says which column is missing, or names the clip whose frames are missing or not in order.
        """
        names = INDICES if "apex_index" in table.columns else FRAMES
        missing = [name for name in ("clip", "label", *names) if name not in table.columns]
        if missing:
            raise DataError(f"the table has no column {missing[0]!r}; add it: neighbours are found by frame numbers.")
        given = {place: label for place, label in enumerate(table["label"]) if not pd.isna(label)}
        labels = {place: str(label) for place, label in given.items() if classes is None or label in classes}
        extra = neighbour_counts(Counter(labels.values()), factor=self.factor)
        shifts: list[tuple[int, int]] = []
        for place, label in labels.items():
            row = table.iloc[place]
            shifts.append((place, 0))
            if str(row.get("apex_from", "annotation")) == "annotation":
                apex, near = _near(row, names, extra[label])
                shifts += [(place, frame - apex) for frame in near]
        found = table.iloc[[place for place, _ in shifts]].reset_index(drop=True)
        clips = [(str(clip), shift) for clip, (_, shift) in zip(found["clip"], shifts, strict=True)]
        found["clip"] = [f"{clip}@{shift:+d}" if shift else clip for clip, shift in clips]
        found["neighbour_of"] = [clip if shift else "" for clip, shift in clips]
        # What is no number stands for no apex, and such clips have no neighbours to be shifted.
        apexes = pd.to_numeric(found[names[1]], errors="coerce")
        pairs = zip(apexes, shifts, strict=True)
        shifted = [None if pd.isna(apex) else int(apex) + shift for apex, (_, shift) in pairs]
        found[names[1]] = pd.array(shifted, dtype="Int64")
        return found


def _near(row: pd.Series, names: Sequence[str], count: int) -> tuple[int, list[int]]:
    """Apex of a clip, and `count` neighbours of the apex or as many as there are."""
    clip = str(row["clip"])
    onset, apex, offset = (_frame_number(clip, name.removesuffix("_index"), row[name]) for name in names)
    try:
        return apex, neighbours_of(onset, apex, offset, count)
    except DataError as error:
        raise DataError(f"clip {clip!r}: {error}") from error


def _frame_number(clip: str, name: str, value: object) -> int:
    number = math.nan
    with suppress(ValueError):
        number = float(str(value))
    if not number.is_integer():
        shown = repr(value) if isinstance(value, str) else value
        raise DataError(f"clip {clip!r} has {shown} as {name} frame; give a whole number or leave the clip out.")
    return int(number)
