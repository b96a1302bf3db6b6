"""One face through a recording: chosen, followed, steadied in time, and cut out of every frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fsmer.preprocess.face_detectors import CroppedFaces, FaceDetector, LandmarkFile
from fsmer.preprocess.faces import POSE_NUMBERS, FacePose, NoFaceError, crop_face, median_pose
from fsmer.preprocess.frame_source import DerivedFrames, Frame, FrameSource

Which = int | Literal["largest"]


def choose_face(faces: Sequence[FacePose], which: Which = "largest", *, where: str = "the frame") -> FacePose:
    """One of the faces of a frame, given largest first; `NoFaceError`, naming it `where`, if it has not so many."""
    if not faces:
        raise NoFaceError(
            f"no face was found in {where}; use a recording that shows one from the front, give landmarks, or say that "
            "the frames are cropped already (detector 'cropped')."
        )
    index = 0 if which == "largest" else int(which)
    if not 0 <= index < len(faces):
        raise NoFaceError(f"face {index} was asked for, but {where} shows {len(faces)} (from 0, largest first).")
    return faces[index]


@dataclass
class FaceTracker:
    """Follows one face from frame to frame, for recordings too long to be held.

    A hand or a turn that hides the face makes it lost rather than misplaced: what is found must be as good a face as it
    used to be, and must not have changed its size abruptly.
    """

    detector: FaceDetector  # one with a method ``follow`` is asked to follow between two detections
    which: Which = "largest"  # the face to start on; later the one nearest to it is kept
    renew: int = 25  # detect afresh after so many frames of following
    pause: int = 5  # while no face is seen, search only every so many frames: searching costs more than following
    _last: FacePose | None = field(default=None, repr=False)
    _anchor: FacePose | None = field(default=None, repr=False)
    _usual: float = field(default=0.0, repr=False)
    _age: int = field(default=-1, repr=False)

    def update(self, frame: Frame, number: int = 0) -> FacePose | None:
        """The face's pose in the next frame, or None where it is not seen."""
        self._age += 1
        follow = getattr(self.detector, "follow", None)
        if follow is not None and self._last is None and 0 < self._age < self.pause:
            return None
        followed = None if follow is None or self._last is None else follow(frame, self._last, number)
        if followed is not None and not self._is_same(followed):
            followed = None
        if followed is None or self._age >= self.renew:
            followed = self._renewed(frame, number, followed)
        if followed is not None:
            self._usual = followed.score if not self._usual else 0.95 * self._usual + 0.05 * followed.score
        self._last = followed
        return followed

    def _is_same(self, pose: FacePose) -> bool:
        anchor = self._anchor or pose
        return pose.score >= 0.6 * self._usual and abs(np.log(pose.width / anchor.width)) < 0.2

    def _renewed(self, frame: Frame, number: int, followed: FacePose | None) -> FacePose | None:
        faces, self._age = self.detector.detect(frame, number), 0
        if self._anchor is None:
            index = 0 if self.which == "largest" else int(self.which)
            found = faces[index] if index < len(faces) else None
        else:
            before = self._last or self._anchor
            good = [pose for pose in faces if pose.score >= 0.6 * self._usual]
            found = min(good, key=lambda pose: np.hypot(pose.x - before.x, pose.y - before.y), default=None)
        if followed is not None and (found is None or found.score < followed.score or not self._is_same(found)):
            found = followed
        self._anchor = found or self._anchor
        return found


def locate_face(
    source: FrameSource, detector: FaceDetector, number: int = 0, *, which: Which = "largest", around: int = 2
) -> FacePose:
    """Pose of the face in frame `number`, steadied by the median over so many frames `around` it, before and after.

    `NoFaceError` where the frame shows no face (or not that many).
    """
    first = choose_face(detector.detect(source[number], number), which, where=f"frame {number} of {source.name}")
    if isinstance(detector, (CroppedFaces, LandmarkFile)):
        return first
    poses = [first]
    for other in range(max(0, number - around), min(len(source), number + around + 1)):
        if other != number:
            faces = detector.detect(source[other], other)
            near = [pose for pose in faces if np.hypot(pose.x - first.x, pose.y - first.y) < 0.3 * first.width]
            poses.extend(near[:1])
    return median_pose(poses)


def track_faces(
    source: FrameSource, detector: FaceDetector, *, which: Which = "largest", smooth: int = 5
) -> tuple[list[FacePose], NDArray[np.bool_]]:
    """Pose of one face in every frame, smoothed by a running median, and the frames in which it was seen.

    Frames that lose it are filled from neighbours; `NoFaceError` where those are more than half.
    """
    tracker = FaceTracker(detector, which)
    seen = [tracker.update(frame, number) for number, frame in enumerate(source)]
    found = np.array([pose is not None for pose in seen])
    if not found.any():
        raise NoFaceError(f"no face was found in any of the {len(seen)} frames of {source.name}; give landmarks.")
    if found.mean() < 0.5:
        raise NoFaceError(
            f"the face is lost in {int((~found).sum())} of the {len(found)} frames of {source.name}; give landmarks or "
            "cut the recording to the part that shows it."
        )
    places = np.flatnonzero(found)
    known = [pose for pose in seen if pose is not None]
    every = np.arange(len(seen))
    columns = [np.interp(every, places, [getattr(pose, name) for pose in known]).tolist() for name in POSE_NUMBERS]
    filled = [
        replace(seen[number] or known[0], **dict(zip(POSE_NUMBERS, values, strict=True)))
        for number, values in enumerate(zip(*columns, strict=True))
    ]
    reach = smooth // 2
    poses = [median_pose(filled[max(0, number - reach) : number + reach + 1]) for number in range(len(seen))]
    return poses, found


class CroppedFrames(DerivedFrames):
    """The face of a recording, cut out upright at `size` (height, width), by one pose for all frames or one a frame."""

    def __init__(
        self, source: FrameSource, poses: FacePose | Sequence[FacePose], size: tuple[int, int] = (224, 224)
    ) -> None:
        super().__init__(source)
        self.poses, self._size = poses, size

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the crops."""
        return self._size

    def __iter__(self) -> Iterator[Frame]:
        for number, frame in enumerate(self.source):
            yield self._cut(frame, number)

    def _frame(self, index: int) -> Frame:
        return self._cut(self.source[index], index)

    def _cut(self, frame: Frame, number: int) -> Frame:
        return crop_face(frame, self.poses if isinstance(self.poses, FacePose) else self.poses[number], self._size)
