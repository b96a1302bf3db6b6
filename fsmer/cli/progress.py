"""Progress of long work: bars on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from fsmer.cli.console import Console, complain
from fsmer.text import printable

# Where no terminal shows bars: seconds before the first line that says how far it is, and between two of them.
FIRST_LINE = 30.0
BETWEEN_LINES = 60.0


@contextlib.contextmanager
def shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Bars with the time left on standard error while it is a terminal; a plain line a minute otherwise."""
    console = Console(stderr=True)
    with _bars(console) if console.is_terminal else _lines() as show:
        yield show


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    from rich import progress as rich

    title, counts = rich.TextColumn("{task.description}", markup=False), (rich.BarColumn(), rich.MofNCompleteColumn())
    times = rich.TimeElapsedColumn(), rich.TextColumn("left"), rich.TimeRemainingColumn()
    tasks: dict[str, rich.TaskID] = {}
    with rich.Progress(title, *counts, *times, console=console, transient=True) as bars:

        def show(stage: str, done: int, total: int) -> None:
            # The first word names the bar; what follows it (losses) may change from call to call.
            stage = printable(stage)
            key = stage.split(" ")[0]
            if key not in tasks or done < bars.tasks[tasks[key]].completed:
                tasks[key] = bars.add_task(stage, total=total)
            bars.update(tasks[key], completed=done, total=total, description=stage)

        yield show


@contextlib.contextmanager
def _lines() -> Iterator[Callable[[str, int, int], None]]:
    """Lines from a thread of their own, since a single fold may take longer than the time between two of them."""
    lines, over = _Lines(), threading.Event()
    teller = threading.Thread(target=lines.tell, args=(over.wait,), daemon=True)
    teller.start()
    try:
        yield lines.show
    finally:
        over.set()
        teller.join()


@dataclass(frozen=True)
class _Stage:
    """A part of long work: how much of it is done, and when and with how much it began."""

    key: str
    title: str
    done: int
    total: int
    since: float
    first: int

    def told(self, now: float) -> str:
        left = ""
        if self.first < self.done < self.total:
            seconds = (self.total - self.done) * (now - self.since) / (self.done - self.first)
            left = f" (about {_clock_time(seconds)} left)"
        return f"{self.title} {self.done:,}/{self.total:,}{left}"


class _Lines:
    """How far long work is, for a log file: how long it takes already, what goes on, and what may be left of that."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._stages: list[_Stage] = []

    def show(self, title: str, done: int, total: int) -> None:
        key = title.split(" ")[0]
        before = [one.key for one in self._stages]
        place = before.index(key) if key in before else len(before)
        one = _Stage(key, title, done, total, self._clock(), done)
        if key in before and done >= self._stages[place].done:
            one = replace(one, since=self._stages[place].since, first=self._stages[place].first)
        # Those that began after it were steps on its way, and are over.
        self._stages = [*self._stages[:place], one]

    def tell(self, wait: Callable[[float], bool]) -> None:
        """Write lines to standard error until `wait`, given seconds, returns True."""
        pause = FIRST_LINE
        while not wait(pause):
            pause = BETWEEN_LINES
            try:
                complain(self.line())
            except OSError:
                # Nobody reads any more, which must not disturb the work.
                return

    def line(self) -> str:
        now, stages = self._clock(), self._stages
        going_on = [one for one in stages if one.done < one.total] or stages[-1:]
        told = ", ".join(one.told(now) for one in going_on) or "getting ready"
        return f"after {_clock_time(now - self._began)}: {told}"


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
