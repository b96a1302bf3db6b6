"""Reading .npy and .npz files: every fault of their content is one kind of error, and none allocates more than it has.

NumPy reads the header of an array as Python text and raises whatever comes of it.
"""

import contextlib
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fsmer.io import check_regular

__all__ = ["map_array", "read_arrays"]


def map_array(path: str | os.PathLike[str]) -> np.memmap[Any, Any]:
    """The array of a ``.npy`` file, mapped; ``OSError`` where it cannot be opened, ``ValueError`` for a bad content."""
    check_regular(path)
    with _plain_errors():
        with open(path, "rb") as stream:
            _header(stream, os.fspath(path))
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
    shape, by_columns, dtype = _header(stream, f"its entry {name}")
    order: Any = "F" if by_columns else "C"
    return np.ndarray(shape, dtype, stream.getbuffer(), stream.tell(), order=order).copy()


def _header(stream: IO[bytes], what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    known = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in known:
        raise ValueError(f"{what} has another version of the format")
    shape, by_columns, dtype = known[version](stream)
    # NumPy divides by the size of an element, and by a negative length, when it maps a file.
    if dtype.hasobject or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise ValueError(f"{what} holds no array of plain numbers")
    return shape, by_columns, dtype


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
