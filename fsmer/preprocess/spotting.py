"""Find where a face moves in a recording of any length: onset, apex and offset of every movement, as the frames come.

Blinks, turns of the head and what goes on all the time (noise, talking) are not reported; how much a face has to move
is learnt from the recording's own rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fsmer.data.facs_fields import LANDMARKS
from fsmer.preprocess.apex import BLINK_REACH, FlowEnergy, facial_regions
from fsmer.preprocess.faces import CascadeDetector, FaceDetector, FacePose, FaceTracker, Which, crop_face
from fsmer.preprocess.flow import head_motion
from fsmer.preprocess.reading import Frame

__all__ = ["EnergyTrace", "Moment", "Movement", "MovementSpotter", "SpotterSettings"]

Vectors = NDArray[np.float64]

# Widest face kept in the buffer, in pixels: what lies above the 224 of a crop is not needed again.
KEPT_WIDTH = 240
# How much of the picture around the crop is kept, in crop widths and heights, for a head that moves on.
KEPT_REACH = 1.45
# Seconds before a movement that are kept, for its onset.
BEFORE = 0.7
# Distance of two crops, in crop widths, beyond which flow between them would lose the face.
FAR = 0.12


@dataclass(frozen=True)
class SpotterSettings:
    """How movements are told from rest; times in seconds.

    Parameters
    ----------
    rate : float
        Recordings with more frames a second are looked at in every second, third ... frame, so that no less than this
        many a second remain.
    settle : float
        What is listened to before the first decision, to learn how restless the face is.
    memory : float
        Over how long the rest level is learnt.
    step : float
        Between these instants movement is measured for the rest level.
    quiet : float
        Share of the instants that count as rest.
    times : float
        A movement must be so many times the rest level.
    least : float
        And move the regions together by this much (root of the sum of squares, thousandths of the face width); half
        a pixel on a face of 224 is 2.2.
    most : float
        This much is a movement on however restless a face.
    farthest : float
        No skin moves so far (thousandths of the face width): something else came before the face.
    minimum, longest : float
        Shortest movement, and the longest: what lasts longer ends there.
    hold : float
        A face that stays as it is for so long has got a new rest.
    turn : float
        A movement must be larger, a region, than this share of what the head has moved in the meantime.
    blink : float
        Where the lids move so many times as far as any other region, it was a blink.
    renew : int
        Frames between two searches for the face.
    """

    rate: float = 50.0
    settle: float = 1.6
    memory: float = 30.0
    step: float = 0.2
    quiet: float = 0.4
    times: float = 2.3
    least: float = 1.5
    most: float = 16.0
    farthest: float = 100.0
    minimum: float = 0.1
    longest: float = 2.0
    hold: float = 0.5
    turn: float = 0.08
    blink: float = 2.0
    renew: int = 50


@dataclass(frozen=True, eq=False)
class Moment:
    """One frame as the spotter keeps it: the face with its surroundings, no larger than needed.

    Parameters
    ----------
    number : int
        Place in the recording.
    time : float
        Seconds since the first frame.
    picture : uint8 array of shape (h, w, 3)
        Part of the frame, maybe scaled down.
    pose : FacePose
        The face in `picture`.
    corner : array of shape (2,)
        Upper left corner of `picture` in the frame, pixels.
    scale : float
        Pixels of `picture` a pixel of the frame.
    """

    number: int
    time: float
    picture: Frame
    pose: FacePose
    corner: NDArray[np.float64]
    scale: float

    def of_frame(self, pose: FacePose) -> FacePose:
        """A pose in this moment's picture as one in the frame."""
        x, y = (pose.centre + 0.5) / self.scale - 0.5 + self.corner
        return replace(pose, x=float(x), y=float(y), width=pose.width / self.scale)

    def of_picture(self, pose: FacePose) -> FacePose:
        """A pose in the frame as one in this moment's picture."""
        x, y = (pose.centre - self.corner + 0.5) * self.scale - 0.5
        return replace(pose, x=float(x), y=float(y), width=pose.width * self.scale)

    def crop(self, pose: FacePose, size: tuple[int, int] = (224, 224)) -> Frame:
        """Cut what lies at `pose` (of the frame) out of this moment."""
        return crop_face(self.picture, self.of_picture(pose), size)


def keep_moment(frame: Frame, pose: FacePose, number: int, time: float) -> Moment:
    """The part of a frame around a face that a later crop may need."""
    import cv2

    reach = np.abs(pose.axes) @ np.array([0.5, 0.5]) * KEPT_REACH
    height, width = frame.shape[:2]
    left, top = np.clip(np.floor(pose.centre - reach), 0, (width - 1, height - 1)).astype(int)
    right, bottom = np.clip(np.ceil(pose.centre + reach) + 1, (left + 1, top + 1), (width, height)).astype(int)
    part = frame[top:bottom, left:right]
    scale = min(1.0, KEPT_WIDTH / pose.width)
    if scale < 1:
        size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
        picture = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)
    else:
        picture = part.copy()
    kept = Moment(number, time, picture, pose, np.array([left, top], np.float64), scale)
    return replace(kept, pose=kept.of_picture(pose))


@dataclass(frozen=True, eq=False)
class Movement:
    """One movement of the face.

    Parameters
    ----------
    moments : tuple of Moment
        From onset to offset.
    apex_place : int
        Place of the apex among them.
    energy : float
        How far the facial regions have moved at the apex, thousandths of the face width.
    threshold : float
        What would have been enough.
    poses : tuple of FacePose
        Crop of every moment in pixels of the frame: the onset's, unless the head moved so far that flow would lose it;
        then each moment's own.
    """

    moments: tuple[Moment, ...] = field(repr=False)
    apex_place: int
    energy: float
    threshold: float
    poses: tuple[FacePose, ...] = field(repr=False)

    @property
    def onset(self) -> Moment:
        """Last moment at rest."""
        return self.moments[0]

    @property
    def apex(self) -> Moment:
        """Moment of the strongest movement."""
        return self.moments[self.apex_place]

    @property
    def offset(self) -> Moment:
        """First moment at rest again."""
        return self.moments[-1]

    def crops(self, places: Sequence[int] | None = None, size: tuple[int, int] = (224, 224)) -> list[Frame]:
        """Face crops of some moments (default all)."""
        chosen = range(len(self.moments)) if places is None else places
        return [self.moments[place].crop(self.poses[place], size) for place in chosen]

    def pair(self, size: tuple[int, int] = (224, 224)) -> tuple[Frame, Frame]:
        """Face crops of onset and apex."""
        onset, apex = self.crops([0, self.apex_place], size)
        return onset, apex


class EnergyTrace:
    """A curve over time of bounded length: when full, neighbours are joined and the larger one stays.

    Parameters
    ----------
    capacity : int
        Points at most.
    """

    def __init__(self, capacity: int = 2048) -> None:
        self.capacity = capacity
        self._points: list[tuple[float, float, float]] = []
        self._stride = 1
        self._count = 0

    def add(self, time: float, energy: float, threshold: float) -> None:
        """One more point; NaN where no face is seen."""
        if self._count % self._stride == 0:
            self._points.append((time, energy, threshold))
        elif not self._points[-1][1] >= energy:
            self._points[-1] = (self._points[-1][0], energy, threshold)
        self._count += 1
        if len(self._points) > self.capacity:
            pairs = zip(self._points[::2], self._points[1::2], strict=False)
            self._points = [(one[0], *(two if not one[1] >= two[1] else one)[1:]) for one, two in pairs]
            self._stride *= 2
            self._count = len(self._points) * self._stride

    def arrays(self) -> tuple[Vectors, Vectors, Vectors]:
        """Times, energies and thresholds."""
        times, energies, thresholds = np.array(self._points, np.float64).reshape(-1, 3).T
        return times, energies, thresholds


@dataclass(frozen=True, eq=False)
class _Reading:
    """A moment, and where the facial regions have come to since the face came into view."""

    moment: Moment
    place: Vectors


@lru_cache(maxsize=4)
def _eye_weights(side: int) -> NDArray[np.float32]:
    """Mean over what a blink moves, on crops of `side`, flattened."""
    axis = (np.arange(side) + 0.5) / side - 0.5
    x, y = np.abs(axis[None, :]) - LANDMARKS["lid_upper"][0], axis[:, None] - LANDMARKS["lid_upper"][1]
    inside = (x / BLINK_REACH[0]) ** 2 + (y / BLINK_REACH[1]) ** 2 < 0.6
    return (inside / inside.sum()).astype(np.float32).ravel()


class MovementSpotter:
    """Spots movements in a stream of frames; memory does not grow with its length.

    The face is followed. Flow from a reference frame, which is renewed before it gets old, less the motion of the
    head, says where every facial region has come to (`FlowEnergy.between`). The running mean of that while nothing
    moves is the face's rest. Regions that move all the time (a mouth that talks) count less. A movement begins where
    the regions leave their rest by more than the threshold, and ends where they come back or settle elsewhere (a held
    expression; its release later is not reported again). Onset and apex are then compared directly: what is a blink, a
    turn of the head, or no movement at all in that comparison is dropped.

    Parameters
    ----------
    frames_per_second : float
    detector : FaceDetector, optional
        Default the cascade.
    which : "largest" or int
        Which face.
    settings : SpotterSettings, optional

    Attributes
    ----------
    frames, faces : int
        Frames seen, and those of them in which a face was seen.
    trace : EnergyTrace
        Energy over time, for pictures.
    """

    def __init__(
        self,
        frames_per_second: float,
        *,
        detector: FaceDetector | None = None,
        which: Which = "largest",
        settings: SpotterSettings | None = None,
    ) -> None:
        self.settings = settings or SpotterSettings()
        self.trace = EnergyTrace()
        self.frames = 0
        self.faces = 0
        self._stride = max(1, int(frames_per_second / self.settings.rate + 1e-6))
        self._interval = self._stride / frames_per_second
        self._tracker = FaceTracker(detector or CascadeDetector(), which, renew=self.settings.renew)
        self._energy = FlowEnergy()
        self._seen = False
        self._readings: deque[_Reading] = deque()
        self._waiting: deque[_Reading] = deque()
        self._steps: deque[Vectors] = deque(maxlen=max(8, round(self.settings.memory / self._interval)))
        self._recent: deque[Vectors] = deque(maxlen=max(2, round(self.settings.step / self._interval) + 1))
        self._forget()

    def _forget(self) -> None:
        """Begin anew where a face comes into view."""
        self._poses: deque[FacePose] = deque(maxlen=5)
        self._crop_pose: FacePose | None = None
        self._reference: NDArray[np.uint8] | None = None
        self._base = np.zeros((len(facial_regions(self._energy.side)[0]), 2))
        self._age = 0.0
        self._readings.clear()
        self._recent.clear()
        self._rest: Vectors | None = None
        self._weights = np.ones(len(facial_regions(self._energy.side)[0]))
        self._threshold = self.settings.least
        self._until_levels = 0
        self._start: int | None = None
        self._above = 0
        self._peak = 0.0
        self._held: Vectors | None = None

    # -- frame by frame -----------------------------------------------------------------------------------------------

    def update(self, frame: Frame, time: float) -> list[Movement]:
        """Take the next frame, uint8 RGB, shown at `time` seconds; movements that ended meanwhile."""
        number = self.frames
        self.frames += 1
        if number % self._stride:
            self.faces += self._seen
            return []
        pose = self._tracker.update(frame, number)
        self._seen = pose is not None
        self.faces += self._seen
        if pose is None:
            found = self._flush()
            self._forget()
            self.trace.add(time, float("nan"), float("nan"))
            return found
        self._waiting.append(self._read(frame, pose, number, time))
        if len(self._steps) * self._interval < self.settings.settle:
            return []
        return self._drain()

    def finish(self) -> list[Movement]:
        """Movements that the end of the recording cuts off or decides."""
        return self._flush()

    def _flush(self) -> list[Movement]:
        found = self._drain()
        if self._start is not None:
            found += self._end(len(self._readings) - 1)
        return found

    def _drain(self) -> list[Movement]:
        found: list[Movement] = []
        while self._waiting:
            self._readings.append(self._waiting.popleft())
            found += self._decide()
        return found

    # -- where the face has come to -----------------------------------------------------------------------------------

    def _read(self, frame: Frame, pose: FacePose, number: int, time: float) -> _Reading:
        # The tracker's poses are a little unsteady; a median of a few of them is not.
        self._poses.append(pose)
        steady = _middle(list(self._poses))
        moment = keep_moment(frame, pose, number, time)
        crop_pose = self._crop_pose
        if crop_pose is None or self._reference is None:
            self._begin(frame, steady)
            vectors = self._base
        else:
            current = self._energy.prepare(crop_face(frame, crop_pose, (self._energy.side,) * 2))
            vectors = self._base + self._compare(self._reference, current)[0]
            self._age += self._interval
            if self._age > 1.5 or _distance(crop_pose, steady) > 0.06:
                self._base = vectors
                self._begin(frame, steady)
        reading = _Reading(moment, vectors)
        self._recent.append(vectors)
        if len(self._recent) == self._recent.maxlen:
            self._steps.append(np.linalg.norm(self._recent[-1] - self._recent[0], axis=1))
        return reading

    def _begin(self, frame: Frame, pose: FacePose) -> None:
        self._crop_pose = pose
        self._reference = self._energy.prepare(crop_face(frame, pose, (self._energy.side,) * 2))
        self._age = 0.0

    def _compare(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[Vectors, float, float]:
        """Movement of every region apart from the head; the head's; and the lids', as vertical opening or closing."""
        side = self._energy.side
        regions, face = facial_regions(side)
        flow = self._energy.method(first, second)
        motion = head_motion(flow, face, iterations=8).field((side, side))
        unit = 1000 / side
        still = (flow - motion).reshape(2, -1) * unit
        vectors = (regions @ still.T).astype(np.float64)
        eyes = float(_eye_weights(side) @ np.hypot(*still))
        return vectors, float(np.sqrt((motion**2).sum(axis=0).mean())) * unit, eyes

    # -- rest and movement --------------------------------------------------------------------------------------------

    def _levels(self) -> tuple[NDArray[np.float64], float]:
        """Weight of every region, and the threshold."""
        if not self._steps:
            return np.ones(len(self._base)), self.settings.least
        steps = np.array(self._steps)
        usual = np.quantile(steps, self.settings.quiet, axis=0)
        middle = float(np.median(usual))
        weights = np.minimum(1.0, (2 * middle + 0.05) / (usual + 0.05))
        energies = np.sqrt(((weights * steps) ** 2).sum(axis=1))
        level = self.settings.times * float(np.quantile(energies, self.settings.quiet))
        return weights, min(max(self.settings.least, level), self.settings.most)

    def _decide(self) -> list[Movement]:
        now = len(self._readings) - 1
        if self._until_levels == 0:
            self._weights, self._threshold = self._levels()
            self._until_levels = 8
        self._until_levels -= 1
        here = self._smoothed(now)
        if self._rest is None:
            self._rest = here
        energy = self._energy_of(here - self._rest)
        self.trace.add(self._readings[-1].moment.time, energy, self._threshold)
        if self._start is not None:
            return self._follow(now, here, energy)
        self._above = self._above + 1 if energy > self._threshold else 0
        if self._above >= 2:
            self._start = now - 1
        elif not self._above:
            share = min(1.0, self._interval / 0.4)
            self._rest = (1 - share) * self._rest + share * here
            self._forget_until(self._readings[-1].moment.time - BEFORE)
        return []

    def _follow(self, now: int, here: Vectors, energy: float) -> list[Movement]:
        assert self._start is not None
        self._peak = max(self._peak, energy)
        time = self._readings[now].moment.time
        lasted = time - self._readings[self._start].moment.time
        if energy < max(0.5 * self._threshold, 0.35 * self._peak):
            return self._end(now)
        assert self._rest is not None
        if float(np.linalg.norm(here - self._rest, axis=1).max()) > self.settings.farthest:
            return self._end(now - 1, held=True)
        hold = round(self.settings.hold / self._interval)
        earlier = self._smoothed(max(0, now - hold))
        settled = lasted > self.settings.hold and self._energy_of(here - earlier) < max(
            0.6 * self._threshold, 0.3 * self._peak
        )
        if settled or lasted > self.settings.longest:
            return self._end(now, held=True)
        return []

    def _end(self, now: int, *, held: bool = False) -> list[Movement]:
        """The movement that is over, unless it was none; the state is that of rest again."""
        rest, start = self._rest, self._start
        assert rest is not None
        assert start is not None
        places = np.array([self._smoothed(n) for n in range(now + 1)]) - rest
        energies = np.sqrt(((self._weights[:, None] * places) ** 2).sum(axis=(1, 2)))
        apex = start + int(energies[start:].argmax())
        if held:
            # A held expression has a plateau; it begins where the movement towards it is nearly over.
            apex = start + int(np.flatnonzero(energies[start:] >= 0.92 * energies[apex])[0])
        before = np.flatnonzero(energies[:apex] <= max(0.12 * energies[apex], 0.3 * self._threshold))
        onset = int(before[-1]) if len(before) else int(energies[:apex].argmin()) if apex else 0
        moved = places[apex]
        released = self._held is not None and _cosine(moved, self._held) < -0.5
        movement = None if released else self._movement(onset, apex, now)
        self._held = moved if held else None
        self._start, self._above, self._peak = None, 0, 0.0
        if held:
            self._rest = self._readings[-1].place
        self._forget_until(self._readings[now].moment.time - (0.0 if held else BEFORE))
        return [] if movement is None else [movement]

    def _movement(self, onset: int, apex: int, offset: int) -> Movement | None:
        """What happened between these readings, checked by comparing onset and apex directly."""
        readings = list(self._readings)[onset : offset + 1]
        moments = tuple(reading.moment for reading in readings)
        if apex <= onset or moments[-1].time - moments[0].time < self.settings.minimum:
            return None
        found = [reading.moment.of_frame(reading.moment.pose) for reading in self._readings]
        steady = [_middle(found[max(0, n - 2) : n + 3]) for n in range(onset, offset + 1)]
        if _distance(steady[0], steady[apex - onset]) < FAR:
            steady = [steady[0]] * len(steady)
        movement = Movement(moments, apex - onset, 0.0, self._threshold, tuple(steady))
        crops = movement.crops([0, apex - onset], (self._energy.side,) * 2)
        vectors, head, eyes = self._compare(*(self._energy.prepare(crop) for crop in crops))
        energy = self._energy_of(vectors)
        largest = float(np.linalg.norm(vectors, axis=1).max())
        if energy < 0.8 * self._threshold or energy / len(vectors) ** 0.5 < self.settings.turn * head:
            return None
        if eyes > self.settings.blink * largest or largest > self.settings.farthest:
            return None
        return replace(movement, energy=energy)

    def _smoothed(self, place: int) -> Vectors:
        if place == 0:
            return self._readings[0].place
        return (self._readings[place].place + self._readings[place - 1].place) / 2

    def _energy_of(self, vectors: Vectors) -> float:
        return float(np.sqrt(((self._weights[:, None] * vectors) ** 2).sum()))

    def _forget_until(self, time: float) -> None:
        while len(self._readings) > 1 and self._readings[0].moment.time < time:
            self._readings.popleft()


def _middle(poses: Sequence[FacePose]) -> FacePose:
    middle = {name: float(np.median([getattr(pose, name) for pose in poses])) for name in ("x", "y", "width", "roll")}
    return replace(poses[-1], **middle)


def _distance(one: FacePose, other: FacePose) -> float:
    """How far two crops are apart, in crop widths."""
    return float(np.linalg.norm(one.corners - other.corners, axis=1).max()) / one.width


def _cosine(one: Vectors, other: Vectors) -> float:
    return float((one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other) + 1e-12))
