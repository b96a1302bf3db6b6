"""Frames of a recording, one after the other or by index: video files, folders of images, arrays and live streams."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.errors import DataError, MediaError

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
# EXIF's tag of a camera's turn, and its values for pictures that lie on their side.
ORIENTATION = 0x0112
SIDEWAYS = frozenset({5, 6, 7, 8})
# What is assumed when nobody knows the rate: the slowest of the cameras that the databases were recorded with.
FALLBACK_RATE = 25.0
# Random access reads on from where it stands when the wanted frame is this near; seeking costs a key frame's distance.
READ_ON = 32
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
        """Frame rate: as told, else of the file, else the median of the time stamps, else 25 (said in `notes`)."""

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

    def _checked(self, frame: Frame, number: int) -> Frame:
        if frame.shape[:2] != self.size:
            height, width = self.size
            raise MediaError(
                f"frame {number} of {self.name} is {frame.shape[0]}x{frame.shape[1]} pixels, but the first one is "
                f"{height}x{width}; the frames of one clip must have one size, so crop or resize them first."
            )
        return frame


def as_rgb(frame: ArrayLike, name: str = "the frame") -> Frame:
    """Any image as 8-bit RGB of shape ``(height, width, 3)``.

    Parameters
    ----------
    frame : array of shape (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4)
        Grey, grey with alpha, RGB or RGBA; uint8, uint16, bool, or floats in 0..1. Transparent parts become black.
    name : str
        What messages call it.

    Raises
    ------
    MediaError
        Another shape or type, or floats outside 0..1.
    """
    array = np.asarray(frame)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in array.shape:
        raise MediaError(
            f"{name} has shape {array.shape}, but an image is (height, width) or (height, width, channels) with 1 to "
            "4 channels; move the channels last."
        )
    if array.dtype == np.uint16:
        # 257 maps 65535 to 255 exactly.
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise MediaError(
                f"{name} holds floats from {low:g} to {high:g}, but 0 (black) to 1 (white) is expected; divide 8-bit "
                "values by 255."
            )
        array = np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise MediaError(f"{name} holds values of type {array.dtype}; give uint8, uint16 or floats in 0..1.")
    if array.shape[2] in (2, 4):
        colour, alpha = array[..., :-1].astype(np.uint16), array[..., -1:].astype(np.uint16)
        array = ((colour * alpha + 127) // 255).astype(np.uint8)
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return cast(Frame, np.ascontiguousarray(array))


def natural_order(names: Iterable[str]) -> list[str]:
    """Names by the last number in them, then by the name itself: img2 before img10; names without a number come first.

    Examples
    --------
    >>> natural_order(["reg_img10.jpg", "reg_img9.jpg", "reg_img100.jpg"])
    ['reg_img9.jpg', 'reg_img10.jpg', 'reg_img100.jpg']
    """

    def key(name: str) -> tuple[int, str]:
        # Digits of the suffix (jp2, mp4) are no frame number.
        numbers = re.findall(r"\d+", Path(name).stem)
        return (int(numbers[-1]) if numbers else -1, name)

    return sorted(names, key=key)


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
        Frames a second: as given, else the median of the stamps, else 25.
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
        rate = 1.0 / float(np.median(intervals))
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


def open_frames(
    source: str | os.PathLike[str] | ArrayLike | Iterable[Any] | FrameSource,
    *,
    frames_per_second: float | None = None,
    timestamps: ArrayLike | None = None,
    damaged: Damaged = "refuse",
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

    Raises
    ------
    MediaError
        The source is missing, empty, or no recording; one sentence says why.
    """
    if frames_per_second is not None and not (np.isfinite(frames_per_second) and frames_per_second > 0):
        raise DataError(f"a frame rate of {frames_per_second} was given; give frames a second above 0, or None.")
    if isinstance(source, FrameSource):
        return source
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            return ImageFolder(path, frames_per_second=frames_per_second, timestamps=timestamps)
        return VideoFile(path, frames_per_second=frames_per_second, damaged=damaged)
    if isinstance(source, (np.ndarray, Sequence)) or hasattr(source, "__array__"):
        return ArrayFrames(cast(Any, source), frames_per_second=frames_per_second, timestamps=timestamps)
    if isinstance(source, Iterable):
        return StreamFrames(source, frames_per_second=frames_per_second)
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
    ) -> None:
        self.name = name
        if isinstance(frames, np.ndarray) and frames.ndim not in (3, 4):
            raise MediaError(
                f"{name} has shape {frames.shape}, but frames are (time, height, width) or (time, height, width, "
                "channels); put time first and the channels last."
            )
        if len(frames) == 0:
            raise MediaError(f"{name} is empty; give at least one frame.")
        self._frames = frames
        self._size = cast(tuple[int, int], as_rgb(frames[0], f"frame 0 of {name}").shape[:2])
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
        return self._checked(as_rgb(self._frames[index], f"frame {index} of {self.name}"), index)


class ImageFolder(_ListedFrames):
    """A folder with one image a frame, in natural order by the last number in the name.

    Parameters
    ----------
    folder : path
    frames_per_second, timestamps
        Images carry no time; without either, 25 frames a second are assumed (said in `notes`).
    files : sequence of str, optional
        Names inside the folder, in time's order; default every image in it, hidden files left out.

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
    ) -> None:
        self.folder = Path(folder)
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
            with self._opened(0) as image:
                turned = image.getexif().get(ORIENTATION, 1) in SIDEWAYS
                self._known_size = (image.width, image.height) if turned else (image.height, image.width)
        return self._known_size

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.files)

    def _frame(self, index: int) -> Frame:
        return self._checked(self._decode(index), index)

    def _decode(self, index: int) -> Frame:
        from PIL import ImageOps

        with self._opened(index) as image:
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith(("I;16", "I")):
                pixels = np.asarray(image).astype(np.uint16)
            else:
                mode = "RGBA" if image.has_transparency_data else "RGB"
                pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        frame = as_rgb(pixels, f"{self.name}/{self.files[index]}")
        if self._known_size is None:
            self._known_size = cast(tuple[int, int], frame.shape[:2])
        return frame

    @contextmanager
    def _opened(self, index: int) -> Iterator[Any]:
        from PIL import Image

        path = os.path.join(self.folder, self.files[index])
        try:
            with Image.open(path) as image:
                yield image
        except FileNotFoundError as error:
            raise MediaError(f"the image {path} does not exist; put it there or leave the clip out.") from error
        # Pillow's decoders raise whatever the damaged bytes lead them into.
        except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
            raise MediaError(f"{path} cannot be read as an image ({error}); copy it again.") from error


class StreamFrames(FrameSource):
    """Frames that come one by one and only once, as from a webcam.

    Parameters
    ----------
    frames : iterable of images, or of (seconds, image) pairs
    frames_per_second : float, optional
        Used where frames come without a time.
    """

    def __init__(self, frames: Iterable[Any], *, frames_per_second: float | None = None, name: str = "the stream"):
        self.name = name
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
            return as_rgb(item, f"frame {len(self._seen) - 1} of {self.name}")
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
        """Frame rate as told, else the median of the times so far, else 25."""
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


class VideoFile(FrameSource):
    """A video file, decoded by FFmpeg through PyAV; frame-accurate, upright (the rotation flag is honoured).

    Parameters
    ----------
    path : path
    frames_per_second : float, optional
        Overrides the file's own rate.
    damaged : {"refuse", "keep"}
        See `open_frames`.

    Raises
    ------
    MediaError
        The file is missing, empty, no video, or its first frame cannot be decoded. While reading: it breaks off.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, frames_per_second: float | None = None, damaged: Damaged = "refuse"
    ) -> None:
        self.path = Path(path)
        self.name = str(self.path)
        self.notes: list[str] = []
        self._told_rate = frames_per_second
        self._damaged = damaged
        self._reader: Iterator[tuple[int, Frame]] | None = None
        self._next_index = 0
        self._kept: dict[int, Frame] = {}
        if damaged not in ("refuse", "keep"):
            raise DataError(f"damaged={damaged!r} is not known; give 'refuse' or 'keep'.")
        if not self.path.is_file():
            raise MediaError(f"the video {self.path} does not exist; check the path.")
        if self.path.stat().st_size == 0:
            raise MediaError(f"the video {self.path} is empty (zero bytes); copy or record it again.")
        with self._open() as container:
            stream = container.streams.video[0]
            self._average_rate = float(stream.average_rate) if stream.average_rate else None
            self._promised = self._promised_frames(container, stream)
            try:
                first = next(iter(container.decode(stream)), None)
            except _decoder_errors() as error:
                raise self._broken(0, error) from error
            if first is None:
                raise MediaError(f"the video {self.path} holds no frame that can be decoded; copy or record it again.")
            self._size = cast(tuple[int, int], _upright(first).shape[:2])

    def __getstate__(self) -> dict[str, Any]:
        # An open decoder cannot be sent to another process; it is opened again there.
        return {**self.__dict__, "_reader": None, "_next_index": 0, "_kept": {}}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, after rotation."""
        return self._size

    @property
    def count(self) -> int:
        """Number of frames, counted by reading the file's packets (or, without time stamps, by decoding it once)."""
        return len(self._stamps)

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """Seconds since the first frame."""
        return self._timing[0]

    @property
    def frames_per_second(self) -> float:
        """Frame rate: as told, else the file's average, else the median of its time stamps."""
        return self._told_rate or self._average_rate or self._timing[1]

    @cached_property
    def _timing(self) -> tuple[NDArray[np.float64], float]:
        rate = self._told_rate or self._average_rate
        times, found, notes = clean_timestamps(self._stamps, self.count, rate)
        for sentence in notes:
            self._note(sentence)
        return times, found

    @cached_property
    def _stamps(self) -> NDArray[np.float64]:
        """Time of every frame in seconds, NaN where it is unknown."""
        with self._open() as container:
            stream = container.streams.video[0]
            found: list[float | None] = []
            try:
                for packet in container.demux(stream):
                    if packet.size and not packet.is_discard:
                        found.append(None if packet.pts is None else float(packet.pts * packet.time_base))
            except _decoder_errors() as error:
                self._report_break(len(found), error)
        known = [stamp for stamp in found if stamp is not None]
        self._seekable = len(known) == len(found) == len(set(known))
        if self._seekable:
            return np.sort(np.array(known, np.float64))
        # Packets without a time of their own (raw streams, damaged headers): only decoding tells how many frames.
        return np.full(sum(1 for _ in self._decode(0)), np.nan)

    def _open(self) -> Any:
        import av

        try:
            container = av.open(str(self.path))
        except _decoder_errors() as error:
            raise MediaError(
                f"{self.path} cannot be opened as a video ({_reason(error)}); it is no video or was cut short, so copy "
                "or record it again."
            ) from error
        if not container.streams.video:
            container.close()
            raise MediaError(f"{self.path} holds no picture track, so there is no face to see; give a video file.")
        container.streams.video[0].thread_type = "AUTO"
        return container

    @staticmethod
    def _promised_frames(container: Any, stream: Any) -> int | None:
        """How many frames the header says there are."""
        if stream.frames:
            return int(stream.frames)
        if not stream.average_rate:
            return None
        if stream.duration:
            return round(stream.duration * stream.time_base * stream.average_rate)
        if container.duration and len(container.streams) == 1:
            return round(container.duration / 1e6 * stream.average_rate)
        return None

    def __iter__(self) -> Iterator[Frame]:
        for _, frame in self._decode(0):
            yield frame

    def _decode(self, start: int) -> Iterator[tuple[int, Frame]]:
        """Frames from `start` on, with their numbers."""
        number = start
        # Looked up now: a reader that is given up while Python shuts down can import nothing any more.
        errors = _decoder_errors()
        with self._open() as container:
            stream = container.streams.video[0]
            wanted: float | None = None
            if start > 0:
                wanted = float(self._stamps[start])
                container.seek(round(wanted / stream.time_base), stream=stream)
            try:
                for frame in container.decode(stream):
                    # Seeking lands on the key frame before; half a millisecond is below any frame's distance.
                    if wanted is not None and (frame.time is None or frame.time < wanted - 5e-4):
                        continue
                    wanted = None
                    yield number, self._checked(_upright(frame), number)
                    number += 1
            except errors as error:
                self._report_break(number, error)
                return
        # Rounded durations and edit lists may miss a frame or two; a file cut short misses more.
        if self._promised is not None and self._promised - number > max(2, 0.02 * self._promised):
            self._report_break(number, None)

    def _frame(self, index: int) -> Frame:
        if index in self._kept:
            return self._kept[index]
        near = self._reader is not None and 0 <= index - self._next_index <= READ_ON
        if not near:
            # Without time stamps there is nothing to seek by.
            start = index if self._seekable and index > READ_ON else 0
            self._reader, self._next_index = self._decode(start), start
        for number, frame in cast("Iterator[tuple[int, Frame]]", self._reader):
            self._next_index = number + 1
            self._kept[number] = frame
            while len(self._kept) > KEPT_FRAMES:
                del self._kept[next(iter(self._kept))]
            if number == index:
                return frame
        self._reader = None
        raise MediaError(
            f"frame {index} of {self.name} cannot be decoded although the file lists {self.count} frames; copy the "
            "file again."
        )

    def _report_break(self, number: int, error: Exception | None) -> None:
        if self._damaged == "refuse":
            raise self._broken(number, error) from error
        self._note(f"the file breaks off after {number} frames; what lies behind them is missing.")

    def _broken(self, number: int, error: Exception | None) -> MediaError:
        of = f" of {self._promised}" if self._promised else ""
        why = "" if error is None else f" ({_reason(error)})"
        return MediaError(
            f"the video {self.path} breaks off after {number}{of} frames{why}: it was cut short or damaged; copy it "
            "again, or read what is there with damaged='keep'."
        )


def _decoder_errors() -> tuple[type[Exception], ...]:
    import av

    return (av.error.FFmpegError, EOFError, ValueError)


def _reason(error: Exception) -> str:
    """What FFmpeg said, without its numbers and the path, which the sentence names already."""
    return str(getattr(error, "strerror", None) or error).split(";")[0]


def _upright(frame: Any) -> Frame:
    pixels: Frame = frame.to_ndarray(format="rgb24")
    # The flag counts degrees counter-clockwise, as numpy does.
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
