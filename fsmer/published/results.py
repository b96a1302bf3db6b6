"""What was measured beside a published table, as data, Markdown, CSV and JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from fsmer.evaluation.report_tables import Table, markdown_table
from fsmer.io import atomic_path, write_json, write_text
from fsmer.published.tables import METRIC_TITLES, PublishedTable
from fsmer.text import markdown, write_csv

__all__ = ["BenchResult", "Measured", "average_cell"]

STATUSES = ("measured", "partial", "missing", "refused")
STAMPS = {
    "SYNTHETIC": "measured on synthetic clips in place of the data sets, with tiny networks trained for a moment; "
    "these figures show that the table runs and say nothing about the published ones.",
    "QUICK": "trained for a moment and on few episodes, to try the table; no result.",
    "ORACLE": "epochs were chosen on the test clips; these figures are no estimate of anything.",
}


@dataclass(frozen=True)
class Measured:
    """What was measured in one cell, or why nothing was."""

    # Partial: on those of the data sets that are there. Missing: data or media are. Refused: the run was not possible;
    # the reason says why in all three cases.
    status: Literal["measured", "partial", "missing", "refused"]
    reason: str = ""
    values: Mapping[str, float] = field(default_factory=dict)  # by metric, shares as fractions, means over seeds
    # 95 %, by metric: over subjects, or over episodes where these are averaged.
    intervals: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    each: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # every seed, by metric
    # Where epochs were chosen on the test clips, the shares that the recipe's own epochs give.
    honest: Mapping[str, float] = field(default_factory=dict)
    folder: str = ""  # of the reports, relative to that of the table

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
    """A published table with what was measured beside it; see `run_table`."""

    table: PublishedTable
    cells: Mapping[tuple[int, int], Measured]  # by (row, column), of every cell that has something to run
    quick: bool = False
    synthetic: bool = False
    select: str = "fixed"  # how epochs were chosen, see fsmer.evaluate
    neighbours: bool = False  # whether neighbour frames were learnt from

    @property
    def stamps(self) -> tuple[str, ...]:
        """What a reader must know before the first number."""
        return tuple(f"{word}: {STAMPS[word]}" for word in self._stamp.split())

    @property
    def _stamp(self) -> str:
        size = "SYNTHETIC" if self.synthetic else "QUICK" if self.quick else ""
        return f"{size} {'ORACLE' if self.select == 'oracle' else ''}".strip()

    @property
    def counts(self) -> dict[str, int]:
        """How many cells have which status."""
        return {name: sum(cell.status == name for cell in self.cells.values()) for name in STATUSES}

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
            "neighbours": self.neighbours,
            "counts": self.counts,
            "cells": self.lines(),
        }

    def lines(self) -> list[dict[str, Any]]:
        """One entry for each row, column and metric that is published or measured."""
        places = np.ndindex(len(self.table.rows), len(self.table.columns))
        return [line for row, column in places for line in self._cell(row, column)]

    def _cell(self, row: int, column: int) -> list[dict[str, Any]]:
        """One entry for each metric of a cell; none where it is neither published nor run."""
        method, cell = self.table.rows[row], self.cells.get((row, column))
        printed = method.published[column] if method.published else None
        if printed is None and cell is None:
            return []
        found = cell or Measured("missing")
        lines = []
        for metric in self.table.metrics:
            old, bounds = None if printed is None else printed[metric], found.intervals.get(metric)
            value, sd = found.values.get(metric), found.sd(metric)
            honest, gap = found.honest.get(metric), found.gaps.get(metric)
            lines.append(
                {
                    "table": self.table.name,
                    "group": method.group,
                    "method": method.method,
                    "column": self.table.columns[column].title,
                    "metric": metric,
                    "published": None if old is None else old.value,
                    "published_sd": None if old is None else old.sd,
                    "published_text": "" if old is None else old.text,
                    "measured": value,
                    "measured_text": self._number(metric, value),
                    "sd_text": self._number(metric, sd),
                    "low": None if bounds is None else bounds[0],
                    "high": None if bounds is None else bounds[1],
                    "sd": sd,
                    "honest": honest,
                    "honest_text": self._number(metric, honest),
                    "gap": gap,
                    "gap_text": self._difference(metric, gap),
                    "seeds": len(found.each.get(metric, ())),
                    "status": "published only" if cell is None else cell.status,
                    "reason": found.reason,
                    "folder": found.folder,
                    # Parameters are counted in the paper's network, whatever else was run.
                    "stamp": "" if cell is None or metric == "parameters" else self._stamp,
                }
            )
        return lines

    def _number(self, metric: str, value: float | None) -> str:
        if value is None:
            return ""
        if metric in self.table.percent:
            return f"{100 * value:.2f}%"
        return f"{value:.1f}" if metric == "seconds" else f"{value:.4f}"

    def _difference(self, metric: str, value: float | None) -> str:
        if value is None:
            return ""
        return f"{100 * value:+.2f} points" if metric in self.table.percent else f"{value:+.4f}"

    @property
    def _has_honest(self) -> bool:
        return any(cell.honest for cell in self.cells.values())

    def tables(self) -> tuple[Table, Table, list[str]]:
        """Published and measured one below the other, then every measured number, and the reasons that cells name."""
        wide: list[list[str]] = []
        long: list[list[str]] = []
        reasons: dict[str, int] = {}
        group = ""
        for number, row in enumerate(self.table.rows):
            places = [(number, column) for column in range(len(self.table.columns))]
            cells, run = [self._cell(*place) for place in places], [self.cells.get(place) for place in places]
            kinds = [("published", [_joined(lines, "published_text") for lines in cells])] if row.published else []
            if any(run):
                kinds.append((f"{self._stamp} measured".strip(), [_measured(lines, reasons) for lines in cells]))
            if any(one and one.honest for one in run):
                kinds += [(kind, [_joined(lines, f"{kind}_text") for lines in cells]) for kind in ("honest", "gap")]
            if not kinds:
                continue
            if row.group not in ("", group):
                wide.append([row.group, *[""] * (1 + len(places))])
            group = row.group
            wide += [["" if after else row.method, kind, *words] for after, (kind, words) in enumerate(kinds)]
            long += [self._detail(line) for lines in cells for line in lines if line["measured"] is not None]
        head = ("method", "", *(column.title for column in self.table.columns))
        details = ["method", "column", "metric", "published", "measured", "sd", "95 % interval", "seeds"]
        details += ["honest", "gap"] if self._has_honest else []
        return Table(self.table.title, head, wide), Table("Every measured number", (*details,), long), list(reasons)

    def _detail(self, line: Mapping[str, Any]) -> list[str]:
        low, high = (self._number(line["metric"], line[end]) for end in ("low", "high"))
        return [
            line["method"],
            line["column"],
            METRIC_TITLES[line["metric"]],
            line["published_text"] or "-",
            f"{line['stamp']} {line['measured_text']}".strip(),
            line["sd_text"],
            low and f"{low} to {high}",
            str(line["seeds"] or ""),
            *((line["honest_text"], line["gap_text"]) if self._has_honest else ()),
        ]

    def markdown(self) -> str:
        """The table as a Markdown page: published and measured one below the other, then what to know."""
        table = self.table
        wide, long, reasons = self.tables()
        metrics = " / ".join(METRIC_TITLES[metric] for metric in table.metrics)
        lines = [f"# {markdown(f'{table.paper}, {table.table}')}", "", f"{markdown(table.title)}.", ""]
        lines += [line for stamp in self.stamps for line in (f"**{markdown(stamp)}**", "")]
        lines += [f"Cells: {metrics}{self._meaning()}.", "", *markdown_table(wide)]
        lines += ["", *markdown_table(long)] if long.rows else []
        if reasons:
            lines += ["", "Cells with a number in brackets:", ""]
            lines += [f"- [{number}] {markdown(reason)}" for number, reason in enumerate(reasons, 1)]
        notes = [f"{row.method}: {row.note}." for row in table.rows if row.note]
        for title, words in (("Differences", table.differences), ("Gaps", table.gaps), ("Notes", notes)):
            if words:
                lines += ["", f"## {title}", "", *(f"- {markdown(word)}" for word in words)]
        return "\n".join([*lines, ""])

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
        words += "; neighbour frames were learnt from" if self.neighbours else ""
        if self._has_honest:
            words += "; below them stand the honest ones, which choose nothing on the test clips, and the gap to these"
        return words

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``table.md``, ``table.json`` and ``table.csv``; `OutputError` where the folder cannot be written."""
        target = Path(folder)
        write_text(target / "table.md", self.markdown())
        with atomic_path(target / "table.csv") as temporary:
            # As they are: in a column of integers with gaps, pandas would write 3 as 3.0.
            write_csv(pd.DataFrame(self.lines(), dtype=object), temporary)
        write_json(target / "table.json", self.to_dict())
        return target


def _joined(lines: list[dict[str, Any]], key: str) -> str:
    """One text a metric, with a dash for each that lacks it, or for all."""
    texts = [line[key] or "-" for line in lines]
    return "-" if set(texts) <= {"-"} else " / ".join(texts)


def _measured(lines: list[dict[str, Any]], reasons: dict[str, int]) -> str:
    """The measured numbers of a cell with their deviations, and the number of the reason why some or all are not."""
    if not lines or lines[0]["status"] == "published only":
        return "-"
    reason = lines[0]["reason"]
    mark = f"[{reasons.setdefault(reason, len(reasons) + 1)}]" if reason else ""
    if all(line["measured"] is None for line in lines):
        return mark
    spread = [" ± ".join(filter(None, (line["measured_text"] or "-", line["sd_text"]))) for line in lines]
    return f"{' / '.join(spread)} {mark}".strip()


def average_cell(table: PublishedTable, cells: Mapping[tuple[int, int], Measured], row: int, column: int) -> Measured:
    """A column that is the mean of others: only where all of them are there."""
    parts = [cells.get((row, place)) for place in table.columns[column].average]
    whole = [part for part in parts if part is not None and part.status == "measured"]
    if len(whole) < len(parts):
        return Measured(
            "missing", f"{len(parts) - len(whole)} of the {len(parts)} columns that it averages are not there."
        )

    def mean(kind: str) -> dict[str, Any]:
        """Means of what all columns have, seed by seed where there are several values."""
        held = [getattr(part, kind) for part in whole]
        alike = [name for name in table.metrics if len({np.size(one.get(name, ())) for one in held}) == 1]
        return {name: np.mean([one[name] for one in held], axis=0).tolist() for name in alike if name in held[0]}

    each = {name: tuple(values) for name, values in mean("each").items()}
    return Measured("measured", values=mean("values"), each=each, honest=mean("honest"))
