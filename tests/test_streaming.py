"""Embeddings are made batch by batch: neither the reads nor the memory grow with the number of clips."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from fsmer import ClipSet
from fsmer.backbones import create_model, embed
from fsmer.data.media import NpyStore

SMALL = {"stem": [[8, 2], [8, 2]], "stages": [[8, 1], [16, 2]], "heads": 2, "pool": 1}


@pytest.fixture
def bench(monkeypatch, repository):
    monkeypatch.syspath_prepend(str(repository))
    from benchmarks import streaming

    return streaming


def test_memory_for_embeddings_does_not_grow_with_the_clips(bench):
    few, many = bench.embedding_memory(100), bench.embedding_memory(600)
    if few is None or many is None:
        pytest.skip("no /proc to read the memory from")
    # The media of the 500 further clips alone would take 144 MiB.
    assert many < few + 40


def test_clips_are_read_a_bounded_number_at_a_time_and_each_once(bench, monkeypatch):
    read: list[np.ndarray] = []
    original = bench.DrawnStore.read

    def watched(self, rows):
        read.append(rows)
        return original(self, rows)

    monkeypatch.setattr(bench.DrawnStore, "read", watched)
    torch.manual_seed(0)
    model = create_model("mmnet", size=112, **SMALL)
    assert embed(model, bench.drawn_clips(model.input_specs, 130)).shape == (130, model.embed_dim)
    # Onset and apex of 112x112 weigh 294 KiB a clip, so a batch of 16 MiB holds 55.
    assert max(len(rows) for rows in read) <= 55
    assert sorted(np.concatenate(read).tolist()) == sorted([*range(130), *range(130)])


def test_mapped_files_give_the_embeddings_of_arrays_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = create_model("mmnet", size=32, **SMALL)
    arrays = {kind: rng.random((70, 3, 32, 32), dtype=np.float32) for kind in ("onset", "apex")}
    for kind, array in arrays.items():
        np.save(tmp_path / f"{kind}.npy", array)
    stores = {spec.kind: NpyStore(tmp_path / f"{spec.kind}.npy", spec) for spec in model.input_specs}
    clips = ClipSet.from_table(pd.DataFrame({"clip": [str(row) for row in range(70)]}), stores)
    torch.testing.assert_close(embed(model, clips, batch_size=16), embed(model, arrays), atol=1e-5, rtol=1e-5)
