"""Episodic training beside learn2learn: the same parameters, query losses and gradients after the same inner steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fsmer
from fsmer.interop import learn2learn as interop
from fsmer.meta import ClipTasks, TaskBatch, load_algorithm
from fsmer.meta.algorithm import Learner, query_loss
from fsmer.meta.training import MetaTraining, Settings
from fsmer.training.inner_loop import HEAD

pytest.importorskip("learn2learn", reason="it is not installed (make learn2learn)")
from small_models import small_model
from test_learn2learn import adapted_by_learn2learn, l2l, task_of

STEPS = 3
# Long enough that the step is not lost in the rounding of the weights.
OUTER = 10.0
# Of the inner steps in it. At 1.0 a rounding of compiled layers moves an activation across zero.
RATE = 0.3
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


@pytest.mark.parametrize("name", ["maml", "fomaml", "meta_sgd", "anil"])
def test_an_outer_step_of_gradient_descent_leads_to_the_parameters_of_learn2learn(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = small_model("fr")
    drawn = fsmer.load_protocol("kshot", way=3, shot=2, query=2)
    tasks = ClipTasks(drawn, fsmer.synthetic_clips("lab", 45, seed=3, specs=backbone.input_specs), backbone)
    features = interop.module(backbone)
    algorithm = load_algorithm(name, inner_steps=STEPS, inner_rate=RATE, **_plain_statistics(name))
    monkeypatch.setattr(type(algorithm), "optimizer", "sgd")
    begun = {key: nn.Parameter(value) for key, value in algorithm.begin(backbone, 3).items()}
    head = nn.Linear(backbone.embed_dim, 3)
    with torch.no_grad():
        head.weight.copy_(begun["weight"])
        head.bias.copy_(begun["bias"])

    # Theirs: the loop of its examples, two tasks a step.
    whole = nn.Sequential(features, head)
    kind = l2l.algorithms.MetaSGD if name == "meta_sgd" else l2l.algorithms.MAML
    first_order = {"first_order": True} if name == "fomaml" else {}
    meta = kind(head if name == "anil" else whole, lr=RATE, **first_order)
    optimizer = torch.optim.SGD([*meta.parameters(), *(features.parameters() if name == "anil" else ())], lr=OUTER)
    batch = tasks.batch(0, 2)
    for number in range(2):
        one = batch.task(number).mapped(lambda value: value[0])
        learner = meta.clone()
        network = nn.Sequential(features, learner) if name == "anil" else learner
        for _ in range(STEPS):
            learner.adapt(F.cross_entropy(network(one.support), one.support_codes))
        (F.cross_entropy(network(one.query), one.query_codes) / 2).backward()
    before = {key: value.detach().clone() for key, value in backbone.named_parameters()}
    first = [value.detach().clone() for value in (head.weight, head.bias)]
    optimizer.step()

    settings = Settings(
        steps=1, batch=2, learning_rate=OUTER, batch_norm="inherited", validate_every=1, validation_tasks=1,
        patience=None, seed=0, clip_gradient=None,
    )  # fmt: skip
    learned = nn.ParameterDict(begun)
    MetaTraining(Learner(backbone, learned), algorithm, tasks, None, settings).run()
    found = dict(backbone.named_parameters())
    pairs = [(learned["weight"], head.weight), (learned["bias"], head.bias)]
    pairs += [(found[key.removeprefix("backbone.")], value) for key, value in features.named_parameters()]
    ours, theirs = (torch.cat([one.flatten() for one in side]) for side in zip(*pairs, strict=True))
    _assert_near(ours, theirs)
    # The steps themselves, which are small beside the weights.
    start = [before[key.removeprefix("backbone.")].flatten() for key, _ in features.named_parameters()]
    start = torch.cat([*(value.flatten() for value in first), *start])
    _assert_near(ours - start, theirs - start, rel=1e-3)
    if name == "meta_sgd":
        rates = dict(zip([key for key, _ in whole.named_parameters()], meta.lrs, strict=True))
        for key, wanted in rates.items():
            own = key.replace("1.", "head.", 1) if key.startswith("1.") else key.removeprefix("0.backbone.")
            _assert_near(learned[f"rate/{own}".replace(".", "/")], wanted)


def _plain_statistics(name: str) -> dict[str, str]:
    return {} if name == "anil" else {"batch_norm": "inherited"}


def _assert_near(found: Tensor, wanted: Tensor, rel: float = 1e-5) -> None:
    """Equal to a part of the largest entry: single entries that nearly cancel keep no digits."""
    difference = float((found - wanted).detach().abs().max())
    assert difference <= rel * float(wanted.detach().abs().max()) + 1e-12, difference
