"""How much memory is free, and which errors mean that there is none left."""

from __future__ import annotations

from pathlib import Path

__all__ = ["free_memory", "out_of_memory"]

# Taken to be free where the system does not say.
UNKNOWN = 4 << 30


def free_memory() -> int:
    """Bytes that new work may take without pushing out what runs already."""
    told = Path("/proc/meminfo")
    lines = told.read_text(encoding="ascii").splitlines() if told.is_file() else []
    available = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    return available[0] if available else UNKNOWN


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, here, on a GPU or in a worker process that was ended for it."""
    import torch
    from joblib.externals.loky.process_executor import BrokenProcessPool  # type: ignore[import-untyped]

    known = isinstance(error, (MemoryError, torch.OutOfMemoryError, BrokenProcessPool))
    # torch has no error of its own for a CPU.
    return known or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
