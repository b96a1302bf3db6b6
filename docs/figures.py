"""Fills the marked figures of README.md, of the pages and of the model cards from tables: ``python docs/figures.py``.

Every measured figure stands once, in ``docs/results/FAMILY.csv``; readings of real labels, the family ``readings``,
stand in ``benchmarks/releases.csv``. Text shows figures between marks, which this script fills. ``--check`` changes
nothing and ends with 1 where a text says something else than its table.

``<!--fig FAMILY.ROW.COLUMN-->.859<!--/fig-->``
    One cell, within a line. COLUMN ``uf1_interval`` shows ``uf1_low`` and ``uf1_high``; ``FAMILY.count`` is the number
    of rows.
``<!-- figures: FAMILY; rows: ROW, ROW; HEADING = COLUMN; HEADING = {COLUMN} / {COLUMN} --> ... <!-- end -->``
    A table. Without ``rows`` all rows; a row that ends in ``*`` stands for all that begin so. A column alone shows its
    interval too.
``<!-- commands: FAMILY; rows: ROW --> ... <!-- end -->``
    A table of the commands that gave the figures, with seeds, versions, weights and the day on which they were entered.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from fsmer.data.text_tables import shipped_rows
from fsmer.errors import DataError

__all__ = ["cell", "filled", "marked_texts", "table_path"]

ROOT = Path(__file__).resolve().parent.parent
READINGS = "readings"
PROVENANCE = ("command", "seeds", "versions", "weights", "date")
INLINE = re.compile(r"(<!--fig ([\w.-]+)-->)(.*?)(<!--/fig-->)", re.DOTALL)
BLOCK = re.compile(r"(<!-- (figures|commands): ([^>]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def marked_texts(root: Path = ROOT) -> list[Path]:
    """README, pages and model cards: the texts whose marks are filled."""
    return [root / "README.md", *sorted(root.glob("docs/**/*.md")), *sorted(root.glob("pretrained/**/README.md"))]


def table_path(family: str, root: Path = ROOT) -> Path:
    """File of a family of figures."""
    path = root / ("benchmarks/releases.csv" if family == READINGS else f"docs/results/{family}.csv")
    if not path.is_file():
        raise DataError(
            f"there is no table {path.relative_to(root)} for the figures {family!r}; write it, or mend the mark."
        )
    return path


def cell(key: str, root: Path = ROOT) -> str:
    """Text of one figure by ``FAMILY.ROW.COLUMN`` or ``FAMILY.count``; `DataError` where it is not there."""
    family, *place = key.split(".")
    rows = shipped_rows(table_path(family, root))
    if place == ["count"]:
        return str(len(rows))
    if len(place) != 2:
        raise DataError(f"the mark {key!r} is not FAMILY.ROW.COLUMN or FAMILY.count.")
    name, column = place
    found = [row for row in rows if row.get("name") == name]
    if len(found) != 1:
        raise DataError(
            f"{table_path(family, root).name} has {len(found)} rows named {name!r}, which {key!r} needs once."
        )
    text = (
        _interval(found[0], column.removesuffix("_interval")) if column.endswith("_interval") else found[0].get(column)
    )
    if not text:
        raise DataError(f"{table_path(family, root).name} has nothing in column {column!r} of row {name!r}.")
    return text


def filled(text: str, root: Path = ROOT) -> str:
    """`text` with every mark filled from the tables."""
    if line := re.search(r"^\s*<!--fig .*$", text, re.MULTILINE):
        raise DataError(
            f"a line must not begin with a mark, since Markdown takes such a line as HTML: {line[0]!r:.100}"
        )
    text = INLINE.sub(lambda mark: f"{mark[1]}{cell(mark[2], root)}{mark[4]}", text)

    def block(mark: re.Match[str]) -> str:
        lines = (_commands if mark[2] == "commands" else _table)(mark[3], root)
        # Empty lines around it: a table ends at one, and a comment is no row of it.
        return "\n".join([mark[1], *lines, "", mark[5]])

    return BLOCK.sub(block, text)


def _interval(row: Mapping[str, str], column: str) -> str:
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    return f"[{low}, {high}]" if low and high else ""


def _asked(text: str, root: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Rows and the remaining settings of a block."""
    family, *settings = (part.strip() for part in text.split(";"))
    rows = shipped_rows(table_path(family, root))
    if settings and settings[0].startswith("rows:"):
        patterns = [name.strip() for name in settings.pop(0).removeprefix("rows:").split(",")]
        chosen = [[row for row in rows if fnmatchcase(row["name"], pattern)] for pattern in patterns]
        if not all(chosen):
            raise DataError(f"{family} has no row named {patterns[chosen.index([])]!r}, which a block asks for.")
        rows = [row for group in chosen for row in group]
    return rows, settings


def _table(text: str, root: Path) -> Iterator[str]:
    rows, settings = _asked(text, root)
    columns = [tuple(part.strip() for part in setting.rpartition("=")[::2]) for setting in settings]
    yield from _markdown(
        [heading for heading, _ in columns], [[_shown(row, form) for _, form in columns] for row in rows]
    )


def _commands(text: str, root: Path) -> Iterator[str]:
    rows, _ = _asked(text, root)
    told = dict.fromkeys(tuple(row[column] for column in PROVENANCE) for row in rows if row["command"])
    headings = ("command", "seeds", "versions", "weights", "entered")
    yield from _markdown(
        headings, [[f"`{one[0]}`", *one[1:3], f"`{one[3]}`" if one[3] else "", one[4]] for one in told]
    )


def _shown(row: Mapping[str, str], form: str) -> str:
    names = re.findall(r"\{(\w+)\}", form) or [form]
    if unknown := sorted(set(names) - set(row)):
        raise DataError(f"a block asks for the column {unknown[0]!r}; the table has {', '.join(row)}.")
    if form != names[0]:
        return form.format_map(row) if any(row[name] for name in names) else ""
    if form == "command" and row[form]:
        return f"`{row[form]}`"
    return f"{row[form]} {_interval(row, form)}".strip()


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for line in (headings, ["---"] * len(headings), *rows):
        yield "| " + " | ".join(text.replace("|", "\\|") for text in line) + " |"


def main() -> int:
    """Fill the texts, or say which of them differ."""
    parser = argparse.ArgumentParser(prog="python docs/figures.py", description="Figures of texts from their tables.")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 where a text differs from its table")
    check = parser.parse_args().check
    differ = 0
    for path in marked_texts():
        text = path.read_text(encoding="utf-8")
        try:
            told = filled(text)
        except DataError as error:
            print(f"{path.relative_to(ROOT)}: {error}", file=sys.stderr)
            return 1
        if told != text:
            differ = 1
            said = "differs from its tables; run python docs/figures.py" if check else "filled"
            print(f"{path.relative_to(ROOT)} {said}")
            if not check:
                path.write_text(told, encoding="utf-8")
    return differ if check else 0


if __name__ == "__main__":
    sys.exit(main())
