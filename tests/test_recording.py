"""Prediction on a recording: the promised JSON, the picture, streams, and one sentence for what is no recording."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fsmer
from fsmer.backbones import Backbone
from fsmer.cli.app import app
from fsmer.deploy.recording import RecordingReader, predict_recording
from fsmer.deploy.recording_prediction import NO_EXPRESSION, RecordingPrediction
from fsmer.errors import DataError, MediaError, OutputError, SupportError
from fsmer.preprocess.faces import NoFaceError
from fsmer.preprocess.flow import FLOW_METHODS
from fsmer.synthetic.drawn_recording import SyntheticRecording
from fsmer.synthetic.recordings import synthetic_recording
from fsmer.synthetic.scene import Camera, Scene

FPS = 25.0


def write_video(path: Path, frames: Any, fps: int = 25) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.bit_rate = 4_000_000
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def smile() -> SyntheticRecording:
    return synthetic_recording(
        4.5,
        domain="lab",
        seed=3,
        size=(240, 320),
        frames_per_second=FPS,
        scene=Scene((160.0, 125.0), 96.0, 3.0),
        units=[[12]],
        rest=(1.5, 1.6),
        amplify=2.5,
        camera=Camera(noise=1.5, light=0.005, head=0.1, blinks=0.0),
    )


@pytest.fixture(scope="module")
def video(smile: SyntheticRecording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("vidéo mit Leerzeichen") / "my smile.mp4", smile)


@pytest.fixture(scope="module")
def prediction(video: Path) -> RecordingPrediction:
    return predict_recording(video)


def test_a_smile_is_found_at_its_time_with_its_class_and_action_unit(
    smile: SyntheticRecording, prediction: RecordingPrediction
) -> None:
    assert len(smile.intervals) == 1
    (found,) = prediction.intervals
    true = smile.intervals[0]
    assert abs(found.onset_s - true.onset / FPS) < 0.17
    assert abs(found.apex_s - true.apex / FPS) < 0.13
    assert abs(found.offset_s - true.offset / FPS) < 0.17
    assert found.label == prediction.label == "positive"
    assert 12 in found.aus
    assert "corners of the mouth" in found.words


def test_the_json_object_has_exactly_the_promised_keys(
    smile: SyntheticRecording, prediction: RecordingPrediction
) -> None:
    said = json.loads(prediction.to_json())
    assert list(said) == ["fps", "frames", "faces", "intervals"]
    assert said["fps"] == FPS
    assert said["frames"] == len(smile)
    assert said["faces"] == len(smile)
    (one,) = said["intervals"]
    assert list(one) == ["onset_s", "apex_s", "offset_s", "label", "probabilities", "aus"]
    assert 0 <= one["onset_s"] < one["apex_s"] <= one["offset_s"] <= len(smile) / FPS
    assert set(one["probabilities"]) == {"negative", "positive", "surprise"}
    assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert max(one["probabilities"], key=one["probabilities"].get) == one["label"]
    assert all(isinstance(number, int) for number in one["aus"])


def test_the_folder_holds_picture_json_and_csv(prediction: RecordingPrediction, tmp_path: Path) -> None:
    files = prediction.save(tmp_path / "new" / "answer")
    assert sorted(path.name for path in (tmp_path / "new" / "answer").iterdir()) == [
        "intervals.csv",
        "recording.json",
        "timeline.png",
    ]
    assert json.loads(files["json"].read_text(encoding="utf-8")) == prediction.to_dict()
    table = pd.read_csv(files["csv"], dtype={"aus": str})
    assert table["label"].tolist() == ["positive"]
    assert "12" in table["aus"][0].split("+")
    with Image.open(files["picture"]) as picture:
        assert min(picture.size) > 500
        # Thumbnails are in colour, not only lines on white.
        assert np.asarray(picture.convert("RGB")).std() > 20


def test_a_folder_that_cannot_be_written_is_one_sentence(prediction: RecordingPrediction, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        prediction.save(blocked / "answer")


def test_a_webcam_gives_intervals_as_they_end(smile: SyntheticRecording) -> None:
    given: list[int] = []

    def camera() -> Any:
        for number, frame in enumerate(smile):
            given.append(number)
            yield 100.0 + number / FPS, frame

    reader = RecordingReader(camera())
    (first,) = [(one, len(given)) for one in reader][:1]
    interval, frames_read = first
    assert frames_read < len(smile)
    assert abs(interval.apex_s - smile.intervals[0].apex / FPS) < 0.13
    assert reader.prediction.fps == pytest.approx(FPS)
    assert reader.prediction.frames == len(smile)
    assert reader.prediction.intervals == (interval,)


def test_bad_stamps_of_a_stream_are_mended(smile: SyntheticRecording) -> None:
    stamps = [number / FPS for number in range(40)]
    stamps[20], stamps[30] = float("nan"), 0.1
    reader = RecordingReader((stamp, smile.frame(number)) for number, stamp in enumerate(stamps))
    assert list(reader) == []
    times = reader.prediction.trace[0]
    assert np.all(np.diff(times) > 0)
    assert reader.prediction.fps == pytest.approx(FPS)


def test_nothing_moved_is_no_expression(smile: SyntheticRecording) -> None:
    found = predict_recording([smile.frame(0)] * 50)
    assert found.intervals == ()
    assert found.label == NO_EXPRESSION
    assert NO_EXPRESSION in found.summary()
    assert found.to_dict()["intervals"] == []
    assert found.to_frame().empty
    assert found.figure().axes


def test_progress_is_told(smile: SyntheticRecording) -> None:
    told: list[tuple[int, int]] = []
    predict_recording([smile.frame(0)] * 10, progress=lambda done, total: told.append((done, total)))
    assert told == [(number, 10) for number in range(1, 11)]


def test_other_classes_can_be_asked_for(video: Path) -> None:
    found = predict_recording(video, classes=["12", "brow lowerer", "1+2"])
    assert found.intervals[0].label == "12"
    with pytest.raises(SupportError, match="two"):
        predict_recording(video, classes=["12"])


@pytest.fixture
def estimates(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the flow methods that are called on whole face crops."""
    called: list[str] = []
    for name, method in FLOW_METHODS.items():
        whole = method.__call__

        def counted(self: Any, first: Any, second: Any, name: str = name, whole: Any = whole) -> Any:
            called.extend([name] if first.shape == (224, 224) else [])
            return whole(self, first, second)

        monkeypatch.setattr(method, "__call__", counted)
    return called


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the backbones that are loaded."""
    names: list[str] = []
    whole = Backbone.from_pretrained.__func__

    def counted(cls: Any, *args: Any, **options: Any) -> Any:
        names.append(cls.name)
        return whole(cls, *args, **options)

    monkeypatch.setattr(Backbone, "from_pretrained", classmethod(counted))
    return names


def fitted(name: str) -> fsmer.Recognizer:
    backbone = fsmer.load_model(name) if name == "facs-flow" else fsmer.create_model(name)
    return fsmer.adapt(backbone, fsmer.synthetic_clips("lab", 6, seed=1, specs=backbone.input_specs))


def test_flow_of_a_movement_is_computed_once_a_method_and_the_model_loaded_once(
    video: Path, estimates: list[str], loaded: list[str]
) -> None:
    assert len(predict_recording(video).intervals) == 1
    assert (estimates, loaded) == (["dis"], ["facs-flow"])


def test_a_recognizer_on_the_shipped_network_needs_no_second_one(
    video: Path, estimates: list[str], loaded: list[str]
) -> None:
    recognizer = fitted("facs-flow")
    loaded.clear()
    (one,) = predict_recording(video, recognizer).intervals
    assert 12 in one.aus
    # Its own media by the default recipe, and one for the action units and the picture.
    assert (sorted(estimates), loaded) == (["dis", "farneback"], [])


def test_facs_flow_is_loaded_beside_another_network_once_a_face_moves(
    smile: SyntheticRecording, video: Path, prediction: RecordingPrediction, estimates: list[str], loaded: list[str]
) -> None:
    recognizer = fitted("ststnet")
    loaded.clear()
    predict_recording([smile.frame(0)] * 10, recognizer)
    assert loaded == []
    (one,) = predict_recording(video, recognizer).intervals
    assert loaded == ["facs-flow"]
    assert len(estimates) == len(set(estimates)) == 2
    assert one.unit_probabilities == prediction.intervals[0].unit_probabilities


def test_action_units_of_a_network_that_was_moved_are_those_of_the_shipped_one(
    video: Path, prediction: RecordingPrediction, loaded: list[str]
) -> None:
    recognizer = fitted("facs-flow")
    with torch.no_grad():
        next(recognizer.backbone.parameters()).mul_(1.5)
    (one,) = predict_recording(video, recognizer).intervals
    assert one.unit_probabilities == prediction.intervals[0].unit_probabilities


def test_a_saved_recognizer_answers_with_its_own_classes(video: Path, tmp_path: Path) -> None:
    from fsmer.transfer import recognizer_of_words

    folder = recognizer_of_words("facs-flow", {"smile": "6+12", "frown": "4"}).save(tmp_path / "smiles")
    (one,) = predict_recording(video, folder).intervals
    assert one.label == "smile"
    assert set(one.probabilities) == {"smile", "frown"}
    # Action units come from the shipped model.
    assert 12 in one.aus


def test_a_recording_without_a_face_says_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wall = np.full((120, 160, 3), 128, np.uint8)
    frames = [np.clip(wall + rng.normal(0, 3, wall.shape), 0, 255).astype(np.uint8) for _ in range(12)]
    with pytest.raises(NoFaceError, match=r"no face .* 12 frames .*wall\.mp4"):
        predict_recording(write_video(tmp_path / "wall.mp4", frames))


def test_of_several_faces_the_largest_is_watched_or_the_one_asked_for(smile: SyntheticRecording) -> None:
    other = smile.frame(0)[:, :, ::-1]
    small = np.full((240, 220, 3), 90, np.uint8)
    small[40:202, 2:218] = cv2.resize(other, (216, 162), interpolation=cv2.INTER_AREA)
    frames = [np.hstack([smile.frame(number), small]) for number in range(len(smile))]
    assert [one.label for one in predict_recording(frames).intervals] == ["positive"]
    assert predict_recording(frames, which=1).intervals == ()
    with pytest.raises(NoFaceError, match=r"face 2 .* 12 frames"):
        predict_recording(frames[:12], which=2)


def test_a_face_lost_half_way_is_said_in_faces(smile: SyntheticRecording) -> None:
    wall = np.full_like(smile.frame(0), 90)
    found = predict_recording([*(smile.frame(number) for number in range(60)), *[wall] * 60])
    assert found.frames == 120
    assert 55 <= found.faces <= 62
    assert "a face in 5" in found.summary()
    assert all(one.offset_s <= 60 / FPS for one in found.intervals)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_frames_are_one_sentence(smile: SyntheticRecording, count: int) -> None:
    with pytest.raises(MediaError, match=rf"{count} frames?\b"):
        predict_recording([smile.frame(0)] * count)


def test_what_is_no_recording_is_one_sentence(smile: SyntheticRecording, tmp_path: Path) -> None:
    empty, text, photo = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "photo.png"
    empty.write_bytes(b"")
    text.write_text("this is no video, only words.\n" * 50)
    Image.fromarray(smile.frame(0)).save(photo)
    for source, words in (
        (empty, "zero bytes"),
        (text, r"text\.mp4"),
        (photo, "1 frame"),
        (tmp_path / "none.mp4", r"none\.mp4"),
        (iter(()), "no frame"),
        (iter([smile.frame(0), smile.frame(0)[:100]]), "100x320 .*240x320"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            predict_recording(source)
        assert "\n" not in str(caught.value)


def test_a_file_cut_short_is_one_sentence(video: Path, tmp_path: Path) -> None:
    whole = video.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="cut short"):
        predict_recording(cut)


def test_nothing_half_done_is_left_when_there_is_no_room_for_the_answer(
    prediction: RecordingPrediction, tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Every write beyond this fails, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"timeline\.png") as caught:
            prediction.save(tmp_path / "answer")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
    assert prediction.save(tmp_path / "answer")["picture"].stat().st_size > 20_000


def test_a_video_turned_by_its_metadata_is_read_upright(smile: SyntheticRecording, tmp_path: Path) -> None:
    import av

    # Telephones write the picture lying down, and a matrix that says so.
    path = write_video(tmp_path / "lying.mp4", [np.rot90(smile.frame(number)) for number in range(30)])
    turned = tmp_path / "turned.mp4"
    data = bytearray(path.read_bytes())
    one = (1 << 16).to_bytes(4, "big")
    identity = one + bytes(12) + one + bytes(12) + (1 << 30).to_bytes(4, "big")
    start = data.find(b"tkhd")
    where = data.find(identity, start)
    assert start > 0
    assert where > 0
    minus = (-(1 << 16) & 0xFFFFFFFF).to_bytes(4, "big")
    quarter = bytes(4) + one + bytes(4) + minus + bytes(16) + (1 << 30).to_bytes(4, "big")
    assert len(quarter) == len(identity)
    data[where : where + len(quarter)] = quarter
    turned.write_bytes(bytes(data))
    with av.open(str(turned)) as container:
        assert abs(next(container.decode(video=0)).rotation) == 90
    found = predict_recording(turned)
    assert found.faces == found.frames == 30
    with pytest.raises(NoFaceError):
        predict_recording(path)


def test_frames_of_8k_stay_out_of_memory() -> None:
    import tracemalloc

    face = synthetic_recording(
        1.0, size=(240, 426), frames_per_second=10.0, scene=Scene((213.0, 125.0), 96.0), camera=Camera.perfect(), seed=3
    ).frame(0)
    large = np.repeat(np.repeat(face, 18, axis=0), 18, axis=1)
    assert large.shape == (4320, 7668, 3)
    reader = RecordingReader((number / 10, large) for number in range(6))
    tracemalloc.start()
    try:
        assert list(reader) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reader.prediction.faces == 6
    # No second copy of a frame at its full size, whatever is kept of how many.
    assert peak < large.nbytes


@pytest.mark.slow
def test_action_units_end_to_end_are_not_far_below_those_of_the_true_flow() -> None:
    from benchmarks.recording import accuracy

    scores = accuracy(6, seed=77)
    every = np.ones(len(scores.labels), bool)
    assert scores.spotted.mean() > 0.7
    assert scores.false / scores.minutes < 1.5
    assert scores.unit_f1("found", every) > scores.unit_f1("direct", every) - 0.22
    assert scores.unit_f1("found", scores.spotted) > scores.unit_f1("direct", scores.spotted) - 0.15


# ---- the command


def test_the_command_prints_one_json_object_and_writes_the_folder(video: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["predict", str(video), "--out", str(tmp_path / "answer"), "--json"])
    assert said.exit_code == 0, said.output
    answer = json.loads(said.stdout)
    assert set(answer) == {"fps", "frames", "faces", "intervals"}
    (interval, *_) = answer["intervals"]
    assert set(interval) >= {"onset_s", "apex_s", "offset_s", "label", "probabilities", "aus"}
    assert {path.name for path in (tmp_path / "answer").iterdir()} == {
        "timeline.png",
        "recording.json",
        "intervals.csv",
    }
    assert json.loads((tmp_path / "answer" / "recording.json").read_text()) == answer


def test_the_command_watches_the_face_that_is_asked_for(video: Path, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["predict", str(video), "--face", "4", "--json"])
    assert found.exit_code == 2
    assert "face 4 was asked for" in found.stderr
    found = CliRunner().invoke(app, ["predict", str(tmp_path), "--data", "synthetic:lab:3", "--face", "1"])
    assert found.exit_code == 2
    assert "leave it out with --data" in found.stderr


def test_the_command_exits_with_2_and_the_word_face_where_there_is_none(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (8, 120, 160, 3), dtype=np.uint8)
    path = write_video(tmp_path / "noise.mp4", noise)
    said = CliRunner().invoke(app, ["predict", str(path), "--json"])
    assert said.exit_code == 2
    assert "face" in said.stderr
    assert said.stderr.count("\n") == 1
    assert said.stdout == ""


def test_the_command_refuses_what_is_no_recording_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "words.mp4").write_text("no video at all")
    (tmp_path / "empty.mp4").write_bytes(b"")
    weights = fsmer.create_model("facs-flow").save_pretrained(tmp_path / "weights")
    for source in (tmp_path / "words.mp4", tmp_path / "empty.mp4", tmp_path / "nowhere.mp4", weights):
        said = CliRunner().invoke(app, ["predict", str(source)])
        assert said.exit_code == 1, said.output
        assert said.stderr.count("\n") == 1
