"""Embeddings on disk: found again by content and weights, replaced where damaged, limited in size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fsmer
from fsmer.backbones import Backbone
from fsmer.data import ClipSet
from fsmer.episodic import load_protocol
from fsmer.errors import OutputError
from fsmer.evaluation import evaluate
from fsmer.evaluation.embedding_cache import cache_folder, clear_cache, embed_cached

from tiny_backbone import TinyBackbone  # isort: skip

from tiny_runs import RandomTiny  # isort: skip


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Clips that went through the network."""
    seen: list[int] = []
    forward = TinyBackbone.forward
    monkeypatch.setattr(TinyBackbone, "forward", lambda self, inputs: seen.append(len(inputs)) or forward(self, inputs))
    return seen


def test_no_clip_is_embedded_twice_whatever_the_protocol_and_method(
    backbone: Backbone, clips: ClipSet, counted: list[int], tmp_path: Path
) -> None:
    first = evaluate("loso", backbone, "protonet", clips=clips[:30], cache=tmp_path)
    assert sum(counted) == 30
    evaluate("loso", backbone, "logistic", clips=clips[:30], cache=tmp_path, seeds=3)
    evaluate(load_protocol("kshot", shot=2, episodes=5), backbone, "cosine", clips=clips[:30], cache=tmp_path)
    assert sum(counted) == 30
    # Names and order say nothing, content does.
    mixed = ClipSet.from_arrays(clips.media()[::-1].copy(), clips.labels[::-1], subjects=["1", "2", "3", "4"] * 12)
    found, _ = embed_cached(backbone, mixed, folder=tmp_path)
    assert sum(counted) == 48
    np.testing.assert_allclose(found.numpy(), fsmer.embed(backbone, mixed).numpy(), atol=1e-5)
    again = evaluate("loso", backbone, "protonet", clips=clips[:30], cache=tmp_path)
    assert again.to_dict() == first.to_dict()
    assert again.predictions.equals(first.predictions)


def test_other_weights_other_media_and_no_cache_are_embedded_anew(
    backbone: Backbone, clips: ClipSet, counted: list[int], tmp_path: Path
) -> None:
    embed_cached(backbone, clips, folder=tmp_path)
    torch.manual_seed(5)
    other = RandomTiny().eval()
    found, _ = embed_cached(other, clips, folder=tmp_path)
    assert sum(counted) == 96
    assert torch.equal(found, fsmer.embed(other, clips))
    counted.clear()
    maps = clips.media()
    maps[3] = maps[3, :, ::-1]
    changed = ClipSet.from_arrays(maps, clips.labels, ids=clips.ids)
    found, ids = embed_cached(backbone, changed, folder=tmp_path)
    assert sum(counted) == 1
    np.testing.assert_allclose(found.numpy(), fsmer.embed(backbone, changed).numpy(), atol=1e-5)
    assert len(np.unique(ids, axis=0)) == len(ids)
    counted.clear()
    evaluate("loso", backbone, "protonet", clips=clips, cache=False)
    assert sum(counted) == 48


def test_the_media_are_read_once_for_hash_and_network(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    read = ClipSet.read

    def counted(self: ClipSet, kind: str = "flow", indices: Any = None) -> Any:
        found = read(self, kind, indices)
        rows.append(len(found))
        return found

    monkeypatch.setattr(ClipSet, "read", counted)
    evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path / "out", cache=tmp_path / "cache")
    # The page reads them too.
    assert rows[0] == 48
    assert sum(rows) == 2 * 48


def test_damaged_and_foreign_files_in_the_cache_are_replaced(
    backbone: Backbone, clips: ClipSet, counted: list[int], tmp_path: Path
) -> None:
    expected, _ = embed_cached(backbone, clips, folder=tmp_path)
    (path,) = tmp_path.glob("*/*.npy")
    whole = path.read_bytes()
    # Every 997th byte another one: a header that is whole and embeddings that are finite.
    flipped = bytes(byte ^ (place % 997 == 996) for place, byte in enumerate(whole))
    for content in (whole[:-7], b"nothing of that kind", b"", flipped):
        path.write_bytes(content)
        counted.clear()
        found, _ = embed_cached(backbone, clips, folder=tmp_path)
        assert sum(counted) == 48
        assert torch.equal(found, expected)
        assert path.read_bytes() == whole
    os.remove(path)
    os.mkfifo(path)
    assert torch.equal(embed_cached(backbone, clips, folder=tmp_path)[0], expected)
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_two_processes_fill_one_cache(backbone: Backbone, clips: ClipSet, tmp_path: Path) -> None:
    clips.save(tmp_path / "clips")
    code = (
        "import sys, torch, fsmer\nfrom pathlib import Path\n"
        "from fsmer.evaluation.embedding_cache import embed_cached\n"
        "torch.manual_seed(0)\n"
        "backbone = fsmer.create_model('facs-flow', widths=[4, 4, 4, 4], branch_dim=4).eval()\n"
        "clips = fsmer.read_clips(sys.argv[1])\n"
        "for start in range(0, 48, 8):\n"
        "    embed_cached(backbone, clips[start : start + 12], folder=Path(sys.argv[2]))\n"
        "print(embed_cached(backbone, clips, folder=Path(sys.argv[2]))[0].double().sum().item())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "clips"), str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate(timeout=120)[0] for one in running]
    assert [one.returncode for one in running] == [0, 0]
    assert float(said[0]) == pytest.approx(float(said[1]), abs=1e-4)
    files = list((tmp_path / "cache").glob("*/*.npy"))
    assert files
    assert all(len(np.load(path)) for path in files)


def test_the_cache_has_a_size_a_place_and_an_end(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsmer.evaluation import embedding_cache as cache

    for start in range(0, 48, 12):
        embed_cached(backbone, clips[start : start + 12], folder=tmp_path)
    sizes = [path.stat().st_size for path in tmp_path.glob("*/*.npy")]
    assert len(sizes) == 4
    monkeypatch.setattr(cache, "LIMIT_BYTES", 2 * sizes[0] + 10)
    torch.manual_seed(9)
    embed_cached(RandomTiny().eval(), clips[:12], folder=tmp_path)
    monkeypatch.undo()
    assert len(list(tmp_path.glob("*/*.npy"))) == 2
    assert clear_cache(tmp_path) == 2 * sizes[0]
    assert clear_cache(tmp_path) == 0
    monkeypatch.setenv("FSMER_CACHE", str(tmp_path / "mine"))
    evaluate("loso", backbone, "protonet", clips=clips)
    assert list((tmp_path / "mine" / "embeddings").glob("*/*.npy"))
    monkeypatch.setenv("FSMER_CACHE", "off")
    assert cache_folder() is None
    evaluate("loso", backbone, "protonet", clips=clips)
    monkeypatch.delenv("FSMER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fsmer" / "embeddings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "fsmer" / "embeddings"


def test_a_finished_run_of_frozen_embeddings_is_seen_without_a_network(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, counted: list[int]
) -> None:
    first = evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path, cache=False)
    assert sum(counted) == 48
    again = evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path, cache=False)
    assert sum(counted) == 48
    assert again.to_dict() == first.to_dict()
    # The bootstrap draws by it, so it is another report.
    with pytest.raises(OutputError, match="another seed of episodes and bootstrap"):
        evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path, seed=3)
