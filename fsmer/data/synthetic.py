"""Synthetic micro-expressions: flow maps drawn from FACS anatomy, with everything that is not expression added on top.

A clip is a set of action units with intensities and left-right asymmetry on an individual face (`fsmer.data.facs_fields`), plus head
motion (translation, rotation, scaling, and turning of a face with depth), blinks, a background that stands still, and an optical-flow
estimator that trusts textured skin, fills the rest from its neighbourhood and adds smooth, patchy noise. u, v and strain follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from fsmer.data.facs_fields import EMOTION_ACTION_UNITS, FIELDS, LANDMARKS
from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, unknown_name

if TYPE_CHECKING:
    from fsmer.data.clips import ClipSet

__all__ = [
    "ACTION_UNIT_ORDER",
    "DOMAINS",
    "EMOTION_ORDER",
    "Domain",
    "SyntheticMaps",
    "action_unit_maps",
    "list_domains",
    "load_domain",
    "synthetic_clips",
    "synthetic_maps",
]

Array = NDArray[np.float32]
Normalisation = Literal["minmax", "signed"]

ACTION_UNIT_ORDER: tuple[int, ...] = tuple(sorted(FIELDS))
EMOTION_ORDER: tuple[str, ...] = tuple(EMOTION_ACTION_UNITS)

# Clips are drawn in blocks with a seed of their own, so clip i is the same however many clips are asked for.
BLOCK = 256
# A displacement of 1 in the field tables, in thousandths of the face width: about 2 pixels on a face of 224 (micro-expressions move
# skin by some 0.5 to 4 pixels there).
UNIT_DISPLACEMENT = 9.0

THREE_CLASSES: Mapping[str, str] = {
    "happiness": "positive",
    "surprise": "surprise",
    "disgust": "negative",
    "repression": "negative",
    "anger": "negative",
    "contempt": "negative",
    "fear": "negative",
    "sadness": "negative",
}
FIVE_CLASSES: Mapping[str, str] = {name: name for name in ("happiness", "surprise", "disgust", "repression", "others")}


@dataclass(frozen=True)
class Domain:
    """A place where synthetic clips are recorded: camera, crop, noise, intensity and label scheme.

    Lengths are in crop widths; amplitudes are relative to a clearly visible action unit (1).

    Parameters
    ----------
    name, summary : str
        Key and one line of description.
    labels : mapping of str to str
        Emotion to label; classes are drawn equally often, emotions of a class by `emotion_weights`.
    emotion_weights : mapping of str to float
        Relative frequency of emotions inside their class (default 1).
    crop_scale, crop_aspect : (mean, sd)
        Face size in the crop (1 fills it as the canonical landmarks do) and vertical over horizontal stretch.
    crop_shift : (sd x, sd y)
        Misplacement of the crop.
    crop_offset : (x, y)
        Systematic misplacement.
    crop_angle : float
        Standard deviation of in-plane rotation, radians.
    geometry : float
        Standard deviation of every landmark's own position.
    intensity : (low, high)
        Range of action unit intensities.
    asymmetry : float
        Standard deviation of each side's relative intensity.
    head : float
        Amplitude of rigid head motion; the clip's own amplitude is this times a number skewed towards 0.
    blink : float
        Probability that a lid is caught moving.
    noise : float
        Amplitude of the estimator's noise.
    smoothness : (low, high)
        Reach of the estimator's smoothing.
    glasses : float
        Probability of spectacles.
    extra_units : float
        Probability of one further, unrelated action unit at low intensity.
    """

    name: str
    summary: str
    labels: Mapping[str, str] = field(default_factory=lambda: THREE_CLASSES)
    emotion_weights: Mapping[str, float] = field(
        default_factory=lambda: {"disgust": 1.6, "repression": 1.0, "anger": 1.2, "contempt": 0.5, "fear": 0.5, "sadness": 0.7}
    )
    crop_scale: tuple[float, float] = (1.0, 0.08)
    crop_aspect: tuple[float, float] = (1.0, 0.06)
    crop_shift: tuple[float, float] = (0.02, 0.03)
    crop_offset: tuple[float, float] = (0.0, 0.0)
    crop_angle: float = 0.04
    geometry: float = 0.015
    intensity: tuple[float, float] = (0.2, 1.4)
    asymmetry: float = 0.25
    head: float = 1.5
    blink: float = 0.5
    noise: float = 0.7
    smoothness: tuple[float, float] = (0.006, 0.04)
    glasses: float = 0.12
    extra_units: float = 0.12


DOMAINS: dict[str, Domain] = {
    domain.name: domain
    for domain in (
        Domain("broad", "every camera, crop and estimator at once: what facs-flow is pretrained on"),
        Domain(
            "lab",
            "high-speed laboratory camera: tight frontal crops, little head motion, clean flow",
            crop_scale=(1.0, 0.04),
            crop_shift=(0.01, 0.015),
            crop_angle=0.02,
            head=0.35,
            blink=0.2,
            noise=0.15,
            smoothness=(0.012, 0.03),
            glasses=0.0,
        ),
        Domain(
            "clinic",
            "consulting room: loose crops from above, talking heads, weak expressions, smoother flow",
            crop_scale=(0.88, 0.06),
            crop_aspect=(1.08, 0.05),
            crop_offset=(0.02, 0.06),
            crop_shift=(0.03, 0.04),
            intensity=(0.3, 1.0),
            head=1.0,
            blink=0.45,
            noise=0.35,
            smoothness=(0.03, 0.06),
            glasses=0.3,
        ),
        Domain(
            "field",
            "webcam at home: strong compression noise, turning heads, wide crops",
            crop_scale=(0.94, 0.1),
            crop_aspect=(0.95, 0.08),
            crop_shift=(0.04, 0.05),
            crop_angle=0.08,
            head=1.4,
            blink=0.4,
            noise=0.6,
            smoothness=(0.02, 0.06),
            glasses=0.25,
        ),
        Domain(
            "lab-five",
            "the laboratory with five classes: happiness, surprise, disgust, repression, others",
            labels=FIVE_CLASSES,
            crop_scale=(1.0, 0.04),
            crop_shift=(0.01, 0.015),
            crop_angle=0.02,
            head=0.35,
            blink=0.2,
            noise=0.15,
            smoothness=(0.012, 0.03),
            glasses=0.0,
        ),
    )
}


@dataclass(frozen=True)
class SyntheticMaps:
    """Arrays of a synthetic draw.

    Parameters
    ----------
    maps : float32 array of shape (N, 3, size, size)
        u, v, strain.
    units : bool array of shape (N, len(ACTION_UNIT_ORDER))
        Which action units were active.
    emotions : int array of shape (N,)
        Index into `EMOTION_ORDER`.
    """

    maps: Array
    units: NDArray[np.bool_]
    emotions: NDArray[np.int64]


def list_domains() -> list[str]:
    """Names of the synthetic domains."""
    return sorted(DOMAINS)


def load_domain(name: str | Domain) -> Domain:
    """The domain of that name; an unknown one raises `UnknownNameError` with the nearest names."""
    if isinstance(name, Domain):
        return name
    if name not in DOMAINS:
        raise unknown_name("synthetic domain", name, DOMAINS)
    return DOMAINS[name]


def synthetic_maps(
    n: int,
    *,
    domain: str | Domain = "broad",
    seed: int = 0,
    size: int = 28,
    normalisation: Normalisation = "minmax",
    start: int = 0,
) -> SyntheticMaps:
    """Draw `n` synthetic flow maps.

    Parameters
    ----------
    n : int
        How many clips.
    domain : str or Domain
        Where they are recorded, see `list_domains`.
    seed : int
        Same seed, domain and size: same maps. Clip i does not depend on `n`.
    size : int
        Height and width in pixels, 8 to 224.
    normalisation : {"minmax", "signed"}
        ``"minmax"``: u, v and strain each scaled to 0..1 per clip, as the public MEGC 2019 maps are. ``"signed"``: thousandths of
        the face width (strain: the same per crop width).
    start : int
        Number of the first clip, a multiple of 256, to draw a long stream in pieces.

    Returns
    -------
    SyntheticMaps

    Raises
    ------
    DataError
        `n`, `size` or `start` is out of range, or the normalisation unknown.
    """
    place = load_domain(domain)
    if n < 0 or not 8 <= size <= 224 or start % BLOCK or start < 0:
        raise DataError(
            f"cannot draw {n} maps of size {size} from clip {start}: n must be 0 or more, size 8 to 224, start a multiple of {BLOCK}."
        )
    if normalisation not in ("minmax", "signed"):
        raise DataError(f"unknown normalisation {normalisation!r}: expected 'minmax' or 'signed'.")
    maps = np.empty((n, 3, size, size), dtype=np.float32)
    units = np.empty((n, len(ACTION_UNIT_ORDER)), dtype=bool)
    emotions = np.empty(n, dtype=np.int64)
    for begin, stop, rng in _blocks(n, start, seed, place):
        drawn = _draw(place, rng)
        part = slice(begin, stop)
        count = stop - begin
        maps[part] = _render(drawn, size, normalisation)[:count]
        units[part] = drawn.units[:count]
        emotions[part] = drawn.emotions[:count]
    return SyntheticMaps(maps, units, emotions)


def synthetic_clips(
    domain: str | Domain = "lab",
    n: int = 300,
    *,
    seed: int = 0,
    size: int = 28,
    normalisation: Normalisation = "minmax",
    subjects: int = 20,
) -> ClipSet:
    """A clip set of synthetic micro-expressions, for trying protocols and methods without licensed data.

    The table carries the label of the domain's scheme, the emotion behind it and the action units.

    Parameters
    ----------
    domain, n, seed, size, normalisation
        As in `synthetic_maps`.
    subjects : int
        Number of made-up subjects that the clips are dealt to in turn.

    Returns
    -------
    ClipSet

    Examples
    --------
    >>> clips = synthetic_clips("lab", 12, seed=1)
    >>> len(clips), clips.classes
    (12, ('negative', 'positive', 'surprise'))
    """
    import pandas as pd

    from fsmer.data.clips import ClipSet
    from fsmer.data.media import ArrayStore

    place = load_domain(domain)
    drawn = synthetic_maps(n, domain=place, seed=seed, size=size, normalisation=normalisation)
    emotions = [EMOTION_ORDER[index] for index in drawn.emotions]
    numbers = np.array(ACTION_UNIT_ORDER)
    frame = pd.DataFrame(
        {
            "clip": [f"{place.name}_{seed}_{index:06d}" for index in range(n)],
            "dataset": place.name,
            "subject": [f"{place.name}{index % subjects + 1:03d}" for index in range(n)],
            "label": [place.labels[emotion] for emotion in emotions],
            "aus": ["+".join(map(str, numbers[row])) for row in drawn.units],
            "emotion": emotions,
        }
    )
    spec = InputSpec(size=(size, size), normalisation=normalisation, flow_method=None)
    return ClipSet.from_table(frame, media={"flow": ArrayStore(drawn.maps, spec)})


def action_unit_maps(unit: int, *, size: int = 56) -> Array:
    """Clean signed flow of one action unit on the canonical face, float32 of shape (3, size, size), for pictures.

    Units are those of the field tables (1 = clearly visible).
    """
    if unit not in FIELDS:
        raise unknown_name("action unit", unit, map(str, FIELDS))
    table = _bump_table()
    strengths = np.zeros((1, len(ACTION_UNIT_ORDER), 2), dtype=np.float32)
    strengths[:, ACTION_UNIT_ORDER.index(unit)] = 1.0
    centres = table.centres[None].astype(np.float32)
    flow = _bump_flow(centres, table.sigmas[None], table.directions[None], strengths[:, table.unit, table.side], _axis(size))
    return np.concatenate([flow, _strain(flow)[:, None]], axis=1)[0]


# ---------------------------------------------------------------------------------------------------------------------------------
# Drawing: everything random about a block of clips


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
    names = list(LANDMARKS)
    unit, side, landmark, centres, sigmas, directions = [], [], [], [], [], []
    for index, number in enumerate(ACTION_UNIT_ORDER):
        for bump in FIELDS[number]:
            x, y = LANDMARKS[bump.landmark]
            for half, sign in enumerate((1.0, -1.0)):
                unit.append(index)
                side.append(half)
                landmark.append(names.index(bump.landmark))
                centres.append((sign * (x + bump.offset[0]), y + bump.offset[1]))
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
class _Draw:
    """The random numbers of a block of B clips (K bumps, T texture spots)."""

    emotions: NDArray[np.int64]
    units: NDArray[np.bool_]
    centres: Array  # (B, K, 2) in the crop
    sigmas: Array  # (B, K, 2)
    directions: Array  # (B, K, 2)
    amplitudes: Array  # (B, K)
    texture_centres: Array  # (B, T, 2)
    texture_sigmas: Array  # (B, T, 2)
    texture_amplitudes: Array  # (B, T)
    face: Array  # (B, 5): centre x, y, half width, half height, edge softness
    motion: Array  # (B, 8): shift x, y, linear map (4), yaw, pitch
    nose: Array  # (B, 4): tip x, y, sigma x, sigma y
    background: Array  # (B, 2): how much the background follows the head, edge contrast
    reach: Array  # (B, 2): smoothing of the estimator, floor of its trust
    noise: Array  # (B, 4): amplitudes of coarse, middle, fine and pixel noise
    plateau: Array  # (B,): how steep the rims of its patches are
    sparsity: Array  # (B, 3): how rare patches are, by level
    locality: Array  # (B,): how much of the noise sits on features
    flatness: Array  # (B,): exponent of the bumps' profiles
    veil: Array  # (B, 3): steepness, level and floor of the damping by skin without texture
    noise_seed: int


def _blocks(n: int, start: int, seed: int, domain: Domain) -> Iterator[tuple[int, int, np.random.Generator]]:
    key = int.from_bytes(domain.name.encode()[:8].ljust(8, b"\0"), "little")
    for begin in range(0, n, BLOCK):
        sequence = np.random.SeedSequence([seed, key, (start + begin) // BLOCK])
        yield begin, min(begin + BLOCK, n), np.random.Generator(np.random.PCG64(sequence))


def _draw(domain: Domain, rng: np.random.Generator) -> _Draw:
    count = BLOCK
    normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32)  # noqa: E731
    uniform = lambda *shape: rng.random(shape, dtype=np.float32)  # noqa: E731

    emotions, units, strengths = _draw_expression(domain, rng)
    table = _bump_table()

    # Individual face: each landmark its own place, whole rows of the face higher or lower, wider or narrower.
    names = list(LANDMARKS)
    rows = np.array([0 if "brow" in k else 1 if k.startswith(("lid", "eye")) else 3 if k.startswith(("mouth", "lip")) else 2 for k in names])
    landmark_shift = domain.geometry * normal(count, len(names), 2) * np.array([0.8, 0.7], dtype=np.float32)
    landmark_shift[:, :, 1] += (domain.geometry * np.array([1.2, 1.0, 1.4, 2.0], dtype=np.float32) * normal(count, 4))[:, rows]
    spread = 1 + 0.06 * normal(count, 4)
    side_jitter = 0.004 * normal(count, len(names), 2, 2)

    def place(centres: Array, landmark: NDArray[np.int64], side: NDArray[np.int64]) -> Array:
        shift = landmark_shift[:, landmark].copy()
        shift[:, :, 0] *= np.where(side == 0, 1.0, -1.0)
        shift += side_jitter[:, landmark, side]
        x = centres[None, :, 0] * spread[:, rows[landmark]] + shift[:, :, 0]
        return np.stack([x, centres[None, :, 1] + shift[:, :, 1]], axis=-1)

    # Crop: one affine map from the face frame to the picture.
    scale = np.exp(np.log(domain.crop_scale[0]) + domain.crop_scale[1] * normal(count))
    aspect = np.exp(np.log(domain.crop_aspect[0]) + domain.crop_aspect[1] * normal(count))
    angle = domain.crop_angle * normal(count)
    stretch = np.stack([scale / np.sqrt(aspect), scale * np.sqrt(aspect)], axis=-1)
    rotation = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=-1).reshape(count, 2, 2)
    shift = np.array(domain.crop_offset, dtype=np.float32) + np.array(domain.crop_shift, dtype=np.float32) * normal(count, 2)
    turn = (rotation * stretch[:, None, :]).transpose(0, 2, 1)

    def to_crop(points: Array) -> Array:
        moved: Array = points @ turn + shift[:, None, :]
        return moved

    width = np.exp(0.18 * normal(count, len(table.unit)) + 0.1 * normal(count, 1))[..., None]
    centres = to_crop(place(table.centres, table.landmark, table.side) + 0.008 * normal(count, len(table.unit), 2))
    sigmas = table.sigmas * width * stretch[:, None, :]
    directions = (table.directions + 0.12 * normal(count, len(table.unit), 2)) @ turn
    amplitudes = strengths[:, table.unit, table.side] * np.exp(0.25 * normal(count, len(table.unit)))

    # Texture: the same face.
    landmark_index = np.array([names.index(spot[0]) for spot in _TEXTURE]).repeat(2)
    side_index = np.tile([0, 1], len(_TEXTURE))
    spots = np.array(
        [((1 - 2 * half) * (LANDMARKS[k][0] + dx), LANDMARKS[k][1] + dy) for k, (dx, dy), _, _ in _TEXTURE for half in (0, 1)],
        dtype=np.float32,
    )
    texture_centres = to_crop(place(spots, landmark_index, side_index))
    texture_sigmas = np.array([spot[2] for spot in _TEXTURE], dtype=np.float32).repeat(2, axis=0) * stretch[:, None, :]
    texture_amplitudes = np.array([spot[3] for spot in _TEXTURE], dtype=np.float32).repeat(2) * np.exp(0.5 * normal(count, len(_TEXTURE) * 2))

    # Rigid motion, mostly small, sometimes dominating.
    strength = domain.head * uniform(count, 1) ** 2
    motion = strength * np.concatenate([0.6 * normal(count, 2), 0.4 * normal(count, 4), 0.4 * normal(count, 2)], axis=1)
    nose = np.concatenate(
        [
            to_crop(np.stack([0.01 * normal(count), 0.0 + domain.geometry * normal(count)], axis=-1)[:, None])[:, 0],
            (0.06 + 0.012 * normal(count))[:, None] * stretch[:, :1],
            (0.13 + 0.015 * normal(count))[:, None] * stretch[:, 1:],
        ],
        axis=1,
    )
    face = np.concatenate(
        [
            to_crop(np.stack([0.01 * normal(count), -0.02 + 0.02 * normal(count)], axis=-1)[:, None])[:, 0],
            (0.60 + 0.05 * normal(count))[:, None] * stretch[:, :1],
            (0.72 + 0.06 * normal(count))[:, None] * stretch[:, 1:],
            0.02 + 0.06 * uniform(count, 1),
        ],
        axis=1,
    )
    low, high = domain.smoothness
    level = domain.noise * np.exp(0.7 * normal(count, 1))
    # Features that only seem to move: light on lids, lips and nostrils misleads the estimator, in thin horizontal patches.
    ghost = level * np.exp(0.8 * normal(count, 1)) * normal(count, len(spots)) * (uniform(count, len(spots)) < 0.35)
    ghost_sigmas = texture_sigmas * np.array([0.7, 0.4], dtype=np.float32) * np.exp(0.3 * normal(count, len(spots), 2))
    ghost_centres = texture_centres + texture_sigmas * 0.6 * normal(count, len(spots), 2)
    ghost_directions = np.array([0.5, 1.0], dtype=np.float32) * normal(count, len(spots), 2)
    return _Draw(
        emotions=emotions,
        units=units,
        centres=np.concatenate([centres, ghost_centres], axis=1).astype(np.float32),
        sigmas=np.concatenate([sigmas, ghost_sigmas], axis=1).astype(np.float32),
        directions=np.concatenate([directions, ghost_directions], axis=1).astype(np.float32),
        amplitudes=np.concatenate([amplitudes, ghost], axis=1).astype(np.float32),
        texture_centres=texture_centres.astype(np.float32),
        texture_sigmas=texture_sigmas.astype(np.float32),
        texture_amplitudes=texture_amplitudes.astype(np.float32),
        face=face.astype(np.float32),
        motion=motion.astype(np.float32),
        nose=nose.astype(np.float32),
        background=np.stack([np.where(uniform(count) < 0.5, 0.0, uniform(count)), uniform(count)], axis=-1).astype(np.float32),
        reach=np.stack([low + (high - low) * uniform(count), 0.05 + 0.5 * uniform(count) ** 2], axis=-1).astype(np.float32),
        noise=(level * np.array([0.6, 1.0, 0.9, 0.02], dtype=np.float32) * uniform(count, 4)).astype(np.float32),
        plateau=(1.0 + 4.0 * uniform(count)).astype(np.float32),
        sparsity=(0.0 + 1.6 * uniform(count, 3)).astype(np.float32),
        locality=np.sqrt(uniform(count)),
        flatness=(2.0 + 4.0 * uniform(count)).astype(np.float32),
        veil=np.stack([1.0 + 5.0 * uniform(count), -0.3 + 2.0 * uniform(count), 0.6 * uniform(count) ** 2], axis=-1).astype(np.float32),
        noise_seed=int(rng.integers(1 << 62)),
    )


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


def _draw_expression(domain: Domain, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.bool_], Array]:
    """Emotion, active units and the strength of every unit on every side, (B, units, 2)."""
    count = BLOCK
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


# ---------------------------------------------------------------------------------------------------------------------------------
# Rendering: from random numbers to maps


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


def _bump_flow(centres: Array, sigmas: Array, directions: Array, amplitudes: Array, axis: Array, flatness: Array | float = 2.0) -> Array:
    """Sum of displacement bumps, (B, 2, size, size)."""
    x, y = _profiles(centres, sigmas, axis, flatness)
    columns = y.transpose(0, 2, 1)
    weights = directions * amplitudes[..., None]
    return np.stack([columns @ (x * weights[..., component : component + 1]) for component in (0, 1)], axis=1)


def _strain(flow: Array) -> Array:
    """Optical strain magnitude sqrt(ux^2 + vy^2 + (uy + vx)^2 / 2), (B, size, size), per crop width.

    One-sided differences: the strain of a sharp edge stays one pixel wide, as in maps whose strain was taken at full resolution.
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


def _render(drawn: _Draw, size: int, normalisation: Normalisation) -> Array:
    axis = _axis(size)
    count = len(drawn.emotions)
    rng = np.random.Generator(np.random.PCG64(drawn.noise_seed))

    flow = _bump_flow(drawn.centres, drawn.sigmas, drawn.directions, drawn.amplitudes, axis, drawn.flatness[:, None, None])

    # Skin without texture hides movement: patches of it damp what moves there.
    veil = _smooth_noise(rng, count, 1, 6, size) + 0.7 * _smooth_noise(rng, count, 1, 12, size)
    seen = 1.0 / (1.0 + np.exp(np.clip(-drawn.veil[:, 0, None, None, None] * (veil + drawn.veil[:, 1, None, None, None]), -30, 30)))
    flow *= drawn.veil[:, 2, None, None, None] + (1 - drawn.veil[:, 2, None, None, None]) * seen

    # The head as a rigid body with depth: an ellipsoid with a nose on it.
    x = (axis[None, :] - drawn.face[:, 0:1]) / drawn.face[:, 2:3]
    y = (axis[None, :] - drawn.face[:, 1:2]) / drawn.face[:, 3:4]
    radius = x[:, None, :] ** 2 + y[:, :, None] ** 2
    depth = np.sqrt(np.clip(1.0 - 0.8 * radius, 0.0, None))
    nose_x, nose_y = _profiles(drawn.nose[:, None, :2], drawn.nose[:, None, 2:], axis)
    depth = depth + 0.8 * nose_y.transpose(0, 2, 1) @ nose_x - 0.6
    motion = drawn.motion[:, :, None, None]
    flow[:, 0] += motion[:, 0] + motion[:, 2] * axis[None, None, :] + motion[:, 3] * axis[None, :, None] + motion[:, 6] * depth
    flow[:, 1] += motion[:, 1] + motion[:, 4] * axis[None, None, :] + motion[:, 5] * axis[None, :, None] + motion[:, 7] * depth

    # Beyond the face the picture stands still, or is dragged along by an estimator that sees nothing there.
    softness = drawn.face[:, 4, None, None]
    inside = 1.0 / (1.0 + np.exp(np.clip((np.sqrt(radius) - 1.0) / softness, -30, 30)))
    follow = drawn.background[:, 0, None, None]
    flow *= (inside + (1 - inside) * follow)[:, None]

    # The estimator: trust where there is texture, normalised convolution elsewhere.
    tx, ty = _profiles(drawn.texture_centres, drawn.texture_sigmas, axis)
    trust = ty.transpose(0, 2, 1) @ (tx * drawn.texture_amplitudes[..., None])
    trust += drawn.reach[:, 1, None, None] * np.exp(0.8 * _smooth_noise(rng, count, 1, 7, size)[:, 0])
    flow = _normalised_convolution(flow, trust, drawn.reach[:, 0], size)

    # Errors of the estimator: patches with steep rims, most of them where features move or end, fewer on plain skin.
    edges = np.minimum(trust, 2.0)[:, None]
    for level, coarse in enumerate((4, 8, 14)):
        grain = _smooth_noise(rng, count, 2, min(coarse, size), size)
        gate = _smooth_noise(rng, count, 1, min(coarse, size), size)
        rare = 1.0 / (1.0 + np.exp(np.clip(-drawn.plateau[:, None, None, None] * 4 * (gate - drawn.sparsity[:, level, None, None, None]), -30, 30)))
        where = 1.0 if level == 0 else (drawn.locality[:, None, None, None] * edges + (1 - drawn.locality[:, None, None, None]))
        flow += drawn.noise[:, level, None, None, None] * np.tanh(drawn.plateau[:, None, None, None] * grain) * rare * where
    flow += drawn.noise[:, 3, None, None, None] * rng.standard_normal(flow.shape, dtype=np.float32)

    maps = np.concatenate([flow, _strain(flow)[:, None]], axis=1)
    if normalisation == "signed":
        return maps * np.float32(UNIT_DISPLACEMENT)
    low = maps.min(axis=(2, 3), keepdims=True)
    high = maps.max(axis=(2, 3), keepdims=True)
    return (maps - low) / np.maximum(high - low, 1e-12)


def _normalised_convolution(flow: Array, trust: Array, reach: Array, size: int) -> Array:
    """Gaussian smoothing in which every pixel weighs as much as it is trusted (Knutsson & Westin 1993)."""
    axis = _axis(size)
    kernel = np.exp(-0.5 * ((axis[:, None] - axis[None, :]) / reach[:, None, None]) ** 2)
    weight = trust + 1e-3
    total = kernel @ weight @ kernel
    return (kernel[:, None] @ (flow * weight[:, None]) @ kernel[:, None]) / total[:, None]
