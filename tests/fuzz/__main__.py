"""Command line: one mutation to look at, or a table of many of every reader."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from .readers import READERS
from .runner import run, table
from .worker import FAILURES, _valid, input_of, lay, reader_named


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"some of: {', '.join(READERS)}; default all")
    parser.add_argument("--mutations", type=int, default=200, help="seeds a reader")
    parser.add_argument("--first", type=int, default=0, help="the first of these seeds")
    parser.add_argument("--jobs", type=int, default=1, help="readers at a time")
    parser.add_argument("--out", type=Path, help="file for the table")
    parser.add_argument("--seed", type=int, help="give one reader this mutation alone, and show what comes of it")
    parser.add_argument("--keep", type=Path, help="folder for the input of that mutation")
    asked = parser.parse_args()
    names = asked.readers or list(READERS)
    for name in names:
        try:
            reader_named(name)
        except KeyError:
            parser.error(f"there is no reader {name!r}; known are {', '.join(READERS)}")
    if asked.seed is not None:
        return _one(names[0], asked.seed, asked.keep)

    def tally(name: str):  # type: ignore[no-untyped-def]
        found = run(name, range(asked.first, asked.first + asked.mutations))
        print(f"{name}: {dict(found.counts)} in {found.seconds:.1f} s", file=sys.stderr, flush=True)
        return found

    with ThreadPoolExecutor(asked.jobs) as pool:
        found = list(pool.map(tally, names))
    text = table(found)
    if asked.out is not None:
        asked.out.write_text(text, encoding="utf-8")
    print(text)
    return 1 if any(one.failures for one in found) else 0


def _one(name: str, seed: int, keep: Path | None) -> int:
    reader = reader_named(name)
    if keep is not None:
        with TemporaryDirectory() as folder:
            files, sealed = input_of(reader, seed, _valid(reader, Path(folder))[0])
        keep.mkdir(parents=True, exist_ok=True)
        lay(files, keep)
        print(f"the input is in {keep}{' (checksums made to fit)' if sealed else ''}")
    outcome = next(iter(_all(name, seed)))
    print(f"{outcome.kind}: {outcome.detail} {outcome.place}".strip())
    return 1 if outcome.kind in FAILURES else 0


def _all(name: str, seed: int):  # type: ignore[no-untyped-def]
    held = []
    run(name, range(seed, seed + 1), told=held.append)
    return held


if __name__ == "__main__":
    sys.exit(main())
