"""Colour and relief of a face that is being drawn, and the curves that are drawn on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Image = NDArray[np.uint8]
Points = Sequence[tuple[float, float]] | Array
Patch = tuple[tuple[slice, slice], Array]
# Left upper and right lower corner of what may be drawn.
_TEXTURED = ((-1.0, -1.6), (1.0, 1.1))


class Canvas:
    """Colour and relief of a face that is being drawn."""

    def __init__(self, window: tuple[float, float, float, float], density: float) -> None:
        left, top, right, bottom = window
        self.density = density
        self.origin = (left, top)
        self.shape = (round((bottom - top) * density), round((right - left) * density))
        self.x = ((np.arange(self.shape[1]) + 0.5) / density + left).astype(np.float32)
        self.y = ((np.arange(self.shape[0]) + 0.5) / density + top).astype(np.float32)
        self.relief = np.zeros(self.shape, np.float32)
        self.colour = np.zeros((*self.shape, 3), np.float32)

    def pixels(self, points: Points) -> Array:
        """Points in pixels of this canvas."""
        return (np.asarray(points, np.float64) - self.origin) * self.density - 0.5

    def box(self, points: Array, margin: float) -> tuple[slice, slice] | None:
        """Rows and columns around pixels, or None if they lie outside."""
        low = np.maximum(np.floor(points.min(0) - margin).astype(int), 0)
        high = np.minimum(np.ceil(points.max(0) + margin).astype(int) + 1, self.shape[::-1])
        return None if (high <= low).any() else (slice(low[1], high[1]), slice(low[0], high[0]))

    def area(self, points: Points, blur: float = 0.0) -> Patch | None:
        """Filled polygon, softened."""
        return self.line(points, 0.0, blur)

    def line(self, points: Points, width: float, blur: float = 0.0) -> Patch | None:
        """Stroke along points, or many strokes (n, points, 2) at once, softened; without a width, the area inside."""
        lines = np.asarray(points)
        pixels = self.pixels(lines if lines.ndim == 3 else lines[None])
        where = self.box(pixels.reshape(-1, 2), (3 * blur + width) * self.density + 2)
        if where is None:
            return None
        mask = np.zeros([part.stop - part.start for part in where], np.uint8)
        corner = np.array([where[1].start, where[0].start])
        fixed = list(np.round((pixels - corner) * 16).astype(np.int32))
        strength = 1.0
        if width:
            thick = width * self.density
            strength = min(thick, 1.0)
            cv2.polylines(mask, fixed, False, 255, max(1, round(thick)), cv2.LINE_AA, 4)
        else:
            cv2.fillPoly(mask, fixed, 255, cv2.LINE_AA, 4)
        soft: Array = mask.astype(np.float32) * np.float32(strength / 255)
        if blur * self.density > 0.3:
            soft = cv2.GaussianBlur(soft, (0, 0), blur * self.density)
        return where, soft

    def bump(self, centre: tuple[float, float] | Array, across: float, down: float, angle: float = 0.0) -> Patch | None:
        """Gaussian blob; `angle` turns it clockwise."""
        x, y = (float(value) for value in centre)
        reach = 3.3 * max(across, down) if angle else 3.3
        corners = np.array([(x, y)]) + reach * (np.array([(-1, -1), (1, 1)]) * ((1, 1) if angle else (across, down)))
        where = self.box(self.pixels(corners), 1)
        if where is None:
            return None
        dx, dy = self.x[where[1]] - np.float32(x), self.y[where[0]] - np.float32(y)
        if not angle:
            return where, np.exp(-0.5 * (dy / down) ** 2)[:, None] * np.exp(-0.5 * (dx / across) ** 2)[None]
        cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        along = (cosine * dx[None] + sine * dy[:, None]) / np.float32(across)
        over = (cosine * dy[:, None] - sine * dx[None]) / np.float32(down)
        return where, np.exp(-0.5 * (along**2 + over**2))

    def lift(self, patch: Patch | None, amount: float) -> None:
        """Raise the relief."""
        if patch is not None:
            self.relief[patch[0]] += np.float32(amount) * patch[1]

    def paint(self, patch: Patch | None, colour: Points | Array, opacity: float = 1.0) -> None:
        """Cover with a colour."""
        if patch is not None:
            where, mask = patch
            part = self.colour[where]
            part += (np.float32(opacity) * mask)[..., None] * (np.asarray(colour, np.float32) - part)

    def tint(self, patch: Patch | None, factor: Sequence[float] | Array, strength: float = 1.0) -> None:
        """Multiply with a colour."""
        if patch is not None:
            where, mask = patch
            change = np.float32(strength) * (np.asarray(factor, np.float32) - 1)
            self.colour[where] *= 1 + mask[..., None] * change


def as_bytes(values: Array) -> Image:
    """Colours from 0 to 1 as 8-bit values."""
    return np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8)


def add_cover(cover: Array, patch: Patch | None) -> None:
    """Add a patch to what the head covers, in place."""
    if patch is not None:
        np.maximum(cover[patch[0]], patch[1], out=cover[patch[0]])


def offset(x: float, y: float) -> Array:
    """A shift that points can be moved by."""
    return np.array((x, y))


def curve(points: Points, count: int = 12, closed: bool = False) -> Array:
    """Smooth curve through points (Catmull-Rom), `count` pieces between two of them."""
    knots = np.asarray(points, np.float64)
    ends = (knots[-1:], knots[:2]) if closed else (2 * knots[:1] - knots[1:2], 2 * knots[-1:] - knots[-2:-1])
    p = np.concatenate([ends[0], knots, ends[1]])
    t = (np.arange(count) / count)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    pieces = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    drawn = pieces.reshape(-1, 2)
    return drawn if closed else np.concatenate([drawn, knots[-1:]])


def lattice_noise(canvas: Canvas, size: float, rng: np.random.Generator) -> Array:
    """Smooth noise of unit variance with features of about `size`, the same at any density."""
    # Nodes stand on a lattice of the plane, so that another window or more pixels show the same texture.
    step = size * 0.75
    (left, top), (right, bottom) = _TEXTURED
    nodes = rng.standard_normal((int((bottom - top) / step) + 2, int((right - left) / step) + 2), dtype=np.float32)
    scale = 1 / (canvas.density * step)
    across, down = (
        (edge + 0.5 / canvas.density - start) / step for edge, start in zip(canvas.origin, (left, top), strict=True)
    )
    matrix = np.array([(scale, 0, across), (0, scale, down)])
    drawn = cv2.warpAffine(nodes, matrix, canvas.shape[::-1], flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    # Interpolation between nodes takes some variance, pixels wider than nodes see only their mean.
    return drawn * np.float32(1.3 * min(1.0, size * canvas.density))


def wide_blur(values: Array, sigma: float) -> Array:
    """Gaussian blur with a wide kernel, at a lower resolution."""
    step = max(1, int(sigma / 4))
    small = cv2.resize(values, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(small, (0, 0), sigma / step)
    return cv2.resize(soft, values.shape[::-1], interpolation=cv2.INTER_LINEAR)
