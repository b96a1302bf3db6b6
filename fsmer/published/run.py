"""`run_table`: measure the rows and columns of a published table that the data at hand allow, beside its numbers."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

import numpy as np
from annotated_types import Ge
from typing_extensions import TypedDict

from fsmer.data.schemes import canonical_dataset, load_scheme
from fsmer.datasets.catalog import DATASETS, dataset_info
from fsmer.episodic import Protocol
from fsmer.errors import (
    DataError,
    FsmerError,
    MissingDatasetError,
    ProtocolError,
    SpecMismatchError,
    WeightsError,
    unknown_name,
)
from fsmer.io import check_writable, write_json, write_text
from fsmer.published.tables import METRIC_TITLES, PublishedTable, Settings, load_table
from fsmer.schema import read_json, read_yaml
from fsmer.text import markdown, write_csv

if TYPE_CHECKING:
    from fsmer.backbones import Backbone
    from fsmer.data import ClipSet, InputSpec
    from fsmer.evaluation import Report

__all__ = ["BenchResult", "Measured", "run_table"]

Progress = Callable[[str, int, int], None]
Rule = Literal["fixed", "nested", "oracle"]

SMALL = Path(__file__).parent / "small.yaml"
MARKDOWN_FILE, JSON_FILE, CSV_FILE = "table.md", "table.json", "table.csv"
CELLS = "cells"
CELL_FILE = "cell.json"
SHARES = ("uf1", "uar", "acc")

QUICK_EPISODES = 20
# Of synthetic clips: whoever is left out leaves every class behind, and beside the shots there are some queries.
SYNTHETIC_EPISODES, SYNTHETIC_PEOPLE, SYNTHETIC_QUERIES = 2, 2, 2
DOMAINS = ("lab", "clinic", "field")


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


def run_table(
    name: str | PublishedTable,
    clips: ClipSet | Sequence[ClipSet] | None = None,
    *,
    out: str | os.PathLike[str],
    seeds: int | Sequence[int] | None = None,
    rows: str | Sequence[str] = "*",
    quick: bool = False,
    synthetic: bool = False,
    weights: Mapping[str, str | os.PathLike[str]] | None = None,
    select: Rule = "fixed",
    jobs: int | Literal["auto"] | None = None,
    resume: bool = True,
    progress: Progress | None = None,
) -> BenchResult:
    """Run what can be run of a published table and put it beside the printed numbers.

    A cell whose data or media are not there is marked with the reason and where to ask for them. The composite of
    MEGC 2019 is also run on two of its three data sets, and marked as partial. Cells that share a run (parts of a
    composite) are run once; finished runs are kept in `out` and not repeated.

    Parameters
    ----------
    name : str or PublishedTable
        One of `list_tables`.
    clips : ClipSet or sequence of ClipSet, optional
        What is at hand, with each data set's own labels; several sets where networks eat different media.
    out : path
        Folder for ``table.md``, ``table.json``, ``table.csv`` and a folder a run, with its report and the page
        ``report.html``; the page has no map of embeddings, which `Report.to_html` adds where a backbone is given.
        Runs on made-up clips leave their figures alone.
    seeds : int or sequence of int, optional
        As for `fsmer.evaluate`; default as often as the paper ran, or once in a quick run.
    rows : str or sequence of str
        Wildcards of the methods to run.
    quick : bool
        Train for a moment and on few episodes, to see that everything is in place; stamped on every number.
    synthetic : bool
        Use made-up clips in place of all data sets, and tiny networks; always quick, and stamped.
    weights : mapping of str to path, optional
        Folder of weights for each backbone that should not start from fresh ones, e.g. after self-supervision. Rows
        about another variant of that backbone are refused.
    select : {"fixed", "nested", "oracle"}
        As for `fsmer.evaluate`. With ``"oracle"`` every cell has its honest figures and the gap too; columns that are
        a part of a composite take a second run for them, which chooses nothing.
    jobs : int or "auto", optional
        As for `fsmer.evaluate`, for the rows that train a network in their folds.
    resume : bool
        Whether finished runs of the same settings and clips count.
    progress : callable, optional
        Called with (what is being done, done, in all).

    Returns
    -------
    BenchResult

    Raises
    ------
    UnknownNameError
        No such table, or weights are given for a backbone that it does not run.
    ProtocolError
        No row has that name, neither clips nor `synthetic` is given, or the seeds or jobs are none.
    WeightsError
        Weights cannot be read, or are those of another backbone.
    OutputError
        `out` cannot be written.

    Examples
    --------
    >>> result = run_table("fr-2", fsmer.read_clips("my-maps"), out="out/fr-2", seeds=3)  # doctest: +SKIP
    >>> print(result.markdown())  # doctest: +SKIP
    """
    from fsmer.evaluation.run_options import check_jobs

    table = load_table(name) if isinstance(name, str) else name
    wanted = [rows] if isinstance(rows, str) else list(rows)
    chosen = [
        number
        for number, row in enumerate(table.rows)
        if row.run is not None and any(fnmatch.fnmatch(row.method.lower(), one.lower()) for one in wanted)
    ]
    if not chosen:
        known = ", ".join(repr(row.method) for row in table.rows if row.run is not None)
        raise ProtocolError(
            f"no row of table {table.name!r} that runs is called {' or '.join(wanted)}; they are {known}."
        )
    sets = _as_sets(clips)
    counted = set(table.metrics) - set(SHARES) - {"seconds"}
    if not sets and not synthetic and not counted:
        raise ProtocolError(
            f"table {table.name!r} is run on {', '.join(table.datasets())}: give clips of any of them (clips=, or "
            "--data on the command line), or run it on synthetic ones (synthetic=True, --synthetic)."
        )
    _check_seeds(seeds)
    check_jobs(jobs)
    _check_weights(table, weights or {})
    folder = Path(out)
    check_writable(folder)
    bench = _Bench(
        table=table,
        sets=sets,
        out=folder,
        seeds=seeds if seeds is not None else 1 if quick or synthetic else table.seeds,
        quick=quick or synthetic,
        synthetic=synthetic,
        weights={key: os.fspath(value) for key, value in (weights or {}).items()},
        select=select,
        jobs=jobs,
        resume=resume,
        progress=progress or _silent,
    )
    todo = [(row, column) for row in chosen for column in table.runs(row)]
    cells: dict[tuple[int, int], Measured] = {}

    def result() -> BenchResult:
        return BenchResult(table, dict(cells), quick=quick or synthetic, synthetic=synthetic, select=select)

    for done, (row, column) in enumerate(todo):
        bench.progress("runs", done, len(todo))
        cells[row, column] = bench.measure(row, column)
        if cells[row, column].values:
            result().save(folder)
    bench.progress("runs", len(todo), len(todo))
    for row in chosen:
        for column in table.rows[row].columns:
            if table.columns[column].average:
                cells[row, column] = _mean(table, cells, row, column)
    final = result()
    final.save(folder)
    return final


@dataclass
class _Bench:
    """One run of a table."""

    table: PublishedTable
    sets: list[ClipSet]
    out: Path
    seeds: int | Sequence[int]
    quick: bool
    synthetic: bool
    weights: dict[str, str]
    select: Rule
    jobs: int | Literal["auto"] | None
    resume: bool
    progress: Progress
    _made: dict[str, ClipSet] = field(default_factory=dict)
    _done: set[str] = field(default_factory=set)
    _last: tuple[str, list[Report]] | None = None
    _digests: dict[tuple[int, tuple[str, ...]], tuple[ClipSet, str]] = field(default_factory=dict)

    def measure(self, row: int, column: int) -> Measured:
        """One cell; whatever fsmer refuses becomes its reason."""
        found = self._run(row, column)
        if "parameters" not in self.table.metrics:
            return found
        settings = self.table.settings(row, column)
        counted = _parameters(settings, self.table.columns[column].classes or 0)
        return replace(found, values={**found.values, "parameters": counted})

    def _run(self, row: int, column: int) -> Measured:
        try:
            settings = self._settings(row, column)
            specs = _specs(settings)
            settings, clips, partial = self._clips(settings, specs, self.table.columns[column].part)
            outcome = self._outcome(settings, clips, self.table.columns[column].part)
        except (MissingDatasetError, SpecMismatchError) as error:
            return Measured("missing", str(error))
        except FsmerError as error:
            return Measured("refused", str(error))
        return replace(outcome, status="partial" if partial else "measured", reason=partial)

    def _settings(self, row: int, column: int) -> Settings:
        """The cell's settings, made small for a quick run."""
        settings = self.table.settings(row, column)
        if not self.quick:
            return settings
        protocol = settings.protocol
        if "episodes" in protocol.params:
            few = SYNTHETIC_EPISODES if self.synthetic else QUICK_EPISODES
            protocol = protocol.with_params(episodes=min(few, protocol.params["episodes"]))
        params = {**settings.params, **_small()["params"].get(settings.method, {})}
        arguments = dict(settings.arguments)
        if self.synthetic:
            arguments = {**_small()["arguments"].get(settings.model, {}), **arguments}
        return replace(settings, protocol=protocol, params=params, arguments=arguments)

    def _clips(self, settings: Settings, specs: Sequence[InputSpec], part: str | None) -> tuple[Settings, ClipSet, str]:
        """Clips for a cell, its protocol cut to what is there, and what is lacking, in words."""
        protocol = settings.protocol
        if self.synthetic:
            return settings, self._made_up(protocol, specs), ""
        there = {canonical_dataset(name) for clips in self.sets for name in clips.dataset_names}
        needed = [need.dataset for need in protocol.requirements]
        missing = [name for name in needed if name not in there]
        partial = ""
        if missing:
            where = "; ".join(info.where_to_request() for info in map(dataset_info, missing) if info is not None)
            left = tuple(need for need in protocol.requirements if need.dataset not in missing)
            if protocol.kind != "cde" or len(left) < 2 or part in missing:
                raise MissingDatasetError(f"needs {_titles(missing)}: {where}.")
            partial = (
                f"measured on {_titles([need.dataset for need in left])} alone, so it cannot be compared with the "
                f"published figure, which has {_titles(missing)} too: {where}."
            )
            name = f"{protocol.name}-without-{'-'.join(missing)}"
            settings = replace(settings, protocol=replace(protocol, requirements=left, name=name))
            needed = [need.dataset for need in left]

        def make() -> ClipSet:
            from fsmer.data import concat

            chosen = [_of_dataset(self.sets, dataset, specs, settings.model) for dataset in needed]
            return concat(chosen, kinds=[spec.kind for spec in specs])

        return settings, self._once(needed, specs, make), partial

    def _made_up(self, protocol: Protocol, specs: Sequence[InputSpec]) -> ClipSet:
        """Synthetic clips in place of the data sets that a protocol needs; protocols that need the same share them."""
        each = int(protocol.params.get("shot", 0)) + SYNTHETIC_QUERIES
        wanted = [(need.dataset, _labels(protocol, need.dataset, need.scheme)) for need in protocol.requirements]

        def make() -> ClipSet:
            from fsmer.data import concat

            return concat([_synthetic_clips(dataset, labels, each, tuple(specs)) for dataset, labels in wanted])

        return self._once([*wanted, each], specs, make)

    def _once(self, what: Sequence[Any], specs: Sequence[InputSpec], make: Callable[[], ClipSet]) -> ClipSet:
        """The same object for the same clips, so that their media are read and hashed once."""
        key = json.dumps([what, [spec.to_dict() for spec in specs]])
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _outcome(self, settings: Settings, clips: ClipSet, part: str | None) -> Measured:
        """The figures of a cell, from the run that was kept or a new one."""
        from fsmer.transfer import load_method

        method = load_method(settings.method, **settings.params)
        seeds: list[int] | None = None
        if "seed" in method.get_params():
            own = int(method.get_params()["seed"])
            seeds = list(range(own, own + self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)
        elif settings.before:
            seeds = list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)
        key = self._key(settings, clips, seeds)
        folder = self.out / CELLS / f"{settings.model}-{settings.method}-{key}"
        kept = (_kept(folder) if self.resume or key in self._done else None) or {"seconds": None, "parts": {}}
        self._done.add(key)
        name = part or "all"
        # Without: kept by a version that left the honest figures to the report.
        if "honest" not in kept["parts"].get(name, {}):
            reports, seconds = self._reports(key, settings, clips, seeds, folder)
            found = _figures(reports, part)
            honest = found.honest
            if self.select == "oracle" and part is not None:
                fixed = self._choosing_nothing._outcome(settings, clips, part).values
                honest = {share: fixed[share] for share in SHARES}
            kept["seconds"] = seconds if kept["seconds"] is None else kept["seconds"]
            kept["parts"][name] = {
                "values": found.values,
                "intervals": found.intervals,
                "each": found.each,
                "honest": honest,
            }
            kept |= {"model": settings.model, "arguments": dict(settings.arguments), "method": settings.method}
            write_json(folder / CELL_FILE, kept, sealed=True)
        values, intervals, each = (kept["parts"][name][what] for what in ("values", "intervals", "each"))
        if "seconds" in self.table.metrics and kept["seconds"] is not None:
            values = {**values, "seconds": kept["seconds"]}
        return Measured(
            "measured",
            values=dict(values),
            intervals=dict(intervals),
            each={name: tuple(numbers) for name, numbers in each.items()},
            honest=dict(kept["parts"][name]["honest"]),
            folder=str(folder.relative_to(self.out)),
        )

    @cached_property
    def _choosing_nothing(self) -> _Bench:
        """The same runs by the rule ``"fixed"``: reports have honest figures of all their clips, but not of a part."""
        return replace(self, select="fixed", _last=None)

    def _reports(
        self, key: str, settings: Settings, clips: ClipSet, seeds: list[int] | None, folder: Path
    ) -> tuple[list[Report], float | None]:
        """The reports of a run, one, or one a seed, and the seconds that a seed took if they were made now."""
        from fsmer.evaluation.predictions import PAGE_FILE

        # The columns of a composite ask for the same run one after the other.
        if self._last is not None and self._last[0] == key:
            return self._last[1], None
        # Made-up clips take a moment: their runs leave their figures behind and no reports.
        places: list[Path | None] = [None if self.synthetic else folder]
        if settings.before:
            places = [None if self.synthetic else folder / f"seed-{seed}" for seed in seeds or ()]
        begun = folder.exists()
        started = time.perf_counter()
        reports = []
        for number, place in enumerate(places):
            held = self._held(place)
            if held is not None:
                reports.append(held)
            elif settings.before:
                reports.append(self._prepared(settings, clips, (seeds or [])[number], place))
            else:
                reports.append(self._evaluate(settings, settings.model, clips, seeds, place))
        # A run that was cut and went on has no time of its own.
        seconds = None if begun else (time.perf_counter() - started) / len(seeds or (0,))
        for report, place in zip(reports, places, strict=True):
            if place is not None and not (place / PAGE_FILE).is_file():
                report.to_html(place / PAGE_FILE, clips=clips)
        self._last = (key, reports)
        return reports, seconds

    def _held(self, place: Path | None) -> Report | None:
        """The report of an earlier run; one that is damaged is made again."""
        from fsmer.evaluation import Report
        from fsmer.evaluation.predictions import REPORT_FILE

        if self.resume and place is not None and (place / REPORT_FILE).is_file():
            with contextlib.suppress(DataError):
                return Report.load(place)
        return None

    def _evaluate(
        self, settings: Settings, model: Backbone | str, clips: ClipSet, seeds: list[int] | None, folder: Path | None
    ) -> Report:
        from fsmer.evaluation import evaluate
        from fsmer.transfer import load_method

        given = self.weights.get(model) if isinstance(model, str) else None
        fresh = isinstance(model, str) and given is None
        method = load_method(settings.method, **settings.params)
        return evaluate(
            settings.protocol,
            given or model,
            method,
            clips=clips,
            arguments=(dict(settings.arguments) or None) if fresh else None,
            seeds=seeds,
            select=self.select,
            # Some rows of a table train and others do not, which is no reason to say so row by row.
            jobs=None if method.keeps_backbone else self.jobs,
            out=folder,
            resume=self.resume,
            # The folder is named after all that the run depends on.
            overwrite=True,
            progress=self.progress,
        )

    def _prepared(self, settings: Settings, clips: ClipSet, seed: int, folder: Path | None) -> Report:
        """One seed of a cell whose backbone learns from the source before the episodes begin."""
        from fsmer.transfer import load_method

        prepared = settings.protocol.prepare(clips)
        source = settings.protocol.split(prepared).source
        if source is None:
            raise ProtocolError(
                f"protocol {settings.protocol.name!r} has no source to learn from before; use a source-then-target one."
            )
        seeds = [seed] if "seed" in load_method(settings.method).get_params() else None
        return self._evaluate(settings, self._taught(settings, prepared[source], seed), clips, seeds, folder)

    def _taught(self, settings: Settings, source: ClipSet, seed: int) -> Backbone:
        from fsmer.backbones import load_model
        from fsmer.backbones.registry import fresh_model
        from fsmer.training.preparation import train_part
        from fsmer.transfer import load_method

        given = self.weights.get(settings.model)
        backbone = load_model(given) if given else fresh_model(settings.model, seed, dict(settings.arguments))
        small = _small()["params"]["train"] if self.quick else {}
        for step in settings.before:
            if step == "au_detector":
                from fsmer.backbones.merau import Merau

                if not isinstance(backbone, Merau):
                    raise ProtocolError(f"{settings.model!r} has no action unit detector to fit; only merau has.")
                train_part(backbone.detector_preparation(source, seed=seed, **small))
            elif step == "source":
                backbone = load_method("train", seed=seed, **small).train_source(backbone, source).backbone
            else:
                raise ProtocolError(f"{step!r} is no step before the episodes; use 'au_detector' or 'source'.")
        return backbone.eval()

    def _key(self, settings: Settings, clips: ClipSet, seeds: list[int] | None) -> str:
        """What two runs must have in common for one to stand for the other."""
        from fsmer.backbones import model_hash
        from fsmer.version import __version__

        start = self._start(settings)
        values = {
            "version": __version__,
            "protocol": settings.protocol.hash,
            "model": settings.model,
            "arguments": dict(settings.arguments),
            "weights": None if start is None else model_hash(start),
            "method": settings.method,
            "params": dict(settings.params),
            "before": list(settings.before),
            "seeds": seeds,
            "select": self.select,
            "clips": self._digest(clips, [spec.kind for spec in _specs(settings)]),
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def _start(self, settings: Settings) -> Backbone | None:
        """The weights that a cell starts from, given or shipped; ``None``: fresh ones."""
        from fsmer.backbones import load_model
        from fsmer.evaluation.initial_weights import InitialWeights
        from fsmer.transfer import load_method

        given = self.weights.get(settings.model)
        if given is None:
            if settings.before:
                return None
            method = load_method(settings.method, **settings.params)
            return InitialWeights.of(settings.model, method, settings.arguments).given
        backbone = load_model(given)
        for key, value in settings.arguments.items():
            held = backbone.config.get(key)
            # Otherwise all rows of an ablation would be measured on the one network that was given.
            if json.dumps(held, sort_keys=True) != json.dumps(value, sort_keys=True):
                raise WeightsError(
                    f"the weights in {given} are of a {settings.model!r} with {key}={held!r}, but this row is about "
                    f"{key}={value!r}; give weights of that variant, or none."
                )
        return backbone

    def _digest(self, clips: ClipSet, kinds: Sequence[str]) -> str:
        key = (id(clips), tuple(kinds))
        if key not in self._digests:
            digest = hashlib.sha256()
            for values in (clips.ids, clips.datasets, clips.subjects, clips.labels):
                digest.update("\n".join(map(str, values.tolist())).encode())
            for kind in kinds:
                digest.update(json.dumps(clips.specs[kind].to_dict(), sort_keys=True).encode())
                for media in clips.batches(kind, 256):
                    digest.update(np.ascontiguousarray(media).tobytes())
            # The clips are kept with their digest, so that no other set takes their id.
            self._digests[key] = (clips, digest.hexdigest())
        return self._digests[key][1]


def _check_seeds(seeds: int | Sequence[int] | None) -> None:
    """Refuse once, and not cell by cell, what no evaluation would take."""
    if seeds is None:
        return
    listed = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not listed or min(listed) < 0 or len(set(listed)) < len(listed):
        raise ProtocolError(
            f"seeds={seeds!r} is not possible; give how many, or different whole numbers of at least 0."
        )


def _check_weights(table: PublishedTable, weights: Mapping[str, str | os.PathLike[str]]) -> None:
    """Weights that no row would use, or that are another network's, must not pass in silence."""
    from fsmer.backbones import load_model

    if not weights:
        return
    known = sorted({table.settings(row, place).model for row in range(len(table.rows)) for place in table.runs(row)})
    for name, folder in weights.items():
        if name not in known:
            raise unknown_name("model", name, known, of=f"table {table.name!r}")
        held = load_model(os.fspath(folder)).name
        if held != name:
            raise WeightsError(f"{os.fspath(folder)} holds weights of {held!r}, but they are given for {name!r}.")


def _as_sets(clips: ClipSet | Sequence[ClipSet] | None) -> list[ClipSet]:
    from fsmer.data import ClipSet

    if clips is None:
        return []
    return [clips] if isinstance(clips, ClipSet) else list(clips)


class _PartFile(TypedDict):
    values: dict[str, float]
    intervals: dict[str, tuple[float, float] | None]
    each: dict[str, list[float]]
    # Versions before left the honest figures to the report.
    honest: NotRequired[dict[str, float]]


class _CellFile(TypedDict):
    seconds: Annotated[float, Ge(0)] | None
    parts: dict[str, _PartFile]


def _kept(folder: Path) -> dict[str, Any] | None:
    """What was kept of a run; ``None`` where there is nothing, or it is damaged."""
    try:
        return dict(read_json(folder / CELL_FILE, _CellFile, what="a measured cell", remedy="run it again"))
    except DataError:
        return None


def _figures(reports: Sequence[Report], part: str | None) -> Measured:
    """Figures of one report of several seeds, or of one report a seed; of one data set's clips alone with `part`."""
    from fsmer.evaluation.metrics import mean_interval
    from fsmer.reporting.statistics import report_interval, seed_summary

    if part is not None:
        reports = [_only(report, part) for report in reports]
    summaries = [seed_summary(report) for report in reports]
    each = {name: tuple(value for one in summaries for value in one[name].each) for name in SHARES}
    intervals: dict[str, tuple[float, float] | None] = {}
    if reports[0].averaging == "episodes":
        for name in SHARES:
            by_episode = [report.episodes.groupby("episode", sort=True)[name].mean().to_numpy() for report in reports]
            intervals[name] = mean_interval(np.mean(by_episode, axis=0))
    elif len(reports) == 1:
        found = report_interval(reports[0])
        intervals = {name: found[name] for name in SHARES}
    values = {name: float(np.mean(each[name])) for name in SHARES}
    # Of all clips of a report, so of no part.
    told = [report.honest for report in reports if report.honest is not None] if part is None else []
    honest = {name: float(np.mean([one[name] for one in told])) for name in SHARES} if told else {}
    return Measured("measured", values=values, intervals=intervals, each=each, honest=honest)


def _only(report: Report, dataset: str) -> Report:
    table = report.predictions
    mine = table["dataset"].map(canonical_dataset) == dataset
    return replace(report, predictions=table[mine].reset_index(drop=True))


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


def _specs(settings: Settings) -> tuple[InputSpec, ...]:
    """The media that a cell's network eats."""
    return _specs_of(settings.model, json.dumps(dict(settings.arguments), sort_keys=True))


@cache
def _specs_of(model: str, arguments: str) -> tuple[InputSpec, ...]:
    import torch

    from fsmer.backbones import create_model

    with torch.device("meta"):  # shapes alone: nothing is drawn or stored
        return create_model(model, **json.loads(arguments)).input_specs


def _parameters(settings: Settings, classes: int) -> float:
    """Millions of numbers that training may change, network and linear classifier together."""
    from fsmer.backbones.registry import fresh_model
    from fsmer.training.supervised import for_classes

    backbone = fresh_model(settings.model, 0, dict(settings.arguments))
    made = for_classes(backbone, tuple(f"class {number}" for number in range(classes)), 0)
    own = sum(value.numel() for value in made.parameters())
    return (own + (made.embed_dim + 1) * classes) / 1e6


def _of_dataset(sets: Sequence[ClipSet], dataset: str, specs: Sequence[InputSpec], model: str) -> ClipSet:
    """The clips of a data set from the first of the sets whose media the network eats."""
    refusal: SpecMismatchError | None = None
    for clips in sets:
        codes = [code for code, name in enumerate(clips.dataset_names) if canonical_dataset(name) == dataset]
        if not codes:
            continue
        try:
            for spec in specs:
                if spec.kind not in clips.specs:
                    raise SpecMismatchError(
                        f"the clips of {dataset} hold no {spec.kind}, but {model!r} eats {spec.describe()}; prepare "
                        f"them for it ('fsmer prepare {dataset} --for {model}')."
                    )
                clips.specs[spec.kind].check_feeds(spec, who=repr(model))
        except SpecMismatchError as error:
            refusal = refusal or error
            continue
        return clips[np.isin(clips.dataset_codes(), codes)]
    if refusal is None:
        raise MissingDatasetError(f"needs {dataset}, which is not among the clips.")
    raise refusal


@lru_cache(maxsize=64)
def _synthetic_clips(dataset: str, labels: tuple[str, ...], each: int, specs: tuple[InputSpec, ...]) -> ClipSet:
    """Made-up clips under the name of a data set, as many of each label."""
    from fsmer.data import ClipSet
    from fsmer.data.facs import EMOTION_ORDER
    from fsmer.synthetic.clips import synthetic_clips

    number = sorted(DATASETS).index(dataset)
    count = each * len(labels)
    pool = synthetic_clips(DOMAINS[number % len(DOMAINS)], n=3 * count, seed=number, specs=specs)
    emotions = [EMOTION_ORDER.index(str(name)) % len(labels) for name in pool.table["emotion"]]
    # A class gets clips of its own emotions first, and any others where these do not suffice.
    left, rows = list(range(len(pool))), []
    for place in range(count):
        row = next((row for row in left if emotions[row] == place % len(labels)), left[0])
        left.remove(row)
        rows.append(row)
    return ClipSet.from_arrays(
        # Read once: drawing faces takes longer than all that follows.
        {spec.kind: pool.read(spec.kind, rows) for spec in specs},
        [labels[place % len(labels)] for place in range(count)],
        subjects=[f"s{place // len(labels) % SYNTHETIC_PEOPLE}" for place in range(count)],
        datasets=dataset,
        ids=[f"{dataset}-{place:03d}" for place in range(count)],
        aus=pool.table["aus"].astype(str).iloc[rows].tolist(),
        spec=[pool.specs[spec.kind] for spec in specs],
    )


def _labels(protocol: Protocol, dataset: str, scheme: str | None) -> tuple[str, ...]:
    """One label of the data set for each class that the protocol reads from it."""
    if scheme is None:
        subset = protocol.params.get("class_subset")
        if not subset:
            raise DataError(f"protocol {protocol.name!r} does not say which classes of {dataset} it tells apart.")
        return tuple(str(name) for name in subset)
    found = load_scheme(scheme)
    table = found.mapping.get(dataset, found.mapping.get("*", {}))
    held = [name for name in found.classes if name in table.values()]
    return tuple(next(label for label, into in table.items() if into == name) for name in held)


def _titles(datasets: Sequence[str]) -> str:
    names = [info.title if (info := dataset_info(name)) is not None else name for name in datasets]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


@cache
def _small() -> dict[str, dict[str, dict[str, Any]]]:
    schema = dict[str, dict[str, dict[str, Any]]]
    return read_yaml(SMALL, schema, what="the settings of quick runs", remedy="install fsmer again", error=FsmerError)


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total
