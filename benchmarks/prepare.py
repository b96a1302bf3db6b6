"""Preparing a data set: its own cost over the OpenCV calls that it makes, and what a second worker brings.

``python -m benchmarks.prepare [--clips N] [--repeats N] [--json]``
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
from joblib import Parallel, delayed

from fsmer.data.spec import InputSpec
from fsmer.preprocess import PreprocessRecipe
from fsmer.preprocess.cascade import CascadeDetector
from fsmer.preprocess.faces import FacePose
from fsmer.preprocess.flow import Farneback
from fsmer.preprocess.prepare import prepare
from fsmer.synthetic.recordings import synthetic_videos
from fsmer.synthetic.scene import random_scene

__all__ = ["bare", "draw", "main", "measure"]

COLOURS = ("red", "green", "blue")
# The input of facs-flow and mmnet.
SPECS = (
    InputSpec("flow", (28, 28), ("u", "v", "strain"), "minmax"),
    InputSpec("onset", (224, 224), COLOURS, "unit"),
    InputSpec("apex", (224, 224), COLOURS, "unit"),
)
RAW, CROPPED = (480, 640), (288, 256)
CROP = 224
LENGTH = 16
# How often each drawn clip is prepared in one run, by whether it is cropped.
TIMES = {False: 1, True: 4}
# What is promised: processor time beyond the bare calls, and what a second worker brings on two free cores.
OVERHEAD, SPEEDUP = 0.15, 1.7


def draw(folder: Path, clips: int, *, cropped: bool, seed: int = 1) -> pd.DataFrame:
    """Write drawn clips as JPEG frames, and give their table."""
    random = np.random.default_rng(seed)
    size = CROPPED if cropped else RAW
    rows = []
    for number in range(clips):
        scene = None if cropped else random_scene(size, random)
        (video,) = synthetic_videos(1, seed=seed, start=number, size=size, frames=LENGTH, scene=scene)
        place = folder / f"clip{number}"
        place.mkdir(parents=True)
        for index, frame in enumerate(video.frames):
            cv2.imwrite(str(place / f"img{index:03d}.jpg"), np.ascontiguousarray(frame[..., ::-1]))
        rows.append((str(place), video.onset, video.apex, video.offset))
    return pd.DataFrame(rows, columns=["path", "onset", "apex", "offset"])


def bare(table: pd.DataFrame, *, cropped: bool) -> None:
    """Decode, find the face, cut, estimate flow and resize, with nothing around these calls."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    detector, method = CascadeDetector(), Farneback()
    for path, onset, apex, _ in table.itertuples(index=False):
        reach = 0 if cropped else 2
        wanted = sorted({*range(max(0, onset - reach), min(LENGTH - 1, onset + reach) + 1), apex})
        frames = {index: cv2.imread(f"{path}/img{index:03d}.jpg")[..., ::-1] for index in wanted}
        if cropped:
            pose = FacePose((CROPPED[1] - 1) / 2, (CROPPED[0] - 1) / 2, CROPPED[1], 0.0, CROPPED[0] / CROPPED[1])
        else:
            near = range(max(0, onset - reach), min(LENGTH - 1, onset + reach) + 1)
            found = {index: detector.detect(np.ascontiguousarray(frames[index])) for index in near}
            if not found[onset]:
                continue
            pose = found[onset][0]
        crops = [
            cv2.warpAffine(
                np.ascontiguousarray(frames[index]),
                pose.matrix((CROP, CROP)),
                (CROP, CROP),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
            for index in (onset, apex)
        ]
        flow = method(*(np.asarray(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), np.uint8) for crop in crops))
        for plane in (flow[0], flow[1], flow[0]):
            cv2.resize(plane, (28, 28), interpolation=cv2.INTER_AREA)
    cv2.setNumThreads(before)


def measure(folder: Path, clips: int, repeats: int, *, cropped: bool) -> dict[str, float]:
    """Best times of several rounds in which every contender has its turn.

    Returns
    -------
    dict of str to float
        Milliseconds a clip by the clock on the wall: ``bare`` calls alone, ``one`` worker, ``two`` workers, and
        ``bare_two``, the bare calls on two workers (what the machine has to give at the time). ``overhead`` is the
        share of processor time that one worker needs beyond the bare calls, ``extra`` the share that two workers need
        beyond one, ``speedup`` is ``one`` by ``two``, ``machine`` is ``bare`` by ``bare_two``.
    """
    drawn = draw(folder / "frames", clips, cropped=cropped)
    # A data set has more clips than are worth drawing: each stands in the table several times.
    table = pd.concat([drawn] * TIMES[cropped], ignore_index=True)
    table = table.assign(clip=[f"clip{row}" for row in range(len(table))])
    recipe = PreprocessRecipe(detector="cropped" if cropped else "cascade")
    listed = table[["path", "onset", "apex", "offset"]]
    halves = [listed.iloc[0::2], listed.iloc[1::2]]
    rounds = 0

    def run(workers: int) -> None:
        nonlocal rounds
        rounds += 1
        prepare(table, None, folder / f"out{rounds}", specs=SPECS, recipe=recipe, workers=workers)

    contenders: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(listed, cropped=cropped),
        "one": lambda: run(1),
        "bare_two": lambda: Parallel(n_jobs=2)(delayed(bare)(half, cropped=cropped) for half in halves),
        "two": lambda: run(2),
    }
    run(2)  # starts the workers, which then wait for more
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    processor: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            start, used = time.perf_counter(), _processor_time()
            contender()
            wall[name].append(time.perf_counter() - start)
            processor[name].append(_processor_time() - used)
    best = {name: 1000 * min(seconds) / len(table) for name, seconds in wall.items()}
    least = {name: min(seconds) for name, seconds in processor.items()}
    return {
        **best,
        "overhead": least["one"] / least["bare"] - 1,
        "extra": least["two"] / least["one"] - 1,
        "speedup": best["one"] / best["two"],
        "machine": best["bare"] / best["bare_two"],
    }


def _processor_time() -> float:
    """Seconds that this process and its workers have computed."""
    return time.process_time() + sum(
        sum(process.cpu_times()[:2]) for process in psutil.Process().children(recursive=True)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print both figures for raw frames (a face to find) and for cropped ones; 1 when a promise is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__)
    parser.add_argument("--clips", type=int, default=40, help="drawn clips (default 40)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of which the best counts (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    asked = parser.parse_args(arguments)
    found = {}
    for name in ("raw", "cropped"):
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measure(Path(folder), asked.clips, asked.repeats, cropped=name == "cropped")
    kept = all(row["overhead"] < OVERHEAD and row["speedup"] >= SPEEDUP for row in found.values())
    if asked.json:
        print(json.dumps(found, indent=2))
        return 0 if kept else 1
    print(f"{asked.clips} drawn clips for facs-flow and mmnet, milliseconds a clip, best of {asked.repeats} rounds:")
    print()
    heads = (
        "frames",
        "bare calls",
        "1 worker",
        "2 workers",
        "overhead",
        "2 over 1",
        "bare 2 over 1",
        "extra work of 2",
    )
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    for name, row in found.items():
        cells = [f"{row[key]:.1f}" for key in ("bare", "one", "two")]
        cells += [f"{row['overhead']:.0%}", f"{row['speedup']:.2f}x", f"{row['machine']:.2f}x", f"{row['extra']:.0%}"]
        print("| " + " | ".join([name, *cells]) + " |")
    print()
    for name, row in found.items():
        for what, value, held in (
            (f"overhead {row['overhead']:.1%}", f"under {OVERHEAD:.0%}", row["overhead"] < OVERHEAD),
            (f"2 workers {row['speedup']:.2f}x", f"{SPEEDUP:g}x or more", row["speedup"] >= SPEEDUP),
        ):
            print(f"{name}: {what}, promised {value}: {'kept' if held else 'BROKEN'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
