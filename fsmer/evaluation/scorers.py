"""UF1 and UAR as functions of labels, for the loops of other libraries such as scikit-learn's cross-validation.

Both are scikit-learn's own F1 and recall averaged over classes, with the field's rule for classes that are missing: one
that the truth lacks counts as 0, where `sklearn.metrics.balanced_accuracy_score` would leave it out. Classes are those
that occur in the truth or among the answers; one that a fold lacks on both sides counts only if `labels` names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import ArrayLike

__all__ = ["uar_score", "uf1_score"]


def uf1_score(y_true: ArrayLike, y_pred: ArrayLike, *, labels: Sequence[Any] | None = None) -> float:
    """Unweighted F1: the mean over classes of 2 TP / (2 TP + FP + FN).

    Parameters
    ----------
    y_true, y_pred : array of labels, shape (N,)
    labels : sequence, optional
        The classes to average over.

    Examples
    --------
    >>> from sklearn.metrics import make_scorer
    >>> from fsmer.evaluation.scorers import uf1_score
    >>> scorer = make_scorer(uf1_score, labels=["negative", "positive", "surprise"])
    """
    from sklearn.metrics import f1_score

    return float(f1_score(y_true, y_pred, labels=labels, average="macro", zero_division=0.0))


def uar_score(y_true: ArrayLike, y_pred: ArrayLike, *, labels: Sequence[Any] | None = None) -> float:
    """Unweighted average recall: the mean over classes of TP / (TP + FN); parameters as for `uf1_score`."""
    from sklearn.metrics import recall_score

    return float(recall_score(y_true, y_pred, labels=labels, average="macro", zero_division=0.0))
