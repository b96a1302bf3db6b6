"""Draws the pictures of the tutorials: ``python docs/pictures_tutorials.py`` writes to ``docs/tutorials``
and, for the README, ``docs/recording.png``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import fsmer
from fsmer.data import ClipSet
from fsmer.drawing import BLUE, GREY, LIGHT, ORANGE, save_figure
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


def bare(axes: Axes) -> None:
    """No frame but the line of the values."""
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.tick_params(left=False, labelsize=9)


def honest_table() -> None:
    """UF1 of the four runs of the page, with the interval over people."""
    clips = fsmer.synthetic_clips("clinic", 120)
    grid = {"steps": [25, 100, 200]}
    runs = {
        "COSINE": fsmer.evaluate("loso", "facs-flow", "cosine", clips=clips),
        "FINETUNED": fsmer.evaluate("loso", "facs-flow", "finetune", clips=clips),
        "NESTED": fsmer.evaluate("loso", "facs-flow", "finetune", clips=clips, select="nested", grid=grid),
        "ORACLE, chosen on\nthe test clips": fsmer.evaluate(
            "loso", "facs-flow", "finetune", clips=clips, select="oracle", grid=grid
        ),
    }
    figure = blank(8, 2.4)
    axes = figure.subplots()
    for row, (name, report) in enumerate(runs.items()):
        colour = ORANGE if name.startswith("ORACLE") else BLUE
        low, high = report.interval("uf1")
        axes.plot([low, high], [row, row], color=colour, linewidth=3)
        axes.plot(report.uf1, row, "o", color=colour, markersize=9)
        axes.text(report.uf1, row - 0.22, f"{report.uf1:.3f}", ha="center", va="bottom", fontsize=9, color=colour)
    axes.set_yticks(range(len(runs)), list(runs))
    axes.set(ylim=(len(runs) - 0.5, -0.7), xlabel="UF1, interval of 95 % over 20 people")
    bare(axes)
    save_figure(figure, FOLDER / "honest-table.png")


def own_backbone() -> None:
    """UF1 of every episode for the two networks of the page."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    mine = fsmer.wrap(network, expects=fsmer.InputSpec("flow", (28, 28), ("u", "v", "strain"), "minmax"))
    clips = fsmer.synthetic_clips("clinic", 60, seed=1)
    protocol = fsmer.load_protocol("kshot", shot=5, episodes=50)
    figure = blank(8, 1.7)
    axes = figure.subplots()
    models = {"mine, untrained": (mine, ORANGE), "facs-flow": ("facs-flow", BLUE)}
    for row, (model, colour) in enumerate(models.values()):
        report = fsmer.evaluate(protocol, model, "protonet", clips=clips)
        axes.plot(report.episodes["uf1"], np.full(50, row), "|", color=colour, markersize=14)
        axes.plot(report.uf1, row, "o", color=colour, markersize=9)
        axes.text(report.uf1, row - 0.3, f"{report.uf1:.2f}", ha="center", va="bottom", fontsize=9, color=colour)
    axes.axvline(1 / 3, color=LIGHT, zorder=0)
    axes.text(1 / 3, 1.55, " chance", ha="left", va="bottom", fontsize=8, color=GREY)
    axes.set_yticks(range(len(models)), list(models))
    axes.set(
        ylim=(1.6, -0.8), xlim=(0.2, 1), xlabel="UF1 of 50 episodes with five labelled clips a class, and their mean"
    )
    bare(axes)
    save_figure(figure, FOLDER / "own-backbone.png")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    cold_start()
    recordings()
    classes_in_words()
    honest_table()
    own_backbone()
