"""`fsmer.wrap`: a plain module does what a backbone does, and every function takes the same forms of a model."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fsmer
from fsmer.backbones import Backbone, model_hash
from fsmer.backbones.base import is_trusted
from fsmer.backbones.weights import CONFIG_FILE
from fsmer.errors import DataError, FsmerError, SpecMismatchError, UnknownNameError, WeightsError

FLOW = fsmer.InputSpec("flow", (28, 28), ("u", "v", "strain"), "minmax")


class SmallCnn(nn.Module):
    """Two convolutions; gives (B, width, 1, 1)."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, width, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return self.layers(maps)


class Pair(nn.Module):
    """Difference of two images, pooled."""

    def forward(self, media: dict[str, torch.Tensor]) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(media["apex"] - media["onset"], 4).flatten(1)


@pytest.fixture
def module() -> SmallCnn:
    torch.manual_seed(0)
    return SmallCnn()


@pytest.fixture(scope="module")
def clips() -> fsmer.ClipSet:
    return fsmer.synthetic_clips("lab", 36, seed=0)


def test_a_plain_module_is_embedded_as_it_answers_in_evaluation_mode(module: SmallCnn, clips: fsmer.ClipSet) -> None:
    backbone = fsmer.wrap(module, FLOW)
    assert isinstance(backbone, Backbone)
    assert backbone.embed_dim == 12
    media = torch.from_numpy(clips.media())
    torch.testing.assert_close(fsmer.embed(backbone, clips), module.eval()(media).flatten(1).detach())


def test_the_module_that_was_given_stays_as_it_was(module: SmallCnn, clips: fsmer.ClipSet) -> None:
    before = copy.deepcopy(module.state_dict())
    module.layers[1].eval()  # not in the mode of the rest
    modes = [part.training for part in module.modules()]
    fsmer.adapt(fsmer.wrap(module, FLOW), clips, "finetune", train_backbone=True, steps=2)
    assert [part.training for part in module.modules()] == modes
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_wrapped_module_is_adapted_frozen_and_trained_and_explained(module: SmallCnn, clips: fsmer.ClipSet) -> None:
    backbone = fsmer.wrap(module, FLOW)
    frozen = fsmer.adapt(backbone, clips)
    assert model_hash(frozen.backbone) == model_hash(backbone)
    assert frozen.predict_proba(clips[:3]).shape == (3, len(clips.classes))
    trained = fsmer.adapt(backbone, clips, "finetune", train_backbone=True, steps=2)
    assert model_hash(trained.backbone) != model_hash(backbone)
    recognizer = fsmer.train(backbone, clips, epochs=1)
    assert recognizer.predict(clips[:2]).shape == (2,)
    for model in (backbone, frozen):
        (found,) = fsmer.explain(model, clips[:1])
        assert [values.shape for values in found.maps.values()] == [(28, 28)]
    assert fsmer.mmd(clips[:10], clips[10:], model=backbone, permutations=0).samples_b == 26


def test_an_evaluation_of_a_wrapped_module_is_known_by_its_weights(
    module: SmallCnn, clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    protocol = fsmer.load_protocol("kshot", way=3, shot=1, episodes=4)
    backbone = fsmer.wrap(module, FLOW)
    report = fsmer.evaluate(protocol, backbone, clips=clips, out=tmp_path / "run")
    assert model_hash(backbone) in report.run["identity"]["model"]
    again = fsmer.evaluate(protocol, fsmer.wrap(module, FLOW), clips=clips, out=tmp_path / "run")
    assert again.run["started"] == report.run["started"]
    with torch.no_grad():
        module.layers[0].weight.add_(0.1)
    with pytest.raises(FsmerError, match="model"):
        fsmer.evaluate(protocol, fsmer.wrap(module, FLOW), clips=clips, out=tmp_path / "run")


def test_modules_without_weights_do_not_share_kept_embeddings(clips: fsmer.ClipSet, tmp_path: Path) -> None:
    ask = {"protocol": fsmer.load_protocol("kshot", way=3, shot=1, episodes=4), "clips": clips, "cache": tmp_path}
    modules = [nn.Sequential(pool, nn.Flatten()) for pool in (nn.AvgPool2d(7), nn.MaxPool2d(7))]
    one, two = (fsmer.evaluate(model=fsmer.wrap(module, FLOW), **ask) for module in modules)
    alone = fsmer.evaluate(model=fsmer.wrap(modules[1], FLOW), **{**ask, "cache": tmp_path / "other"})
    assert two.uf1 == alone.uf1
    assert two.model != one.model


def test_modules_that_differ_in_a_plain_attribute_have_other_names() -> None:
    def scaled(factor: float) -> nn.Module:
        module = nn.Flatten()
        module.factor = factor  # type: ignore[assignment]
        return module

    names = [fsmer.wrap(scaled(factor), FLOW).name for factor in (1.0, 1.0, 2.0)]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize(
    "values",
    [
        {"size": 28},
        {"size": (28,)},
        {"size": (28, 0)},
        {"channels": "uv"},
        {"channels": ()},
        {"kind": None},
        {"frames": 0},
    ],
)
def test_a_spec_with_a_value_of_another_form_is_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(DataError, match=next(iter(values))):
        fsmer.InputSpec(**values)  # type: ignore[arg-type]


def test_a_spec_takes_lists_and_numbers_of_numpy() -> None:
    given = fsmer.InputSpec("flow", [np.int64(28), 28], ["u", "v", "strain"], "minmax")  # type: ignore[arg-type]
    assert given == FLOW
    assert hash(given) == hash(FLOW)
    assert given.to_dict() == FLOW.to_dict()


def test_wrap_without_a_spec_is_refused(module: SmallCnn) -> None:
    with pytest.raises(DataError, match=r"expects is None.*InputSpec"):
        fsmer.wrap(module, None)  # type: ignore[arg-type]


def test_a_module_that_wants_a_dict_for_one_medium_is_told_what_it_gets() -> None:
    with pytest.raises(SpecMismatchError, match=r"Pair.*a tensor for one medium, a dict by kind"):
        fsmer.wrap(Pair(), FLOW)


def test_several_media_come_as_a_dict_by_kind() -> None:
    images = [fsmer.InputSpec(kind, (16, 16), ("red", "green", "blue"), "unit") for kind in ("onset", "apex")]
    backbone = fsmer.wrap(Pair(), images)
    assert backbone.embed_dim == 48
    media = {kind: np.random.default_rng(0).random((2, 3, 16, 16), np.float32) for kind in ("onset", "apex")}
    assert fsmer.embed(backbone, media).shape == (2, 48)


@pytest.mark.parametrize(
    ("module", "facts"),
    [
        (nn.Identity(), r"Identity.*\(2, 3, 28, 28\).*\(2, D\)"),
        (nn.Linear(5, 3), "Linear.*28x28"),
        (nn.Sequential(nn.Flatten(0)), r"\(4704,\)"),
        (nn.LSTM(28, 2), "LSTM"),
    ],
)
def test_a_module_that_gives_no_vector_a_clip_is_refused_in_one_sentence(module: nn.Module, facts: str) -> None:
    with pytest.raises(SpecMismatchError, match=facts) as raised:
        fsmer.wrap(module, FLOW)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_wrapped_is_refused(module: SmallCnn) -> None:
    with pytest.raises(SpecMismatchError, match=r"12 .* embed_dim is 7"):
        fsmer.wrap(module, FLOW, embed_dim=7)
    for given in (fsmer.wrap(module, FLOW), SmallCnn, "facs-flow"):
        with pytest.raises(DataError, match="wrap"):
            fsmer.wrap(given, FLOW)
    for expects in ("flow", [], [FLOW, FLOW]):
        with pytest.raises(DataError, match="expects"):
            fsmer.wrap(module, expects)


def test_a_wrapped_module_cannot_be_saved_and_says_how_it_could(
    module: SmallCnn, clips: fsmer.ClipSet, tmp_path: Path
) -> None:
    backbone = fsmer.wrap(module, FLOW)
    recognizer = fsmer.adapt(backbone, clips)
    for save in (
        lambda: recognizer.save(tmp_path / "saved"),
        lambda: backbone.save_pretrained(tmp_path / "saved"),
        lambda: fsmer.train(backbone, clips, out=tmp_path / "saved", epochs=10_000),
    ):
        with pytest.raises(WeightsError, match=r"SmallCnn.*register_backbone"):
            save()
    assert not (tmp_path / "saved" / CONFIG_FILE).exists()


@pytest.mark.parametrize("function", ["embed", "adapt", "train", "explain", "mmd", "evaluate"])
def test_every_function_that_takes_a_model_refuses_a_plain_module_and_an_unknown_name(
    function: str, module: SmallCnn, clips: fsmer.ClipSet
) -> None:
    def ask(model: object) -> None:
        if function == "mmd":
            fsmer.mmd(clips, clips, model=model)
        elif function == "evaluate":
            fsmer.evaluate(fsmer.load_protocol("kshot", way=3, shot=1, episodes=2), model, clips=clips)
        else:
            getattr(fsmer, function)(model, clips)

    with pytest.raises(SpecMismatchError, match=re.escape("SmallCnn") + ".*fsmer.wrap"):
        ask(module)
    with pytest.raises(DataError, match="int"):
        ask(3)
    with pytest.raises(UnknownNameError, match="facs-flow"):
        ask("facs-flwo")
    with pytest.raises(UnknownNameError):
        ask("x" * 5000)


def test_embed_takes_names_and_folders(clips: fsmer.ClipSet, tmp_path: Path) -> None:
    model = fsmer.load_model("facs-flow")
    wanted = fsmer.embed(model, clips[:3])
    model.save_pretrained(tmp_path / "weights")
    for form in ("facs-flow", str(tmp_path / "weights"), tmp_path / "weights"):
        assert torch.equal(fsmer.embed(form, clips[:3]), wanted)


def test_explain_takes_the_folder_of_a_recognizer(clips: fsmer.ClipSet, tmp_path: Path) -> None:
    recognizer = fsmer.adapt("facs-flow", clips)
    recognizer.save(tmp_path / "saved")
    (found,) = fsmer.explain(tmp_path / "saved", clips[:1])
    assert found.classes == tuple(recognizer.classes_)


def test_trust_is_declared_by_a_class_itself(module: SmallCnn) -> None:
    from fsmer.backbones.ststnet import STSTNet

    class Extended(STSTNet):
        """From outside."""

    assert is_trusted(STSTNet())
    assert not is_trusted(Extended())
    assert not is_trusted(fsmer.wrap(module, FLOW))
    Extended.trusted = True
    assert is_trusted(Extended())
    Extended.__module__ = "fsmer.backbones.own"
    Extended.trusted = False
    assert not is_trusted(Extended())
