"""Readers with one known fault each, by which the runner is tested."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .readers import Reader, WrongAnswerError

__all__ = ["PLANTED"]

_KEPT: list[bytes] = []


def _write(folder: Path) -> None:
    (folder / "a.txt").write_text("valid")


def _faulty(fault: Any) -> Any:
    """A reader that has its fault with anything but the valid input."""

    def read(folder: Path) -> None:
        path = folder / "a.txt"
        if not path.is_file() or path.is_symlink() or path.read_bytes() != b"valid":
            fault(folder)

    return read


def _hang(_: Path) -> None:
    time.sleep(60)


def _leak(_: Path) -> None:
    _KEPT.append(b"x" * (600 << 20))


def _allocate(_: Path) -> None:
    bytearray(1 << 45)


def _lookup(_: Path) -> None:
    {}["missing"]


def _nan(_: Path) -> None:
    raise WrongAnswerError("a probability is not finite")


def _segfault(_: Path) -> None:
    ctypes.string_at(0)


def _leave(_: Path) -> None:
    os._exit(3)


def _print(_: Path) -> None:
    sys.stderr.write("x" * (1 << 20))
    sys.stderr.flush()


def _command(_: Path) -> None:
    subprocess.run(["true"], check=False)


def _outside(folder: Path) -> None:
    (folder / ".." / "canary.png").read_bytes()


def _write_outside(folder: Path) -> None:
    """Through a link and without Python's `open`, as a library in C would; the file is the test's own."""
    target = os.environ["FUZZ_OUTSIDE"].encode()
    handle = ctypes.CDLL(None, use_errno=True).open(target, os.O_WRONLY | os.O_TRUNC)
    if handle >= 0:
        os.write(handle, b"written")
        return
    raise WrongAnswerError("the file outside could not be written")


PLANTED = {
    name: Reader(name, _write, _faulty(fault))
    for name, fault in {
        "planted-hang": _hang,
        "planted-leak": _leak,
        "planted-allocation": _allocate,
        "planted-lookup": _lookup,
        "planted-nan": _nan,
        "planted-segfault": _segfault,
        "planted-exit": _leave,
        "planted-print": _print,
        "planted-command": _command,
        "planted-outside": _outside,
        "planted-writing": _write_outside,
        "planted-nothing": lambda _: None,
    }.items()
}
