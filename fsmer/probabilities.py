"""The rule by which numbers are the probabilities of an answer."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["unsound_answers"]

# By how much rounding to six digits and single precision may move the sum of an answer's probabilities.
SUM_TOLERANCE = 1e-3


def unsound_answers(values: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Which rows of `values`, (N, C), are not finite numbers from 0 to 1 with the sum 1."""
    with np.errstate(all="ignore"):
        sums = values.sum(axis=1)
    # Comparisons with NaN are false, and what has a sum of 1 and nothing below 0 has nothing above 1.
    sound: NDArray[np.bool_] = (values >= 0).all(axis=1) & (np.abs(sums - 1) <= SUM_TOLERANCE)
    return ~sound
