"""Learnt on one synthetic domain, adapted to another with five labels a class: far above chance."""

from __future__ import annotations

import pytest
import torch

import fsmer

# UF1 of a third is chance, and of a fresh network that was not trained at all a little above it.
CHANCE = 1 / 3


def five_shot(backbone: fsmer.Backbone) -> float:
    target = fsmer.synthetic_clips("clinic", 180, seed=2, specs=backbone.input_specs)
    protocol = fsmer.load_protocol("kshot", shot=5, episodes=100)
    return fsmer.evaluate(protocol, backbone, "cosine", clips=target).uf1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("fr", {}), ("basic_inception", {}), ("flow_resnet18", {"size": 28, "inner_size": 56, "normalisation": "minmax"})],
)
def test_what_was_learnt_on_one_domain_is_of_use_on_another(name, arguments):
    torch.manual_seed(0)
    backbone = fsmer.create_model(name, **arguments)
    source = fsmer.synthetic_clips("broad", 400, seed=1, specs=backbone.input_specs)
    before = five_shot(backbone)
    after = five_shot(fsmer.train(backbone, source, epochs=12, seed=0).backbone)
    assert after > CHANCE + 0.17
    assert after > before + 0.05
