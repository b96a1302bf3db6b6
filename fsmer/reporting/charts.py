"""Charts of HTML pages as SVG: points and columns by group, a histogram, a flow map with arrows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from fsmer.reporting.page import fragment

__all__ = ["columns_chart", "flow_picture", "histogram", "legend", "scatter"]

TEMPLATE = "charts.html.j2"
# Colours of classes and data sets are CSS variables --c0 ... --c7; shapes differ too, for readers who cannot tell them.
COLOURS = 8
SHAPES = ("circle", "triangle", "square", "diamond")
# Flow maps are shrunk to this side: a page of 300 clips has to stay small.
TILE = 56
ARROWS = 9
BINS = 25  # of a histogram over 0..1

Points = NDArray[np.float64]


def scatter(
    points: ArrayLike, codes: ArrayLike, *, hollow: ArrayLike | None = None, label: str, axes: tuple[str, str]
) -> str:
    """Points of shape (N, 2), coloured and shaped by the group (N,) of each; `hollow` ones (N,) are outlines.

    `label` says what is shown to readers who do not see it; `axes` are words at the horizontal and the vertical axis.
    """
    places: Points = np.asarray(points, dtype=np.float64)
    groups = np.asarray(codes, dtype=np.int64)
    outlined = np.zeros(len(groups), dtype=bool) if hollow is None else np.asarray(hollow, dtype=bool)
    width, height, edge = 340, 280, 22
    low, high = places.min(axis=0), places.max(axis=0)
    at = (places - low) / np.where(high > low, high - low, 1.0)
    x, y = edge + at[:, 0] * (width - 2 * edge), height - edge - at[:, 1] * (height - 2 * edge)
    paths = []
    for group in np.unique(groups).tolist():
        for outline in (False, True):
            chosen = (groups == group) & (outlined == outline)
            path = " ".join(_mark(group, a, b) for a, b in zip(x[chosen], y[chosen], strict=True))
            if path:
                paths.append((path, f"g{group % COLOURS} {'ring' if outline else 'full'}"))
    return fragment(TEMPLATE, "scatter", paths, width, height, label, axes)


def legend(names: Sequence[str]) -> str:
    """What colours and shapes of `scatter` stand for."""
    marks = [(name, _mark(group, 7, 7, 5), f"g{group % COLOURS} full") for group, name in enumerate(names)]
    return fragment(TEMPLATE, "legend", marks)


def _mark(group: int, x: float, y: float, size: float = 3.4) -> str:
    """One point as a piece of an SVG path; groups that share a colour differ in its shape."""
    shape = SHAPES[(group + group // COLOURS) % len(SHAPES)]
    if shape == "circle":
        return f"M{x - size:.1f} {y:.1f}a{size} {size} 0 1 0 {2 * size} 0a{size} {size} 0 1 0 {-2 * size} 0z"
    if shape == "triangle":
        return f"M{x - size:.1f} {y + size:.1f}h{2 * size}l{-size} {-2 * size}z"
    if shape == "square":
        return f"M{x - size:.1f} {y - size:.1f}h{2 * size}v{2 * size}h{-2 * size}z"
    reach = 1.3 * size
    return f"M{x - reach:.1f} {y:.1f}l{reach:.2f} {-reach:.2f} {reach:.2f} {reach:.2f} {-reach:.2f} {reach:.2f}z"


def columns_chart(names: Sequence[str], parts: ArrayLike, *, groups: Sequence[str], label: str) -> str:
    """Stacked columns of two parts (N, 2), right (below) and wrong; those of a group, one a column, stand together."""
    tops = np.asarray(parts, dtype=np.float64).cumsum(axis=1)
    most = max(float(tops.max()), 1.0)
    step, x, columns = 12, 28 - 12, []
    for place, (name, group, (low, high)) in enumerate(zip(names, groups, (120 * tops / most).tolist(), strict=True)):
        first = place == 0 or group != groups[place - 1]
        x += step * (1 + (first and place > 0))
        shown = name if len(name) <= 9 else f"{name[:8]}…"
        columns.append({"x": x, "low": low, "high": high, "name": shown, "group": group if first else None})
    return fragment(TEMPLATE, "columns", columns, most, x + step, label)


def histogram(values: ArrayLike, *, label: str) -> str:
    """How values between 0 and 1 are spread."""
    counts, _ = np.histogram(np.asarray(values, dtype=np.float64), bins=BINS, range=(0.0, 1.0))
    step, tallest = 320 / BINS, max(counts.max(), 1)
    bars = [(10.5 + place * step, 118 * count / tallest) for place, count in enumerate(counts.tolist()) if count]
    return fragment(TEMPLATE, "histogram", bars, step - 1, label)


def flow_picture(flow: ArrayLike, *, label: str) -> str:
    """A flow map (2 or 3, H, W): strain, or how far skin moves where there is none, in grey, with arrows of u and v.

    Channels are u, v and perhaps strain, with zero where nothing moves.
    """
    values: Points = np.asarray(flow, dtype=np.float64)
    height, width = values.shape[1:]
    back = values[2] if len(values) > 2 else np.hypot(values[0], values[1])
    shades = np.uint8(np.round(250 - 175 * (back - back.min()) / (float(np.ptp(back)) or 1.0)))
    scale = min(1.0, TILE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    stream = io.BytesIO()
    Image.fromarray(shades).resize(size, Image.Resampling.BOX).save(stream, format="PNG", optimize=True)
    return fragment(
        TEMPLATE, "flow", base64.b64encode(stream.getvalue()).decode("ascii"), _arrows(values, 100.0), label
    )


def _arrows(flow: Points, side: float) -> str:
    """Arrows on a grid as one path; the longest spans one and a half cells."""
    height, width = flow.shape[1:]
    rows = np.unique(np.linspace(0, height - 1, min(ARROWS, height) + 2)[1:-1].round().astype(int))
    columns = np.unique(np.linspace(0, width - 1, min(ARROWS, width) + 2)[1:-1].round().astype(int))
    y, x = (axis.ravel() for axis in np.meshgrid(rows, columns, indexing="ij"))
    moves = np.stack([flow[0][y, x], flow[1][y, x]], axis=1)
    lengths = np.hypot(*moves.T)
    longest = float(lengths.max(initial=0.0))
    if longest <= 0:
        return ""
    # Skin that stands still gets no arrow.
    moved = lengths > 0.06 * longest
    start = np.stack([(x + 0.5) / width, (y + 0.5) / height], axis=1)[moved] * side
    way = moves[moved] / longest * (1.5 * side / len(columns))
    length = np.hypot(*way.T)[:, None]
    along = way / length
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    tip, head = start + way, np.minimum(0.4 * length, 3.2)
    left, right = tip - head * along + 0.6 * head * across, tip - head * along - 0.6 * head * across
    corners = np.stack([start, tip, left, tip, right], axis=1)
    drawn = [[f"{x:.1f} {y:.1f}" for x, y in arrow] for arrow in corners.tolist()]
    return "".join(f"M{a}L{b}M{c}L{d} {e}" for a, b, c, d, e in drawn)
