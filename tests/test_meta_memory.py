"""Tasks that have clips in common share their passes, and memory does not grow with the number of tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_backbone import TinyBackbone
from torch import nn

import fsmer
from fsmer.meta import ClipTasks
from fsmer.meta.algorithm import Learner
from fsmer.transfer import load_method

MIB = 1 << 20


@pytest.fixture(scope="module")
def clips():
    return fsmer.synthetic_clips("lab", 36, seed=1)


def peak(work):
    """Bytes of resident memory that `work` took at most beyond what was held before."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        reset.write_text("5")
    except OSError:
        pytest.skip("this system does not start its count of the largest memory anew")

    def told(name):
        return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith(name))

    held = told("VmRSS")
    work()
    return told("VmHWM") - held


def test_clips_in_common_pass_the_network_once_and_give_the_same(clips):
    protocol = fsmer.load_protocol("kshot", way=3, shot=2, query=3)
    backbone = TinyBackbone(8).eval()
    tasks = ClipTasks(protocol, clips, backbone).batch(0, 6)
    learner, passed = Learner(backbone, nn.ParameterDict()), []
    backbone.register_forward_hook(lambda module, inputs, output: passed.append(len(output)))
    found = torch.cat(learner.embed_both(tasks), dim=1)
    gradients = torch.autograd.grad(found.square().sum(), list(backbone.parameters()), allow_unused=True)
    backbone.train()
    wanted = torch.cat(learner.embed_both(tasks), dim=1)
    others = torch.autograd.grad(wanted.square().sum(), list(backbone.parameters()), allow_unused=True)
    assert passed == [len(torch.cat(tasks.rows, dim=1).unique()), found.shape[0] * found.shape[1]]
    assert passed[0] < passed[1]
    torch.testing.assert_close(found, wanted)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["alpha_tim", "laplacian_shot"])
def test_ten_times_the_episodes_take_no_more_memory(name):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(200, 64, generator=generator)
    labels = torch.arange(200).numpy() % 5
    plan = fsmer.KShotSampler(way=5, shot=5, query=10).plan(labels)
    method = load_method(name, steps=2)

    def solve(episodes):
        batch = plan.draw(0, episodes)
        for _ in method.solve(embeddings, batch.support, batch.support_labels, batch.query, way=5):
            pass

    solve(300)
    few, many = peak(lambda: solve(300)), peak(lambda: solve(3000))
    # The numbers of the episodes' clips are given, 8 bytes each; all their answers would take 3 MiB more, all their
    # embeddings 58 MiB.
    assert many - few < 16 * MIB


def test_ten_times_the_training_tasks_take_no_more_memory(clips):
    protocol = fsmer.load_protocol("kshot", way=3, shot=2, query=3)

    def train(steps):
        fsmer.meta_train(TinyBackbone(8), protocol, clips=clips, steps=steps, learning_rate=1e-3)

    train(5)
    few, many = peak(lambda: train(10)), peak(lambda: train(100))
    # Media of 90 more steps would take 48 MiB and more.
    assert many - few < 16 * MIB
