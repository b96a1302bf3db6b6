"""TCAE: warping, every loss, the curriculum and the shapes against computations in plain numpy, and the backbone's
promises: which parameters learn, what is frozen, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fsmer.backbones.base import model_hash
from fsmer.backbones.registry import class_notes
from fsmer.backbones.targets import Targets
from fsmer.backbones.tcae import Tcae, curriculum_mean, curriculum_window, random_crops, warp
from fsmer.errors import FsmerError, SpecMismatchError

TINY = {"size": 32, "width": 4, "code_dim": 16}


def tiny(**arguments) -> Tcae:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tcae(**{**TINY, **arguments})


def frames(n: int = 4, seed: int = 0, size: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def clip_inputs(n: int = 4) -> dict[str, torch.Tensor]:
    return {"onset": frames(n, 1), "apex": frames(n, 2)}


def naive_warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Bilinear sampling in loops: image (C, H, W), flow (2, H, W) in grid units."""
    _, height, width = image.shape
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            x = np.clip(-1 + 2 * column / (width - 1) + flow[0, row, column], -1, 1)
            y = np.clip(-1 + 2 * row / (height - 1) + flow[1, row, column], -1, 1)
            across, down = (x + 1) / 2 * (width - 1), (y + 1) / 2 * (height - 1)
            left, upper = min(int(across), width - 2), min(int(down), height - 2)
            a, b = across - left, down - upper
            out[:, row, column] = (
                (1 - a) * (1 - b) * image[:, upper, left]
                + a * (1 - b) * image[:, upper, left + 1]
                + (1 - a) * b * image[:, upper + 1, left]
                + a * b * image[:, upper + 1, left + 1]
            )
    return out


# -- warping ----------------------------------------------------------------------------------------------------------


def test_no_flow_leaves_the_image_as_it_is():
    image = frames(2)
    torch.testing.assert_close(warp(image, torch.zeros(2, 2, 32, 32)), image, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("right", "down"), [(3, 0), (0, 5), (-4, 2), (1, -7)])
def test_a_flow_of_whole_pixels_moves_the_image_by_exactly_that_many(right: int, down: int):
    image = frames(1, size=32)
    flow = torch.zeros(1, 2, 32, 32)
    flow[:, 0], flow[:, 1] = 2 * right / 31, 2 * down / 31
    found = warp(image, flow)[0].numpy()
    for row in range(32):
        for column in range(32):
            source = image[0, :, min(max(row + down, 0), 31), min(max(column + right, 0), 31)].numpy()
            np.testing.assert_allclose(found[:, row, column], source, atol=2e-5)


def test_warping_by_any_flow_equals_bilinear_sampling_in_loops():
    image, flow = frames(2, 3, 16), 0.6 * frames(2, 4, 16)[:, :2] - 0.3
    found = warp(image, flow).numpy()
    for place in range(2):
        np.testing.assert_allclose(found[place], naive_warp(image[place].numpy(), flow[place].numpy()), atol=2e-5)


# -- curriculum -------------------------------------------------------------------------------------------------------


def test_the_window_climbs_in_five_places_of_equal_length_from_the_easy_half_to_the_hard_one():
    seen = [tuple(round(edge, 6) for edge in curriculum_window(done)) for done in np.linspace(0, 1, 100, False)]
    assert sorted(set(seen)) == [(0.0, 0.5), (0.1, 0.6), (0.2, 0.7), (0.3, 0.8), (0.4, 0.9)]
    assert seen == sorted(seen)
    assert [seen.count(window) for window in sorted(set(seen))] == [20] * 5
    assert curriculum_window(1.0) == curriculum_window(0.999)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 64])
@pytest.mark.parametrize("done", [0.0, 0.3, 0.5, 0.7, 0.95])
def test_the_mean_of_the_window_is_that_of_numpy(count: int, done: float):
    values = torch.rand(count, generator=torch.Generator().manual_seed(count))
    place = int(done * 5)
    start, stop = count * place // 10, count * (5 + place) // 10
    expected = np.sort(values.numpy())[start : max(stop, start + 1)].mean()
    assert float(curriculum_mean(values, curriculum_window(done))) == pytest.approx(float(expected), rel=1e-6)


# -- losses -----------------------------------------------------------------------------------------------------------


def numpy_terms(model: Tcae, source: torch.Tensor, target: torch.Tensor) -> dict[str, np.ndarray]:
    """The ten losses one pair at a time: networks from torch (in evaluation mode), all else in numpy loops."""

    def codes(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        au, pose = model.encoder.codes(torch.from_numpy(image[None]).float())
        return au[0].numpy(), pose[0].numpy()

    def flow(decoder: nn.Module, one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found, logit = decoder(torch.from_numpy(one[None]), torch.from_numpy(two[None]))
        return found[0].numpy(), logit[0].numpy()

    rows = []
    for first, second in zip(source.numpy(), target.numpy(), strict=True):
        (au_1, pose_1), (au_2, pose_2) = codes(first), codes(second)
        au_flow, au_logit = flow(model.au_decoder, au_1, au_2)
        pose_flow, pose_logit = flow(model.pose_decoder, pose_1, pose_2)
        weight = np.exp(np.stack([au_logit, pose_logit]))
        mixed_flow = (weight[0] * au_flow + weight[1] * pose_flow) / weight.sum(axis=0)
        by_au, by_pose, mixed = (naive_warp(first, field) for field in (au_flow, pose_flow, mixed_flow))
        (au_a, pose_a), (au_p, pose_p), (au_m, pose_m) = codes(by_au), codes(by_pose), codes(mixed)
        au_back = naive_warp(by_au, flow(model.au_decoder, au_a, au_1)[0])
        pose_back = naive_warp(by_pose, flow(model.pose_decoder, pose_p, pose_1)[0])
        rows.append(
            {
                "pixel": np.abs(mixed - second).mean(),
                "code_pose_pose": ((pose_p - pose_2) ** 2).mean(),
                "code_pose_au": ((au_p - au_1) ** 2).mean(),
                "code_au_pose": ((pose_a - pose_1) ** 2).mean(),
                "code_au_au": ((au_a - au_2) ** 2).mean(),
                "code_mixed_pose": ((pose_m - pose_2) ** 2).mean(),
                "code_mixed_au": ((au_m - au_2) ** 2).mean(),
                "cycle_au": np.abs(au_back - first).mean(),
                "cycle_pose": np.abs(pose_back - first).mean(),
                "flow": np.abs(au_flow).mean(),
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_every_loss_of_every_pair_equals_numpy():
    model = tiny(size=16).eval()
    source, target = frames(3, 5, 16), frames(3, 6, 16)
    with torch.no_grad():
        expected, found = numpy_terms(model, source, target), model.terms(source, target)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=2e-3, atol=1e-6, err_msg=name)
        assert len(set(values.round(7))) == 3, name


def test_the_total_is_the_weighted_sum_of_the_windows_of_all_losses():
    model = tiny(jitter="none", pixel_weight=3.0, code_weight=0.5, cycle_weight=2.0, flow_weight=7.0).eval()
    model.begin_pretraining()
    source, target = frames(8, 5), frames(8, 6)
    found = model.pretraining_loss(source, target, done=0.5, generator=torch.Generator())
    weights = {"pixel": 3.0, "code": 0.5, "cycle": 2.0, "flow": 7.0}
    total = 0.0
    for name, values in model.terms(source, target).items():
        part = np.sort(values.detach().numpy())[int(0.2 * 8) : int(0.7 * 8)].mean()
        assert float(found[name]) == pytest.approx(float(part), rel=1e-4)
        total += weights[name.split("_")[0]] * part
    assert float(found["loss"].detach()) == pytest.approx(float(total), rel=1e-4)


def test_default_weights_are_the_published_ones():
    assert Tcae(**TINY).weights == {"pixel": 10.0, "code": 1.0, "cycle": 1.0, "flow": 0.1}


def test_gradients_of_pretraining_reach_every_parameter_even_when_the_encoder_is_frozen():
    model = tiny(frozen=True)
    model.begin_pretraining()
    model.train()
    model.pretraining_loss(frames(4, 1), frames(4, 2), done=0.0, generator=torch.Generator().manual_seed(1))[
        "loss"
    ].backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert torch.isfinite(value.grad).all(), name


def test_the_flow_learns_a_head_shift():
    """Trained on one pair that differs by a shift, the mixed flow brings the frames closer than no flow does."""
    model = tiny(size=16, jitter="none").train()
    model.begin_pretraining()
    blobs = torch.nn.functional.interpolate(frames(6, 3, 8), 32, mode="bicubic")
    source, target = blobs[:, :, 4:20, 4:20], blobs[:, :, 4:20, 6:22]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(25):
        losses = model.pretraining_loss(source, target, done=1.0, generator=torch.Generator())
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert float(losses["pixel"]) < 0.5 * float((source - target).abs().mean())


# -- crops ------------------------------------------------------------------------------------------------------------


def ramp(n: int, size: int = 256) -> torch.Tensor:
    """Frames whose red is the column and whose green is the row, in pixels."""
    places = torch.arange(size, dtype=torch.float32).expand(size, size)
    return torch.stack([places, places.T, torch.zeros(size, size)])[None].expand(n, -1, -1, -1)


@pytest.mark.parametrize("apart", [True, False])
def test_crops_are_squares_of_200_to_223_of_256_inside_the_central_224(apart: bool):
    for seed in range(5):
        first, second = random_crops(ramp(6), ramp(6), torch.Generator().manual_seed(seed), apart=apart)
        for found in (first, second):
            low = found[:, :2, 0, 0], found[:, :2, -1, -1]
            sides = (low[1] - low[0]) * 256 / 255
            side = sides.mean()
            torch.testing.assert_close(sides, torch.full((6, 2), float(side)), atol=0.1, rtol=0)
            assert 199.9 <= float(side) <= 223.1
            assert float(low[0].min()) >= 15.5
            assert float(low[1].max()) <= 240
        assert torch.equal(first, second) is not apart
        assert not torch.equal(first[0], first[1])


def test_crops_depend_on_the_generator_alone():
    torch.manual_seed(1)
    one = random_crops(frames(2), frames(2), torch.Generator().manual_seed(4), apart=True)
    torch.manual_seed(2)
    two = random_crops(frames(2), frames(2), torch.Generator().manual_seed(4), apart=True)
    assert torch.equal(one[1], two[1])


# -- shapes and sizes -------------------------------------------------------------------------------------------------


def shapes_of(module: nn.Module, call, kinds) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    hooks = [
        part.register_forward_hook(lambda *args: seen.append(tuple(args[2].shape[1:])))
        for part in module.modules()
        if isinstance(part, kinds)
    ]
    with torch.no_grad():
        call()
    for hook in hooks:
        hook.remove()
    return seen


def test_shapes_at_every_stage_are_those_of_the_published_network():
    with torch.device("meta"):
        model = Tcae().eval()
        encoder = shapes_of(model.encoder, lambda: model.encoder.codes(torch.empty(1, 3, 256, 256)), nn.Conv2d)
        code = torch.empty(1, 256)
        decoder = shapes_of(model.au_decoder, lambda: model.au_decoder(code, code), nn.Conv2d)
        flow, logit = model.pose_decoder(code, code)
    shared = [(32, 128, 128), (64, 64, 64), (128, 32, 32), (256, 16, 16), (256, 8, 8)]
    branch = [(256, 4, 4), (256, 2, 2), (256, 1, 1)]
    assert encoder == shared + branch + branch
    assert [shape[0] for shape in decoder] == [256, 256, 256, 256, 128, 64, 32, 3]
    assert [shape[1] for shape in decoder] == [2, 4, 8, 16, 32, 64, 128, 256]
    assert flow.shape == (1, 2, 256, 256)
    assert logit.shape == (1, 1, 256, 256)


def test_parameters_are_as_many_as_the_published_layers_have():
    def convolution(before: int, after: int, side: int) -> int:
        return before * after * side**2 + after

    shared = [(3, 32), (32, 64), (64, 128), (128, 256), (256, 256)]
    encoder = sum(convolution(*pair, 4) + 2 * pair[1] for pair in shared) + 2 * (3 * convolution(256, 256, 4) + 4 * 256)
    up = [(512, 256), (256, 256), (256, 256), (256, 256), (256, 128), (128, 64), (64, 32)]
    decoder = sum(convolution(*pair, 3) + 2 * pair[1] for pair in up) + convolution(32, 3, 3)
    with torch.device("meta"):
        model = Tcae()
    assert sum(value.numel() for value in model.encoder.parameters()) == encoder == 8_035_488
    assert sum(value.numel() for value in model.au_decoder.parameters()) == decoder == 3_340_803
    assert sum(value.numel() for value in model.parameters()) == 14_717_094


@pytest.mark.parametrize("size", [16, 64])
def test_other_frame_sizes_keep_one_pixel_codes_and_flows_of_the_frames_size(size: int):
    model = tiny(size=size).eval()
    with torch.no_grad():
        au, pose = model.encoder.codes(frames(2, size=size))
        flow, _ = model.au_decoder(au, au)
    assert au.shape == pose.shape == (2, 16)
    assert flow.shape == (2, 2, size, size)


# -- backbone ---------------------------------------------------------------------------------------------------------


def test_the_embedding_is_the_action_unit_code_of_the_apex_or_how_it_differs_from_the_onsets():
    inputs = clip_inputs()
    plain, difference = tiny().eval(), tiny(embedding="difference").eval()
    with torch.no_grad():
        apex, onset = plain.encoder(inputs["apex"]), plain.encoder(inputs["onset"])
        assert torch.equal(plain(inputs), apex)
        assert torch.equal(plain({**inputs, "onset": frames(4, 9)}), apex)
        torch.testing.assert_close(difference(inputs), apex - onset)
        assert float(difference({"onset": inputs["apex"], "apex": inputs["apex"]}).abs().max()) == 0


def test_labels_train_the_action_unit_code_and_nothing_else():
    model = tiny().train()
    targets = Targets(torch.tensor([0, 1, 0, 1]), ("a", "b"))
    model.training_loss(clip_inputs(), targets, nn.Linear(16, 2)).backward()
    for name, value in model.named_parameters():
        learns = name.startswith(("encoder.shared", "encoder.au_branch"))
        assert value.requires_grad is learns, name
        assert (value.grad is not None) is learns, name


def test_a_frozen_encoder_stays_as_it_is_in_training():
    model = tiny(frozen=True).train()
    before = model_hash(model)
    first, second = model(clip_inputs()), model(clip_inputs())
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert model_hash(model) == before
    assert not any(value.requires_grad for value in model.parameters())


def test_save_and_load_round_trip_with_every_argument(tmp_path: Path):
    model = tiny(embedding="difference", frozen=True, jitter="pair", flow_weight=0.5).eval()
    model.save_pretrained(tmp_path)
    again = Tcae.from_pretrained(tmp_path)
    assert again.config == model.config
    assert model_hash(again) == model_hash(model)
    assert torch.equal(again(clip_inputs()), model(clip_inputs()))


def test_maps_are_the_length_of_each_decoders_flow_scaled_to_one():
    model, inputs = tiny().eval(), clip_inputs()
    with torch.no_grad():
        maps = model.explain_maps(inputs)
        au = [model.encoder.codes(inputs[kind])[0] for kind in ("onset", "apex")]
        flow = model.au_decoder(*au)[0].numpy()
    length = np.sqrt(flow[:, 0] ** 2 + flow[:, 1] ** 2)
    np.testing.assert_allclose(maps["au_flow"].numpy(), length / length.max(axis=(1, 2), keepdims=True), rtol=1e-4)
    assert maps["pose_flow"].shape == (4, 32, 32)
    assert float(maps["pose_flow"].max()) == 1


def test_bfloat16_and_a_single_clip():
    model = tiny().eval().to(torch.bfloat16)
    inputs = {kind: value[:1].to(torch.bfloat16) for kind, value in clip_inputs().items()}
    with torch.no_grad():
        assert model(inputs).shape == (1, 16)
        assert model.explain_maps(inputs)["au_flow"].shape == (1, 32, 32)


@pytest.mark.parametrize("arguments", [{"size": 100}, {"size": 8}, {"embedding": "offset"}, {"jitter": "both"}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(FsmerError, match=r"power of two|Known"):
        Tcae(**{**TINY, **arguments})


@pytest.mark.parametrize("inputs", [frames(2), {"onset": frames(2)}, {"onset": frames(2), "apex": frames(2, size=16)}])
def test_other_inputs_are_refused(inputs):
    with pytest.raises(SpecMismatchError, match="apex"):
        tiny().eval()(inputs)


def test_a_coarse_grid_makes_the_pose_flow_alone_smooth():
    torch.manual_seed(0)
    free = Tcae(size=32, width=2, code_dim=6).eval()
    smooth = Tcae(size=32, width=2, code_dim=6, pose_grid=2).eval()
    smooth.load_state_dict(free.state_dict())
    inputs = {kind: torch.rand(2, 3, 32, 32) for kind in ("onset", "apex")}
    with torch.no_grad():
        codes = [free.encoder.codes(inputs[kind])[1] for kind in ("onset", "apex")]
        rough, logits = free._pose_flow(*codes)
        flow, same_logits = smooth._pose_flow(*codes)
        maps = [model.explain_maps(inputs) for model in (free, smooth)]
    assert torch.equal(logits, same_logits)
    # Means of the quarters in their middles, a straight line between them.
    corner = rough.unflatten(2, (2, 16)).unflatten(4, (2, 16)).mean(dim=(3, 5))
    torch.testing.assert_close(flow[:, :, 7:9, 7:9].mean(dim=(2, 3)), corner[:, :, 0, 0], atol=2e-2, rtol=0.05)
    inner = flow[:, :, 8:24, 8:24]
    assert inner.diff(n=2, dim=2).abs().max() < 1e-6
    assert inner.diff(n=2, dim=3).abs().max() < 1e-6
    assert torch.equal(maps[0]["au_flow"], maps[1]["au_flow"])
    assert not torch.allclose(maps[0]["pose_flow"], maps[1]["pose_flow"])
    for wrong in (1, 33):
        with pytest.raises(FsmerError, match=f"pose_grid.*{wrong}.*2 to 32"):
            Tcae(size=32, pose_grid=wrong)


def test_the_deviations_say_that_labels_train_the_encoder_and_what_is_not_published():
    card = " ".join(class_notes(Tcae).split())
    deviations = card[card.index("Deviations:") : card.index("Absent:")]
    assert not Tcae(size=32, width=8, code_dim=16).config["frozen"]
    assert "By default labels train the encoder too, where the authors freeze it" in deviations
    assert "``frozen=True``" in deviations
    assert '``embedding="difference"`` and `pose_grid` are our own' in deviations
