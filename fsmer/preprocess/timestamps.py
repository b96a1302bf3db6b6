"""Time stamps of frames made usable: rising, without gaps, with the frame rate that they show."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.errors import DataError

__all__ = ["clean_timestamps"]

# What is assumed when the rate is unknown: the slowest of the cameras that the databases were recorded with.
FALLBACK_RATE = 25.0


def clean_timestamps(
    seconds: ArrayLike | None, count: int, frames_per_second: float | None = None
) -> tuple[NDArray[np.float64], float, list[str]]:
    """Make time stamps usable: strictly increasing from 0, gaps and NaN filled in.

    Parameters
    ----------
    seconds : sequence of count floats, or None
        As recorded; NaN, infinity, repeated and backward stamps are replaced by interpolation between their
        neighbours (at the ends: continued at the median rate).
    count : int
        Number of frames.
    frames_per_second : float, optional
        The rate where it is known.

    Returns
    -------
    times : float64 array of shape (count,)
    rate : float
        Frames a second: as given, else the usual distance of the stamps, else 25.
    notes : list of str
        What was assumed or corrected.
    """
    notes: list[str] = []
    known = frames_per_second is not None and np.isfinite(frames_per_second) and frames_per_second > 0
    rate = float(cast(float, frames_per_second)) if known else 0.0
    if seconds is None and known:
        return np.arange(count) / rate, rate, notes
    stamps = np.full(count, np.nan) if seconds is None else np.array(seconds, np.float64)
    if stamps.shape != (count,):
        raise DataError(f"there are {count} frames but {stamps.size} time stamps; give one a frame.")
    stamps[~np.isfinite(stamps)] = np.nan
    # A stamp counts when it is later than every one before it.
    before = np.fmax.accumulate(np.concatenate([[-np.inf], stamps]))[:-1]
    good = np.flatnonzero(stamps > before)
    intervals = np.diff(stamps[good]) / np.diff(good) if len(good) > 1 else np.array([])
    if not known and len(intervals):
        rate = 1.0 / float(typical_intervals(intervals).mean())
    if rate <= 0:
        rate = FALLBACK_RATE
        notes.append(f"the frame rate is unknown; {FALLBACK_RATE:g} frames a second were assumed.")
    if len(good) < 2:
        if seconds is not None and count > 1:
            notes.append("the time stamps are unusable; the frames were spaced evenly.")
        return np.arange(count) / rate, rate, notes
    places = np.arange(count)
    times = np.interp(places, good, stamps[good])
    times = np.where(places < good[0], stamps[good[0]] - (good[0] - places) / rate, times)
    times = np.where(places > good[-1], stamps[good[-1]] + (places - good[-1]) / rate, times)
    if len(good) < count:
        notes.append(f"{count - len(good)} of {count} time stamps were missing or out of order and were filled in.")
    # Up to 12 % is the jitter of containers that count in milliseconds.
    if np.abs(intervals * rate - 1).max() > 0.12 and len(intervals) > 1:
        notes.append(
            f"the frame rate varies ({1 / intervals.max():.3g} to {1 / intervals.min():.3g} frames a second); times "
            "are those of the recording."
        )
    return times - times[0], rate, notes


def typical_intervals(intervals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intervals near their median: those where no frame was dropped, whose mean is free of rounded stamps."""
    # Of two that differ much, none is near their middle.
    for median in (np.median(intervals), np.quantile(intervals, 0.5, method="lower")):
        near = intervals[(intervals > 0.5 * median) & (intervals < 1.5 * median)]
        if len(near):
            break
    return near
