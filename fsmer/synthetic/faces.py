"""Draws the faces and backgrounds of the synthetic frame sequences: geometry, skin, hair, features and shading.

A face is drawn once, as a relief under a lamp with painted skin, and is then only warped. Everything is placed by an
individual's landmarks (`fsmer.synthetic.flow_maps.Person`), so that the drawn features sit where the displacement
fields move them. No photograph is used anywhere.

Lengths are in widths of the canonical crop, with the origin at the crop's centre, x to the right and y down, and both
axes on one scale: a point (x, y) of the face frame of `fsmer.synthetic.facs_fields`, whose y is in crop heights, lies
at (x, `CROP_ASPECT` y).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fsmer.data.spec import CROP_ASPECT

__all__ = ["Appearance", "DrawnFace", "EyePatch", "draw_appearance", "draw_background", "draw_face"]

Array = NDArray[Any]
Image = NDArray[np.uint8]
Points = Sequence[tuple[float, float]] | Array
Patch = tuple[tuple[slice, slice], Array]

# Skin from very light to very dark, hair and eyes as they occur; sRGB.
_SKIN = np.array(
    [
        (0.95, 0.81, 0.74),
        (0.90, 0.73, 0.63),
        (0.83, 0.65, 0.53),
        (0.68, 0.50, 0.39),
        (0.50, 0.35, 0.27),
        (0.36, 0.25, 0.2),
    ]
)
_HAIR = np.array(
    [
        (0.07, 0.06, 0.06),
        (0.13, 0.09, 0.07),
        (0.22, 0.14, 0.09),
        (0.34, 0.22, 0.13),
        (0.60, 0.45, 0.26),
        (0.62, 0.60, 0.58),
    ]
)
_IRIS = np.array([(0.20, 0.12, 0.07), (0.30, 0.19, 0.10), (0.36, 0.36, 0.20), (0.33, 0.44, 0.50), (0.28, 0.40, 0.36)])
_IRIS_RADIUS = 0.053
# Left upper and right lower corner of what may be drawn.
_TEXTURED = ((-1.0, -1.6), (1.0, 1.1))


@dataclass(frozen=True)
class Appearance:
    """What an individual looks like, apart from where its landmarks are.

    Parameters
    ----------
    skin, hair, iris : arrays of shape (3,)
        Colours, red, green, blue, 0..1.
    outline : array of shape (5,)
        Relative widths of forehead, cheekbones, jaw and chin, and length of the chin.
    brows, lips, nose : float
        Relative thickness of the brows and fullness of the lips, height of the nose.
    hairline : float
        Height of the forehead above the brows.
    volume : float
        Thickness of the hair on the head.
    long_hair : bool
        Whether the hair falls to the shoulders.
    bald : bool
        Whether there is no hair on the head.
    beard : float
        Density of beard and moustache, 0 to 1.
    age : float
        Depth of folds and unevenness of skin, 0 to 1.
    freckles : float
        How many, 0 to 1.
    lamp : array of shape (3,)
        Direction to the light.
    clothes, wall : arrays of shape (3,)
        Colours of what surrounds the face.
    seed : int
        Seed of texture and strokes.
    """

    skin: Array
    hair: Array
    iris: Array
    outline: Array
    brows: float
    lips: float
    nose: float
    hairline: float
    volume: float
    long_hair: bool
    bald: bool
    beard: float
    age: float
    freckles: float
    lamp: Array
    clothes: Array
    wall: Array
    seed: int


def draw_appearance(rng: np.random.Generator) -> Appearance:
    """Draw an individual's looks at random."""
    tone = rng.random() * (len(_SKIN) - 1)
    skin = np.array([np.interp(tone, np.arange(len(_SKIN)), _SKIN[:, channel]) for channel in range(3)])
    light = tone / (len(_SKIN) - 1)
    # Dark skin mostly comes with dark hair and eyes.
    hair = _HAIR[int(len(_HAIR) * rng.random() * (1 - 0.6 * light))]
    iris = _IRIS[int(len(_IRIS) * rng.random() * (1 - 0.75 * light))]
    long_hair = bool(rng.random() < 0.45)
    lamp = np.array([rng.normal(0, 0.28), -0.55 + 0.12 * rng.normal(), 1.0])
    return Appearance(
        skin=np.clip(skin + 0.015 * rng.standard_normal(3), 0, 1),
        hair=np.clip(hair * np.exp(0.15 * rng.normal()), 0, 1),
        iris=np.clip(iris * np.exp(0.15 * rng.normal()), 0, 1),
        outline=np.exp(rng.normal(0, [0.03, 0.03, 0.05, 0.08, 0.03])),
        brows=float(np.exp(0.3 * rng.normal())) * (0.75 if long_hair else 1.05),
        lips=float(np.exp(0.15 * rng.normal())),
        nose=float(np.exp(0.15 * rng.normal())),
        hairline=0.45 + 0.05 * float(rng.normal()),
        volume=0.05 + 0.07 * float(rng.random()),
        long_hair=long_hair,
        bald=not long_hair and bool(rng.random() < 0.12),
        beard=0.0 if long_hair else float(np.clip(rng.normal(0.15, 0.4), 0, 1)),
        age=float(rng.random()),
        freckles=float(rng.random() ** 3) * (1 - light),
        lamp=lamp / np.linalg.norm(lamp),
        clothes=rng.uniform(0.1, 0.8, 3),
        wall=np.clip(rng.uniform(0.35, 0.8) + 0.07 * rng.standard_normal(3), 0.1, 0.95),
        seed=int(rng.integers(1 << 62)),
    )


@dataclass(frozen=True)
class EyePatch:
    """One eye of a drawn face, ready to be closed.

    Parameters
    ----------
    where : tuple of slice
        Rows and columns of the face's picture.
    lid : uint8 array of shape (h, w, 3)
        The same place with the eye closed.
    height : float32 array of shape (h, w)
        0 on the margin of the upper lid, 1 on that of the lower; beyond the corners of the eye above 2.
    """

    where: tuple[slice, slice]
    lid: Image
    height: Array


@dataclass(frozen=True)
class DrawnFace:
    """A face at rest, seen from the front.

    Parameters
    ----------
    picture : uint8 array of shape (h, w, 3)
        Red, green, blue.
    cover : uint8 array of shape (h, w)
        255 where the head covers what is behind it.
    depth : float32 array of shape (h, w)
        Height of the relief towards the camera.
    eyes : tuple of EyePatch
        Right and left half of the picture.
    origin : tuple of float
        Place of the picture's left upper corner.
    density : float
        Pixels per crop width.
    """

    picture: Image
    cover: Image
    depth: Array
    eyes: tuple[EyePatch, ...]
    origin: tuple[float, float]
    density: float


class _Canvas:
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
        return self._mask(np.asarray(points)[None], blur, 0.0)

    def line(self, points: Points, width: float, blur: float = 0.0) -> Patch | None:
        """Stroke along points, softened."""
        return self._mask(np.asarray(points)[None], blur, width)

    def strokes(self, lines: Array, width: float, blur: float = 0.0) -> Patch | None:
        """Many strokes (n, points, 2) at once, softened."""
        return self._mask(lines, blur, width)

    def _mask(self, lines: Array, blur: float, width: float) -> Patch | None:
        pixels = self.pixels(lines)
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


def draw_face(
    landmarks: Mapping[str, Array], looks: Appearance, window: tuple[float, float, float, float], density: float
) -> DrawnFace:
    """Draw one individual's face at rest.

    Parameters
    ----------
    landmarks : mapping of str to array of shape (2, 2)
        `fsmer.synthetic.flow_maps.Person.landmarks`: right and left half of the picture, in the face frame.
    looks : Appearance
    window : (left, top, right, bottom)
        Part of the plane that is drawn, within (-1, -1.6, 1, 1.1).
    density : float
        Pixels per crop width.
    """
    canvas = _Canvas(window, density)
    places = {name: np.asarray(both, np.float64) * (1, CROP_ASPECT) for name, both in landmarks.items()}
    rng = np.random.Generator(np.random.PCG64(looks.seed))
    eyes = [_Eye.of(places, side) for side in (0, 1)]

    _shape_head(canvas, places, eyes, looks)
    _paint_skin(canvas, places, looks, rng)
    _paint_lips(canvas, places, looks, rng)
    shade, depth = _light(canvas, looks)
    canvas.colour *= shade[..., None]
    _draw_creases(canvas, places, eyes, looks)
    _draw_brows(canvas, places, looks, rng)
    _draw_beard(canvas, places, looks, rng)
    lids = [_lid_of(canvas, eye) for eye in eyes]
    for eye in eyes:
        _draw_eye(canvas, eye, looks, rng)

    cover = np.zeros(canvas.shape, np.float32)
    _cover(cover, canvas.area(_head_outline(looks), 0.004))
    _draw_ears(canvas, cover, looks)
    _draw_hair(canvas, cover, looks, rng)
    patches = tuple(lid for lid in lids if lid is not None)
    return DrawnFace(_as_bytes(canvas.colour), _as_bytes(cover), depth, patches, canvas.origin, density)


def _as_bytes(values: Array) -> Image:
    return np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8)


def _cover(cover: Array, patch: Patch | None) -> None:
    if patch is not None:
        np.maximum(cover[patch[0]], patch[1], out=cover[patch[0]])


def _by(x: float, y: float) -> Array:
    """A shift that points can be moved by."""
    return np.array((x, y))


def _curve(points: Points, count: int = 12, closed: bool = False) -> Array:
    """Smooth curve through points (Catmull-Rom), `count` pieces between two of them."""
    knots = np.asarray(points, np.float64)
    ends = (knots[-1:], knots[:2]) if closed else (2 * knots[:1] - knots[1:2], 2 * knots[-1:] - knots[-2:-1])
    p = np.concatenate([ends[0], knots, ends[1]])
    t = (np.arange(count) / count)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    pieces = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    drawn = pieces.reshape(-1, 2)
    return drawn if closed else np.concatenate([drawn, knots[-1:]])


# Half widths of the head from the crown to the chin, (y, x), on the canonical face.
_OUTLINE = (
    (-1.30, 0.0),
    (-1.27, 0.22),
    (-1.15, 0.42),
    (-0.95, 0.555),
    (-0.70, 0.615),
    (-0.40, 0.625),
    (-0.12, 0.615),
    (0.12, 0.59),
    (0.34, 0.54),
    (0.51, 0.45),
    (0.64, 0.34),
    (0.725, 0.215),
    (0.763, 0.10),
    (0.77, 0.0),
)


def _head_outline(looks: Appearance, grow: float = 0.0, flat: float = 0.0) -> Array:
    """The head's outline, clockwise from the crown; `grow` adds hair, `flat` takes some of it off the crown."""
    forehead, cheek, jaw, chin, length = looks.outline
    right = []
    for y, x in _OUTLINE:
        factor = np.interp(y, (-0.9, -0.3, 0.1, 0.48, 0.75), (forehead, forehead, cheek, jaw, jaw * chin))
        right.append((x * factor, y if y < 0.1 else 0.1 + (y - 0.1) * length))
    points = np.array(right)
    if grow:
        centre = np.array((0.0, -0.35))
        away = points - centre
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        points = points + grow * away * (1, 1 - flat)
        points[[0, -1], 0] = 0
    left = points[-2:0:-1] * (-1, 1)
    return _curve(np.concatenate([points, left]), 10, closed=True)


def _mirrored(places: Mapping[str, Array], name: str, side: int) -> tuple[float, float, float]:
    """x, y and the sign of x of a landmark."""
    x, y = places[name][side]
    return float(x), float(y), 1.0 if side == 0 else -1.0


@dataclass(frozen=True)
class _Eye:
    """Corners and margins of one eye; `sign` is that of x."""

    inner: tuple[float, float]
    outer: tuple[float, float]
    upper: float
    lower: float
    centre: float
    sign: float

    @classmethod
    def of(cls, places: Mapping[str, Array], side: int) -> _Eye:
        (inner_x, inner_y, sign), (outer_x, outer_y, _) = (
            _mirrored(places, name, side) for name in ("eye_inner", "eye_outer")
        )
        (centre, upper, _), (_, lower, _) = (_mirrored(places, name, side) for name in ("lid_upper", "lid_lower"))
        # Lids hang together: each follows its own landmark only as far as the eye stays open and even.
        middle = (upper + lower) / 2
        half = float(np.clip(0.61 * (lower - upper), 0.028, 0.044))
        inner_y = float(np.clip(inner_y, middle - 0.005, middle + 0.035))
        outer_y = float(np.clip(outer_y, middle - 0.03, middle + 0.015))
        width = float(np.clip(abs(outer_x - inner_x), 0.21, 0.29))
        across = (inner_x + outer_x) / 2
        corners = (across - sign * width / 2, across + sign * width / 2)
        centre = float(np.clip(centre, across - 0.025, across + 0.025))
        return cls((corners[0], inner_y), (corners[1], outer_y), middle - half, middle + half, centre, sign)

    def margins(self, x: Array) -> tuple[Array, Array, Array]:
        """How far along the eye (0 at the inner corner, 1 at the outer), upper and lower margin at `x`."""
        t = (x - self.inner[0]) / (self.outer[0] - self.inner[0])
        inside = np.clip(t, 0, 1)
        base = self.inner[1] + inside * (self.outer[1] - self.inner[1])
        middle = (self.inner[1] + self.outer[1]) / 2
        above = 1 - np.abs(2 * inside**0.85 - 1) ** 2.3
        below = 1 - np.abs(2 * inside**1.2 - 1) ** 2.1
        return t, base + (self.upper - middle) * above, base + (self.lower - middle) * below

    def edge(self, upper: bool, start: float = 0.0, stop: float = 1.0) -> Array:
        """Points along one margin."""
        x = np.linspace(
            self.inner[0] + start * (self.outer[0] - self.inner[0]),
            self.inner[0] + stop * (self.outer[0] - self.inner[0]),
            32,
        )
        return np.stack([x, self.margins(x)[1 if upper else 2]], axis=1)


def _shape_head(canvas: _Canvas, places: Mapping[str, Array], eyes: list[_Eye], looks: Appearance) -> None:
    """The relief: skull, brow ridge, sockets, eyeballs, nose, cheeks, mouth and chin."""
    x, y = canvas.x[None, :], canvas.y[:, None]
    radius = (np.abs(x) / 0.69) ** 2.2 + np.abs((y + 0.25) / 1.10) ** 2.2
    canvas.relief += 0.64 * np.sqrt(np.clip(1 - radius, 0.01, None))

    root = places["nose_root"][:, 1].mean()
    wing = places["nose_wing"]
    base = wing[:, 1].mean()
    # The bridge grows from the root to the tip and widens with it.
    along = np.clip((y - (root - 0.05)) / (base - root), 0, 1.25)
    tip = 1 / (1 + np.exp(np.clip((y - (base - 0.005)) / 0.014, -40, 40)))
    rise = looks.nose * (0.025 + 0.12 * along**1.4) * tip * np.clip((y - root + 0.16) / 0.12, 0, 1)
    canvas.relief += rise * np.exp(-0.5 * (x / (0.042 + 0.03 * along)) ** 2)
    canvas.lift(canvas.bump((0, base - 0.045), 0.05, 0.045), 0.045 * looks.nose)
    for side in (0, 1):
        wing_x, wing_y, sign = _mirrored(places, "nose_wing", side)
        canvas.lift(canvas.bump((wing_x - 0.02 * sign, wing_y - 0.01), 0.03, 0.034), 0.06)
        inner, outer = places["brow_inner"][side], places["brow_outer"][side]
        canvas.lift(canvas.bump(0.55 * inner + 0.45 * outer + _by(0, 0.01), 0.13, 0.05, 0.1 * sign), 0.04)
        eye = eyes[side]
        canvas.lift(canvas.bump((eye.centre - 0.03 * sign, eye.upper - 0.015), 0.12, 0.07), -0.065)
        canvas.lift(canvas.bump((eye.centre, (eye.upper + eye.lower) / 2), 0.085, 0.05), 0.055)
        canvas.lift(canvas.bump(eye.inner, 0.035, 0.05), -0.04)
        cheek_x, cheek_y, _ = _mirrored(places, "cheek", side)
        canvas.lift(canvas.bump((cheek_x + 0.04 * sign, cheek_y - 0.02), 0.12, 0.09), 0.05)
        canvas.lift(canvas.bump((cheek_x, cheek_y + 0.2), 0.09, 0.12), -0.02)
        # The fold from the nose to the mouth's corner, with the cheek lying over it.
        corner = places["mouth_corner"][side]
        fold_x, fold_y, _ = _mirrored(places, "nasolabial", side)
        fold = _curve([(wing_x + 0.03 * sign, wing_y - 0.01), (fold_x, fold_y), corner + _by(0.06 * sign, 0)])
        canvas.lift(canvas.line(fold, 0.02, 0.02), -0.009 - 0.012 * looks.age)
        canvas.lift(canvas.line(fold + _by(0.05 * sign, -0.02), 0.03, 0.035), 0.012)
        canvas.lift(canvas.bump(corner + _by(0.012 * sign, 0.005), 0.022, 0.025), -0.03)

    line = _mouth_line(places)
    middle = line[len(line) // 2]
    chin = places["chin"][:, 1].mean()
    # Teeth and jaw push the mouth forward as a whole.
    canvas.lift(canvas.bump((0, middle[1]), 0.2, 0.15), 0.05)
    canvas.lift(canvas.bump((0, (base + middle[1]) / 2), 0.014, 0.035), -0.018)
    top, bottom = _lip_edges(places, looks)
    canvas.lift(canvas.area(np.concatenate([top, line[::-1]]), 0.012), 0.035)
    canvas.lift(canvas.area(np.concatenate([line, bottom[::-1]]), 0.016), 0.05 * looks.lips)
    canvas.lift(canvas.line(line, 0.008, 0.008), -0.03)
    canvas.lift(canvas.bump((0, bottom[:, 1].max() + 0.045), 0.11, 0.028), -0.03)
    canvas.lift(canvas.bump((0, chin + 0.02), 0.1, 0.075), 0.06)
    canvas.lift(canvas.bump((0, chin + 0.02), 0.02, 0.05), -0.006)


def _mouth_line(places: Mapping[str, Array]) -> Array:
    """Where the lips meet, from the left corner of the picture to the right."""
    right, left = places["mouth_corner"]
    height = _mouth_height(places)
    return _curve([left, (0.5 * left[0], height - 0.003), (0, height + 0.003), (0.5 * right[0], height - 0.003), right])


def _mouth_height(places: Mapping[str, Array]) -> float:
    """Height of the line between the lips: level with the corners as far as the lips allow."""
    upper, lower = places["lip_upper"][:, 1].mean(), places["lip_lower"][:, 1].mean()
    corners = places["mouth_corner"][:, 1].mean()
    return float(np.clip(corners, 0.72 * upper + 0.28 * lower, 0.55 * upper + 0.45 * lower))


def _lip_edges(places: Mapping[str, Array], looks: Appearance) -> tuple[Array, Array]:
    """Upper edge of the upper and lower edge of the lower lip, from left to right."""
    right, left = places["mouth_corner"]
    upper, lower = places["lip_upper"][:, 1].mean(), places["lip_lower"][:, 1].mean()
    line = _mouth_height(places)
    peak = line - np.clip(looks.lips * 1.3 * (line - upper), 0.035, 0.08)
    deep = line + np.clip(looks.lips * 1.12 * (lower - line), 0.06, 0.125)
    shoulder, belly = 0.5 * (peak + line) - 0.012, line + 0.62 * (deep - line)
    bow = [(-0.05, peak), (0, peak + 0.013), (0.05, peak)]
    top = _curve([left, (0.55 * left[0], shoulder), *bow, (0.55 * right[0], shoulder), right])
    bottom = _curve([left, (0.6 * left[0], belly), (0, deep), (0.6 * right[0], belly), right])
    return top, bottom


def _paint_skin(canvas: _Canvas, places: Mapping[str, Array], looks: Appearance, rng: np.random.Generator) -> None:
    """Skin colour: ruddy cheeks and nose, darker around the eyes, and texture at every scale."""
    canvas.colour[:] = looks.skin
    red, dusk = (1.05, 0.86, 0.84), (0.86, 0.78, 0.78)
    for side in (0, 1):
        x, y, sign = _mirrored(places, "cheek", side)
        canvas.tint(canvas.bump((x + 0.03 * sign, y + 0.02), 0.12, 0.1), red, 0.5)
        x, y, _ = _mirrored(places, "lid_lower", side)
        canvas.tint(canvas.bump((x - 0.02 * sign, y + 0.03), 0.1, 0.03), dusk, 0.35 + 0.3 * looks.age)
        x, y, _ = _mirrored(places, "lid_upper", side)
        canvas.tint(canvas.bump((x, y - 0.03), 0.11, 0.035), dusk, 0.35)
    base = places["nose_wing"][:, 1].mean()
    canvas.tint(canvas.bump((0, base - 0.04), 0.06, 0.05), red, 0.5)

    texture = np.zeros(canvas.shape, np.float32)
    # Blotches, pores and grain, in crop widths: about 13, 4.5, 2.2 and 1.2 pixels on a face of 224.
    for size, amount in ((0.06, 0.016), (0.02, 0.014), (0.010, 0.020), (0.0055, 0.018)):
        texture += np.float32(amount * (1 + 0.3 * looks.age)) * _grain(canvas, size, rng)
    warmth = _grain(canvas, 0.05, rng)
    canvas.colour *= np.exp(texture)[..., None]
    canvas.colour *= 1 + warmth[..., None] * np.array((0.004, -0.008, -0.010), np.float32)
    for share, size in ((0.2, 0.004), (0.4, 0.006), (0.6, 0.008)):
        count = int(3 + 55 * looks.freckles)
        spots = np.stack([rng.uniform(-0.55, 0.55, count), rng.uniform(-0.45, 0.6, count)], axis=-1)
        canvas.tint(canvas.strokes(np.stack([spots, spots + 0.001], axis=1), size, 0.002), (0.75, 0.62, 0.55), share)


def _grain(canvas: _Canvas, size: float, rng: np.random.Generator) -> Array:
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


def _paint_lips(canvas: _Canvas, places: Mapping[str, Array], looks: Appearance, rng: np.random.Generator) -> None:
    top, bottom = _lip_edges(places, looks)
    line = _mouth_line(places)
    colour = looks.skin * (0.90, 0.62, 0.62) * (1 - 0.05 * looks.age) + np.array((0.03, 0.0, 0.01))
    canvas.paint(canvas.area(np.concatenate([top, line[::-1]]), 0.006), colour * 0.92, 0.8)
    canvas.paint(canvas.area(np.concatenate([line, bottom[::-1]]), 0.007), colour, 0.75)
    # Fine upright lines in the lips.
    x = rng.uniform(-0.17, 0.17, 40)
    start, edge = np.interp(x, line[:, 0], line[:, 1]), np.interp(x, bottom[:, 0], bottom[:, 1])
    ends = np.stack([1.06 * x, start + 0.75 * (edge - start)], axis=-1)
    upright = np.stack([np.stack([x, start], axis=-1), ends], axis=1)
    canvas.tint(canvas.strokes(upright, 0.0035, 0.002), (0.8, 0.74, 0.74), 0.45)


def _light(canvas: _Canvas, looks: Appearance) -> tuple[Array, Array]:
    """Brightness of the relief under the lamp, and the relief itself, smoothed for use as depth."""
    relief = cv2.GaussianBlur(canvas.relief, (0, 0), max(0.006 * canvas.density, 0.6))
    slope_x = cv2.Sobel(relief, cv2.CV_32F, 1, 0, ksize=3, scale=canvas.density / 8)
    slope_y = cv2.Sobel(relief, cv2.CV_32F, 0, 1, ksize=3, scale=canvas.density / 8)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    lamp = looks.lamp.astype(np.float32)
    facing = (-lamp[0] * slope_x - lamp[1] * slope_y + lamp[2]) / length
    # What lies lower than its surroundings gets less light from all around.
    hollow = relief - _wide_blur(relief, 0.05 * canvas.density)
    shade = 0.50 + 0.58 * np.clip(facing, 0, None) + np.clip(3.0 * hollow, -0.22, 0.10)
    # Skin shines a little.
    half = lamp + np.array((0, 0, 1), np.float32)
    half /= np.linalg.norm(half)
    glance = np.clip((-half[0] * slope_x - half[1] * slope_y + half[2]) / length, 0, 1)
    shade += 0.10 * glance**24
    return shade.astype(np.float32), relief


def _wide_blur(values: Array, sigma: float) -> Array:
    """Gaussian blur with a wide kernel, at a lower resolution."""
    step = max(1, int(sigma / 4))
    small = cv2.resize(values, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(small, (0, 0), sigma / step)
    return cv2.resize(soft, values.shape[::-1], interpolation=cv2.INTER_LINEAR)


def _draw_creases(canvas: _Canvas, places: Mapping[str, Array], eyes: list[_Eye], looks: Appearance) -> None:
    """Dark lines: lids, sides and openings of the nose, mouth, folds, forehead."""
    dark = (0.55, 0.45, 0.42)
    base = places["nose_wing"][:, 1].mean()
    for side in (0, 1):
        eye = eyes[side]
        wing_x, wing_y, sign = _mirrored(places, "nose_wing", side)
        fold = eye.edge(True, 0.06, 1.04) - _by(0, 0.026)
        canvas.tint(canvas.line(fold, 0.007, 0.006), dark, 0.75)
        canvas.tint(canvas.line(eye.edge(False, 0.1, 1.0) + _by(0, 0.03), 0.008, 0.01), dark, 0.25 + 0.35 * looks.age)
        alar = _curve(
            [
                (wing_x - 0.018 * sign, wing_y - 0.055),
                (wing_x + 0.008 * sign, wing_y - 0.02),
                (wing_x + 0.004 * sign, wing_y + 0.022),
                (wing_x - 0.03 * sign, wing_y + 0.034),
            ]
        )
        canvas.tint(canvas.line(alar, 0.007, 0.007), dark, 0.75)
        nostril = canvas.bump((wing_x - 0.052 * sign, base + 0.024), 0.022, 0.0095, -0.35 * sign)
        canvas.tint(nostril, (0.22, 0.15, 0.13), 0.95)
        corner = places["mouth_corner"][side]
        canvas.tint(canvas.bump(corner, 0.013, 0.008), (0.45, 0.34, 0.33), 0.8)
        fold_x, fold_y, _ = _mirrored(places, "nasolabial", side)
        fold = _curve([(wing_x + 0.03 * sign, wing_y - 0.01), (fold_x, fold_y), corner + _by(0.055 * sign, 0)])
        canvas.tint(canvas.line(fold, 0.006, 0.009), dark, 0.1 + 0.3 * looks.age)
        if looks.age > 0.5:
            for height in (-0.015, 0.0, 0.016):
                x, y = eye.outer[0] + 0.03 * sign, eye.outer[1] + height
                wrinkle = [(x, y), (x + 0.07 * sign, y + 2.2 * height)]
                canvas.tint(canvas.line(wrinkle, 0.004, 0.004), dark, 0.6 * (looks.age - 0.5))
    canvas.tint(canvas.bump((0, base + 0.03), 0.06, 0.012), dark, 0.3)
    canvas.tint(canvas.line(_mouth_line(places), 0.011, 0.0035), (0.34, 0.22, 0.22), 0.95)
    bottom = _lip_edges(places, looks)[1]
    canvas.tint(canvas.line(bottom[10:-10] + _by(0, 0.014), 0.012, 0.012), dark, 0.45)
    if looks.age > 0.35:
        brow = places["brow_inner"][:, 1].mean()
        for height in (0.13, 0.2, 0.27):
            across = _curve([(-0.3, brow - height + 0.015), (0, brow - height), (0.3, brow - height + 0.012)])
            canvas.tint(canvas.line(across, 0.005, 0.006), dark, 0.5 * (looks.age - 0.35))


def _draw_brows(canvas: _Canvas, places: Mapping[str, Array], looks: Appearance, rng: np.random.Generator) -> None:
    colour = 0.75 * looks.hair + 0.12 * looks.skin
    thick = float(np.clip(0.034 * looks.brows, 0.02, 0.055))
    for side in (0, 1):
        inner, outer = places["brow_inner"][side], places["brow_outer"][side]
        sign = 1.0 if side == 0 else -1.0
        start = inner + _by(-0.035 * sign, 0.008)
        stop = outer + _by(0.055 * sign, 0.03)
        arch = 0.35 * inner + 0.65 * outer + _by(0, -0.022)
        spine = _curve([start, 0.55 * inner + 0.45 * outer + _by(0, -0.012), arch + _by(0.03 * sign, 0), stop], 16)
        t = np.linspace(0, 1, len(spine))
        half = thick * (0.62 + 0.5 * np.sin(np.pi * np.clip(t * 1.15, 0, 1))) * np.clip((1.02 - t) / 0.45, 0.12, 1) / 2
        shape = np.concatenate([spine - half[:, None] * (0, 1), (spine + half[:, None] * (0, 1))[::-1]])
        canvas.paint(canvas.area(shape, 0.008), colour, 0.55)
        # Hairs stand up near the nose and lie along the brow further out.
        for shade in (0.6, 0.8, 1.0, 1.15):
            count = int(42 * (0.5 + looks.brows / 2))
            place = rng.random(count)
            roots = np.stack([np.interp(place, t, spine[:, axis]) for axis in (0, 1)], axis=-1)
            roots[:, 1] += rng.uniform(-0.95, 0.95, count) * np.interp(place, t, half)
            lean = np.interp(place, (0, 0.25, 0.6, 1), (-1.25, -0.75, -0.25, 0.35)) + 0.18 * rng.standard_normal(count)
            reach = 0.026 * rng.uniform(0.7, 1.3, count)
            tips = roots + reach[:, None] * np.stack([sign * np.cos(lean), np.sin(lean)], axis=-1)
            canvas.paint(canvas.strokes(np.stack([roots, tips], axis=1), 0.0032), shade * colour, 0.6)


def _draw_beard(canvas: _Canvas, places: Mapping[str, Array], looks: Appearance, rng: np.random.Generator) -> None:
    if looks.beard < 0.05:
        return
    top, bottom = _lip_edges(places, looks)
    base = places["nose_wing"][:, 1].mean()
    jaw = _head_outline(looks)
    lower = jaw[(jaw[:, 1] > 0.05)]
    lower = lower[np.argsort(-lower[:, 0])] * (0.99, 0.995)
    (right_x, right_y), (left_x, left_y) = places["mouth_corner"]
    moustache = [(-0.14, base + 0.07), (0.0, base + 0.055), (0.14, base + 0.07)]
    left = [(-0.58, -0.02), (-0.44, 0.23), (left_x - 0.06, left_y)]
    right = [(right_x + 0.06, right_y), (0.44, 0.23), (0.58, -0.02)]
    cheek = _curve([*left, *moustache, *right])
    patch = canvas.area(np.concatenate([cheek, lower]), 0.03)
    lips = canvas.area(np.concatenate([top, bottom[::-1]]), 0.008)
    if patch is None:
        return
    where, mask = patch
    if lips is not None:
        bare = np.zeros(canvas.shape, np.float32)
        bare[lips[0]] = lips[1]
        mask = mask * (1 - bare[where])
    grain = np.clip(0.75 + 0.45 * _grain(canvas, 0.008, rng)[where] + 0.25 * _grain(canvas, 0.02, rng)[where], 0, 1.4)
    canvas.paint((where, np.clip(mask * grain, 0, 1)), 0.7 * looks.hair + 0.12 * looks.skin, 0.8 * looks.beard)


def _lid_of(canvas: _Canvas, eye: _Eye) -> EyePatch | None:
    """The place of an eye before it is painted: what shows when it is closed."""
    corners = np.array([(eye.inner[0], eye.upper - 0.03), (eye.outer[0], eye.lower + 0.03)])
    where = canvas.box(canvas.pixels(corners), 0.03 * canvas.density)
    if where is None:
        return None
    along, upper, lower = eye.margins(canvas.x[where[1]].astype(np.float64))
    height = (canvas.y[where[0]][:, None] - upper) / np.maximum(lower - upper, 0.012)
    beyond = np.maximum(np.maximum(-along, along - 1) - 0.06, 0) / 0.06
    return EyePatch(where, _as_bytes(canvas.colour[where]), (height + 3 * beyond).astype(np.float32))


def _draw_eye(canvas: _Canvas, eye: _Eye, looks: Appearance, rng: np.random.Generator) -> None:
    shape = np.concatenate([eye.edge(True), eye.edge(False)[::-1]])
    opening = canvas.area(shape, 0.0025)
    if opening is None:
        return
    where, mask = opening
    x, y = canvas.x[where[1]][None, :], canvas.y[where[0]][:, None]
    along, upper, lower = (part.astype(np.float32) for part in eye.margins(canvas.x[where[1]].astype(np.float64)))
    height = (y - upper) / np.maximum(lower - upper, 0.012)
    # The eyeball is round and lies in the shadow of the upper lid.
    light = (0.62 + 0.38 * np.clip(height * 1.8, 0, 1)) * (1 - 1.1 * np.abs(along - 0.5) ** 2.2)
    ball = np.array((0.84, 0.81, 0.79), np.float32) * light[..., None]
    pink = np.exp(-0.5 * ((along - 0.02) / 0.07) ** 2)[None, :, None]
    ball = ball + pink * (np.array((0.72, 0.45, 0.42), np.float32) * light[..., None] - ball)

    centre_y = eye.upper + 0.43 * (eye.lower - eye.upper)
    dx, dy = x - np.float32(eye.centre), y - np.float32(centre_y)
    radius = np.sqrt(dx**2 + dy**2) / np.float32(_IRIS_RADIUS)
    spokes = _spokes(np.arctan2(dy, dx), rng)
    ring = np.interp(radius, (0.35, 0.55, 0.8, 0.95, 1.02), (0.75, 1.25, 1.05, 0.55, 0.4))
    iris = looks.iris.astype(np.float32) * (ring * (1 + 0.25 * spokes))[..., None]
    iris = iris * (0.55 + 0.45 * np.clip(height * 2, 0, 1))[..., None] + 0.03
    soft = np.float32(1.3 / (_IRIS_RADIUS * canvas.density))
    inside = np.clip((1.0 - radius) / soft + 0.5, 0, 1)[..., None]
    ball += inside * (iris - ball)
    pupil = np.clip((0.40 - radius) / soft + 0.5, 0, 1)[..., None]
    ball += pupil * (np.float32(0.03) - ball)
    spark = np.exp(-0.5 * (((dx - 0.016 * np.sign(looks.lamp[0])) / 0.007) ** 2 + ((dy + 0.016) / 0.008) ** 2))
    ball += 0.9 * spark[..., None] * (1 - ball)
    canvas.paint((where, mask), ball)

    lash = 0.35 * looks.hair
    canvas.paint(canvas.line(eye.edge(True, 0.03, 1.0) - _by(0, 0.002), 0.010, 0.003), lash, 0.85)
    canvas.tint(canvas.line(eye.edge(False, 0.15, 1.0) + _by(0, 0.003), 0.005, 0.004), (0.6, 0.45, 0.42), 0.6)
    canvas.paint(canvas.line(eye.edge(True, 0.55, 1.04) - _by(0, 0.004), 0.012, 0.004), lash, 0.6)


def _spokes(angle: Array, rng: np.random.Generator) -> Array:
    """Rays of the iris."""
    rays = np.zeros_like(angle)
    for count in (7, 13, 23, 37):
        rays += np.cos(count * angle + 6.3 * rng.random()) * 0.4
    return rays


def _draw_ears(canvas: _Canvas, cover: Array, looks: Appearance) -> None:
    half = 0.61 * looks.outline[1]
    for sign in (-1.0, 1.0):
        shape = _curve(
            [(sign * (half - 0.05), -0.26), (sign * (half + 0.06), -0.33), (sign * (half + 0.10), -0.2),
             (sign * (half + 0.055), -0.02), (sign * (half - 0.01), 0.06), (sign * (half - 0.06), 0.0)],
            closed=True,
        )  # fmt: skip
        patch = canvas.area(shape, 0.004)
        if patch is None:
            continue
        where, mask = patch
        behind = mask * (1 - cover[where])
        canvas.paint((where, behind), looks.skin * (0.86, 0.74, 0.72))
        _cover(cover, (where, mask))
        rim = _curve([(sign * half, -0.2), (sign * (half + 0.055), -0.24), (sign * (half + 0.06), -0.15),
                      (sign * (half + 0.02), -0.04)])  # fmt: skip
        inner = canvas.line(rim, 0.015, 0.01)
        canvas.tint(inner, (0.6, 0.5, 0.48), 0.8)


def _draw_hair(canvas: _Canvas, cover: Array, looks: Appearance, rng: np.random.Generator) -> None:
    """Hair on the head, from the hairline up and out."""
    if looks.bald:
        return
    top = -CROP_ASPECT * 0.32 - looks.hairline
    temple = 0.50 * looks.outline[0]
    side = 0.58 * looks.outline[1]
    low = 0.28 if looks.long_hair else -0.12
    right = np.array(
        [
            (side + 0.03, low),
            (side - 0.005, -0.2),
            (temple + 0.045, -0.45),
            (temple - 0.02, top + 0.22),
            (0.36, top + 0.09),
            (0.2, top + 0.02),
        ]
    )
    line = np.concatenate([right, [(0.0, top)], right[::-1] * (-1, 1)])
    line[3:-3, 1] += 0.015 * rng.standard_normal(len(line) - 6)
    line = _curve(line)
    shell = _head_outline(looks, looks.volume + (0.05 if looks.long_hair else 0.015), 0.25)
    # The shell from above one end of the hairline over the crown to the other, closed along the hairline.
    upper = shell[shell[:, 1] < low]
    upper = upper[np.argsort(np.arctan2(upper[:, 0], -(upper[:, 1] + 0.2)))]
    patch = canvas.area(np.concatenate([upper, line]), 0.007)
    if patch is None:
        return
    where, mask = patch
    # Strands fall from the crown.
    x, y = canvas.x[where[1]][None, :], canvas.y[where[0]][:, None] + np.float32(1.12 + 0.5 * looks.volume)
    angle, reach = np.arctan2(x, y + 0.25 * np.abs(x)), np.sqrt(x**2 + y**2)
    strands = _strands(angle, reach, rng)
    gloss = np.exp(-0.5 * ((reach - 0.42) / 0.13) ** 2)
    tone = (0.72 + 0.35 * gloss + 0.16 * strands) * np.clip(0.7 + 0.5 * reach, 0.6, 1)
    colour = np.clip(
        looks.hair.astype(np.float32) * np.clip(tone, 0.25, 2.0)[..., None] + 0.02 * gloss[..., None], 0, 1
    )
    # Single hairs cross the hairline; beyond the head there is nothing but hair.
    mask = np.clip(mask + 0.8 * mask * (1 - mask) * strands, 0, 1)
    canvas.paint((where, np.maximum(mask, cover[where] < 0.5)), colour)
    _cover(cover, (where, mask))


def _strands(angle: Array, reach: Array, rng: np.random.Generator) -> Array:
    """Noise that is drawn out along the hair, unit variance."""
    total = np.zeros(np.broadcast_shapes(angle.shape, reach.shape), np.float32)
    for count, length, amount in ((60, 3, 0.5), (200, 4, 0.8), (420, 6, 0.8)):
        nodes = rng.standard_normal((length + 3, count), dtype=np.float32)
        column = ((angle / (2 * np.pi) + 0.5) * (count - 1)).astype(np.float32)
        row = (np.clip(reach, 0, 2) * length / 2 + 1).astype(np.float32)
        total += amount * cv2.remap(nodes, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return total


def draw_background(
    size: tuple[int, int], to_pixels: Array, looks: Appearance, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """What is behind the head: a wall with blurred things, hair that falls, neck, shoulders and clothes.

    Parameters
    ----------
    size : (height, width)
    to_pixels : array of shape (2, 3)
        Affine map from the plane of the face to pixels.
    looks : Appearance
    rng : numpy.random.Generator
        What the room is drawn from.

    Returns
    -------
    uint8 array of shape (height, width, 3)
    """
    height, width = size
    small = (max(height // 4, 4), max(width // 4, 4))
    room: Array = np.empty((*small, 3), np.float32)
    room[:] = looks.wall
    for _ in range(7):
        x, y = int(rng.integers(small[1])), int(rng.integers(small[0]))
        w, h = int(rng.integers(2, max(small[1] // 3, 3))), int(rng.integers(2, max(small[0] // 2, 3)))
        colour = np.clip(looks.wall * rng.uniform(0.6, 1.25) + 0.06 * rng.standard_normal(3), 0, 1)
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
        return np.concatenate([_curve(right), _curve(right)[::-1] * (-1, 1)])

    if looks.long_hair and not looks.bald:
        paint(
            both([(0.0, -1.2), (0.72, -0.6), (0.78, 0.1), (0.80, 0.7), (0.72, 1.15), (0.5, 1.25)]),
            0.6 * looks.hair,
            0.01,
        )
    neck = [(0.0, 0.25), (0.42, 0.25), (0.40, 0.80), (0.46, 1.03), (0.75, 1.17), (0.75, 1.65), (0.0, 1.65)]
    paint(both(neck), looks.skin * (0.74, 0.66, 0.64), 0.006)
    paint(both([(0.0, 0.6), (0.42, 0.5), (0.38, 0.85), (0.0, 0.97)]), looks.skin * (0.48, 0.40, 0.38), 0.05, 0.8)
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
    paint(both(shoulders), looks.clothes, 0.006)
    for x in rng.uniform(-1.2, 1.2, 5):
        fold = np.array([(x, 1.3), (x + 0.04, 1.3), (1.2 * x + 0.06, 2.6), (1.2 * x, 2.6)])
        paint(fold, looks.clothes * rng.choice([0.8, 1.15]), 0.03, 0.6)
    return _as_bytes(picture)
