"""MERAU: three projections side by side, a frozen action unit branch, its detector, and directions from it."""

from __future__ import annotations

import copy
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_models import assert_words_tell_two_classes
from torch import nn

import fsmer
from fsmer.backbones.base import model_hash
from fsmer.backbones.flow_resnet18 import FlowResNet18
from fsmer.backbones.merau import MERAU_UNITS, Merau, au_loss
from fsmer.backbones.registry import class_notes
from fsmer.backbones.targets import Targets
from fsmer.backbones.tcae import Tcae
from fsmer.data import ClipSet, InputSpec, action_unit
from fsmer.data.media import ArrayStore
from fsmer.errors import DataError, FsmerError, SpecMismatchError, SupportError, WeightsError
from fsmer.synthetic import synthetic_clips
from fsmer.training.preparation import train_part
from fsmer.transfer import load_method

TINY = {
    "frame_size": 16,
    "frame_width": 4,
    "code_dim": 16,
    "projection_dim": 12,
    "flow": {"size": 32, "widths": [8, 8, 8, 16], "depths": [1, 1, 1, 1]},
}
RGB = ("red", "green", "blue")


def fit_detector(model: Merau, clips: ClipSet, progress=None, **options) -> list[float]:
    return train_part(model.detector_preparation(clips, **options), progress=progress)


def tiny(**arguments) -> Merau:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Merau(**{**TINY, **arguments})


def inputs(n: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "flow": 10 * torch.randn(n, 2, 32, 32, generator=generator),
        "apex": torch.rand(n, 3, 16, 16, generator=generator),
    }


def au_clips(n: int = 60, *, aus: list[str] | None = None, size: int = 16) -> ClipSet:
    """Apex frames in which AU 12 brightens the lower half and AU 4 the upper one; AU 1 is noise."""
    import pandas as pd

    rng = np.random.default_rng(0)
    units = rng.random((n, 3)) < 0.5
    frames = 0.15 * rng.random((n, 3, size, size)).astype(np.float32)
    frames[units[:, 0], :, size // 2 :] += 0.6
    frames[units[:, 1], :, : size // 2] += 0.6
    texts = ["+".join(str(number) for number, on in zip((12, 4, 1), row, strict=True) if on) or "0" for row in units]
    table = pd.DataFrame({"clip": [f"c{number}" for number in range(n)], "aus": aus or texts, "label": "a"})
    spec = InputSpec("apex", (size, size), RGB, "unit")
    return ClipSet.from_table(table, {"apex": ArrayStore(frames, spec)})


# -- the network ------------------------------------------------------------------------------------------------------


def test_the_ten_units_are_those_that_the_paper_names_in_its_order():
    wanted = ("Inner Brow Raiser", "Outer Brow Raiser", "Brow Lower", "Lid Tightener", "Nose Wrinkler")
    wanted += ("Upper Lip Raiser", "Lip Corner Puller", "Dimpler", "Lip Corner Depressor", "Chin Raiser")
    for number, name in zip(MERAU_UNITS, wanted, strict=True):
        assert action_unit(number).name.startswith(name)


def test_the_embedding_is_flow_code_and_logits_each_projected_and_cut_at_zero():
    model, media = tiny().eval(), inputs()
    with torch.no_grad():
        found = model(media).numpy()
        code, logits = model.au_features(media)
        flow = model.flow_encoder(media["flow"])
    parts = []
    for features, layer in (
        (flow, model.projection_flow),
        (code, model.projection_code),
        (logits, model.projection_logits),
    ):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        parts.append(np.maximum(np.einsum("nd,kd->nk", features.numpy(), weight) + bias, 0))
    np.testing.assert_allclose(found, np.concatenate(parts, axis=1), rtol=1e-4, atol=1e-5)
    assert found.shape == (4, model.embed_dim) == (4, 36)
    assert flow.shape == (4, 16)
    assert logits.shape == (4, 10)


def test_the_paper_sized_network_has_the_parameters_of_its_layers():
    with torch.device("meta"):
        model = Merau()
    counts = {name: sum(value.numel() for value in part.parameters()) for name, part in model.named_children()}
    assert counts["au_encoder"] == 8_035_488 - (3 * (256 * 256 * 16 + 256) + 4 * 256)  # TCAE's without the pose branch
    assert counts["au_detector"] == 2 * 256 + 256 * 10
    assert counts["flow_encoder"] == 11_176_512 - 64 * 49  # ResNet18 on two channels, without its classifier
    assert counts["projection_flow"] == 512 * 128 + 128
    assert counts["projection_code"] == 256 * 128 + 128
    assert counts["projection_logits"] == 10 * 128 + 128
    assert model.embed_dim == 384
    assert [spec.kind for spec in model.input_specs] == ["flow", "apex"]
    assert model.input_specs[1].size == (256, 256)


def test_training_changes_flow_encoder_and_projections_and_leaves_the_action_unit_branch_alone():
    model = tiny().train()
    frozen = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("au_")}
    classifier = nn.Linear(36, 2)
    targets = Targets(torch.tensor([0, 1, 0, 1]), ("a", "b"))
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], 1e-2)
    model.training_loss(inputs(), targets, classifier).backward()
    for name, value in model.named_parameters():
        assert value.requires_grad is not name.startswith("au_"), name
        assert (value.grad is not None) is value.requires_grad, name
    optimizer.step()
    for name, value in frozen.items():
        assert torch.equal(model.state_dict()[name], value), name


def test_learning_rates_are_those_of_table_2_for_every_trained_parameter():
    rates = Merau.recipe.rates
    for name, value in tiny().named_parameters():
        if value.requires_grad:
            (fitting,) = [prefix for prefix in rates if name.startswith(prefix)]
            assert rates[fitting] == (1e-5 if name.startswith("flow_encoder") else 1.2e-3), name
    assert rates["classifier"] == 1.2e-3


def test_the_cosine_classifier_of_the_paper_is_the_cosine_to_each_class_and_no_more():
    """Equations 6 and 7, after fine-tuning with the options that leave fsmer's own additions out."""
    model = tiny().eval()
    clips = fsmer.synthetic_clips("lab", 9, seed=2, specs=model.input_specs)
    recognizer = fsmer.adapt(
        model, clips, "cosine", train_backbone=True, steps=2, init="random", scale=1.0, centre=False, pull=0.0
    )
    with torch.no_grad():
        media = {kind: torch.from_numpy(clips.read(kind)) for kind in ("flow", "apex")}
        embeddings = recognizer.backbone.eval()(media).double().numpy()
    weights = recognizer.head.weight[0].double().numpy()
    expected = np.zeros((9, len(recognizer.classes_)))
    for row, e in enumerate(embeddings):
        for column, w in enumerate(weights):
            expected[row, column] = sum(e * w) / (math.sqrt(sum(e**2)) * math.sqrt(sum(w**2)))
    expected = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(recognizer.predict_proba(clips), expected, atol=1e-5)
    assert np.ptp(expected) > 0.01


def test_save_and_load_round_trip(tmp_path: Path):
    model = tiny(units=[4, 12]).eval()
    fit_detector(model, au_clips(), epochs=2)
    model.save_pretrained(tmp_path)
    again = Merau.from_pretrained(tmp_path)
    assert again.config == model.config
    assert model_hash(again) == model_hash(model)
    assert torch.equal(again(inputs()), model(inputs()))


def test_bfloat16_a_single_clip_and_the_same_answer_twice():
    model = tiny().eval().to(torch.bfloat16)
    media = {kind: value[:1].to(torch.bfloat16) for kind, value in inputs().items()}
    with torch.no_grad():
        assert torch.equal(model(media), model(media))
        assert model(media).shape == (1, 36)


@pytest.mark.parametrize("arguments", [{"frame_size": 100}, {"units": []}, {"units": [4, 4]}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(FsmerError, match=r"power of two|different action units"):
        tiny(**arguments)


@pytest.mark.parametrize(
    ("media", "message"),
    [
        (inputs()["flow"], r"flow .* and apex "),
        ({"apex": inputs()["apex"]}, r"flow .* and apex "),
        ({"flow": inputs()["flow"]}, "apex"),
        ({**inputs(), "apex": torch.zeros(4, 3, 32, 32)}, r"\(4, 3, 32, 32\)"),
    ],
)
def test_other_inputs_are_refused(media, message: str):
    with pytest.raises(SpecMismatchError, match=message):
        tiny().eval()(media)


# -- the encoder of a trained TCAE ------------------------------------------------------------------------------------


def test_the_encoder_of_a_tcae_gives_its_action_unit_code():
    tcae = Tcae(size=16, width=4, code_dim=16).eval()
    model = tiny().eval()
    model.load_au_encoder(tcae)
    with torch.no_grad():
        code, _ = model.au_features(inputs())
        torch.testing.assert_close(code, tcae({"onset": inputs()["apex"], "apex": inputs()["apex"]}))


def test_a_folder_of_a_trained_tcae_gives_encoder_and_sizes_and_is_not_needed_again(tmp_path: Path):
    trained = Tcae(size=32, width=2, code_dim=6)
    trained.save_pretrained(tmp_path / "tcae")
    model = tiny(tcae=str(tmp_path / "tcae")).eval()
    assert (model.config["frame_size"], model.config["frame_width"], model.config["code_dim"]) == (32, 2, 6)
    frames = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.au_encoder(frames), trained.eval().encoder.codes(frames)[0])
    model.save_pretrained(tmp_path / "merau")
    shutil.rmtree(tmp_path / "tcae")
    again = Merau.from_pretrained(tmp_path / "merau")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(WeightsError, match=r"'merau'.*'tcae'"):
        tiny(tcae=str(tmp_path / "merau"))


def test_supervised_training_fits_the_detector_first_once_and_says_when_it_cannot():
    model = tiny()
    clips = synthetic_clips("lab", 12, seed=1, specs=model.input_specs)
    method = load_method("train", epochs=1, batch_size=6)
    trained = method.fit(model, clips).backbone
    expected = copy.deepcopy(model)
    fit_detector(expected, clips, seed=0)
    for part in ("au_detector.1.weight", "unit_logits"):
        assert torch.equal(trained.state_dict()[part], expected.state_dict()[part]), part
    assert not model.unit_logits.any(), "the model that was given stays as it is"
    again = method.fit(trained, clips[:6]).backbone
    assert torch.equal(again.unit_logits, trained.unit_logits)
    plain = ClipSet.from_arrays(
        {spec.kind: clips.media(spec.kind) for spec in model.input_specs}, clips.labels, spec=model.input_specs
    )
    with pytest.warns(UserWarning, match=r"'merau'.*0 of 12 clips"):
        assert not method.fit(model, plain).backbone.unit_logits.any()


def annotated(model: Merau, n: int = 12, *, seed: int = 1, aus: bool = True) -> ClipSet:
    clips = synthetic_clips("lab", n, seed=seed, specs=model.input_specs)
    if aus:
        return clips
    media = {spec.kind: clips.media(spec.kind) for spec in model.input_specs}
    return ClipSet.from_arrays(media, clips.labels, subjects=clips.subjects, spec=model.input_specs)


@pytest.mark.parametrize("name", ["finetune", "cosine"])
def test_fine_tuning_fits_the_detector_on_the_source_and_else_on_the_support(name: str):
    model = tiny()
    source, support = annotated(model), annotated(model, 9, seed=2)
    how = {"train_backbone": True, "steps": 1, "source_epochs": 1}
    expected = {}
    for place, clips in (("source", source), ("support", support)):
        fitted = copy.deepcopy(model)
        fit_detector(fitted, clips, seed=0)
        expected[place] = fitted.state_dict()["au_detector.1.weight"]
    assert not torch.equal(expected["source"], expected["support"])
    taught = fsmer.adapt(model, support, name, source=source, **how).backbone
    assert torch.equal(taught.state_dict()["au_detector.1.weight"], expected["source"])
    assert taught.unit_logits.any()
    alone = fsmer.adapt(model, support, name, **how).backbone
    assert torch.equal(alone.state_dict()["au_detector.1.weight"], expected["support"])
    assert not model.unit_logits.any(), "the model that was given stays as it is"


def test_a_detector_that_stays_random_is_told_on_every_path():
    model = tiny()
    plain, other = annotated(model, aus=False), annotated(model, 9, seed=2, aus=False)
    how = {"train_backbone": True, "steps": 1, "source_epochs": 1}
    paths = {
        "embed": lambda: fsmer.embed(model, plain),
        "frozen": lambda: fsmer.adapt(model, plain, "protonet"),
        "finetune": lambda: fsmer.adapt(model, plain, "finetune", **how),
        "source": lambda: fsmer.adapt(model, other, "cosine", source=plain, **how),
        "train": lambda: fsmer.train(model, plain, epochs=1),
        "mmd": lambda: fsmer.mmd(plain, other, model=model, permutations=0),
        "evaluate": lambda: fsmer.evaluate("loso", model, "protonet", clips=plain, cache=False),
    }

    def told(call) -> list[str]:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            call()
        return [str(one.message) for one in said if "detector of 'merau'" in str(one.message)]

    for name, call in paths.items():
        found = told(call)
        assert found, name
        assert all("random" in one for one in found), name
    fit_detector(model, annotated(model))
    assert [name for name, call in paths.items() if told(call)] == []


# -- learning rates and augmentation ----------------------------------------------------------------------------------


def test_random_encoders_learn_at_a_stated_higher_rate_and_trained_ones_at_the_papers():
    fresh = tiny()
    trained = copy.deepcopy(fresh)
    with torch.no_grad():
        trained.train()(inputs(8))  # batch statistics of an encoder that has seen something
    assert fresh.untrained
    assert not trained.untrained
    clips = annotated(fresh)

    def moved(model: Merau, name: str, **params) -> float:
        after = load_method(name, seed=0, **params).fit(model, clips).backbone
        pairs = zip(model.flow_encoder.parameters(), after.flow_encoder.parameters(), strict=True)
        # Adam's first step is as long as the learning rate.
        return max(float((one - other).detach().abs().max()) for one, other in pairs)

    once = {"train_backbone": True, "steps": 1}
    with pytest.warns(UserWarning, match=r"'merau' starts from random weights.* 0\.001 .*1e-05"):
        assert moved(fresh, "finetune", **once) == pytest.approx(1e-3, rel=0.01)
    with pytest.warns(UserWarning, match=r"'merau' starts from random weights.* 0\.001 in place of 1e-05"):
        assert moved(fresh, "train", epochs=1) == pytest.approx(1e-3, rel=0.01)
    with pytest.warns(UserWarning, match="hardly move at the learning rate 1e-05"):
        assert moved(fresh, "finetune", **once, random_encoder_rate=0) == pytest.approx(1e-5, rel=0.05)
    assert moved(fresh, "finetune", **once, encoder_rate=0) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert moved(fresh, "finetune", **once, encoder_rate=5e-3) == pytest.approx(5e-3, rel=0.01)
        assert moved(trained, "finetune", **once) == pytest.approx(1e-5, rel=0.05)
        assert moved(trained, "train", epochs=1) == pytest.approx(1e-5, rel=0.05)


def test_pretrained_weights_and_saved_networks_count_as_trained(tmp_path: Path):
    flow = FlowResNet18(**TINY["flow"])
    assert flow.untrained
    with torch.no_grad():
        flow.train()(inputs(8)["flow"])
    flow.save_pretrained(tmp_path / "trained")
    FlowResNet18(**TINY["flow"]).save_pretrained(tmp_path / "random")
    assert not fsmer.load_model(tmp_path / "trained").untrained
    assert fsmer.load_model(tmp_path / "random").untrained
    save_file(
        {name: value.contiguous() for name, value in flow.encoder.state_dict().items()}, tmp_path / "e.safetensors"
    )
    model = tiny(flow=TINY["flow"] | {"weights": str(tmp_path / "e.safetensors")})
    assert not model.untrained
    assert FlowResNet18.recipe.for_weights(untrained=True).rates["encoder"] == 1e-3
    assert FlowResNet18.recipe.for_weights(untrained=False).rates["encoder"] == 1e-5


@pytest.mark.slow
def test_reports_say_at_which_rate_random_weights_have_learnt():
    arguments = dict(TINY)
    clips = annotated(tiny(), 24)
    how = {"train_backbone": True, "steps": 1, "batch_size": 64}
    with pytest.warns(UserWarning, match="random_encoder_rate"):
        report = fsmer.evaluate("ratio", "merau", load_method("finetune", **how), clips=clips, arguments=arguments)
    assert any("random_encoder_rate" in note and "1e-05" in note for note in report.notes)


def test_source_clips_are_augmented_when_asked_and_the_support_never_is(monkeypatch):
    model = tiny()
    fit_detector(model, annotated(model))
    seen: list[torch.Tensor] = []
    plain = Merau.forward

    def looking(self, media):
        if self.training:
            seen.append(media["flow"].clone())
        return plain(self, media)

    monkeypatch.setattr(Merau, "forward", looking)
    source, support = annotated(model, 12), annotated(model, 9, seed=2)
    given = {tuple(one.ravel()[:40].tolist()) for one in source.media("flow")}

    def unchanged(**params) -> float:
        seen.clear()
        method = load_method("finetune", train_backbone=True, source_epochs=2, steps=1, **params)
        method.train_source(model, source)
        shown = [tuple(one.ravel()[:40].tolist()) for batch in seen for one in batch]
        assert len(shown) == 24
        return sum(one in given for one in shown) / len(shown)

    assert unchanged() == 1
    assert unchanged(source_augment=True) < 0.2
    one, other = (
        load_method("finetune", train_backbone=True, source_epochs=2, source_augment=True).train_source(model, source)
        for _ in range(2)
    )
    assert model_hash(one.backbone) == model_hash(other.backbone), "the same seed gives the same changes"
    fixed = {"train_backbone": True, "source_epochs": 0, "steps": 2}
    pairs = [load_method("finetune", **fixed, source_augment=on).fit(model, support) for on in (False, True)]
    assert model_hash(pairs[0].backbone) == model_hash(pairs[1].backbone)


def test_the_encoder_of_another_shape_is_refused():
    for change in ({"size": 32}, {"width": 8}, {"code_dim": 8}):
        with pytest.raises(SpecMismatchError, match="|".join(change)):
            tiny().load_au_encoder(Tcae(**{"size": 16, "width": 4, "code_dim": 16, **change}))


# -- the detector -----------------------------------------------------------------------------------------------------


def test_the_detectors_loss_is_the_mean_binary_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits, present = torch.randn(5, 10, generator=generator), (torch.rand(5, 10, generator=generator) < 0.3).float()
    expected = 0.0
    for row in range(5):
        for unit in range(10):
            p = 1 / (1 + math.exp(-float(logits[row, unit])))
            y = float(present[row, unit])
            expected -= (y * math.log(p) + (1 - y) * math.log(1 - p)) / 50
    assert float(au_loss(logits, present)) == pytest.approx(expected, rel=1e-5)


def test_the_detector_learns_units_that_can_be_seen_and_is_frozen_again():
    model = tiny(units=[4, 12]).eval()
    clips = au_clips(120)
    encoder = {name: value.clone() for name, value in model.au_encoder.state_dict().items()}
    done: list[int] = []
    losses = fit_detector(model, clips[:80], epochs=60, learning_rate=0.01, progress=lambda now, _: done.append(now))
    assert len(losses) == 60
    assert done[-1] == 60
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        _, logits = model.au_features({"apex": torch.from_numpy(clips.read("apex", np.arange(80, 120)))})
    texts = clips.table["aus"].tolist()[80:]
    truth = np.array([["4" in text.split("+"), "12" in text.split("+")] for text in texts])
    assert ((logits.numpy() > 0) == truth).mean() > 0.95
    assert not any(value.requires_grad for value in model.au_detector.parameters())
    assert not model.au_detector.training
    for name, value in encoder.items():
        assert torch.equal(model.au_encoder.state_dict()[name], value), name
    overall, absent, present = model.unit_logits
    assert (absent < overall).all()
    assert (overall < present).all()


def test_the_detector_is_the_same_for_the_same_seed_and_leaves_global_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    found = []
    for seed in (0, 0, 1):
        model = tiny(units=[4, 12])
        fit_detector(model, au_clips(), epochs=2, seed=seed)
        found.append(model_hash(model))
    assert found[0] == found[1] != found[2]
    assert torch.equal(torch.rand(1), expected)


def test_clips_without_annotation_are_left_out_and_none_at_all_are_refused():
    texts = au_clips(40).table["aus"].tolist()
    half, whole = tiny(units=[4, 12]), tiny(units=[4, 12])
    fit_detector(half, au_clips(40, aus=[*texts[:20], *[""] * 20]), epochs=1)
    fit_detector(whole, au_clips(40)[:20], epochs=1)
    assert model_hash(half) == model_hash(whole)
    with pytest.raises(DataError, match="0 of 40 clips"):
        fit_detector(tiny(), au_clips(40, aus=[""] * 40))
    with pytest.raises(SpecMismatchError, match=r"apex.*16x16"):
        fit_detector(tiny(), au_clips(40, size=32))


# -- directions without labels ----------------------------------------------------------------------------------------


def test_a_detector_that_was_never_trained_knows_no_class():
    assert tiny().class_directions(["happiness", "disgust"]) is None


def test_classes_are_told_apart_by_their_units_without_a_label():
    model = tiny(units=[4, 12], projection_dim=64).eval()
    clips = au_clips(200)
    fit_detector(model, clips[:120], epochs=60, learning_rate=0.01)
    texts = clips.table["aus"].tolist()
    asked = [row for row in range(120, 200) if ("4" in texts[row].split("+")) != ("12" in texts[row].split("+"))]
    media = {
        "apex": torch.from_numpy(clips.read("apex", np.array(asked))),
        "flow": 10 * torch.randn(len(asked), 2, 32, 32, generator=torch.Generator().manual_seed(0)),
    }
    truth = np.array(["AU4" if "4" in texts[row].split("+") else "AU12" for row in asked])
    for names in (["AU4", "lip corner puller"], ["disgust", "happiness"], ["negative", "positive"]):
        directions = model.class_directions(names)
        assert directions is not None
        assert bool(directions.known.all())
        with torch.no_grad():
            answers = directions.logits(model(media)).argmax(dim=1).numpy()
        assert (np.array(["AU4", "AU12"])[answers] == truth).mean() > 0.9, names


def shown_clips(n: int, *, seed: int) -> ClipSet:
    """Clips of a frown (AU 4) or a smile (AU 12) with the apex frames of `au_clips` and flow that says nothing."""
    import pandas as pd

    frames = au_clips(4 * n)
    texts = [set(text.split("+")) for text in frames.table["aus"]]
    rows = [row for row, units in enumerate(texts) if ("4" in units) != ("12" in units)][:n]
    flow = 10 * np.random.default_rng(seed).normal(size=(len(rows), 2, 32, 32)).astype(np.float32)
    table = pd.DataFrame(
        {
            "clip": [f"c{row}" for row in rows],
            "subject": [f"s{row}" for row in rows],
            "aus": [frames.table["aus"].iloc[row] for row in rows],
            "label": ["frown" if "4" in texts[row] else "smile" for row in rows],
        }
    )
    model = tiny()
    media = zip(model.input_specs, (flow, frames.read("apex", np.array(rows))), strict=True)
    return ClipSet.from_table(table, {spec.kind: ArrayStore(values, spec) for spec, values in media})


def test_words_alone_recognise_classes_and_labelled_clips_do_not_harm_them():
    clips = shown_clips(110, seed=3)
    model = tiny(units=[4, 12], projection_dim=32).eval()
    words = {"frown": "brow lowerer", "smile": "AU12"}
    with pytest.raises(SupportError):
        fsmer.recognizer_of_words(model, words)
    fit_detector(model, clips[:70], epochs=60, learning_rate=0.01)
    asked = clips[70:]
    assert_words_tell_two_classes(model, asked, words)


def test_a_class_without_a_detected_unit_is_unknown():
    model = tiny(units=[4, 12])
    fit_detector(model, au_clips(), epochs=1)
    directions = model.class_directions(["happiness", "no such class", "AU25"])
    assert directions.known.tolist() == [True, False, False]
    assert model.class_directions(["AU25", "no such class"]) is None


def test_the_card_says_what_a_tcae_without_pretraining_is_worth():
    card = " ".join(class_notes(Merau).split())
    assert "With a TCAE that was not pretrained the action unit code is random" in card
    assert "classes described in words stay at chance" in card
