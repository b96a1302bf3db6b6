"""What a preparation keeps on disk: the store of finished parts, and the folder that is put together from it.

One file, since a later run takes clips over from either.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
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

from fsmer.data.media import NpyStore, RowError
from fsmer.data.saved import TABLE, ArrayWriter, read_folder, write_header
from fsmer.data.spec import InputSpec
from fsmer.data.table import clean_table, write_table
from fsmer.errors import DataError, OutputError
from fsmer.io import atomic_folder, check_regular, digest, file_digest, locked, read_bytes, write_json, write_text
from fsmer.preprocess.recipe import PreprocessRecipe
from fsmer.schema import Count, parse_json, read_json

RECIPE, REPORT, SETTINGS = "recipe.json", "report.csv", "prepare.json"
# Columns of a clip's facts, and their types.
FACTS = {"onset_index": "Int64", "apex_index": "Int64", "offset_index": "Int64", "apex_from": "str", "notes": "str"}
# Raised whenever finished clips of an unfinished run can no longer be used.
PART_VERSION = 2
# Characters of the digest after a clip in the store, and the most bytes that the line before its media may have.
DIGEST, HEAD_BYTES = 32, 1 << 20


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
SpecGroups = tuple[tuple[str, tuple[InputSpec, ...]], ...]


@dataclass(frozen=True)
class Part:
    """A finished clip in the store of parts, where each worker of a run appends its clips to a file of its own.

    There it is a line of JSON, the bytes of its media in the order named in that line, and the digest of all that. A
    run that is stopped leaves a clip without its digest at the end of a file.
    """

    path: Path
    start: int
    head: int  # bytes of the line
    lengths: Mapping[str, int]
    facts: Mapping[str, Any]

    def media(self) -> dict[str, memoryview]:
        """Bytes of the clip's arrays by name."""
        ends = list(accumulate(self.lengths.values(), initial=self.head))
        with self.path.open("rb") as handle:
            handle.seek(self.start)
            held, mark = memoryview(handle.read(ends[-1])), handle.read(DIGEST)
        if digest(held).encode() != mark:
            raise DataError(f"the finished clips in {self.path} were altered or cut short meanwhile; run it again.")
        return {name: held[low:high] for name, (low, high) in zip(self.lengths, pairwise(ends), strict=True)}

    def whole(self) -> bool:
        """Whether the clip can be read as it was written."""
        try:
            return bool(self.media())
        except (OSError, DataError):
            return False


@dataclass(frozen=True)
class Task:
    """One clip: where its frames are, and which of them count."""

    clip: str
    path: str
    frames: tuple[int | None, ...]  # onset, apex and offset as annotated
    finished: str  # key under which a finished folder holds the clip; "" where none does
    parts: Mapping[str, Part]  # what stopped runs have made of the clip, by key


@dataclass(frozen=True)
class Job:
    """What all clips share."""

    parts: Path
    groups: SpecGroups
    recipe: PreprocessRecipe
    inner: PreprocessRecipe  # what is left of the recipe once the face is cut out
    settings: str
    run: str  # name of this run, unlike that of any other


@dataclass(frozen=True)
class Outcome:
    """What became of one clip."""

    clip: str
    key: str = ""
    origin: str = ""  # "made", "part" or "finished"; "" where the clip is left out
    part: Part | None = None
    problem: str = ""
    detail: str = ""


def write_part(task: Task, key: str, arrays: Mapping[str, NDArray[Any]], facts: dict[str, Any], job: Job) -> Part:
    """Add a finished clip to the store."""
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
        raise cannot_write(job.parts, error) from error
    return Part(path, start, len(head), lengths, facts)


def stored_parts(store: Path) -> dict[str, dict[str, Part]]:
    """Clips that stopped runs have finished, by name and key."""
    found: dict[str, dict[str, Part]] = {}
    for path in sorted(store.glob("*.clips")):
        # What cannot be read, or ends in the middle, is made again; digests are compared where clips are used.
        with contextlib.suppress(OSError, DataError):
            check_regular(path)
            with path.open("rb") as handle:
                while line := handle.readline(HEAD_BYTES):
                    head = parse_json(line, _Head, path, what="a finished clip", remedy="it is made again")
                    part = Part(path, handle.tell() - len(line), len(line), head["media"], head["facts"])
                    handle.seek(sum(part.lengths.values()) + DIGEST, os.SEEK_CUR)
                    found.setdefault(head["clip"], {})[head["key"]] = part
    return found


def stored_type(spec: InputSpec) -> str:
    """Type of a medium's array on disk: images keep their 256 values."""
    return "|u1" if spec.normalisation == "unit" else "<f4"


def settings_hash(values: Any) -> str:
    """32 hexadecimal digits that differ when any of the plain `values` does."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


@contextlib.contextmanager
def only_run(target: Path, store: Path) -> Iterator[None]:
    """Make the store of parts and keep every other run out of it until this one ends, however it ends."""
    with contextlib.ExitStack() as held:
        for last in (False, False, True):
            try:
                store.mkdir(exist_ok=True)
                held.enter_context(locked(store, wait=False))
                break
            except BlockingIOError as error:
                # The run before may have removed its store just now.
                if last:
                    raise OutputError(
                        f"another run is preparing {target} at the moment; wait until it has ended, or choose another "
                        "folder."
                    ) from error
            except OSError as error:
                raise cannot_write(store, error) from error
        try:
            yield
        finally:
            # An empty store has nothing to resume from.
            with contextlib.suppress(OSError):
                store.rmdir()


def clear_store(store: Path) -> None:
    """Remove what earlier runs left in the store."""
    for path in store.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def cannot_write(target: Path, error: OSError, parts: Path | None = None) -> OutputError:
    """One sentence on a place that cannot be written, and what was kept."""
    return OutputError(
        f"cannot write {target}: {error.strerror or error}; mend that (room, permissions), then run the same again: "
        f"finished clips are kept in {parts or target}."
    )


def finished_keys(target: Path, settings: Mapping[str, Any], *, resume: bool) -> dict[str, str]:
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


def write_result(
    target: Path,
    job: Job,
    table: pd.DataFrame,
    report: pd.DataFrame,
    outcomes: Mapping[str, Outcome],
    settings: Mapping[str, Any],
    earlier: EarlierResult | None,
) -> None:
    """Put the parts together beside the target, then swap."""
    tables = job.parts / "tables"
    keep = table["clip"].map(lambda clip: bool(outcomes[clip].key)).to_numpy(bool)
    kept = table[keep].reset_index(drop=True)
    wanted = [outcomes[clip] for clip in kept["clip"]]
    try:
        shutil.rmtree(tables, ignore_errors=True)
        tables.mkdir()
        readers = [
            _Row(earlier, earlier.rows[one.clip]) if earlier is not None and one.part is None else cast(Part, one.part)
            for one in wanted
        ]
        facts = [reader.facts for reader in readers]
        used = {name: pd.array([one[name] for one in facts], dtype=kind) for name, kind in FACTS.items()}
        clean = clean_table(kept.assign(**used, recipe=job.recipe.hash))
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
        raise cannot_write(target, cause, job.parts) from error
    finally:
        shutil.rmtree(tables, ignore_errors=True)


def _same(files: Sequence[Path], whole: Path, target: Path) -> bool:
    there = [target / file.relative_to(whole) for file in files]
    return all(old.is_file() and old.read_bytes() == new.read_bytes() for old, new in zip(there, files, strict=True))


def _write_media(whole: Path, job: Job, readers: Sequence[Part | _Row]) -> dict[str, list[ArrayWriter]]:
    """Write the arrays of all clips; the writers by folder."""
    with contextlib.ExitStack() as stack:
        arrays = {
            name: [
                stack.enter_context(ArrayWriter(whole / name, spec, len(readers), stored_type(spec))) for spec in specs
            ]
            for name, specs in job.groups
        }
        for reader in readers:
            media = reader.media()
            for place, group in enumerate(arrays.values()):
                for array in group:
                    array.write(media[f"{place}-{array.spec.kind}"])
    return arrays


@dataclass(frozen=True)
class EarlierResult:
    """The clips of a finished folder that are not damaged."""

    rows: Mapping[str, int]
    stores: Mapping[str, NpyStore]
    facts: pd.DataFrame

    @classmethod
    def of(cls, target: Path, groups: SpecGroups) -> EarlierResult | None:
        """Those in `target`; ``None`` where all must be made again."""
        try:
            folders = [read_folder(target / name) for name, _ in groups]
            table = folders[0][0]
            facts = table[[*FACTS]]
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

    earlier: EarlierResult
    row: int

    def media(self) -> dict[str, memoryview]:
        row = np.array([self.row], np.int64)
        return {name: store.stored(row).data for name, store in self.earlier.stores.items()}

    @property
    def facts(self) -> dict[str, Any]:
        values = self.earlier.facts.iloc[self.row].to_dict()
        return {str(name): None if pd.isna(value) else value for name, value in values.items()}


def _write_tables(whole: Path, job: Job, clean: pd.DataFrame) -> tuple[list[Path], dict[str, str]]:
    """Everything of the folder that does not depend on the content of the arrays, and the columns of the table."""
    files, columns = [], {}
    for name, _ in job.groups:
        (whole / name).mkdir(exist_ok=True)
        files.append(whole / name / TABLE)
        columns = write_table(files[-1], clean)
    places = dict.fromkeys([whole, *(whole / name for name, _ in job.groups)])
    return [*files, *(job.recipe.save(place / RECIPE) for place in places)], columns
