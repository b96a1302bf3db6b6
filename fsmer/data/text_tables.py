"""Tables in text files: the one place where CSV is read, and where paths that a table names are kept in its folder."""

import csv
import io
import os
import re
from pathlib import Path
from typing import Any

from fsmer.errors import DataError
from fsmer.io import TEXT_BYTES, read_bytes

__all__ = ["csv_rows", "path_inside", "read_table_text", "shipped_rows"]


def read_table_text(path: str | os.PathLike[str], *, what: str = "the table", limit_bytes: int = TEXT_BYTES) -> str:
    """Text of a CSV file in UTF-8, with or without a byte order mark; `what` says in messages what it is.

    A `DataError` is raised where it is missing, no regular file, larger than `limit_bytes`, or in another encoding.
    """
    try:
        return read_bytes(path, limit_bytes).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{what} {path} is not UTF-8 text; save it as CSV in UTF-8.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{what} {path} cannot be read ({reason}); give the path of a CSV file.") from error


def csv_rows(text: str, name: object, *, what: str = "the table", **form: Any) -> list[tuple[int, list[str]]]:
    """Rows of CSV text with the number of the line that each ends on, counted from 1.

    `name` says in messages where the text is from, `what` what it is; `form` goes to `csv.reader` (default: commas). A
    `DataError` is raised for a line that is no CSV, or has a field of more characters than the csv module reads
    (131,072 unless the program set another limit).
    """
    reader = csv.reader(io.StringIO(text, newline=""), **form)
    try:
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise DataError(f"line {reader.line_num} of {what} {name} cannot be read ({error}); correct it.") from error


def shipped_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table that comes with fsmer, by the names in its first line."""
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def path_inside(folder: str | os.PathLike[str], name: str, *, otherwise: str = "") -> str:
    """Path of what a table in `folder` names, which has to lie in that folder; nothing is opened.

    Backslashes separate folders, as tables written on Windows have them, unless a file of exactly that name is there.
    An absolute path is taken if it leads into the folder. Symbolic links are followed, and must stay in it as well: one
    in a folder from somebody else could lead to any private file. A ``ValueError`` with the reason is raised for a path
    that leads out of the folder or is none; `otherwise` is what else helps against it, for the message.
    """
    top = os.path.abspath(folder)
    slashed = name.replace("\\", "/")
    if "\0" in name:
        raise ValueError(f"{name!r} is no path, since it holds a NUL character; correct it")
    foreign = os.name != "nt" and re.match("[A-Za-z]:/", slashed) is not None
    if foreign or not _is_within(os.path.join(top, slashed), top):
        raise ValueError(
            f"{name!r} leads out of the folder of its table; name a place inside {top}, or put the table where all its "
            f"files are{otherwise}"
        )
    if "\\" in name and not os.path.lexists(os.path.join(top, name)):
        name = slashed
    path = os.path.join(folder, name)
    if not _is_within(os.path.realpath(path), os.path.realpath(top)):
        raise ValueError(
            f"{name!r} leads out of the folder of its table by a symbolic link; copy the file to where the link is "
            f"in {top}{otherwise}"
        )
    return path


def _is_within(path: str, top: str) -> bool:
    plain, parent = (os.path.normcase(os.path.normpath(one)) for one in (path, top))
    # An absolute path may name the folder as it is or as it was given through a link.
    return any(plain == one or plain.startswith(os.path.join(one, "")) for one in (parent, os.path.realpath(parent)))
