"""`flow_resnet18` expects flow of any size, channels and scale, and starts from given weights or says why it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import fsmer
from fsmer.backbones import embed
from fsmer.backbones.flow_resnet18 import PUBLISHED_RATES, FlowResNet18
from fsmer.backbones.targets import Targets
from fsmer.errors import FsmerError, UnknownNameError, WeightsError

TINY = {"widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}
PUBLIC = {"size": 28, "channels": ("u", "v", "strain"), "normalisation": "minmax"}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def tiny(**arguments: object) -> FlowResNet18:
    return FlowResNet18(**{"size": 32, "projection_dim": 10, **TINY, **arguments})  # type: ignore[arg-type]


def test_default_is_the_optical_flow_module_of_merau():
    with torch.device("meta"):
        model = FlowResNet18()
    (spec,) = model.input_specs
    assert (spec.kind, spec.size, spec.channels, spec.normalisation) == ("flow", (224, 224), ("u", "v"), "signed")
    # ResNet18 has 11,176,512 parameters below its classifier with three channels, 64 * 7 * 7 of them for each channel.
    encoder = 11_176_512 - 64 * 7 * 7
    assert sum(value.numel() for value in model.parameters()) == encoder + 512 * 128 + 128
    assert model.embed_dim == 128


def test_projection_has_relu_and_can_be_left_out():
    maps = torch.randn(3, 2, 32, 32) * 10
    model = tiny().eval()
    bare = tiny(projection_dim=0).eval()
    bare.encoder.load_state_dict(model.encoder.state_dict())
    features = bare(maps)
    assert features.shape == (3, bare.embed_dim) == (3, 16)
    weight, bias = model.projection[0].weight, model.projection[0].bias
    torch.testing.assert_close(model(maps), (features @ weight.T + bias).clamp_min(0))


def test_signed_flow_keeps_size_and_sign_and_minmax_maps_do_not():
    maps = torch.rand(2, 2, 32, 32)
    signed, minmax = tiny(), tiny(normalisation="minmax")
    torch.testing.assert_close(signed.prepare(20 * maps - 10), 2 * maps - 1)
    stretched = 0.5 * maps + 0.3
    torch.testing.assert_close(minmax.prepare(stretched), minmax.prepare(maps), rtol=0.01, atol=0.02)
    prepared = minmax.prepare(maps)
    torch.testing.assert_close(prepared.mean(dim=(2, 3)), torch.zeros(2, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(prepared.std(dim=(2, 3)), torch.ones(2, 2), atol=0.01, rtol=0)


def test_small_maps_are_enlarged_inside():
    maps = torch.randn(2, 2, 28, 28) * 10
    model = tiny(size=28, inner_size=56).eval()
    same = tiny(size=56).eval()
    same.load_state_dict(model.state_dict())
    enlarged = F.interpolate(maps, size=(56, 56), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(maps), same(enlarged))
    assert model.prepare(maps).shape[-2:] == (56, 56)


def test_public_maps_pass_from_clips_to_embeddings():
    model = tiny(**PUBLIC, inner_size=56).eval()
    clips = fsmer.synthetic_clips(n=4)
    found = embed(model, clips)
    assert found.shape == (4, 10)
    with torch.inference_mode():
        expected = model(torch.from_numpy(np.ascontiguousarray(clips.media("flow"))))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def training_step(model: FlowResNet18, maps: Tensor, labels: Tensor) -> tuple[nn.Linear, Tensor]:
    classifier = nn.Linear(model.embed_dim, 3)
    return classifier, model.training_loss(maps, Targets(labels, ("a", "b", "c")), classifier)


def test_every_parameter_gets_a_gradient_and_a_rate():
    model = tiny()
    _, loss = training_step(model, torch.randn(6, 2, 32, 32) * 10, torch.arange(6) % 3)
    loss.backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        for rates in (model.recipe.rates, PUBLISHED_RATES):
            assert any(name.startswith(key) for key in rates), name


def test_sixteen_clips_can_be_learnt_by_heart():
    model = tiny()
    classifier = nn.Linear(model.embed_dim, 3)
    maps, targets = torch.randn(16, 2, 32, 32) * 10, Targets(torch.arange(16) % 3, ("a", "b", "c"))
    optimizer = torch.optim.Adam([*model.parameters(), *classifier.parameters()], lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model.training_loss(maps, targets, classifier).backward()
        optimizer.step()
    assert torch.equal(classifier(model.eval()(maps)).argmax(dim=1), targets.labels)


def test_runs_in_bfloat16_and_on_one_clip():
    model = tiny(**PUBLIC, inner_size=56).eval()
    maps = torch.rand(1, 3, 28, 28)
    expected = model(maps)
    found = model.to(torch.bfloat16)(maps.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


# ---- weights to start from


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Tensors of a small ResNet for colour pictures with its classifier, as timm stores them."""
    network = timm.create_model("resnet18", num_classes=5, channels=TINY["widths"], layers=TINY["depths"])
    path = tmp_path / "model.safetensors"
    save_file(network.state_dict(), str(path))
    return path


def test_weights_of_pictures_start_the_encoder(weights: Path):
    model = tiny(weights=str(weights))
    assert torch.equal(tiny(weights=str(weights.parent)).encoder.conv1.weight, model.encoder.conv1.weight)
    source = timm.create_model("resnet18", num_classes=0, channels=TINY["widths"], layers=TINY["depths"])
    source.load_state_dict(tiny(channels=("u", "v", "strain"), weights=str(weights)).encoder.state_dict())
    for name, value in model.encoder.state_dict().items():
        expected = source.state_dict()[name]
        if name == "conv1.weight":
            # Two of three channels, made larger so that an input alike in all channels gives the same answer.
            expected = expected[:, :2] * 3 / 2
        torch.testing.assert_close(value, expected)


def test_a_saved_backbone_loads_without_the_weights_it_began_with(weights: Path, tmp_path: Path):
    model = tiny(weights=str(weights)).eval()
    model.save_pretrained(tmp_path / "saved")
    weights.unlink()
    again = FlowResNet18.from_pretrained(tmp_path / "saved")
    maps = torch.randn(2, 2, 32, 32)
    assert torch.equal(again(maps), model(maps))


def test_weights_that_are_missing_broken_or_of_another_network_are_refused(weights: Path, tmp_path: Path):
    with pytest.raises(WeightsError, match=r"nowhere.safetensors does not exist"):
        tiny(weights=str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(WeightsError, match="does not fit"):
        tiny(weights=str(weights), widths=(8, 8, 16, 24))
    save_file({"something": torch.zeros(2)}, str(weights))
    with pytest.raises(WeightsError, match=r"does not fit.*such as"):
        tiny(weights=str(weights))
    weights.write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match="not a valid safetensors file"):
        tiny(weights=str(weights))


def test_imagenet_weights_without_network_are_refused_with_a_way_out(monkeypatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"not in the cache.*give weights="):
        FlowResNet18(weights="imagenet")


def test_wrong_arguments_are_refused():
    with pytest.raises(UnknownNameError, match="normalisation 'unit'"):
        tiny(normalisation="unit")
    with pytest.raises(FsmerError, match="no channels"):
        tiny(channels=())
