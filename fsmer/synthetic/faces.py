"""Draws the faces and backgrounds of the synthetic frame sequences: geometry, skin, hair, features and shading.

A face is drawn once, as a relief under a lamp with painted skin, and is then only warped. Everything is placed by an
individual's landmarks (`fsmer.synthetic.individuals.Person`), so that the drawn features sit where the displacement
fields move them. No photograph is used anywhere.

Lengths are in widths of the canonical crop, with the origin at the crop's centre, x to the right and y down, and both
axes on one scale: a point (x, y) of the face frame of `fsmer.synthetic.facs_fields`, whose y is in crop heights, lies
at (x, `CROP_ASPECT` y).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from fsmer.data.spec import CROP_ASPECT
from fsmer.synthetic.appearance import Appearance
from fsmer.synthetic.canvas import Array, Canvas, Image, add_cover, as_bytes, lattice_noise, wide_blur
from fsmer.synthetic.face_features import (
    EyePatch,
    closed_lid,
    draw_beard,
    draw_brows,
    draw_creases,
    draw_ears,
    draw_eye,
    draw_hair,
)
from fsmer.synthetic.face_shape import Eye, head_outline, lip_edges, mirrored, mouth_line, shape_head

__all__ = ["DrawnFace", "draw_face"]


@dataclass(frozen=True)
class DrawnFace:
    """A face at rest, seen from the front."""

    picture: Image  # (h, w, 3), red, green, blue
    cover: Image  # (h, w), 255 where the head covers what is behind it
    depth: Array  # (h, w), height of the relief towards the camera
    eyes: tuple[EyePatch, ...]  # right and left half of the picture
    origin: tuple[float, float]  # place of the picture's left upper corner
    density: float  # pixels per crop width


def draw_face(
    landmarks: Mapping[str, Array], traits: Appearance, window: tuple[float, float, float, float], density: float
) -> DrawnFace:
    """One individual's face at rest, by its `Person.landmarks`.

    `window` is the part of the plane that is drawn (left, top, right, bottom; within -1, -1.6, 1, 1.1), `density` the
    pixels per crop width.
    """
    canvas = Canvas(window, density)
    places = {name: np.asarray(both, np.float64) * (1, CROP_ASPECT) for name, both in landmarks.items()}
    rng = np.random.Generator(np.random.PCG64(traits.seed))
    eyes = [Eye.of(places, side) for side in (0, 1)]

    shape_head(canvas, places, eyes, traits)
    _paint_skin(canvas, places, traits, rng)
    _paint_lips(canvas, places, traits, rng)
    shade, depth = _light(canvas, traits)
    canvas.colour *= shade[..., None]
    draw_creases(canvas, places, eyes, traits)
    draw_brows(canvas, places, traits, rng)
    draw_beard(canvas, places, traits, rng)
    lids = [closed_lid(canvas, eye) for eye in eyes]
    for eye in eyes:
        draw_eye(canvas, eye, traits, rng)

    cover = np.zeros(canvas.shape, np.float32)
    add_cover(cover, canvas.area(head_outline(traits), 0.004))
    draw_ears(canvas, cover, traits)
    draw_hair(canvas, cover, traits, rng)
    patches = tuple(lid for lid in lids if lid is not None)
    return DrawnFace(as_bytes(canvas.colour), as_bytes(cover), depth, patches, canvas.origin, density)


def _paint_skin(canvas: Canvas, places: Mapping[str, Array], traits: Appearance, rng: np.random.Generator) -> None:
    """Skin colour: ruddy cheeks and nose, darker around the eyes, and texture at every scale."""
    canvas.colour[:] = traits.skin
    red, dusk = (1.05, 0.86, 0.84), (0.86, 0.78, 0.78)
    for side in (0, 1):
        x, y, sign = mirrored(places, "cheek", side)
        canvas.tint(canvas.bump((x + 0.03 * sign, y + 0.02), 0.12, 0.1), red, 0.5)
        x, y, _ = mirrored(places, "lid_lower", side)
        canvas.tint(canvas.bump((x - 0.02 * sign, y + 0.03), 0.1, 0.03), dusk, 0.35 + 0.3 * traits.age)
        x, y, _ = mirrored(places, "lid_upper", side)
        canvas.tint(canvas.bump((x, y - 0.03), 0.11, 0.035), dusk, 0.35)
    base = places["nose_wing"][:, 1].mean()
    canvas.tint(canvas.bump((0, base - 0.04), 0.06, 0.05), red, 0.5)

    texture = np.zeros(canvas.shape, np.float32)
    # Blotches, pores and grain, in crop widths: about 13, 4.5, 2.2 and 1.2 pixels on a face of 224.
    for size, amount in ((0.06, 0.016), (0.02, 0.014), (0.010, 0.020), (0.0055, 0.018)):
        texture += np.float32(amount * (1 + 0.3 * traits.age)) * lattice_noise(canvas, size, rng)
    warmth = lattice_noise(canvas, 0.05, rng)
    canvas.colour *= np.exp(texture)[..., None]
    canvas.colour *= 1 + warmth[..., None] * np.array((0.004, -0.008, -0.010), np.float32)
    for share, size in ((0.2, 0.004), (0.4, 0.006), (0.6, 0.008)):
        count = int(3 + 55 * traits.freckles)
        spots = np.stack([rng.uniform(-0.55, 0.55, count), rng.uniform(-0.45, 0.6, count)], axis=-1)
        canvas.tint(canvas.line(np.stack([spots, spots + 0.001], axis=1), size, 0.002), (0.75, 0.62, 0.55), share)


def _paint_lips(canvas: Canvas, places: Mapping[str, Array], traits: Appearance, rng: np.random.Generator) -> None:
    top, bottom = lip_edges(places, traits)
    line = mouth_line(places)
    colour = traits.skin * (0.90, 0.62, 0.62) * (1 - 0.05 * traits.age) + np.array((0.03, 0.0, 0.01))
    canvas.paint(canvas.area(np.concatenate([top, line[::-1]]), 0.006), colour * 0.92, 0.8)
    canvas.paint(canvas.area(np.concatenate([line, bottom[::-1]]), 0.007), colour, 0.75)
    # Fine upright lines in the lips.
    x = rng.uniform(-0.17, 0.17, 40)
    start, edge = np.interp(x, line[:, 0], line[:, 1]), np.interp(x, bottom[:, 0], bottom[:, 1])
    ends = np.stack([1.06 * x, start + 0.75 * (edge - start)], axis=-1)
    upright = np.stack([np.stack([x, start], axis=-1), ends], axis=1)
    canvas.tint(canvas.line(upright, 0.0035, 0.002), (0.8, 0.74, 0.74), 0.45)


def _light(canvas: Canvas, traits: Appearance) -> tuple[Array, Array]:
    """Brightness of the relief under the lamp, and the relief itself, smoothed for use as depth."""
    relief = cv2.GaussianBlur(canvas.relief, (0, 0), max(0.006 * canvas.density, 0.6))
    slope_x = cv2.Sobel(relief, cv2.CV_32F, 1, 0, ksize=3, scale=canvas.density / 8)
    slope_y = cv2.Sobel(relief, cv2.CV_32F, 0, 1, ksize=3, scale=canvas.density / 8)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    lamp = traits.lamp.astype(np.float32)
    facing = (-lamp[0] * slope_x - lamp[1] * slope_y + lamp[2]) / length
    # What lies lower than its surroundings gets less light from all around.
    hollow = relief - wide_blur(relief, 0.05 * canvas.density)
    shade = 0.50 + 0.58 * np.clip(facing, 0, None) + np.clip(3.0 * hollow, -0.22, 0.10)
    # Skin shines a little.
    half = lamp + np.array((0, 0, 1), np.float32)
    half /= np.linalg.norm(half)
    glance = np.clip((-half[0] * slope_x - half[1] * slope_y + half[2]) / length, 0, 1)
    shade += 0.10 * glance**24
    return shade.astype(np.float32), relief
