"""The tables of a report as data, which every writer shows in its own way, and the Markdown page made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fsmer.data.spec import InputSpec
from fsmer.evaluation.report_file import FORMAT_VERSION, NAMES
from fsmer.text import markdown

if TYPE_CHECKING:
    from fsmer.evaluation.report import Report

__all__ = ["NAMES", "ORACLE", "SHOWN", "Figure", "Table", "by_class", "by_dataset", "by_seed", "confusion"]
__all__ += ["markdown_table", "oracle_gap", "plain", "provenance", "report_markdown", "show_figure"]
__all__ += ["shared", "shown"]

# On everything that was chosen by looking at the test clips.
ORACLE = "ORACLE"
# The figures that tables show.
SHOWN = ("uf1", "uar", "acc")
# What of a run's identity the other rows of the provenance do not hold.
_HASHES = ("table of clips", "content of the media")


@dataclass(frozen=True)
class Figure:
    """A figure as a cell: its value, its 95 % interval where there is one, and whether the test clips chose it."""

    value: float
    interval: tuple[float, float] | None = None
    oracle: bool = False

    @classmethod
    def of(cls, figures: Mapping[str, Any], name: str) -> Figure:
        """That of a mapping such as `Report.figures` or one row of `Report.per_seed`."""
        return cls(figures[name], figures.get(f"{name}_interval"), bool(figures.get("oracle")))

    def __str__(self) -> str:
        bounds = "" if self.interval is None else f" [{self.interval[0]:.4f}, {self.interval[1]:.4f}]"
        return f"{f'{ORACLE} ' if self.oracle else ''}{self.value:.4f}{bounds}"


@dataclass(frozen=True)
class Table:
    """A table: what it shows, one heading a column, and rows of text, counts (int) and figures (`Figure`)."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[Any]]


def show_figure(figures: Mapping[str, Any], name: str) -> str:
    """A figure with its interval, e.g. ``0.8421 [0.8390, 0.8452]``; one chosen on the test clips says so."""
    return str(Figure.of(figures, name))


def shown(report: Report) -> tuple[str, ...]:
    """The figures that tables show: `SHOWN`, and the metrics that plugins have added to this report."""
    return (*SHOWN, *report.metrics)


def shared(reports: Iterable[Report]) -> tuple[str, ...]:
    """The figures that all of several reports show."""
    first, *others = map(shown, reports)
    return tuple(name for name in first if all(name in other for other in others))


def by_dataset(report: Report) -> Table:
    """Figures over all clips, and of the clips of each data set where there are several."""
    parts = {"all": {**report.figures, **report.counts}}
    if len(report.per_dataset) > 1:
        parts |= report.per_dataset
    rows = [[name, part["clips"], part["subjects"], *figure_cells(part, shown(report))] for name, part in parts.items()]
    return Table("By data set", ("data set", "clips", "subjects", *_headings(report)), rows)


def by_class(report: Report) -> Table:
    """F1, recall and precision of every class."""
    keys = ("f1", "recall", "precision")
    rows = [[name, row["clips"], *figure_cells(row, keys)] for name, row in report.per_class.items()]
    return Table("By class", ("class", "clips", "F1", "recall", "precision"), rows)


def by_seed(report: Report) -> Table | None:
    """Figures of every seed, their mean and standard deviation; ``None`` for one seed."""
    if len(report.per_seed) < 2:
        return None
    rows: list[list[Any]] = [[str(row["seed"]), *figure_cells(row, shown(report))] for row in report.per_seed]
    values = np.array([[row[name] for name in shown(report)] for row in report.per_seed], dtype=np.float64)
    for word, found in (("mean", values.mean(axis=0)), ("standard deviation", values.std(axis=0, ddof=1))):
        rows.append([word, *(Figure(value, None, report.oracle) for value in found.tolist())])
    return Table("Every seed", ("seed", *_headings(report)), rows)


def oracle_gap(report: Report) -> Table | None:
    """Of an oracle report, its figures beside the honest ones of the same run; ``None`` for any other."""
    if report.honest is None or report.gap is None:
        return None
    rows: list[list[Any]] = [
        ["chosen on the judged clips", *figure_cells(report.figures, shown(report))],
        ["honest, same run", *figure_cells(report.honest, shown(report))],
        ["gap", *(f"{report.gap[name]:+.4f}" for name in shown(report))],
    ]
    return Table("What looking at the test side gains", ("rule", *_headings(report)), rows)


def confusion(report: Report) -> Table:
    """How often each class was taken for each class, over all episodes and seeds; rows are the truth."""
    rows = [[name, *row] for name, row in zip(report.classes, report.confusion.tolist(), strict=True)]
    return Table("Confusion (rows: truth, columns: prediction)", ("truth / said", *report.classes), rows)


def provenance(report: Report, *, run: bool = True) -> Table:
    """Everything about how a report came to be, as rows of (what, value).

    With `run` also how and when it was computed, which differs each time that the same report is made.
    """
    model, protocol = report.model, report.protocol
    rows: list[tuple[str, str]] = [
        ("protocol", f"{protocol['name']} ({protocol['hash']})"),
        ("model", f"{model['name']} ({model['weights_hash']})"),
        ("input", "; ".join(InputSpec.from_dict(spec).describe() for spec in model.get("input_specs", ()))),
        ("method", report.stamped(report.method["name"])),
        ("parameters", ", ".join(f"{key}={value}" for key, value in report.method["params"].items())),
        ("seeds", ", ".join(str(one["seed"]) for one in report.per_seed)),
        ("seed of episodes and bootstrap", str(report.seed)),
        ("choice of settings", report.selection["rule"]),
        ("isolation", report.isolation),
        ("preprocessing", ", ".join(f"{key} recipe {' and '.join(one)}" for key, one in report.preprocessing.items())),
        ("format version", str(FORMAT_VERSION)),
    ]
    if run:
        rows += _run_rows(report.run)
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())))
    return Table("What it takes to repeat this", ("what", "value"), [row for row in rows if row[1]])


def _run_rows(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(key, str(run[key])) for key in ("call", "started", "machine") if key in run]
    if "seconds" in run:
        taken = f" for what an earlier start had not done ({run['resumed']:,} episodes)" if run.get("resumed") else ""
        rows.append(("time", f"{_duration(run['seconds'])}{taken}"))
    return rows + [(key, value) for key, value in run.get("identity", {}).items() if key in _HASHES]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def figure_cells(figures: Mapping[str, Any], names: Sequence[str]) -> list[Figure]:
    """The figures of these names as cells."""
    return [Figure.of(figures, name) for name in names]


def _headings(report: Report) -> list[str]:
    return [NAMES.get(name, name) for name in shown(report)]


def plain(value: Any) -> Any:
    """A value of plain types for JSON: mappings with keys of text, lists, numbers of Python."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def report_markdown(report: Report) -> str:
    """The page: title, what the figures are, all tables, notes and provenance."""
    stamp = f"{ORACLE} " if report.oracle else ""
    counts = f"{report.counts['clips']:,} clips of {report.counts['subjects']:,} subjects"
    lines = [f"# {markdown(report.title)}", ""]
    lines += [f"Model {markdown(report.model['name'])}, {counts}; {report.how}.", ""]
    tables = (by_dataset(report), oracle_gap(report), by_seed(report), by_class(report), confusion(report))
    for table in filter(None, tables):
        lines += [f"{stamp}{table.title}:", "", *markdown_table(table), ""]
    if report.notes:
        lines += [*(f"Note: {markdown(note)}" for note in report.notes), ""]
    # Without how and when: the same report gives the same page.
    lines += [f"- {name}: {markdown(value)}" for name, value in provenance(report, run=False).rows]
    return "\n".join([*lines, ""])


def markdown_table(table: Table) -> list[str]:
    """Lines of a table in Markdown; text is escaped, figures and counts need no escape."""
    head, *rows = (
        [markdown(one) if isinstance(one, str) else f"{one:,}" if isinstance(one, int) else str(one) for one in row]
        for row in (table.head, *table.rows)
    )
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
