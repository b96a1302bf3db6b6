"""The table of a clip set: bring it into its one form, write it as CSV, read it back with the same types."""

import csv
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fsmer.data.text_tables import csv_rows
from fsmer.errors import DataError
from fsmer.io import BLOCK_BYTES, digest, read_bytes

__all__ = [
    "CORE_COLUMNS", "cells_as_text", "clean_table", "describe_type", "known_texts", "plain_text", "plain_texts",
    "read_table", "write_table",
]  # fmt: skip

# Room for tens of millions of clips.
TABLE_BYTES = 4 << 30
CORE_COLUMNS = ("clip", "dataset", "subject", "label", "aus")


def clean_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The table in the form that `ClipSet.table` documents; errors are those of `ClipSet.from_table`."""
    names = [str(name) for name in frame.columns]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(f"the table has the column {doubled[0]!r} twice; keep one.")
    if "clip" not in names:
        raise DataError(
            f"the table has no column 'clip' with the ids of the clips; it has {', '.join(names) or 'no columns'}."
        )
    frame = frame.set_axis(names, axis=1).reset_index(drop=True)
    columns: dict[str, Any] = {}
    for name, missing in (("clip", ""), ("dataset", "mine"), ("subject", ""), ("label", None), ("aus", "")):
        if name in frame.columns:
            columns[name] = cells_as_text(frame[name], name)
            columns[name][columns[name] == ""] = missing
        else:
            columns[name] = np.full(len(frame), missing, object)
    ids = pd.Series(columns["clip"], dtype="str")
    empty = np.flatnonzero(columns["clip"] == "")
    if len(empty):
        raise DataError(f"row {int(empty[0]) + 1} of the table has no clip id; give every clip a name.")
    twice = ids.duplicated().to_numpy()
    if twice.any():
        shown = ", ".join(repr(name) for name in ids[twice].drop_duplicates().iloc[:3])
        raise DataError(f"the table names {int(twice.sum())} clips more than once, such as {shown}; give each an id.")
    coded = {}
    for name in ("dataset", "subject", "label"):
        codes, words = pd.factorize(columns[name], sort=True)
        coded[name] = pd.Categorical.from_codes(codes, categories=pd.Index(words, dtype="str"))
    extra = {name: _extra(frame[name]) for name in names if name not in CORE_COLUMNS}
    return pd.DataFrame({"clip": ids, **coded, "aus": pd.Series(columns["aus"], dtype="str"), **extra})


def plain_text(value: Any) -> str | None:
    """Text of a label, an id or another cell, or None where it is missing.

    - Text stays what it is, as plain ``str``; bytes are read as UTF-8.
    - A member of an ``Enum`` stands for its value, whatever else it is.
    - Numbers: whole ones without ``.0`` (``3.0`` is ``"3"``), others as Python writes them; booleans are ``"True"`` and
      ``"False"``.
    - NumPy scalars, and arrays and tensors without a dimension, stand for the Python value that they hold.
    - None, NaN, NaT, ``pandas.NA``, masked values and empty text are missing.
    - Anything else raises a `TypeError` whose text is a phrase that says what it is.
    """
    if type(value) is str:
        return value or None
    if isinstance(value, Enum):
        return plain_text(value.value)
    if isinstance(value, str):
        return str.__str__(value) or None
    if value is None or value is pd.NA or value is pd.NaT or value is np.ma.masked:
        return None
    if isinstance(value, (bytes, bytearray)):
        try:
            return value.decode() or None
        except UnicodeDecodeError:
            raise TypeError("bytes that are not UTF-8 text") from None
    if not isinstance(value, (bool, int, float)) and getattr(value, "shape", None) == () and hasattr(value, "item"):
        held = value.item()
        if type(held) is not type(value):
            return plain_text(held)
    if isinstance(value, float):
        if value != value:
            return None
        # A sheet column of whole numbers with a gap arrives as floats.
        value = int(value) if value.is_integer() else float(value)
    if isinstance(value, (bool, int, float)):
        try:
            return str(value)
        except ValueError:
            raise TypeError("a number of thousands of digits") from None
    raise TypeError(describe_type(value))


def plain_texts(values: Any, name: str) -> list[str | None]:
    """`plain_text` of every value of a list, array, tensor or column; `DataError`, with `name`, where there is none."""
    try:
        # Arrays, tensors and series give plain numbers and text by tolist.
        listed = list(values.tolist() if hasattr(values, "tolist") else values)
    except TypeError as error:
        raise DataError(f"{name!r} is given as {describe_type(values)}, but a list is expected.") from error
    return [_read(value, name, row) for row, value in enumerate(listed)]


def known_texts(values: Any, name: str) -> list[str]:
    """As `plain_texts`, of which none may be missing."""
    words = plain_texts(values, name)
    if None in words:
        raise DataError(f"row {words.index(None) + 1} of {name!r} is missing (None, NaN or empty text); fill it in.")
    return [word for word in words if word is not None]


def _read(value: Any, name: str, row: int) -> str | None:
    try:
        return plain_text(value)
    except TypeError as error:
        raise DataError(f"row {row + 1} of column {name!r} holds {error}, but text or a number is expected.") from error


def cells_as_text(column: pd.Series, name: str) -> NDArray[np.object_]:
    """`plain_text` of every cell as an object array, or ``""``; `DataError` also for text that no file can hold."""
    values = column.to_numpy(object, copy=True)
    values[column.isna().to_numpy()] = ""
    words = values.tolist()
    if not all(type(word) is str for word in words):
        words = [_read(value, name, row) or "" for row, value in enumerate(words)]
        values = np.array(words, object)
    try:
        "".join(words).encode()
    except UnicodeEncodeError as error:
        row = next(row for row, word in enumerate(words) if word.encode(errors="ignore").decode() != word)
        raise DataError(
            f"row {row + 1} of column {name!r} holds {words[row]!r}, which has half a character; correct it."
        ) from error
    return values


def _extra(column: pd.Series) -> pd.Series:
    may_be_text = column.dtype == object or isinstance(column.dtype, (pd.CategoricalDtype, pd.StringDtype))
    if may_be_text and pd.api.types.infer_dtype(column, skipna=True) in ("string", "empty"):
        return pd.Series(cells_as_text(column, str(column.name)), dtype="str")
    return column


def _kind_of_column(column: pd.Series) -> str:
    text = isinstance(column.dtype, (pd.CategoricalDtype, pd.StringDtype))
    kinds = {"i": "integer", "u": "integer", "f": "number", "b": "boolean"}
    kind = "text" if text else kinds.get(getattr(column.dtype, "kind", "O"))
    if kind is None:
        raise DataError(
            f"column {column.name!r} of type {column.dtype} cannot be saved; turn it into text, numbers or booleans."
        )
    return kind


def _written(column: pd.Series, kind: str) -> list[str]:
    if kind == "text":
        return list(cells_as_text(column, str(column.name)))
    missing, values = column.isna().tolist(), column.tolist()
    if kind == "integer":
        large = next((row for row, value in enumerate(values) if not missing[row] and value >= 2**63), None)
        if large is not None:
            raise DataError(
                f"row {large + 1} of column {column.name!r} holds {values[large]}, but integers up to 2**63 - 1 can be "
                "saved; turn the column into text, or leave it out."
            )
    write: Callable[[Any], str] = (lambda value: repr(float(value))) if kind == "number" else str
    return ["" if gone else write(value) for value, gone in zip(values, missing, strict=True)]


def _typed(words: list[str], kind: str) -> pd.Series:
    if kind == "text":
        return pd.Series(words, dtype=object)
    if kind == "number":
        return pd.Series([float(word) if word else float("nan") for word in words], dtype=np.float64)
    read: Callable[[str], Any] = int if kind == "integer" else {"True": True, "False": False}.__getitem__
    plain, nullable = ("int64", "Int64") if kind == "integer" else ("bool", "boolean")
    return pd.Series([read(word) if word else None for word in words], dtype=nullable if "" in words else plain)


def describe_type(value: object) -> str:
    """Phrase for messages, e.g. ``a dict``."""
    return f"a {type(value).__name__}"


def write_table(path: Path, table: pd.DataFrame) -> dict[str, str]:
    """Write a table as CSV and give the type of every column (``"text"``, ``"integer"``, ``"number"``, ``"boolean"``).

    A `DataError` is raised for a column of another type, or a value that `read_table` could not read.
    """
    kinds = {str(name): _kind_of_column(table[name]) for name in table.columns}
    texts = [_written(table[name], kind) for name, kind in kinds.items()]
    longest = csv.field_size_limit()
    for name, words in zip(kinds, texts, strict=True):
        row = next((row for row, word in enumerate(words) if len(word) > longest), None)
        if row is not None or len(name) > longest:
            place = "the name of" if row is None else f"row {row + 1} of"
            raise DataError(
                f"{place} column {name[:50]!r} has more than {longest:,} characters; shorten it, or leave it out."
            )
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(kinds)
        writer.writerows(zip(*texts, strict=True))
    return kinds


def read_table(
    path: Path, kinds: Mapping[str, str], rows: int, blocks: Sequence[str] | None = None, block_bytes: int = BLOCK_BYTES
) -> pd.DataFrame:
    """Read what `write_table` wrote: `rows` rows of columns of these kinds, with these digests of `block_bytes` each.

    A `DataError` is raised where the file is missing, cut short, altered, or has other columns or rows than expected.
    """
    try:
        data = read_bytes(path, TABLE_BYTES)
        starts = range(0, len(data), block_bytes)
        if blocks is not None and [digest(data[start : start + block_bytes]) for start in starts] != list(blocks):
            raise DataError("it is not the table that was saved with these clips")
        header, *lines = [row for _, row in csv_rows(data.decode(), path)] or [[]]
        if header != list(kinds) or len(lines) != rows or any(len(line) != len(header) for line in lines):
            held = f"{len(lines)} rows of {', '.join(header)}"
            raise DataError(f"{held}, but {rows} whole rows of {', '.join(kinds)} are expected")
        return pd.DataFrame({name: _typed([line[i] for line in lines], kinds[name]) for i, name in enumerate(header)})
    except (OSError, ValueError, KeyError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).removesuffix(".")
        raise DataError(f"{path} cannot be used ({reason}); save the clip set again.") from error
