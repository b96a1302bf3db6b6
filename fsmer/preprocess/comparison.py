"""Two face crops side by side: what their regions, the head and the lids moved, and what covers the face."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fsmer.preprocess.apex import BLINK_REACH
from fsmer.preprocess.region_shift import Grey, Vectors
from fsmer.synthetic.facs_fields import LANDMARKS


@lru_cache(maxsize=4)
def eye_weights(side: int) -> NDArray[np.float32]:
    """Mean over what a blink moves, on crops of `side`, flattened."""
    axis = (np.arange(side) + 0.5) / side - 0.5
    x, y = np.abs(axis[None, :]) - LANDMARKS["lid_upper"][0], axis[:, None] - LANDMARKS["lid_upper"][1]
    inside = (x / BLINK_REACH[0]) ** 2 + (y / BLINK_REACH[1]) ** 2 < 0.6
    return (inside / inside.sum()).astype(np.float32).ravel()


def covered_share(first: Grey, second: Grey, flow: NDArray[np.float32], face: NDArray[np.float32]) -> float:
    """Share of the face where the second picture, brought back by the flow, differs from the first."""
    side = len(first)
    axis = np.arange(side, dtype=np.float32)
    columns, rows = np.meshgrid(axis, axis)
    back = cv2.remap(second, columns + flow[0], rows + flow[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    window = (side // 8 | 1,) * 2

    def mean(values: Any) -> NDArray[np.float32]:
        return np.asarray(cv2.blur(values, window), np.float32)

    one, two = (cv2.GaussianBlur(part.astype(np.float32), (0, 0), 1.0) for part in (first, back))
    mean_one, mean_two = mean(one), mean(two)
    spread_one, spread_two = mean(one * one) - mean_one**2, mean(two * two) - mean_two**2
    # Textures weaker than some grey levels are noise, which is like nothing.
    alike = (mean(one * two) - mean_one * mean_two + 9) / np.sqrt((spread_one + 9) * (spread_two + 9))
    return float((face * (alike < 0.5)).sum() / face.sum())


@dataclass(frozen=True)
class Comparison:
    """Onset and apex side by side, in thousandths of the face width: regions apart from the head, the head, the lids;
    and the share of the face that is covered."""

    vectors: Vectors
    head: float
    eyes: float
    covered: float
