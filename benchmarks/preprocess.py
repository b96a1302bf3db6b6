"""Preprocessing against the truth of drawn faces: crop, apex and flow, every method side by side.

``python -m benchmarks.preprocess [faces] [apex] [flow] [--videos N]``
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from fsmer.preprocess.apex import spot_apex
from fsmer.preprocess.cascade import CascadeDetector
from fsmer.preprocess.faces import FacePose
from fsmer.preprocess.flow import list_flow_methods, optical_flow, remove_head_motion
from fsmer.synthetic.recordings import SyntheticVideo, synthetic_videos
from fsmer.synthetic.scene import random_scene

__all__ = ["apex_errors", "crop_errors", "flow_errors", "main", "true_pose"]

DOMAINS = ("lab", "clinic", "field")
SPOTTERS = ("difference", "flow", "middle")
PARTS = ("faces", "apex", "flow")


def true_pose(video: SyntheticVideo) -> FacePose:
    """Where the canonical crop of a drawn face really is, at onset."""
    crop = np.asarray(video.crop, np.float64)
    width, height = (float(np.linalg.norm(crop[:, axis])) for axis in (0, 1))
    roll = float(np.arctan2(crop[1, 0], crop[0, 0]))
    return FacePose(float(crop[0, 2]), float(crop[1, 2]), width, roll, height / width)


def crop_errors(videos: int, *, seed: int = 1, size: tuple[int, int] = (360, 640)) -> dict[str, float]:
    """Place (share of the face width), size (relative), roll (degrees) of found crops; misses; time of one search.

    A face counts as missed when none is found within half a face width of it.
    """
    detector = CascadeDetector()
    random = np.random.default_rng(seed)
    found, seconds, missed = [], [], 0
    for number in range(videos):
        scene = random_scene(size, random)
        (video,) = synthetic_videos(
            1, domain=DOMAINS[number % len(DOMAINS)], seed=seed, start=number, size=size, frames=3, scene=scene
        )
        truth = true_pose(video)
        start = time.perf_counter()
        faces = detector.detect(video.frames[video.onset])
        seconds.append(time.perf_counter() - start)
        offsets = [truth.to_crop(face.centre) * (1, truth.aspect) for face in faces]
        near = [(float(np.hypot(*offset)), face) for offset, face in zip(offsets, faces, strict=True)]
        if not near or min(near, key=lambda one: one[0])[0] > 0.5:
            missed += 1
            continue
        distance, face = min(near, key=lambda one: one[0])
        found.append((distance, abs(face.width / truth.width - 1), abs(np.degrees(face.roll - truth.roll))))
    errors = np.array(found) if found else np.full((1, 3), np.nan)
    place, width, roll = np.median(errors, axis=0)
    high = np.percentile(errors, 90, axis=0)
    return {
        "place": float(place),
        "width": float(width),
        "roll": float(roll),
        "place, 90 %": float(high[0]),
        "width, 90 %": float(high[1]),
        "roll, 90 %": float(high[2]),
        "missed": missed / videos,
        "ms": 1000 * float(np.median(seconds)),
    }


def _videos(count: int, seed: int, *, frames: int = 24, size: int = 224) -> Iterator[SyntheticVideo]:
    for number in range(count):
        domain = DOMAINS[number % len(DOMAINS)]
        yield from synthetic_videos(1, domain=domain, seed=seed, start=number, frames=frames, size=size)


def apex_errors(videos: int, *, seed: int = 1, frames: int = 32) -> dict[str, float]:
    """Mean absolute error in frames of every spotter, between onset and offset."""
    wrong: dict[str, list[int]] = {name: [] for name in SPOTTERS}
    for video in _videos(videos, seed, frames=frames):
        for name in SPOTTERS:
            spot = spot_apex(video.frames, name, onset=video.onset, offset=video.offset)
            wrong[name].append(abs(spot.index - video.apex))
    return {name: float(np.mean(errors)) for name, errors in wrong.items()}


def flow_errors(videos: int, *, seed: int = 1) -> dict[str, dict[str, float]]:
    """End-point error in pixels of 224 from onset to apex and milliseconds a pair, of every flow method.

    ``"face"``: mean over the crop. ``"moving"``: where the expression moves. ``"moving, head removed"``: there, with
    the head's affine motion taken out of the estimate, against the true movement of the expression alone. The first
    line is what an estimate of no movement gets.
    """
    methods: dict[str, Callable[[SyntheticVideo], np.ndarray]] = {
        "(no movement)": lambda video: np.zeros((2, *video.frames.shape[1:3]), np.float32)
    }
    for name in list_flow_methods():
        methods[name] = lambda video, name=name: optical_flow(video.frames[video.onset], video.frames[video.apex], name)
    sums = {name: np.zeros(4) for name in methods}
    for video in _videos(videos, seed, frames=12):
        for name, estimate in methods.items():
            start = time.perf_counter()
            flow = estimate(video)
            taken = time.perf_counter() - start
            wrong = np.hypot(*(flow - video.flow))
            still = np.hypot(*(remove_head_motion(flow) - video.expression_flow))
            sums[name] += (wrong.mean(), wrong[video.moving].mean(), still[video.moving].mean(), 1000 * taken)
    columns = ("face", "moving", "moving, head removed", "ms")
    return {name: dict(zip(columns, (total / videos).tolist(), strict=True)) for name, total in sums.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preprocess", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--videos", type=int, default=60, help="drawn videos a table (default 60)")
    asked = parser.parse_args(arguments)
    parts = asked.parts or PARTS
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    if "faces" in parts:
        found = crop_errors(asked.videos)
        _table(
            f"Crops found by `cascade` on {asked.videos} drawn 640x360 pictures (seed 1), and what 90 % stay below",
            ("", "place, face widths", "size", "roll, degrees", "missed", "ms a picture"),
            [
                ("median", *_cells(found, "place:.3f", "width:.1%", "roll:.1f", "missed:.0%", "ms:.0f")),
                ("90 %", *_cells(found, "place, 90 %:.3f", "width, 90 %:.1%", "roll, 90 %:.1f"), "", ""),
            ],
        )
    if "apex" in parts:
        _table(
            f"Apex between onset and offset, mean absolute error in frames, {asked.videos} drawn videos of 32 (seed 1)",
            ("spotter", "frames"),
            [(name, f"{value:.2f}") for name, value in apex_errors(asked.videos).items()],
        )
    if "flow" in parts:
        rows = flow_errors(asked.videos)
        _table(
            f"End-point error in pixels of 224, onset to apex, {asked.videos} drawn videos (seed 1)",
            ("method", *next(iter(rows.values()))),
            [
                (name, *(f"{value:.3f}" for value in list(row.values())[:-1]), f"{row['ms']:.1f}")
                for name, row in rows.items()
            ],
        )
    return 0


def _cells(values: Mapping[str, float], *wanted: str) -> list[str]:
    return [format(values[name], form) for name, form in (one.rsplit(":", 1) for one in wanted)]


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"{title}:\n")
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |")
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
