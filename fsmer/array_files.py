"""Reading .npy and .npz files: every fault of their content is one kind of error, and none allocates more than it has.

NumPy reads the header of an array as Python text and raises whatever comes of it.
"""

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsmer.io import check_regular

__all__ = ["map_array", "read_arrays"]


def map_array(path: str | os.PathLike[str]) -> np.memmap[Any, Any]:
    """The array of a ``.npy`` file, mapped; ``OSError`` where it cannot be opened, ``ValueError`` for a bad content."""
    check_regular(path)
    with _plain_errors():
        return np.lib.format.open_memmap(path, mode="r")


def read_arrays(content: bytes, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Arrays of a ``.npz`` file that `numpy.savez` wrote; ``ValueError`` where one is absent, compressed or damaged."""
    with _plain_errors(), zipfile.ZipFile(io.BytesIO(content)) as held:
        return {name: _array(held, f"{name}.npy") for name in names}


def _array(held: zipfile.ZipFile, name: str) -> NDArray[Any]:
    # A compressed entry of a small file may stand for any number of bytes.
    if held.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its entry {name} is compressed")
    stream = io.BytesIO(held.read(name))
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"its entry {name} has another version of the format")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise ValueError(f"its entry {name} holds Python objects")
    order: Any = "F" if by_columns else "C"
    return np.ndarray(shape, dtype, stream.getbuffer(), stream.tell(), order=order).copy()


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
