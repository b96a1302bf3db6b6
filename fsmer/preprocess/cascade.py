"""The face detector that needs no download: a cascade's boxes, refined with a drawn template of a face."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fsmer.preprocess.faces import FacePose, sampled, shrunk
from fsmer.preprocess.frame_source import Frame

# The picture of a face that the cascade's boxes are refined with: where a face is darker (+) or lighter (-) than its
# neighbourhood. Centre and standard deviations in crop units, strength; what is off the middle is mirrored.
_SHADES: tuple[tuple[float, float, float, float, float], ...] = (
    (0.285, -0.21, 0.045, 0.035, 0.8),  # iris and lids; in a dark face the white beside them is light
    (0.25, -0.325, 0.12, 0.025, 0.9),  # brows
    (0.055, 0.075, 0.04, 0.02, 0.9),  # nostrils
    (0.0, 0.235, 0.15, 0.02, 1.1),  # mouth line
    (0.0, 0.35, 0.09, 0.025, 0.4),  # shadow under the lip
    (0.0, -0.05, 0.05, 0.1, -0.5),  # ridge of the nose
    (0.27, 0.0, 0.12, 0.08, -0.6),  # cheeks
    (0.0, -0.33, 0.05, 0.05, -0.4),  # between the brows
    (0.0, 0.15, 0.08, 0.03, -0.3),  # upper lip
    (0.25, -0.45, 0.2, 0.05, -0.5),  # forehead
    (0.22, 0.38, 0.08, 0.06, -0.3),  # beside the chin
)
# Side of the template in pixels, and how many crops wide it is.
_SIDE = 48
_EXTENT = 1.25


@lru_cache(maxsize=1)
def _template() -> NDArray[np.float32]:
    axis = ((np.arange(_SIDE) + 0.5) / _SIDE - 0.5) * _EXTENT
    picture = np.zeros((_SIDE, _SIDE))
    for x, y, sigma_x, sigma_y, strength in _SHADES:
        for side in (1.0, -1.0) if x else (1.0,):
            column = np.exp(-0.5 * ((axis - side * x) / sigma_x) ** 2)
            row = np.exp(-0.5 * ((axis - y) / sigma_y) ** 2)
            picture += strength * row[:, None] * column[None, :]
    picture -= picture.mean()
    # Divided by its norm and by the number of pixels' root, so that an image of unit contrast scores a correlation.
    return (picture / np.linalg.norm(picture) / _SIDE).astype(np.float32)


def _contrast(patch: NDArray[Any], floor: float) -> NDArray[np.float32]:
    """Darkness against the neighbourhood in units of its local spread; `floor` is the spread that counts as noise."""
    crop = _SIDE / _EXTENT
    smooth = cv2.GaussianBlur(patch.astype(np.float32), (0, 0), 0.02 * crop)
    darker = cv2.GaussianBlur(smooth, (0, 0), 0.08 * crop) - smooth
    # Hair and collar are so strong that the features beside them would not count.
    usual = 2.5 * (float(np.median(np.abs(darker))) + floor)
    darker = np.clip(darker, -usual, usual)
    spread = np.sqrt(cv2.GaussianBlur(darker * darker, (0, 0), 0.15 * crop))
    return np.clip(darker / (spread + floor), -2.0, 2.0).astype(np.float32)


def _peak(values: NDArray[Any], place: int) -> float:
    """Vertex of the parabola through a maximum and its two neighbours, relative to `place`."""
    if not 0 < place < len(values) - 1:
        return 0.0
    before, here, after = (float(one) for one in values[place - 1 : place + 2])
    bend = before - 2 * here + after
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5))


# Spread of the cascade's boxes around the truth: crop widths, relative width, radians.
_PLACE, _WIDTH, _ROLL = 0.06, 0.08, 0.17


def _distance(expected: FacePose, pose: FacePose, shifts: NDArray[Any]) -> NDArray[Any]:
    """Squared distance, in spreads, of `pose` moved by `shifts` crop units, (down, across), from the expected crop."""
    x, y = pose.to_crop(expected.centre)
    far = ((shifts - x)[None, :] ** 2 + ((shifts - y) * pose.aspect)[:, None] ** 2) / _PLACE**2
    other = (np.log(pose.width / expected.width) / _WIDTH) ** 2 + ((pose.roll - expected.roll) / _ROLL) ** 2
    return np.asarray(far + other)


def _fit(grey: NDArray[np.uint8], pose: FacePose, step: _Step, floor: float, expected: FacePose) -> FacePose:
    """Best place of the template around `pose`; its `score` is the correlation alone, without the price of distance."""
    side = int(np.ceil(_SIDE * (1 + 2 * step.reach / _EXTENT)))
    shifts = (np.arange(side - _SIDE + 1) - (side - _SIDE) / 2) * _EXTENT / _SIDE
    scales, rolls = np.exp(step.axis(step.scale)), step.axis(np.deg2rad(step.roll))
    merits = np.empty((len(scales), len(rolls)))
    places: dict[tuple[int, int], FacePose] = {}
    for i, scale in enumerate(scales):
        for j, roll in enumerate(rolls):
            turned = replace(pose, width=pose.width * float(scale), roll=pose.roll + float(roll))
            # The same axes, over a field as large as the template may be shifted in.
            field_pose = replace(turned, width=turned.width * _EXTENT * side / _SIDE)
            patch = sampled(grey, field_pose, (side, side))
            score = cv2.matchTemplate(_contrast(patch, floor), _template(), cv2.TM_CCORR)
            merit = score - step.price * _distance(expected, turned, shifts)
            row, column = (int(one) for one in np.unravel_index(int(merit.argmax()), merit.shape))
            pixel = _EXTENT / _SIDE
            across = shifts[column] + pixel * _peak(merit[row], column)
            down = shifts[row] + pixel * _peak(merit[:, column], row)
            x, y = turned.to_frame(np.array([across, down]))
            merits[i, j] = merit[row, column]
            places[i, j] = replace(turned, x=float(x), y=float(y), score=float(score[row, column]))
    i, j = (int(one) for one in np.unravel_index(int(merits.argmax()), merits.shape))
    best = places[i, j]
    ratio, turn = float(scales[1] / scales[0]), float(rolls[1] - rolls[0])
    return replace(
        best, width=best.width * ratio ** _peak(merits[:, j], i), roll=best.roll + turn * _peak(merits[i], j)
    )


@dataclass(frozen=True)
class _Step:
    """How far one fit searches: in crop widths, in relative size, in degrees, with so many values to either side.

    The `price`, in correlation, is that of one spread's distance from where the face is expected.
    """

    reach: float
    scale: float
    roll: float
    values: int
    price: float

    def axis(self, limit: float) -> NDArray[np.float64]:
        return np.linspace(-limit, limit, 2 * self.values + 1)


# From a box of the cascade: coarsely near it, then more freely around what was found.
_COARSE = _Step(0.15, 0.18, 16, 2, 0.02)
_FINE = (_Step(0.07, 0.10, 6, 2, 0.012), _Step(0.03, 0.04, 2, 1, 0.006))
# From one frame to the next.
_FOLLOW = _Step(0.1, 0.04, 4, 1, 0.003)


@dataclass(frozen=True)
class CascadeDetector:
    """The detector that needs no download: a cascade's coarse boxes, each refined with a drawn template of a face.

    Boxes come from scikit-image's cascade of local binary patterns, on the upright and on turned pictures. Around each
    the template (eyes, brows, nostrils, mouth as dark spots; cheeks, nose and forehead as light ones) is fitted in
    position, size and roll by correlation with the locally normalised picture. What correlates badly is no face.

    Parameters
    ----------
    longest_side : int
        Larger frames are searched at this size (pixels); the crop itself is cut from the full frame.
    smallest : float
        Smallest face searched for, as a share of the shorter side.
    turns : tuple of float
        Degrees by which the picture is turned, one after the other, until a face is found.
    threshold : float
        Least correlation. Most faces score 0.2 to 0.4, other things that the cascade mistakes for faces below 0.1.
    """

    longest_side: int = 480
    smallest: float = 0.15
    turns: tuple[float, ...] = (0.0, -25.0, 25.0)
    threshold: float = 0.12

    def detect(self, frame: Frame, number: int = 0) -> list[FacePose]:
        """Every face in `frame`, largest first; `number` is not used."""
        grey, scale, floor = self._prepare(frame)
        # Coarse steps in size first; fine ones cost as much as all turns together.
        for turn, fine in (*((turn, False) for turn in self.turns), (0.0, True)):
            fitted = [self._refine(grey, box, floor) for box in self._boxes(grey, turn, fine=fine)]
            # Among so many more boxes more are wrong.
            least = 1.5 * self.threshold if fine else self.threshold
            faces = [pose.scaled(1 / scale) for pose in fitted if pose.score >= least]
            if faces:
                return _without_doubles(faces)
        return []

    def follow(self, frame: Frame, before: FacePose, number: int = 0) -> FacePose | None:
        """The face that was at `before` in the frame before, or None when it is lost; much faster than `detect`."""
        grey, scale, floor = self._prepare(frame)
        start = before.scaled(scale)
        pose = _fit(grey, start, _FOLLOW, floor, start).scaled(1 / scale)
        return pose if pose.score >= self.threshold else None

    def _prepare(self, frame: Frame) -> tuple[NDArray[np.uint8], float, float]:
        """Grey picture, its scale, and the contrast in it that counts as noise."""
        scale = min(1.0, self.longest_side / max(frame.shape[:2]))
        small = shrunk(frame, scale) if scale < 1 else frame
        grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
        # Relative to the picture's contrast, so that a dark recording is searched like a bright one.
        return grey, scale, 0.1 * float(grey.std()) + 1.0

    def _boxes(self, grey: NDArray[np.uint8], turn: float, *, fine: bool) -> list[FacePose]:
        """The cascade's boxes on the picture turned by `turn` degrees, as first estimates of the crop."""
        # A face near the border is missed by a cascade that needs its surroundings.
        height, width = grey.shape
        margin = round(0.12 * min(height, width))
        roll = float(np.deg2rad(turn))
        size = (height + 2 * margin, width + 2 * margin)
        field_pose = FacePose((width - 1) / 2, (height - 1) / 2, size[1], roll, size[0] / size[1])
        turned = sampled(grey, field_pose, size)
        least, most = (max(24, round(self.smallest * min(height, width))),) * 2, (min(size),) * 2
        found = _cascade().detect_multi_scale(
            turned, scale_factor=1.08 if fine else 1.2, step_ratio=1.0 if fine else 1.3, min_size=least, max_size=most
        )
        crops = []
        for box in found:
            # Place and width of the crop in the cascade's boxes, measured on drawn faces and on a recording.
            middle = np.array([box["c"] + 0.5 * box["width"], box["r"] + 0.6 * box["height"]])
            x, y = field_pose.to_frame((middle + 0.5) / np.array([size[1], size[0]]) - 0.5)
            crops.append(FacePose(float(x), float(y), 0.685 * float(box["width"]), roll))
        return sorted(crops, key=lambda pose: -pose.width)[:8]

    def _refine(self, grey: NDArray[np.uint8], start: FacePose, floor: float) -> FacePose:
        pose = _fit(grey, start, _COARSE, floor, start)
        if pose.score < 0.5 * self.threshold:
            return pose
        for step in _FINE:
            pose = _fit(grey, pose, step, floor, start)
        return pose


@lru_cache(maxsize=1)
def _cascade() -> Any:
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    return Cascade(lbp_frontal_face_cascade_filename())


def _without_doubles(poses: list[FacePose]) -> list[FacePose]:
    kept: list[FacePose] = []
    for pose in sorted(poses, key=lambda one: -one.score):
        if all(np.hypot(pose.x - one.x, pose.y - one.y) > 0.5 * max(pose.width, one.width) for one in kept):
            kept.append(pose)
    return sorted(kept, key=lambda one: -one.width)
