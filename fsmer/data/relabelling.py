"""A label scheme applied to the table of a clip set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fsmer.data.coded_table import CodedTable
from fsmer.data.schemes import LabelScheme, RelabelReport
from fsmer.errors import DataError

__all__ = ["relabelled"]


def relabelled(
    table: CodedTable, rows: NDArray[np.int64], scheme: LabelScheme, column: str
) -> tuple[CodedTable, NDArray[np.int64], RelabelReport]:
    """The table with classes of the scheme as labels, the rows that it keeps, and what it mapped and dropped.

    Errors are those of `ClipSet.relabel`.
    """
    if column not in table.frame.columns:
        raise DataError(f"there is no column {column!r} to relabel; the table has {', '.join(table.frame.columns)}.")
    old_names, old_codes = table.coded(column)
    old_codes = old_codes[rows]
    pair = table.codes("dataset")[rows] * (len(old_names) + 1) + old_codes + 1
    present, where, counts = np.unique(pair, return_inverse=True, return_counts=True)
    datasets = table.categories("dataset")
    keys = [
        (datasets[code // (len(old_names) + 1)], ("", *old_names)[code % (len(old_names) + 1)])
        for code in present.tolist()
    ]
    new = [scheme.class_of(dataset, old) if old else None for dataset, old in keys]
    codes = np.array([-1 if name is None else scheme.classes.index(name) for name in new], np.int64)[where]
    excluded = [(place, reason) for place, reason in _exclusions(scheme, table, rows) if codes[place] >= 0]
    codes[[place for place, _ in excluded]] = -1
    kept = np.bincount(where[codes >= 0], minlength=len(keys)).tolist()
    report = RelabelReport(
        scheme.name,
        mapped={
            key: (name, kept[index])
            for index, (key, name) in enumerate(zip(keys, new, strict=True))
            if name is not None
        },
        dropped={
            key: int(counts[index]) for index, (key, name) in enumerate(zip(keys, new, strict=True)) if name is None
        },
        excluded=tuple((table.ids[rows[place]], reason) for place, reason in excluded),
    )
    whole = np.full(len(table.frame), -1, np.int64)
    whole[rows] = codes
    return table.with_labels(scheme.classes, whole), rows[codes >= 0], report


def _exclusions(scheme: LabelScheme, table: CodedTable, rows: NDArray[np.int64]) -> list[tuple[int, str]]:
    found = []
    ids = table.ids[rows].tolist() if scheme.exclusions else []
    datasets, subjects = table.frame["dataset"], table.frame["subject"]
    for exclusion in scheme.exclusions:
        for place, clip in enumerate(ids):
            # The cheap test on the name spares a table of a million clips the exact one.
            if clip.endswith(exclusion.clip) and exclusion.matches(
                datasets.iat[rows[place]], subjects.iat[rows[place]], clip
            ):
                found.append((place, exclusion.reason))
    return found
