"""The tables and stores of clips that are given as arrays or one by one."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fsmer.arrays import plain_array
from fsmer.data.clip import Clip, no_such_kind
from fsmer.data.media import ArrayStore, ConcatStore, MediaStore
from fsmer.data.spec import InputSpec
from fsmer.data.table import CORE_COLUMNS, plain_texts
from fsmer.errors import DataError, SpecMismatchError

__all__ = ["from_arrays", "from_clips"]


def from_arrays(
    media: ArrayLike | Mapping[str, ArrayLike],
    spec: InputSpec | Sequence[InputSpec] | None,
    *,
    labels: ArrayLike | None,
    subjects: ArrayLike | None,
    datasets: ArrayLike,
    ids: ArrayLike | None,
    aus: ArrayLike | None,
) -> tuple[pd.DataFrame, dict[str, ArrayStore]]:
    """Table and stores of media in memory; parameters and errors are those of `ClipSet.from_arrays`."""
    specs = [spec] if isinstance(spec, InputSpec) else list(spec or [])
    stores = {store.spec.kind: store for store in _array_stores(media, specs)}
    n = len(next(iter(stores.values())))
    dataset = _column("dataset", "datasets", datasets, n)
    if ids is None:
        ids = [f"{name or 'mine'}-{row:0{len(str(n - 1))}d}" for row, name in enumerate(dataset)]
    columns = {"clip": _column("clip", "ids", ids, n), "dataset": dataset, "aus": _column("aus", "aus", aus, n)}
    columns |= {"subject": _column("subject", "subjects", subjects, n), "label": _column("label", "labels", labels, n)}
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()}), stores


def from_clips(clips: Sequence[Clip]) -> tuple[pd.DataFrame, dict[str, MediaStore]]:
    """Table and stores of single clips; errors are those of `ClipSet.from_clips`."""
    clips = list(clips)
    if not clips:
        raise DataError("the list of clips is empty; a clip set needs at least one clip.")
    for other in clips:
        for holds, kind in [(other, kind) for kind in clips[0].media] + [(clips[0], kind) for kind in other.media]:
            if kind not in holds.media:
                raise no_such_kind(f"clip {holds.id!r} holds", kind, holds.media)
    media = {kind: _store_of(kind, clips) for kind in clips[0].media}
    records = [
        {**clip.extra, **{name: getattr(clip, name) for name in CORE_COLUMNS[1:]}, "clip": clip.id} for clip in clips
    ]
    return pd.DataFrame(records), media


def _column(column: str, name: str, values: ArrayLike | None, n: int) -> list[str | None]:
    if values is None or isinstance(values, (str, bytes, int, float, Enum)) or getattr(values, "shape", None) == ():
        return plain_texts([values], column) * n
    listed = plain_texts(values, column)
    if len(listed) != n:
        raise DataError(f"there are {n} clips but {len(listed)} {name}; give one a clip.")
    return listed


def _array_stores(media: ArrayLike | Mapping[str, ArrayLike], specs: Sequence[InputSpec]) -> list[ArrayStore]:
    by_kind = {spec.kind: spec for spec in specs}
    single = not isinstance(media, Mapping)
    given: Mapping[str, Any] = media if isinstance(media, Mapping) else {specs[0].kind if specs else "flow": media}
    if not given:
        raise DataError("the mapping of media is empty; give at least one kind, for example flow.")
    stores = []
    for kind, values in given.items():
        array = plain_array(values, "the array of media" if single else f"the array of {kind}")
        if array.size == 0:
            raise DataError(f"the array of {kind} is empty; a clip set needs at least one clip.")
        if kind not in by_kind and kind != "flow":
            raise DataError(f"nothing says what the arrays of kind {kind!r} hold; pass spec with its InputSpec.")
        stores.append(ArrayStore(array, by_kind.get(kind)))
    return stores


def _store_of(kind: str, clips: Sequence[Clip]) -> MediaStore:
    lazies, wanted = [clip.media[kind] for clip in clips], clips[0].media[kind].spec
    stores = {id(lazy.store): (lazy, clip) for lazy, clip in zip(lazies, clips, strict=True)}
    for lazy, clip in stores.values():
        try:
            lazy.spec.check_feeds(wanted)
        except SpecMismatchError as error:
            raise SpecMismatchError(
                f"clip {clip.id!r} holds {lazy.spec.describe()}, but clip {clips[0].id!r} holds {wanted.describe()}; "
                "prepare all clips with one recipe."
            ) from error
    numbers = {store: number for number, store in enumerate(stores)}
    which = np.array([numbers[id(lazy.store)] for lazy in lazies], np.int32)
    rows = np.array([lazy.row for lazy in lazies], np.int64)
    return ConcatStore([lazy.store for lazy, _ in stores.values()], which, rows)
