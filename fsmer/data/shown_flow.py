"""The flow of a clip as it is drawn: with zero where nothing moves, and of flow over time one map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fsmer.data.spec import InputSpec

__all__ = ["Array", "Medium", "farthest", "flow_kind", "flows_of", "way_from_first"]

Array = NDArray[np.float32]
Medium = tuple[InputSpec, Array]


def flow_kind(specs: Mapping[str, InputSpec]) -> str:
    """The medium that holds u and v, ``""`` where none does."""
    return next((kind for kind in ("flow", "flows") if kind in specs and len(specs[kind].channels) > 1), "")


def flows_of(media: Mapping[str, Medium]) -> Iterator[tuple[str, Array]]:
    """Title and array of the flow to draw, if a clip has one: to the apex, or to the frame farthest from the first."""
    if "flow" in media:
        spec, flow = media["flow"]
        yield "flow", _centred(flow) if spec.normalisation == "minmax" else flow
    elif "flows" in media:
        way = way_from_first(media["flows"][1])
        most = farthest(way)
        yield f"flow, frame 1 to {most + 2}", way[most]


def way_from_first(flows: Array) -> Array:
    """Flow from the first frame to each of the others, of steps whose last only repeats the one before."""
    return np.asarray(np.cumsum(flows[:-1], axis=0))


def farthest(way: Array) -> int:
    """The frame of a `way_from_first` where the face has moved most."""
    return int(np.hypot(way[:, 0], way[:, 1]).mean(axis=(1, 2)).argmax())


def _centred(flow: Array) -> Array:
    """Min-max maps with each direction's median, which stands in for no movement, at zero."""
    centred = flow.copy()
    centred[:2] -= np.median(centred[:2], axis=(1, 2), keepdims=True)
    return centred
