"""Frames of a recording, one after the other or by index: video files, folders of images, arrays and live streams."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.data.images import FRAME_PIXELS, has_deep_colours, opened_image
from fsmer.datasets.folders import natural_order
from fsmer.errors import DataError, MediaError
from fsmer.io import check_regular

__all__ = [
    "ArrayFrames",
    "FrameSource",
    "ImageFolder",
    "StreamFrames",
    "VideoFile",
    "as_rgb",
    "clean_timestamps",
    "natural_order",
    "open_frames",
]

Frame = NDArray[np.uint8]
Damaged = Literal["refuse", "keep"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
# EXIF's tag of a camera's turn, and its values for pictures that lie on their side, that are read from right to left
# and from bottom to top (after they were laid upright).
ORIENTATION = 0x0112
SIDEWAYS, LEFTWARDS, UPWARDS = frozenset({5, 6, 7, 8}), frozenset({2, 3, 6, 7}), frozenset({3, 4, 7, 8})
# 16-bit values that stay below it use no more than 14 bits: a camera's raw values rather than a dark picture.
DIM = 1 << 14
# What is assumed when nobody knows the rate: the slowest of the cameras that the databases were recorded with.
FALLBACK_RATE = 25.0
# Random access reads on from where it stands when the wanted frame is this near; seeking costs a key frame's distance.
READ_ON = 32
# Pictures whose time stamps are compared with those of the packets before the packets are trusted.
PROBED = 8
# Bytes that FFmpeg asks of a file at once.
BUFFER = 1 << 18
# Containers that begin within so many seconds count their duration from 0, others from their first frame.
LATE_START = 0.5
# Width of a pixel in its heights that a camera may have; anything else is a damaged header.
PIXEL_SHAPES = (Fraction(1, 4), Fraction(4))
# Frames kept after reading, so that asking twice for the same few frames decodes them once.
KEPT_FRAMES = 4


class _NoLengthError(DataError, TypeError):
    # A TypeError as well: `list` asks for the length as a mere hint and goes on without it.
    """The number of frames is not known."""


class FrameSource(ABC):
    """Frames of one recording as 8-bit RGB arrays of shape ``(height, width, 3)``, all of one size.

    Iterate for a pass in bounded memory, index for single frames. ``len`` works where the number of frames can be
    known without reading them all (not for streams).

    Attributes
    ----------
    name : str
        What messages call it.
    notes : list of str
        What had to be assumed or mended while reading, one sentence each.
    """

    name: str
    notes: list[str]
    _white: float | None = None
    _deep_white: float | None = None

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, as a viewer sees them (after the rotation flag)."""

    @property
    @abstractmethod
    def count(self) -> int | None:
        """Number of frames; None where it cannot be known beforehand."""

    @property
    @abstractmethod
    def timestamps(self) -> NDArray[np.float64]:
        """Seconds since the first frame, strictly increasing, one entry a frame."""

    @property
    @abstractmethod
    def frames_per_second(self) -> float:
        """Frame rate: as told, else of the file, else of the time stamps, else 25 (said in `notes`)."""

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...

    @abstractmethod
    def _frame(self, index: int) -> Frame:
        """Frame `index`, 0 <= index < count."""

    def __len__(self) -> int:
        if self.count is None:
            raise _NoLengthError(f"{self.name} is a stream, so its number of frames is not known before its end.")
        return self.count

    def __getitem__(self, index: int) -> Frame:
        count = len(self)
        place = int(index) + (count if index < 0 else 0)
        if not 0 <= place < count:
            raise IndexError(f"frame {index} was asked for, but {self.name} has {count} frames.")
        return self._frame(place)

    def read(self, indices: Sequence[int] | None = None) -> Frame:
        """Several frames at once (default: all), uint8 of shape ``(n, height, width, 3)``."""
        if indices is None:
            return np.stack(list(self))
        return np.stack([self[index] for index in indices])

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _rgb(self, image: ArrayLike, name: str) -> Frame:
        """An image as `as_rgb` gives it; the first one of 16 bits says how all of the source are read."""
        array, white = np.asarray(image), self._white
        if white is None and array.dtype == np.uint16:
            # Beside a frame of more than 14 bits, a dim one is dark.
            if self._deep_white is None and _colours(array).max(initial=0) >= DIM:
                self._deep_white = 65535.0
            white = self._deep_white
        return as_rgb(array, name, white)

    def _checked(self, frame: Frame, number: int) -> Frame:
        if frame.shape[:2] != self.size:
            height, width = self.size
            raise MediaError(
                f"frame {number} of {self.name} is {frame.shape[0]}x{frame.shape[1]} pixels, but the first one is "
                f"{height}x{width}; the frames of one clip must have one size, so crop or resize them first."
            )
        return frame


def as_rgb(frame: ArrayLike, name: str = "the frame", white: float | None = None) -> Frame:
    """Any image as 8-bit RGB of shape ``(height, width, 3)``.

    Parameters
    ----------
    frame : array of shape (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4)
        Grey, grey with alpha, RGB or RGBA; integers, floats or bool. Transparent parts become black.
    name : str
        What messages call it.
    white : float, optional
        The value of white, where black is 0, e.g. 4095 for 12 bits in a 16-bit type. Default: 255 for uint8, 65535 for
        uint16, 1 for floats and bool; other integers have none.

    Raises
    ------
    MediaError
        Another shape or type, values outside the range, or 16-bit values so low that the range must be another one.
    """
    array = np.asarray(frame)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in array.shape:
        raise MediaError(
            f"{name} has shape {array.shape}, but an image is (height, width) or (height, width, channels) with 1 to "
            "4 channels; move the channels last."
        )
    if array.dtype != np.uint8 or white not in (None, 255):
        array = _eight_bit(array, name, white)
    if array.shape[2] in (2, 4):
        colour, alpha = array[..., :-1].astype(np.uint16), array[..., -1:].astype(np.uint16)
        array = ((colour * alpha + 127) // 255).astype(np.uint8)
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return cast(Frame, np.ascontiguousarray(array))


def _colours(image: NDArray[Any]) -> NDArray[Any]:
    """The channels of an image without alpha."""
    return image[..., :-1] if image.ndim == 3 and image.shape[2] in (2, 4) else image


def _eight_bit(array: NDArray[Any], name: str, white: float | None) -> NDArray[np.uint8]:
    """Values from 0 to `white` as 0 to 255; only colours must stay within, as alpha may have a range of its own."""
    kind, bits = array.dtype.kind, 8 * array.dtype.itemsize
    if kind not in "buif":
        raise MediaError(f"{name} holds values of type {array.dtype}; give uint8, uint16 or floats in 0..1.")
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    low, high = float(_colours(array).min()), float(_colours(array).max())
    top = white
    if top is None:
        if kind in "ui" and (kind, bits) not in (("u", 8), ("u", 16)):
            raise MediaError(
                f"{name} holds values of type {array.dtype} from {low:g} to {high:g}, whose range is not known; state "
                "the value of white (white=4095 for 12 bits), or give uint8, uint16 or floats in 0..1."
            )
        top = 1.0 if kind == "f" else float(2**bits - 1)
        if kind == "u" and 0 < high < DIM:
            raise MediaError(
                f"{name} holds 16-bit values up to {high:g} only, which would be nearly black; open it by "
                "open_frames(..., white=4095) if it has 12 bits, or white=65535 if it is so dark; for tables and the "
                "command line, save it with 8 bits."
            )
    if not (low >= -1e-3 * top and high <= top * (1 + 1e-3)):
        values = "floats" if kind == "f" else "values"
        advice = "divide 8-bit values by 255" if top == 1 else "state the right value of white"
        raise MediaError(
            f"{name} holds {values} from {low:g} to {high:g}, but 0 (black) to {top:g} (white) is expected; {advice}."
        )
    wide = array.astype(np.promote_types(array.dtype, np.float32), copy=False)
    return np.rint(np.clip(wide, 0, top) * (255 / top)).astype(np.uint8)


def clean_timestamps(
    seconds: ArrayLike | None, count: int, frames_per_second: float | None = None
) -> tuple[NDArray[np.float64], float, list[str]]:
    """Make time stamps usable: strictly increasing from 0, gaps and NaN filled in.

    Parameters
    ----------
    seconds : sequence of count floats, or None
        As recorded; NaN, infinity, repeated and backward stamps are replaced by interpolation between their
        neighbours (at the ends: continued at the median rate).
    count : int
        Number of frames.
    frames_per_second : float, optional
        The rate where it is known.

    Returns
    -------
    times : float64 array of shape (count,)
    rate : float
        Frames a second: as given, else the usual distance of the stamps, else 25.
    notes : list of str
        What was assumed or mended.
    """
    notes: list[str] = []
    known = frames_per_second is not None and np.isfinite(frames_per_second) and frames_per_second > 0
    rate = float(cast(float, frames_per_second)) if known else 0.0
    if seconds is None and known:
        return np.arange(count) / rate, rate, notes
    stamps = np.full(count, np.nan) if seconds is None else np.array(seconds, np.float64)
    if stamps.shape != (count,):
        raise DataError(f"there are {count} frames but {stamps.size} time stamps; give one a frame.")
    stamps[~np.isfinite(stamps)] = np.nan
    # A stamp counts when it is later than every one before it.
    before = np.fmax.accumulate(np.concatenate([[-np.inf], stamps]))[:-1]
    good = np.flatnonzero(stamps > before)
    intervals = np.diff(stamps[good]) / np.diff(good) if len(good) > 1 else np.array([])
    if not known and len(intervals):
        rate = 1.0 / float(_usual(intervals).mean())
    if rate <= 0:
        rate = FALLBACK_RATE
        notes.append(f"the frame rate is unknown; {FALLBACK_RATE:g} frames a second were assumed.")
    if len(good) < 2:
        if seconds is not None and count > 1:
            notes.append("the time stamps are unusable; the frames were spaced evenly.")
        return np.arange(count) / rate, rate, notes
    places = np.arange(count)
    times = np.interp(places, good, stamps[good])
    times = np.where(places < good[0], stamps[good[0]] - (good[0] - places) / rate, times)
    times = np.where(places > good[-1], stamps[good[-1]] + (places - good[-1]) / rate, times)
    if len(good) < count:
        notes.append(f"{count - len(good)} of {count} time stamps were missing or out of order and were filled in.")
    # Up to 12 % is the jitter of containers that count in milliseconds.
    if np.abs(intervals * rate - 1).max() > 0.12 and len(intervals) > 1:
        notes.append(
            f"the frame rate varies ({1 / intervals.max():.3g} to {1 / intervals.min():.3g} frames a second); times "
            "are those of the recording."
        )
    return times - times[0], rate, notes


def _usual(intervals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intervals near their median: those where no frame was dropped, whose mean is free of rounded stamps."""
    # Of two that differ much, none is near their middle.
    for median in (np.median(intervals), np.quantile(intervals, 0.5, method="lower")):
        near = intervals[(intervals > 0.5 * median) & (intervals < 1.5 * median)]
        if len(near):
            break
    return near


def open_frames(
    source: str | os.PathLike[str] | ArrayLike | Iterable[Any] | FrameSource,
    *,
    frames_per_second: float | None = None,
    timestamps: ArrayLike | None = None,
    damaged: Damaged = "refuse",
    white: float | None = None,
) -> FrameSource:
    """Open anything that holds the frames of one recording.

    Parameters
    ----------
    source : path, array, list of arrays, iterable of arrays or FrameSource
        A video file, a folder of images, an array of shape ``(T, H, W)`` or ``(T, H, W, channels)``, a list of images,
        or a generator of images or of ``(seconds, image)`` pairs such as a webcam gives.
    frames_per_second : float, optional
        Overrides what the source says.
    timestamps : sequence of float, optional
        Seconds of each frame, for arrays and folders.
    damaged : {"refuse", "keep"}
        What to do with a video that breaks off: raise at the break, or give the frames before it and say so in
        `notes`.
    white : float, optional
        The value of white in images and arrays of more than 8 bits, see `as_rgb`.

    Raises
    ------
    MediaError
        The source is missing, empty, or no recording; one sentence says why.
    """
    if frames_per_second is not None and not (np.isfinite(frames_per_second) and frames_per_second > 0):
        raise DataError(f"a frame rate of {frames_per_second} was given; give frames a second above 0, or None.")
    if white is not None and not (np.isfinite(white) and white > 0):
        raise DataError(f"white={white} was given; give the value of white, above 0, or None.")
    if isinstance(source, FrameSource):
        return source
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            return ImageFolder(path, frames_per_second=frames_per_second, timestamps=timestamps, white=white)
        return VideoFile(path, frames_per_second=frames_per_second, damaged=damaged, white=white)
    if isinstance(source, (np.ndarray, Sequence)) or hasattr(source, "__array__"):
        return ArrayFrames(cast(Any, source), frames_per_second=frames_per_second, timestamps=timestamps, white=white)
    if isinstance(source, Iterable):
        return StreamFrames(source, frames_per_second=frames_per_second, white=white)
    raise DataError(
        f"frames cannot be read from {type(source).__name__}; give a video file, a folder of images, an array of shape "
        "(T, H, W, 3) or an iterable of images."
    )


class _ListedFrames(FrameSource):
    """Frames that are listed beforehand: each can be had by its number alone."""

    _times: NDArray[np.float64]
    _rate: float

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """Seconds since the first frame."""
        return self._times

    @property
    def frames_per_second(self) -> float:
        """Frame rate."""
        return self._rate

    def __iter__(self) -> Iterator[Frame]:
        for index in range(len(self)):
            yield self._frame(index)


class ArrayFrames(_ListedFrames):
    """Frames that are in memory: an array ``(T, H, W[, channels])`` or a sequence of images; kept, not copied."""

    def __init__(
        self,
        frames: Sequence[ArrayLike] | NDArray[Any],
        *,
        frames_per_second: float | None = None,
        timestamps: ArrayLike | None = None,
        name: str = "the array of frames",
        white: float | None = None,
    ) -> None:
        self.name = name
        self._white = white
        if isinstance(frames, np.ndarray) and frames.ndim not in (3, 4):
            raise MediaError(
                f"{name} has shape {frames.shape}, but frames are (time, height, width) or (time, height, width, "
                "channels); put time first and the channels last."
            )
        if len(frames) == 0:
            raise MediaError(f"{name} is empty; give at least one frame.")
        self._frames = frames
        self._size = cast(tuple[int, int], self._rgb(frames[0], f"frame 0 of {name}").shape[:2])
        self._times, self._rate, self.notes = clean_timestamps(timestamps, len(frames), frames_per_second)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._size

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self._frames)

    def _frame(self, index: int) -> Frame:
        return self._checked(self._rgb(self._frames[index], f"frame {index} of {self.name}"), index)


class ImageFolder(_ListedFrames):
    """A folder with one image a frame, in the natural order of their names, see `natural_order`.

    Parameters
    ----------
    folder : path
    frames_per_second, timestamps
        Images carry no time; without either, 25 frames a second are assumed (said in `notes`).
    files : sequence of str, optional
        Names inside the folder, in time's order; default every image in it, hidden files left out.
    white : float, optional
        See `as_rgb`.

    Raises
    ------
    MediaError
        The folder holds no image, or (on reading) one that cannot be decoded or has another size.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        frames_per_second: float | None = None,
        timestamps: ArrayLike | None = None,
        files: Sequence[str] | None = None,
        white: float | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._white = white
        self.name = str(self.folder)
        try:
            here = [entry.name for entry in self.folder.iterdir()] if files is None else list(files)
        except OSError as error:
            raise MediaError(f"the folder {self.folder} cannot be read ({error.strerror}); check the path.") from error
        if files is None:
            here = natural_order(
                name for name in here if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
            )
        if not here:
            raise MediaError(
                f"the folder {self.folder} holds no image; images ({', '.join(sorted(IMAGE_SUFFIXES))}) of one "
                "recording are expected directly in it."
            )
        self.files: tuple[str, ...] = tuple(here)
        self._times, self._rate, self.notes = clean_timestamps(timestamps, len(here), frames_per_second)
        self._known_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels: of the first frame that was read, else of the first file."""
        if self._known_size is None:
            # The head of the file tells; its picture need not be one that anybody asks for.
            with opened_image(self._path(0)) as image:
                turned = image.getexif().get(ORIENTATION, 1) in SIDEWAYS
                self._known_size = (image.width, image.height) if turned else (image.height, image.width)
        return self._known_size

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.files)

    def _frame(self, index: int) -> Frame:
        return self._checked(self._decode(index), index)

    def _path(self, index: int) -> str:
        return os.path.join(self.folder, self.files[index])

    def _decode(self, index: int) -> Frame:
        path = self._path(index)
        with opened_image(path) as image:
            pixels = _pixels(image, path)
            turn = image.getexif().get(ORIENTATION, 1)
        if index and pixels.dtype == np.uint16 and self._white is None and self._deep_white is None:
            # Whichever is asked for first, the first of the folder says how 16 bits are read.
            self._decode(0)
        if turn in SIDEWAYS:
            pixels = np.swapaxes(pixels, 0, 1)
        pixels = pixels[:: -1 if turn in UPWARDS else 1, :: -1 if turn in LEFTWARDS else 1]
        frame = self._rgb(pixels, path)
        if self._known_size is None:
            self._known_size = cast(tuple[int, int], frame.shape[:2])
        return frame


def _pixels(image: Any, path: str) -> NDArray[Any]:
    """Pixels of an opened picture in their own depth."""
    if has_deep_colours(image):
        import cv2

        deep = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        if deep is None or deep.ndim != 3:
            raise MediaError(f"{path} cannot be read as an image of 16 bits a channel; save it with 8 bits.")
        return np.asarray(cv2.cvtColor(deep, cv2.COLOR_BGR2RGB if deep.shape[2] == 3 else cv2.COLOR_BGRA2RGBA))
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        # Pillow holds their 16 bits in 32.
        return np.asarray(image).astype(np.uint16)
    if image.mode.startswith("I") or image.mode == "F":
        return np.asarray(image)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


class StreamFrames(FrameSource):
    """Frames that come one by one and only once, as from a webcam.

    Parameters
    ----------
    frames : iterable of images, or of (seconds, image) pairs
    frames_per_second : float, optional
        Used where frames come without a time.
    """

    def __init__(
        self,
        frames: Iterable[Any],
        *,
        frames_per_second: float | None = None,
        name: str = "the stream",
        white: float | None = None,
    ) -> None:
        self.name = name
        self._white = white
        self.notes: list[str] = []
        self._source = iter(frames)
        self._rate = frames_per_second
        self._seen: list[float] = []
        self._first: Frame | None = None
        self._timed = False
        self._began = False

    def _next(self) -> Frame | None:
        for item in self._source:
            if isinstance(item, tuple) and len(item) == 2 and np.ndim(item[0]) == 0:
                self._timed = True
                self._seen.append(float("nan") if item[0] is None else float(item[0]))
                item = item[1]
            else:
                self._seen.append(float("nan"))
            return self._rgb(item, f"frame {len(self._seen) - 1} of {self.name}")
        return None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width; waits for the first frame."""
        if self._first is None and not self._began:
            self._first = self._next()
        if self._first is None:
            raise MediaError(f"{self.name} gave no frame; check the camera or the generator.")
        return cast(tuple[int, int], self._first.shape[:2])

    @property
    def count(self) -> None:
        """Not known."""
        return None

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """Seconds since the first frame, of the frames given so far."""
        times, _, notes = clean_timestamps(self._seen if self._timed else None, len(self._seen), self._rate)
        for sentence in notes:
            self._note(sentence)
        return times

    @property
    def frames_per_second(self) -> float:
        """Frame rate as told, else that of the times so far, else 25."""
        return clean_timestamps(self._seen if self._timed else None, len(self._seen), self._rate)[1]

    def __iter__(self) -> Iterator[Frame]:
        if self._began:
            raise DataError(f"{self.name} was read already and cannot be read again; open it anew or keep its frames.")
        _ = self.size
        self._began = True
        number, frame = 0, self._first
        while frame is not None:
            yield self._checked(frame, number)
            number, frame = number + 1, self._next()

    def _frame(self, index: int) -> Frame:
        raise DataError(f"{self.name} gives its frames once, in order; frame {index} cannot be asked for by index.")


@dataclass(frozen=True)
class _Ticks:
    """Time stamps of all frames in ticks of their stream, rising, and which of them are key frames."""

    ticks: NDArray[np.int64]
    keys: NDArray[np.bool_]

    def reached(self, pictures: Iterable[Any], wanted: int) -> Any | None:
        """The picture of number `wanted`, if a key frame and every time stamp after it lead there."""
        place: int | None = None
        for picture in pictures:
            if picture.pts is None or picture.pts > self.ticks[wanted]:
                return None
            # Pictures before a key frame may lack what they are made from.
            if place is None and picture.key_frame:
                place = int(np.searchsorted(self.ticks, picture.pts))
                # MPEG program streams give wrong times after a seek, which only the key frame betrays.
                if not self.keys[place]:
                    return None
            if place is not None:
                if picture.pts != self.ticks[place]:
                    return None
                if place == wanted:
                    return picture
                place += 1
        return None


class VideoFile(FrameSource):
    """A video file, decoded by FFmpeg through PyAV; frame-accurate, in the shape and upright as a viewer shows it.

    A file only: names of other places, and playlists that name other files, are not followed.

    Parameters
    ----------
    path : path
    frames_per_second : float, optional
        Overrides the file's own rate.
    damaged : {"refuse", "keep"}
        See `open_frames`.
    white : float, optional
        The value of white in videos of 16 bits, see `as_rgb`.

    Raises
    ------
    MediaError
        The file is missing, empty, no video, too large a picture, or its first frame cannot be decoded. While reading:
        it breaks off.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        frames_per_second: float | None = None,
        damaged: Damaged = "refuse",
        white: float | None = None,
    ) -> None:
        self.path = Path(path)
        self.name = str(self.path)
        self.notes: list[str] = []
        self._told_rate = frames_per_second
        self._damaged = damaged
        self._white = white
        self._reader: Iterator[tuple[int, Frame]] | None = None
        self._next_index = 0
        self._kept: dict[int, Frame] = {}
        self._damage_noted = False
        if damaged not in ("refuse", "keep"):
            raise DataError(f"damaged={damaged!r} is not known; give 'refuse' or 'keep'.")
        try:
            check_regular(self.path)
        except FileNotFoundError as error:
            raise MediaError(f"the video {self.path} does not exist; check the path.") from error
        except (OSError, ValueError) as error:
            raise MediaError(f"the video {self.path} cannot be read ({_reason(error)}); give a video file.") from error
        if self.path.stat().st_size == 0:
            raise MediaError(f"the video {self.path} is empty (zero bytes); copy or record it again.")
        with self._open() as container:
            stream = container.streams.video[0]
            self._header_rates = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
            self._promised_seconds = _promised_seconds(container, stream)
            self._counted = int(stream.frames)
            self._codec = stream.codec_context.name
            self._pixel_shape = self._checked_shape(stream)
            try:
                first = next(iter(container.decode(stream)), None)
            except _decoder_errors() as error:
                raise MediaError(
                    f"no frame of the video {self.path} can be decoded ({_reason(error)}): it is damaged, or its "
                    f"frames have more than {FRAME_PIXELS:,} pixels; copy it again, or make them smaller."
                ) from error
            if first is None:
                raise MediaError(f"the video {self.path} holds no frame that can be decoded; copy or record it again.")
            self._size = cast(tuple[int, int], self._shown(first).shape[:2])

    def __getstate__(self) -> dict[str, Any]:
        # An open decoder cannot be sent to another process; it is opened again there.
        return {**self.__dict__, "_reader": None, "_next_index": 0, "_kept": {}}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, as a viewer shows them: with square pixels and after rotation."""
        return self._size

    @property
    def count(self) -> int:
        """Number of frames, counted by reading the file's packets (or, where they do not tell, by decoding it once)."""
        return len(self._stamps)

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """Seconds since the first frame."""
        return self._timing[0]

    @property
    def frames_per_second(self) -> float:
        """Frame rate: as told, else the file's average where its time stamps agree, else that of the time stamps."""
        return self._told_rate or self._timing[1]

    @cached_property
    def _timing(self) -> tuple[NDArray[np.float64], float]:
        times, found, notes = clean_timestamps(self._stamps, self.count, self._told_rate or self._agreed_rate)
        for sentence in notes:
            self._note(sentence)
        return times, found

    @property
    def _header_rate(self) -> float:
        return self._header_rates[0] if self._header_rates else FALLBACK_RATE

    @property
    def _agreed_rate(self) -> float | None:
        """The first rate in the header that the time stamps do not contradict."""
        gaps = np.diff(self._stamps)
        if not len(gaps) or not (gaps > 0).all():
            return next(iter(self._header_rates), None)
        usual = _usual(gaps)
        # Half a percent, and stamps may be rounded to milliseconds.
        allowed = 0.005 * usual.sum() + 2e-3
        return next((rate for rate in self._header_rates if abs(usual.sum() - len(usual) / rate) <= allowed), None)

    @property
    def _stamps(self) -> NDArray[np.float64]:
        """Time of every frame in seconds, NaN where it is unknown."""
        return self._index[0]

    @cached_property
    def _listed(self) -> list[tuple[int, float, bool]] | None:
        """What the packets say of the frames, where that can be relied on."""
        return self._packet_times() if self._damaged == "refuse" else None

    @cached_property
    def _index(self) -> tuple[NDArray[np.float64], _Ticks | None]:
        """Time of every frame in seconds, and in ticks of the stream where frames can be found by them."""
        times: list[Any] | None = self._listed
        if times is None:
            # Only decoding tells how many frames there are: raw streams, AVI, files that break off.
            times = [(shown.pts, shown.time, shown.key_frame) for shown in self._pictures(0)]
        stamps = np.array([np.nan if time is None else time for _, time, _ in times], np.float64)
        if len({tick for tick, *_ in times if tick is not None}) < len(times):
            return stamps, None
        ticks = np.array([tick for tick, *_ in times], np.int64)
        # FFV1 conceals damage by what it decoded before, and does not report it, so it is never sought in.
        sought = (np.diff(ticks) > 0).all() and self._codec != "ffv1"
        return np.sort(stamps), _Ticks(ticks, np.array([key for *_, key in times])) if sought else None

    def _packet_times(self) -> list[tuple[int, float, bool]] | None:
        """Ticks, seconds and key flag of all frames by the packets alone; None where these may differ from frames."""
        found: list[tuple[int, float, bool]] = []
        packets, end, decoded = 0, 0.0, -(2**63)
        with self._open() as container:
            stream = container.streams.video[0]
            if stream.codec_context.name == "mpeg4" or (
                container.format.name == "avi" and stream.codec_context.has_b_frames
            ):
                # MPEG-4 has packets of frames that are "not coded" and give no picture; AVI keeps the order of decoding
                # only.
                return None
            hides = stream.codec_context.name == "vp8"
            try:
                for packet in container.demux(stream):
                    packets += packet.size > 0
                    # VP8 has packets that are decoded but never shown; a bit of the first byte says so.
                    if not packet.size or packet.is_discard or (hides and not bytes(packet)[0] & 16):
                        continue
                    # Where the clock is set back, the order of the frames is not that of their times.
                    if packet.pts is None or (packet.dts is not None and packet.dts < decoded):
                        return None
                    decoded = decoded if packet.dts is None else packet.dts
                    self._note_damage(packet)
                    found.append((packet.pts, float(packet.pts * stream.time_base), packet.is_keyframe))
                    end = max(end, _end(packet, stream))
            except _decoder_errors() as error:
                self._report_break(len(found), error)
            if "mp4" in container.format.name and packets < self._counted:
                self._note(f"the header promises {self._counted} frames, but {packets} are there.")
        head = [shown.pts for shown in islice(self._pictures(0), PROBED)]
        if None in head or not head:
            return None
        # What lies before the first picture (a recording that begins between key frames) cannot be decoded.
        times = sorted(time for time in found if time[0] >= head[0])
        ticks = [tick for tick, *_ in times]
        if ticks[: len(head)] != head or len(set(ticks)) < len(ticks):
            return None
        self._missing([time for _, time, _ in times], end)
        return times

    def _missing(self, stamps: list[float], end: float) -> int:
        """How many frames the header promises behind the last one; by time, as dropped frames are no damage."""
        if self._promised_seconds is None or not stamps:
            return 0
        gaps = np.diff(np.unique(stamps))
        interval = float(_usual(gaps).mean()) if len(gaps) else 1 / self._header_rate
        zero = 0.0 if 0 <= min(stamps) < LATE_START else min(stamps)
        missing = round((self._promised_seconds + zero - max(end, max(stamps) + interval)) / interval)
        if self._counted:
            missing = min(missing, self._counted - len(stamps))
        if missing > 0:
            self._note(f"the header promises {len(stamps) + missing} frames, but {len(stamps)} are there.")
        return max(missing, 0)

    @contextlib.contextmanager
    def _open(self, strict: bool = False) -> Iterator[Any]:
        """The file opened by FFmpeg; a `strict` decoder ends at what another one conceals."""
        import av

        def refuse(url: str, flags: int, options: dict[str, str]) -> Any:
            raise MediaError(f"{self.path} is a list that points to {url}; give the video file itself.")

        limit = {"max_pixels": str(FRAME_PIXELS)}
        # FFmpeg gets bytes, never a path: it would take "rec:1.mp4" for a protocol, and opens what a playlist names.
        with contextlib.ExitStack() as stack:
            try:
                handle = stack.enter_context(self.path.open("rb", buffering=0))
                handle.name = f"video{self.path.suffix}"
                container = stack.enter_context(
                    av.open(
                        handle,
                        options=limit,
                        container_options={"protocol_whitelist": "none"},
                        io_open=refuse,
                        buffer_size=BUFFER,
                    )
                )
            except MediaError:
                raise
            except (OSError, EOFError, ValueError, av.error.FFmpegError) as error:
                raise MediaError(
                    f"{self.path} cannot be opened as a video ({_reason(error)}); it is no video or was cut short, so "
                    "copy or record it again."
                ) from error
            if not container.streams.video:
                raise MediaError(f"{self.path} holds no picture track, so there is no face to see; give a video file.")
            stream = container.streams.video[0]
            decoder = stream.codec_context
            if decoder is None:
                raise MediaError(f"the pictures of {self.path} have a format that FFmpeg cannot decode; convert it.")
            # What several threads make of a damaged file changes from pass to pass.
            decoder.thread_count = 1
            decoder.options = {**limit, "err_detect": "explode"} if strict else limit
            yield container

    def _checked_shape(self, stream: Any) -> Fraction:
        """Width of a pixel in its heights; checks on the way that the pictures are not too large."""
        shape = Fraction(stream.sample_aspect_ratio or 1)
        if not PIXEL_SHAPES[0] <= shape <= PIXEL_SHAPES[1]:
            self._note(
                f"the header says that pixels are {float(shape):.3g} times as wide as high; they are taken as square."
            )
            shape = Fraction(1)
        height, width = stream.codec_context.height, stream.codec_context.width
        if height * width * max(shape, 1) > FRAME_PIXELS:
            raise MediaError(
                f"the frames of {self.path} have {height}x{width} pixels, but at most {FRAME_PIXELS:,} are read; make "
                "them smaller."
            )
        return shape

    def _shown(self, picture: Any) -> Frame:
        """A decoded picture as a viewer shows it: with square pixels, and turned as the recording says."""
        # FFmpeg knows the range of all depths below 16 bits.
        deep = max(part.bits for part in picture.format.components) == 16
        width = max(1, round(picture.width * self._pixel_shape))
        pixels = picture.to_ndarray(format="rgb48le" if deep else "rgb24", width=width)
        name = f"a frame of {self.name}"
        frame = self._rgb(pixels, name) if deep else as_rgb(pixels, name)
        # The flag counts degrees counter-clockwise, as numpy does.
        turns = round(picture.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(frame, turns)) if turns else frame

    def __iter__(self) -> Iterator[Frame]:
        for _, frame in self._decode(0):
            yield frame

    def _decode(self, start: int) -> Iterator[tuple[int, Frame]]:
        """Frames from `start` on, with their numbers."""
        # A seek compares the time stamps itself.
        listed = None if start else self._listed
        count = start
        for count, picture in enumerate(self._pictures(start), start + 1):
            if listed is not None and (count > len(listed) or picture.pts not in (None, listed[count - 1][0])):
                raise self._unlisted(f"another frame {count - 1} comes")
            yield count - 1, self._checked(self._shown(picture), count - 1)
        if listed is not None and count < len(listed):
            raise self._unlisted(f"only {count} can be decoded")

    def _pictures(self, start: int) -> Iterator[Any]:
        """Decoded pictures from number `start` on; fewer, or none, where a seek does not lead to them."""
        number, end = start, 0.0
        stamps: list[float] = []
        # Looked up now: a reader that is given up while Python shuts down can import nothing any more.
        errors = _decoder_errors()
        with self._open(strict=start > 0) as container:
            stream = container.streams.video[0]
            try:
                for picture in self._sought(container, stream, start) if start else self._decoded(container, stream):
                    if picture.pts is not None:
                        stamps.append(picture.time)
                        end = max(end, _end(picture, stream))
                    yield picture
                    number += 1
            except errors as error:
                # After a seek, the caller reads from the start what did not come.
                if not start:
                    self._report_break(number, error)
                return
        if start or len(stamps) < number:
            return
        missing = self._missing(stamps, end)
        # Rounded durations and edit lists may miss a frame or two; a file cut short misses more.
        if missing > max(2, 0.02 * (number + missing)):
            self._report_break(number, None, max(self._counted, number + missing))

    def _decoded(self, container: Any, stream: Any, *, sought: bool = False) -> Iterator[Any]:
        """Pictures from where the container stands; after a seek, those before a key frame may lack what they need."""
        errors, waiting, key = _decoder_errors(), sought, None
        for packet in container.demux(stream):
            if not waiting:
                self._note_damage(packet)
            try:
                pictures = packet.decode()
            except errors:
                if not sought or (key is not None and (packet.pts is None or packet.pts >= key)):
                    raise
                continue
            if key is None and packet.is_keyframe:
                key = packet.pts
            for picture in pictures:
                waiting = waiting and not picture.key_frame
                if not waiting:
                    self._note_damage(picture)
                yield picture

    def _note_damage(self, part: Any) -> None:
        if part.is_corrupt and part.pts is not None and not self._damage_noted:
            self._damage_noted = True
            self._note(f"the file is damaged at {float(part.pts * part.time_base):.4g} s, as its decoder reports.")

    def _sought(self, container: Any, stream: Any, start: int) -> Iterator[Any]:
        """Pictures from number `start` on, found by seeking; ends where they may not be those of a pass."""
        index = cast("_Ticks", self._index[1])
        ticks, back = index.ticks, 0
        wanted = int(ticks[start])
        errors = _decoder_errors()
        # Many containers lead to a place between key frames, or behind the wanted one: then further back.
        while wanted - back > ticks[0]:
            try:
                container.seek(wanted - back, stream=stream)
                pictures = self._decoded(container, stream, sought=True)
                found = index.reached(pictures, start)
            except errors:
                found = None
            if self._damage_noted:
                return
            if found is not None:
                yield found
                for tick, picture in zip(ticks[start + 1 :], pictures, strict=False):
                    if picture.pts != tick or self._damage_noted:
                        return
                    yield picture
                return
            back = 2 * back + max(1, round(1 / stream.time_base))

    def _frame(self, index: int) -> Frame:
        # Each caller gets an array of its own, as they may draw into it.
        if index in self._kept:
            return self._kept[index].copy()
        # Without time stamps there is nothing to seek by; a damaged frame may be made from any of those before it.
        sought = self._index[1] is not None and not self._damage_noted
        ahead = index - self._next_index
        if self._reader is None or ahead < 0 or (sought and ahead > READ_ON):
            start = index if sought and index > READ_ON else 0
            self._reader, self._next_index = self._decode(start), start
        # Where no seek leads to the frame, all those before it are read.
        for _ in range(2):
            for number, frame in self._reader:
                self._next_index = number + 1
                self._kept[number] = frame
                while len(self._kept) > KEPT_FRAMES:
                    del self._kept[next(iter(self._kept))]
                if number == index:
                    return frame.copy()
            self._reader, self._next_index = self._decode(0), 0
        self._reader = None
        raise MediaError(
            f"frame {index} of {self.name} cannot be decoded although the file lists {self.count} frames; copy the "
            "file again."
        )

    def _report_break(self, number: int, error: Exception | None, promised: int = 0) -> None:
        if self._damaged == "refuse":
            raise self._broken(number, error, promised) from error
        self._note(f"the file breaks off after {number} frames; what lies behind them is missing.")

    def _unlisted(self, what: str) -> MediaError:
        return MediaError(
            f"the video {self.path} lists {self.count} frames, but {what}: it is damaged; copy it again, or read what "
            "can be decoded with damaged='keep'."
        )

    def _broken(self, number: int, error: Exception | None, promised: int = 0) -> MediaError:
        promised = promised or self._counted or round((self._promised_seconds or 0) * self._header_rate)
        of = f" of {promised}" if promised else ""
        why = "" if error is None else f" ({_reason(error)})"
        return MediaError(
            f"the video {self.path} breaks off after {number}{of} frames{why}: it was cut short or damaged; copy it "
            "again, or read what is there with damaged='keep'."
        )


def _end(part: Any, stream: Any) -> float:
    """Seconds at which a packet or picture ends, or begins where that is not said."""
    return float((part.pts + (part.duration or 0)) * stream.time_base)


def _promised_seconds(container: Any, stream: Any) -> float | None:
    """How long the pictures last, as the header says."""
    if stream.duration:
        told = float(stream.duration * stream.time_base)
        # FFmpeg shortens the duration of an AVI that was cut, but not its number of frames (dropped ones included).
        return max(told, float(stream.frames / stream.average_rate)) if stream.average_rate else told
    if container.duration and len(container.streams) == 1:
        return float(container.duration / 1e6)
    return None


def _decoder_errors() -> tuple[type[Exception], ...]:
    import av

    return (av.error.FFmpegError, EOFError, ValueError)


def _reason(error: Exception) -> str:
    """What FFmpeg said, without its numbers and the path, which the sentence names already."""
    return str(getattr(error, "strerror", None) or error).split(";")[0]
