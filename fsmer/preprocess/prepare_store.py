"""The folder of a preparation: finished parts, settings, and the clip set that is put together from them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from typing_extensions import TypedDict

from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, OutputError
from fsmer.io import check_regular, digest, locked
from fsmer.preprocess.recipe import PreprocessRecipe
from fsmer.schema import Count, parse_json

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
            raise DataError(
                f"the finished clips in {self.path} were altered or cut short meanwhile; run the same again."
            )
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
