"""Individual faces and their expressions, drawn at random: what they look like, where landmarks are, how skin moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fsmer.data.facs import ACTION_UNIT_ORDER, EMOTION_ORDER
from fsmer.synthetic.domains import Domain
from fsmer.synthetic.facs_fields import EMOTION_ACTION_UNITS, FIELDS, LANDMARKS, Pair

__all__ = ["Appearance", "Movement", "Person", "draw_appearance", "draw_crop"]

Array = NDArray[np.floating[Any]]
# Rows of the face that sit higher or lower and wider or narrower together: brows, eyes, middle face, mouth and chin.
_ROWS = 4
_ROW_HEIGHT = np.array([1.2, 1.0, 1.4, 2.0], dtype=np.float32)
_ROW = {"brow": 0, "lid": 1, "eye": 1, "mouth": 3, "lip": 3}
_LANDMARK_ROWS = np.array([_ROW.get(name.split("_")[0], 2) for name in LANDMARKS])


class Random:
    """float32 numbers in the shapes that drawing needs."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def normal(self, *shape: int) -> Array:
        return self.generator.standard_normal(shape, dtype=np.float32)

    def uniform(self, *shape: int) -> Array:
        return self.generator.random(shape, dtype=np.float32)


class OnLandmarks(NamedTuple):
    """What is placed by landmarks, each on the right and then on the left half of the face: K rows."""

    side: NDArray[np.int64]  # 0 right, 1 left
    landmark: NDArray[np.int64]  # number in LANDMARKS
    centres: Array  # (K, 2) on the canonical face
    sigmas: Array  # (K, 2)


def on_landmarks(items: Sequence[tuple[str, Pair, Pair]]) -> OnLandmarks:
    """Both halves of items that are given by landmark, offset from it and sigmas on the right half."""
    names, offsets, sigmas = zip(*items, strict=True)
    return OnLandmarks(
        np.tile([0, 1], len(items)),
        np.repeat([list(LANDMARKS).index(name) for name in names], 2),
        mirrored_pairs([np.add(LANDMARKS[name], offset) for name, offset in zip(names, offsets, strict=True)]),
        np.repeat(np.array(sigmas, np.float32), 2, axis=0),
    )


def mirrored_pairs(right: Sequence[Any]) -> Array:
    """Vectors (n, 2) of the right half, each with its mirror image behind it, float32 (2n, 2)."""
    both = np.repeat(np.array(right, np.float64), 2, axis=0)
    both[1::2, 0] *= -1
    return both.astype(np.float32)


class _Bumps(NamedTuple):
    """All bumps of all action units."""

    unit: NDArray[np.int64]
    place: OnLandmarks
    directions: Array


@lru_cache(maxsize=1)
def bump_table() -> _Bumps:
    """The bumps of `FIELDS` in the order of `ACTION_UNIT_ORDER`, right then left."""
    units, bumps = zip(*((i, bump) for i, n in enumerate(ACTION_UNIT_ORDER) for bump in FIELDS[n]), strict=True)
    place = on_landmarks([(bump.landmark, bump.offset, bump.sigma) for bump in bumps])
    return _Bumps(np.repeat(units, 2), place, mirrored_pairs([bump.direction for bump in bumps]))


class Anatomy:
    """Individual faces in their crops: where a landmark of the canonical face ends up."""

    def __init__(self, domain: Domain, count: int, random: Random) -> None:
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
        return np.asarray(points @ self.turn + self.offset[:, None, :])

    def place(self, items: OnLandmarks) -> Array:
        """Centres of items on every individual face, (B, K, 2), in the face frame."""
        side, landmark, centres, _ = items
        shift = self.shift[:, landmark]
        shift[:, :, 0] *= np.where(side == 0, 1.0, -1.0).astype(np.float32)
        shift += self.side_shift[:, landmark, side]
        x = centres[None, :, 0] * self.spread[:, _LANDMARK_ROWS[landmark]] + shift[:, :, 0]
        return np.stack([x, centres[None, :, 1] + shift[:, :, 1]], axis=-1)


def draw_bumps(domain: Domain, anatomy: Anatomy, strengths: Array, random: Random) -> tuple[Array, Array, Array, Array]:
    """Centres, sigmas and directions (B, K, 2) of all bumps in their crops, and their amplitudes (B, K)."""
    count, bumps = len(anatomy.offset), bump_table()
    n_bumps = len(bumps.unit)

    # The same action unit moves every face a little differently, both sides mostly alike. Bumps come in pairs, right
    # then left, see `bump_table`.
    def pairs(*shape: int) -> Array:
        return np.repeat(random.normal(count, n_bumps // 2, *shape), 2, axis=1)

    variety, outward = domain.variety, np.where(bumps.place.side == 0, 1.0, -1.0)
    turned = np.stack([outward, np.ones(n_bumps)], axis=-1)
    wander = 0.015 * turned * pairs(2) + 0.008 * random.normal(count, n_bumps, 2)
    width = np.exp(variety * (0.25 * pairs() + 0.1 * random.normal(count, 1)))[..., None]
    bend = 0.2 * turned * pairs(2) + 0.12 * random.normal(count, n_bumps, 2)
    strength = np.exp(variety * (0.45 * pairs() + 0.15 * random.normal(count, n_bumps)))
    placed = anatomy.place(bumps.place)
    centres = anatomy.to_crop(placed + variety * wander)
    sigmas = bumps.place.sigmas * width * anatomy.stretch[:, None, :]
    directions = (bumps.directions + variety * bend) @ anatomy.turn
    return centres, sigmas, directions, strengths[:, bumps.unit, bumps.place.side] * strength


def draw_crop(domain: Domain, generator: np.random.Generator) -> Array:
    """How one clip of `domain` is cropped: affine map (2, 3) from the face frame to the crop, in crop widths."""
    anatomy = Anatomy(domain, 1, Random(generator))
    return np.concatenate([anatomy.turn[0].T, anatomy.offset[0][:, None]], axis=1)


class Person:
    """One individual of `domain` in the face frame: where its landmarks are and how its skin moves."""

    def __init__(self, domain: Domain, generator: np.random.Generator) -> None:
        # A crop that changes nothing leaves the face frame.
        still, alike = (0.0, 0.0), (1.0, 0.0)
        crop: dict[str, Any] = {"crop_scale": alike, "crop_aspect": alike, "crop_shift": still, "crop_offset": still}
        self._anatomy = Anatomy(replace(domain, crop_angle=0.0, **crop), 1, Random(generator))

    @cached_property
    def landmarks(self) -> dict[str, Array]:
        """Every landmark's place on the right and the left half of the picture, each (2, 2), in the face frame."""
        places = self._anatomy.place(on_landmarks([(name, (0.0, 0.0), (1.0, 1.0)) for name in LANDMARKS]))[0]
        return {name: places[2 * number : 2 * number + 2] for number, name in enumerate(LANDMARKS)}

    def move(
        self, domain: Domain, generator: np.random.Generator, units: Sequence[int] | Patterns | None = None
    ) -> Movement:
        """One expression of this individual: of an emotion of `domain`, or of action units.

        The domain says how strongly, one-sidedly and variedly expressions show. Units given by number are equally
        strong.
        """
        # Lids that merely happen to close are drawn as such, not as skin that moves.
        steady, emotion = replace(domain, blink=0.0), ""
        if units is None:
            emotions, active, strengths = draw_expression(steady, 1, generator)
            emotion = EMOTION_ORDER[int(emotions[0])]
        elif isinstance(units, Patterns):
            active, strengths = draw_strengths(steady, units, generator)
        else:
            active = np.array([[number in units for number in ACTION_UNIT_ORDER]])
            strengths = np.clip(1 + domain.asymmetry * generator.standard_normal((1, len(ACTION_UNIT_ORDER), 2)), 0, 2)
            strengths *= active[..., None] * generator.uniform(*domain.intensity)
            strengths[:, ACTION_UNIT_ORDER.index(46), 1] = 0.0
        centres, sigmas, directions, amplitudes = draw_bumps(
            domain, self._anatomy, strengths.astype(np.float32), Random(generator)
        )
        seen = amplitudes[0] != 0
        return Movement(emotion, active[0], centres[0, seen], sigmas[0, seen], directions[0, seen], amplitudes[0, seen])


@dataclass(frozen=True)
class Movement:
    """One expression of one individual at its apex, as displacement of the skin."""

    emotion: str  # name in `EMOTION_ORDER`; empty if the action units were asked for by number
    units: NDArray[np.bool_]  # (len(ACTION_UNIT_ORDER),), active action units
    centres: Array  # (K, 2), bumps in the face frame
    sigmas: Array  # (K, 2)
    directions: Array  # (K, 2)
    amplitudes: Array  # (K,), their strengths; 1 is clearly visible

    def field(self, x: Array, y: Array) -> Array:
        """Displacement (2, len(y), len(x)) at coordinates of the face frame, in units of a clear movement."""
        across = np.exp(-0.5 * ((x - self.centres[:, :1]) / self.sigmas[:, :1]) ** 2)
        down = np.exp(-0.5 * ((y - self.centres[:, 1:]) / self.sigmas[:, 1:]) ** 2)
        weights = self.directions * self.amplitudes[:, None]
        return np.stack([down.T @ (across * weights[:, c : c + 1]) for c in (0, 1)]).astype(np.float32)


def _patterns_of(domain: Domain) -> tuple[NDArray[Any], ...]:
    """Of every emotion pattern of a domain the cumulative probability, the emotion, the units and its one-sidedness."""
    classes = sorted(set(domain.labels.values()))
    rows = []
    for label in classes:
        members = [name for name, of in domain.labels.items() if of == label]
        shares = np.array([domain.emotion_weights.get(name, 1.0) for name in members])
        for name, share in zip(members, shares / shares.sum(), strict=True):
            patterns = EMOTION_ACTION_UNITS[name]
            total = sum(pattern.weight for pattern in patterns)
            rows += [(share * one.weight / total / len(classes), EMOTION_ORDER.index(name), one) for one in patterns]
    probabilities, emotions, found = zip(*rows, strict=True)
    units = np.array([np.isin(ACTION_UNIT_ORDER, one.units) for one in found])
    return np.cumsum(probabilities), np.array(emotions), units, np.array([one.one_sided for one in found])


class Patterns(NamedTuple):
    """Which action units B clips are asked to show, and how."""

    units: NDArray[np.bool_]  # (B, len(ACTION_UNIT_ORDER))
    one_sided: NDArray[np.floating[Any]]  # (B,), probability that one half of the face hardly moves
    still: NDArray[np.int64] | None = None  # (B,), that half, as in `OnLandmarks.side`; None draws it
    intensity: NDArray[np.floating[Any]] | None = None  # (B, 2), lowest and highest; None takes those of the domain


def draw_expression(
    domain: Domain, count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_], Array]:
    """Emotion, active units and the strength of every unit on every side, (B, units, 2)."""
    cumulative, emotions, patterns, one_sided = _patterns_of(domain)
    choice = np.minimum(np.searchsorted(cumulative, rng.random(count)), len(emotions) - 1)
    return emotions[choice], *draw_strengths(domain, Patterns(patterns[choice], one_sided[choice]), rng)


def draw_strengths(domain: Domain, asked: Patterns, rng: np.random.Generator) -> tuple[NDArray[np.bool_], Array]:
    """Active units, with what the domain adds to those asked for, and the strength of every unit on every side."""
    units, count = asked.units.copy(), len(asked.units)
    low, high = domain.intensity if asked.intensity is None else np.hsplit(asked.intensity, 2)
    overall = low + (high - low) * rng.random((count, 1))
    strengths = units * overall * np.exp(0.3 * rng.standard_normal(units.shape))
    # A further unit, weak: faces rarely move in textbook combinations alone.
    extra = rng.integers(len(ACTION_UNIT_ORDER), size=count)
    add = rng.random(count) < domain.extra_units
    strengths[np.arange(count)[add], extra[add]] += 0.35 * overall[add, 0]
    units[np.arange(count)[add], extra[add]] = True

    sides = np.clip(1 + domain.asymmetry * rng.standard_normal((count, len(ACTION_UNIT_ORDER), 2)), 0.05, 2.0)
    alone = rng.random(count) < asked.one_sided
    weak_side = rng.integers(2, size=count) if asked.still is None else asked.still
    rows = np.arange(count)[alone]
    sides[rows, :, weak_side[alone]] *= 0.25 * rng.random((len(rows), 1))
    both = strengths[:, :, None] * sides

    # Blinks are no expression: either direction, both eyes alike, not among the labels.
    blink = ACTION_UNIT_ORDER.index(45)
    caught = rng.random(count) < domain.blink
    lids = caught * rng.choice([-1.0, 1.0], size=count) * (0.2 + 1.2 * rng.random(count) ** 2)
    both[:, blink] += lids[:, None] * (1 + 0.15 * rng.standard_normal((count, 2)))
    return units, both.astype(np.float32)


# Skin from very light to very dark, hair and eyes as they occur; sRGB.
_SKIN = np.array(
    [(0.95, 0.81, 0.74), (0.90, 0.73, 0.63), (0.83, 0.65, 0.53),
     (0.68, 0.50, 0.39), (0.50, 0.35, 0.27), (0.36, 0.25, 0.2)]
)  # fmt: skip
_HAIR = np.array(
    [(0.07, 0.06, 0.06), (0.13, 0.09, 0.07), (0.22, 0.14, 0.09),
     (0.34, 0.22, 0.13), (0.60, 0.45, 0.26), (0.62, 0.60, 0.58)]
)  # fmt: skip
_IRIS = np.array([(0.20, 0.12, 0.07), (0.30, 0.19, 0.10), (0.36, 0.36, 0.20), (0.33, 0.44, 0.50), (0.28, 0.40, 0.36)])


@dataclass(frozen=True)
class Appearance:
    """What an individual looks like, apart from where its landmarks are."""

    skin: Array  # (3,), colours, red, green, blue, 0..1
    hair: Array  # (3,)
    iris: Array  # (3,)
    outline: Array  # (5,), relative widths of forehead, cheekbones, jaw and chin, and length of the chin
    brows: float  # relative thickness of the brows and fullness of the lips, height of the nose
    lips: float
    nose: float
    hairline: float  # height of the forehead above the brows
    volume: float  # thickness of the hair on the head
    long_hair: bool  # whether the hair falls to the shoulders
    bald: bool  # whether there is no hair on the head
    beard: float  # density of beard and moustache, 0 to 1
    age: float  # depth of folds and unevenness of skin, 0 to 1
    freckles: float  # how many, 0 to 1
    lamp: Array  # (3,), direction to the light
    clothes: Array  # (3,), colours of what surrounds the face
    wall: Array  # (3,)
    seed: int  # seed of texture and strokes


def draw_appearance(rng: np.random.Generator) -> Appearance:
    """Draw an individual's traits at random."""
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
