"""Where a clip's arrays come from: in-memory arrays, .npy files and 8-bit image maps, all read lazily by row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.array_files import map_array
from fsmer.arrays import plain_array
from fsmer.data.images import MAP_PIXELS, check_colours, opened_image
from fsmer.data.media_checks import common_spec, flow_map_spec, shape_text, size_reason, unit_floats
from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, MediaError, SpecMismatchError
from fsmer.io import BLOCK_BYTES, digest

__all__ = [
    "ArrayStore", "ConcatStore", "ImageStore", "LazyArray", "ListStore", "MediaStore", "NpyStore", "RowError", "copied",
    "nameless", "narrowed", "origins",
]  # fmt: skip

Rows = NDArray[np.int64]


class RowError(MediaError):
    """One row of a store cannot be read; the clip set that holds the store adds the clip's name."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row}: {reason}")
        self.row, self.reason = row, reason


@runtime_checkable
class MediaStore(Protocol):
    """What a clip set needs of a source of arrays: a spec, a length and reading by row.

    A store may hold more rows than any one clip set shows; nothing is read before `read` is called.
    """

    @property
    def spec(self) -> InputSpec:
        """What every row holds."""

    def __len__(self) -> int:
        """Number of rows."""

    def read(self, rows: Rows) -> NDArray[np.float32]:
        """Return a new array of shape ``(len(rows), *spec.shape)``, or raise `RowError`."""


class ArrayStore:
    """Rows of one array in memory; the array is kept, not copied.

    Parameters
    ----------
    array : ndarray of shape (N, \\*spec.shape)
        Floats as the spec says, or 8-bit integers, which are read as value / 255.
    spec : InputSpec, optional
        Default: `flow_map_spec` of the array.

    Raises
    ------
    SpecMismatchError
        The array's shape is not the spec's.
    """

    def __init__(self, array: NDArray[Any], spec: InputSpec | None = None) -> None:
        self.spec = flow_map_spec(array) if spec is None else spec
        if array.ndim < 1 or array.shape[1:] != self.spec.shape:
            raise SpecMismatchError(
                f"the array has shape {shape_text(array.shape)}, but {self.spec.describe()} needs "
                f"(clips, {', '.join(map(str, self.spec.shape))}); reshape the array or pass the spec that fits it."
            )
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def read(self, rows: Rows) -> NDArray[np.float32]:
        """Copy the asked rows as float32."""
        return unit_floats(self.array[rows])


class NpyStore(ArrayStore):
    """Rows of a ``.npy`` file, mapped into memory so that only what is asked is read from disk.

    Parameters
    ----------
    path : path
        The file.
    spec : InputSpec, optional
        Default: `flow_map_spec` of the array.
    blocks : sequence of str, optional
        Digest of every `block_bytes` of the file, as `fsmer.io.block_digests` gives them. The first is checked here,
        each other one when a row that lies in it is first read.
    block_bytes : int

    Raises
    ------
    MediaError
        The file is missing, cut short, no plain array of numbers, or not the one that the digests are of.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        spec: InputSpec | None = None,
        blocks: Sequence[str] | None = None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.path = Path(path)
        try:
            array = map_array(self.path)
            if array.dtype.kind not in "fiu":
                raise ValueError("it holds no array of numbers")
        except (OSError, ValueError) as error:
            raise MediaError(
                f"the array file {self.path} cannot be read ({error}); write the clip set anew."
            ) from error
        super().__init__(array, spec)
        self._blocks, self._block_bytes = None if blocks is None else tuple(blocks), block_bytes
        self._unread = np.ones(0 if blocks is None else len(blocks), bool)
        if blocks is not None:
            self._content = memoryview(array.base)  # type: ignore[arg-type]
            if len(blocks) != -(-len(self._content) // block_bytes) or not self._is_sound(0):
                raise MediaError(f"{self._changed}; write the clip set again, or open it anew.")

    def read(self, rows: Rows) -> NDArray[np.float32]:
        """Copy the asked rows as float32; raises `RowError` where one is damaged."""
        return unit_floats(self.stored(rows))

    def stored(self, rows: Rows) -> NDArray[Any]:
        """The asked rows in the type that the file has; errors as for `read`."""
        if self._unread.any() and len(rows):
            length = self.array.strides[0] if self.array.flags.c_contiguous else 0
            before = len(self._content) - self.array.nbytes
            starts = before + np.where(rows < 0, rows + len(self), rows) * length
            first, last = starts // self._block_bytes, (starts + length - 1) // self._block_bytes
            if not length:
                first, last = np.zeros_like(first), np.full_like(last, len(self._unread) - 1)
            for place in range(int((last - first).max()) + 1):
                within = np.minimum(first + place, last)
                for block in np.unique(within[self._unread[within]]).tolist():
                    if not self._is_sound(block):
                        row = int(rows[np.flatnonzero(within == block)[0]])
                        raise RowError(row, f"{self._changed}; write the clip set again, or open it anew.")
        return np.asarray(self.array[rows])

    @property
    def _changed(self) -> str:
        return f"the array file {self.path} is damaged, or of another saving of the clips"

    def _is_sound(self, block: int) -> bool:
        start = block * self._block_bytes
        sound = digest(self._content[start : start + self._block_bytes]) == self._blocks[block]  # type: ignore[index]
        self._unread[block] = not sound
        return sound

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes open the file again instead of receiving its whole content.
        return (NpyStore, (self.path, self.spec, self._blocks, self._block_bytes))


class ListStore:
    """Rows given as one array per clip, for example a DataFrame column; the arrays are kept, not copied."""

    def __init__(self, arrays: Sequence[NDArray[Any]], spec: InputSpec) -> None:
        self.arrays, self.spec = arrays, spec

    def __len__(self) -> int:
        return len(self.arrays)

    def read(self, rows: Rows) -> NDArray[np.float32]:
        """Stack the asked rows as float32."""
        out = np.empty((len(rows), *self.spec.shape), np.float32)
        for place, row in enumerate(rows.tolist()):
            array = np.asarray(self.arrays[row])
            if array.shape != self.spec.shape:
                raise RowError(row, size_reason(array.shape, self.spec))
            out[place] = unit_floats(array)
        return out


@contextmanager
def _opened_map(files: Sequence[str], row: int) -> Iterator[Any]:
    try:
        with opened_image(files[row], MAP_PIXELS) as image:
            check_colours(image, files[row])
            yield image
    except MediaError as error:
        raise RowError(row, str(error)) from error


class ImageStore:
    """One 8-bit RGB image per row; red, green and blue are the spec's channels in order, read as value / 255.

    Parameters
    ----------
    files : sequence of path
        One image file a row.
    spec : InputSpec, optional
        Default: three channels (u, v, strain), min-max normalised, of the first image's size.

    Raises
    ------
    RowError
        From `read`: a file is missing, unreadable, not 8-bit RGB or of another size.
    """

    def __init__(self, files: Sequence[str | os.PathLike[str]], spec: InputSpec | None = None) -> None:
        self.files = tuple(os.fspath(file) for file in files)
        if spec is None:
            if not self.files:
                raise DataError("no image file was given, so the size of the maps is unknown; pass a spec.")
            with _opened_map(self.files, 0) as image:
                spec = InputSpec(size=(image.height, image.width))
        self.spec = spec

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows: Rows) -> NDArray[np.float32]:
        """Decode the asked images."""
        return unit_floats(self.stack(rows))

    def stack(self, rows: Rows) -> NDArray[np.uint8]:
        """The asked images as they are stored, in the shape of the spec."""
        pixels = np.empty((len(rows), *self.spec.shape), np.uint8)
        for place, row in enumerate(rows.tolist()):
            with _opened_map(self.files, row) as image:
                shape = (3, image.height, image.width)
                if shape != self.spec.shape:
                    raise MediaError(f"{self.files[row]}: {size_reason(shape, self.spec)}")
                pixels[place] = np.moveaxis(np.asarray(image), 2, 0)
        return pixels


class ConcatStore:
    """Rows picked from several stores of one spec, in any order; nothing is read or copied to make it.

    For each row of this store, `which`, ints of shape (N,), is the index of its store, and `rows`, int64 of shape (N,),
    the row inside that store. A `SpecMismatchError` is raised for stores of different specs.
    """

    def __init__(self, stores: Sequence[MediaStore], which: NDArray[Any], rows: Rows) -> None:
        self._stores, self._which, self._rows = tuple(stores), which, rows
        self.spec = common_spec([store.spec for store in stores])

    @classmethod
    def join(cls, parts: Sequence[tuple[MediaStore, Rows]]) -> ConcatStore:
        """All rows of every part, one part after the other."""
        which = np.repeat(np.arange(len(parts), dtype=np.int32), [len(rows) for _, rows in parts])
        return cls([store for store, _ in parts], which, np.concatenate([rows for _, rows in parts]))

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Rows) -> NDArray[np.float32]:
        """Read the asked rows, each store once."""
        out = np.empty((len(rows), *self.spec.shape), np.float32)
        which = self._which[rows]
        for index in np.unique(which).tolist():
            places = np.flatnonzero(which == index)
            out[places] = self._of(index, rows[places], lambda store, inner: store.read(inner))
        return out

    def _of(self, index: int, rows: Rows, act: Callable[[MediaStore, Rows], Any]) -> Any:
        """What `act` gives for one store and the rows inside it."""
        inner = self._rows[rows]
        try:
            return act(self._stores[index], inner)
        except RowError as error:
            raise RowError(int(rows[(inner == error.row).argmax()]), error.reason) from error

    def cut(self, rows: Rows, cut: Callable[[MediaStore, Rows], MediaStore]) -> ConcatStore:
        """A store of these rows alone, for which `cut` makes a smaller store of each one here."""
        which = self._which[rows]
        stores, places = [], np.zeros(len(rows), np.int64)
        # No row at all still needs a store that says what it holds.
        numbers = np.unique(which) if len(rows) else np.zeros(1, np.int64)
        for index in numbers.tolist():
            here = np.flatnonzero(which == index)
            stores.append(self._of(index, rows[here], cut))
            places[here] = np.arange(len(here))
        return ConcatStore(stores, np.searchsorted(numbers, which).astype(np.int32), places)


@dataclass(frozen=True)
class LazyArray:
    """One row of a store: the medium of one clip, read when asked for."""

    store: MediaStore
    row: int = 0

    @classmethod
    def of(cls, array: ArrayLike, spec: InputSpec | None = None) -> LazyArray:
        """Wrap one array or tensor of shape ``(channels, height, width)`` that is in memory already.

        A `DataError` is raised where it is no array of real numbers, or has a shape that no flow map has and no spec
        beside it, a `SpecMismatchError` where its shape is not the spec's.
        """
        return cls(ArrayStore(plain_array(array, "the medium of a clip")[np.newaxis], spec))

    @property
    def spec(self) -> InputSpec:
        """What the array holds."""
        return self.store.spec

    def read(self) -> NDArray[np.float32]:
        """Read the array, shape ``(channels, height, width)``, without looking at its values."""
        return self.store.read(np.array([self.row], np.int64))[0]


def narrowed(store: MediaStore, rows: Rows) -> MediaStore:
    """A store of these rows alone, in this order, that holds no file name or single array of any other row.

    Rows of one large array are not copied: they stay a view into it. Numbers tell nothing of other clips but their
    pictures, while names of files and folders often hold their labels.
    """
    if isinstance(store, ImageStore):
        return ImageStore([store.files[row] for row in rows.tolist()], store.spec)
    if isinstance(store, ListStore):
        return ListStore([store.arrays[row] for row in rows.tolist()], store.spec)
    if isinstance(store, ConcatStore):
        return store.cut(rows, narrowed)
    return ConcatStore([store], np.zeros(len(rows), np.int32), rows)


def origins(store: MediaStore, rows: Rows) -> list[tuple[Any, int]]:
    """Where each row comes from: an object that every narrowed store shares, or an image file, and the row in it."""
    if isinstance(store, ConcatStore):
        return [origins(store._stores[store._which[row]], store._rows[[row]])[0] for row in rows.tolist()]
    if isinstance(store, (ListStore, ImageStore)):
        held: Sequence[Any] = store.arrays if isinstance(store, ListStore) else store.files
        return [(held[row], 0) for row in rows.tolist()]
    return [(store, row) for row in rows.tolist()]


def nameless(store: MediaStore, rows: Rows) -> MediaStore:
    """As `narrowed`, but with the pixels of images in place of their files; `RowError` where one cannot be read."""
    if isinstance(store, ConcatStore):
        return store.cut(rows, nameless)
    if not isinstance(store, ImageStore):
        return narrowed(store, rows)
    return ArrayStore(store.stack(rows), store.spec)


def copied(store: MediaStore, rows: Rows) -> MediaStore:
    """As `narrowed`, but read into an array of its own; `RowError` where a row cannot be read.

    Neither the arrays of other rows can be reached from it nor the row numbers, which are those of the labels where
    clips lie class by class.
    """
    return ArrayStore(store.read(rows), store.spec)
