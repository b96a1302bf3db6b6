"""Synthetic micro-expressions: flow maps drawn from FACS anatomy, with everything that is not expression added on top.

A clip is a set of action units with intensities and left-right asymmetry on an individual face
(`fsmer.synthetic.facs_fields`), plus head motion (translation, rotation, scaling, and turning of a face with depth),
blinks, a background that stands still, and an optical-flow estimator that trusts textured skin, fills the rest from its
neighbourhood and adds smooth, patchy noise. u, v and strain follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, unknown_name
from fsmer.synthetic.flow_maps import (
    ACTION_UNIT_ORDER,
    EMOTION_ORDER,
    clean_flow,
    draw_faces,
    optical_strain,
    render_flow,
)

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

Array = NDArray[np.floating[Any]]
Normalisation = Literal["minmax", "signed"]

# Clips are drawn in blocks with a seed of their own, so clip i is the same however many clips are asked for.
BLOCK = 256
# A displacement of 1 in the field tables, in thousandths of the face width: about 2 pixels on a face of 224
# (micro-expressions move skin by some 0.5 to 4 pixels there).
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
    variety : float
        How differently faces move by the same action unit: at 1 every bump of it wanders by some 0.017, grows or
        shrinks by a quarter, turns by some 0.2 radian and weakens or strengthens by half (standard deviations).
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
    extra_units : float
        Probability of one further, unrelated action unit at low intensity.
    """

    name: str
    summary: str
    labels: Mapping[str, str] = field(default_factory=lambda: THREE_CLASSES)
    emotion_weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "disgust": 1.6,
            "repression": 1.0,
            "anger": 1.2,
            "contempt": 0.7,
            "fear": 0.5,
            "sadness": 0.7,
        }
    )
    crop_scale: tuple[float, float] = (1.0, 0.08)
    crop_aspect: tuple[float, float] = (1.0, 0.06)
    crop_shift: tuple[float, float] = (0.02, 0.03)
    crop_offset: tuple[float, float] = (0.0, 0.0)
    crop_angle: float = 0.04
    geometry: float = 0.015
    variety: float = 1.0
    intensity: tuple[float, float] = (0.2, 1.4)
    asymmetry: float = 0.25
    head: float = 1.5
    blink: float = 0.5
    noise: float = 0.7
    smoothness: tuple[float, float] = (0.006, 0.045)
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
            variety=0.5,
            head=0.35,
            blink=0.2,
            noise=0.15,
            smoothness=(0.012, 0.03),
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
        ),
        Domain(
            "lab-five",
            "the laboratory with five classes: happiness, surprise, disgust, repression, others",
            labels=FIVE_CLASSES,
            crop_scale=(1.0, 0.04),
            crop_shift=(0.01, 0.015),
            crop_angle=0.02,
            variety=0.5,
            head=0.35,
            blink=0.2,
            noise=0.15,
            smoothness=(0.012, 0.03),
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
        ``"minmax"``: u, v and strain each scaled to 0..1 per clip, as the public MEGC 2019 maps are. ``"signed"``:
        thousandths of the face width (strain: the same per crop width).
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
            f"cannot draw {n} maps of size {size} from clip {start}: n must be 0 or more, size 8 to 224, start a "
            f"multiple of {BLOCK}."
        )
    if normalisation not in ("minmax", "signed"):
        raise DataError(f"unknown normalisation {normalisation!r}: expected 'minmax' or 'signed'.")
    maps = np.empty((n, 3, size, size), dtype=np.float32)
    units = np.empty((n, len(ACTION_UNIT_ORDER)), dtype=bool)
    emotions = np.empty(n, dtype=np.int64)
    for begin, stop, rng in _blocks(n, start, seed, place):
        drawn = draw_faces(place, BLOCK, rng)
        part = slice(begin, stop)
        count = stop - begin
        maps[part] = _maps(render_flow(drawn, size), normalisation)[:count]
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
    specs: Sequence[InputSpec] = (),
) -> ClipSet:
    """A clip set of synthetic micro-expressions, for trying protocols and methods without licensed data.

    The table carries the label of the domain's scheme, the emotion behind it and the action units.

    Parameters
    ----------
    domain, n, seed, size, normalisation
        As in `synthetic_maps`.
    subjects : int
        Number of made-up subjects that the clips are dealt to in turn.
    specs : sequence of InputSpec, optional
        The media to make, for example a backbone's ``input_specs``, in place of `size` and `normalisation`: a single
        square flow map comes from here, anything else from `fsmer.synthetic.recordings`.

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

    if specs:
        (wanted, *further), (height, width) = specs, specs[0].size
        if further or wanted.kind != "flow" or height != width:
            from fsmer.synthetic.recordings import synthetic_frame_clips

            return synthetic_frame_clips(domain, n, seed=seed, specs=specs, subjects=subjects)
        size, normalisation = height, cast(Normalisation, wanted.normalisation)
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
    """Clean signed flow of one action unit on the canonical face, for pictures.

    Returns
    -------
    float32 array of shape (3, size, size)
        u, v and strain, in units of a clearly visible movement.

    Raises
    ------
    UnknownNameError
        No action unit of that number is in the tables.
    """
    if unit not in ACTION_UNIT_ORDER:
        raise unknown_name("action unit", unit, map(str, ACTION_UNIT_ORDER))
    return clean_flow(unit, size)


def _blocks(n: int, start: int, seed: int, domain: Domain) -> Iterator[tuple[int, int, np.random.Generator]]:
    key = int.from_bytes(domain.name.encode()[:8].ljust(8, b"\0"), "little")
    for begin in range(0, n, BLOCK):
        sequence = np.random.SeedSequence([seed, key, (start + begin) // BLOCK])
        yield begin, min(begin + BLOCK, n), np.random.Generator(np.random.PCG64(sequence))


def _maps(flow: Array, normalisation: Normalisation) -> Array:
    maps = np.concatenate([flow, optical_strain(flow)[:, None]], axis=1)
    if normalisation == "signed":
        return maps * np.float32(UNIT_DISPLACEMENT)
    low = maps.min(axis=(2, 3), keepdims=True)
    return (maps - low) / np.maximum(maps.max(axis=(2, 3), keepdims=True) - low, 1e-12)
