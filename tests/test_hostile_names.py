"""Names that would be commands, markup or formulas stay text in everything that fsmer writes or prints."""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pages import Node, read_page, report_of
from typer.testing import CliRunner

import fsmer
from fsmer.cli.app import app
from fsmer.data import ClipSet
from fsmer.deploy.recording_prediction import PredictedInterval, RecordingPrediction
from fsmer.drawing import confusion_figure, flow_figure, loss_figure
from fsmer.evaluation import Report
from fsmer.listing import Listing
from fsmer.published import BenchResult, load_table
from fsmer.published.results import Measured
from fsmer.reporting.compare import Comparison, compare
from fsmer.reporting.plots import domains_figure, methods_figure
from fsmer.text import one_line, read_cells

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "a|b\nc\rd",
    '=HYPERLINK("http://x","y")',
    "-1;@SUM(A1)",
    "\t+x",
    "\x1b]0;title\x07\x1b[2J\x9b31m gnp\u202egpj.exe",
    "[red]x[/] :boom:",
    "$\\frac{",
    "![x](javascript:alert(1)) `code` *b* __c__",
    "中文",
)
# What only markup can have made of these names.
ELEMENTS = ("script", "img", "a", "em", "code")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")


@pytest.fixture(scope="module")
def clips() -> ClipSet:
    """Two clips of every class; classes, subjects, data sets and ids are hostile."""
    return clips_of(HOSTILE)


def clips_of(names: tuple[str, ...]) -> ClipSet:
    base = fsmer.synthetic_clips("lab", 2 * len(names), seed=1)
    return ClipSet.from_arrays(
        base.media(),
        [*names, *names],
        subjects=[*names, *names[::-1]],
        datasets=[names[0]] * len(names) + [names[1]] * len(names),
        ids=[f"{name}{half}" for half in "12" for name in names],
        spec=base.specs["flow"],
    )


@pytest.fixture(scope="module")
def report(clips: ClipSet) -> Report:
    rng = np.random.default_rng(0)
    said = np.where(rng.random(len(clips)) < 0.5, clips.codes(HOSTILE), 0)
    return replace(report_of(clips, said, classes=HOSTILE, method=HOSTILE[0]), notes=HOSTILE)


@pytest.fixture(scope="module")
def comparison(clips: ClipSet, report: Report) -> Comparison:
    other = report_of(clips, clips.codes(HOSTILE), classes=HOSTILE, protocol=HOSTILE[1])
    return compare(report, other, report, names=(*HOSTILE[:2], "line\n```\n<img>"), draws=100)


@pytest.fixture(scope="module")
def bench() -> BenchResult:
    table = load_table("fr-2")
    rows = tuple(
        replace(row, method=f"{HOSTILE[number % len(HOSTILE)]}", note=HOSTILE[0])
        for number, row in enumerate(table.rows)
    )
    columns = tuple(replace(column, title=HOSTILE[2]) for column in table.columns)
    table = replace(
        table, title=HOSTILE[0], paper=HOSTILE[1], rows=rows, columns=columns, differences=HOSTILE, gaps=HOSTILE
    )
    cells = {
        (len(rows) - 1, place): Measured("refused", name)
        for place, name in zip(range(len(columns)), HOSTILE, strict=False)
    }
    return BenchResult(table, cells)


@pytest.fixture(scope="module")
def recording() -> RecordingPrediction:
    shares = {name: 1 / len(HOSTILE) for name in HOSTILE}
    intervals = tuple(
        PredictedInterval(n, n + 0.2, n + 0.5, name, shares, (6, 12), {6: 0.5}, 2.0) for n, name in enumerate(HOSTILE)
    )
    return RecordingPrediction(HOSTILE[-2], 25.0, 600, 600, intervals)


def markdown_page(text: str) -> Node:
    return read_page(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_markdown_of_a_report_shows_every_class_in_its_cells(report: Report) -> None:
    page = markdown_page(report.markdown())
    assert not [name for name in ELEMENTS if page.find(name)]
    assert not CONTROL.search(report.markdown())
    heads = [[cell.text for cell in table.find("th")] for table in page.find("table")]
    assert [one_line(name).strip() for name in HOSTILE] == heads[-1][1:]
    # Every row of the confusion matrix is whole: nothing in a name ends a cell or a row.
    rows = [row.find("td") for row in page.find("table")[-1].find("tbody")[0].find("tr")]
    assert [len(row) for row in rows] == [len(HOSTILE) + 1] * len(HOSTILE)


def test_the_markdown_of_comparisons_and_published_tables_has_no_markup_of_names(
    comparison: Comparison, bench: BenchResult
) -> None:
    for text in (comparison.markdown(), bench.markdown()):
        page = markdown_page(text)
        assert not [name for name in ("script", "img", "a") if page.find(name)]
        assert not CONTROL.search(text)
        for table in page.find("table"):
            assert {len(row.children) for row in table.find("tr")} == {len(table.find("tr")[0].children)}


def test_pages_have_no_markup_of_names(report: Report, comparison: Comparison, clips: ClipSet) -> None:
    for text in (report.to_html(clips=clips), comparison.to_html()):
        page = read_page(text)
        assert not [name for name in ("script", "img") if page.find(name)]
        assert all(link.attributes["href"].startswith("#") for link in page.find("a"))
        assert not [node for node in walk(page) if any(key.startswith("on") for key in node.attributes)]
        assert not CONTROL.search(text)
        assert all(one_line(name) in page.text.replace("\n", "\\n") for name in HOSTILE[:2])


def walk(node: Node) -> list[Node]:
    return [node, *(found for child in node.children if isinstance(child, Node) for found in walk(child))]


def test_tables_hold_no_formula_and_are_read_as_they_were(
    report: Report, recording: RecordingPrediction, bench: BenchResult, tmp_path: Path
) -> None:
    report.save(tmp_path / "report")
    recording.save(tmp_path / "recording")
    bench.save(tmp_path / "bench")
    text = {
        "clip",
        "dataset",
        "subject",
        "label",
        "predicted",
        "name",
        "method",
        "column",
        "reason",
        "words",
        "gap_text",
    }
    files = sorted(tmp_path.rglob("*.csv"))
    assert [file.name for file in files] == ["table.csv", "intervals.csv", "episodes.csv", "predictions.csv"]
    for file in files:
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                assert not [row for key, cell in row.items() if key in text and cell.startswith(tuple("=+-@\t\r\n"))]
    loaded = Report.load(tmp_path / "report")
    assert loaded.classes == HOSTILE
    pd.testing.assert_frame_equal(loaded.predictions, report.predictions, check_dtype=False)


names = st.text(min_size=1, max_size=8).filter(lambda text: text.strip() == text)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(names, min_size=3, max_size=3, unique_by=str.casefold))
def test_any_text_survives_saving_and_loading_a_report(tmp_path: Path, drawn: list[str]) -> None:
    clips = clips_of(tuple(drawn))
    report = report_of(clips, clips.codes(tuple(drawn)), classes=drawn)
    report.save(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded.classes == report.classes
    for column in ("clip", "dataset", "subject", "label", "predicted"):
        assert loaded.predictions[column].tolist() == report.predictions[column].tolist()


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["$\\frac{ <script>", "$x$ 中文 \x1b[31m"])
def test_pictures_draw_names_letter_by_letter(name: str, report: Report, tmp_path: Path) -> None:
    points = np.random.default_rng(0).random((6, 3))
    figures = {
        "confusion": confusion_figure(np.eye(2, dtype=int), [name, "b"], title=name),
        "methods": methods_figure({name: report}, title=name),
        "domains": domains_figure(points, points, names=(name, "b"), title=name),
        "losses": loss_figure([2.0, 1.0], title=name),
        "flow": flow_figure(np.ones((1, 3, 8, 8)), titles=[name]),
    }
    for title, figure in figures.items():
        figure.savefig(tmp_path / f"{title}.svg")
        ElementTree.parse(tmp_path / f"{title}.svg")


def test_a_recording_of_hostile_classes_is_drawn(recording: RecordingPrediction) -> None:
    assert recording._repr_png_().startswith(b"\x89PNG")


def test_objects_in_a_notebook_have_no_markup_of_names(clips: ClipSet, report: Report) -> None:
    shown = {
        "clips": clips,
        "report": report,
        "recognizer": fsmer.adapt("facs-flow", clips),
        "episode": fsmer.Episode([0, 1], [2], HOSTILE, HOSTILE[1], None),
        "names": Listing(HOSTILE, "names"),
        "rows": Listing(HOSTILE, HOSTILE[0], lambda name: {HOSTILE[1]: name, HOSTILE[2]: name}),
    }
    for name, one in shown.items():
        text = one._repr_html_()
        page = read_page(text)
        assert not [tag for tag in ELEMENTS if tag != "img" and page.find(tag)], name
        assert all(one.attributes.keys() == {"src", "alt"} for one in page.find("img")), name
        assert not CONTROL.search(text), name
        assert "<script>alert(1)</script>" in page.text, name
        assert len(text.encode()) < 60_000, name
        assert not CONTROL.search(repr(one)), name
        assert name in ("names", "rows") or "\n" not in repr(one), name


@pytest.mark.filterwarnings("error")
def test_figures_of_objects_draw_names_letter_by_letter(clips: ClipSet, report: Report, tmp_path: Path) -> None:
    episode = fsmer.Episode([0, 1], [2, 3], HOSTILE[:4], HOSTILE[0], None)
    for number, figure in enumerate((clips.plot(2), report.plot(), episode.plot(clips))):
        figure.savefig(tmp_path / f"{number}.svg")
        ElementTree.parse(tmp_path / f"{number}.svg")


# -- the terminal ------------------------------------------------------------------------------------------------------


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """All that a command prints, as on a terminal without colours."""

    def call(*arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "400"})
        assert result.exit_code == code, f"{result.output}{result.exception!r}"
        return result.output

    return call


def test_commands_print_names_without_control_characters_and_markup(
    said: Callable[..., str], report: Report, clips: ClipSet, tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("[red]a[bold]", "\x1b[2Jb")]
    report.save(folders[0])
    report_of(clips, clips.codes(HOSTILE), classes=HOSTILE).save(folders[1])
    code = fsmer.audit(folders[0]).exit_code
    for text in (
        said("compare", *folders, "--draws", 100, "--json"),
        said("audit", folders[0], code=code),
        said("audit", folders[0], "--json", code=code),
    ):
        assert not CONTROL.search(text)
    shown = said("compare", *folders, "--draws", 100)
    assert "[red]a[bold]" in shown
    assert "\\x1b[2Jb" in shown


def test_answers_for_clips_hold_no_formula(said: Callable[..., str], clips: ClipSet, tmp_path: Path) -> None:
    fsmer.adapt(fsmer.load_model("facs-flow"), clips).save(tmp_path / "recognizer")
    clips.save(tmp_path / "clips")
    out = tmp_path / "answers.csv"
    said("predict", tmp_path / "recognizer", "--data", tmp_path / "clips", "--out", out)
    with out.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(clips)
    assert not [row for row in rows if (row["clip"] + row["predicted"]).startswith(tuple("=+-@\t\r\n"))]
    found = read_cells(pd.read_csv(out, dtype=str, keep_default_na=False))
    assert found["clip"].tolist() == clips.ids.tolist()
    assert not CONTROL.search(said("predict", tmp_path / "recognizer", "--data", tmp_path / "clips"))


def test_refusals_are_one_line_whatever_the_name(said: Callable[..., str], tmp_path: Path) -> None:
    text = said("evaluate", "kshot", "--data", tmp_path / "no\nsuch\x1b[2J", "--model", "facs-flow", code=1)
    assert text.count("\n") == 1
    assert not CONTROL.search(text)
    assert "no\\nsuch\\x1b[2J" in text


def test_a_report_is_printed_with_every_class_as_it_is(
    report: Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsmer.cli.show import show_report

    monkeypatch.setenv("COLUMNS", "1000")
    show_report(report, None, False)
    shown = capsys.readouterr().out
    assert not CONTROL.search(shown)
    for name in ("[red]x[/] :boom:", "\\x1b]0;title\\x07\\x1b[2J\\x9b31m gnp\\u202egpj.exe", "中文"):
        assert name in shown
