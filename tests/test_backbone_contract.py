"""What every registered backbone promises, at a size that tests can afford."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import resource
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import ARGUMENTS, NAMES, clips_for, small_model

import fsmer
from fsmer.backbones import Backbone, embed, list_models, load_model, model_hash, read_inputs
from fsmer.backbones.registry import class_notes
from fsmer.errors import FsmerError, MediaError, SpecMismatchError, WeightsError
from fsmer.testing import parametrize_with_checks
from fsmer.transfer import adapt, train

# What facs-flow knows without labels takes no part in learning from them.
UNTRAINED = ("directions", "unit_head.weight", "unit_head.bias")


@parametrize_with_checks("backbone", [partial(small_model, name) for name in NAMES])
def test_a_backbone_keeps_the_contract(check):
    check(untrained=UNTRAINED if check.subject.args == ("facs-flow",) else ())


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def backbone(name: str) -> Backbone:
    return small_model(name)


@pytest.fixture
def clips(backbone: Backbone) -> fsmer.ClipSet:
    return clips_for(backbone)


def inputs_of(backbone: Backbone, clips: fsmer.ClipSet, rows=None):
    return read_inputs(backbone, clips, np.arange(len(clips)) if rows is None else np.asarray(rows))


def halved(inputs):
    return {kind: one.bfloat16() for kind, one in inputs.items()} if isinstance(inputs, dict) else inputs.bfloat16()


def numbers_in(values, place=()):
    """Where in constructor arguments whole numbers are."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from numbers_in(value, (*place, key))
        elif isinstance(value, int) and not isinstance(value, bool):
            yield (*place, key)


def with_number(values, place, number):
    changed = copy.deepcopy(values)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = number
    return changed


def test_a_clip_whose_apex_is_its_onset_is_refused_by_name(backbone, clips):
    kinds = [spec.kind for spec in backbone.input_specs]
    if not {"onset", "apex"} <= set(kinds):
        pytest.skip("it does not take both")
    media = {kind: clips.media(kind).copy() for kind in kinds}
    media["apex"][7] = media["onset"][7]
    still = fsmer.ClipSet.from_arrays(media, clips.labels, ids=clips.ids, datasets="home", spec=backbone.input_specs)
    said = f"nothing moves in clip '{clips.ids[7]}' of data set 'home'"
    for refused in (lambda: embed(backbone, still), lambda: train(backbone, still, epochs=1)):
        with pytest.raises(MediaError, match=said):
            refused()
    assert embed(backbone, still[:7]).shape == (7, backbone.embed_dim)


def test_a_config_that_asks_for_a_huge_network_is_refused_at_once(backbone, tmp_path: Path):
    backbone.save_pretrained(tmp_path / "weights")
    path = tmp_path / "weights" / "config.json"
    config = json.loads(path.read_text())
    del config["checksum"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    places = list(numbers_in(config["arguments"]))
    for place in places:
        for number in (10_000_000, 10**30):
            path.write_text(json.dumps({**config, "arguments": with_number(config["arguments"], place, number)}))
            # Loss weights and the like may be any number.
            with contextlib.suppress(WeightsError):
                load_model(tmp_path / "weights")
    assert time.process_time() - began < 1 + 2 * len(places)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
    size = next(place for place in places if place[-1] in ("size", "image_size", "frame_size", "shared_width", 0))
    path.write_text(json.dumps({**config, "arguments": with_number(config["arguments"], size, 10_000_000)}))
    with pytest.raises(WeightsError, match=r"config\.json do not fit"):
        load_model(tmp_path / "weights")


def test_weights_of_another_backbone_are_refused(backbone, tmp_path: Path):
    backbone.save_pretrained(tmp_path / "weights")
    other = small_model("fr" if backbone.name != "fr" else "tcae")
    with pytest.raises(WeightsError, match=f"holds weights of '{backbone.name}'"):
        type(other).from_pretrained(tmp_path / "weights")


def test_bfloat16_and_a_batch_of_one_work(backbone, clips):
    one = inputs_of(backbone, clips, [0])
    with torch.no_grad():
        full = backbone(one)
        assert full.shape == (1, backbone.embed_dim)
        half = backbone.to(torch.bfloat16)(halved(one))
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float(), full, dim=-1) > 0.9


def test_media_of_another_kind_or_size_or_not_finite_are_refused(backbone, clips):
    spec = backbone.input_specs[0]
    height, width = spec.size
    other = replace(spec, size=(height * 2, width * 2))
    wrong = fsmer.synthetic_clips("lab", 2, specs=[other, *backbone.input_specs[1:]])
    with pytest.raises(SpecMismatchError, match=backbone.name):
        embed(backbone, wrong)
    missing = fsmer.synthetic_clips(
        "lab",
        2,
        specs=[
            replace(
                spec,
                kind="apex" if spec.kind == "flow" else "flow",
                channels=("red", "green", "blue") if spec.kind == "flow" else ("u", "v"),
                normalisation="unit" if spec.kind == "flow" else "signed",
                frames=None,
            )
        ],
    )
    with pytest.raises(SpecMismatchError, match=f"{backbone.name}.*eats"):
        embed(backbone, missing)
    arrays = {one.kind: np.zeros((2, *one.shape), dtype=np.float32) for one in backbone.input_specs}
    arrays[spec.kind][1].flat[0] = np.nan
    with pytest.raises(MediaError, match="number 1"):
        embed(backbone, arrays)


def test_listed_parameters_flops_and_dimensions_are_true(name):
    (info,) = list_models(name)
    cls = fsmer.backbones.registry.backbone_class(name)
    with torch.device("meta"):
        full = cls()
    assert info.parameters == sum(parameter.numel() for parameter in full.parameters())
    assert (info.embed_dim, info.input_specs) == (full.embed_dim, full.input_specs)
    # A network touches most weights at least once for every clip.
    assert info.flops > 0.3 * info.parameters or name in ("tcae", "merau", "mubert_small", "mubert_tiny")
    assert info.summary.endswith(".")
    assert len(info.summary) < 140


def card_parts(notes: str) -> dict[str, list[str]]:
    """The words behind every heading of a card, by the word that the heading begins with; empty parts too."""
    start = r"(?:\A|\n\n|[.)]\s)"
    heading = r"(There|What of the paper is there|Deviation|Absent|Open|Added|Settled|From|Widths)[^.:]*:"
    _, *found = re.split(start + heading, notes)
    names = [name.replace("What of the paper is there", "There") for name in found[::2]]
    assert len(set(names)) == len(names)
    return {name: text.split() for name, text in zip(names, found[1::2], strict=True)}


def test_the_card_says_what_of_the_paper_is_there_what_deviates_and_what_is_absent(name):
    cls = fsmer.backbones.registry.backbone_class(name)
    if name == "facs-flow":
        pytest.skip("facs-flow is no published system")
    notes = class_notes(cls)
    if "section by section" in notes.splitlines()[0]:
        parts = re.split(r"^\* ", notes, flags=re.M)[1:]
        assert len(parts) > 4
        assert all(len(part.split()) > 8 for part in parts)
    else:
        parts = card_parts(notes)
        assert len(parts["There"]) > 2, "what of the paper is there"
        assert len(parts["Deviation"]) > 8, "what deviates"
    assert re.search("[Aa]bsent", notes)
    assert cls.recipe.source != "fsmer's own choice"


def test_it_trains_by_its_recipe_is_saved_and_explains_its_answers(backbone, tmp_path: Path):
    clips = clips_for(backbone, 8)
    # Two epochs: where the rate is warmed up, the first step has none.
    recognizer = train(backbone, clips, epochs=2, out=tmp_path / "trained")
    assert model_hash(recognizer.backbone) != model_hash(backbone)
    again = fsmer.Recognizer.load(tmp_path / "trained")
    np.testing.assert_array_equal(again.predict_proba(clips), recognizer.predict_proba(clips))
    if not backbone.explain_maps(inputs_of(backbone, clips, [0])):
        pytest.importorskip("captum")
    found = again.explain(clips[0], out=tmp_path / "why.png")
    assert found.prediction == again.predict(clips[:1])[0]
    assert {spec.kind for spec in backbone.input_specs} <= set(found.media)
    for name, one in found.maps.items():
        assert one.ndim == 2, name
        assert 0 <= one.min() <= one.max() <= 1, name
    assert any(np.ptp(one) > 0 for one in found.maps.values())
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")


def test_what_its_lower_layers_make_of_media_stands_for_them(backbone, clips):
    if not backbone.lower_layers():
        with pytest.raises(FsmerError, match=f"layers='upper' needs a backbone .* '{backbone.name}' does not"):
            adapt(backbone, clips, "finetune", train_backbone=True, layers="upper")
        return
    inputs = inputs_of(backbone, clips)
    with torch.no_grad():
        features = backbone.lower(inputs)
        torch.testing.assert_close(backbone(features), backbone(inputs), rtol=0, atol=1e-5)
    assert {len(part) for part in features.values()} == {len(clips)}
    tuned = adapt(backbone, clips, "finetune", train_backbone=True, steps=2, encoder_rate=1e-2).backbone
    held = {id(value) for layer in backbone.lower_layers() for value in layer.parameters()}
    after = dict(tuned.named_parameters())
    upper = [name for name, value in backbone.named_parameters() if id(value) not in held]
    assert 0 < len(upper) < len(after)
    for name, value in backbone.named_parameters():
        assert after[name].requires_grad == value.requires_grad
        if id(value) in held:
            assert torch.equal(after[name], value), f"{name} is a lower layer and has moved"
    assert any(not torch.equal(after[name], dict(backbone.named_parameters())[name]) for name in upper)


@pytest.mark.slow
def test_it_overfits_sixteen_clips(backbone):
    clips = clips_for(backbone, 16)
    rate = 10 * backbone.recipe.learning_rate if backbone.recipe.learning_rate < 5e-4 else backbone.recipe.learning_rate
    plain = {"augment": False, "weight_decay": 0.0}
    recognizer = train(backbone, clips, epochs=400, batch_size=16, learning_rate=rate, **plain)
    assert recognizer.score(clips) == 1.0


def test_arguments_for_tests_are_those_of_registered_backbones(name):
    assert name in ARGUMENTS or name == "facs-flow"
    assert set(ARGUMENTS) <= set(NAMES)
