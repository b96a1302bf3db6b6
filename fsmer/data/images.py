"""Picture files: opened by content within bounds, and read as 8-bit RGB maps."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsmer.errors import MediaError
from fsmer.io import check_regular

__all__ = ["opened_image"]

# A small file may stand for any number of pixels. Maps are small; frames may be those of an 8K camera (33 million).
MAP_PIXELS, FRAME_PIXELS = 1 << 24, 1 << 26
# Pillow goes by content, not by name, and some of its other readers start programs.
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_OF_FILES = (OSError, SyntaxError, ValueError, EOFError, MemoryError)
DECODER_ERRORS = (*_OF_FILES, OverflowError, AssertionError, LookupError, struct.error)


@contextmanager
def opened_image(path: str | os.PathLike[str], most_pixels: int = FRAME_PIXELS) -> Iterator[Any]:
    """Open a picture file with Pillow; its header is read, its pixels are not yet.

    A `MediaError` is raised for a file that is missing, no regular file, of more than `most_pixels`, or cannot be
    decoded (also while the picture is in use).
    """
    from PIL import Image

    try:
        check_regular(path)
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > most_pixels:
                raise MediaError(
                    f"{path} has {image.height}x{image.width} pixels, more than {most_pixels:,}; make it smaller."
                )
            yield image
    except MediaError:
        raise
    except FileNotFoundError as error:
        raise MediaError(f"the file {path} does not exist; put it there or leave the clip out.") from error
    # Pillow's decoders raise whatever the damaged bytes lead them into.
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it contradicts itself"
        raise MediaError(f"the file {path} cannot be read as an image ({reason}); copy it again.") from error


def has_deep_colours(image: Any) -> bool:
    """Whether a colour picture has 16 bits a channel, of which Pillow gives the upper 8 alone."""
    # The fourth entry is called `args` by newer versions of Pillow alone.
    layout = str(image.tile[0][3]) if image.tile else ""
    return image.mode in ("LA", "RGB", "RGBA") and (";16" in layout or "65535" in layout)


def check_colours(image: Any, file: str) -> None:
    mode = f"{image.mode} of 16 bits" if has_deep_colours(image) else image.mode
    if mode != "RGB":
        raise MediaError(
            f"{file} is an image of mode {mode}, expected is 8-bit RGB (red = u, green = v, blue = strain)."
        )
