"""The shape of a drawn face: outline, eyes, mouth and relief, placed by an individual's landmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fsmer.synthetic.canvas import Array, Canvas, curve, offset
from fsmer.synthetic.individuals import Appearance

# Half widths of the head from the crown to the chin, (y, x), on the canonical face.
_OUTLINE = (
    (-1.30, 0.0), (-1.27, 0.22), (-1.15, 0.42), (-0.95, 0.555), (-0.70, 0.615), (-0.40, 0.625), (-0.12, 0.615),
    (0.12, 0.59), (0.34, 0.54), (0.51, 0.45), (0.64, 0.34), (0.725, 0.215), (0.763, 0.10), (0.77, 0.0),
)  # fmt: skip


def head_outline(traits: Appearance, grow: float = 0.0, flat: float = 0.0) -> Array:
    """The head's outline, clockwise from the crown; `grow` adds hair, `flat` takes some of it off the crown."""
    forehead, cheek, jaw, chin, length = traits.outline
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
    return curve(np.concatenate([points, left]), 10, closed=True)


def mirrored(places: Mapping[str, Array], name: str, side: int) -> tuple[float, float, float]:
    """x, y and the sign of x of a landmark."""
    x, y = places[name][side]
    return float(x), float(y), 1.0 if side == 0 else -1.0


@dataclass(frozen=True)
class Eye:
    """Corners and margins of one eye; `sign` is that of x."""

    inner: tuple[float, float]
    outer: tuple[float, float]
    upper: float
    lower: float
    centre: float
    sign: float

    @classmethod
    def of(cls, places: Mapping[str, Array], side: int) -> Eye:
        (inner_x, inner_y, sign), (outer_x, outer_y, _) = (
            mirrored(places, name, side) for name in ("eye_inner", "eye_outer")
        )
        (centre, upper, _), (_, lower, _) = (mirrored(places, name, side) for name in ("lid_upper", "lid_lower"))
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
        first, last = (self.inner[0] + share * (self.outer[0] - self.inner[0]) for share in (start, stop))
        x = np.linspace(first, last, 32)
        return np.stack([x, self.margins(x)[1 if upper else 2]], axis=1)


def shape_head(canvas: Canvas, places: Mapping[str, Array], eyes: list[Eye], traits: Appearance) -> None:
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
    rise = traits.nose * (0.025 + 0.12 * along**1.4) * tip * np.clip((y - root + 0.16) / 0.12, 0, 1)
    canvas.relief += rise * np.exp(-0.5 * (x / (0.042 + 0.03 * along)) ** 2)
    canvas.lift(canvas.bump((0, base - 0.045), 0.05, 0.045), 0.045 * traits.nose)
    for side in (0, 1):
        wing_x, wing_y, sign = mirrored(places, "nose_wing", side)
        canvas.lift(canvas.bump((wing_x - 0.02 * sign, wing_y - 0.01), 0.03, 0.034), 0.06)
        inner, outer = places["brow_inner"][side], places["brow_outer"][side]
        canvas.lift(canvas.bump(0.55 * inner + 0.45 * outer + offset(0, 0.01), 0.13, 0.05, 0.1 * sign), 0.04)
        eye = eyes[side]
        canvas.lift(canvas.bump((eye.centre - 0.03 * sign, eye.upper - 0.015), 0.12, 0.07), -0.065)
        canvas.lift(canvas.bump((eye.centre, (eye.upper + eye.lower) / 2), 0.085, 0.05), 0.055)
        canvas.lift(canvas.bump(eye.inner, 0.035, 0.05), -0.04)
        cheek_x, cheek_y, _ = mirrored(places, "cheek", side)
        canvas.lift(canvas.bump((cheek_x + 0.04 * sign, cheek_y - 0.02), 0.12, 0.09), 0.05)
        canvas.lift(canvas.bump((cheek_x, cheek_y + 0.2), 0.09, 0.12), -0.02)
        # The fold from the nose to the mouth's corner, with the cheek lying over it.
        corner = places["mouth_corner"][side]
        fold_x, fold_y, _ = mirrored(places, "nasolabial", side)
        fold = curve([(wing_x + 0.03 * sign, wing_y - 0.01), (fold_x, fold_y), corner + offset(0.06 * sign, 0)])
        canvas.lift(canvas.line(fold, 0.02, 0.02), -0.009 - 0.012 * traits.age)
        canvas.lift(canvas.line(fold + offset(0.05 * sign, -0.02), 0.03, 0.035), 0.012)
        canvas.lift(canvas.bump(corner + offset(0.012 * sign, 0.005), 0.022, 0.025), -0.03)

    line = mouth_line(places)
    middle = line[len(line) // 2]
    chin = places["chin"][:, 1].mean()
    # Teeth and jaw push the mouth forward as a whole.
    canvas.lift(canvas.bump((0, middle[1]), 0.2, 0.15), 0.05)
    canvas.lift(canvas.bump((0, (base + middle[1]) / 2), 0.014, 0.035), -0.018)
    top, bottom = lip_edges(places, traits)
    canvas.lift(canvas.area(np.concatenate([top, line[::-1]]), 0.012), 0.035)
    canvas.lift(canvas.area(np.concatenate([line, bottom[::-1]]), 0.016), 0.05 * traits.lips)
    canvas.lift(canvas.line(line, 0.008, 0.008), -0.03)
    canvas.lift(canvas.bump((0, bottom[:, 1].max() + 0.045), 0.11, 0.028), -0.03)
    canvas.lift(canvas.bump((0, chin + 0.02), 0.1, 0.075), 0.06)
    canvas.lift(canvas.bump((0, chin + 0.02), 0.02, 0.05), -0.006)


def mouth_line(places: Mapping[str, Array]) -> Array:
    """Where the lips meet, from the left corner of the picture to the right."""
    right, left = places["mouth_corner"]
    height = _mouth_height(places)
    return curve([left, (0.5 * left[0], height - 0.003), (0, height + 0.003), (0.5 * right[0], height - 0.003), right])


def _mouth_height(places: Mapping[str, Array]) -> float:
    """Height of the line between the lips: level with the corners as far as the lips allow."""
    upper, lower = places["lip_upper"][:, 1].mean(), places["lip_lower"][:, 1].mean()
    corners = places["mouth_corner"][:, 1].mean()
    return float(np.clip(corners, 0.72 * upper + 0.28 * lower, 0.55 * upper + 0.45 * lower))


def lip_edges(places: Mapping[str, Array], traits: Appearance) -> tuple[Array, Array]:
    """Upper edge of the upper and lower edge of the lower lip, from left to right."""
    right, left = places["mouth_corner"]
    upper, lower = places["lip_upper"][:, 1].mean(), places["lip_lower"][:, 1].mean()
    line = _mouth_height(places)
    peak = line - np.clip(traits.lips * 1.3 * (line - upper), 0.035, 0.08)
    deep = line + np.clip(traits.lips * 1.12 * (lower - line), 0.06, 0.125)
    shoulder, belly = 0.5 * (peak + line) - 0.012, line + 0.62 * (deep - line)
    bow = [(-0.05, peak), (0, peak + 0.013), (0.05, peak)]
    top = curve([left, (0.55 * left[0], shoulder), *bow, (0.55 * right[0], shoulder), right])
    bottom = curve([left, (0.6 * left[0], belly), (0, deep), (0.6 * right[0], belly), right])
    return top, bottom
