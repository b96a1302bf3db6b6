"""Whether the figures of a report follow from its own tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fsmer.evaluation.metrics import METRICS, confusion_matrix, score_confusion
from fsmer.evaluation.predictions import EPISODES_FILE, PREDICTIONS_FILE, REPORT_FILE
from fsmer.evaluation.report_tables import NAMES
from fsmer.probabilities import unsound_answers

if TYPE_CHECKING:
    from fsmer.evaluation.report import Report

__all__ = ["contradicting_tables", "unsound_rows", "unsound_values"]


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
    told = ~np.isnan(values)
    said = report.predictions["predicted"].map({name: code for code, name in enumerate(report.classes)})
    given = said.notna().to_numpy()
    answered = told[np.arange(len(values)), said.fillna(0).to_numpy(dtype=np.int64)]
    unsound: NDArray[np.bool_] = unsound_answers(np.where(told, values, 0.0)) | (given & ~answered)
    return unsound


def contradicting_tables(report: Report) -> str:
    """Why the figures cannot be those of the tables, such as a table that was cut; nothing where they can."""
    import pandas as pd

    answers, episodes = report.predictions, report.episodes
    known = {"label": report.classes, "predicted": report.classes, "seed": [row["seed"] for row in report.per_seed]}
    for name, table, told in (
        (PREDICTIONS_FILE, answers, int(report.counts["predictions"])),
        (EPISODES_FILE, episodes, int(report.counts["episodes"]) * len(report.per_seed)),
    ):
        if len(table) != told:
            return f"{name} has {len(table):,} rows, but {REPORT_FILE} tells of {told:,}"
        if ("seed" in table) != (len(report.per_seed) > 1):
            return f"{REPORT_FILE} tells of {len(report.per_seed):,} seeds, but {name} of another number"
    keys = [name for name in ("seed", "episode") if name in answers]
    asked = episodes[episodes["clips"] > 0]
    if answers.groupby(keys).size().to_dict() != asked.set_index(keys)["clips"].to_dict():
        return f"{EPISODES_FILE} tells of other numbers of clips than {PREDICTIONS_FILE} has"
    codes = {}
    for name in (name for name in known if name in answers):
        codes[name] = pd.Index(list(known[name])).get_indexer(answers[name])
        if (codes[name] < 0).any():
            return f"{PREDICTIONS_FILE} has a {name} of which {REPORT_FILE} does not tell"
    by_seed = confusion_matrix(
        codes["label"],
        codes["predicted"],
        len(report.classes),
        groups=codes.get("seed", np.zeros(len(answers))),
        n_groups=len(report.per_seed),
    )
    if not np.array_equal(by_seed.sum(axis=0), report.confusion):
        return f"the confusion matrix of {REPORT_FILE} does not count the rows of {PREDICTIONS_FILE}"
    lacking = [f"p_{name}" for name in report.classes if f"p_{name}" not in answers]
    if lacking:
        return f"{PREDICTIONS_FILE} lacks the column {lacking[0]!r}"
    if not episodes["episode"].between(0, report.counts["episodes"] - 1).all():
        return f"{EPISODES_FILE} has an episode of which {REPORT_FILE} does not tell"
    if not ((episodes[list(METRICS)] >= 0) & (episodes[list(METRICS)] <= 1)).all(axis=None):
        return f"{EPISODES_FILE} has a figure that is not from 0 to 1"
    if answers.duplicated([*keys, "dataset", "clip"]).any():
        return f"{PREDICTIONS_FILE} has two answers for one clip of an episode"
    judged = len(answers.drop_duplicates(["dataset", "clip"]))
    if judged != report.counts["clips"]:
        told = report.counts["clips"]
        return f"{PREDICTIONS_FILE} has answers for {judged:,} clips, but {REPORT_FILE} tells of {told:,}"
    scores = score_confusion(by_seed)
    for name in METRICS:
        found = float(np.mean(asked[name] if report.averaging == "episodes" else getattr(scores, name)))
        if not abs(found - report.figures[name]) <= 1e-6:
            return f"{NAMES[name]} is {report.figures[name]:.4f} in {REPORT_FILE}, but {found:.4f} by the tables"
    return ""
