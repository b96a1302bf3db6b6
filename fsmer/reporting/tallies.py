"""The predictions of reports counted by subject, seed and episode, and whether two reports judge the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fsmer.errors import DataError
from fsmer.evaluation.metrics import BLOCK_CELLS, METRICS, Floats, drawn_subjects, score_confusion
from fsmer.evaluation.report import Report

__all__ = ["Tally", "check_pair", "classes_asked", "counted", "report_name", "row_codes", "seed_codes", "tally"]

# Counts by subject, seed, episode and class that one report may need: 8 GiB.
MOST_CELLS = 1 << 30


@dataclass(frozen=True)
class Tally:
    """Confusion matrices of a report by subject, seed and episode; pooled reports have one episode.

    `counts` has shape (S, R, E, C, C); `among`, (E, C), says which classes each episode is about. Where episodes draw
    some of many classes, C is the number that the largest one is about, and each counts its own.
    """

    counts: Floats
    among: NDArray[np.bool_] | None

    @property
    def subjects(self) -> int:
        return self.counts.shape[0]

    @property
    def seeds(self) -> int:
        return self.counts.shape[1]

    def by_seed(self) -> dict[str, Floats]:
        return {name: values[0] for name, values in self._scores(np.ones((1, self.subjects))).items()}

    def figures(self) -> dict[str, Floats]:
        return {name: values.mean() for name, values in self.by_seed().items()}

    def samples(self, draws: int, seed: int) -> dict[str, Floats]:
        """Figures of bootstrap samples, (draws,); the same seed draws the same subjects."""
        parts: dict[str, list[Floats]] = {name: [] for name in METRICS}
        held = max(1, BLOCK_CELLS // max(int(np.prod(self.counts.shape[1:])), 1))
        for times in drawn_subjects(self.subjects, draws, seed):
            for low in range(0, len(times), held):
                for name, values in self._scores(times[low : low + held]).items():
                    parts[name].append(values.mean(axis=1))
        return {name: np.concatenate(values) for name, values in parts.items()}

    def _scores(self, times: Floats) -> dict[str, Floats]:
        """Figures, (draws, R), when each subject counts `times` (draws, S)."""
        counts = np.tensordot(times, self.counts, axes=1)
        scores = score_confusion(counts, self.among)
        # An episode none of whose queries was drawn says nothing.
        asked = counts.any(axis=(-2, -1))
        several = np.maximum(asked.sum(axis=-1), 1)
        return {name: (getattr(scores, name) * asked).sum(axis=-1) / several for name in METRICS}


def tally(report: Report) -> Tally:
    """The predictions of a report, counted; `DataError` where there are none."""
    table = report.predictions
    if table.empty:
        raise DataError(f"the report {report_name(report)!r} holds no predictions; evaluate again.")
    averaged = report.averaging == "episodes"
    episode, episodes = row_codes(table["episode"]) if averaged else (np.zeros(len(table), dtype=np.int64), 1)
    axes = row_codes(table["dataset"], table["subject"]), seed_codes(table), (episode, episodes)
    among = classes_asked(report, episode) if averaged else None
    if among is None:
        return Tally(counted(report, *axes), None)
    # Matrices of all classes would be as large as the square of their number, and nearly empty.
    way = among.sum(axis=1)
    places = np.where(among, among.cumsum(axis=1) - 1, -1)[episode]
    return Tally(counted(report, *axes, places=places), np.arange(way.max()) < way[:, None])


def counted(report: Report, *axes: tuple[NDArray[np.int64], int], places: NDArray[np.int64] | None = None) -> Floats:
    """Confusion matrices by the codes of each axis, (..., C, C).

    `places` (rows, classes of the report), says which of fewer classes each class is for each prediction.
    """
    codes = _class_codes(report)
    if places is not None:
        codes = [np.take_along_axis(places, one[:, None], axis=1)[:, 0] for one in codes]
        if min(int(one.min()) for one in codes) < 0:
            raise DataError(
                f"a prediction of {report_name(report)!r} has a label or an answer without a probability; evaluate "
                "again."
            )
    classes = len(report.classes) if places is None else int(places.max()) + 1
    shape = (*(size for _, size in axes), classes, classes)
    if math.prod(shape) > MOST_CELLS:
        raise DataError(
            f"the report {report_name(report)!r} names too many subjects, seeds and episodes to count by each of them "
            f"({' by '.join(f'{size:,}' for size in shape)}); check its table of predictions."
        )
    place = np.ravel_multi_index((*(code for code, _ in axes), *codes), shape)
    return np.bincount(place, minlength=math.prod(shape)).reshape(shape).astype(np.float64)


def classes_asked(report: Report, group: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """The classes that each group of rows is about, (G, C); ``None``: all. The others have no probability."""
    columns = [f"p_{name}" for name in report.classes]
    if not set(columns) <= set(report.predictions):
        return None
    told = report.predictions[columns].notna().to_numpy()
    if told.all():
        return None
    among = np.zeros((int(group.max()) + 1, len(report.classes)), dtype=bool)
    np.logical_or.at(among, (group[:, None], np.arange(len(report.classes))), told)
    return among


def seed_codes(table: pd.DataFrame) -> tuple[NDArray[np.int64], int]:
    """Code of the seed of every row, and how many seeds there are."""
    return row_codes(table["seed"]) if "seed" in table else (np.zeros(len(table), dtype=np.int64), 1)


def row_codes(*columns: pd.Series[Any]) -> tuple[NDArray[np.int64], int]:
    """Codes of the distinct rows of some columns in sorted order, and how many there are."""
    index = pd.MultiIndex.from_arrays([column.to_numpy() for column in columns])
    codes, distinct = pd.factorize(index, sort=True)
    return codes.astype(np.int64), len(distinct)


def _class_codes(report: Report) -> list[NDArray[np.int64]]:
    found = []
    for name in ("label", "predicted"):
        values = pd.Index(report.classes).get_indexer(report.predictions[name].astype(str))
        if (values < 0).any():
            strange = report.predictions[name].to_numpy()[values < 0][0]
            raise DataError(
                f"the predictions of {report_name(report)!r} name the class {strange!r}, which is none of its classes "
                f"{', '.join(report.classes)}; evaluate again."
            )
        found.append(values.astype(np.int64))
    return found


def check_pair(a: Report, b: Report, names: Sequence[str], same_folds: bool) -> None:
    """Refuse two reports that judge other things, in words that use `names` for them."""
    first, second = names
    both = f"{first} and {second}"
    if sorted(a.classes) != sorted(b.classes):
        raise DataError(
            f"{both} tell other classes apart ({', '.join(a.classes)}; {', '.join(b.classes)}), which are other tasks; "
            "compare reports of one protocol."
        )
    if a.averaging != b.averaging:
        raise DataError(f"one of {both} averages over episodes and the other pools folds; compare like with like.")
    keys = ["dataset", "clip"]
    mine, theirs = (
        report.predictions.drop_duplicates(keys).set_index(keys)[["label", "subject"]].astype(str) for report in (a, b)
    )
    alone = mine.index.symmetric_difference(theirs.index)
    if len(alone):
        shared = len(mine.index.intersection(theirs.index))
        raise DataError(
            f"{both} judge other clips: {shared:,} are in both, {len(mine) - shared:,} only in {first} and "
            f"{len(theirs) - shared:,} only in {second}, for example {alone[0][1]!r} of {alone[0][0]}; compare reports "
            "on the same clips."
        )
    for column in ("label", "subject"):
        unlike = mine[column] != theirs[column].reindex(mine.index)
        if unlike.any():
            dataset, clip = mine.index[int(np.argmax(unlike.to_numpy()))]
            raise DataError(
                f"{both} give clip {clip!r} of {dataset} another {column}; compare reports of one labelling."
            )
    if (same_folds or a.averaging == "episodes") and _folds(a) != _folds(b):
        raise DataError(
            f"{both} deal the clips into other folds or episodes, so they learnt from other clips; run both by the "
            "same protocol and seed of episodes."
        )


def _folds(report: Report) -> set[frozenset[tuple[str, str]]] | list[tuple[int, str, str]]:
    """The folds as sets of clips, whatever their numbers; episodes that ask clips repeatedly keep theirs."""
    table = report.predictions
    keys = ["episode", "dataset", "clip"]
    if report.averaging == "episodes":
        return sorted(map(tuple, table[keys].drop_duplicates().to_numpy().tolist()))
    return {frozenset(zip(part["dataset"], part["clip"], strict=True)) for _, part in table[keys].groupby("episode")}


def report_name(report: Report) -> str:
    """What was run, as a name: method on model."""
    return f"{report.stamped(report.method['name'])} on {report.model['name']}"
