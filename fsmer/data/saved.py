"""The folder form of clip sets: ``clips.json``, ``table.csv`` and one ``.npy`` a kind of medium, all of one saving.

``clips.json`` holds the digests of the other files, of every `fsmer.io.BLOCK_BYTES` of each. Table and beginning of the
arrays are checked when a folder is opened, other blocks when they are first read. Folders without digests, as earlier
versions wrote them, are opened unchecked.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from annotated_types import Ge

from fsmer.data.media import NpyStore
from fsmer.data.spec import InputSpec
from fsmer.data.table import read_table
from fsmer.errors import DataError
from fsmer.io import BLOCK_BYTES, block_digests, digest, restore_folder, write_json
from fsmer.schema import Count, checked, read_json

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

__all__ = ["HEADER", "TABLE", "ArrayWriter", "read_folder", "write_header"]

HEADER, TABLE = "clips.json", "table.csv"
FORMAT, FORMAT_VERSION = "fsmer-clips", 1
# A folder that somebody saves anew meanwhile is opened again, a damaged one a few times, since the two look alike
# where folders cannot be locked.
SAVINGS, TRIES, PAUSE_SECONDS = 200, 4, 0.02


@dataclass(frozen=True)
class _Header:
    clips: Count
    columns: dict[str, Literal["text", "integer", "number", "boolean"]]
    media: dict[str, InputSpec]
    block_bytes: Annotated[int, Ge(1)] = BLOCK_BYTES
    files: dict[str, list[str]] = field(default_factory=dict)


class ArrayWriter:
    """A ``.npy`` file of a clip set for a number of `rows` of numbers of the type `stored`, such as ``"<f4"``."""

    def __init__(self, folder: Path, spec: InputSpec, rows: int, stored: str) -> None:
        self.spec = spec
        self._blocks: list[str] = []
        self._block = bytearray()
        # Plain writes: a full disk is an error to them, and a crash to a memory map.
        self._stream = (folder / f"{spec.kind}.npy").open("wb")
        header, form = io.BytesIO(), {"descr": stored, "fortran_order": False, "shape": (rows, *spec.shape)}
        np.lib.format.write_array_header_1_0(header, form)
        self.write(header.getbuffer())

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def write(self, data: memoryview) -> None:
        data = data.cast("B")
        self._stream.write(data)
        while len(data):
            room = BLOCK_BYTES - len(self._block)
            self._block += data[:room]
            data = data[room:]
            if len(self._block) == BLOCK_BYTES:
                self._blocks.append(digest(bytes(self._block)))
                self._block.clear()

    @property
    def blocks(self) -> list[str]:
        """What `fsmer.io.block_digests` would say of the file, which need not be read for it."""
        return [*self._blocks, digest(bytes(self._block))] if self._block else list(self._blocks)


def write_header(folder: Path, columns: Mapping[str, str], rows: int, arrays: Sequence[ArrayWriter]) -> Path:
    """Write ``clips.json`` of a clip set of `rows` clips, whose table `fsmer.data.table.write_table` wrote."""
    values = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "clips": rows,
        "columns": dict(columns),
        "media": {array.spec.kind: array.spec.to_dict() for array in arrays},
        "block_bytes": BLOCK_BYTES,
        "files": {TABLE: block_digests(folder / TABLE)} | {f"{one.spec.kind}.npy": one.blocks for one in arrays},
    }
    return write_json(folder / HEADER, values, sealed=True)


def read_folder(folder: Path) -> tuple[pd.DataFrame, dict[str, NpyStore]]:
    """Table and stores of a saved clip set, all of one saving whoever saves it anew; errors as for `ClipSet.load`."""
    tries = 0
    for _ in range(SAVINGS):
        with _watched(folder) as is_same:
            found = None
            try:
                found = _read(folder)
            except DataError:
                tries += 1
                if tries == TRIES:
                    raise
            if not is_same():
                found, tries = None, 0
            elif found is not None:
                return found
        if tries:
            # A killed writer may have left it half replaced.
            restore_folder(folder)
            time.sleep(PAUSE_SECONDS)
    raise DataError(f"{folder} was saved anew {SAVINGS} times while it was read; read it when nobody saves it.")


@contextlib.contextmanager
def _watched(folder: Path) -> Iterator[Callable[[], bool]]:
    """Let nobody move files into a folder meanwhile; yields whether it was not exchanged for another one so far."""
    handle: int | None = None
    # Neither is possible everywhere; the digests show most of what they would.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        for _ in range(SAVINGS if fcntl is not None else 0):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            time.sleep(PAUSE_SECONDS)

    def is_same() -> bool:
        with contextlib.suppress(OSError):
            return handle is None or os.path.samestat(os.fstat(handle), os.stat(folder))
        return False

    try:
        yield is_same
    finally:
        if handle is not None:
            os.close(handle)


def _read(folder: Path) -> tuple[pd.DataFrame, dict[str, NpyStore]]:
    path = folder / HEADER
    if not path.exists():
        raise DataError(f"{folder} is not a saved clip set: it has no {HEADER}; give a folder that ClipSet.save wrote.")
    words: Any = {"what": "the header of a clip set", "remedy": "save the clip set again"}
    values = read_json(path, dict[str, Any], **words)
    version = values.get("format_version") if values.get("format") == FORMAT else None
    if type(version) is not int or version > FORMAT_VERSION:
        raise DataError(f"{folder} has format {version}, but this fsmer reads up to {FORMAT_VERSION}; update fsmer.")
    header = checked(values, _Header, path, **words)
    stores = {}
    for kind, spec in header.media.items():
        if kind != spec.kind or not kind.isidentifier():
            raise DataError(f"{path} has {spec.kind!r} under the name {kind!r}; save the clip set again.")
        name = f"{kind}.npy"
        stores[kind] = NpyStore(folder / name, spec, header.files.get(name), header.block_bytes)
    table = folder / TABLE
    return read_table(table, header.columns, header.clips, header.files.get(TABLE), header.block_bytes), stores
