"""Synthetic micro-expressions: flow maps drawn from FACS anatomy, with everything that is not expression added on top.

A clip is a set of action units with intensities and left-right asymmetry on an individual face
(`fsmer.synthetic.facs_fields`), plus head motion (translation, rotation, scaling, and turning of a face with depth),
blinks, a background that stands still, and an optical-flow estimator that trusts textured skin, fills the rest from its
neighbourhood and adds smooth, patchy noise. u, v and strain follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.data.clips import ClipSet
from fsmer.data.facs import ACTION_UNIT_ORDER, EMOTION_ORDER
from fsmer.data.media import ArrayStore
from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, unknown_name
from fsmer.synthetic.domains import UNIT_DISPLACEMENT, Domain, clip_table, load_domain
from fsmer.synthetic.flow_maps import FaceDraw, clean_flow, draw_faces, min_max, optical_strain, render_flow
from fsmer.synthetic.unit_sets import UnitSet, dealt_codes, patterns_of, unit_set

__all__ = ["ACTION_UNIT_ORDER", "EMOTION_ORDER", "SyntheticMaps", "action_unit_maps"]
__all__ += ["synthetic_clips", "synthetic_maps", "unit_set_maps"]

Array = NDArray[np.floating[Any]]
Normalisation = Literal["minmax", "signed"]
# Clips are drawn in blocks with a seed of their own, so clip i is the same however many clips are asked for.
BLOCK = 256
# Last word of the seeds of clips whose classes are sets of action units.
_UNIT_SETS = 1


@dataclass(frozen=True)
class SyntheticMaps:
    """Arrays of a synthetic draw."""

    maps: Array  # (N, 3, size, size), u, v, strain
    units: NDArray[np.bool_]  # (N, len(ACTION_UNIT_ORDER)), which action units were active
    emotions: NDArray[np.int64]  # (N,), index into `EMOTION_ORDER`; -1 where action units were asked for


def synthetic_maps(
    n: int,
    *,
    domain: str | Domain = "broad",
    seed: int = 0,
    size: int = 28,
    normalisation: Normalisation = "minmax",
    start: int = 0,
) -> SyntheticMaps:
    """Draw `n` synthetic flow maps of `size` pixels (8 to 224); clip i depends on seed, domain and size, not on `n`.

    Normalisation ``"minmax"`` scales u, v and strain each to 0..1 per clip, as the public MEGC 2019 maps are;
    ``"signed"`` is in thousandths of the face width (strain: the same per crop width). `start` is the number of the
    first clip, a multiple of 256, to draw a long stream in pieces. A `DataError` is raised for a number that is out of
    range or an unknown normalisation.
    """
    place = load_domain(domain)
    if n < 0 or start % BLOCK or start < 0:
        raise DataError(f"cannot draw {n} maps from clip {start}: n must be 0 or more, start a multiple of {BLOCK}.")

    def draw(begin: int) -> FaceDraw:
        sequence = np.random.SeedSequence([seed, place.key, (start + begin) // BLOCK])
        return draw_faces(place, BLOCK, np.random.Generator(np.random.PCG64(sequence)))

    return _rendered(n, draw, size, normalisation)


def unit_set_maps(
    sets: Sequence[UnitSet | str],
    codes: ArrayLike,
    *,
    domain: str | Domain = "broad",
    seed: int | Sequence[int] = 0,
    size: int = 28,
    normalisation: Normalisation = "minmax",
) -> SyntheticMaps:
    """Draw flow maps of classes that are sets of action units; all arguments together decide on every number.

    Parameters
    ----------
    sets : sequence of UnitSet or str
        The classes, or their names such as ``"6+12"`` and ``"L14"``.
    codes : array of int, shape (N,)
        The class of each clip, as an index into `sets`.
    domain : str or Domain, default "broad"
        A name of `list_domains`, or a domain.
    seed : int or sequence of int, default 0
        Of all that is drawn.
    size, normalisation
        As in `synthetic_maps`.

    Returns
    -------
    SyntheticMaps
        Its `emotions` are -1. Its `units` are those of the class, and now and then one more that the domain adds.

    Raises
    ------
    DataError
        A class, code or number is not possible.
    UnknownNameError
        There is no such domain or action unit; the message names the nearest.

    Examples
    --------
    >>> from fsmer.synthetic.clips import unit_set_maps
    >>> unit_set_maps(["6+12", "L14"], [0, 0, 1], domain="clinic").maps.shape
    (3, 3, 28, 28)
    """
    place, classes = load_domain(domain), [unit_set(one) for one in sets]
    wanted = np.asarray(codes, dtype=np.int64)
    if wanted.ndim != 1 or ((wanted < 0) | (wanted >= len(classes))).any():
        raise DataError(f"codes of shape {wanted.shape} do not say which of {len(classes)} classes each clip has.")
    words = [seed] if isinstance(seed, int) else list(seed)

    def draw(begin: int) -> FaceDraw:
        part = wanted[begin : begin + BLOCK]
        sequence = np.random.SeedSequence([*words, place.key, begin // BLOCK, _UNIT_SETS])
        generator = np.random.Generator(np.random.PCG64(sequence))
        return draw_faces(place, len(part), generator, patterns_of(classes, part, place))

    return _rendered(len(wanted), draw, size, normalisation)


def _rendered(n: int, draw: Callable[[int], FaceDraw], size: int, normalisation: Normalisation) -> SyntheticMaps:
    """Maps of `n` clips; `draw` makes the block that begins with a clip."""
    if not 8 <= size <= 224:
        raise DataError(f"cannot draw maps of size {size}: size must be 8 to 224 pixels.")
    if normalisation not in ("minmax", "signed"):
        raise DataError(f"unknown normalisation {normalisation!r}: expected 'minmax' or 'signed'.")
    maps = np.empty((n, 3, size, size), dtype=np.float32)
    units = np.empty((n, len(ACTION_UNIT_ORDER)), dtype=bool)
    emotions = np.empty(n, dtype=np.int64)
    for begin in range(0, n, BLOCK):
        drawn = draw(begin)
        part, count = slice(begin, begin + BLOCK), n - begin
        flow = render_flow(drawn, size)
        signed = np.concatenate([flow, optical_strain(flow)[:, None]], axis=1)
        scaled = signed * np.float32(UNIT_DISPLACEMENT) if normalisation == "signed" else min_max(signed)
        maps[part], units[part], emotions[part] = scaled[:count], drawn.units[:count], drawn.emotions[:count]
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
    classes: Sequence[UnitSet | str] = (),
) -> ClipSet:
    """A clip set of synthetic micro-expressions, for trying protocols and methods without licensed data.

    The table carries the label of the domain's scheme, the emotion behind it and the action units.

    Parameters
    ----------
    domain : str or Domain, default "lab"
        A name of `list_domains`, or a domain.
    n : int, default 300
        Number of clips.
    seed : int, default 0
        Seed of all that is drawn.
    size : int, default 28
        Height and width of the maps in pixels.
    normalisation : {"minmax", "signed"}, default "minmax"
        As in `fsmer.data.InputSpec`.
    subjects : int, default 20
        Number of made-up subjects that the clips are dealt to in turn.
    specs : sequence of InputSpec, default ()
        The media to make, for example a backbone's ``input_specs``, in place of `size` and `normalisation`: a single
        square flow map comes from here, anything else from `fsmer.synthetic.recordings`.
    classes : sequence of UnitSet, default ()
        Sets of action units to draw in place of emotions, in equal numbers, by name too: ``"6+12"``, or ``"L14"`` for
        the person's left half of the face alone. Their names are the labels.

    Returns
    -------
    ClipSet
        Its table has the emotion behind the label, if there is one, and the action units, too.

    Examples
    --------
    >>> import fsmer
    >>> clips = fsmer.synthetic_clips("lab", 12, seed=1)
    >>> len(clips), clips.classes
    (12, ('negative', 'positive', 'surprise'))
    """
    if specs:
        (wanted, *further), (height, width) = specs, specs[0].size
        if further or wanted.kind != "flow" or height != width:
            from fsmer.synthetic.frame_clips import synthetic_frame_clips

            return synthetic_frame_clips(domain, n, seed=seed, specs=specs, subjects=subjects, classes=classes)
        size, normalisation = height, cast(Normalisation, wanted.normalisation)
    place = load_domain(domain)
    if classes:
        sets = [unit_set(one) for one in classes]
        # Whole blocks: clip i does not depend on how many are asked for.
        codes = dealt_codes(sets, -(-n // BLOCK) * BLOCK, seed)
        drawn = unit_set_maps(sets, codes, domain=place, seed=seed, size=size, normalisation=normalisation)
        labels = [sets[code].name for code in codes[:n]]
        frame = clip_table(place, f"{place.name}_units_{seed}", subjects, drawn.units[:n], labels=labels)
    else:
        drawn = synthetic_maps(n, domain=place, seed=seed, size=size, normalisation=normalisation)
        emotions = [EMOTION_ORDER[index] for index in drawn.emotions]
        frame = clip_table(place, f"{place.name}_{seed}", subjects, drawn.units, emotions=emotions)
    spec = InputSpec(size=(size, size), normalisation=normalisation, flow_method=None)
    return ClipSet.from_table(frame, media={"flow": ArrayStore(drawn.maps[:n], spec)})


def action_unit_maps(unit: int, *, size: int = 56) -> Array:
    """Clean signed flow of one action unit on the canonical face, for pictures; `UnknownNameError` for another number.

    u, v and strain, float32 (3, size, size), in units of a clearly visible movement.
    """
    if unit not in ACTION_UNIT_ORDER:
        raise unknown_name("action unit", unit, map(str, ACTION_UNIT_ORDER))
    return clean_flow(unit, size)
