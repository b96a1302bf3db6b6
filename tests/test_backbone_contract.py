"""What every registered backbone promises, at a size that tests can afford."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import ARGUMENTS, NAMES, clips_for, small_model
from torch import nn

import fsmer
from fsmer.backbones import Backbone, batch_of, embed, list_models, load_model, model_hash, read_inputs
from fsmer.backbones.registry import class_notes
from fsmer.backbones.targets import make_targets
from fsmer.errors import FsmerError, MediaError, SpecMismatchError, WeightsError
from fsmer.transfer import adapt, train

pytestmark = pytest.mark.parametrize("name", NAMES)


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


def loss_of(backbone: Backbone, clips: fsmer.ClipSet) -> torch.Tensor:
    """The training loss of one batch, after the parts for its classes have been made."""
    backbone.set_classes(clips.classes)
    classifier = nn.Linear(backbone.embed_dim, len(clips.classes))
    targets = make_targets(clips, torch.from_numpy(clips.codes()), clips.classes)
    torch.manual_seed(0)
    return backbone.train().training_loss(inputs_of(backbone, clips), targets, classifier)


def test_forward_gives_one_finite_vector_a_clip(backbone, clips):
    with torch.no_grad():
        found = backbone(inputs_of(backbone, clips))
    assert found.shape == (len(clips), backbone.embed_dim)
    assert found.dtype == torch.float32
    assert torch.isfinite(found).all()
    assert found.std(dim=0).max() > 0, "every clip has the same embedding"


def test_evaluation_mode_is_deterministic(backbone, clips):
    with torch.no_grad():
        assert torch.equal(backbone(inputs_of(backbone, clips)), backbone(inputs_of(backbone, clips)))


def test_a_clip_is_embedded_the_same_alone_and_in_company(backbone, clips):
    together = embed(backbone, clips)
    alone = torch.cat([embed(backbone, clips[row : row + 1]) for row in range(3)])
    torch.testing.assert_close(together[:3], alone, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(together, embed(backbone, clips, batch_size=5), rtol=1e-3, atol=1e-4)
    assert 1 <= batch_of(backbone) <= 256


def test_arrays_are_embedded_as_clips_are(backbone, clips):
    arrays = {spec.kind: clips.media(spec.kind) for spec in backbone.input_specs}
    given = arrays if len(arrays) > 1 else next(iter(arrays.values()))
    held = clips.specs[backbone.input_specs[0].kind]
    if held.channels != backbone.input_specs[0].channels:
        given = held.pick_channels(given, backbone.input_specs[0])
    torch.testing.assert_close(embed(backbone, given), embed(backbone, clips))


# What facs-flow knows without labels takes no part in learning from them.
WITHOUT_GRADIENT = {"facs-flow": ("directions", "unit_head.weight", "unit_head.bias")}


def test_every_trainable_parameter_gets_a_gradient_from_the_training_loss(backbone, clips):
    # Some layers start at zero on purpose, and what lies before them has no gradient until they have moved.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    loss = loss_of(backbone, clips)
    assert loss.ndim == 0
    loss.backward()
    for parameter_name, parameter in backbone.named_parameters():
        if parameter.requires_grad and not parameter_name.endswith(WITHOUT_GRADIENT.get(backbone.name, ())):
            assert parameter.grad is not None, parameter_name
            assert torch.isfinite(parameter.grad).all(), parameter_name
            assert parameter.grad.any(), parameter_name


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


def test_the_number_of_classes_may_change(backbone, clips):
    for classes in (("a", "b"), ("a", "b", "c", "d", "e")):
        labels = [classes[place % len(classes)] for place in range(len(clips))]
        media = {spec.kind: clips.media(spec.kind) for spec in backbone.input_specs}
        specs = [clips.specs[spec.kind] for spec in backbone.input_specs]
        relabelled = fsmer.ClipSet.from_arrays(media, labels, aus=clips.table["aus"].tolist(), spec=specs)
        loss = loss_of(backbone, relabelled)
        loss.backward()
        assert torch.isfinite(loss)
        assert embed(backbone, relabelled).shape == (len(clips), backbone.embed_dim)


def test_save_and_load_are_equal_to_the_bit(backbone, clips, tmp_path: Path):
    backbone.set_classes(("one", "two"))
    backbone.finish_training()
    backbone.eval()
    backbone.save_pretrained(tmp_path / "weights")
    again = load_model(tmp_path / "weights")
    assert type(again) is type(backbone)
    assert not again.training
    assert again.config == backbone.config
    assert again.input_specs == backbone.input_specs
    assert model_hash(again) == model_hash(backbone)
    assert torch.equal(embed(again, clips), embed(backbone, clips))
    assert sorted(path.suffix for path in (tmp_path / "weights").iterdir()) == [".json", ".safetensors"]


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


def test_loading_draws_nothing_and_keeps_what_is_not_stored(backbone, clips, tmp_path: Path):
    backbone.save_pretrained(tmp_path / "weights")
    state = torch.get_rng_state()
    again = load_model(tmp_path / "weights")
    assert torch.equal(torch.get_rng_state(), state)
    unsaved = {name: value for name, value in backbone.named_buffers() if name not in backbone.state_dict()}
    for name, value in again.named_buffers():
        if name in unsaved:
            assert torch.equal(value, unsaved[name]), name
    assert all(not value.is_meta for value in [*again.parameters(), *again.buffers()])


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
    with pytest.raises(SpecMismatchError, match=f"{backbone.name}.*expects"):
        embed(backbone, missing)
    arrays = {one.kind: np.zeros((2, *one.shape), dtype=np.float32) for one in backbone.input_specs}
    arrays[spec.kind][1].flat[0] = np.nan
    with pytest.raises(MediaError, match="number 1"):
        embed(backbone, arrays)


def test_embedding_leaves_training_mode_as_it_was(backbone, clips):
    backbone.train()
    embed(backbone, clips)
    assert backbone.training


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


@pytest.mark.parametrize("method", ["cosine", "protonet", "finetune"])
def test_it_adapts_with_the_backbone_frozen(backbone, method):
    clips = clips_for(backbone, 15)
    recognizer = adapt(backbone, clips, method)
    assert recognizer.backbone is backbone
    probabilities = recognizer.predict_proba(clips)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_it_adapts_with_the_backbone_trained_too_and_saves(backbone, tmp_path: Path):
    clips = clips_for(backbone, 12)
    before = model_hash(backbone)
    recognizer = adapt(backbone, clips, "finetune", train_backbone=True, steps=3, encoder_rate=1e-3)
    assert model_hash(backbone) == before
    assert model_hash(recognizer.backbone) != before
    recognizer.save(tmp_path / "saved")
    again = fsmer.Recognizer.load(tmp_path / "saved")
    np.testing.assert_array_equal(again.predict_proba(clips), recognizer.predict_proba(clips))


def test_it_trains_by_its_recipe_is_saved_and_shows_where_it_looks(backbone, tmp_path: Path):
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
