"""Synthetic frame sequences: drawn faces that move by FACS displacement fields, with their true flow and action units.

A face (`fsmer.synthetic.faces`) of one of many made-up individuals is warped over time by the fields that the
synthetic flow maps are made of (`fsmer.synthetic.flow_maps`): from onset over apex to offset, with the peak
displacement of micro-expressions. Head motion, blinks, drifting light, sensor noise and compression come on top. The
sequences are cropped as the flow maps are, or show a whole recording: a head somewhere in a larger picture, with rest
between expressions. Everything is drawn frame by frame when it is asked for.

Times are in frames from 0, places in pixels with the centre of the first pixel at 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsmer.data.facs import ACTION_UNIT_ORDER
from fsmer.errors import DataError, unknown_name
from fsmer.synthetic.domains import Domain, load_domain
from fsmer.synthetic.drawn_recording import SyntheticRecording, seeded_generator
from fsmer.synthetic.individuals import Movement, Person, draw_crop
from fsmer.synthetic.scene import Array, Camera, Image, Interval, Scene, Size, checked_size, random_scene
from fsmer.synthetic.unit_sets import UnitSet, patterns_of

__all__ = ["SyntheticVideo", "synthetic_recording", "synthetic_videos"]

# Expressions last this long, in seconds, unless the clip is shorter: micro-expressions stay below half a second.
DURATION = (0.25, 0.5)


@dataclass(frozen=True, eq=False)
class SyntheticVideo:
    """One drawn expression with everything that is true about it."""

    frames: Image  # (T, height, width, 3), red, green, blue
    onset: int  # see `Interval`
    apex: int
    offset: int
    # (2, height, width), displacement from onset to apex in pixels, u right and v down, on the onset's grid, head
    # motion included; 0 where no head is
    flow: Array
    expression_flow: Array  # (2, height, width), the same as if the head had kept still
    # (height, width), where the expression moves by at least a fifth of its largest displacement
    moving: NDArray[np.bool_]
    units: NDArray[np.bool_]  # (len(ACTION_UNIT_ORDER),), active action units
    emotion: str  # emotion, its label in the domain's scheme, and whose face it is
    label: str
    subject: str
    # (T, 6), pose relative to the first onset: shift x and y in crop widths, roll in radian, relative scale, yaw and
    # pitch in radian
    head: Array
    closure: Array  # (T,), how far the lids are closed by blinks, 0 to 1
    crop: Array  # (2, 3), affine map from the face frame (see `fsmer.synthetic.facs_fields`) to pixels, at onset
    box: tuple[float, float, float, float]  # the canonical crop at onset, turned upright about its centre
    landmarks: dict[str, Array]  # (2, 2), landmarks at onset in pixels, right and left half of the picture


def check_request(seed: int, frames: int, frames_per_second: float, amplify: float = 1.0) -> None:
    """Raise `DataError` for a number that is out of range."""
    if seed < 0:
        raise DataError(f"seed {seed} is negative: give 0 or more.")
    if frames < 3:
        raise DataError(f"{frames} frames cannot hold onset, apex and offset: give 3 or more.")
    if not (math.isfinite(frames_per_second) and frames_per_second > 0):
        raise DataError(f"a frame rate of {frames_per_second} is not possible: give frames a second, above 0.")
    if not (math.isfinite(amplify) and amplify > 0):
        raise DataError(f"movement cannot be amplified by {amplify}: give a number above 0; 1 leaves it as it is.")


def _check_units(units: Sequence[int] | None) -> None:
    for unit in units or ():
        if unit not in ACTION_UNIT_ORDER:
            raise unknown_name("action unit", unit, map(str, ACTION_UNIT_ORDER))
    if units is not None and not len(units):
        raise DataError("no action unit was given: name at least one, or leave `units` out to draw an emotion.")


def draw_clip(
    place: Domain,
    index: int,
    *,
    seed: int,
    subjects: int,
    scene: Scene | None = None,
    units: Sequence[int] | UnitSet | None = None,
    **options: Any,
) -> SyntheticRecording:
    """Clip `index` of a domain as a recording with one expression; further options are those of the recording."""
    subject = index % subjects
    rng, crop, movement = draw_script(place, seed, index, subject, units)
    length = float(rng.uniform(*DURATION)) * options["frames_per_second"]
    interval = _place_interval(rng, 0, options["frames"], length, movement, place)
    shown = crop if scene is None else scene
    moved: dict[str, Any] = {"intervals": [interval], "movements": [movement], "place": shown}
    return SyntheticRecording(place, seed, subject, (3, index), **moved, **options)


def draw_script(
    place: Domain, seed: int, index: int, subject: int, units: Sequence[int] | UnitSet | None = None
) -> tuple[np.random.Generator, Array, Movement]:
    """Crop and expression of clip `index`, and the generator for what follows."""
    rng = seeded_generator(seed, place.key, 2, index)
    crop = draw_crop(place, rng)
    asked = patterns_of([units], np.array([0]), place) if isinstance(units, UnitSet) else units
    return rng, crop, _person(place, seed, subject).move(place, rng, asked)


def _person(place: Domain, seed: int, subject: int) -> Person:
    return Person(place, seeded_generator(seed, place.key, 1, subject))


def _place_interval(
    rng: np.random.Generator, begin: int, room: int, length: float, movement: Movement, place: Domain
) -> Interval:
    """An expression of about that many frames somewhere in `room` frames from `begin` on."""
    longest = room - 1
    steps = int(np.clip(round(length), min(4, longest), max(longest - max(longest // 8, 0), min(4, longest))))
    onset = begin + int(rng.integers(longest - steps + 1))
    rise = int(np.clip(round(float(rng.uniform(0.35, 0.6)) * steps), 1, steps - 1))
    label = place.labels[movement.emotion] if movement.emotion else ""
    return Interval(onset, onset + rise, onset + steps, movement.units, movement.emotion, label)


def synthetic_videos(
    n: int,
    *,
    domain: str | Domain = "lab",
    seed: int = 0,
    size: Size = 224,
    frames: int = 24,
    frames_per_second: float = 100.0,
    start: int = 0,
    subjects: int = 20,
    scene: Scene | None = None,
    camera: Camera | None = None,
    units: Sequence[int] | None = None,
    amplify: float = 1.0,
) -> Iterator[SyntheticVideo]:
    """Draw `n` sequences of one expression each, one after the other.

    Domain (see `fsmer.synthetic.list_domains`), seed and options decide on video i; `n` and `start`, the number of the
    first video, to draw a long stream in pieces, do not. The domain gives labels, crops, individuals, intensities and
    camera; its crop fills the `size` in pixels, so that a square holds the canonical crop squeezed to a square, as in
    `fsmer.synthetic.clips.synthetic_maps`; with a `scene` the whole head is shown there instead. Expressions last 0.25
    to 0.5 s, or as long as the frames (3 or more) allow, and show these `units`, or those of an emotion. `subjects`
    individuals are dealt to the videos in turn. `amplify` enlarges the movement, for pictures to look at; the largest
    displacement is otherwise 0.5 to 4 pixels on a face of 224, and never so much that skin would fold.

    A `DataError` is raised for a number that is out of range, an `UnknownNameError` for an unknown domain or unit.
    """
    place = load_domain(domain)
    shape = checked_size(size)
    check_request(seed, frames, frames_per_second, amplify)
    _check_units(units)
    if n < 0 or start < 0 or subjects < 1:
        raise DataError(f"cannot draw {n} videos of {subjects} subjects from {start}: n and start must be 0 or more.")
    options: dict[str, Any] = {"seed": seed, "subjects": subjects, "scene": scene, "units": units, "size": shape}
    options |= {"frames": frames, "frames_per_second": frames_per_second}
    options |= {"camera": camera or Camera.of(place), "amplify": amplify}
    return (_video(draw_clip(place, index, **options)) for index in range(start, start + n))


def _video(recording: SyntheticRecording) -> SyntheticVideo:
    interval = recording.intervals[0]
    onset, apex, times = interval.onset, interval.apex, range(len(recording))
    expression = recording.flow(onset, apex, head=False)
    length = np.sqrt((expression**2).sum(axis=0))
    return SyntheticVideo(
        frames=np.stack(list(recording)),
        onset=onset,
        apex=apex,
        offset=interval.offset,
        flow=recording.flow(onset, apex),
        expression_flow=expression,
        moving=length > 0.2 * length.max(),
        units=interval.units,
        emotion=interval.emotion,
        label=interval.label,
        subject=recording.subject,
        head=np.array([recording.head(time) for time in times], np.float32),
        closure=np.array([recording.closure(time) for time in times], np.float32),
        crop=recording.crop(onset),
        box=recording.box(onset),
        landmarks=recording.landmarks(onset),
    )


def synthetic_recording(
    seconds: float = 20.0,
    *,
    domain: str | Domain = "field",
    seed: int = 0,
    size: Size = (360, 640),
    frames_per_second: float = 25.0,
    scene: Scene | None = None,
    subject: int = 0,
    rest: tuple[float, float] = (1.0, 2.5),
    duration: tuple[float, float] = DURATION,
    camera: Camera | None = None,
    units: Sequence[Sequence[int]] | None = None,
    amplify: float = 1.0,
) -> SyntheticRecording:
    """A whole recording: a head in a room, with several expressions and rest between them; iterate over it for frames.

    `rest` is the range of seconds before, between and after expressions, `duration` that from onset to offset; `units`
    are those of one expression after the other, beginning anew at the end (default: emotions of the domain). The scene
    is drawn by `random_scene` where none is given; other options and errors are those of `synthetic_videos`.
    """
    place = load_domain(domain)
    shape = checked_size(size)
    check_request(seed, 3, frames_per_second, amplify)
    frames = round(seconds * frames_per_second) if math.isfinite(seconds) else 0
    if frames < 1:
        raise DataError(f"a recording of {seconds} seconds holds no frame: give a length above 0.")
    for low, high in (rest, duration):
        if not 0 <= low <= high < math.inf:
            raise DataError(f"rest={rest} and duration={duration} must each be (low, high) seconds of 0 or more.")
    for wanted in [[]] if units is not None and not len(units) else units or ():
        _check_units(wanted)
    if subject < 0:
        raise DataError(f"there is no subject {subject}: give a number of 0 or more.")

    rng = seeded_generator(seed, place.key, 4, subject)
    person = _person(place, seed, subject)
    where = scene or random_scene(shape, rng)
    intervals: list[Interval] = []
    movements: list[Movement] = []
    onset = round(float(rng.uniform(*rest)) * frames_per_second)
    while True:
        movement = person.move(place, rng, None if units is None else units[len(intervals) % len(units)])
        steps = max(round(float(rng.uniform(*duration)) * frames_per_second), 4)
        if onset + steps + rest[0] * frames_per_second >= frames:
            break
        intervals.append(_place_interval(rng, onset, steps + 1, steps, movement, place))
        movements.append(movement)
        onset = intervals[-1].offset + round(float(rng.uniform(*rest)) * frames_per_second)
    options: dict[str, Any] = {"size": shape, "frames": frames, "frames_per_second": frames_per_second}
    options |= {"place": where, "camera": camera or Camera.of(place), "amplify": amplify}
    return SyntheticRecording(place, seed, subject, (5, subject), intervals=intervals, movements=movements, **options)
