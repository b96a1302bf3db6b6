"""What an individual's face is like apart from its landmarks, drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fsmer.synthetic.canvas import Array

__all__ = ["Appearance", "draw_appearance"]

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
