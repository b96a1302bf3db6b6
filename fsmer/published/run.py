"""`run_table`: measure the rows and columns of a published table that the data at hand allow, beside its numbers."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from fsmer.backbones import load_model
from fsmer.data import ClipSet
from fsmer.errors import ProtocolError, WeightsError, unknown_name
from fsmer.evaluation.report_tables import SHOWN
from fsmer.evaluation.selection import Rule
from fsmer.evaluation.setup import Progress, check_jobs, listed_seeds, no_progress
from fsmer.io import check_writable
from fsmer.published.cells import CellRunner
from fsmer.published.results import BenchResult, Measured, average_cell
from fsmer.published.tables import PublishedTable, load_table


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
    neighbours: bool = False,
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
        What is at hand, with each data set's own labels; several sets where networks expect different media.
    out : path
        Folder for ``table.md``, ``table.json``, ``table.csv`` and a folder a run, with its report and the page
        ``report.html``; the page has no map of embeddings, which `fsmer.reporting.report_page` adds where a backbone
        is given. Runs on synthetic clips keep their figures only.
    seeds : int or sequence of int, optional
        As for `fsmer.evaluate`; default as often as the paper ran, or once in a quick run.
    rows : str or sequence of str, default "*"
        Wildcards of the methods to run.
    quick : bool, default False
        Train for a moment and on few episodes, to see that everything is in place; stamped on every number.
    synthetic : bool, default False
        Use synthetic clips in place of all data sets, and tiny networks; always quick, and stamped.
    weights : mapping of str to path, optional
        Folder of weights for each backbone that should not start from fresh ones, e.g. after self-supervision. Rows
        about another variant of that backbone are refused.
    select : {"fixed", "nested", "oracle"}, default "fixed"
        As for `fsmer.evaluate`. With ``"oracle"`` every cell has its honest figures and the gap too; columns that are
        a part of a composite take a second run for them, which chooses nothing.
    jobs : int or "auto", optional
        As for `fsmer.evaluate`, for the rows that train a network in their folds.
    neighbours : bool, default False
        Learn from neighbour frames among the clips in all rows (see `Protocol`); without it they are left out.
    resume : bool, default True
        Whether to go on with what is there: finished runs of the same settings and clips.
    progress : callable, optional
        Called with (what is being done, done, in all).

    Returns
    -------
    BenchResult
        The table with what was measured beside it.

    Raises
    ------
    UnknownNameError
        No such table, or weights are given for a backbone that it does not run.
    ProtocolError
        No row has that name, neither clips nor `synthetic` is given, the seeds or jobs are none, or neighbours are
        asked for with `synthetic`.
    WeightsError
        Weights cannot be read, or are those of another backbone.
    OutputError
        `out` cannot be written.

    Examples
    --------
    >>> import fsmer
    >>> result = fsmer.run_table("merau-4", out="my-table", rows="facs-flow, zero-shot*", synthetic=True)
    >>> result.counts["measured"], result.stamps[0].split(":")[0]
    (1, 'SYNTHETIC')
    """
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
            f"no row of table {table.name!r} that runs is called {' or '.join(wanted)}; known: {known}."
        )
    sets = [] if clips is None else [clips] if isinstance(clips, ClipSet) else list(clips)
    counted = set(table.metrics) - set(SHOWN) - {"seconds"}
    if not sets and not synthetic and not counted:
        raise ProtocolError(
            f"table {table.name!r} is run on {', '.join(table.datasets())}: give clips of any of them (clips=, or "
            "--data on the command line), or run it on synthetic ones (synthetic=True, --synthetic)."
        )
    # Refused once, and not cell by cell.
    if synthetic and neighbours:
        raise ProtocolError(
            "synthetic clips have no neighbour frames to learn from; leave neighbours off, or give clips that were "
            "prepared with them ('fsmer prepare NAME --add-neighbours 5')."
        )
    if seeds is not None:
        listed_seeds(seeds, 0)
    check_jobs(jobs)
    _check_weights(table, weights or {})
    folder = Path(out)
    check_writable(folder)
    runner = CellRunner(
        table=table,
        sets=sets,
        out=folder,
        seeds=seeds if seeds is not None else 1 if quick or synthetic else table.seeds,
        quick=quick or synthetic,
        synthetic=synthetic,
        weights={key: os.fspath(value) for key, value in (weights or {}).items()},
        select=select,
        jobs=jobs,
        neighbours=neighbours,
        resume=resume,
        progress=progress or no_progress,
    )
    todo = [(row, column) for row in chosen for column in table.runs(row)]
    cells: dict[tuple[int, int], Measured] = {}

    def result() -> BenchResult:
        how = {"quick": quick or synthetic, "synthetic": synthetic, "neighbours": neighbours}
        return BenchResult(table, dict(cells), select=select, **how)

    for done, (row, column) in enumerate(todo):
        runner.progress("runs", done, len(todo))
        cells[row, column] = runner.measure(row, column)
        if cells[row, column].values:
            result().save(folder)
    runner.progress("runs", len(todo), len(todo))
    for row in chosen:
        for column in table.rows[row].columns:
            if table.columns[column].average:
                cells[row, column] = average_cell(table, cells, row, column)
    final = result()
    final.save(folder)
    return final


def _check_weights(table: PublishedTable, weights: Mapping[str, str | os.PathLike[str]]) -> None:
    if not weights:
        return
    known = sorted({table.settings(row, place).model for row in range(len(table.rows)) for place in table.runs(row)})
    for name, folder in weights.items():
        if name not in known:
            raise unknown_name("model", name, known, of=f"table {table.name!r}")
        held = load_model(os.fspath(folder)).name
        if held != name:
            raise WeightsError(f"{os.fspath(folder)} holds weights of {held!r}, but they are given for {name!r}.")
