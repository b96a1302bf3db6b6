"""Progress, report and result of a preparation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fsmer.data.clips import ClipSet
from fsmer.errors import DataError

__all__ = ["PrepareProgress", "PrepareReport", "Prepared"]


@dataclass(frozen=True)
class PrepareProgress:
    """How far `prepare` is.

    Parameters
    ----------
    done, total : int
        Clips finished (or given up), and clips in all.
    left_out : int
        Clips given up so far.
    seconds : float
        Since the start of this run.
    remaining : float or None
        Seconds left at the pace of the clips that this run made; None before the first.
    """

    done: int
    total: int
    left_out: int
    seconds: float
    remaining: float | None


REPORT_COLUMNS = ("clip", "dataset", "subject", "status", "problem", "detail", "key")


@dataclass(frozen=True)
class PrepareReport:
    """What became of every clip. ``str()`` gives a readable summary.

    Parameters
    ----------
    table : DataFrame
        One row a clip: ``clip, dataset, subject``, ``status`` (``"prepared"`` or ``"left out"``), ``problem``,
        ``detail`` and ``key`` (hash of all that decides on a prepared clip's media), as in ``report.csv``.
    recipe : str
        Hash of the recipe.
    reused : int
        Clips that an earlier run had finished.
    seconds : float
        Duration of this run.
    """

    table: pd.DataFrame
    recipe: str
    reused: int
    seconds: float

    @property
    def prepared(self) -> int:
        """Number of clips in the result."""
        return int((self.table["status"] == "prepared").sum())

    @property
    def left_out(self) -> pd.DataFrame:
        """Rows of the clips that are not in the result."""
        return self.table[self.table["status"] == "left out"].reset_index(drop=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "prepared": self.prepared,
            "reused": self.reused,
            "seconds": self.seconds,
            "recipe": self.recipe,
            "left_out": self.left_out[["clip", "problem", "detail"]].to_dict("records"),
        }

    def __str__(self) -> str:
        total, lost = len(self.table), self.left_out
        head = f"{self.prepared} of {total} clips prepared in {self.seconds:.1f} s (recipe {self.recipe})"
        if self.reused:
            head += f", {self.reused} of them by an earlier run"
        rows = zip(lost["clip"], lost["problem"], lost["detail"], strict=True)
        return "\n".join([head, *(f"  left out  {clip}: {problem}: {detail}" for clip, problem, detail in rows)])


@dataclass(frozen=True)
class Prepared:
    """Result of `prepare`.

    Parameters
    ----------
    folder : Path
        Where it lies.
    sets : mapping of str to ClipSet
        Name of the sub-folder -> clips; one entry ``""`` where the folder itself is the clip set.
    report : PrepareReport
    """

    folder: Path
    sets: Mapping[str, ClipSet]
    report: PrepareReport

    @property
    def clips(self) -> ClipSet:
        """The clip set.

        Raises
        ------
        DataError
            There are several, because the backbones want different media of one kind.
        """
        if len(self.sets) > 1:
            raise DataError(
                f"{self.folder} holds {len(self.sets)} clip sets ({', '.join(self.sets)}), since one clip holds one "
                "medium a kind; choose one of `sets`."
            )
        return next(iter(self.sets.values()))
