"""One clip of a preparation: its media made and put into the store of parts, in a worker."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fsmer.data.media_checks import check_arrays
from fsmer.datasets.folders import list_frames
from fsmer.errors import DataError, OutputError, SpecMismatchError, UnknownNameError, WeightsError
from fsmer.preprocess.apex import check_interval
from fsmer.preprocess.face_detectors import CroppedFaces, FaceDetector, load_detector
from fsmer.preprocess.face_tracking import CroppedFrames
from fsmer.preprocess.frame_source import FALLBACK_RATE, DerivedFrames, Frame, FrameSource, Recent
from fsmer.preprocess.image_folder import ImageFolder
from fsmer.preprocess.media import apex_source, crop_frames, make_media, needs_apex
from fsmer.preprocess.prepare_store import FACTS, Job, Outcome, Task, settings_hash, stored_type, write_part
from fsmer.preprocess.video_file import VideoFile

# Bytes of decoded frames that a clip keeps, so that its onset is decoded once for face, flow and image.
KEPT_BYTES = 64 << 20
# Arrays below this size stay with the process when they are freed; 32 MiB is as far as glibc can be taught.
FREED_BYTES = 31 << 20
# What goes wrong alike for every clip is no clip's fault.
FATAL = (SpecMismatchError, UnknownNameError, WeightsError, OutputError)


class _KeptFrames(DerivedFrames):
    """A source that keeps the frames read last: a clip's onset is asked for by its face, its flow and its image."""

    def __init__(self, source: FrameSource) -> None:
        super().__init__(source)
        self._kept: Recent[Frame] = Recent(KEPT_BYTES, attrgetter("nbytes"))

    def _frame(self, index: int) -> Frame:
        return self._kept.get(index, self.source.__getitem__)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Hold OpenCV, BLAS and OpenMP to one thread.

    Clips are what runs in parallel. Threads below would compete for the same cores, and sums that they split in another
    way on another machine would round to other bytes.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    _keep_freed_memory()
    try:
        with _thread_pools().limit(limits=1):
            yield
    finally:
        cv2.setNumThreads(before)


@lru_cache(maxsize=1)
def _keep_freed_memory() -> None:
    # glibc hands arrays of some hundred kilobytes back to the system when they are freed, and a clip's flow then spends
    # a fifth of its time on getting their pages again. Freeing one large block once teaches it to keep smaller ones.
    np.empty(FREED_BYTES, np.uint8)


@lru_cache(maxsize=1)
def _thread_pools() -> Any:
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()


@one_thread()
def prepare_clip(task: Task, job: Job) -> Outcome:
    """Make one clip's media on one thread and put them into the store of parts, unless they are there."""
    try:
        key = _key(task, job)
        if key == task.finished:
            return Outcome(task.clip, key, "finished")
        if key in task.parts and task.parts[key].whole():
            return Outcome(task.clip, key, "part", task.parts[key])
        arrays, facts = _make(task, job)
    except FATAL:
        raise
    except DataError as error:
        return Outcome(task.clip, problem=type(error).__name__, detail=str(error))
    except Exception as error:  # decoders raise anything on damaged files, and no clip may stop the rest
        reason = str(error).strip().splitlines()
        return Outcome(task.clip, problem=type(error).__name__, detail=reason[0] if reason else "no reason given")
    return Outcome(task.clip, key, "made", write_part(task, key, arrays, facts, job))


def _make(task: Task, job: Job) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    steps = job.recipe
    path = Path(task.path)
    # No medium depends on the rate; telling one spares every folder the note that it is unknown.
    if path.is_dir():
        read: FrameSource = ImageFolder(path, files=_frame_names(path) or None, frames_per_second=FALLBACK_RATE)
    else:
        read = VideoFile(path, frames_per_second=FALLBACK_RATE)
    source = _KeptFrames(read)
    searches = needs_apex(spec for _, specs in job.groups for spec in specs)
    first, top, last = task.frames
    apex = top if searches and steps.apex in ("given", "annotated") else None
    onset, offset = check_interval(len(source), first, apex, last, name=source.name)
    # The size of a folder is known from the onset then, and no further file is opened for it.
    source[onset]
    detector = _detector(steps.detector, json.dumps(dict(steps.detector_parameters), sort_keys=True))
    crops = crop_frames(source, steps, onset=onset, detector=detector)
    if isinstance(crops, CroppedFrames):
        crops = _KeptFrames(crops)
    arrays: dict[str, NDArray[Any]] = {}
    notes: dict[str, None] = {}
    apex_from = ""
    # Every group starts from the same crops and the same apex, so both are determined once.
    for place, (_, specs) in enumerate(job.groups):
        inner = replace(job.inner, apex="given") if apex_from else job.inner
        times = {"onset": onset, "apex": apex, "offset": offset}
        made = make_media(crops, specs, **times, recipe=inner, detector=CroppedFaces(), eight_bit=True)
        for spec in specs:
            array = np.ascontiguousarray(made.media[spec.kind], stored_type(spec))
            problem = check_arrays(array[None], spec)
            if problem is not None:
                raise DataError(problem[1])
            arrays[f"{place}-{spec.kind}"] = array
        notes.update(dict.fromkeys(made.notes))
        if made.apex is not None and not apex_from:
            apex, apex_from = made.apex, apex_source(made.apex_method)
    return arrays, dict(zip(FACTS, (onset, apex, offset, apex_from, " ".join(notes)), strict=True))


@lru_cache(maxsize=1)
def _frame_names(folder: Path) -> list[str]:
    return list(list_frames(folder).names)


def _key(task: Task, job: Job) -> str:
    """Hash of all that decides on a clip's media: settings, frame numbers, and the names and sizes of its files."""
    path = Path(task.path)
    files: list[tuple[str, int]] = []
    if path.is_dir():
        _frame_names.cache_clear()
        files = [(name, os.stat(f"{task.path}/{name}").st_size) for name in _frame_names(path)]
    elif path.is_file():
        files = [(path.name, path.stat().st_size)]
    return settings_hash([job.settings, task.clip, *task.frames, files])


@lru_cache(maxsize=2)
def _detector(name: str, parameters: str) -> FaceDetector:
    return load_detector(name, json.loads(parameters))
