"""What the command line prints: text from data as text alone, and no traceback where nobody reads or a disk is full."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from typing import Any, TextIO

from rich import console
from rich.text import Text

from fsmer.errors import OutputError
from fsmer.text import HIDDEN, one_line, printable

__all__ = ["Console", "complain", "open_streams", "say", "say_json"]


class Console(console.Console):
    """A console that shows every string letter by letter: it has neither markup nor control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def say(text: object) -> None:
    """Print plain text of any width."""
    print(printable(str(text)))


def say_json(values: Any) -> None:
    """Print JSON that is the same values in whatever encoding standard output has."""
    text = json.dumps(values, indent=2, ensure_ascii=False, default=str)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(values, indent=2, default=str)
    print(HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def complain(message: object) -> None:
    """One line on standard error."""
    print(f"fsmer: {one_line(str(message))}", file=sys.stderr, flush=True)


class _Stream(io.FileIO):
    """A standard stream that fails once at most: what is printed later, such as at the end of the program, is dropped.

    Where nobody reads any more (``| head -1``) nothing fails, since that must not disturb the work.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream.fileno(), "w", closefd=False)
        self._needed = stream is sys.stdout
        self._lost = False

    def write(self, data: Any, /) -> int | None:  # type: ignore[override]
        if not self._lost:
            try:
                return super().write(data)
            except OSError as error:
                self._lost = True
                if self._needed and error.errno != errno.EPIPE:
                    reason = error.strerror or error
                    raise OutputError(
                        f"cannot write standard output: {reason}; free space, or send it to another place."
                    ) from error
        return memoryview(data).nbytes


def open_streams() -> None:
    """Let standard output and error show as escapes what their encoding lacks, and outlive whoever reads them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started the program; print would take the other one
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif not _is_of_file(stream):
            continue  # text in memory, or what a notebook has in its place
        elif stream.isatty():
            stream.reconfigure(errors="backslashreplace")
        else:
            buffer = io.BufferedWriter(_Stream(stream))
            options = {"encoding": stream.encoding, "line_buffering": stream.line_buffering}
            setattr(sys, name, io.TextIOWrapper(buffer, errors="backslashreplace", **options))


def _is_of_file(stream: TextIO) -> bool:
    try:
        stream.fileno()
    except (OSError, ValueError, AttributeError):
        return False
    return isinstance(stream, io.TextIOWrapper)
