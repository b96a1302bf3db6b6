"""The folder of a preparation: finished parts, settings, and the clip set that is put together from them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NotRequired, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from typing_extensions import TypedDict

from fsmer.data.clips import ClipSet
from fsmer.data.media import NpyStore, RowError
from fsmer.data.saved import TABLE, ArrayWriter, read_folder, write_header
from fsmer.data.spec import InputSpec
from fsmer.data.table import clean_table, write_table
from fsmer.errors import DataError, OutputError
from fsmer.io import atomic_folder, check_regular, digest, file_digest, read_bytes, write_json, write_text
from fsmer.preprocess.recipe import PreprocessRecipe
from fsmer.schema import Count, parse_json, read_json

__all__ = [
    "PrepareReport",
    "Prepared",
]

RECIPE = "recipe.json"


REPORT = "report.csv"


SETTINGS = "prepare.json"


LOCK = "lock"


REPORT_COLUMNS = ("clip", "dataset", "subject", "status", "problem", "detail", "key")


# Raised whenever finished clips of an unfinished run can no longer be used.
PART_VERSION = 2


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


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


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


# Characters of the digest after a clip in the store, and the most bytes that the line before its media may have.
DIGEST, HEAD_BYTES = 32, 1 << 20
