"""What every reader of a recording offers, whatever the pixels and time stamps that it was made with.

Frames are 8-bit RGB, in a pass or by index; their times rise from 0; notes say what was assumed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.errors import DataError, MediaError

# What is assumed when the rate is unknown: the slowest of the cameras that the databases were recorded with.
FALLBACK_RATE = 25.0
T = TypeVar("T")
Frame = NDArray[np.uint8]
# 16-bit values that stay below it use no more than 14 bits: a camera's raw values rather than a dark picture.
DIM = 1 << 14


def as_rgb(frame: ArrayLike, name: str = "the frame", white: float | None = None) -> Frame:
    """Any image as 8-bit RGB of shape ``(height, width, 3)``.

    The image is grey (H, W) or (H, W, 1), grey with alpha (H, W, 2), RGB or RGBA, of integers, floats or bool;
    transparent parts become black. `white` is the value of white, where black is 0, e.g. 4095 for 12 bits in a 16-bit
    type; default 255 for uint8, 65535 for uint16, 1 for floats and bool; other integers have none. Another shape or
    type, values outside the range, or 16-bit values so low that the range must be another one raise `MediaError`, which
    calls the image `name`.
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


def colour_channels(image: NDArray[Any]) -> NDArray[Any]:
    """The channels of an image without alpha."""
    return image[..., :-1] if image.ndim == 3 and image.shape[2] in (2, 4) else image


def _eight_bit(array: NDArray[Any], name: str, white: float | None) -> NDArray[np.uint8]:
    """Values from 0 to `white` as 0 to 255; only colours must stay within, as alpha may have a range of its own."""
    kind, bits = array.dtype.kind, 8 * array.dtype.itemsize
    if kind not in "buif":
        raise MediaError(f"{name} holds values of type {array.dtype}; give uint8, uint16 or floats in 0..1.")
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    low, high = float(colour_channels(array).min()), float(colour_channels(array).max())
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
        What was assumed or corrected while reading, one sentence each.
    """

    name: str
    notes: list[str]
    _size: tuple[int, int]
    _count: int | None = None
    _times: NDArray[np.float64]
    _rate: float
    _white: float | None = None
    _deep_white: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, as a viewer shows them."""
        return self._size

    @property
    def count(self) -> int | None:
        """Number of frames; None where it cannot be known beforehand."""
        return self._count

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """Seconds since the first frame, strictly increasing, one entry a frame."""
        return self._times

    @property
    def frames_per_second(self) -> float:
        """Frame rate: as given, else of the file, else of the time stamps, else 25 (see `notes`)."""
        return self._rate

    def __iter__(self) -> Iterator[Frame]:
        return (self._frame(index) for index in range(len(self)))

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
        return np.stack(list(self) if indices is None else [self[index] for index in indices])

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _rgb(self, image: ArrayLike, name: str) -> Frame:
        """An image as `as_rgb` gives it; the first one of 16 bits decides how all of the source are read."""
        array, white = np.asarray(image), self._white
        if white is None and array.dtype == np.uint16:
            # Beside a frame of more than 14 bits, a dim one is dark.
            if self._deep_white is None and colour_channels(array).max(initial=0) >= DIM:
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


class DerivedFrames(FrameSource):
    """Frames that are made from those of another source."""

    def __init__(self, source: FrameSource) -> None:
        self.name, self.notes, self.source = source.name, source.notes, source

    @property
    def size(self) -> tuple[int, int]:
        return self.source.size

    @property
    def count(self) -> int | None:
        return self.source.count

    @property
    def timestamps(self) -> NDArray[np.float64]:
        return self.source.timestamps

    @property
    def frames_per_second(self) -> float:
        return self.source.frames_per_second


class Recent(Generic[T]):
    """What was made last, up to so many bytes (one at least); nothing of it goes to another process."""

    def __init__(self, limit_bytes: int, size_of: Callable[[T], int]) -> None:
        self._limit, self._size_of = limit_bytes, size_of
        self._kept: OrderedDict[int, T] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return Recent, (self._limit, self._size_of)

    def get(self, key: int, make: Callable[[int], T]) -> T:
        """What is kept under `key`, else what `make` gives for it."""
        if key not in self._kept:
            self._kept[key] = make(key)
            while len(self._kept) > 1 and sum(map(self._size_of, self._kept.values())) > self._limit:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def clean_timestamps(
    seconds: ArrayLike | None, count: int, frames_per_second: float | None = None
) -> tuple[NDArray[np.float64], float, list[str]]:
    """Times (count,) strictly increasing from 0, the frame rate, and notes on what was assumed or corrected.

    NaN, infinite, repeated and backward stamps are replaced by interpolation between their neighbours (at the ends:
    continued at the median rate). The rate is the given one, else that of the usual distance of the stamps, else 25.
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
        rate = 1.0 / float(typical_intervals(intervals).mean())
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


def typical_intervals(intervals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intervals near their median: those where no frame was dropped, whose mean is free of rounded stamps."""
    # Of two that differ much, none is near their middle.
    for median in (np.median(intervals), np.quantile(intervals, 0.5, method="lower")):
        near = intervals[(intervals > 0.5 * median) & (intervals < 1.5 * median)]
        if len(near):
            break
    return near
