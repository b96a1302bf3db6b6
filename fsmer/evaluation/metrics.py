"""UF1, UAR and accuracy from pooled predictions, for one run or for thousands of episodes at once, with 95 % intervals.

Every figure comes from a confusion matrix: folds are pooled by adding matrices, and the order of clips cannot matter.

References
----------
MERAU: cross-domain few-shot micro-expression recognition with action units (2021), eq. 12-14.
FR: feature refinement for micro-expression recognition (2022), eq. 9-13.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.data.table import known_texts
from fsmer.errors import DataError, PluginError
from fsmer.plugins import METRICS as REGISTRY
from fsmer.plugins import plugin_entry

__all__ = ["METRICS", "Scores", "bootstrap_interval", "confusion_matrix", "drawn_subjects", "mean_interval"]
__all__ += ["metric_names", "metric_plugins", "percentile_interval", "register_metric", "score", "score_confusion"]

# Names of the figures that every report gives, in the order in which they are shown; plugins add others.
METRICS = ("uf1", "uar", "acc", "acc_merau")

Z_95 = 1.959963984540054
BOOTSTRAP_DRAWS = 2000
# Numbers that a block of bootstrap samples may hold.
BLOCK_CELLS = 4_000_000

# Other entries of a report, which no metric can be called.
_TAKEN = {
    *("format", "format_version", "averaging", "how", "per_dataset", "per_class", "classes", "confusion", "protocol"),
    *("model", "method", "counts", "seed", "per_seed", "selection", "honest", "gap", "notes", "isolation", "versions"),
    *("preprocessing", "files", "metrics", "oracle", "clips", "subjects", "f1", "recall", "precision"),
}

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Figures of one or many confusion matrices; leading axes are those of the matrices."""

    # Unweighted F1: the mean over classes of 2 TP / (2 TP + FP + FN) (MERAU eq. 12; FR eq. 10 and 12).
    uf1: Floats
    # Unweighted average recall: the mean over classes of TP / (TP + FN) (MERAU eq. 13; FR eq. 11 and 13).
    uar: Floats
    acc: Floats  # share of clips classified rightly (FR eq. 9)
    # Sum over classes of TP + TN, divided by the sum of TP + TN + FP + FN (MERAU eq. 14). It counts the true negatives
    # of every class, so with C classes it equals 1 - 2 (1 - acc) / C: never below acc.
    acc_merau: Floats
    f1: Floats  # by class, (..., C)
    recall: Floats
    precision: Floats
    confusion: Floats  # (..., C, C)
    among: NDArray[np.bool_]  # the classes that were averaged over, (..., C)

    def __getitem__(self, name: str) -> Floats:
        """The figures of any metric by its name, of shape (...)."""
        if name in METRICS:
            return np.asarray(getattr(self, name))
        metric, shape = REGISTRY.find(name), self.confusion.shape[:-2]
        values = np.empty(shape)
        for place in np.ndindex(shape):
            held = self.among[place]
            values[place] = _figure(name, metric, self.confusion[place][held][:, held].copy())
        return values


def register_metric(name: str) -> Callable[[Callable[[Floats], float]], Callable[[Floats], float]]:
    """Decorator that enters a metric, a function of one confusion matrix, for all reports that are made from then on.

    Parameters
    ----------
    name : str
        An identifier that is no other entry of a report.

    Returns
    -------
    callable
        The decorated function gets float counts of shape (C, C), rows the truth, and gives a finite number; of an
        episode about some of the classes it gets their rows and columns alone.

    Raises
    ------
    PluginError
        The name is taken or cannot be one.

    Examples
    --------
    >>> import fsmer
    >>> from fsmer.evaluation.metrics import register_metric
    >>> @register_metric("errors")
    ... def errors(confusion):
    ...     return 1 - confusion.trace() / max(confusion.sum(), 1)
    >>> report = fsmer.evaluate("loso", "facs-flow", "protonet", clips=fsmer.synthetic_clips(n=24, subjects=4))
    >>> round(report.figures["errors"] + report.acc, 6)
    1.0
    """
    if not name.isidentifier() or name.endswith("_interval") or name in _TAKEN:
        raise PluginError(f"a metric cannot be called {name!r}; choose an identifier that is no entry of a report.")
    return REGISTRY.register(name)


def metric_names() -> tuple[str, ...]:
    """Names of all metrics: `METRICS`, then those of plugins."""
    return tuple(REGISTRY)


def metric_plugins() -> dict[str, str]:
    """Who has registered each metric that is not fsmer's own."""
    return {name: found["plugin"] for name in REGISTRY if (found := plugin_entry(REGISTRY, REGISTRY[name]))}


def _figure(name: str, metric: Callable[[Floats], float], confusion: Floats) -> float:
    try:
        value = float(metric(confusion))
    except Exception as error:  # code from outside raises whatever it likes
        raise DataError(
            f"the metric {name!r} of {REGISTRY.origin(name)} fails on a confusion matrix of shape {confusion.shape} "
            f"({type(error).__name__}: {' '.join(str(error).split())}); repair it or leave it out."
        ) from error
    if not math.isfinite(value):
        raise DataError(
            f"the metric {name!r} of {REGISTRY.origin(name)} gives {value} for a confusion matrix; let it give a "
            "finite number for every matrix, also where a class or all clips are missing."
        )
    return value


def _own(name: str) -> Callable[[Floats], float]:
    return lambda confusion: float(getattr(score_confusion(confusion), name))


for _name in METRICS:
    register_metric(_name)(_own(_name))


def confusion_matrix(
    truth: ArrayLike, predicted: ArrayLike, n_classes: int, *, groups: ArrayLike | None = None, n_groups: int = 1
) -> Counts:
    """Count how often each class was taken for each class.

    Parameters
    ----------
    truth, predicted : array of int, shape (N,)
        Class codes, 0 to `n_classes` - 1.
    n_classes : int
    groups : array of int, shape (N,), optional
        One matrix for each group, e.g. episode or subject; codes 0 to `n_groups` - 1.
    n_groups : int

    Returns
    -------
    ndarray of int64, shape (C, C), or (n_groups, C, C) with `groups`
        Rows are the truth, columns the prediction.

    Raises
    ------
    DataError
        Lengths differ or a code is out of range.
    """
    true_codes, codes = np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if true_codes.ndim != 1 or true_codes.shape != codes.shape:
        raise DataError(
            f"truth has shape {true_codes.shape} and predictions {codes.shape}; both must be lists of the same length."
        )
    for name, values in (("truth", true_codes), ("predictions", codes)):
        if values.size and (values.min() < 0 or values.max() >= n_classes):
            raise DataError(
                f"{name} hold class codes from {values.min()} to {values.max()}, but there are {n_classes} classes: "
                f"give codes 0 to {n_classes - 1}."
            )
    flat = true_codes * n_classes + codes
    if groups is None:
        return np.bincount(flat, minlength=n_classes**2).reshape(n_classes, n_classes)
    group_codes = np.asarray(groups, dtype=np.int64)
    if group_codes.shape != codes.shape or (
        group_codes.size and not 0 <= group_codes.min() <= group_codes.max() < n_groups
    ):
        raise DataError(f"groups must give one code from 0 to {n_groups - 1} for each of the {codes.size} predictions.")
    counts = np.bincount(group_codes * n_classes**2 + flat, minlength=n_groups * n_classes**2)
    return counts.reshape(n_groups, n_classes, n_classes)


def score_confusion(confusion: ArrayLike, among: ArrayLike | None = None) -> Scores:
    """Figures of confusion matrices of shape (..., C, C), rows the truth.

    A class of the list that the truth lacks is counted, not skipped: its F1, recall and precision are 0. This is what
    scikit-learn computes with ``labels=classes, zero_division=0``. (MEGC 2019 computes the figures once, from counts
    pooled over all folds, so that a class missing in one fold adds nothing there and is judged in the others.)
    No clip at all gives 0 everywhere.

    Parameters
    ----------
    confusion : array of shape (..., C, C)
    among : bool array of shape (..., C), optional
        The classes that an episode is about, where episodes draw some of all classes; the others are not averaged over.

    Raises
    ------
    DataError
        The matrices are not square.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2] or counts.shape[-1] == 0:
        raise DataError(f"a confusion matrix must have shape (..., C, C); this one has {counts.shape}.")
    averaged = np.ones(counts.shape[:-1], dtype=bool) if among is None else np.asarray(among, dtype=bool)
    way = averaged.sum(axis=-1)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    of_class, called = counts.sum(axis=-1), counts.sum(axis=-2)
    total = of_class.sum(axis=-1)
    f1 = _ratio(2 * right, of_class + called)
    recall = _ratio(right, of_class)
    true_negatives = total[..., None] - of_class - called + right
    return Scores(
        uf1=_ratio((f1 * averaged).sum(axis=-1), way),
        uar=_ratio((recall * averaged).sum(axis=-1), way),
        acc=_ratio(right.sum(axis=-1), total),
        acc_merau=_ratio(((right + true_negatives) * averaged).sum(axis=-1), way * total),
        f1=f1,
        recall=recall,
        precision=_ratio(right, called),
        confusion=counts,
        among=np.broadcast_to(averaged, counts.shape[:-1]),
    )


def score(truth: ArrayLike, predicted: ArrayLike, classes: ArrayLike | None = None) -> dict[str, float]:
    """UF1, UAR and both accuracies of labels.

    Parameters
    ----------
    truth, predicted : array of str, shape (N,)
    classes : sequence of str, optional
        The classes to average over; default: all that occur on either side.

    Returns
    -------
    dict
        ``uf1``, ``uar``, ``acc``, ``acc_merau``, and the metrics of plugins.

    Raises
    ------
    DataError
        Lengths differ, or a label is not one of `classes`.

    Examples
    --------
    >>> from fsmer.evaluation.metrics import score
    >>> score(["negative", "negative", "positive"], ["negative", "positive", "positive"])["acc"]
    0.6666666666666666
    """
    sides = known_texts(truth, "truth"), known_texts(predicted, "predicted")
    known = sorted({*sides[0], *sides[1]}) if classes is None else known_texts(classes, "classes")
    code = {label: number for number, label in enumerate(known)}
    strange = sorted({label for side in sides for label in side if label not in code})
    if strange:
        raise DataError(f"the labels {', '.join(strange)} are not among the classes {', '.join(known)}.")
    codes = [np.array([code[label] for label in side], dtype=np.int64) for side in sides]
    scores = score_confusion(confusion_matrix(codes[0], codes[1], max(len(known), 1)))
    return {name: float(scores[name]) for name in metric_names()}


def mean_interval(values: ArrayLike) -> tuple[float, float] | None:
    """95 % interval of a mean over episodes: mean +- 1.96 sd / sqrt(E), sd with E - 1; ``None`` for fewer than two."""
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return None
    mean, half = float(array.mean()), Z_95 * float(array.std(ddof=1)) / float(np.sqrt(array.size))
    return mean - half, mean + half


def bootstrap_interval(
    confusions: ArrayLike, *, draws: int = BOOTSTRAP_DRAWS, seed: int = 0
) -> dict[str, tuple[float, float] | None]:
    """95 % percentile intervals of the pooled figures when whole subjects are drawn with replacement.

    Clips of one person resemble each other, so persons, not clips, are the independent units. Of several seeds it is
    the interval of their mean: a draw takes the same subjects for every seed, so that the interval says how much the
    mean depends on who was filmed; how much it depends on the seed is what `fsmer.reporting.statistics.seed_summary`
    says.

    Parameters
    ----------
    confusions : array of shape (S, C, C) or (R, S, C, C)
        One confusion matrix a subject, or one a seed and subject.
    draws : int
        Bootstrap samples.
    seed : int
        Of the draws.

    Returns
    -------
    dict
        For each metric (low, high), or ``None`` with fewer than two subjects, when nothing can be said.

    Raises
    ------
    DataError
        The array has another shape.
    """
    counts = np.asarray(confusions, dtype=np.float64)
    if counts.ndim == 3:
        counts = counts[None]
    if counts.ndim != 4 or counts.shape[2] != counts.shape[3] or not counts.shape[0]:
        raise DataError(
            "confusion matrices must have shape (subjects, C, C) or (seeds, subjects, C, C); "
            f"these have {counts.shape}."
        )
    if counts.shape[1] < 2:
        return dict.fromkeys(metric_names())
    samples: dict[str, list[Floats]] = {name: [] for name in metric_names()}
    for times in drawn_subjects(counts.shape[1], draws, seed):
        scores = score_confusion(np.tensordot(times, counts.swapaxes(0, 1), axes=1))
        for name, found in samples.items():
            found.append(scores[name].mean(axis=1))
    return {name: percentile_interval(np.concatenate(parts)) for name, parts in samples.items()}


def drawn_subjects(subjects: int, draws: int, seed: int) -> Iterator[Floats]:
    """How often each subject is drawn in bootstrap samples: blocks of shape (some draws, S); a seed gives the same."""
    generator = np.random.default_rng(seed)
    # In blocks: draws x subjects numbers would be large for thousands of subjects.
    block = max(1, min(draws, BLOCK_CELLS // subjects))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        yield generator.multinomial(subjects, np.full(subjects, 1 / subjects), size=size).astype(np.float64)


def percentile_interval(samples: Floats) -> tuple[float, float]:
    """The middle 95 % of bootstrap samples."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def _ratio(numerator: Floats, denominator: NDArray[Any]) -> Floats:
    out = np.zeros(np.broadcast_shapes(numerator.shape, denominator.shape))
    return np.divide(numerator, denominator, out=out, where=denominator > 0)
