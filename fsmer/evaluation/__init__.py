"""Evaluation: metrics, `evaluate`, reports and pictures."""

from __future__ import annotations

from fsmer.evaluation.evaluate import evaluate
from fsmer.evaluation.metrics import (
    METRICS,
    bootstrap_interval,
    confusion_matrix,
    mean_interval,
    register_metric,
    score,
    score_confusion,
)
from fsmer.evaluation.report import Report

__all__ = ["METRICS", "Report", "bootstrap_interval", "confusion_matrix", "evaluate", "mean_interval"]
__all__ += ["register_metric", "score", "score_confusion"]
__dir__ = __all__.copy  # tab completion shows public names only
