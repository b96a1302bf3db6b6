"""Predictions of a run by clip id, and the names of the files that hold a report."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NotRequired

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from fsmer.errors import DataError
from fsmer.io import CHECKSUM, read_bytes
from fsmer.schema import Count, entries, read_json

__all__ = ["Predictions", "Seed", "run_of", "text_digest"]

REPORT_FILE = "report.json"
PREDICTIONS_FILE = "predictions.csv"
EPISODES_FILE = "episodes.csv"
MARKDOWN_FILE = "report.md"
PICTURE_FILE = "confusion.png"
PAGE_FILE = "report.html"
# How and when the report was made; apart, so that the same run gives the same report to the last byte.
RUN_FILE = "run.json"
REMEDY = "run the same evaluation again"

Seed = Annotated[int, Ge(0), Le(2**64 - 1)]


@dataclass(frozen=True)
class Predictions:
    """Every answer of a run, one row for each query clip of each episode."""

    FIELDS: ClassVar = ("episode", "clip", "predicted", "probabilities")

    episode: NDArray[np.int32]  # number of the episode, (M,)
    clip: NDArray[np.int64]  # row of the clip in the evaluated clip set, (M,)
    predicted: NDArray[np.int16]  # class code, (M,)
    probabilities: NDArray[np.float32]  # (M, C); not a number for classes that the episode is not about

    @classmethod
    def joined(cls, parts: Sequence[Predictions]) -> Predictions:
        """Put parts, each holding whole episodes, one after the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.FIELDS))

    def rows(self, chosen: NDArray[Any]) -> Predictions:
        """The answers of these rows, by number or by a mask."""
        return Predictions(*(getattr(self, name)[chosen] for name in self.FIELDS))

    def __len__(self) -> int:
        return len(self.clip)


# What ``run.json`` holds: `Report.run`, and the digest of the report that it is about.
_RUN = entries(
    {"report": str, "resumed": NotRequired[Count], "seconds": NotRequired[Annotated[float, Ge(0)]]}
    | dict.fromkeys(("call", "started", "machine"), NotRequired[str])
    | {
        "seeds": NotRequired[list[Seed]],
        "identity": NotRequired[dict[str, str]],
        "from_outside": NotRequired[list[str]],
    },
    extra_items=Any,
)


def run_of(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What ``run.json`` says of the report in a folder; ``None`` where it is lost, altered, or about another report."""
    place = Path(folder)
    try:
        held: Any = read_json(place / RUN_FILE, _RUN, what="the account of a run", remedy=REMEDY)
        whole = held.pop("report") == text_digest(read_bytes(place / REPORT_FILE).decode())
    except (OSError, DataError, UnicodeDecodeError):
        return None
    held.pop(CHECKSUM, None)
    return held if whole else None


def text_digest(text: str) -> str:
    """Digest of a report's text, by which ``run.json`` names it."""
    return hashlib.sha256(text.encode()).hexdigest()
