"""The table of a clip set: bring it into its one form, write it as CSV, read it back with the same types."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fsmer.errors import DataError

__all__ = ["CORE_COLUMNS", "cells_as_text", "clean_table", "describe_type", "read_table", "write_table"]

CORE_COLUMNS = ("clip", "dataset", "subject", "label", "aus")


def clean_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Check a table of clips and bring it into the form that `ClipSet.table` documents.

    Raises
    ------
    DataError
        As for `ClipSet.from_table`.
    """
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
        raise DataError(
            f"the table names {int(twice.sum())} clips more than once, such as {shown}; "
            "give each clip an id of its own."
        )
    clean = {
        "clip": ids,
        **{name: _categorical(columns[name]) for name in ("dataset", "subject", "label")},
        "aus": pd.Series(columns["aus"], dtype="str"),
        **{name: _extra(frame[name]) for name in names if name not in CORE_COLUMNS},
    }
    return pd.DataFrame(clean)


def _categorical(words: NDArray[np.object_]) -> pd.Categorical:
    codes, names = pd.factorize(words, sort=True)
    return pd.Categorical.from_codes(codes, categories=pd.Index(names, dtype="str"))


def cells_as_text(column: pd.Series, name: str) -> NDArray[np.object_]:
    """Text of every cell as an object array; missing cells are ``""``, whole numbers lose their ``.0``.

    Raises
    ------
    DataError
        A cell holds neither text nor a number.
    """
    values = column.to_numpy(object, copy=True)
    missing = column.isna().to_numpy()
    values[missing] = ""
    if pd.api.types.infer_dtype(values, skipna=False) not in ("string", "empty"):
        values = np.array([_word(value, name, row) for row, value in enumerate(values.tolist())], object)
    return values


def _word(value: Any, name: str, row: int) -> str:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return str(value) if isinstance(value, bool) else str(int(value))
    if isinstance(value, (float, np.floating)):
        # A sheet column of whole numbers with a gap arrives as floats.
        return str(int(value)) if float(value).is_integer() else str(value)
    raise DataError(f"row {row + 1} of column {name!r} holds {describe_type(value)}, but text or a number is expected.")


def _extra(column: pd.Series) -> pd.Series:
    if column.dtype == object or isinstance(column.dtype, (pd.CategoricalDtype, pd.StringDtype)):
        kind = pd.api.types.infer_dtype(column, skipna=True)
        if kind in ("string", "empty"):
            return pd.Series(cells_as_text(column, str(column.name)), dtype="str")
    return column


def _kind_of_column(column: pd.Series) -> str:
    if isinstance(column.dtype, (pd.CategoricalDtype, pd.StringDtype)):
        return "text"
    kinds = {"i": "integer", "u": "integer", "f": "number", "b": "boolean"}
    kind = kinds.get(getattr(column.dtype, "kind", "O"))
    if kind is None:
        raise DataError(
            f"column {column.name!r} of type {column.dtype} cannot be saved; turn it into text, numbers or booleans."
        )
    return kind


def _written(column: pd.Series, kind: str) -> list[str]:
    missing = column.isna().to_numpy()
    write = repr if kind == "number" else str
    return ["" if gone else write(value) for value, gone in zip(column.tolist(), missing.tolist(), strict=True)]


def _typed(words: list[str], kind: str) -> pd.Series:
    if kind == "text":
        return pd.Series(words, dtype=object)
    if kind == "number":
        return pd.Series([float(word) if word else float("nan") for word in words], dtype=np.float64)
    readers: dict[str, Callable[[str], Any]] = {"integer": int, "boolean": {"True": True, "False": False}.__getitem__}
    read = readers[kind]
    plain, nullable = {"integer": ("int64", "Int64"), "boolean": ("bool", "boolean")}[kind]
    return pd.Series([read(word) if word else None for word in words], dtype=nullable if "" in words else plain)


def describe_type(value: object) -> str:
    """Phrase for messages, e.g. ``a dict``."""
    return f"a {type(value).__name__}"


def write_table(path: Path, table: pd.DataFrame) -> dict[str, str]:
    """Write a table as CSV.

    Returns
    -------
    dict
        Column -> ``"text"``, ``"integer"``, ``"number"`` or ``"boolean"``, which `read_table` needs.

    Raises
    ------
    DataError
        A column holds something else.
    """
    kinds = {str(name): _kind_of_column(table[name]) for name in table.columns}
    texts = [_written(table[name], kind) for name, kind in kinds.items()]
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(kinds)
        writer.writerows(zip(*texts, strict=True))
    return kinds


def read_table(path: Path, kinds: Mapping[str, str], rows: int) -> pd.DataFrame:
    """Read what `write_table` wrote.

    Raises
    ------
    DataError
        The file is missing, cut short, or has other columns or another number of rows than expected.
    """
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            header, *lines = csv.reader(handle)
        if header != list(kinds) or len(lines) != rows or any(len(line) != len(header) for line in lines):
            held = f"{len(lines)} rows of {', '.join(header)}"
            raise DataError(f"{held}, but {rows} whole rows of {', '.join(kinds)} are expected")
        return pd.DataFrame({name: _typed([line[i] for line in lines], kinds[name]) for i, name in enumerate(header)})
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise DataError(f"{path} cannot be used ({error}); save the clip set again.") from error
