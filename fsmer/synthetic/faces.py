"""Draws the faces and backgrounds of the synthetic frame sequences: geometry, skin, hair, features and shading.

A face is drawn once, as a relief under a lamp with painted skin, and is then only warped. Everything is placed by an
individual's landmarks (`fsmer.synthetic.individuals.Person`), so that the drawn features sit where the displacement
fields move them. No photograph is used anywhere.

Lengths are in widths of the canonical crop, with the origin at the crop's centre, x to the right and y down, and both
axes on one scale: a point (x, y) of the face frame of `fsmer.synthetic.facs_fields`, whose y is in crop heights, lies
at (x, `CROP_ASPECT` y).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fsmer.data.spec import CROP_ASPECT
from fsmer.synthetic import face_features as features
from fsmer.synthetic.canvas import Array, Canvas, Image, Points, add_cover, as_bytes, curve, lattice_noise, wide_blur
from fsmer.synthetic.face_shape import Eye, head_outline, lip_edges, mirrored, mouth_line, shape_head
from fsmer.synthetic.individuals import Appearance

__all__ = ["DrawnFace", "draw_background", "draw_face"]


@dataclass(frozen=True)
class DrawnFace:
    """A face at rest, seen from the front."""

    picture: Image  # (h, w, 3), red, green, blue
    cover: Image  # (h, w), 255 where the head covers what is behind it
    depth: Array  # (h, w), height of the relief towards the camera
    eyes: tuple[features.EyePatch, ...]  # right and left half of the picture
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
    features.draw_creases(canvas, places, eyes, traits)
    features.draw_brows(canvas, places, traits, rng)
    features.draw_beard(canvas, places, traits, rng)
    lids = [features.closed_lid(canvas, eye) for eye in eyes]
    for eye in eyes:
        features.draw_eye(canvas, eye, traits, rng)

    cover = np.zeros(canvas.shape, np.float32)
    add_cover(cover, canvas.area(head_outline(traits), 0.004))
    features.draw_ears(canvas, cover, traits)
    features.draw_hair(canvas, cover, traits, rng)
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


def draw_background(size: tuple[int, int], to_pixels: Array, traits: Appearance, rng: np.random.Generator) -> Image:
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
        falling = [(0.0, -1.2), (0.72, -0.6), (0.78, 0.1), (0.80, 0.7), (0.72, 1.15), (0.5, 1.25)]
        paint(both(falling), 0.6 * traits.hair, 0.01)
    neck = [(0.0, 0.25), (0.42, 0.25), (0.40, 0.80), (0.46, 1.03), (0.75, 1.17), (0.75, 1.65), (0.0, 1.65)]
    paint(both(neck), traits.skin * (0.74, 0.66, 0.64), 0.006)
    paint(both([(0.0, 0.6), (0.42, 0.5), (0.38, 0.85), (0.0, 0.97)]), traits.skin * (0.48, 0.40, 0.38), 0.05, 0.8)
    collar, below = [(0.0, 1.33), (0.22, 1.27), (0.44, 1.03)], [(1.5, 2.25), (1.6, 4.0), (0.0, 4.0)]
    paint(both([*collar, (0.95, 1.20), (1.35, 1.45), *below]), traits.clothes, 0.006)
    for x in rng.uniform(-1.2, 1.2, 5):
        fold = np.array([(x, 1.3), (x + 0.04, 1.3), (1.2 * x + 0.06, 2.6), (1.2 * x, 2.6)])
        paint(fold, traits.clothes * rng.choice([0.8, 1.15]), 0.03, 0.6)
    return as_bytes(picture)
