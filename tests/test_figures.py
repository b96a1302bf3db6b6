"""README, pages and model cards say what the tables of figures say, and every figure names a command that exists."""

from __future__ import annotations

import ast
import csv
import re
import shlex
from pathlib import Path

import pytest
import typer

from fsmer.cli.app import app
from fsmer.errors import DataError

REPOSITORY = Path(__file__).resolve().parent.parent
TABLES = sorted((REPOSITORY / "docs" / "results").glob("*.csv"))
READINGS = REPOSITORY / "benchmarks" / "releases.csv"
PROVENANCE = ["command", "seeds", "versions", "weights", "date", "commit", "note"]
# Texts in which every measured figure stands between marks; other pages show decimals that nobody measured.
WHOLLY_MARKED = [
    REPOSITORY / "README.md",
    REPOSITORY / "docs" / "negative-results.md",
    *sorted((REPOSITORY / "docs" / "results").glob("*.md")),
]


@pytest.fixture(autouse=True)
def _found_from_anywhere(monkeypatch: pytest.MonkeyPatch, repository: Path) -> None:
    monkeypatch.syspath_prepend(str(repository))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def small_repository(root: Path, text: str) -> str:
    """`text` filled from a table of one family."""
    from docs.figures import filled

    (root / "docs" / "results").mkdir(parents=True)
    (root / "docs" / "results" / "trial.csv").write_text(
        "name,label,uf1,uf1_low,uf1_high,uar,command,seeds,versions,weights,date,commit,note\n"
        "first,the first,.810,.800,.820,,fsmer demo,0,,,2026-11-22,,\n"
        "second,the second,.5,,,.6,fsmer demo,0,,,2026-11-22,,\n"
    )
    return filled(text, root)


# ---- texts


def test_every_text_says_what_its_tables_say() -> None:
    from docs.figures import filled, marked_texts

    texts = marked_texts()
    assert {REPOSITORY / "README.md", REPOSITORY / "pretrained" / "facs-flow" / "README.md"} <= set(texts)
    wrong = [str(path.relative_to(REPOSITORY)) for path in texts if filled(text := path.read_text()) != text]
    assert not wrong, f"{wrong} differ from docs/results/*.csv: run python docs/figures.py"


@pytest.mark.parametrize("path", WHOLLY_MARKED, ids=lambda path: path.stem)
def test_no_measured_decimal_stands_outside_a_mark(path: Path) -> None:
    from docs.figures import BLOCK, INLINE

    text = INLINE.sub("", BLOCK.sub("", path.read_text(encoding="utf-8")))
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|<[^>]*>", "", text, flags=re.DOTALL)
    text = re.sub(r"Python 3\.\d+|\b\d+\.\d+\.\d+\b", "", text)
    assert not re.findall(r"(?<![\w.])(?<!\w-)\d*\.\d+", text), "move it to docs/results and mark it"


def test_the_readme_has_one_table_of_results() -> None:
    from docs.figures import BLOCK

    (table,) = BLOCK.findall((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert all(row["uf1"] in table[3] for row in rows_of(TABLES[0].parent / "real_maps.csv")[:6])


def test_a_figure_that_was_edited_by_hand_is_found(tmp_path: Path) -> None:
    told = "It reaches <!--fig trial.first.uf1-->.811<!--/fig-->."
    assert small_repository(tmp_path, told) == told.replace(".811", ".810")


def test_a_table_shows_chosen_rows_and_columns_with_their_intervals(tmp_path: Path) -> None:
    text = "<!-- figures: trial; rows: second, f*; what = label; UF1 = uf1; both = {uf1} / {uar} -->\nold\n<!-- end -->"
    lines = small_repository(tmp_path, text).splitlines()
    assert lines[2:6] == [
        "| what | UF1 | both |",
        "| --- | --- | --- |",
        "| the second | .5 | .5 / .6 |",
        "| the first | .810 [.800, .820] | .810 /  |",
    ]
    assert lines[-1] == "<!-- end -->"


def test_commands_that_several_rows_share_are_shown_once(tmp_path: Path) -> None:
    text = small_repository(tmp_path, "<!-- commands: trial -->\n<!-- end -->")
    assert text.count("`fsmer demo`") == 1


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("x <!--fig none.first.uf1--><!--/fig-->", r"none\.csv"),
        ("x <!--fig trial.third.uf1--><!--/fig-->", "third"),
        ("x <!--fig trial.first.uar--><!--/fig-->", "uar"),
        ("x <!--fig trial.first--><!--/fig-->", r"FAMILY\.ROW\.COLUMN"),
        ("<!-- figures: trial; rows: third; x = uf1 -->\n<!-- end -->", "third"),
        ("<!-- figures: trial; x = uf2 -->\n<!-- end -->", "uf2"),
        ("x\n<!--fig trial.first.uf1-->.1<!--/fig--> y", "begin"),
    ],
)
def test_a_mark_that_cannot_be_filled_is_one_sentence(text: str, fact: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=fact):
        small_repository(tmp_path, text)


# ---- tables


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_has_unique_names_and_says_where_its_figures_are_from(path: Path) -> None:
    rows = rows_of(path)
    columns = list(rows[0])
    assert columns[:2] == ["name", "label"]
    assert columns[-len(PROVENANCE) :] == PROVENANCE
    names = [row["name"] for row in rows]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w-]+", name) for name in names)
    for row in rows:
        assert None not in row, f"{row['name']} has too many cells"
        assert any(row[column] for column in columns[2 : -len(PROVENANCE)]), f"{row['name']} has no figure"


def commands() -> list[tuple[str, str]]:
    """(where, command) of every table, without repetitions."""
    found: dict[str, str] = {}
    for path in [*TABLES, READINGS]:
        for number, row in enumerate(rows_of(path), 2):
            if row["command"]:
                for command in row["command"].split(" && "):
                    found.setdefault(command, f"{path.name}:{number}")
    return [(place, command) for command, place in found.items()]


def test_every_figure_has_a_command_or_says_that_it_was_not_recorded() -> None:
    for path in TABLES:
        for row in rows_of(path):
            assert row["command"] or "command not recorded" in row["note"], f"{path.name}: {row['name']}"


def refusal(command: str) -> str:
    """Why a command does not exist, or an empty text; nothing is run."""
    program, *words = shlex.split(command)
    if program == "fsmer":
        group = typer.main.get_command(app)
        found = group.get_command(typer.Context(group), words[0])
        if found is None:
            return f"no command {words[0]}"
        try:
            found.make_parser(typer.Context(found)).parse_args(words[1:])
        except Exception as error:
            return str(error)
        return ""
    if program == "make":
        return "" if re.search(rf"^{words[0]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE) else "no target"
    assert [program, words[0]] == ["python", "-m"], command
    if words[1] == "pytest":
        return "" if (REPOSITORY / words[2]).is_file() else f"no file {words[2]}"
    folder, _, module = words[1].partition(".")
    path = REPOSITORY / folder / f"{module or '__main__'}.py"
    if not path.is_file():
        return f"no module {words[1]}"
    texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    for place, word in enumerate(words[2:], 2):
        # Values of options and names in capitals stand for something.
        if not word.startswith("--") and (words[place - 1].startswith("--") or word.isupper()):
            continue
        if word not in texts:
            return f"{words[1]} knows no {word}"
    return ""


@pytest.mark.parametrize(("place", "command"), commands())
def test_a_command_of_a_figure_exists_with_its_options(place: str, command: str) -> None:
    assert not refusal(command), f"{place}: {command}"


@pytest.mark.parametrize(
    "command",
    [
        "fsmer evaluates loso --data DIR",
        "fsmer evaluate loso --data DIR --shots 5",
        "make tables",
        "python -m benchmarks.nothing",
        "python -m benchmarks.pixels DIR --seed 1",
        "python -m benchmarks fold",
        "python -m pytest tests/test_nothing.py",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    assert refusal(command)


# ---- figures and the weights that they are of


def test_figures_of_the_shipped_model_name_its_weights() -> None:
    from fsmer import load_model
    from fsmer.backbones import model_hash

    weights = {row["weights"] for path in TABLES for row in rows_of(path)} - {"", "none"}
    assert weights == {model_hash(load_model("facs-flow"))}


# ---- pictures


def test_every_picture_of_a_page_is_drawn_from_the_tables(tmp_path: Path) -> None:
    from docs.result_pictures import PICTURES
    from fsmer.drawing import save_figure

    shown = {
        name
        for path in TABLES[0].parent.glob("*.md")
        for name in re.findall(r"!\[.+\]\(([\w-]+)\.png\)", path.read_text())
    }
    assert shown == set(PICTURES) == {path.stem for path in TABLES[0].parent.glob("*.png")}
    (text,) = {point.get_text() for point in PICTURES["fr-ablation"]().axes[0].texts if point.get_text() == ".770"}
    assert text == next(
        row["uf1"] for row in rows_of(TABLES[0].parent / "fr_ablation.csv") if row["name"] == "ensemble"
    )
    assert save_figure(PICTURES["recordings"](), tmp_path / "drawn.png").stat().st_size > 10_000
