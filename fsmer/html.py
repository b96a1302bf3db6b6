"""HTML that notebooks show of objects, and the jinja2 environment of all pages: every text from data is escaped."""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsmer.text import printable, shortened

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Facts", "Grid", "Pictures", "environment", "object_html"]

# A fragment stays small whatever the names are: characters of a text, rows and columns of a table.
LONGEST, MAX_ROWS, MAX_COLUMNS = 60, 60, 12


@dataclass(frozen=True)
class Facts:
    """What is known of an object, as pairs of a name and a value."""

    rows: Sequence[tuple[str, Any]]
    kind: str = "facts"


@dataclass(frozen=True)
class Grid:
    """A table: headings, and rows of cells whose first is the row's name.

    `shares` (0..1) colours the further cells of each row; `longest` is how many characters a cell shows. Rows beyond
    the largest number are counted instead.
    """

    title: str
    head: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    shares: Sequence[Sequence[float]] | None = None
    longest: int = LONGEST
    kind: str = "grid"

    @property
    def shown(self) -> list[list[tuple[Any, float]]]:
        """Cells with their shares (0 without), no more than fit."""
        found = []
        for number, row in enumerate(self.rows[:MAX_ROWS]):
            shares = [0.0] * len(row) if self.shares is None else [0.0, *self.shares[number]]
            found.append(list(zip(row, shares, strict=True))[:MAX_COLUMNS])
        return found

    @property
    def left_out(self) -> str:
        """How many rows and columns do not fit, in words."""
        beyond = {"rows": len(self.rows) - MAX_ROWS, "columns": len(self.head) - MAX_COLUMNS}
        return " and ".join(f"{count:,} more {what}" for what, count in beyond.items() if count > 0)


@dataclass(frozen=True)
class Pictures:
    """PNG pictures in a row, each with its description and the caption below it."""

    title: str
    items: Sequence[tuple[bytes, str, str]]
    kind: str = "pictures"

    @property
    def encoded(self) -> list[tuple[str, str, str]]:
        """Pictures in base64, with description and caption."""
        return [(base64.b64encode(png).decode("ascii"), said, caption) for png, said, caption in self.items]


def object_html(title: str, *parts: Facts | Grid | Pictures, note: str = "") -> str:
    """A fragment without script for a notebook, in its colours; `note` is a sentence below the parts."""
    template = _object_environment().get_template("object.html.j2")
    return template.render(title=title, parts=parts, note=note)


def environment(package: str) -> Environment:
    """A jinja2 environment for the folder ``templates`` of a package.

    Every value is escaped and shown without control characters, and a missing value is an error.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        # Markup as it is, anything else without control characters.
        finalize=lambda value: value if hasattr(value, "__html__") else printable(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


@functools.cache
def _object_environment() -> Environment:
    made = environment("fsmer")
    made.globals["most"] = MAX_COLUMNS
    made.filters["cell"] = lambda value, longest=LONGEST: shortened(
        f"{value:,}" if isinstance(value, int) else value, longest
    )
    made.tests["number"] = lambda value: isinstance(value, (int, float))
    return made
