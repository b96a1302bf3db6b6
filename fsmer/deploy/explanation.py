"""An explanation of one clip: the maps of a network over the pictures that they belong to."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fsmer.data.shown_flow import Array, Medium, farthest, flows_of, way_from_first
from fsmer.drawing import BLUE, DPI, GREY, LIGHT, blank_figure, draw_flow, save_figure, wrapped
from fsmer.preprocess.flow import optical_flow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Title, note below it, and what draws it.
Panel = tuple[str, str, Callable[["Axes"], None]]
# Titles of maps whose names are a paper's letters.
MAP_TITLES = {
    "dma": "micro-attention", "poi": "patch of interest", "dma_poi": "attention × interest",
    "au_flow": "action unit flow", "pose_flow": "head pose flow",
}  # fmt: skip
# Flow between smaller pictures cannot be estimated.
_LEAST_FOR_FLOW = 16


@dataclass(frozen=True, eq=False)
class Explanation:
    """Which parts of one clip a network used, and what it answered; in a notebook it shows itself as a picture.

    `maps` say how much the network used each place, in 0..1, (h, w), each at its own size; `about` is what they are, in
    words. `media` has the spec and the array of what the clip shows, by kind. `clip` is its id, `label` its own label;
    `classes` are the recognizer's (none for a bare backbone), with their `probabilities`, (C,).
    """

    clip: str
    maps: Mapping[str, Array] = field(repr=False)
    about: str
    media: Mapping[str, Medium] = field(repr=False)
    label: str | None = None
    classes: tuple[str, ...] = ()
    probabilities: Array = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def prediction(self) -> str | None:
        """The most probable class; None for a bare backbone."""
        return self.classes[int(self.probabilities.argmax())] if self.classes else None

    def figure(self) -> Figure:
        """Picture of the clip's media, the probabilities and the maps laid over the face (or the flow).

        A map is drawn from nothing at its median to full colour at its largest value; its range stands below it.
        """
        shown = _media_panels(self.media)
        if self.classes:
            shown.append(("probabilities", "", self._draw_probabilities))
        back = _background(self.media)
        maps = [_map_panel(MAP_TITLES.get(name, name), values, back) for name, values in self.maps.items()]
        rows = [shown + maps] if len(shown) + len(maps) <= 5 else [shown, maps]
        columns = max(map(len, rows))
        figure = blank_figure(1.75 * columns, 2.1 * len(rows) + 0.45)
        for row, panels in enumerate(rows):
            for column, (title, note, draw) in enumerate(panels):
                axes = figure.add_subplot(len(rows), columns, row * columns + column + 1)
                axes.set_title(title, fontsize=8, pad=3)
                draw(axes)
                if note:
                    axes.set_xlabel(note, fontsize=6.5, color=GREY, labelpad=2)
        figure.suptitle(wrapped(self._headline(), 24 * columns), fontsize=9)
        figure.supxlabel(wrapped(self.about, 30 * columns), fontsize=7, color=GREY)
        return figure

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture as PNG, whole or not at all (`OutputError`)."""
        return save_figure(self.figure(), path)

    def _headline(self) -> str:
        facts = [] if self.prediction is None else [f"{self.prediction} ({self.probabilities.max():.0%})"]
        facts += [f"labelled {self.label}"] if self.label else []
        return f"{self.clip}: {', '.join(facts)}" if facts else self.clip

    def _draw_probabilities(self, axes: Axes) -> None:
        places = range(len(self.classes))
        colours = [BLUE if name == self.prediction else LIGHT for name in self.classes]
        axes.barh(places, self.probabilities, color=colours, height=0.45)
        for place, (name, share) in enumerate(zip(self.classes, self.probabilities, strict=True)):
            # Names above their bars: beside them they would take the width that the bars need.
            axes.text(0, place - 0.3, name, fontsize=7, va="bottom")
            axes.text(1, place - 0.3, f"{share:.0%}", fontsize=7, va="bottom", ha="right", color=GREY)
        axes.set_xlim(0, 1)
        axes.set_ylim(max(len(self.classes), 5) - 0.5, -0.8)
        axes.set_box_aspect(1)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)

    def _repr_png_(self) -> bytes:
        return png_bytes(self.figure())


def _media_panels(media: Mapping[str, Medium]) -> list[Panel]:
    """One panel a picture that the clip has; without flow, that between onset and apex, and their difference."""
    panels = [_image_panel(kind, media[kind][1]) for kind in ("onset", "apex") if kind in media]
    if "frames" in media:
        frames, most = media["frames"][1], _most_moved(media)
        if "onset" not in media:
            panels.append(_image_panel("first frame", frames[0]))
        if "apex" not in media:
            panels.append(_image_panel(f"frame {most + 1} of {len(frames)}", frames[most]))
    others = media.keys() - {"onset", "apex", "frames", "flow", "flows"}
    panels += [_image_panel(kind, _grey(media[kind][1])[None].repeat(3, 0)) for kind in sorted(others)]
    flows = dict(flows_of(media))
    panels += [_flow_panel(title, flow) for title, flow in flows.items()]
    if not flows:
        for title, first, second in _pairs(media):
            if min(first.shape[1:]) >= _LEAST_FOR_FLOW:
                start, end = (np.clip(np.moveaxis(image, 0, 2), 0, 1) for image in (first, second))
                panels.append(_flow_panel("flow", optical_flow(start, end), "estimated (Farnebäck)"))
            panels.append(_difference_panel(title, first, second))
    return panels


def _pairs(media: Mapping[str, Medium]) -> Iterator[tuple[str, Array, Array]]:
    if "onset" in media and "apex" in media and media["onset"][1].shape == media["apex"][1].shape:
        yield "apex − onset", media["onset"][1], media["apex"][1]
    elif "frames" in media:
        frames = media["frames"][1]
        yield "change", frames[0], frames[_most_moved(media)]


def _most_moved(media: Mapping[str, Medium]) -> int:
    """The frame farthest from the first: by flow where each frame has one, for light and noise change frames too."""
    frames = media["frames"][1]
    if "flows" in media and len(media["flows"][1]) == len(frames) > 1:
        return 1 + farthest(way_from_first(media["flows"][1]))
    return int(np.abs(frames - frames[0]).mean(axis=(1, 2, 3)).argmax())


def _background(media: Mapping[str, Medium]) -> Array:
    """A grey picture (h, w) in 0..1 to lay maps over: the face where the clip shows one, else how much moved."""
    for kind in ("apex", "onset"):
        if kind in media:
            return np.asarray(media[kind][1].mean(axis=0))
    if "frames" in media:
        return np.asarray(media["frames"][1][_most_moved(media)].mean(axis=0))
    flow = next((values for _, values in flows_of(media)), None)
    if flow is None:
        return _grey(next(iter(media.values()))[1])
    amount = flow[2] - flow[2].min() if len(flow) > 2 else np.hypot(flow[0], flow[1])
    return np.asarray(1 - 0.6 * amount / max(float(amount.max()), 1e-12))


def _picture_panel(title: str, note: str, *layers: tuple[Array, dict[str, Any]]) -> Panel:
    """Pictures on top of each other, each with the options of ``imshow``."""

    def draw(axes: Axes) -> None:
        for picture, options in layers:
            axes.imshow(picture, **options)
        without_axes(axes)

    return title, note, draw


def _grey(values: Array) -> Array:
    """A medium of any kind as one picture (h, w) in 0..1: the mean over all but height and width."""
    mean = values.reshape(-1, *values.shape[-2:]).mean(axis=0)
    return np.asarray((mean - mean.min()) / max(float(np.ptp(mean)), 1e-12))


def _image_panel(title: str, image: Array) -> Panel:
    return _picture_panel(title, "", (np.clip(np.moveaxis(image, 0, 2), 0, 1), {}))


def _flow_panel(title: str, flow: Array, note: str = "") -> Panel:
    what = "strain and direction" if len(flow) > 2 else "length and direction"
    return title, note or what, lambda axes: draw_flow(axes, flow.astype(np.float64), 12)


def _difference_panel(title: str, first: Array, second: Array) -> Panel:
    change = (second - first).mean(axis=0)
    limit = max(float(np.quantile(np.abs(change), 0.995)), 1e-6)
    note = f"darker (blue), brighter (red), ±{limit:.1%}"
    return _picture_panel(title, note, (change, {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}))


def _map_panel(title: str, values: Array, back: Array) -> Panel:
    low, middle, top = float(values.min()), float(np.median(values)), float(values.max())
    share = np.clip((values - middle) / (top - middle), 0, 1) if top > middle else np.zeros_like(values)
    place = (-0.5, back.shape[1] - 0.5, back.shape[0] - 0.5, -0.5)
    unit = {"vmin": 0, "vmax": 1}
    over = {"cmap": "inferno", "alpha": 0.85 * share, "extent": place, "interpolation": "bilinear", **unit}
    note = f"{values.shape[0]}×{values.shape[1]}, {low:.2g} to {top:.2g}"
    return _picture_panel(title, note, (back, {"cmap": "gray", **unit}), (share, over))


def png_bytes(figure: Figure) -> bytes:
    """A figure as PNG, the same bytes each time."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()


def without_axes(axes: Axes) -> None:
    """Leave only a light frame of the axes."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(LIGHT)
