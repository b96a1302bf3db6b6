"""What arrays hold: the spec of a bare array, the common one of several, and which array cannot be used."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsmer.arrays import as_float32
from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, SpecMismatchError

__all__ = ["check_arrays", "flow_map_spec"]

# 8-bit maps divided by 255 hit 0 and 1 exactly; interpolation of float maps may overshoot by rounding only.
RANGE_TOLERANCE = 1e-3


def flow_map_spec(array: NDArray[Any]) -> InputSpec:
    """Spec of flow maps given as a bare array of shape ``(N, channels, height, width)``; `DataError` for others.

    Two channels are (u, v), three are (u, v, strain). The normalisation is taken to be ``"minmax"``, as in the public
    maps; signed flow has to be declared with a spec, since numbers alone cannot tell the unit.
    """
    names = {2: ("u", "v"), 3: ("u", "v", "strain")}
    if array.dtype.kind not in "fiu" or array.ndim != 4 or array.shape[1] not in names:
        raise DataError(
            f"the flow array has shape {shape_text(array.shape)} and type {array.dtype}, but numbers of shape (clips, "
            "channels, height, width) with channels (u, v) or (u, v, strain) are expected; move axes or pass a spec."
        )
    if array.dtype.kind in "iu" and array.dtype != np.uint8:
        raise DataError(f"the flow array holds {array.dtype}; give 8-bit maps (uint8, read as value / 255) or floats.")
    return InputSpec(size=(array.shape[2], array.shape[3]), channels=names[array.shape[1]])


def common_spec(specs: Sequence[InputSpec]) -> InputSpec:
    """The one spec of media that are put together, or `SpecMismatchError` naming the two that differ.

    A flow method that one side does not know makes the method of the whole unknown.
    """
    first = specs[0]
    for other in specs[1:]:
        other.check_feeds(first, who="the first set of clips, to which they are to be joined,")
    methods = {spec.flow_method for spec in specs} - {None}
    if len(methods) > 1:
        one, two, *_ = sorted(str(method) for method in methods)
        raise SpecMismatchError(
            f"the clips were prepared with different flow methods ({one} and {two}); prepare them with one."
        )
    if all(spec == first for spec in specs):
        return first
    return InputSpec(first.kind, first.size, first.channels, first.normalisation, None)


def check_arrays(arrays: NDArray[Any], spec: InputSpec) -> tuple[int, str] | None:
    """Position and reason of the first unusable array of a stack of shape ``(N, *spec.shape)``, or None.

    Floats, or 8-bit numbers that stand for value / 255. Usable are arrays that are finite, not constant and, for
    min-max maps and images, inside 0..1.
    """
    if not len(arrays):
        return None
    # Per clip and channel, over space and, where there is any, time.
    axes = (1, 3, 4) if arrays.ndim == 5 else (2, 3)
    low: Any = unit_floats(arrays.min(axis=axes))
    high: Any = unit_floats(arrays.max(axis=axes))
    finite = (np.isfinite(low) & np.isfinite(high)).all(axis=1)
    flat = low == high
    minmax = spec.normalisation == "minmax"
    # Every channel of min-max maps was stretched to 0..1: a flat one means that the map was not made from a movement.
    constant = flat.any(axis=1) if minmax else flat.all(axis=1) & (low == low[:, :1]).all(axis=1)
    outside = ((low < -RANGE_TOLERANCE) | (high > 1 + RANGE_TOLERANCE)).any(axis=1)
    if spec.normalisation not in ("minmax", "unit"):
        outside[:] = False
    bad = ~finite | constant | outside
    if not bad.any():
        return None
    place = int(bad.argmax())
    if not finite[place]:
        channel = spec.channels[int((~(np.isfinite(low[place]) & np.isfinite(high[place]))).argmax())]
        return place, f"its {spec.kind} holds NaN or infinity in channel {channel!r}; compute the {spec.kind} again."
    if constant[place]:
        channel = f"channel {spec.channels[int(np.flatnonzero(flat[place])[0])]!r} of " if minmax else ""
        return place, (
            f"{channel}its {spec.kind} is constant (every pixel {low[place][flat[place]][0]:g}), "
            f"so there is {'no movement' if 'flow' in spec.kind else 'nothing'} to see; "
            f"compute the {spec.kind} again or leave the clip out."
        )
    what, remedy = "brightness lies", "divide 8-bit images by 255"
    if minmax:
        what = "min-max maps lie"
        remedy = "divide 8-bit maps by 255, or declare signed flow with InputSpec(normalisation='signed')"
    reach = f"{low[place].min():g} to {high[place].max():g}"
    return place, f"its {spec.kind} runs from {reach}, but {what} in 0..1; {remedy}."


def unit_floats(array: NDArray[Any]) -> NDArray[np.float32]:
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    return as_float32(array)


def size_reason(shape: tuple[int, ...], spec: InputSpec) -> str:
    return (
        f"its {spec.kind} has shape {shape_text(shape)}, but the other clips hold {shape_text(spec.shape)} "
        "(channels, height, width); prepare all clips at one size."
    )


def shape_text(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
