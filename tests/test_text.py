"""Text from data is shown letter by letter: no control characters, no markup, no formulas, and whole after reading."""

from __future__ import annotations

import csv
import io
import unicodedata

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pages import read_page

from fsmer.text import markdown, one_line, printable, read_cells, write_csv

FORMULAS = (
    '=HYPERLINK("http://x","y")',
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "＝1+1",
    "a;=1+1",
    "'=1",
    "''-1",
    "a\r\n=1",
)
EXECUTED = tuple("=+-@＝＋－＠")


@given(st.text())
@example("\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp.exe\u2066")
def test_printable_text_moves_no_cursor_and_turns_no_writing(text: str) -> None:
    shown = printable(text)
    assert all(unicodedata.category(one) != "Cc" or one in "\t\n" for one in shown)
    assert all(
        unicodedata.bidirectional(one) not in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        for one in shown
    )
    assert "\n" not in one_line(text)


@pytest.mark.parametrize("text", ["", "happiness", "中文", "naïve (3)", "tab\tand\nline", "नमस्ते", "a\\b"])
def test_ordinary_text_is_printed_as_it_is(text: str) -> None:
    assert printable(text) == text


@given(st.text(st.characters(exclude_categories=["Zs", "Zl", "Zp", "Cc", "Cs"]), min_size=1))
@example("<script>alert(1)</script>")
@example("a|b\\|c")
@example("[x](javascript:alert(1))![y](z)")
@example("`a` *b* __c__ ~~d~~ _e_ $f$ &amp; &lt;")
@example("a_b")
def test_markdown_shows_text_letter_by_letter(text: str) -> None:
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tree = read_page(page.render(f"| head | x |\n|---|---|\n| {markdown(text)} | y |\n"))
    cells = tree.find("td")
    assert [cell.text for cell in cells] == [one_line(text), "y"]
    assert all(isinstance(child, str) for child in cells[0].children)


@given(
    st.lists(st.tuples(st.text(), st.text(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1), st.text()
)
@example([(text, "x", -1.5) for text in FORMULAS], "=1")
def test_tables_survive_the_way_through_a_file(rows: list[tuple[str, str, float]], heading: str) -> None:
    table = pd.DataFrame(rows, columns=[f"p_{heading}", "text", "number"])
    stream = io.StringIO(newline="")
    write_csv(table, stream)
    names = pd.read_csv(io.StringIO(stream.getvalue(), newline=""), nrows=0).columns
    kinds = {names[0]: str, "text": str}
    read = read_cells(pd.read_csv(io.StringIO(stream.getvalue(), newline=""), dtype=kinds, keep_default_na=False))
    assert list(read.columns) == list(table.columns)
    assert read.to_numpy(object).tolist() == table.to_numpy(object).tolist()


@given(st.lists(st.lists(st.text() | st.sampled_from(FORMULAS), min_size=2, max_size=2), min_size=1))
@pytest.mark.parametrize("separator", [",", ";"])
def test_a_spreadsheet_finds_no_formula(separator: str, rows: list[list[str]]) -> None:
    stream = io.StringIO(newline="")
    write_csv(pd.DataFrame(rows, columns=["a", "b"]), stream)
    for cells in csv.reader(io.StringIO(stream.getvalue(), newline=""), delimiter=separator):
        assert not [cell for cell in cells if cell.lstrip("\t\r\n").startswith(EXECUTED)]


def test_numbers_stay_numbers() -> None:
    stream = io.StringIO()
    write_csv(pd.DataFrame({"gap": [-0.5, 2.0], "count": [-3, 4]}), stream)
    assert stream.getvalue() == "gap,count\n-0.5,-3\n2.0,4\n"
