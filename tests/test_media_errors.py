"""A map that cannot be used is refused by the clip's name, on every way that leads to it."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fsmer.data import ClipSet, InputSpec, concat, read_clips, read_frame
from fsmer.errors import DataError, MediaError, SpecMismatchError

SIGNED = InputSpec(size=(6, 6), normalisation="signed")


def maps(n: int = 5) -> np.ndarray:
    return np.random.default_rng(0).random((n, 3, 6, 6), dtype=np.float32)


def spoilt(value: float, where: tuple = (3, 1)) -> np.ndarray:
    array = maps()
    array[where] = value
    return array


WAYS: dict[str, Callable[[ClipSet], object]] = {
    "media": lambda clips: clips.media(),
    "part": lambda clips: clips[::-1].media(),
    "read": lambda clips: clips.read("flow", [0, 3]),
    "batches": lambda clips: list(clips.batches(size=2)),
    "clip": lambda clips: [clip.flow for clip in clips],
    "concat": lambda clips: concat([clips[3:], clips[:3]])[::-1].media(),
    "from_clips": lambda clips: ClipSet.from_clips(list(clips)[::-1]).media(),
    "torch": lambda clips: list(clips.as_torch()),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_media_that_are_not_finite_name_clip_and_channel(way: str, value: float) -> None:
    clips = ClipSet.from_arrays(spoilt(value, (3, 1, 2, 2)), list("ababa"))
    with pytest.raises(MediaError, match=r"clip 'mine-3' of data set 'mine'.*channel 'v'"):
        WAYS[way](clips)


@pytest.mark.parametrize("way", WAYS)
def test_a_constant_channel_of_a_minmax_map_is_refused(way: str) -> None:
    with pytest.raises(MediaError, match=r"'mine-3'.*channel 'v'.*constant"):
        WAYS[way](ClipSet.from_arrays(spoilt(0.25), list("ababa")))


def test_signed_flow_may_have_a_still_channel_but_not_be_constant() -> None:
    clips = ClipSet.from_arrays(spoilt(0.0) * 40 - 20, list("ababa"), spec=SIGNED)
    assert clips.media().min() < -10
    with pytest.raises(MediaError, match=r"'mine-3'.*constant"):
        ClipSet.from_arrays(spoilt(0.0, (3,)), list("ababa"), spec=SIGNED).media()


def test_maps_outside_zero_to_one_say_how_to_scale_them() -> None:
    with pytest.raises(MediaError, match=r"'mine-0'.*0\.\.1.*255.*signed"):
        ClipSet.from_arrays(maps() * 255, list("ababa")).media()
    with pytest.raises(MediaError, match="'mine-0'"):
        ClipSet.from_arrays(maps() - 0.5, list("ababa")).media()
    overshoot = ClipSet.from_arrays(spoilt(1.0000005, (3, 1, 0, 0)), list("ababa"))
    assert overshoot.media().max() > 1


def test_asking_for_media_of_another_kind_says_what_is_held() -> None:
    clips = ClipSet.from_arrays(maps(), list("ababa"))
    with pytest.raises(SpecMismatchError, match=r"'frames' .*flow"):
        clips.media("frames")
    with pytest.raises(SpecMismatchError, match=r"clip 'mine-0' .*'frames' .*flow"):
        clips[0].read("frames")


# -- image files ------------------------------------------------------------------------------------------------------


def folder_of_maps(root: Path) -> Path:
    (root / "maps").mkdir()
    lines = ["clip,dataset,subject,label,file"]
    for row in range(5):
        pixels = np.random.default_rng(row).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "maps" / f"{row}.png")
        lines.append(f"c{row},mine,s{row % 2},{'ab'[row % 2]},maps/{row}.png")
    (root / "index.csv").write_text("\n".join(lines))
    return root


def write(pixels: np.ndarray, mode: str | None = None) -> Callable[[Path], object]:
    return lambda file: Image.fromarray(pixels, mode).save(file)


def header_only(height: int, width: int) -> bytes:
    """A PNG of this size without its pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (chunk, data)
    )


PIXELS = np.random.default_rng(9).integers(0, 256, (6, 6, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:60]), "image"),
        (lambda file: file.write_bytes(b""), "image"),
        (lambda file: file.write_text("no image"), "image"),
        (lambda file: (file.unlink(), file.mkdir()), "image"),
        (write(PIXELS[..., 0]), "mode L.*8-bit RGB"),
        (write(PIXELS), "mode RGBA.*8-bit RGB"),
        (write(PIXELS[:4, :, :3]), r"\(3, 4, 6\).*\(3, 6, 6\)"),
        (write(np.full((6, 6, 3), 128, np.uint8)), "constant"),
        (lambda file: file.unlink(), "exist"),
        (lambda file: (file.unlink(), os.mkfifo(file)), "named pipe"),
        (
            lambda file: file.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n"),
            "image",
        ),
        (lambda file: file.write_bytes(header_only(9000, 9000)), "9000x9000 pixels"),
        # Larger than the others is known before anything is decoded, which would fail here.
        (lambda file: file.write_bytes(header_only(600, 600)), r"\(3, 600, 600\)"),
        (lambda file: cv2.imwrite(str(file), np.full((6, 6, 3), 4000, np.uint16)), "16 bits.*8-bit"),
    ],
)
def test_an_unusable_image_file_names_the_clip(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    folder = folder_of_maps(tmp_path)
    clips = read_clips(folder)
    damage(folder / "maps" / "3.png")
    assert clips[:3].media().shape == (3, 3, 6, 6)
    with pytest.raises(MediaError, match=f"clip 'c3' of data set 'mine'.*{message}"):
        clips.media()
    with pytest.raises(MediaError, match=f"clip 'c3' of data set 'mine'.*{message}"):
        _ = clips[3].flow


def test_an_unusable_file_is_named_through_joins_and_single_clips(tmp_path: Path) -> None:
    folder = folder_of_maps(tmp_path)
    clips = read_clips(folder)
    (folder / "maps" / "3.png").write_text("no image")
    arrays = ClipSet.from_arrays(maps(2), ["a", "b"])
    joined = concat([arrays, clips[::-1]])
    assert joined[[0, 1, 2, 4]].media().shape == (4, 3, 6, 6)
    for whole in (joined, ClipSet.from_clips(list(joined)[::-1]), concat([joined[4:], joined[:4]])):
        with pytest.raises(MediaError, match=r"clip 'c3' of data set 'mine'.*image"):
            whole.media()


def test_a_missing_map_is_named_before_any_work_begins(tmp_path: Path) -> None:
    folder = folder_of_maps(tmp_path)
    (folder / "maps" / "3.png").unlink()
    with pytest.raises(MediaError, match=r"clip 'c3' of data set 'mine'.*3\.png"):
        read_clips(folder)


def test_an_unreadable_first_map_names_the_clip(tmp_path: Path) -> None:
    folder = folder_of_maps(tmp_path)
    (folder / "maps" / "0.png").write_text("no image")
    with pytest.raises(MediaError, match=r"clip 'c0' of data set 'mine'.*image"):
        read_clips(folder)


def test_arrays_of_different_size_in_a_table_name_the_clip() -> None:
    import pandas as pd

    frame = pd.DataFrame({"clip": ["a", "b"], "flow": [maps(1)[0], np.zeros((3, 2, 2))]})
    with pytest.raises(MediaError, match=r"clip 'b'.*\(3, 2, 2\).*\(3, 6, 6\)"):
        read_frame(frame, media="flow").media()


def test_media_errors_are_data_errors() -> None:
    assert issubclass(MediaError, DataError)
    assert issubclass(DataError, ValueError)


def test_a_first_map_that_is_too_large_is_refused_before_it_decides_on_the_size(tmp_path: Path) -> None:
    folder = folder_of_maps(tmp_path)
    (folder / "maps" / "0.png").write_bytes(header_only(9000, 9000))
    with pytest.raises(MediaError, match=r"clip 'c0' of data set 'mine'.*9000x9000 pixels"):
        read_clips(folder)
