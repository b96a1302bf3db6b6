"""Frames of anything that holds them, each with its time, once, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from fsmer.errors import MediaError
from fsmer.preprocess.frame_source import FrameSource
from fsmer.preprocess.pixels import Frame, as_rgb
from fsmer.preprocess.reading import StreamFrames, open_frames, stamped
from fsmer.preprocess.timestamps import FALLBACK_RATE

# Frames of a live stream that are waited for to learn its rate.
RATE_FRAMES = 12


class TimedFrames:
    """Frames of anything that holds them, each with its time, once, in bounded memory."""

    def __init__(self, source: Any, frames_per_second: float | None) -> None:
        self.notes: list[str] = []
        self.count: int | None = None
        if isinstance(source, StreamFrames):
            # Its own clock keeps every stamp.
            self.fps, self.name = source.frames_per_second, source.name
            self._frames: Iterator[tuple[float, Frame]] = ((n / self.fps, frame) for n, frame in enumerate(source))
        elif isinstance(source, Iterable) and not isinstance(
            source, (str, os.PathLike, FrameSource, Sequence, np.ndarray)
        ):
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
        first = [stamped(item) for item in islice(items, RATE_FRAMES)]
        gaps = np.diff([time for _, time, _ in first if np.isfinite(time)])
        usual = float(np.median(gaps[gaps > 0])) if (gaps > 0).any() else 0.0
        self.fps = frames_per_second or (1 / usual if usual > 0 else FALLBACK_RATE)
        if not frames_per_second and not usual:
            self.notes.append(f"the frame rate is unknown; {self.fps:g} frames a second were assumed.")
        if not first:
            raise MediaError(f"{self.name} gave no frame; check the camera or the generator.")
        return self._clocked(chain(first, map(stamped, items)))

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
