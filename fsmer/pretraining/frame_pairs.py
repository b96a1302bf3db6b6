"""Pairs of frames for training without labels: from any tree of frame folders and videos, or from drawn faces."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fsmer.datasets.folders import natural_order
from fsmer.errors import DataError
from fsmer.preprocess.frame_source import FrameSource
from fsmer.preprocess.image_folder import IMAGE_SUFFIXES, ImageFolder
from fsmer.preprocess.video_file import VideoFile
from fsmer.synthetic.recordings import synthetic_videos

__all__ = ["FolderPairs", "FramePairs", "Recording", "SyntheticPairs", "find_recordings"]

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})

# Pairs that a drawn video gives on average before it goes.
PAIRS_A_VIDEO = 8
# Frames of a drawn video: onset to apex and on to the offset.
SYNTHETIC_FRAMES = 24

Frames = NDArray[np.uint8]
Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


class FramePairs(Protocol):
    """Where a training without labels gets its pairs of frames from."""

    def batch(self, step: int, count: int) -> Pair:
        """First and second frames of one step, each float32 of shape (count, 3, height, width) in 0..1.

        What a step gets depends on the seed and its number alone, not on the steps before it.
        """

    def describe(self) -> dict[str, Any]:
        """Plain values that say what the frames are."""


@dataclass(frozen=True)
class Recording:
    """One video file, or one folder with an image a frame."""

    path: Path
    files: tuple[str, ...] = ()  # names of the images in order of time, see `natural_order`; none for a video
    video: VideoFile | None = None

    def __len__(self) -> int:
        return len(self.files) if self.video is None else len(self.video)

    def read(self, indices: Sequence[int], size: tuple[int, int]) -> Frames:
        """The frames of these numbers, resized: uint8 of shape (n, height, width, 3), red green blue.

        A `MediaError` names the file where a frame cannot be read or frames differ in size.
        """
        order = np.argsort(indices)
        source: FrameSource
        if self.video is None:
            source = ImageFolder(self.path, files=[self.files[indices[place]] for place in order])
            frames = source.read()
        else:
            # A copy has a decoder of its own, which is closed with it: thousands of videos must not stay open.
            source = copy.copy(self.video)
            frames = source.read([indices[place] for place in order])
        resized = np.empty((len(indices), *size, 3), np.uint8)
        for place, frame in zip(order, frames, strict=True):
            resized[place] = _resized(frame, size)
        return resized


def find_recordings(root: str | os.PathLike[str]) -> list[Recording]:
    """Every recording under `root`: each folder that holds images is one, each video file is one.

    Names that begin with a dot are passed over. The order is that of the names, so it is the same on every machine. A
    `DataError` is raised where `root` is no folder or holds neither an image nor a video at any depth, a `MediaError`
    for a video that cannot be read.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"the folder of frames {folder} does not exist; give a folder that holds frames or videos.")
    found: list[Recording] = []
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        kinds = {name: Path(name).suffix.lower() for name in sorted(names) if not name.startswith(".")}
        images = natural_order(name for name, suffix in kinds.items() if suffix in IMAGE_SUFFIXES)
        if images:
            found.append(Recording(Path(place), files=tuple(images)))
        for name, suffix in kinds.items():
            if suffix in VIDEO_SUFFIXES:
                found.append(Recording(Path(place) / name, video=VideoFile(Path(place) / name)))
    if not found:
        raise DataError(
            f"there is neither an image nor a video under {folder}; give a folder that holds, for each recording, a "
            f"folder of frames ({', '.join(sorted(IMAGE_SUFFIXES))}) or a video ({', '.join(sorted(VIDEO_SUFFIXES))})."
        )
    return found


class FolderPairs:
    """Pairs of frames from the recordings under a folder; labels are not read.

    Each pair takes a recording, then a distance, then a place, each of them equally likely, and either of the two
    frames comes first. A recording shorter than the largest distance gives those that fit into it.

    Frames are resized to `size` (height, width); their sides may change in proportion. `distance` is the range of
    frames from one frame of a pair to the other. `recordings` holds those that are long enough for a pair, `skipped`
    the number of those that are not. Errors are those of `find_recordings`, and a `DataError` where no recording is
    long enough.
    """

    def __init__(
        self, root: str | os.PathLike[str], *, size: tuple[int, int], distance: tuple[int, int], seed: int = 0
    ) -> None:
        found = find_recordings(root)
        self.recordings = [recording for recording in found if len(recording) > distance[0]]
        self.skipped = len(found) - len(self.recordings)
        self.size, self.distance, self.seed = size, distance, seed
        if not self.recordings:
            longest = max(len(recording) for recording in found)
            raise DataError(
                f"none of the {len(found)} recordings under {os.fspath(root)} has two frames {distance[0]} apart "
                f"(the longest has {longest}); give longer recordings or a smaller distance."
            )

    def batch(self, step: int, count: int) -> Pair:
        """See `FramePairs.batch`."""
        rng = np.random.Generator(np.random.PCG64([self.seed, step]))
        frames = []
        for _ in range(count):
            recording = self.recordings[int(rng.integers(len(self.recordings)))]
            frames.append(recording.read(draw_pair(rng, len(recording), self.distance), self.size))
        return _as_batch(frames)

    def describe(self) -> dict[str, Any]:
        """See `FramePairs.describe`."""
        return {
            "recordings": len(self.recordings),
            "frames": sum(len(recording) for recording in self.recordings),
            "too_short": self.skipped,
        }


@dataclass(kw_only=True, eq=False)
class SyntheticPairs:
    """Pairs of frames from drawn faces, with expressions and head motion; no recording of a person.

    A pool of videos is kept and a few of them are replaced at every step, so that a video gives several pairs.

    `size` is (height, width), `distance` the range of frames from one frame of a pair to the other, and `pool` the
    number of videos that are held at a time.
    """

    size: tuple[int, int]
    distance: tuple[int, int]
    seed: int = 0
    domain: str = "broad"
    pool: int = 16
    _videos: dict[int, Frames] = field(default_factory=dict, repr=False)

    def batch(self, step: int, count: int) -> Pair:
        """See `FramePairs.batch`."""
        first = step * max(1, count // PAIRS_A_VIDEO)
        self._hold(first, first + self.pool)
        rng = np.random.Generator(np.random.PCG64([self.seed, step]))
        frames = []
        for _ in range(count):
            video = self._videos[first + int(rng.integers(self.pool))]
            frames.append(video[list(draw_pair(rng, len(video), self.distance))])
        return _as_batch(frames)

    def describe(self) -> dict[str, Any]:
        """See `FramePairs.describe`."""
        return {"synthetic": self.domain}

    def _hold(self, start: int, stop: int) -> None:
        """Keep the videos of these numbers and no others."""
        kept = range(start, stop) if start in self._videos else ()
        self._videos = {number: self._videos[number] for number in kept if number in self._videos}
        fresh = start + len(self._videos)
        self._videos.update(zip(range(fresh, stop), self._draw(fresh, stop), strict=True))

    def _draw(self, start: int, stop: int) -> Iterator[Frames]:
        length = max(SYNTHETIC_FRAMES, self.distance[1] + 1)
        options: dict[str, Any] = {"domain": self.domain, "seed": self.seed, "size": self.size, "frames": length}
        for video in synthetic_videos(stop - start, start=start, **options):
            yield video.frames


def draw_pair(rng: np.random.Generator, length: int, distance: tuple[int, int]) -> tuple[int, int]:
    """Two frame numbers of a recording of `length` frames, `distance` apart, in either order."""
    apart = int(rng.integers(distance[0], min(distance[1], length - 1) + 1))
    start = int(rng.integers(length - apart))
    return (start, start + apart) if rng.random() < 0.5 else (start + apart, start)


def _as_batch(frames: list[Frames]) -> Pair:
    """Pairs of uint8 (2, height, width, 3) as two float32 arrays (pairs, 3, height, width) in 0..1."""
    stacked = np.moveaxis(np.stack(frames, axis=1), -1, 2).astype(np.float32) / np.float32(255)
    return np.ascontiguousarray(stacked[0]), np.ascontiguousarray(stacked[1])


def _resized(frame: Frames, size: tuple[int, int]) -> Frames:
    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BILINEAR))
