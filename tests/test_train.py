"""Supervised training: by recipe, seeded, resumable, with augmentation that keeps what a clip means."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_backbone import TinyBackbone
from torch import Tensor, nn

import fsmer
from fsmer.backbones import Backbone, Targets, TrainRecipe, embed, register_backbone
from fsmer.backbones.embedding import mirror_media
from fsmer.backbones.recipe import schedule_factor
from fsmer.backbones.registry import fresh_model
from fsmer.backbones.targets import action_unit_targets, make_targets, take
from fsmer.data import InputSpec
from fsmer.data.facs import ACTION_UNIT_ORDER
from fsmer.errors import FsmerError, SpecMismatchError, SupportError, WeightsError
from fsmer.training.supervised import Augmentation, Trainer, augment
from fsmer.transfer import Recognizer, load_method, train
from fsmer.transfer.full_training import Train
from fsmer.transfer.source_model import MethodError

RECIPE = TrainRecipe(optimizer="adam", learning_rate=1e-2, weight_decay=0.0, epochs=12, batch_size=16)


@register_backbone("trained-for-tests")
class Trained(TinyBackbone):
    """A tiny backbone with dropout, a recipe of its own and parts that depend on the classes."""

    recipe = replace(RECIPE, epochs=6, augment=("flip", "rotate", "crop"))

    def __init__(self, embed_dim: int = 16, branches: int = 1) -> None:
        super().__init__(embed_dim)
        self.config = {"embed_dim": embed_dim, "branches": branches}
        self.dropout = nn.Dropout(0.3)
        self.branch = nn.ModuleList(nn.Linear(embed_dim, 1) for _ in range(branches))

    def set_classes(self, classes) -> None:
        self.config["branches"] = len(classes)
        self.branch = nn.ModuleList(nn.Linear(self.embed_dim, 1) for _ in classes)

    def training_loss(self, inputs: Tensor, targets: Targets, classifier: nn.Module) -> Tensor:
        features = self(inputs)
        detected = torch.cat([branch(features) for branch in self.branch], dim=1)
        members = nn.functional.one_hot(targets.labels, len(targets.classes)).float()
        proposals = nn.functional.binary_cross_entropy_with_logits(detected, members)
        return targets.cross_entropy(classifier(self.dropout(features))) + proposals


@pytest.fixture(scope="module")
def clips() -> fsmer.ClipSet:
    return fsmer.synthetic_clips("lab", 48, seed=3)


def state(recognizer: fsmer.Recognizer) -> dict[str, Tensor]:
    return recognizer.backbone.state_dict()


def same(one: fsmer.Recognizer, other: fsmer.Recognizer) -> bool:
    left, right = state(one), state(other)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_training_lowers_the_loss_and_tells_training_clips_apart(clips):
    recognizer = train(TinyBackbone(), clips, epochs=60, learning_rate=5e-3, augment=False)
    assert recognizer.score(clips) > 0.9
    assert not recognizer.backbone.training


def test_the_model_that_is_given_stays_as_it_is(clips):
    backbone = Trained()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    train(backbone, clips)
    assert backbone.config["branches"] == 1
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_parts_that_depend_on_the_classes_are_made_anew_and_saved(clips, tmp_path: Path):
    recognizer = train(Trained(), clips, epochs=1)
    assert recognizer.backbone.config["branches"] == 3
    recognizer.save(tmp_path / "saved")
    again = fsmer.Recognizer.load(tmp_path / "saved")
    assert len(again.backbone.branch) == 3
    np.testing.assert_array_equal(again.predict_proba(clips), recognizer.predict_proba(clips))


def test_training_on_with_the_same_classes_keeps_what_they_taught(clips, tmp_path: Path):
    once = train(Trained(), clips, epochs=1).backbone
    assert once.classes == clips.classes
    once.save_pretrained(tmp_path / "weights")
    for model in (once, fsmer.load_model(tmp_path / "weights")):
        branch = model.branch[0].weight.clone()
        more = train(model, clips, epochs=1, learning_rate=1e-6).backbone
        torch.testing.assert_close(more.branch[0].weight, branch, atol=1e-4, rtol=0)
    other = clips[clips.labels != "surprise"]
    assert len(train(once, other, epochs=1).backbone.branch) == 2


def test_training_goes_on_from_the_folder_of_a_recognizer(clips, tmp_path: Path):
    first = train(Trained(), clips, epochs=1, out=tmp_path / "first")
    model = fsmer.load_model(tmp_path / "first")
    assert fsmer.backbones.model_hash(model) == fsmer.backbones.model_hash(first.backbone)
    assert model.classes == clips.classes
    assert same(train(tmp_path / "first", clips, epochs=1), train(first.backbone, clips, epochs=1))


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(clips):
    one, two, other = (train(Trained(), clips, seed=seed) for seed in (1, 1, 2))
    assert same(one, two)
    assert not same(one, other)


def test_a_stopped_training_goes_on_to_the_same_numbers(clips, tmp_path: Path):
    whole = train(Trained(), clips, out=tmp_path / "whole")
    stop_after = 10

    def stop(done: int, total: int) -> None:
        if done == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Trained(), clips, out=tmp_path / "cut", progress=stop)
    assert (tmp_path / "cut.training" / "checkpoint.json").is_file()
    assert not (tmp_path / "cut").exists() or not any((tmp_path / "cut").iterdir())
    seen: list[int] = []
    gone_on = train(Trained(), clips, out=tmp_path / "cut", progress=lambda done, total: seen.append(done))
    assert seen[0] == 10  # the third epoch began with step 10 - three steps an epoch - and was cut there
    assert same(whole, gone_on)
    assert not (tmp_path / "cut.training").exists()
    histories = [json.loads((tmp_path / f"{name}.history.json").read_text()) for name in ("whole", "cut")]
    assert histories[0] == histories[1]
    assert len(histories[0]["losses"]) == Trained.recipe.epochs


def test_a_run_hands_back_the_losses_that_it_writes(clips, tmp_path: Path):
    recognizer, history = Train(epochs=2).run(Trained(), clips, tmp_path / "run")
    assert json.loads(json.dumps(history)) == json.loads((tmp_path / "run.history.json").read_text())
    assert len(history["losses"]) == 2
    assert same(recognizer, Recognizer.load(tmp_path / "run"))


def test_a_checkpoint_of_another_training_is_refused_or_dropped(clips, tmp_path: Path):
    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Trained(), clips, out=tmp_path / "run", progress=stop)
    with pytest.raises(WeightsError, match=r"recipe.*seed.*clips"):
        train(Trained(), clips, out=tmp_path / "run", seed=5)
    recognizer = train(Trained(), clips, out=tmp_path / "run", seed=5, resume=False)
    assert same(recognizer, train(Trained(), clips, seed=5))


def test_a_method_of_evaluate_trains_once_for_every_fold(clips):
    report = fsmer.evaluate(
        fsmer.load_protocol("kshot", shot=5, episodes=2), TinyBackbone(), load_method("train", epochs=2), clips=clips
    )
    assert len(report.predictions) == 2 * (48 - 15)


def test_training_in_an_evaluation_equals_training_alone(clips):
    report = fsmer.evaluate(
        fsmer.load_protocol("ratio", repeats=1), TinyBackbone(), load_method("train", epochs=2), clips=clips
    )
    episode = fsmer.load_protocol("ratio", repeats=1).split(clips)[0]
    alone = train(TinyBackbone(), clips[episode.support], epochs=2, classes=episode.classes)
    said = report.predictions.set_index("clip")["predicted"]
    asked = clips[episode.query]
    assert said[list(asked.ids)].tolist() == alone.predict(asked).tolist()


def test_a_source_is_trained_on_first(clips):
    method = load_method("train", epochs=2)
    model = method.train_source(TinyBackbone(), clips[:24])
    fitted = method.fit(model, clips[24:])
    assert same(fitted, method.fit(TinyBackbone(), clips[24:], source=clips[:24]))
    assert not same(fitted, method.fit(TinyBackbone(), clips[24:]))


def test_flipping_turns_horizontal_flow_round():
    spec = InputSpec(channels=("u", "v"), size=(4, 6), normalisation="signed")
    media = torch.randn(3, 2, 4, 6)
    flip = np.array([True, False, True])
    still = np.zeros(3)
    found = augment(media, spec, flip, still, np.zeros((3, 2)))
    for row, mirrored in enumerate(flip):
        for y in range(4):
            for x in range(6):
                source = 5 - x if mirrored else x
                assert found[row, 0, y, x] == (-1 if mirrored else 1) * media[row, 0, y, source]
                assert found[row, 1, y, x] == media[row, 1, y, source]
    scaled = torch.rand(3, 2, 4, 6)
    found = augment(scaled, replace(spec, normalisation="minmax"), flip, still, np.zeros((3, 2)))
    torch.testing.assert_close(found[0, 0], 1 - scaled[0, 0].flip(-1))


def test_looking_at_the_mirrored_clip_too_averages_its_logits(tmp_path):
    torch.manual_seed(2)
    backbone = Trained()
    spec = backbone.input_spec
    clips = fsmer.synthetic_clips("lab", 24, seed=1, specs=[spec])
    plain = load_method("train", epochs=2, seed=3).fit(backbone, clips)
    both = load_method("train", epochs=2, seed=3, mirror=True).fit(backbone, clips)
    turned = mirror_media(torch.from_numpy(clips.media(spec.kind)), spec).numpy()
    one, other = plain.decision_function(clips), plain.decision_function(turned)
    assert not np.allclose(one, other, atol=1e-3)
    np.testing.assert_allclose(both.decision_function(clips), (one + other) / 2, atol=1e-5)
    np.testing.assert_allclose(both.decision_function(turned), both.decision_function(clips), atol=1e-5)
    both.save(tmp_path / "recognizer")
    again = fsmer.Recognizer.load(tmp_path / "recognizer")
    assert np.array_equal(again.decision_function(clips), both.decision_function(clips))
    looks: list[tuple[int, int]] = []
    both.predict_proba(clips, progress=lambda done, total: looks.append((done, total)))
    assert looks == [(24, 48), (48, 48)]


def test_flipping_keeps_what_a_synthetic_clip_means():
    """A flipped map is the map of the mirrored face: its own flip looks like the same movement."""
    spec = InputSpec(normalisation="minmax")
    maps = torch.from_numpy(fsmer.synthetic_clips("lab", 64, seed=1).media("flow"))
    once = augment(maps, spec, np.ones(64, bool), np.zeros(64), np.zeros((64, 2)))
    model = fsmer.load_model("facs-flow")
    said = [
        model.class_directions(("negative", "positive", "surprise")).logits(embed(model, part)).argmax(1)
        for part in (maps.numpy(), once.numpy())
    ]
    assert (said[0] == said[1]).float().mean() > 0.9


def test_shifting_moves_all_media_by_the_same_part_of_the_picture():
    shift = np.array([[0.25, -0.125]])
    for size, frames in (((8, 8), None), ((16, 16), 3)):
        spec = InputSpec(
            kind="onset" if frames is None else "frames",
            size=size,
            channels=("red",),
            normalisation="unit",
            frames=frames,
        )
        media = torch.rand(1, *spec.shape)
        moved = augment(media, spec, np.zeros(1, bool), np.zeros(1), shift)
        height, width = size
        right, down = round(0.25 * width), round(-0.125 * height)
        torch.testing.assert_close(
            moved[..., -down:, : width - right], media[..., : height + down, right:], atol=1e-5, rtol=0
        )


def test_turning_by_a_quarter_is_exact_on_squares():
    spec = InputSpec(kind="apex", size=(5, 5), channels=("red",), normalisation="unit")
    media = torch.rand(1, 1, 5, 5)
    turned = augment(media, spec, np.zeros(1, bool), np.array([math.pi / 2]), np.zeros((1, 2)))
    torch.testing.assert_close(turned[0, 0], torch.rot90(media[0, 0], 1), atol=1e-4, rtol=0)


def test_schedules_are_those_of_their_names():
    cosine = TrainRecipe(epochs=10, schedule="cosine", warmup_epochs=2)
    assert schedule_factor(cosine, 0) == 0
    assert schedule_factor(cosine, 1) == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 0.1)))
    assert schedule_factor(cosine, 10) == pytest.approx(0)
    decay = TrainRecipe(schedule="exponential", gamma=0.9)
    assert schedule_factor(decay, 3.7) == pytest.approx(0.9**3)
    steps = TrainRecipe(schedule="step", gamma=0.1, milestones=(2, 4))
    assert [schedule_factor(steps, at) for at in (1.9, 2.0, 4.5)] == pytest.approx([1, 0.1, 0.01])
    assert schedule_factor(TrainRecipe(schedule="constant"), 7) == 1


def test_the_first_step_of_a_warm_up_learns_something(clips):
    backbone = TinyBackbone()
    recipe = replace(RECIPE, warmup_epochs=4.0, epochs=1, batch_size=10, schedule="constant")
    codes = torch.from_numpy(clips.codes())
    trainer = Trainer(backbone, nn.Linear(16, 3), clips, make_targets(clips, codes, clips.classes), recipe)
    steps = trainer.steps_an_epoch
    rates = [step.rate for step in trainer.steps()]
    assert rates == pytest.approx([(number + 1) / steps / 4 for number in range(steps)])
    assert schedule_factor(recipe, 4.0, 1 / steps) == 1


def test_learning_rates_of_layers_follow_the_longest_prefix(clips):
    backbone, classifier = TinyBackbone(), nn.Linear(16, 3)
    recipe = replace(RECIPE, rates={"encoder": 0.0, "encoder.bias": 1e-2, "classifier": 1e-3}, epochs=1)
    before = {name: value.clone() for name, value in backbone.named_parameters()}
    codes = torch.from_numpy(clips.codes())
    trainer = Trainer(backbone, classifier, clips, make_targets(clips, codes, clips.classes), recipe)
    rates = {id(value): group["lr"] for group in trainer.optimizer.param_groups for value in group["params"]}
    assert rates[id(backbone.encoder.weight)] == 0.0
    assert rates[id(backbone.encoder.bias)] == 1e-2
    assert rates[id(backbone.projection.weight)] == 1e-2
    assert rates[id(classifier.weight)] == 1e-3
    trainer.run()
    moved = {name: not torch.equal(value, before[name]) for name, value in backbone.named_parameters()}
    assert moved == {"encoder.weight": False, "encoder.bias": True, "projection.weight": True, "projection.bias": True}


def test_action_units_become_targets_and_unknown_ones_nan():
    clips = fsmer.ClipSet.from_arrays(
        np.random.default_rng(0).random((3, 3, 28, 28), dtype=np.float32), ["a", "b", "a"], aus=["R6+12", "", "4"]
    )
    found = action_unit_targets(clips)
    assert found.shape == (3, len(ACTION_UNIT_ORDER))
    active = [[ACTION_UNIT_ORDER[place] for place in torch.nonzero(row == 1)[:, 0]] for row in found]
    assert active == [[6, 12], [], [4]]
    assert found[1].isnan().all()
    assert (
        action_unit_targets(fsmer.ClipSet.from_arrays(np.random.default_rng(1).random((2, 3, 28, 28)), ["a", "b"]))
        is None
    )


def test_balanced_classes_weigh_alike_in_the_loss():
    codes = torch.tensor([0, 0, 0, 1])
    clips = fsmer.ClipSet.from_arrays(np.random.default_rng(0).random((4, 3, 28, 28)), ["a", "a", "a", "b"])
    targets = make_targets(clips, codes, ("a", "b"), balanced=True)
    logits = torch.randn(4, 2)
    losses = nn.functional.cross_entropy(logits, codes, reduction="none")
    expected = (losses[:3].mean() + losses[3]) / 2
    torch.testing.assert_close(targets.cross_entropy(logits), expected)
    part = take(targets, np.array([3, 0]))
    assert part.labels.tolist() == [1, 0]


def test_a_remainder_of_one_clip_joins_its_neighbours(clips):
    trainer = Trainer(
        TinyBackbone(),
        nn.Linear(16, 3),
        clips[:33],
        make_targets(clips[:33], torch.from_numpy(clips[:33].codes()), clips.classes),
        replace(RECIPE, batch_size=16),
    )
    sizes = [len(rows) for rows, *_ in trainer._batches(0)]
    assert sum(sizes) == 33
    assert min(sizes) > 1


def test_a_class_without_clips_is_unknown_rather_than_unlikely(clips):
    part = clips[clips.labels != "surprise"]
    recognizer = train(TinyBackbone(), part, classes=clips.classes, epochs=1)
    assert (recognizer.predict_proba(clips)[:, 2] == 0).all()


def test_fresh_weights_follow_the_seed():
    one, two, other = (fresh_model("facs-flow", seed) for seed in (0, 0, 1))
    assert fsmer.backbones.model_hash(one) == fsmer.backbones.model_hash(two)
    assert fsmer.backbones.model_hash(one) != fsmer.backbones.model_hash(other)


def test_arguments_with_weights_that_are_there_already_are_refused(clips, tmp_path: Path):
    backbone = Trained()
    folder = backbone.save_pretrained(tmp_path / "weights")
    for model, origin in ((backbone, "a backbone"), (folder, f"the weights in {folder}"), (str(folder), str(folder))):
        with pytest.raises(WeightsError) as refused:
            train(model, clips, epochs=1, arguments={"nonsense": 1}, out=tmp_path / "out")
        assert str(refused.value).startswith("nonsense=1 came with")
        assert origin in str(refused.value)
        assert "leave the arguments out, or give the name" in str(refused.value)
        assert fresh_model(model, 0, {}).name == fresh_model(model, 0).name == backbone.name
    assert not (tmp_path / "out").exists()
    assert fresh_model("fr", 0, {"branches": 2}).config["branches"] == 2


def test_a_training_that_diverges_says_so(clips):
    with pytest.raises(SupportError, match="learning rate"):
        train(TinyBackbone(), clips, learning_rate=1e30, epochs=5)


def test_wrong_parameters_and_media_are_refused_in_one_sentence(clips):
    with pytest.raises(MethodError, match="epochs=0"):
        load_method("train", epochs=0)
    with pytest.raises(MethodError, match="precision='half'"):
        load_method("train", precision="half")
    with pytest.raises(SpecMismatchError, match="tiny-for-tests"):
        train(TinyBackbone(), fsmer.synthetic_clips("lab", 12, size=56))
    with pytest.raises(SupportError, match="label"):
        train(TinyBackbone(), fsmer.ClipSet.from_arrays(clips.media("flow"), None))
    with pytest.raises(FsmerError, match=r"augment.*turn"):
        TrainRecipe(augment=("turn",))
    with pytest.raises(FsmerError, match=r"optimizer.*'lion'"):
        TrainRecipe(optimizer="lion")


def test_bfloat16_trains_too(clips):
    recognizer = train(TinyBackbone(), clips, epochs=40, learning_rate=5e-3, precision="bfloat16")
    assert recognizer.score(clips) > 0.7
    assert all(value.dtype == torch.float32 for value in recognizer.backbone.parameters())


def test_every_backbone_has_a_recipe_with_a_source():
    for info in fsmer.list_models():
        cls = fsmer.backbones.registry.backbone_class(info.name)
        assert isinstance(cls.recipe, TrainRecipe)
        assert issubclass(cls, Backbone)
        json.dumps(cls.recipe.to_dict())
    assert Train().recipe(Trained()).epochs == 6
    assert Train(learning_rate=1e-3).recipe(Trained()).learning_rate == 1e-3


def test_resizing_enlarges_or_shrinks_about_the_middle_and_repeats_edges() -> None:
    spec = InputSpec("flow", (9, 9), ("u", "v"), "signed")
    media = torch.zeros(3, 2, 9, 9)
    media[:, :, 3:6, 3:6] = 1.0  # a square of 3 x 3 in the middle
    still = np.zeros(3, bool), np.zeros(3), np.zeros((3, 2))
    found = augment(media, spec, *still, np.array([1.0, 2.0, 2 / 3]))
    torch.testing.assert_close(found[0], media[0])
    areas = found.sum(dim=(2, 3))[:, 0].tolist()
    assert areas[1] == pytest.approx(4 * 9, rel=0.05)
    assert areas[2] == pytest.approx(9 * (2 / 3) ** 2, rel=0.05)
    torch.testing.assert_close(found, found.flip(-1))  # nothing moves off the middle
    full = augment(torch.ones(3, 2, 9, 9), spec, *still, np.array([0.5, 0.7, 0.9]))
    torch.testing.assert_close(full, torch.ones(3, 2, 9, 9))


def test_recipes_without_resizing_draw_what_they_drew_before() -> None:
    recipe = TrainRecipe(augment=("flip", "rotate", "crop"))
    specs = (InputSpec("flow", (28, 28), ("u", "v"), "signed"),)
    rngs = [np.random.default_rng(3) for _ in range(2)]
    plain = Augmentation(recipe, specs).draw(rngs[0], 5)
    resized = Augmentation(replace(recipe, augment=(*recipe.augment, "resize")), specs).draw(rngs[1], 5)
    assert len(plain) == 3
    assert rngs[0].random() != rngs[1].random()
    for one, other in zip(plain, resized, strict=False):
        np.testing.assert_array_equal(one, other)
    assert (np.abs(resized[3] - 1) <= recipe.resize_share).all()
    assert np.ptp(resized[3]) > 0.01
