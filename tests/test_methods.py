"""Every method keeps the contract, and each computes what its paper or reference implementation does."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny_backbone import TinyBackbone
from torch import nn
from torch.nn import functional as F

from fsmer.backbones import ClassDirections, create_model, embed, load_model
from fsmer.errors import FsmerError, SupportError, UnknownNameError
from fsmer.synthetic import synthetic_clips
from fsmer.testing import parametrize_with_checks
from fsmer.training import frozen_layers as lower
from fsmer.training.fine_tuning import _is_projection
from fsmer.transfer import MethodError, SourceModel, list_methods, load_method

NAMES = [info.name for info in list_methods()]
# What easyfsl 1.5.0's Finetune computes, in this library's parameters.
PLAIN = {"init": "prototype", "pull": 0.0, "centre": False, "balanced": False}


def blobs(episodes=6, way=3, shot=5, queries=7, width=24, spread=0.6, seed=0):
    """Embeddings of separate classes: support (E, S, D), codes (E, S), queries (E, Q, D), their codes (E, Q)."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(way, width, generator=generator)
    codes = torch.arange(way).repeat_interleave(shot).expand(episodes, -1).clone()
    asked = torch.arange(way).repeat_interleave(queries).expand(episodes, -1).clone()
    support = means[codes] + spread * torch.randn(*codes.shape, width, generator=generator)
    query = means[asked] + spread * torch.randn(*asked.shape, width, generator=generator)
    return support, codes, query, asked


def directions(way=3, width=24, seed=1, scale=6.0, known=None):
    generator = torch.Generator().manual_seed(seed)
    return ClassDirections(
        weight=torch.randn(way, width, generator=generator),
        bias=torch.randn(way, generator=generator),
        known=torch.ones(way, dtype=torch.bool) if known is None else torch.tensor(known),
        scale=scale,
        centre=0.2 * torch.randn(width, generator=generator),
    )


def whole_set(clips=90, way=3, width=24, seed=3):
    """Embeddings (N, D) of a data set, and the class of each row."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(clips) % way
    means = torch.randn(way, width, generator=generator)
    return means[labels] + torch.randn(clips, width, generator=generator), labels.numpy()


def episodes_of(labels, episodes=9, shot=4, queries=5, way=3, seed=0):
    """Support rows, codes, query rows and classes of episodes over `way` of the classes."""
    rng = np.random.default_rng(seed)
    classes = np.sort(np.stack([rng.permutation(labels.max() + 1)[:way] for _ in range(episodes)]), axis=1)
    support, query = [], []
    for row in classes:
        drawn = [rng.permutation(np.flatnonzero(labels == name))[: shot + queries] for name in row]
        support.append(np.concatenate([part[:shot] for part in drawn]))
        query.append(np.concatenate([part[shot:] for part in drawn]))
    codes = np.broadcast_to(np.repeat(np.arange(way), shot), (episodes, way * shot))
    return np.array(support), codes, np.array(query), classes


# -- the contract, over the registry ------------------------------------------------------------------------------


OWN = [load_method(name, **({"epochs": 2} if name == "train" else {})) for name in NAMES]


@parametrize_with_checks("method", [*OWN, "sklearn:sklearn.neighbors.KNeighborsClassifier"])
def test_a_method_keeps_the_contract(check):
    check()


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_one_chunk_stay_small_however_many_clips_are_asked(name):
    method = load_method(name)
    if method.transductive:  # each query is compared with all others, so fewer are asked
        method = method.set_params(steps=2)
    clips = 4_000 if method.transductive else 150_000
    embeddings = torch.randn(clips, 8, generator=torch.Generator().manual_seed(0))
    support = np.arange(40 * 6).reshape(40, 6)
    codes = np.broadcast_to(np.repeat(np.arange(3), 2), (40, 6))
    prior = directions(width=8)
    seen = 0
    for part, logits in method.solve(embeddings, support, codes, way=3, prior=prior):
        assert logits.shape == (part.stop - part.start, clips, 3)
        assert logits.numel() * logits.element_size() <= 64 << 20
        seen += part.stop - part.start
        if seen > 20:
            break


def test_parameters_come_as_text_from_a_command_line():
    method = load_method("cosine", steps="50", pull="0.5", centre="false", scale="none", init="prototype")
    assert (method.steps, method.pull, method.centre, method.scale, method.init) == (50, 0.5, False, None, "prototype")
    assert load_method("protonet_cosine").distance == "cosine"


@pytest.mark.parametrize(
    ("name", "params", "error", "message"),
    [
        ("cosin", {}, UnknownNameError, "did you mean 'cosine'"),
        (
            "cosine",
            {"step": 5},
            UnknownNameError,
            "parameter 'step' of the method 'cosine': did you mean 'steps'",
        ),
        ("cosine", {"steps": "many"}, MethodError, "steps='many' .* expected a whole number"),
        ("cosine", {"steps": 1.5}, MethodError, "expected a whole number"),
        ("cosine", {"steps": 10**7}, MethodError, "steps=10000000 .* 0 to 100000"),
        ("cosine", {"scale": 1e40}, MethodError, "scale=1e.40 .* 0 to 100000"),
        ("cosine", {"steps": -1}, MethodError, "steps=-1 .* 0 to 100000"),
        ("cosine", {"init": "best"}, MethodError, "'auto', 'zero_shot', 'prototype', 'random'"),
        ("cosine", {"scale": 0}, MethodError, "scale=0.0 is not positive"),
        ("cosine", {"pull": "nan"}, MethodError, "expected a finite number"),
        ("cosine", {"centre": 3}, MethodError, "expected true or false"),
        ("protonet", {"distance": "manhattan"}, MethodError, "'euclidean', 'cosine'"),
        ("logistic", {"C": 0}, MethodError, "C=0.0 is not positive"),
        ("finetune", {"learning_rate": -0.1}, MethodError, "learning_rate=-0.1 .* 0 to 100000"),
        ("ridge", {"penalty": 0}, MethodError, "penalty=0.0 .* above 0"),
        ("ridge", {"penalty": -1}, MethodError, "penalty=-1.0 .* above 0"),
        ("simpleshot", {"scale": 0}, MethodError, "scale=0.0 is not positive"),
        ("alpha_tim", {"alpha": 0}, MethodError, "alpha=0.0 is not positive"),
        ("alpha_tim", {"distance": "manhattan"}, MethodError, "'euclidean', 'cosine'"),
        ("laplacian_shot", {"neighbours": 1}, MethodError, "neighbours=1 .* at least 2"),
        ("laplacian_shot", {"regularization": -1}, MethodError, "regularization=-1.0 .* 0 to 100000"),
    ],
)
def test_a_wrong_name_or_value_is_refused_by_name(name, params, error, message):
    with pytest.raises(error, match=message) as caught:
        load_method(name, **params)
    assert isinstance(caught.value, FsmerError)


# -- ProtoNet, MERAU eq. 9-10 -------------------------------------------------------------------------------------


def test_protonet_scores_are_minus_squared_distances_to_class_means():
    support = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [5.0, 5.0], [5.0, 7.0]]])
    head = load_method("protonet").fit_head(support, torch.tensor([[0, 0, 1, 1]]), 2)
    # Prototypes (1, 0) and (5, 6): worked by hand.
    assert head.logits(torch.tensor([[1.0, 2.0], [5.0, 6.0]]))[0].tolist() == [[-4.0, -32.0], [-52.0, 0.0]]


@given(st.integers(1, 6), st.integers(2, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_protonet_equals_explicit_distances(episodes, way, shot, seed):
    support, codes, query, _ = blobs(episodes, way, shot, seed=seed)
    found = load_method("protonet").fit_head(support, codes, way).logits(query)
    prototypes = support.view(episodes, way, shot, -1).mean(dim=2)
    torch.testing.assert_close(found, -(torch.cdist(query, prototypes) ** 2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_the_table_of_inner_products_gives_the_distances_wherever_the_origin_is(offset):
    embeddings, labels = whole_set()
    support, codes, query, _ = episodes_of(labels, episodes=40)
    # Shuffled within the support: the table must not rely on class order.
    order = np.random.default_rng(0).permuted(np.broadcast_to(np.arange(12), (40, 12)), axis=1)
    support, codes = np.take_along_axis(support, order, axis=1), np.take_along_axis(codes, order, axis=1)
    found = torch.cat(
        [logits for _, logits in load_method("protonet").solve(embeddings + offset, support, codes, query, way=3)]
    )
    for episode in range(40):
        points = embeddings[support[episode]].double()
        prototypes = torch.stack([points[torch.tensor(codes[episode]) == code].mean(dim=0) for code in range(3)])
        expected = -(torch.cdist(embeddings[query[episode]].double(), prototypes) ** 2)
        torch.testing.assert_close(found[episode].double(), expected, rtol=1e-3, atol=5e-3)


def test_protonet_predicts_what_easyfsl_predicts():
    easyfsl = pytest.importorskip("easyfsl.methods", reason="easyfsl is installed for benchmarks only")
    embeddings, labels = whole_set(clips=120, width=64)
    support, codes, query, _ = episodes_of(labels, episodes=200, shot=5, queries=15)
    found = torch.cat(
        [logits.argmax(-1) for _, logits in load_method("protonet").solve(embeddings, support, codes, query, way=3)]
    )
    peer = easyfsl.PrototypicalNetworks()
    for episode in range(200):
        peer.process_support_set(embeddings[support[episode]], torch.tensor(codes[episode]))
        assert torch.equal(found[episode], peer(embeddings[query[episode]]).argmax(-1))


# -- fine-tuning with a linear head, MERAU eq. 5 and 8 ------------------------------------------------------------


def test_linear_fine_tuning_equals_torch_autograd_and_adam():
    support, codes, query, _ = blobs()
    method = load_method("finetune", steps=60)
    found = method.fit_head(support, codes, 3)
    start = load_method("finetune", steps=0).fit_head(support, codes, 3).weight[0]
    for episode in range(6):
        layer = nn.Linear(24, 3, bias=False)
        layer.weight.data = start.clone()
        optimizer = torch.optim.Adam(layer.parameters(), lr=2e-3)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(layer(support[episode]), codes[episode]).backward()
            optimizer.step()
        torch.testing.assert_close(found.weight[episode], layer.weight.detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.logits(query)[episode], layer(query[episode]).detach(), rtol=1e-3, atol=1e-3)


def test_learning_rates_are_those_of_merau_table_2():
    for name in ("finetune", "cosine"):
        method = load_method(name)
        assert (method.encoder_rate, method.projection_rate, method.learning_rate) == (1e-5, 1e-3, 2e-3)
        rates = (method.source_encoder_rate, method.source_projection_rate, method.source_learning_rate)
        assert rates == (1e-5, 1.2e-3, 1.2e-3)


def test_unequal_classes_weigh_alike_in_the_loss_if_asked():
    support, codes, query, _ = blobs(episodes=2, way=2, spread=2.0)
    # Class 0 five times over: balanced weights must undo it, plain ones must not.
    repeated = torch.cat([support, *[support[:, :5]] * 4], dim=1)
    marked = torch.cat([codes, *[codes[:, :5]] * 4], dim=1)
    for balanced in (True, False):
        method = load_method("finetune", balanced=balanced)
        same = torch.allclose(
            method.fit_head(repeated, marked, 2).logits(query),
            method.fit_head(support, codes, 2).logits(query),
            atol=1e-3,
        )
        assert same == balanced


# -- fine-tuning with a cosine head, MERAU eq. 6-8 ----------------------------------------------------------------


def reference_cosine(weight, bias, support, codes, *, scale, centre, pull, steps, rate, train_bias=False):
    """One episode by autograd and torch.optim.Adam, written as the paper's formulas read."""
    weight, bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone(), requires_grad=train_bias)
    start = F.normalize(weight.detach(), dim=-1)
    optimizer = torch.optim.Adam([weight, bias] if train_bias else [weight], lr=rate)

    def logits(points):
        return scale * F.normalize(points - centre, dim=-1) @ F.normalize(weight, dim=-1).T + bias

    for _ in range(steps):
        optimizer.zero_grad()
        moved = (1 - (F.normalize(weight, dim=-1) * start).sum(dim=-1)).sum()
        (F.cross_entropy(logits(support), codes) + pull * moved).backward()
        optimizer.step()
    return lambda points: logits(points).detach()


def expected_skill(right, wrong):
    """Posterior mean, by quadrature, of a skill s in telling three classes apart: 0 with probability 1/4 beforehand,
    else of density 4 s^3; an answer is right with probability 1/3 + 2/3 s."""

    def likelihood(skill):
        return (1 / 3 + 2 / 3 * skill) ** right * (2 / 3 - 2 / 3 * skill) ** wrong

    evidence = integrate.quad(lambda skill: 4 * skill**3 * likelihood(skill), 0, 1)[0]
    mean = integrate.quad(lambda skill: 4 * skill**4 * likelihood(skill), 0, 1)[0]
    return 0.75 * mean / (0.25 * likelihood(0) + 0.75 * evidence)


def worth_of(prior, support, codes, shots=45.0):
    """Labelled clips that the known directions of three classes are worth, (E,)."""
    right = (prior.logits(support).argmax(-1) == codes).sum(-1).tolist()
    return shots * torch.tensor([expected_skill(count, codes.shape[1] - count) for count in right])


@pytest.mark.parametrize("train_bias", [False, True])
@pytest.mark.parametrize("pull", [0.0, 0.7])
@pytest.mark.parametrize("init", ["zero_shot", "prototype", "auto"])
def test_the_written_gradient_equals_autograd(init, pull, train_bias):
    support, codes, query, _ = blobs(spread=1.5)
    prior = directions()
    params = {"init": init, "pull": pull, "train_bias": train_bias}
    start = load_method("cosine", **params).start(support[0], codes[0], 3, prior)
    # A known class is held the more, the fewer its clips are than its direction is worth.
    worth = worth_of(prior, support, codes) if init == "auto" else torch.zeros(6)
    held = pull * (worth / (codes.shape[1] // 3)).clamp_min(1)
    assert init != "auto" or not pull or held.unique().numel() > 1
    found = load_method("cosine", steps=80, **params).fit_head(support, codes, 3, prior).logits(query)
    for episode in range(6):
        if init != "zero_shot":
            start = load_method("cosine", **params).start(support[episode], codes[episode], 3, prior)
        answer = reference_cosine(
            start.weight.detach(), start.bias.detach(), support[episode], codes[episode],
            scale=prior.scale, centre=prior.centre, pull=float(held[episode]), steps=80, rate=2e-3,
            train_bias=train_bias,
        )  # fmt: skip
        torch.testing.assert_close(found[episode], answer(query[episode]), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("rate", "temperature"), [(1e-4, 1.0), (1e-3, 10.0), (1e-2, 5.0)])
def test_the_plain_cosine_head_predicts_what_easyfsl_finetune_predicts(rate, temperature):
    easyfsl = pytest.importorskip("easyfsl.methods", reason="easyfsl is installed for benchmarks only")
    embeddings, labels = whole_set(clips=120, width=64)
    support, codes, query, _ = episodes_of(labels, episodes=10, shot=5, queries=15)
    method = load_method("cosine", **PLAIN, scale=temperature, learning_rate=rate)
    found = torch.cat([logits.argmax(-1) for _, logits in method.solve(embeddings, support, codes, query, way=3)])
    for episode in range(10):
        peer = easyfsl.Finetune(fine_tuning_lr=rate, temperature=temperature)
        peer.process_support_set(embeddings[support[episode]], torch.tensor(codes[episode]))
        assert torch.equal(found[episode], peer(embeddings[query[episode]]).argmax(-1))


def test_without_labels_the_cosine_method_is_the_prior():
    _, _, query, _ = blobs()
    prior = directions(known=[True, False, True])
    empty = torch.zeros(6, 0, 24), torch.zeros(6, 0, dtype=torch.long)
    for name in ("cosine", "zero_shot"):
        found = load_method(name).fit_head(*empty, 3, prior).logits(query)
        torch.testing.assert_close(found, prior.logits(query), rtol=1e-4, atol=1e-4)


def test_a_strong_pull_keeps_the_zero_shot_answer_and_none_lets_labels_win():
    support, codes, query, asked = blobs(spread=0.3)
    prior = directions(seed=9)
    zero_shot = prior.logits(query).argmax(-1)
    assert (zero_shot == asked).float().mean() < 0.8
    held = load_method("cosine", init="zero_shot", pull=1e4).fit_head(support, codes, 3, prior).logits(query).argmax(-1)
    free = load_method("cosine", init="zero_shot", pull=0, learning_rate=2e-2).fit_head(support, codes, 3, prior)
    assert (held == zero_shot).float().mean() > 0.98
    assert (free.logits(query).argmax(-1) == asked).float().mean() > 0.9


def test_labels_add_their_linear_discriminant_to_the_zero_shot_answer_where_the_scatter_is_known():
    support, codes, query, _ = blobs(episodes=2)
    precision = torch.eye(24) + 0.5 * torch.ones(24, 24)
    prior = replace(directions(), precision=precision)
    found = load_method("cosine", prior_shots=20).fit_head(support, codes, 3, prior).logits(query)
    for episode in range(2):
        units = F.normalize(support[episode] - prior.centre, dim=-1)
        means = torch.stack([units[codes[episode] == code].mean(dim=0) for code in range(3)])
        asked = F.normalize(query[episode] - prior.centre, dim=-1)

        def squared(to: torch.Tensor, asked: torch.Tensor = asked) -> torch.Tensor:
            return torch.einsum("qd,de,qe->q", asked - to, precision, asked - to)

        gains = [(squared(means.mean(dim=0)) - squared(mean)) / 2 for mean in means]
        expected = prior.logits(query[episode]) + 5 / (5 + 20) * torch.stack(gains, dim=-1)
        torch.testing.assert_close(found[episode], expected, rtol=1e-4, atol=1e-4)


def test_a_class_without_clips_keeps_its_zero_shot_logit_beside_learnt_ones():
    support, codes, query, _ = blobs(episodes=1)
    prior = replace(directions(), precision=torch.eye(24))
    some = codes[0] != 2
    found = load_method("cosine").fit_head(support[:, some], codes[:, some], 3, prior).logits(query)
    torch.testing.assert_close(found[0, :, 2], prior.logits(query)[0, :, 2])
    assert not torch.allclose(found[0, :, 0], prior.logits(query)[0, :, 0], atol=1e-3)


@pytest.mark.parametrize("shot", [1, 5, 20])
def test_noisy_clips_do_not_unlearn_directions_that_are_known(shot):
    support, codes, query, asked = blobs(episodes=300, shot=shot, queries=10, spread=2.5)
    known = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    known = known + 0.3 * torch.randn(3, 24, generator=torch.Generator().manual_seed(5))
    prior = ClassDirections(known - known.mean(0), torch.zeros(3), torch.ones(3, dtype=torch.bool), 6.0, known.mean(0))

    def right(logits):
        return float((logits.argmax(-1) == asked).float().mean())

    corrected = load_method("cosine").fit_head(support, codes, 3, prior)
    assert 0.8 < right(prior.logits(query)) < right(corrected.logits(query)) + 0.002


@pytest.mark.parametrize("shot", [5, 10])
def test_directions_that_only_guess_do_not_stand_in_the_way_of_the_clips(shot):
    support, codes, query, asked = blobs(episodes=300, shot=shot, queries=10, spread=2.5)
    wrong = directions(seed=7)

    def right(head):
        return float((head.logits(query).argmax(-1) == asked).float().mean())

    with_words = load_method("cosine").fit_head(support, codes, 3, wrong)
    without = load_method("cosine").fit_head(support, codes, 3)
    assert float((wrong.logits(query).argmax(-1) == asked).float().mean()) < 0.5
    assert right(with_words) > right(without) - 0.05


@pytest.mark.parametrize("confirmed", [True, False])
def test_known_directions_count_as_prior_shots_as_far_as_the_clips_confirm_them(confirmed):
    support, codes, _, _ = blobs(episodes=1)
    prior = directions()
    if confirmed:
        prior = replace(prior, weight=torch.stack([support[0][codes[0] == code].mean(dim=0) for code in range(3)]))
        prior = replace(prior, weight=prior.weight - prior.centre, bias=torch.zeros(3))
    worth = worth_of(prior, support, codes, shots=4.0)[0]
    assert (worth > 3.5) == confirmed
    weight = load_method("cosine", steps=0, prior_shots=4).fit_head(support, codes, 3, prior).weight[0] / prior.scale
    units = F.normalize(support[0] - prior.centre, dim=-1)
    for code in range(3):
        clips = units[codes[0] == code].sum(dim=0)
        expected = F.normalize(worth * F.normalize(prior.weight[code], dim=-1) + clips, dim=-1)
        torch.testing.assert_close(weight[code], expected)


def test_an_unknown_class_starts_from_its_clips():
    support, codes, _, _ = blobs(episodes=1)
    prior = directions(known=[True, False, True])
    weight = load_method("cosine", steps=0).fit_head(support, codes, 3, prior).weight[0] / prior.scale
    units = F.normalize(support[0] - prior.centre, dim=-1)
    torch.testing.assert_close(weight[1], F.normalize(units[codes[0] == 1].mean(dim=0), dim=-1))


@pytest.mark.parametrize("known", [(True, False, False), (True, True, False)])
def test_what_words_are_worth_does_not_hang_on_the_order_of_classes(known):
    support, codes, query, _ = blobs(episodes=20, spread=2.0)
    prior = directions(known=list(known))
    found = load_method("cosine").fit_head(support, codes, 3, prior).logits(query)
    order = torch.tensor([2, 0, 1])
    turned = replace(prior, weight=prior.weight[order], bias=prior.bias[order], known=prior.known[order])
    place = torch.argsort(order)
    other = load_method("cosine").fit_head(support, place[codes], 3, turned).logits(query)
    torch.testing.assert_close(other, found[..., order], rtol=1e-3, atol=1e-3)


def test_a_class_that_neither_support_nor_prior_know_gets_no_probability():
    support, codes, query, _ = blobs(way=2)
    prior = directions(known=[True, False, False])
    probabilities = load_method("cosine").fit_head(support, codes, 3, prior).logits(query).softmax(-1)
    assert (probabilities[..., 2] == 0).all()
    assert (probabilities[..., :2] > 0).all()


def test_a_known_class_without_support_keeps_its_direction():
    support, codes, query, _ = blobs(way=2)
    prior = directions()
    weight = load_method("cosine", steps=0).fit_head(support, codes, 3, prior).weight[0, 2]
    torch.testing.assert_close(weight, prior.scale * F.normalize(prior.weight[2], dim=-1))
    assert (load_method("cosine").fit_head(support, codes, 3, prior).logits(query).softmax(-1)[..., 2] > 0).all()


def test_episodes_of_which_nothing_is_known_are_fitted_as_without_a_prior():
    support, codes, query, _ = blobs(episodes=3, way=2)
    weight, bias = torch.randn(3, 2, 24, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 2)
    known = torch.tensor([[True, True], [False, False], [True, False]])
    shared = directions(way=2)
    mixed = ClassDirections(weight, bias, known, shared.scale, shared.centre)
    method = load_method("cosine")
    found = method.fit_head(support, codes, 2, mixed).logits(query)
    for episode in range(3):
        own = ClassDirections(weight[episode], bias[episode], known[episode], shared.scale, shared.centre)
        alone = method.fit_head(
            support[episode : episode + 1], codes[episode : episode + 1], 2, own if known[episode].any() else None
        )
        torch.testing.assert_close(found[episode], alone.logits(query[episode : episode + 1])[0], rtol=1e-4, atol=1e-4)


def test_starting_from_zero_shot_needs_a_model_that_knows_a_class():
    support, codes, _, _ = blobs()
    with pytest.raises(SupportError, match="init='zero_shot'"):
        load_method("cosine", init="zero_shot").fit_head(support, codes, 3)


# -- zero-shot and logistic ---------------------------------------------------------------------------------------


def test_zero_shot_does_not_read_the_support_and_refuses_unknown_classes():
    support, codes, query, _ = blobs()
    prior = directions()
    method = load_method("zero_shot")
    torch.testing.assert_close(method.fit_head(support, codes, 3, prior).logits(query), prior.logits(query))
    with pytest.raises(SupportError, match="knows none of them"):
        method.fit_head(support, codes, 3)


@pytest.mark.parametrize("way", [2, 3])
def test_logistic_equals_scikit_learn_on_standardised_embeddings(way):
    support, codes, query, _ = blobs(episodes=2, way=way, spread=1.5)
    found = load_method("logistic", C=0.3).fit_head(support, codes, way).logits(query).softmax(-1)
    for episode in range(2):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, class_weight="balanced", max_iter=1000))
        model.fit(support[episode].numpy(), codes[episode].numpy())
        np.testing.assert_allclose(found[episode].numpy(), model.predict_proba(query[episode].numpy()), atol=1e-3)


def test_logistic_with_one_class_present_answers_that_class():
    support, codes, query, _ = blobs(episodes=1, way=2)
    probabilities = load_method("logistic").fit_head(support, torch.ones_like(codes), 3).logits(query).softmax(-1)
    assert (probabilities[..., 1] == 1).all()


# -- training the backbone too, and learning a source first -------------------------------------------------------


@pytest.fixture(scope="module")
def clips():
    return synthetic_clips("lab", 60, seed=2)


@pytest.mark.parametrize("name", ["finetune", "cosine"])
def test_training_the_backbone_moves_a_copy_by_the_rates_of_its_layers(name, clips):
    backbone = TinyBackbone(knows=("negative", "positive"))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    method = load_method(name, train_backbone=True, steps=1)
    assert not method.keeps_backbone
    recognizer = method.fit(backbone, clips[:30])
    after = recognizer.backbone.state_dict()
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key])
    # Adam's first step moves every weight that has a gradient by the learning rate: 1e-5 and 1e-3 (MERAU Table 2).
    assert (after["encoder.weight"] - before["encoder.weight"]).abs().max().item() == pytest.approx(1e-5, rel=0.1)
    assert (after["projection.weight"] - before["projection.weight"]).abs().max().item() == pytest.approx(1e-3, rel=0.1)
    longer = load_method(name, train_backbone=True, steps=300).fit(backbone, clips[:30])
    assert longer.score(clips[:30]) > recognizer.score(clips[:30])


def test_lower_layers_computed_once_or_every_step_or_by_hand_teach_the_same(clips, monkeypatch):
    torch.manual_seed(0)
    backbone = create_model("facs-flow", widths=[4, 4, 8, 8], branch_dim=6, pools=[1, 2]).eval()
    # Two steps, a movement of 2e-3: over more of them Adam makes rounding of slopes near zero as large as the slopes.
    method = load_method("cosine", train_backbone=True, steps=2, batch_size=16, encoder_rate=1e-3)
    once = method.fit(backbone, clips[:40])
    monkeypatch.setattr("fsmer.training.frozen_layers.KEPT_BYTES", 0)
    each = method.fit(backbone, clips[:40])
    # The same by hand: every layer below the last stage frozen, media read anew in each step.
    frozen = copy.deepcopy(backbone)
    for layer in frozen.lower_layers():
        layer.requires_grad_(False)
    by_hand = method.set_params(layers="all").fit(frozen, clips[:40])
    for other in (each, by_hand):
        for name, value in once.backbone.state_dict().items():
            torch.testing.assert_close(other.backbone.state_dict()[name], value, rtol=1e-4, atol=3e-5, msg=name)
        np.testing.assert_allclose(other.predict_proba(clips), once.predict_proba(clips), atol=1e-5)
    all_layers = method.set_params(layers="all").fit(backbone, clips[:40]).backbone.branches[0].stages[0][0][0].weight
    assert not torch.equal(all_layers, backbone.branches[0].stages[0][0][0].weight)


def test_lower_features_of_a_fold_do_not_hang_on_the_folds_before_it(clips, monkeypatch):
    torch.manual_seed(0)
    backbone = create_model("facs-flow", widths=[4, 4, 8, 8], branch_dim=6, pools=[1, 2]).eval()
    method = load_method("finetune", train_backbone=True, steps=4, batch_size=16)

    def weights(support):
        return method.fit(backbone, support).backbone.state_dict()

    alone = weights(clips[:40])
    # Other layers were there before, other clips, most of these, all of these.
    other = copy.deepcopy(backbone)
    other.lower_layers()[0][0][1].running_mean += 1.0
    for before in (clips[50:80], clips[20:70], clips[:40]):
        method.fit(other, before)
        method.fit(backbone, before)
        for name, value in weights(clips[:40]).items():
            assert torch.equal(value, alone[name]), name
    passed, compute = [], lower.FrozenLayers._compute
    monkeypatch.setattr(
        lower.FrozenLayers, "_compute", lambda self, rows: passed.append(len(rows)) or compute(self, rows)
    )
    method.fit(backbone, clips[10:30])
    assert passed == [1], "one clip says how much memory each takes; the others are known"


def test_media_of_a_clip_are_read_for_their_digest_once_however_many_folds_hold_it(clips, monkeypatch):
    torch.manual_seed(0)
    backbone = create_model("facs-flow", widths=[4, 4, 8, 8], branch_dim=6, pools=[1, 2]).eval()
    method = load_method("finetune", train_backbone=True, steps=1, batch_size=64)
    folds = [clips[:40], clips[10:50], clips[:50]]
    hashed, of = [], lower.ContentDigests.of

    def counted(self, backbone, support):
        with monkeypatch.context() as patch:
            inner = lower.read_inputs
            patch.setattr(lower, "read_inputs", lambda *at: hashed.append(len(at[2])) or inner(*at))
            return of(self, backbone, support)

    monkeypatch.setattr(lower.ContentDigests, "of", counted)
    alone = [method.fit(backbone, fold).backbone.state_dict() for fold in folds]
    assert sum(hashed) == 40 + 40 + 50, "each for itself"
    hashed.clear()
    supports = [fold.isolated() for fold in folds]
    found = dict(method.fit_many(backbone, supports, seeds=[None] * 3, classes=[clips.classes] * 3))
    assert sum(hashed) == 50
    for number, weights in enumerate(alone):
        for name, value in found[number].backbone.state_dict().items():
            assert torch.equal(value, weights[name]), name


def test_unknown_layers_are_refused():
    with pytest.raises(MethodError, match="layers"):
        load_method("finetune", layers="top")


def test_training_leaves_global_random_state_alone_and_reports_progress(clips):
    backbone = TinyBackbone()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    seen = []
    method = load_method("finetune", train_backbone=True, steps=4)
    method.fit(backbone, clips[:12], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(before, torch.get_rng_state())


def test_a_large_set_is_learnt_in_shuffled_batches_and_a_small_one_whole(clips):
    method = load_method("finetune", train_backbone=True, batch_size=8)
    whole, large = method._batches(15), method._batches(30)
    assert [next(whole).tolist() for _ in range(2)] == [list(range(15))] * 2
    first = [next(large) for _ in range(3)]
    second = [next(large) for _ in range(3)]
    assert [len(rows) for rows in first] == [10, 10, 10]
    assert sorted(np.concatenate(first)) == sorted(np.concatenate(second)) == list(range(30))
    assert not np.array_equal(np.concatenate(first), np.concatenate(second))
    assert (
        load_method("finetune", train_backbone=True, batch_size=8, steps=9).fit(TinyBackbone(), clips).support_size
        == 60
    )


def test_a_source_teaches_a_backbone_that_knows_nothing_the_shared_classes(clips):
    backbone = TinyBackbone()
    source, target = clips[:40], synthetic_clips("clinic", 40, seed=3)
    with pytest.raises(SupportError):
        load_method("zero_shot").fit(backbone, target)
    model = load_method("zero_shot").train_source(backbone, source)
    assert model.backbone is backbone
    assert model.class_directions(("anger", "fear")) is None
    known = model.class_directions(("surprise", "fear", "negative"))
    assert known is not None
    assert known.known.tolist() == [True, False, True]
    recognizer = load_method("zero_shot").fit(model, source)
    # Always saying the most frequent class would be right for fewer than half.
    assert recognizer.score(source) > 0.65


def test_what_a_backbone_knows_survives_a_source():
    # Source clips of the same classes must help or at least not hurt a backbone that knows them already.
    backbone = load_model("facs-flow")
    source, target = synthetic_clips("lab", 150, seed=1), synthetic_clips("clinic", 150, seed=2)
    alone = load_method("zero_shot").fit(backbone, target).score(target)
    for name in ("zero_shot", "cosine"):
        method = load_method(name)
        taught = method.fit(method.train_source(backbone, source), target[:30]).score(target[30:])
        assert taught > alone - 0.05, name


def test_directions_of_the_source_go_before_the_backbones_own(clips):
    backbone = TinyBackbone(knows=("negative", "positive", "surprise", "contempt"))
    source = clips.select(label=["negative", "positive"])
    model = load_method("cosine", init="zero_shot", pull=0).train_source(backbone, source)
    merged, own = model.class_directions(("negative", "contempt")), backbone.class_directions(("negative", "contempt"))
    assert merged is not None
    assert own is not None
    torch.testing.assert_close(merged.weight[1], F.normalize(own.weight[1], dim=-1))
    assert F.cosine_similarity(merged.weight[0], own.weight[0], dim=0) < 0.99
    assert torch.equal(merged.centre, own.centre)
    assert torch.equal(merged.precision, own.precision)


def test_the_projection_layers_of_the_default_network_are_found():
    backbone = create_model("facs-flow")
    found = {name for name, _ in backbone.named_parameters() if _is_projection(name)}
    assert found
    assert all("projection" in name for name in found)
    assert not any("stages" in name or "head" in name for name in found)


@pytest.mark.parametrize("name", ["finetune", "cosine"])
def test_training_on_a_source_changes_a_copy_of_the_backbone(name, clips):
    backbone = TinyBackbone()
    method = load_method(name, train_backbone=True, source_epochs=2, steps=5)
    model = method.train_source(backbone, clips[:40])
    moved = (model.backbone.projection.weight - backbone.projection.weight).abs().max()
    assert 1e-3 < moved < 2e-2
    assert not model.backbone.training
    assert (model.directions is not None) == (name == "cosine")
    recognizer = method.fit(backbone, clips[40:], source=clips[:40])
    again = method.fit(model, clips[40:])
    np.testing.assert_allclose(recognizer.predict_proba(clips), again.predict_proba(clips), atol=1e-5)


def test_a_method_without_use_for_a_source_takes_the_model_as_it_is(clips):
    backbone = TinyBackbone()
    for name in ("protonet", "logistic", "finetune"):
        assert load_method(name).train_source(backbone, clips).backbone is backbone
    wrapped = SourceModel.wrap(backbone)
    assert SourceModel.wrap(wrapped) is wrapped


def test_fitting_equals_solving_the_same_episode(clips):
    """What is deployed is what is measured."""
    backbone = TinyBackbone(knows=("negative", "positive", "surprise"))
    rows = np.concatenate([np.flatnonzero(clips.labels == name)[:4] for name in clips.classes])
    codes = clips.codes()[rows]
    embeddings = embed(backbone, clips)
    for name in NAMES:
        method = load_method(name)
        if not method.keeps_backbone:  # its embeddings are other ones after fitting
            continue
        ((_, logits),) = method.solve(
            embeddings, rows[None], codes[None], way=3, prior=backbone.class_directions(clips.classes)
        )
        asked = np.setdiff1d(np.arange(len(clips)), rows) if method.transductive else np.arange(len(clips))
        deployed = method.fit(backbone, clips[rows]).predict_proba(clips[asked])
        np.testing.assert_allclose(deployed, logits[0, asked].softmax(-1).numpy(), atol=1e-4)


def test_scale_of_the_embedding_does_not_matter_to_the_cosine_method_without_a_prior():
    support, codes, query, _ = blobs()
    method = load_method("cosine")
    small = method.fit_head(support, codes, 3).logits(query)
    large = method.fit_head(1e3 * support, codes, 3).logits(1e3 * query)
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-3)
    assert math.isfinite(float(small.sum()))
