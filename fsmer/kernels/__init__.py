"""Compiled code and random numbers below the networks, and which of this arithmetic is in use on this machine."""

from __future__ import annotations

import functools
import subprocess
import warnings
from pathlib import Path

import torch

from fsmer.io import digest
from fsmer.kernels.compiled import FLAGS, find_compiler, switched_off
from fsmer.kernels.compiled import compiled as load_compiled  # the name of the module stays that
from fsmer.kernels.dense import has_onednn

__all__ = ["describe"]
__dir__ = __all__.copy  # tab completion shows public names only


def describe() -> dict[str, str]:
    """What tells the arithmetic of this process from that of others; it never raises.

    Returns
    -------
    dict of str to str
        ``kernels`` and ``onednn`` are ``"on"`` or ``"off"``, the latter for dense layers in training; where some of the
        kernels alone can be compiled and loaded, ``kernels`` names these. ``compiler`` is
        the first line that the compiler says of its version, and ``library`` a digest of the kernels' sources and
        flags. Without kernels both are ``"none"``, or ``"switched off (FSMER_COMPILE=off)"`` where the user wants so.
    """
    onednn = "on" if torch.backends.mkldnn.enabled and has_onednn() else "off"
    usable, compiler, library = _kernels()
    return {
        "kernels": usable,
        "compiler": compiler or "none",
        "library": library or ("switched off (FSMER_COMPILE=off)" if switched_off() else "none"),
        "onednn": onednn,
    }


@functools.cache
def _kernels() -> tuple[str, str, str]:
    """Which kernels are used, version of the compiler and digest of the sources; empty where there are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sources = sorted(Path(__file__).parent.glob("*.c"))
            usable = [source.stem for source in sources if load_compiled(source.stem) is not None]
        compiler = find_compiler()
        if not usable or compiler is None:
            return "off", "", ""
        told = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=10, text=True)
        content = b"\n".join([*(source.read_bytes() for source in sources), " ".join(FLAGS).encode()])
        words = "on" if len(usable) == len(sources) else ", ".join(usable)
        return words, told.stdout.splitlines()[0].strip(), digest(content)
    except Exception:
        return "off", "", ""
