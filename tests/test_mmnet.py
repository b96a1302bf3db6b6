"""`mmnet` against its paper: shapes, equations in plain loops, parameter counts, ablations, recipe."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fsmer.backbones.base import model_hash
from fsmer.backbones.mmnet import THREE_CLASS_ARGUMENTS, THREE_CLASS_RECIPE, CABlock, MMNet, TransformerBlock
from fsmer.backbones.targets import Targets
from fsmer.errors import FsmerError, SpecMismatchError

TINY = {"size": 32, "stem": [[6, 2], [4, 1]], "stages": [[4, 1], [4, 2], [8, 2], [16, 2]], "layers": 2, "heads": 4}


def tiny(seed: int = 0, **changes: object) -> MMNet:
    torch.manual_seed(seed)
    return MMNet(**{**TINY, **changes}).eval()  # type: ignore[arg-type]


def images(n: int = 3, size: int = 32, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    onset = torch.rand(n, 3, size, size, generator=generator)
    return {"onset": onset, "apex": (onset + 0.1 * torch.randn(onset.shape, generator=generator)).clamp(0, 1)}


def settle(module: nn.Module, seed: int = 0) -> None:
    """Batch statistics and affine weights that are not 0 and 1, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.copy_(0.1 * torch.randn(part.num_features, generator=generator))
            part.running_var.copy_(0.5 + torch.rand(part.num_features, generator=generator))
            part.weight.data.copy_(0.5 + torch.rand(part.num_features, generator=generator))
            part.bias.data.copy_(0.1 * torch.randn(part.num_features, generator=generator))


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# -- shapes and sizes of the paper -------------------------------------------------------------------------------------


def test_every_stage_has_the_shape_of_the_paper():
    torch.manual_seed(0)
    model = MMNet().eval()
    seen: dict[str, tuple[int, ...]] = {}

    def note(name: str):
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            seen[name] = tuple((output[0] if isinstance(output, tuple) else output).shape)  # type: ignore[union-attr]

        return hook

    model.stem[0].register_forward_hook(note("first convolution"))
    model.stem.register_forward_hook(note("stem"))
    for number, block in enumerate(model.blocks, 1):
        block.register_forward_hook(note(f"block {number}"))
    model.position.patch.register_forward_hook(note("patches"))
    model.position.register_forward_hook(note("position"))
    pictures = images(1, 224)
    with torch.no_grad():
        embedding = model(pictures)
    assert seen == {
        "first convolution": (1, 180, 112, 112),
        "stem": (1, 128, 112, 112),
        "block 1": (1, 128, 112, 112),
        "block 2": (1, 128, 56, 56),
        "block 3": (1, 256, 28, 28),
        "block 4": (1, 512, 14, 14),  # F_M, section 2.2
        "patches": (1, 196, 512),  # E_p, section 2.3
        "position": (1, 512, 14, 14),  # E_pos, section 2.3
    }
    assert embedding.shape == (1, 100_352) == (1, model.embed_dim)
    maps = model.explain_maps(pictures)
    assert [tuple(one.shape) for one in maps.values()] == [(1, 112, 112), (1, 56, 56), (1, 28, 28), (1, 14, 14)]
    assert [spec.shape for spec in model.input_specs] == [(3, 224, 224)] * 2
    assert [spec.kind for spec in model.input_specs] == ["onset", "apex"]


def test_parameters_are_about_nine_and_a_half_million_with_a_five_class_classifier():
    classifier = 100_352 * 5 + 5

    def branch(widths: list[int], shortcuts: list[bool]) -> int:
        total = 3 * 180 * 9 + 2 * 180 + 180 * 128 * 9 + 2 * 128
        for inputs, outputs, shortcut in zip([128, *widths], widths, shortcuts, strict=False):
            total += inputs * outputs * 9 + outputs * outputs + 4 * outputs  # two convolutions and their norms
            total += shortcut * (inputs * outputs + 2 * outputs) + 2 + 2  # shortcut; attention and its norm
        return total

    layer = 4 * (512 * 512 + 512) + 2 * 4 * 512 * 512 + 5 * 512 + 4 * 512
    position = 3 * 512 + 512 + 196 * 512 + 2 * layer + 2 * 512
    widths = [128, 128, 256, 512]
    published = MMNet(identity_shortcut=True)
    assert parameters_of(published) == branch(widths, [False, True, True, True]) + position
    assert parameters_of(published) + classifier == 9_438_841
    paper = MMNet()
    assert parameters_of(paper) == branch(widths, [True] * 4) + position
    assert parameters_of(paper) + classifier == pytest.approx(9.4e6, rel=0.01)
    assert parameters_of(paper.position) == position
    assert position == pytest.approx(6.4e6, rel=0.01)


def test_widths_of_the_equations_to_the_letter_can_be_built():
    model = MMNet(size=64, stem=[[32, 1]], stages=[[64, 2], [128, 2], [256, 2], [512, 2]], position=False).eval()
    shapes = [(32, 64)]
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _i, output: shapes.append((output[0].shape[1], output[0].shape[2])))
    with torch.no_grad():
        model(images(1, 64))
    for (channels, side), (more, half) in pairwise(shapes):
        assert (more, half) == (2 * channels, side // 2)
    assert shapes[-1] == (512, 4)


# -- equations in plain loops ------------------------------------------------------------------------------------------


def convolved(features: np.ndarray, part: nn.Sequential) -> np.ndarray:
    """Convolution and batch normalisation of one image (C, H, W), pixel by pixel."""
    layer, norm = part[0], part[1]
    weight = layer.weight.detach().double().numpy()
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    padded = np.pad(features, ((0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2))
    side = (features.shape[1] - 1) // stride + 1
    out = np.zeros((len(weight), side, side))
    for channel in range(len(weight)):
        for y in range(side):
            for x in range(side):
                window = padded[:, y * stride : y * stride + kernel, x * stride : x * stride + kernel]
                out[channel, y, x] = (window * weight[channel]).sum()
    mean, variance = norm.running_mean.double().numpy(), norm.running_var.double().numpy()
    gain, bias = norm.weight.detach().double().numpy(), norm.bias.detach().double().numpy()
    scaled = (out - mean[:, None, None]) / np.sqrt(variance + norm.eps)[:, None, None]
    return scaled * gain[:, None, None] + bias[:, None, None]


def block_by_loops(block: CABlock, features: np.ndarray, prior: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Equations 1 to 3."""
    mixed = convolved(np.maximum(convolved(features, block.conv1), 0), block.conv2)
    found = np.maximum(mixed + convolved(features, block.shortcut), 0)
    side = found.shape[1]
    attention = np.zeros((side, side))
    planes = np.stack([found.max(axis=0), found.mean(axis=0)])
    logits = convolved(planes, block.gate)[0]
    for y in range(side):
        for x in range(side):
            attention[y, x] = 1 / (1 + math.exp(-logits[y, x]))
            if prior is not None:
                rows = slice(max(y * block.stride - 1, 0), y * block.stride + 2)
                columns = slice(max(x * block.stride - 1, 0), x * block.stride + 2)
                attention[y, x] *= prior[rows, columns].max()
    return found * attention, attention


def test_continuous_attention_block_follows_equations_1_to_3():
    torch.manual_seed(3)
    first = CABlock(3, 4, 1, "continuous", identity_shortcut=False).eval()
    second = CABlock(4, 6, 2, "continuous", identity_shortcut=False).eval()
    settle(first, 1)
    settle(second, 2)
    features = torch.randn(2, 3, 7, 7)
    with torch.no_grad():
        middle, prior = first(features, None)
        out, attention = second(middle, prior)
    for clip in range(2):
        wanted_middle, wanted_prior = block_by_loops(first, features[clip].double().numpy(), None)
        wanted, wanted_attention = block_by_loops(second, wanted_middle, wanted_prior)
        np.testing.assert_allclose(prior[clip, 0].numpy(), wanted_prior, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(attention[clip, 0].numpy(), wanted_attention, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(out[clip].numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_self_attention_of_the_position_branch_is_softmax_of_scaled_products_a_head():
    torch.manual_seed(4)
    block = TransformerBlock(12, 3, 2.0, 0.0).eval()
    tokens = torch.randn(2, 5, 12)
    with torch.no_grad():
        found = block.attend(tokens).numpy()
    weight, bias = block.qkv.weight.detach().double().numpy(), block.qkv.bias.detach().double().numpy()
    for clip in range(2):
        joined = tokens[clip].double().numpy() @ weight.T + bias
        query, key, value = joined[:, :12], joined[:, 12:24], joined[:, 24:]
        mixed = np.zeros((5, 12))
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            for i in range(5):
                scores = [math.exp(query[i, part] @ key[j, part] / math.sqrt(4)) for j in range(5)]
                for j in range(5):
                    mixed[i, part] += scores[j] / sum(scores) * value[j, part]
        out = mixed @ block.out.weight.detach().double().numpy().T + block.out.bias.detach().double().numpy()
        np.testing.assert_allclose(found[clip], out, rtol=1e-4, atol=1e-6)


def test_transformer_block_normalises_first_and_adds_each_branch_to_its_input():
    torch.manual_seed(5)
    block = TransformerBlock(8, 2, 4.0, 0.0).eval()
    tokens = torch.randn(1, 4, 8)
    wanted = tokens + block.attend(nn.functional.layer_norm(tokens, (8,), eps=1e-6))
    wanted = wanted + block.mlp(nn.functional.layer_norm(wanted, (8,), eps=1e-6))
    torch.testing.assert_close(block(tokens), wanted)
    assert block.mlp[0].out_features == 32


# -- the two branches --------------------------------------------------------------------------------------------------


def test_main_branch_sees_the_difference_of_the_normalised_images_and_nothing_else():
    model = tiny()
    settle(model)
    pictures = images()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    sd = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    taken: list[Tensor] = []
    model.stem.register_forward_hook(lambda _m, given, _o: taken.append(given[0]))
    with torch.no_grad():
        model.motion(pictures["onset"], pictures["apex"])
        torch.testing.assert_close(taken[0], (pictures["apex"] - mean) / sd - (pictures["onset"] - mean) / sd)
        # Another face below the same change: the same motion features.
        other = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(9))
        change = pictures["apex"] - pictures["onset"]
        torch.testing.assert_close(
            model.motion(other, other + change)[0],
            model.motion(pictures["onset"], pictures["apex"])[0],
            rtol=1e-4,
            atol=1e-5,
        )


def test_position_branch_sees_the_onset_alone_and_is_added():
    model, without = tiny(), tiny(position=False)
    without.load_state_dict(model.state_dict(), strict=False)
    pictures = images()
    with torch.no_grad():
        added = model(pictures) - without(pictures)
        stiller = {**pictures, "apex": 0.5 * (pictures["apex"] + pictures["onset"])}
        torch.testing.assert_close(model(stiller) - without(stiller), added, rtol=1e-4, atol=1e-5)
        normalised = (pictures["onset"] - model.mean) / model.sd
        torch.testing.assert_close(model.position(normalised).flatten(1), added, rtol=1e-4, atol=1e-5)
    assert added.abs().mean() > 0.1


def test_position_branch_tells_places_apart_and_is_blind_to_fine_texture():
    model = tiny()
    flat = torch.full((1, 3, 32, 32), 0.5)
    # Checks of 2x2 pixels, laid so that single samples at the middle of the halves would see them.
    checks = ((torch.arange(32)[:, None] + 1) // 2 + (torch.arange(32) + 1) // 2) % 2 - 0.5
    with torch.no_grad():
        places = model.position(flat)
        textured = model.position(flat + 0.4 * checks)
    assert places.shape == (1, 16, 2, 2)
    assert not torch.allclose(places[..., 0, 0], places[..., 1, 1])
    torch.testing.assert_close(places, textured, rtol=1e-3, atol=1e-3)


def test_continuous_attention_is_independent_attention_times_the_pooled_map_before():
    continuous, independent = tiny(), tiny(attention="independent")
    independent.load_state_dict(continuous.state_dict())
    pictures = images()
    chained = list(continuous.explain_maps(pictures).values())
    alone = list(independent.explain_maps(pictures).values())
    torch.testing.assert_close(chained[0], alone[0])
    for number in range(1, 4):
        # No map may look where the one before did not.
        pooled = nn.functional.max_pool2d(chained[number - 1][:, None], 3, 2, padding=1)[:, 0]
        assert (chained[number] <= pooled).all()
    features, _ = continuous.blocks[0](continuous.stem((pictures["apex"] - pictures["onset"]) / continuous.sd), None)
    own = independent.blocks[1](features, None)[1][:, 0]
    pooled = nn.functional.max_pool2d(chained[0][:, None], 3, 2, padding=1)[:, 0]
    torch.testing.assert_close(chained[1], own * pooled)


def test_attention_maps_lie_between_0_and_1_and_keep_no_graph():
    maps = tiny().explain_maps(images())
    assert list(maps) == ["attention 1", "attention 2", "attention 3", "attention 4"]
    for one in maps.values():
        assert not one.requires_grad
        assert float(one.min()) >= 0
        assert float(one.max()) <= 1
        assert float(one.std()) > 0


def test_variants_of_tables_3_to_5_can_be_built():
    pictures = images()
    resnet = tiny(attention="none", position=False)
    assert resnet.explain_maps(pictures) == {}
    for block in resnet.blocks:
        assert (block.conv1[0].kernel_size, block.conv2[0].kernel_size) == ((3, 3), (3, 3))
    assert isinstance(resnet.blocks[0].shortcut, nn.Identity)
    found = {"resnet": resnet(pictures)}
    for name, options in {
        "ca alone": {"position": False},
        "pc alone": {"attention": "none"},
        "independent": {"attention": "independent"},
        "three layers": {"layers": 3, "heads": 2},
    }.items():
        found[name] = tiny(**options)(pictures)
    assert len({one.shape for one in found.values()}) == 1
    values = list(found.values())
    for place, one in enumerate(values):
        assert all(not torch.allclose(one, other) for other in values[place + 1 :])


def test_three_class_settings_drop_whole_layers_in_training_only():
    model = tiny(**THREE_CLASS_ARGUMENTS)
    assert [block.drop_path for block in model.position.blocks] == pytest.approx([0, 0.15, 0.3])
    assert [block.mlp[0].out_features for block in model.position.blocks] == [32] * 3
    assert THREE_CLASS_RECIPE.weight_decay == 0.7
    pictures = images(2)
    assert torch.equal(model(pictures), model(pictures))
    block = TransformerBlock(8, 2, 1.0, 0.5)
    tokens = torch.randn(1, 3, 8).expand(4000, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        dropped, whole = block._kept(tokens), block.eval()._kept(tokens)
    assert torch.equal(whole, tokens)
    skipped = (dropped == 0).all(dim=(1, 2))
    assert float(skipped.float().mean()) == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(dropped[~skipped], 2 * tokens[~skipped])


def test_pooling_averages_the_last_map_over_cells():
    whole, cells = tiny(size=64), tiny(size=64, pool=2)
    cells.load_state_dict(whole.state_dict())
    pictures = images(2, 64)
    with torch.no_grad():
        full = whole(pictures).view(2, 16, 4, 4)
        pooled = cells(pictures)
    assert cells.embed_dim == 64
    torch.testing.assert_close(pooled.view(2, 16, 2, 2), full.view(2, 16, 2, 2, 2, 2).mean(dim=(3, 5)))


# -- the contract ------------------------------------------------------------------------------------------------------


def test_recipe_is_the_papers():
    recipe = MMNet.recipe
    assert (recipe.optimizer, recipe.learning_rate, recipe.batch_size, recipe.epochs) == ("adamw", 8e-4, 32, 70)
    assert (recipe.schedule, recipe.gamma, recipe.weight_decay) == ("exponential", 0.987, 0.6)
    assert set(recipe.augment) == {"flip", "crop"}


@pytest.mark.parametrize(
    "options", [{}, {"attention": "independent"}, {"attention": "none"}, {"position": False}, {"pool": 1}]
)
def test_every_parameter_gets_a_gradient_from_the_training_loss(options):
    model = tiny(**options).train()
    classifier = nn.Linear(model.embed_dim, 3)
    targets = Targets(labels=torch.tensor([0, 1, 2]), classes=("a", "b", "c"))
    loss = model.training_loss(images(), targets, classifier)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_weights_come_back_equal_to_the_bit(tmp_path: Path):
    model = tiny(attention="independent", pool=1, identity_shortcut=True, **{"drop_path": 0.1})
    settle(model)
    model.save_pretrained(tmp_path / "weights")
    again = MMNet.from_pretrained(tmp_path / "weights")
    assert again.config == model.config
    assert model_hash(again) == model_hash(model)
    with torch.no_grad():
        assert torch.equal(again(images()), model(images()))


def test_a_clip_is_embedded_the_same_alone_and_in_company():
    model, pictures = tiny(), images(4)
    with torch.no_grad():
        together = model(pictures)
        alone = torch.cat([model({kind: values[row, None] for kind, values in pictures.items()}) for row in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_runs_in_bfloat16_and_can_be_laid_out_without_memory():
    model, pictures = tiny(), images()
    with torch.no_grad():
        full = model(pictures)
        half = model.to(torch.bfloat16)({kind: values.bfloat16() for kind, values in pictures.items()})
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(full, half.float()).min() > 0.98
    with torch.device("meta"):
        laid_out = MMNet()
    assert next(laid_out.parameters()).is_meta


def test_sixteen_clips_are_learnt_by_heart():
    model = tiny(pool=None).train()
    classifier = nn.Linear(model.embed_dim, 4)
    # Four classes: one corner of the image brightens; every clip has a face of its own.
    generator = torch.Generator().manual_seed(1)
    onset = 0.8 * torch.rand(16, 3, 32, 32, generator=generator)
    apex = onset.clone()
    labels = torch.arange(16) % 4
    for clip, label in enumerate(labels.tolist()):
        y, x = 16 * (label // 2), 16 * (label % 2)
        apex[clip, :, y : y + 16, x : x + 16] += 0.05
    pictures = {"onset": onset, "apex": apex}
    targets = Targets(labels=labels, classes=("a", "b", "c", "d"))
    optimiser = torch.optim.AdamW([*model.parameters(), *classifier.parameters()], lr=3e-3)
    for _ in range(80):
        optimiser.zero_grad()
        model.training_loss(pictures, targets, classifier).backward()
        optimiser.step()
    model.eval()
    with torch.no_grad():
        assert torch.equal(classifier(model(pictures)).argmax(dim=1), labels)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.zeros(2, 3, 32, 32), r"onset .*apex .*given Tensor"),
        ({"onset": torch.zeros(2, 3, 32, 32)}, r"given onset of shape \(2, 3, 32, 32\);"),
        ({"onset": torch.zeros(2, 3, 32, 32), "apex": torch.zeros(2, 3, 28, 28)}, r"apex of shape \(2, 3, 28, 28\)"),
        ({"onset": torch.zeros(3, 32, 32), "apex": torch.zeros(3, 32, 32)}, r"onset of shape \(3, 32, 32\)"),
    ],
)
def test_other_media_are_refused_in_one_sentence(given, said):
    with pytest.raises(SpecMismatchError, match=said) as error:
        tiny()(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heads": 3}, "3 heads do not divide"),
        ({"attention": "soft"}, r"attention 'soft'.*continuous, independent, none"),
        ({"pool": 15}, "give 1 to 2"),
    ],
)
def test_options_that_cannot_be_built_are_refused(options, said):
    with pytest.raises(FsmerError, match=said):
        tiny(**options)
