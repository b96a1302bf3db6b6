"""The face detectors by name: cascade, cropped frames, landmarks from a file, and the package face-alignment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fsmer.data.text_tables import csv_rows, read_table_text
from fsmer.errors import DataError, unknown_name
from fsmer.preprocess.cascade import CascadeDetector
from fsmer.preprocess.face_mesh import MeshDetector
from fsmer.preprocess.faces import FacePose, pose_from_landmarks
from fsmer.preprocess.frame_source import Frame


@runtime_checkable
class FaceDetector(Protocol):
    """Finds faces in a frame."""

    def detect(self, frame: Frame, number: int = 0) -> list[FacePose]:
        """Every face in `frame` (uint8 RGB), largest first; `number` is its place in the recording."""


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
    without a row takes the nearest row before it. `first` is the number that the file gives to the first frame
    (OpenFace counts from 1). A file that is missing or lacks a column raises `DataError` on first use.
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

    Nothing is downloaded: the `weights` must lie where the package keeps them (``checkpoints`` in torch.hub's folder)
    or in a folder laid out alike, named by itself or by its ``checkpoints``. Where the package or they are missing, the
    first use raises `DataError`. `device` is one of torch.
    """

    weights: str | None = None
    device: str = "cpu"

    def detect(self, frame: Frame, number: int = 0) -> list[FacePose]:
        """Every face in `frame`, largest first; `number` is not used."""
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
    "mesh": MeshDetector,
}


def load_detector(name: str | FaceDetector, parameters: Mapping[str, Any] | None = None) -> FaceDetector:
    """The detector of that name with `parameters`, which `DataError` refuses; a detector is handed through."""
    if not isinstance(name, str):
        return name
    if name not in DETECTORS:
        raise unknown_name("face detector", name, DETECTORS)
    try:
        return DETECTORS[name](**(parameters or {}))
    except TypeError as error:
        raise DataError(f"the face detector {name!r} cannot be made with {dict(parameters or {})}: {error}.") from error
