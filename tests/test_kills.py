"""Killed at any moment and run again, everything that writes gives the files of an undisturbed run and no others."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_trees import build
from PIL import Image
from test_prepare import picture

import fsmer
from fsmer.synthetic.recordings import synthetic_recording
from fsmer.synthetic.scene import Camera, Scene

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

KILLED = (-signal.SIGKILL, -signal.SIGPROF)
# What differs from run to run in a file of JSON, and in a model card and a page.
VOLATILE = {"checksum", "resumed", "seconds", "started"}
TIMES = re.compile(rb"\d+ minutes on|>(started|time)</th><td>[^<]*<|on [\d-]{10} [\d:]{5} UTC")


@dataclass(frozen=True)
class Job:
    """One way to write: what is run, what it writes, and what is there before."""

    run: dict[str, Any]
    writes: tuple[str, ...]
    before: dict[str, Any] | None = None


def call(name: str, *arguments: Any) -> dict[str, Any]:
    return {"call": name, "arguments": arguments}


def command(*words: str) -> dict[str, Any]:
    return {"command": words}


JOBS = {
    "save clips": Job(call("save_clips", "out", 1), ("out",), call("save_clips", "out", 2)),
    "save recognizer": Job(call("save_recognizer", "out", 1), ("out",), call("save_recognizer", "out", 2)),
    "adapt": Job(command("adapt", "--data", "synthetic:lab:12", "--out", "out"), ("out",)),
    "predict clips": Job(
        command("predict", "../inputs/recognizer", "--data", "../inputs/clips", "--out", "out.csv"), ("out.csv",)
    ),
    "predict recording": Job(command("predict", "../inputs/recording", "--out", "out"), ("out",)),
    "train": Job(
        command("train", "ststnet", "--data", "../inputs/clips", "-p", "epochs=3", "--out", "out"),
        ("out", "out.history.json", "out.history.png"),
    ),
    "evaluate by training": Job(
        command(
            *("evaluate", "loso", "--data", "../inputs/clips", "--model", "ststnet", "--method", "train"),
            *("-p", "epochs=2", "--jobs", "1", "--out", "out"),
        ),
        ("out",),
    ),
    "evaluate embeddings": Job(
        command("evaluate", "loso", "--data", "../inputs/clips", "--method", "cosine", "--out", "out"), ("out",)
    ),
    "pretrain on flow": Job(call("pretrain_flow", "out"), ("out",)),
    "pretrain on pairs": Job(call("pretrain_pairs", "../inputs/frames", "out"), ("out",)),
    "prepare": Job(call("prepare_clips", "../inputs/casme2", "out"), ("out",)),
    "compile": Job(call("compile_code"), ()),
}


class Workshop:
    """A folder in which jobs run, and the process that forks them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Every run of a job has the same place, so that paths within files are the same.
        self.place = root / "place"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        folders = os.pathsep.join((str(Path(__file__).parent), environment.get("PYTHONPATH", "")))
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("kill_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, "PYTHONPATH": folders},
        )

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(timeout=60)

    def clear(self, job: Job) -> None:
        """An empty place, or with what was there before."""
        shutil.rmtree(self.place, ignore_errors=True)
        for name in ("cache", "tmp"):
            (self.place / name).mkdir(parents=True, mode=0o700)
        if job.before is not None:
            (end,) = self.at_once(job.before)
            assert end["code"] == 0, end["said"]

    def at_once(self, *runs: dict[str, Any], **when: Any) -> list[dict[str, Any]]:
        """Run jobs at the same time; `when` says at which moment they are killed."""
        compiling = "on" if any(run.get("call") == "compile_code" for run in runs) else "off"
        environment = {
            "FSMER_CACHE": str(self.place / "cache"),
            "FSMER_COMPILE": compiling,
            "TMPDIR": str(self.place / "tmp"),
            # torch makes it when it loads certain parts of itself, which is nothing of fsmer's.
            "TORCHINDUCTOR_CACHE_DIR": str(self.root / "torch"),
        }
        asked = [
            {
                **run,
                **when,
                "root": str(self.place),
                "environment": environment,
                "log": str(self.root / f"log-{number}"),
            }
            for number, run in enumerate(runs)
        ]
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def result(self, job: Job) -> dict[str, Any]:
        """Content of what the job wrote, without what differs from run to run."""
        files: dict[str, Any] = {}
        for name in job.writes:
            path = self.place / name
            for file in [path] if path.is_file() else sorted(path.rglob("*")):
                files[str(file.relative_to(self.place))] = _content(file)
        return files

    def everything(self) -> list[str]:
        """Names of all files and folders, without those of embeddings, which are as many as there were kills."""
        found = (path.relative_to(self.place) for path in self.place.rglob("*"))
        return sorted(str(path) for path in found if path.suffix != ".npy" or path.parts[0] != "cache")


def _content(path: Path) -> Any:
    if path.is_dir():
        return "a folder"
    data = path.read_bytes()
    if path.suffix == ".json":
        values = json.loads(data)
        return {name: value for name, value in values.items() if name not in VOLATILE}
    return TIMES.sub(b"", data)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    root = tmp_path_factory.mktemp("kills")
    inputs = root / "inputs"
    clips = fsmer.synthetic_clips("lab", 18, seed=4)
    fsmer.ClipSet.from_arrays(clips.media(), clips.labels, subjects=[str(row % 3) for row in range(18)]).save(
        inputs / "clips"
    )
    build("casme2", inputs / "casme2", picture=picture)
    drawn = synthetic_recording(
        1.0,
        domain="lab",
        seed=3,
        size=(120, 160),
        frames_per_second=25.0,
        scene=Scene((80.0, 62.0), 48.0, 3.0),
        units=[[12]],
        rest=(0.3, 0.4),
        amplify=2.5,
        camera=Camera(noise=1.5, light=0.005, head=0.1, blinks=0.0),
    )
    (inputs / "recording").mkdir()
    for number in range(12):
        Image.fromarray(drawn.frame(number)).save(inputs / "recording" / f"{number}.png")
    for name in ("one", "two"):
        (inputs / "frames" / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(drawn.frame(number)).resize((40, 40)).save(inputs / "frames" / name / f"{number}.png")
    made = Workshop(root)
    made.clear(JOBS["adapt"])
    (end,) = made.at_once(command("adapt", "--data", "synthetic:lab:12:7", "--out", "../inputs/recognizer"))
    assert end["code"] == 0, end["said"]
    yield made
    made.close()


@dataclass(frozen=True)
class Reference:
    """An undisturbed run."""

    files: dict[str, Any]
    names: list[str]
    steps: int
    seconds: float
    older: dict[str, Any]


def undisturbed(shop: Workshop, job: Job) -> Reference:
    shop.clear(job)
    older = shop.result(job)
    (end,) = shop.at_once(job.run)
    assert end["code"] == 0, end["said"]
    files = shop.result(job)
    assert files or not job.writes
    return Reference(files, shop.everything(), end["steps"], end["seconds"], older)


def check_kills(shop: Workshop, name: str, chains: int, kills: int, seed: int = 0) -> int:
    """Kill a job again and again before it may come to its end, a few times over; how often it was killed."""
    job, random, killed = JOBS[name], np.random.default_rng(seed), 0
    whole = undisturbed(shop, job)
    for _ in range(chains):
        shop.clear(job)
        moments = []
        for turn in range(kills):
            # Every other kill falls between two steps of writing, the others anywhere.
            step, seconds = int(random.integers(1, whole.steps + 1)), whole.seconds * random.uniform(0.02, 0.95)
            moments.append({"step": step} if turn % 2 == 0 else {"seconds": seconds})
            (end,) = shop.at_once(job.run, **moments[-1])
            assert end["code"] in (0, *KILLED), (moments, end["said"])
            killed += end["code"] in KILLED
            if job.before is not None:
                assert shop.result(job) in (whole.older, whole.files), moments
        (end,) = shop.at_once(job.run)
        assert end["code"] == 0, (moments, end["said"])
        found = shop.result(job)
        differing = [file for file in whole.files | found if found.get(file) != whole.files.get(file)]
        assert differing == [], moments
        assert shop.everything() == whole.names, moments
    return killed


def test_a_killed_save_and_evaluation_leave_nothing_and_are_repeated_exactly(shop: Workshop) -> None:
    killed = check_kills(shop, "save clips", chains=1, kills=4)
    killed += check_kills(shop, "evaluate embeddings", chains=1, kills=4)
    assert killed >= 6


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_killed_anywhere_and_run_again_it_gives_the_same_files(name: str, shop: Workshop) -> None:
    killed = check_kills(shop, name, chains=3, kills=3, seed=1)
    # Of 9; a job that goes on where it was may come to its end before the next kill.
    assert killed >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_two_that_write_the_same_at_once_give_what_one_gives(name: str, shop: Workshop) -> None:
    job = JOBS[name]
    whole = undisturbed(shop, job)
    for _ in range(2):
        shop.clear(job)
        ends = shop.at_once(job.run, job.run)
        said = [end["said"] for end in ends]
        assert any(end["code"] == 0 for end in ends), said
        # One that is refused says so in a sentence.
        assert all(end["code"] == 0 or "another run is preparing" in end["said"] for end in ends), said
        assert shop.result(job) == whole.files
        assert shop.everything() == whole.names
