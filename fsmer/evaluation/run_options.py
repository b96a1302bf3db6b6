"""How an evaluation is run, apart from what is evaluated: one frozen object from `evaluate` down to the folds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsmer.errors import ProtocolError

__all__ = ["Progress", "RunOptions", "check_jobs", "no_progress"]

# Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """Tell nobody."""
    del stage, done, total


@dataclass(frozen=True)
class RunOptions:
    """The options of `fsmer.evaluate` on which no figure depends; `ProtocolError` where jobs or isolate cannot be."""

    jobs: int | str | None = None
    isolate: str | None = None
    memory: int | None = None
    cache: Path | None = None
    progress: Progress = no_progress
    out: Path | None = None
    resume: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_jobs(self.jobs)
        if self.isolate not in (None, "none", "process"):
            raise ProtocolError(f"isolate={self.isolate!r} is not possible; give 'process' or 'none'.")

    @property
    def isolated(self) -> bool:
        return self.isolate == "process"


def check_jobs(jobs: Any) -> None:
    """Raise `ProtocolError` for a number of jobs that is none."""
    if jobs not in (None, -1, "auto") and (not isinstance(jobs, int) or jobs < 1):
        raise ProtocolError(f"jobs={jobs!r} is not possible; give 1 or more, -1 for one a core, or 'auto'.")
