"""Clips of any length brought to a wanted number of frames: the temporal interpolation model, and linear."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsmer.errors import DataError, unknown_name

Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Resampled:
    """A clip at another number of frames."""

    frames: NDArray[np.float32]  # (count, ...), in the units of the frames that went in
    source_frames: int  # how many went in
    method: str  # "tim", "linear", or "none" when the number was right already

    @property
    def interpolated(self) -> bool:
        """Whether frames were made up because the clip had too few."""
        return len(self.frames) > self.source_frames


def tim_weights(source: int, count: int) -> Weights:
    """Temporal interpolation model: weight of each of `source` frames in each of `count` frames, (count, source).

    The frames are nodes of a path graph; the eigenvectors of its Laplacian lie on the curves ``f_k(t) = sin(pi k t +
    pi (n - k) / (2 n))``, ``k = 1 .. n-1``, at ``t = 1/n .. 1`` (Zhou, Zhao & Pietikainen, CVPR 2011, eq. 4-5; used
    for micro-expressions by Pfister et al., ICCV 2011, section 3.1). New frames are read off at evenly spaced t from
    1/n to 1. The published procedure takes the singular value decomposition of the centred frames and maps the curve
    back through it; for a clip whose frames differ all of that cancels, and what is left is this matrix. It is also
    used where frames repeat, where the published inverse does not exist.
    """
    _check(source, count)
    if source == 1:
        return np.ones((count, 1))
    orders = np.arange(1, source)

    def curve(t: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sin(np.pi * np.outer(t, orders) + np.pi * (source - orders) / (2 * source))

    # Orthogonal columns: at the source's own times the inverse is a transposition.
    known = curve(np.arange(1, source + 1) / source)
    inverse = known / (known**2).sum(axis=0)
    start = 1.0 if count == 1 else 1.0 / source
    return np.asarray(curve(np.linspace(start, 1.0, count)) @ inverse.T + 1.0 / source)


def linear_weights(source: int, count: int) -> Weights:
    """Linear interpolation between neighbouring frames at evenly spaced times, (count, source)."""
    _check(source, count)
    places = np.linspace(0, source - 1, count) if count > 1 else np.array([source - 1.0])
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(source)[None, :]))


TIME_METHODS = {"linear": linear_weights, "tim": tim_weights}


def time_weights(source: int, count: int, method: str = "tim") -> Weights:
    """Weights of `method`, (count, source); the identity when the numbers agree."""
    if method not in TIME_METHODS:
        raise unknown_name("time interpolation", method, TIME_METHODS)
    return TIME_METHODS[method](source, count)


def resample(frames: Iterable[NDArray[Any]], source: int, count: int, *, method: str = "tim") -> Resampled:
    """Bring a clip of `source` frames to `count`, reading its frames once and keeping only the result in memory.

    `DataError` where the number of frames is not `source`.
    """
    weights = time_weights(source, count, method).astype(np.float32)
    out: NDArray[np.float32] | None = None
    number = 0
    for number, frame in enumerate(frames, start=1):
        if number > source:
            break
        if out is None:
            out = np.zeros((count, *frame.shape), np.float32)
        values = np.asarray(frame, np.float32)
        for place in np.flatnonzero(weights[:, number - 1]).tolist():
            out[place] += weights[place, number - 1] * values
    if out is None or number != source:
        raise DataError(f"{source} frames were announced but {number if out is not None else 0} came; pass all frames.")
    return Resampled(out, source, "none" if source == count else method)


def _check(source: int, count: int) -> None:
    if source < 1 or count < 1:
        raise DataError(f"cannot bring {source} frames to {count}; both numbers must be 1 or more.")
