"""C sources of this package, compiled for the machine on first use where it has a compiler."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["compiled", "plain_in_memory"]

# The last two keep a compiler from shifting loaded values through registers that the sums need.
FLAGS = ("-O3", "-march=native", "-fno-predictive-commoning", "-fno-tree-pre", "-shared", "-fPIC")
SECONDS = 60


def plain_in_memory(*values: Tensor) -> bool:
    """Whether code that is handed addresses can take these: float32 on a CPU, and not vectorised over members."""
    # Inside `torch.func` a tensor stands for many.
    return not torch._C._are_functorch_transforms_active() and all(
        value.device.type == "cpu" and value.dtype == torch.float32 for value in values
    )


@functools.cache
def compiled(name: str) -> ctypes.CDLL | None:
    """The library of ``<name>.c`` beside this module; None where it cannot be compiled.

    Nothing depends on it but speed. It is kept in ``$FSMER_CACHE/compiled``, else below ``$XDG_CACHE_HOME/fsmer`` or
    ``~/.cache/fsmer``; ``FSMER_COMPILE=off`` does without.
    """
    compiler = shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")
    source = Path(__file__).with_name(f"{name}.c")
    if os.environ.get("FSMER_COMPILE", "").lower() == "off" or compiler is None or not source.is_file():
        return None
    # Code for one processor may not run on another that shares the folder.
    identity = "\n".join((source.read_text(encoding="utf-8"), *FLAGS, compiler, _processor()))
    library = _folder() / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    try:
        if not library.is_file():
            library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(dir=library.parent) as folder:
                made = Path(folder) / library.name
                command = [compiler, *FLAGS, str(source), "-o", str(made), "-lm"]
                subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
                os.replace(made, library)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None


def _folder() -> Path:
    asked = os.environ.get("FSMER_CACHE", "")
    if asked.lower() not in ("", "off"):
        return Path(asked) / "compiled"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fsmer" / "compiled"


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    if described.is_file():
        lines = described.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return f"{platform.machine()} {platform.processor()} {platform.version()}"
