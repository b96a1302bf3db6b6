"""A folder of images, one a frame."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.data.images import has_deep_colours, opened_image
from fsmer.datasets.folders import natural_order
from fsmer.errors import MediaError
from fsmer.preprocess.frame_source import Frame, FrameSource, clean_timestamps

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
# EXIF's tag of a camera's turn, and its values for pictures that lie on their side, that are read from right to left
# and from bottom to top (after they were laid upright).
ORIENTATION = 0x0112
SIDEWAYS, LEFTWARDS, UPWARDS = frozenset({5, 6, 7, 8}), frozenset({2, 3, 6, 7}), frozenset({3, 4, 7, 8})


class ImageFolder(FrameSource):
    """A folder with one image a frame, in the natural order of their names, see `natural_order`.

    Images carry no time; without rate and time stamps, 25 frames a second are assumed (see `notes`). `files` are names
    inside the folder, in time's order; default every image in it, hidden files left out. For `white` see `as_rgb`. A
    folder without an image raises `MediaError`, and so does, when it is read, an image that cannot be decoded or has
    another size than the first.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        frames_per_second: float | None = None,
        timestamps: ArrayLike | None = None,
        files: Sequence[str] | None = None,
        white: float | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._white = white
        self.name = str(self.folder)
        try:
            here = [entry.name for entry in self.folder.iterdir()] if files is None else list(files)
        except OSError as error:
            raise MediaError(f"the folder {self.folder} cannot be read ({error.strerror}); check the path.") from error
        if files is None:
            here = natural_order(
                name for name in here if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
            )
        if not here:
            raise MediaError(
                f"the folder {self.folder} holds no image; images ({', '.join(sorted(IMAGE_SUFFIXES))}) of one "
                "recording are expected directly in it."
            )
        self.files: tuple[str, ...] = tuple(here)
        self._count = len(here)
        self._times, self._rate, self.notes = clean_timestamps(timestamps, len(here), frames_per_second)
        self._known_size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels: of the first frame that was read, else of the first file."""
        if self._known_size is None:
            # The header of the file is enough; its picture may never be asked for.
            with opened_image(self._path(0)) as image:
                turned = image.getexif().get(ORIENTATION, 1) in SIDEWAYS
                self._known_size = (image.width, image.height) if turned else (image.height, image.width)
        return self._known_size

    def _frame(self, index: int) -> Frame:
        return self._checked(self._decode(index), index)

    def _path(self, index: int) -> str:
        return os.path.join(self.folder, self.files[index])

    def _decode(self, index: int) -> Frame:
        path = self._path(index)
        with opened_image(path) as image:
            pixels = _pixels(image, path)
            turn = image.getexif().get(ORIENTATION, 1)
        if index and pixels.dtype == np.uint16 and self._white is None and self._deep_white is None:
            # Whichever is asked for first, the first of the folder decides how 16 bits are read.
            self._decode(0)
        if turn in SIDEWAYS:
            pixels = np.swapaxes(pixels, 0, 1)
        pixels = pixels[:: -1 if turn in UPWARDS else 1, :: -1 if turn in LEFTWARDS else 1]
        frame = self._rgb(pixels, path)
        if self._known_size is None:
            self._known_size = cast(tuple[int, int], frame.shape[:2])
        return frame


def _pixels(image: Any, path: str) -> NDArray[Any]:
    """Pixels of an opened picture in their own depth."""
    if has_deep_colours(image):
        deep = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
        if deep is None or deep.ndim != 3:
            raise MediaError(f"{path} cannot be read as an image of 16 bits a channel; save it with 8 bits.")
        return np.asarray(cv2.cvtColor(deep, cv2.COLOR_BGR2RGB if deep.shape[2] == 3 else cv2.COLOR_BGRA2RGBA))
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        # Pillow holds their 16 bits in 32.
        return np.asarray(image).astype(np.uint16)
    if image.mode.startswith("I") or image.mode == "F":
        return np.asarray(image)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))
