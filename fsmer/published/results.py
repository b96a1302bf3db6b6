"""What was measured beside a published table, as data, Markdown, CSV and JSON."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fsmer.io import write_json, write_text
from fsmer.published.tables import METRIC_TITLES, PublishedTable
from fsmer.text import markdown, write_csv

__all__ = [
    "BenchResult",
    "Measured",
]

MARKDOWN_FILE, JSON_FILE, CSV_FILE = "table.md", "table.json", "table.csv"


SHARES = ("uf1", "uar", "acc")


@dataclass(frozen=True)
class Measured:
    """What was measured in one cell, or why nothing was.

    Parameters
    ----------
    status : {"measured", "partial", "missing", "refused"}
        Partial: on those of the data sets that are there. Missing: data or media are. Refused: the run was not
        possible; `reason` says why in all three cases.
    reason : str
    values : mapping of metric to float
        Shares as fractions, means over seeds.
    intervals : mapping of metric to (low, high) or None
        95 %: over subjects, or over episodes where these are averaged.
    each : mapping of metric to tuple of float
        Every seed.
    honest : mapping of metric to float
        Where epochs were chosen on the test clips, the shares that the recipe's own epochs give.
    folder : str
        Of the reports, relative to that of the table.
    """

    status: Literal["measured", "partial", "missing", "refused"]
    reason: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    each: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    honest: Mapping[str, float] = field(default_factory=dict)
    folder: str = ""

    def sd(self, metric: str) -> float | None:
        """Standard deviation over seeds, ``None`` for a single one."""
        each = self.each.get(metric, ())
        return float(np.std(each, ddof=1)) if len(each) > 1 else None

    @property
    def gaps(self) -> dict[str, float]:
        """How far figures lie above the honest ones; none of those that are honest themselves."""
        # Without the noise of two sums in another order, and without a negative zero.
        return {name: round(self.values[name] - honest, 12) + 0.0 for name, honest in self.honest.items()}


@dataclass(frozen=True)
class BenchResult:
    """A published table with what was measured beside it; see `run_table`.

    Parameters
    ----------
    table : PublishedTable
    cells : mapping of (row, column) to Measured
        Of every cell that has something to run.
    quick, synthetic : bool
    select : str
        How epochs were chosen, see `fsmer.evaluate`.
    """

    table: PublishedTable
    cells: Mapping[tuple[int, int], Measured]
    quick: bool = False
    synthetic: bool = False
    select: str = "fixed"

    @property
    def stamps(self) -> tuple[str, ...]:
        """What a reader must know before the first number."""
        found = []
        if self.synthetic:
            found.append(
                "SYNTHETIC: measured on made-up clips that stand in for the data sets, with tiny networks trained for "
                "a moment; these figures show that the table runs and say nothing about the published ones."
            )
        elif self.quick:
            found.append("QUICK: trained for a moment and on few episodes, to try the table; no result.")
        if self.select == "oracle":
            found.append("ORACLE: epochs were chosen on the test clips; these figures are no estimate of anything.")
        return tuple(found)

    @property
    def counts(self) -> dict[str, int]:
        """How many cells have which status."""
        names = ("measured", "partial", "missing", "refused")
        return {name: sum(cell.status == name for cell in self.cells.values()) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "format": "fsmer-bench",
            "format_version": 1,
            **self.table.to_dict(),
            "stamps": list(self.stamps),
            "quick": self.quick,
            "synthetic": self.synthetic,
            "select": self.select,
            "counts": self.counts,
            "cells": self.lines(),
        }

    def lines(self) -> list[dict[str, Any]]:
        """One entry for each row, column and metric that is published or measured."""
        found = []
        for number, row in enumerate(self.table.rows):
            for place, column in enumerate(self.table.columns):
                printed = row.published[place] if row.published else None
                cell = self.cells.get((number, place))
                if printed is None and cell is None:
                    continue
                for metric in self.table.metrics:
                    old = None if printed is None else printed[metric]
                    bounds = None if cell is None else cell.intervals.get(metric)
                    value = None if cell is None else cell.values.get(metric)
                    spread = None if cell is None else cell.sd(metric)
                    honest = None if cell is None else cell.honest.get(metric)
                    gap = None if cell is None else cell.gaps.get(metric)
                    found.append(
                        {
                            "table": self.table.name,
                            "group": row.group,
                            "method": row.method,
                            "column": column.title,
                            "metric": metric,
                            "published": None if old is None else old.value,
                            "published_sd": None if old is None else old.sd,
                            "published_text": "" if old is None else old.text,
                            "measured": value,
                            "measured_text": "" if value is None else self._number(metric, value),
                            "sd_text": "" if spread is None else self._number(metric, spread),
                            "low": None if bounds is None else bounds[0],
                            "high": None if bounds is None else bounds[1],
                            "sd": spread,
                            "honest": honest,
                            "honest_text": "" if honest is None else self._number(metric, honest),
                            "gap": gap,
                            "gap_text": "" if gap is None else self._difference(metric, gap),
                            "seeds": 0 if cell is None else len(cell.each.get(metric, ())),
                            "status": "published only" if cell is None else cell.status,
                            "reason": "" if cell is None else cell.reason,
                            "folder": "" if cell is None else cell.folder,
                            "stamp": "" if cell is None else self._stamp_of(metric),
                        }
                    )
        return found

    def csv(self) -> str:
        """`lines` as CSV."""
        import pandas as pd

        stream = io.StringIO()
        # As they are: in a column of integers with gaps, pandas would write 3 as 3.0.
        write_csv(pd.DataFrame(self.lines(), dtype=object), stream)
        return stream.getvalue()

    def markdown(self) -> str:
        """The table as a Markdown page: published and measured one below the other, then what to know."""
        table = self.table
        lines = [f"# {markdown(f'{table.paper}, {table.table}')}", "", f"{markdown(table.title)}.", ""]
        for stamp in self.stamps:
            lines += [f"**{markdown(stamp)}**", ""]
        metrics = " / ".join(METRIC_TITLES[metric] for metric in table.metrics)
        lines += [f"Cells: {metrics}{self._meaning()}.", ""]
        lines.append(f"| method | | {' | '.join(markdown(column.title) for column in table.columns)} |")
        lines.append("|---|---" + "|---" * len(table.columns) + "|")
        reasons: dict[str, int] = {}
        group = None
        for number, row in enumerate(table.rows):
            run = any((number, place) in self.cells for place in range(len(table.columns)))
            if not row.published and not run:
                continue
            if row.group != group and row.group:
                lines.append(f"| *{markdown(row.group)}* | |{' |' * len(table.columns)}")
            group = row.group
            if row.published:
                cells = [
                    "-" if cell is None else " / ".join(markdown(cell[metric].text) for metric in table.metrics)
                    for cell in row.published
                ]
                lines.append(f"| {markdown(row.method)} | published | {' | '.join(cells)} |")
            if run:
                cells = [self._shown(self.cells.get((number, place)), reasons) for place in range(len(table.columns))]
                name = row.method if not row.published else ""
                lines.append(f"| {markdown(name)} | {self._stamp}measured | {' | '.join(cells)} |")
                lines += self._beside(number)
        details = self._details()
        if details:
            titles = ["method", "column", "metric", "published", "measured", "sd", "95 % interval", "seeds"]
            titles += ["honest", "gap"] if self._has_honest else []
            lines += ["", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *details]
        if reasons:
            lines += ["", "Cells with a number in brackets:", ""]
            lines += [f"- [{number}] {markdown(reason)}" for reason, number in reasons.items()]
        notes = [f"{row.method}: {row.note}." for row in table.rows if row.note]
        for title, words in (("Differences", table.differences), ("Gaps", table.gaps), ("Notes", notes)):
            if words:
                lines += ["", f"## {title}", "", *(f"- {markdown(word)}" for word in words)]
        return "\n".join([*lines, ""])

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``table.md``, ``table.json`` and ``table.csv``.

        Raises
        ------
        OutputError
            The folder cannot be written.
        """
        target = Path(folder)
        write_text(target / MARKDOWN_FILE, self.markdown())
        write_text(target / CSV_FILE, self.csv())
        write_json(target / JSON_FILE, self.to_dict())
        return target

    @property
    def _stamp(self) -> str:
        words = [stamp.partition(":")[0] for stamp in self.stamps]
        return " ".join(words) + " " if words else ""

    def _stamp_of(self, metric: str) -> str:
        # Parameters are counted in the paper's network, whatever else was run.
        return "" if metric == "parameters" else self._stamp.strip()

    def _number(self, metric: str, value: float) -> str:
        if metric in self.table.percent:
            return f"{100 * value:.2f}%"
        return f"{value:.1f}" if metric == "seconds" else f"{value:.4f}"

    def _difference(self, metric: str, value: float) -> str:
        return f"{100 * value:+.2f} points" if metric in self.table.percent else f"{value:+.4f}"

    @property
    def _has_honest(self) -> bool:
        return any(cell.honest for cell in self.cells.values())

    def _meaning(self) -> str:
        """What measured numbers are, as far as there are any."""
        counts = sorted({len(numbers) for cell in self.cells.values() for numbers in cell.each.values() if numbers})
        several = [str(count) for count in counts if count > 1]
        if not counts:
            return ""
        words = "; measured ones are of one run each"
        if several:
            words = f"; measured ones are means over {' or '.join(several)} seeds with their standard deviation"
            words += ", or of one run where none stands" if 1 in counts else ""
        if self._has_honest:
            words += "; below them stand the honest ones, which choose nothing on the test clips, and the gap to these"
        return words

    def _beside(self, row: int) -> list[str]:
        """Lines with the honest figures of a row and the gap to them; none where the measured ones are honest."""
        cells = [self.cells.get((row, place), Measured("missing")) for place in range(len(self.table.columns))]
        if not any(cell.honest for cell in cells):
            return []
        found = []
        for title, told, write in (
            ("honest", [cell.honest for cell in cells], self._number),
            ("gap", [cell.gaps for cell in cells], self._difference),
        ):
            shown = [
                " / ".join(write(metric, one[metric]) if metric in one else "-" for metric in self.table.metrics)
                if one
                else "-"
                for one in told
            ]
            found.append(f"| | {title} | {' | '.join(shown)} |")
        return found

    def _shown(self, cell: Measured | None, reasons: dict[str, int]) -> str:
        if cell is None:
            return "-"
        mark = f" [{reasons.setdefault(cell.reason, len(reasons) + 1)}]" if cell.reason else ""
        if not cell.values:
            return mark.strip()
        parts = []
        for metric in self.table.metrics:
            sd = cell.sd(metric)
            parts.append(
                "-"
                if metric not in cell.values
                else self._number(metric, cell.values[metric])
                + ("" if sd is None else f" ± {self._number(metric, sd)}")
            )
        return " / ".join(parts) + mark

    def _details(self) -> list[str]:
        found = []
        for one in self.lines():
            if one["measured"] is None:
                continue
            low, high = (None if one[end] is None else self._number(one["metric"], one[end]) for end in ("low", "high"))
            cells = (
                one["method"],
                one["column"],
                METRIC_TITLES[one["metric"]],
                one["published_text"] or "-",
                f"{one['stamp']} {one['measured_text']}".strip(),
                one["sd_text"],
                "" if low is None else f"{low} to {high}",
                str(one["seeds"] or ""),
                *((one["honest_text"], one["gap_text"]) if self._has_honest else ()),
            )
            found.append(f"| {' | '.join(map(markdown, cells))} |")
        return found


def _mean(table: PublishedTable, cells: Mapping[tuple[int, int], Measured], row: int, column: int) -> Measured:
    """A column that is the mean of others: only where all of them are there."""
    parts = [cells.get((row, place)) for place in table.columns[column].average]
    whole = [part for part in parts if part is not None and part.status == "measured"]
    if len(whole) < len(parts):
        return Measured(
            "missing", f"{len(parts) - len(whole)} of the {len(parts)} columns that it averages are not there."
        )
    names = [name for name in table.metrics if all(name in part.values for part in whole)]
    alike = all(len(part.each.get(name, ())) == len(whole[0].each.get(name, ())) for part in whole for name in names)
    return Measured(
        "measured",
        values={name: float(np.mean([part.values[name] for part in whole])) for name in names},
        each={
            name: tuple(np.mean([part.each[name] for part in whole], axis=0).tolist())
            for name in names
            if alike and name in whole[0].each
        },
        honest={
            name: float(np.mean([part.honest[name] for part in whole]))
            for name in names
            if all(name in part.honest for part in whole)
        },
    )
