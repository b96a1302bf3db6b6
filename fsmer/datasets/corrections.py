"""Corrections of annotations: a table keyed by data set, subject and clip, each with its reason and source."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

from fsmer.data.schemes import canonical_dataset, subject_number
from fsmer.data.text_tables import shipped_rows
from fsmer.datasets.annotation import Annotation, frame_number
from fsmer.datasets.folders import folder_key
from fsmer.datasets.sheets import SheetTable, read_sheets
from fsmer.errors import DataError

__all__ = ["Column", "Correction", "apply_corrections", "read_corrections", "shipped_corrections"]

TABLE = Path(__file__).parent / "tables" / "corrections.csv"
OUT_OF_RANGE = "out of range"

Column = Literal["onset", "apex", "offset", "label", "aus"]


@dataclass(frozen=True)
class Correction:
    """One cell of an annotation put right.

    Parameters
    ----------
    dataset, subject, clip : str
        Which clip: key of the data set, the subject (its number decides), and the clip's name in the sheet or on disk.
    column : str
        onset, apex, offset, label or aus.
    value : str
        What the cell should say; ``""`` empties it.
    given : str
        What the cell must say for the correction to apply, so that a later release of the sheet stays as it is.
        ``"out of range"`` stands for any frame that is not between onset and offset, ``""`` for anything.
    reason, source : str
        Why, and who says so.
    """

    dataset: str
    subject: str
    clip: str
    column: Column
    value: str
    given: str = ""
    reason: str = ""
    source: str = ""

    def names(self, dataset: str, annotation: Annotation) -> bool:
        """Whether this is about that clip, whatever its cells say."""
        return (
            canonical_dataset(self.dataset) == dataset
            and folder_key(self.clip) in (folder_key(annotation.name), folder_key(annotation.clip))
            and subject_number(self.subject) == subject_number(annotation.subject)
        )

    def applies(self, annotation: Annotation) -> bool:
        """Whether the cell of that clip says what this corrects."""
        cell = getattr(annotation, self.column)
        if self.given == OUT_OF_RANGE:
            onset, here, offset = (frame_number(text) for text in (annotation.onset, cell, annotation.offset))
            return None in (onset, here, offset) or not cast(int, onset) <= cast(int, here) <= cast(int, offset)
        return cell != self.value and self.given.lower() in ("", cell.lower())

    def apply(self, annotation: Annotation) -> Annotation:
        """The annotation with the cell put right."""
        change: dict[str, Any] = {self.column: self.value}
        return replace(annotation, **change)


@cache
def shipped_corrections() -> tuple[Correction, ...]:
    """The corrections that come with fsmer, read from ``fsmer/datasets/tables/corrections.csv``."""
    return tuple(Correction(**cast(dict[str, Column], row)) for row in shipped_rows(TABLE))


def read_corrections(path: str | os.PathLike[str]) -> tuple[Correction, ...]:
    """Read a table of corrections of one's own: CSV or Excel with the columns of the shipped one.

    ``dataset, subject, clip, column, value`` are needed, ``given, reason, source`` are optional.

    Raises
    ------
    DataError
        The table cannot be read, lacks a column, or names a column that cannot be corrected.
    """
    names = {field.name: (field.name,) for field in fields(Correction)}
    needed = ("dataset", "subject", "clip", "column", "value")
    table = SheetTable.of(read_sheets(Path(path)), names, needed, title="a table of corrections")
    known = get_args(Column)
    found = []
    for row in table.rows:
        if row["column"].lower() not in known:
            raise DataError(
                f"row {row.number} of {path} corrects {row['column']!r}, but only {', '.join(known)} can be corrected."
            )
        cells = {name: row[name] for name in names} | {"column": row["column"].lower()}
        found.append(Correction(**cast(dict[str, Column], cells)))
    return tuple(found)


def apply_corrections(
    dataset: str, annotation: Annotation, corrections: Iterable[Correction]
) -> tuple[Annotation, list[Correction]]:
    """Apply what fits one clip, in order; also the corrections that were applied."""
    applied = []
    for one in corrections:
        if one.names(dataset, annotation) and one.applies(annotation):
            annotation = one.apply(annotation)
            applied.append(one)
    return annotation, applied
