"""A report as a Markdown page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fsmer.evaluation.report_tables import (
    ORACLE,
    by_class,
    by_dataset,
    by_seed,
    confusion,
    markdown_table,
    oracle_gap,
    provenance,
)
from fsmer.text import markdown

if TYPE_CHECKING:
    from fsmer.evaluation.report import Report

__all__ = ["report_markdown"]


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
