"""How a synthetic flow map comes about: a face, its movement and its camera drawn at random, rendered to u and v."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fsmer.data.facs import ACTION_UNIT_ORDER, EMOTION_ORDER
from fsmer.synthetic.facs_fields import EMOTION_ACTION_UNITS, FIELDS, LANDMARKS

if TYPE_CHECKING:
    from fsmer.synthetic.domains import Domain

__all__ = [
    "FaceDraw",
    "Movement",
    "Person",
    "clean_flow",
    "draw_crop",
    "draw_faces",
    "optical_strain",
    "render_flow",
]

Array = NDArray[np.floating[Any]]


# Rows of the face that sit higher or lower and wider or narrower together: brows, eyes, middle face, mouth and chin.
_ROWS = 4
_ROW_HEIGHT = np.array([1.2, 1.0, 1.4, 2.0], dtype=np.float32)


def _row_of(landmark: str) -> int:
    if landmark.startswith("brow"):
        return 0
    if landmark.startswith(("lid", "eye")):
        return 1
    return 3 if landmark.startswith(("mouth", "lip")) else 2


_LANDMARK_ROWS = np.array([_row_of(name) for name in LANDMARKS])


class _Random:
    """float32 numbers in the shapes that drawing needs."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def normal(self, *shape: int) -> Array:
        return self.generator.standard_normal(shape, dtype=np.float32)

    def uniform(self, *shape: int) -> Array:
        return self.generator.random(shape, dtype=np.float32)


def _both_halves(landmark: str, offset: tuple[float, float]) -> list[tuple[int, int, float, tuple[float, float]]]:
    """Half of the face (0 right, 1 left), landmark number, sign of x and centre of what hangs on a landmark."""
    number = list(LANDMARKS).index(landmark)
    x, y = LANDMARKS[landmark][0] + offset[0], LANDMARKS[landmark][1] + offset[1]
    return [(half, number, sign, (sign * x, y)) for half, sign in enumerate((1.0, -1.0))]


@dataclass(frozen=True)
class _BumpTable:
    """All bumps of all action units, both sides, flattened to K rows."""

    unit: NDArray[np.int64]
    side: NDArray[np.int64]
    landmark: NDArray[np.int64]
    centres: Array
    sigmas: Array
    directions: Array


@lru_cache(maxsize=1)
def _bump_table() -> _BumpTable:
    unit, side, landmark, centres, sigmas, directions = [], [], [], [], [], []
    for index, number in enumerate(ACTION_UNIT_ORDER):
        for bump in FIELDS[number]:
            for half, place, sign, centre in _both_halves(bump.landmark, bump.offset):
                unit.append(index)
                side.append(half)
                landmark.append(place)
                centres.append(centre)
                sigmas.append(bump.sigma)
                directions.append((sign * bump.direction[0], bump.direction[1]))
    return _BumpTable(
        np.array(unit),
        np.array(side),
        np.array(landmark),
        np.array(centres, dtype=np.float32),
        np.array(sigmas, dtype=np.float32),
        np.array(directions, dtype=np.float32),
    )


# Where the picture has texture that an estimator can follow: (landmark, offset, sigma, strength).
_TEXTURE: tuple[tuple[str, tuple[float, float], tuple[float, float], float], ...] = (
    ("brow_inner", (0, 0), (0.078, 0.034), 1.0),
    ("brow_outer", (-0.068, 0), (0.104, 0.034), 1.0),
    ("lid_upper", (0, 0.024), (0.091, 0.04), 1.6),
    ("nose_wing", (-0.041, 0), (0.065, 0.034), 1.0),
    ("nose_side", (0, 0), (0.026, 0.092), 0.4),
    ("mouth_corner", (0, 0), (0.052, 0.034), 0.9),
    ("lip_upper", (0, 0.024), (0.104, 0.034), 1.2),
    ("lip_lower", (0, 0), (0.091, 0.034), 0.7),
    ("nasolabial", (0, 0), (0.039, 0.069), 0.3),
    ("jaw", (0.068, 0.06), (0.078, 0.138), 0.5),
)


@dataclass(frozen=True)
class _SpotTable:
    """The texture spots of both sides, flattened to T rows."""

    side: NDArray[np.int64]
    landmark: NDArray[np.int64]
    centres: Array
    sigmas: Array
    strengths: Array


@lru_cache(maxsize=1)
def _spot_table() -> _SpotTable:
    side, landmark, centres, sigmas, strengths = [], [], [], [], []
    for name, offset, sigma, strength in _TEXTURE:
        for half, place, _, centre in _both_halves(name, offset):
            side.append(half)
            landmark.append(place)
            centres.append(centre)
            sigmas.append(sigma)
            strengths.append(strength)
    return _SpotTable(
        np.array(side),
        np.array(landmark),
        np.array(centres, dtype=np.float32),
        np.array(sigmas, dtype=np.float32),
        np.array(strengths, dtype=np.float32),
    )


@dataclass(frozen=True)
class FaceDraw:
    """The random numbers of B clips: K bumps that move, T spots with texture.

    Parameters
    ----------
    emotions : int array of shape (B,)
        Index into `EMOTION_ORDER`.
    units : bool array of shape (B, len(ACTION_UNIT_ORDER))
        Active action units.
    centres, sigmas, directions : arrays of shape (B, K, 2)
        Bumps in crop widths.
    amplitudes : array of shape (B, K)
        Their strengths; 1 is clearly visible.
    spots, spot_sigmas : arrays of shape (B, T, 2)
        Where the picture has texture.
    spot_strengths : array of shape (B, T)
        How much of it.
    face : array of shape (B, 5)
        The head's outline: centre x and y, half width, half height, softness of its edge.
    nose : array of shape (B, 4)
        Tip x and y, sigma x and y.
    motion : array of shape (B, 9)
        Rigid motion: shift x and y, linear map (ux, uy, vx, vy), yaw, pitch, approach to the camera.
    follow : array of shape (B,)
        How much of the head's motion the background takes on.
    flatness : array of shape (B,)
        Exponent of the bumps' profiles.
    veil : array of shape (B, 3)
        Steepness, level and floor of the damping by skin without texture.
    reach, trust : arrays of shape (B,)
        Smoothing of the estimator, its trust in plain skin.
    noise : array of shape (B, 4)
        Amplitudes of coarse, middle, fine and pixel errors.
    steepness, locality : arrays of shape (B,)
        How steep the rims of error patches are, and how much of the errors sits on features.
    rarity : array of shape (B, 3)
        How rare error patches are, by level.
    noise_seed : int
        Seed of the error fields themselves.
    """

    emotions: NDArray[np.int64]
    units: NDArray[np.bool_]
    centres: Array
    sigmas: Array
    directions: Array
    amplitudes: Array
    spots: Array
    spot_sigmas: Array
    spot_strengths: Array
    face: Array
    nose: Array
    motion: Array
    follow: Array
    flatness: Array
    veil: Array
    reach: Array
    trust: Array
    noise: Array
    steepness: Array
    locality: Array
    rarity: Array
    noise_seed: int


class _Anatomy:
    """Individual faces in their crops: where a landmark of the canonical face ends up."""

    def __init__(self, domain: Domain, count: int, random: _Random) -> None:
        landmarks = len(LANDMARKS)
        self.random = random
        self.shift = domain.geometry * random.normal(count, landmarks, 2) * np.array([0.8, 0.7], dtype=np.float32)
        self.shift[:, :, 1] += (domain.geometry * _ROW_HEIGHT * random.normal(count, _ROWS))[:, _LANDMARK_ROWS]
        self.spread = 1 + np.float32(0.06) * random.normal(count, _ROWS)
        self.side_shift = np.float32(0.004) * random.normal(count, landmarks, 2, 2)
        # The crop is one affine map from the face frame to the picture.
        scale = np.exp(np.log(domain.crop_scale[0]) + domain.crop_scale[1] * random.normal(count))
        aspect = np.exp(np.log(domain.crop_aspect[0]) + domain.crop_aspect[1] * random.normal(count))
        angle = domain.crop_angle * random.normal(count)
        self.stretch: Array = np.stack([scale / np.sqrt(aspect), scale * np.sqrt(aspect)], axis=-1)
        rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=-1)
        self.turn: Array = (rotation.reshape(count, 2, 2) * self.stretch[:, None, :]).transpose(0, 2, 1)
        offset = np.array(domain.crop_offset, dtype=np.float32)
        self.offset: Array = offset + np.array(domain.crop_shift, dtype=np.float32) * random.normal(count, 2)

    def to_crop(self, points: Array) -> Array:
        """Points (B, n, 2) or (B, 2) of the face frame in the picture."""
        if points.ndim == 2:
            return self.to_crop(points[:, None])[:, 0]
        moved: Array = points @ self.turn + self.offset[:, None, :]
        return moved

    def place(self, centres: Array, landmark: NDArray[np.int64], side: NDArray[np.int64]) -> Array:
        """Canonical points (n, 2) that hang on landmarks, on every individual face, (B, n, 2), in the face frame."""
        shift = self.shift[:, landmark]
        shift[:, :, 0] *= np.where(side == 0, 1.0, -1.0).astype(np.float32)
        shift += self.side_shift[:, landmark, side]
        x = centres[None, :, 0] * self.spread[:, _LANDMARK_ROWS[landmark]] + shift[:, :, 0]
        return np.stack([x, centres[None, :, 1] + shift[:, :, 1]], axis=-1)


def _draw_bumps(
    domain: Domain, anatomy: _Anatomy, strengths: Array, random: _Random
) -> tuple[Array, Array, Array, Array]:
    """Centres, sigmas and directions (B, K, 2) of all bumps in their crops, and their amplitudes (B, K)."""
    count, bumps = len(anatomy.offset), _bump_table()
    n_bumps = len(bumps.unit)

    # The same action unit moves every face a little differently, both sides mostly alike. Bumps come in pairs, right
    # then left, see `_bump_table`.
    def pairs(*shape: int) -> Array:
        return np.repeat(random.normal(count, n_bumps // 2, *shape), 2, axis=1)

    variety, outward = domain.variety, np.where(bumps.side == 0, 1.0, -1.0)
    turned = np.stack([outward, np.ones(n_bumps)], axis=-1)
    wander = 0.015 * turned * pairs(2) + 0.008 * random.normal(count, n_bumps, 2)
    width = np.exp(variety * (0.25 * pairs() + 0.1 * random.normal(count, 1)))[..., None]
    bend = 0.2 * turned * pairs(2) + 0.12 * random.normal(count, n_bumps, 2)
    strength = np.exp(variety * (0.45 * pairs() + 0.15 * random.normal(count, n_bumps)))
    placed = anatomy.place(bumps.centres, bumps.landmark, bumps.side)
    centres = anatomy.to_crop(placed + variety * wander)
    sigmas = bumps.sigmas * width * anatomy.stretch[:, None, :]
    directions = (bumps.directions + variety * bend) @ anatomy.turn
    return centres, sigmas, directions, strengths[:, bumps.unit, bumps.side] * strength


def draw_crop(domain: Domain, generator: np.random.Generator) -> Array:
    """How one clip of `domain` is cropped: affine map (2, 3) from the face frame to the crop, in crop widths."""
    anatomy = _Anatomy(domain, 1, _Random(generator))
    return np.concatenate([anatomy.turn[0].T, anatomy.offset[0][:, None]], axis=1)


class Person:
    """One individual of `domain`, seen in the face frame: where its landmarks are and how its skin moves.

    Parameters
    ----------
    domain : Domain
        Whose `geometry` the individual varies by.
    generator : numpy.random.Generator
        What the individual is drawn from.
    """

    def __init__(self, domain: Domain, generator: np.random.Generator) -> None:
        # A crop that changes nothing leaves the face frame.
        bare = replace(
            domain,
            crop_scale=(1.0, 0.0),
            crop_aspect=(1.0, 0.0),
            crop_shift=(0.0, 0.0),
            crop_offset=(0.0, 0.0),
            crop_angle=0.0,
        )
        self._anatomy = _Anatomy(bare, 1, _Random(generator))

    @cached_property
    def landmarks(self) -> dict[str, Array]:
        """Every landmark's place on the right and the left half of the picture, each (2, 2), in the face frame."""
        places: dict[str, Array] = {}
        for name in LANDMARKS:
            both = _both_halves(name, (0.0, 0.0))
            sides, numbers, _, centres = (np.array(column) for column in zip(*both, strict=True))
            places[name] = self._anatomy.place(centres.astype(np.float32), numbers, sides)[0]
        return places

    def move(self, domain: Domain, generator: np.random.Generator, units: Sequence[int] | None = None) -> Movement:
        """Draw one expression of this individual.

        Parameters
        ----------
        domain : Domain
            Which emotions there are and how strongly, one-sidedly and variedly they show.
        generator : numpy.random.Generator
        units : sequence of int, optional
            Action units to show, equally strong; default: those of an emotion of the domain.
        """
        if units is None:
            # Lids that merely happen to close are drawn as such, not as skin that moves.
            emotions, active, strengths = _draw_expression(replace(domain, blink=0.0), 1, generator)
            emotion = EMOTION_ORDER[int(emotions[0])]
        else:
            emotion, active = "", np.array([[number in units for number in ACTION_UNIT_ORDER]])
            strengths = np.clip(1 + domain.asymmetry * generator.standard_normal((1, len(ACTION_UNIT_ORDER), 2)), 0, 2)
            strengths *= active[..., None] * generator.uniform(*domain.intensity)
            strengths[:, ACTION_UNIT_ORDER.index(46), 1] = 0.0
        centres, sigmas, directions, amplitudes = _draw_bumps(
            domain, self._anatomy, strengths.astype(np.float32), _Random(generator)
        )
        seen = amplitudes[0] != 0
        return Movement(emotion, active[0], centres[0, seen], sigmas[0, seen], directions[0, seen], amplitudes[0, seen])


@dataclass(frozen=True)
class Movement:
    """One expression of one individual at its apex, as displacement of the skin.

    Parameters
    ----------
    emotion : str
        Name in `EMOTION_ORDER`; empty if the action units were asked for by number.
    units : bool array of shape (len(ACTION_UNIT_ORDER),)
        Active action units.
    centres, sigmas, directions : arrays of shape (K, 2)
        Bumps in the face frame.
    amplitudes : array of shape (K,)
        Their strengths; 1 is clearly visible.
    """

    emotion: str
    units: NDArray[np.bool_]
    centres: Array
    sigmas: Array
    directions: Array
    amplitudes: Array

    def field(self, x: Array, y: Array) -> Array:
        """Displacement (2, len(y), len(x)) at coordinates of the face frame, in units of a clear movement."""
        across = np.exp(-0.5 * ((x - self.centres[:, :1]) / self.sigmas[:, :1]) ** 2)
        down = np.exp(-0.5 * ((y - self.centres[:, 1:]) / self.sigmas[:, 1:]) ** 2)
        weights = self.directions * self.amplitudes[:, None]
        return np.stack([down.T @ (across * weights[:, c : c + 1]) for c in (0, 1)]).astype(np.float32)


def draw_faces(domain: Domain, count: int, generator: np.random.Generator) -> FaceDraw:
    """Draw everything random about `count` clips of `domain`."""
    random = _Random(generator)
    emotions, units, strengths = _draw_expression(domain, count, generator)
    anatomy = _Anatomy(domain, count, random)
    spots = _spot_table()
    n_spots = len(spots.side)
    centres, sigmas, directions, amplitudes = _draw_bumps(domain, anatomy, strengths, random)

    spot_centres = anatomy.to_crop(anatomy.place(spots.centres, spots.landmark, spots.side))
    spot_sigmas = spots.sigmas * anatomy.stretch[:, None, :]
    spot_strengths = spots.strengths * np.exp(0.5 * random.normal(count, n_spots))

    # Features that only seem to move: light on lids, lips and nostrils misleads the estimator, in thin horizontal
    # patches.
    level = domain.noise * np.exp(0.7 * random.normal(count, 1))
    ghost = (
        level
        * np.exp(0.8 * random.normal(count, 1))
        * random.normal(count, n_spots)
        * (random.uniform(count, n_spots) < 0.35)
    )
    thin = np.array([0.7, 0.4], dtype=np.float32)
    centres = np.concatenate([centres, spot_centres + 0.6 * spot_sigmas * random.normal(count, n_spots, 2)], axis=1)
    sigmas = np.concatenate([sigmas, spot_sigmas * thin * np.exp(0.3 * random.normal(count, n_spots, 2))], axis=1)
    flat = np.array([0.5, 1.0], dtype=np.float32)
    directions = np.concatenate([directions, flat * random.normal(count, n_spots, 2)], axis=1)

    # Rigid motion is mostly small and sometimes dominates.
    head = domain.head * random.uniform(count, 1) ** 2
    rigid = [0.6 * random.normal(count, 2), 0.4 * random.normal(count, 4), 1.0 * random.normal(count, 3)]
    low, high = domain.smoothness
    drawn: dict[str, Any] = {
        "centres": centres,
        "sigmas": sigmas,
        "directions": directions,
        "amplitudes": np.concatenate([amplitudes, ghost], axis=1),
        "spots": spot_centres,
        "spot_sigmas": spot_sigmas,
        "spot_strengths": spot_strengths,
        "face": _draw_outline(anatomy, (0.01, -0.02), (0.02, 0.60, 0.05), (0.72, 0.06), soft=True),
        "nose": _draw_outline(anatomy, (0.01, 0.0), (domain.geometry, 0.06, 0.012), (0.13, 0.015), soft=False),
        "motion": head * np.concatenate(rigid, axis=1),
        "follow": np.where(random.uniform(count) < 0.5, 0.0, random.uniform(count)),
        "flatness": 2.0 + 4.0 * random.uniform(count),
        "veil": np.stack(
            [1 + 5 * random.uniform(count), -0.3 + 2 * random.uniform(count), 0.6 * random.uniform(count) ** 2], axis=-1
        ),
        "reach": low + (high - low) * random.uniform(count),
        "trust": 0.05 + 0.5 * random.uniform(count) ** 2,
        "noise": level * np.array([0.7, 1.0, 0.55, 0.02]) * random.uniform(count, 4),
        "steepness": 1.0 + 4.0 * random.uniform(count),
        "locality": np.sqrt(random.uniform(count)),
        "rarity": 1.6 * random.uniform(count, 3),
    }
    return FaceDraw(
        emotions=emotions,
        units=units,
        noise_seed=int(generator.integers(1 << 62)),
        **{name: values.astype(np.float32) for name, values in drawn.items()},
    )


def _draw_outline(
    anatomy: _Anatomy,
    centre: tuple[float, float],
    across: tuple[float, float, float],
    along: tuple[float, float],
    *,
    soft: bool,
) -> Array:
    """An ellipse on the face.

    `centre` is the sd of x and the mean of y; `across` the sd of y, then mean and sd of the half width; `along` mean
    and sd of the half height.
    """
    random, count = anatomy.random, len(anatomy.offset)
    x, y = centre[0] * random.normal(count), centre[1] + across[0] * random.normal(count)
    half_width = (across[1] + across[2] * random.normal(count)) * anatomy.stretch[:, 0]
    half_height = (along[0] + along[1] * random.normal(count)) * anatomy.stretch[:, 1]
    rows = [*anatomy.to_crop(np.stack([x, y], axis=-1)).T, half_width, half_height]
    return np.stack([*rows, 0.02 + 0.06 * random.uniform(count)] if soft else rows, axis=-1)


@dataclass(frozen=True)
class _PatternTable:
    """The emotion patterns of a domain as cumulative probabilities."""

    cumulative: NDArray[np.float64]
    emotion: NDArray[np.int64]
    units: NDArray[np.bool_]
    one_sided: NDArray[np.float64]


def _pattern_table(domain: Domain) -> _PatternTable:
    classes = sorted(set(domain.labels.values()))
    probability, emotion, units, one_sided = [], [], [], []
    for label in classes:
        members = [name for name, of in domain.labels.items() if of == label]
        shares = np.array([domain.emotion_weights.get(name, 1.0) for name in members])
        for name, share in zip(members, shares / shares.sum(), strict=True):
            patterns = EMOTION_ACTION_UNITS[name]
            total = sum(pattern.weight for pattern in patterns)
            for pattern in patterns:
                probability.append(share * pattern.weight / total / len(classes))
                emotion.append(EMOTION_ORDER.index(name))
                units.append([number in pattern.units for number in ACTION_UNIT_ORDER])
                one_sided.append(pattern.one_sided)
    return _PatternTable(np.cumsum(probability), np.array(emotion), np.array(units), np.array(one_sided))


def _draw_expression(
    domain: Domain, count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_], Array]:
    """Emotion, active units and the strength of every unit on every side, (B, units, 2)."""
    table = _pattern_table(domain)
    choice = np.minimum(np.searchsorted(table.cumulative, rng.random(count)), len(table.emotion) - 1)
    units = table.units[choice].copy()
    low, high = domain.intensity
    overall = low + (high - low) * rng.random((count, 1))
    strengths = units * overall * np.exp(0.3 * rng.standard_normal(units.shape))
    # A further unit, weak: faces rarely move in textbook combinations alone.
    extra = rng.integers(len(ACTION_UNIT_ORDER), size=count)
    add = rng.random(count) < domain.extra_units
    strengths[np.arange(count)[add], extra[add]] += 0.35 * overall[add, 0]
    units[np.arange(count)[add], extra[add]] = True

    sides = np.clip(1 + domain.asymmetry * rng.standard_normal((count, len(ACTION_UNIT_ORDER), 2)), 0.05, 2.0)
    alone = rng.random(count) < table.one_sided[choice]
    weak_side = rng.integers(2, size=count)
    rows = np.arange(count)[alone]
    sides[rows, :, weak_side[alone]] *= 0.25 * rng.random((len(rows), 1))
    both = strengths[:, :, None] * sides

    # Blinks are no expression: either direction, both eyes alike, not among the labels.
    blink = ACTION_UNIT_ORDER.index(45)
    caught = rng.random(count) < domain.blink
    both[:, blink] += (caught * rng.choice([-1.0, 1.0], size=count) * (0.2 + 1.2 * rng.random(count) ** 2))[:, None] * (
        1 + 0.15 * rng.standard_normal((count, 2))
    )
    return table.emotion[choice], units, both.astype(np.float32)


def _axis(size: int) -> Array:
    """Pixel centres of one axis in crop widths."""
    return ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5).astype(np.float32)


def _profiles(centres: Array, sigmas: Array, axis: Array, flatness: Array | float = 2.0) -> tuple[Array, Array]:
    """Profiles exp(-|t|^flatness / 2) along x and y, (B, K, size) each; a bump is their outer product.

    A flatness of 2 is the Gaussian; above it the bump gets a plateau and steep sides.
    """
    x = np.exp(-0.5 * np.abs((axis - centres[..., 0:1]) / sigmas[..., 0:1]) ** flatness)
    y = np.exp(-0.5 * np.abs((axis - centres[..., 1:2]) / sigmas[..., 1:2]) ** flatness)
    return x, y


def _bump_flow(
    centres: Array, sigmas: Array, directions: Array, amplitudes: Array, axis: Array, flatness: Array | float = 2.0
) -> Array:
    """Sum of displacement bumps, (B, 2, size, size)."""
    x, y = _profiles(centres, sigmas, axis, flatness)
    columns = y.transpose(0, 2, 1)
    weights = directions * amplitudes[..., None]
    return np.stack([columns @ (x * weights[..., component : component + 1]) for component in (0, 1)], axis=1)


def optical_strain(flow: Array) -> Array:
    """Optical strain magnitude sqrt(ux^2 + vy^2 + (uy + vx)^2 / 2), (B, size, size), per crop width.

    One-sided differences: the strain of a sharp edge stays one pixel wide, as in maps whose strain was taken at full
    resolution.
    """
    size = flow.shape[-1]
    ux, vx = (size * np.diff(flow[:, c], axis=2, append=flow[:, c, :, -1:]) for c in (0, 1))
    uy, vy = (size * np.diff(flow[:, c], axis=1, append=flow[:, c, -1:, :]) for c in (0, 1))
    return np.sqrt(ux**2 + vy**2 + 0.5 * (uy + vx) ** 2).astype(np.float32)


@lru_cache(maxsize=64)
def _upsampling(coarse: int, size: int) -> Array:
    """Smooth interpolation matrix (size, coarse) with unit variance for white coarse noise."""
    axis = _axis(size)[:, None]
    nodes = _axis(coarse)[None, :]
    matrix = np.exp(-0.5 * ((axis - nodes) * coarse / 0.6) ** 2)
    return (matrix / np.sqrt((matrix**2).sum(axis=1, keepdims=True))).astype(np.float32)


def _smooth_noise(rng: np.random.Generator, count: int, channels: int, coarse: int, size: int) -> Array:
    matrix = _upsampling(coarse, size)
    return matrix @ rng.standard_normal((count, channels, coarse, coarse), dtype=np.float32) @ matrix.T


def clean_flow(unit: int, size: int) -> Array:
    """Signed u, v and strain of one action unit on the canonical face, (3, size, size); AU46 closes one eye."""
    bumps = _bump_table()
    sides = np.array([1.0, 0.0 if unit == 46 else 1.0], dtype=np.float32)
    amplitudes = np.where(bumps.unit == ACTION_UNIT_ORDER.index(unit), sides[bumps.side], np.float32(0))
    flow = _bump_flow(bumps.centres[None], bumps.sigmas[None], bumps.directions[None], amplitudes[None], _axis(size))
    return np.concatenate([flow, optical_strain(flow)[:, None]], axis=1)[0]


def render_flow(drawn: FaceDraw, size: int) -> Array:
    """Signed u and v of the clips in `drawn`, (B, 2, size, size), in units of a clearly visible movement."""
    axis = _axis(size)
    rng = np.random.Generator(np.random.PCG64(drawn.noise_seed))
    flow = _bump_flow(drawn.centres, drawn.sigmas, drawn.directions, drawn.amplitudes, axis, _wide(drawn.flatness, 3))
    flow *= _seen_skin(drawn, size, rng)
    radius = _add_head_motion(flow, drawn, axis)

    # Beyond the face the picture stands still, or is dragged along by an estimator that sees nothing there.
    inside = _logistic((1.0 - np.sqrt(radius)) / _wide(drawn.face[:, 4], 3))
    flow *= (inside + (1 - inside) * _wide(drawn.follow, 3))[:, None]

    x, y = _profiles(drawn.spots, drawn.spot_sigmas, axis)
    texture = y.transpose(0, 2, 1) @ (x * drawn.spot_strengths[..., None])
    texture += _wide(drawn.trust, 3) * np.exp(0.8 * _smooth_noise(rng, len(flow), 1, 7, size)[:, 0])
    flow = _normalised_convolution(flow, texture, drawn.reach, size)
    _add_errors(flow, drawn, texture, rng)
    return flow


def _wide(values: Array, dimensions: int) -> Array:
    """Per-clip values of shape (B,) ready to meet arrays of that many dimensions."""
    return values.reshape(-1, *(1,) * (dimensions - 1))


def _logistic(values: Array) -> Array:
    return 1.0 / (1.0 + np.exp(np.clip(-values, -30, 30)))


def _seen_skin(drawn: FaceDraw, size: int, rng: np.random.Generator) -> Array:
    """Skin without texture hides movement: a factor from the clip's floor to 1, (B, 1, size, size)."""
    count = len(drawn.veil)
    cloud = _smooth_noise(rng, count, 1, 6, size) + np.float32(0.7) * _smooth_noise(rng, count, 1, 12, size)
    steepness, level, floor = (_wide(drawn.veil[:, column], 4) for column in range(3))
    return floor + (1 - floor) * _logistic(steepness * (cloud + level))


_JAW_BELOW_NOSE = np.array([0.0, 0.27], dtype=np.float32)


def _add_head_motion(flow: Array, drawn: FaceDraw, axis: Array) -> Array:
    """Move the head as a rigid body with depth; return the squared radius, 1 on its outline.

    The depth is an ellipsoid with a nose and the rounding of jaw and lips on it, so that turning moves the middle of
    the face against the cheeks, with an edge along the nose.
    """
    x = (axis[None, :] - drawn.face[:, 0:1]) / drawn.face[:, 2:3]
    y = (axis[None, :] - drawn.face[:, 1:2]) / drawn.face[:, 3:4]
    radius: Array = x[:, None, :] ** 2 + y[:, :, None] ** 2
    nose_x, nose_y = _profiles(drawn.nose[:, None, :2], drawn.nose[:, None, 2:], axis, _wide(drawn.flatness, 3))
    jaw_x, jaw_y = _profiles(drawn.nose[:, None, :2] + _JAW_BELOW_NOSE, 2.2 * drawn.nose[:, None, 2:], axis)
    depth = 1.2 * np.sqrt(np.clip(1.0 - 0.8 * radius, 0.0, None)) - 0.8
    depth += 0.6 * nose_y.transpose(0, 2, 1) @ nose_x + 0.45 * jaw_y.transpose(0, 2, 1) @ jaw_x
    shift_x, shift_y, ux, uy, vx, vy, yaw, pitch, approach = (_wide(column, 3) for column in drawn.motion.T)
    across, down = axis[None, None, :], axis[None, :, None]
    flow[:, 0] += shift_x + ux * across + uy * down + (yaw + approach * across) * depth
    flow[:, 1] += shift_y + vx * across + vy * down + (pitch + approach * down) * depth
    return radius


def _add_errors(flow: Array, drawn: FaceDraw, texture: Array, rng: np.random.Generator) -> None:
    """Errors of the estimator: patches with steep rims, most of them on features, fewer on plain skin."""
    count, _, size, _ = flow.shape
    steepness, locality = _wide(drawn.steepness, 4), _wide(drawn.locality, 4)
    where = locality * np.minimum(texture, 2.0)[:, None] + (1 - locality)
    for level, coarse in enumerate((4, 8, 14)):
        nodes = min(coarse, size)
        errors = np.tanh(steepness * _smooth_noise(rng, count, 2, nodes, size))
        patches = _logistic(
            4 * steepness * (_smooth_noise(rng, count, 1, nodes, size) - _wide(drawn.rarity[:, level], 4))
        )
        # The coarsest errors come from light on the whole face and keep to no feature.
        flow += _wide(drawn.noise[:, level], 4) * errors * patches * (where if level else 1.0)
    flow += _wide(drawn.noise[:, 3], 4) * rng.standard_normal(flow.shape, dtype=np.float32)


def _normalised_convolution(flow: Array, trust: Array, reach: Array, size: int) -> Array:
    """Gaussian smoothing in which every pixel weighs as much as it is trusted (Knutsson & Westin 1993)."""
    axis = _axis(size)
    kernel = np.exp(-0.5 * ((axis[:, None] - axis[None, :]) / reach[:, None, None]) ** 2)
    weight = trust + 1e-3
    total = kernel @ weight @ kernel
    return (kernel[:, None] @ (flow * weight[:, None]) @ kernel[:, None]) / total[:, None]
