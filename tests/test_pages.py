"""Every page of the documentation tells the truth: its Python runs, its outputs are printed, its commands exist.

Blocks of ``python`` run in order in one namespace a page, in an empty folder. An ``output`` block that follows one is
what it prints; ``...`` in it stands for any text. Lines ``$ fsmer ...`` of ``console`` blocks are parsed, not run.
Comments in a page change this: ``<!-- commands run -->`` anywhere runs the ``console`` blocks too, in order with the
Python and in the same folder; ``<!-- slow -->`` anywhere runs the page with the slow tests;
``<!-- file: NAME -->`` before a block writes it to that file, as the reader is told to; and
``<!-- not run: reason -->`` before a block leaves that block out.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import runpy
import shlex
import sys
import tempfile
import types
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import typer
from markdown_it import MarkdownIt
from typer.testing import CliRunner

import fsmer
from fsmer import plugins
from fsmer.plugins import BACKBONES, METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *sorted(
        path
        for path in DOCS.rglob("*.md")
        if not any(part.startswith(("_", ".")) for part in path.relative_to(DOCS).parts)
    ),
]
# What needs licensed data, a camera or a network cannot run in a test; everything else should.
MOST_NOT_RUN = 12

OUTPUTS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SLOW = re.compile(r"<!--\s*slow\s*-->")
COMMANDS_RUN = re.compile(r"<!--\s*commands run\s*-->")
FILE = re.compile(r"<!--\s*file:\s*([\w.-]+)\s*-->")
NOT_RUN = re.compile(r"<!--\s*not run:\s*(\S.*?)\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, with the number of its first line, why it is not run, and the file that it is."""

    language: str
    text: str
    line: int
    reason: str | None = None
    file: str | None = None


def blocks_of(text: str, start: int = 1) -> Iterator[Block]:
    """Fenced blocks in order, those in directives of MyST included."""
    comment = ""
    for token in MarkdownIt().parse(text):
        if token.type == "html_block":
            comment = token.content
            continue
        if token.type == "fence":
            line = start + token.map[0] + 1
            language = token.info.split(maxsplit=1)[0] if token.info.strip() else ""
            if language.startswith("{"):
                yield from blocks_of(token.content, line)
            else:
                left_out, file = NOT_RUN.search(comment), FILE.search(comment)
                yield Block(language, token.content, line, left_out and left_out[1], file and file[1])
        comment = ""


def page_blocks(path: Path, *languages: str) -> list[Block]:
    return [block for block in blocks_of(path.read_text(encoding="utf-8")) if block.language in languages or block.file]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").as_posix()


def languages_run(path: Path) -> tuple[str, ...]:
    """Languages of the blocks of a page that are run."""
    commands = COMMANDS_RUN.search(path.read_text(encoding="utf-8"))
    return ("python", "pycon", "console") if commands else ("python", "pycon")


def run_block(block: Block, page: Path, namespace: dict[str, object]) -> str:
    """Run one block and return what it printed; code with prompts is checked against what stands below them."""
    place = f"{name_of(page)}.md, line {block.line}"
    if block.file:
        Path(block.file).write_text(block.text, encoding="utf-8")
        return ""
    if block.text.lstrip().startswith(">>>"):
        examples = doctest.DocTestParser().get_doctest(block.text, namespace, place, str(page), block.line)
        examples.globs = namespace
        said = io.StringIO()
        runner = doctest.DocTestRunner(optionflags=OUTPUTS, verbose=False)
        runner.run(examples, out=said.write, clear_globs=False)
        assert not runner.failures, said.getvalue()
        return ""
    if block.language == "console":
        return "".join(run_command(words, place) for words in typed_lines(block.text))
    # Lines count from the top of the page in a traceback.
    code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, namespace)
    return printed.getvalue()


def run_command(words: list[str], place: str) -> str:
    """Run one command of a page and return what it printed: ``fsmer ...``, or ``python`` with code or a file."""
    if words[0] == "fsmer":
        from fsmer.cli.app import app

        done = CliRunner().invoke(app, words[1:], env={"COLUMNS": "80"})
        # 3 is what an audit with a serious finding ends with, after it has said what it was asked for.
        assert done.exit_code in (0, 3), f"{place}: {shlex.join(words)}\n{done.output}"
        return done.stdout
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if words[:2] == ["python", "-c"]:
            exec(words[2], {})
        else:
            assert words[0] == "python", f"{place}: only fsmer and python are run, not {words[0]}"
            runpy.run_path(words[1], run_name="__main__")
    return printed.getvalue()


@pytest.fixture
def page_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """An empty module as the namespace of a page, in an empty folder; what it registers is forgotten later."""
    before = [(registry, registry.outside()) for registry in plugins._REGISTRIES]
    module = types.ModuleType("page_of_the_documentation")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("MPLBACKEND", "agg")
    # Its path is short, so that lines with it are not broken.
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        monkeypatch.chdir(folder)
        yield module.__dict__
        monkeypatch.undo()
    for registry, names in before:
        registry._forget(registry.outside() - names)


def pages_that_run() -> list[object]:
    return [
        pytest.param(
            path, id=name_of(path), marks=[pytest.mark.slow] if SLOW.search(path.read_text(encoding="utf-8")) else []
        )
        for path in PAGES
        if page_blocks(path, *languages_run(path))
    ]


def run_page(blocks: list[Block], page: Path, namespace: dict[str, object]) -> None:
    """Run the blocks of a page in order; an `AssertionError` names an output that is not what is printed."""
    checker, printed = doctest.OutputChecker(), None
    for block in blocks:
        if block.language != "output":
            printed = None if block.reason else run_block(block, page, namespace)
        elif printed is not None and not block.reason:
            agrees = checker.check_output(block.text, printed, OUTPUTS)
            assert agrees, f"line {block.line} of {name_of(page)}.md shows\n{block.text}\nbut printed is\n{printed}"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", pages_that_run())
def test_the_code_of_a_page_runs_and_prints_what_the_page_shows(page: Path, page_module: dict[str, object]) -> None:
    run_page(page_blocks(page, *languages_run(page), "output"), page, page_module)


def test_few_blocks_are_left_out_and_each_says_why() -> None:
    left_out = [
        f"{name_of(path)}.md, line {block.line}: {block.reason}"
        for path in PAGES
        for block in page_blocks(path, *languages_run(path))
        if block.reason
    ]
    assert len(left_out) <= MOST_NOT_RUN, "\n".join(left_out)


def rows_of(text: str) -> Iterator[list[str]]:
    """Cells of the rows of Markdown tables."""
    for line in text.splitlines():
        if line.startswith("| ") and line.endswith(" |"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_page_on_methods_has_every_parameter_with_its_default() -> None:
    sections = re.split(r"^## ", (DOCS / "methods" / "index.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    told = {
        section.split("\n", 1)[0].strip(): {
            row[0].strip("`"): row[1].strip("`") for row in rows_of(section) if row[0].startswith("`") and len(row) == 3
        }
        for section in sections
    }
    shared = {field.name for field in fields(METHODS["finetune"])}
    for name, method in METHODS.items():
        if METHODS.origin(name) != plugins.OWN or METHODS.preset(name):
            continue
        held = {
            field.name: repr(field.default).replace("'", '"')
            for field in fields(method)
            if field.name not in {"estimator", "learned"}
        }
        if name in ("cosine", "zero_shot"):
            held = {key: value for key, value in held.items() if key not in shared}
        assert told[name] == held, name


def backbone_rows() -> dict[str, list[str]]:
    """Rows of the page on backbones by name."""
    rows = rows_of((DOCS / "backbones" / "index.md").read_text(encoding="utf-8"))
    return {row[0].split("`")[1]: row for row in rows if row[0].startswith("[`")}


def test_every_backbone_has_a_row_and_a_page_that_names_it() -> None:
    told = backbone_rows()
    assert set(told) == {name for name in BACKBONES if BACKBONES.origin(name) == plugins.OWN}
    for name, row in told.items():
        page = DOCS / "backbones" / row[0].split("(")[1].strip(")")
        assert name in page.read_text(encoding="utf-8"), page


def test_diagrams_are_those_of_their_script_and_stand_on_a_page() -> None:
    script = runpy.run_path(str(DOCS / "pictures_backbones.py"))
    drawn = {name: script["diagram"](*parts) for name, parts in script["DIAGRAMS"].items()}
    folder = DOCS / "backbones"
    assert {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.svg")} == drawn
    for name in drawn:
        assert f"]({name}.svg)" in (folder / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_on_backbones_has_their_numbers() -> None:
    told = backbone_rows()
    for info in fsmer.list_models():
        if BACKBONES.origin(info.name) != plugins.OWN:
            continue
        _, weights, _, width, parameters, operations, _ = told[info.name]
        assert int(width.replace(",", "")) == info.embed_dim, info.name
        amount = f"{info.parameters / 1e6:.2f} M" if info.parameters >= 1e5 else f"{info.parameters:,}"
        assert parameters == amount, info.name
        assert float(operations) == pytest.approx(info.flops / 1e9, rel=0.01), info.name
        assert weights.startswith("shipped") == info.pretrained, info.name


def typed_lines(text: str) -> Iterator[list[str]]:
    """Words behind ``$``, without what is set before them or comes after a pipe; a backslash joins lines."""
    for line in re.sub(r"\\\n\s*>?", " ", text).splitlines():
        if line.lstrip().startswith("$"):
            lexer = shlex.shlex(line.lstrip()[1:], posix=True, punctuation_chars="|&;<>")
            lexer.whitespace_split, lexer.commenters = True, "#"
            words = list(lexer)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            ends = [place for place, word in enumerate(words) if set(word) <= set("|&;<>")]
            yield words[: ends[0] if ends else None]


def typed_commands(text: str) -> Iterator[list[str]]:
    """Words behind ``$ fsmer``."""
    return (words[1:] for words in typed_lines(text) if words[:1] == ["fsmer"])


def refusal_of(words: list[str]) -> str | None:
    """Why the command line would not understand these words; None where it does."""
    from fsmer.cli.app import app

    group = typer.main.get_command(app)
    context = group.make_context("fsmer", [], resilient_parsing=True)
    if not words or words[0].startswith("-"):
        known = {name for option in group.get_params(context) for name in option.opts}
        return None if set(words) <= known else f"fsmer has no option {words}"
    command = group.commands.get(words[0])
    if command is None:
        return f"fsmer has no command {words[0]!r}"
    inner = command.context_class(command, info_name=words[0], parent=context)
    try:
        _, left, _ = command.make_parser(inner).parse_args(words[1:])
    except Exception as error:  # the errors of the parser are those of whichever library typer carries
        return f"fsmer {words[0]}: {getattr(error, 'message', error)}"
    return f"fsmer {words[0]} takes no {left}" if left else None


@pytest.mark.parametrize(
    "page", [pytest.param(path, id=name_of(path)) for path in PAGES if page_blocks(path, "console")]
)
def test_the_commands_of_a_page_exist_with_their_options(page: Path) -> None:
    wrong = [
        f"line {block.line}: {refusal}"
        for block in page_blocks(page, "console")
        if not block.reason
        for words in typed_commands(block.text)
        if (refusal := refusal_of(words))
    ]
    assert not wrong, "\n".join(wrong)


def test_what_is_wrong_in_a_page_is_found(page_module: dict[str, object]) -> None:
    text = (
        "# Page\n\n```python\nx = 1\nprint(x)\n```\n\n```output\n1\n```\n\n"
        "<!-- not run: no camera -->\n```python\nraise\n```\n\n"
        "<!-- file: table.csv -->\n```csv\na,b\n```\n\n"
        ":::{note}\n```python\nassert x == 2\n```\n:::\n\n````{tab}\n```console\n$ fsmer modls\n```\n````\n"
    )
    blocks = list(blocks_of(text))
    assert [(block.language, block.line, block.reason or block.file) for block in blocks] == [
        ("python", 4, None),
        ("output", 9, None),
        ("python", 14, "no camera"),
        ("csv", 19, "table.csv"),
        ("python", 24, None),
        ("console", 30, None),
    ]
    page = DOCS / "page.md"
    run_page(blocks[:3], page, page_module)
    with pytest.raises(AssertionError, match="but printed is"):
        run_page([blocks[0], Block("output", "2\n", 9)], page, page_module)
    with pytest.raises(AssertionError):
        run_page([blocks[4]], page, page_module)
    with pytest.raises(AssertionError, match="Expected"):
        run_page([Block("pycon", ">>> x + 1\n3\n", 1)], page, page_module)
    assert [refusal_of(words) for words in typed_commands(blocks[5].text)] == ["fsmer has no command 'modls'"]
    right = "$ FSMER_COMPILE=off fsmer evaluate loso --data DIR \\\n    --where \"label != 'x'\" | tee LOG  # goes on\n"
    (words,) = typed_commands(right)
    assert refusal_of(words) is None
    assert "--no-such" in str(refusal_of([*words, "--no-such", "1"]))
    assert refusal_of(["--version"]) is None
    assert refusal_of(["models", "fr", "surplus", "surplus"])


def test_commands_of_a_page_are_run(page_module: dict[str, object]) -> None:
    page = DOCS / "page.md"
    run_block(Block("csv", "a,b\n", 1, file="table.csv"), page, page_module)
    assert Path("table.csv").read_text() == "a,b\n"
    block = Block("console", '$ python -c "print(1)"\n$ fsmer adapt --data synthetic:lab:12 --out made\n', 1)
    told = run_block(block, page, page_module)
    assert told.startswith("1\n")
    assert "learnt" in told
    assert Path("made").is_dir()
    with pytest.raises(AssertionError, match="missing"):
        run_block(Block("console", "$ fsmer predict missing --data synthetic:lab:3\n", 1), page, page_module)
    with pytest.raises(AssertionError, match="not rm"):
        run_block(Block("console", "$ rm -r made\n", 1), page, page_module)
