"""Many trainings at once give what each gives alone: weights, losses and answers, member by member."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import small_model
from torch import Tensor

import fsmer
from fsmer.backbones import Backbone, TrainRecipe, create_model
from fsmer.errors import FsmerError
from fsmer.kernels.noise import draw_noise, dropout, given_noise
from fsmer.training import stacked
from fsmer.training.stacked import can_stack, train_together
from fsmer.training.supervised import Trainer
from fsmer.transfer import Method, Recognizer, load_method

# Rates at which these networks learn within a few steps, so that members end up apart.
RECIPE = TrainRecipe(
    optimizer="adamw",
    learning_rate=2e-3,
    rates={"classifier": 1e-2},
    weight_decay=0.01,
    epochs=3,
    batch_size=8,
    label_smoothing=0.1,
    balanced=True,
    augment=("flip", "crop", "rotate"),
    crop_pixels=1,
    warmup_epochs=1.0,
    clip_gradient=1.0,
)
# The branches of `fr` start close to each other and need longer to come apart.
RECIPES = {"fr": replace(RECIPE, learning_rate=1e-2, epochs=6), "ststnet": replace(RECIPE, learning_rate=5e-4)}
NAMES = ("ststnet", "fr", "basic_inception", "facs-flow")
SEEDS = (3, 4, 5, 6)


def backbone_of(name: str) -> Backbone:
    torch.manual_seed(0)
    if name == "facs-flow":
        backbone = create_model(name, widths=[4, 4, 8, 8], branch_dim=8, pools=[1, 2])
    elif name == "fr":
        backbone = create_model(name, shared_width=24, detector_width=8, hidden_width=16, filters=[2, 3])
    elif name == "basic_inception":
        backbone = create_model(name, shared_width=24, filters=[2, 3])
    else:
        backbone = small_model(name)
    return backbone.eval()


@pytest.fixture(scope="module")
def clips() -> fsmer.ClipSet:
    return fsmer.synthetic_clips("lab", 30, seed=3, subjects=6)


def supports_of(clips: fsmer.ClipSet) -> list[fsmer.ClipSet]:
    """Four folds; two have 19 clips, one 23 and one 12."""
    rows = np.random.default_rng(0).permutation(len(clips))
    return [clips[np.sort(rows[part])] for part in (slice(0, 19), slice(4, 27), slice(9, 28), slice(18, 30))]


def trainer_of(backbone: Backbone, support: fsmer.ClipSet, seed: int, classes: tuple[str, ...]) -> Trainer:
    from fsmer.backbones.targets import make_targets
    from fsmer.training.supervised import for_classes

    codes = torch.from_numpy(np.asarray(support.codes(classes), dtype=np.int64))
    made = for_classes(backbone, classes, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = torch.nn.Linear(made.embed_dim, len(classes))
    targets = make_targets(support, codes, classes, balanced=True)
    return Trainer(made, classifier, support, targets, RECIPES.get(backbone.name, RECIPE), seed=seed)


def trained(
    backbone: Backbone, supports: Sequence[fsmer.ClipSet], classes: tuple[str, ...], engine: str, **options: object
) -> dict[int, Trainer]:
    def make(number: int) -> Trainer:
        return trainer_of(backbone, supports[number], SEEDS[number], classes)

    return dict(train_together(len(supports), make, engine=engine, **options))  # type: ignore[arg-type]


def answers(trainer: Trainer, clips: fsmer.ClipSet) -> Tensor:
    with torch.no_grad():
        logits: Tensor = trainer.classifier(fsmer.backbones.embed(trainer.backbone, clips))
    return logits


# By how much rounding may change a logit, since Adam's first steps are as long for a gradient that is nothing but
# rounding as for any other; two classes that are closer to each other than twice that may swap.
ROUNDING = 1e-3


def assert_alike(one: Trainer, other: Trainer, clips: fsmer.ClipSet) -> None:
    """Losses to tolerance, and the same answer to every clip whose two likeliest classes rounding cannot swap."""
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-4)
    left, right = answers(one, clips), answers(other, clips)
    torch.testing.assert_close(left, right, rtol=0.0, atol=ROUNDING)
    top = right.topk(2).values
    decided = top[:, 0] - top[:, 1] > 2 * ROUNDING
    assert torch.equal(left.argmax(dim=1)[decided], right.argmax(dim=1)[decided])


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_gives_each_member_what_training_alone_gives_it(name, clips):
    backbone = backbone_of(name)
    supports = supports_of(clips)
    found = trained(backbone, supports, clips.classes, "stack")
    assert sorted(found) == [0, 1, 2, 3]
    for number, support in enumerate(supports):
        alone = trainer_of(backbone, support, SEEDS[number], clips.classes)
        alone.run()
        assert len(alone.losses) == alone.recipe.epochs
        assert_alike(found[number], alone, clips)
        assert not found[number].backbone.training
    losses = {tuple(np.round(one.losses, 4)) for one in found.values()}
    assert len(losses) == 4, "members with their own clips and seeds learn differently"


def test_members_that_take_turns_are_trained_to_the_bit_as_alone(clips):
    backbone = backbone_of("facs-flow")
    supports = supports_of(clips)
    state = torch.random.get_rng_state()
    found = trained(backbone, supports, clips.classes, "one_by_one")
    assert torch.equal(torch.random.get_rng_state(), state)
    for number, support in enumerate(supports):
        alone = trainer_of(backbone, support, SEEDS[number], clips.classes)
        alone.run()
        assert alone.losses == found[number].losses
        assert torch.equal(answers(found[number], clips), answers(alone, clips))


def test_each_member_has_its_own_batch_statistics(clips):
    backbone = backbone_of("facs-flow")
    supports = supports_of(clips)
    found = trained(backbone, supports, clips.classes, "stack")
    means = []
    for number in (0, 2):  # both have 19 clips, so they share a stack
        alone = trainer_of(backbone, supports[number], SEEDS[number], clips.classes)
        alone.run()
        for (name, one), (_, other) in zip(
            found[number].backbone.named_buffers(), alone.backbone.named_buffers(), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3, msg=name)
        means.append(found[number].backbone.networks[0].stages[0][0][1].running_mean)
    assert not torch.allclose(means[0], means[1], atol=1e-3)


def test_company_and_order_change_nothing(clips):
    backbone = backbone_of("ststnet")
    supports = supports_of(clips)
    together = trained(backbone, supports, clips.classes, "stack")

    def backwards(number: int) -> Trainer:
        return trainer_of(backbone, supports[3 - number], SEEDS[3 - number], clips.classes)

    turned = dict(train_together(4, backwards, engine="stack"))
    ((_, single),) = train_together(
        1, lambda _: trainer_of(backbone, supports[2], SEEDS[2], clips.classes), engine="stack"
    )
    for number in range(4):
        assert_alike(turned[3 - number], together[number], clips)
    assert_alike(single, together[2], clips)


class Counted:
    """How many members each stack had, with stacks that are too large running out of memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
        self.tried: list[int] = []
        run = stacked._Stack.run

        def counted(stack: stacked._Stack) -> None:
            self.tried.append(len(stack.members))
            if len(stack.members) > largest:
                for member in stack.members:  # what had been learnt so far is of no use
                    next(member.backbone.parameters()).data.fill_(float("nan"))
                raise MemoryError
            run(stack)

        monkeypatch.setattr(stacked._Stack, "run", counted)


def test_where_memory_runs_out_fewer_members_go_on_and_it_is_said(clips, monkeypatch):
    backbone = backbone_of("basic_inception")
    supports = [clips[:20]] * 4
    counted = Counted(monkeypatch, largest=2)
    with pytest.warns(UserWarning, match=r"memory.*\b4\b.*\b2\b"):
        found = trained(backbone, supports, clips.classes, "stack")
    assert counted.tried == [4, 2, 2]
    for number in range(4):
        alone = trainer_of(backbone, supports[number], SEEDS[number], clips.classes)
        alone.run()
        assert_alike(found[number], alone, clips)


def test_a_member_that_is_too_large_alone_is_refused_in_one_sentence(clips, monkeypatch):
    Counted(monkeypatch, largest=0)
    with (
        pytest.warns(UserWarning, match=r"memory.*\b1\b"),
        pytest.raises(FsmerError, match=r"'ststnet'.*memory.*batch_size"),
    ):
        trained(backbone_of("ststnet"), [clips[:10]] * 2, clips.classes, "stack")


def test_the_memory_given_says_how_many_go_at_once(clips, monkeypatch):
    backbone = backbone_of("ststnet")
    supports = [clips[:12]] * 4
    one = stacked._bytes_of(trainer_of(backbone, supports[0], 0, clips.classes))
    counted = Counted(monkeypatch, largest=4)
    for share, tried in ((1.0, [1, 1, 1, 1]), (2.5, [2, 2]), (100.0, [4])):
        counted.tried.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trained(backbone, supports, clips.classes, "stack", memory=int(share * one))
        assert counted.tried == tried


@pytest.mark.parametrize("engine", ["stack", "one_by_one"])
def test_a_member_whose_loss_is_not_finite_ends_the_run(clips, engine):
    backbone = backbone_of("basic_inception")
    with torch.no_grad():
        backbone.shared.weight.fill_(3e38)
    with pytest.raises(fsmer.errors.SupportError, match=r"'basic_inception'.*\b(nan|inf)\b"):
        trained(backbone, [clips[:12]] * 2, clips.classes, engine)


def method_of(name: str) -> Method:
    if name == "train":
        return load_method("train", epochs=2, batch_size=8, learning_rate=1e-3)
    return load_method(name, train_backbone=True, steps=4, batch_size=8, encoder_rate=1e-3, learning_rate=1e-2)


def everything(found: Recognizer) -> dict[str, Tensor]:
    return {**found.backbone.state_dict(), **found.head.tensors()}


@pytest.mark.parametrize("engine", ["stack", "one_by_one"])
@pytest.mark.parametrize(("method", "name"), [("train", "ststnet"), ("finetune", "fr"), ("cosine", "facs-flow")])
def test_fit_many_gives_what_fit_gives(method, name, engine, clips, monkeypatch):
    backbone, solver, supports = backbone_of(name), method_of(method), supports_of(clips)
    names = clips.classes

    def by_engine(count, make, memory):
        return train_together(count, make, memory=memory, engine=engine)

    monkeypatch.setattr("fsmer.transfer.fine_tuning.train_together", by_engine)
    monkeypatch.setitem(vars(sys.modules["fsmer.transfer.full_training"]), "train_together", by_engine)
    said: list[tuple[int, int]] = []
    before = copy.deepcopy(backbone.state_dict())
    many = solver.fit_many(
        backbone, supports, seeds=[None, 7, 8, None], classes=[names] * 4, progress=lambda *at: said.append(at)
    )
    found = dict(many)
    assert said == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    for number, seed in enumerate((0, 7, 8, 0)):
        alone = solver.set_params(seed=seed).fit(backbone, supports[number], classes=names)
        ours, theirs = everything(found[number]), everything(alone)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=2e-2, atol=2e-3, msg=key)
        np.testing.assert_allclose(found[number].predict_proba(clips), alone.predict_proba(clips), atol=5e-3)
        assert found[number].support_size == len(supports[number])
        assert found[number].method == alone.method


def test_members_may_have_classes_of_their_own(clips):
    """A fold may lack a class; its recognizer then has one column less."""
    few = clips[clips.labels != "surprise"]
    solver = method_of("train")
    for name in ("fr", "ststnet"):
        found = dict(
            solver.fit_many(
                backbone_of(name), [clips, few], seeds=[None, None], classes=[clips.classes, ("negative", "positive")]
            )
        )
        assert [one.predict_proba(clips).shape[1] for _, one in sorted(found.items())] == [3, 2]


def test_labels_outside_a_support_reach_no_member(clips):
    """A wrong label on every clip that a fold leaves out changes nothing that the fold has learnt."""
    solver, backbone = method_of("cosine"), backbone_of("facs-flow")
    rows = np.arange(len(clips))
    held = [rows[rows % 3 != fold] for fold in range(3)]
    for fold in range(3):
        labels = clips.labels.copy()
        outside = np.setdiff1d(rows, held[fold])
        labels[outside] = np.where(labels[outside] == "negative", "positive", "negative")
        spoilt = fsmer.ClipSet.from_arrays(clips.media(), labels, spec=clips.specs["flow"])
        clean = fsmer.ClipSet.from_arrays(clips.media(), clips.labels, spec=clips.specs["flow"])
        pair = [
            dict(
                solver.fit_many(backbone, [whole[part] for part in held], seeds=[None] * 3, classes=[clips.classes] * 3)
            )
            for whole in (clean, spoilt)
        ]
        ours, theirs = (everything(one[fold]) for one in pair)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_only_small_networks_that_say_so_are_stacked(clips):
    assert all(can_stack(backbone_of(name)) for name in NAMES)
    assert all(can_stack(create_model(name)) for name in NAMES), "at their full size too"
    other = small_model("tcae")
    assert not can_stack(other)
    assert not can_stack(create_model("fr", shared_width=2048))


def test_methods_without_a_stack_fit_one_by_one(clips):
    backbone, solver = small_model("flow_resnet18"), method_of("train")
    media = fsmer.synthetic_clips("lab", 12, seed=1, specs=backbone.input_specs)
    found = dict(solver.fit_many(backbone, [media, media[:9]], seeds=[1, 2], classes=[media.classes] * 2))
    for number, (seed, support) in enumerate(((1, media), (2, media[:9]))):
        alone = solver.set_params(seed=seed).fit(backbone, support, classes=media.classes)
        assert torch.equal(found[number].head.weight, alone.head.weight)


def test_dropout_takes_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    values = torch.ones(400, 100)
    for share in (0.5, 0.2):
        found = dropout(values, share, True)
        assert float((found == 0).float().mean()) == pytest.approx(share, abs=0.01)
        assert float(found.mean()) == pytest.approx(1, abs=0.02)
        assert len(found.unique()) == 2
    assert dropout(values, 0.5, False) is values
    assert dropout(values, 0.0, True) is values


def test_dropout_draws_alike_from_the_global_generator_and_from_a_member_of_a_stack():
    values = torch.rand(7, 5)
    torch.manual_seed(11)
    alone = [dropout(values, 0.3, True), dropout(values[:3], 0.3, True)]
    generator = torch.Generator().manual_seed(11)
    with given_noise(lambda shape, device: draw_noise(shape, device, generator)):
        given = [dropout(values, 0.3, True), dropout(values[:3], 0.3, True)]
    assert all(torch.equal(one, other) for one, other in zip(alone, given, strict=True))


@pytest.mark.parametrize("fresh", [True, False])
def test_folds_and_seeds_of_a_run_are_trained_in_one_stack(fresh, clips, tmp_path, monkeypatch):
    """As on a GPU, here by its rules on a CPU: the report is that of folds and seeds one by one."""
    model = "ststnet" if fresh else backbone_of("ststnet")
    solver = fsmer.load_method("train", epochs=2)

    def judged(**options):
        return fsmer.evaluate("loso", model, solver, clips=clips, seeds=3, cache=False, **options)

    one_by_one = judged()
    counts: list[int] = []

    def stacked(count, make, memory):
        counts.append(count)
        for done, found in enumerate(train_together(count, make, memory=memory, engine="stack")):
            if done == stop:
                raise KeyboardInterrupt
            yield found

    for module in ("seed_runs", "training_folds"):
        monkeypatch.setattr(f"fsmer.evaluation.{module}.on_cpu", lambda model: False)
    monkeypatch.setattr("fsmer.transfer.fine_tuning.train_together", stacked)
    stop, folds = -1, len(np.unique(clips.subjects))
    together = judged()
    assert counts == [3 * folds]
    assert [row["seed"] for row in together.per_seed] == [0, 1, 2]
    table, plain = together.predictions, one_by_one.predictions
    assert table[["seed", "clip", "predicted"]].equals(plain[["seed", "clip", "predicted"]])
    # Stopped in the third seed and asked again: the rest alone is trained, and nothing that was read counts twice.
    stop = 2 * folds + 1
    with pytest.raises(KeyboardInterrupt):
        judged(out=tmp_path)
    stop = -1
    resumed = judged(out=tmp_path)
    assert counts == [3 * folds, 3 * folds, folds - 1]
    assert resumed.run["resumed"] == 2 * folds + 1
    assert resumed.predictions[["seed", "clip", "predicted"]].equals(plain[["seed", "clip", "predicted"]])
