"""The critical-difference diagram of many methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsmer.drawing import BLUE, GREY, ORANGE, blank_figure, wrapped
from fsmer.reporting.statistics import TITLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fsmer.reporting.statistics import CriticalDifference

__all__ = ["critical_difference_figure"]

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
