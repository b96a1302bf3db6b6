"""`ensemble`: members learn each for itself, and the mean of their logits decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import ARGUMENTS, clips_for, small_model
from torch import nn
from torch.nn import functional as F

import fsmer
from fsmer.backbones import Backbone, Targets, create_model, read_inputs
from fsmer.errors import FsmerError, UnknownNameError
from fsmer.training.fine_tuning import Classifier
from fsmer.transfer import load_method, train

PLAIN = {"shared_width": 16, "dropout": 0.0}


@pytest.fixture
def ensemble() -> Backbone:
    torch.manual_seed(3)
    return create_model("ensemble", of="basic_inception", members=3, arguments=PLAIN)


def members_of(backbone: Backbone) -> list[Backbone]:
    return list(backbone.members)


def test_logits_are_the_mean_of_the_members_logits(ensemble):
    clips = clips_for(ensemble, 12)
    recognizer = train(ensemble, clips, epochs=2)
    weight, bias = recognizer.head.weight[0], recognizer.head.bias[0]
    maps = torch.from_numpy(clips.media("flow"))[:, :2]
    with torch.no_grad():
        own = [
            member(maps) @ columns.T + bias
            for member, columns in zip(members_of(recognizer.backbone), weight.chunk(3, dim=1), strict=True)
        ]
    found = torch.from_numpy(recognizer.decision_function(clips))
    torch.testing.assert_close(found, torch.stack(own).mean(dim=0), rtol=1e-4, atol=1e-5)
    assert (own[0] - own[1]).abs().max() > 1e-3


def test_every_member_gets_the_gradient_that_it_gets_alone(ensemble):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(8, 2, 28, 28, generator=generator)
    targets = Targets(torch.arange(8) % 3, ("negative", "positive", "surprise"))
    classifier = nn.Linear(3 * 16, 3)
    loss = ensemble.train().training_loss(maps, targets, classifier)
    loss.backward()
    alone = []
    for place, member in enumerate(members_of(ensemble)):
        together = {name: value.grad.clone() for name, value in member.named_parameters()}
        own = nn.Linear(16, 3)
        with torch.no_grad():
            own.weight.copy_(classifier.weight[:, 16 * place : 16 * (place + 1)])
            own.bias.copy_(classifier.bias)
        member.zero_grad()
        alone.append(F.cross_entropy(own(member(maps)), targets.labels))
        alone[-1].backward()
        for name, value in member.named_parameters():
            torch.testing.assert_close(together[name], value.grad, rtol=1e-4, atol=1e-6)
    assert float(loss.detach()) == pytest.approx(sum(float(one.detach()) for one in alone), rel=1e-5)


def test_members_start_from_weights_of_their_own_and_the_seed_decides_which(ensemble):
    clips = clips_for(ensemble, 12)
    first, second = (member.state_dict()["shared.weight"] for member in members_of(ensemble)[:2])
    assert (first - second).abs().max() > 1e-3
    of = {"of": "basic_inception", "members": 2, "arguments": PLAIN}
    runs = [train("ensemble", clips, arguments=of, epochs=1, seed=seed).decision_function(clips) for seed in (0, 0, 1)]
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


def test_parts_for_the_classes_are_made_in_every_member(tmp_path):
    backbone = small_model("ensemble")
    backbone.set_classes(("a", "b", "c", "d", "e"))
    assert [member.proposal.branches for member in members_of(backbone)] == [5, 5]
    backbone.save_pretrained(tmp_path)
    again = fsmer.load_model(tmp_path)
    assert again.config["arguments"]["branches"] == 5
    assert again.embed_dim == backbone.embed_dim == 128


def test_a_cosine_classifier_is_trained_on_the_common_embedding(ensemble):
    clips = clips_for(ensemble, 12)
    weight, bias = torch.randn(3, 48), torch.zeros(3)
    classifier = Classifier(weight, bias, scale=10.0, centre=torch.full((48,), 0.1))
    maps, targets = torch.from_numpy(clips.media("flow"))[:, :2], Targets(torch.arange(12) % 3, ("a", "b", "c"))
    wanted = F.cross_entropy(classifier(ensemble.eval()(maps)), targets.labels)
    torch.testing.assert_close(ensemble.training_loss(maps, targets, classifier), wanted)
    tuned = load_method("cosine", train_backbone=True, steps=2).fit(train(ensemble, clips, epochs=1).backbone, clips)
    assert np.isfinite(tuned.decision_function(clips)).all()


@pytest.mark.parametrize("name", ["flow_resnet18", "mmnet", "r3d10_attribute"])
def test_members_of_any_kind_are_trained_saved_and_explained(name, tmp_path):
    torch.manual_seed(5)
    backbone = create_model("ensemble", of=name, members=2, arguments=ARGUMENTS[name])
    clips = clips_for(backbone, 6)
    recognizer = train(backbone, clips, epochs=1)
    again = fsmer.Recognizer.load(recognizer.save(tmp_path / "saved"))
    assert (again.decision_function(clips) == recognizer.decision_function(clips)).all()
    assert again.backbone.config["arguments"] == members_of(again.backbone)[0].config
    inputs = read_inputs(backbone, clips, np.arange(2))
    with torch.no_grad():
        own = [member.explain_maps(inputs) for member in members_of(recognizer.backbone)]
        found = recognizer.backbone.explain_maps(inputs)
    assert found.keys() == own[0].keys()
    for kind, maps in found.items():
        torch.testing.assert_close(maps, (own[0][kind] + own[1][kind]) / 2)


def test_what_comes_before_training_has_a_seed_for_each_member(ensemble, monkeypatch):
    seeds = []
    monkeypatch.setattr(
        type(members_of(ensemble)[0]), "preparations", lambda self, clips, *, seed: iter(seeds.append(seed) or ())
    )
    for seed in (0, 1):
        assert not list(ensemble.preparations(clips_for(ensemble, 6), seed=seed))
    assert seeds == [0, 1, 2, 3, 4, 5]


def test_rates_of_single_layers_reach_the_members_layers():
    small = {"size": 32, "widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "projection_dim": 16}
    backbone = create_model("ensemble", of="flow_resnet18", members=2, arguments=small)
    names = [name for name, _ in backbone.named_parameters()]
    recipe = load_method("train").recipe(backbone)
    for layer, rate in create_model("flow_resnet18", **small).recipe.for_weights(untrained=True).rates.items():
        held = [prefix for prefix, one in recipe.rates.items() if one == rate and prefix.endswith(layer)]
        if layer == "classifier":
            assert held == ["classifier"]
        else:
            assert held == [f"members.{place}.{layer}" for place in range(2)]
            assert all(any(name.startswith(prefix) for name in names) for prefix in held)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"members": 0}, FsmerError, "members=0 is no number of members; give 1 or a larger whole number"),
        ({"members": "two"}, FsmerError, "members='two'.* whole number"),
        ({"members": True}, FsmerError, "members=True.* whole number"),
        ({"arguments": 3}, FsmerError, "arguments=3 are no arguments of 'fr'; give names and values"),
        ({"of": "ensemble"}, FsmerError, "cannot be ensembles too; name another model"),
        ({"of": "frr"}, UnknownNameError, "did you mean 'fr'"),
        ({"of": "fr", "arguments": {"depth": 3}}, UnknownNameError, "depth"),
    ],
)
def test_what_is_no_ensemble_is_refused_in_one_sentence(arguments, error, said):
    with pytest.raises(error, match=said):
        create_model("ensemble", **arguments)
