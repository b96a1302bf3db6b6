"""The attribute 3D-ResNets: shapes of Table I, the contrastive loss, words in training and none in inference."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import assert_words_tell_two_classes
from torch import Tensor, nn
from torch.nn import functional as F

import fsmer
from fsmer.backbones import model_hash
from fsmer.backbones.r3d_attribute import (
    BasicBlock,
    R3D10Attribute,
    R3D18Attribute,
    R3D34Attribute,
    ResNet3D,
    cross_modal_contrastive,
)
from fsmer.backbones.registry import class_notes
from fsmer.backbones.targets import Targets
from fsmer.data import ClipSet
from fsmer.data.facs import ACTION_UNIT_ORDER
from fsmer.data.media import ArrayStore
from fsmer.errors import DataError, FsmerError, SpecMismatchError, WeightsError
from fsmer.synthetic.domains import THREE_CLASSES
from fsmer.synthetic.facs_fields import EMOTION_ACTION_UNITS

ALL = (R3D10Attribute, R3D18Attribute, R3D34Attribute)
CLASSES = ("happiness", "surprise")
STAGES = ("conv1", "conv2_x", "conv3_x", "conv4_x", "conv5_x", "average_pool", "fc")


def tiny(cls: type[R3D10Attribute] = R3D10Attribute, **changes: object) -> R3D10Attribute:
    torch.manual_seed(0)
    arguments = {"width": 4, "size": 20, "frames": 8, "stream_dim": 8, "text": "scratch", **changes}
    return cls(**arguments)


def media(clips: int = 4, *, frames: int = 8, size: int = 20, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "frames": torch.rand(clips, frames, 3, size, size, generator=generator),
        "flows": torch.randn(clips, frames, 2, size, size, generator=generator),
    }


def units(*rows: tuple[int, ...] | None) -> Tensor:
    """Rows of 0 and 1, or of NaN for None."""
    return torch.tensor(
        [
            [math.nan] * len(ACTION_UNIT_ORDER)
            if row is None
            else [float(number in row) for number in ACTION_UNIT_ORDER]
            for row in rows
        ]
    )


def targets(*rows: tuple[int, ...] | None, labels: tuple[int, ...] = (0, 1, 0, 1)) -> Targets:
    return Targets(torch.tensor(labels[: len(rows)]), CLASSES, units(*rows))


SHOWN = ((6, 12), (1, 2), (12,), (1, 2, 5))


def trained(**changes: object) -> R3D10Attribute:
    """A tiny model after three steps of training."""
    model = tiny(**changes)
    model.set_classes(CLASSES)
    classifier = nn.Linear(model.embed_dim, 2)
    optimizer = torch.optim.Adam([*model.parameters(), *classifier.parameters()], lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        model.train().training_loss(media(), targets(*SHOWN), classifier).backward()
        optimizer.step()
    return model.eval()


# Table I of the paper (time, height, width), and the shapes of the cited 3D-ResNets' code.
TABLE_I = {
    "conv1": (64, 8, 56, 56),
    "conv2_x": (64, 8, 56, 56),
    "conv3_x": (128, 4, 28, 28),
    "conv4_x": (256, 2, 14, 14),
    "conv5_x": (512, 1, 7, 7),
    "average_pool": (512,),
    "fc": (128,),
}
HARA = {
    "conv1": (64, 8, 28, 28),
    "conv2_x": (64, 8, 28, 28),
    "conv3_x": (128, 4, 14, 14),
    "conv4_x": (256, 2, 7, 7),
    "conv5_x": (512, 1, 4, 4),
    "average_pool": (512,),
    "fc": (128,),
}


@pytest.mark.parametrize("depth", [10, 18, 34])
@pytest.mark.parametrize("channels", [3, 2])
@pytest.mark.parametrize(("stem", "expected"), [("table", TABLE_I), ("hara", HARA)])
def test_every_stage_has_the_shape_of_the_table(depth, channels, stem, expected):
    # Shapes alone: the meta device computes no numbers.
    with torch.device("meta"):
        network = ResNet3D(channels, depth=depth, width=64, embed_dim=128, stem=stem, shortcut="B")
        features = torch.zeros(1, channels, 16, 112, 112)
    found = {}
    for name, layer in network.named_children():
        features = layer(features)
        found[name] = tuple(features.shape[1:])
    assert found == expected
    assert tuple(found) == STAGES


@pytest.mark.parametrize(("cls", "blocks"), [(ALL[0], (1, 1, 1, 1)), (ALL[1], (2, 2, 2, 2)), (ALL[2], (3, 4, 6, 3))])
def test_blocks_a_stage_are_those_of_table_i(cls, blocks):
    with torch.device("meta"):
        model = cls()
    for stream in (model.rgb, model.flow):
        assert tuple(len(getattr(stream, f"conv{number}_x")) for number in (2, 3, 4, 5)) == blocks
        assert all(isinstance(block, BasicBlock) for block in stream.conv3_x)


@pytest.mark.parametrize(("cls", "blocks"), [(ALL[0], (1, 1, 1, 1)), (ALL[1], (2, 2, 2, 2)), (ALL[2], (3, 4, 6, 3))])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_parameters_are_as_many_as_the_table_says(cls, blocks, shortcut):
    def stream(channels: int) -> int:
        total = channels * 64 * 3 * 7 * 7 + 2 * 64
        inputs = 64
        for number, count in enumerate(blocks):
            outputs = 64 * 2**number
            total += inputs * outputs * 27 + (2 * count - 1) * outputs * outputs * 27 + 2 * count * 2 * outputs
            if shortcut == "B" and number:
                total += inputs * outputs + 2 * outputs
            inputs = outputs
        return total + 512 * 128 + 128

    with torch.device("meta"):
        model = cls(shortcut=shortcut)
    assert sum(value.numel() for value in model.parameters()) == stream(3) + stream(2)


def test_the_three_depths_have_28_8_66_5_and_127_1_million_parameters():
    for cls, millions in zip(ALL, (28.8, 66.5, 127.1), strict=True):
        with torch.device("meta"):
            model = cls()
        assert sum(value.numel() for value in model.parameters()) == pytest.approx(millions * 1e6, abs=5e4)
        assert model.embed_dim == 256
        assert [spec.shape for spec in model.input_specs] == [(16, 3, 112, 112), (16, 2, 112, 112)]


def test_training_is_that_of_section_iv_c():
    for cls in ALL:
        recipe = cls.recipe
        assert (recipe.optimizer, recipe.learning_rate, recipe.weight_decay) == ("adam", 1e-4, 0)
        assert (recipe.epochs, recipe.batch_size, recipe.schedule, recipe.augment) == (200, 32, "constant", ())


def test_the_streams_share_no_weights_and_stand_side_by_side():
    model = tiny().eval()
    inputs = media(2)
    with torch.no_grad():
        both = model(inputs)
        still = model({**inputs, "flows": torch.zeros_like(inputs["flows"])})
    assert torch.equal(both[:, :8], still[:, :8])
    assert not torch.allclose(both[:, 8:], still[:, 8:])
    shared = {value.data_ptr() for value in model.rgb.parameters()} & {
        value.data_ptr() for value in model.flow.parameters()
    }
    assert not shared


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_gradients_pass_both_kinds_of_shortcut(shortcut):
    block = BasicBlock(2, 5, 2, shortcut)
    with torch.no_grad():
        for convolution in (block.conv1, block.conv2):
            convolution.weight.zero_()
    inputs = torch.ones(2, 2, 4, 4, 4, requires_grad=True)
    output = block.eval()(inputs)
    assert output.shape == (2, 5, 2, 2, 2)
    output.sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.abs().sum() > 0
    if shortcut == "A":
        assert torch.equal(output[:, :2], torch.ones(2, 2, 2, 2, 2))
        assert not output[:, 2:].any()


def numpy_contrastive(video: np.ndarray, text: np.ndarray, temperature: float = 1.0) -> float:
    """Eq. 3-5, clip by clip and pair by pair."""
    total = 0.0
    for i in range(len(video)):
        distances = []
        for j in range(len(text)):
            dot = sum(a * b for a, b in zip(video[i], text[j], strict=True))
            norms = math.sqrt(sum(a * a for a in video[i])) * math.sqrt(sum(b * b for b in text[j]))
            distances.append(math.exp(dot / norms / temperature))
        negatives = sum(distance for j, distance in enumerate(distances) if j != i)
        total -= math.log(distances[i] / (distances[i] + negatives))
    return total / len(video)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_the_contrastive_loss_is_equations_3_to_5(temperature):
    rng = np.random.default_rng(3)
    video, text = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    found = cross_modal_contrastive(
        torch.tensor(video, dtype=torch.float32), torch.tensor(text, dtype=torch.float32), temperature=temperature
    )
    assert float(found) == pytest.approx(numpy_contrastive(video, text, temperature), rel=1e-5)


def test_the_contrastive_loss_takes_video_as_anchor_and_text_as_candidates():
    video, text = torch.tensor([[1.0, 0.0], [1.0, 0.2]]), torch.tensor([[1.0, 0.1], [0.0, 1.0]])
    assert float(cross_modal_contrastive(video, text)) != pytest.approx(float(cross_modal_contrastive(text, video)))


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_training_loss_is_equation_8(alpha):
    model = tiny(alpha=alpha).eval()
    model.set_classes(CLASSES)
    model.eval()
    classifier = nn.Linear(16, 2)
    inputs, aims = media(3), targets((6, 12), (1, 2), (12,))
    with torch.no_grad():
        found = model.training_loss(inputs, aims, classifier)
        video = model(inputs)
        text = model.text_tower(
            [
                "the cheeks go up and the skin beside the eyes gathers; the corners of the mouth go up and outwards",
                "the inner ends of the eyebrows go up; the outer ends of the eyebrows go up",
                "the corners of the mouth go up and outwards",
            ]
        )

    def cross_entropy(logits: Tensor) -> float:
        rows = zip(logits.tolist(), (0, 1, 0), strict=True)
        return sum(math.log(sum(math.exp(x) for x in row)) - row[label] for row, label in rows) / 3

    class_losses = cross_entropy(classifier(video).detach()) + cross_entropy(model.text_classifier(text).detach())
    contrastive = numpy_contrastive(video.numpy(), text.numpy())
    assert float(found) == pytest.approx((1 - alpha) * class_losses + alpha * contrastive, rel=1e-4)


def test_clips_with_unknown_or_no_units_take_part_in_the_video_loss_alone():
    model = tiny().eval()
    model.set_classes(CLASSES)
    model.eval()
    classifier = nn.Linear(16, 2)
    inputs = media(4)
    with torch.no_grad():
        found = model.training_loss(inputs, targets((6, 12), None, (1, 2), ()), classifier)
        video = model(inputs)
        text = model.text_tower(
            [
                "the cheeks go up and the skin beside the eyes gathers; the corners of the mouth go up and outwards",
                "the inner ends of the eyebrows go up; the outer ends of the eyebrows go up",
            ]
        )
        class_losses = F.cross_entropy(classifier(video), torch.tensor([0, 1, 0, 1])) + F.cross_entropy(
            model.text_classifier(text), torch.tensor([0, 0])
        )
        contrastive = numpy_contrastive(video[[0, 2]].numpy(), text.numpy())
        nothing_told = model.training_loss(inputs, targets(None, None, None, None), classifier)
        video_loss = F.cross_entropy(classifier(video), torch.tensor([0, 1, 0, 1]))
    assert float(found) == pytest.approx(0.5 * float(class_losses) + 0.5 * contrastive, rel=1e-4)
    assert float(nothing_told) == pytest.approx(0.5 * float(video_loss), rel=1e-5)


def test_class_weights_count_in_both_class_losses():
    model = tiny().eval()
    model.set_classes(CLASSES)
    model.eval()
    classifier = nn.Linear(16, 2)
    weights = torch.tensor([1.0, 0.0])
    aims = targets(*SHOWN)
    weighted = Targets(aims.labels, CLASSES, aims.action_units, weights)
    with torch.no_grad():
        plain, only_first = (model.training_loss(media(), some, classifier) for some in (aims, weighted))
        video = classifier(model(media()))
        text = model.text_classifier(model._read(model.text_tower, aims.action_units > 0.5))
        change = sum(
            F.cross_entropy(logits, aims.labels, weights) - F.cross_entropy(logits, aims.labels)
            for logits in (video, text)
        )
    assert float(only_first - plain) == pytest.approx(0.5 * float(change), rel=1e-3)


@pytest.mark.parametrize("cls", ALL)
def test_every_parameter_gets_a_gradient(cls):
    model = tiny(cls)
    model.set_classes(CLASSES)
    classifier = nn.Linear(16, 2)
    model.train().training_loss(media(), targets(*SHOWN), classifier).backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.abs().any()]
    assert not without
    assert classifier.weight.grad.abs().any()


def test_without_text_no_action_units_are_needed_and_no_tower_is_made():
    model = tiny(alpha=0.0)
    model.set_classes(CLASSES)
    assert model.text_tower is None
    classifier = nn.Linear(16, 2)
    aims = Targets(torch.tensor([0, 1, 0, 1]), CLASSES)
    model.eval()
    with torch.no_grad():
        found = model.training_loss(media(), aims, classifier)
        assert float(found) == pytest.approx(float(F.cross_entropy(classifier(model(media())), aims.labels)))
    assert model.class_directions(CLASSES) is None


def test_absent_action_units_are_named_in_one_sentence():
    model = tiny()
    model.set_classes(CLASSES)
    aims = Targets(torch.tensor([0, 1, 0, 1]), CLASSES)
    with pytest.raises(DataError, match=r"no action units.*'aus' column, or set alpha=0"):
        model.training_loss(media(), aims, nn.Linear(16, 2))
    model.alpha = 0.0
    assert torch.isfinite(model.training_loss(media(), aims, nn.Linear(16, 2)))


def test_training_on_other_classes_than_the_text_side_was_made_for_is_refused():
    model = tiny()
    with pytest.raises(FsmerError, match=r"is not made yet.*happiness, surprise.*call set_classes"):
        model.training_loss(media(), targets(*SHOWN), nn.Linear(16, 2))
    model.set_classes(("a", "b", "c"))
    with pytest.raises(FsmerError, match=r"is made for a, b, c, but.*happiness, surprise"):
        model.training_loss(media(), targets(*SHOWN), nn.Linear(16, 2))


def test_new_classes_make_the_text_classifier_anew_and_keep_the_tower():
    model = trained()
    tower = model.text_tower
    model.set_classes(("a", "b", "c"))
    assert model.text_tower is tower
    assert model.text_classifier.weight.shape == (3, 16)


def test_the_text_side_is_gone_after_training_and_its_knowledge_stays():
    model = trained()
    before = model.class_directions(CLASSES)
    with torch.no_grad():
        embeddings = model(media())
    model.finish_training()
    assert not any(name.startswith("text_") for name, _ in model.named_parameters())
    after = model.class_directions(CLASSES)
    assert torch.equal(before.weight, after.weight)
    with torch.no_grad():
        assert torch.equal(model(media()), embeddings)


def test_saved_weights_need_no_text_tower(tmp_path: Path, monkeypatch):
    model = trained()
    model.save_pretrained(tmp_path / "weights")
    assert model.text_tower is not None, "saving must not end a training"
    size = (tmp_path / "weights" / "model.safetensors").stat().st_size
    streams = sum(4 * value.numel() for value in (*model.rgb.parameters(), *model.flow.parameters()))
    assert size < streams + 40_000

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a text tower was made")

    monkeypatch.setattr("fsmer.backbones.r3d_attribute.TextTower", refuse)
    again = R3D10Attribute.from_pretrained(tmp_path / "weights")
    again.set_classes(CLASSES)
    assert again.config == model.config
    assert torch.equal(again.class_directions(CLASSES).weight, model.class_directions(CLASSES).weight)
    with torch.no_grad():
        assert torch.equal(again(media()), model(media()))
    model.finish_training()
    assert model_hash(again) == model_hash(model)


def test_saved_weights_open_and_fetch_no_tower_of_others(tmp_path: Path, monkeypatch):
    def refuse(source: str) -> None:
        raise AssertionError(f"{source} was asked for")

    monkeypatch.setattr("fsmer.backbones.text_tower._read_checkpoint", refuse)
    for place in ("owner/tower", "tower", str(tmp_path)):
        tiny(text=place).save_pretrained(tmp_path / "weights")
        again = fsmer.load_model(tmp_path / "weights")
        words = f"names the text tower '{place}'.*'auto', 'minilm', 'scratch'"
        with pytest.raises(WeightsError, match=words):
            again.set_classes(CLASSES)
        with pytest.raises(WeightsError, match=words):
            fsmer.train(again, engine_clips(8, 1), epochs=1)
        # Taught ones do without it, wherever it was from.
        taught = tiny(text="scratch")
        taught.text_steps += 1
        taught.config["text"] = place
        taught.save_pretrained(tmp_path / "taught")
        fsmer.load_model(tmp_path / "taught").set_classes(CLASSES)


def test_saved_weights_tell_which_tower_taught_them_where_auto_was_asked_for(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("fsmer.backbones.text_tower.bundled_tower", lambda: None)
    untaught = tiny(text="auto")
    untaught.save_pretrained(tmp_path / "untaught")
    assert fsmer.load_model(tmp_path / "untaught").config["text"] == "auto"
    clips = engine_clips(8, 1)
    with pytest.warns(UserWarning, match="text tower is not installed") as said:
        recognizer = fsmer.train(untaught, clips, epochs=2, out=tmp_path / "trained")
    assert sum("text tower" in str(one.message) for one in said) == 1
    assert untaught.config["text"] == "auto", "the model that was given must stay as it is"
    recognizer.backbone.save_pretrained(tmp_path / "weights")
    for again in (fsmer.load_model(tmp_path / "weights"), fsmer.Recognizer.load(tmp_path / "trained").backbone):
        assert again.config == {**untaught.config, "text": "scratch"}
        assert model_hash(again) == model_hash(recognizer.backbone)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_trained_weights_go_on_without_action_units_by_the_labels_alone(alpha, tmp_path: Path):
    told, untold = engine_clips(8, 1), engine_clips(8, 2, units_known=False)
    with pytest.raises(DataError, match="no action units"):
        fsmer.train(tiny(alpha=alpha), untold, epochs=1)
    first = fsmer.train(tiny(alpha=alpha), told, epochs=1).backbone
    first.save_pretrained(tmp_path / "weights")
    words = first.class_directions(CLASSES).weight
    for go_on in (
        lambda: fsmer.train(tmp_path / "weights", untold, epochs=3),
        lambda: fsmer.adapt(fsmer.load_model(tmp_path / "weights"), untold, "finetune", train_backbone=True, steps=3),
    ):
        with pytest.warns(UserWarning, match="'r3d10_attribute' goes on .* by the labels alone") as said:
            tuned = go_on().backbone
        assert sum("labels alone" in str(one.message) for one in said) == 1
        assert model_hash(tuned) != model_hash(first)
        assert torch.equal(tuned.class_directions(CLASSES).weight, words)


def test_without_action_units_the_loss_of_trained_weights_is_that_of_the_video_classes():
    model = trained(alpha=0.7)
    classifier = nn.Linear(16, 2)
    aims = Targets(torch.tensor([0, 1, 0, 1]), CLASSES)
    with pytest.raises(DataError, match="no action units"):
        model.training_loss(media(), aims, classifier)  # the tower is still there
    model.finish_training()
    model.eval()
    with pytest.warns(UserWarning, match="labels alone"), torch.no_grad():
        found = model.training_loss(media(), aims, classifier)
    with torch.no_grad():
        assert float(found) == pytest.approx(float(F.cross_entropy(classifier(model(media())), aims.labels)))


def test_the_card_says_that_the_last_of_sixteen_flow_maps_is_a_repetition():
    card = " ".join(class_notes(R3D18Attribute).split())
    assert "16 frames have 15 flow maps between them; the 16th map repeats the last" in card


def test_fine_tuning_goes_on_with_the_vectors_that_the_tower_left():
    model = trained()
    model.finish_training()
    model.eval()
    kept = model.unit_embeddings.clone()
    classifier = nn.Linear(16, 2)
    model.training_loss(media(), targets(*SHOWN), classifier).backward()
    assert all(value.grad is not None for value in model.parameters())
    assert torch.equal(model.unit_embeddings, kept)
    rows = F.normalize(kept, dim=-1).numpy()
    text = np.stack([sum(rows[ACTION_UNIT_ORDER.index(number)] for number in shown) for shown in SHOWN])
    with torch.no_grad():
        video = model(media())
        expected = 0.5 * F.cross_entropy(classifier(video), torch.tensor([0, 1, 0, 1]))
        found = model.training_loss(media(), targets(*SHOWN), classifier)
    assert float(found) == pytest.approx(float(expected) + 0.5 * numpy_contrastive(video.numpy(), text), rel=1e-4)


def test_a_checkpoint_holds_the_text_side_and_goes_on_to_the_same_numbers():
    def steps(model: R3D10Attribute, classifier: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            optimizer.zero_grad()
            model.train().training_loss(media(seed=seed), targets(*SHOWN), classifier).backward()
            optimizer.step()

    def start() -> tuple[R3D10Attribute, nn.Module, torch.optim.Optimizer]:
        model = tiny()
        model.set_classes(CLASSES)
        classifier = nn.Linear(16, 2)
        return model, classifier, torch.optim.Adam([*model.parameters(), *classifier.parameters()], lr=1e-3)

    whole = start()
    steps(*whole, range(4))
    first, second = start(), start()
    steps(*first, range(2))
    for target, source in zip(second, first, strict=True):
        target.load_state_dict(source.state_dict())
    steps(*second, range(2, 4))
    assert model_hash(whole[0]) == model_hash(second[0])


def test_nothing_is_known_of_classes_before_training():
    model = tiny()
    assert model.class_directions(CLASSES) is None
    model.set_classes(CLASSES)
    assert model.class_directions(CLASSES) is None


def direction(model: R3D10Attribute, name: str) -> np.ndarray:
    found = model.class_directions([name])
    assert found is not None
    assert found.known.tolist() == [True]
    return found.weight[0].numpy()


def test_classes_are_known_by_emotion_coarse_name_units_and_facs_names():
    model = trained()
    model.finish_training()
    rows = {
        number: row / np.linalg.norm(row)
        for number, row in zip(ACTION_UNIT_ORDER, model.unit_embeddings.double().numpy(), strict=True)
    }

    def unit(vector: np.ndarray) -> np.ndarray:
        return vector / np.linalg.norm(vector)

    def emotion(name: str) -> np.ndarray:
        patterns = EMOTION_ACTION_UNITS[name]
        return unit(sum(pattern.weight * unit(sum(rows[number] for number in pattern.units)) for pattern in patterns))

    smile = unit(rows[6] + rows[12])
    for name in ("6+12", "AU6, AU12", "cheek raiser, lip corner puller"):
        np.testing.assert_allclose(direction(model, name), smile, atol=1e-5)
    np.testing.assert_allclose(direction(model, "happiness"), emotion("happiness"), atol=1e-5)
    np.testing.assert_allclose(direction(model, "positive"), emotion("happiness"), atol=1e-5)
    harsh = [name for name, coarse in THREE_CLASSES.items() if coarse == "negative"]
    assert {"disgust", "repression", "anger"} <= set(harsh)
    negative = unit(np.mean([emotion(name) for name in harsh], axis=0))
    np.testing.assert_allclose(direction(model, "negative"), negative, atol=1e-5)


def test_a_name_without_a_description_is_unknown():
    model = trained()
    found = model.class_directions(["happiness", "class 7b of mine"])
    assert found.known.tolist() == [True, False]
    assert not found.weight[1].any()
    assert model.class_directions(["class 7b of mine"]) is None


def test_other_media_are_refused_in_one_sentence():
    model = tiny().eval()
    good = media(2)
    for wrong in (
        good["frames"],
        {"frames": good["frames"]},
        {**good, "flows": good["flows"][:, :4]},
        {**good, "frames": good["frames"].transpose(1, 2)},
    ):
        with pytest.raises(SpecMismatchError, match=r"'r3d10_attribute' expects a dict .*frames .*flows"):
            model(wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem": "wide"}, r"stem 'wide'.*hara.*table"),
        ({"shortcut": "C"}, r"shortcut 'C'.*A, B"),
        ({"frames": 0}, "frames is 0, but 1 or more"),
        ({"alpha": 1.2}, "alpha is 1.2"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_impossible_arguments_are_refused(changes, message):
    with pytest.raises(FsmerError, match=message):
        tiny(**changes)


def test_one_clip_and_bfloat16_work():
    model = trained().to(torch.bfloat16)
    one = {kind: values.bfloat16() for kind, values in media(1).items()}
    with torch.no_grad():
        found = model(one)
    assert found.shape == (1, 16)
    assert found.dtype == torch.bfloat16
    classifier = nn.Linear(16, 2).bfloat16()
    loss = model.training_loss(one, targets((6, 12)), classifier)
    assert torch.isfinite(loss)
    assert model.class_directions(CLASSES).weight.dtype == torch.float32


def moving_clips(count: int, seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Mouth corners or brows that go up: two classes, told apart by where the flow is."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    inputs = media(count, seed=seed)
    inputs["flows"] = 0.1 * inputs["flows"]
    for row, label in enumerate(labels.tolist()):
        place = slice(2, 7) if label else slice(13, 18)
        inputs["flows"][row, :4, 1, place] -= 0.5 + torch.rand(1, generator=rng)
    return inputs, labels, units(*(((1, 2) if label else (6, 12)) for label in labels.tolist()))


def engine_clips(count: int, seed: int, *, units_known: bool = True) -> ClipSet:
    """`moving_clips` as a clip set."""
    inputs, labels, _ = moving_clips(count, seed)
    names = ("smile", "astonished")
    table = pd.DataFrame(
        {
            "clip": [f"c{seed}-{row}" for row in range(count)],
            "subject": [f"s{row}" for row in range(count)],
            "label": [names[label] for label in labels.tolist()],
            "aus": [("6+12", "1+2")[label] if units_known else "" for label in labels.tolist()],
        }
    )
    stores = {spec.kind: ArrayStore(inputs[spec.kind].numpy(), spec) for spec in tiny().input_specs}
    return ClipSet.from_table(table, stores)


def test_words_alone_recognise_classes_whose_names_were_never_seen():
    torch.manual_seed(0)
    model = tiny()
    model.set_classes(CLASSES)
    classifier = nn.Linear(16, 2)
    optimizer = torch.optim.Adam([*model.parameters(), *classifier.parameters()], lr=3e-3)
    inputs, labels, shown = moving_clips(16, seed=1)
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.train().training_loss(inputs, Targets(labels, CLASSES, shown), classifier)
        loss.backward()
        optimizer.step()
    model.eval().finish_training()
    inputs, labels, _ = moving_clips(40, seed=2)
    with torch.no_grad():
        scores = model.class_directions(["lip corner puller", "AU2"]).logits(model(inputs))
    assert (scores.argmax(dim=1) == labels).float().mean() > 0.9


def test_after_training_by_the_engine_words_recognise_clips_and_labels_do_not_harm_them(tmp_path: Path):
    """From ``fsmer.train`` through a saved folder to classes that are described by other words than it was taught."""
    trained = fsmer.train(tiny(), engine_clips(16, 1), epochs=30, learning_rate=3e-3, batch_size=16)
    trained.backbone.save_pretrained(tmp_path / "weights")
    model, asked = fsmer.load_model(tmp_path / "weights"), engine_clips(40, 2)
    words = {"smile": "lip corner puller", "astonished": "AU2"}
    assert_words_tell_two_classes(model, asked, words)
