"""C sources of this package, compiled for the machine on first use where it has a compiler."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor

from fsmer.caches import cache_place
from fsmer.io import atomic_path, digest, file_digest, remove_unfinished
from fsmer.kernels.differentiation import is_second_order

__all__ = ["compile_all", "compiled", "find_compiler", "plain_in_memory", "switched_off"]

# The last two keep a compiler from shifting loaded values through registers that the sums need.
FLAGS = ("-O3", "-march=native", "-fno-predictive-commoning", "-fno-tree-pre", "-shared", "-fPIC")
SECONDS = 60
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def plain_in_memory(*values: Tensor) -> bool:
    """Whether code that is handed addresses can take these: float32 on a CPU, not vectorised over members, and nobody
    asks for second derivatives, which it has none of."""
    plain = all(value.device.type == "cpu" and value.dtype == torch.float32 for value in values)
    # Inside `torch.func` a tensor stands for many.
    return plain and not torch._C._are_functorch_transforms_active() and not is_second_order()


def switched_off() -> bool:
    """Whether the user wants no compiled code."""
    return os.environ.get("FSMER_COMPILE", "").lower() == "off"


def find_compiler() -> str | None:
    """Path of the C compiler: that of ``$CC``, else the first of cc, gcc and clang."""
    return shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")


@functools.cache
def compiled(name: str) -> ctypes.CDLL | None:
    """The library of ``<name>.c`` beside this module; None where it cannot be compiled.

    Results without it differ by rounding alone. It is kept in ``$FSMER_CACHE/compiled`` (see `fsmer.caches`), provided
    that nobody but this user can write there; else every process compiles its own. ``FSMER_COMPILE=off`` does without.
    Only a library that belongs to this user and has the digest in its name is loaded.
    """
    compiler = find_compiler()
    source = Path(__file__).with_name(f"{name}.c")
    if switched_off() or compiler is None or not source.is_file():
        return None
    # Code for one processor may not run on another that shares the folder.
    identity = "\n".join((source.read_text(encoding="utf-8"), *FLAGS, compiler, _processor()))
    stem = f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    command = [compiler, *FLAGS, str(source), "-lm", "-o"]
    kept = _kept_folder()
    for library in () if kept is None else sorted(kept.glob(f"{stem}-*.so")):
        with contextlib.suppress(OSError, ValueError):  # damaged, or another user's: compiled again
            return _loaded(library)
    try:
        with contextlib.ExitStack() as stack:
            folder = kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            remove_unfinished(folder)
            with atomic_path(folder / f"{stem}.so") as temporary:
                subprocess.run([*command, str(temporary)], check=True, capture_output=True, timeout=SECONDS)
            made = folder / f"{stem}.so"
            made.chmod(0o700)
            return _loaded(made.rename(made.with_stem(f"{stem}-{file_digest(made)}")))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def compile_all() -> None:
    """Load all libraries, so that processes that are forked from this one have them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for source in Path(__file__).parent.glob("*.c"):
            compiled(source.stem)


def _loaded(library: Path) -> ctypes.CDLL:
    """A library that belongs to this user, that nobody else can change, and that has the digest in its name."""
    handle = os.open(library, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        found = os.fstat(handle)
        private = os.name == "nt" or (found.st_uid == os.geteuid() and not found.st_mode & OTHERS_WRITE)
        if not stat.S_ISREG(found.st_mode) or not private:
            raise ValueError(f"{library} is no file that this user alone can change")
        with open(handle, "rb", closefd=False) as stream:
            if digest(stream.read()) != library.stem.rpartition("-")[2]:
                raise ValueError(f"{library} is not as this user compiled it")
        # The file that was checked is the one that is loaded, whatever lies under its name by now. It stays open: the
        # system takes two libraries for one when both were loaded by the same number.
        opened = f"/proc/self/fd/{handle}"
        return ctypes.CDLL(opened if os.path.exists(opened) else str(library))
    except BaseException:
        os.close(handle)
        raise


def _kept_folder() -> Path | None:
    """Where compiled code is kept from one process to the next; None where others could put theirs in its place."""
    place = cache_place("compiled")
    if place is None:
        return None
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        place.mkdir(exist_ok=True, mode=0o700)
        folder = Path(os.path.realpath(place))
        if os.name == "nt":
            return folder
        for outer in (folder, *folder.parents):
            found, own = outer.stat(), outer == folder
            # In a folder such as /tmp nobody can rename what belongs to somebody else.
            shared = found.st_mode & OTHERS_WRITE and not found.st_mode & stat.S_ISVTX
            open_to_others = stat.S_IMODE(found.st_mode) & 0o077 if own else shared
            if open_to_others or found.st_uid not in ((os.geteuid(),) if own else (0, os.geteuid())):
                warnings.warn(
                    f"{outer} is not private to this user, so compiled code is not kept there and every process "
                    f"compiles it anew; take the rights of others away (chmod go-rwx {outer}), or set FSMER_CACHE to a "
                    "folder of your own.",
                    stacklevel=3,
                )
                return None
        return folder if os.access(folder, os.W_OK) else None
    except OSError:
        return None


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():
        lines = described.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return f"{platform.machine()} {platform.processor()} {platform.version()}"
