"""Published results tables as data: columns with their protocols, rows with their printed numbers and what runs them.

A table is one YAML file in ``fsmer/published/tables``. Numbers stand as they are printed, a cell for each column,
metrics joined by a slash: ``"88.35%/0.8676  80.14%/0.7291"``; ``-`` is a cell that the paper leaves empty, ``*`` marks
what the paper took from another article, ``77.82±3.65%`` has its deviation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NotRequired

from fsmer.episodic import Protocol, load_protocol
from fsmer.errors import FsmerError, unknown_name
from fsmer.listing import Listing
from fsmer.schema import Count, Names, entries, read_yaml

__all__ = ["METRIC_TITLES", "Column", "Published", "PublishedTable", "Row", "Settings", "list_tables", "load_table"]

FOLDER = Path(__file__).parent / "tables"

METRIC_TITLES = {"acc": "Acc", "parameters": "parameters (million)", "seconds": "time (s)", "uar": "UAR", "uf1": "UF1"}


@dataclass(frozen=True)
class Published:
    """One printed number."""

    text: str  # as it is printed
    value: float  # shares as fractions, whether printed so or in percent
    sd: float | None = None  # where one is printed

    @classmethod
    def read(cls, text: str) -> Published:
        """Read ``0.7838``, ``88.35%``, ``0.4090*`` or ``77.82±3.65%``; `FsmerError` for anything else."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:±(\d+(?:\.\d+)?))?(%?)\*?", text)
        if found is None:
            raise FsmerError(f"{text!r} is no printed number; write for example 0.7838, 88.35% or 77.82±3.65%.")
        scale = 100 if found.group(3) else 1
        sd = None if found.group(2) is None else float(found.group(2)) / scale
        return cls(text, float(found.group(1)) / scale, sd)


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # keys of Settings that hold for every row
    part: str | None = None  # the column is this data set's part of the run
    classes: int | None = None  # number of classes, where parameters are counted
    average: tuple[int, ...] = ()  # the column is the mean of these


@dataclass(frozen=True)
class Row:
    """One method of a table."""

    method: str  # as the paper calls it; rows of fsmer's own say so
    group: str = ""  # what the row belongs to
    note: str = ""  # what to know of it
    # By metric, one entry a column; empty for rows that the paper does not have.
    published: tuple[Mapping[str, Published] | None, ...] = ()
    run: Mapping[str, Any] | None = None  # keys of Settings; None: published only
    columns: tuple[int, ...] = ()  # the columns that it is run in


@dataclass(frozen=True)
class Settings:
    """What measuring one cell takes."""

    protocol: Protocol
    model: str  # name of a backbone
    method: str
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the backbone's constructor
    params: Mapping[str, Any] = field(default_factory=dict)  # of the method
    # What is done with the source first: "au_detector" fits the action unit detector of merau, "episodes" trains
    # the backbone by MERAU's Algorithm 1 (`fsmer.published.cells.EPISODES`).
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper; see `load_table`."""

    name: str
    title: str  # what it shows
    paper: str
    table: str  # its number in the paper
    metrics: tuple[str, ...]  # in the order in which numbers of a cell stand
    percent: tuple[str, ...]  # metrics that the table gives in percent
    seeds: int  # how often the paper ran, as far as it says
    columns: tuple[Column, ...] = field(repr=False)
    rows: tuple[Row, ...] = field(repr=False)
    differences: tuple[str, ...] = field(repr=False)  # where the paper's protocol and fsmer's part, in words
    gaps: tuple[str, ...] = field(default=(), repr=False)  # what of the printed table is missing or was read with care

    def runs(self, row: int) -> tuple[int, ...]:
        """The columns, means aside, in which that row is measured."""
        one = self.rows[row]
        return () if one.run is None else tuple(place for place in one.columns if not self.columns[place].average)

    def settings(self, row: int, column: int) -> Settings:
        """How to measure a cell: the column's settings with the row's in their place.

        `FsmerError` where model, method or protocol are missing, or a key is unknown.
        """
        own = dict(self.rows[row].run or {})
        shared = dict(self.columns[column].settings)
        before = (*own.pop("before", ()), *shared.pop("before", ()))
        values = {**shared, **own}
        where = f"row {self.rows[row].method!r} of table {self.name!r} in column {self.columns[column].title!r}"
        for key in ("protocol", "model", "method"):
            if key not in values:
                raise FsmerError(f"{where} has no {key}; name it in the row or in the column.")
        unknown = sorted(set(values) - {"protocol", "model", "method", "arguments", "params"})
        if unknown:
            raise FsmerError(f"{where} has the unknown key {unknown[0]!r}; take it out.")
        protocol = values.pop("protocol")
        made = load_protocol(protocol) if isinstance(protocol, str) else Protocol.from_dict(protocol)
        return Settings(protocol=made, before=before, **values)

    def datasets(self) -> tuple[str, ...]:
        """Keys of all data sets that its runs need."""
        needed = {
            need.dataset
            for row in range(len(self.rows))
            for column in self.runs(row)
            for need in self.settings(row, column).protocol.requirements
        }
        return tuple(sorted(needed))

    def to_dict(self) -> dict[str, Any]:
        """Words of the table for a listing."""
        words = {key: getattr(self, key) for key in ("name", "title", "paper", "table")}
        return {
            **words,
            "metrics": list(self.metrics),
            "columns": [column.title for column in self.columns],
            "rows": [row.method for row in self.rows],
            "runnable": [row.method for row in self.rows if row.run is not None],
            "datasets": list(self.datasets()),
            "differences": list(self.differences),
            "gaps": list(self.gaps),
        }


def list_tables() -> list[PublishedTable]:
    """All published tables that fsmer knows, sorted by name.

    Returns
    -------
    list of PublishedTable
        One entry a table.

    Examples
    --------
    >>> import fsmer
    >>> [table.name for table in fsmer.list_tables()][:3]
    ['attribute-3', 'attribute-4', 'attribute-alpha']
    """
    return Listing(map(load_table, _names()), "published tables", _table_row)


def _table_row(one: PublishedTable) -> dict[str, str]:
    return {"table": one.name, "paper": f"{one.paper.split(' (')[0]}, {one.table}", "what it shows": one.title}


def load_table(name: str) -> PublishedTable:
    """The table of that name.

    Raises
    ------
    UnknownNameError
        There is none; the nearest names are suggested.

    Examples
    --------
    >>> load_table("fr-2").rows[-3].published[0]["uf1"].value
    0.7838
    """
    if name not in _names():
        raise unknown_name("table", name, _names())
    return _read(name)


def _names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


_PLACES = NotRequired[list[Count]]
_COLUMN: Any = entries(
    {"title": str, "part": NotRequired[str], "classes": NotRequired[Count], "average": _PLACES}, extra_items=Any
)
_WORDS = dict.fromkeys(("group", "note", "published"), NotRequired[str])
_ROW: Any = entries({"method": str, "run": NotRequired[dict[str, Any]], "columns": _PLACES} | _WORDS)
_TABLE = entries(
    dict.fromkeys(("name", "title", "paper", "table"), str)
    | {"metrics": Names, "percent": NotRequired[Names], "differences": Names, "gaps": NotRequired[Names]}
    | {"seeds": Count, "columns": list[_COLUMN], "rows": list[_ROW]}
)


@cache
def _read(name: str) -> PublishedTable:
    values: Any = read_yaml(
        FOLDER / f"{name}.yaml", _TABLE, what="a published table", remedy="install fsmer again", error=FsmerError
    )
    for key in ("metrics", "percent", "differences", "gaps"):
        values[key] = tuple(values.get(key, ()))
    columns = tuple(_column(one) for one in values.pop("columns"))
    rows = tuple(_row(one, values["metrics"], len(columns)) for one in values.pop("rows"))
    return PublishedTable(columns=columns, rows=rows, **values)


def _column(values: dict[str, Any]) -> Column:
    own = {key: values.pop(key) for key in ("title", "part", "classes") if key in values}
    return Column(average=tuple(values.pop("average", ())), settings=values, **own)


def _row(values: dict[str, Any], metrics: Sequence[str], count: int) -> Row:
    published: tuple[Mapping[str, Published] | None, ...] = ()
    if "published" in values:
        cells = values.pop("published").split()
        if len(cells) != count:
            raise FsmerError(f"row {values['method']!r} has {len(cells)} published cells for {count} columns.")
        published = tuple(None if cell == "-" else _cell(cell, metrics) for cell in cells)
    there = (place for place in range(count) if not published or published[place] is not None)
    return Row(published=published, columns=tuple(values.pop("columns", there)), **values)


def _cell(text: str, metrics: Sequence[str]) -> dict[str, Published]:
    parts = text.split("/")
    if len(parts) != len(metrics):
        raise FsmerError(f"the cell {text!r} has {len(parts)} numbers for the metrics {', '.join(metrics)}.")
    return {metric: Published.read(part) for metric, part in zip(metrics, parts, strict=True)}
