"""How much memory is free, and which errors mean that there is none left."""

import contextlib
import errno
import functools
import os
import sys
from pathlib import Path

__all__ = ["cache_share", "free_memory", "out_of_memory"]

# Taken to be free where the system does not say.
UNKNOWN = 4 << 30
# Bounds of `cache_share`: less makes for steps so short that calling them takes longest; and where nothing is told.
LEAST_CACHED, MOST_CACHED, CACHED = 1 << 20, 8 << 20, 4 << 20
# Errors that mean nothing else.
ERRORS_OF_OTHERS = {"torch": "OutOfMemoryError", "joblib.externals.loky.process_executor": "BrokenProcessPool"}
# What the others' messages say: torch's for a CPU, C++'s own, CUDA's, and OpenCV's.
REFUSED = (
    "can't allocate memory",
    "std::bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Insufficient memory",
)
# How a library that finds no room says it; where it may not be loaded, the reason stands behind.
LIBRARY_REFUSED = ("failed to map segment from shared object", "Cannot allocate memory")


def free_memory() -> int:
    """Bytes that new work may take without pushing out what runs already."""
    told = Path("/proc/meminfo")
    lines = told.read_text(encoding="ascii").splitlines() if told.is_file() else []
    available = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    return available[0] if available else UNKNOWN


@functools.cache
def cache_share() -> int:
    """Bytes that work on one core which goes over them again and again may take, so that they stay in its caches.

    A quarter of the last cache, which other cores use too, but no less than a core's own second one, and at most
    `MOST_CACHED`.
    """
    sizes = {}
    for place in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        with contextlib.suppress(OSError, ValueError):
            size = (place / "size").read_text(encoding="ascii").strip()
            level = int((place / "level").read_text(encoding="ascii"))
            sizes[level] = int(size.rstrip("KM")) << {"K": 10, "M": 20}.get(size[-1:], 0)
    for level in (2, 3):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sizes.setdefault(level, os.sysconf(f"SC_LEVEL{level}_CACHE_SIZE"))
    sizes = {level: size for level, size in sizes.items() if size > 0 and level > 1}
    if not sizes:
        return CACHED
    return min(MOST_CACHED, max(sizes.get(2, 0), sizes[max(sizes)] // 4, LEAST_CACHED))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, here, on a GPU or in a worker process that was ended for it."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if isinstance(error, ImportError):
        return str(error).endswith(LIBRARY_REFUSED)
    # A library that is not loaded has raised nothing, and there may be no memory to load it now.
    told = (getattr(sys.modules.get(module), name, None) for module, name in ERRORS_OF_OTHERS.items())
    if any(kind is not None and isinstance(error, kind) for kind in told):
        return True
    spoken = isinstance(error, RuntimeError) or type(error).__module__ == "cv2"
    return spoken and any(words in str(error) for words in REFUSED)
