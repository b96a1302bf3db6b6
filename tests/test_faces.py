"""The crop lies where the face is, stays there, and a missing face is said in one sentence."""

from __future__ import annotations

import os
import sys
import types
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from fsmer.data.spec import CROP_ASPECT
from fsmer.errors import DataError, UnknownNameError
from fsmer.preprocess.cascade import CascadeDetector
from fsmer.preprocess.face_detectors import (
    CroppedFaces,
    FaceAlignmentDetector,
    FaceDetector,
    LandmarkFile,
    load_detector,
)
from fsmer.preprocess.face_tracking import CroppedFrames, FaceTracker, choose_face, locate_face, track_faces
from fsmer.preprocess.faces import TEMPLATE_POINTS, FacePose, NoFaceError, crop_face, pose_from_landmarks
from fsmer.preprocess.reading import open_frames
from fsmer.synthetic.recordings import SyntheticVideo, synthetic_videos
from fsmer.synthetic.scene import Scene

POSE = FacePose(80.0, 60.0, 50.0, 0.2)
SIZE = (240, 320)


@lru_cache(maxsize=8)
def scene(number: int) -> SyntheticVideo:
    """Drawn heads at different places, sizes and rolls."""
    random = np.random.default_rng(number)
    place = Scene(
        (float(random.uniform(110, 210)), 130.0), float(random.uniform(66, 90)), float(random.uniform(-12, 12))
    )
    (drawn,) = synthetic_videos(1, seed=4, start=number, size=SIZE, frames=3, scene=place)
    return drawn


def truth(video: SyntheticVideo) -> FacePose:
    crop = np.asarray(video.crop)
    width = float(np.linalg.norm(crop[:, 0]))
    return FacePose(float(crop[0, 2]), float(crop[1, 2]), width, float(np.arctan2(crop[1, 0], crop[0, 0])))


def distance(pose: FacePose, true: FacePose) -> float:
    """Between crop centres, in face widths."""
    return float(np.hypot(pose.x - true.x, pose.y - true.y)) / true.width


# -- geometry ---------------------------------------------------------------------------------------------------------


def test_a_pose_maps_the_crop_to_the_frame_and_back() -> None:
    points = np.array([[0.1, -0.3], [-0.5, 0.5], [0.0, 0.0]])
    np.testing.assert_allclose(POSE.to_crop(POSE.to_frame(points)), points, atol=1e-12)
    np.testing.assert_allclose(POSE.to_frame([0, 0]), [80, 60])
    upper_left, upper_right, lower_right, _ = POSE.corners
    assert np.linalg.norm(upper_right - upper_left) == pytest.approx(50)
    assert np.linalg.norm(lower_right - upper_right) == pytest.approx(50 * CROP_ASPECT)
    # Clockwise for the viewer: the right side of the face hangs lower.
    assert upper_right[1] > upper_left[1]
    # The outer edges of the first and last pixel are the edges of the crop.
    matrix = POSE.matrix((10, 20))
    np.testing.assert_allclose(matrix @ [-0.5, -0.5, 1], upper_left)
    np.testing.assert_allclose(matrix @ [19.5, 9.5, 1], lower_right)
    doubled = POSE.scaled(2)
    np.testing.assert_allclose(doubled.corners, (POSE.corners + 0.5) * 2 - 0.5)


def test_landmarks_give_back_the_pose_they_were_placed_by() -> None:
    found = pose_from_landmarks(POSE.to_frame(TEMPLATE_POINTS))
    for name in ("x", "y", "width", "roll"):
        assert getattr(found, name) == pytest.approx(getattr(POSE, name))
    ibug = np.zeros((68, 2))
    five = POSE.to_frame(TEMPLATE_POINTS)
    for points, place in ((range(36, 42), 0), (range(42, 48), 1), ([33], 2), ([48], 3), ([54], 4)):
        ibug[list(points)] = five[place]
    np.testing.assert_allclose(pose_from_landmarks(ibug).corners, found.corners)
    for wrong, message in ((np.zeros((7, 2)), "68 points"), (np.ones((5, 2)), "one place"), (five * np.nan, "finite")):
        with pytest.raises(DataError, match=message):
            pose_from_landmarks(wrong)


def test_a_crop_shows_the_face_upright() -> None:
    rows, columns = np.mgrid[0:120, 0:160].astype(float)
    inside = POSE.to_crop(np.stack([columns, rows], axis=-1))
    # Brightness by the place in the crop: red grows to its right, green downwards.
    ramps = np.stack([128 + 200 * inside[..., 0], 128 + 200 * inside[..., 1], np.full_like(rows, 9)], axis=-1)
    frame = np.clip(ramps, 0, 255).round().astype(np.uint8)
    crop = crop_face(frame, POSE, (40, 30)).astype(float)
    assert crop.shape == (40, 30, 3)
    axis_x, axis_y = ((np.arange(n) + 0.5) / n - 0.5 for n in (30, 40))
    np.testing.assert_allclose(crop[..., 0], np.broadcast_to(128 + 200 * axis_x, (40, 30)), atol=2)
    np.testing.assert_allclose(crop[..., 1], np.broadcast_to((128 + 200 * axis_y)[:, None], (40, 30)), atol=2)


def test_a_large_face_is_averaged_down() -> None:
    frame = np.zeros((400, 400, 3), np.uint8)
    frame[:, ::2] = 255
    crop = crop_face(frame, FacePose(199.5, 199.5, 320, 0.0, 1.0), (40, 40))
    assert np.abs(crop.astype(int) - 127).max() < 12


# -- the cascade ------------------------------------------------------------------------------------------------------


def test_drawn_faces_are_found_at_their_place_size_and_roll() -> None:
    detector = CascadeDetector()
    errors = []
    for number in range(5):
        video = scene(number)
        true = truth(video)
        (pose, *_) = detector.detect(video.frames[0])
        errors.append((distance(pose, true), abs(pose.width / true.width - 1), abs(np.degrees(pose.roll - true.roll))))
    place, width, roll = np.median(errors, axis=0)
    assert place < 0.05
    assert width < 0.1
    assert roll < 3
    assert np.max(errors, axis=0)[0] < 0.2


def test_the_largest_face_comes_first_and_others_by_number() -> None:
    frame = np.full((240, 640, 3), 120, np.uint8)
    frame[:, :320] = scene(1).frames[0]
    small = scene(3).frames[0][::2, ::2]
    frame[60:180, 400:560] = small
    faces = CascadeDetector(longest_side=640, smallest=0.12).detect(frame)
    assert len(faces) == 2
    assert faces[0].width > 1.5 * faces[1].width
    true = truth(scene(1))
    assert distance(faces[0], true) < 0.2
    assert choose_face(faces) is faces[0]
    assert choose_face(faces, 1) is faces[1]
    with pytest.raises(NoFaceError, match=r"face 2 .* 2"):
        choose_face(faces, 2)


def test_a_large_frame_gives_the_same_crop_in_its_own_pixels() -> None:
    frame = scene(1).frames[0]
    large = frame.repeat(4, axis=0).repeat(4, axis=1)
    (small_pose, *_), (large_pose, *_) = (CascadeDetector(longest_side=320).detect(one) for one in (frame, large))
    assert distance(large_pose, small_pose.scaled(4)) < 0.03
    assert large_pose.width == pytest.approx(4 * small_pose.width, rel=0.04)


@pytest.mark.parametrize("kind", ["black", "noise", "blocks"])
def test_a_recording_without_a_face_is_refused_by_that_word(kind: str) -> None:
    random = np.random.default_rng(0)
    picture = {
        "black": np.zeros((120, 160, 3), np.uint8),
        "noise": random.integers(0, 256, (120, 160, 3), dtype=np.uint8),
        "blocks": random.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(20, axis=0).repeat(20, axis=1),
    }[kind]
    frames = open_frames([picture] * 3)
    with pytest.raises(NoFaceError, match=r"^no face .*frame 0 .*'cropped'"):
        locate_face(frames, CascadeDetector())
    with pytest.raises(NoFaceError, match="face"):
        track_faces(frames, CascadeDetector())


# -- through time -----------------------------------------------------------------------------------------------------


def wandering(count: int = 12) -> tuple[np.ndarray, list[FacePose]]:
    """One face carried over the picture by two pixels a frame."""
    base = scene(0).frames[0]
    true = truth(scene(0))
    frames = np.stack([np.roll(base, 2 * number, axis=1) for number in range(count)])
    return frames, [FacePose(true.x + 2 * number, true.y, true.width, true.roll) for number in range(count)]


def test_a_face_is_followed_smoothly() -> None:
    frames, true = wandering()
    poses, found = track_faces(open_frames(frames), CascadeDetector())
    assert found.all()
    assert max(distance(pose, one) for pose, one in zip(poses, true, strict=True)) < 0.1
    steps = np.diff([pose.x for pose in poses])[2:-2]
    np.testing.assert_allclose(steps, 2, atol=1)
    widths = np.array([pose.width for pose in poses])
    assert widths.std() / widths.mean() < 0.02


def test_following_costs_less_than_looking_anew() -> None:
    class Counting(CascadeDetector):
        def detect(self, frame, number=0):
            looked.append(number)
            return super().detect(frame, number)

    looked: list[int] = []
    frames, true = wandering()
    tracker = FaceTracker(Counting(), renew=8)
    poses = [tracker.update(frame, number) for number, frame in enumerate(frames)]
    assert looked == [0, 8]
    assert all(pose is not None and distance(pose, one) < 0.1 for pose, one in zip(poses, true, strict=True))


def test_a_face_lost_for_a_while_is_bridged_and_one_lost_for_long_refused() -> None:
    frames, true = wandering()
    frames[5:7] = 0
    poses, found = track_faces(open_frames(frames), CascadeDetector())
    assert not found[5:7].any()
    assert found[:5].all()
    assert distance(poses[6], true[6]) < 0.15
    frames[4:] = 0
    with pytest.raises(NoFaceError, match="8 of the 12 frames"):
        track_faces(open_frames(frames), CascadeDetector())


def test_the_onset_crop_is_steadied_by_its_neighbours() -> None:
    class Jumpy:
        def detect(self, frame, number=0):
            return [FacePose(100 + (30 if number == 4 else number), 50, 80)]

    frames = open_frames(np.zeros((9, 100, 200), np.uint8))
    # The other frames' places are 102, 103, 105, 106; the one that jumps is outvoted.
    assert locate_face(frames, Jumpy(), 5).x == pytest.approx(105, abs=1)


def test_crops_are_cut_when_they_are_read() -> None:
    frames, true = wandering(3)
    source = open_frames(frames)
    one = CroppedFrames(source, true[0], (64, 64))
    each = CroppedFrames(source, true, (64, 64))
    assert (len(one), one.size, one[0].shape) == (3, (64, 64), (64, 64, 3))
    np.testing.assert_array_equal(one[2], crop_face(frames[2], true[0], (64, 64)))
    # A crop that goes along with the face shows a picture that stands still.
    assert np.abs(each[2].astype(int) - each[0]).mean() < 1
    assert np.abs(one[2].astype(int) - one[0]).mean() > 2
    np.testing.assert_array_equal(np.stack(list(each)), each.read())


# -- other detectors --------------------------------------------------------------------------------------------------


def test_detectors_are_chosen_by_name() -> None:
    assert isinstance(load_detector("cascade", {"threshold": 0.2}), FaceDetector)
    detector = CroppedFaces()
    assert load_detector(detector) is detector
    with pytest.raises(UnknownNameError, match="'cascade'"):
        load_detector("cascades")
    with pytest.raises(DataError, match="'cascade'"):
        load_detector("cascade", {"treshold": 0.2})


def test_cropped_frames_are_taken_whole() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)
    (pose,) = CroppedFaces().detect(frame)
    np.testing.assert_array_equal(crop_face(frame, pose, (70, 50)), frame)


def landmark_rows(poses: dict[int, list[FacePose]], separator: str = ",") -> str:
    names = [f"{axis}_{index}" for axis in "xy" for index in range(5)]
    lines = [separator.join(["frame", *names])]
    for number, several in poses.items():
        for pose in several:
            points = pose.to_frame(TEMPLATE_POINTS).T.ravel()
            lines.append(separator.join([str(number), *(f"{value:.4f}" for value in points)]))
    return "\n".join(lines)


def test_landmarks_of_a_csv_place_the_crop(tmp_path: Path) -> None:
    path = tmp_path / "landmarks.csv"
    small = FacePose(20, 20, 30)
    # OpenFace writes a space behind every comma and counts from 1.
    path.write_text(landmark_rows({1: [small, POSE], 3: [small]}, ", "))
    detector = LandmarkFile(str(path), first=1)
    frame = np.zeros((120, 160, 3), np.uint8)
    assert [round(pose.width) for pose in detector.detect(frame, 0)] == [50, 30]
    assert detector.detect(frame, 0)[0].roll == pytest.approx(0.2, abs=1e-3)
    # A frame without a row takes the nearest before it.
    assert detector.detect(frame, 1) == detector.detect(frame, 0)
    assert len(detector.detect(frame, 5)) == 1


def test_landmark_files_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    frame = np.zeros((9, 9, 3), np.uint8)
    path = tmp_path / "landmarks.csv"
    with pytest.raises(DataError, match="landmark"):
        LandmarkFile(str(path)).detect(frame)
    path.write_text("frame,x_0,y_0\n0,1,2\n")
    with pytest.raises(DataError, match="'x_1'"):
        LandmarkFile(str(path)).detect(frame)
    path.write_text(landmark_rows({0: [POSE]}).replace("\n0,", "\n0,broken"))
    with pytest.raises(DataError, match="line 2 "):
        LandmarkFile(str(path)).detect(frame)
    for cell in ("inf", "1e999", "nan", "-inf"):
        path.write_text(landmark_rows({0: [POSE]}).replace("\n0,", f"\n{cell},"))
        with pytest.raises(DataError, match="not finite"):
            LandmarkFile(str(path)).detect(frame)
    path.write_text("x" * 131_073 + "\n")
    with pytest.raises(DataError, match="field limit"):
        LandmarkFile(str(path)).detect(frame)
    path.write_text("")
    with pytest.raises(DataError, match="'frame'"):
        LandmarkFile(str(path)).detect(frame)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="named pipe"):
        LandmarkFile(str(tmp_path / "pipe.csv")).detect(frame)
    path.write_text(landmark_rows({4: [POSE]}))
    with pytest.raises(NoFaceError, match="no face"):
        locate_face(open_frames(np.zeros((3, 20, 20), np.uint8)), LandmarkFile(str(path)))


def fake_package(monkeypatch: pytest.MonkeyPatch, landmarks: list[np.ndarray] | None) -> list[str]:
    """A stand-in for the optional package that is not installed here; records the weights folder it is made with."""
    import torch

    made: list[str] = []

    class FaceAlignment:
        def __init__(self, kind, *, device, flip_input, compile):
            made.append(torch.hub.get_dir())

        def get_landmarks_from_image(self, image):
            return landmarks

    package = types.ModuleType("face_alignment")
    package.FaceAlignment = FaceAlignment  # type: ignore[attr-defined]
    package.LandmarksType = types.SimpleNamespace(TWO_D=1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "face_alignment", package)
    return made


def test_face_alignment_is_used_with_weights_that_are_there_and_never_downloads(tmp_path: Path, monkeypatch) -> None:
    import torch

    five = POSE.to_frame(TEMPLATE_POINTS)
    ibug = np.zeros((68, 2))
    for points, place in ((range(36, 42), 0), (range(42, 48), 1), ([33], 2), ([48], 3), ([54], 4)):
        ibug[list(points)] = five[place]
    made = fake_package(monkeypatch, [ibug * 0.5, ibug])
    frame = np.zeros((9, 9, 3), np.uint8)
    with pytest.raises(DataError, match=r"face-alignment.*s3fd-\*\.pth"):
        FaceAlignmentDetector(str(tmp_path)).detect(frame)
    assert not made
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "s3fd-619a316812.pth").touch()
    (checkpoints / "2DFAN4-11f355bf06.pth.tar").touch()
    before = torch.hub.get_dir()
    for folder in (tmp_path, checkpoints):
        faces = FaceAlignmentDetector(str(folder)).detect(frame)
        assert [round(pose.width) for pose in faces] == [50, 25]
    assert made == [str(tmp_path)] * 2
    assert torch.hub.get_dir() == before
    fake_package(monkeypatch, None)
    assert FaceAlignmentDetector(str(tmp_path)).detect(frame) == []


def test_a_missing_package_names_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "face_alignment", None)
    with pytest.raises(DataError, match=r"pip install face-alignment.*'cascade'"):
        FaceAlignmentDetector().detect(np.zeros((9, 9, 3), np.uint8))
