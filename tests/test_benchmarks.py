"""The benchmark measures what it says: the peer runs as it ships, and a missed promise is a failing exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("easyfsl", reason="the peer is installed for benchmarks only (pip install -e '.[bench]')")


@pytest.fixture(autouse=True)
def _found_from_anywhere(monkeypatch, repository):
    monkeypatch.syspath_prepend(str(repository))


def test_the_peers_sampler_draws_on_this_version_of_torch():
    from benchmarks.peers import PeerSampler, features
    from benchmarks.sets import cached_set

    embeddings, labels = cached_set(width=2)
    drawn = list(PeerSampler(features(embeddings, labels), 3, 5, 15, 4))
    assert [len(set(rows)) for rows in drawn] == [60] * 4


def test_the_peer_goes_through_its_own_evaluate_and_predicts_as_fsmer_does():
    from easyfsl.methods import PrototypicalNetworks

    from benchmarks.peers import PeerSampler, features, peer_evaluate, peer_predictions
    from benchmarks.sets import cached_set
    from fsmer import KShotSampler
    from fsmer.transfer import load_method

    embeddings, labels = cached_set(width=32)
    data = features(embeddings, labels)
    assert peer_evaluate(PrototypicalNetworks(), data, PeerSampler(data, 3, 5, 15, 7)) == 7
    batch = KShotSampler(way=3, shot=5, query=15).plan(labels).draw(0, 30)
    theirs = peer_predictions(PrototypicalNetworks(), data, batch.support, batch.query, way=3)
    solved = load_method("protonet").solve(embeddings, batch.support, batch.support_labels, batch.query, way=3)
    ours = torch.cat([logits.argmax(-1) for _, logits in solved])
    assert theirs.shape == (30, 45)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("kept", "code", "verdict"), [(True, 0, "all promises kept"), (False, 1, "missed: maps (30.0x of 1,000/s)")]
)
def test_a_missed_promise_is_named_and_fails(monkeypatch, capsys, kept, code, verdict):
    from benchmarks import __main__ as program
    from benchmarks.figures import Figure

    figure = Figure("maps", "900/s", "30/s", 30.0, "1,000/s", kept)
    monkeypatch.setattr(program.bench_generator, "run", lambda: [figure])
    monkeypatch.setattr(program.torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "generator"])
    assert program.main() == code
    printed = capsys.readouterr().out
    assert verdict in printed
    assert "30.0x" in printed


WORK = """
import time
from benchmarks.figures import peak_memory

def work():
    held = bytearray(64 << 20)
    held[::4096] = bytes(len(held) // 4096)  # touched, so that it is resident
    time.sleep(0.5)  # as long as a busy machine may keep the watcher waiting
    held.clear()

print(peak_memory(work))
"""


def test_memory_is_measured_while_the_work_runs(repository):
    # A process of its own: this one may have room left over from other tests.
    done = subprocess.run(
        [sys.executable, "-c", WORK], cwd=repository, capture_output=True, text=True, check=True, timeout=60
    )
    told = done.stdout.strip()
    assert told == "None" if not Path("/proc/self/statm").is_file() else 48 < float(told) < 100
