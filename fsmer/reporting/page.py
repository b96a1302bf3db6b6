"""Self-contained HTML pages from the templates of this folder; text of data is escaped and nothing is loaded."""

from __future__ import annotations

import functools
import json
import re
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment

from fsmer.evaluation.report_tables import NAMES, ORACLE, SHOWN, Figure
from fsmer.html import environment
from fsmer.version import __version__

__all__ = ["fragment", "page"]


def page(template: str, title: str, **values: Any) -> str:
    """A whole page by a template that extends ``page.html.j2``, from the `values` that it shows."""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return _environment().get_template(template).render(title=title, titles=[], made=made, **values)


def fragment(template: str, macro: str, *arguments: Any, **values: Any) -> str:
    """What one macro of a template makes of these arguments: markup, which a page does not escape again."""
    made: str = getattr(_environment().get_template(template).module, macro)(*arguments, **values)
    return made


@functools.cache
def _environment() -> Environment:
    made = environment("fsmer.reporting")
    made.globals.update(ORACLE=ORACLE, version=__version__, always_shown=SHOWN)
    made.tests["figure"] = lambda value: isinstance(value, Figure)
    made.filters.update(
        fmt=format,
        heading=lambda metric: NAMES.get(metric, metric),
        slug=lambda title: re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-"),
        s=lambda count: "" if count == 1 else "s",
        json=lambda values: json.dumps(values, indent=2, ensure_ascii=False, default=str),
        along=lambda value, low, high: f"{5 + 190 * min(max((value - low) / (high - low), 0.0), 1.0):.1f}",
    )
    return made
