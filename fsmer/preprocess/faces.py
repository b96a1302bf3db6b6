"""Find the face, place the crop on it that the flow maps of the default model assume, and keep the crop steady in time.

The crop is one similarity (position, size, roll) of a declared template: brows to lower lip, taller than wide, squeezed
to a square picture, with the features where `fsmer.synthetic.facs_fields.LANDMARKS` has them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.data.spec import CROP_ASPECT
from fsmer.data.text_tables import csv_rows, read_table_text
from fsmer.errors import DataError, MediaError, unknown_name
from fsmer.preprocess.reading import Frame, FrameSource
from fsmer.synthetic.facs_fields import LANDMARKS

__all__ = [
    "DETECTORS",
    "CascadeDetector",
    "CroppedFaces",
    "CroppedFrames",
    "FaceAlignmentDetector",
    "FaceDetector",
    "FacePose",
    "FaceTracker",
    "LandmarkFile",
    "NoFaceError",
    "choose_face",
    "crop_face",
    "load_detector",
    "locate_face",
    "pose_from_landmarks",
    "track_faces",
]

Points = NDArray[np.float64]
Which = int | Literal["largest"]


def _canonical(name: str, side: float = 1.0) -> tuple[float, float]:
    x, y = LANDMARKS[name]
    return side * x, y


def _eye(side: float) -> tuple[float, float]:
    (x1, y1), (x2, y2) = LANDMARKS["eye_inner"], LANDMARKS["eye_outer"]
    return side * (x1 + x2) / 2, (y1 + y2) / 2


# Left and right as the viewer sees them: eye centres, base of the nose, mouth corners; in crop units.
TEMPLATE_POINTS: Points = np.array(
    [
        _eye(-1.0),
        _eye(1.0),
        (0.0, LANDMARKS["nose_wing"][1]),
        _canonical("mouth_corner", -1.0),
        _canonical("mouth_corner"),
    ]
)


class NoFaceError(MediaError):
    """No face was found where one is needed."""


@dataclass(frozen=True)
class FacePose:
    """Where the crop of a face lies in a frame.

    Parameters
    ----------
    x, y : float
        Centre of the crop in pixels; the centre of the first pixel is (0, 0).
    width : float
        Width of the crop in pixels: what this library calls the face width.
    roll : float
        Clockwise turn of the face in radians, as the viewer sees it.
    aspect : float
        Height over width.
    score : float
        How sure the detector is; its scale is the detector's own.
    """

    x: float
    y: float
    width: float
    roll: float = 0.0
    aspect: float = CROP_ASPECT
    score: float = 1.0

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
        placed: Points = np.asarray(points, np.float64) @ self.axes.T + self.centre
        return placed

    def to_crop(self, points: ArrayLike) -> Points:
        """Pixels of the frame in crop units, (..., 2)."""
        inside: Points = (np.asarray(points, np.float64) - self.centre) @ np.linalg.inv(self.axes).T
        return inside

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
        return replace(
            self, x=(self.x + 0.5) * factor - 0.5, y=(self.y + 0.5) * factor - 0.5, width=self.width * factor
        )


@runtime_checkable
class FaceDetector(Protocol):
    """Finds faces in a frame."""

    def detect(self, frame: Frame, number: int = 0) -> list[FacePose]:
        """Every face in `frame` (uint8 RGB), largest first; `number` is its place in the recording."""
        ...


def pose_from_landmarks(points: ArrayLike) -> FacePose:
    """Crop of a face whose landmarks are known: the similarity that brings the template nearest to them.

    Parameters
    ----------
    points : array of shape (68, 2) or (5, 2)
        Pixels: the 68 points of the iBUG scheme, or eye centres, nose base and mouth corners, each left then right as
        the viewer sees them.

    Raises
    ------
    DataError
        Another number of points, points that are not finite, or all in one place.
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
    import cv2

    height, width = size
    times = max(1, round(min(pose.width / width, pose.width * pose.aspect / height)))
    large = (height * times, width * times)
    cut = cv2.warpAffine(
        frame,
        pose.matrix(large),
        (large[1], large[0]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    if times > 1:
        cut = cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(cut, np.uint8)


# -- the offline detector ---------------------------------------------------------------------------------------------

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
    import cv2

    crop = _SIDE / _EXTENT
    smooth = cv2.GaussianBlur(patch.astype(np.float32), (0, 0), 0.02 * crop)
    darker = cv2.GaussianBlur(smooth, (0, 0), 0.08 * crop) - smooth
    # Hair and collar are so strong that they would drown the features beside them.
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


@dataclass(frozen=True)
class _Prior:
    """Where the face is expected, and how dearly (in correlation) one spread's distance from there is paid."""

    pose: FacePose
    price: float

    # Spread of the cascade's boxes around the truth: crop widths, relative width, radians.
    place: ClassVar[float] = 0.06
    width: ClassVar[float] = 0.08
    roll: ClassVar[float] = 0.17

    def cost(self, pose: FacePose, across: NDArray[Any], down: NDArray[Any]) -> NDArray[Any]:
        """Cost of the crop `pose` moved by (across, down) crop units, (len(down), len(across))."""
        x, y = pose.to_crop(self.pose.centre)
        far = ((across - x)[None, :] ** 2 + ((down - y) * pose.aspect)[:, None] ** 2) / self.place**2
        other = (np.log(pose.width / self.pose.width) / self.width) ** 2 + (
            (pose.roll - self.pose.roll) / self.roll
        ) ** 2
        cost: NDArray[Any] = self.price * (far + other)
        return cost


def _fit(grey: NDArray[np.uint8], pose: FacePose, step: _Step, floor: float, prior: _Prior | None = None) -> FacePose:
    """Best place of the template around `pose`; its `score` is the correlation alone, without the prior."""
    import cv2

    side = int(np.ceil(_SIDE * (1 + 2 * step.reach / _EXTENT)))
    shifts = (np.arange(side - _SIDE + 1) - (side - _SIDE) / 2) * _EXTENT / _SIDE
    scales, rolls = np.exp(step.axis(step.scale)), step.axis(np.deg2rad(step.roll))
    merits = np.empty((len(scales), len(rolls)))
    places: dict[tuple[int, int], FacePose] = {}
    for i, scale in enumerate(scales):
        for j, roll in enumerate(rolls):
            turned = replace(pose, width=pose.width * float(scale), roll=pose.roll + float(roll))
            # The same axes, over a field as large as the template may wander.
            field_pose = replace(turned, width=turned.width * _EXTENT * side / _SIDE)
            patch = cv2.warpAffine(
                grey,
                field_pose.matrix((side, side)),
                (side, side),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
            score = cv2.matchTemplate(_contrast(patch, floor), _template(), cv2.TM_CCORR)
            merit = score if prior is None else score - prior.cost(turned, shifts, shifts)
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
    """How far one fit looks: in crop widths, in relative size, in degrees, with so many values to either side."""

    reach: float
    scale: float
    roll: float
    values: int

    def axis(self, limit: float) -> NDArray[np.float64]:
        return np.linspace(-limit, limit, 2 * self.values + 1)


# From a box of the cascade: coarsely near it, then more freely around what was found.
_COARSE = (_Step(0.15, 0.18, 16, 2), 0.02)
_FINE = ((_Step(0.07, 0.10, 6, 2), 0.012), (_Step(0.03, 0.04, 2, 1), 0.006))
# From one frame to the next.
_FOLLOW = (_Step(0.1, 0.04, 4, 1), 0.003)


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
        Smallest face looked for, as a share of the shorter side.
    turns : tuple of float
        Degrees by which the picture is turned, one after the other, until a face is found.
    threshold : float
        Least correlation. Most faces score 0.2 to 0.4, other things that the cascade falls for below 0.1.
    """

    longest_side: int = 480
    smallest: float = 0.15
    turns: tuple[float, ...] = (0.0, -25.0, 25.0)
    threshold: float = 0.12

    def detect(self, frame: Frame, number: int = 0) -> list[FacePose]:
        """Every face in `frame`, largest first; `number` has no say."""
        grey, scale = self._prepare(frame)
        floor = _noise_floor(grey)
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
        grey, scale = self._prepare(frame)
        start, (step, price) = before.scaled(scale), _FOLLOW
        pose = _fit(grey, start, step, _noise_floor(grey), _Prior(start, price)).scaled(1 / scale)
        return pose if pose.score >= self.threshold else None

    def _prepare(self, frame: Frame) -> tuple[NDArray[np.uint8], float]:
        import cv2

        scale = min(1.0, self.longest_side / max(frame.shape[:2]))
        small = frame
        if scale < 1:
            size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
            small = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
        return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8), scale

    def _boxes(self, grey: NDArray[np.uint8], turn: float, *, fine: bool) -> list[FacePose]:
        """The cascade's boxes on the picture turned by `turn` degrees, as first guesses of the crop."""
        import cv2

        # A face near the border is missed by a cascade that needs its surroundings.
        height, width = grey.shape
        margin = round(0.12 * min(height, width))
        roll = float(np.deg2rad(turn))
        field_pose = FacePose(
            (width - 1) / 2, (height - 1) / 2, width + 2 * margin, roll, (height + 2 * margin) / (width + 2 * margin)
        )
        size = (height + 2 * margin, width + 2 * margin)
        turned = cv2.warpAffine(
            grey,
            field_pose.matrix(size),
            (size[1], size[0]),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        shorter = min(size)
        least = max(24, round(self.smallest * min(height, width)))
        found = _cascade().detect_multi_scale(
            turned,
            scale_factor=1.08 if fine else 1.2,
            step_ratio=1.0 if fine else 1.3,
            min_size=(least, least),
            max_size=(shorter, shorter),
        )
        guesses = []
        for box in found:
            # Place and width of the crop in the cascade's boxes, measured on drawn faces and on a recording.
            middle = np.array([box["c"] + 0.5 * box["width"], box["r"] + 0.6 * box["height"]])
            x, y = field_pose.to_frame((middle + 0.5) / np.array([size[1], size[0]]) - 0.5)
            guesses.append(FacePose(float(x), float(y), 0.685 * float(box["width"]), roll))
        return sorted(guesses, key=lambda pose: -pose.width)[:8]

    def _refine(self, grey: NDArray[np.uint8], guess: FacePose, floor: float) -> FacePose:
        step, price = _COARSE
        pose = _fit(grey, guess, step, floor, _Prior(guess, price))
        if pose.score < 0.5 * self.threshold:
            return pose
        for step, price in _FINE:
            pose = _fit(grey, pose, step, floor, _Prior(guess, price))
        return pose


@lru_cache(maxsize=1)
def _cascade() -> Any:
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    return Cascade(lbp_frontal_face_cascade_filename())


def _noise_floor(grey: NDArray[np.uint8]) -> float:
    # Relative to the picture's contrast, so that a dark recording is searched like a bright one.
    return 0.1 * float(grey.std()) + 1.0


def _without_doubles(poses: list[FacePose]) -> list[FacePose]:
    kept: list[FacePose] = []
    for pose in sorted(poses, key=lambda one: -one.score):
        if all(np.hypot(pose.x - one.x, pose.y - one.y) > 0.5 * max(pose.width, one.width) for one in kept):
            kept.append(pose)
    return sorted(kept, key=lambda one: -one.width)


# -- other detectors --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CroppedFaces:
    """For frames that show nothing but the face, such as a database's own crops: the crop is the whole frame."""

    def detect(self, frame: Frame, number: int = 0) -> list[FacePose]:
        """One face that fills the frame."""
        height, width = frame.shape[:2]
        return [FacePose((width - 1) / 2, (height - 1) / 2, width, 0.0, height / width)]


@dataclass(frozen=True)
class LandmarkFile:
    """Landmarks from a CSV of the user's, one row a face and frame.

    Columns ``frame`` (number in the recording, from 0) and ``x_0 .. x_67, y_0 .. y_67`` (OpenFace's names; spaces
    around names are ignored), or ``x_0 .. x_4, y_0 .. y_4`` for eye centres, nose base and mouth corners. A frame
    without a row takes the nearest row before it.

    Parameters
    ----------
    path : str
    first : int
        Number that the file gives to the first frame (OpenFace counts from 1).

    Raises
    ------
    DataError
        On first use: the file is missing or lacks a column.
    """

    path: str
    first: int = 0

    def detect(self, frame: Frame, number: int = 0) -> list[FacePose]:
        """Faces of frame `number`, largest first."""
        table = self._rows
        known = [row for row in table if row <= number]
        return table[max(known)] if known else []

    @cached_property
    def _rows(self) -> dict[int, list[FacePose]]:
        what = "the landmark file"
        rows = csv_rows(read_table_text(self.path, what=what), self.path, what=what, skipinitialspace=True)
        names = [name.strip() for name in rows[0][1]] if rows else []
        points = 68 if "x_67" in names else 5
        wanted = [f"{axis}_{index}" for axis in "xy" for index in range(points)]
        missing = [name for name in ("frame", *wanted) if name not in names]
        if missing:
            raise DataError(
                f"the landmark file {self.path} has no column {missing[0]!r}; it needs frame and x_0 .. x_67, "
                "y_0 .. y_67 (or 0 .. 4)."
            )
        found: dict[int, list[FacePose]] = {}
        for line, row in rows[1:]:
            if not row:
                continue
            cells = dict(zip(names, row, strict=False))
            try:
                frame, *flat = [float(cells.get(name, "")) for name in ("frame", *wanted)]
                if not np.isfinite([frame, *flat]).all():
                    raise ValueError("a number is not finite")
                pose = pose_from_landmarks(np.array(flat).reshape(2, points).T)
            except ValueError as error:
                raise DataError(
                    f"line {line} of the landmark file {self.path} cannot be used ({error}); correct it or take it out."
                ) from error
            found.setdefault(int(frame) - self.first, []).append(pose)
        return {number: sorted(poses, key=lambda pose: -pose.width) for number, poses in found.items()}


@dataclass(frozen=True)
class FaceAlignmentDetector:
    """Faces and 68 landmarks by the package ``face-alignment`` (1.5 or newer), when it and its weights are there.

    Nothing is downloaded: the weights must lie where the package keeps them (``checkpoints`` in torch.hub's folder) or
    in a folder laid out alike.

    Parameters
    ----------
    weights : str, optional
        Folder that holds ``checkpoints`` (or that folder itself); default torch.hub's own.
    device : str
        Of torch.

    Raises
    ------
    DataError
        On first use: the package or its weights are missing.
    """

    weights: str | None = None
    device: str = "cpu"

    def detect(self, frame: Frame, number: int = 0) -> list[FacePose]:
        """Every face in `frame`, largest first; `number` has no say."""
        import warnings

        with warnings.catch_warnings():
            # An empty frame is an answer here, not a warning.
            warnings.simplefilter("ignore")
            found = self._network.get_landmarks_from_image(frame)
        poses = [pose_from_landmarks(np.asarray(points)[:, :2]) for points in found or ()]
        return sorted(poses, key=lambda pose: -pose.width)

    @cached_property
    def _network(self) -> Any:
        import torch

        try:
            import face_alignment  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise DataError(
                "the detector 'face-alignment' needs the package of that name; install it (pip install "
                "face-alignment), or use the detector 'cascade', which needs no download."
            ) from error
        home = Path(self.weights) if self.weights is not None else Path(torch.hub.get_dir())
        if home.name == "checkpoints":
            home = home.parent
        for pattern in ("s3fd-*.pth", "2DFAN4-*.pth.tar"):
            if not any((home / "checkpoints").glob(pattern)):
                raise DataError(
                    f"the weights of face-alignment are not there: no {pattern} in {home / 'checkpoints'}; put them "
                    "there, name their folder, or use the detector 'cascade', which needs no download."
                )
        before = torch.hub.get_dir()
        torch.hub.set_dir(os.fspath(home))
        try:
            return face_alignment.FaceAlignment(
                face_alignment.LandmarksType.TWO_D, device=self.device, flip_input=False, compile=False
            )
        finally:
            torch.hub.set_dir(before)


DETECTORS: Mapping[str, Callable[..., FaceDetector]] = {
    "cascade": CascadeDetector,
    "cropped": CroppedFaces,
    "face-alignment": FaceAlignmentDetector,
    "landmarks": LandmarkFile,
}


def load_detector(name: str | FaceDetector, parameters: Mapping[str, Any] | None = None) -> FaceDetector:
    """The detector of that name with `parameters`; a detector is handed through.

    Raises
    ------
    UnknownNameError
        No detector of that name.
    DataError
        It does not take these parameters.
    """
    if not isinstance(name, str):
        return name
    if name not in DETECTORS:
        raise unknown_name("face detector", name, DETECTORS)
    try:
        return DETECTORS[name](**(parameters or {}))
    except TypeError as error:
        raise DataError(f"the face detector {name!r} cannot be made with {dict(parameters or {})}: {error}.") from error


# -- one face through a recording -------------------------------------------------------------------------------------


def choose_face(faces: Sequence[FacePose], which: Which = "largest", *, where: str = "the frame") -> FacePose:
    """One of the faces of a frame.

    Parameters
    ----------
    faces : sequence of FacePose
        Largest first.
    which : "largest" or int
        Index counted from the largest, 0.
    where : str
        What messages call the frame.

    Raises
    ------
    NoFaceError
        There is none, or not so many.
    """
    if not faces:
        raise NoFaceError(
            f"no face was found in {where}; use a recording that shows one from the front, give landmarks, or say that "
            "the frames are cropped already (detector 'cropped')."
        )
    index = 0 if which == "largest" else int(which)
    if not 0 <= index < len(faces):
        raise NoFaceError(
            f"face {index} was asked for, but {where} shows {len(faces)} (counted from 0, largest first)."
        )
    return faces[index]


def _median_pose(poses: Sequence[FacePose]) -> FacePose:
    middle = {name: float(np.median([getattr(pose, name) for pose in poses])) for name in ("x", "y", "width", "score")}
    # Rolls lie far from the jump at half a turn, so their plain median is one.
    return replace(poses[0], roll=float(np.median([pose.roll for pose in poses])), **middle)


@dataclass
class FaceTracker:
    """Follows one face from frame to frame, for recordings too long to be held.

    A hand or a turn that hides the face makes it lost rather than misplaced: what is found must be as good a face as it
    used to be, and must not have changed its size abruptly.

    Parameters
    ----------
    detector : FaceDetector
        One with a method ``follow`` is asked to follow between two detections.
    which : "largest" or int
        Which face to start on; later the one nearest to it is kept.
    renew : int
        Detect afresh after so many frames of following.
    pause : int
        While no face is seen, look for one in every so-manieth frame only: looking costs more than following.
    """

    detector: FaceDetector
    which: Which = "largest"
    renew: int = 25
    pause: int = 5
    _last: FacePose | None = field(default=None, repr=False)
    _anchor: FacePose | None = field(default=None, repr=False)
    _usual: float = field(default=0.0, repr=False)
    _age: int = field(default=-1, repr=False)

    def update(self, frame: Frame, number: int = 0) -> FacePose | None:
        """The face's pose in the next frame, or None where it is not seen."""
        self._age += 1
        follow = getattr(self.detector, "follow", None)
        if follow is not None and self._last is None and 0 < self._age < self.pause:
            return None
        followed = None if follow is None or self._last is None else follow(frame, self._last, number)
        if followed is not None and not self._is_same(followed):
            followed = None
        if followed is None or self._age >= self.renew:
            followed = self._renewed(frame, number, followed)
        if followed is not None:
            self._usual = followed.score if not self._usual else 0.95 * self._usual + 0.05 * followed.score
        self._last = followed
        return followed

    def _is_same(self, pose: FacePose) -> bool:
        anchor = self._anchor or pose
        return pose.score >= 0.6 * self._usual and abs(np.log(pose.width / anchor.width)) < 0.2

    def _renewed(self, frame: Frame, number: int, followed: FacePose | None) -> FacePose | None:
        faces, self._age = self.detector.detect(frame, number), 0
        if self._anchor is None:
            index = 0 if self.which == "largest" else int(self.which)
            found = faces[index] if index < len(faces) else None
        else:
            before = self._last or self._anchor
            good = [pose for pose in faces if pose.score >= 0.6 * self._usual]
            found = min(good, key=lambda pose: np.hypot(pose.x - before.x, pose.y - before.y), default=None)
        if followed is not None and (found is None or found.score < followed.score or not self._is_same(found)):
            found = followed
        self._anchor = found or self._anchor
        return found


def locate_face(
    source: FrameSource,
    detector: FaceDetector,
    number: int = 0,
    *,
    which: Which = "largest",
    around: int = 2,
) -> FacePose:
    """Pose of the face in one frame, steadied by the median over its neighbours.

    Parameters
    ----------
    source : FrameSource
    detector : FaceDetector
    number : int
        The frame.
    which : "largest" or int
    around : int
        How many frames before and after it to look at.

    Raises
    ------
    NoFaceError
        The frame shows no face (or not that many).
    """
    first = choose_face(detector.detect(source[number], number), which, where=f"frame {number} of {source.name}")
    if isinstance(detector, (CroppedFaces, LandmarkFile)):
        return first
    poses = [first]
    for other in range(max(0, number - around), min(len(source), number + around + 1)):
        if other != number:
            faces = detector.detect(source[other], other)
            near = [pose for pose in faces if np.hypot(pose.x - first.x, pose.y - first.y) < 0.3 * first.width]
            poses.extend(near[:1])
    return _median_pose(poses)


def track_faces(
    source: FrameSource, detector: FaceDetector, *, which: Which = "largest", smooth: int = 5
) -> tuple[list[FacePose], NDArray[np.bool_]]:
    """Pose of one face in every frame, smoothed by a running median; frames that lose it are filled from neighbours.

    Returns
    -------
    poses : list of FacePose
    found : bool array
        Frames in which the face was seen.

    Raises
    ------
    NoFaceError
        The face is seen in less than half of the frames.
    """
    tracker = FaceTracker(detector, which)
    seen = [tracker.update(frame, number) for number, frame in enumerate(source)]
    found = np.array([pose is not None for pose in seen])
    if not found.any():
        raise NoFaceError(f"no face was found in any of the {len(seen)} frames of {source.name}; give landmarks.")
    if found.mean() < 0.5:
        raise NoFaceError(
            f"the face is lost in {int((~found).sum())} of the {len(found)} frames of {source.name}; give landmarks or "
            "cut the recording to the part that shows it."
        )
    places = np.flatnonzero(found)
    known = [pose for pose in seen if pose is not None]
    every = np.arange(len(seen))
    values = {
        name: np.interp(every, places, [getattr(pose, name) for pose in known])
        for name in ("x", "y", "width", "roll", "score")
    }
    filled = [
        replace(known[0], **{name: float(column[number]) for name, column in values.items()})
        for number in range(len(seen))
    ]
    reach = smooth // 2
    poses = [_median_pose(filled[max(0, number - reach) : number + reach + 1]) for number in range(len(seen))]
    return poses, found


class CroppedFrames(FrameSource):
    """The face of a recording, frame by frame, cut out and upright.

    Parameters
    ----------
    source : FrameSource
    poses : FacePose or sequence of FacePose
        One for all frames or one a frame.
    size : tuple of int
        Height and width of the crops.
    """

    def __init__(
        self, source: FrameSource, poses: FacePose | Sequence[FacePose], size: tuple[int, int] = (224, 224)
    ) -> None:
        self.name = source.name
        self.notes = source.notes
        self.source = source
        self.poses = poses
        self._size = size

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the crops."""
        return self._size

    @property
    def count(self) -> int | None:
        """Number of frames."""
        return self.source.count

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """Seconds since the first frame."""
        return self.source.timestamps

    @property
    def frames_per_second(self) -> float:
        """Frame rate."""
        return self.source.frames_per_second

    def __iter__(self) -> Iterator[Frame]:
        for number, frame in enumerate(self.source):
            yield self._cut(frame, number)

    def _frame(self, index: int) -> Frame:
        return self._cut(self.source[index], index)

    def _cut(self, frame: Frame, number: int) -> Frame:
        return crop_face(frame, self.poses if isinstance(self.poses, FacePose) else self.poses[number], self._size)
