"""Pictures of comparisons: the critical-difference diagram of many methods, and the figures of several seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fsmer.errors import DataError
from fsmer.evaluation.plots import BLUE, GREY, LIGHT, ORANGE, blank_figure, wrapped
from fsmer.evaluation.statistics import TITLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fsmer.evaluation.statistics import CriticalDifference, SeedSummary

__all__ = ["critical_difference_figure", "seeds_figure"]

# Height of one line of text and of one bar, in inches.
_LINE, _BAR = 0.24, 0.12


def critical_difference_figure(result: CriticalDifference, *, title: str = "") -> Figure:
    """Critical-difference diagram (Demsar 2006, figure 1): mean ranks on a line, bars over methods that do not differ.

    The best rank is on the left; a bar joins methods between which no difference was shown.

    Parameters
    ----------
    result : CriticalDifference
    title : str
        Default: what was ranked and Friedman's test.
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
    axes.text(
        low + shown + 0.02 * span, 0.52, f"critical difference {result.difference:.2f}{longer}", va="center", fontsize=8
    )
    for number, group in enumerate(result.groups):
        ends = [result.ranks[result.names.index(name)] for name in (group[0], group[-1])]
        y = -0.12 - number * _BAR
        axes.plot(
            [ends[0] - 0.01 * span, ends[1] + 0.01 * span], [y, y], color=BLUE, linewidth=3.5, solid_capstyle="round"
        )
    for place, (name, rank) in enumerate(zip(result.names, result.ranks, strict=True)):
        on_left = place < left
        level = -(depth + _LINE * (place if on_left else count - 1 - place))
        end = low - 0.04 * span if on_left else high + 0.04 * span
        axes.plot([rank, rank, end], [0, level, level], color=GREY, linewidth=0.9)
        text = f"{name}  {rank:.2f} " if on_left else f" {rank:.2f}  {name}"
        axes.text(end, level, text, ha="right" if on_left else "left", va="center", fontsize=9)
    words = title or (
        f"Mean rank of {TITLES.get(result.metric, result.metric)} over {result.blocks:,} {result.blocks_in_words} "
        f"(Friedman p = {result.p_value:.2g})\nbars: no difference shown at level {result.alpha:g}"
    )
    axes.set_title(wrapped(words, 84), fontsize=10)
    axes.axis("off")
    return figure


def seeds_figure(summaries: Mapping[str, SeedSummary], *, metric: str = "uf1", title: str = "") -> Figure:
    """Every seed of several methods as a dot, with their mean as a line.

    Parameters
    ----------
    summaries : mapping of name to SeedSummary
    metric : str
        What the summaries are of, for the axis.
    title : str

    Raises
    ------
    DataError
        There is nothing to draw.
    """
    if not summaries:
        raise DataError("there are no figures of seeds to draw; give at least one summary.")
    ranked = sorted(summaries.items(), key=lambda item: item[1].mean)
    figure = blank_figure(6.4, 1.3 + 0.36 * len(ranked))
    axes = figure.add_subplot()
    for place, (_, summary) in enumerate(ranked):
        axes.plot([summary.low, summary.high], [place, place], color=LIGHT, linewidth=4, solid_capstyle="round")
        axes.plot(summary.each, np.full(len(summary.each), place), "o", color=BLUE, markersize=5, alpha=0.7)
        axes.plot([summary.mean] * 2, [place - 0.22, place + 0.22], color=ORANGE, linewidth=2)
        axes.annotate(
            f"{summary.mean:.3f}",
            (summary.mean, place + 0.22),
            (0, 1),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(ranked)), [name for name, _ in ranked])
    axes.set_ylim(-0.6, len(ranked) - 0.2)
    axes.set_xlabel(f"{TITLES.get(metric, metric)} (dots: seeds, line: their mean)")
    axes.set_title(wrapped(title, 70), fontsize=10)
    axes.grid(axis="x", color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure
