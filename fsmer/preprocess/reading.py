"""Frames of a recording, one after the other or by index: video files, folders of images, arrays and live streams."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.errors import DataError, MediaError
from fsmer.preprocess.frame_source import FALLBACK_RATE, Frame, FrameSource, as_rgb, clean_timestamps
from fsmer.preprocess.image_folder import ImageFolder
from fsmer.preprocess.video_file import Damaged, VideoFile

# Frames of a live stream that are waited for to learn its rate.
RATE_FRAMES = 12


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
    source : path, array, sequence of arrays, iterable of arrays or FrameSource
        A video file, a folder of images, an array of shape ``(T, H, W)`` or ``(T, H, W, channels)``, a list of images,
        or a generator of images or of ``(seconds, image)`` pairs such as a webcam gives.
    frames_per_second : float, optional
        Overrides the source's own.
    timestamps : sequence of float, optional
        Seconds of each frame, for arrays and folders.
    damaged : {"refuse", "keep"}, default "refuse"
        What to do with a video that breaks off: raise at the break, or give the frames before it and say so in
        `notes`.
    white : float, optional
        The value of white in images and arrays of more than 8 bits, see `as_rgb`.

    Returns
    -------
    FrameSource
        Frames by index, with their times.

    Raises
    ------
    MediaError
        The source is missing, empty, or no recording; one sentence says why.
    DataError
        A setting has no meaning for this source.

    Examples
    --------
    >>> import numpy as np
    >>> import fsmer
    >>> recording = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    >>> frames = fsmer.open_frames(recording, frames_per_second=100)
    >>> len(frames), frames[0].shape
    (6, (32, 32, 3))
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
    if _is_stream(source):
        return StreamFrames(cast(Any, source), frames_per_second=frames_per_second, white=white)
    if isinstance(source, Sequence) or hasattr(source, "__array__"):
        return ArrayFrames(cast(Any, source), frames_per_second=frames_per_second, timestamps=timestamps, white=white)
    raise DataError(
        f"frames cannot be read from {type(source).__name__}; give a video file, a folder of images, an array of shape "
        "(T, H, W, 3) or an iterable of images."
    )


def _is_stream(source: Any) -> bool:
    at_hand = isinstance(source, (str, os.PathLike, FrameSource, Sequence)) or hasattr(source, "__array__")
    return isinstance(source, Iterable) and not at_hand


class ArrayFrames(FrameSource):
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
        self._frames, self._count = frames, len(frames)
        self._size = cast(tuple[int, int], self._rgb(frames[0], f"frame 0 of {name}").shape[:2])
        self._times, self._rate, self.notes = clean_timestamps(timestamps, len(frames), frames_per_second)

    def _frame(self, index: int) -> Frame:
        return self._checked(self._rgb(self._frames[index], f"frame {index} of {self.name}"), index)


class StreamFrames(FrameSource):
    """Images, or (seconds, image) pairs, that come one by one and only once, as from a webcam.

    The given rate is used where frames come without a time.
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
        self._told_rate = frames_per_second
        self._seen: list[float] = []
        self._first: Frame | None = None
        self._timed = False
        self._began = False

    def _next(self) -> Frame | None:
        for item in self._source:
            timed, seconds, image = _stamped(item)
            self._timed |= timed
            self._seen.append(seconds)
            return self._rgb(image, f"frame {len(self._seen) - 1} of {self.name}")
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
    def timestamps(self) -> NDArray[np.float64]:
        """Seconds since the first frame, of the frames given so far."""
        times, _, notes = clean_timestamps(self._seen if self._timed else None, len(self._seen), self._told_rate)
        for sentence in notes:
            self._note(sentence)
        return times

    @property
    def frames_per_second(self) -> float:
        """Frame rate as given, else that of the times so far, else 25."""
        return clean_timestamps(self._seen if self._timed else None, len(self._seen), self._told_rate)[1]

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


def _stamped(item: Any) -> tuple[bool, float, Any]:
    """Whether an item of a stream is a pair with a time, its seconds (NaN where unknown), and its image."""
    if isinstance(item, tuple) and len(item) == 2 and np.ndim(item[0]) == 0:
        return True, float("nan") if item[0] is None else float(item[0]), item[1]
    return False, float("nan"), item


class TimedFrames:
    """Frames of anything that holds them, each with its time, once, in bounded memory."""

    def __init__(self, source: Any, frames_per_second: float | None) -> None:
        self.notes: list[str] = []
        self.count: int | None = None
        if isinstance(source, StreamFrames):
            # Its own clock keeps every stamp.
            self.fps, self.name = source.frames_per_second, source.name
            self._frames: Iterator[tuple[float, Frame]] = ((n / self.fps, frame) for n, frame in enumerate(source))
        elif _is_stream(source):
            self.name = "the stream"
            self._frames = self._stream(iter(source), frames_per_second)
        else:
            opened = open_frames(source, frames_per_second=frames_per_second)
            self.name, self.count, self.fps = opened.name, opened.count, opened.frames_per_second
            self._frames = zip(opened.timestamps.tolist(), opened, strict=False)
            self.notes += opened.notes

    def __iter__(self) -> Iterator[tuple[float, Frame]]:
        return self._frames

    def _stream(self, items: Iterator[Any], frames_per_second: float | None) -> Iterator[tuple[float, Frame]]:
        """A live stream's frames; its rate is learnt from the first of them."""
        first = [_stamped(item) for item in islice(items, RATE_FRAMES)]
        gaps = np.diff([time for _, time, _ in first if np.isfinite(time)])
        usual = float(np.median(gaps[gaps > 0])) if (gaps > 0).any() else 0.0
        self.fps = frames_per_second or (1 / usual if usual > 0 else FALLBACK_RATE)
        if not frames_per_second and not usual:
            self.notes.append(f"the frame rate is unknown; {self.fps:g} frames a second were assumed.")
        if not first:
            raise MediaError(f"{self.name} gave no frame; check the camera or the generator.")
        return self._clocked(chain(first, map(_stamped, items)))

    def _clocked(self, items: Iterable[tuple[bool, float, Any]]) -> Iterator[tuple[float, Frame]]:
        size: tuple[int, ...] | None = None
        zero, last = 0.0, -1 / self.fps
        for number, (_, stamp, item) in enumerate(items):
            frame = as_rgb(item, f"frame {number} of {self.name}")
            size = size or frame.shape
            if frame.shape != size:
                raise MediaError(
                    f"frame {number} of {self.name} is {frame.shape[0]}x{frame.shape[1]} pixels, but the first one is "
                    f"{size[0]}x{size[1]}; the frames of one recording must have one size."
                )
            if number == 0 and np.isfinite(stamp):
                zero = stamp
            time = stamp - zero
            # A stamp that is missing or goes back is replaced by the usual distance.
            last = time if np.isfinite(time) and time > last else last + 1 / self.fps
            yield last, frame
