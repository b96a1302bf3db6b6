"""The command ``fsmer``: its entry point, exit codes, and what every command shares.

Exit codes: 0 done, 1 refused (one sentence on standard error says why), 2 wrong command line or a recording without a
face, 3 an audit found something serious, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import fsmer
from fsmer.cli import options
from fsmer.cli.console import complain, open_streams, say
from fsmer.errors import FsmerError, OutputError
from fsmer.memory import out_of_memory
from fsmer.plugins import import_plugin

__all__ = ["app", "command", "command_line", "main"]

EXIT_REFUSED = 1
EXIT_INTERRUPTED = 130
NO_MEMORY = (
    "memory has run out; end other programs, or ask for less at a time: fewer --jobs (or --workers), a smaller batch "
    "(-p batch_size=8), fewer clips (--where) or a smaller model; what a run with --out has finished is kept."
)

# The option that every command has beside its own: what it names may be found in a plugin.
IMPORT = inspect.Parameter("import_", inspect.Parameter.KEYWORD_ONLY, default=[], annotation=options.Import)

# Columns of a help page for the names of options; longer names have a line of their own.
NAMES = 24


class _Command(TyperCommand):
    """A command whose help shows options in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *options.GROUPS)}
        for one in self.get_params(ctx):
            record = one.get_help_record(ctx)
            if record is None:
                continue
            names, text = record
            group = getattr(one, "rich_help_panel", None) or options.OUTPUT
            if one.param_type_name == "argument":
                group, names = "Arguments", one.metavar or names
            groups[group].append((names.ljust(NAMES), text))
        for name, rows in groups.items():
            if rows:
                with formatter.section(name):
                    formatter.write_dl(rows, col_max=NAMES)


class _Commands(TyperGroup):
    """The commands, whose sentences are not cut in a narrow terminal."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.help) for name, one in self.commands.items()])


app = typer.Typer(
    name="fsmer",
    cls=_Commands,
    help="Few-shot micro-expression recognition. Start with 'fsmer demo': it needs no data.",
    epilog=(
        "Exit codes: 0 done; 1 refused, with one sentence on standard error; 2 wrong command line, or no face in a "
        "recording; 3 an audit found something serious; 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the console script."""
    open_streams()
    try:
        try:
            app()
        finally:
            # What is printed must be there before the exit code says so.
            print(end="", flush=True)
    except OutputError as error:
        complain(error)
        sys.exit(EXIT_REFUSED)


def command(example: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose help ends in `example`, and whose refusals become one sentence and an exit code."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                with _warnings_as_lines():
                    for target in kwargs.pop(IMPORT.name):
                        import_plugin(target)
                    function(*args, **kwargs)
            except FsmerError as error:
                complain(error)
                raise typer.Exit(EXIT_REFUSED) from error
            except KeyboardInterrupt as error:
                complain("interrupted; what was finished is kept, run the same command to go on.")
                raise typer.Exit(EXIT_INTERRUPTED) from error
            except Exception as error:
                if not out_of_memory(error):
                    raise
                complain(NO_MEMORY)
                raise typer.Exit(EXIT_REFUSED) from error

        # typer reads the options of a command from the signature.
        signature = inspect.signature(function, eval_str=True)
        parameters = [*signature.parameters.values(), IMPORT]
        guarded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        guarded.__annotations__ = {one.name: one.annotation for one in parameters}
        epilog = f"Example: {example}\n\nDocumentation: how-to/{function.__name__.replace('_', '-')}"
        app.command(cls=_Command, epilog=epilog)(guarded)
        return function

    return register


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Warnings of fsmer as one line each on standard error, once, without the place in its code."""
    told: set[str] = set()
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if category is UserWarning:
                if str(message) not in told:
                    complain(message)
                told.add(str(message))
            else:
                shown(message, category, *place)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _print_version(wanted: bool) -> None:
    if wanted:
        say(fsmer.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    del version


def command_line() -> str:
    """What was typed, as a report names it."""
    return shlex.join(["fsmer", *sys.argv[1:]])
