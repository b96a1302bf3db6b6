"""Find the face, place the crop on it that the flow maps of the default model assume, and keep the crop steady in time.

The crop is one similarity (position, size, roll) of a declared template: brows to lower lip, taller than wide, squeezed
to a square picture, with the features where `fsmer.synthetic.facs_fields.LANDMARKS` has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.data.spec import CROP_ASPECT
from fsmer.errors import DataError, MediaError
from fsmer.preprocess.frame_source import Frame
from fsmer.synthetic.facs_fields import LANDMARKS

Points = NDArray[np.float64]
# Numbers of a `FacePose` that are smoothed in time.
POSE_NUMBERS = ("x", "y", "width", "roll", "score", "yaw", "pitch")
_EYE = np.add(LANDMARKS["eye_inner"], LANDMARKS["eye_outer"]) / 2
_MOUTH = np.array(LANDMARKS["mouth_corner"])
_MIRROR = np.array([-1.0, 1.0])
# Left and right as the viewer sees them: eye centres, base of the nose, mouth corners; in crop units.
TEMPLATE_POINTS: Points = np.array([_MIRROR * _EYE, _EYE, (0.0, LANDMARKS["nose_wing"][1]), _MIRROR * _MOUTH, _MOUTH])


class NoFaceError(MediaError):
    """No face was found where one is needed."""


@dataclass(frozen=True)
class FacePose:
    """Where the crop of a face lies in a frame."""

    x: float  # centre of the crop in pixels; the centre of the first pixel is (0, 0)
    y: float
    width: float  # of the crop in pixels: what this library calls the face width
    roll: float = 0.0  # clockwise turn of the face in radians, as the viewer sees it
    aspect: float = CROP_ASPECT  # height over width
    score: float = 1.0  # how sure the detector is, on its own scale
    # Turn of the head in degrees, where the detector tells it: to the viewer's right and downwards are positive.
    yaw: float = 0.0
    pitch: float = 0.0
    # Points of the face, (n, 3): pixels of the frame, and depth in the same unit, larger farther away; None where the
    # detector has none.
    points: Points | None = field(default=None, repr=False, compare=False)

    @property
    def axes(self) -> Points:
        """Columns: one crop width to the right and one crop height down, in pixels, (2, 2)."""
        c, s = np.cos(self.roll), np.sin(self.roll)
        return np.array([[c, -s * self.aspect], [s, c * self.aspect]]) * self.width

    @property
    def centre(self) -> Points:
        """Centre of the crop, (2,)."""
        return np.array([self.x, self.y])

    def to_frame(self, points: ArrayLike) -> Points:
        """Points in crop units (x, y from -0.5 to 0.5) as pixels of the frame, (..., 2)."""
        return np.asarray(np.asarray(points, np.float64) @ self.axes.T + self.centre)

    def to_crop(self, points: ArrayLike) -> Points:
        """Pixels of the frame in crop units, (..., 2)."""
        return np.asarray((np.asarray(points, np.float64) - self.centre) @ np.linalg.inv(self.axes).T)

    @property
    def corners(self) -> Points:
        """Upper left, upper right, lower right, lower left corner in pixels, (4, 2)."""
        return self.to_frame([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])

    def matrix(self, size: tuple[int, int]) -> Points:
        """Affine map (2, 3) from pixels of a crop of `size` (height, width) to pixels of the frame."""
        height, width = size
        linear = self.axes / np.array([width, height])
        origin = self.centre - linear @ np.array([(width - 1) / 2, (height - 1) / 2])
        return np.c_[linear, origin]

    def scaled(self, factor: float) -> FacePose:
        """The same face in a frame enlarged by `factor`."""
        return self.moved(factor, (0.0, 0.0))

    def moved(self, factor: float, corner: ArrayLike) -> FacePose:
        """The same face in a picture whose first pixel lies at `corner` of the frame, enlarged by `factor`."""
        left, top = np.asarray(corner, np.float64)
        points = self.points
        if points is not None:
            points = (points - np.array([left - 0.5, top - 0.5, 0.0])) * factor - np.array([0.5, 0.5, 0.0])
        x, y = (self.x + 0.5 - left) * factor - 0.5, (self.y + 0.5 - top) * factor - 0.5
        return replace(self, x=float(x), y=float(y), width=self.width * factor, points=points)


def pose_from_landmarks(points: ArrayLike) -> FacePose:
    """Crop of a face whose landmarks are known: the similarity that brings the template nearest to them.

    Landmarks are pixels, (68, 2) of the iBUG scheme or (5, 2): eye centres, nose base and mouth corners, each left then
    right as the viewer sees them. Any others, or all in one place, raise `DataError`.
    """
    found = np.asarray(points, np.float64)
    if found.shape == (68, 2):
        found = np.stack([found[36:42].mean(axis=0), found[42:48].mean(axis=0), found[33], found[48], found[54]])
    if found.shape != (5, 2):
        raise DataError(
            f"landmarks of shape {found.shape} cannot be aligned; give 68 points (iBUG order) or 5 (left eye, right "
            "eye, nose base, left and right mouth corner), each as x, y."
        )
    # As complex numbers in crop widths a similarity is one multiplication and one addition.
    template = TEMPLATE_POINTS[:, 0] + 1j * CROP_ASPECT * TEMPLATE_POINTS[:, 1]
    places = found[:, 0] + 1j * found[:, 1]
    centred = template - template.mean()
    turn = (np.conj(centred) * (places - places.mean())).sum() / (np.abs(centred) ** 2).sum()
    if not np.isfinite(turn) or abs(turn) < 1:
        raise DataError("the landmarks are not finite or lie in one place, so no face can be placed on them.")
    centre = places.mean() - turn * template.mean()
    return FacePose(float(centre.real), float(centre.imag), float(abs(turn)), float(np.angle(turn)))


def crop_face(frame: Frame, pose: FacePose, size: tuple[int, int] = (224, 224)) -> Frame:
    """Cut a face out and bring it upright, uint8 of shape ``(height, width, 3)``.

    Where the crop reaches beyond the frame, its edge is continued. Faces much larger than the crop are averaged down,
    not sampled.
    """
    height, width = size
    times = max(1, round(min(pose.width / width, pose.width * pose.aspect / height)))
    large = (height * times, width * times)
    cut = sampled(frame, pose, large)
    if times > 1:
        cut = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(cut, np.uint8)


def sampled(picture: NDArray[np.uint8], pose: FacePose, size: tuple[int, int]) -> Any:
    """What lies at a pose, upright at `size`, without averaging; beyond the picture its edge is continued."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, pose.matrix(size), size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def shrunk(picture: Frame, scale: float) -> Frame:
    """A picture at `scale` of its size, below 1, by area averages."""
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def median_pose(poses: Sequence[FacePose]) -> FacePose:
    """The median of each number; rolls lie far from the jump at half a turn, so their plain median is one."""
    middle = {name: float(np.median([getattr(pose, name) for pose in poses])) for name in POSE_NUMBERS}
    known = [pose.points for pose in poses if pose.points is not None]
    return replace(poses[0], **middle, points=np.median(known, axis=0) if known else None)
