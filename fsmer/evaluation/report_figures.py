"""Everything in a report that follows from the predictions: figures with intervals, counts and the two tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fsmer.data import ClipSet
from fsmer.episodic.episode import Ints, Mask
from fsmer.evaluation import metrics as scoring
from fsmer.evaluation.metrics import METRICS, Scores, confusion_matrix, score_confusion
from fsmer.evaluation.predictions import Predictions

__all__ = ["Figures", "report_figures"]

Figures = dict[str, Any]


def report_figures(
    clips: ClipSet,
    runs: Mapping[int, Predictions],
    *,
    codes: Ints,
    classes: Sequence[str],
    names: Sequence[str],
    among: Mask | None,
    averaging: str,
    seed: int,
    oracle: bool,
) -> dict[str, Any]:
    """The attributes of a `Report` that are computed, from the predictions by seed of the method (`runs`).

    `codes` (N,) are the classes of all clips as indices into `classes`, of which only those of judged clips are read;
    `names` are those of the episodes, and `among` (E, C) the classes that each is about (``None``: all). `averaging` is
    "pooled" or "episodes", `seed` that of the bootstrap, `oracle` whether something was chosen on the test clips.
    """
    asked = next(iter(runs.values()))
    rows, n_classes, n_episodes = asked.clip, len(classes), len(names)
    truth = codes[rows]
    datasets, people = clips.dataset_codes(), clips.subject_codes()
    judged = np.zeros(len(clips), dtype=bool)
    judged[rows] = True
    stamp = {"oracle": True} if oracle else {}
    metrics = scoring.metric_names()

    def figures(chosen: Mask) -> tuple[Figures, list[Scores], Ints]:
        """Figures of these rows, their scores seed by seed (with an axis of episodes, or none), and the counts."""

        def counted(groups: NDArray[Any], n_groups: int) -> Ints:
            """Confusion matrices of shape (seeds, groups, C, C)."""
            asked, how = truth[chosen], dict[str, Any](groups=groups[chosen], n_groups=n_groups)
            return np.stack([confusion_matrix(asked, one.predicted[chosen], n_classes, **how) for one in runs.values()])

        by_episode = counted(asked.episode, n_episodes)
        if averaging == "episodes":
            # An episode without any query of a data set says nothing about it.
            held = by_episode[0].any(axis=(1, 2))
            scores = [score_confusion(one[held], None if among is None else among[held]) for one in by_episode]
            # Episodes are what is drawn; the seeds of one are averaged before.
            each = {name: np.mean([one[name] for one in scores], axis=0) for name in metrics}
            values: Figures = {name: float(each[name].mean()) for name in metrics}
            intervals = {name: scoring.mean_interval(each[name]) for name in metrics}
        else:
            scores = [score_confusion(one.sum(axis=0)) for one in by_episode]
            values = {name: float(np.mean([one[name] for one in scores])) for name in metrics}
            subject_names, subjects = np.unique(people[rows], return_inverse=True)
            by_subject = counted(subjects, len(subject_names))
            intervals = scoring.bootstrap_interval(by_subject[:, by_subject.any(axis=(0, 2, 3))], seed=seed)
        values |= {f"{name}_interval": intervals[name] for name in metrics} | stamp
        return values, scores, by_episode.sum(axis=(0, 1))

    whole, scores, total = figures(np.ones(len(rows), dtype=bool))
    per_dataset = {}
    for number, dataset in enumerate(clips.dataset_names):
        here = judged & (datasets == number)
        if here.any():
            values, _, _ = figures(datasets[rows] == number)
            per_dataset[dataset] = values | {"clips": int(here.sum()), "subjects": len(np.unique(people[here]))}
    per_class = {}
    for code, name in enumerate(classes):
        shown: Figures = {}
        for key in ("f1", "recall", "precision"):
            by_class = [getattr(one, key)[..., code] for one in scores]
            if averaging == "episodes" and among is not None:
                by_class = [values[among[:, code]] for values in by_class]
            shown[key] = float(np.mean(by_class)) if np.size(by_class) else 0.0
        per_class[name] = shown | {"clips": int((judged & (codes == code)).sum())} | stamp
    return {
        "figures": whole,
        "averaging": averaging,
        "per_dataset": per_dataset,
        "per_class": per_class,
        "classes": tuple(classes),
        "confusion": total,
        "predictions": _by_seed(runs, lambda one: _predictions_table(clips, one, classes, truth).assign(**stamp)),
        "episodes": _by_seed(runs, lambda one: _episodes_table(one, truth, names, among, n_classes).assign(**stamp)),
        "counts": {
            "clips": int(judged.sum()),
            "subjects": len(np.unique(people[judged])),
            "episodes": n_episodes,
            "predictions": sum(map(len, runs.values())),
        },
        "per_seed": [
            {"seed": number} | {name: float(np.mean(one[name])) for name in metrics} | stamp
            for number, one in zip(runs, scores, strict=True)
        ],
        "preprocessing": _recipes(clips, judged),
        "metrics": scoring.metric_plugins(),
    }


def _by_seed(runs: Mapping[int, Predictions], table_of: Callable[[Predictions], pd.DataFrame]) -> pd.DataFrame:
    tables = {seed: table_of(one) for seed, one in runs.items()}
    if len(tables) == 1:
        return next(iter(tables.values()))
    for seed, table in tables.items():
        table.insert(0, "seed", seed)
    return pd.concat(list(tables.values()), ignore_index=True)


def _predictions_table(clips: ClipSet, predictions: Predictions, classes: Sequence[str], truth: Ints) -> pd.DataFrame:
    names = np.array(classes, dtype=object)
    columns: dict[str, Any] = {
        "episode": predictions.episode,
        "clip": clips.ids[predictions.clip],
        "dataset": clips.datasets[predictions.clip],
        "subject": clips.subjects[predictions.clip],
        "label": names[truth],
        "predicted": names[predictions.predicted],
    }
    # Six digits are more than a probability means, and keep the file small.
    shown = np.round(predictions.probabilities.astype(np.float64), 6)
    return pd.DataFrame(columns | {f"p_{name}": shown[:, code] for code, name in enumerate(classes)})


def _episodes_table(one: Predictions, truth: Ints, names: Sequence[str], among: Mask | None, way: int) -> pd.DataFrame:
    by_episode = confusion_matrix(truth, one.predicted, way, groups=one.episode, n_groups=len(names))
    scores = score_confusion(by_episode, among)
    columns = {"episode": np.arange(len(names)), "name": list(names), "clips": by_episode.sum(axis=(1, 2))}
    return pd.DataFrame(columns | {metric: getattr(scores, metric) for metric in METRICS})


def _recipes(clips: ClipSet, judged: Mask) -> dict[str, list[str]]:
    table = clips.table
    if "recipe" not in table.columns:
        return {}
    stated = table.loc[judged & table["recipe"].notna().to_numpy(bool), ["dataset", "recipe"]].astype(str)
    stated = stated[stated["recipe"] != ""]
    return {name: sorted(set(group)) for name, group in stated.groupby("dataset")["recipe"]}
