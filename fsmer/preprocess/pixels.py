"""Images of any depth and number of channels as 8-bit RGB."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.errors import MediaError

__all__ = ["as_rgb"]

Frame = NDArray[np.uint8]
# 16-bit values that stay below it use no more than 14 bits: a camera's raw values rather than a dark picture.
DIM = 1 << 14


def as_rgb(frame: ArrayLike, name: str = "the frame", white: float | None = None) -> Frame:
    """Any image as 8-bit RGB of shape ``(height, width, 3)``.

    The image is grey (H, W) or (H, W, 1), grey with alpha (H, W, 2), RGB or RGBA, of integers, floats or bool;
    transparent parts become black. `white` is the value of white, where black is 0, e.g. 4095 for 12 bits in a 16-bit
    type; default 255 for uint8, 65535 for uint16, 1 for floats and bool; other integers have none. Another shape or
    type, values outside the range, or 16-bit values so low that the range must be another one raise `MediaError`, which
    calls the image `name`.
    """
    array = np.asarray(frame)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or 0 in array.shape:
        raise MediaError(
            f"{name} has shape {array.shape}, but an image is (height, width) or (height, width, channels) with 1 to "
            "4 channels; move the channels last."
        )
    if array.dtype != np.uint8 or white not in (None, 255):
        array = _eight_bit(array, name, white)
    if array.shape[2] in (2, 4):
        colour, alpha = array[..., :-1].astype(np.uint16), array[..., -1:].astype(np.uint16)
        array = ((colour * alpha + 127) // 255).astype(np.uint8)
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return cast(Frame, np.ascontiguousarray(array))


def colour_channels(image: NDArray[Any]) -> NDArray[Any]:
    """The channels of an image without alpha."""
    return image[..., :-1] if image.ndim == 3 and image.shape[2] in (2, 4) else image


def _eight_bit(array: NDArray[Any], name: str, white: float | None) -> NDArray[np.uint8]:
    """Values from 0 to `white` as 0 to 255; only colours must stay within, as alpha may have a range of its own."""
    kind, bits = array.dtype.kind, 8 * array.dtype.itemsize
    if kind not in "buif":
        raise MediaError(f"{name} holds values of type {array.dtype}; give uint8, uint16 or floats in 0..1.")
    if kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    low, high = float(colour_channels(array).min()), float(colour_channels(array).max())
    top = white
    if top is None:
        if kind in "ui" and (kind, bits) not in (("u", 8), ("u", 16)):
            raise MediaError(
                f"{name} holds values of type {array.dtype} from {low:g} to {high:g}, whose range is not known; state "
                "the value of white (white=4095 for 12 bits), or give uint8, uint16 or floats in 0..1."
            )
        top = 1.0 if kind == "f" else float(2**bits - 1)
        if kind == "u" and 0 < high < DIM:
            raise MediaError(
                f"{name} holds 16-bit values up to {high:g} only, which would be nearly black; open it by "
                "open_frames(..., white=4095) if it has 12 bits, or white=65535 if it is so dark; for tables and the "
                "command line, save it with 8 bits."
            )
    if not (low >= -1e-3 * top and high <= top * (1 + 1e-3)):
        values = "floats" if kind == "f" else "values"
        advice = "divide 8-bit values by 255" if top == 1 else "state the right value of white"
        raise MediaError(
            f"{name} holds {values} from {low:g} to {high:g}, but 0 (black) to {top:g} (white) is expected; {advice}."
        )
    wide = array.astype(np.promote_types(array.dtype, np.float32), copy=False)
    return np.rint(np.clip(wide, 0, top) * (255 / top)).astype(np.uint8)
