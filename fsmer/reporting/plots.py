"""Pictures of results and of flow maps: confusion matrix, methods side by side, two domains, flow with arrows.

Every function returns a matplotlib ``Figure`` made without pyplot: nothing global changes and no display is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from fsmer.drawing import (
    BLUE,
    LIGHT,
    ORANGE,
    blank_figure,
    wrapped,
)
from fsmer.errors import DataError
from fsmer.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fsmer.evaluation.report import Report

__all__ = [
    "domains_figure",
    "methods_figure",
]


def methods_figure(reports: Mapping[str, Report] | Sequence[Report], *, metric: str = "uf1", title: str = "") -> Figure:
    """Methods side by side: one dot with its 95 % interval for each report, best on top.

    Parameters
    ----------
    reports : mapping of name to Report, or sequence of Report (named after their methods)
    metric : {"uf1", "uar", "acc", "acc_merau"}
    title : str
    """
    named = dict(reports) if isinstance(reports, Mapping) else {str(one.method["name"]): one for one in reports}
    if not named:
        raise DataError("there is no report to draw; give at least one.")
    ranked = sorted(named.items(), key=lambda item: item[1].figures[metric])
    figure = blank_figure(6.4, 1.3 + 0.42 * len(ranked))
    axes = figure.add_subplot()
    classes = {len(report.classes) for report in named.values()}
    if len(classes) == 1 and metric == "uar":
        axes.axvline(1 / classes.pop(), color=LIGHT, linewidth=1.5, zorder=0)
    for place, (_, report) in enumerate(ranked):
        value, bounds = report.figures[metric], report.interval(metric)
        if bounds is not None:
            axes.plot(bounds, [place, place], color=BLUE, linewidth=2, alpha=0.5, solid_capstyle="butt")
        axes.plot([value], [place], "o", color=BLUE, markersize=6)
        stamp = "ORACLE " if report.oracle else ""
        axes.annotate(
            f"{stamp}{value:.3f}", (value, place), (0, 7), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_yticks(range(len(ranked)), [printable(name) for name, _ in ranked])
    axes.set_ylim(-0.6, len(ranked) - 0.3)
    axes.set_xlabel(f"{metric.upper()} (line: 95 % interval)")
    axes.set_title(wrapped(title, 70), fontsize=10)
    axes.grid(axis="x", color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def domains_figure(
    a: ArrayLike, b: ArrayLike, *, names: tuple[str, str] = ("A", "B"), title: str = "", limit: int = 2000
) -> Figure:
    """Embeddings of two domains on their two common principal axes.

    Parameters
    ----------
    a, b : arrays of shape (N, D) and (M, D)
    names : tuple of str
    title : str
    limit : int
        Points drawn of each domain at most, evenly spaced through its rows; the axes are of all points.
    """
    domains = [np.asarray(values, dtype=np.float64) for values in (a, b)]
    if any(values.ndim != 2 or not len(values) for values in domains) or domains[0].shape[1] != domains[1].shape[1]:
        raise DataError(
            f"two sets of embeddings of the same length are needed, not arrays of shapes {domains[0].shape} and "
            f"{domains[1].shape}; embed both domains with the same model."
        )
    together = np.concatenate(domains)
    centre = together.mean(axis=0)
    spread, axes_of_data = np.linalg.eigh(np.atleast_2d(np.cov((together - centre).T, bias=True)))
    order = np.argsort(spread)[::-1][:2]
    total = max(float(spread.sum()), np.finfo(float).tiny)
    figure = blank_figure(6.0, 4.8)
    axes = figure.add_subplot()
    for values, name, colour, marker in zip(domains, names, (BLUE, ORANGE), ("o", "^"), strict=True):
        chosen = np.unique(np.linspace(0, len(values) - 1, min(limit, len(values))).astype(int))
        points = np.zeros((len(chosen), 2))
        points[:, : len(order)] = (values[chosen] - centre) @ axes_of_data[:, order]
        axes.scatter(
            points[:, 0],
            points[:, 1],
            s=14,
            color=colour,
            marker=marker,
            alpha=0.5,
            linewidths=0,
            label=f"{name} ({len(values):,})",
        )
    shares = [*(spread[order] / total), 0.0][:2]
    axes.set_xlabel(f"principal axis 1 ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"principal axis 2 ({shares[1]:.0%})")
    axes.set_title(wrapped(title, 64), fontsize=10)
    # Below the axes, where it can hide no point.
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
