"""Where a clip's arrays come from: in-memory arrays, .npy files and 8-bit image maps, all read lazily by row."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.array_files import map_array
from fsmer.arrays import as_float32, plain_array
from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, MediaError, SpecMismatchError
from fsmer.io import BLOCK_BYTES, check_regular, digest

__all__ = [
    "ArrayStore",
    "ConcatStore",
    "ImageStore",
    "LazyArray",
    "ListStore",
    "MediaStore",
    "NpyStore",
    "RowError",
    "check_arrays",
    "copied",
    "guess_spec",
    "nameless",
    "narrowed",
    "opened_image",
    "origins",
]

# 8-bit maps divided by 255 hit 0 and 1 exactly; interpolation of float maps may overshoot by rounding only.
RANGE_TOLERANCE = 1e-3
# A small file may stand for any number of pixels. Maps are small; frames may be those of an 8K camera (33 million).
MAP_PIXELS = 1 << 24
FRAME_PIXELS = 1 << 26
# Pillow goes by content, not by name, and some of its other readers start programs.
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

Rows = NDArray[np.int64]


class RowError(MediaError):
    """One row of a store cannot be read; a store knows rows, the clip set that owns it adds the clip's name."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row}: {reason}")
        self.row = row
        self.reason = reason


@runtime_checkable
class MediaStore(Protocol):
    """What a clip set needs of a source of arrays: a spec, a length and reading by row.

    A store may hold more rows than any one clip set shows; nothing is read before `read` is called.
    """

    @property
    def spec(self) -> InputSpec:
        """What every row holds."""
        ...

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def read(self, rows: Rows) -> NDArray[np.float32]:
        """Return a new array of shape ``(len(rows), *spec.shape)``, or raise `RowError`."""
        ...


class ArrayStore:
    """Rows of one array in memory; the array is kept, not copied.

    Parameters
    ----------
    array : ndarray of shape (N, \\*spec.shape)
        Floats as the spec says, or 8-bit integers, which are read as value / 255.
    spec : InputSpec, optional
        Default: `guess_spec` of the array.

    Raises
    ------
    SpecMismatchError
        The array's shape is not the spec's.
    """

    def __init__(self, array: NDArray[Any], spec: InputSpec | None = None) -> None:
        self._spec = guess_spec(array) if spec is None else spec
        if array.ndim < 1 or array.shape[1:] != self._spec.shape:
            raise SpecMismatchError(
                f"the array has shape {_shape(array.shape)}, but {self._spec.describe()} needs "
                f"(clips, {', '.join(map(str, self._spec.shape))}); reshape the array or pass the spec that fits it."
            )
        self.array = array

    @property
    def spec(self) -> InputSpec:
        """What every row holds."""
        return self._spec

    def __len__(self) -> int:
        return len(self.array)

    def read(self, rows: Rows) -> NDArray[np.float32]:
        """Copy the asked rows as float32."""
        return _as_float(self.array[rows])


class NpyStore(ArrayStore):
    """Rows of a ``.npy`` file, mapped into memory so that only what is asked is read from disk.

    Parameters
    ----------
    path : path
        The file.
    spec : InputSpec, optional
        Default: `guess_spec` of the array.
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
                f"cannot read the array file {self.path}: {error}; it is missing, cut short or no .npy file, "
                "so write the clip set again."
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
        return _as_float(self.stored(rows))

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
        return (NpyStore, (self.path, self._spec, self._blocks, self._block_bytes))


class ListStore:
    """Rows given as one array per clip, for example a DataFrame column; the arrays are kept, not copied."""

    def __init__(self, arrays: Sequence[NDArray[Any]], spec: InputSpec) -> None:
        self._arrays = arrays
        self._spec = spec

    @property
    def spec(self) -> InputSpec:
        """What every row holds."""
        return self._spec

    def __len__(self) -> int:
        return len(self._arrays)

    def read(self, rows: Rows) -> NDArray[np.float32]:
        """Stack the asked rows as float32."""
        out = np.empty((len(rows), *self._spec.shape), np.float32)
        for place, row in enumerate(rows.tolist()):
            array = np.asarray(self._arrays[row])
            if array.shape != self._spec.shape:
                raise RowError(row, _size_reason(array.shape, self._spec))
            out[place] = _as_float(array)
        return out

    def narrowed(self, rows: Rows) -> ListStore:
        """A store of these rows alone, see `narrowed`."""
        return ListStore([self._arrays[row] for row in rows.tolist()], self._spec)


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
            spec = InputSpec(size=_map_size(self.files[0]))
        self._spec = spec

    @property
    def spec(self) -> InputSpec:
        """What every row holds."""
        return self._spec

    def __len__(self) -> int:
        return len(self.files)

    def read(self, rows: Rows) -> NDArray[np.float32]:
        """Decode the asked images."""
        out = np.empty((len(rows), *self._spec.shape), np.float32)
        for place, row in enumerate(rows.tolist()):
            out[place] = _as_float(self.pixels(row))
        return out

    def pixels(self, row: int) -> NDArray[np.uint8]:
        """One image as it is stored, in the shape of the spec."""
        try:
            with opened_image(self.files[row], MAP_PIXELS) as image:
                _check_colours(image, self.files[row])
                shape = (3, image.height, image.width)
                if shape != self._spec.shape:
                    raise MediaError(f"{self.files[row]}: {_size_reason(shape, self._spec)}")
                return np.moveaxis(np.asarray(image), 2, 0)
        except MediaError as error:
            raise RowError(row, str(error)) from error


class ConcatStore:
    """Rows picked from several stores of one spec, in any order; nothing is read or copied to make it.

    Parameters
    ----------
    stores : sequence of MediaStore
        Where the rows lie.
    which : ndarray of int, shape (N,)
        For each row of this store, the index of its store.
    rows : ndarray of int64, shape (N,)
        For each row of this store, the row inside that store.

    Raises
    ------
    SpecMismatchError
        The stores hold media of different specs.
    """

    def __init__(self, stores: Sequence[MediaStore], which: NDArray[Any], rows: Rows) -> None:
        self._stores = tuple(stores)
        self._which = which
        self._rows = rows
        self._spec = common_spec([store.spec for store in stores])

    @classmethod
    def join(cls, parts: Sequence[tuple[MediaStore, Rows]]) -> ConcatStore:
        """All rows of every part, one part after the other."""
        which = np.repeat(np.arange(len(parts), dtype=np.int32), [len(rows) for _, rows in parts])
        return cls([store for store, _ in parts], which, np.concatenate([rows for _, rows in parts]))

    @property
    def spec(self) -> InputSpec:
        """What every row holds."""
        return self._spec

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Rows) -> NDArray[np.float32]:
        """Read the asked rows, each store once."""
        out = np.empty((len(rows), *self._spec.shape), np.float32)
        which = self._which[rows]
        for index in np.unique(which).tolist():
            places = np.flatnonzero(which == index)
            inner = self._rows[rows[places]]
            try:
                out[places] = self._stores[index].read(inner)
            except RowError as error:
                place = places[np.flatnonzero(inner == error.row)[0]]
                raise RowError(int(rows[place]), error.reason) from error
        return out

    def narrowed(self, rows: Rows) -> ConcatStore:
        """A store of these rows alone, see `narrowed`."""
        return self._parts(rows, narrowed)

    def nameless(self, rows: Rows) -> ConcatStore:
        """The same without names of files, see `nameless`."""
        return self._parts(rows, nameless)

    def origins(self, rows: Rows) -> list[tuple[Any, int]]:
        """Where each row comes from, see `origins`."""
        return [origins(self._stores[self._which[row]], self._rows[[row]])[0] for row in rows.tolist()]

    def _parts(self, rows: Rows, cut: Callable[[MediaStore, Rows], MediaStore]) -> ConcatStore:
        which = self._which[rows]
        stores, places = [], np.zeros(len(rows), np.int64)
        # No row at all still needs a store that says what it holds.
        numbers = np.unique(which) if len(rows) else np.zeros(1, np.int64)
        for index in numbers.tolist():
            here = np.flatnonzero(which == index)
            inner = self._rows[rows[here]]
            try:
                stores.append(cut(self._stores[index], inner))
            except RowError as error:
                raise RowError(int(rows[here[np.flatnonzero(inner == error.row)[0]]]), error.reason) from error
            places[here] = np.arange(len(here))
        return ConcatStore(stores, np.searchsorted(numbers, which).astype(np.int32), places)


@dataclass(frozen=True)
class LazyArray:
    """One row of a store: the medium of one clip, read when asked for.

    Parameters
    ----------
    store : MediaStore
        Where it lies.
    row : int
        Which row of it.
    """

    store: MediaStore
    row: int = 0

    @classmethod
    def of(cls, array: ArrayLike, spec: InputSpec | None = None) -> LazyArray:
        """Wrap one array or tensor of shape ``(channels, height, width)`` that is in memory already.

        Raises
        ------
        DataError
            It is no array of real numbers, or has a shape that no flow map has and no spec beside it.
        SpecMismatchError
            Its shape is not the spec's.
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
    """A store of these rows alone, in this order, that knows no file name or single array of any other row.

    Rows of one large array are not copied: they stay a view into it. Numbers tell nothing of other clips but their
    pictures, while names of files and folders often hold their labels.
    """
    if isinstance(store, ImageStore):
        return ImageStore([store.files[row] for row in rows.tolist()], store.spec)
    if isinstance(store, ListStore):
        return store.narrowed(rows)
    if isinstance(store, ConcatStore):
        return store.narrowed(rows)
    return ConcatStore([store], np.zeros(len(rows), np.int32), rows)


def origins(store: MediaStore, rows: Rows) -> list[tuple[Any, int]]:
    """Where each row comes from: an object that every narrowed store shares, or an image file, and the row in it."""
    if isinstance(store, ConcatStore):
        return store.origins(rows)
    if isinstance(store, ListStore):
        return [(store._arrays[row], 0) for row in rows.tolist()]
    if isinstance(store, ImageStore):
        return [(store.files[row], 0) for row in rows.tolist()]
    return [(store, row) for row in rows.tolist()]


def nameless(store: MediaStore, rows: Rows) -> MediaStore:
    """As `narrowed`, but with the pixels of images in place of the names of their files.

    Raises
    ------
    RowError
        An image cannot be read; the row is that of `store`.
    """
    if isinstance(store, ConcatStore):
        return store.nameless(rows)
    if not isinstance(store, ImageStore):
        return narrowed(store, rows)
    pixels = np.empty((len(rows), *store.spec.shape), np.uint8)
    for place, row in enumerate(rows.tolist()):
        pixels[place] = store.pixels(row)
    return ArrayStore(pixels, store.spec)


def copied(store: MediaStore, rows: Rows) -> MediaStore:
    """As `narrowed`, but read into an array of its own.

    Neither the arrays of other rows can be reached from it nor the row numbers, which tell the labels of clips that lie
    class by class.

    Raises
    ------
    RowError
        A row cannot be read; the number is that of `store`.
    """
    return ArrayStore(store.read(rows), store.spec)


def guess_spec(array: NDArray[Any]) -> InputSpec:
    """Spec of flow maps given as a bare array of shape ``(N, channels, height, width)``.

    Two channels are (u, v), three are (u, v, strain). The normalisation is taken to be ``"minmax"``, as in the public
    maps; signed flow has to be declared with a spec, since numbers alone cannot tell the unit.

    Raises
    ------
    DataError
        The array has no such shape or does not hold numbers.
    """
    names = {2: ("u", "v"), 3: ("u", "v", "strain")}
    if array.dtype.kind not in "fiu" or array.ndim != 4 or array.shape[1] not in names:
        raise DataError(
            f"the flow array has shape {_shape(array.shape)} and type {array.dtype}, but numbers of shape "
            "(clips, channels, height, width) with channels (u, v) or (u, v, strain) are expected; "
            "move the channel axis (numpy.moveaxis) or pass a spec."
        )
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        raise DataError(
            f"the flow array holds integers of type {array.dtype}; "
            "give 8-bit maps (uint8, read as value / 255) or floats."
        )
    return InputSpec(size=(array.shape[2], array.shape[3]), channels=names[array.shape[1]])


def common_spec(specs: Sequence[InputSpec]) -> InputSpec:
    """The one spec of media that are put together, or `SpecMismatchError` naming the two that differ.

    A flow method that one side does not know makes the method of the whole unknown.
    """
    first = specs[0]
    for other in specs[1:]:
        other.check_feeds(first, who="the first set of clips, to which they are to be joined,")
    methods = {spec.flow_method for spec in specs} - {None}
    if len(methods) > 1:
        one, two, *_ = sorted(str(method) for method in methods)
        raise SpecMismatchError(
            f"the clips were prepared with different flow methods ({one} and {two}); "
            "prepare them with one method before joining."
        )
    if all(spec == first for spec in specs):
        return first
    return InputSpec(first.kind, first.size, first.channels, first.normalisation, None)


def check_arrays(arrays: NDArray[Any], spec: InputSpec) -> tuple[int, str] | None:
    """Find the first unusable array of a stack.

    Parameters
    ----------
    arrays : ndarray of float32 (or uint8, which stands for value / 255), shape (N, \\*spec.shape)
    spec : InputSpec
        What they claim to hold.

    Returns
    -------
    tuple of (int, str) or None
        Position and reason, or None when all are finite, not constant and, for min-max maps and images, inside 0..1.
    """
    if not len(arrays):
        return None
    # Per clip and channel, over space and, where there is any, time.
    axes = (1, 3, 4) if arrays.ndim == 5 else (2, 3)
    low: Any = _as_float(arrays.min(axis=axes))
    high: Any = _as_float(arrays.max(axis=axes))
    finite = (np.isfinite(low) & np.isfinite(high)).all(axis=1)
    flat = low == high
    minmax = spec.normalisation == "minmax"
    if minmax:
        # Every channel was stretched to 0..1, so a flat one means that the map was not made from a movement.
        constant = flat.any(axis=1)
        outside = ((low < -RANGE_TOLERANCE) | (high > 1 + RANGE_TOLERANCE)).any(axis=1)
    else:
        constant = flat.all(axis=1) & (low == low[:, :1]).all(axis=1)
        outside = np.zeros(len(arrays), bool)
        if spec.normalisation == "unit":
            outside = ((low < -RANGE_TOLERANCE) | (high > 1 + RANGE_TOLERANCE)).any(axis=1)
    bad = ~finite | constant | outside
    if not bad.any():
        return None
    place = int(np.flatnonzero(bad)[0])
    if not finite[place]:
        channel = spec.channels[int(np.flatnonzero(~(np.isfinite(low[place]) & np.isfinite(high[place])))[0])]
        return place, f"its {spec.kind} holds NaN or infinity in channel {channel!r}; compute the {spec.kind} again."
    if constant[place]:
        channel = f"channel {spec.channels[int(np.flatnonzero(flat[place])[0])]!r} of " if minmax else ""
        return place, (
            f"{channel}its {spec.kind} is constant (every pixel {low[place][flat[place]][0]:g}), "
            f"so there is {'no movement' if 'flow' in spec.kind else 'nothing'} to see; "
            f"compute the {spec.kind} again or leave the clip out."
        )
    if not minmax:
        return place, (
            f"its {spec.kind} runs from {low[place].min():g} to {high[place].max():g}, but brightness lies in 0..1; "
            "divide 8-bit images by 255."
        )
    return place, (
        f"its {spec.kind} runs from {low[place].min():g} to {high[place].max():g}, but min-max maps lie in 0..1; "
        "divide 8-bit maps by 255, or declare signed flow with InputSpec(normalisation='signed')."
    )


@contextmanager
def opened_image(path: str | os.PathLike[str], most_pixels: int = FRAME_PIXELS) -> Iterator[Any]:
    """Open a picture file with Pillow; its header is read, its pixels are not yet.

    Parameters
    ----------
    path : path
    most_pixels : int
        A picture with more is refused before it is decoded.

    Raises
    ------
    MediaError
        The file is missing, no regular file, too large, or cannot be decoded (also while the picture is in use).
    """
    from PIL import Image

    try:
        check_regular(path)
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > most_pixels:
                raise MediaError(
                    f"{path} is a picture of {image.height}x{image.width} pixels, but at most {most_pixels:,} "
                    "are read; make it smaller."
                )
            yield image
    except MediaError:
        raise
    except FileNotFoundError as error:
        raise MediaError(f"the file {path} does not exist; put it there or leave the clip out.") from error
    # Pillow's decoders raise whatever the damaged bytes lead them into.
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        MemoryError,
        OverflowError,
        AssertionError,
        LookupError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it contradicts itself"
        raise MediaError(f"the file {path} cannot be read as an image ({reason}); copy it again.") from error


def _map_size(file: str) -> tuple[int, int]:
    try:
        with opened_image(file, MAP_PIXELS) as image:
            _check_colours(image, file)
            return image.height, image.width
    except MediaError as error:
        raise RowError(0, str(error)) from error


def has_deep_colours(image: Any) -> bool:
    """Whether a colour picture has 16 bits a channel, of which Pillow gives the upper 8 alone."""
    # The fourth entry is called `args` by newer versions of Pillow alone.
    layout = str(image.tile[0][3]) if image.tile else ""
    return image.mode in ("LA", "RGB", "RGBA") and (";16" in layout or "65535" in layout)


def _check_colours(image: Any, file: str) -> None:
    mode = f"{image.mode} of 16 bits" if has_deep_colours(image) else image.mode
    if mode != "RGB":
        raise MediaError(
            f"{file} is an image of mode {mode}, but 8-bit RGB is expected (red = u, green = v, blue = strain)."
        )


def _as_float(array: NDArray[Any]) -> NDArray[np.float32]:
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    return as_float32(array)


def _size_reason(shape: tuple[int, ...], spec: InputSpec) -> str:
    return (
        f"its {spec.kind} has shape {_shape(shape)}, but the other clips hold {_shape(spec.shape)} "
        "(channels, height, width); prepare all clips at one size."
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
