"""Where a drawn face is and how camera and head move: transformations of the plane."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsmer.data.facs import ACTION_UNIT_ORDER
from fsmer.data.spec import CROP_ASPECT
from fsmer.errors import DataError
from fsmer.synthetic.domains import Domain, load_domain

__all__ = ["Camera", "Interval", "Scene", "random_scene"]

Array = NDArray[Any]
Image = NDArray[np.uint8]
Size = int | tuple[int, int]


@dataclass(frozen=True)
class Camera:
    """What a recording adds to a moving face."""

    noise: float = 1.0  # standard deviation of the sensor's noise, in grey levels of 255
    light: float = 0.01  # relative drift of the light
    jpeg: int | None = None  # quality 1 to 100 at which every frame is compressed; None keeps it as it is
    head: float = 0.35  # amplitude of head motion, as `Domain.head`
    blinks: float = 0.1  # a second; they keep off onset and apex, where a closed lid would hide the true flow

    def __post_init__(self) -> None:
        amounts = (self.noise, self.light, self.head, self.blinks)
        if not all(math.isfinite(value) and value >= 0 for value in amounts) or self.light > 0.5:
            raise DataError(
                f"a camera with noise={self.noise}, light={self.light}, head={self.head} and blinks={self.blinks} "
                "cannot be drawn: give finite numbers of 0 or more, and light up to 0.5."
            )
        if self.jpeg is not None and not 1 <= self.jpeg <= 100:
            raise DataError(f"JPEG quality {self.jpeg} is out of range: give 1 to 100, or None for no compression.")

    @classmethod
    def of(cls, domain: str | Domain) -> Camera:
        """The camera of a domain: its head motion, with noise, drift and blinks in proportion; no compression."""
        place = load_domain(domain)
        return cls(
            noise=0.6 + 4.0 * place.noise, light=0.01 + 0.03 * place.noise, head=place.head, blinks=0.5 * place.blink
        )

    @classmethod
    def perfect(cls) -> Camera:
        """A still head in steady light before a camera without noise: only the expression moves."""
        return cls(noise=0.0, light=0.0, head=0.0, blinks=0.0)


@dataclass(frozen=True)
class Scene:
    """Where a face is in a larger picture."""

    centre: tuple[float, float]  # x and y of the canonical crop's centre, in pixels
    # Width of the canonical crop in pixels; its height is `CROP_ASPECT` times that, and the head with hair is about 1.4
    # wide and 2 high.
    face_width: float
    roll: float = 0.0  # clockwise rotation in degrees

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (*self.centre, self.face_width, self.roll))) or self.face_width < 12:
            raise DataError(
                f"a face of width {self.face_width} at {self.centre} with roll {self.roll} cannot be drawn: give "
                "finite numbers and a width of 12 pixels or more."
            )


def random_scene(
    size: Size, rng: np.random.Generator, *, share: tuple[float, float] = (0.26, 0.42), roll: float = 8.0
) -> Scene:
    """A head somewhere in a picture, with its face wholly inside.

    `share` is the range of the canonical crop's width relative to the picture's shorter side, `roll` the largest
    rotation either way, in degrees.
    """
    height, width = checked_size(size)
    face = float(rng.uniform(*share)) * min(height, width)
    margin_x, above, below = 0.72 * face, 1.2 * face, 0.8 * face
    x = rng.uniform(min(margin_x, width / 2), max(width - margin_x, width / 2))
    y = rng.uniform(min(above, height * 0.6), max(height - below, height * 0.6))
    return Scene((float(x), float(y)), face, float(rng.uniform(-roll, roll)))


@dataclass(frozen=True, eq=False)
class Interval:
    """One expression of a recording."""

    onset: int  # frame before the first movement, frame of the strongest, first frame at rest again
    apex: int
    offset: int
    units: NDArray[np.bool_]  # (len(ACTION_UNIT_ORDER),), active action units
    emotion: str  # emotion and its label in the domain's scheme; empty if the action units were given by number
    label: str

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the active action units."""
        return tuple(number for number, active in zip(ACTION_UNIT_ORDER, self.units, strict=True) if active)

    def strength(self, time: float) -> float:
        """How far the expression has come at a time: 0 at rest, 1 at the apex."""
        if not self.onset < time < self.offset:
            return 0.0
        start, stop = (self.onset, self.apex) if time <= self.apex else (self.offset, self.apex)
        share = (time - start) / (stop - start)
        return share * share * (3 - 2 * share)


class Waves:
    """Smooth random functions of time that stay bounded: a slow, a middle and a fast wave."""

    def __init__(self, rng: np.random.Generator, amplitudes: Array) -> None:
        count = len(amplitudes)
        self._rates = 2 * np.pi * np.exp(rng.uniform(np.log([0.06, 0.3, 1.0]), np.log([0.15, 0.7, 2.0]), (count, 3)))
        self._phases = rng.uniform(0, 2 * np.pi, (count, 3))
        self._weights = np.asarray(amplitudes)[:, None] * (2.2, 1.0, 0.3) * rng.uniform(0.5, 1.5, (count, 3))

    def at(self, time: float) -> Array:
        return np.asarray((self._weights * np.sin(self._rates * time + self._phases)).sum(axis=1))


def plane_to_pixels(place: Scene | Array, size: tuple[int, int]) -> Array:
    """Affine map (2, 3) from the plane of the face to pixels: of a scene, or of a crop that fills the picture."""
    height, width = size
    if isinstance(place, Scene):
        angle = math.radians(place.roll)
        cosine, sine = place.face_width * math.cos(angle), place.face_width * math.sin(angle)
        return np.array([(cosine, -sine, place.centre[0]), (sine, cosine, place.centre[1])])
    # Crop coordinates run from -0.5 to 0.5 over the picture.
    to_picture = np.array([(width, 0, width / 2 - 0.5), (0, height, height / 2 - 0.5)], np.float64)
    return composed(to_picture, place.astype(np.float64)) / np.array([1, CROP_ASPECT, 1])


def composed(outer: Array, inner: Array) -> Array:
    """The affine map that does `inner` first."""
    linear = outer[:, :2] @ inner[:, :2]
    return np.concatenate([linear, (outer[:, :2] @ inner[:, 2] + outer[:, 2])[:, None]], axis=1)


def inverted(matrix: Array) -> Array:
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, (-linear @ matrix[:, 2])[:, None]], axis=1)


def transformed(matrix: Array, points: Array) -> Array:
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2])


def checked_size(size: Size) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if not (16 <= height <= 4320 and 16 <= width <= 7680):
        raise DataError(f"frames of {width}x{height} cannot be drawn: width and height must be 16 to 7680 and 4320.")
    return int(height), int(width)
