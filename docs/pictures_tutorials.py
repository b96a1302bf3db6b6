"""Draws the pictures of the tutorials: ``python docs/pictures_tutorials.py`` writes to ``docs/tutorials``
and, for the README, ``docs/recording.png``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

import fsmer
from fsmer.data import ClipSet
from fsmer.drawing import BLUE, LIGHT, ORANGE, save_figure
from fsmer.synthetic.recordings import synthetic_recording

FOLDER = Path(__file__).parent / "tutorials"
WORDS = {
    "raised brows": "inner brow raiser, outer brow raiser",
    "smile": "cheek raiser, lip corner puller",
    "frown": "brow lowerer",
}


def blank(width: float, height: float) -> Figure:
    """A figure of so many inches with a canvas."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def flow(axes: Axes, clips: ClipSet, place: int, edge: str, title: str = "") -> None:
    """Arrows of the flow of one clip over its strain."""
    u, v, strain = np.asarray(clips[place].read("flow"))
    rows, columns = np.mgrid[1:28:3, 1:28:3]
    axes.imshow(1 - strain, cmap="gray", vmin=-0.3, vmax=1)
    axes.quiver(
        columns,
        rows,
        u[rows, columns] - np.median(u),
        np.median(v) - v[rows, columns],
        color=edge,
        scale=5,
        width=0.012,
    )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=edge, linewidth=2)
    axes.set_title(title, fontsize=9, color=edge)


def answers(axes: Axes, names: list[str], shares: NDArray[np.floating]) -> None:
    """Probabilities of the classes of one clip."""
    axes.barh(names, shares, color=[BLUE if share == shares.max() else LIGHT for share in shares])
    axes.set(xlim=(0, 1), xticks=[])
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(left=False, labelsize=8)


def cold_start() -> None:
    """Five clips a class, and the answers on five others."""
    clips = fsmer.synthetic_clips("clinic", 120, seed=1)
    names = sorted(set(clips.labels))
    places = [np.flatnonzero(clips.labels == name)[:5] for name in names]
    support = np.concatenate(places)
    recognizer = fsmer.adapt("facs-flow", clips[support])
    figure = blank(8, 4.4)
    cells = figure.subplots(4, 6, gridspec_kw={"height_ratios": [1, 1, 1, 1]})
    for row, (name, chosen) in enumerate(zip(names, places, strict=True)):
        cells[row, 0].text(1, 0.5, name, ha="right", va="center", fontsize=10)
        for axes, place in zip(cells[row, 1:], chosen, strict=True):
            flow(axes, clips, int(place), BLUE)
        cells[row, 0].set_axis_off()
    asked = np.setdiff1d(np.arange(len(clips)), support)[:5]
    shares = recognizer.predict_proba(clips[asked])
    cells[3, 0].set_axis_off()
    cells[3, 0].text(1, 0.5, "asked", ha="right", va="center", fontsize=10)
    for axes, place, share in zip(cells[3, 1:], asked, shares, strict=True):
        flow(axes, clips, int(place), ORANGE, f"{recognizer.classes_[share.argmax()]} {share.max():.0%}")
    save_figure(figure, FOLDER / "cold-start.png")


def recordings() -> None:
    """What `fsmer predict` draws of a drawn recording."""
    with tempfile.TemporaryDirectory() as folder:
        video = synthetic_recording(12, seed=12, domain="lab").save(Path(folder) / "video.mp4")
        fsmer.predict_recording(video).save(folder)
        drawn = Image.open(Path(folder) / "timeline.png").convert("RGB").quantize(256)
        drawn.save(FOLDER / "recordings.png", optimize=True)
        # For the README: without the bars of the action units.
        drawn.crop((0, 0, drawn.width, round(0.75 * drawn.height))).save(FOLDER.parent / "recording.png", optimize=True)


def classes_in_words() -> None:
    """Probabilities of classes that are known by words alone."""
    clips = fsmer.synthetic_clips("clinic", 60, seed=1)
    recognizer = fsmer.recognizer_of_words("facs-flow", WORDS)
    chosen = [
        next(place for place, aus in enumerate(clips.table["aus"]) if aus == units) for units in ("1+2", "6+12", "4")
    ]
    figure = blank(8, 2.6)
    cells = figure.subplots(2, 3, gridspec_kw={"height_ratios": [2.4, 1]})
    for column, place in enumerate(chosen):
        flow(cells[0, column], clips, place, BLUE, f"moves action units {clips[place].aus}")
        answers(cells[1, column], list(recognizer.classes_), recognizer.predict_proba(clips[[place]])[0])
    save_figure(figure, FOLDER / "classes-in-words.png")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    cold_start()
    recordings()
    classes_in_words()
