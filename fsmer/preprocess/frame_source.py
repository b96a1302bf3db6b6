"""What every reader of a recording offers: its frames in a pass or by index, their times made usable, and notes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.errors import DataError, MediaError
from fsmer.preprocess.pixels import DIM, Frame, as_rgb, colour_channels

__all__ = ["DerivedFrames", "FrameSource", "Recent", "clean_timestamps"]

# What is assumed when the rate is unknown: the slowest of the cameras that the databases were recorded with.
FALLBACK_RATE = 25.0
T = TypeVar("T")


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
