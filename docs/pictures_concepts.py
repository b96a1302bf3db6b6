"""Draws the pictures of the pages on concepts: ``python docs/pictures_concepts.py`` writes to ``docs/concepts``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

import fsmer
from fsmer.data import ClipSet, InputSpec
from fsmer.data.spec import image_spec
from fsmer.drawing import BLUE, GREY, LIGHT, ORANGE, save_figure

FOLDER = Path(__file__).parent / "concepts"


def blank(width: float, height: float) -> Figure:
    """A figure of so many inches with a canvas."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panel(axes: Axes, picture: NDArray[np.float32], title: str = "", edge: str = LIGHT) -> None:
    """One picture without ticks, with a coloured edge."""
    axes.imshow(picture, cmap="gray" if picture.ndim == 2 else None)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(color=edge, linewidth=2)
    axes.set_title(title, fontsize=8, color=edge if edge != LIGHT else "black", pad=3)


def clip_picture() -> None:
    """The media of one drawn clip."""
    specs = [image_spec("onset", 128), image_spec("apex", 128), InputSpec("flow", (28, 28), normalisation="minmax")]
    clip = fsmer.synthetic_clips("lab", 12, seed=1, specs=specs)[3]
    figure = blank(8, 1.9)
    cells = figure.subplots(1, 5)
    for axes, kind in zip(cells, ("onset", "apex"), strict=False):
        panel(axes, np.asarray(clip.read(kind)).transpose(1, 2, 0), kind)
    for axes, channel, name in zip(cells[2:], np.asarray(clip.read("flow")), ("u", "v", "strain"), strict=True):
        panel(axes, channel, f"flow: {name}")
    save_figure(figure, FOLDER / "clip.png")


def episode_picture() -> None:
    """A 3-way 5-shot episode as a grid of flow maps: support to the left, some queries to the right."""
    clips = fsmer.synthetic_clips("clinic", 60, seed=1)
    episode = fsmer.load_protocol("kshot", shot=5, query=3, episodes=1).split(clips)[0]
    figure = blank(8, 3.4)
    cells = figure.subplots(3, 9, gridspec_kw={"width_ratios": [1] * 5 + [0.35] + [1] * 3})
    for row, name in enumerate(episode.classes):
        fill_row(cells[row, :5], clips, episode.support, name, BLUE)
        fill_row(cells[row, 6:], clips, episode.query, name, ORANGE)
        cells[row, 5].set_axis_off()
        cells[row, 0].set_ylabel(name, fontsize=9)
    figure.suptitle(
        "support: learnt from, with labels (blue); query: asked about, without (orange). v of the flow", fontsize=9
    )
    save_figure(figure, FOLDER / "episode.png")


def fill_row(cells: NDArray[np.object_], clips: ClipSet, places: NDArray[np.int64], name: str, edge: str) -> None:
    """Vertical flow of the clips of one class."""
    chosen = places[clips.labels[places] == name][: len(cells)]
    for axes, place in zip(cells, chosen, strict=True):
        panel(axes, np.asarray(clips[int(place)].read("flow"))[1], edge=edge)


def protocol_picture() -> None:
    """Three kinds of protocol on the same clips: a row is an episode, a column a clip."""
    clips = fsmer.synthetic_clips("clinic", 40, seed=1, subjects=8)
    order = np.argsort(clips.subject_codes(), kind="stable")
    named = {
        "kshot, shot=3: a draw an episode": fsmer.load_protocol("kshot", shot=3, episodes=8),
        "loso: one person an episode": fsmer.load_protocol("loso"),
        "ratio=0.75: people dealt at random": fsmer.load_protocol("ratio", ratio=0.75, repeats=8),
    }
    figure = blank(8, 2.5)
    colours = np.array([[221, 221, 221], [0, 114, 178], [213, 94, 0]], dtype=np.uint8)
    for axes, (title, protocol) in zip(figure.subplots(1, 3), named.items(), strict=True):
        sides = np.zeros((8, len(clips)), dtype=np.int64)
        for row, episode in zip(sides, protocol.split(clips), strict=True):
            row[episode.support], row[episode.query] = 1, 2
        axes.imshow(colours[sides[:, order]], aspect="auto", interpolation="nearest")
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("clips, ordered by person", fontsize=8)
        axes.set_xticks(np.arange(0, 40, 5) - 0.5, [""] * 8)
        axes.set_yticks(np.arange(9) - 0.5, [""] * 9)
        axes.grid(color="white", linewidth=0.8)
        axes.tick_params(length=0)
    figure.axes[0].set_ylabel("episodes", fontsize=8)
    keys = [Patch(color=BLUE, label="support"), Patch(color=ORANGE, label="query")]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, fontsize=8, frameon=False, labelcolor=GREY)
    save_figure(figure, FOLDER / "protocol.png")


def embedding_picture() -> None:
    """Embeddings of drawn clips by `facs-flow`, in two directions that separate the classes best."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    clips = fsmer.synthetic_clips("clinic", 200, seed=1)
    embeddings = fsmer.embed(fsmer.load_model("facs-flow"), clips).numpy()
    learnt = LinearDiscriminantAnalysis(n_components=2).fit(embeddings[:100], clips.labels[:100])
    places = learnt.transform(embeddings[100:])
    figure = blank(4.6, 3.4)
    axes = figure.subplots()
    for name, colour, marker in zip(clips.classes, (BLUE, ORANGE, GREY), "os^", strict=True):
        shown = clips.labels[100:] == name
        axes.scatter(*places[shown].T, color=colour, marker=marker, s=22, label=name)
    axes.set(xticks=[], yticks=[])
    axes.set_title("100 clips in the embedding of facs-flow,\nseen in two directions that 100 others gave", fontsize=9)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    axes.spines[:].set_color(LIGHT)
    save_figure(figure, FOLDER / "backbone.png")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    clip_picture()
    episode_picture()
    protocol_picture()
    embedding_picture()
