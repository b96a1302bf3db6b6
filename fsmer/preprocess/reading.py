"""Frames of a recording, one after the other or by index: video files, folders of images, arrays and live streams."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.errors import DataError, MediaError
from fsmer.preprocess.frame_source import FrameSource
from fsmer.preprocess.image_folder import ImageFolder
from fsmer.preprocess.pixels import Frame
from fsmer.preprocess.timestamps import clean_timestamps
from fsmer.preprocess.video_file import Damaged, VideoFile

__all__ = ["ArrayFrames", "StreamFrames", "open_frames"]


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
        self._told_rate = frames_per_second
        self._seen: list[float] = []
        self._first: Frame | None = None
        self._timed = False
        self._began = False

    def _next(self) -> Frame | None:
        for item in self._source:
            timed, seconds, image = stamped(item)
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
        """Frame rate as told, else that of the times so far, else 25."""
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


def stamped(item: Any) -> tuple[bool, float, Any]:
    """Whether an item of a stream is a pair with a time, its seconds (NaN where unknown), and its image."""
    if isinstance(item, tuple) and len(item) == 2 and np.ndim(item[0]) == 0:
        return True, float("nan") if item[0] is None else float(item[0]), item[1]
    return False, float("nan"), item
