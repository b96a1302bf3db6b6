"""Finished episodes of runs that are not finished: written at once, in any order, and taken up by the very same run."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsmer.errors import OutputError
from fsmer.evaluation.report import Predictions
from fsmer.io import atomic_path, check_writable, write_json

__all__ = ["Part", "PartStore", "RunFolder"]

RUN_FILE = "run.json"
# Part of what is compared: goes up when parts on disk can no longer be read.
FORMAT_VERSION = 2
FIELDS = ("episode", "clip", "predicted", "probabilities")


@dataclass(frozen=True)
class Part:
    """Answers of some episodes.

    Parameters
    ----------
    numbers : int64 array of shape (E,)
        Which episodes, each once.
    names : tuple of str
        One name an episode.
    among : bool array of shape (E, C)
        The classes that each episode is about.
    predictions : Predictions
        Those of these episodes, one episode after the other.
    """

    numbers: NDArray[np.int64]
    names: tuple[str, ...]
    among: NDArray[np.bool_]
    predictions: Predictions

    @classmethod
    def joined(cls, parts: Sequence[Part]) -> Part:
        """Parts of different episodes as one, in the order of the episodes."""
        numbers = np.concatenate([part.numbers for part in parts])
        names = [name for part in parts for name in part.names]
        predictions = Predictions.joined([part.predictions for part in parts])
        order = np.argsort(numbers)
        rows = np.argsort(predictions.episode, kind="stable")
        return cls(
            numbers[order],
            tuple(names[place] for place in order.tolist()),
            np.concatenate([part.among for part in parts])[order],
            Predictions(*(getattr(predictions, name)[rows] for name in FIELDS)),
        )

    def only(self, wanted: NDArray[np.bool_]) -> Part | None:
        """The episodes for which `wanted` (one entry an episode of the run) holds; ``None`` where it does for none."""
        kept = wanted[self.numbers]
        if kept.all():
            return self
        if not kept.any():
            return None
        rows = wanted[self.predictions.episode]
        return Part(
            self.numbers[kept],
            tuple(name for name, keep in zip(self.names, kept.tolist(), strict=True) if keep),
            self.among[kept],
            Predictions(*(getattr(self.predictions, name)[rows] for name in FIELDS)),
        )


class PartStore:
    """Finished episodes of one run, each file whole or not there.

    Parameters
    ----------
    folder : Path
    about : mapping
        What the run is, written beside the episodes.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        # Find out now, not after hours, that the folder cannot be written.
        write_json(folder / RUN_FILE, dict(about))

    def write(self, parts: Sequence[Part]) -> Part:
        """Store finished episodes in one file and return them as one part."""
        part = Part.joined(parts)
        arrays = {name: getattr(part.predictions, name) for name in FIELDS}
        name = f"{part.numbers[0]:08d}-{part.numbers[-1]:08d}.npz"
        with atomic_path(self.folder / name) as temporary, open(temporary, "wb") as stream:
            np.savez(
                stream,
                allow_pickle=False,
                numbers=part.numbers,
                names=np.array(part.names),
                among=part.among,
                **arrays,
            )
        return part

    def read(self) -> list[Part]:
        """All stored episodes; a file that is not whole counts as not there."""
        found: list[Part] = []
        for path in sorted(self.folder.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as held:
                    predictions = Predictions(*(held[name] for name in FIELDS))
                    part = Part(held["numbers"], tuple(held["names"].tolist()), held["among"], predictions)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                # Not written by this code, since it writes whole files: these episodes are computed again.
                continue
            found.append(part)
        return found


class RunFolder:
    """The folder of a report while the run is not finished.

    Parameters
    ----------
    folder : Path
        Where the report will be.
    identity : mapping of str to str
        What makes a run the very same, in the words of messages: protocol, model, method, clips, ... Runs that differ
        in it never meet.
    resume : bool
        Whether to go on with an unfinished run; otherwise it is removed.

    Raises
    ------
    OutputError
        The folder cannot be written, or holds the unfinished run of something else.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str], *, resume: bool) -> None:
        check_writable(folder)
        self.folder = folder
        self.identity = dict(identity)
        if not resume:
            self.clear()
        for other in self._held():
            self._refuse_other(other)

    def store(self, **member: Any) -> PartStore:
        """The store of one part of the run, such as a seed."""
        about = {"format": "fsmer-run", "format_version": FORMAT_VERSION, "run": self.identity, "part": member}
        key = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]
        return PartStore(self.folder / f".parts-{key}", about)

    def clear(self) -> None:
        """Remove what this folder keeps of unfinished runs."""
        for folder in self._held():
            shutil.rmtree(folder, ignore_errors=True)

    def drop_empty(self) -> None:
        """Remove stores without a finished episode."""
        for folder in self._held():
            if not any(folder.glob("*.npz")):
                shutil.rmtree(folder, ignore_errors=True)

    def _held(self) -> list[Path]:
        return sorted(self.folder.glob(".parts-*"))

    def _refuse_other(self, other: Path) -> None:
        if not any(other.glob("*.npz")):
            return
        remedy = "go on with that run as it was begun, choose another folder, or start anew with resume off"
        try:
            about = json.loads((other / RUN_FILE).read_text(encoding="utf-8"))
            known = about["format_version"] == FORMAT_VERSION
            run = dict(about["run"])
        except (OSError, ValueError, KeyError, TypeError):
            known, run = False, {}
        if not known:
            raise OutputError(
                f"{self.folder} holds an unfinished run that another version of fsmer wrote or that lost its "
                f"{RUN_FILE}, whose episodes cannot be taken over; choose another folder or start anew with resume off."
            )
        for name, value in self.identity.items():
            if run.get(name) != value:
                raise OutputError(
                    f"{self.folder} holds an unfinished run with another {name} ({run.get(name, 'none')}, now "
                    f"{value}), and results of the two must not be mixed; {remedy}."
                )
