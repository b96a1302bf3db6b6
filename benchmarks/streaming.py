"""The memory that embedding takes, whatever the number of clips."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks.figures import Figure, peak_memory
from fsmer import ClipSet
from fsmer.backbones import create_model, embed
from fsmer.data.spec import InputSpec

FEW, MANY = 200, 2000
SIZE = 112


def run() -> list[Figure]:
    """Memory for the embeddings of few and of many clips of onset and apex."""
    few, many = (embedding_memory(clips) for clips in (FEW, MANY))
    if few is None or many is None:
        return []
    name = f"memory, embeddings of {MANY:,} clips beside {FEW}"
    # Less than a tenth of what the media of the further clips would take.
    spare = (MANY - FEW) * 2 * 3 * SIZE**2 * 4 / (1 << 20) / 10
    kept = many <= few + spare
    return [Figure(name, f"{many:.0f} MiB", f"{few:.0f} MiB", few / many, f"+{spare:.0f} MiB", kept)]


class DrawnStore:
    """Random images, drawn when they are read: a set of any length that takes no memory itself."""

    def __init__(self, spec: InputSpec, clips: int) -> None:
        self._spec = spec
        self._clips = clips

    @property
    def spec(self) -> InputSpec:
        """What every row holds."""
        return self._spec

    def __len__(self) -> int:
        return self._clips

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Draw the asked rows."""
        # Another picture for each kind: an apex that is its onset shows no movement.
        rng = np.random.default_rng([int(rows[0]), *self._spec.kind.encode()])
        return rng.random((len(rows), *self._spec.shape), dtype=np.float32)


def drawn_clips(specs: tuple[InputSpec, ...], clips: int) -> ClipSet:
    """A set of such clips."""
    table = pd.DataFrame({"clip": [f"drawn-{number}" for number in range(clips)]})
    return ClipSet.from_table(table, {spec.kind: DrawnStore(spec, clips) for spec in specs})


def embedding_memory(clips: int) -> float | None:
    """MiB that a small MMNet needs at most to embed so many clips, in a process of its own; None where nobody tells."""
    # In this process, memory that earlier work gave back to the allocator would be taken again unseen.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (clips,))


def _measure(clips: int) -> float | None:
    torch.set_num_threads(1)
    model = create_model("mmnet", size=SIZE, stem=[[8, 2], [8, 2]], stages=[[8, 1], [16, 2]], heads=2, pool=1)
    # Libraries take memory of their own at the first call.
    embed(model, drawn_clips(model.input_specs, 2))
    found = drawn_clips(model.input_specs, clips)
    return peak_memory(lambda: embed(model, found))
