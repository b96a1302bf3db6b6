"""Subjects and data sets of clips as the units that protocols deal to support and query."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from fsmer.data.clips import ClipSet
from fsmer.data.schemes import canonical_dataset, written_twice
from fsmer.datasets.catalog import dataset_info
from fsmer.episodic.checks import nearest
from fsmer.episodic.episode import Ints, Mask
from fsmer.errors import DataError, MissingDatasetError, ProtocolError

__all__ = [
    "NO_NEIGHBOUR", "check_clip_set", "clips_per_unit", "dataset_codes_of", "distinct_subjects", "neighbour_parents",
    "subjects_of", "two_sides", "units_with",
]  # fmt: skip

# In place of the row of a neighbour frame's clip: a clip of its own, and a neighbour whose clip is not in the set.
NO_NEIGHBOUR, _CLIP_IS_ABSENT = -1, -2


def distinct_subjects(what: str, clips: ClipSet, used: Mask) -> Ints:
    """Person of each clip, as `ClipSet.subject_codes` gives it, for what separates people (`what` in messages).

    A `ProtocolError` is raised where a person of the `used` clips, a mask of shape ``(N,)``, would count as two, since
    it is written in two ways within a data set.
    """
    units, everybody = clips.subject_codes(), clips.subject_names
    found = written_twice(everybody[unit] for unit in np.unique(units[used]).tolist())
    if found:
        one, other = (f"{subject!r} of data set {dataset!r}" for dataset, subject in found[0][:2])
        more = f" (and so with {len(found) - 1} more)" if len(found) > 1 else ""
        raise ProtocolError(
            f"{what} separates people, but the subjects {one} and {other} are one person in two spellings{more}; "
            "write them alike in the table, or give clips of different people different dataset names."
        )
    return units


def subjects_of(protocol: str, clips: ClipSet, codes: Ints) -> tuple[Ints, list[str]]:
    """Subjects that have clips in play: number of each clip's subject (0 where it is out of play) and their names."""
    units, everybody = distinct_subjects(f"protocol {protocol!r}", clips, codes >= 0), clips.subject_names
    present = np.bincount(units[codes >= 0], minlength=len(everybody)) > 0
    names = ["/".join(everybody[unit]) for unit in np.flatnonzero(present)]
    if len(names) < 2:
        whose = "an unknown subject (their table names none)" if names[0].endswith("/") else repr(names[0])
        raise ProtocolError(
            f"protocol {protocol!r} needs clips of at least two subjects, but all {np.count_nonzero(codes >= 0)} "
            f"come from {whose}; add clips of other people or name the subjects."
        )
    return np.maximum(np.cumsum(present) - 1, 0)[units], names


def dataset_codes_of(protocol: str, clips: ClipSet, datasets: Iterable[str]) -> list[int]:
    """Codes that the clips have for some data sets, all of which must be among them."""
    there = [canonical_dataset(name) for name in clips.dataset_names]
    wanted = map(canonical_dataset, datasets)
    places = {name: [code for code, other in enumerate(there) if other == name] for name in wanted}
    missing = [name for name, codes in places.items() if not codes]
    if missing:
        known = [info.where_to_request() for info in map(dataset_info, missing) if info is not None]
        near = nearest(missing[0], there)
        remedy = "; ".join(known) + "; then read it with the other clips." if known else f"{near}Check the name."
        raise MissingDatasetError(
            f"protocol {protocol!r} needs the data set{'s' * (len(missing) > 1)} {', '.join(missing)}, but the "
            f"clips come from {', '.join(clips.dataset_names)}: {remedy}"
        )
    return [code for codes in places.values() for code in codes]


def two_sides(
    protocol: str, clips: ClipSet, first: tuple[str, ...] | None, second: tuple[str, ...] | None
) -> tuple[Mask, Mask]:
    """Clips of two sides of data sets; a side that is None is everything outside the other."""
    if first is None and second is None:
        raise ProtocolError(f"protocol {protocol!r} needs a source or target among {', '.join(clips.dataset_names)}.")

    def held(side: tuple[str, ...]) -> Mask:
        return np.isin(clips.dataset_codes(), dataset_codes_of(protocol, clips, side))

    one = ~held(second or ()) if first is None else held(first)
    two = ~one if second is None else held(second)
    if not one.any() or not two.any():
        raise ProtocolError(
            f"protocol {protocol!r} needs data sets on two sides; add one to {', '.join(clips.dataset_names)}."
        )
    return one, two


def check_clip_set(clips: object) -> None:
    """Raise `DataError` for anything but a clip set."""
    if not isinstance(clips, ClipSet):
        raise DataError(
            f"clips came as {type(clips).__name__}, but a ClipSet is needed; read one with fsmer.ClipSet.load or make "
            "one with fsmer.ClipSet.from_arrays."
        )


def neighbour_parents(clips: ClipSet) -> Ints | None:
    """For each neighbour frame the row of its clip, by the column ``neighbour_of``; None where the clips have none.

    `NO_NEIGHBOUR` stands for a clip of its own, and another negative number for a neighbour whose clip is not there.
    """
    table = clips.table
    if "neighbour_of" not in table.columns:
        return None
    names = table["neighbour_of"]
    is_neighbour = (names.notna() & (names.astype("str") != "")).to_numpy(bool)
    if not is_neighbour.any():
        return None
    found = pd.Index(clips.ids).get_indexer(names.astype("str"))
    parents = np.where(is_neighbour, np.where(found < 0, _CLIP_IS_ABSENT, found), NO_NEIGHBOUR).astype(np.int64)
    # A neighbour of a neighbour is one of the clip at the end of that chain, if it has an end.
    for _ in range(len(parents).bit_length()):
        above = np.where(parents >= 0, parents[np.maximum(parents, 0)], NO_NEIGHBOUR)
        parents = np.where(above == NO_NEIGHBOUR, parents, above)
    circular = (parents >= 0) & (parents[np.maximum(parents, 0)] != NO_NEIGHBOUR)
    return np.where(circular, _CLIP_IS_ABSENT, parents)


def units_with(units: Ints, mask: Mask, total: int) -> Mask:
    """Which of `total` units have a clip in the mask."""
    return np.bincount(units[mask], minlength=total) > 0


def clips_per_unit(codes: Ints, units: Ints, classes: int) -> Ints:
    """Clips of each unit and class, shape (units, classes)."""
    used = codes >= 0
    total = int(units.max(initial=-1)) + 1
    return np.bincount(units[used] * classes + codes[used], minlength=total * classes).reshape(total, classes)
