"""The files of a report: what ``report.json`` and its two tables must hold, and reading them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

import numpy as np
from annotated_types import Ge, Le, Len
from typing_extensions import TypedDict

from fsmer.errors import DataError
from fsmer.evaluation.metrics import METRICS
from fsmer.evaluation.predictions import EPISODES_FILE, PREDICTIONS_FILE, REMEDY, REPORT_FILE, RUN_FILE, Seed
from fsmer.io import CHECKSUM, check_regular, file_digest, json_digest, read_bytes
from fsmer.schema import Count, Fraction, Names, checked
from fsmer.text import read_cells

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "FORMAT_VERSION", "altered_files", "read_report"]

# 2: several seeds, selection, notes.
FORMAT_VERSION = 2

Interval = tuple[float, float] | None


class _Scores(TypedDict):
    uf1: Fraction
    uar: Fraction
    acc: Fraction
    acc_merau: Fraction
    oracle: NotRequired[bool]


class _Intervals(_Scores):
    uf1_interval: Interval
    uar_interval: Interval
    acc_interval: Interval
    acc_merau_interval: Interval


class _OfDataset(_Intervals):
    clips: Count
    subjects: Count


class _OfClass(TypedDict):
    f1: Fraction
    recall: Fraction
    precision: Fraction
    clips: Count
    oracle: NotRequired[bool]


class _OfSeed(_Scores):
    seed: Seed


class _Settings(TypedDict, extra_items=Any):  # type: ignore[call-arg]
    params: dict[str, Any]
    kind: NotRequired[str]


class _Protocol(TypedDict, extra_items=Any):  # type: ignore[call-arg]
    name: str
    title: str
    hash: str
    settings: _Settings


class _Model(TypedDict, extra_items=Any):  # type: ignore[call-arg]
    name: str
    weights_hash: str
    input_specs: NotRequired[list[dict[str, Any]]]


class _Method(TypedDict, extra_items=Any):  # type: ignore[call-arg]
    name: str
    params: dict[str, Any]


class _Selection(TypedDict, extra_items=Any):  # type: ignore[call-arg]
    rule: Literal["fixed", "nested", "oracle"]
    by: NotRequired[str]
    chosen: NotRequired[list[dict[str, Any]]]


class _Counts(TypedDict):
    clips: Count
    subjects: Count
    episodes: Count
    predictions: Count


class _ReportFile(_Intervals):
    """What ``report.json`` holds."""

    format_version: Annotated[int, Ge(1), Le(FORMAT_VERSION)]
    averaging: Literal["pooled", "episodes"]
    per_dataset: dict[str, _OfDataset]
    per_class: dict[str, _OfClass]
    classes: Annotated[Names, Len(1)]
    confusion: list[list[Count]]
    protocol: _Protocol
    model: _Model
    method: _Method
    counts: _Counts
    seed: Seed
    versions: dict[str, str]
    # Format 1 had one seed and chose nothing.
    per_seed: NotRequired[Annotated[list[_OfSeed], Len(1)]]
    selection: NotRequired[_Selection]
    honest: NotRequired[_Intervals]
    notes: NotRequired[list[str]]
    preprocessing: NotRequired[dict[str, list[str]]]
    # Earlier versions told of it in run.json alone.
    isolation: NotRequired[Literal["none", "process"]]
    # Digests of the tables; earlier versions wrote none.
    files: NotRequired[dict[str, str]]


# Columns of the tables and how they are read: text as it stands, so that subject "006" stays what it is and a clip
# named "NA" is no missing value. Those of probabilities are named after the classes.
COLUMNS: dict[str, dict[str, Any]] = {
    PREDICTIONS_FILE: {"episode": np.int64, **dict.fromkeys(("clip", "dataset", "subject", "label", "predicted"), str)},
    EPISODES_FILE: {"episode": np.int64, "name": str, "clips": np.int64, **dict.fromkeys(METRICS, np.float64)},
}
MORE_COLUMNS: dict[str, Any] = {"seed": np.uint64, "oracle": bool}


def read_report(folder: Path) -> tuple[dict[str, Any], list[pd.DataFrame]]:
    """What ``report.json`` holds, with what earlier versions did not write, and the tables of predictions and episodes.

    Raises
    ------
    OSError
        A file cannot be read.
    DataError
        A file is no whole one, or is of a newer version.
    """
    path = folder / REPORT_FILE
    held = _content(path)
    version = held.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise DataError(
            f"{path} was written by a newer fsmer (report format {version}, this version reads up to "
            f"{FORMAT_VERSION}); upgrade fsmer."
        )
    values: Any = checked(held, _ReportFile, path, what="a report", remedy=REMEDY)
    own = values["method"]["params"].get("seed")
    alone = {"seed": own if isinstance(own, int) else 0} | {name: values[name] for name in METRICS}
    values = {"per_seed": [alone], "selection": {"rule": "fixed"}, "notes": [], "preprocessing": {}} | values
    if contradiction := _contradiction(values):
        raise DataError(f"{path} cannot be read as a report ({contradiction}); {REMEDY}.")
    return values, [_read_table(path.with_name(name)) for name in COLUMNS]


def altered_files(folder: str | os.PathLike[str]) -> list[str]:
    """Files of a report that are not as `Report.save` wrote them; those of earlier versions cannot be checked."""
    place, found = Path(folder), []
    files: dict[str, str] = {}
    for name in (REPORT_FILE, RUN_FILE):
        try:
            values = _content(place / name)
        except FileNotFoundError:
            continue
        except (OSError, DataError):
            found.append(name)
            continue
        # Format 1 had no checksums.
        sealed = CHECKSUM in values and values.get("format_version") != 1
        if sealed and values[CHECKSUM] != json_digest(values):
            found.append(name)
        if name == REPORT_FILE:
            files = values.get("files", {})
    return found + [name for name, digest in files.items() if name in COLUMNS and file_digest(place / name) != digest]


def _content(path: Path) -> dict[str, Any]:
    """A JSON table as it stands, altered or not.

    Raises
    ------
    OSError, DataError
        It cannot be read, or is no table.
    """
    from pydantic_core import from_json

    try:
        values = from_json(read_bytes(path))
    except ValueError as error:
        raise DataError(f"{path} cannot be read as a report: it is not valid JSON ({error}); {REMEDY}.") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} cannot be read as a report: it holds no table; {REMEDY}.")
    return values


def _contradiction(values: Mapping[str, Any]) -> str:
    """Why a report cannot be one, whatever its tables say; nothing where it can."""
    classes, confusion = values["classes"], values["confusion"]
    seeds = [row["seed"] for row in values["per_seed"]]
    if len(set(classes)) < len(classes) or len(set(seeds)) < len(seeds):
        return "a class or a seed stands twice"
    if set(values["per_class"]) != set(classes):
        return f"per_class has {', '.join(values['per_class'])} where the classes are {', '.join(classes)}"
    if {len(confusion), *map(len, confusion)} != {len(classes)}:
        return f"the confusion matrix is not one of {len(classes)} classes"
    return ""


def _read_table(path: Path) -> pd.DataFrame:
    """One of the two tables, each column as `COLUMNS` says and those of probabilities as numbers.

    Raises
    ------
    OSError, DataError
        It cannot be read, lacks a column, or a cell is none of its column.
    """
    import pandas as pd

    check_regular(path)
    try:
        header = pd.read_csv(path, nrows=0).columns
        lacking = [name for name in COLUMNS[path.name] if name not in header]
        if lacking:
            raise ValueError(f"it has no column {lacking[0]!r}")
        kinds = (
            {name: np.float64 if name.startswith("p_") else str for name in header} | COLUMNS[path.name] | MORE_COLUMNS
        )
        numbers = {name: [""] for name in header if kinds[name] is np.float64}
        # A number such as 1e999 among whole ones would become any other with no more than a warning.
        with np.errstate(invalid="raise"):
            return read_cells(pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=numbers))
    except (ValueError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as a table of a report ({reason}); {REMEDY}.") from error
