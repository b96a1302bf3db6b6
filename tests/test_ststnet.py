"""`ststnet` is the published network, and its compiled code computes what the layers written out compute."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fsmer
from fsmer.backbones import Backbone, TrainRecipe, create_model
from fsmer.backbones.ststnet import STSTNet
from fsmer.backbones.targets import make_targets
from fsmer.errors import FsmerError, SupportError
from fsmer.kernels.compiled import compiled
from fsmer.training.supervised import Trainer, for_classes
from fsmer.transfer import train


class Published(nn.Module):
    """The three streams one by one, as the authors write them."""

    def __init__(self, own: STSTNet) -> None:
        super().__init__()
        self.streams = nn.ModuleList(nn.Conv2d(3, count, 3, padding=own.padding) for count in (3, 5, 8))
        self.norms = nn.ModuleList(nn.BatchNorm2d(count) for count in (3, 5, 8))
        cut = [slice(0, 3), slice(3, 8), slice(8, 16)]
        for stream, norm, part in zip(self.streams, self.norms, cut, strict=True):
            stream.weight.data.copy_(own.convolution.weight[part])
            stream.bias.data.copy_(own.convolution.bias[part])
            norm.weight.data.copy_(own.normalisation.weight[part])
            norm.bias.data.copy_(own.normalisation.bias[part])

    def forward(self, inputs: Tensor) -> Tensor:
        found = [
            F.max_pool2d(norm(F.relu(stream(255 * inputs))), 3, stride=3, padding=1)
            for stream, norm in zip(self.streams, self.norms, strict=True)
        ]
        return F.avg_pool2d(torch.cat(found, dim=1), 2).flatten(1)


def network(**arguments: object) -> STSTNet:
    torch.manual_seed(1)
    made = create_model("ststnet", **arguments)
    assert isinstance(made, STSTNet)
    with torch.no_grad():
        # Some maps are turned over by their normalisation, so that their smallest response is pooled.
        made.normalisation.weight.uniform_(-0.5, 1)
        made.normalisation.bias.uniform_(-1, 1)
    return made


def without_compiled_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STSTNet, "compiled_epochs", Backbone.compiled_epochs)


def maps(count: int, size: int = 28) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5))


def gradients(made: nn.Module, embedded: Tensor, direction: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad((embedded * direction).sum(), list(made.parameters()))
    return dict(zip((name for name, _ in made.named_parameters()), found, strict=True))


def test_the_network_with_its_classifier_has_1683_parameters():
    made = create_model("ststnet")
    classifier = nn.Linear(made.embed_dim, 3)
    assert made.embed_dim == 400
    assert sum(value.numel() for value in (*made.parameters(), *classifier.parameters())) == 1683


@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_three_streams_side_by_side(padding, training):
    own = network(padding=padding, dropout=0.0).train(training)
    other = Published(own).train(training)
    inputs = maps(9)
    found, wanted = own(inputs), other(inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    direction = torch.randn_like(found)
    ours = gradients(own, found, direction)["convolution.weight"]
    theirs = gradients(other, wanted, direction)
    joined = torch.cat([theirs[f"streams.{number}.weight"] for number in range(3)])
    torch.testing.assert_close(ours, joined, rtol=1e-3, atol=1e-4 * float(joined.abs().max()))


def test_a_network_that_has_gone_astray_is_seen():
    own = network(dropout=0.0).train()
    with torch.no_grad():
        own.convolution.weight[3, 1, 2, 0] = float("nan")
    assert torch.isnan(own(maps(2))).any()


def test_training_without_a_compiler_gives_the_same_answers(monkeypatch):
    clips = fsmer.synthetic_clips("lab", 40, seed=2)
    start = create_model("ststnet")
    found = train(start, clips, epochs=5, batch_size=16, learning_rate=1e-3)
    without_compiled_epochs(monkeypatch)
    other = train(start, clips, epochs=5, batch_size=16, learning_rate=1e-3)
    torch.testing.assert_close(
        torch.from_numpy(found.predict_proba(clips)), torch.from_numpy(other.predict_proba(clips)), atol=5e-3, rtol=0
    )
    assert (found.predict(clips) == other.predict(clips)).mean() > 0.95


def trainer_of(recipe: TrainRecipe, count: int = 27, **arguments: object) -> Trainer:
    made = for_classes(network(**arguments), ("negative", "positive", "surprise"), 0).train()
    clips = fsmer.synthetic_clips("lab", count, seed=3, specs=made.input_specs)
    torch.manual_seed(1)
    classifier = nn.Linear(made.embed_dim, len(clips.classes))
    targets = make_targets(clips, torch.from_numpy(clips.codes()), clips.classes, balanced=recipe.balanced)
    return Trainer(made, classifier, clips, targets, recipe, seed=4)


ADAM = TrainRecipe(
    optimizer="adam", learning_rate=1e-3, weight_decay=0.01, epochs=3, batch_size=8, schedule="constant", balanced=True
)


@pytest.mark.skipif(compiled("shallow") is None, reason="this machine has no C compiler")
@pytest.mark.parametrize(
    ("recipe", "arguments"),
    [
        (ADAM, {}),
        (replace(ADAM, optimizer="adamw", schedule="cosine", warmup_epochs=1.0, rates={"classifier": 1e-2}), {}),
        (replace(ADAM, balanced=False, batch_size=64), {}),
        (ADAM, {"padding": 2}),
        (ADAM, {"size": 20, "dropout": 0.3}),
        (ADAM, {"size": 31, "dropout": 0.0}),
    ],
)
def test_compiled_epochs_train_as_single_steps_do(recipe, arguments, monkeypatch):
    one, other = trainer_of(recipe, **arguments), trainer_of(recipe, **arguments)
    one.run()
    assert one._compiled is not None
    without_compiled_epochs(monkeypatch)
    other.run()
    assert other._compiled is None
    assert one.losses == pytest.approx(other.losses, rel=1e-5)
    assert one.losses[-1] < one.losses[0]
    for mine, theirs in ((one.backbone, other.backbone), (one.classifier, other.classifier)):
        assert not mine.training
        for (name, value), (_, wanted) in zip(mine.state_dict().items(), theirs.state_dict().items(), strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "change",
    [{"augment": ("flip",)}, {"optimizer": "sgd"}, {"clip_gradient": 1.0}],
    ids=lambda change: next(iter(change)),
)
def test_recipes_that_compiled_epochs_do_not_know_are_left_to_the_trainer(change):
    one = trainer_of(replace(ADAM, epochs=1, **change))
    one.run()
    assert one._compiled is None
    assert len(one.losses) == 1


@pytest.mark.skipif(compiled("shallow") is None, reason="this machine has no C compiler")
def test_compiled_epochs_stopped_resumed_or_watched_give_the_same_to_the_bit(tmp_path):
    whole, stopped, resumed = (trainer_of(replace(ADAM, optimizer="adamw", batch_size=7)) for _ in range(3))
    seen: list[tuple[int, int]] = []
    whole.run()
    stopped.run(folder=tmp_path, key=1, until=2, progress=lambda *at: seen.append(at))
    assert seen == [(number, 12) for number in range(1, 9)]
    resumed.run(folder=tmp_path, key=1)
    stopped.run()
    for other in (stopped, resumed):
        assert other.losses == whole.losses
        for mine, theirs in ((other.backbone, whole.backbone), (other.classifier, whole.classifier)):
            for name, value in mine.state_dict().items():
                assert torch.equal(value, theirs.state_dict()[name]), name


@pytest.mark.skipif(compiled("shallow") is None, reason="this machine has no C compiler")
def test_compiled_epochs_end_where_the_loss_is_not_finite():
    one = trainer_of(ADAM)
    with torch.no_grad():
        one.backbone.convolution.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(SupportError, match=r"'ststnet'.*nan.*epoch 1"):
        one.run()


def test_a_compiler_that_is_missing_or_switched_off_is_no_error(monkeypatch, tmp_path):
    compiled.cache_clear()
    monkeypatch.setenv("FSMER_CACHE", str(tmp_path))
    try:
        monkeypatch.setenv("FSMER_COMPILE", "off")
        assert compiled("shallow") is None
        compiled.cache_clear()
        monkeypatch.delenv("FSMER_COMPILE")
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CC", raising=False)
        assert compiled("shallow") is None
        assert not list(tmp_path.iterdir())
    finally:
        compiled.cache_clear()


@pytest.mark.skipif(compiled("shallow") is None, reason="this machine has no C compiler")
def test_compiled_code_is_kept_and_found_again(monkeypatch, tmp_path):
    monkeypatch.setenv("FSMER_CACHE", str(tmp_path))
    compiled.cache_clear()
    try:
        assert compiled("shallow") is not None
        (library,) = (tmp_path / "compiled").iterdir()
        made = library.stat().st_mtime_ns
        compiled.cache_clear()
        assert compiled("shallow") is not None
        assert library.stat().st_mtime_ns == made
    finally:
        compiled.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"padding": 3}, "padding"), ({"dropout": 1.0}, "dropout"), ({"size": 3}, "3.*4")],
)
def test_arguments_that_make_no_network_are_refused(arguments, said):
    with pytest.raises(FsmerError, match=said):
        create_model("ststnet", **arguments)
