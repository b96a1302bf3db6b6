"""From a data set on disk to a folder of clips with all the media that backbones need: parallel, resumable, atomic."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import platform
import shutil
import sys
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NotRequired, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from typing_extensions import TypedDict

from fsmer.data.clips import ClipSet
from fsmer.data.media import NpyStore, RowError, check_arrays
from fsmer.data.saved import TABLE, ArrayWriter, read_folder, write_header
from fsmer.data.schemes import LabelScheme
from fsmer.data.spec import InputSpec
from fsmer.data.table import clean_table, write_table
from fsmer.datasets import check_dataset
from fsmer.datasets.base import FrameKind
from fsmer.datasets.folders import list_frames
from fsmer.errors import (
    DataError,
    FsmerError,
    MissingDatasetError,
    OutputError,
    SpecMismatchError,
    UnknownNameError,
    WeightsError,
)
from fsmer.io import (
    atomic_folder,
    check_regular,
    check_writable,
    digest,
    file_digest,
    read_bytes,
    restore_folder,
    write_json,
    write_text,
)
from fsmer.preprocess.apex import check_interval
from fsmer.preprocess.faces import CroppedFaces, CroppedFrames, FaceDetector, load_detector
from fsmer.preprocess.media import apex_source, checked_specs, crop_frames, made_spec, make_media, needs_apex
from fsmer.preprocess.reading import FALLBACK_RATE, Frame, ImageFolder, VideoFile
from fsmer.preprocess.recipe import PreprocessRecipe
from fsmer.schema import Count, parse_json, read_json

__all__ = ["PrepareProgress", "PrepareReport", "Prepared", "group_specs", "prepare"]

RECIPE = "recipe.json"
REPORT = "report.csv"
SETTINGS = "prepare.json"
LOCK = "lock"
# Characters of the digest after a clip in the store, and the most bytes that the line before its media may have.
DIGEST, HEAD_BYTES = 32, 1 << 20
REPORT_COLUMNS = ("clip", "dataset", "subject", "status", "problem", "detail", "key")
# Raised whenever finished clips of an unfinished run can no longer be used.
PART_VERSION = 2
# Bytes of decoded frames that a clip keeps, so that its onset is decoded once for face, flow and image.
KEPT_BYTES = 64 << 20
# Arrays below this size stay with the process when they are freed; 32 MiB is as far as glibc can be taught.
FREED_BYTES = 31 << 20
# What goes wrong alike for every clip is no clip's fault.
FATAL = (SpecMismatchError, UnknownNameError, WeightsError, OutputError)


@dataclass(frozen=True)
class PrepareProgress:
    """How far `prepare` is.

    Parameters
    ----------
    done, total : int
        Clips finished (or given up), and clips in all.
    left_out : int
        Clips given up so far.
    seconds : float
        Since the start of this run.
    remaining : float or None
        Seconds left at the pace of the clips that this run made; None before the first.
    """

    done: int
    total: int
    left_out: int
    seconds: float
    remaining: float | None


@dataclass(frozen=True)
class PrepareReport:
    """What became of every clip. ``str()`` gives a readable summary.

    Parameters
    ----------
    table : DataFrame
        One row a clip: ``clip, dataset, subject``, ``status`` (``"prepared"`` or ``"left out"``), ``problem``,
        ``detail`` and ``key`` (hash of all that decides on a prepared clip's media), as in ``report.csv``.
    recipe : str
        Hash of the recipe.
    reused : int
        Clips that an earlier run had finished.
    seconds : float
        Duration of this run.
    """

    table: pd.DataFrame
    recipe: str
    reused: int
    seconds: float

    @property
    def prepared(self) -> int:
        """Number of clips in the result."""
        return int((self.table["status"] == "prepared").sum())

    @property
    def left_out(self) -> pd.DataFrame:
        """Rows of the clips that are not in the result."""
        return self.table[self.table["status"] == "left out"].reset_index(drop=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "prepared": self.prepared,
            "reused": self.reused,
            "seconds": self.seconds,
            "recipe": self.recipe,
            "left_out": self.left_out[["clip", "problem", "detail"]].to_dict("records"),
        }

    def __str__(self) -> str:
        total, lost = len(self.table), self.left_out
        head = f"{self.prepared} of {total} clips prepared in {self.seconds:.1f} s (recipe {self.recipe})"
        if self.reused:
            head += f", {self.reused} of them by an earlier run"
        rows = zip(lost["clip"], lost["problem"], lost["detail"], strict=True)
        return "\n".join([head, *(f"  left out  {clip}: {problem}: {detail}" for clip, problem, detail in rows)])


@dataclass(frozen=True)
class Prepared:
    """Result of `prepare`.

    Parameters
    ----------
    folder : Path
        Where it lies.
    sets : mapping of str to ClipSet
        Name of the sub-folder -> clips; one entry ``""`` where the folder itself is the clip set.
    report : PrepareReport
    """

    folder: Path
    sets: Mapping[str, ClipSet]
    report: PrepareReport

    @property
    def clips(self) -> ClipSet:
        """The clip set.

        Raises
        ------
        DataError
            There are several, because the backbones want different media of one kind.
        """
        if len(self.sets) > 1:
            raise DataError(
                f"{self.folder} holds {len(self.sets)} clip sets ({', '.join(self.sets)}), since one clip holds one "
                "medium a kind; choose one of `sets`."
            )
        return next(iter(self.sets.values()))


# -- what is to be made -----------------------------------------------------------------------------------------------


def group_specs(wanted: Mapping[str, Sequence[InputSpec]]) -> dict[str, tuple[InputSpec, ...]]:
    """Put the media that several backbones want into as few clip sets as can hold them.

    Two specs of one kind share a medium when they differ in nothing but channels (it gets those of both; readers pick
    theirs by name) and in a flow method that only one of them names. Backbones whose specs cannot be shared get a clip
    set of their own; each backbone goes to the first set that fits.

    Parameters
    ----------
    wanted : mapping of str to sequence of InputSpec
        Name -> what it eats.

    Returns
    -------
    dict of str to tuple of InputSpec
        Names joined by ``+`` -> specs of that clip set, sorted by kind.

    Examples
    --------
    >>> small, large = InputSpec("onset", (28, 28), ("red", "green", "blue"), "unit"), InputSpec("flow")
    >>> list(group_specs({"a": [small], "b": [large], "c": [InputSpec("flow", (56, 56))]}))
    ['a+b', 'c']
    """
    groups: list[tuple[list[str], dict[str, InputSpec]]] = []
    for name, specs in wanted.items():
        own = _united({}, specs)
        if own is None:
            raise SpecMismatchError(f"{name!r} asks for two different media of one kind; a clip holds one a kind.")
        for names, held in groups:
            both = _united(held, list(own.values()))
            if both is not None:
                names.append(name)
                held.update(both)
                break
        else:
            groups.append(([name], own))
    return {"+".join(names): tuple(held[kind] for kind in sorted(held)) for names, held in groups}


def _united(held: Mapping[str, InputSpec], specs: Sequence[InputSpec]) -> dict[str, InputSpec] | None:
    found = dict(held)
    for spec in specs:
        other = found.get(spec.kind)
        if other is None:
            found[spec.kind] = spec
            continue
        alike = replace(spec, channels=other.channels, flow_method=other.flow_method) == other
        if not alike or (None not in (spec.flow_method, other.flow_method) and spec.flow_method != other.flow_method):
            return None
        further = (name for name in spec.channels if name not in other.channels)
        found[spec.kind] = replace(
            other, channels=(*other.channels, *further), flow_method=other.flow_method or spec.flow_method
        )
    return found


def _groups(specs: InputSpec | Sequence[InputSpec] | Mapping[str, Sequence[InputSpec]]) -> dict[str, list[InputSpec]]:
    if isinstance(specs, Mapping):
        groups = group_specs(specs)
        named = {name if len(groups) > 1 else "": list(held) for name, held in groups.items()}
    else:
        listed = [specs] if isinstance(specs, InputSpec) else list(specs)
        united = _united({}, listed)
        if united is None:
            kinds = [spec.kind for spec in listed]
            kind = next(kind for kind in kinds if kinds.count(kind) > 1)
            both = " and ".join(spec.describe() for spec in listed if spec.kind == kind)
            raise SpecMismatchError(
                f"different media of kind {kind!r} were asked for ({both}), but a clip holds one a kind; give a "
                "mapping of name to specs, so that each gets a clip set of its own."
            )
        named = {"": [united[kind] for kind in sorted(united)]}
    if not named:
        raise DataError("no media were asked for; name at least one backbone or give at least one InputSpec.")
    return {name: checked_specs(held) for name, held in named.items()}


class _Head(TypedDict):
    """The line before a finished clip's media in the store of parts."""

    clip: str
    key: str
    media: dict[str, Count]
    facts: dict[str, Any]


class _Settings(TypedDict):
    """Content of a finished folder's settings; earlier versions left out the digests of the report and of all this."""

    format: str
    format_version: int
    recipe: str
    sets: dict[str, Any]
    report: NotRequired[str]
    checksum: NotRequired[str]


# The media to make by the sub-folder that they go to.
_Groups = tuple[tuple[str, tuple[InputSpec, ...]], ...]


@dataclass(frozen=True)
class _Part:
    """A finished clip in the store of parts, where each worker of a run appends its clips to a file of its own.

    There it is a line of JSON, the bytes of its media in the order named in that line, and the digest of all that. A
    run that is stopped leaves a clip without its digest at the end of a file.
    """

    path: Path
    start: int
    head: int
    """Bytes of the line."""
    lengths: Mapping[str, int]
    facts: Mapping[str, Any]

    def media(self) -> dict[str, memoryview]:
        ends = list(accumulate(self.lengths.values(), initial=self.head))
        with self.path.open("rb") as handle:
            handle.seek(self.start)
            held, mark = memoryview(handle.read(ends[-1])), handle.read(DIGEST)
        if digest(held).encode() != mark:
            raise DataError(
                f"the finished clips in {self.path} were altered or cut short meanwhile; run the same again."
            )
        return {name: held[low:high] for name, (low, high) in zip(self.lengths, pairwise(ends), strict=True)}

    def whole(self) -> bool:
        try:
            return bool(self.media())
        except (OSError, DataError):
            return False


@dataclass(frozen=True)
class _Task:
    """One clip: where its frames are, and which of them count."""

    clip: str
    path: str
    onset: int | None
    apex: int | None
    offset: int | None
    finished: str
    """Key under which a finished folder holds the clip; ``""`` where none does."""
    parts: Mapping[str, _Part]
    """What stopped runs have made of the clip, by key."""


@dataclass(frozen=True)
class _Job:
    """What all clips share."""

    parts: Path
    groups: _Groups
    recipe: PreprocessRecipe
    inner: PreprocessRecipe
    """What is left of the recipe once the face is cut out."""
    settings: str
    run: str
    """Name of this run, unlike that of any other."""


@dataclass(frozen=True)
class _Outcome:
    clip: str
    key: str = ""
    origin: str = ""
    """``"made"``, ``"part"`` or ``"finished"``; ``""`` where the clip is left out."""
    part: _Part | None = None
    problem: str = ""
    detail: str = ""


# -- one clip (runs in the workers) -----------------------------------------------------------------------------------


class _Kept:
    """The frames read last, up to `KEPT_BYTES`: a clip's onset is asked for by its face, its flow and its image."""

    def __init__(self) -> None:
        self._frames: OrderedDict[int, Frame] = OrderedDict()

    def get(self, index: int, read: Callable[[int], Frame]) -> Frame:
        if index not in self._frames:
            self._frames[index] = read(index)
            while len(self._frames) > 1 and len(self._frames) * self._frames[index].nbytes > KEPT_BYTES:
                self._frames.popitem(last=False)
        self._frames.move_to_end(index)
        return self._frames[index]


class _KeptFolder(ImageFolder):
    def __init__(self, folder: Path, files: Sequence[str] | None) -> None:
        self._kept = _Kept()
        # No medium depends on the rate; telling one spares every folder the note that it is unknown.
        super().__init__(folder, files=files, frames_per_second=FALLBACK_RATE)

    def _decode(self, index: int) -> Frame:
        return self._kept.get(index, super()._decode)


class _KeptVideo(VideoFile):
    def __init__(self, path: Path) -> None:
        self._frames_kept = _Kept()
        super().__init__(path, frames_per_second=FALLBACK_RATE)

    def _frame(self, index: int) -> Frame:
        return self._frames_kept.get(index, super()._frame)


class _KeptCrops(CroppedFrames):
    def __init__(self, crops: CroppedFrames) -> None:
        self._kept = _Kept()
        super().__init__(crops.source, crops.poses, crops.size)

    def _frame(self, index: int) -> Frame:
        return self._kept.get(index, super()._frame)


def _prepare_in_worker(task: _Task, job: _Job) -> _Outcome:
    with _one_thread():
        return _prepare_clip(task, job)


def _prepare_clip(task: _Task, job: _Job) -> _Outcome:
    """Make one clip's media and put them into the store of parts, unless they are there."""
    try:
        key = _key(task, job)
        if key == task.finished:
            return _Outcome(task.clip, key, "finished")
        if key in task.parts and task.parts[key].whole():
            return _Outcome(task.clip, key, "part", task.parts[key])
        arrays, facts = _make(task, job)
    except FATAL:
        raise
    except DataError as error:
        return _Outcome(task.clip, problem=type(error).__name__, detail=str(error))
    except Exception as error:  # decoders raise anything on damaged files, and no clip may stop the rest
        reason = str(error).strip().splitlines()
        return _Outcome(task.clip, problem=type(error).__name__, detail=reason[0] if reason else "no reason given")
    return _Outcome(task.clip, key, "made", _write_part(task, key, arrays, facts, job))


def _write_part(task: _Task, key: str, arrays: Mapping[str, NDArray[Any]], facts: dict[str, Any], job: _Job) -> _Part:
    # Processes on several machines may share the store, and threads a process.
    path = job.parts / f"{job.run}-{platform.node()}-{os.getpid()}-{threading.get_ident()}.clips"
    lengths = {name: array.nbytes for name, array in arrays.items()}
    head = json.dumps({"clip": task.clip, "key": key, "media": lengths, "facts": facts}).encode() + b"\n"
    start = path.stat().st_size if path.exists() else 0
    mark = hashlib.blake2b(head, digest_size=DIGEST // 2)
    try:
        with path.open("ab") as handle:
            handle.write(head)
            for array in arrays.values():
                handle.write(array.data)
                mark.update(array.data)
            handle.write(mark.hexdigest().encode())
    except OSError as error:
        with contextlib.suppress(OSError):
            if start:
                os.truncate(path, start)
            else:
                path.unlink()
        raise _cannot_write(job.parts, error) from error
    return _Part(path, start, len(head), lengths, facts)


def _stored(store: Path) -> dict[str, dict[str, _Part]]:
    """Clips that stopped runs have finished, by name and key."""
    found: dict[str, dict[str, _Part]] = {}
    for path in sorted(store.glob("*.clips")):
        # What cannot be read, or ends in the middle, is made again; digests are compared where clips are used.
        with contextlib.suppress(OSError, DataError):
            check_regular(path)
            with path.open("rb") as handle:
                while line := handle.readline(HEAD_BYTES):
                    head = parse_json(line, _Head, path, what="a finished clip", remedy="it is made again")
                    part = _Part(path, handle.tell() - len(line), len(line), head["media"], head["facts"])
                    handle.seek(sum(part.lengths.values()) + DIGEST, os.SEEK_CUR)
                    found.setdefault(head["clip"], {})[head["key"]] = part
    return found


def _stored_type(spec: InputSpec) -> str:
    return "|u1" if spec.normalisation == "unit" else "<f4"


def _make(task: _Task, job: _Job) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    steps = job.recipe
    path = Path(task.path)
    source = _KeptFolder(path, _frame_names(path) or None) if path.is_dir() else _KeptVideo(path)
    searches = needs_apex(spec for _, specs in job.groups for spec in specs)
    apex = task.apex if searches and steps.apex in ("given", "annotated") else None
    onset, offset = check_interval(len(source), task.onset, apex, task.offset, name=source.name)
    if isinstance(source, ImageFolder):
        # Its size is known from the onset then, and no further file is opened for it.
        source[onset]
    crops = crop_frames(source, steps, onset=onset, detector=_detector(steps))
    if isinstance(crops, CroppedFrames):
        crops = _KeptCrops(crops)
    arrays: dict[str, NDArray[Any]] = {}
    notes: dict[str, None] = {}
    apex_from = ""
    # Every group starts from the same crops and the same apex, so both are looked for once.
    for place, (_, specs) in enumerate(job.groups):
        inner = replace(job.inner, apex="given") if apex_from else job.inner
        times = {"onset": onset, "apex": apex, "offset": offset}
        made = make_media(crops, specs, **times, recipe=inner, detector=CroppedFaces(), eight_bit=True)
        for spec in specs:
            array = np.ascontiguousarray(made.media[spec.kind], _stored_type(spec))
            problem = check_arrays(array[None], spec)
            if problem is not None:
                raise DataError(problem[1])
            arrays[f"{place}-{spec.kind}"] = array
        notes.update(dict.fromkeys(made.notes))
        if made.apex is not None and not apex_from:
            apex, apex_from = made.apex, apex_source(made.apex_method)
    facts = {
        "onset_index": onset,
        "apex_index": apex,
        "offset_index": offset,
        "apex_from": apex_from,
        "notes": " ".join(notes),
    }
    return arrays, facts


@lru_cache(maxsize=1)
def _frame_names(folder: Path) -> list[str]:
    return list(list_frames(folder).names)


def _key(task: _Task, job: _Job) -> str:
    """Hash of all that decides on a clip's media: settings, frame numbers, and the names and sizes of its files."""
    path = Path(task.path)
    files: list[tuple[str, int]] = []
    if path.is_dir():
        _frame_names.cache_clear()
        files = [(name, os.stat(f"{task.path}/{name}").st_size) for name in _frame_names(path)]
    elif path.is_file():
        files = [(path.name, path.stat().st_size)]
    return _hash([job.settings, task.clip, task.onset, task.apex, task.offset, files])


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def _detector(recipe: PreprocessRecipe) -> FaceDetector:
    return _loaded_detector(recipe.detector, json.dumps(dict(recipe.detector_parameters), sort_keys=True))


@lru_cache(maxsize=2)
def _loaded_detector(name: str, parameters: str) -> FaceDetector:
    return load_detector(name, json.loads(parameters))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    # Clips are what runs in parallel. Threads below would fight for the same cores, and sums that they split in another
    # way on another machine would round to other bytes.
    import cv2

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


# -- the whole --------------------------------------------------------------------------------------------------------


def prepare(
    source: str | ClipSet | pd.DataFrame,
    root: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    specs: InputSpec | Sequence[InputSpec] | Mapping[str, Sequence[InputSpec]],
    recipe: PreprocessRecipe | None = None,
    scheme: str | LabelScheme | None = None,
    frames: FrameKind | None = None,
    sheet: str | os.PathLike[str] | None = None,
    corrections: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    backend: str | None = None,
    progress: Callable[[PrepareProgress], None] | None = None,
    resume: bool = True,
) -> Prepared:
    """Make a clip set folder of a data set on disk: face, apex and flow of every clip, once.

    Every finished clip is added to a store of parts, ``OUT.parts``, and counts when it is whole there; `out` appears
    when all are done and the store goes then. A run that was stopped anywhere goes on where it was, with the same bytes
    in the end; a finished folder takes in what has changed on disk since (clips that could not be used before are tried
    again). A clip that cannot be used is left out and named in the report.

    Parameters
    ----------
    source : str, ClipSet or DataFrame
        Name of a data set (see `fsmer.datasets.list_datasets`, ``"generic"`` for a folder with a CSV), the clips
        that `read_dataset` gave, or a table with one recording a row: ``path`` (folder of frames or video) and
        optionally ``clip`` (default: the path's last part), ``dataset``, ``subject``, ``label``, ``aus``, and frames
        counted from 0 as ``onset_index, apex_index, offset_index`` or, in their absence, ``onset, apex, offset``.
    root : path or None
        Folder of the data set; for a table, the folder that relative paths start from (None: the current one).
    out : path
        Folder for the result: ``clips.json``, ``table.csv``, one ``.npy`` a kind of medium, ``recipe.json``,
        ``report.csv`` and ``prepare.json``.
    specs : InputSpec, sequence of InputSpec, or mapping of str to sequence of InputSpec
        The media to make, one a kind. A mapping (name of a backbone -> its ``input_specs``) may hold several of one
        kind: what cannot share a clip set (see `group_specs`) goes to sub-folders of `out`, each a clip set, all made
        in one pass.
    recipe : PreprocessRecipe, optional
        Default: that of `PreprocessRecipe`, with ``detector="cropped"`` where a data set's frames are cropped already.
        Its ``apex="given"`` spots the apex where the annotation has none.
    scheme : str or LabelScheme, optional
        Label scheme to apply first, see `ClipSet.relabel`; what it drops is not prepared.
    frames, sheet, corrections
        For a data set by name, see `check_dataset`.
    workers : int, optional
        Clips made at a time, each on one core; default one a core. 1 without `backend` stays in this process.
    backend : str, optional
        joblib's backend, e.g. ``"dask"`` (with a ``distributed.Client`` open) or ``"ray"``; default its own processes,
        or what a surrounding ``joblib.parallel_config`` says. Workers elsewhere must see `root` and `out` under
        the same paths.
    progress : callable, optional
        Called with a `PrepareProgress` after every clip.
    resume : bool
        False: make everything anew and replace what an earlier run left in `out`.

    Returns
    -------
    Prepared
        Tables of its clip sets have, beside the columns of `source`, ``onset_index, apex_index, offset_index`` and
        ``apex_from`` as used, ``recipe`` (the recipe's hash) and ``notes``.

    Raises
    ------
    MissingDatasetError, UnknownNameError, DataError
        The data set cannot be read, or none of its clips can be used.
    SpecMismatchError
        Media that cannot be made.
    OutputError
        `out` cannot be written (clips finished before are kept), holds something else, was prepared with other
        settings, or is being prepared by another run.
    """
    start = time.monotonic()
    if workers is not None and workers < 1:
        raise DataError(f"{workers} workers were asked for; give 1 or more, or None for one a core.")
    groups = _groups(specs)
    table, lost, cropped = _clips(source, root, scheme, frames=frames, sheet=sheet, corrections=corrections)
    steps = recipe or PreprocessRecipe(detector="cropped" if cropped else "cascade")
    steps.load_detector()
    target = Path(os.path.abspath(out))
    store = target.with_name(f"{target.name}.parts")
    held = tuple((name, tuple(made_spec(spec, steps) for spec in wanted)) for name, wanted in groups.items())
    settings: dict[str, Any] = {
        "format": "fsmer-prepared",
        "format_version": PART_VERSION,
        "recipe": steps.hash,
        "sets": {name: [spec.to_dict() for spec in wanted] for name, wanted in held},
    }
    check_writable(target.parent)
    with _alone(target, store):
        restore_folder(target)
        finished = _finished(target, settings, resume=resume)
        earlier = _Earlier.of(target, held) if finished else None
        if not resume:
            _empty(store)
        inner = replace(steps, detector="cropped", detector_parameters={}, crop="onset")
        job = _Job(store, held, steps, inner, _hash(settings), uuid.uuid4().hex)
        parts = _stored(store)
        onsets, apexes, offsets = (_indices(table[f"{name}_index"]) for name in ("onset", "apex", "offset"))
        tasks = [
            _Task(
                clip,
                path,
                onset,
                apex,
                offset,
                finished.get(clip, "") if earlier is not None and clip in earlier.rows else "",
                parts.get(clip, {}),
            )
            for clip, path, onset, apex, offset in zip(
                table["clip"], table["path"], onsets, apexes, offsets, strict=True
            )
        ]
        outcomes = _all_outcomes(tasks, job, workers, backend, progress, start)
        if not any(one.key for one in outcomes.values()):
            first = outcomes[tasks[0].clip]
            raise DataError(
                f"none of the {len(tasks)} clips can be prepared; the first, {first.clip!r}: {first.detail}"
            )
        report = _report(table, lost, outcomes)
        _finish(target, job, table, report, outcomes, settings, earlier)
    sets = {name: ClipSet.load(target / name if name else target) for name, _ in held}
    reused = sum(one.origin in ("part", "finished") for one in outcomes.values())
    return Prepared(target, MappingProxyType(sets), PrepareReport(report, steps.hash, reused, time.monotonic() - start))


def _clips(
    source: str | ClipSet | pd.DataFrame,
    root: str | os.PathLike[str] | None,
    scheme: str | LabelScheme | None,
    **how: Any,
) -> tuple[pd.DataFrame, pd.DataFrame, bool]:
    """Table of the clips to make, report of those that are lost already, and whether the frames are cropped faces."""
    lost = pd.DataFrame({name: pd.Series(dtype="str") for name in REPORT_COLUMNS})
    cropped = False
    if isinstance(source, str):
        if root is None:
            raise MissingDatasetError(f"the root of {source!r} is not given; give the folder of the download.")
        audit = check_dataset(source, root, **how)
        left_out = [one for one in audit.findings if not one.used]
        if audit.clips is None:
            raise DataError(
                f"none of the {audit.annotated} clips of {audit.title} under {audit.root} is usable, for instance "
                f"{left_out[0].clip!r}: {left_out[0].detail}; copy the frames again."
            )
        lost = pd.DataFrame(
            [(one.clip, audit.name, one.subject, "left out", one.problem, one.detail, "") for one in left_out],
            columns=list(REPORT_COLUMNS),
        )
        clips = audit.clips
        cropped = audit.frames.endswith("(cropped)")
    else:
        given = [name for name, value in how.items() if value is not None]
        if given:
            raise DataError(f"{given[0]!r} is for data sets by name; leave it out for clips that are listed already.")
        clips = source if isinstance(source, ClipSet) else ClipSet.from_table(_named(source))
    table = (clips if scheme is None else clips.relabel(scheme)).table
    if not len(table):
        raise DataError("no clip is left to prepare; check the label scheme.")
    if "path" not in table.columns:
        raise DataError(
            f"the table has no column 'path' with the clips' folders of frames or videos; it has "
            f"{', '.join(map(str, table.columns))}."
        )
    top = Path() if root is None or isinstance(source, str) else Path(root)
    if not top.is_dir():
        raise MissingDatasetError(f"the root {top} is no folder; give the folder that the paths start from.")
    table["path"] = [os.path.abspath(top / path) for path in table["path"].astype(str)]
    for name in ("onset", "apex", "offset"):
        if f"{name}_index" not in table.columns:
            table[f"{name}_index"] = _numbers(table, name)
    if "apex_from" in table.columns:
        # A middle frame that stands in for a missing annotation is no annotation: the recipe says what to do then.
        table["apex_index"] = table["apex_index"].where(table["apex_from"].astype(str) == "annotation")
    return table, lost, cropped


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    if "clip" in frame.columns or "path" not in frame.columns:
        return frame
    return frame.assign(clip=[Path(str(path)).name for path in frame["path"]])


def _numbers(table: pd.DataFrame, name: str) -> Any:
    if name not in table.columns:
        return pd.array([None] * len(table), dtype="Int64")
    values: list[Any] = pd.to_numeric(table[name], errors="coerce").tolist()
    wrong = next((value for value in values if not pd.isna(value) and (value < 0 or value != int(value))), None)
    if wrong is not None:
        raise DataError(f"column {name!r} holds {wrong}, but frames counted from 0 are expected; correct it.")
    return pd.array([None if pd.isna(value) else int(value) for value in values], dtype="Int64")


def _indices(column: pd.Series) -> list[int | None]:
    return [None if pd.isna(value) else int(value) for value in column.tolist()]


def _finished(target: Path, settings: Mapping[str, Any], *, resume: bool) -> dict[str, str]:
    """Keys of the clips that a finished folder of the same settings holds, by name."""
    if target.exists() and not target.is_dir():
        raise OutputError(f"cannot write the folder {target}: a file of that name is there; choose another folder.")
    if not target.is_dir() or not any(target.iterdir()):
        return {}
    if not ((target / SETTINGS).is_file() and (target / REPORT).is_file()):
        raise OutputError(f"cannot write {target}: it holds other files, which would be lost; choose a new folder.")
    if not resume:
        return {}
    remedy = "choose a new folder, or start anew without resuming to replace it"
    held = read_json(
        target / SETTINGS, _Settings, what="the settings of a prepared folder", remedy=remedy, error=OutputError
    )
    if {name: value for name, value in held.items() if name in settings} != settings:
        raise OutputError(
            f"{target} was prepared with other media or another recipe (hash {held['recipe']}, now "
            f"{settings['recipe']}); {remedy}."
        )
    try:
        content = read_bytes(target / REPORT)
        if held.get("report", digest(content)) != digest(content):
            raise ValueError("it was altered after fsmer wrote it")
        report = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
        return {clip: key for clip, key in zip(report["clip"], report["key"], strict=True) if key}
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{target / REPORT} cannot be read as a report of prepare: {reason}; {remedy}.") from error


@contextlib.contextmanager
def _alone(target: Path, store: Path) -> Iterator[None]:
    """Make the store of parts and keep every other run out of it until this one ends, however it ends."""
    place = store / LOCK
    try:
        held = _locked(store)
    except BlockingIOError as error:
        raise OutputError(
            f"another run is preparing {target} at the moment; wait until it has ended, or choose another folder."
        ) from error
    except OSError as error:
        raise _cannot_write(store, error) from error
    try:
        yield
    finally:
        # An empty store has nothing to resume from.
        with contextlib.suppress(OSError):
            place.unlink()
        os.close(held)
        with contextlib.suppress(OSError):
            store.rmdir()


def _locked(store: Path) -> int:
    """Open file with the store's lock; the system gives up a lock when its process dies, so none is ever stale."""
    while True:
        store.mkdir(exist_ok=True)
        try:
            held = os.open(store / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            # The run before took its store away just now.
            continue
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(held, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(held), os.stat(store / LOCK)):
                return held
        except FileNotFoundError:
            # As above, between opening and locking.
            os.close(held)
            continue
        except PermissionError as error:  # Windows' word for a lock that is taken
            os.close(held)
            raise BlockingIOError(*error.args) from error
        except OSError:
            os.close(held)
            raise
        os.close(held)


def _empty(store: Path) -> None:
    for path in store.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink(missing_ok=True)


def _all_outcomes(
    tasks: Sequence[_Task],
    job: _Job,
    workers: int | None,
    backend: str | None,
    progress: Callable[[PrepareProgress], None] | None,
    start: float,
) -> dict[str, _Outcome]:
    outcomes: dict[str, _Outcome] = {}
    made = left_out = 0
    with _one_thread():
        for one in _outcomes(tasks, job, workers, backend):
            outcomes[one.clip] = one
            made += one.origin == "made"
            left_out += not one.origin
            if progress is not None:
                seconds = time.monotonic() - start
                open_clips = len(tasks) - len(outcomes)
                pace = seconds / (made + left_out) if made + left_out else math.nan
                remaining = None if math.isnan(pace) else pace * open_clips
                progress(PrepareProgress(len(outcomes), len(tasks), left_out, seconds, remaining))
    return outcomes


def _outcomes(tasks: Sequence[_Task], job: _Job, workers: int | None, backend: str | None) -> Iterator[_Outcome]:
    if backend is None and workers == 1:
        # This process is held to one thread already.
        yield from (_prepare_clip(task, job) for task in tasks)
        return
    from joblib import Parallel, cpu_count, delayed, parallel_config  # type: ignore[import-untyped]
    from joblib.externals.loky.process_executor import BrokenProcessPool  # type: ignore[import-untyped]

    # A cluster knows best how many it is.
    count = workers if workers is not None else -1 if backend is not None else cpu_count()
    try:
        chosen = contextlib.nullcontext() if backend is None else parallel_config(backend=backend)
        with chosen:
            run = Parallel(n_jobs=count, return_as="generator_unordered")
    except (ValueError, ImportError, KeyError) as error:
        raise DataError(
            f"joblib's backend {backend!r} cannot be used ({error}); start or install it, or leave it out."
        ) from error
    try:
        yield from run(delayed(_prepare_in_worker)(task, job) for task in tasks)
    except BrokenProcessPool as error:
        raise FsmerError(
            "a worker process died, most likely for lack of memory; run the same again with fewer workers: finished "
            f"clips are kept in {job.parts}."
        ) from error


def _report(table: pd.DataFrame, lost: pd.DataFrame, outcomes: Mapping[str, _Outcome]) -> pd.DataFrame:
    rows = []
    for clip, dataset, subject in zip(table["clip"], table["dataset"], table["subject"], strict=True):
        one = outcomes[clip]
        rows.append((clip, dataset, subject, "prepared" if one.key else "left out", one.problem, one.detail, one.key))
    return pd.concat([pd.DataFrame(rows, columns=list(REPORT_COLUMNS)), lost], ignore_index=True).astype("str")


# -- from parts to the folder -----------------------------------------------------------------------------------------


def _finish(
    target: Path,
    job: _Job,
    table: pd.DataFrame,
    report: pd.DataFrame,
    outcomes: Mapping[str, _Outcome],
    settings: Mapping[str, Any],
    earlier: _Earlier | None,
) -> None:
    """Put the parts together beside the target, then swap."""
    tables = job.parts / "tables"
    keep = table["clip"].map(lambda clip: bool(outcomes[clip].key)).to_numpy(bool)
    kept = table[keep].reset_index(drop=True)
    wanted = [outcomes[clip] for clip in kept["clip"]]
    try:
        shutil.rmtree(tables, ignore_errors=True)
        tables.mkdir()
        readers = [_reader(one, earlier) for one in wanted]
        clean = clean_table(_with_facts(kept, [reader.facts for reader in readers], job.recipe))
        files, columns = _write_tables(tables, job, clean)
        files.append(write_text(tables / REPORT, report.to_csv(index=False, lineterminator="\n")))
        sealed = {**settings, "report": file_digest(tables / REPORT)}
        files.append(write_json(tables / SETTINGS, sealed, sealed=True))
        if not (all(one.origin == "finished" for one in wanted) and _same(files, tables, target)):
            with atomic_folder(target) as whole:
                shutil.copytree(tables, whole, dirs_exist_ok=True)
                for name, arrays in _write_media(whole, job, readers).items():
                    write_header(whole / name, columns, len(clean), arrays)
        shutil.rmtree(job.parts, ignore_errors=True)
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise _cannot_write(target, cause, job.parts) from error
    finally:
        shutil.rmtree(tables, ignore_errors=True)


def _same(files: Sequence[Path], whole: Path, target: Path) -> bool:
    there = [target / file.relative_to(whole) for file in files]
    return all(old.is_file() and old.read_bytes() == new.read_bytes() for old, new in zip(there, files, strict=True))


def _write_media(whole: Path, job: _Job, readers: Sequence[_Part | _Row]) -> dict[str, list[ArrayWriter]]:
    """Write the arrays of all clips; the writers by folder."""
    with contextlib.ExitStack() as stack:
        arrays = {
            name: [
                stack.enter_context(ArrayWriter(whole / name, spec, len(readers), _stored_type(spec))) for spec in specs
            ]
            for name, specs in job.groups
        }
        for reader in readers:
            media = reader.media()
            for place, group in enumerate(arrays.values()):
                for array in group:
                    array.write(media[f"{place}-{array.spec.kind}"])
    return arrays


def _reader(outcome: _Outcome, earlier: _Earlier | None) -> _Part | _Row:
    if earlier is not None and outcome.part is None:
        return _Row(earlier, earlier.rows[outcome.clip])
    return cast(_Part, outcome.part)


@dataclass(frozen=True)
class _Earlier:
    """The clips of a finished folder that are not damaged."""

    rows: Mapping[str, int]
    stores: Mapping[str, NpyStore]
    facts: pd.DataFrame

    @classmethod
    def of(cls, target: Path, groups: _Groups) -> _Earlier | None:
        """Those in `target`; ``None`` where all must be made again."""
        try:
            folders = [read_folder(target / name) for name, _ in groups]
            table = folders[0][0]
            facts = table[["onset_index", "apex_index", "offset_index", "apex_from", "notes"]]
        except (DataError, KeyError):
            return None
        if any(
            not held["clip"].equals(table["clip"])
            or {spec.kind: (spec, len(table)) for spec in specs}
            != {kind: (store.spec, len(store)) for kind, store in stores.items()}
            for (_, specs), (held, stores) in zip(groups, folders, strict=True)
        ):
            return None  # somebody saved another clip set there
        stores = {
            f"{place}-{kind}": store for place, (_, stores) in enumerate(folders) for kind, store in stores.items()
        }
        # Every block is read once here, so that its digest is known when its clips are taken over.
        whole = [row for row in range(len(table)) if _is_whole(stores.values(), row)]
        return cls({str(table["clip"].iloc[row]): row for row in whole}, stores, facts)


def _is_whole(stores: Iterable[NpyStore], row: int) -> bool:
    try:
        for store in stores:
            store.stored(np.array([row], np.int64))
    except RowError:
        return False
    return True


@dataclass(frozen=True)
class _Row:
    """A clip of a finished folder."""

    earlier: _Earlier
    row: int

    def media(self) -> dict[str, memoryview]:
        row = np.array([self.row], np.int64)
        return {name: store.stored(row).data for name, store in self.earlier.stores.items()}

    @property
    def facts(self) -> dict[str, Any]:
        values = self.earlier.facts.iloc[self.row].to_dict()
        return {str(name): None if pd.isna(value) else value for name, value in values.items()}


def _with_facts(table: pd.DataFrame, facts: Sequence[Mapping[str, Any]], recipe: PreprocessRecipe) -> pd.DataFrame:
    columns: dict[str, Any] = {
        name: pd.array([one[name] for one in facts], dtype="Int64")
        for name in ("onset_index", "apex_index", "offset_index")
    }
    columns |= {name: pd.array([one[name] for one in facts], dtype="str") for name in ("apex_from", "notes")}
    return table.assign(**columns, recipe=recipe.hash)


def _write_tables(whole: Path, job: _Job, clean: pd.DataFrame) -> tuple[list[Path], dict[str, str]]:
    """Everything of the folder that does not depend on the content of the arrays, and the columns of the table."""
    files, columns = [], {}
    for name, _ in job.groups:
        (whole / name).mkdir(exist_ok=True)
        files.append(whole / name / TABLE)
        columns = write_table(files[-1], clean)
    places = dict.fromkeys([whole, *(whole / name for name, _ in job.groups)])
    return [*files, *(job.recipe.save(place / RECIPE) for place in places)], columns


def _cannot_write(target: Path, error: OSError, parts: Path | None = None) -> OutputError:
    return OutputError(
        f"cannot write {target}: {error.strerror or error}; mend that (room, permissions), then run the same again: "
        f"finished clips are kept in {parts or target}."
    )
