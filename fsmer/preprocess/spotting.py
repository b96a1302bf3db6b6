"""Find where a face moves in a recording of any length: onset, apex and offset of every movement, as the frames come;
one file, since what counts as rest and as a movement is judged by the same settings.

Blinks, turns of the head, hands before the face and what goes on all the time (noise, talking) are not reported; how
much a face has to move is learnt from the recording's own rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fsmer.preprocess.apex import MOUTH_REGIONS, REGIONS, FlowEnergy, facial_regions
from fsmer.preprocess.cascade import CascadeDetector
from fsmer.preprocess.face_detectors import FaceDetector
from fsmer.preprocess.face_tracking import FaceTracker, Which
from fsmer.preprocess.faces import FacePose, crop_face, median_pose
from fsmer.preprocess.frame_source import Frame
from fsmer.preprocess.movement import STEADY, Moment, Movement, keep_moment, mean_picture
from fsmer.preprocess.region_shift import Comparison, EnergyTrace, Grey, RegionShift, Vectors, compare

# Seconds before a movement that are kept, for its onset.
BEFORE = 0.7
# Distance of two crops, in crop widths, beyond which flow between them would lose the face.
FAR = 0.12
# Seconds after which a reference picture is renewed, distance of the face in crop widths at which it is earlier, and
# frames that are compared with the old and the new one.
AGE, SHIFTED, OVERLAP = 2.0, 0.06, 5
# Seconds whose poses are one pose: the tracker's are a little unsteady, and now and then one of them is far off.
POSED = 0.5
# Seconds over which rest is averaged; what begins sooner after a face came into view has no rest to be told from.
REST = 0.4
# Motion of the head, thousandths of the face width, at which twice the share of it is left as of a small one.
TURNED = 40.0
# Share of the way between two crops that counts as motion of the head in them.
FOLLOWED = 0.15
# Share of the crop that may leave the picture meanwhile.
LEAVES = 0.1
# Seconds after a movement within which the opposite one is the way back from it.
RETURN = 0.2
# Speech: so many movements in a row, most of each around the mouth, with no longer pause between them.
WORDS, PAUSE, MOUTH = 3, 0.8, 0.75
# A face that talks all the time: least movement of the mouth (root of the sum of squares, thousandths of the face
# width), and the share of it that the mouth usually moves the same way or back between two instants.
CHATTER = (8.0, 0.12)
# Least spread of noise in a coordinate of a region, thousandths of the face width.
FLOOR = 0.1
# How much more than the quiet share of the instants the usual one may move and still be rest.
UNREST = 1.3


@dataclass(frozen=True)
class SpotterSettings:
    """How movements are told from rest; times in seconds, movements in thousandths of the face width.

    `turn` was chosen on drawn recordings of 20 s (seeds 501 to 508, three of each), `noise` and `held` on dark and
    compressed drawings of faces at rest (seeds 7001 to 7004) and on the former; what a talking mouth is, on drawings
    that talk (seed 7013). The growth of `turn` with the motion of the head, `covered`, and that `most` is enough for
    `held`, were also tried on a film of a real performance. Nothing was chosen on seeds of the benchmark from 11 on.
    """

    rate: float = 50.0  # of faster recordings every second, third ... frame is used; this many a second remain at least
    settle: float = 1.6  # what is observed before the first decision, to learn how restless the face is
    memory: float = 30.0  # over how long the rest level is learnt
    step: float = 0.2  # between these instants movement is measured for the rest level
    smooth: float = 0.12  # regions are averaged over so long
    quiet: float = 0.6  # share of the instants that count as rest
    # A movement must be so many times the usual restlessness, each direction in which the regions move together
    # measured by its own, and move the regions together by `least` (root of the sum of squares; half a pixel on a face
    # of 224 is 2.2). `most` is a movement on however restless a face.
    times: float = 2.1
    least: float = 2.0
    most: float = 16.0
    farthest: float = 90.0  # no skin moves so far: something else came before the face
    covered: float = 0.12  # share of the face that may differ from its moved onset; more is a hand before it
    minimum: float = 0.1  # shortest movement
    longest: float = 2.0  # what lasts longer ends there
    hold: float = 0.5  # a face that stays as it is for so long has got a new rest
    # A movement that does not come back, as what only drifts does not, must reach so many times `times` (or `most`), as
    # many times `noise`, and its square times `least`.
    held: float = 1.5
    # One that takes longer from onset to apex, as a head that drifts does, must be larger by as many times, or reach
    # `most`.
    slow: float = 0.2
    turn: float = 0.05  # it must be larger, a region, than this share of what the head has moved in the meantime
    noise: float = 2.0  # and so many times what frames at rest differ from each other in the same measure
    blink: float = 2.0  # where the lids move so many times as far as any other region, it was a blink
    renew: int = 50  # frames between two searches for the face


@dataclass(frozen=True)
class Restlessness:
    """How the regions move while nothing happens."""

    # (2R, 2R), brings movements, flattened, to coordinates in which rest moves equally in all of them, usual length 1
    whiten: Vectors

    @classmethod
    def learn(cls, steps: Vectors, quiet: float, most: float) -> Restlessness:
        """From movements between instants, (n, 2R), a share `quiet` of which are rest; `most` is no rest any more."""
        size = steps.shape[1]
        energies = np.linalg.norm(steps, axis=1)
        for _ in range(3):
            kept = steps[energies <= np.quantile(energies, quiet)]
            spread = kept.T @ kept / len(kept)
            level = np.trace(spread) / size
            # A few steps are too few to learn how the regions move together.
            blind = 40 / (40 + len(kept))
            variances, axes = np.linalg.eigh((1 - blind) * spread + (blind * level + FLOOR**2) * np.eye(size))
            whiten = (axes / np.sqrt(np.minimum(variances, most**2 / size))) @ axes.T
            energies = np.linalg.norm(steps @ whiten, axis=1)
        # At rest exactly the floor alone would make the level vanish; on a face that never rests it would be movement.
        return cls(whiten / (size**0.5 * float(np.clip(np.quantile(energies, 0.5) / size**0.5, 0.5, UNREST))))

    def of(self, vectors: Vectors) -> Vectors:
        """Movements (..., R, 2) in its coordinates, (..., 2R)."""
        return vectors.reshape(*vectors.shape[:-2], -1) @ self.whiten.T


@dataclass(frozen=True, eq=False)
class _Reading:
    """A moment, and where the facial regions have come to since the face came into view."""

    moment: Moment
    place: Vectors


class MovementSpotter:
    """Spots movements in a stream of frames; memory does not grow with its length.

    The face is followed. Against a reference picture, which is renewed before it gets old, every facial region's shift
    is measured apart from the motion of the head. The running mean of that while nothing moves is the face's rest. How
    the regions move together at rest (noise, what a head leaves in them, a mouth that talks) is learnt, and directions
    in which they always move count less. A movement begins where the regions leave their rest by more than the
    threshold, and ends where they come back or settle elsewhere (a held expression; its release later is not reported
    again). Onset and apex are then compared directly: what is a blink, a turn of the head, a hand before the face, or
    no movement at all in that comparison is dropped.

    The detector is the cascade unless another one is given. `frames` and `faces` count the frames seen and those of
    them in which a face was seen; `trace` has the energy over time, in multiples of the usual restlessness.
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
        self.frames = self.faces = 0
        self._stride = max(1, int(frames_per_second / self.settings.rate + 1e-6))
        self._interval = self._stride / frames_per_second
        self._tracker = FaceTracker(detector or CascadeDetector(), which, renew=self.settings.renew)
        self._energy = FlowEnergy()
        self._seen = False
        # Frames on either side that are averaged.
        self._reach = max(1, round(self.settings.smooth / self._interval) // 2)
        self._readings: deque[_Reading] = deque()
        self._waiting: deque[_Reading] = deque()
        self._steps: deque[Vectors] = deque(maxlen=max(8, round(self.settings.memory / self._interval)))
        self._recent: deque[Vectors] = deque(
            maxlen=max(2, round(self.settings.step / self._interval)) + 2 * self._reach + 1
        )
        self._forget()

    def _forget(self) -> None:
        """Begin anew where a face comes into view."""
        self._poses: deque[FacePose] = deque(maxlen=max(5, round(POSED / self._interval)))
        self._crop_pose: FacePose | None = None
        self._gauge: RegionShift | None = None
        self._former: tuple[FacePose, RegionShift, Vectors] | None = None
        self._gaps: list[Vectors] = []
        self._base = np.zeros((len(facial_regions(self._energy.side)[0]), 2))
        self._begun = 0.0
        self._since: float | None = None
        self._readings.clear()
        self._waiting.clear()
        self._recent.clear()
        self._decided = self._free = self._above = self._until_levels = 0
        self._rest: Vectors | None = None
        self._restless = Restlessness(np.eye(self._base.size) / self._base.size**0.5)
        self._start: int | None = None
        self._peak = self._tail = 0.0
        self._towards = np.zeros(self._base.size)
        self._held: Vectors | None = None
        # Movements of the mouth alone that may turn out to be speech.
        self._spoken: list[Movement] = []
        # How the regions moved last, and when that ended.
        self._last: tuple[Vectors, float] | None = None

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
            found = self.finish()
            self._forget()
            self.trace.add(time, float("nan"), float("nan"))
            return found
        self._waiting.append(self._read(frame, pose, number, time))
        if len(self._steps) * self._interval < self.settings.settle:
            return []
        return self._drain()

    def finish(self) -> list[Movement]:
        """Movements that the end of the recording cuts off or decides."""
        found = self._drain()
        while self._decided < len(self._readings):
            found += self._decide(self._decided)
        if self._start is not None:
            found += self._end(len(self._readings) - 1)
        return found + self._let_go()

    def _drain(self) -> list[Movement]:
        found: list[Movement] = []
        while self._waiting:
            self._readings.append(self._waiting.popleft())
            if self._decided < len(self._readings) - self._reach:
                found += self._decide(self._decided)
        return found

    def _let_go(self) -> list[Movement]:
        """The movements of the mouth that were waited with, unless there were so many in a row that it talks."""
        found = [] if len(self._spoken) >= WORDS else self._spoken
        self._spoken = []
        return found

    def _read(self, frame: Frame, pose: FacePose, number: int, time: float) -> _Reading:
        self._since = time if self._since is None else self._since
        self._poses.append(pose)
        steady = median_pose(list(self._poses))
        moment = keep_moment(frame, pose, number, time)
        reading = _Reading(moment, self._measure(frame, steady, time))
        self._recent.append(reading.place)
        if len(self._recent) == self._recent.maxlen:
            recent = np.array(self._recent)
            width = 2 * self._reach + 1
            self._steps.append((recent[-width:].mean(axis=0) - recent[:width].mean(axis=0)).ravel())
        return reading

    def _measure(self, frame: Frame, steady: FacePose, time: float) -> Vectors:
        if self._gauge is None or self._crop_pose is None:
            self._refer(frame, steady, time)
            return self._base
        place = self._base + self._gauge(self._prepared(frame, self._crop_pose))
        moves = self._start is not None or self._above > 0
        if self._former is not None:
            # Both references are measured for a while, so that one frame's noise is no step between them.
            pose, gauge, base = self._former
            before = base + gauge(self._prepared(frame, pose))
            self._gaps.append(before - place)
            place = before
            if len(self._gaps) == OVERLAP:
                self._base = self._base + np.mean(self._gaps, axis=0)
                self._former = None
        # A reference in the midst of a movement would be compared with itself afterwards.
        elif _distance(self._crop_pose, steady) > SHIFTED or time - self._begun > AGE * (2 if moves else 1):
            self._former = self._crop_pose, self._gauge, self._base
            self._gaps = []
            self._base = np.zeros_like(self._base)
            self._refer(frame, steady, time)
        return place

    def _refer(self, frame: Frame, pose: FacePose, time: float) -> None:
        self._crop_pose, self._begun = pose, time
        self._gauge = RegionShift(self._prepared(frame, pose))

    def _prepared(self, frame: Frame, pose: FacePose) -> Grey:
        return self._energy.prepare(crop_face(frame, pose, (self._energy.side,) * 2))

    def _decide(self, place: int) -> list[Movement]:
        self._decided = place + 1
        if self._until_levels == 0:
            if self._steps:
                self._restless = Restlessness.learn(
                    np.array(self._steps), self.settings.quiet, self.settings.most / self.settings.times
                )
            self._until_levels = 8
        self._until_levels -= 1
        here = self._smoothed(place)
        if self._rest is None:
            self._rest = here
        away = here - self._rest
        whitened = self._restless.of(away)
        energy = float(np.linalg.norm(whitened))
        time = self._readings[place].moment.time
        self.trace.add(time, energy, self.settings.times)
        if self._start is not None:
            return self._follow(place, here, whitened)
        calm = not self._above and self._spoken and time - self._spoken[-1].offset.time > PAUSE
        found = self._let_go() if calm else []
        # What is left of the last movement is none of its own.
        self._tail = energy if self.settings.times < energy < self._tail else 0.0
        enough = energy > self.settings.times and float(np.linalg.norm(away)) > 0.5 * self.settings.least
        self._above = self._above + 1 if enough and not self._tail else 0
        if self._above >= 2:
            self._start, self._peak, self._towards = place - 1, energy, whitened
        elif not self._above and not self._tail:
            share = min(1.0, self._interval / REST)
            self._rest = (1 - share) * self._rest + share * here
            self._forget_until(time - BEFORE)
        return found

    def _follow(self, place: int, here: Vectors, whitened: Vectors) -> list[Movement]:
        assert self._start is not None
        energy = float(np.linalg.norm(whitened))
        if energy > self._peak:
            self._peak, self._towards = energy, whitened
        along = float(whitened @ self._towards) / self._peak
        lasted = self._readings[place].moment.time - self._readings[self._start].moment.time
        # Along the movement's own direction there is much less noise than in all of them.
        if along < max(0.35 * self._peak, 0.4) and energy < max(0.5 * self._peak, 0.8 * self.settings.times):
            self._tail = energy
            return self._end(place)
        hold = round(self.settings.hold / self._interval)
        change = float(np.linalg.norm(self._restless.of(here - self._smoothed(max(0, place - hold)))))
        settled = lasted > self.settings.hold and change < max(0.8 * self.settings.times, 0.3 * self._peak)
        if settled or lasted > self.settings.longest:
            return self._end(place, held=True, settled=settled)
        return []

    def _end(self, now: int, *, held: bool = False, settled: bool = False) -> list[Movement]:
        """The movement that is over, unless it was none; the state is that of rest again."""
        rest, start = self._rest, self._start
        assert rest is not None
        assert start is not None
        places = np.array([self._smoothed(n) for n in range(now + 1)]) - rest
        whitened = self._restless.of(places)
        top = start + int(np.linalg.norm(whitened[start:], axis=1).argmax())
        along = whitened @ whitened[top] / float(whitened[top] @ whitened[top])
        apex = start + int(along[start:].argmax())
        if held:
            # A held expression has a plateau; it begins where the movement towards it is nearly over.
            apex = start + int(np.flatnonzero(along[start:] >= 0.92 * along[apex])[0])
        noise = 0.25 / float(np.linalg.norm(whitened[top]))
        earlier = along[self._free : apex]
        before = np.flatnonzero(earlier <= max(0.12, noise))
        onset = self._free + (int(before[-1]) if len(before) else int(earlier.argmin()) if len(earlier) else 0)
        rise = self._readings[apex].moment.time - self._readings[onset].moment.time
        # A head that drifts is slow.
        slow = self._peak < self.settings.times * rise / self.settings.slow
        doubt = self.settings.held if held else 1.0
        moved = whitened[apex]
        released = self._held is not None and _cosine(moved, self._held) < -0.5
        large = float(np.linalg.norm(places[apex])) >= self.settings.most
        small = held and not large and self._peak < doubt * self.settings.times
        movement = None if released or small else self._movement(onset, apex, now, slow, doubt)
        self._held = moved if held else None
        self._start, self._above, self._peak = None, 0, 0.0
        self._free = now if movement is not None or held else self._free
        if held:
            self._rest = self._smoothed(now)
        self._forget_until(self._readings[now].moment.time - (0.0 if held else BEFORE))
        if movement is None:
            return []
        # A mouth that talks does not stay as it is.
        if settled or _mouth_share(places[apex]) < MOUTH:
            return [*self._let_go(), movement]
        if self._chatters(places[apex]):
            return []
        # Of a long talk the last few are enough to go on from.
        self._spoken = [*self._spoken[1 - WORDS :], movement]
        return []

    def _chatters(self, moved: Vectors) -> bool:
        """Whether a large movement of the mouth is what the mouth does most of the time, only more of it."""
        length = float(np.linalg.norm(moved))
        # A recording of a few frames has shown no steps yet.
        if length < CHATTER[0] or not self._steps:
            return False
        usual = np.abs(np.array(self._steps) @ moved.ravel()) / length
        return float(np.median(usual)) > CHATTER[1] * length

    def _movement(self, onset: int, apex: int, offset: int, slow: bool, doubt: float) -> Movement | None:
        """What happened between these readings, checked by comparing onset and apex directly."""
        readings = list(self._readings)
        moments = tuple(reading.moment for reading in readings[onset : offset + 1])
        if apex <= onset or moments[-1].time - moments[0].time < self.settings.minimum:
            return None
        if self._since is not None and moments[0].time - self._since < REST:
            return None
        found = [reading.moment.of_frame(reading.moment.pose) for reading in readings]
        reach = max(2, round(POSED / self._interval) // 2)
        steady = [median_pose(found[max(0, n - reach) : n + reach + 1]) for n in range(onset, offset + 1)]
        far = _distance(steady[0], steady[apex - onset])
        if far < FAR:
            far, steady = 0.0, [steady[0]] * len(steady)
        in_sight = [moments[place].in_sight(steady[place]) for place in (0, apex - onset, -1)]
        if in_sight[0] - min(in_sight) > LEAVES:
            return None
        before = tuple(reading.moment for reading in readings[max(0, onset - STEADY[0]) : onset])
        movement = Movement(moments, apex - onset, 0.0, tuple(steady), before)
        # Means over all of them: what moves on in them anyway, a hand or a head, does not fit the mean.
        at_rest, at_top = movement.near((self._energy.side,) * 2)
        rest, top = (self._energy.prepare(mean_picture(some)) for some in (at_rest, at_top))
        seen = compare(rest, top, self._energy.method)
        if not self._is_expression(seen, slow, far):
            return None
        # The last movement's way back, which its own offset cut in two.
        former, ended = self._last or (seen.vectors, -np.inf)
        if movement.onset.time - ended <= RETURN and _cosine(seen.vectors, former) < -0.3:
            return None
        noise = self.settings.noise * self._noise(at_rest, at_top)
        if float(np.linalg.norm(seen.vectors)) < max(doubt * noise, doubt**2 * self.settings.least):
            return None
        self._last = seen.vectors, movement.offset.time
        return replace(movement, energy=float(np.linalg.norm(seen.vectors)))

    def _noise(self, at_rest: Sequence[Frame], at_top: Sequence[Frame]) -> float:
        """Energy that noise alone would show between the two means, from frames at rest among themselves."""
        halves = at_rest[::2], at_rest[1::2]
        if not halves[1]:
            return 0.0
        first, second = (self._energy.prepare(mean_picture(some)) for some in halves)
        alone = compare(first, second, self._energy.method)
        fewer = (1 / len(at_rest) + 1 / len(at_top)) / (1 / len(halves[0]) + 1 / len(halves[1]))
        return float(np.linalg.norm(alone.vectors)) * fewer**0.5

    def _is_expression(self, seen: Comparison, slow: bool, far: float) -> bool:
        """Whether this is more than what a head that moved leaves; its crops may be `far` apart (crop widths)."""
        energy = float(np.linalg.norm(seen.vectors))
        least = self.settings.most if slow else self.settings.least
        # A turn that is large or slow leaves more of itself beside the motion of an average head.
        head = seen.head * max(1 + (seen.head / TURNED) ** 2, 1.75 if slow else 1.0) + FOLLOWED * 1000 * far
        if energy < least or energy / len(seen.vectors) ** 0.5 < self.settings.turn * head:
            return False
        largest = float(np.linalg.norm(seen.vectors, axis=1).max())
        if largest > self.settings.farthest or seen.covered > self.settings.covered:
            return False
        # Smooth flow carries a blink into the outer brows.
        lengths = np.linalg.norm(seen.vectors, axis=1) * np.where(np.repeat(REGIONS, 2) == "brow_outer", 0.5, 1.0)
        return seen.eyes <= self.settings.blink * float(lengths.max())

    def _smoothed(self, place: int) -> Vectors:
        first, last = max(0, place - self._reach), min(len(self._readings), place + self._reach + 1)
        some = [self._readings[n].place for n in range(first, last)]
        return np.asarray(np.mean(some, axis=0))

    def _forget_until(self, time: float) -> None:
        while len(self._readings) > 1 and self._decided > 1 and self._readings[0].moment.time < time:
            self._readings.popleft()
            self._decided -= 1
            self._free = max(0, self._free - 1)


def _mouth_share(vectors: Vectors) -> float:
    """Share of a movement that the regions around the mouth have in it."""
    squares = (vectors**2).sum(axis=1).reshape(len(REGIONS), 2).sum(axis=1)
    return float(squares[[name in MOUTH_REGIONS for name in REGIONS]].sum() / (squares.sum() + 1e-12))


def _distance(one: FacePose, other: FacePose) -> float:
    """How far two crops are apart, in crop widths."""
    return float(np.linalg.norm(one.corners - other.corners, axis=1).max()) / one.width


def _cosine(one: Vectors, other: Vectors) -> float:
    return float((one * other).sum() / (np.linalg.norm(one) * np.linalg.norm(other) + 1e-12))
