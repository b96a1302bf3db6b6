"""What is behind a drawn head: wall, falling hair, neck, shoulders and clothes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from fsmer.synthetic.appearance import Appearance
from fsmer.synthetic.canvas import Array, Points, as_bytes, curve

__all__ = ["draw_background"]


def draw_background(
    size: tuple[int, int], to_pixels: Array, traits: Appearance, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """What is behind the head: a wall with blurred things, falling hair, neck, shoulders and clothes, uint8 (h, w, 3).

    `to_pixels` is the affine map (2, 3) from the plane of the face to pixels; the room is drawn from `rng`.
    """
    height, width = size
    small = (max(height // 4, 4), max(width // 4, 4))
    room: Array = np.empty((*small, 3), np.float32)
    room[:] = traits.wall
    for _ in range(7):
        x, y = int(rng.integers(small[1])), int(rng.integers(small[0]))
        w, h = int(rng.integers(2, max(small[1] // 3, 3))), int(rng.integers(2, max(small[0] // 2, 3)))
        colour = np.clip(traits.wall * rng.uniform(0.6, 1.25) + 0.06 * rng.standard_normal(3), 0, 1)
        cv2.rectangle(room, (x - w // 2, y - h // 2), (x + w // 2, y + h // 2), colour.tolist(), -1)
    room = cv2.GaussianBlur(room, (0, 0), 0.025 * max(small))
    slope = 1 + 0.25 * (rng.random() - 0.5) * np.linspace(-1, 1, small[1])[None, :, None]
    room = (room * slope).astype(np.float32)
    picture: Array = cv2.resize(room, (width, height), interpolation=cv2.INTER_CUBIC)
    picture += 0.012 * rng.standard_normal((height, width, 1), dtype=np.float32)

    matrix = np.asarray(to_pixels, np.float64)
    unit = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))

    def paint(points: Points, colour: Array, blur: float, opacity: float = 1.0) -> None:
        pixels = np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]
        mask = np.zeros(size, np.uint8)
        cv2.fillPoly(mask, [np.round(pixels * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        soft: Array = mask.astype(np.float32) * np.float32(opacity / 255)
        if blur * unit > 0.3:
            soft = cv2.GaussianBlur(soft, (0, 0), blur * unit)
        picture[:] += soft[..., None] * (np.asarray(colour, np.float32) - picture)

    def both(right: Sequence[tuple[float, float]]) -> Array:
        return np.concatenate([curve(right), curve(right)[::-1] * (-1, 1)])

    if traits.long_hair and not traits.bald:
        paint(
            both([(0.0, -1.2), (0.72, -0.6), (0.78, 0.1), (0.80, 0.7), (0.72, 1.15), (0.5, 1.25)]),
            0.6 * traits.hair,
            0.01,
        )
    neck = [(0.0, 0.25), (0.42, 0.25), (0.40, 0.80), (0.46, 1.03), (0.75, 1.17), (0.75, 1.65), (0.0, 1.65)]
    paint(both(neck), traits.skin * (0.74, 0.66, 0.64), 0.006)
    paint(both([(0.0, 0.6), (0.42, 0.5), (0.38, 0.85), (0.0, 0.97)]), traits.skin * (0.48, 0.40, 0.38), 0.05, 0.8)
    shoulders = [
        (0.0, 1.33),
        (0.22, 1.27),
        (0.44, 1.03),
        (0.95, 1.20),
        (1.35, 1.45),
        (1.5, 2.25),
        (1.6, 4.0),
        (0.0, 4.0),
    ]
    paint(both(shoulders), traits.clothes, 0.006)
    for x in rng.uniform(-1.2, 1.2, 5):
        fold = np.array([(x, 1.3), (x + 0.04, 1.3), (1.2 * x + 0.06, 2.6), (1.2 * x, 2.6)])
        paint(fold, traits.clothes * rng.choice([0.8, 1.15]), 0.03, 0.6)
    return as_bytes(picture)
