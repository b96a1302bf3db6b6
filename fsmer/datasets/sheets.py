"""Annotation sheets as text: Excel workbooks and CSV files, with the row of column names found wherever it stands."""

from __future__ import annotations

import datetime
import io
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from fsmer.data.text_tables import csv_rows, read_table_text
from fsmer.errors import DataError
from fsmer.io import check_regular

__all__ = ["SHEET_ENDINGS", "Sheet", "SheetRow", "SheetTable", "cell_text", "column_slug", "plain", "read_sheets"]

SHEET_ENDINGS = frozenset({".xlsx", ".xlsm", ".xls", ".csv"})
Columns = Mapping[str, Sequence[str]]  # role -> names that the column may have

# SAMM has 13 rows of notes above the column names; no release has more.
DEEPEST_HEADER = 40

# Far more than any release has; a small file can unpack to far more than that.
MOST_CELLS, UNPACKED_BYTES = 20_000_000, 1 << 30


@dataclass(frozen=True)
class Sheet:
    """One worksheet of a file: every cell as text without blanks around it, all rows of one length.

    `name` is that of the worksheet, ``""`` for a CSV file. Whole numbers have no ``.0``, empty cells are ``""``.
    """

    path: Path
    name: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class SheetRow:
    """One line of a table: its number in the sheet from 1, the cells by role, and all columns by `column_slug`.

    Indexing it by a role gives the text, ``""`` where the sheet has no such column.
    """

    number: int
    cells: Mapping[str, str]
    own: Mapping[str, str]

    def __getitem__(self, role: str) -> str:
        return self.cells.get(role, "")


@dataclass(frozen=True)
class SheetTable:
    """The part of a sheet below its column names (`header`, as written): the lines that are not empty."""

    sheet: Sheet
    header: tuple[str, ...]
    rows: tuple[SheetRow, ...]

    @classmethod
    def of(
        cls, sheets: Sequence[Sheet], columns: Columns, needed: Sequence[str], *, title: str, first: str = ""
    ) -> SheetTable:
        """Find the table in the sheets of one file, which are tried in order, the one called `first` before the others.

        `columns` says for each role which names the column may have, compared without letter case, blanks and
        punctuation (``sub_ID'`` is ``sub_ID``), and `needed` which roles must be there; otherwise a `DataError` names
        what is missing of what should be `title`.
        """
        best: tuple[int, Sheet, tuple[str, ...]] | None = None
        for sheet in sorted(sheets, key=lambda one: plain(one.name) != plain(first) or not first):
            for place, row in enumerate(sheet.rows[:DEEPEST_HEADER]):
                found = _columns_of(row, columns)
                score = sum(role in found for role in needed)
                if score == len(needed):
                    return cls(sheet, row, tuple(_rows_below(sheet, place, found)))
                if best is None or score > best[0] or not any(best[2]):
                    best = (score, sheet, row)
        file = sheets[0].path
        if best is None or not any(best[2]):
            raise DataError(f"{file} is empty, but {title} is expected; give the sheet of the release.")
        missing = [columns[role][0] for role in needed if role not in _columns_of(best[2], columns)]
        shown = ", ".join(cell for cell in best[2] if cell)[:200] or "nothing"
        raise DataError(
            f"{file} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} of {title}, "
            f"and the nearest row to column names has {shown}; give the sheet of the release that has these columns."
        )


def read_sheets(path: Path) -> tuple[Sheet, ...]:
    """Read every worksheet of a workbook, of which there is at least one, or a CSV file as one sheet.

    What a file is, is judged by how it begins, since ``.xls`` files that are ``.xlsx`` inside are common. A `DataError`
    is raised where it is missing, empty, damaged or in another encoding, or the reader for it is not installed.
    """
    try:
        check_regular(path)
        with path.open("rb") as handle:
            start = handle.read(8)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the sheet {path} cannot be read ({reason}); give its path.") from error
    if not start:
        raise DataError(f"the sheet {path} has no bytes; copy it again from the release.")
    try:
        if start.startswith(b"PK"):
            sheets = _read_xlsx(path)
        elif start.startswith(b"\xd0\xcf\x11\xe0"):
            sheets = _read_xls(path)
        else:
            sheets = (_read_csv(path),)
    except DataError:
        raise
    except Exception as error:  # a damaged archive fails in whatever layer comes upon the damage
        raise _damaged(path, error) from error
    if not sheets:
        raise _damaged(path, "it has no worksheet")
    return sheets


def cell_text(value: Any) -> str:
    """Text of a cell: ``4.0`` becomes ``"4"``, an empty cell ``""``."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value).strip()


def plain(text: str) -> str:
    """`text` in lower case with nothing but letters and digits, for comparing names."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def column_slug(header: str) -> str:
    """Name of a sheet's column in tables: ``"Onset Frame"`` -> ``"onset_frame"``, ``"OnsetF"`` -> ``"onset_f"``."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", header)
    return re.sub(r"[^a-z0-9]+", "_", parted.lower()).strip("_")


def _columns_of(row: Sequence[str], columns: Columns) -> dict[str, int]:
    # Of columns of one name the first counts.
    places = {plain(cell): place for place, cell in reversed(list(enumerate(row)))}
    known = {role: [places[plain(name)] for name in names if plain(name) in places] for role, names in columns.items()}
    return {role: found[0] for role, found in known.items() if found}


def _rows_below(sheet: Sheet, header: int, found: Mapping[str, int]) -> Iterator[SheetRow]:
    slugs: dict[str, int] = {}
    for place, cell in enumerate(sheet.rows[header]):
        slug = column_slug(cell)
        if slug:
            name, count = slug, 2
            while name in slugs:
                name, count = f"{slug}_{count}", count + 1
            slugs[name] = place
    for number, row in enumerate(sheet.rows[header + 1 :], header + 2):
        if any(row):
            cells = {role: row[place] for role, place in found.items()}
            yield SheetRow(number, cells, {name: row[place] for name, place in slugs.items()})


def _reader(module: str, path: Path) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(
            f"{path} is an Excel workbook, and reading it needs {module}, which is not installed; "
            "run: pip install 'fsmer[datasets]', or save the sheet as CSV."
        ) from error


def _read_xlsx(path: Path) -> tuple[Sheet, ...]:
    openpyxl = _reader("openpyxl", path)
    # A handle, because openpyxl refuses workbooks by their ending; warnings are about decoration.
    with path.open("rb") as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if sum(part.file_size for part in zipfile.ZipFile(handle).infolist()) > UNPACKED_BYTES:
            raise ValueError(f"it unpacks to more than {UNPACKED_BYTES:,} bytes")
        sheets = []
        for worksheet in openpyxl.load_workbook(handle, read_only=True, data_only=True).worksheets:
            # The size that a file states for itself is wrong in some releases, and would cut rows off.
            worksheet.reset_dimensions()
            sheets.append(_sheet(path, worksheet.title, worksheet.iter_rows(values_only=True)))
        return tuple(sheets)


def _read_xls(path: Path) -> tuple[Sheet, ...]:
    book = _reader("xlrd", path).open_workbook(str(path), logfile=io.StringIO())
    return tuple(_sheet(path, one.name, (one.row_values(row) for row in range(one.nrows))) for one in book.sheets())


def _read_csv(path: Path) -> Sheet:
    text = read_table_text(path, what="the sheet")
    head = text.splitlines()[:DEEPEST_HEADER]
    # The separator that cuts some line into most fields; a tie goes to the comma.
    delimiter = max(",;\t", key=lambda mark: max((line.count(mark) for line in head), default=0))
    rows = csv_rows(text, path, what="the sheet", delimiter=delimiter)
    return _sheet(path, "", (row for _, row in rows))


def _sheet(path: Path, name: str, rows: Iterable[Iterable[Any]]) -> Sheet:
    cells: list[list[str]] = []
    width = 0
    for row in rows:
        cells.append([cell_text(value) for value in row])
        width = max(width, len(cells[-1]))
        if width * len(cells) > MOST_CELLS:
            raise ValueError(f"it has more than {MOST_CELLS:,} cells, {width:,} in a row")
    return Sheet(path, name, tuple((*row, *[""] * (width - len(row))) for row in cells))


def _damaged(path: Path, error: object) -> DataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"the sheet {path} cannot be read ({reason}); copy it again from the release or save it as CSV.")
