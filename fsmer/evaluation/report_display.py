"""What a report shows of itself: an HTML fragment for notebooks, and a figure of confusion and classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fsmer.drawing import BLUE, GREY, LIGHT, blank_figure, draw_confusion, wrapped
from fsmer.evaluation.metrics import (
    BOOTSTRAP_DRAWS,
    confusion_matrix,
    drawn_subjects,
    mean_interval,
    percentile_interval,
    score_confusion,
)
from fsmer.evaluation.report_tables import NAMES, by_class, provenance, show_figure, shown
from fsmer.html import Facts, Grid, object_html
from fsmer.text import one_line, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fsmer.evaluation.report import Report

__all__ = ["class_intervals", "report_figure", "report_html"]

# Of the provenance, what a fragment shows.
SHORT = ("protocol", "model", "method", "parameters", "seeds", "choice of settings")
Interval = tuple[float, float]


def report_html(report: Report) -> str:
    """Figures with intervals, the confusion matrix, classes, and where the report is from."""
    figures = [(NAMES.get(name, name), show_figure(report.figures, name)) for name in shown(report)]
    counts = f"{report.counts['clips']:,} clips of {report.counts['subjects']:,} subjects"
    origin = [(row[0], row[1]) for row in provenance(report, run=False).rows if row[0] in SHORT]
    confusion = report.confusion.tolist()
    shares = (report.confusion / np.maximum(report.confusion.sum(axis=1, keepdims=True), 1)).tolist()
    rows = [[name, *row] for name, row in zip(report.classes, confusion, strict=True)]
    classes = by_class(report)
    return object_html(
        f"Report: {report.title}",
        Facts([*figures, ("what they are", report.how), ("judged", counts)]),
        Grid("Confusion: rows are the truth, columns the prediction", ["", *report.classes], rows, shares),
        Grid(classes.title, classes.head, classes.rows),
        Facts(origin),
        note=" ".join(report.notes),
    )


def report_figure(report: Report) -> Figure:
    """The confusion matrix, and a bar for the F1 of each class with its 95 % interval."""
    count = len(report.classes)
    side = 1.7 + 0.85 * count
    figure = blank_figure(side + 5.6, side)
    left, right = figure.subplots(1, 2, width_ratios=[side + 0.6, 5.0])
    draw_confusion(left, report.confusion, report.classes)
    _draw_classes(right, report)
    figure.suptitle(wrapped(f"{report.title}\n{report.how}", int(11 * (side + 5.6))), fontsize=9)
    return figure


def _draw_classes(axes: Axes, report: Report) -> None:
    intervals = class_intervals(report)
    for place, name in enumerate(report.classes):
        values = report.per_class[name]
        axes.barh(place, values["f1"], color=BLUE, height=0.42, alpha=0.75)
        bounds = intervals[name]
        if bounds is not None:
            axes.plot(bounds, [place, place], color="black", linewidth=1.4, solid_capstyle="butt")
            axes.plot(bounds, [place, place], "|", color="black", markersize=7)
        words = "" if bounds is None else f" [{bounds[0]:.2f}, {bounds[1]:.2f}]"
        text = f"{shortened(one_line(name), 22)}: {values['f1']:.2f}{words}, {values['clips']:,} clips"
        # Names above their bars: beside them they would take the width that the bars need.
        axes.text(0, place - 0.27, text, fontsize=7.5, va="bottom")
    axes.set_xlim(0, 1)
    axes.set_ylim(len(report.classes) - 0.5, -0.75)
    axes.set_yticks([])
    axes.set_xlabel("F1 of each class (line: 95 % interval)")
    axes.tick_params(axis="x", color=GREY)
    axes.grid(axis="x", color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def class_intervals(report: Report) -> dict[str, Interval | None]:
    """95 % interval of the F1 of each class, made as those of the report's figures; ``None`` where none can be said.

    Pooled figures: by bootstrap over subjects, with the report's seed. Means over episodes: 1.96 standard errors of the
    episodes that ask about the class.
    """
    if report.averaging == "episodes":
        by_episode, held = _counts(report, "episode")
        scores = score_confusion(by_episode).f1.mean(axis=0)
        asked = held.sum(axis=-1) > 0
        return {name: mean_interval(scores[asked[:, code], code]) for code, name in enumerate(report.classes)}
    by_subject, _ = _counts(report, "dataset", "subject")
    if by_subject.shape[1] < 2:
        return dict.fromkeys(report.classes)
    found = []
    for times in drawn_subjects(by_subject.shape[1], BOOTSTRAP_DRAWS, report.seed):
        counts = np.tensordot(times, by_subject.swapaxes(0, 1).astype(np.float64), axes=1)
        found.append(score_confusion(counts).f1.mean(axis=1))
    drawn = np.concatenate(found)
    return {name: percentile_interval(drawn[:, code]) for code, name in enumerate(report.classes)}


def _counts(report: Report, *by: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Confusion matrices (seeds, groups, C, C) of the predictions grouped by columns, and their sum over seeds."""
    table = report.predictions
    place = {name: code for code, name in enumerate(report.classes)}
    truth, said = (table[name].map(place).to_numpy(np.int64) for name in ("label", "predicted"))
    groups = table.groupby(list(by), sort=True, observed=True).ngroup().to_numpy(np.int64)
    seeds: Any = table["seed"].to_numpy() if "seed" in table.columns else np.zeros(len(table))
    count = int(groups.max(initial=-1)) + 1
    each = [
        confusion_matrix(truth[here], said[here], len(place), groups=groups[here], n_groups=count)
        for here in (seeds == seed for seed in np.unique(seeds))
    ]
    counts = np.stack(each)
    return counts, counts.sum(axis=0)
