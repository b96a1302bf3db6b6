"""Frames come out as they went in, whatever the file; what cannot be read is refused in one sentence."""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fsmer.data.images import has_deep_colours
from fsmer.datasets.folders import frame_files, list_frames, natural_order
from fsmer.errors import DataError, MediaError
from fsmer.preprocess.frame_source import FALLBACK_RATE, as_rgb, clean_timestamps
from fsmer.preprocess.reading import open_frames
from fsmer.preprocess.video_file import VideoFile

av = pytest.importorskip("av")
from numbered_videos import number_of, write_numbered  # noqa: E402

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
    with pytest.raises(IndexError, match=r"frame 40 .* 40 frames"):
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
    "text": (lambda data: b"no video, only words " * 40, r"a\.mp4"),
    "zero bytes": (lambda data: b"", "zero bytes"),
    "index cut off": (lambda data: data[: len(data) // 2], r"a\.mp4"),
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
    with pytest.raises(MediaError, match=r"\d+ of 40 frames.*damaged='keep'"):
        list(open_frames(path))
    kept = open_frames(path, damaged="keep")
    found = numbers(kept)
    # The last packet may be there in part, and its picture with it.
    assert found[:-1] == list(range(len(found) - 1))
    assert 5 < len(found) < 38
    assert any("breaks off" in sentence for sentence in kept.notes)


def test_a_missing_video_and_one_without_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"none\.mp4"):
        open_frames(tmp_path / "none.mp4")
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="no picture"):
        open_frames(path)


def test_a_video_can_be_sent_to_another_process(tmp_path: Path) -> None:
    import pickle

    video = open_frames(write_video(tmp_path / "a.mp4", 12))
    _ = video[3]
    assert numbers([pickle.loads(pickle.dumps(video))[5]]) == [5]


# -- videos: every container and codec --------------------------------------------------------------------------------

# Name, codec, and what else is told to the writer.
FORMATS = [
    ("h264.ts", "libx264", {"muxer": "mpegts", "b_frames": 0}),
    ("h264-b.ts", "libx264", {"muxer": "mpegts", "b_frames": 2}),
    ("h264-open.ts", "libx264", {"muxer": "mpegts", "options": {"x264-params": "open-gop=1"}}),
    ("hevc.ts", "libx265", {"muxer": "mpegts"}),
    ("mpeg2.ts", "mpeg2video", {"muxer": "mpegts", "b_frames": 2}),
    ("mpeg2.mpg", "mpeg2video", {"b_frames": 2}),
    ("mpeg1.mpg", "mpeg1video", {"b_frames": 2}),
    ("mpeg2.vob", "mpeg2video", {"muxer": "vob", "b_frames": 2}),
    ("mpeg2.mxf", "mpeg2video", {}),
    ("mpeg4.avi", "mpeg4", {"b_frames": 0}),
    ("mpeg4-b.avi", "mpeg4", {"b_frames": 2}),
    ("h264-b.avi", "libx264", {"b_frames": 2}),
    ("mjpeg.avi", "mjpeg", {"pixels": "yuvj420p"}),
    ("huffyuv.avi", "huffyuv", {"pixels": "yuv422p"}),
    ("h264.mp4", "libx264", {}),
    ("h264-refresh.mp4", "libx264", {"options": {"intra-refresh": "1"}}),
    ("hevc.mp4", "libx265", {}),
    ("mpeg4.mp4", "mpeg4", {"b_frames": 2}),
    ("av1.mp4", "libsvtav1", {}),
    ("h264.mov", "libx264", {}),
    ("prores.mov", "prores_ks", {"pixels": "yuv422p10le"}),
    ("hevc.mkv", "libx265", {}),
    ("ffv1.mkv", "ffv1", {}),
    ("vp8.webm", "libvpx", {}),
    ("vp9.webm", "libvpx-vp9", {}),
    ("vp8.ogv", "libvpx", {"muxer": "ogg"}),
    ("flv1.flv", "flv", {}),
    ("h264.flv", "libx264", {}),
    ("wmv2.wmv", "wmv2", {}),
    ("mpeg4.nut", "mpeg4", {"b_frames": 2}),
    ("gif.gif", "gif", {"pixels": "rgb8"}),
    ("raw.h264", "libx264", {}),
    ("raw.hevc", "libx265", {}),
    ("raw.mjpeg", "mjpeg", {"pixels": "yuvj420p"}),
    ("raw.y4m", "wrapped_avframe", {"muxer": "yuv4mpegpipe"}),
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Each format is written once."""
    folder = tmp_path_factory.mktemp("videos")
    more = {name: (codec, how) for name, codec, how in FORMATS}

    def written(name: str) -> Path:
        codec, how = more[name]
        if codec not in av.codecs_available:
            pytest.skip(f"this PyAV cannot write {codec}")
        path = folder / name
        return path if path.exists() else write_numbered(path, codec=codec, **how)

    return written


@pytest.mark.parametrize("name", [name for name, *_ in FORMATS])
@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 47), min_size=2, max_size=6))
def test_a_frame_by_index_is_that_of_a_pass_in_any_order_of_asking(
    videos: Callable[[str], Path], name: str, order: list[int]
) -> None:
    video = VideoFile(videos(name))
    assert len(video) == 48
    assert [number_of(video[index]) for index in order] == order
    # From nowhere, the far ones are reached by seeking.
    far = max(order)
    assert number_of(VideoFile(video.path)[far]) == far


@pytest.mark.parametrize("name", [name for name, *_ in FORMATS])
def test_a_pass_gives_every_frame_once_at_its_time(videos: Callable[[str], Path], name: str) -> None:
    video = VideoFile(videos(name))
    assert [number_of(frame) for frame in video] == list(range(48))
    assert video.frames_per_second == pytest.approx(25)
    np.testing.assert_allclose(video.timestamps, np.arange(48) / 25, atol=2e-3)
    assert not any("promises" in note or "damage" in note for note in video.notes)


@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mkv", "mpeg4.avi"])
def test_a_far_frame_of_an_indexed_file_is_reached_without_decoding_those_before_it(
    videos: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = VideoFile(videos(name))
    assert len(video) == 48
    decoded = []

    def counted(self: VideoFile, *parts: Any, **how: Any) -> Iterator[Any]:
        for one in whole(self, *parts, **how):
            decoded.append(one.pts)
            yield one

    whole = VideoFile._decoded
    monkeypatch.setattr(VideoFile, "_decoded", counted)
    assert number_of(video[46]) == 46
    # At most a key frame's distance.
    assert len(decoded) <= 12


# Formats, and how bytes are flipped: each was read in two ways, by several threads, by a seek to a frame that had been
# made from a damaged one, or by time stamps that the damage had changed.
@pytest.mark.parametrize(
    ("name", "seeds"),
    [("ffv1.mkv", (10, 14, 18)), ("vp9.webm", (6,)), ("h264-b.ts", (5, 27, 39)), ("hevc.mkv", (4, 6, 7, 38))],
)
def test_a_damaged_video_has_the_same_frames_by_index_as_in_a_pass_or_is_refused(
    videos: Callable[[str], Path], name: str, seeds: tuple[int, ...], tmp_path: Path
) -> None:
    sound = videos(name).read_bytes()
    for seed in seeds:
        content, drawn = bytearray(sound), random.Random(seed)
        for _ in range(4):
            content[drawn.randrange(len(sound) // 8, len(sound))] ^= 1 << drawn.randrange(8)
        path = tmp_path / f"{seed}-{name}"
        path.write_bytes(content)
        for damaged in ("refuse", "keep"):
            try:
                frames, video = list(VideoFile(path, damaged=damaged)), VideoFile(path, damaged=damaged)
                assert len(video) == len(frames) == len(video.timestamps)
                for index in (len(frames) - 1, len(frames) - 9, 0, len(frames) // 2):
                    np.testing.assert_array_equal(video[index], frames[index])
            except MediaError:
                continue


def test_frames_that_are_not_coded_are_no_damage(videos: Callable[[str], Path], tmp_path: Path) -> None:
    content = videos("mpeg4.avi").read_bytes()
    with av.open(str(videos("mpeg4.avi"))) as container:
        packet = [bytes(one) for one in container.demux() if one.size][30]
    # The head of a picture that says it was not coded, as MPEG-4 writes where nothing has changed: nothing is decoded.
    skipped = b"\x00\x00\x01\xb6\x50\xc0" + packet[6:]
    (tmp_path / "a.avi").write_bytes(content.replace(packet, skipped))
    video = VideoFile(tmp_path / "a.avi")
    assert len(video) == len(list(video)) == 47
    assert [number_of(video[index]) for index in (46, 29)] == [47, 29]


def test_frames_that_are_listed_and_do_not_come_are_damage(videos: Callable[[str], Path], tmp_path: Path) -> None:
    content = videos("h264.mov").read_bytes()
    with av.open(str(videos("h264.mov"))) as container:
        packet = [bytes(one) for one in container.demux() if one.size][47]
    # Filler in place of a picture: nothing is decoded, and no error is reported.
    size = len(packet)
    filler = (size - 4).to_bytes(4, "big") + b"\x0c" + b"\xff" * (size - 6) + b"\x80"
    before, _, after = content.rpartition(packet)
    (tmp_path / "b.mov").write_bytes(before + filler + after)
    with pytest.raises(MediaError, match=r"48 frames.*damaged='keep'"):
        list(VideoFile(tmp_path / "b.mov"))
    kept = VideoFile(tmp_path / "b.mov", damaged="keep")
    assert 40 < len(kept) == len(list(kept)) < 48


def test_pictures_of_a_format_without_a_decoder_are_refused(videos: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(
        videos("mpeg4.mp4").read_bytes().replace(b"mp4v", b"tmcd").replace(b" \x11", b"\xfe\x11")
    )
    with pytest.raises(MediaError, match="decode"):
        VideoFile(tmp_path / "a.mp4")


def test_frames_by_index_belong_to_whoever_asked(videos: Callable[[str], Path]) -> None:
    video = VideoFile(videos("h264.mp4"))
    frame = video[5]
    frame[:] = 0
    assert number_of(video[5]) == 5


def test_packets_that_are_never_shown_are_no_frames(tmp_path: Path) -> None:
    whole = write_numbered(tmp_path / "whole.webm", codec="libvpx")
    hidden = tmp_path / "hidden.webm"
    with av.open(str(whole)) as source, av.open(str(hidden), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                content = bytearray(packet)
                if number in (5, 30):
                    content[0] &= ~16
                copy = av.Packet(bytes(content))
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.is_keyframe, copy.stream = packet.is_keyframe, stream
                target.mux(copy)
    video = VideoFile(hidden)
    shown = [number for number in range(48) if number not in (5, 30)]
    assert [number_of(frame) for frame in video] == shown
    assert len(video) == 46
    assert number_of(VideoFile(hidden)[44]) == shown[44]


# -- videos: what the header says, and what is there -------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.2, 0.05])
@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "libx264"), ("b.webm", "libvpx"), ("c.avi", "mpeg4"), ("d.flv", "flv"), ("e.mp4", "libx264")],
)
def test_dropped_frames_are_no_damage(tmp_path: Path, name: str, codec: str, share: float) -> None:
    dropped = np.random.default_rng(0).random(100) < share
    dropped[[0, 99]] = False
    kept = np.flatnonzero(~dropped).tolist()
    video = open_frames(write_numbered(tmp_path / name, kept, codec=codec, b_frames=0))
    assert [number_of(frame) for frame in video] == kept
    assert video.frames_per_second == 25
    np.testing.assert_allclose(video.timestamps, np.array(kept) / 25, atol=2e-3)
    assert [note for note in video.notes if "varies" not in note] == []


@pytest.mark.parametrize(("rate", "milliseconds"), [(25, 40), (50, 20)])
def test_a_frame_rate_that_the_time_stamps_contradict_is_not_believed(
    tmp_path: Path, rate: int, milliseconds: int
) -> None:
    path = write_numbered(tmp_path / "a.webm", codec="libvpx", rate=1000, milliseconds=milliseconds)
    video = open_frames(path)
    assert video.frames_per_second == pytest.approx(rate)
    assert len(list(video)) == len(video) == 48


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.avi", "a.mkv"])
@pytest.mark.parametrize("left", [0, 5])
def test_a_frame_less_than_the_header_promises_is_noted(tmp_path: Path, name: str, left: int) -> None:
    path = write_numbered(
        tmp_path / name,
        range(12),
        codec="mpeg4",
        b_frames=0,
        muxer_options={"movflags": "faststart"} if name[-2] in "po" else {},
    )
    with av.open(str(path)) as container:
        last = max(packet.pos for packet in container.demux(video=0) if packet.size)
    path.write_bytes(path.read_bytes()[: last + left])
    video = open_frames(path)
    assert len(list(video)) == len(video)
    assert any("promises 12 frames, but 11 are there" in note or "damaged at 0.44 s" in note for note in video.notes)


@pytest.mark.parametrize(("shape", "width"), [(Fraction(4, 3), 128), (Fraction(8, 9), 85), (Fraction(1, 8), 96)])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_frames_have_square_pixels_as_a_viewer_shows_them(
    tmp_path: Path, name: str, shape: Fraction, width: int
) -> None:
    video = open_frames(write_numbered(tmp_path / name, range(40), pixel_shape=shape))
    assert video.size == (64, width)
    assert video[38].shape == (64, width, 3)
    assert number_of(video[38]) == 38
    # A shape that no camera has is left out, and said.
    assert any("taken as square" in note for note in video.notes) == (shape == Fraction(1, 8))


# -- videos: a path is a file, and no other is opened ------------------------------------------------------------------


def test_a_path_with_a_colon_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_numbered(tmp_path / "plain.mp4", range(4)).rename(tmp_path / "rec:1.mp4")
    monkeypatch.chdir(tmp_path)
    for path in ("rec:1.mp4", "./rec:1.mp4", Path("rec:1.mp4")):
        assert [number_of(frame) for frame in open_frames(path)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2,\nother.ts\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "ffconcat version 1.0\nfile other.ts\n"),
        ("list.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 33\n"),
    ],
)
def test_files_that_a_list_names_are_not_opened(tmp_path: Path, name: str, text: str) -> None:
    write_numbered(tmp_path / "other.ts", muxer="mpegts")
    (tmp_path / name).write_text(text)
    with pytest.raises(MediaError) as caught:
        open_frames(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["concat:a.mp4|b.mp4", "pipe:0", "http://127.0.0.1:9/a.mp4", "subfile:,,:a.mp4"])
def test_a_protocol_is_a_file_that_does_not_exist(name: str) -> None:
    with pytest.raises(MediaError, match="exist"):
        open_frames(name)


def test_pipes_and_devices_are_refused_unopened(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "a.mp4", tmp_path / "frames"
    folder.mkdir()
    os.mkfifo(pipe)
    os.mkfifo(folder / "1.png")
    with pytest.raises(MediaError, match="named pipe"):
        open_frames(pipe)
    with pytest.raises(MediaError, match="device"):
        open_frames(os.devnull)
    with pytest.raises(MediaError, match="named pipe"):
        _ = open_frames(folder)[0]


def test_pictures_that_are_too_large_are_refused_by_their_header(tmp_path: Path) -> None:
    Image.new("L", (9000, 1)).save(tmp_path / "1.png")
    content = bytearray((tmp_path / "1.png").read_bytes())
    content[20:24] = struct.pack(">I", 9000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    # Only the header is there: decoding would fail.
    (tmp_path / "1.png").write_bytes(content[:60])
    folder = open_frames(tmp_path)
    with pytest.raises(MediaError, match="9000x9000 pixels"):
        _ = folder[0]
    video = write_numbered(tmp_path / "large.avi", range(2), codec="huffyuv", pixels="yuv422p")
    content = bytearray(video.read_bytes())
    place = content.index(b"strf") + 12
    content[place : place + 8] = struct.pack("<ii", 20000, 20000)
    video.write_bytes(content)
    with pytest.raises(MediaError, match="67,108,864 pixels"):
        open_frames(video)


def test_a_picture_with_colour_numbers_and_no_colours_is_refused(tmp_path: Path) -> None:
    Image.new("P", (8, 8)).save(tmp_path / "1.png")
    content = (tmp_path / "1.png").read_bytes()
    place = content.index(b"PLTE") - 4
    size = 12 + int.from_bytes(content[place : place + 4], "big")
    (tmp_path / "1.png").write_bytes(content[:place] + content[place + size :])
    with pytest.raises(MediaError, match="image"):
        _ = open_frames(tmp_path)[0]


def test_a_picture_that_would_start_another_program_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(MediaError, match="image"):
        _ = open_frames(tmp_path)[0]


# -- folders ----------------------------------------------------------------------------------------------------------


def test_frames_of_a_folder_come_by_the_number_in_the_name(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    "names",
    [
        ["img1.png", "img9.png", "img10.png", "img100.png"],
        ["1_0.png", "2_0.png", "10_0.png"],
        ["0_0_9_40.png", "0_0_10_5.png", "0_0_10_40.png", "0_1_0_0.png", "1_0_0_0.png"],
        ["t0.92.png", "t0.96.png", "t1.00.png", "t10.04.png"],
        ["t0.0.png", "t0.04.png", "t0.2.png", "t0.96.png", "t1.0.png", "t10.0.png"],
        ["v1.8.png", "v1.9.png", "v1.10.png", "v2.1.png"],
        ["cam1.1.png", "cam1.2.png", "cam1.3.png", "cam1.9.png", "cam1.11.png", "cam1.12.png"],
        ["t0.45.png", "t0.5.png"],
        ["img1.png", "IMG2.png", "img3.png", "IMG10.png"],
        ["img007.png", "img8.png", "img0009.png"],
        ["apex.png", "onset.png", "img1.png", "img2.png"],
        ["a2.jp2", "a10.jp2"],
        ["00000000000000000000000001.png", "9" * 30 + ".png"],
    ],
    ids=lambda names: names[0],
)
def test_names_are_in_natural_order_over_all_their_numbers(names: list[str], tmp_path: Path) -> None:
    for seed in range(5):
        shuffled = list(np.random.default_rng(seed).permutation(names))
        assert natural_order(shuffled) == names
    # The two readers of folders agree wherever all names are of one form.
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    listed = [file.name for file in frame_files(tmp_path)]
    assert listed == [name for name in names if name in listed]
    assert len(listed) in (len(names), 0, 2)


def test_numbers_of_frames_are_those_that_rise(tmp_path: Path) -> None:
    for folder, names, numbers in (
        ("last", ["006_1.png", "006_2.png", "006_10.png"], [1, 2, 10]),
        ("first", ["1_0.png", "2_0.png", "10_0.png"], [1, 2, 10]),
        ("time", ["0_9_40.png", "0_10_5.png", "1_0_5.png"], [0, 1, 2]),
        ("long", ["1" * 30 + ".png", "2" * 30 + ".png"], [0, 1]),
        ("twice", ["img1.png", "img01.png", "img2.png"], [1, 1, 2]),
    ):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(b"x")
        assert list_frames(tmp_path / folder).numbers.tolist() == numbers


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


TWELVE = (np.arange(SIZE[1]) * 65).astype(np.uint16) * np.ones((SIZE[0], 1), np.uint16)
AS_EIGHT = np.rint(TWELVE / 4095 * 255).astype(np.uint8)


def written(path: Path, pixels: np.ndarray) -> Path:
    """The folder of a picture that is written in the depth of its values."""
    import cv2

    assert cv2.imwrite(str(path), pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return path.parent


@pytest.mark.parametrize("name", ["1.png", "1.tiff", "1.pgm"])
@pytest.mark.parametrize("colours", [1, 3])
def test_12_bits_in_16_are_read_by_the_range_that_is_stated_or_refused(tmp_path: Path, name: str, colours: int) -> None:
    pixels = TWELVE if colours == 1 else np.dstack([TWELVE, TWELVE[:, ::-1], TWELVE])
    expected = np.dstack([AS_EIGHT] * 3) if colours == 1 else np.dstack([AS_EIGHT, AS_EIGHT[:, ::-1], AS_EIGHT])
    folder = written(tmp_path / (name if colours == 1 else name.replace("pgm", "ppm")), pixels)
    for read in (lambda **how: open_frames(folder, **how)[0], lambda **how: open_frames([pixels], **how)[0]):
        with pytest.raises(MediaError, match="white=4095"):
            read()
        np.testing.assert_array_equal(read(white=4095), expected)
        with pytest.raises(MediaError, match="0 to 4095"):
            read(white=1023)
        # It may be a dark picture of 16 bits after all.
        assert read(white=65535).max() == 16


def test_a_dark_frame_beside_a_bright_one_of_16_bits_is_dark(tmp_path: Path) -> None:
    bright = np.full(SIZE, 40000, np.uint16)
    bright[0] = 0
    pixels = [bright, np.full(SIZE, 9000, np.uint16), bright]
    for number, one in enumerate(pixels):
        written(tmp_path / f"{number}.png", one)
    for source in (tmp_path, pixels, np.stack(pixels)):
        # Whichever frame is asked for first.
        assert open_frames(source)[1].max() == 35
        assert [frame_.max() for frame_ in open_frames(source)] == [156, 35, 156]
    assert [frame_.max() for frame_ in open_frames(iter(pixels))] == [156, 35, 156]
    # Nothing says how many bits a source has that begins with a dim frame.
    with pytest.raises(MediaError, match="white=4095"):
        _ = open_frames(pixels[1:])[1]


def test_16_bit_colours_are_known_by_every_version_of_pillow() -> None:
    assert has_deep_colours(SimpleNamespace(mode="RGB", tile=[("raw", (0, 0, 8, 8), 0, ("RGB;16B", 0, 1))]))
    assert not has_deep_colours(SimpleNamespace(mode="RGB", tile=[("raw", (0, 0, 8, 8), 0, ("RGB", 0, 1))]))


def test_a_range_that_the_file_states_is_used(tmp_path: Path) -> None:
    head = f"{SIZE[1]} {SIZE[0]} 4095\n".encode()
    (tmp_path / "1.pgm").write_bytes(b"P5 " + head + TWELVE.astype(">u2").tobytes())
    (tmp_path / "2.ppm").write_bytes(b"P6 " + head + np.dstack([TWELVE] * 3).astype(">u2").tobytes())
    for frame_ in open_frames(tmp_path):
        np.testing.assert_allclose(frame_[..., 1], AS_EIGHT, atol=1)


def test_16_bit_colours_and_their_orientation_are_kept(tmp_path: Path) -> None:
    deep = np.dstack([RAMP] * 3).astype(np.uint16) * 257
    np.testing.assert_array_equal(open_frames(written(tmp_path / "1.png", deep))[0], np.dstack([RAMP] * 3))


@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_stand_as_the_camera_says(tmp_path: Path, turn: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = turn
    image.save(tmp_path / "1.png", exif=exif)
    folder = open_frames(tmp_path)
    with Image.open(tmp_path / "1.png") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert folder.size == expected.shape[:2]
    np.testing.assert_array_equal(folder[0], expected)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_float_pictures_are_brightness_from_0_to_1(tmp_path: Path, kind: type) -> None:
    values = (RAMP / 255).astype(kind)
    np.testing.assert_array_equal(as_rgb(values), np.dstack([RAMP] * 3))
    if kind is np.float32:
        Image.fromarray(values).save(tmp_path / "1.tiff")
        np.testing.assert_array_equal(open_frames(tmp_path)[0], np.dstack([RAMP] * 3))
        Image.fromarray(values * 255).save(tmp_path / "1.tiff")
        with pytest.raises(MediaError, match=r"floats.* 0 to 255"):
            _ = open_frames(tmp_path)[0]
        np.testing.assert_array_equal(open_frames(tmp_path, white=255)[0], np.dstack([RAMP] * 3))


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.uint32, np.int64])
def test_integers_without_a_known_range_are_refused_and_never_wrap(tmp_path: Path, kind: type) -> None:
    values = (RAMP // 4).astype(kind)
    with pytest.raises(MediaError, match=f"{np.dtype(kind)}.*white"):
        as_rgb(values)
    np.testing.assert_array_equal(as_rgb(values, white=63)[..., 0], np.rint((RAMP // 4) * (255 / 63)))
    with pytest.raises(MediaError, match="0 to 63"):
        as_rgb(values, white=40)
    if kind is np.int32:
        Image.fromarray(RAMP.astype(np.int32) + 70000).save(tmp_path / "1.tiff")
        with pytest.raises(MediaError, match="70000 to 70255"):
            _ = open_frames(tmp_path)[0]


def test_16_bits_are_rounded_to_the_nearest_of_8() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    nearest = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    for order in ("<u2", ">u2"):
        np.testing.assert_array_equal(as_rgb(values.astype(order))[..., 0], nearest)


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "LA", "YCbCr"])
def test_pictures_of_every_mode_are_seen_as_pillow_shows_them(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.dstack([RAMP, RAMP[:, ::-1], RAMP])).convert(mode)
    image.save(tmp_path / "1.tiff" if mode in ("CMYK", "YCbCr") else tmp_path / "1.png")
    (read,) = open_frames(tmp_path)
    np.testing.assert_array_equal(read, np.asarray(image.convert("RGB")))


def test_a_video_of_16_bits_is_read_by_the_range_that_is_stated(tmp_path: Path) -> None:
    path = tmp_path / "deep.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "gray16le"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(TWELVE, format="gray16le")))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="white=4095"):
        open_frames(path)
    np.testing.assert_allclose(open_frames(path, white=4095)[1][..., 0], AS_EIGHT, atol=1)


def test_the_value_of_white_must_be_a_number_above_0() -> None:
    for white in (0, -1, float("nan"), float("inf")):
        with pytest.raises(DataError, match="value of white"):
            open_frames([frame(0)], white=white)


def test_floats_are_brightness_from_0_to_1() -> None:
    np.testing.assert_array_equal(as_rgb(RAMP / 255), np.dstack([RAMP] * 3))
    with pytest.raises(MediaError, match=r"floats.* 0 to 255"):
        as_rgb(RAMP.astype(float))
    with pytest.raises(MediaError, match="nan"):
        as_rgb(np.full(SIZE, np.nan))
    with pytest.raises(MediaError, match="int64"):
        as_rgb(RAMP.astype(np.int64))
    with pytest.raises(MediaError, match="channels last"):
        as_rgb(np.zeros((3, 48, 64), np.uint8))


def test_folders_with_nothing_usable_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no image"):
        open_frames(tmp_path)
    Image.fromarray(frame(0)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    folder = open_frames(tmp_path)
    with pytest.raises(MediaError, match=r"2\.png"):
        list(folder)


def test_frames_of_changing_size_are_refused_by_number(tmp_path: Path) -> None:
    for number, size in enumerate([SIZE, SIZE, (50, 64)]):
        Image.fromarray(frame(number, size)).save(tmp_path / f"{number}.png")
    message = "frame 2 .*50x64 .*48x64"
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
    with pytest.raises(DataError, match="again"):
        list(stream)
    with pytest.raises(DataError, match="number of frames"):
        len(stream)
    with pytest.raises(MediaError, match="no frame"):
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
    with pytest.raises(DataError, match=r"4 frames.*2 time stamps"):
        clean_timestamps([0, 1], 4)


@pytest.mark.parametrize("stamps", [[0, 0.04, 10], [0, 10, 10.04]])
def test_a_rate_is_found_where_no_interval_is_near_the_middle_one(stamps: list[float]) -> None:
    times, rate, _ = clean_timestamps(stamps, len(stamps))
    assert np.isfinite(times).all()
    assert rate == pytest.approx(25)


def test_a_frame_rate_must_be_a_rate() -> None:
    for rate in (0, -1, float("nan")):
        with pytest.raises(DataError, match="above 0"):
            open_frames([frame(0)], frames_per_second=rate)
