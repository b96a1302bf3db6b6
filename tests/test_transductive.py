"""SimpleShot, ridge, α-TIM and LaplacianShot answer as their references do; the last two look at queries together."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from tiny_backbone import TinyBackbone
from torch.nn import functional as F

import fsmer
from fsmer.backbones import ClassDirections
from fsmer.episodic import load_protocol
from fsmer.errors import DataError, ProtocolError, SupportError
from fsmer.evaluation import evaluate
from fsmer.synthetic import synthetic_clips
from fsmer.training.ridge import ridge_weights
from fsmer.transfer import Recognizer, SourceModel, adapt, list_methods, load_method

JOINT = ("alpha_tim", "laplacian_shot")
QUICK = {"alpha_tim": {"steps": 20}, "laplacian_shot": {}}


def quick(name):
    return load_method(name, **QUICK[name])


def tasks(episodes=12, way=5, shot=5, queries=15, width=64, seed=0):
    """Overlapping classes: support (E, S, D), codes (E, S), queries (E, Q, D)."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(episodes, way, 1, width, generator=generator) + 1
    sides = [means + 2 * torch.randn(episodes, way, count, width, generator=generator) for count in (shot, queries)]
    codes = torch.arange(way).repeat_interleave(shot).expand(episodes, -1)
    return sides[0].flatten(1, 2), codes, sides[1].flatten(1, 2)


def peer_answers(peer, support, codes, query):
    peer.eval()
    with torch.no_grad():
        peer.process_support_set(support, codes)
        return peer(query).argmax(dim=1)


@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize(
    ("name", "params", "peer"),
    [
        ("simpleshot", {}, "SimpleShot"),
        ("laplacian_shot", {}, "LaplacianShot"),
        (
            "alpha_tim",
            {"alpha": 1, "distance": "cosine", "scale": 10, "conditional_weight": 0.1, "steps": 50, "centre": True},
            "TIM",
        ),
    ],
)
def test_predictions_are_those_of_easyfsl(name, params, peer, shot):
    easyfsl = pytest.importorskip("easyfsl.methods", reason="easyfsl is installed for benchmarks only")
    support, codes, query = tasks(shot=shot)
    centre = support.mean(dim=(0, 1))
    prior = ClassDirections(torch.zeros(5, 64), torch.zeros(5), torch.zeros(5, dtype=torch.bool), 1.0, centre)
    found = load_method(name, **params).fit_head(support, codes, 5, prior).logits(query).argmax(dim=-1)
    for episode in range(len(support)):
        made = getattr(easyfsl, peer)(feature_centering=centre, feature_normalization=2)
        wanted = peer_answers(made, support[episode], codes[episode], query[episode])
        assert torch.equal(found[episode], wanted)


def alpha_entropy(shares, alpha):
    """Of rows of probabilities; Veilleux et al. 2021, eq. 5, and its limit."""
    if alpha == 1:
        return -(shares * shares.log()).sum(dim=-1)
    return (1 - (shares**alpha).sum(dim=-1)) / (alpha - 1)


def plain_alpha_tim(support, codes, query, *, alpha, steps, rate, scale, distance, weights):
    """α-TIM of one episode by autograd, written from the paper's equations."""
    support, query = F.normalize(support, dim=-1), F.normalize(query, dim=-1)
    way = int(codes.max()) + 1
    prototypes = torch.stack([support[codes == code].mean(dim=0) for code in range(way)]).requires_grad_()
    optimiser = torch.optim.Adam([prototypes], lr=rate)

    def logits(clips):
        if distance == "cosine":
            return scale * clips @ F.normalize(prototypes, dim=-1).T
        return -scale / 2 * (clips[:, None] - prototypes).square().sum(dim=-1)

    for _ in range(steps):
        asked = logits(query).softmax(dim=-1)
        loss = weights[0] * F.cross_entropy(logits(support), codes)
        loss = loss - weights[1] * alpha_entropy(asked.mean(dim=0), alpha)
        loss = loss + weights[2] * alpha_entropy(asked, alpha).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return logits(query).detach()


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("alpha", [1.0, 2.0, 7.0])
def test_alpha_tim_is_the_papers_loss_under_autograd_and_adam(alpha, distance):
    support, codes, query = tasks(episodes=3, queries=7)
    weights = (0.8, 1.3, 0.6)
    method = load_method(
        "alpha_tim", alpha=alpha, distance=distance, steps=30, learning_rate=1e-2, support_weight=weights[0],
        marginal_weight=weights[1], conditional_weight=weights[2],
    )  # fmt: skip
    found = method.fit_head(support, codes, 5).logits(query).softmax(dim=-1)
    how = {"alpha": alpha, "steps": 30, "rate": 1e-2, "scale": 15.0, "distance": distance, "weights": weights}
    for episode in range(3):
        wanted = plain_alpha_tim(support[episode], codes[episode], query[episode], **how).softmax(dim=-1)
        torch.testing.assert_close(found[episode], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("shot", "alpha"), [(1, 2.0), (5, 7.0)])
def test_alpha_is_that_of_the_paper_for_one_and_for_five_clips_a_class(shot, alpha):
    support, codes, query = tasks(episodes=4, shot=shot, queries=5)
    one, other = (
        load_method("alpha_tim", steps=10, alpha=value).fit_head(support, codes, 5).logits(query)
        for value in (None, alpha)
    )
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_alpha_is_chosen_for_each_episode_that_is_solved_with_others():
    support, codes, query = tasks(episodes=2, shot=5, queries=5)
    codes = codes.clone()
    codes[0, torch.arange(25) % 5 > 0] = -1
    method = load_method("alpha_tim", steps=10)
    together = method.fit_head(support, codes, 5).logits(query)
    alone = [method.fit_head(support[[i]], codes[[i]], 5).logits(query[[i]]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [6, 64])
def test_ridge_is_the_ridge_regression_of_scikit_learn(width):
    support, codes, query = tasks(episodes=3, width=width)
    found = load_method("ridge", penalty=2.5, scale=1.0).fit_head(support, codes, 5).logits(query)
    for episode in range(3):
        ones = [np.hstack([rows[episode].double().numpy(), np.ones((rows.shape[1], 1))]) for rows in (support, query)]
        peer = Ridge(alpha=2.5, fit_intercept=False).fit(ones[0], np.eye(5)[codes[episode]])
        np.testing.assert_allclose(found[episode], peer.predict(ones[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 7), (2, 7, 4)])
def test_gradients_of_ridge_weights_are_those_of_the_solution(shape):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(*shape, dtype=torch.double, generator=generator, requires_grad=True)
    targets = torch.randn(2, shape[1], 3, dtype=torch.double, generator=generator, requires_grad=True)
    penalty = torch.tensor(0.7, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(ridge_weights, (values, targets, penalty))
    assert torch.autograd.gradgradcheck(ridge_weights, (values, targets, penalty))
    wanted = np.linalg.solve(
        values.detach().mT @ values.detach() + 0.7 * torch.eye(shape[2], dtype=torch.double),
        (values.mT @ targets).detach(),
    )
    np.testing.assert_allclose(ridge_weights(values, targets, penalty).detach(), wanted)


def test_simpleshot_centres_on_the_source_where_the_backbone_knows_no_centre():
    source = synthetic_clips("lab", 20, seed=0)
    backbone = TinyBackbone(8).eval()
    method = load_method("simpleshot")
    model = method.train_source(SourceModel(backbone), source)
    clips = synthetic_clips("clinic", 12, seed=1)
    recognizer = method.fit(model, clips)
    wanted = fsmer.embed(backbone, source).mean(dim=0)
    torch.testing.assert_close(recognizer.head.centre[0], wanted)
    assert not torch.allclose(method.fit(backbone, clips).head.centre[0], wanted)


def test_a_centre_from_a_source_survives_saving(tmp_path):
    clips = synthetic_clips("lab", 20, seed=0)
    backbone = fsmer.create_model("ststnet").eval()
    recognizer = adapt(backbone, clips, "laplacian_shot", source=synthetic_clips("clinic", 20, seed=1))
    again = Recognizer.load(recognizer.save(tmp_path / "saved"))
    assert np.array_equal(again.predict_proba(clips), recognizer.predict_proba(clips))


# -- joint queries --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people():
    return synthetic_clips("lab", 36, subjects=4, seed=5)


@pytest.mark.parametrize("name", JOINT)
@pytest.mark.parametrize("protocol", ["loso", "rest"])
def test_an_evaluation_hands_over_exactly_the_queries_of_each_episode(name, protocol, people):
    asked = load_protocol("loso") if protocol == "loso" else load_protocol("kshot", episodes=5, shot=2, query="rest")
    backbone, method = TinyBackbone(8).eval(), quick(name)
    report = evaluate(asked, backbone, method, clips=people, cache=False)
    episodes = asked.split(people)
    for number, episode in enumerate(episodes):
        assert not set(episode.support) & set(episode.query)
        support = people[episode.support]
        recognizer = method.fit(backbone, support, classes=episode.classes)
        wanted = recognizer.predict_proba(people[episode.query])
        rows = report.predictions[report.predictions["episode"] == number]
        rows = rows.set_index("clip").loc[people.ids[episode.query]]
        found = rows[[f"p_{one}" for one in episode.classes]].to_numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=f"{number}")


@pytest.mark.parametrize("name", JOINT)
def test_answers_depend_on_the_other_queries_but_not_on_padding_or_the_support(name):
    support, codes, query = tasks(episodes=4, queries=6)
    table = torch.cat([support.flatten(0, 1), query.flatten(0, 1)])
    rows = torch.arange(4 * 25).view(4, 25)
    asked = 4 * 25 + torch.arange(4 * 30).view(4, 30)
    method = quick(name)

    def solved(query):
        return torch.cat([part for _, part in method.solve(table, rows, codes, query, way=5)])

    whole = solved(asked)
    padded = asked.clone()
    padded[0, 20:] = -1
    padded[2, 5:] = -1
    found = solved(padded)
    torch.testing.assert_close(found[[1, 3]], whole[[1, 3]], rtol=1e-4, atol=1e-4)
    alone = method.fit_head(support[[0]], codes[[0]], 5).logits(query[:1, :20])
    torch.testing.assert_close(found[0, :20], alone[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0, :20], whole[0, :20], atol=1e-3)


@pytest.mark.parametrize("name", JOINT)
def test_one_clip_is_refused_with_what_to_use_instead(name, people):
    recognizer = quick(name).fit(TinyBackbone(8).eval(), people)
    with pytest.raises(DataError, match=f"{name}.*'simpleshot'"):
        recognizer.predict(people[0])
    assert recognizer.predict(people[:2]).shape == (2,)


@pytest.mark.parametrize("name", JOINT)
def test_a_fold_with_one_query_is_refused_by_its_name(name, people):
    first = people.subjects[0]
    kept = np.flatnonzero(people.subjects != first).tolist()
    clips = people[[0, *kept]]
    with pytest.raises(ProtocolError, match=f"{name}.*{first}.*simpleshot"):
        evaluate("loso", TinyBackbone(8).eval(), quick(name), clips=clips, cache=False)


@pytest.mark.parametrize("name", JOINT)
def test_an_empty_support_is_refused(name):
    with pytest.raises(SupportError, match=name):
        load_method(name).fit_head(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.long), 2)


@pytest.mark.parametrize("name", JOINT)
def test_recognizers_are_saved_and_updated(name, people, tmp_path):
    backbone = fsmer.create_model("ststnet").eval()
    recognizer = adapt(backbone, people[:18], quick(name))
    again = Recognizer.load(recognizer.save(tmp_path / "saved"))
    assert np.array_equal(again.predict_proba(people), recognizer.predict_proba(people))
    more = again.update(people[18:])
    wanted = adapt(backbone, people, quick(name)).predict_proba(people)
    np.testing.assert_allclose(more.predict_proba(people), wanted, atol=1e-4)


@pytest.mark.parametrize("name", JOINT)
def test_explaining_and_recordings_refuse_it(name, people, tmp_path):
    recognizer = adapt("facs-flow", people, quick(name))
    with pytest.raises(DataError, match=name):
        recognizer.explain(people[0])
    with pytest.raises(DataError, match=name):
        fsmer.predict_recording([np.zeros((8, 8, 3), np.uint8)], recognizer, frames_per_second=30)


def test_lists_reports_tables_and_pictures_name_transductive_methods(people, tmp_path):
    listed = {one.name: one for one in list_methods()}
    assert {one.name for one in listed.values() if one.transductive} == set(JOINT)
    assert all("transductive" in listed[name].said for name in JOINT)
    backbone = TinyBackbone(8).eval()
    joint, plain = (evaluate("loso", backbone, one, clips=people, cache=False) for one in ("laplacian_shot", "ridge"))
    joint.save(tmp_path / "joint")
    told = json.loads((tmp_path / "joint" / "report.json").read_text())
    assert told["method"]["transductive"] is True
    assert "transductive" not in plain.to_dict()["method"]
    for text in (joint.markdown(), str(joint), joint.title, joint.to_html()):
        assert "laplacian_shot (transductive)" in text
    compared = fsmer.compare(joint, plain, draws=20)
    assert "(transductive)" in compared.markdown()
    assert any("together" in warning for warning in compared.warnings)
    drawn = [label.get_text() for label in compared.figure().axes[0].get_yticklabels()]
    assert any("(transductive)" in label for label in drawn)
