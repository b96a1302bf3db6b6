"""How much memory is free, and which errors mean that there is none left."""

import errno
import sys
from pathlib import Path

__all__ = ["free_memory", "out_of_memory"]

# Taken to be free where the system does not say.
UNKNOWN = 4 << 30
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
