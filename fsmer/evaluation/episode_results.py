"""Finished episodes of a run: their answers, and the stores that they are written to at once, in any order."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsmer.array_files import read_arrays
from fsmer.errors import OutputError
from fsmer.evaluation.predictions import RUN_FILE, Predictions
from fsmer.io import atomic_path, digest, json_text, read_bytes, remove_unfinished
from fsmer.probabilities import unsound_answers

__all__ = ["EpisodeResults", "FinishedEpisodes", "PartStore", "RunSize", "stored_files"]

# A million queries with the probabilities of five classes take 36 MB.
PART_BYTES = 16 << 30


@dataclass(frozen=True)
class EpisodeResults:
    """Answers of some episodes."""

    numbers: NDArray[np.int64]  # which episodes, each once, (E,)
    names: tuple[str, ...]
    among: NDArray[np.bool_]  # the classes that each episode is about, (E, C)
    predictions: Predictions  # one episode after the other

    @classmethod
    def joined(cls, parts: Sequence[EpisodeResults]) -> EpisodeResults:
        """Parts of different episodes as one, in the order of the episodes."""
        numbers = np.concatenate([part.numbers for part in parts])
        names = [name for part in parts for name in part.names]
        among = np.concatenate([part.among for part in parts])
        predictions = Predictions.joined([part.predictions for part in parts])
        order, rows = np.argsort(numbers), np.argsort(predictions.episode, kind="stable")
        return cls(numbers[order], tuple(names[place] for place in order), among[order], predictions.rows(rows))

    def only(self, wanted: NDArray[np.bool_]) -> EpisodeResults | None:
        """The episodes for which `wanted` (one entry an episode of the run) holds; ``None`` where it does for none."""
        kept = wanted[self.numbers]
        if kept.all():
            return self
        if not kept.any():
            return None
        names = tuple(name for name, keep in zip(self.names, kept.tolist(), strict=True) if keep)
        rows = self.predictions.rows(wanted[self.predictions.episode])
        return EpisodeResults(self.numbers[kept], names, self.among[kept], rows)


@dataclass(frozen=True)
class RunSize:
    """What numbers in the parts of a run count up to: its episodes, clips and classes."""

    episodes: int
    clips: int
    classes: int


class PartStore:
    """Finished episodes of one run, each file whole or not there, with the digest of its content in its name.

    `about` is what the run is, written beside the episodes.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], size: RunSize) -> None:
        self.folder = folder
        self.size = size
        self._about = json_text(dict(about), sealed=True).encode()
        # Find out now, not after hours, that the folder cannot be written.
        self._write_file(RUN_FILE, self._about)
        remove_unfinished(folder)

    def write(self, parts: Sequence[EpisodeResults]) -> EpisodeResults:
        """Store finished episodes in one file and return them as one part."""
        part = EpisodeResults.joined(parts)
        if not (self.folder / RUN_FILE).is_file():
            # Another run that began in the same folder took an empty store for a left-over.
            self._write_file(RUN_FILE, self._about)
        arrays = {name: getattr(part.predictions, name) for name in Predictions.FIELDS}
        stream, names = io.BytesIO(), np.array(part.names)
        np.savez(stream, allow_pickle=False, numbers=part.numbers, names=names, among=part.among, **arrays)
        content = stream.getvalue()
        self._write_file(f"{part.numbers[0]:08d}-{part.numbers[-1]:08d}-{digest(content)}.npz", content)
        return part

    def _write_file(self, name: str, content: bytes) -> None:
        for tries in range(9, -1, -1):
            try:
                with atomic_path(self.folder / name) as temporary:
                    temporary.write_bytes(content)
                return
            except OutputError as error:
                # As in `write`, between two steps of writing.
                if not tries or not isinstance(error.__cause__, FileNotFoundError):
                    raise

    def read(self) -> list[EpisodeResults]:
        """All stored episodes; a file that was altered or is of no such run is removed: they are computed again."""
        found: list[EpisodeResults] = []
        for path in stored_files(self.folder):
            try:
                content = read_bytes(path, limit_bytes=PART_BYTES)
                if digest(content) != path.stem.rpartition("-")[2]:
                    raise ValueError("altered")
                arrays = read_arrays(content, ("numbers", "names", "among", *Predictions.FIELDS))
                found.append(_results(arrays, self.size))
            except (OSError, ValueError) as error:
                # What cannot be read now may be whole.
                if not isinstance(error, OSError) or not path.is_file():
                    with contextlib.suppress(OSError):
                        path.unlink()
        return found


class FinishedEpisodes:
    """The finished episodes of one training at each of its checkpoint steps: those in its stores and those added.

    Without `stores` nothing is written; of the episodes (E,) only those that are `wanted` count.
    """

    def __init__(self, stores: Mapping[int, PartStore], steps: Sequence[int], wanted: NDArray[np.bool_]) -> None:
        self._stores = stores
        self._missing = {step: wanted.copy() for step in steps}
        self._held: dict[int, list[EpisodeResults]] = {step: [] for step in steps}
        self._new: dict[int, list[EpisodeResults]] = {step: [] for step in steps}
        self._wanted = int(wanted.sum())
        for step, store in stores.items():
            for part in store.read():
                self._take(self._held[step], step, part)

    def _take(self, parts: list[EpisodeResults], step: int, part: EpisodeResults) -> None:
        # What two parts hold counts once.
        if (new := part.only(self._missing[step])) is not None:
            self._missing[step][new.numbers] = False
            parts.append(new)

    def add(self, step: int, part: EpisodeResults) -> None:
        """Take up results, in memory until the next `write`."""
        self._take(self._new[step], step, part)

    def write(self) -> None:
        for step, new in self._new.items():
            if new:
                joined = self._stores[step].write(new) if step in self._stores else EpisodeResults.joined(new)
                self._held[step].append(joined)
                self._new[step] = []

    def missing(self) -> NDArray[np.bool_]:
        """Which wanted episodes are not finished at every step."""
        return np.asarray(np.stack(list(self._missing.values())).any(axis=0))

    def count(self) -> int:
        return self._wanted - int(self.missing().sum())

    def joined(self) -> dict[int, EpisodeResults]:
        return {step: EpisodeResults.joined(held) for step, held in self._held.items()}


def stored_files(store: Path) -> list[Path]:
    """The files of finished episodes in a store, but not those that a kill left half written beside them."""
    return sorted(path for path in store.glob("*.npz") if not path.name.startswith("."))


def _results(held: Mapping[str, NDArray[Any]], size: RunSize) -> EpisodeResults:
    """Results of a run of that size; raises `ValueError` where its arrays are none."""
    numbers, names, among = held["numbers"], held["names"], held["among"]
    predictions = Predictions(*(held[name] for name in Predictions.FIELDS))
    episode, clip, predicted, probabilities = (held[name] for name in Predictions.FIELDS)
    episodes, rows = numbers.shape[:1], clip.shape[:1]
    expected: list[Any] = [(numbers, np.int64, episodes), (among, np.bool_, (*episodes, size.classes))]
    expected += [(episode, np.int32, rows), (clip, np.int64, rows), (predicted, np.int16, rows)]
    expected += [(probabilities, np.float32, (*rows, size.classes))]
    wrong = any(array.dtype != kind or array.shape != shape for array, kind, shape in expected)
    wrong = wrong or names.dtype.kind != "U" or names.shape != episodes
    wrong = wrong or not _within(numbers, size.episodes) or not _within(clip, size.clips)
    if wrong or not np.isin(episode, numbers).all() or len(np.unique(numbers)) < len(numbers):
        raise ValueError("arrays of another kind")
    order = np.argsort(numbers)
    own = among[order[np.searchsorted(numbers, episode, sorter=order)]]
    wrong = not _within(predicted, size.classes) or not own[np.arange(len(own)), predicted].all()
    if wrong or unsound_answers(np.where(own, probabilities, 0)).any() or not np.isnan(probabilities[~own]).all():
        raise ValueError("answers of another kind")
    return EpisodeResults(numbers, tuple(names.tolist()), among, predictions)


def _within(numbers: NDArray[Any], count: int) -> bool:
    return bool(((numbers >= 0) & (numbers < count)).all())
