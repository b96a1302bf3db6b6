"""How a synthetic flow map comes about: a face, its movement and its camera drawn at random, rendered to u and v."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsmer.data.facs import ACTION_UNIT_ORDER
from fsmer.synthetic import individuals
from fsmer.synthetic.domains import Domain
from fsmer.synthetic.facs_fields import Pair, pair, table_rows
from fsmer.synthetic.individuals import Anatomy, Array, OnLandmarks, Patterns, Random, bump_table, draw_bumps

__all__ = ["FaceDraw", "clean_flow", "draw_faces", "min_max", "optical_strain", "render_flow"]


@lru_cache(maxsize=1)
def _spots() -> tuple[OnLandmarks, Array]:
    """Where the picture has texture that an estimator can follow, and how much."""
    rows = table_rows("texture")
    place = individuals.on_landmarks(
        [(row["landmark"], pair(row, "offset_x", "offset_y"), pair(row, "sigma_x", "sigma_y")) for row in rows]
    )
    return place, np.repeat(np.array([row["strength"] for row in rows], np.float32), 2)


@dataclass(frozen=True)
class FaceDraw:
    """The random numbers of B clips: K bumps that move, T spots with texture; lengths in crop widths."""

    emotions: NDArray[np.int64]  # (B,), index into EMOTION_ORDER; -1 where action units were asked for
    units: NDArray[np.bool_]  # (B, len(ACTION_UNIT_ORDER)), the active ones
    centres: Array  # (B, K, 2), of bumps
    sigmas: Array  # (B, K, 2)
    directions: Array  # (B, K, 2)
    amplitudes: Array  # (B, K), strengths; 1 is clearly visible
    spots: Array  # (B, T, 2), where the picture has texture
    spot_sigmas: Array  # (B, T, 2)
    spot_strengths: Array  # (B, T)
    face: Array  # (B, 5), the head's outline: centre x and y, half width, half height, softness of its edge
    nose: Array  # (B, 4), tip x and y, sigma x and y
    motion: Array  # (B, 9), rigid: shift x and y, linear map (ux, uy, vx, vy), yaw, pitch, approach to the camera
    follow: Array  # (B,), share of the head's motion that the background takes on
    flatness: Array  # (B,), exponent of the bumps' profiles
    veil: Array  # (B, 3), steepness, level and floor of the damping by skin without texture
    reach: Array  # (B,), smoothing of the estimator
    trust: Array  # (B,), its trust in plain skin
    noise: Array  # (B, 4), amplitudes of coarse, middle, fine and pixel errors
    steepness: Array  # (B,), of the rims of error patches
    locality: Array  # (B,), share of the errors that sits on features
    rarity: Array  # (B, 3), how rare error patches are, by level
    noise_seed: int  # of the error fields themselves


def draw_faces(domain: Domain, count: int, generator: np.random.Generator, asked: Patterns | None = None) -> FaceDraw:
    """Draw everything random about `count` clips of `domain`, which show its emotions or the units asked for."""
    random = Random(generator)
    if asked is None:
        emotions, units, strengths = individuals.draw_expression(domain, count, generator)
    else:
        emotions, (units, strengths) = np.full(count, -1), individuals.draw_strengths(domain, asked, generator)
    anatomy = Anatomy(domain, count, random)
    spots, weights = _spots()
    n_spots = len(weights)
    centres, sigmas, directions, amplitudes = draw_bumps(domain, anatomy, strengths, random)
    spot_centres = anatomy.to_crop(anatomy.place(spots))
    spot_sigmas = spots.sigmas * anatomy.stretch[:, None, :]
    spot_strengths = weights * np.exp(0.5 * random.normal(count, n_spots))

    # Features that only seem to move: light on lids, lips and nostrils misleads the estimator, in thin horizontal
    # patches.
    level = domain.noise * np.exp(0.7 * random.normal(count, 1))
    ghost = level * np.exp(0.8 * random.normal(count, 1)) * random.normal(count, n_spots)
    ghost = ghost * (random.uniform(count, n_spots) < 0.35)
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


def _draw_outline(anatomy: Anatomy, centre: Pair, across: tuple[float, ...], along: Pair, *, soft: bool) -> Array:
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


def min_max(maps: Array) -> Array:
    """Every channel of maps (N, C, h, w) scaled to 0..1 by itself; one without any movement is all 0."""
    low = maps.min(axis=(2, 3), keepdims=True)
    return (maps - low) / np.maximum(maps.max(axis=(2, 3), keepdims=True) - low, 1e-12)


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
    bumps = bump_table()
    sides = np.array([1.0, 0.0 if unit == 46 else 1.0], dtype=np.float32)
    amplitudes = np.where(bumps.unit == ACTION_UNIT_ORDER.index(unit), sides[bumps.place.side], np.float32(0))
    flow = _bump_flow(
        bumps.place.centres[None], bumps.place.sigmas[None], bumps.directions[None], amplitudes[None], _axis(size)
    )
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
