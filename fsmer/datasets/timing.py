"""Onset, apex and offset of an annotation as positions among the frames that are on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fsmer.datasets.annotation import Annotation, frame_number, states_nothing
from fsmer.datasets.folders import Frames

__all__ = ["Form", "LeftOut", "frame_timing", "timing_table", "video_timing"]

NUMBERS = ("frames", "first", "last", "onset", "apex", "offset", "onset_index", "apex_index", "offset_index")

# Kind and detail of each thing that is to be said of a clip.
Notes = list[tuple[str, str]]


class LeftOut(Exception):
    """Why one clip cannot be used: problem and detail; stays inside `fsmer.datasets`."""


class Form(NamedTuple):
    """What the annotation of a data set gives, see the attributes of `Adapter`."""

    has_apex: bool
    segmented: bool
    first_video_frame: int


def frame_timing(frames: Frames, clip: Annotation, notes: Notes, form: Form) -> dict[str, Any]:
    """Columns on the frames of a clip that is a folder; what was replaced is added to `notes`."""
    numbers = frames.numbers
    if len(numbers) < 2:
        raise LeftOut("frames missing", f"{frames.folder} holds {len(numbers)} frames, but two are needed")
    first, last = int(numbers[0]), int(numbers[-1])
    onset, apex, offset = (frame_number(cell) for cell in (clip.onset, clip.apex, clip.offset))
    if onset is None:
        if not form.segmented:
            raise LeftOut("onset missing", f"the annotation has {clip.onset!r}, and the recording is longer")
        if form.has_apex or not states_nothing(clip.onset):
            notes.append(("onset missing", f"the annotation has {clip.onset!r}; the first frame is used"))
        onset = first
    if offset is None or offset < onset:
        problem = "offset missing" if offset is None else "offset before onset"
        if not form.segmented:
            raise LeftOut(problem, f"the annotation has {clip.offset!r}, and the recording is longer")
        if form.has_apex or not states_nothing(clip.offset):
            notes.append((problem, f"the annotation has {clip.offset!r}; the last frame is used"))
        offset = last
    # Some crops count their frames from 1 or 0; the whole clip is there all the same.
    shift = 0
    if first != onset and last - first == offset - onset == len(numbers) - 1:
        shift = first - onset
        notes.append(("renumbered", f"frames {onset}-{offset} are called {first}-{last} on disk"))
    start = int(np.searchsorted(numbers, onset + shift, "left"))
    stop = int(np.searchsorted(numbers, offset + shift, "right")) - 1
    there, asked = stop - start + 1, offset - onset + 1
    if there < 2:
        on_disk = f"{max(there, 0)} of the frames {onset}-{offset} are on disk, where frames {first}-{last} are"
        raise LeftOut("out of range", on_disk)
    if there < asked:
        notes.append(("frames missing", f"{asked - there} of the frames {onset}-{offset} are not on disk"))
    middle = (start + stop) // 2
    apex_index, apex_from = middle, "middle"
    if apex is None:
        if form.has_apex or not states_nothing(clip.apex):
            notes.append(("apex missing", f"the annotation has {clip.apex!r}; the middle frame is used"))
    elif not onset <= apex <= offset:
        notes.append(("apex out of range", f"{apex} is not between {onset} and {offset}; the middle frame is used"))
    else:
        apex_index = start + int(np.abs(numbers[start : stop + 1] - (apex + shift)).argmin())
        apex_from = "annotation"
        if int(numbers[apex_index]) != apex + shift:
            notes.append(("frames missing", f"apex {apex} is not on disk, {int(numbers[apex_index])} is used"))
    for index in dict.fromkeys((start, apex_index, stop)):
        if os.path.getsize(frames.folder / frames.names[index]) == 0:
            raise LeftOut("empty file", f"{frames.folder / frames.names[index]} has no bytes")
    counts = (len(numbers), first, last, onset, apex, offset, start, apex_index, stop)
    return {**dict(zip(NUMBERS, counts, strict=True)), "apex_from": apex_from}


def video_timing(path: Path, clip: Annotation, notes: Notes, form: Form) -> dict[str, Any]:
    """As `frame_timing` for a clip of a video, whose number of frames is unknown until it is decoded."""
    if path.stat().st_size == 0:
        raise LeftOut("empty file", f"{path} has no bytes")
    onset, apex, offset = (frame_number(cell) for cell in (clip.onset, clip.apex, clip.offset))
    first = form.first_video_frame
    if onset is None and not form.segmented:
        raise LeftOut("onset missing", f"the annotation has {clip.onset!r}, and the recording is longer")
    for name, number, cell in (("onset", onset, clip.onset), ("offset", offset, clip.offset)):
        if number is None and not states_nothing(cell):
            end = "first" if name == "onset" else "last"
            notes.append((f"{name} missing", f"the annotation has {cell!r}; the {end} frame is used"))
    start = first if onset is None else onset
    if start < first or (offset is not None and offset <= start):
        raise LeftOut("out of range", f"frames {start}-{offset} are no interval of a video that begins at {first}")
    if apex is not None and (apex < start or (offset is not None and apex > offset)):
        notes.append(("apex out of range", f"{apex} is not between {start} and {offset}"))
        apex = None
    elif apex is None and (form.has_apex or not states_nothing(clip.apex)):
        notes.append(("apex missing", f"the annotation has {clip.apex!r}"))
    middle = None if offset is None else (start + offset) // 2
    place = middle if apex is None else apex
    indices = (None if one is None else one - first for one in (start, place, offset))
    counts = (None, first, None, onset, apex, offset, *indices)
    return {**dict(zip(NUMBERS, counts, strict=True)), "apex_from": "middle" if apex is None else "annotation"}


def timing_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Table of clips whose numbers of frames are whole or missing."""
    frame = pd.DataFrame(list(records))
    numbers = {name: pd.array(frame[name].tolist(), dtype="Int64") for name in NUMBERS}
    speed = pd.Series([float("nan") if fps is None else fps for fps in frame["frames_per_second"]], dtype=float)
    return frame.assign(**numbers, frames_per_second=speed)
