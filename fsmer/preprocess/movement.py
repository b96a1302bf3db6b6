"""Movements that a spotter finds in a recording, and the moments that it keeps of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fsmer.preprocess.faces import FacePose, crop_face, shrunk
from fsmer.preprocess.frame_source import Frame

# Widest face kept in the buffer, in pixels: what lies above the 224 of a crop is not needed again.
KEPT_WIDTH = 240
# How much of the picture around the crop is kept, in crop widths and heights, for a head that moves on.
KEPT_REACH = 1.45


@dataclass(frozen=True, eq=False)
class Moment:
    """One frame as the spotter keeps it: the face with its surroundings, no larger than needed."""

    number: int  # place in the recording
    time: float  # seconds since the first frame
    picture: Frame  # (h, w, 3), part of the frame, maybe scaled down
    pose: FacePose  # the face in `picture`
    corner: NDArray[np.float64]  # (2,), upper left corner of `picture` in the frame, pixels
    scale: float  # pixels of `picture` a pixel of the frame

    def of_frame(self, pose: FacePose) -> FacePose:
        """A pose in this moment's picture as one in the frame."""
        return pose.moved(1 / self.scale, -self.corner * self.scale)

    def of_picture(self, pose: FacePose) -> FacePose:
        """A pose in the frame as one in this moment's picture."""
        return pose.moved(self.scale, self.corner)

    def in_sight(self, pose: FacePose) -> float:
        """Share of a crop (of the frame) that lies in this moment's picture."""
        corners = self.of_picture(pose).corners
        edges = np.array(self.picture.shape[1::-1]) - 1.0
        inside = np.ptp(np.clip(corners, 0, edges), axis=0) / np.ptp(corners, axis=0)
        return float(inside.prod())

    def crop(self, pose: FacePose, size: tuple[int, int] = (224, 224)) -> Frame:
        """Cut what lies at `pose` (of the frame) out of this moment."""
        return crop_face(self.picture, self.of_picture(pose), size)


def keep_moment(frame: Frame, pose: FacePose, number: int, time: float) -> Moment:
    """The part of a frame around a face that a later crop may need."""
    reach = np.abs(pose.axes) @ np.array([0.5, 0.5]) * KEPT_REACH
    height, width = frame.shape[:2]
    left, top = np.clip(np.floor(pose.centre - reach), 0, (width - 1, height - 1)).astype(int)
    right, bottom = np.clip(np.ceil(pose.centre + reach) + 1, (left + 1, top + 1), (width, height)).astype(int)
    part = frame[top:bottom, left:right]
    scale = min(1.0, KEPT_WIDTH / pose.width)
    picture = shrunk(part, scale) if scale < 1 else part.copy()
    kept = Moment(number, time, picture, pose, np.array([left, top], np.float64), scale)
    return replace(kept, pose=kept.of_picture(pose))


@dataclass(frozen=True, eq=False)
class Movement:
    """One movement of the face."""

    moments: tuple[Moment, ...] = field(repr=False)  # from onset to offset
    apex_place: int  # place of the apex among them
    energy: float  # how far the facial regions have moved at the apex, thousandths of the face width
    # Crop of every moment in pixels of the frame: the onset's, unless the head moved so far that flow would lose it;
    # then each moment's own
    poses: tuple[FacePose, ...] = field(repr=False)
    before: tuple[Moment, ...] = field(default=(), repr=False)  # the face at rest, shortly before the onset

    @property
    def onset(self) -> Moment:
        """Last moment at rest."""
        return self.moments[0]

    @property
    def apex(self) -> Moment:
        """Moment of the strongest movement."""
        return self.moments[self.apex_place]

    @property
    def offset(self) -> Moment:
        """First moment at rest again."""
        return self.moments[-1]

    def crops(self, places: Sequence[int] | None = None, size: tuple[int, int] = (224, 224)) -> list[Frame]:
        """Face crops of some moments (default all)."""
        chosen = range(len(self.moments)) if places is None else places
        return [self.moments[place].crop(self.poses[place], size) for place in chosen]

    def pair(self, size: tuple[int, int] = (224, 224)) -> tuple[Frame, Frame]:
        """Face crops of onset and apex."""
        onset, apex = self.crops([0, self.apex_place], size)
        return onset, apex

    def steady_pair(self, size: tuple[int, int] = (224, 224)) -> tuple[Frame, Frame]:
        """Face crops of onset and apex, each the mean of a few frames that show the same: half the noise of `pair`."""
        onset, apex = self.near(size)
        return mean_picture(_same(onset)), mean_picture(_same(apex))

    def near(self, size: tuple[int, int] = (224, 224)) -> tuple[list[Frame], list[Frame]]:
        """Face crops from the onset back into rest, and from the apex to both sides."""
        rest = [one for one in (*self.before, self.onset) if self.onset.time - one.time <= STEADY_SPAN[0]]
        onset = [one.crop(self.poses[0], size) for one in rest[: -STEADY[0] - 1 : -1]]
        reach = STEADY[1] // 2
        near = range(max(1, self.apex_place - reach), min(len(self.moments), self.apex_place + reach + 1))
        close = [n for n in near if abs(self.moments[n].time - self.apex.time) <= STEADY_SPAN[1] / 2]
        return onset, self.crops(sorted(close, key=lambda n: abs(n - self.apex_place)), size)


def mean_picture(pictures: Sequence[Frame]) -> Frame:
    """The mean of pictures that show the same, with less noise."""
    return np.round(np.mean(pictures, axis=0, dtype=np.float32)).astype(np.uint8)


def _same(pictures: Sequence[Frame]) -> list[Frame]:
    """The first picture and those that differ from it hardly more than the nearest does."""
    first = pictures[0].astype(np.float32)
    differences = [float(np.abs(first - one).mean()) for one in pictures]
    # A head that moves on would be seen twice.
    most = 1.3 * min(differences[1:], default=0.0) + 0.3
    return [one for one, difference in zip(pictures, differences, strict=True) if difference <= most]


# Frames that steady an onset (at rest before it) and an apex (around it), and the seconds they may span.
STEADY, STEADY_SPAN = (5, 3), (0.17, 0.09)
