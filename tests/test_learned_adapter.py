"""The learned adapter of the benchmarks reads support sets of any size and order, and is trained from a seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fsmer
from benchmarks.adapter_network import AdapterNetwork, Learned
from benchmarks.adapter_training import AdapterRecipe, Pool, draw_domain, draw_tasks, pretrain_adapter
from fsmer.backbones import ClassDirections, create_model, load_model, model_hash
from fsmer.errors import SupportError, WeightsError
from fsmer.io import file_digest
from fsmer.tensor_files import write_tensors
from fsmer.transfer import MethodError

WIDTH = 192


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A folder with a small adapter, every weight of which is drawn."""
    folder = tmp_path_factory.mktemp("adapter")
    generator = torch.Generator().manual_seed(0)
    network = AdapterNetwork(WIDTH, features=12, hidden=16)
    for value in network.parameters():
        value.data.add_(0.2 * torch.randn(value.shape, generator=generator))
    write_tensors(folder / "model.safetensors", network.state_dict())
    config = {
        "format_version": 1,
        "backbone": "facs-flow",
        "backbone_hash": model_hash(load_model("facs-flow")),
        "arguments": {"embed_dim": WIDTH, "features": 12, "hidden": 16},
        "weights_sha256": file_digest(folder / "model.safetensors"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def method(weights) -> Learned:
    return Learned(weights)


def episodes(tasks, way, shot, queries=6, seed=0):
    """Support, codes, queries and directions of drawn episodes whose classes lie apart."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(tasks, way, WIDTH, generator=generator) / WIDTH**0.5
    codes = torch.arange(way).repeat_interleave(shot).expand(tasks, -1).clone()
    noise = 0.5 * torch.randn(tasks, way * shot + queries, WIDTH, generator=generator) / WIDTH**0.5
    support = means.gather(1, codes[..., None].expand(-1, -1, WIDTH)) + noise[:, : way * shot]
    return support, codes, noise[:, way * shot :] + means[:, :1], means + noise[:, :way]


def described(directions, known):
    blank = torch.zeros(directions.shape[:-1])
    return ClassDirections(directions, blank, known, 12.0, torch.zeros(WIDTH))


@given(way=st.integers(2, 7), shot=st.integers(1, 6), seed=st.integers(0, 2**16), words=st.booleans())
def test_order_of_clips_classes_and_queries_makes_no_difference(method, way, shot, seed, words):
    support, codes, query, directions = episodes(2, way, shot, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    known = torch.rand(2, way, generator=generator) < 0.6
    prior = described(directions, known) if words else None
    found = method.fit_head(support, codes, way, prior).logits(query)
    clips, classes, asked = (torch.randperm(n, generator=generator) for n in (way * shot, way, query.shape[1]))
    # The class that was `classes[i]` is now called i.
    renamed = torch.argsort(classes)[codes[:, clips]]
    mixed = described(directions[:, classes], known[:, classes]) if words else None
    other = method.fit_head(support[:, clips], renamed, way, mixed).logits(query[:, asked])
    torch.testing.assert_close(other, found[:, asked][..., classes], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("way", "shot"), [(2, 1), (3, 40), (30, 2)])
def test_any_number_of_classes_and_clips_is_answered_with_probabilities(method, way, shot):
    support, codes, query, _ = episodes(3, way, shot)
    answers = method.fit_head(support, codes, way).logits(query).softmax(-1)
    assert answers.shape == (3, 6, way)
    torch.testing.assert_close(answers.sum(-1), torch.ones(3, 6))


def test_padding_and_other_episodes_leave_an_episode_as_it_is(method):
    support, codes, query, _ = episodes(4, 3, 5)
    together = method.fit_head(support, codes, 3).logits(query)
    alone = [method.fit_head(support[i : i + 1], codes[i : i + 1], 3).logits(query[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-4, atol=1e-4)
    padded = torch.cat([support, torch.full((4, 3, WIDTH), 100.0)], dim=1)
    marked = torch.cat([codes, torch.full((4, 3), -1)], dim=1)
    torch.testing.assert_close(method.fit_head(padded, marked, 3).logits(query), together, rtol=1e-4, atol=1e-4)


def test_queries_that_episodes_share_have_the_answers_of_their_own(method):
    support, codes, query, _ = episodes(4, 3, 2)
    head = method.fit_head(support, codes, 3)
    torch.testing.assert_close(head.logits(query[0])[2], head.logits(query[:1].expand(4, -1, -1))[2])


def test_a_class_with_neither_clips_nor_description_gets_probability_zero(method):
    support, codes, query, directions = episodes(2, 3, 4)
    assert (method.fit_head(support, codes, 4).logits(query).softmax(-1)[..., 3] == 0).all()
    known = torch.tensor([False, False, False, True])
    prior = described(torch.cat([directions, directions[:, :1]], dim=1), known.expand(2, -1))
    assert (method.fit_head(support, codes, 4, prior).logits(query).softmax(-1)[..., 3] > 0).all()


def test_descriptions_alone_are_enough_and_nothing_at_all_is_refused(method):
    _, _, query, directions = episodes(2, 3, 4)
    blank, none = torch.zeros(2, 0, WIDTH), torch.zeros(2, 0, dtype=torch.int64)
    prior = described(directions, torch.ones(2, 3, dtype=torch.bool))
    assert method.fit_head(blank, none, 3, prior).logits(query).isfinite().all()
    with pytest.raises(SupportError, match="labelled clips"):
        method.fit_head(blank, none, 3)


def test_embeddings_of_another_network_are_refused(method):
    with pytest.raises(MethodError, match=r"192.*64"):
        method.fit_head(torch.zeros(1, 4, 64), torch.tensor([[0, 0, 1, 1]]), 2)
    other = create_model("ststnet")
    clips = fsmer.synthetic_clips("lab", 12, specs=other.input_specs)
    with pytest.raises(MethodError, match=r"facs-flow.*ststnet"):
        fsmer.adapt(other, clips, method)
    changed = load_model("facs-flow")
    next(changed.parameters()).data.mul_(1.5)
    with pytest.raises(MethodError, match="the model is facs-flow"):
        fsmer.adapt(changed, fsmer.synthetic_clips("lab", 12), method)


def test_labelled_clips_that_come_later_count_as_if_they_had_been_there(method):
    clips, asked = fsmer.synthetic_clips("lab", 24, seed=1), fsmer.synthetic_clips("clinic", 9, seed=2)
    updated = fsmer.adapt("facs-flow", clips[:12], method).update(clips[12:])
    whole = fsmer.adapt("facs-flow", clips, method)
    np.testing.assert_allclose(updated.predict_proba(asked), whole.predict_proba(asked), rtol=1e-4, atol=1e-5)


def test_weights_that_are_absent_or_do_not_belong_to_their_config_are_refused(weights, tmp_path):
    asked = (torch.zeros(1, 2, WIDTH), torch.tensor([[0, 1]]), 2)
    with pytest.raises(WeightsError, match="adapter_training"):
        Learned(str(tmp_path / "absent")).fit_head(*asked)
    config = json.loads((Path(weights) / "config.json").read_text())
    content = (Path(weights) / "model.safetensors").read_bytes()
    for name, changed, data in (
        ("digest", config, content + b" "),
        ("sizes", {**config, "arguments": {**config["arguments"], "features": 13}}, content),
        ("arguments", {**config, "arguments": {"depth": 3}}, content),
        ("config", {"format_version": 1}, content),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(data)
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(WeightsError):
            Learned(str(folder)).fit_head(*asked)


def test_drawn_cameras_are_the_same_for_the_same_seed_and_differ_from_each_other():
    assert draw_domain(1, 2) == draw_domain(1, 2)
    assert draw_domain(1, 2) != draw_domain(1, 3)


def test_training_tasks_have_no_clip_on_both_sides_and_repeat_with_the_seed():
    numbers = torch.arange(2 * 40 * 16.0).view(2, 40, 16, 1)
    emotions = -1 - torch.arange(2 * 120.0).view(2, 120, 1)
    coarse = torch.arange(120).remainder(3).expand(2, -1)
    pool = Pool(numbers, emotions, coarse, torch.ones(40, 1), torch.ones(3, 1))
    recipe = AdapterRecipe(batch=4)
    first, second = (torch.Generator().manual_seed(5) for _ in range(2))
    for _ in range(40):
        drawn, same = draw_tasks(pool, recipe, first), draw_tasks(pool, recipe, second)
        assert all(map(torch.equal, drawn, same))
        assert drawn.codes.max() < drawn.known.shape[1]
        for task in range(4):
            support, query = drawn.support[task, :, 0].tolist(), drawn.query[task, :, 0].tolist()
            assert len({*support, *query}) == len(support) + len(query)


@pytest.mark.slow
def test_pretraining_writes_weights_that_the_method_takes_and_the_same_for_the_same_seed(tmp_path):
    recipe = AdapterRecipe(steps=3, batch=2, domains=("lab",), drawn_domains=0, emotion_clips=256, features=8, hidden=8)
    folders = [pretrain_adapter(tmp_path / name, seed=3, recipe=recipe) for name in ("one", "other")]
    first, second = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second
    clips = fsmer.synthetic_clips("lab", 12)
    recognizer = fsmer.adapt("facs-flow", clips, Learned(str(folders[0])))
    assert recognizer.predict(clips).shape == (12,)


def test_a_recipe_with_too_few_clips_or_steps_is_refused_before_anything_is_drawn(tmp_path):
    for recipe in (AdapterRecipe(steps=0), AdapterRecipe(clips=15)):
        with pytest.raises(fsmer.FsmerError, match="at least 1 step"):
            pretrain_adapter(tmp_path / "out", recipe=recipe)
