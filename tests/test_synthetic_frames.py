"""Promises of the synthetic frame sequences: drawn faces that move the way that FACS says, by a flow that is known."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import fsmer
from fsmer.data.facs import ACTION_UNIT_ORDER
from fsmer.data.spec import CROP_ASPECT, InputSpec
from fsmer.errors import DataError, UnknownNameError
from fsmer.preprocess import open_frames
from fsmer.synthetic.clips import action_unit_maps, synthetic_maps
from fsmer.synthetic.domains import DOMAINS, load_domain
from fsmer.synthetic.facs_fields import LANDMARKS
from fsmer.synthetic.frame_clips import synthetic_frame_clips
from fsmer.synthetic.recordings import SyntheticVideo, synthetic_recording, synthetic_videos
from fsmer.synthetic.scene import Camera, Scene, random_scene

STILL = Camera.perfect()
RGB = ("red", "green", "blue")
# Everybody has the canonical face in the canonical crop and moves alike.
CANONICAL = replace(
    DOMAINS["lab"],
    geometry=0.0,
    variety=0.0,
    asymmetry=0.0,
    intensity=(1.0, 1.0),
    crop_scale=(1.0, 0.0),
    crop_aspect=(1.0, 0.0),
    crop_shift=(0.0, 0.0),
    crop_angle=0.0,
)


def one(**options) -> SyntheticVideo:
    return next(synthetic_videos(1, **{"seed": 3, "size": 112, "frames": 8, "frames_per_second": 25, **options}))


def grey(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def farneback(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return cv2.calcOpticalFlowFarneback(grey(first), grey(second), None, 0.5, 3, 15, 3, 5, 1.2, 0).transpose(2, 0, 1)


def test_a_video_holds_what_it_promises():
    video = one(domain="clinic", size=(96, 80), frames=12, subjects=3)
    assert video.frames.shape == (12, 96, 80, 3)
    assert video.frames.dtype == np.uint8
    assert 0 <= video.onset < video.apex < video.offset < 12
    assert video.flow.shape == video.expression_flow.shape == (2, 96, 80)
    assert video.flow.dtype == np.float32
    assert video.moving.shape == (96, 80)
    assert 0 < video.moving.mean() < 0.8
    assert video.units.shape == (len(ACTION_UNIT_ORDER),)
    assert video.units.any()
    assert video.label == DOMAINS["clinic"].labels[video.emotion]
    assert video.subject == "clinic001"
    assert video.head.shape == (12, 6)
    assert video.closure.shape == (12,)
    assert set(video.landmarks) == set(LANDMARKS)


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_same_seed_same_videos_and_video_i_does_not_depend_on_how_many_are_asked_for(domain: str):
    options = {"domain": domain, "seed": 2, "size": 32, "frames": 5, "subjects": 2}
    many = list(synthetic_videos(4, **options))
    few = list(synthetic_videos(2, start=2, **options))
    for left, right in zip(many[2:], few, strict=True):
        np.testing.assert_array_equal(left.frames, right.frames)
        np.testing.assert_array_equal(left.flow, right.flow)
        for name in ("onset", "apex", "offset", "subject"):
            assert getattr(left, name) == getattr(right, name)
    other = next(synthetic_videos(1, **{**options, "seed": 5}))
    assert not np.array_equal(other.frames, many[0].frames)


@pytest.mark.parametrize("units", [(1, 2), (4,), (6, 12), (15,), (26,)])
def test_warping_the_apex_back_by_the_true_flow_gives_the_onset(units: tuple[int, ...]):
    video = one(units=units, camera=replace(STILL, head=1.5), size=224, domain=CANONICAL)
    onset, apex = (grey(video.frames[index]).astype(np.float32) for index in (video.onset, video.apex))
    y, x = np.mgrid[:224, :224].astype(np.float32)
    inner = video.moving & (np.hypot(x - 112, y - 112) < 100)

    def warped_by(share: float) -> np.ndarray:
        return cv2.remap(apex, x + share * video.flow[0], y + share * video.flow[1], cv2.INTER_CUBIC)

    before, after = (np.abs(image - onset)[inner].mean() for image in (apex, warped_by(1.0)))
    assert after < 0.35 * before
    # By which part of the true flow the pictures truly differ, by least squares along it (Lucas & Kanade 1981).
    slope = (warped_by(1.02) - warped_by(0.98)) / 0.04
    missing = (slope * (onset - warped_by(1.0)))[inner].sum() / (slope**2)[inner].sum()
    assert abs(missing) * np.hypot(*video.flow)[inner].max() < 0.05


def test_the_flow_there_and_back_again_is_none():
    recording = synthetic_recording(
        6,
        seed=1,
        size=(240, 320),
        scene=Scene((160.0, 130.0), 150.0, 5.0),
        units=[(12, 25)],
        camera=replace(STILL, head=1.5),
        domain=replace(DOMAINS["lab"], intensity=(1.0, 1.0)),
    )
    interval = recording.intervals[0]
    there = recording.flow(interval.onset, interval.apex)
    back = recording.flow(interval.apex, interval.onset)
    y, x = np.mgrid[:240, :320].astype(np.float32)
    returned = np.stack([cv2.remap(part, x + there[0], y + there[1], cv2.INTER_CUBIC) for part in back]) + there
    # Not on the head's outline and the picture's border, where what is beyond comes in.
    head = (np.abs(there).max(axis=0) > 0).astype(np.uint8)
    head = cv2.erode(head, np.ones((9, 9), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    assert np.abs(there[:, head]).max() > 1
    assert np.abs(returned[:, head]).max() < 0.05


def test_the_movement_is_that_of_the_flow_generator():
    # Up to the strength of the clip and to the individual, who is a little wider or narrower than the canonical face.
    for unit in (1, 4, 9, 12, 15, 25):
        video = one(domain=CANONICAL, units=(unit,), camera=STILL)
        fields = action_unit_maps(unit, size=112)[:2]
        assert np.corrcoef(fields.ravel(), video.expression_flow.ravel())[0, 1] > 0.95
        np.testing.assert_array_equal(video.flow, video.expression_flow)


@pytest.mark.parametrize("units", [(1, 2), (4,), (6, 12), (9,), (14,), (15,)])
def test_optical_flow_of_the_frames_finds_the_true_movement(units: tuple[int, ...]):
    domain = replace(load_domain("lab"), intensity=(1.0, 1.0))
    video = one(domain=domain, units=units, camera=STILL, size=224)
    found = farneback(video.frames[video.onset], video.frames[video.apex])[:, video.moving]
    assert np.corrcoef(found.ravel(), video.flow[:, video.moving].ravel())[0, 1] > 0.8


def test_the_largest_displacement_is_that_of_micro_expressions():
    videos = synthetic_videos(16, domain="broad", seed=1, size=48, frames=3, camera=STILL, subjects=4)
    for video in videos:
        # Pixels on a face of 224.
        face = np.array([video.box[2], video.box[3]])[:, None, None]
        largest = np.hypot(*(video.expression_flow / face * 224)).max()
        assert 0.3 < largest < 4.4
    reach = np.abs(synthetic_maps(64, domain="broad", normalisation="signed", seed=1).maps[:, :2]).max()
    assert reach > 2


def test_the_expression_rises_to_the_apex_and_is_gone_at_the_offset():
    video = one(domain=CANONICAL, units=(12,), camera=STILL, frames=16)
    first = video.frames[0].astype(float)
    change = [np.abs(frame - first)[video.moving].mean() for frame in video.frames]
    assert int(np.argmax(change)) == video.apex
    rising, falling = change[video.onset : video.apex + 1], change[video.apex : video.offset + 1]
    assert (np.diff(rising) > 0).all()
    assert (np.diff(falling) < 0).all()
    assert change[video.onset] == change[video.offset] == 0


def test_drawn_features_sit_at_their_landmarks():
    dark, red = [], []
    for video in synthetic_videos(5, domain="lab", seed=4, size=224, frames=3, camera=STILL, subjects=5):
        face = video.frames[video.onset].astype(float)

        def around(points: np.ndarray, face=face) -> np.ndarray:
            places = np.clip(np.round(points), 3, 220).astype(int)
            return np.mean([face[y - 3 : y + 4, x - 3 : x + 4].mean(axis=(0, 1)) for x, y in places], axis=0)

        places = video.landmarks
        for name in ("brow_inner", "brow_outer"):
            dark.append(around(places[name]).sum() < 0.93 * around(places[name] - (0, 20)).sum())
        eyes = (places["lid_upper"] + places["lid_lower"]) / 2
        dark.append(around(eyes).sum() < 0.8 * around(places["cheek"]).sum())
        lips, cheek = around(0.3 * places["lip_upper"] + 0.7 * places["lip_lower"]), around(places["cheek"])
        red.append(lips[0] / lips[1] > 1.1 * cheek[0] / cheek[1])
    assert np.mean(dark) > 0.9
    assert np.mean(red) > 0.85


def test_individuals_look_different_and_stay_themselves():
    videos = list(synthetic_videos(6, domain=CANONICAL, seed=4, size=64, frames=3, subjects=3, camera=STILL))
    rest = [video.frames[0].astype(float) for video in videos]
    for index in range(3):
        assert np.abs(rest[index] - rest[index + 3]).mean() < 3
        assert videos[index].subject == videos[index + 3].subject
        assert np.abs(rest[index] - rest[(index + 1) % 3]).mean() > 6


def test_head_motion_light_noise_and_compression_each_show_and_are_known():
    options = {"units": (12,), "size": 64, "domain": "lab"}
    plain = one(camera=STILL, **options)
    assert (plain.head == 0).all()
    moved = one(camera=replace(STILL, head=1.5), **options)
    assert np.ptp(moved.head, axis=0).min() > 0
    assert (moved.head[moved.onset] == 0).all()
    assert not np.array_equal(moved.flow, moved.expression_flow)
    np.testing.assert_allclose(moved.expression_flow, plain.expression_flow, atol=1e-3)
    noisy = one(camera=replace(STILL, noise=4.0), **options)
    error = noisy.frames.astype(float) - plain.frames
    assert 2.5 < error.std() < 5
    assert not np.array_equal(error[0], error[1])
    lit = one(camera=replace(STILL, light=0.1), frames=40, **{**options, "units": (25,)})
    assert np.ptp(lit.frames.mean(axis=(1, 2, 3))) > 1
    packed = one(camera=replace(STILL, jpeg=40), **options)
    assert 0.3 < np.abs(packed.frames.astype(float) - plain.frames).mean() < 8


def test_blinks_close_the_lids_and_keep_off_onset_and_apex():
    camera = replace(STILL, blinks=1.0)
    recording = synthetic_recording(20, seed=2, size=128, scene=Scene((64, 60), 80), camera=camera, domain="lab")
    closure = np.array([recording.closure(index) for index in range(len(recording))])
    assert closure.max() > 0.9
    for interval in recording.intervals:
        assert closure[interval.onset] == closure[interval.apex] == 0
    resting = [index for index in range(len(recording)) if not recording.intervals[0].strength(index)]
    shut = max((i for i in resting if i < recording.intervals[-1].offset), key=lambda i: closure[i])
    open_eyed = recording.frame(recording.intervals[0].onset).astype(float)
    change = np.abs(recording.frame(shut) - open_eyed).sum(axis=2)
    eyes = np.zeros((128, 128), bool)
    for x, y in recording.landmarks()["lid_upper"]:
        eyes[round(y) - 8 : round(y) + 12, round(x) - 14 : round(x) + 15] = True
    strengths = [interval.strength(shut) for interval in recording.intervals]
    assert max(strengths) == 0
    assert change[eyes].mean() > 10
    assert change[~eyes].max() == 0


def test_a_recording_shows_its_expressions_in_order_with_rest_between():
    recording = synthetic_recording(12, seed=1, size=(90, 120), units=[(1, 2), (12,)], camera=STILL, rest=(0.5, 1.0))
    assert len(recording) == 300
    assert len(recording.intervals) > 4
    assert [interval.numbers for interval in recording.intervals[:3]] == [(1, 2), (12,), (1, 2)]
    ends = [-1]
    for interval in recording.intervals:
        assert ends[-1] < interval.onset < interval.apex < interval.offset
        ends.append(interval.offset)
    assert ends[-1] < 300
    still = recording.frame(0)
    np.testing.assert_array_equal(recording.frame(recording.intervals[0].offset), still)
    assert not np.array_equal(recording.frame(recording.intervals[0].apex), still)
    # A frame is the same whenever it is drawn.
    late = recording.frame(recording.intervals[3].apex)
    np.testing.assert_array_equal(list(recording)[recording.intervals[3].apex], late)
    with pytest.raises(DataError, match="300 frames"):
        recording.frame(300)


def test_a_scene_puts_the_face_where_it_says():
    scene = Scene((150.0, 110.0), 70.0, roll=-6.0)
    video = one(scene=scene, size=(220, 300), domain=CANONICAL, camera=STILL, units=(4,))
    left, top, width, height = video.box
    assert (left + width / 2, top + height / 2, width) == pytest.approx((150, 110, 70))
    assert height == pytest.approx(70 * CROP_ASPECT)
    inner = np.array(LANDMARKS["mouth_corner"]) * (70, height)
    angle = np.deg2rad(-6.0)
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    np.testing.assert_allclose(video.landmarks["mouth_corner"][0], turn @ inner + (150, 110), atol=3)
    np.testing.assert_allclose(video.crop @ (*LANDMARKS["mouth_corner"], 1), turn @ inner + (150, 110), atol=0.1)
    # Nothing moves outside the head.
    assert (video.flow[:, :, :60] == 0).all()


def test_the_crop_of_a_scene_is_the_canonical_crop():
    # Cut out and squeezed to a square, the face in a scene is the face of the cropped videos.
    options = {"domain": CANONICAL, "camera": STILL, "units": (12,)}
    video = one(scene=Scene((160.0, 160.0), 120.0), size=320, **options)
    close = one(size=96, **options)
    axis = ((np.arange(96) + 0.5) / 96 - 0.5).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    maps = [np.ascontiguousarray(row[0] * x + row[1] * y + row[2]).astype(np.float32) for row in video.crop]
    cut = cv2.remap(cv2.GaussianBlur(video.frames[0], (0, 0), 0.6), *maps, cv2.INTER_LINEAR).astype(float)
    assert np.corrcoef(cut[8:-8, 8:-8].ravel(), close.frames[0][8:-8, 8:-8].astype(float).ravel())[0, 1] > 0.95


def test_the_cascade_of_scikit_image_finds_the_faces():
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    detector = Cascade(lbp_frontal_face_cascade_filename())
    found = []
    for seed in range(10):
        recording = synthetic_recording(1, seed=seed, size=(180, 240), domain=("field", "lab")[seed % 2])
        boxes = detector.detect_multi_scale(
            recording.frame(0), scale_factor=1.2, step_ratio=1, min_size=(44, 44), max_size=(160, 160)
        )
        left, top, width, height = recording.box(0)
        found.append(
            any(
                abs(box["c"] + box["width"] / 2 - left - width / 2) < 0.35 * width
                and abs(box["r"] + box["height"] / 2 - top - height / 2) < 0.35 * height
                for box in boxes
            )
        )
    assert np.mean(found) >= 0.8


def test_random_scenes_hold_the_whole_face():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = random_scene((360, 640), rng)
        half = scene.face_width / 2
        assert half < scene.centre[0] < 640 - half
        assert CROP_ASPECT * half < scene.centre[1] < 360 - CROP_ASPECT * half


def test_memory_does_not_grow_with_the_length_of_a_recording():
    def peak(seconds: float) -> int:
        recording = synthetic_recording(seconds, seed=1, size=(120, 160), rest=(0.3, 0.6))
        tracemalloc.start()
        for _ in recording:
            pass
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(1)
    assert peak(10) < peak(2) + 1_000_000


# -- clip sets ---------------------------------------------------------------------------------------------------------

SPECS = (
    InputSpec("onset", (48, 40), RGB, "unit"),
    InputSpec("apex", (48, 40), RGB, "unit"),
    InputSpec("frames", (32, 32), RGB, "unit", frames=6),
    InputSpec("flow", (48, 40), ("u", "v", "strain"), "signed"),
    InputSpec("flows", (32, 32), ("u", "v"), "signed", frames=6),
)


def test_a_clip_set_holds_the_media_that_were_asked_for():
    clips = synthetic_frame_clips("lab", 6, seed=1, specs=SPECS, subjects=3, frames=8)
    assert set(clips.specs) == {"onset", "apex", "frames", "flow", "flows"}
    for spec in SPECS:
        assert clips.media(spec.kind).shape == (6, *spec.shape)
        assert clips.specs[spec.kind].flow_method is None
    assert clips.table["subject"].nunique() == 3
    assert all(fsmer.parse_aus(clip.aus).units for clip in clips)
    assert 0 <= clips.media("apex").min() < clips.media("apex").max() <= 1


def test_clips_are_the_videos_of_the_same_number():
    clips = synthetic_frame_clips("lab", 5, seed=1, specs=SPECS, subjects=3, frames=8)
    video = next(synthetic_videos(1, start=4, domain="lab", seed=1, size=(48, 40), subjects=3, frames=8))
    assert clips[4].label == video.label
    assert clips.table["emotion"].iloc[4] == video.emotion
    numbers = [str(number) for number, active in zip(ACTION_UNIT_ORDER, video.units, strict=True) if active]
    assert clips[4].aus == "+".join(numbers)
    for kind, index in (("onset", video.onset), ("apex", video.apex)):
        np.testing.assert_array_equal(clips[4].read(kind), video.frames[index].transpose(2, 0, 1) / np.float32(255))
    np.testing.assert_allclose(clips[4].flow[:2], video.flow * 1000 / 40, rtol=1e-5)
    frames = next(synthetic_videos(1, start=4, domain="lab", seed=1, size=32, subjects=3, frames=8)).frames
    times = np.round(np.linspace(0, 7, 6)).astype(int)
    np.testing.assert_array_equal(clips[4].read("frames"), frames[times].transpose(0, 3, 1, 2) / np.float32(255))


def test_a_clip_is_the_same_whatever_is_read_before_it_and_in_another_process():
    few = synthetic_frame_clips("lab", 3, seed=1, specs=SPECS, frames=8)
    many = synthetic_frame_clips("lab", 7, seed=1, specs=SPECS, frames=8)
    for kind in few.specs:
        np.testing.assert_array_equal(many.read(kind, [5, 2, 0])[1:], few.read(kind, [2, 0]))
        store = pickle.loads(pickle.dumps(few[0].media[kind].store))
        np.testing.assert_array_equal(store.read(np.array([1])), few.read(kind, [1]))


def test_flows_lead_from_frame_to_frame_and_the_last_is_repeated():
    spec = InputSpec("flows", (64, 64), ("u", "v"), "signed", frames=8)
    clips = synthetic_frame_clips(CANONICAL, 1, seed=1, specs=[spec], frames=8, camera=STILL)
    flows = clips[0].read("flows")
    np.testing.assert_array_equal(flows[-1], flows[-2])
    video = next(synthetic_videos(1, domain=CANONICAL, seed=1, size=64, frames=8, camera=STILL))
    steps = flows[video.onset : video.apex]
    # Small steps add up to the whole movement wherever it changes slowly from place to place.
    whole = video.flow * 1000 / 64
    error = np.abs(steps.sum(axis=0) - whole).max()
    assert error < 0.25 * np.abs(whole).max()


def test_true_flow_comes_in_every_normalisation():
    minmax = InputSpec("flow", (28, 28), ("u", "v", "strain"), "minmax")
    maps = synthetic_frame_clips("clinic", 4, seed=1, specs=[minmax], frames=4).media("flow")
    np.testing.assert_allclose(maps.min(axis=(2, 3)), 0, atol=1e-6)
    np.testing.assert_allclose(maps.max(axis=(2, 3)), 1, atol=1e-6)


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"n": -1},
        {"start": -1},
        {"subjects": 0},
        {"seed": -1},
        {"size": 8},
        {"size": (100, 9000)},
        {"frames": 2},
        {"frames_per_second": 0},
        {"frames_per_second": float("nan")},
        {"amplify": 0},
        {"units": ()},
    ],
)
def test_videos_out_of_range_are_refused_in_one_sentence(options: dict):
    with pytest.raises(DataError, match=r"give|must be|name"):
        synthetic_videos(**{"n": 1, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"seconds": 0},
        {"seconds": float("inf")},
        {"rest": (2, 1)},
        {"duration": (-1, 1)},
        {"units": []},
        {"subject": -1},
    ],
)
def test_recordings_out_of_range_are_refused_in_one_sentence(options: dict):
    with pytest.raises(DataError, match=r"give|must|name"):
        synthetic_recording(**options)


def test_cameras_scenes_and_media_out_of_range_are_refused_in_one_sentence():
    with pytest.raises(DataError, match="finite"):
        Camera(noise=-1)
    with pytest.raises(DataError, match="1 to 100"):
        Camera(jpeg=0)
    with pytest.raises(DataError, match="12 pixels"):
        Scene((10, 10), 3)
    with pytest.raises(DataError, match="InputSpec"):
        synthetic_frame_clips(specs=[])
    with pytest.raises(DataError, match="kind"):
        synthetic_frame_clips(specs=[SPECS[0], SPECS[0]])
    with pytest.raises(DataError, match="frames"):
        synthetic_frame_clips(specs=[InputSpec("frames", (32, 32), RGB, "unit")])
    with pytest.raises(DataError, match="red, green, blue"):
        synthetic_frame_clips(specs=[InputSpec("apex", (32, 32))])
    with pytest.raises(UnknownNameError, match="flow"):
        synthetic_frame_clips(specs=[InputSpec("flo", (32, 32))])
    with pytest.raises(UnknownNameError, match="12"):
        synthetic_videos(1, units=(3,))
    with pytest.raises(UnknownNameError, match="'clinic'"):
        synthetic_videos(1, domain="clinik")


def test_very_large_movement_stops_before_the_skin_folds():
    video = one(domain=CANONICAL, units=(7,), camera=STILL, amplify=50.0)
    u, v = video.expression_flow
    (uy, ux), (vy, vx) = np.gradient(u), np.gradient(v)
    assert ((1 + ux) * (1 + vy) - uy * vx).min() > 0.1
    assert np.hypot(u, v).max() > 1.5


def test_forty_frames_a_second_on_one_core():
    options = {"domain": "field", "seed": 1, "size": 224, "subjects": 2}
    started = time.process_time()
    drawn = sum(len(video.frames) for video in synthetic_videos(4, **options))
    # Processor time of all threads together, so that other work on the machine does not count.
    assert drawn / (time.process_time() - started) > 40


def test_importing_the_library_does_not_load_what_draws():
    code = "import sys, fsmer.data; print('cv2' in sys.modules, 'fsmer.synthetic.recordings' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]


def test_a_recording_that_was_saved_is_read_with_its_frames_and_rate(tmp_path: Path) -> None:
    recording = synthetic_recording(1, seed=1, size=(90, 120), frames_per_second=29.97)
    video = open_frames(recording.save(tmp_path / "drawn.mp4"))
    assert len(video) == len(recording) == 30
    assert video.frames_per_second == pytest.approx(29.97, abs=0.01)
    seen = np.asarray(next(iter(video)), np.float64)
    assert np.abs(seen - recording.frame(0)).mean() < 8
