"""The answer on a recording: movements with their classes and action units, as JSON, table and picture."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fsmer.data.facs import action_unit, describe_aus
from fsmer.deploy.explanation import png_bytes, without_axes
from fsmer.drawing import BLUE, GREY, LIGHT, ORANGE, blank_figure, draw_flow, save_figure, wrapped
from fsmer.io import atomic_path, check_writable, write_json
from fsmer.text import write_csv

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NO_EXPRESSION = "no expression"
# Least probability of an action unit in the answer: best F1 on synthetic recordings (domains lab, clinic and field)
# other than those that the benchmark is measured on.
UNIT_THRESHOLD = 0.25


@dataclass(frozen=True, eq=False)
class Pictures:
    """Crops of onset and apex (h, w, 3), and the flow between them."""

    onset: NDArray[np.uint8]
    apex: NDArray[np.uint8]
    flow: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PredictedInterval:
    """One movement of the face and its most probable class.

    `onset_s`, `apex_s` and `offset_s` are seconds since the first frame: last moment at rest, strongest movement, at
    rest again. `label` is the most probable class, with the `probabilities` of all; `aus` are the numbers of the active
    action units, with the probability of every one. `energy` is how far the facial regions moved, in thousandths of the
    face width (see `fsmer.preprocess.apex.FlowEnergy`).
    """

    onset_s: float
    apex_s: float
    offset_s: float
    label: str
    probabilities: dict[str, float]
    aus: tuple[int, ...]
    unit_probabilities: dict[int, float] = field(repr=False)
    energy: float
    pictures: Pictures | None = field(default=None, repr=False)

    @property
    def words(self) -> str:
        """What moves, e.g. ``"the corners of the mouth go up and outwards"``."""
        return describe_aus(self.aus) if self.aus else "no action unit stands out"

    def to_dict(self) -> dict[str, Any]:
        """The six entries of the JSON object."""
        return {
            "onset_s": round(self.onset_s, 4),
            "apex_s": round(self.apex_s, 4),
            "offset_s": round(self.offset_s, 4),
            "label": self.label,
            "probabilities": {name: round(value, 6) for name, value in self.probabilities.items()},
            "aus": list(self.aus),
        }


@dataclass(frozen=True, eq=False)
class RecordingPrediction:
    """The answer on a whole recording; in a notebook it shows itself as a picture.

    `fps` are frames a second, `frames` how many there are, `faces` in how many of them a face was seen. `intervals` are
    in order of time, none when nothing moved; `notes` say what was assumed, one sentence each. The `trace`, for the
    picture, has times, energies (in multiples of the recording's usual restlessness) and thresholds.
    """

    name: str
    fps: float
    frames: int
    faces: int
    intervals: tuple[PredictedInterval, ...]
    notes: tuple[str, ...] = ()
    trace: tuple[NDArray[np.float64], ...] = field(default=(np.zeros(0),) * 3, repr=False)

    @property
    def label(self) -> str:
        """Class of the strongest movement, or ``"no expression"``."""
        return max(self.intervals, key=lambda one: one.energy).label if self.intervals else NO_EXPRESSION

    @property
    def seconds(self) -> float:
        """Length."""
        return self.frames / self.fps

    def to_dict(self) -> dict[str, Any]:
        """One JSON object: fps, frames, faces, intervals."""
        return {
            "fps": round(self.fps, 4),
            "frames": self.frames,
            "faces": self.faces,
            "intervals": [one.to_dict() for one in self.intervals],
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def to_frame(self) -> pd.DataFrame:
        """One row an interval: times, label, probability of every class (``p_...``), action units and words."""
        import pandas as pd

        classes = list(self.intervals[0].probabilities) if self.intervals else []
        columns = ["onset_s", "apex_s", "offset_s", "label", *(f"p_{name}" for name in classes), "aus", "words"]
        rows = [
            [
                *(round(value, 4) for value in (one.onset_s, one.apex_s, one.offset_s)),
                one.label,
                *(round(one.probabilities[name], 6) for name in classes),
                "+".join(map(str, one.aus)),
                one.words,
            ]
            for one in self.intervals
        ]
        return pd.DataFrame(rows, columns=columns)

    def summary(self) -> str:
        """The answer in one line."""
        share = self.faces / max(self.frames, 1)
        seen = "" if share > 0.995 else f", a face in {share:.0%} of it"
        what = f"{len(self.intervals)} movements" if len(self.intervals) != 1 else "1 movement"
        return f"{Path(self.name).name}: {self.seconds:.1f} s{seen}: {what if self.intervals else NO_EXPRESSION}"

    def figure(self) -> Figure:
        """Timeline of the energy, and for the strongest movements onset, apex, flow and action units."""
        shown = [one for one in self.intervals if one.pictures is not None]
        columns = max(4, len(shown))
        figure = blank_figure(1.5 * columns + 0.6, 2.2 + (6.6 if shown else 0))
        heights = [2.0, 1.4, 1.4, 1.4, 2.2] if shown else [1.0]
        grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
        self._draw_timeline(figure.add_subplot(grid[0, :]), shown)
        for column, one in enumerate(shown):
            assert one.pictures is not None
            moments = (("onset", one.onset_s, one.pictures.onset), ("apex", one.apex_s, one.pictures.apex))
            for row, (name, time, picture) in enumerate(moments, 1):
                axes = figure.add_subplot(grid[row, column])
                axes.imshow(picture)
                without_axes(axes)
                if row == 1:
                    axes.set_title(f"{column + 1}: {one.label} {one.probabilities[one.label]:.0%}", fontsize=8)
                axes.set_xlabel(f"{name} {time:.2f} s", fontsize=7, labelpad=2)
            axes = figure.add_subplot(grid[3, column])
            draw_flow(axes, one.pictures.flow.astype(np.float64), 10)
            axes.set_xlabel("flow at the apex", fontsize=7, labelpad=2)
            _draw_units(figure.add_subplot(grid[4, column]), one)
        return figure

    def _draw_timeline(self, axes: Axes, shown: Sequence[PredictedInterval]) -> None:
        times, energies, thresholds = self.trace
        axes.plot(times, energies, color=GREY, linewidth=0.9, label="movement of the facial regions")
        axes.plot(times, thresholds, color=ORANGE, linewidth=0.9, linestyle="--", label="needed")
        finite = energies[np.isfinite(energies)]
        top = 1.25 * max(float(finite.max()) if len(finite) else 1.0, 1.0)
        for one in self.intervals:
            axes.axvspan(one.onset_s, one.offset_s, color=BLUE, alpha=0.18, linewidth=0)
            axes.axvline(one.apex_s, color=BLUE, linewidth=0.8)
        for number, one in enumerate(shown):
            axes.annotate(
                str(number + 1), (one.apex_s, 0.97 * top), ha="center", va="top", fontsize=8, color=BLUE, weight="bold"
            )
        axes.set_xlim(0, max(self.seconds, 1e-6))
        axes.set_ylim(0, top)
        axes.set_xlabel("seconds (blue: onset to offset, line: apex)", fontsize=8)
        axes.set_ylabel("times the usual\nrestlessness", fontsize=7)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(wrapped(self.summary(), 60), fontsize=9, loc="left")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=6, frameon=False, ncols=2)

    def _repr_png_(self) -> bytes:
        return png_bytes(self.figure())

    def save(self, folder: str | os.PathLike[str]) -> dict[str, Path]:
        """Write ``timeline.png``, ``recording.json`` and ``intervals.csv``, each whole or not at all (`OutputError`).

        The result says where by ``"picture"``, ``"json"`` and ``"csv"``.
        """
        place = Path(folder)
        check_writable(place)
        files = {"picture": place / "timeline.png", "json": place / "recording.json", "csv": place / "intervals.csv"}
        save_figure(self.figure(), files["picture"])
        write_json(files["json"], self.to_dict())
        with atomic_path(files["csv"]) as temporary:
            write_csv(self.to_frame(), temporary)
        return files


def _draw_units(axes: Axes, one: PredictedInterval) -> None:
    ranked = sorted(one.unit_probabilities.items(), key=lambda pair: -pair[1])[:6][::-1]
    values = [chance for _, chance in ranked]
    axes.barh(range(len(ranked)), values, color=[BLUE if number in one.aus else LIGHT for number, _ in ranked])
    axes.axvline(UNIT_THRESHOLD, color=ORANGE, linewidth=0.8, linestyle="--")
    for place, (number, _) in enumerate(ranked):
        axes.text(0.02, place, f"{number} {action_unit(number).name}", va="center", fontsize=5.5)
    axes.set_xlim(0, 1)
    axes.set_yticks([])
    axes.tick_params(labelsize=6)
    axes.set_xlabel("action units", fontsize=7, labelpad=2)
    axes.spines[["top", "right", "left"]].set_visible(False)
