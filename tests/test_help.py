"""Help pages: whole and readable in a terminal of 80 columns, and the same words for the same option everywhere."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fsmer.cli.app import app
from fsmer.cli.options import GROUPS

Page = Callable[..., list[str]]

MAIN = typer.main.get_command(app)
COMMANDS = MAIN.commands  # type: ignore[attr-defined]
# What these name is another thing in every command.
OWN_TEXT = {"--out", "--frames"}


def context(command: str) -> typer.Context:
    main = typer.Context(MAIN, info_name="fsmer", **MAIN.context_settings)
    return typer.Context(COMMANDS[command], parent=main, info_name=command) if command else main


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    def lines(command: str = "", *, width: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        return context(command).get_help().splitlines()

    return lines


def squeezed(text: str) -> str:
    """Without spaces, so that it does not matter where lines end."""
    return "".join(text.split())


def parameters(command: str) -> list[Any]:
    return COMMANDS[command].get_params(context(command))


def names_of(one: Any) -> list[str]:
    return one.opts if one.param_type_name == "option" else [one.metavar]


def entries(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Group and lines of every option or argument."""
    group, entry = "", []
    for line in [*lines, ""]:
        if entry and not line.startswith("   "):
            yield group, entry
            entry = []
        if found := re.fullmatch(r"(\S.*):", line):
            group = found[1]
        elif not line:
            group = ""
        elif group:
            entry.append(line)


@pytest.mark.parametrize("command", COMMANDS)
def test_options_stand_in_named_groups_beside_a_text_of_at_most_three_lines(page: Page, command: str) -> None:
    lines = page(command, width=80)
    assert max(map(len, lines)) <= 80
    found = list(entries(lines))
    groups = list(dict.fromkeys(group for group, _ in found))
    assert groups == [name for name in ("Arguments", *GROUPS) if name in groups]
    rows = [re.fullmatch(r"(  (\S.*?)(  +|$))(.*)", entry[0]) for _, entry in found]
    for one in parameters(command):
        ((row, entry),) = [
            (row, entry)
            for row, (_, entry) in zip(rows, found, strict=True)
            if row and (row[2] == one.metavar if one.opts == [one.name] else one.opts[0] in re.split(r"[\s,]+", row[2]))
        ]
        column = len(row[1]) if row[4] else len(entry[1]) - len(entry[1].lstrip())
        assert 80 - column >= 45, entry
        assert len(entry) <= 3, entry


@pytest.mark.parametrize("command", COMMANDS)
def test_a_narrow_terminal_cuts_nothing(page: Page, command: str) -> None:
    lines = page(command, width=60)
    assert max(map(len, lines)) <= 60
    text = squeezed("".join(lines))
    for one in parameters(command):
        assert all(
            squeezed(part) in text for part in (*names_of(one), *one.secondary_opts, one.metavar or "", one.help or "")
        )
    assert squeezed(COMMANDS[command].help) in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_in_an_example_on_one_line_and_names_its_page(page: Page, command: str) -> None:
    example, page_of = [line.strip() for line in page(command, width=80) if line][-2:]
    assert re.match(rf"Example: fsmer {command}\b", example)
    assert page_of == f"Documentation: how-to/{command}"


def test_the_first_page_shows_every_sentence_whole(page: Page) -> None:
    for width in (60, 80):
        lines = page(width=width)
        assert max(map(len, lines)) <= width
        text = squeezed("".join(lines))
        assert all(squeezed(f"{name} {one.help}") in text for name, one in COMMANDS.items())
        assert "Exitcodes" in text


@pytest.mark.parametrize("command", ["models", "bench", "datasets"])
def test_listings_leave_room_for_their_text(command: str) -> None:
    lines = CliRunner().invoke(app, [command], env={"COLUMNS": "80"}).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    indents = [len(line) - len(line.lstrip()) for line in lines if line.startswith(" ")]
    assert 80 - max(indents) >= 60


def test_an_option_has_the_same_words_in_every_command() -> None:
    uses = defaultdict(set)
    for command in COMMANDS:
        for one in parameters(command):
            if one.param_type_name == "option" and one.name != "help":
                name = max(one.opts, key=len)
                own = name in OWN_TEXT
                uses[name].add((one.rich_help_panel, None if own else one.metavar, None if own else one.help))
    assert {name: found for name, found in uses.items() if len(found) > 1} == {}
    assert {group for found in uses.values() for group, _, _ in found} == set(GROUPS)
