"""Skin that moves: the displacement of one expression on a mesh, forward and backward."""

from __future__ import annotations

import math

import cv2
import numpy as np

from fsmer.data.spec import CROP_ASPECT
from fsmer.synthetic.domains import UNIT_DISPLACEMENT
from fsmer.synthetic.individuals import Movement
from fsmer.synthetic.scene import Array

# Largest displacement of a clip, in pixels on a face of 224: what micro-expressions show.
PEAK = (0.5, 4.0)
REFERENCE = 224
# Skin must not fold: the largest relative compression that the warp is allowed.
STEEPEST = 0.8
# Steps from rest to apex at which the warp is inverted; between them it is interpolated.
LEVELS = 6


class MovingSkin:
    """The displacement of one expression on a mesh over the face, forward and backward.

    The mesh lies in the plane of the face with `density` nodes per crop width; displacements are in nodes.
    """

    def __init__(self, movement: Movement, density: float, amplify: float) -> None:
        self.density = density
        reach_x, reach_y = 0.72, 0.64
        columns, rows = int(2 * reach_x * density) + 1, int(2 * reach_y * CROP_ASPECT * density) + 1
        x = (np.arange(columns, dtype=np.float32) / np.float32(density)) - np.float32(reach_x)
        y = (np.arange(rows, dtype=np.float32) / np.float32(density * CROP_ASPECT)) - np.float32(reach_y)
        field = movement.field(x, y) * np.float32(UNIT_DISPLACEMENT / 1000)
        peak = float(np.sqrt((field**2).sum(axis=0)).max()) * REFERENCE
        self.scale = amplify * float(np.clip(peak, *PEAK)) / max(peak, 1e-9)
        field[1] *= CROP_ASPECT
        field *= density * self.scale
        # The largest singular value of the gradient bounds how steeply the skin is compressed.
        (uy, ux), (vy, vx) = np.gradient(field[0]), np.gradient(field[1])
        total, part = ux**2 + uy**2 + vx**2 + vy**2, ux * vy - uy * vx
        steepest = math.sqrt(float((total / 2 + np.sqrt(np.maximum((total / 2) ** 2 - part**2, 0))).max()))
        if steepest > STEEPEST:
            self.scale *= STEEPEST / steepest
            field *= STEEPEST / steepest
        moved = np.abs(field).max(axis=0) >= min(0.004 * density / REFERENCE, float(np.abs(field).max()))
        down, across = np.flatnonzero(moved.any(axis=1)), np.flatnonzero(moved.any(axis=0))
        where = (slice(max(down[0] - 2, 0), down[-1] + 3), slice(max(across[0] - 2, 0), across[-1] + 3))
        self.left, self.top = float(x[where[1].start]), float(y[where[0].start]) * CROP_ASPECT
        self.field = np.ascontiguousarray(field[:, where[0], where[1]].transpose(1, 2, 0))
        height, width = self.field.shape[:2]
        self._nodes = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
        self._levels: dict[int, Array] = {}

    def _at(self, field: Array, x: Array, y: Array) -> Array:
        nodes_x = (x - np.float32(self.left)) * np.float32(self.density)
        nodes_y = (y - np.float32(self.top)) * np.float32(self.density)
        drawn = cv2.remap(field, nodes_x, nodes_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        return drawn * np.float32(1 / self.density)

    def forward(self, x: Array, y: Array, strength: float) -> Array:
        """Displacement (h, w, 2) in crop widths of skin that rests at `x`, `y`."""
        return self._at(self.field, x, y) * np.float32(strength)

    def backward(self, x: Array, y: Array, strength: float) -> Array:
        """Displacement (h, w, 2) back to rest of skin that has come to `x`, `y`."""
        below = min(int(strength * LEVELS), LEVELS - 1)
        share = strength * LEVELS - below
        blended = cv2.addWeighted(self._level(below), 1 - share, self._level(below + 1), share, 0)
        return self._at(blended, x, y)

    def _level(self, level: int) -> Array:
        """The inverse of the warp at one level, solved from scratch: it must not depend on what was asked before."""
        if level not in self._levels:
            strength = np.float32(level / LEVELS)
            back: Array = -strength * self.field
            for _ in range(40 if level else 0):
                place = self._nodes + back
                solved: Array = -strength * cv2.remap(
                    self.field, place[..., 0], place[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
                )
                change = float(cv2.norm(solved, back, cv2.NORM_INF))
                back = solved
                if change < 0.004 * self.density / REFERENCE:
                    break
            self._levels[level] = back
        return self._levels[level]
