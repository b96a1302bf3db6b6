"""The apex of a clip, the frame of the strongest expression: annotated, spotted, or simply the middle."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fsmer.errors import DataError, MediaError, unknown_name
from fsmer.preprocess.flow import DIS, FlowMethod, head_motion, resize_area
from fsmer.preprocess.frame_source import FrameSource
from fsmer.preprocess.reading import open_frames
from fsmer.synthetic.facs_fields import LANDMARKS

APEX_METHODS = ("annotated", "difference", "flow", "middle")
# The flow spotter works on crops of this side: finer ones cost more and find the same frame.
SIDE = 128
# Landmarks around which movement is counted; the lids move with every blink and are left out.
MOUTH_REGIONS = ("nose_wing", "cheek", "nasolabial", "mouth_corner", "lip_upper", "lip_lower", "chin")
REGIONS = ("brow_inner", "brow_outer", "nose_side", *MOUTH_REGIONS)
REGION_SIGMA = 0.055
# Half width and half height of what a blink moves, around the middle of the lids, in crop units.
BLINK_REACH = (0.2, 0.085)


@dataclass(frozen=True)
class ApexSpot:
    """Where the apex is, and how it was found."""

    index: int  # frame number in the sequence
    method: str
    scores: NDArray[np.float64]  # how strong the expression seems, from the onset on; empty where nothing was measured


def check_interval(
    count: int, onset: int | None, apex: int | None, offset: int | None, *, name: str = "the clip"
) -> tuple[int, int]:
    """Onset and offset within a sequence of `count` frames (default its ends); `MediaError` where they cannot be so."""
    first = 0 if onset is None else int(onset)
    last = count - 1 if offset is None else int(offset)
    asked = f"onset {first}, apex {'unknown' if apex is None else apex}, offset {last}"
    if count < 2:
        raise MediaError(f"{name} has {count} frame, but a movement needs 2 or more; give the whole recording.")
    if not 0 <= first < last < count:
        raise MediaError(
            f"{name} has {count} frames (0 to {count - 1}) but {asked}: they must lie in this order inside it; correct "
            "the annotation (does it count from the first frame of the recording?)."
        )
    if apex is not None and apex == first:
        raise MediaError(
            f"the apex of {name} is its onset (frame {first}), so there is no movement to see; correct the annotation "
            "or spot the apex (apex='flow')."
        )
    if apex is not None and not first < apex <= last:
        raise MediaError(f"the apex of {name} lies outside its interval: {asked}; correct the annotation.")
    return first, last


def spot_apex(
    frames: FrameSource | Any,
    method: str = "flow",
    *,
    onset: int | None = None,
    apex: int | None = None,
    offset: int | None = None,
    at_rest: bool = True,
) -> ApexSpot:
    """Find the apex of a sequence of crops of one face, given as anything that `open_frames` takes.

    The `method` is ``"annotated"``: the given `apex`; ``"difference"``: the frame that differs most from the onset (FR
    eq. 1); ``"flow"``: the frame in which facial regions have moved most, see `FlowEnergy`, which tells the drift of
    the head by whether the face is `at_rest` again in the last frame; or ``"middle"``: half-way from onset to offset
    (as Dual-Inception takes it). Onset and offset default to the ends of the sequence. An interval that cannot be, or a
    missing annotation that is asked for, raises `MediaError`.
    """
    if method not in APEX_METHODS:
        raise unknown_name("apex method", method, APEX_METHODS)
    source = open_frames(frames)
    first, last = check_interval(len(source), onset, apex if method == "annotated" else None, offset, name=source.name)
    nothing = np.zeros(0)
    if method == "annotated":
        if apex is None:
            raise MediaError(
                f"{source.name} has no annotated apex, but the recipe takes the annotated one; give it, or have it "
                "spotted (apex='flow' or 'difference')."
            )
        return ApexSpot(int(apex), method, nothing)
    if method == "middle":
        return ApexSpot((first + last + 1) // 2, method, nothing)
    crops = (source[number] for number in range(first, last + 1))
    scores = frame_differences(crops) if method == "difference" else FlowEnergy().scores(crops, at_rest=at_rest)
    return ApexSpot(first + 1 + int(scores[1:].argmax()), method, scores)


def frame_differences(frames: Iterable[NDArray[Any]]) -> NDArray[np.float64]:
    """Mean absolute difference of every frame's grey picture from the first's, in grey levels (FR eq. 1)."""
    greys = (np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8) for frame in frames)
    first = next(greys)
    return np.array([0.0, *(float(cv2.absdiff(grey, first).mean()) for grey in greys)])


@lru_cache(maxsize=4)
def facial_regions(side: int = SIDE) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights of the facial regions, (R, side * side), and of the face without the eyes, (side, side).

    A region is a Gaussian around a landmark of one half, without what a blink moves, and its weights sum to 1. The face
    is 1 where the head's motion can be seen, 0 on the eyes.
    """
    axis = (np.arange(side) + 0.5) / side - 0.5
    x, y = axis[None, :], axis[:, None]
    lid_y = (LANDMARKS["lid_upper"][1] + LANDMARKS["lid_lower"][1]) / 2
    face = np.ones((side, side))
    for half in (1.0, -1.0):
        across = (x - half * LANDMARKS["lid_upper"][0]) / BLINK_REACH[0]
        face *= across**2 + ((y - lid_y) / BLINK_REACH[1]) ** 2 > 1
    rows = []
    for name in REGIONS:
        for half in (1.0, -1.0):
            landmark_x, landmark_y = LANDMARKS[name]
            squared = (x - half * landmark_x) ** 2 + (y - landmark_y) ** 2
            weight = np.exp(-0.5 * squared / REGION_SIGMA**2) * face
            rows.append((weight / weight.sum()).ravel())
    return np.array(rows, np.float32), face.astype(np.float32)


@dataclass(frozen=True)
class FlowEnergy:
    """How far the regions of a face have moved since the first frame, apart from the head and the lids.

    For every frame: flow from the first frame, less the affine motion that most of the face follows; the mean vector of
    every facial region (noise cancels in it). What a turning head leaves in these vectors grows steadily, so where the
    clip ends at rest the straight line from the first to the last frame is taken out too. The energy is the root of
    the sum of squared vectors, smoothed in time.
    """

    method: FlowMethod = field(default_factory=lambda: DIS(finest_scale=1))
    side: int = SIDE  # crops are brought to this size first
    # Standard deviation of the smoothing in time, as a share of the clip's length (at least half a frame).
    smooth: float = 0.05

    def scores(self, frames: Iterable[NDArray[Any]], *, at_rest: bool = True) -> NDArray[np.float64]:
        """Energy of every RGB crop, thousandths of its width, 0 in the first; is the last one `at_rest` again?"""
        prepared = map(self.prepare, frames)
        first = next(prepared, None)
        if first is None:
            raise DataError("there is no frame to measure; give the frames from onset to offset.")
        vectors = [self.between(first, grey) for grey in chain([first], prepared)]
        return self.energy(np.array(vectors), at_rest=at_rest)

    def energy(self, vectors: NDArray[np.float64], *, at_rest: bool = True) -> NDArray[np.float64]:
        """Energy of every frame, (T,), from the vectors of `between`, (T, R, 2)."""
        from scipy.ndimage import gaussian_filter1d

        count = len(vectors)
        if at_rest and count > 2:
            vectors = vectors - np.linspace(0, 1, count)[:, None, None] * vectors[-1]
        smooth = gaussian_filter1d(vectors, max(0.5, self.smooth * count), axis=0, mode="nearest")
        energy: NDArray[np.float64] = np.sqrt((smooth**2).sum(axis=(1, 2)))
        energy[0] = 0.0
        return energy

    def prepare(self, frame: NDArray[Any]) -> NDArray[np.uint8]:
        """A crop as the small grey picture that `between` compares."""
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        return np.round(resize_area(grey[None], (self.side, self.side))[0]).astype(np.uint8)

    def between(self, first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Mean movement of every region between two prepared crops, (R, 2), in thousandths of the crop width."""
        regions, face = facial_regions(self.side)
        if first is second:
            return np.zeros((len(regions), 2))
        flow = self.method(first, second)
        still = flow - head_motion(flow, face).field((self.side, self.side))
        return np.asarray((regions @ still.reshape(2, -1).T).astype(np.float64) * 1000 / self.side)
