"""The files of a report: what ``report.json`` and its tables must hold, reading them, and whether they agree."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

import numpy as np
import pandas as pd
from annotated_types import Ge, Le, Len
from numpy.typing import NDArray
from pydantic_core import from_json

from fsmer.errors import DataError
from fsmer.evaluation.metrics import METRICS, confusion_matrix, score_confusion
from fsmer.evaluation.predictions import EPISODES_FILE, PREDICTIONS_FILE, REMEDY, REPORT_FILE, RUN_FILE, Seed
from fsmer.io import CHECKSUM, check_regular, file_digest, json_digest, read_bytes
from fsmer.probabilities import unsound_answers
from fsmer.schema import Count, Fraction, Names, checked, entries
from fsmer.text import read_cells

if TYPE_CHECKING:
    from fsmer.evaluation.report import Report

__all__ = ["COLUMNS", "FORMAT_VERSION", "NAMES", "altered_files", "contradicting_tables", "read_report", "unsound_rows"]
__all__ += ["unsound_values"]

# 2: several seeds, selection, notes.
FORMAT_VERSION = 2
# How figures are headed.
NAMES = {"uf1": "UF1", "uar": "UAR", "acc": "Accuracy", "acc_merau": "Acc (MERAU eq. 14)"}


# Figures of plugins' metrics stand beside those of fsmer.
_MORE: Any = float | tuple[float, float] | None
_SCORES = dict.fromkeys(METRICS, Fraction) | {"oracle": NotRequired[bool]}
_FIGURES = _SCORES | {f"{name}_interval": tuple[float, float] | None for name in METRICS}
_OF_DATASET: Any = entries(_FIGURES | {"clips": Count, "subjects": Count}, extra_items=_MORE)
_OF_SEED: Any = entries(_SCORES | {"seed": Seed}, extra_items=_MORE)
_OF_CLASS: Any = entries(
    dict.fromkeys(("f1", "recall", "precision"), Fraction) | {"clips": Count, "oracle": NotRequired[bool]}
)
_SETTINGS = entries({"params": dict[str, Any], "kind": NotRequired[str]}, extra_items=Any)
_RULES = Literal["fixed", "nested", "oracle"]
_SELECTION = {"rule": _RULES, "by": NotRequired[str], "chosen": NotRequired[list[dict[str, Any]]]}
_MODEL = {"name": str, "weights_hash": str, "input_specs": NotRequired[list[dict[str, Any]]]}
# What ``report.json`` holds.
_REPORT = entries(
    _FIGURES
    | {
        "format_version": Annotated[int, Ge(1), Le(FORMAT_VERSION)],
        "averaging": Literal["pooled", "episodes"],
        "per_dataset": dict[str, _OF_DATASET],
        "per_class": dict[str, _OF_CLASS],
        "classes": Annotated[Names, Len(1)],
        "confusion": list[list[Count]],
        "protocol": entries({"name": str, "title": str, "hash": str, "settings": _SETTINGS}, extra_items=Any),
        "model": entries(_MODEL, extra_items=Any),
        "method": entries({"name": str, "params": dict[str, Any]}, extra_items=Any),
        "counts": entries(dict.fromkeys(("clips", "subjects", "episodes", "predictions"), Count)),
        "seed": Seed,
        "versions": dict[str, str],
        # Format 1 had one seed and chose nothing.
        "per_seed": NotRequired[Annotated[list[_OF_SEED], Len(1)]],
        "selection": NotRequired[entries(_SELECTION, extra_items=Any)],
        "honest": NotRequired[entries(_FIGURES, extra_items=_MORE)],
        "notes": NotRequired[list[str]],
        "preprocessing": NotRequired[dict[str, list[str]]],
        # Metrics of plugins, and who registered each, in plain text: nothing is loaded because of it.
        "metrics": NotRequired[dict[str, str]],
        # Earlier versions wrote it to run.json alone.
        "isolation": NotRequired[Literal["none", "process"]],
        # Digests of the tables; earlier versions wrote none.
        "files": NotRequired[dict[str, str]],
    },
    extra_items=Any,
)


# Columns of the tables and how they are read: text as it stands, so that subject "006" stays what it is and a clip
# named "NA" is no missing value. Those of probabilities are named after the classes.
COLUMNS: dict[str, dict[str, Any]] = {
    PREDICTIONS_FILE: {"episode": np.int64, **dict.fromkeys(("clip", "dataset", "subject", "label", "predicted"), str)},
    EPISODES_FILE: {"episode": np.int64, "name": str, "clips": np.int64, **dict.fromkeys(METRICS, np.float64)},
}
MORE_COLUMNS: dict[str, Any] = {"seed": np.uint64, "oracle": bool}


def read_report(folder: Path) -> tuple[dict[str, Any], list[pd.DataFrame]]:
    """``report.json``, with what earlier versions did not write, and the tables of predictions and episodes.

    `OSError` where a file cannot be read, `DataError` where one is not whole or of a newer version.
    """
    path = folder / REPORT_FILE
    held = _content(path)
    version = held.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise DataError(
            f"{path} was written by a newer fsmer (report format {version}, this version reads up to "
            f"{FORMAT_VERSION}); upgrade fsmer."
        )
    values: Any = checked(held, _REPORT, path, what="a report", remedy=REMEDY)
    own = values["method"]["params"].get("seed")
    alone = {"seed": own if isinstance(own, int) else 0} | {name: values[name] for name in METRICS}
    absent = {"per_seed": [alone], "selection": {"rule": "fixed"}, "notes": [], "preprocessing": {}, "metrics": {}}
    values = absent | values
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
    """A JSON table as it stands, altered or not; `OSError` or `DataError` where it is none."""
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
    for name in values["metrics"]:
        parts = (values, *values["per_dataset"].values(), *values["per_seed"])
        bounds = values.get(f"{name}_interval") or ()
        if not all(type(value) in (int, float) for value in (*(part.get(name) for part in parts), *bounds)):
            return f"the metric {name!r} is no number everywhere"
    return ""


def _read_table(path: Path) -> pd.DataFrame:
    """One of the two tables, each column as `COLUMNS` says and those of probabilities as numbers."""
    check_regular(path)
    try:
        header = pd.read_csv(path, nrows=0).columns
        lacking = [name for name in COLUMNS[path.name] if name not in header]
        if lacking:
            raise ValueError(f"it has no column {lacking[0]!r}")
        kinds: dict[str, Any] = {name: np.float64 if name.startswith("p_") else str for name in header}
        kinds |= COLUMNS[path.name] | MORE_COLUMNS
        numbers = {name: [""] for name in header if kinds[name] is np.float64}
        # A number such as 1e999 among whole ones would become any other with no more than a warning.
        with np.errstate(invalid="raise"):
            return read_cells(pd.read_csv(path, dtype=kinds, keep_default_na=False, na_values=numbers))
    except (ValueError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as a table of a report ({reason}); {REMEDY}.") from error


def unsound_values(report: Report) -> str:
    """What of figures and probabilities cannot be one, in words; nothing where all can."""
    for name in METRICS:
        if not np.isfinite([report.figures[name], *(report.interval(name) or ())]).all():
            return f"{NAMES[name]} is no finite number"
    count = int(unsound_rows(report).sum())
    if count:
        return f"the probabilities of {count:,} answers are not from 0 to 1 with the sum 1"
    return ""


def unsound_rows(report: Report) -> NDArray[np.bool_]:
    """Rows of `predictions` whose probabilities are not from 0 to 1 with the sum 1, or lack the answer's."""
    columns = [f"p_{name}" for name in report.classes]
    if not set(columns) <= set(report.predictions):
        return np.zeros(len(report.predictions), dtype=bool)
    values = report.predictions[columns].to_numpy(dtype=np.float64)
    given = ~np.isnan(values)
    predicted = report.predictions["predicted"].map({name: code for code, name in enumerate(report.classes)})
    known = predicted.notna().to_numpy()
    answered = given[np.arange(len(values)), predicted.fillna(0).to_numpy(dtype=np.int64)]
    unsound: NDArray[np.bool_] = unsound_answers(np.where(given, values, 0.0)) | (known & ~answered)
    return unsound


def contradicting_tables(report: Report) -> str:
    """Why the figures cannot be those of the tables, such as a table that was cut; nothing where they can."""
    answers, episodes = report.predictions, report.episodes
    known = {"label": report.classes, "predicted": report.classes, "seed": [row["seed"] for row in report.per_seed]}
    for name, table, counted in (
        (PREDICTIONS_FILE, answers, int(report.counts["predictions"])),
        (EPISODES_FILE, episodes, int(report.counts["episodes"]) * len(report.per_seed)),
    ):
        if len(table) != counted:
            return f"{name} has {len(table):,} rows, but {REPORT_FILE} counts {counted:,}"
        if ("seed" in table) != (len(report.per_seed) > 1):
            return f"{REPORT_FILE} counts {len(report.per_seed):,} seeds, but {name} another number"
    keys = [name for name in ("seed", "episode") if name in answers]
    asked = episodes[episodes["clips"] > 0]
    if answers.groupby(keys).size().to_dict() != asked.set_index(keys)["clips"].to_dict():
        return f"{EPISODES_FILE} counts other numbers of clips than {PREDICTIONS_FILE} has"
    codes = {}
    for name in (name for name in known if name in answers):
        codes[name] = pd.Index(list(known[name])).get_indexer(answers[name])
        if (codes[name] < 0).any():
            return f"{PREDICTIONS_FILE} has a {name} that {REPORT_FILE} does not name"
    groups, seeds = codes.get("seed", np.zeros(len(answers))), len(report.per_seed)
    truth, said = codes["label"], codes["predicted"]
    by_seed = confusion_matrix(truth, said, len(report.classes), groups=groups, n_groups=seeds)
    if not np.array_equal(by_seed.sum(axis=0), report.confusion):
        return f"the confusion matrix of {REPORT_FILE} does not count the rows of {PREDICTIONS_FILE}"
    lacking = [f"p_{name}" for name in report.classes if f"p_{name}" not in answers]
    if lacking:
        return f"{PREDICTIONS_FILE} lacks the column {lacking[0]!r}"
    if not episodes["episode"].between(0, report.counts["episodes"] - 1).all():
        return f"{EPISODES_FILE} has an episode that {REPORT_FILE} does not name"
    if not ((episodes[list(METRICS)] >= 0) & (episodes[list(METRICS)] <= 1)).all(axis=None):
        return f"{EPISODES_FILE} has a figure that is not from 0 to 1"
    if answers.duplicated([*keys, "dataset", "clip"]).any():
        return f"{PREDICTIONS_FILE} has two answers for one clip of an episode"
    judged = len(answers.drop_duplicates(["dataset", "clip"]))
    if judged != report.counts["clips"]:
        counted = report.counts["clips"]
        return f"{PREDICTIONS_FILE} has answers for {judged:,} clips, but {REPORT_FILE} counts {counted:,}"
    scores = score_confusion(by_seed)
    for name in METRICS:
        found = float(np.mean(asked[name] if report.averaging == "episodes" else getattr(scores, name)))
        if not abs(found - report.figures[name]) <= 1e-6:
            return f"{NAMES[name]} is {report.figures[name]:.4f} in {REPORT_FILE}, but {found:.4f} by the tables"
    return ""
