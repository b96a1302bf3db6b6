"""Thousands of episodes of fine-tuning on a frozen network, from the clips to the report: memory, and time by episodes
and by clips."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.figures import Figure, peak_memory
from fsmer.backbones import Backbone, create_model
from fsmer.data import ClipSet
from fsmer.episodic import load_protocol
from fsmer.evaluation import evaluate
from fsmer.evaluation.embedding_cache import embed_cached
from fsmer.transfer import load_method

EPISODES = (1_000, 10_000)
CLIPS = (442, 50_000)
LABELS = ("negative", "positive", "surprise")
LIMIT = 2048
# Time an episode may take on the larger set or in the longer run, relative to the smaller: what is not proportional to
# the episodes (reading media, drawing, the report's tables) and the spread of a busy machine.
SLACK = 1.5


def run() -> list[Figure]:
    """3-way 5-shot with 15 queries a class, 200 Adam steps of a cosine head, embeddings from the cache."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = create_model("facs-flow", widths=[4, 4, 4, 4], branch_dim=48).eval()
    with tempfile.TemporaryDirectory() as folder:
        sets = {count: _clips(Path(folder), count) for count in CLIPS}
        cache = Path(folder, "embeddings")
        for clips in sets.values():
            embed_cached(backbone, clips, folder=cache)
        seconds: dict[tuple[int, int], float] = {}
        found: list[Figure] = []
        for count, clips in sets.items():
            for episodes in EPISODES:
                memory = peak_memory(lambda clips=clips, episodes=episodes: _solve(backbone, clips, episodes, cache))
                seconds[count, episodes] = _solve(backbone, clips, episodes, cache)
                if memory is not None and episodes == max(EPISODES):
                    name = f"{episodes:,} episodes on {count:,} clips, memory"
                    kept = memory < LIMIT
                    found.append(Figure(name, f"{memory:,.0f} MiB", promise=f"< {LIMIT:,} MiB", kept=kept))
    few, many = EPISODES
    small, large = CLIPS
    for count in CLIPS:
        ratio = (seconds[count, many] / many) / (seconds[count, few] / few)
        value = f"{1e3 * seconds[count, many] / many:.2f} ms each, {ratio:.2f} of that in {few:,}"
        name = f"{many:,} episodes on {count:,} clips, linear"
        found.append(Figure(name, value, promise=f"< {SLACK}", kept=ratio < SLACK))
    ratio = seconds[large, many] / seconds[small, many]
    value = f"{ratio:.2f} of the time on {small:,}"
    found.append(Figure(f"{many:,} episodes on {large:,} clips", value, promise=f"< {SLACK}", kept=ratio < SLACK))
    return found


def _solve(backbone: Backbone, clips: ClipSet, episodes: int, cache: Path) -> float:
    """Seconds of processor time of the episodes, from the embeddings to the whole report."""
    protocol = load_protocol("kshot", way=3, shot=5, query=15, episodes=episodes)
    started = 0.0

    def begin(stage: str, done: int, total: int) -> None:
        nonlocal started
        if stage == "episodes" and done == 0:
            started = time.process_time()

    report = evaluate(
        protocol, backbone, load_method("cosine", init="prototype"), clips=clips, cache=cache, progress=begin
    )
    if len(report.predictions) != episodes * 45:
        raise RuntimeError(f"{len(report.predictions)} answers instead of {episodes * 45}")
    return time.process_time() - started


def _clips(folder: Path, count: int) -> ClipSet:
    """Clips of noise on disk, from which only what is asked is read."""
    place = folder / f"{count}.npy"
    media = np.lib.format.open_memmap(place, "w+", np.float32, (count, 3, 28, 28))
    generator = np.random.default_rng(count)
    for start in range(0, count, 1000):
        media[start : start + 1000] = generator.random(media[start : start + 1000].shape, dtype=np.float32)
    media.flush()
    labels = [LABELS[number % 3] for number in range(count)]
    subjects = [f"{number % 60:03d}" for number in range(count)]
    return ClipSet.from_arrays(np.load(place, mmap_mode="r"), labels, subjects=subjects)
