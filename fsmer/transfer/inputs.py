"""Clips and arrays as recognizers take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fsmer.arrays import plain_array
from fsmer.backbones import Backbone
from fsmer.backbones.embedding import check_inputs
from fsmer.data import Clip, ClipSet
from fsmer.data.media import ArrayStore
from fsmer.data.media_checks import check_arrays
from fsmer.errors import MediaError, SupportError

__all__ = ["as_inputs", "as_labelled_clips", "plain_labels"]

_EMPTY = "the support set is empty; give at least one labelled clip of every class."


def as_labelled_clips(values: Any, backbone: Backbone) -> ClipSet:
    """Labelled clips in any form that `fsmer.adapt` takes, as a clip set.

    Raises `SupportError` where nothing is there, a clip has no label, or it is none of these forms.
    """
    if isinstance(values, ClipSet):
        clips = values
    elif isinstance(values, tuple) and len(values) == 2 and not isinstance(values[0], Clip):
        media, labels = values[0], plain_labels(values[1])
        arrays = {kind: plain_array(one) for kind, one in media.items()} if isinstance(media, Mapping) else None
        first = plain_array(media) if arrays is None else next(iter(arrays.values()), np.zeros(0))
        if first.ndim == 0 or len(first) != len(labels):
            raise SupportError(
                f"{len(first) if first.ndim else 'no'} arrays came with {len(labels)} labels; give one label each."
            )
        if len(first) == 0:
            raise SupportError(_EMPTY)
        specs = backbone.input_specs
        if arrays is not None:
            clips = ClipSet.from_arrays(arrays, labels, spec=specs)
        else:
            clips = ClipSet.from_arrays(first, labels, spec=specs[0] if first.shape[1:] == specs[0].shape else None)
    elif isinstance(values, (list, tuple)) and all(isinstance(value, Clip) for value in values):
        if not values:
            raise SupportError(_EMPTY)
        clips = ClipSet.from_clips(values)
    else:
        raise SupportError(
            f"labelled clips came as {type(values).__name__}; give a ClipSet, a list of Clips or (arrays, labels)."
        )
    if not len(clips):
        raise SupportError(_EMPTY)
    for name, label in zip(clips.ids, clips.labels, strict=True):
        # A missing label may come as None, as empty text, or as the NaN of a table.
        if label is None or label == "" or label != label:
            raise SupportError(f"clip {name!r} has no label, which learning needs; label it or leave it out.")
    return clips


def as_inputs(values: Any, backbone: Backbone) -> Any:
    """Clips to be answered, in any form that a recognizer takes, as a clip set or arrays with an axis of clips."""
    if isinstance(values, ClipSet):
        return values
    specs = backbone.input_specs
    if isinstance(values, Clip) and all(spec.kind in values.media for spec in specs):
        # One clip is what a live camera asks about: read as it is, for a table of one row costs more than the network.
        arrays = {}
        for spec in specs:
            held = values.media[spec.kind].spec
            held.check_feeds(spec, who=repr(backbone.name))
            arrays[spec.kind] = held.pick_channels(values.read(spec.kind), spec)
        return arrays
    several = [values] if isinstance(values, Clip) else values
    if isinstance(several, (list, tuple)) and several and all(isinstance(value, Clip) for value in several):
        return ClipSet.from_clips(several)
    raw = values if isinstance(values, Mapping) else {specs[0].kind: values}
    given = {kind: plain_array(one) for kind, one in raw.items()}
    # 8-bit values become 0..1 before anything is compared.
    for spec in specs:
        array = given.get(spec.kind)
        if array is not None and array.dtype == np.uint8 and array.shape in (spec.shape, (len(array), *spec.shape)):
            array = array[None] if array.shape == spec.shape else array
            given[spec.kind] = ArrayStore(array, spec).read(np.arange(len(array)))
    arrays = check_inputs(backbone, given)
    for spec in specs:
        problem = check_arrays(arrays[spec.kind], spec)
        if problem is not None:
            raise MediaError(f"clip number {problem[0]} of the array cannot be used: {problem[1]}")
    return arrays


def plain_labels(labels: Any) -> NDArray[np.object_]:
    """Labels in any form as a flat array of objects."""
    found = plain_array(labels, "the labels") if isinstance(labels, Tensor) else labels
    return np.asarray(found, dtype=object).ravel()
