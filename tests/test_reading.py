"""Frames come out as they went in, whatever the file; what cannot be read is refused in one sentence."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsmer.errors import DataError, MediaError
from fsmer.preprocess.reading import (
    FALLBACK_RATE,
    VideoFile,
    as_rgb,
    clean_timestamps,
    natural_order,
    open_frames,
)

av = pytest.importorskip("av")

SIZE = (48, 64)


def grey_of(number: int) -> int:
    return 30 + 5 * number


def frame(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Grey by its number, with a white corner at the upper left."""
    picture = np.full((*size, 3), grey_of(number), np.uint8)
    picture[: size[0] // 4, : size[1] // 4] = 255
    return picture


def write_video(
    path: Path,
    count: int = 40,
    *,
    size: tuple[int, int] = SIZE,
    codec: str = "mpeg4",
    rate: int = 30,
    stamps: list[int] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = 10
        stream.bit_rate = 4_000_000
        for number in range(count):
            picture = av.VideoFrame.from_ndarray(frame(number, size), format="rgb24")
            if stamps is not None:
                picture.pts = stamps[number]
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def numbers(frames) -> list[int]:
    """Which frames these are, told by their grey."""
    return [round((float(one[SIZE[0] // 2 :, SIZE[1] // 2 :].mean()) - 30) / 5) for one in frames]


# -- video files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "mpeg4"), ("b.mkv", "libx264"), ("c.avi", "mpeg4")])
def test_every_frame_is_reached_by_index_as_in_a_pass(tmp_path: Path, name: str, codec: str) -> None:
    video = open_frames(write_video(tmp_path / name, codec=codec))
    assert (len(video), video.size, video.frames_per_second) == (40, SIZE, 30)
    assert numbers(video) == list(range(40))
    order = [39, 3, 4, 20, 0, 38, 2]
    assert numbers(video[index] for index in order) == order
    assert numbers([video[-1]]) == [39]
    np.testing.assert_allclose(video.timestamps, np.arange(40) / 30, atol=1e-3)
    with pytest.raises(IndexError, match=r"frame 40 was asked for, but .* has 40 frames"):
        video[40]


def test_seeking_far_into_a_video_lands_on_the_frame_itself(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", 45, codec="libx264", options={"movflags": "faststart"})
    for index in (44, 41, 33):
        assert numbers([VideoFile(path)[index]]) == [index]


def test_paths_with_spaces_and_unicode_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "mit Leerzeichen, 表情"
    folder.mkdir()
    assert len(open_frames(write_video(folder / "vidéo 1.mp4", 5))) == 5


def rotated(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write another display matrix into the track header of an mp4."""
    data = bytearray(path.read_bytes())
    unit = 1 << 16
    plain = struct.pack(">9i", unit, 0, 0, 0, unit, 0, 0, 0, 1 << 30)
    place = data.index(plain, data.index(b"tkhd"))
    a, b, c, d = (unit * one for one in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [((0, 1, -1, 0), (0, -1)), ((-1, 0, 0, -1), (-1, -1)), ((0, -1, 1, 0), (-1, 0))],
    ids=["90 clockwise", "180", "90 counter-clockwise"],
)
def test_a_portrait_recording_stands_upright(tmp_path: Path, matrix, corner) -> None:
    video = open_frames(rotated(write_video(tmp_path / "phone.mp4", 4), matrix))
    upright = matrix[0] == 0
    assert video.size == (SIZE[::-1] if upright else SIZE)
    picture = video[2]
    assert picture.shape[:2] == video.size
    # The white corner of the upper left goes where the matrix sends it.
    assert picture[corner].mean() > 200
    others = {(0, 0), (0, -1), (-1, 0), (-1, -1)} - {corner}
    assert all(picture[place].mean() < 120 for place in others)


def test_a_variable_frame_rate_keeps_its_times_and_says_so(tmp_path: Path) -> None:
    stamps = [0, 1, 2, 3, 8, 9, 10, 15, 16, 17]
    video = open_frames(write_video(tmp_path / "vfr.mkv", 10, codec="libx264", stamps=stamps))
    np.testing.assert_allclose(video.timestamps, np.array(stamps) / 30, atol=2e-3)
    assert any("varies" in sentence for sentence in video.notes)
    assert open_frames(video.path, frames_per_second=50).frames_per_second == 50


def test_a_stream_without_times_is_counted_and_indexed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", 12, codec="libx264")
    video = open_frames(path)
    assert len(video) == 12
    assert numbers([video[7], video[2]]) == [7, 2]
    assert (np.diff(video.timestamps) > 0).all()


def test_an_8k_video_is_read_frame_by_frame(tmp_path: Path) -> None:
    video = open_frames(write_video(tmp_path / "8k.avi", 2, codec="mjpeg", size=(4320, 7680)))
    assert video.size == (4320, 7680)
    assert video[1][4000, 7000].mean() == pytest.approx(grey_of(1), abs=3)


DAMAGE = {
    "text": (lambda data: b"no video, only words " * 40, "cannot be opened as a video"),
    "zero bytes": (lambda data: b"", r"is empty \(zero bytes\)"),
    "index cut off": (lambda data: data[: len(data) // 2], "cannot be opened as a video"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_video_is_refused_in_one_sentence(tmp_path: Path, damage: str) -> None:
    path = write_video(tmp_path / "a.mp4")
    spoil, message = DAMAGE[damage]
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(MediaError, match=message) as caught:
        open_frames(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "options"), [("a.mkv", {}), ("a.avi", {}), ("a.mp4", {"movflags": "faststart"})])
def test_a_video_cut_short_raises_at_the_break_or_gives_what_is_there(tmp_path: Path, name, options) -> None:
    path = write_video(tmp_path / name, options=options)
    data = path.read_bytes()
    path.write_bytes(data[: int(0.7 * len(data))])
    with pytest.raises(MediaError, match=r"breaks off after \d+ of 40 frames.*cut short or damaged"):
        list(open_frames(path))
    kept = open_frames(path, damaged="keep")
    found = numbers(kept)
    # The last packet may be there in part, and its picture with it.
    assert found[:-1] == list(range(len(found) - 1))
    assert 5 < len(found) < 38
    assert any("breaks off" in sentence for sentence in kept.notes)


def test_a_missing_video_and_one_without_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"none\.mp4 does not exist"):
        open_frames(tmp_path / "none.mp4")
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="no picture track"):
        open_frames(path)


def test_a_video_can_be_sent_to_another_process(tmp_path: Path) -> None:
    import pickle

    video = open_frames(write_video(tmp_path / "a.mp4", 12))
    _ = video[3]
    assert numbers([pickle.loads(pickle.dumps(video))[5]]) == [5]


# -- folders ----------------------------------------------------------------------------------------------------------


def test_frames_of_a_folder_come_by_the_last_number_in_the_name(tmp_path: Path) -> None:
    for number in (2, 10, 9, 100):
        Image.fromarray(frame(number % 40)).save(tmp_path / f"reg_06_img{number}.png")
    (tmp_path / "Thumbs.db").write_text("stray")
    (tmp_path / "._reg_06_img3.png").write_text("stray")
    folder = open_frames(tmp_path)
    assert folder.files == tuple(f"reg_06_img{number}.png" for number in (2, 9, 10, 100))
    assert numbers(folder) == [2, 9, 10, 20]
    assert folder.frames_per_second == FALLBACK_RATE
    assert any("25 frames a second were assumed" in sentence for sentence in folder.notes)
    assert not open_frames(tmp_path, frames_per_second=200).notes


def test_natural_order_ignores_padding_and_suffix_digits() -> None:
    assert natural_order(["b10.jp2", "b9.jp2", "b009a.jp2", "cover.jp2"]) == [
        "cover.jp2",
        "b009a.jp2",
        "b9.jp2",
        "b10.jp2",
    ]


RAMP = np.linspace(0, 255, SIZE[1]).round().astype(np.uint8) * np.ones((SIZE[0], 1), np.uint8)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (RAMP, RAMP),
        (RAMP.astype(np.uint16) * 257, RAMP),
        (np.dstack([RAMP] * 3), RAMP),
        (np.dstack([RAMP, RAMP, RAMP, np.full_like(RAMP, 255)]), RAMP),
        (np.dstack([RAMP, RAMP, RAMP, np.full_like(RAMP, 0)]), np.zeros_like(RAMP)),
    ],
    ids=["grey 8", "grey 16", "colour", "opaque alpha", "transparent"],
)
def test_grey_colour_alpha_8_and_16_bit_give_the_same_picture(tmp_path: Path, pixels, expected) -> None:
    Image.fromarray(pixels).save(tmp_path / "1.png")
    np.testing.assert_array_equal(open_frames(tmp_path)[0], np.dstack([expected] * 3))
    np.testing.assert_array_equal(as_rgb(pixels), np.dstack([expected] * 3))


def test_floats_are_brightness_from_0_to_1() -> None:
    np.testing.assert_array_equal(as_rgb(RAMP / 255), np.dstack([RAMP] * 3))
    with pytest.raises(MediaError, match="holds floats from 0 to 255"):
        as_rgb(RAMP.astype(float))
    with pytest.raises(MediaError, match="holds floats from nan"):
        as_rgb(np.full(SIZE, np.nan))
    with pytest.raises(MediaError, match="int64"):
        as_rgb(RAMP.astype(np.int64))
    with pytest.raises(MediaError, match="move the channels last"):
        as_rgb(np.zeros((3, 48, 64), np.uint8))


def test_folders_with_nothing_usable_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="holds no image"):
        open_frames(tmp_path)
    Image.fromarray(frame(0)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    folder = open_frames(tmp_path)
    with pytest.raises(MediaError, match=r"2\.png cannot be read as an image"):
        list(folder)


def test_frames_of_changing_size_are_refused_by_number(tmp_path: Path) -> None:
    for number, size in enumerate([SIZE, SIZE, (50, 64)]):
        Image.fromarray(frame(number, size)).save(tmp_path / f"{number}.png")
    message = "frame 2 of .* is 50x64 pixels, but the first one is 48x64"
    with pytest.raises(MediaError, match=message):
        list(open_frames(tmp_path))
    with pytest.raises(MediaError, match=message):
        open_frames([frame(0), frame(1), frame(2, (50, 64))])[2]
    with pytest.raises(MediaError, match=message):
        list(open_frames(iter([frame(0), frame(1), frame(2, (50, 64))])))


# -- arrays, streams, times -------------------------------------------------------------------------------------------


def test_arrays_and_lists_are_frames() -> None:
    stack = np.stack([frame(number) for number in range(4)])
    for source in (stack, list(stack), stack[..., 0]):
        frames = open_frames(source)
        assert (len(frames), frames.size) == (4, SIZE)
        assert numbers(frames) == [0, 1, 2, 3]
    with pytest.raises(MediaError, match="empty"):
        open_frames([])
    with pytest.raises(MediaError, match=r"shape \(48, 64\)"):
        open_frames(np.zeros(SIZE, np.uint8))


def test_a_webcam_like_stream_is_read_once_in_bounded_memory() -> None:
    alive = []

    def camera():
        for number in range(30):
            alive.append(number)
            yield number / 20, frame(number)

    stream = open_frames(camera())
    assert stream.count is None
    assert stream.size == SIZE
    assert len(alive) == 1
    for index, picture in enumerate(stream):
        assert len(alive) == index + 1
        assert numbers([picture]) == [index]
    assert stream.frames_per_second == pytest.approx(20)
    np.testing.assert_allclose(stream.timestamps, np.arange(30) / 20)
    with pytest.raises(DataError, match="cannot be read again"):
        list(stream)
    with pytest.raises(DataError, match="not known before its end"):
        len(stream)
    with pytest.raises(MediaError, match="gave no frame"):
        _ = open_frames(iter([])).size


def test_bad_time_stamps_are_filled_from_their_neighbours() -> None:
    nan = float("nan")
    times, rate, notes = clean_timestamps([nan, 10.1, 10.2, nan, 10.4, 10.4, 10.3, 10.7, nan], 9)
    np.testing.assert_allclose(times, np.arange(9) / 10, atol=1e-9)
    assert rate == pytest.approx(10)
    assert "5 of 9 time stamps" in notes[0]
    for hopeless in (None, [nan] * 4, [1.0] * 4):
        times, rate, notes = clean_timestamps(hopeless, 4)
        np.testing.assert_allclose(times, np.arange(4) / FALLBACK_RATE)
        assert notes
    assert clean_timestamps(None, 4, 100.0)[1:] == (100.0, [])
    with pytest.raises(DataError, match="4 frames but 2 time stamps"):
        clean_timestamps([0, 1], 4)


def test_a_frame_rate_must_be_a_rate() -> None:
    for rate in (0, -1, float("nan")):
        with pytest.raises(DataError, match="frames a second above 0"):
            open_frames([frame(0)], frames_per_second=rate)
