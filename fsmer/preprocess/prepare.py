"""From a data set on disk to a folder of clips with all the media that backbones need: parallel, resumable, atomic."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fsmer.data.clips import ClipSet
from fsmer.data.media_checks import check_arrays
from fsmer.data.schemes import LabelScheme
from fsmer.data.spec import InputSpec
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
    check_writable,
    restore_folder,
)
from fsmer.preprocess.apex import check_interval
from fsmer.preprocess.faces import CroppedFaces, CroppedFrames, FaceDetector, load_detector
from fsmer.preprocess.media import apex_source, checked_specs, crop_frames, made_spec, make_media, needs_apex
from fsmer.preprocess.prepare_store import (
    PART_VERSION,
    REPORT_COLUMNS,
    Prepared,
    PrepareReport,
    _alone,
    _Earlier,
    _empty,
    _finish,
    _finished,
    _hash,
    _indices,
    _Job,
    _named,
    _numbers,
    _Outcome,
    _stored,
    _stored_type,
    _Task,
    _write_part,
)
from fsmer.preprocess.reading import FALLBACK_RATE, Frame, ImageFolder, VideoFile
from fsmer.preprocess.recipe import PreprocessRecipe

__all__ = [
    "PrepareProgress",
    "group_specs",
    "prepare",
]

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
