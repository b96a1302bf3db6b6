"""Which clips of a set an index, a mask, a list of ids or a condition on their table chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fsmer.data.conditions import condition_mask
from fsmer.data.table import CORE_COLUMNS, describe_type, plain_texts
from fsmer.errors import DataError

__all__ = ["chosen_places", "fitting_rows"]


def chosen_places(
    item: Any, ids: NDArray[np.object_], positions: Callable[[list[str]], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Positions that an index, a mask or a list of ids chooses among clips of these ids; each once."""
    chosen = np.asarray(item)
    if chosen.dtype.kind == "f" and chosen.size == 0:
        chosen = chosen.astype(np.int64)
    if chosen.ndim == 1 and chosen.dtype.kind in "UOT" and all(isinstance(one, str) for one in chosen.tolist()):
        chosen = positions(chosen.tolist())
    if chosen.dtype.kind == "O" and all(isinstance(one, (bool, np.bool_)) for one in chosen.ravel().tolist()):
        chosen = chosen.astype(bool)
    if chosen.ndim != 1 or chosen.dtype.kind not in "biu":
        raise DataError(
            "clips are chosen by an int, a slice, or a one-dimensional mask, index array or list of ids, "
            f"not by {describe_type(item)}."
        )
    if chosen.dtype.kind == "b":
        if len(chosen) != len(ids):
            raise DataError(
                f"the mask has {len(chosen)} entries, but the set has {len(ids)} clips; make it from this set's table."
            )
        return np.flatnonzero(chosen)
    places = chosen.astype(np.int64)
    if len(places) and (places.min() < -len(ids) or places.max() >= len(ids)):
        raise IndexError(f"an index runs from {places.min()} to {places.max()}, but the set has {len(ids)} clips.")
    places = np.where(places < 0, places + len(ids), places)
    if _has_doubles(places, len(ids)):
        values, counts = np.unique(places, return_counts=True)
        raise DataError(f"clip {ids[values[counts > 1][0]]!r} was chosen twice; a clip set holds a clip once.")
    return places


def fitting_rows(
    table: pd.DataFrame, where: str | Callable[[pd.DataFrame], ArrayLike] | None, equals: Mapping[str, Any]
) -> NDArray[np.bool_]:
    """Which rows fit a condition and have these values; parameters and errors are those of `ClipSet.select`."""
    mask = np.ones(len(table), bool)
    if where is not None:
        mask &= _mask_of(where, table.copy(deep=False))
    for name, value in equals.items():
        if name not in table.columns:
            raise DataError(
                f"there is no column {name!r} to select by; the table has {', '.join(map(str, table.columns))}."
            )
        wanted = list(value) if isinstance(value, (list, tuple, set, frozenset, np.ndarray)) else [value]
        if name in CORE_COLUMNS:
            wanted = [text or (None if name == "label" else "") for text in plain_texts(wanted, name)]
        mask &= table[name].isin(wanted).to_numpy(bool)
    return mask


def _mask_of(where: str | Callable[[pd.DataFrame], ArrayLike], table: pd.DataFrame) -> NDArray[np.bool_]:
    if not callable(where):
        return condition_mask(str(where), table)
    mask = np.asarray(where(table))
    if mask.dtype != bool or mask.shape != (len(table),):
        raise DataError(
            f"the function {where!r} gives no yes or no per clip; return for instance table['dataset'] == 'smic'."
        )
    return mask


def _has_doubles(places: NDArray[np.int64], n: int) -> bool:
    if len(places) * 16 < n:
        return len(np.unique(places)) < len(places)
    seen = np.zeros(n, bool)
    seen[places] = True
    return int(seen.sum()) < len(places)
