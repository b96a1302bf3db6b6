"""Runs a command and notes which real labels it read: ``python -m benchmarks.releases -- fsmer evaluate ...``.

Whoever looks at the labels of the same clips often enough finds a good figure by chance, so every reading is a row of
``releases.csv``: day, commit, model, hash of its weights, data, command, UF1 and UAR. Rows are only added. A run on
drawn clips alone, and a finished run that is asked for again, read no real label and add nothing.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fsmer.data.text_tables import shipped_rows
from fsmer.errors import DataError, FsmerError
from fsmer.evaluation import Report
from fsmer.io import file_digest

__all__ = ["COLUMNS", "READINGS", "append", "read", "row_of"]

ROOT = Path(__file__).resolve().parent.parent
READINGS = Path(__file__).with_name("releases.csv")
COLUMNS = ("date", "commit", "model", "weights", "data", "command", "uf1", "uar", "note")
# Options whose value is a path of this machine, and what a row says instead of it.
HIDDEN = {
    "--data": "DIR",
    "--model": "WEIGHTS",
    "--out": "OUT",
    "--weights": "WEIGHTS",
    "--log": "LOG",
    "--import": "FILE",
}
SHORT = {"-d": "--data", "-m": "--model", "-o": "--out"}


def read(command: Sequence[str], readings: Path = READINGS, *, note: str = "") -> int:
    """Run a command of fsmer and append a row to `readings` for each report that it has written.

    Parameters
    ----------
    command : sequence of str
        ``fsmer evaluate ...`` or another command of fsmer that reads labels and has ``--data`` and ``--out``.
    readings : path
        Table with the columns `COLUMNS`.
    note : str
        What whoever reads the table should know.

    Returns
    -------
    int
        Exit code of the command; nothing is appended unless it is 0.

    Raises
    ------
    DataError
        For a command that is not one of fsmer or lacks ``--out`` or ``--data``, and for a table with other columns.
    """
    if list(command[:1]) != ["fsmer"]:
        raise DataError(f"`{shlex.join(command)}` is no command of fsmer; give fsmer evaluate ... after --.")
    command = _plain(command)
    data, outs = _values(command, "--data"), _values(command, "--out")
    if not data or not outs:
        raise DataError(
            f"`{shlex.join(command)}` needs --data and --out: the row is made of the report in that folder."
        )
    if readings.is_file() and any(tuple(row) != COLUMNS for row in shipped_rows(readings)):
        raise DataError(f"{readings.name} has other columns than {', '.join(COLUMNS)}; give a table of readings.")
    out = Path(outs[-1])
    before = _reports(out)
    code = subprocess.run([sys.executable, "-m", "fsmer", *command[1:]], check=False).returncode
    if code:
        return code
    if all(name.startswith("synthetic:") for name in data):
        print("the clips are drawn: no real label was read, and no row added.")
        return code
    new = [path for path, digest in _reports(out).items() if before.get(path) != digest]
    for path in new:
        append(row_of(Report.load(path.parent), command, note), readings)
    print(f"{len(new)} readings added to {readings.name}." if new else "no new report: no row added.")
    return code


def append(row: Mapping[str, str], readings: Path) -> None:
    """Add one row at the end, below a heading where the table is new."""
    new = not readings.is_file()
    with readings.open("a", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def row_of(report: Report, command: Sequence[str], note: str = "") -> dict[str, str]:
    """The row of one report that a command has computed from real labels."""
    counts = ", ".join(f"{name}: {figures['clips']} clips" for name, figures in report.per_dataset.items())
    stamp = "ORACLE" if report.oracle else ""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit_name(),
        "model": report.model["name"],
        "weights": report.model["weights_hash"],
        "data": counts,
        "command": shlex.join(_without_paths(command)),
        "uf1": f"{report.uf1:.3f}".lstrip("0"),
        "uar": f"{report.uar:.3f}".lstrip("0"),
        "note": "; ".join(filter(None, (stamp, note))),
    }


def _values(command: Sequence[str], option: str) -> list[str]:
    """Values of an option of a command as `_plain` writes it."""
    return [value for name, value in itertools.pairwise(command) if name == option]


def _plain(command: Sequence[str]) -> list[str]:
    """The command with long names of options, each apart from its value."""
    plain: list[str] = []
    for word in command:
        name, equals, value = word.partition("=")
        plain += [name, value] if equals and name in HIDDEN else [SHORT.get(word, word)]
    return plain


def _without_paths(command: Sequence[str]) -> list[str]:
    """The command with stand-ins for folders and files, which say nothing elsewhere and may be private."""
    return [_stand_in(option, word) for option, word in zip(["", *command], command, strict=False)]


def _stand_in(option: str, value: str) -> str:
    name, equals, entry = value.rpartition("=")
    if os.path.isabs(entry):
        return f"{name}{equals}{HIDDEN.get(option, 'PATH')}"
    if option not in HIDDEN or value.startswith(("synthetic:", "hf://")):
        return value
    # A model by its name is no path.
    return value if option == "--model" and not Path(value).exists() else HIDDEN[option]


def _reports(out: Path) -> dict[Path, str]:
    return {path: file_digest(path) for path in sorted(out.rglob("report.json"))}


def commit_name() -> str:
    """Short name of the commit, with ``+`` where the working tree differs from it; empty outside a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def main() -> int:
    """Exit code of the command that was run; 1 with one sentence where it is refused."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.releases", description=__doc__)
    parser.add_argument(
        "--to", type=Path, default=READINGS, help="table of readings (default: benchmarks/releases.csv)"
    )
    parser.add_argument("--note", default="", help="what whoever reads the table should know")
    parser.add_argument("command", nargs="+", metavar="-- fsmer ...", help="a command with --data and --out")
    asked = parser.parse_args()
    try:
        return read(asked.command, asked.to, note=asked.note)
    except FsmerError as error:
        print(f"python -m benchmarks.releases: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
