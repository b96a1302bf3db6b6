"""Readers get hostile paths and links, so the kernel keeps the process that runs them from writing elsewhere."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

__all__ = ["can_confine", "confine"]

# linux/landlock.h; the numbers of the calls are the same on all architectures.
_CREATE, _ADD, _RESTRICT, _ABI_QUESTION, _BENEATH = 444, 445, 446, 1, 1
_WRITE_FILE = 1 << 1
# To write, remove and make anything; since the second version to move it, since the third to truncate it.
_RIGHTS = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))
_NO_NEW_PRIVILEGES = 38


def can_confine() -> bool:
    """Whether `confine` keeps its promise here, or the process may do little harm anyway."""
    return _landlock() >= 1 or os.geteuid() != 0


def _landlock() -> int:
    if os.uname().sysname != "Linux":
        return -1
    library = ctypes.CDLL(None, use_errno=True)
    return int(library.syscall(_CREATE, None, ctypes.c_size_t(0), _ABI_QUESTION))


def confine(root: Path) -> None:
    """From now on nothing outside `root` can be written, removed or made by this process, whatever library asks.

    Raises
    ------
    RuntimeError
        The kernel cannot do that and the process has the rights of root, with which a link to a device is enough to
        damage the machine.
    """
    if not can_confine():
        raise RuntimeError("this system cannot confine a process (Landlock); run the suite as an ordinary user.")
    version = _landlock()
    if version < 1:
        return
    library = ctypes.CDLL(None, use_errno=True)
    rights = _RIGHTS | (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0)
    rules = library.syscall(_CREATE, struct.pack("Q", rights), ctypes.c_size_t(8), 0)
    for path, allowed in ((str(root), rights), (os.devnull, _WRITE_FILE)):
        place = os.open(path, os.O_PATH)
        # A packed structure of 12 bytes.
        answer = library.syscall(_ADD, rules, _BENEATH, struct.pack("=Qi", allowed, place), 0)
        os.close(place)
        if answer:
            raise RuntimeError(f"{path} cannot be exempted: {os.strerror(ctypes.get_errno())}")
    if library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or library.syscall(_RESTRICT, rules, 0):
        raise RuntimeError(f"the process cannot be confined: {os.strerror(ctypes.get_errno())}")
    os.close(rules)
