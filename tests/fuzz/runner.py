"""Runs of many seeds in a process of their own a reader, under an alarm, with what came of them in a table."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .worker import ACCEPTED, CRASH, FAILURES, HANG, TYPED, Outcome, place_in, serve

__all__ = ["ALARM_SECONDS", "Tally", "run", "table"]

ALARM_SECONDS = 20.0
# Writing the valid input and reading it once, on a machine that is not idle.
START_SECONDS = 180.0


@dataclass
class Tally:
    """What came of the seeds of one reader."""

    reader: str
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.counts[outcome.kind] += 1
        if outcome.kind in FAILURES:
            self.failures.append(outcome)

    def kinds(self) -> dict[tuple[str, str, str], list[int]]:
        """Seeds of the failures that are alike."""
        found: dict[tuple[str, str, str], list[int]] = {}
        for one in self.failures:
            name = one.detail.partition(":")[0] if one.kind == "untyped error" else re.sub(r"\d[\d,]*", "N", one.detail)
            found.setdefault((one.kind, one.place, name), []).append(one.seed)
        return found

    def __str__(self) -> str:
        lines = []
        for (kind, place, name), seeds in sorted(self.kinds().items(), key=lambda item: -len(item[1])):
            detail = next(one.detail for one in self.failures if one.seed == seeds[0])
            lines.append(
                f"{self.reader}: {kind} ({len(seeds)}) {place or name}: {detail}\n"
                f"    python -m tests.fuzz {self.reader} --seed {seeds[0]} --keep FOLDER"
            )
        return "\n".join(lines)


def run(
    reader: str,
    seeds: range,
    *,
    alarm: float = ALARM_SECONDS,
    stop_after: int | None = None,
    told: Callable[[Outcome], None] | None = None,
) -> Tally:
    """Give a reader the mutations with these seeds.

    Parameters
    ----------
    reader : str
    seeds : range
        Consecutive.
    alarm : float
        Seconds that one may take.
    stop_after : int, optional
        Failures after which the rest is left out.
    told : callable, optional
        Called with every outcome.
    """
    tally, following, began = Tally(reader), seeds.start, 0.0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        while following < seeds.stop and (stop_after is None or len(tally.failures) < stop_after):
            for outcome in _outcomes(reader, range(following, seeds.stop), Path(folder), alarm):
                began = began or time.monotonic()
                tally.add(outcome)
                following = outcome.seed + 1
                if told is not None:
                    told(outcome)
                if stop_after is not None and len(tally.failures) >= stop_after:
                    break
    tally.seconds = time.monotonic() - began  # without the start of the first process
    return tally


def _outcomes(reader: str, seeds: range, folder: Path, alarm: float):  # type: ignore[no-untyped-def]
    """Outcomes of one process, the last of which may have ended it."""
    context = _context()
    log, top = folder / f"{seeds.start}.log", folder / f"{seeds.start}"
    top.mkdir()
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(
        target=serve, args=(reader, seeds.start, seeds.stop, str(top), str(log), alarm, sender), daemon=True
    )
    with _environment():
        worker.start()
    sender.close()
    expected, wait = seeds.start, START_SECONDS
    try:
        while expected < seeds.stop:
            if not receiver.poll(wait):
                if wait == START_SECONDS:
                    raise RuntimeError(f"the reader {reader} did not come to its first mutation: {_tail(log)}")
                yield Outcome(expected, HANG, f"no answer within {alarm:g} s", _where(log))
                return
            try:
                outcome = receiver.recv()
            except EOFError:
                worker.join(10)
                if wait == START_SECONDS:
                    raise RuntimeError(f"the reader {reader} could not be started: {_tail(log)}") from None
                yield Outcome(expected, CRASH, f"the process ended with {worker.exitcode}", _where(log))
                return
            if isinstance(outcome, str):
                raise RuntimeError(f"{reader}, seed {expected}: the valid input or the mutator fails:\n{outcome}")
            if outcome is None:  # the valid input was read
                wait = alarm
                continue
            expected = outcome.seed + 1
            yield outcome
            if outcome.kind == "memory":
                return
    finally:
        receiver.close()
        worker.kill()
        worker.join()
        shutil.rmtree(top, ignore_errors=True)


def _context():  # type: ignore[no-untyped-def]
    """Processes are forked from one that has imported everything once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.worker"])
    return context


@contextmanager
def _environment():  # type: ignore[no-untyped-def]
    """One thread a process, and the modules that this process knows."""
    wanted = {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:] if log.exists() else ""


def _where(log: Path) -> str:
    """Where in fsmer the process was, by what faulthandler wrote last."""
    text = _tail(log)
    stack = text[max(text.rfind("most recent call first"), 0) :]
    lines = [f"{path}:{line}" for path, line in re.findall(r'File "([^"]+)", line (\d+)', stack)]
    return place_in(lines[::-1])


def table(tallies: Sequence[Tally]) -> str:
    """Counts of every reader as a Markdown table, and below what failed."""
    columns = (ACCEPTED, TYPED, *FAILURES)
    lines = [
        f"| reader | mutations | {' | '.join(columns)} | a second |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for tally in tallies:
        total = sum(tally.counts.values())
        cells = " | ".join(f"{tally.counts[column]:,}" for column in columns)
        lines.append(f"| {tally.reader} | {total:,} | {cells} | {total / max(tally.seconds, 1e-9):,.0f} |")
    failed = [str(tally) for tally in tallies if tally.failures]
    if failed:
        lines += ["", "```", *failed, "```"]
    return "\n".join(lines) + "\n"
