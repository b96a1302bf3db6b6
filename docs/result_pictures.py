"""Draws the figures of docs/results as pictures, from the same tables: ``python docs/result_pictures.py``.

Pictures have a white ground and dark text, so that they read alike on a light and on a dark page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from fsmer.data.text_tables import shipped_rows
from fsmer.drawing import BLUE, GREY, LIGHT, ORANGE, save_figure, wrapped
from fsmer.plain_figure import PlainFigure

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Point:
    """One line of a picture: a figure, its 95 % interval where there is one, and a published figure to compare with."""

    label: str
    text: str
    interval: tuple[float, float] | None = None
    published: float | None = None
    colour: str = BLUE

    @property
    def value(self) -> float:
        """The figure as a number."""
        return float(self.text)


def rows_of(family: str) -> dict[str, dict[str, str]]:
    """Rows of a table by name."""
    return {row["name"]: row for row in shipped_rows(RESULTS / f"{family}.csv")}


def point(row: dict[str, str], label: str, column: str = "uf1", *, colour: str = BLUE) -> Point:
    """The figure of `column` with what the row says of it."""
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    published = row.get(f"paper_{column}")
    return Point(
        label,
        row[column],
        (float(low), float(high)) if low and high else None,
        float(published) if published else None,
        colour,
    )


def draw_points(
    points: Sequence[Point],
    axis: str,
    *,
    limits: tuple[float, float],
    step: float,
    line: tuple[float, str] | None = None,
) -> Figure:
    """Points on one axis, the first on top, with intervals as lines; `line` is a value to compare with and its name."""
    figure = PlainFigure(5.6, 1.0 + 0.42 * len(points))
    axes: Axes = figure.add_subplot()
    top = len(points) - (0.2 if line else 0.4)
    if line is not None:
        axes.plot([line[0]] * 2, [-0.6, top - 0.3], color=GREY, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        axes.text(line[0], top - 0.25, line[1], color=GREY, fontsize=8, ha="center", va="bottom")
    for place, one in enumerate(reversed(points)):
        if one.interval is not None:
            axes.plot(one.interval, [place, place], color=one.colour, linewidth=4, alpha=0.35, solid_capstyle="butt")
        axes.plot([one.value], [place], "o", color=one.colour, markersize=6)
        axes.annotate(one.text, (one.value, place), (0, 6), textcoords="offset points", ha="center", fontsize=8.5)
        if one.published is not None:
            axes.plot([one.published], [place], "D", markerfacecolor="none", markeredgecolor=GREY, markersize=5)
    axes.set_yticks(range(len(points)), [wrapped(one.label, 32) for one in reversed(points)], fontsize=9)
    axes.set_ylim(-0.6, top + 0.1)
    axes.set_xlim(*limits)
    axes.set_xlabel(wrapped(axis, 58), fontsize=9)
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.2f}".replace("0.", "."))
    axes.tick_params(axis="x", labelsize=8.5, color=LIGHT)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=LIGHT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT)
    return figure


def real_maps() -> Figure:
    """`facs-flow` and raw pixels on real flow maps."""
    rows = rows_of("real_maps")
    shown = {
        "zero-shot-casme2": "CASME II: no label",
        "5-shot-casme2": "CASME II: 5 labels",
        "pixels-5-shot-casme2": "CASME II: 5 labels, raw pixels",
        "zero-shot-smic": "SMIC-HS: no label",
        "5-shot-smic": "SMIC-HS: 5 labels",
        "pixels-5-shot-smic": "SMIC-HS: 5 labels, raw pixels",
        "loso-finetuned": "both, one left out: fine-tuned",
        "loso-frozen": "both, one left out: frozen",
        "pixels-loso": "both, one left out: raw pixels",
    }
    points = [
        point(rows[name], label, colour=ORANGE if name.startswith("pixels") else BLUE) for name, label in shown.items()
    ]
    axis = "UF1, three classes (line: 95 % interval)"
    return draw_points(points, axis, limits=(0.3, 1.0), step=0.1, line=(1 / 3, "chance"))


def fr_ablation() -> Figure:
    """FR's variants with intervals and the paper's figures."""
    rows = rows_of("fr_ablation")
    shown = {
        "basic_inception": "basic_inception",
        "fr_fc": "fr, variant=fr_fc",
        "fr-concat": "fr, fusion=concat",
        "fr": "fr",
        "ensemble": "ensemble of two fr",
    }
    points = [point(rows[name], label) for name, label in shown.items()]
    axis = "UF1 (line: 95 % interval; diamond: the paper, on three data sets)"
    return draw_points(points, axis, limits=(0.6, 0.9), step=0.05)


def backbones() -> Figure:
    """Every backbone with five labels a class: trained, and as it is before its training."""
    rows = rows_of("backbones")
    ranked = sorted(rows.values(), key=lambda row: -float(row["shot_5"]))
    points = [Point(row["name"], row["shot_5"].lstrip("0"), published=float(row["untrained"])) for row in ranked]
    axis = "UF1 on drawn clips, 5 labels a class (dot: trained; diamond: before its training)"
    return draw_points(points, axis, limits=(0.25, 1.0), step=0.1, line=(1 / 3, "chance"))


def recordings() -> Figure:
    """What the way from pixels to an answer costs."""
    rows = rows_of("recordings")
    points = [point(row, row["label"], "loss") for row in rows.values()]
    axis = "UF1 lost end to end (line: 95 % interval)"
    return draw_points(points, axis, limits=(-0.05, 0.15), step=0.05, line=(0, "no loss"))


PICTURES = {"real-maps": real_maps, "fr-ablation": fr_ablation, "backbones": backbones, "recordings": recordings}


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        save_figure(draw(), RESULTS / f"{name}.png")
