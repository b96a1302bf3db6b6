"""The table and stores that a clip set and its parts share, with names and codes of data sets, subjects and labels."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fsmer.data.clip import Clip, media_error
from fsmer.data.media import LazyArray, MediaStore
from fsmer.data.schemes import LabelScheme, RelabelReport
from fsmer.data.table import CORE_COLUMNS, cells_as_text
from fsmer.errors import DataError, MediaError

__all__ = ["CodedTable", "compact", "relabelled"]


class CodedTable:
    """A table and its stores, with the codes that make masks and counts cheap."""

    def __init__(self, frame: pd.DataFrame, media: Mapping[str, MediaStore]) -> None:
        self.frame = frame
        self.media = dict(media)
        self._codes: dict[str, NDArray[np.int64]] = {}

    @cached_property
    def ids(self) -> NDArray[np.object_]:
        return np.asarray(self.frame["clip"].to_numpy(object))

    def codes(self, column: str) -> NDArray[np.int64]:
        if column not in self._codes:
            self._codes[column] = self.frame[column].cat.codes.to_numpy(np.int64)
        return self._codes[column]

    def categories(self, column: str) -> tuple[str, ...]:
        return tuple(self.frame[column].cat.categories.tolist())

    def coded(self, column: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
        if column in ("dataset", "subject", "label"):
            return self.categories(column), self.codes(column)
        words = cells_as_text(self.frame[column], column)
        codes, names = pd.factorize(np.array([word or None for word in words], object), sort=True)
        return tuple(names.tolist()), codes.astype(np.int64)

    def values(self, column: str) -> NDArray[np.object_]:
        # The last entry answers code -1, the unlabelled clips.
        return np.array([*self.categories(column), None], object)[self.codes(column)]

    @cached_property
    def people(self) -> tuple[tuple[tuple[str, str], ...], NDArray[np.int64]]:
        datasets, subjects = self.categories("dataset"), self.categories("subject")
        pair = self.codes("dataset") * len(subjects) + self.codes("subject")
        present, codes = np.unique(pair, return_inverse=True)
        names = tuple((datasets[code // len(subjects)], subjects[code % len(subjects)]) for code in present.tolist())
        return names, codes.astype(np.int64)

    def clip(self, row: int) -> Clip:
        values = {name: self.frame[name].iat[row] for name in self.frame.columns}
        name, dataset, subject, label, aus = (values.pop(name) for name in CORE_COLUMNS)
        media = {kind: LazyArray(store, row) for kind, store in self.media.items()}
        return Clip(name, dataset, subject, label if isinstance(label, str) else None, aus, media, values)

    def media_error(self, row: int, reason: str) -> MediaError:
        return media_error(self.ids[row], self.frame["dataset"].iat[row], reason)


def compact(names: Sequence[Any], codes: NDArray[np.int64]) -> tuple[tuple[Any, ...], NDArray[np.int64]]:
    """Names that occur, and codes into them; -1 stays -1."""
    present = np.bincount(codes[codes >= 0], minlength=len(names)) > 0
    lookup = np.append(np.cumsum(present) - 1, -1)
    return tuple(name for name, there in zip(names, present.tolist(), strict=True) if there), lookup[codes]


def relabelled(
    table: CodedTable, rows: NDArray[np.int64], scheme: LabelScheme, column: str
) -> tuple[CodedTable, NDArray[np.int64], RelabelReport]:
    """The table with the scheme's classes as labels, the rows that it keeps, and the report; see `ClipSet.relabel`."""
    if column not in table.frame.columns:
        raise DataError(f"there is no column {column!r} to relabel; the table has {', '.join(table.frame.columns)}.")
    names, old_codes = table.coded(column)
    old_names, datasets = ("", *names), table.categories("dataset")
    pair = table.codes("dataset")[rows] * len(old_names) + old_codes[rows] + 1
    present, where, counts = np.unique(pair, return_inverse=True, return_counts=True)
    keys = [(datasets[code // len(old_names)], old_names[code % len(old_names)]) for code in present.tolist()]
    new = [scheme.class_of(dataset, old) if old else None for dataset, old in keys]
    codes = np.array([-1 if name is None else scheme.classes.index(name) for name in new], np.int64)[where]
    excluded = [(place, reason) for place, reason in _exclusions(scheme, table, rows) if codes[place] >= 0]
    codes[[place for place, _ in excluded]] = -1
    kept = np.bincount(where[codes >= 0], minlength=len(keys)).tolist()
    whose = list(zip(keys, new, kept, counts.tolist(), strict=True))
    report = RelabelReport(
        scheme.name,
        mapped={key: (name, n) for key, name, n, _ in whose if name is not None},
        dropped={key: n for key, name, _, n in whose if name is None},
        excluded=tuple((table.ids[rows[place]], reason) for place, reason in excluded),
    )
    whole = np.full(len(table.frame), -1, np.int64)
    whole[rows] = codes
    labels = pd.Categorical.from_codes(whole, categories=list(scheme.classes))
    frame = table.frame.assign(label=labels.reorder_categories(sorted(scheme.classes)))
    return CodedTable(frame, table.media), rows[codes >= 0], report


def _exclusions(scheme: LabelScheme, table: CodedTable, rows: NDArray[np.int64]) -> list[tuple[int, str]]:
    ids = table.ids[rows].tolist() if scheme.exclusions else []
    datasets, subjects = (table.frame[name].take(rows) for name in ("dataset", "subject"))
    # The cheap test on the name spares a table of a million clips the exact one.
    return [
        (place, one.reason)
        for one in scheme.exclusions
        for place, clip in enumerate(ids)
        if clip.endswith(one.clip) and one.matches(datasets.iat[place], subjects.iat[place], clip)
    ]
