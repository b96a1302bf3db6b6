"""How regions of a face shift between two frames, with the motion of the head taken out, and what else moves there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fsmer.data.spec import CROP_ASPECT
from fsmer.preprocess.apex import BLINK_REACH, facial_regions
from fsmer.preprocess.flow import FlowMethod, head_motion, robust_fit
from fsmer.synthetic.facs_fields import LANDMARKS

Vectors = NDArray[np.float64]
Grey = NDArray[np.uint8]


class EnergyTrace:
    """A curve over time of at most `capacity` points: when full, neighbours are joined and the larger one stays."""

    def __init__(self, capacity: int = 2048) -> None:
        self.capacity = capacity
        self._points: list[tuple[float, float, float]] = []
        self._stride = 1
        self._count = 0

    def add(self, time: float, energy: float, threshold: float) -> None:
        """One more point; NaN where no face is seen."""
        if self._count % self._stride == 0:
            self._points.append((time, energy, threshold))
        elif not self._points[-1][1] >= energy:
            self._points[-1] = (self._points[-1][0], energy, threshold)
        self._count += 1
        if len(self._points) > self.capacity:
            pairs = zip(self._points[::2], self._points[1::2], strict=False)
            self._points = [(one[0], *(two if not one[1] >= two[1] else one)[1:]) for one, two in pairs]
            self._stride *= 2
            self._count = len(self._points) * self._stride

    def arrays(self) -> tuple[Vectors, ...]:
        """Times, energies and thresholds."""
        return tuple(np.array(self._points, np.float64).reshape(-1, 3).T)


class RegionShift:
    """Where the facial regions of a reference crop have come to in later crops, apart from the head.

    Lucas & Kanade's least squares (1981), which do not flatten movements of a fraction of a pixel as regularised flow
    does: first one motion of a rigid head (affine, and what its relief adds when it turns) and one change of light for
    the whole face, robustly, without regard to what moves otherwise; then, in the picture that was brought back
    by it, one vector for every region. The reference is grey, (side, side).
    """

    blur, coarse, iterations = 1.2, 2, 4

    def __init__(self, reference: Grey) -> None:
        side = len(reference)
        self.regions, face = facial_regions(side)
        self.picture = self._smooth(reference)
        across = cv2.Sobel(self.picture, cv2.CV_32F, 1, 0, ksize=3) / 8
        down = cv2.Sobel(self.picture, cv2.CV_32F, 0, 1, ksize=3) / 8
        self.slopes = np.stack([across.ravel(), down.ravel()], axis=1)
        xx, xy, yy = (self.regions @ part.ravel() for part in (across * across, across * down, down * down))
        # A region without texture must not move by its noise.
        ridge = 0.15 * float(np.median(xx + yy)) + 1e-3
        self.inverse = np.linalg.inv(np.stack([xx + ridge, xy, xy, yy + ridge], axis=1).reshape(-1, 2, 2))
        axis = np.arange(side, dtype=np.float32)
        self.columns, self.rows = np.meshgrid(axis, axis)
        self.x, self.y = (part / side - np.float32(0.5) for part in (self.columns, self.rows))
        some = np.zeros((side, side), bool)
        some[:: self.coarse, :: self.coarse] = True
        some &= face > 0
        self.some = (slice(None, None, self.coarse),) * 2
        self.counted = some[self.some].ravel()
        dx, dy, x, y, here = (part[self.some].ravel() for part in (across, down, self.x, self.y, self.picture))
        self.relief = head_relief(side)
        high = self.relief[self.some].ravel()
        self.basis = np.stack(
            [dx * x, dx * y, dx, dy * x, dy * y, dy, dx * high, dy * high, here, np.ones_like(here)], axis=1
        )[self.counted]
        self.head = np.zeros(8, np.float32)

    def __call__(self, current: Grey) -> Vectors:
        """Mean movement of every region, (R, 2), thousandths of the crop width."""
        picture = self._smooth(current)
        here = self.picture[self.some].ravel()[self.counted]
        for turn in range(self.iterations):
            back = self._back(picture, self.some).ravel()[self.counted]
            error = back - here
            scale = 3.0 * float(np.median(np.abs(error))) + 0.6
            trust = 1 / (1 + (error / scale) ** 2) ** 2 if turn else np.ones_like(error)
            weighted = self.basis * trust[:, None]
            step = np.linalg.solve(weighted.T @ self.basis + 1e-3 * np.eye(10, dtype=np.float32), weighted.T @ error)
            self.head = self.head - step[:8]
        if float(np.abs(self.head).max()) > 0.5 * len(current):
            # Lost; the next picture is aligned from the start.
            self.head = np.zeros(8, np.float32)
        error = self._back(picture, (slice(None),) * 2) - self.picture
        # Light that changes from place to place.
        error -= cv2.blur(cv2.blur(error, (31, 31)), (31, 31))
        pulls = self.regions @ (self.slopes * error.reshape(-1, 1))
        return np.asarray(-np.einsum("rij,rj->ri", self.inverse, pulls).astype(np.float64) * 1000 / len(current))

    def _back(self, picture: NDArray[np.float32], where: tuple[slice, slice]) -> NDArray[np.float32]:
        """The picture with the motion of the head taken out."""
        x, y, high = self.x[where], self.y[where], self.relief[where]
        a, b, c, d, e, f, yaw, pitch = (float(value) for value in self.head)
        columns = self.columns[where] + (a * x + b * y + c + yaw * high)
        rows = self.rows[where] + (d * x + e * y + f + pitch * high)
        return np.asarray(
            cv2.remap(picture, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32
        )

    def _smooth(self, picture: Grey) -> NDArray[np.float32]:
        return np.asarray(cv2.GaussianBlur(picture.astype(np.float32), (0, 0), self.blur))


@lru_cache(maxsize=4)
def head_relief(side: int) -> NDArray[np.float32]:
    """How far a face stands out beyond the plane that fits it best, in crop widths, on crops of `side`.

    What a turn of the head moves apart from an affine motion is proportional to this. A round skull with nose, mouth
    and sockets in the proportions of an average adult (a crop is some 11 cm wide).
    """
    axis = (np.arange(side) + 0.5) / side - 0.5
    x, y = axis[None, :], CROP_ASPECT * axis[:, None]

    def bump(across: float, down: float, width: float, height: float) -> Vectors:
        return np.asarray(np.exp(-0.5 * (((np.abs(x) - across) / width) ** 2 + ((y - down) / height) ** 2)))

    skull = 0.64 * np.sqrt(np.clip(1 - (x / 0.69) ** 2 - ((y + 0.25) / 1.1) ** 2, 0.01, None))
    eye_x, eye_y = LANDMARKS["lid_upper"]
    nose, mouth = LANDMARKS["nose_side"][1], LANDMARKS["lip_upper"][1]
    relief = (
        skull
        + 0.14 * bump(0, CROP_ASPECT * (nose + 0.04), 0.065, 0.1)
        + 0.05 * bump(0, CROP_ASPECT * mouth, 0.2, 0.15)
        - 0.04 * bump(eye_x, CROP_ASPECT * eye_y, 0.12, 0.07)
    )
    basis = np.stack(np.broadcast_arrays(x, y, np.ones((side, side))), axis=-1).reshape(-1, 3)
    plane = np.linalg.lstsq(basis, relief.ravel(), rcond=None)[0]
    return np.asarray((relief - (basis @ plane).reshape(side, side)).astype(np.float32))


def rigid_motion(flow: NDArray[np.float32], face: NDArray[np.float32], *, iterations: int = 8) -> NDArray[np.float32]:
    """What a head of average relief does in a flow field (2, side, side), robustly: affine motion and turning.

    `face` (side, side) is how much each pixel counts.
    """
    side = flow.shape[1]
    affine = head_motion(flow, face, iterations=iterations).field((side, side))
    step = max(1, side // 50)
    basis = _rigid_basis(side)
    some = basis.reshape(side, side, -1)[::step, ::step].reshape(-1, basis.shape[1])
    values = (flow - affine)[:, ::step, ::step].reshape(2, -1).T.astype(np.float64)
    weight = face[::step, ::step].ravel()
    solved, _ = robust_fit(some, values, weight, np.zeros((basis.shape[1], 2)), iterations)
    return np.asarray(affine + (basis @ solved).T.reshape(flow.shape).astype(np.float32))


@lru_cache(maxsize=4)
def _rigid_basis(side: int) -> Vectors:
    axis = (np.arange(side) + 0.5) / side - 0.5
    x, y = (part.ravel() for part in np.meshgrid(axis, axis))
    return np.stack([x, y, np.ones_like(x), head_relief(side).ravel()], axis=1)


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


def compare(first: Grey, second: Grey, method: FlowMethod) -> Comparison:
    """Compare two prepared crops by the flow between them."""
    side = len(first)
    regions, face = facial_regions(side)
    flow = method(first, second)
    motion = rigid_motion(flow, face)
    unit = 1000 / side
    still = (flow - motion).reshape(2, -1) * unit
    return Comparison(
        vectors=(regions @ still.T).astype(np.float64),
        head=float(np.sqrt((motion**2).sum(axis=0).mean())) * unit,
        eyes=float(eye_weights(side) @ np.hypot(*still)),
        covered=covered_share(first, second, flow, face),
    )
