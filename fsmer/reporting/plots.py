"""Pictures of results: methods side by side, two domains, the critical-difference diagram of many methods.

Every function returns a matplotlib ``Figure`` made without pyplot: nothing global changes and no display is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from fsmer.drawing import BLUE, GREY, LIGHT, ORANGE, blank_figure, wrapped
from fsmer.errors import DataError
from fsmer.evaluation.report import Report
from fsmer.evaluation.report_tables import NAMES
from fsmer.reporting.ranking import CriticalDifference
from fsmer.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["critical_difference_figure", "domains_figure", "methods_figure"]

# Height of one line of text and of one bar of the critical-difference diagram, in inches.
_LINE, _BAR = 0.24, 0.12


def methods_figure(reports: Mapping[str, Report] | Sequence[Report], *, metric: str = "uf1", title: str = "") -> Figure:
    """Methods side by side: one dot with its 95 % interval for each report, best on top.

    A sequence of reports is named after their methods; `metric` is any that the reports have.
    """
    named = dict(reports) if isinstance(reports, Mapping) else {str(one.method["name"]): one for one in reports}
    if not named:
        raise DataError("there is no report to draw; give at least one.")
    ranked = sorted(named.items(), key=lambda item: item[1].figures[metric])
    # Names of a comparison say it already.
    names = [name if "(transductive)" in name else report.stamped(name) for name, report in ranked]
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
        text = f"{stamp}{value:.3f}"
        axes.annotate(text, (value, place), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(range(len(ranked)), [printable(name) for name in names])
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
    """Embeddings of two domains, (N, D) and (M, D), on the two principal axes of all points together.

    At most `limit` points of each domain are drawn, evenly spaced through its rows.
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
        label = f"{name} ({len(values):,})"
        x, y = points.T
        axes.scatter(x, y, s=14, color=colour, marker=marker, alpha=0.5, linewidths=0, label=label)
    shares = [*(spread[order] / total), 0.0][:2]
    axes.set_xlabel(f"principal axis 1 ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"principal axis 2 ({shares[1]:.0%})")
    axes.set_title(wrapped(title, 64), fontsize=10)
    # Below the axes, where it can hide no point.
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def critical_difference_figure(result: CriticalDifference, *, title: str = "") -> Figure:
    """Critical-difference diagram (Demsar 2006, figure 1): mean ranks on a line, the best on the left.

    A bar joins methods between which no difference was shown. The default title is what was ranked and Friedman's test.
    """
    count = len(result.names)
    left = (count + 1) // 2
    bars = len(result.groups)
    # From the axis down: bars, then one line of text for each method of the longer side.
    depth = 0.25 + bars * _BAR
    height = 1.35 + depth + left * _LINE
    figure = blank_figure(7.2, height)
    axes = figure.add_subplot()
    low, high = 1.0, float(count)
    span = high - low
    # Names hang outside the ranks, so the picture is wider than the axis.
    margin = 0.62 * span
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(-(depth + left * _LINE + 0.1), 0.75)
    axes.plot([low, high], [0, 0], color="black", linewidth=1)
    for tick in range(1, count + 1):
        axes.plot([tick, tick], [0, 0.08], color="black", linewidth=1)
        axes.text(tick, 0.12, str(tick), ha="center", va="bottom", fontsize=9)
    shown = min(result.difference, span)
    axes.plot([low, low + shown], [0.52, 0.52], color=ORANGE, linewidth=2, solid_capstyle="butt")
    longer = " (longer than the axis)" if result.difference > span else ""
    words = f"critical difference {result.difference:.2f}{longer}"
    axes.text(low + shown + 0.02 * span, 0.52, words, va="center", fontsize=8)
    for number, group in enumerate(result.groups):
        ends = [result.ranks[result.names.index(name)] for name in (group[0], group[-1])]
        x, y = [ends[0] - 0.01 * span, ends[1] + 0.01 * span], -0.12 - number * _BAR
        axes.plot(x, [y, y], color=BLUE, linewidth=3.5, solid_capstyle="round")
    for place, (name, rank) in enumerate(zip(result.names, result.ranks, strict=True)):
        on_left = place < left
        level = -(depth + _LINE * (place if on_left else count - 1 - place))
        end = low - 0.04 * span if on_left else high + 0.04 * span
        axes.plot([rank, rank, end], [0, level, level], color=GREY, linewidth=0.9)
        text = f"{name}  {rank:.2f} " if on_left else f" {rank:.2f}  {name}"
        axes.text(end, level, text, ha="right" if on_left else "left", va="center", fontsize=9)
    words = title or (
        f"Mean rank of {NAMES.get(result.metric, result.metric)} over {result.blocks:,} {result.blocks_in_words} "
        f"(Friedman p = {result.p_value:.2g})\nbars: no difference shown at level {result.alpha:g}"
    )
    axes.set_title(wrapped(words, 84), fontsize=10)
    axes.axis("off")
    return figure
