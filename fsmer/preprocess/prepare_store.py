"""The folder of a preparation: finished parts, settings, and the clip set that is put together from them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import NDArray
from typing_extensions import TypedDict

from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, OutputError
from fsmer.io import check_regular, digest
from fsmer.preprocess.recipe import PreprocessRecipe
from fsmer.schema import Count, parse_json

__all__: list[str] = []


LOCK = "lock"


# Raised whenever finished clips of an unfinished run can no longer be used.
PART_VERSION = 2


class _Head(TypedDict):
    """The line before a finished clip's media in the store of parts."""

    clip: str
    key: str
    media: dict[str, Count]
    facts: dict[str, Any]


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
class Task:
    """One clip: where its frames are, and which of them count."""

    clip: str
    path: str
    onset: int | None
    apex: int | None
    offset: int | None
    finished: str
    """Key under which a finished folder holds the clip; ``""`` where none does."""
    parts: Mapping[str, Part]
    """What stopped runs have made of the clip, by key."""


@dataclass(frozen=True)
class Job:
    """What all clips share."""

    parts: Path
    groups: SpecGroups
    recipe: PreprocessRecipe
    inner: PreprocessRecipe
    """What is left of the recipe once the face is cut out."""
    settings: str
    run: str
    """Name of this run, unlike that of any other."""


@dataclass(frozen=True)
class Outcome:
    clip: str
    key: str = ""
    origin: str = ""
    """``"made"``, ``"part"`` or ``"finished"``; ``""`` where the clip is left out."""
    part: Part | None = None
    problem: str = ""
    detail: str = ""


def write_part(task: Task, key: str, arrays: Mapping[str, NDArray[Any]], facts: dict[str, Any], job: Job) -> Part:
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
    return "|u1" if spec.normalisation == "unit" else "<f4"


def settings_hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def with_clip_names(frame: pd.DataFrame) -> pd.DataFrame:
    if "clip" in frame.columns or "path" not in frame.columns:
        return frame
    return frame.assign(clip=[Path(str(path)).name for path in frame["path"]])


def frame_numbers(table: pd.DataFrame, name: str) -> Any:
    if name not in table.columns:
        return pd.array([None] * len(table), dtype="Int64")
    values: list[Any] = pd.to_numeric(table[name], errors="coerce").tolist()
    wrong = next((value for value in values if not pd.isna(value) and (value < 0 or value != int(value))), None)
    if wrong is not None:
        raise DataError(f"column {name!r} holds {wrong}, but frames counted from 0 are expected; correct it.")
    return pd.array([None if pd.isna(value) else int(value) for value in values], dtype="Int64")


def frame_indices(column: pd.Series) -> list[int | None]:
    return [None if pd.isna(value) else int(value) for value in column.tolist()]


@contextlib.contextmanager
def only_run(target: Path, store: Path) -> Iterator[None]:
    """Make the store of parts and keep every other run out of it until this one ends, however it ends."""
    place = store / LOCK
    try:
        held = _locked(store)
    except BlockingIOError as error:
        raise OutputError(
            f"another run is preparing {target} at the moment; wait until it has ended, or choose another folder."
        ) from error
    except OSError as error:
        raise cannot_write(store, error) from error
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


def clear_store(store: Path) -> None:
    for path in store.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink(missing_ok=True)


def cannot_write(target: Path, error: OSError, parts: Path | None = None) -> OutputError:
    return OutputError(
        f"cannot write {target}: {error.strerror or error}; mend that (room, permissions), then run the same again: "
        f"finished clips are kept in {parts or target}."
    )


# Characters of the digest after a clip in the store, and the most bytes that the line before its media may have.
DIGEST, HEAD_BYTES = 32, 1 << 20
