"""Folders of frames as data sets lay them out: frames in their order, and names that differ in case or padding."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsmer.data.adapters.sheets import plain

__all__ = ["IMAGE_ENDINGS", "VIDEO_ENDINGS", "Folders", "Frames", "folder_key", "frame_files", "list_frames"]

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})
VIDEO_ENDINGS = frozenset({".avi", ".mp4", ".mov", ".mkv", ".webm", ".wmv", ".m4v"})

# Archives unpack into a folder of their own name, now and then twice.
DEEPEST_PLACE = 3
DEEPEST_SHEET = 2


@dataclass(frozen=True)
class Frames:
    """The frame files of one folder, in their order.

    Parameters
    ----------
    folder : Path
    names : tuple of str
        File names, by rising number.
    numbers : int64 array, shape (len(names),)
        The last number in each name.
    """

    folder: Path
    names: tuple[str, ...]
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)


def frame_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Frame files of a folder in order of the last number in their names.

    Padding does not matter (``img9.jpg`` comes before ``img10.jpg``). Files that are no images, hidden files, and
    images named unlike the rest (a stray ``cover_1.png`` among ``img1.jpg, img2.jpg, ...``) are left out. The indices
    in the table of `read_dataset` count these files.
    """
    frames = list_frames(Path(folder))
    return [frames.folder / name for name in frames.names]


def list_frames(folder: Path) -> Frames:
    """Names and numbers of the frame files of a folder; none where it cannot be read."""
    shapes: dict[tuple[str, ...], list[tuple[int, str]]] = {}
    group: list[tuple[int, str]] | None = None
    start, end = "", ""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.is_dir())
    except OSError:
        names = []
    for name in names:
        # Nearly all names of a folder differ in their last number alone.
        digits = name[len(start) : len(name) - len(end)]
        if group is not None and name.startswith(start) and name.endswith(end) and digits.isdecimal():
            group.append((int(digits), name))
            continue
        stem, ending = os.path.splitext(name)
        if name.startswith(".") or ending.lower() not in IMAGE_ENDINGS:
            continue
        number = re.search(r"(\d+)\D*$", stem)
        if number is not None:
            start, end = stem[: number.start()], stem[number.end(1) :] + ending
            shape = tuple(re.sub(r"\d+", "0", part.lower()) for part in (start, stem[number.end(1) :], ending))
            group = shapes.setdefault(shape, [])
            group.append((int(number[1]), name))
    # Of groups of one size the first by name.
    most = max((len(group) for group in shapes.values()), default=0)
    frames = sorted(next((group for group in shapes.values() if len(group) == most), []))
    return Frames(folder, tuple(name for _, name in frames), np.array([number for number, _ in frames], np.int64))


def folder_key(name: str) -> str:
    """Form of a name in which letter case and the padding of numbers do not matter: ``"Sub01"`` -> ``"sub1"``."""
    return re.sub(r"\d+", lambda digits: str(int(digits[0])), name.strip().lower())


class Folders:
    """Looks folders up by name, each listed once."""

    def __init__(self) -> None:
        self._listed: dict[Path, tuple[Path, ...]] = {}
        self._keys: dict[Path, dict[str, Path]] = {}
        # Long recordings have thousands of frames each, so only the last few lists are kept.
        self.frames = lru_cache(maxsize=64)(list_frames)

    def children(self, folder: Path) -> tuple[Path, ...]:
        """Folders in a folder, by name, without hidden ones."""
        if folder not in self._listed:
            try:
                with os.scandir(folder) as entries:
                    found = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
            except OSError:
                found = []
            self._listed[folder] = tuple(folder / name for name in sorted(found))
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

        Parameters
        ----------
        root : Path
        pattern : str
            A name, or names joined by ``/``, compared without case, blanks and punctuation; ``"."`` is the root itself.
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
        found: list[Path] = []
        for folder in self._below(root, depth):
            try:
                with os.scandir(folder) as entries:
                    names = [
                        entry.name
                        for entry in entries
                        if os.path.splitext(entry.name)[1].lower() in endings
                        and not entry.name.startswith((".", "~$"))
                        and entry.is_file()
                    ]
            except OSError:
                names = []
            found += [folder / name for name in sorted(names)]
        return found

    def _below(self, root: Path, depth: int) -> Iterator[Path]:
        level: Sequence[Path] = (root,)
        yield root
        for _ in range(depth):
            level = [child for folder in level for child in self.children(folder)]
            yield from level
