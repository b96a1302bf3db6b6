"""From a recording to an answer: when the face moves, which class that is, and by which action units."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fsmer.ambient import library_settings
from fsmer.backbones import Backbone, embed, load_model
from fsmer.backbones.facs_flow import COARSE_CLASSES, FacsFlow
from fsmer.data.facs import ACTION_UNIT_ORDER, action_unit, describe_aus
from fsmer.data.spec import InputSpec
from fsmer.drawing import BLUE, DPI, GREY, LIGHT, ORANGE, blank_figure, draw_flow, save_figure, wrapped
from fsmer.errors import MediaError
from fsmer.io import atomic_path, check_writable, write_json
from fsmer.preprocess.faces import FaceDetector, NoFaceError, Which
from fsmer.preprocess.flow import flow_map, optical_flow
from fsmer.preprocess.media import media_from_frames, pair_media
from fsmer.preprocess.movement import Movement
from fsmer.preprocess.reading import FALLBACK_RATE, Frame, FrameSource, StreamFrames, as_rgb, open_frames
from fsmer.preprocess.recipe import PreprocessRecipe
from fsmer.preprocess.spotting import MovementSpotter, SpotterSettings
from fsmer.text import write_csv

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fsmer.transfer import Recognizer

    Progress = Callable[[int, int], None]

__all__ = ["NO_EXPRESSION", "PredictedInterval", "RecordingPrediction", "RecordingReader", "predict_recording"]

NO_EXPRESSION = "no expression"
"""What a recording in which nothing moved is said to show."""

DEFAULT_MODEL = "facs-flow"
# Movements in the picture, the strongest; pictures of the others are not kept.
SHOWN = 12
THUMBNAIL = (96, 96)
# Least probability of an action unit in the answer: best F1 on synthetic recordings (domains lab, clinic and field)
# other than those that the benchmark is measured on.
UNIT_THRESHOLD = 0.25
# Side in pixels of the crops that flow is computed on, as in `PreprocessRecipe`.
CROP = (224, 224)
# How flow is made for a model that answers without labels: the estimator that lost least against true flow on drawn
# recordings, and the head's motion out of it, since a recording's crop is not aligned from frame to frame.
UNIT_RECIPE = PreprocessRecipe(flow="dis", flow_parameters={"finest_scale": 1}, head_motion="remove")
# Frames of a live stream that are waited for to learn its rate.
RATE_FRAMES = 12


@dataclass(frozen=True, eq=False)
class _Pictures:
    onset: NDArray[np.uint8]
    apex: NDArray[np.uint8]
    flow: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PredictedInterval:
    """One movement of the face and what it seems to be.

    Parameters
    ----------
    onset_s, apex_s, offset_s : float
        Seconds since the first frame: last moment at rest, strongest movement, at rest again.
    label : str
        The most probable class.
    probabilities : dict of str to float
        Of every class.
    aus : tuple of int
        Numbers of the active action units.
    unit_probabilities : dict of int to float
        Of every action unit.
    energy : float
        How far the facial regions moved, in thousandths of the face width (see `fsmer.preprocess.apex.FlowEnergy`).
    """

    onset_s: float
    apex_s: float
    offset_s: float
    label: str
    probabilities: dict[str, float]
    aus: tuple[int, ...]
    unit_probabilities: dict[int, float] = field(repr=False)
    energy: float
    pictures: _Pictures | None = field(default=None, repr=False)

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

    Parameters
    ----------
    name : str
        The recording.
    fps : float
        Frames a second.
    frames : int
        How many frames it has.
    faces : int
        In how many of them a face was seen.
    intervals : tuple of PredictedInterval
        In order of time; empty when nothing moved.
    notes : tuple of str
        What had to be assumed, one sentence each.
    trace : tuple of arrays
        Times, energies (in multiples of the recording's usual restlessness) and thresholds, for the picture.
    """

    name: str
    fps: float
    frames: int
    faces: int
    intervals: tuple[PredictedInterval, ...]
    notes: tuple[str, ...] = ()
    trace: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]] = field(
        default_factory=lambda: (np.zeros(0), np.zeros(0), np.zeros(0)), repr=False
    )

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
            for row, picture in ((1, one.pictures.onset), (2, one.pictures.apex)):
                axes = figure.add_subplot(grid[row, column])
                axes.imshow(picture)
                _bare(axes)
                if row == 1:
                    axes.set_title(f"{column + 1}: {one.label} {one.probabilities[one.label]:.0%}", fontsize=8)
                time = one.onset_s if row == 1 else one.apex_s
                axes.set_xlabel(f"{'onset' if row == 1 else 'apex'} {time:.2f} s", fontsize=7, labelpad=2)
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
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()

    def save(self, folder: str | os.PathLike[str]) -> dict[str, Path]:
        """Write ``timeline.png``, ``recording.json`` and ``intervals.csv``, each whole or not at all.

        Returns
        -------
        dict of str to Path
            ``"picture"``, ``"json"``, ``"csv"``.

        Raises
        ------
        OutputError
            The folder cannot be written, or the disk is full.
        """
        place = Path(folder)
        check_writable(place)
        files = {"picture": place / "timeline.png", "json": place / "recording.json", "csv": place / "intervals.csv"}
        save_figure(self.figure(), files["picture"])
        write_json(files["json"], self.to_dict())
        with atomic_path(files["csv"]) as temporary:
            write_csv(self.to_frame(), temporary)
        return files


class RecordingReader:
    """Reads a recording and gives its movements as they end, from files and from live streams alike.

    Memory does not grow with the recording. Iterate once; `prediction` then sums everything up.

    Parameters
    ----------
    source, model, classes, which, detector, settings, frames_per_second
        See `predict_recording`.

    Examples
    --------
    >>> for interval in RecordingReader(camera()):  # doctest: +SKIP
    ...     print(interval.apex_s, interval.label, interval.words)
    """

    def __init__(
        self,
        source: Any,
        model: Any = DEFAULT_MODEL,
        *,
        classes: Sequence[str] | None = None,
        which: Which = "largest",
        detector: FaceDetector | None = None,
        settings: SpotterSettings | None = None,
        frames_per_second: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._answerer = _Answerer(model, classes)
        self._timed = _Timed(source, frames_per_second)
        self._progress = progress
        self._which = which
        self._spotter = MovementSpotter(self._timed.fps, detector=detector, which=which, settings=settings)
        self._kept: list[PredictedInterval] = []

    def __iter__(self) -> Iterator[PredictedInterval]:
        total = self._timed.count or 0
        for time, frame in self._timed:
            for movement in self._spotter.update(frame, time):
                yield self._answer(movement)
            if self._progress is not None:
                self._progress(self._spotter.frames, total)
        for movement in self._spotter.finish():
            yield self._answer(movement)
        name, frames = self._timed.name, self._spotter.frames
        if frames < 3:
            raise MediaError(
                f"{name} has {frames} frame{'s' if frames > 1 else ''}, too few to see a movement; give a recording of "
                "a second or more."
            )
        if not self._spotter.faces and self._which not in ("largest", 0):
            raise NoFaceError(
                f"face {self._which} was asked for (counted from 0, largest first), but none of the {frames} frames of "
                f"{name} shows so many; ask for a smaller number."
            )
        if not self._spotter.faces:
            raise NoFaceError(
                f"no face was found in any of the {frames} frames of {name}; give a recording that shows a face from "
                "the front."
            )

    def _answer(self, movement: Movement) -> PredictedInterval:
        found = self._answerer(movement)
        self._kept.append(found)
        pictured = [one for one in self._kept if one.pictures is not None]
        if len(pictured) > SHOWN:
            weakest = min(pictured, key=lambda one: one.energy)
            self._kept[self._kept.index(weakest)] = replace(weakest, pictures=None)
        return found

    @property
    def prediction(self) -> RecordingPrediction:
        """Everything that was found so far."""
        return RecordingPrediction(
            name=self._timed.name,
            fps=self._timed.fps,
            frames=self._spotter.frames,
            faces=self._spotter.faces,
            intervals=tuple(self._kept),
            notes=tuple(self._timed.notes),
            trace=self._spotter.trace.arrays(),
        )


@library_settings()
def predict_recording(
    source: Any,
    model_or_recognizer: Backbone | Recognizer | str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    classes: Sequence[str] | None = None,
    which: Which = "largest",
    detector: FaceDetector | None = None,
    settings: SpotterSettings | None = None,
    frames_per_second: float | None = None,
    progress: Progress | None = None,
) -> RecordingPrediction:
    """Find the movements of a face in a recording, and say of each its class and its action units.

    Parameters
    ----------
    source : video file, folder of images, array (T, H, W, 3), or iterable of images or (seconds, image) pairs
        See `fsmer.preprocess.open_frames`.
    model_or_recognizer
        A recognizer (or its folder), or a backbone that knows classes without labels (its name, or a folder of
        weights). Action units come from the head of a `facs-flow` that is given as a backbone; with anything else they
        come from the shipped `facs-flow` on the same onset and apex, whatever the recognizer eats.
    classes : sequence of str, optional
        For a backbone: classes that it knows by name, or by their action units (``"4+7"``); default negative,
        positive, surprise. A recognizer has its own.
    which : "largest" or int
        Which face, counted from the largest in the first frame that shows one.
    detector : FaceDetector, optional
        Default the cascade, which needs no download.
    settings : SpotterSettings, optional
    frames_per_second : float, optional
        Overrides what the source says.
    progress : callable, optional
        Called with (frames done, frames in all or 0 where nobody knows).

    Returns
    -------
    RecordingPrediction

    Raises
    ------
    NoFaceError
        No frame shows a face.
    MediaError
        The source cannot be read, breaks off, or is shorter than 3 frames.
    """
    reader = RecordingReader(
        source,
        model_or_recognizer,
        classes=classes,
        which=which,
        detector=detector,
        settings=settings,
        frames_per_second=frames_per_second,
        progress=progress,
    )
    for _ in reader:
        pass
    return reader.prediction


# -- the answer on one movement ---------------------------------------------------------------------------------------


class _Answerer:
    """From a movement to class probabilities and action units."""

    def __init__(self, model: Any, classes: Sequence[str] | None) -> None:
        self.recognizer, backbone = _recognizer(model, classes)
        self.units = backbone if isinstance(backbone, FacsFlow) else _shipped()
        # A recognizer of the user's saw flow by the default recipe when it was fitted.
        self.recipe = PreprocessRecipe() if backbone is None else UNIT_RECIPE

    def __call__(self, movement: Movement) -> PredictedInterval:
        onset, apex = movement.steady_pair(CROP)
        names = [str(name) for name in self.recognizer.classes_]
        shares = self.recognizer.predict_proba(self._media(movement, onset, apex))[0].tolist()
        probabilities = dict(zip(names, shares, strict=True))
        unit_media = pair_media(onset, apex, self.units.input_specs, recipe=UNIT_RECIPE)
        with torch.inference_mode():
            embedding = embed(self.units, {kind: array[None] for kind, array in unit_media.items()})
            chances = torch.sigmoid(self.units.unit_logits(embedding))[0].tolist()
        by_number = dict(zip(ACTION_UNIT_ORDER, chances, strict=True))
        return PredictedInterval(
            onset_s=movement.onset.time,
            apex_s=movement.apex.time,
            offset_s=movement.offset.time,
            label=max(probabilities, key=lambda name: probabilities[name]),
            probabilities=probabilities,
            aus=tuple(sorted(number for number, chance in by_number.items() if chance > UNIT_THRESHOLD)),
            unit_probabilities=by_number,
            energy=movement.energy,
            pictures=_pictures(onset, apex),
        )

    def _media(self, movement: Movement, onset: Frame, apex: Frame) -> dict[str, NDArray[np.float32]]:
        specs = self.recognizer.backbone.input_specs
        if all(spec.frames is None for spec in specs):
            media = pair_media(onset, apex, specs, recipe=self.recipe)
        else:
            media = media_from_frames(
                movement.crops(size=CROP),
                specs,
                apex=movement.apex_place,
                recipe=replace(self.recipe, detector="cropped"),
            )
        return {kind: array[None] for kind, array in media.items()}


def _recognizer(model: Any, classes: Sequence[str] | None) -> tuple[Recognizer, Backbone | None]:
    """What answers, and the backbone if one was given as such."""
    from fsmer.transfer import Recognizer, recognizer_of_words
    from fsmer.transfer.recognizer import load_trained

    model = load_trained(model)
    if isinstance(model, Recognizer):
        return model, None
    return recognizer_of_words(model, {}, others=tuple(classes or COARSE_CLASSES)), model


def _shipped() -> FacsFlow:
    found = load_model(DEFAULT_MODEL)
    assert isinstance(found, FacsFlow)
    return found


def _pictures(onset: NDArray[np.uint8], apex: NDArray[np.uint8]) -> _Pictures:
    import cv2

    small = [
        np.asarray(cv2.resize(one, THUMBNAIL[::-1], interpolation=cv2.INTER_AREA), np.uint8) for one in (onset, apex)
    ]
    spec = InputSpec(size=(56, 56), normalisation="signed")
    return _Pictures(
        small[0], small[1], flow_map(optical_flow(onset, apex, UNIT_RECIPE.load_flow()), spec, remove_head=True)
    )


# -- frames with their times ------------------------------------------------------------------------------------------


class _Timed:
    """Frames of anything that holds them, each with its time, once, in bounded memory."""

    def __init__(self, source: Any, frames_per_second: float | None) -> None:
        self.notes: list[str] = []
        self.count: int | None = None
        if isinstance(source, StreamFrames):
            # Its own clock keeps every stamp.
            self.fps, self.name = source.frames_per_second, source.name
            self._frames: Iterator[tuple[float, Frame]] = ((n / self.fps, frame) for n, frame in enumerate(source))
        elif isinstance(source, Iterable) and not isinstance(
            source, (str, os.PathLike, FrameSource, Sequence, np.ndarray)
        ):
            self.name = "the stream"
            self._frames = self._stream(iter(source), frames_per_second)
        else:
            opened = open_frames(source, frames_per_second=frames_per_second)
            self.name, self.count, self.fps = opened.name, opened.count, opened.frames_per_second
            self._frames = zip(opened.timestamps.tolist(), opened, strict=False)
            self.notes += opened.notes

    def __iter__(self) -> Iterator[tuple[float, Frame]]:
        return self._frames

    def _stream(self, items: Iterator[Any], frames_per_second: float | None) -> Iterator[tuple[float, Frame]]:
        """A live stream's frames; its rate is learnt from the first of them."""
        first = [_stamped(item) for item in islice(items, RATE_FRAMES)]
        gaps = np.diff([time for time, _ in first if np.isfinite(time)])
        usual = float(np.median(gaps[gaps > 0])) if (gaps > 0).any() else 0.0
        self.fps = frames_per_second or (1 / usual if usual > 0 else FALLBACK_RATE)
        if not frames_per_second and not usual:
            self.notes.append(f"the frame rate is unknown; {self.fps:g} frames a second were assumed.")
        if not first:
            raise MediaError(f"{self.name} gave no frame; check the camera or the generator.")
        return self._clocked(chain(first, map(_stamped, items)))

    def _clocked(self, items: Iterable[tuple[float, Any]]) -> Iterator[tuple[float, Frame]]:
        size: tuple[int, ...] | None = None
        zero, last = 0.0, -1 / self.fps
        for number, (stamp, item) in enumerate(items):
            frame = as_rgb(item, f"frame {number} of {self.name}")
            size = size or frame.shape
            if frame.shape != size:
                raise MediaError(
                    f"frame {number} of {self.name} is {frame.shape[0]}x{frame.shape[1]} pixels, but the first one is "
                    f"{size[0]}x{size[1]}; the frames of one recording must have one size."
                )
            if number == 0 and np.isfinite(stamp):
                zero = stamp
            time = stamp - zero
            # A stamp that is missing or goes back is replaced by the usual distance.
            last = time if np.isfinite(time) and time > last else last + 1 / self.fps
            yield last, frame


def _stamped(item: Any) -> tuple[float, Any]:
    """Seconds (NaN where unknown) and image."""
    if isinstance(item, tuple) and len(item) == 2 and np.ndim(item[0]) == 0:
        return (float("nan") if item[0] is None else float(item[0])), item[1]
    return float("nan"), item


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(LIGHT)


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
