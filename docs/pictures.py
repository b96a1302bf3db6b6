"""Draws the pictures of the README: ``python docs/pictures.py`` writes them beside this file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fsmer.data.facs import action_unit
from fsmer.drawing import save_figure
from fsmer.synthetic.clips import action_unit_maps, synthetic_maps
from fsmer.synthetic.domains import load_domain
from fsmer.synthetic.facs_fields import FIELDS, LANDMARKS

HERE = Path(__file__).parent
SIZE = 112
INK = "#8a8a8a"


def to_pixels(x: float, y: float) -> tuple[float, float]:
    """Crop coordinates as pixels."""
    return (x + 0.5) * SIZE - 0.5, (y + 0.5) * SIZE - 0.5


def draw_face(axes: Axes) -> None:
    """Brows, lids, nose and lips of the canonical face, so that an arrow can be read against them."""
    curve = np.linspace(-1, 1, 40)
    for side in (-1, 1):
        inner, outer = LANDMARKS["brow_inner"], LANDMARKS["brow_outer"]
        x = np.linspace(inner[0], outer[0], 40)
        line(
            axes,
            side * x,
            inner[1] + (outer[1] - inner[1]) * (x - inner[0]) / (outer[0] - inner[0]) - 0.02 * (1 - curve**2),
            2.2,
        )
        centre, upper, lower = LANDMARKS["lid_upper"][0], LANDMARKS["lid_upper"][1], LANDMARKS["lid_lower"][1]
        middle, half = (upper + lower) / 2, LANDMARKS["eye_outer"][0] - centre
        line(axes, side * (centre + half * curve), middle + (upper - middle) * (1 - curve**2))
        line(axes, side * (centre + half * curve), middle + (lower - middle) * (1 - curve**2))
        wing, root = LANDMARKS["nose_wing"], LANDMARKS["nose_root"]
        line(
            axes,
            side * np.array([root[0], LANDMARKS["nose_side"][0] * 0.8, wing[0], 0.6 * wing[0]]),
            np.array([root[1], -0.04, wing[1], wing[1] + 0.035]),
        )
        fold = LANDMARKS["nasolabial"]
        line(
            axes,
            side * np.array([wing[0] + 0.03, fold[0], fold[0] + 0.035]),
            np.array([wing[1], fold[1] + 0.02, fold[1] + 0.12]),
            0.6,
        )
    corner, top, bottom = LANDMARKS["mouth_corner"], LANDMARKS["lip_upper"][1] - 0.015, LANDMARKS["lip_lower"][1] + 0.02
    line(axes, corner[0] * curve, np.full(40, corner[1] + 0.01))
    line(axes, corner[0] * curve, corner[1] + (top - corner[1]) * (1 - curve**2))
    line(axes, corner[0] * curve, corner[1] + (bottom - corner[1]) * (1 - curve**2))
    line(axes, 0.52 * np.cos(np.pi * curve), 0.03 + 0.62 * np.sin(np.pi * curve), 0.8)


def line(axes: Axes, x: np.ndarray, y: np.ndarray, width: float = 1.1) -> None:
    """A stroke of the drawn face."""
    axes.plot(*to_pixels(x, y), color=INK, linewidth=width, solid_capstyle="round")


def draw_arrows(axes: Axes, flow: np.ndarray) -> None:
    """Arrows where the flow is visible."""
    grid = np.linspace(3, SIZE - 4, 18).round().astype(int)
    rows, columns = (values.ravel() for values in np.meshgrid(grid, grid, indexing="ij"))
    u, v = flow[0][rows, columns], flow[1][rows, columns]
    longest = np.hypot(u, v).max()
    moved = np.hypot(u, v) > 0.12 * longest
    axes.quiver(
        columns[moved],
        rows[moved],
        u[moved],
        v[moved],
        color="#d1495b",
        angles="xy",
        scale_units="xy",
        scale=longest / 13,
        width=0.012,
        headwidth=3.6,
    )


def prepare(axes: Axes, title: str = "") -> None:
    """An empty panel in image coordinates."""
    axes.set_xlim(-0.5, SIZE - 0.5)
    axes.set_ylim(SIZE - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal")
    axes.spines[:].set_color("#cccccc")
    axes.set_title(title, fontsize=5, pad=2, loc="left")


def action_units() -> None:
    """Every action unit: arrows on a face, u, v and strain."""
    columns, panels = 3, 4
    units = list(FIELDS)
    figure = Figure(figsize=(columns * panels * 1.12, -(-len(units) // columns) * 1.32), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(-(-len(units) // columns), columns * panels)
    for number, unit in enumerate(units):
        row, place = divmod(number, columns)
        maps = action_unit_maps(unit, size=SIZE)
        cells = grid[row, place * panels : (place + 1) * panels]
        prepare(cells[0], f"AU{unit} {action_unit(unit).name}")
        draw_face(cells[0])
        draw_arrows(cells[0], maps)
        reach = np.abs(maps[:2]).max()
        for cell, channel, name in zip(cells[1:], maps, ("u", "v", "strain"), strict=True):
            prepare(cell, name)
            low, colours = (0.0, "magma") if name == "strain" else (-reach, "RdBu_r")
            cell.imshow(channel, cmap=colours, vmin=low, vmax=channel.max() if name == "strain" else reach)
    for cell in grid.ravel()[len(units) * panels :]:
        cell.set_axis_off()
    save_figure(figure, HERE / "action_units.png")


def synthetic_gallery() -> None:
    """What the networks see: minmax maps with everything that is not expression."""
    domains = ("lab", "clinic", "field", "broad")
    shown = 14
    figure = Figure(figsize=(shown * 0.62, len(domains) * 3 * 0.64), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(domains) * 3, shown)
    for index, name in enumerate(domains):
        maps = synthetic_maps(shown, domain=load_domain(name), seed=5).maps
        for channel, title in enumerate(("u", "v", "strain")):
            for clip in range(shown):
                cell = grid[index * 3 + channel, clip]
                cell.imshow(maps[clip, channel], cmap="gray")
                cell.set_xticks([])
                cell.set_yticks([])
                if clip == 0:
                    cell.set_ylabel(f"{name}\n{title}", fontsize=7)
    save_figure(figure, HERE / "synthetic_maps.png")


if __name__ == "__main__":
    action_units()
    synthetic_gallery()
