"""A call in a process of its own, so that nothing that its code remembers reaches the next call.

The processes are forked from one that has loaded torch and fsmer and has computed nothing: it has no thread that a fork
would lose, no device, and no clip. Where the system does not fork safely, every call starts Python anew. A process gets
its arguments pickled and nothing else of this one; what comes back is plain numbers and text.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, TypeVar

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch
from numpy.typing import NDArray

from fsmer.errors import FsmerError
from fsmer.kernels.compiled import compile_all

__all__ = ["Answer", "ProcessEnded", "Processes", "serve"]

# What a call gives, piece by piece: a number, class names, and float32 probabilities.
Answer = tuple[int, list[str], NDArray[np.float32]]
T = TypeVar("T")

# macOS can fork, but its own libraries may have threads by then.
FORKS = hasattr(os, "fork") and sys.platform != "darwin"
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from fsmer.evaluation.isolated import serve; serve()"
# What calls would else load anew each: torch does so with the first optimiser, which takes seconds.
PRELOADED = ("fsmer.data", "torch._dynamo")
LENGTH = 8  # bytes of a length
# Seconds between checks on a call that sends nothing, and how long a process may take to end.
PATIENCE = 1.0


class ProcessEnded(FsmerError):
    """The process of a call has ended without an answer, often because memory ran out."""


class _Traceback(Exception):
    """Where an error came from in the other process."""

    def __str__(self) -> str:
        return f"in a process of its own\n{self.args[0]}"


class Processes:
    """Processes for calls one after another or, from several threads, at a time; `end` ends what is left of them."""

    def __init__(self) -> None:
        self._all: list[_Server] = []
        self._idle: list[_Server] = []

    def __reduce__(self) -> tuple[Any, ...]:
        # In a worker of a cluster, all tasks share processes that last as long as the worker.
        return (_of_worker, ())

    def call(self, function: Callable[..., Iterable[Answer]], *args: Any, threads: int, about: str) -> list[Answer]:
        """What ``function(*args)``, a function of fsmer on what can be pickled, gives in a process of its own.

        Modules that classes of `args` come from are loaded before it begins; `threads` is how many torch may take,
        `about` what it is about in messages. An error is raised as the same type where that is loaded here;
        `FsmerError` where an argument cannot be sent, `ProcessEnded` where the process ended without an answer.
        """
        try:
            task = cloudpickle.dumps((function, args))
        except Exception as error:
            raise FsmerError(
                f"isolate='process' sends {about} to a process of its own, but something of it cannot be sent "
                f"({' '.join(str(error).split())}); keep open files, locks and the like out of the method, or leave "
                "isolate out."
            ) from error
        parts = [part for one in args for part in (one, getattr(one, "backbone", None))]
        modules = sorted({function.__module__, *(type(part).__module__ for part in parts)} - {"__main__", "builtins"})
        request = {"path": sys.path, "modules": modules, "threads": threads, "forks": FORKS}
        if self._idle:
            server = self._idle.pop()
        else:
            self._all.append(server := _Server())
        try:
            answer = server.ask(json.dumps(request).encode(), task)
        except BaseException:
            self._end(server)
            raise
        if FORKS and answer:
            self._idle.append(server)
        else:
            self._end(server)
        return _read(answer, about)

    def end(self) -> None:
        for server in tuple(self._all):
            self._end(server)

    def _end(self, server: _Server) -> None:
        for held in (self._idle, self._all):
            with contextlib.suppress(ValueError):
                held.remove(server)
        server.end()


class _Server:
    """The process that calls are forked from."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # A key press ends this process, which ends that one.
            start_new_session=True,
        )
        self.tasks: Any = self.process.stdin
        self.answers: Any = self.process.stdout

    def ask(self, request: bytes, task: bytes) -> bytes:
        """The answer to a task; nothing where the process has ended."""
        try:
            _send(self.tasks, request)
            _send(self.tasks, task)
        except (OSError, ValueError):
            return b""
        return _receive(self.answers) or b""

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.tasks.close()
        try:
            self.process.wait(3 * PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@functools.cache
def _of_worker() -> Processes:
    return Processes()


def _read(answer: bytes, about: str) -> list[Answer]:
    """What a process has sent: pieces, or an error to be raised here."""
    head, _, numbers = answer.partition(b"\n")
    reply: dict[str, Any] = json.loads(head) if head else {"ended": None}
    for warned in reply.get("warnings", ()):
        category = _class_of(warned, Warning) or UserWarning
        warnings.warn(warned["text"], category, stacklevel=2)
    if "ended" in reply:
        how = f" ({reply['ended']})" if reply["ended"] else ""
        raise ProcessEnded(
            f"the process of {about} has ended without an answer{how}, often because memory ran out; "
            "run the same call again, which goes on from what is finished, with fewer jobs or more memory."
        )
    if "error" in reply:
        raise _error_of(reply["error"]) from _Traceback(reply["traceback"])
    pieces = reply["pieces"]
    ends = np.cumsum([int(np.prod(shape)) for _, _, shape in pieces], dtype=int)
    values = np.split(np.frombuffer(numbers, "<f4").astype(np.float32), ends)
    return [(number, names, part.reshape(shape)) for (number, names, shape), part in zip(pieces, values, strict=False)]


def _error_of(reply: dict[str, Any]) -> Exception:
    """An error as the same type, where that is loaded here."""
    kind = _class_of(reply, Exception)
    if kind is None:
        return FsmerError(f"a process of its own ended with {reply['name']}: {', '.join(map(str, reply['args']))}")
    try:
        return kind(*reply["args"])
    except Exception:
        # Its constructor takes something else than what it keeps.
        return kind.__new__(kind, *reply["args"])


def _class_of(reply: dict[str, Any], base: type[T]) -> type[T] | None:
    """The class that `_named` has named, where it is loaded here."""
    kind: Any = sys.modules.get(reply["module"])
    for name in reply["name"].split("."):
        kind = getattr(kind, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, base) else None


def serve() -> None:
    """Answer tasks from standard input, each in a fork of this process, until there are no more."""
    torch.set_num_threads(1)
    tasks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What a method prints goes where messages go: the way back belongs to the answers.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    _import_modules(PRELOADED)
    ready = False
    while (head := _receive(tasks)) is not None and (task := _receive(tasks)) is not None:
        request = json.loads(head)
        sys.path[:] = request["path"]
        _import_modules(request["modules"])
        if not request["forks"]:
            _send(answers, _answer(task, request["threads"]))
            return
        if not ready:
            # Where compiled code is not kept, every fork would compile it anew.
            compile_all()
            ready = True
        _send(answers, _in_fork(task, request["threads"], tasks))
    # Nothing is left to be tidied up, which takes Python a second or more.
    os._exit(0)


def _import_modules(modules: Sequence[str]) -> None:
    for name in modules:
        # One that cannot be loaded is named by the call that needs it.
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def _in_fork(task: bytes, threads: int, tasks: BinaryIO) -> bytes:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # A group of its own, to be ended with all that it starts.
        os.setpgid(0, 0)
        try:
            with os.fdopen(writing, "wb") as stream:
                _send(stream, _answer(task, threads))
        finally:
            os._exit(0)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    os.close(writing)
    # Bytes would be copied with every piece.
    found, status = bytearray(), None
    while len(found) < LENGTH or len(found) < LENGTH + int.from_bytes(found[:LENGTH], "big"):
        ready, _, _ = select.select([reading, tasks.fileno()], [], [], PATIENCE)
        if tasks.fileno() in ready:
            # Nobody waits for this answer any more.
            os.killpg(child, signal.SIGKILL)
            os._exit(0)
        if reading in ready:
            chunk = os.read(reading, 1 << 20)
            if not chunk:
                break
            found += chunk
        elif status is not None:
            break
        else:
            # Something that it has started may hold the pipe open after its end.
            ended, code = os.waitpid(child, os.WNOHANG)
            status = code if ended else None
    os.close(reading)
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        status = os.waitpid(child, 0)[1]
    if len(found) > LENGTH and len(found) == LENGTH + int.from_bytes(found[:LENGTH], "big"):
        return bytes(found[LENGTH:])
    how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit status {os.WEXITSTATUS(status)}"
    return json.dumps({"ended": how}).encode()


def _answer(task: bytes, threads: int) -> bytes:
    """Do a task; the first line says what comes, then come the numbers."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        try:
            torch.set_num_threads(threads)
            function, args = pickle.loads(task)
            pieces: Sequence[Answer] = list(function(*args))
            shapes = [[number, list(names), list(values.shape)] for number, names, values in pieces]
            reply: dict[str, Any] = {"pieces": shapes}
            numbers = b"".join(np.ascontiguousarray(values, "<f4").tobytes() for _, _, values in pieces)
        except BaseException as error:
            numbers = b""
            args = [one if isinstance(one, (str, int, float)) else repr(one) for one in error.args]
            reply = {"error": _named(type(error)) | {"args": args}, "traceback": traceback.format_exc()}
    reply["warnings"] = [_named(one.category) | {"text": str(one.message)} for one in warned]
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    return json.dumps(reply).encode() + b"\n" + numbers


def _named(kind: type) -> dict[str, Any]:
    return {"module": kind.__module__, "name": kind.__qualname__}


def _send(stream: BinaryIO | Any, data: bytes) -> None:
    stream.write(len(data).to_bytes(LENGTH, "big"))
    stream.write(data)
    stream.flush()


def _receive(stream: BinaryIO | Any) -> bytes | None:
    """The next piece of data; nothing where the stream has ended."""
    length = stream.read(LENGTH)
    if len(length) < LENGTH:
        return None
    size = int.from_bytes(length, "big")
    data: bytes = stream.read(size)
    return data if len(data) == size else None
