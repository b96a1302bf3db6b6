"""Episodic training beside learn2learn: the same parameters, query losses and gradients after the same inner steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fsmer
from fsmer.interop import learn2learn as interop
from fsmer.meta import TaskBatch, load_algorithm
from fsmer.meta.algorithm import Learner, query_loss
from fsmer.training.inner_loop import HEAD

pytest.importorskip("learn2learn", reason="it is not installed (make learn2learn)")
from test_learn2learn import adapted_by_learn2learn, task_of

STEPS = 3
# Inner rates at which gradients of first and second order differ by some percent; embeddings differ in size.
NETWORKS = {"ststnet": ({}, 1e-6), "facs-flow": ({}, 1e-2), "fr": ({"branches": 5}, 1.0)}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["maml", "fomaml", "anil", "meta_sgd"])
def test_inner_steps_and_outer_gradients_are_those_of_learn2learn(name: str, network: str) -> None:
    arguments, rate = NETWORKS[network]
    torch.manual_seed(0)
    backbone = fsmer.load_model("facs-flow") if network == "facs-flow" else fsmer.create_model(network, **arguments)
    backbone.eval()
    task = task_of(backbone, fsmer.synthetic_clips("lab", 45, seed=3, specs=backbone.input_specs))
    (media, codes), (queries, asked) = task.support, task.query
    batch = TaskBatch(media[None], codes[None], queries[None], asked[None], 3)

    algorithm = load_algorithm(name, inner_steps=STEPS, inner_rate=rate, **_plain_statistics(name))
    begun = {key: nn.Parameter(value) for key, value in algorithm.begin(backbone, 3).items()}
    learner = Learner(backbone, nn.ParameterDict(begun))
    head = nn.Linear(backbone.embed_dim, 3)
    with torch.no_grad():
        head.weight.copy_(begun["weight"])
        head.bias.copy_(begun["bias"])

    ours = algorithm.answers(learner, batch, training=True)
    loss = query_loss(ours, batch.query_codes)
    theirs = adapted_by_learn2learn(
        name, features := interop.module(backbone), head, task.support, task.query, rate=rate, steps=STEPS
    )
    assert loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    if name != "anil":
        weights = algorithm.adapted(learner, batch, 0, training=True).weights
        for key, value in theirs.features.items():
            _assert_near(weights[key.removeprefix("backbone.")], value)
        for key, one in zip(("weight", "bias"), HEAD, strict=True):
            _assert_near(weights[one], theirs.head[key])

    algorithm.step(learner, batch)
    found = {key: value.grad.clone() for key, value in backbone.named_parameters() if value.grad is not None}
    first = [begun["weight"].grad.clone(), begun["bias"].grad.clone()]
    backbone.zero_grad()
    theirs.loss.backward()
    for key, value in features.named_parameters():
        if value.grad is not None:
            _assert_near(found[key.removeprefix("backbone.")], value.grad, rel=1e-4)
    _assert_near(first[0], head.weight.grad, rel=1e-4)
    _assert_near(first[1], head.bias.grad, rel=1e-4)


def _plain_statistics(name: str) -> dict[str, str]:
    return {} if name == "anil" else {"batch_norm": "inherited"}


def _assert_near(found: Tensor, wanted: Tensor, rel: float = 1e-5) -> None:
    """Equal to a part of the largest entry: single entries that nearly cancel keep no digits."""
    difference = float((found - wanted).abs().max())
    assert difference <= rel * float(wanted.abs().max()) + 1e-12, difference
