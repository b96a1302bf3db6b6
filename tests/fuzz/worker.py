"""One process that gives a reader mutated input after mutated input, and says what came of each."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from fsmer.errors import FsmerError

from .confine import confine
from .mutate import CANARIES, Files, Node, mutated, seal, without_checksums
from .planted import PLANTED
from .readers import READERS, Reader, WrongAnswerError, _pixels

__all__ = ["FAILURES", "Outcome", "input_of", "reader_named", "serve"]

# What may come of a mutation; all but the first two are failures.
ACCEPTED, TYPED = "accepted", "typed error"
UNTYPED, HANG, WRONG, MEMORY, CRASH = "untyped error", "hang", "wrong answer", "memory", "crash"
NOISE, REACH = "noise", "reach"
FAILURES = (UNTYPED, HANG, WRONG, MEMORY, CRASH, NOISE, REACH)

# Growth of the process that is too much, and what its address space may grow by before the system refuses.
GROWTH_BYTES, LIMIT_BYTES = 1 << 30, 3 << 30
# What links lead to; a link may be followed, other than a path in a table.
BESIDE = "beside.png"
# What one reading may print.
PRINTED_BYTES = 64 << 10
# Opened, whatever the folder: what the input names must not be.
_REACHING = frozenset(
    {
        "pickle.find_class",
        "socket.connect",
        "socket.getaddrinfo",
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.posix_spawn",
    }
)
_WRITING = frozenset(
    {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
)


class BrokenMutatorError(Exception):
    """The suite itself failed; the message is the traceback."""


@dataclass(frozen=True)
class Outcome:
    """What came of one mutation: its seed, one of the words above, what was said, and where in fsmer."""

    seed: int
    kind: str
    detail: str = ""
    place: str = ""


def reader_named(name: str) -> Reader:
    return PLANTED[name] if name in PLANTED else READERS[name]


def serve(name: str, first: int, last: int, top: str, log: str, alarm: float, sender: Connection) -> None:
    """Answer the seeds from `first` until before `last` within the folder `top`; what is printed goes to `log`."""
    reader = reader_named(name)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    faulthandler.enable(file=handle)
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    warnings.simplefilter("ignore")
    root = Path(os.path.realpath(top))
    os.environ["FSMER_CACHE"] = str(root / "cache")
    for variable in ("TMPDIR", "MPLCONFIGDIR"):
        os.environ[variable] = str(root)
    tempfile.tempdir = str(root)
    (root / "cwd").mkdir()
    os.chdir(root / "cwd")
    try:
        confine(root)  # before anything is read
    except RuntimeError as error:
        sender.send(str(error))
        return
    try:
        before, expected = _valid(reader, root)
    except BaseException:
        sender.send(traceback.format_exc())
        return
    _limit_memory()
    sys.addaudithook(_watch(root))
    held = _resident()
    sender.send(None)
    for seed in range(first, last):
        printed = os.fstat(handle).st_size
        faulthandler.dump_traceback_later(max(alarm - 0.5, alarm / 2), file=handle)
        try:
            outcome = _outcome(reader, seed, before, expected, root)
        except BrokenMutatorError as error:
            sender.send(str(error))
            return
        faulthandler.cancel_dump_traceback_later()
        if outcome.kind not in FAILURES and os.fstat(handle).st_size - printed > PRINTED_BYTES:
            outcome = Outcome(seed, NOISE, f"{os.fstat(handle).st_size - printed:,} bytes were printed")
        grown = _resident() - held
        if grown > GROWTH_BYTES:
            outcome = Outcome(seed, MEMORY, f"the process has grown by {grown >> 20:,} MiB")
        sender.send(outcome)
        if outcome.kind == MEMORY:
            return  # the next process begins small again
        if os.fstat(handle).st_size > 1 << 20:
            os.ftruncate(handle, 0)


def input_of(reader: Reader, seed: int, before: Files) -> tuple[Files, bool]:
    """Input number `seed` of a reader, and whether its checksums were made to fit."""
    rng = np.random.default_rng([zlib.crc32(reader.name.encode()), seed])
    changed = mutated(before, rng, reader.words, reader.only)
    how = rng.random()
    fitting = seal(before, changed) if how < 0.45 else without_checksums(changed) if how < 0.6 else changed
    return fitting, fitting != changed


def _valid(reader: Reader, root: Path) -> tuple[Files, Any]:
    """The input that a reader accepts, and its answer to it."""
    place = root / "valid"
    place.mkdir()
    torch.manual_seed(0)
    reader.write(place)
    before: Files = {
        str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()
    }
    with _folder(before, root) as folder:
        expected = reader.read(folder)
    return before, expected


@contextlib.contextmanager
def _folder(files: Files, root: Path) -> Iterator[Path]:
    """The files in a folder that is always at the same place."""
    folder = root / "in" / "put"
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    from PIL import Image

    for name in (Path(CANARIES[0]).name, BESIDE):
        Image.fromarray(_pixels(0)).save(folder.parent / name)
    lay(files, folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


def lay(files: Files, folder: Path) -> None:
    """Write files, and what may be in place of one, into `folder`."""
    for name, content in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif content is Node.PIPE:
                os.mkfifo(path)
            elif content is Node.FOLDER:
                path.mkdir()
            else:
                # Never to a file of the system: what follows a link when it writes would replace it.
                beside = os.path.relpath(folder.parent / BESIDE, path.parent)
                path.symlink_to(path.name if content is Node.LOOP else beside)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue  # a changed name that another file has already


def _outcome(reader: Reader, seed: int, before: Files, expected: Any, root: Path) -> Outcome:
    try:
        files, sealed = input_of(reader, seed, before)
    except Exception:
        raise BrokenMutatorError(traceback.format_exc()) from None
    _REACHED.clear()
    with _folder(files, root) as folder:
        try:
            _WATCHED[0] = True
            answer = reader.read(folder)
        except FsmerError as error:
            found = Outcome(seed, TYPED, str(error))
        except WrongAnswerError as error:
            found = Outcome(seed, WRONG, str(error), _place(error))
        except MemoryError as error:
            found = Outcome(seed, MEMORY, "MemoryError", _place(error))
        except BaseException as error:
            found = Outcome(seed, UNTYPED, f"{type(error).__name__}: {str(error)[:200]}", _place(error))
        else:
            found = Outcome(seed, ACCEPTED)
            if reader.same and not sealed and answer != expected:
                found = Outcome(seed, WRONG, "damage gave another answer, and nothing was said")
        finally:
            _WATCHED[0] = False
    if _REACHED:
        return Outcome(seed, REACH, _REACHED[0][0], _REACHED[0][1])
    return found


def _place(error: BaseException) -> str:
    """File and line of fsmer where an error came from: the innermost, or the last one before another library."""
    return place_in([f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)])


def place_in(lines: list[str]) -> str:
    own = [line.split("/fsmer/")[-1] for line in lines if "/fsmer/" in line and "site-packages" not in line]
    return f"fsmer/{own[-1]}" if own else ""


# Whether a reader is at work, and what it did that no input may make it do.
_WATCHED = [False]
_REACHED: list[tuple[str, str]] = []


def _watch(root: Path) -> Any:
    """An audit hook that notes commands, connections, and files touched outside `root`."""

    def note(event: str, args: tuple[Any, ...]) -> None:
        if not _WATCHED[0]:
            return
        reached = event in _REACHING
        if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
            path, flags = os.fsdecode(args[0]), args[2] if isinstance(args[2], int) else 0
            name = path.rpartition("/")[2]
            if name == "canary.png" or path == CANARIES[1]:
                reached = True
            elif flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                reached = _outside(path, root)
        elif event in _WRITING and args and isinstance(args[0], (str, bytes, os.PathLike)):
            reached = _outside(os.fsdecode(args[0]), root)
        if reached:
            _WATCHED[0] = False
            _REACHED.append((f"{event} {str(args[0])[:120]}", _place_now()))
            _WATCHED[0] = True
            raise PermissionError(f"{event} is not for a reader")

    return note


def _outside(path: str, root: Path) -> bool:
    real = os.path.realpath(path)
    return not real.startswith((str(root), "/dev/null", "/proc/self/"))


def _place_now() -> str:
    return place_in([f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()])


def _resident() -> int:
    # The largest so far; in KiB, but in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _limit_memory() -> None:
    """A huge allocation is refused before the machine runs out of memory."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LIMIT_BYTES, hard))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
