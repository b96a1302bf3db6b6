"""Text from data (labels, ids, titles) made harmless where it is shown: a terminal, Markdown, a spreadsheet."""

from __future__ import annotations

import csv
import html
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["markdown", "one_line", "printable", "read_cells", "shortened", "without_marks", "write_csv"]

# Control characters except tab and line feed, what ends a line or turns the direction of writing, and lone surrogates.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What has a meaning inside a line of Markdown; an underscore between letters has none.
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
# Where a spreadsheet sees the start of a cell (some separate cells by semicolons), and what begins a formula there.
_START, _FORMULA = r"(?:\A|(?<=[;\t\r\n]))", r"'*[=+\-@\t\r\n＝＋－＠]"
_OPEN, _CLOSED = re.compile(f"{_START}(?={_FORMULA})"), re.compile(f"{_START}'(?={_FORMULA})")


def printable(text: str) -> str:
    """`text` with control characters and marks of writing direction as escapes, such as ``\\x1b``."""
    return HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """`printable` text with its ends of lines as escapes too."""
    return printable(text).replace("\n", "\\n")


def without_marks(text: str) -> str:
    """A docstring's text without its marks: ``code``, `name` and :role:`~package.name` as people read them."""
    text = re.sub(r":[a-z][\w:]*:`~(?:[\w.]*\.)?([^`]*)`|:[a-z][\w:]*:`([^`]*)`", r"\1\2", text)
    return re.sub(r"(`+)([^`]*)\1", r"\2", text)


def markdown(text: str) -> str:
    """`text` as part of a line, or as a cell of a table, of Markdown that shows it letter by letter."""
    return html.escape(_MARKUP.sub(r"\\\g<0>", one_line(text)), quote=False)


def shortened(text: Any, longest: int) -> str:
    """A text of at most so many characters; where it is cut it ends in an ellipsis."""
    whole = str(text)
    return whole if len(whole) <= longest else f"{whole[: longest - 1].rstrip()}…"


def write_csv(table: pd.DataFrame, target: str | os.PathLike[str] | TextIO) -> None:
    """Write a table as CSV (UTF-8, commas) of which a spreadsheet executes nothing.

    Text that a spreadsheet would take for a formula gets an apostrophe in front, which `read_cells` takes away again.
    Numbers stay as they are.
    """
    quoting = csv.QUOTE_MINIMAL

    def cell(text: str) -> str:
        nonlocal quoting
        if "\r" in text:
            # Without quotes a carriage return would end the line for most readers.
            quoting = csv.QUOTE_NONNUMERIC
        return _OPEN.sub("'", text)

    _with_texts(table, cell).to_csv(target, index=False, lineterminator="\n", encoding="utf-8", quoting=quoting)


def read_cells(table: pd.DataFrame) -> pd.DataFrame:
    """What `write_csv` wrote, after reading, with its text as it was before."""
    return _with_texts(table, lambda text: _CLOSED.sub("", text))


def _with_texts(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    """A copy with all texts and headings changed."""
    from pandas.api.types import is_numeric_dtype

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, str) else value

    table = table.rename(columns=changed)
    for name in table.columns:
        if not is_numeric_dtype(table[name]):
            table[name] = table[name].map(changed)
    return table
