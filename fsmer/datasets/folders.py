"""Folders of frames as data sets lay them out: frames in their order, and names that differ in case or padding."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from natsort import natsort_keygen, ns
from numpy.typing import NDArray

from fsmer.datasets.sheets import plain

__all__ = ["VIDEO_ENDINGS", "Folders", "Frames", "folder_key", "frame_files", "list_frames", "natural_order"]

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})
VIDEO_ENDINGS = frozenset({".avi", ".mp4", ".mov", ".mkv", ".webm", ".wmv", ".m4v"})

# Archives unpack into a folder of their own name, now and then twice.
DEEPEST_PLACE = 3
DEEPEST_SHEET = 2


@dataclass(frozen=True)
class Frames:
    """The frame files of one folder in natural order, with their numbers: int64, shape (len(names),).

    Of the numbers in each name the last that rises from frame to frame; where none does (a time in hours, minutes and
    seconds), frames are counted from 0.
    """

    folder: Path
    names: tuple[str, ...]
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)


def frame_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Frame files of a folder in the natural order of their names, see `natural_order`.

    Padding does not matter (``img9.jpg`` comes before ``img10.jpg``). Files that are no images, hidden files, and
    images named unlike the rest (a ``cover_1.png`` among ``img1.jpg, img2.jpg, ...``) are left out. The indices
    in the table of `read_dataset` count these files.
    """
    frames = list_frames(Path(folder))
    return [frames.folder / name for name in frames.names]


def list_frames(folder: Path) -> Frames:
    """Names and numbers of the frame files of a folder; none where it cannot be read."""
    exact: dict[tuple[str, str, str], list[tuple[int, str]]] = defaultdict(list)
    for name in _names(folder, lambda entry: not entry.is_dir()):
        stem, ending = os.path.splitext(name)
        number = re.search(r"(\d+)\D*$", stem)
        if number is not None and ending.lower() in IMAGE_ENDINGS and not name.startswith("."):
            exact[stem[: number.start()], stem[number.end(1) :], ending].append((int(number[1]), name))
    # Names that differ in numbers and letter case alone belong together; of groups of one size the first by name.
    shapes: dict[tuple[str, ...], list[tuple[str, str, str]]] = defaultdict(list)
    for form in exact:
        shapes[tuple(re.sub(r"\d+", "0", part.lower()) for part in form)].append(form)
    forms = max(shapes.values(), key=lambda held: sum(len(exact[form]) for form in held), default=[])
    frames = sorted(frame for form in forms for frame in exact[form])
    # The digits after a dot may be those of a decimal number.
    uneven = len(forms) > 1 or any(re.search(r"\d\.$", start) for start, _, _ in forms)
    if uneven or any(number >= 2**63 for number, _ in frames):
        ordered = natural_order(name for _, name in frames)
        return Frames(folder, tuple(ordered), _frame_numbers(ordered))
    return Frames(folder, tuple(name for _, name in frames), np.array([number for number, _ in frames], np.int64))


def _frame_numbers(names: Sequence[str]) -> NDArray[np.int64]:
    rows = [tuple(int(digits) for digits in re.findall(r"\d+", os.path.splitext(name)[0])) for name in names]
    for column in reversed(list(zip(*rows, strict=True))):
        rises = all(one < two or rows[place] == rows[place + 1] for place, (one, two) in enumerate(pairwise(column)))
        if rises and column[-1] < 2**63:
            return np.array(column, np.int64)
    return np.arange(len(names), dtype=np.int64)


def natural_order(names: Iterable[str]) -> list[str]:
    """File names by all the numbers in them, so img2 comes before img10; names without a number come first.

    Letter case and the padding of numbers do not matter, and digits of the suffix (jp2) are no number. Digits on both
    sides of a dot are one decimal number (t0.45 before t0.5) where the names are written so: with places of different
    length, none of which ends in 0, after wholes that differ or are 0. Otherwise they are two numbers (cam1.9 before
    cam1.11).

    >>> natural_order(["reg_img10.jpg", "reg_img9.jpg", "reg_img100.jpg"])
    ['reg_img9.jpg', 'reg_img10.jpg', 'reg_img100.jpg']
    >>> natural_order(["10_0.png", "2_0.png", "1_0.png"])
    ['1_0.png', '2_0.png', '10_0.png']
    """
    listed = list(names)
    dotted = [pair for name in listed for pair in re.findall(r"(\d+)\.(\d+)", os.path.splitext(name)[0])]
    wholes, places = {whole.lstrip("0") for whole, _ in dotted}, {digits for _, digits in dotted}
    trailing = any(len(digits) > 1 and digits.endswith("0") for digits in places)
    decimal = not trailing and len({len(digits) for digits in places}) > 1 and (len(wholes) > 1 or wholes == {""})
    natural = natsort_keygen(alg=ns.IGNORECASE | (ns.FLOAT | ns.NOEXP if decimal else ns.INT))

    def key(name: str) -> tuple[Any, ...]:
        stem = os.path.splitext(name)[0]
        return re.search(r"\d", stem) is not None, natural(stem), name

    return sorted(listed, key=key)


def folder_key(name: str) -> str:
    """Form of a name in which letter case and the padding of numbers do not matter: ``"Sub01"`` -> ``"sub1"``."""
    return re.sub(r"\d+", lambda digits: digits[0].lstrip("0") or "0", name.strip().lower())


class Folders:
    """Finds folders by name; each is listed once."""

    def __init__(self) -> None:
        self._listed: dict[Path, tuple[Path, ...]] = {}
        self._keys: dict[Path, dict[str, Path]] = {}
        # Long recordings have thousands of frames each, so only the last few lists are kept.
        self.frames = lru_cache(maxsize=64)(list_frames)

    def children(self, folder: Path) -> tuple[Path, ...]:
        """Folders in a folder, by name, without hidden ones."""
        if folder not in self._listed:
            folders = _names(folder, lambda entry: not entry.name.startswith(".") and entry.is_dir())
            self._listed[folder] = tuple(folder / name for name in folders)
        return self._listed[folder]

    def child(self, folder: Path, name: str) -> Path | None:
        """Folder in a folder: of exactly that name, else of the same `folder_key`."""
        if folder not in self._keys:
            keys: dict[str, Path] = {}
            for path in self.children(folder):
                keys.setdefault(folder_key(path.name), path)
            keys.update({f"={path.name}": path for path in self.children(folder)})
            self._keys[folder] = keys
        known = self._keys[folder]
        return known.get(f"={name}") or known.get(folder_key(name))

    def descend(self, folder: Path, *names: str) -> Path | None:
        """Follow several names down, one level each."""
        place: Path | None = folder
        for name in names:
            place = None if place is None else self.child(place, name)
        return place

    def find(self, root: Path, pattern: str) -> Iterator[Path]:
        """Folders under (or at) `root` that fit a pattern, nearest first.

        A pattern is a name, or names joined by ``/``, compared without case, blanks and punctuation; ``"."`` is the
        root.
        """
        if pattern == ".":
            yield root
            return
        first, *rest = pattern.split("/")
        for folder in self._below(root, DEEPEST_PLACE):
            if plain(folder.name) == plain(first):
                found = self.descend(folder, *rest)
                if found is not None:
                    yield found

    def files(self, root: Path, endings: frozenset[str], *, depth: int = DEEPEST_SHEET) -> list[Path]:
        """Files with one of these endings under `root`, nearest first, without hidden and lock files."""

        def wanted(entry: os.DirEntry[str]) -> bool:
            ending = os.path.splitext(entry.name)[1].lower()
            return ending in endings and not entry.name.startswith((".", "~$")) and entry.is_file()

        return [folder / name for folder in self._below(root, depth) for name in _names(folder, wanted)]

    def _below(self, root: Path, depth: int) -> Iterator[Path]:
        level: Sequence[Path] = (root,)
        yield root
        for _ in range(depth):
            level = [child for folder in level for child in self.children(folder)]
            yield from level


def _names(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    """Names of some entries of a folder, sorted; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if wanted(entry))
    except OSError:
        return []
