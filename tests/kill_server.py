"""Runs jobs of fsmer in forked children, which may be killed at a chosen moment; `test_kills` starts it.

Libraries are imported once. Each line of standard input is a list of jobs that run at the same time, and each line of
standard output says how they ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

# What is done to files, as Python tells of it before it happens.
STEPS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"}


def die_at_step(number: int | None, root: str, count: list[int]) -> None:
    """Count what is done to files below `root`, and die before the step of that number."""

    def heard(event: str, details: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = details
            written = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if mode is None else set(mode) & set("wax+")
            if not written:
                return
        elif event == "ctypes.dlsym" and details[1] == "renameat2":
            path = root
        elif event in STEPS:
            path = details[0]
        else:
            return
        if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(root):
            count[0] += 1
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heard)


def run(job: dict[str, Any]) -> int:
    """The job itself; the exit status of a command."""
    if "command" in job:
        from fsmer.cli.app import app

        sys.argv = ["fsmer", *job["command"]]
        try:
            app(job["command"])
        except SystemExit as end:
            return int(end.code or 0)
        return 0
    import kill_jobs

    getattr(kill_jobs, job["call"])(*job["arguments"])
    return 0


def start(job: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(job["environment"])
        # Otherwise Python looks for it by writing a file there, which a kill may leave.
        tempfile.tempdir = job["environment"]["TMPDIR"]
        os.chdir(job["root"])
        count, began = [0], time.process_time()
        die_at_step(job.get("step"), job["root"], count)
        if job.get("seconds"):
            # Of the processor, so that other work on the machine moves no kill; its default is to end the process.
            signal.setitimer(signal.ITIMER_PROF, job["seconds"])
        code = run(job)
        signal.setitimer(signal.ITIMER_PROF, 0)
        Path(job["log"]).with_suffix(".steps").write_text(json.dumps([count[0], time.process_time() - began]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    import cv2
    import kill_jobs  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch

    import fsmer.cli
    import fsmer.evaluation
    import fsmer.preprocess
    import fsmer.pretraining  # noqa: F401

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for line in sys.stdin:
        jobs = json.loads(line)
        children = [start(job) for job in jobs]
        ends = []
        for job, child in zip(jobs, children, strict=True):
            _, status = os.waitpid(child, 0)
            told = Path(job["log"]).with_suffix(".steps")
            steps, seconds = json.loads(told.read_text()) if told.exists() else (None, None)
            told.unlink(missing_ok=True)
            ends.append(
                {
                    "code": os.waitstatus_to_exitcode(status),
                    "seconds": seconds,
                    "steps": steps,
                    "said": Path(job["log"]).read_text(errors="replace"),
                }
            )
        print(json.dumps(ends), flush=True)


if __name__ == "__main__":
    main()
