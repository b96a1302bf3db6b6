"""From a data set on disk to a folder of clips with all the media that backbones need: parallel, resumable, atomic."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pandas as pd

from fsmer.data.clips import ClipSet
from fsmer.data.schemes import LabelScheme
from fsmer.data.spec import InputKind, InputSpec
from fsmer.datasets import check_dataset
from fsmer.datasets.base import FrameKind
from fsmer.errors import DataError, FsmerError, MissingDatasetError, reason_of
from fsmer.io import check_writable, restore_folder
from fsmer.plugins import INPUT_KINDS
from fsmer.preprocess import prepare_store
from fsmer.preprocess.media import grouped_specs, made_spec
from fsmer.preprocess.prepare_clip import one_thread, prepare_clip
from fsmer.preprocess.prepare_store import EarlierResult, Job, Outcome, Task
from fsmer.preprocess.recipe import PreprocessRecipe

__all__ = ["PrepareProgress", "PrepareReport", "Prepared", "prepare"]


@dataclass(frozen=True)
class PrepareProgress:
    """How far `prepare` is: clips finished or given up (`done`) of all, those given up (`left_out`), and seconds.

    `seconds` have passed since the start of this run and `remaining` are left at the pace of the clips that it made;
    None before the first.
    """

    done: int
    total: int
    left_out: int
    seconds: float
    remaining: float | None


REPORT_COLUMNS = ("clip", "dataset", "subject", "status", "problem", "detail", "key")


@dataclass(frozen=True)
class PrepareReport:
    """What became of every clip. ``str()`` gives a readable summary.

    `table` has one row a clip as in ``report.csv``: ``clip, dataset, subject``, ``status`` (``"prepared"`` or ``"left
    out"``), ``problem``, ``detail`` and ``key`` (hash of all that decides on a prepared clip's media). `recipe` is the
    recipe's hash, `reused` the number of clips that an earlier run had finished, `seconds` the duration of this run.
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
        plain = {name: getattr(self, name) for name in ("prepared", "reused", "seconds", "recipe")}
        return {**plain, "left_out": self.left_out[["clip", "problem", "detail"]].to_dict("records")}

    def __str__(self) -> str:
        total, lost = len(self.table), self.left_out
        head = f"{self.prepared} of {total} clips prepared in {self.seconds:.1f} s (recipe {self.recipe})"
        if self.reused:
            head += f", {self.reused} of them by an earlier run"
        rows = zip(lost["clip"], lost["problem"], lost["detail"], strict=True)
        return "\n".join([head, *(f"  left out  {clip}: {problem}: {detail}" for clip, problem, detail in rows)])


@dataclass(frozen=True)
class Prepared:
    """Result of `prepare`: where it lies, its clip sets, and what became of every clip.

    `sets` has them by sub-folder; one entry ``""`` where the folder itself is the clip set.
    """

    folder: Path
    sets: Mapping[str, ClipSet]
    report: PrepareReport

    @property
    def clips(self) -> ClipSet:
        """The clip set; `DataError` where there are several, as backbones want different media of one kind."""
        if len(self.sets) > 1:
            raise DataError(
                f"{self.folder} holds {len(self.sets)} clip sets ({', '.join(self.sets)}), since one clip holds one "
                "medium a kind; choose one of `sets`."
            )
        return next(iter(self.sets.values()))


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
    extend: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
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
    extend : callable, optional
        From the table of the clips, after the scheme, to the table of those to make, such as
        ``NeighbourFrames(factor=5).table``.
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
    groups = grouped_specs(specs)
    how = {"frames": frames, "sheet": sheet, "corrections": corrections}
    table, lost, cropped = _clips(source, root, scheme, extend, **how)
    steps = recipe or PreprocessRecipe(detector="cropped" if cropped else "cascade")
    steps.load_detector()
    target = Path(os.path.abspath(out))
    store = target.with_name(f"{target.name}.parts")
    held = tuple((name, tuple(made_spec(spec, steps) for spec in wanted)) for name, wanted in groups.items())
    settings: dict[str, Any] = {
        "format": "fsmer-prepared",
        "format_version": prepare_store.PART_VERSION,
        "recipe": steps.hash,
        "sets": {name: [spec.to_dict() for spec in wanted] for name, wanted in held},
    }
    check_writable(target.parent)
    with prepare_store.only_run(target, store):
        restore_folder(target)
        finished = prepare_store.finished_keys(target, settings, resume=resume)
        earlier = EarlierResult.of(target, held) if finished else None
        if not resume:
            prepare_store.clear_store(store)
        inner = replace(steps, detector="cropped", detector_parameters={}, crop="onset")
        job = Job(store, held, steps, inner, prepare_store.settings_hash(settings), uuid.uuid4().hex)
        parts = prepare_store.stored_parts(store)
        frame_columns = [table[f"{name}_index"] for name in ("onset", "apex", "offset")]
        tasks = [
            Task(
                clip,
                path,
                tuple(None if pd.isna(number) else int(number) for number in numbers),
                finished.get(clip, "") if earlier is not None and clip in earlier.rows else "",
                parts.get(clip, {}),
            )
            for clip, path, *numbers in zip(table["clip"], table["path"], *frame_columns, strict=True)
        ]
        outcomes: dict[str, Outcome] = {}
        made = left_out = 0
        with one_thread():
            for one in _outcomes(tasks, job, workers, backend):
                outcomes[one.clip] = one
                made += one.origin == "made"
                left_out += not one.origin
                if progress is not None:
                    seconds, tried = time.monotonic() - start, made + left_out
                    remaining = seconds / tried * (len(tasks) - len(outcomes)) if tried else None
                    progress(PrepareProgress(len(outcomes), len(tasks), left_out, seconds, remaining))
        if not any(one.key for one in outcomes.values()):
            first = outcomes[tasks[0].clip]
            raise DataError(f"none of the {len(tasks)} clips was prepared; the first, {first.clip!r}: {first.detail}")
        report = _report(table, lost, outcomes)
        prepare_store.write_result(target, job, table, report, outcomes, settings, earlier)
    sets = {name: ClipSet.load(target / name if name else target) for name, _ in held}
    reused = sum(one.origin in ("part", "finished") for one in outcomes.values())
    return Prepared(target, MappingProxyType(sets), PrepareReport(report, steps.hash, reused, time.monotonic() - start))


def _clips(
    source: str | ClipSet | pd.DataFrame,
    root: str | os.PathLike[str] | None,
    scheme: str | LabelScheme | None,
    extend: Callable[[pd.DataFrame], pd.DataFrame] | None,
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
        if not isinstance(source, ClipSet) and "clip" not in source.columns and "path" in source.columns:
            source = source.assign(clip=[Path(str(path)).name for path in source["path"]])
        clips = source if isinstance(source, ClipSet) else ClipSet.from_table(source)
    table = (clips if scheme is None else clips.relabel(scheme)).table
    if extend is not None and len(table):
        table = extend(table)
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
            table[f"{name}_index"] = _frame_numbers(table, name)
    if "apex_from" in table.columns:
        # A middle frame that stands in for a missing annotation is no annotation: the recipe decides what to do then.
        table["apex_index"] = table["apex_index"].where(table["apex_from"].astype(str) == "annotation")
    return table, lost, cropped


def _frame_numbers(table: pd.DataFrame, name: str) -> Any:
    if name not in table.columns:
        return pd.array([None] * len(table), dtype="Int64")
    values: list[Any] = pd.to_numeric(table[name], errors="coerce").tolist()
    wrong = next((value for value in values if not pd.isna(value) and (value < 0 or value != int(value))), None)
    if wrong is not None:
        raise DataError(f"column {name!r} holds {wrong}, but frames counted from 0 are expected; correct it.")
    return pd.array([None if pd.isna(value) else int(value) for value in values], dtype="Int64")


def _outcomes(tasks: Sequence[Task], job: Job, workers: int | None, backend: str | None) -> Iterator[Outcome]:
    wanted = {spec.kind for _, specs in job.groups for spec in specs}
    kinds = [INPUT_KINDS[kind] for kind in sorted(wanted & INPUT_KINDS.outside())]
    if (backend is None and workers == 1) or not _can_travel(kinds):
        yield from (prepare_clip(task, job) for task in tasks)
        return
    from joblib import Parallel, cpu_count, delayed, parallel_config  # type: ignore[import-untyped]
    from joblib.externals.loky.process_executor import BrokenProcessPool  # type: ignore[import-untyped]

    # A cluster has a number of workers of its own.
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
        yield from run(delayed(_in_worker)(task, job, kinds) for task in tasks)
    except BrokenProcessPool as error:
        raise FsmerError(
            "a worker process died, most likely for lack of memory; run the same again with fewer workers: finished "
            f"clips are kept in {job.parts}."
        ) from error


def _in_worker(task: Task, job: Job, kinds: Sequence[InputKind]) -> Outcome:
    for kind in kinds:  # a worker knows those of entry points alone
        if kind.name not in INPUT_KINDS:
            INPUT_KINDS.register(kind.name)(kind)
    return prepare_clip(task, job)


def _can_travel(kinds: Sequence[InputKind]) -> bool:
    try:
        cloudpickle.dumps(kinds)
        return True
    except Exception as error:  # what a function holds raises whatever it likes
        names = ", ".join(repr(kind.name) for kind in kinds)
        told = f"media of kind {names} cannot be made in workers ({reason_of(error)}); this process makes all clips."
        warnings.warn(told, stacklevel=2)
        return False


def _report(table: pd.DataFrame, lost: pd.DataFrame, outcomes: Mapping[str, Outcome]) -> pd.DataFrame:
    rows = []
    for clip, dataset, subject in zip(table["clip"], table["dataset"], table["subject"], strict=True):
        one = outcomes[clip]
        rows.append((clip, dataset, subject, "prepared" if one.key else "left out", one.problem, one.detail, one.key))
    return pd.concat([pd.DataFrame(rows, columns=list(REPORT_COLUMNS)), lost], ignore_index=True).astype("str")
