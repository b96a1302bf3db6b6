"""Small videos for tests, whose frames show their own number in eight bars of light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS, BAR, HEIGHT = 8, 12, 64
WIDTH = BITS * BAR


def picture(number: int) -> np.ndarray:
    """A frame of 64x96 pixels, the lowest bit of its number at the left."""
    bars = [220 if number >> bit & 1 else 30 for bit in range(BITS)]
    return np.broadcast_to(np.repeat(np.uint8(bars), BAR)[None, :, None], (HEIGHT, WIDTH, 3)).copy()


def number_of(frame: np.ndarray) -> int:
    """The number that a frame shows, whatever its width."""
    middles = ((np.arange(BITS) + 0.5) * frame.shape[1] / BITS).astype(int)
    return sum(int(frame[frame.shape[0] // 2, place].mean() > 125) << bit for bit, place in enumerate(middles))


def write_numbered(
    path: Path,
    numbers: Sequence[int] = range(48),
    *,
    codec: str = "libx264",
    muxer: str | None = None,
    rate: int = 25,
    milliseconds: int | None = None,
    b_frames: int | None = None,
    pixels: str = "yuv420p",
    pixel_shape: Fraction | None = None,
    options: dict[str, str] | None = None,
    muxer_options: dict[str, str] | None = None,
) -> Path:
    """Write frames of these numbers, each at the time of its number; `milliseconds` is from one number to the next."""
    with av.open(str(path), "w", format=muxer, options=muxer_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, pixels, 12
        if b_frames is not None:
            stream.max_b_frames = b_frames
        if pixel_shape is not None:
            stream.codec_context.sample_aspect_ratio = pixel_shape
        unit = Fraction(1, 1000 if milliseconds else rate)
        stream.codec_context.time_base = unit
        for number in numbers:
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = number * (milliseconds or 1), unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
