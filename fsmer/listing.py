"""Lists of what there is (models, methods, protocols ...) that show themselves as short text and as an HTML table."""

from __future__ import annotations

import pprint
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from fsmer.html import Grid, object_html
from fsmer.text import one_line, shortened

if TYPE_CHECKING:
    from typing import SupportsIndex

__all__ = ["FixedListing", "Listing"]

Item = TypeVar("Item")
Row = Callable[[Any], Mapping[str, str]]
# Characters of a line of text, of the last column at least, and of a cell of the HTML table; lines of an item of text.
WIDTH, LEAST_OF_LAST, CELL, LINES = 79, 40, 600, 2


class Listing(list[Item], Generic[Item]):
    """A list whose items are shown as rows: `row` gives the cells of one by their headings, the
    longest text last."""

    def __init__(self, items: Iterable[Item] = (), title: str = "", row: Row | None = None) -> None:
        super().__init__(items)
        self._title, self._row = title, row

    @overload
    def __getitem__(self, place: SupportsIndex) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> Listing[Item]: ...
    def __getitem__(self, place: SupportsIndex | slice) -> Item | Listing[Item]:
        found: Any = super().__getitem__(place)
        return Listing(found, self._title, self._row) if isinstance(place, slice) else found

    def __repr__(self) -> str:
        return _as_text(list(self), self._row)

    def _repr_html_(self) -> str:
        return _as_html(list(self), self._title, self._row)


class FixedListing(tuple[Item, ...], Generic[Item]):
    """The same as a tuple."""

    _title: str
    _row: Row | None

    def __new__(cls, items: Iterable[Item] = (), title: str = "", row: Row | None = None) -> FixedListing[Item]:
        made = super().__new__(cls, items)
        made._title, made._row = title, row
        return made

    @overload
    def __getitem__(self, place: SupportsIndex) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> FixedListing[Item]: ...
    def __getitem__(self, place: SupportsIndex | slice) -> Item | FixedListing[Item]:
        found: Any = super().__getitem__(place)
        return FixedListing(found, self._title, self._row) if isinstance(place, slice) else found

    def __repr__(self) -> str:
        return _as_text(tuple(self), self._row)

    def _repr_html_(self) -> str:
        return _as_html(tuple(self), self._title, self._row)


def _as_text(items: list[Any] | tuple[Any, ...], row: Row | None) -> str:
    if row is None or not items or all(isinstance(item, str) for item in items):
        # Names as Python writes them.
        return pprint.pformat(items, width=WIDTH, compact=True)
    cells = [[one_line(cell) for cell in row(item).values()] for item in items]
    table = [list(row(items[0])), *cells]
    widths = [max(len(line[place]) for line in table) for place in range(len(table[0]) - 1)]
    # The last column needs room; what stands before it is in the HTML table alone where there is none.
    while len(widths) > 1 and WIDTH - sum(widths) - 2 * len(widths) < LEAST_OF_LAST:
        widths.pop()
    widths = [min(width, WIDTH - LEAST_OF_LAST - 2) for width in widths]
    lines = []
    for *first, last in table:
        front = "".join(f"{shortened(cell, width):<{width}}  " for cell, width in zip(first, widths, strict=False))
        wrapped = textwrap.wrap(last, WIDTH - len(front), max_lines=LINES, placeholder=" …") or [""]
        lines += [f"{front}{wrapped[0]}".rstrip(), *(" " * len(front) + more for more in wrapped[1:])]
    return "\n".join(lines)


def _as_html(items: list[Any] | tuple[Any, ...], title: str, row: Row | None) -> str:
    rows = [{"name": str(item)} if row is None else row(item) for item in items]
    head = list(rows[0]) if rows else []
    return object_html(f"{len(items)} {title}", Grid("", head, [list(one.values()) for one in rows], longest=CELL))
