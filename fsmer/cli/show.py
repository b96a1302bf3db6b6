"""Results as commands print them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fsmer.cli.console import Console, say_json

if TYPE_CHECKING:
    from fsmer.evaluation import Report
    from fsmer.published import BenchResult

# The figures that every report has; those of plugins come behind them.
SHOWN = ("uf1", "uar", "acc")


def print_bench(console: Console, result: BenchResult) -> None:
    """What ran, narrow enough for 80 columns: a table for each method, and below what is to be said of cells."""
    from fsmer.published.tables import METRIC_TITLES

    reasons: dict[str, int] = {}
    rows = [line for line in result.lines() if line["status"] != "published only"]
    for (group, method), lines in itertools.groupby(rows, key=lambda line: (line["group"], line["method"])):
        console.print()
        name = f"{method} ({group})" if group and not method.endswith(f"({group})") else method
        console.print(name, style="bold")
        table = plain_table("", "", "published", "measured")
        for column in table.columns[1:]:
            column.no_wrap = True
        table.columns[0].no_wrap = False
        for title, cells in itertools.groupby(lines, key=lambda line: line["column"]):
            for number, line in enumerate(cells):
                spread = f" ± {line['sd_text']}" if line["sd_text"] else ""
                shown = f"{line['stamp']} {line['measured_text']}{spread}".strip() if line["measured_text"] else ""
                # Parameters are counted where nothing could be run too.
                why = line["reason"] if not shown or line["status"] in ("measured", "partial") else ""
                mark = f"[{reasons.setdefault(why, len(reasons) + 1)}]" if why else ""
                metric, old = METRIC_TITLES[line["metric"]], line["published_text"] or "-"
                table.add_row("" if number else title, metric, old, f"{shown} {mark}".strip())
                if line["honest_text"]:
                    table.add_row("", "", "", f"honest {line['honest_text']}, gap {line['gap_text']}")
        console.print(table)
    console.print()
    for reason, number in reasons.items():
        console.print(f"[{number}] {reason}")


def show_report(report: Report, out: Path | None, as_json: bool) -> None:
    """Print a report as tables or as JSON, and say where it was written."""
    if as_json:
        return say_json(report.to_dict())
    console = Console()
    console.print(f"{report.title}, model {report.model['name']}", style="bold")
    table = plain_table("clips of", "clips", "UF1", "UAR", "Acc", *report.metrics)
    stamp, metrics = "ORACLE " if report.oracle else "", (*SHOWN, *report.metrics)
    parts = {"all": report.figures | {"clips": report.counts["clips"]}}
    if len(report.per_dataset) > 1:
        parts |= report.per_dataset
    for name, figures in parts.items():
        table.add_row(name, f"{figures['clips']:,}", *_figures(figures, metrics))
    if report.honest is not None and report.gap is not None:
        table.add_row("honest, same run", f"{report.counts['clips']:,}", *_figures(report.honest, metrics))
        table.add_row("gap", "", *(f"{report.gap[metric]:+.3f}" for metric in metrics))
    for row in report.per_seed if len(report.per_seed) > 1 else []:
        table.add_row(f"seed {row['seed']}", "", *(f"{stamp}{row[metric]:.3f}" for metric in metrics))
    console.print(table)
    shown = (f"{stamp}{name}" for name in ("F1", "recall", "precision"))
    classes = plain_table("class", "clips", *shown, *(f"as\n{name}" for name in report.classes))
    for (name, row), counts in zip(report.per_class.items(), report.confusion.tolist(), strict=True):
        shares = (f"{stamp}{row[key]:.3f}" for key in ("f1", "recall", "precision"))
        classes.add_row(name, f"{row['clips']:,}", *shares, *(f"{count:,}" for count in counts))
    console.print(classes)
    for line in (report.how, *report.notes, *([] if out is None else [f"written to {out}"])):
        console.print(line)


def methods_table(reports: Mapping[str, Report], head: str = "method") -> Table:
    """Figures of reports side by side, the highest UF1 first."""
    from fsmer.evaluation.report_tables import shared

    metrics = shared(reports.values())
    table = plain_table(head, "UF1", "UAR", "Acc", *metrics[len(SHOWN) :])
    for name, report in sorted(reports.items(), key=lambda item: -item[1].uf1):
        name = name if "(transductive)" in name else report.stamped(name)
        table.add_row(name, *_figures(report.figures, metrics))
    return table


def _figures(figures: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    """Figures with intervals, short enough for a terminal of 80 columns: ``0.842 [.839, .845]``."""
    cells = []
    for metric in metrics:
        bounds = figures[f"{metric}_interval"]
        shown = "" if bounds is None else " [" + ", ".join(f"{bound:.3f}".removeprefix("0") for bound in bounds) + "]"
        stamp = "ORACLE " if figures.get("oracle") else ""
        cells.append(f"{stamp}{figures[metric]:.3f}{shown}")
    return cells


def plain_table(*headers: str) -> Table:
    """A table without lines whose first column is not wrapped."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, header in enumerate(headers):
        table.add_column(header, overflow="fold", no_wrap=number == 0)
    return table


def print_entry(console: Console, name: str, facts: str, *lines: str) -> None:
    """An entry of a list: name and facts on one line, and below it what takes more room."""
    console.print(Text.assemble((name, "bold"), f"  {facts}"))
    for line in filter(None, lines):
        console.print(Padding(line, (0, 0, 0, 4)))


def losses_text(losses: Mapping[str, float]) -> str:
    """Losses by name on one line."""
    return " ".join(f"{name} {value:.3f}" for name, value in losses.items())
