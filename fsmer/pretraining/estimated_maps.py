"""Flow maps as an estimator sees them: drawn faces before and after a movement, and the flow found between them.

`synthetic_maps` models the errors of optical flow; here they are real ones. What skin without texture,
shading, sensor noise and an estimator's window do to a movement is hard to write down and easy to run.

Clips come in blocks, each from its own seed, so that any of them can be made anew, alone and in any process.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from joblib import Parallel, cpu_count, delayed  # type: ignore[import-untyped]
from numpy.typing import NDArray

from fsmer.array_files import read_arrays
from fsmer.data.au_parser import au_numbers
from fsmer.data.clips import ClipSet
from fsmer.data.facs import ACTION_UNIT_ORDER, EMOTION_ORDER
from fsmer.data.spec import InputSpec, image_spec
from fsmer.errors import FsmerError
from fsmer.io import atomic_path, digest, read_bytes, remove_unfinished
from fsmer.preprocess.flow import DIS, flow_map, head_motion
from fsmer.synthetic.clips import SyntheticMaps
from fsmer.synthetic.frame_clips import synthetic_frame_clips
from fsmer.training.loop import Progress

__all__ = ["BLOCK", "EstimationPlan", "MapPool", "estimated_maps"]

# Clips of a block and of one individual: drawing a face costs more than moving it.
BLOCK, CLIPS_A_SUBJECT = 240, 10
# Keeps the individuals apart from those that small seeds of `fsmer.synthetic.recordings` give.
FIRST_SEED = 11_000
SIDE = 28
# Digits of a block's number in the name of its file.
NUMBER = 5
# Raised whenever the same seed would give other maps.
VERSION = 1

Maps = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Block = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class EstimationPlan:
    """Which faces are drawn and how large, for flow to be estimated between them.

    A `FsmerError` is raised for a number of clips that is out of range.
    """

    count: int = 28_800  # clips, a multiple of `block`
    domain: str = "broad"  # of faces and movements
    # Pixels of a face crop that flow is estimated on; public crops of CASME II and SMIC have 140 to 280.
    size: int = 112
    block: int = BLOCK  # clips that are drawn at a time, one individual for every ten of them

    def __post_init__(self) -> None:
        if self.block < 1 or self.count < 1 or self.count % self.block:
            raise FsmerError(
                f"cannot draw {self.count} clips to estimate flow in: they come {self.block} at a time, so give a "
                "multiple of that, and at least one."
            )

    @property
    def blocks(self) -> int:
        """Blocks that these clips fill."""
        return self.count // self.block


def estimated_maps(number: int, *, plan: EstimationPlan, seed: int) -> SyntheticMaps:
    """Block `number` of the clips: maps of the flow that was estimated between drawn onset and apex.

    The estimator and its parameters are drawn clip by clip: dense inverse search, variational flow, or both, on frames
    that are smoothed more or less; part of the head's motion is taken out, since public crops were aligned more or
    less well. Farneback's method is left out: its maps are rougher than public ones.
    """
    # Every block has individuals of its own.
    own, subjects = FIRST_SEED + 1_000_003 * seed + number, max(1, plan.block // CLIPS_A_SUBJECT)
    specs = [image_spec(kind, plan.size) for kind in ("onset", "apex")]
    drawn = synthetic_frame_clips(plan.domain, plan.block, seed=own, specs=specs, subjects=subjects)
    rng = np.random.Generator(np.random.PCG64([seed, number, VERSION]))
    maps = np.empty((plan.block, 3, SIDE, SIDE), dtype=np.float32)
    for row, onset, apex in _frames(drawn):
        maps[row] = _estimated(onset, apex, plan.size, rng)
    table = drawn.table
    units = np.stack([np.isin(ACTION_UNIT_ORDER, au_numbers(text)) for text in table["aus"].astype(str)])
    emotions = np.array([EMOTION_ORDER.index(name) for name in table["emotion"]], dtype=np.int64)
    return SyntheticMaps(maps, units, emotions)


def _frames(drawn: ClipSet) -> Iterator[tuple[int, Bytes, Bytes]]:
    """Row, onset and apex of every clip, one individual after the other, so that few faces are in memory."""
    for subject in np.unique(drawn.subjects):
        rows = np.flatnonzero(drawn.subjects == subject)
        for row, onset, apex in zip(rows, drawn.read("onset", rows), drawn.read("apex", rows), strict=True):
            yield int(row), _grey(onset), _grey(apex)


def _estimated(onset: Bytes, apex: Bytes, size: int, rng: np.random.Generator) -> Maps:
    """u, v and strain, each scaled to 0..1, (3, SIDE, SIDE), by an estimator that is drawn for these frames."""
    smoothing = rng.uniform(0.0, 1.3)
    removed = np.float32(rng.uniform(-0.1, 0.9))
    if smoothing > 0.3:
        onset, apex = (cv2.GaussianBlur(one, (0, 0), smoothing).astype(np.uint8) for one in (onset, apex))
    kind = rng.integers(4)
    # The coarser of OpenCV's two finest levels: errors as those of flow on smaller crops.
    search = DIS(finest_scale=1)
    flow = search(onset, apex) if kind <= 2 else np.zeros((2, *onset.shape), np.float32)
    if kind >= 2:
        flow = _refined(onset, apex, flow, alpha=rng.uniform(10, 60), gamma=rng.uniform(2, 12))
    if removed > 0:
        flow = flow - removed * head_motion(flow).field((size, size))
    return flow_map(flow, InputSpec(size=(SIDE, SIDE)))


def _refined(first: Bytes, second: Bytes, flow: Maps, *, alpha: float, gamma: float) -> Maps:
    """Variational flow (Brox et al. 2004, as OpenCV refines with it) from another estimate."""
    solver = cv2.VariationalRefinement.create()
    solver.setFixedPointIterations(5)
    solver.setSorIterations(10)
    solver.setAlpha(alpha)
    solver.setDelta(5.0)
    solver.setGamma(gamma)
    found = solver.calc(first, second, np.ascontiguousarray(np.moveaxis(flow, 0, 2)))
    return np.ascontiguousarray(np.moveaxis(found, 2, 0), np.float32)


class MapPool:
    """All blocks of some clips on disk as bytes, drawn in parallel the first time and mirrored at random when taken.

    Blocks are kept in a folder, each with the digest of its content in its name; those that are there already are not
    drawn again unless they were altered. `progress` is called with (clips drawn, clips in all).
    """

    def __init__(self, folder: Path, plan: EstimationPlan, seed: int, *, progress: Progress | None = None) -> None:
        key = hashlib.sha256(json.dumps([asdict(plan), seed, VERSION]).encode()).hexdigest()[:12]
        self.folder = folder / f".maps-{key}"
        self.plan, self.seed = plan, seed
        held = {path.name[:NUMBER]: block for path in self.folder.glob("*.npz") if (block := _read(path)) is not None}
        remove_unfinished(self.folder)
        self._draw_missing(held, progress)
        blocks = [held[_name(number)] for number in range(plan.blocks)]
        self.maps: Bytes = np.concatenate([block["maps"] for block in blocks])
        self.units: NDArray[np.bool_] = np.concatenate([block["units"] for block in blocks])
        self.emotions: NDArray[np.int64] = np.concatenate([block["emotions"] for block in blocks])

    def take(self, count: int, rng: np.random.Generator) -> SyntheticMaps:
        """`count` clips at random, half of them mirrored."""
        rows = rng.integers(len(self.maps), size=count)
        maps = self.maps[rows].astype(np.float32) / 255
        mirrored = maps[..., ::-1].copy()
        mirrored[:, 0] = 1 - mirrored[:, 0]
        flip = rng.random((count, 1, 1, 1)) < 0.5
        return SyntheticMaps(np.where(flip, mirrored, maps), self.units[rows], self.emotions[rows])

    def remove(self) -> None:
        """Delete the blocks from the disk; what was read stays in memory."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _draw_missing(self, held: dict[str, Block], progress: Progress | None) -> None:
        missing = [number for number in range(self.plan.blocks) if _name(number) not in held]
        done = self.plan.blocks - len(missing)
        if not missing:
            return
        run = Parallel(n_jobs=min(cpu_count(), len(missing)), return_as="generator_unordered")
        jobs = (delayed(_write_block)(self.folder, number, self.plan, self.seed) for number in missing)
        for number, block in run(jobs):
            held[_name(number)] = block
            done += 1
            if progress is not None:
                progress(done * self.plan.block, self.plan.count)


def _name(number: int) -> str:
    return f"{number:0{NUMBER}d}"


def _read(path: Path) -> Block | None:
    """The clips of a block; one that was altered is removed, so that it is drawn again."""
    try:
        content = read_bytes(path)
        if digest(content) != path.stem[NUMBER + 1 :]:
            raise ValueError("altered")
        return read_arrays(content, ("maps", "units", "emotions"))
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            path.unlink()
        return None


def _write_block(folder: Path, number: int, plan: EstimationPlan, seed: int) -> tuple[int, Block]:
    # One thread a worker; a caller that draws in its own process gets its threads back.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        drawn = estimated_maps(number, plan=plan, seed=seed)
    finally:
        cv2.setNumThreads(threads)
    # Eight bits, as the public maps have.
    maps = np.rint(255 * drawn.maps).astype(np.uint8)
    block: Block = {"maps": maps, "units": drawn.units, "emotions": drawn.emotions}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **block)
    with atomic_path(folder / f"{_name(number)}-{digest(content.getbuffer())}.npz") as temporary:
        temporary.write_bytes(content.getbuffer())
    return number, block


def _grey(image: Maps) -> Bytes:
    """Brightness of a picture (3, H, W) from 0 to 1."""
    pixels = np.rint(255 * np.moveaxis(image, 0, -1)).astype(np.uint8)
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)
