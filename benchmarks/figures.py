"""How a figure is measured and printed."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Figure", "best_rate", "best_rates", "best_seconds", "has_easyfsl", "peak_memory", "print_figures"]


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Parameters
    ----------
    name : str
    value : str
        What fsmer reached, with its unit.
    peer : str
        What the peer reached in the same run, or ``""``.
    ratio : float or None
        How many times faster fsmer was.
    promise : str
        What was promised, or ``""`` for a figure that is printed for information.
    kept : bool
    """

    name: str
    value: str
    peer: str = ""
    ratio: float | None = None
    promise: str = ""
    kept: bool = True


def has_easyfsl(part: str) -> bool:
    """Whether easyfsl is there to be measured beside; where not, says so."""
    found = importlib.util.find_spec("easyfsl") is not None
    if not found:
        print(f"easyfsl is not installed (pip install 'fsmer[bench]'): the figures of {part} are left out")
    return found


def best_rates(
    ours: Callable[[], int], peer: Callable[[], int], *, rounds: int = 3, repeats: int = 1
) -> tuple[float, float]:
    """Best rates of both, in turn, so that a busy spell of the machine meets both; a call returns how much it did."""
    fast = slow = 0.0
    for _ in range(rounds):
        for _ in range(repeats):
            fast = max(fast, _rate(ours))
        slow = max(slow, _rate(peer))
    return fast, slow


def best_rate(work: Callable[[], int], *, rounds: int = 5) -> float:
    """Best rate of `work`, which returns how much it did."""
    return max(_rate(work) for _ in range(rounds))


def best_seconds(work: Callable[[], object], *, rounds: int) -> float:
    """Shortest time of `work` by the clock on the wall, which is what a user waits for."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def peak_memory(work: Callable[[], object]) -> float | None:
    """MiB of resident memory that `work` needed at most beyond what was held before; None where nobody tells."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return None
    page = 4096 / (1 << 20)
    held = int(statm.read_text().split()[1]) * page
    peak, done = held, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, int(statm.read_text().split()[1]) * page)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak - held


def print_figures(figures: list[Figure]) -> None:
    """The table, one line a figure."""
    rows = [("", "fsmer", "peer", "ratio", "promised", "")]
    for figure in figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:.1f}x"
        verdict = "" if not figure.promise else "kept" if figure.kept else "MISSED"
        rows.append((figure.name, figure.value, figure.peer, ratio, figure.promise, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _rate(work: Callable[[], int]) -> float:
    # Processor time: what other programs take from a busy machine is no part of a rate on one core.
    start = time.process_time()
    amount = work()
    return amount / (time.process_time() - start)
