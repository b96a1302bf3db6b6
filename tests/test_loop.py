"""The loop that every training runs in: its hooks in order, stops and resumption, and batches made ahead."""

from __future__ import annotations

import ast
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import fsmer
from fsmer.training.loop import Step, Training, prefetched


class Counting(Training):
    """Three epochs of two steps that pull a weight towards random numbers."""

    schema = dict
    steps_an_epoch = 2

    def __init__(self):
        self.told = []
        layer = nn.Linear(1, 1, bias=False)
        nn.init.ones_(layer.weight)
        super().__init__({"layer": layer}, torch.optim.Adam(layer.parameters(), lr=0.1), epochs=3)

    def begin(self):
        self.told.append("begin")

    def steps(self):
        for epoch in range(self.epoch, self.epochs):
            for number in range(2):
                yield Step(number, rate=1 / (1 + epoch), seed=None if number else epoch, ends_epoch=number == 1)

    def loss(self, step):
        drawn = torch.rand(1, generator=self.draws.on(torch.device("cpu")))
        return (self.modules["layer"](torch.ones(1)) - drawn).square().sum(), {}

    def on_step(self, step, figures):
        self.told.append(f"step {step.inputs}")
        assert figures["loss"] >= 0

    def on_epoch(self):
        self.told.append(f"epoch {self.epoch}")

    def end(self):
        self.told.append("end")

    def state(self):
        return {"epoch": self.epoch}

    def take_state(self, state, folder):
        self.epoch = state["epoch"]

    def figures(self):
        return {"rate": self.optimizer.param_groups[0]["lr"]}

    @property
    def weight(self):
        return self.modules["layer"].weight.item()


def test_hooks_are_called_in_order_and_rates_follow_the_steps():
    training, steps, epochs = Counting(), [], []
    training.run(progress=lambda *at: steps.append(at), after_epoch=lambda *at: epochs.append(at))
    assert training.told == ["begin", *(w for n in (1, 2, 3) for w in ("step 0", "step 1", f"epoch {n}")), "end"]
    assert steps == [(number, 6) for number in range(1, 7)]
    assert epochs == [(1, {"rate": 0.1}), (2, {"rate": 0.05}), (3, {"rate": pytest.approx(0.1 / 3)})]


def test_a_training_that_stops_on_the_way_or_is_killed_ends_with_the_same_weights(tmp_path):
    whole, stopped, killed, resumed = (Counting() for _ in range(4))
    whole.run()
    for until in (1, 2, 9):
        stopped.run(until=until)
    assert stopped.weight == whole.weight

    def kill(done, _):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.run(folder=tmp_path, key="k", progress=kill)
    resumed.run(folder=tmp_path, key="k")
    assert resumed.told[:2] == ["begin", "step 0"]
    assert len(resumed.told) == 5, "the last epoch alone"
    assert resumed.weight == whole.weight


def test_the_next_item_is_made_in_another_thread_and_no_more_than_asked():
    made = []
    found = prefetched(lambda number: made.append((number, threading.get_ident())) or number, range(2, 6))
    assert list(found) == [2, 3, 4, 5]
    assert [number for number, _ in made] == [2, 3, 4, 5]
    assert threading.get_ident() not in {thread for _, thread in made}
    assert list(prefetched(int, range(0))) == []


def test_gradients_are_taken_in_the_loop_alone():
    """Of all code that trains networks, only the loop goes backward; heads on embeddings are no networks."""
    root = Path(fsmer.__file__).parent
    places = {
        path.relative_to(root).as_posix()
        for folder in ("backbones", "training", "pretraining", "transfer")
        for path in (root / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward"
    }
    assert places == {"training/loop.py"}
