"""Matplotlib figures that several folders share: results, losses, and flow maps with arrows."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from fsmer.errors import DataError
from fsmer.io import atomic_path
from fsmer.text import one_line, printable, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["confusion_figure", "flow_figure", "flow_tiles", "grid_figure", "loss_figure", "save_figure"]

# Two hues that people with colour-blindness tell apart, and greys for everything that is not data.
BLUE, ORANGE = "#0072b2", "#d55e00"
GREY, LIGHT = "#666666", "#dddddd"
DPI = 150
# Shades of a small picture on either side of zero.
_STEPS = 31


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG, whole or not at all; `OutputError` where the file cannot be written."""
    with atomic_path(path) as temporary:
        # No software version in the file: the same result gives the same bytes.
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
    return Path(path)


def confusion_figure(confusion: ArrayLike, classes: Sequence[str], *, title: str = "") -> Figure:
    """Confusion matrix, (C, C) whole numbers with the truth in rows: share of each true class, and the counts below."""
    figure = blank_figure(2.5 + 0.85 * len(classes), 1.9 + 0.85 * len(classes))
    draw_confusion(figure.add_subplot(), confusion, classes, title=title)
    return figure


def draw_confusion(axes: Axes, confusion: ArrayLike, classes: Sequence[str], *, title: str = "") -> None:
    counts = np.asarray(confusion, dtype=np.int64)
    # Here rather than where the figure is drawn: matplotlib writes the labels of axes anew each time.
    classes = [printable(name) for name in classes]
    n_classes = len(classes)
    if counts.shape != (n_classes, n_classes):
        raise DataError(f"the confusion matrix has shape {counts.shape}, but there are {n_classes} class names.")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(n_classes):
        for column in range(n_classes):
            style: dict[str, Any] = {"ha": "center", "va": "center"}
            style["color"] = "white" if shares[row, column] > 0.55 else "black"
            axes.text(column, row - 0.08, f"{shares[row, column]:.0%}", **style)
            axes.text(column, row + 0.22, f"{counts[row, column]:,}", fontsize=7, **style)
    turned = n_classes > 3
    axes.set_xticks(range(n_classes), classes, rotation=30 if turned else 0, ha="right" if turned else "center")
    axes.set_yticks(range(n_classes), classes)
    axes.set(xlabel="predicted", ylabel="truth")
    axes.set_title(wrapped(title, 14 + 9 * n_classes), fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8, format="{x:.0%}")
    bar.set_label("share of the true class", fontsize=8)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=0)


def loss_figure(losses: Sequence[float], *, title: str = "", steps: Sequence[int] | None = None) -> Figure:
    """Mean training loss of every epoch, or up to each of these steps, as a line."""
    figure = blank_figure(5.0, 3.0)
    axes = figure.subplots()
    axes.plot(
        range(1, len(losses) + 1) if steps is None else steps,
        losses,
        color=BLUE,
        marker="o" if len(losses) < 30 else None,
        markersize=3,
    )
    axes.set(xlabel="epoch" if steps is None else "step", ylabel="training loss")
    axes.set_ylim(bottom=0)
    axes.grid(color=LIGHT, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10)
    return figure


def flow_figure(
    maps: ArrayLike,
    *,
    titles: Sequence[str] | None = None,
    normalisation: str = "signed",
    columns: int = 6,
    arrows: int = 10,
) -> Figure:
    """Flow maps (N, C, H, W) as strain (grey) with arrows of u and v on top, one panel a map, `columns` a row.

    Channels are u, v and, where there is a third, strain; `arrows` of them lie along each side. With `normalisation`
    ``"minmax"`` (else ``"signed"``) the zero of u and v is lost, and the median of each channel stands in for it. A
    `DataError` is raised for an array of another shape, or titles of another number.
    """
    flows = np.asarray(maps, dtype=np.float64)
    if flows.ndim != 4 or not len(flows) or flows.shape[1] < 2:
        raise DataError(f"flow maps have shape (N, 2 or 3, H, W), not {flows.shape}.")
    if titles is not None and len(titles) != len(flows):
        raise DataError(f"there are {len(flows)} maps but {len(titles)} titles; give one for each.")
    if normalisation == "minmax":
        flows = flows.copy()
        flows[:, :2] -= np.median(flows[:, :2], axis=(2, 3), keepdims=True)
    width = min(columns, len(flows))
    height = -(-len(flows) // width)
    figure = blank_figure(1.65 * width, (1.65 + (0.3 if titles is not None else 0)) * height)
    for number, flow in enumerate(flows):
        axes = figure.add_subplot(height, width, number + 1)
        draw_flow(axes, flow, arrows)
        if titles is not None:
            axes.set_title(wrapped(titles[number], 24), fontsize=7, pad=2)
    return figure


def grid_figure(sections: Mapping[str, Mapping[str, Sequence[tuple[str, ArrayLike]]]], *, title: str = "") -> Figure:
    """Flow maps by class: a row a class, and sections side by side; each map (2 or 3, H, W) comes with its caption."""
    classes = list(dict.fromkeys(name for rows in sections.values() for name in rows))
    widths = [max(1, *map(len, rows.values())) for rows in sections.values()]
    figure = blank_figure(max(1.2 * sum(widths) + 0.5 * len(widths), 3.0), 1.35 * len(classes) + 0.5)
    figure.suptitle(wrapped(title, 14 * sum(widths) + 12), fontsize=9)
    # The first section also has the names of the classes.
    ratios = [width + 0.8 * (place == 0) for place, width in enumerate(widths)]
    parts = figure.subfigures(1, len(sections), width_ratios=ratios, squeeze=False)[0]
    for place, (part, (heading, rows), width) in enumerate(zip(parts, sections.items(), widths, strict=True)):
        if heading:
            part.suptitle(heading, fontsize=9)
        grid = part.subplots(len(classes), width, squeeze=False)
        for name, line in zip(classes, grid, strict=True):
            shown = rows.get(name, ())
            for axes, (caption, flow) in zip(line, shown, strict=False):
                draw_flow(axes, np.asarray(flow, dtype=np.float64), 10)
                axes.set_title(shortened(one_line(caption), 16), fontsize=6.5, pad=2)
            for axes in line[len(shown) :]:
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            if place == 0:
                label = wrapped(shortened(one_line(name), 36), 14)
                line[0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
    return figure


def flow_tiles(flow: ArrayLike, *, side: int = 40) -> bytes:
    """The channels of a flow map (2 or 3, H, W) beside each other as a small PNG.

    u and v are blue below zero, white at zero and red above, on one scale; strain is darker where it is larger. Larger
    maps are shrunk to `side` pixels.
    """
    values = np.asarray(flow, dtype=np.float32)
    height, width = values.shape[1:]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrunk = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BOX)) for one in values]
    limit = max(float(np.abs(np.stack(shrunk[:2])).max()), float(np.finfo(np.float32).tiny))
    tiles = [np.rint((one / limit + 1) * _STEPS) for one in shrunk[:2]]
    for strain in shrunk[2:3]:
        spread = float(np.ptp(strain)) or 1.0
        tiles.append(2 * _STEPS + 1 + np.rint((strain - strain.min()) / spread * 2 * _STEPS))
    gap = np.full((size[1], 2), 255.0)
    joined = np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], axis=1)
    picture = Image.fromarray(joined.astype(np.uint8), mode="P")
    picture.putpalette(_tile_colours().tobytes())
    stream = io.BytesIO()
    picture.save(stream, format="PNG", optimize=True, transparency=255)
    return stream.getvalue()


def _tile_colours() -> NDArray[np.uint8]:
    """256 colours: from blue by white to red, and from white to black."""
    colours = np.full((256, 3), 255.0)
    share = np.abs(np.linspace(-1, 1, 2 * _STEPS + 1))[:, None]
    ends = np.repeat(np.array([[33, 102, 172], [178, 24, 43]], dtype=np.float64), [_STEPS, _STEPS + 1], axis=0)
    colours[: 2 * _STEPS + 1] = 255 * (1 - share) + ends * share
    colours[2 * _STEPS + 1 : 4 * _STEPS + 2] = 255 * np.linspace(1, 0, 2 * _STEPS + 1)[:, None]
    return np.rint(colours).astype(np.uint8)


def draw_flow(axes: Axes, flow: NDArray[np.float64], arrows: int) -> None:
    rows, columns = flow.shape[1:]
    back = flow[2] if len(flow) > 2 else np.hypot(flow[0], flow[1])
    axes.imshow(back, cmap="Greys", vmin=float(back.min()), vmax=float(back.max()) * 1.6 or 1.0)
    y = np.unique(np.linspace(0, rows - 1, min(arrows, rows) + 2)[1:-1].round().astype(int))
    x = np.unique(np.linspace(0, columns - 1, min(arrows, columns) + 2)[1:-1].round().astype(int))
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    u, v = flow[0][grid_y, grid_x], flow[1][grid_y, grid_x]
    longest = float(np.hypot(u, v).max())
    if longest > 0:
        # The longest arrow spans one and a half cells of the grid; image rows run downwards, as v does.
        scale = longest / (1.5 * columns / len(x))
        options: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": scale, "pivot": "tail"}
        # Skin that stands still gets no arrow: matplotlib would draw it as a dot.
        moved = np.hypot(u, v) > 0.04 * longest
        grid_x, grid_y, u, v = grid_x[moved], grid_y[moved], u[moved], v[moved]
        axes.quiver(grid_x, grid_y, u, v, color=ORANGE, width=0.012, headwidth=3.5, headlength=3.5, **options)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set_color(LIGHT)


def blank_figure(width: float, height: float) -> Figure:
    from fsmer.plain_figure import PlainFigure

    return PlainFigure(width, height)


def wrapped(text: str, width: int) -> str:
    return "\n".join(part for line in text.splitlines() for part in textwrap.wrap(line, width))
