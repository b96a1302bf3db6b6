"""What is painted on a drawn face: creases, brows, beard, eyes, ears and hair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from fsmer.data.spec import CROP_ASPECT
from fsmer.synthetic.canvas import Array, Canvas, Image, add_cover, as_bytes, curve, lattice_noise, offset
from fsmer.synthetic.face_shape import Eye, head_outline, lip_edges, mirrored, mouth_line
from fsmer.synthetic.individuals import Appearance

__all__ = ["EyePatch"]

_IRIS_RADIUS = 0.053


@dataclass(frozen=True)
class EyePatch:
    """One eye of a drawn face, ready to be closed."""

    where: tuple[slice, slice]  # rows and columns of the face's picture
    lid: Image  # (h, w, 3), the same place with the eye closed
    # (h, w), 0 on the margin of the upper lid, 1 on that of the lower; beyond the corners of the eye above 2
    height: Array


def draw_creases(canvas: Canvas, places: Mapping[str, Array], eyes: list[Eye], traits: Appearance) -> None:
    """Dark lines: lids, sides and openings of the nose, mouth, folds, forehead."""
    dark = (0.55, 0.45, 0.42)
    base = places["nose_wing"][:, 1].mean()
    for side in (0, 1):
        eye = eyes[side]
        wing_x, wing_y, sign = mirrored(places, "nose_wing", side)
        fold = eye.edge(True, 0.06, 1.04) - offset(0, 0.026)
        canvas.tint(canvas.line(fold, 0.007, 0.006), dark, 0.75)
        pouch = eye.edge(False, 0.1, 1.0) + offset(0, 0.03)
        canvas.tint(canvas.line(pouch, 0.008, 0.01), dark, 0.25 + 0.35 * traits.age)
        beside = ((-0.018, -0.055), (0.008, -0.02), (0.004, 0.022), (-0.03, 0.034))
        alar = curve([(wing_x + across * sign, wing_y + down) for across, down in beside])
        canvas.tint(canvas.line(alar, 0.007, 0.007), dark, 0.75)
        nostril = canvas.bump((wing_x - 0.052 * sign, base + 0.024), 0.022, 0.0095, -0.35 * sign)
        canvas.tint(nostril, (0.22, 0.15, 0.13), 0.95)
        corner = places["mouth_corner"][side]
        canvas.tint(canvas.bump(corner, 0.013, 0.008), (0.45, 0.34, 0.33), 0.8)
        fold_x, fold_y, _ = mirrored(places, "nasolabial", side)
        fold = curve([(wing_x + 0.03 * sign, wing_y - 0.01), (fold_x, fold_y), corner + offset(0.055 * sign, 0)])
        canvas.tint(canvas.line(fold, 0.006, 0.009), dark, 0.1 + 0.3 * traits.age)
        if traits.age > 0.5:
            for height in (-0.015, 0.0, 0.016):
                x, y = eye.outer[0] + 0.03 * sign, eye.outer[1] + height
                wrinkle = [(x, y), (x + 0.07 * sign, y + 2.2 * height)]
                canvas.tint(canvas.line(wrinkle, 0.004, 0.004), dark, 0.6 * (traits.age - 0.5))
    canvas.tint(canvas.bump((0, base + 0.03), 0.06, 0.012), dark, 0.3)
    canvas.tint(canvas.line(mouth_line(places), 0.011, 0.0035), (0.34, 0.22, 0.22), 0.95)
    bottom = lip_edges(places, traits)[1]
    canvas.tint(canvas.line(bottom[10:-10] + offset(0, 0.014), 0.012, 0.012), dark, 0.45)
    if traits.age > 0.35:
        brow = places["brow_inner"][:, 1].mean()
        for height in (0.13, 0.2, 0.27):
            across = curve([(-0.3, brow - height + 0.015), (0, brow - height), (0.3, brow - height + 0.012)])
            canvas.tint(canvas.line(across, 0.005, 0.006), dark, 0.5 * (traits.age - 0.35))


def draw_brows(canvas: Canvas, places: Mapping[str, Array], traits: Appearance, rng: np.random.Generator) -> None:
    colour = 0.75 * traits.hair + 0.12 * traits.skin
    thick = float(np.clip(0.034 * traits.brows, 0.02, 0.055))
    for side in (0, 1):
        inner, outer = places["brow_inner"][side], places["brow_outer"][side]
        sign = 1.0 if side == 0 else -1.0
        start = inner + offset(-0.035 * sign, 0.008)
        stop = outer + offset(0.055 * sign, 0.03)
        arch = 0.35 * inner + 0.65 * outer + offset(0, -0.022)
        spine = curve([start, 0.55 * inner + 0.45 * outer + offset(0, -0.012), arch + offset(0.03 * sign, 0), stop], 16)
        t = np.linspace(0, 1, len(spine))
        half = thick * (0.62 + 0.5 * np.sin(np.pi * np.clip(t * 1.15, 0, 1))) * np.clip((1.02 - t) / 0.45, 0.12, 1) / 2
        shape = np.concatenate([spine - half[:, None] * (0, 1), (spine + half[:, None] * (0, 1))[::-1]])
        canvas.paint(canvas.area(shape, 0.008), colour, 0.55)
        # Hairs stand up near the nose and lie along the brow further out.
        for shade in (0.6, 0.8, 1.0, 1.15):
            count = int(42 * (0.5 + traits.brows / 2))
            place = rng.random(count)
            roots = np.stack([np.interp(place, t, spine[:, axis]) for axis in (0, 1)], axis=-1)
            roots[:, 1] += rng.uniform(-0.95, 0.95, count) * np.interp(place, t, half)
            lean = np.interp(place, (0, 0.25, 0.6, 1), (-1.25, -0.75, -0.25, 0.35)) + 0.18 * rng.standard_normal(count)
            reach = 0.026 * rng.uniform(0.7, 1.3, count)
            tips = roots + reach[:, None] * np.stack([sign * np.cos(lean), np.sin(lean)], axis=-1)
            canvas.paint(canvas.line(np.stack([roots, tips], axis=1), 0.0032), shade * colour, 0.6)


def draw_beard(canvas: Canvas, places: Mapping[str, Array], traits: Appearance, rng: np.random.Generator) -> None:
    if traits.beard < 0.05:
        return
    top, bottom = lip_edges(places, traits)
    base = places["nose_wing"][:, 1].mean()
    jaw = head_outline(traits)
    lower = jaw[(jaw[:, 1] > 0.05)]
    lower = lower[np.argsort(-lower[:, 0])] * (0.99, 0.995)
    (right_x, right_y), (left_x, left_y) = places["mouth_corner"]
    moustache = [(-0.14, base + 0.07), (0.0, base + 0.055), (0.14, base + 0.07)]
    left = [(-0.58, -0.02), (-0.44, 0.23), (left_x - 0.06, left_y)]
    right = [(right_x + 0.06, right_y), (0.44, 0.23), (0.58, -0.02)]
    cheek = curve([*left, *moustache, *right])
    patch = canvas.area(np.concatenate([cheek, lower]), 0.03)
    lips = canvas.area(np.concatenate([top, bottom[::-1]]), 0.008)
    if patch is None:
        return
    where, mask = patch
    if lips is not None:
        bare = np.zeros(canvas.shape, np.float32)
        bare[lips[0]] = lips[1]
        mask = mask * (1 - bare[where])
    fine, coarse = (lattice_noise(canvas, size, rng)[where] for size in (0.008, 0.02))
    grain = np.clip(0.75 + 0.45 * fine + 0.25 * coarse, 0, 1.4)
    canvas.paint((where, np.clip(mask * grain, 0, 1)), 0.7 * traits.hair + 0.12 * traits.skin, 0.8 * traits.beard)


def closed_lid(canvas: Canvas, eye: Eye) -> EyePatch | None:
    """The place of an eye before it is painted: what shows when it is closed."""
    corners = np.array([(eye.inner[0], eye.upper - 0.03), (eye.outer[0], eye.lower + 0.03)])
    where = canvas.box(canvas.pixels(corners), 0.03 * canvas.density)
    if where is None:
        return None
    along, upper, lower = eye.margins(canvas.x[where[1]].astype(np.float64))
    height = (canvas.y[where[0]][:, None] - upper) / np.maximum(lower - upper, 0.012)
    beyond = np.maximum(np.maximum(-along, along - 1) - 0.06, 0) / 0.06
    return EyePatch(where, as_bytes(canvas.colour[where]), (height + 3 * beyond).astype(np.float32))


def draw_eye(canvas: Canvas, eye: Eye, traits: Appearance, rng: np.random.Generator) -> None:
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
    angle = np.arctan2(dy, dx)
    spokes = np.zeros_like(angle)
    for count in (7, 13, 23, 37):
        spokes += np.cos(count * angle + 6.3 * rng.random()) * 0.4
    ring = np.interp(radius, (0.35, 0.55, 0.8, 0.95, 1.02), (0.75, 1.25, 1.05, 0.55, 0.4))
    iris = traits.iris.astype(np.float32) * (ring * (1 + 0.25 * spokes))[..., None]
    iris = iris * (0.55 + 0.45 * np.clip(height * 2, 0, 1))[..., None] + 0.03
    soft = np.float32(1.3 / (_IRIS_RADIUS * canvas.density))
    inside = np.clip((1.0 - radius) / soft + 0.5, 0, 1)[..., None]
    ball += inside * (iris - ball)
    pupil = np.clip((0.40 - radius) / soft + 0.5, 0, 1)[..., None]
    ball += pupil * (np.float32(0.03) - ball)
    spark = np.exp(-0.5 * (((dx - 0.016 * np.sign(traits.lamp[0])) / 0.007) ** 2 + ((dy + 0.016) / 0.008) ** 2))
    ball += 0.9 * spark[..., None] * (1 - ball)
    canvas.paint((where, mask), ball)

    lash = 0.35 * traits.hair
    canvas.paint(canvas.line(eye.edge(True, 0.03, 1.0) - offset(0, 0.002), 0.010, 0.003), lash, 0.85)
    canvas.tint(canvas.line(eye.edge(False, 0.15, 1.0) + offset(0, 0.003), 0.005, 0.004), (0.6, 0.45, 0.42), 0.6)
    canvas.paint(canvas.line(eye.edge(True, 0.55, 1.04) - offset(0, 0.004), 0.012, 0.004), lash, 0.6)


def draw_ears(canvas: Canvas, cover: Array, traits: Appearance) -> None:
    half = 0.61 * traits.outline[1]
    for sign in (-1.0, 1.0):
        around = ((-0.05, -0.26), (0.06, -0.33), (0.10, -0.2), (0.055, -0.02), (-0.01, 0.06), (-0.06, 0.0))
        shape = curve([(sign * (half + out), y) for out, y in around], closed=True)
        patch = canvas.area(shape, 0.004)
        if patch is None:
            continue
        where, mask = patch
        behind = mask * (1 - cover[where])
        canvas.paint((where, behind), traits.skin * (0.86, 0.74, 0.72))
        add_cover(cover, (where, mask))
        inside = ((0.0, -0.2), (0.055, -0.24), (0.06, -0.15), (0.02, -0.04))
        rim = curve([(sign * (half + out), y) for out, y in inside])
        canvas.tint(canvas.line(rim, 0.015, 0.01), (0.6, 0.5, 0.48), 0.8)


def draw_hair(canvas: Canvas, cover: Array, traits: Appearance, rng: np.random.Generator) -> None:
    """Hair on the head, from the hairline up and out."""
    if traits.bald:
        return
    top = -CROP_ASPECT * 0.32 - traits.hairline
    temple = 0.50 * traits.outline[0]
    side = 0.58 * traits.outline[1]
    low = 0.28 if traits.long_hair else -0.12
    lower = [(side + 0.03, low), (side - 0.005, -0.2), (temple + 0.045, -0.45)]
    right = np.array([*lower, (temple - 0.02, top + 0.22), (0.36, top + 0.09), (0.2, top + 0.02)])
    line = np.concatenate([right, [(0.0, top)], right[::-1] * (-1, 1)])
    line[3:-3, 1] += 0.015 * rng.standard_normal(len(line) - 6)
    line = curve(line)
    shell = head_outline(traits, traits.volume + (0.05 if traits.long_hair else 0.015), 0.25)
    # The shell from above one end of the hairline over the crown to the other, closed along the hairline.
    upper = shell[shell[:, 1] < low]
    upper = upper[np.argsort(np.arctan2(upper[:, 0], -(upper[:, 1] + 0.2)))]
    patch = canvas.area(np.concatenate([upper, line]), 0.007)
    if patch is None:
        return
    where, mask = patch
    # Strands fall from the crown.
    x, y = canvas.x[where[1]][None, :], canvas.y[where[0]][:, None] + np.float32(1.12 + 0.5 * traits.volume)
    angle, reach = np.arctan2(x, y + 0.25 * np.abs(x)), np.sqrt(x**2 + y**2)
    # Noise that is drawn out along the hair, unit variance.
    strands = np.zeros(np.broadcast_shapes(angle.shape, reach.shape), np.float32)
    for count, length, amount in ((60, 3, 0.5), (200, 4, 0.8), (420, 6, 0.8)):
        nodes = rng.standard_normal((length + 3, count), dtype=np.float32)
        column = ((angle / (2 * np.pi) + 0.5) * (count - 1)).astype(np.float32)
        row = (np.clip(reach, 0, 2) * length / 2 + 1).astype(np.float32)
        strands += amount * cv2.remap(nodes, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    gloss = np.exp(-0.5 * ((reach - 0.42) / 0.13) ** 2)
    tone = (0.72 + 0.35 * gloss + 0.16 * strands) * np.clip(0.7 + 0.5 * reach, 0.6, 1)
    shaded = traits.hair.astype(np.float32) * np.clip(tone, 0.25, 2.0)[..., None]
    colour = np.clip(shaded + 0.02 * gloss[..., None], 0, 1)
    # Single hairs cross the hairline; beyond the head there is nothing but hair.
    mask = np.clip(mask + 0.8 * mask * (1 - mask) * strands, 0, 1)
    canvas.paint((where, np.maximum(mask, cover[where] < 0.5)), colour)
    add_cover(cover, (where, mask))
