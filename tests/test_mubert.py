"""Micron-BERT against plain loops over its formulas, and what `mubert_small` and `mubert_tiny` promise besides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fsmer.backbones.mubert import MuBert, MuBertTiny
from fsmer.backbones.mubert_networks import (
    MicroAttention,
    MicroEncoder,
    log_diagonal_attention,
    patchify,
    sine_positions,
)
from fsmer.backbones.mubert_pretraining import DinoAgreement, draw_blocks, random_crops, swap_mask
from fsmer.backbones.targets import Targets
from fsmer.errors import FsmerError, SpecMismatchError

SMALL = {"image_size": 32, "width": 16, "depth": 2, "heads": 2, "decoder_depth": 1}


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def frames(n: int = 2, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=seeded(seed))


def pair(n: int = 2, size: int = 32) -> dict[str, torch.Tensor]:
    return {"onset": frames(n, size, 1), "apex": frames(n, size, 2)}


def model(cls: type[MuBert] = MuBert, seed: int = 0, **arguments) -> MuBert:
    torch.manual_seed(seed)
    return cls(**{**SMALL, **arguments}).eval()


# -- Algorithm 1


def algorithm_1(first, second, rows, columns, uniform, ratio=0.5, min_block=16, min_aspect=0.3):
    """The algorithm as it is printed, on lists of patches, with the library's rounding."""
    swapped, count, drawn = list(first), 0, []

    def rnd(low, high, value):
        return low + (high - low) * value

    while count <= ratio * len(first):
        one, two, three, four = next(uniform)
        size = rnd(min_block, ratio * len(first) - count, one)
        aspect = rnd(min_aspect, 1 / min_aspect, two)
        m, n = round(math.sqrt(size * aspect)), round(math.sqrt(size / aspect))
        m, n = max(1, min(m, rows)), max(1, min(n, columns))
        p, q = math.floor(three * (rows - m + 1)), math.floor(four * (columns - n + 1))
        for i in range(p, p + m):
            for j in range(q, q + n):
                swapped[i * columns + j] = second[i * columns + j]
        count += m * n
        drawn.append((p, q, m, n))
    return swapped, drawn


@pytest.mark.parametrize(("rows", "columns"), [(28, 28), (14, 14), (4, 6), (1, 1)])
def test_blockwise_swapping_is_algorithm_1_rectangle_by_rectangle(rows, columns):
    for seed in range(40):
        generator = seeded(seed)
        uniform = iter(lambda generator=generator: torch.rand(4, generator=generator, dtype=torch.float64).tolist(), 0)
        swapped, drawn = algorithm_1(["t"] * rows * columns, ["d"] * rows * columns, rows, columns, uniform)
        blocks = draw_blocks(rows, columns, generator=seeded(seed))
        assert [tuple(block) for block in blocks] == drawn
        found = swap_mask(blocks, rows, columns).flatten().tolist()
        assert found == [one == "d" for one in swapped]


def test_blocks_are_drawn_until_their_areas_pass_half_of_the_patches():
    shares = []
    for seed in range(200):
        areas = [height * width for _, _, height, width in draw_blocks(28, 28, generator=seeded(seed))]
        assert sum(areas) > 392 >= sum(areas[:-1])
        # The last block is at most as large as what was left, or as the least block; sides are rounded.
        assert sum(areas) < 392 + 16 + 8
        shares.append(swap_mask(draw_blocks(28, 28, generator=seeded(seed)), 28, 28).float().mean().item())
    assert 0.3 < np.mean(shares) <= 0.53


def test_the_swapped_frame_has_whole_patches_of_the_second_in_each_pair():
    network = model()
    first, second = torch.zeros(6, 3, 32, 32), torch.ones(6, 3, 32, 32)
    swapped = patchify(network.swap(first, second, seeded()), 8)
    means = swapped.mean(dim=2)
    assert torch.equal(means, means.round())
    assert len({tuple(row.tolist()) for row in means}) > 1, "every pair is swapped alike"
    again = patchify(network.swap(first, second, seeded()), 8)
    assert torch.equal(swapped, again)


# -- patches, positions, encoder


def test_patches_hold_their_pixels_row_by_row():
    images = frames(2, 16)
    found = patchify(images, 8)
    for number, (top, left) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        expected = images[:, :, top : top + 8, left : left + 8].permute(0, 2, 3, 1).reshape(2, -1)
        assert torch.equal(found[:, number], expected)


def test_positions_are_the_two_dimensional_sines_of_the_formula():
    width, rows, columns = 24, 3, 5
    found = sine_positions(width, torch.arange(rows), torch.arange(columns))
    assert found.shape == (rows * columns, width)
    quarter = width // 4
    for row in range(rows):
        for column in range(columns):
            for k in range(quarter):
                rate = 1 / 10000 ** (k / quarter)
                expected = [
                    math.sin(column * rate),
                    math.cos(column * rate),
                    math.sin(row * rate),
                    math.cos(row * rate),
                ]
                np.testing.assert_allclose(found[row * columns + column, k::quarter], expected, atol=1e-6)


def test_positions_are_fixed_and_the_context_token_has_none():
    network = model()
    assert "encoder.positions" not in dict(network.named_parameters())
    network.encoder.blocks = torch.nn.ModuleList()
    seen = []
    network.encoder.norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with pytest.raises(TypeError):  # no last block, no patch-of-interest scores
        network.encoder(frames())
    torch.testing.assert_close(seen[0][:, 0], network.encoder.context_token.expand(2, -1))


def attend(block, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One pre-norm block (eq. 3) and its attention maps, (heads, N, N), in numpy."""

    def array(value):
        return value.detach().double().numpy()

    def norm(layer, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
        return centred / deviation * array(layer.weight) + array(layer.bias)

    def linear(layer, x):
        return x @ array(layer.weight).T + array(layer.bias)

    width, heads = tokens.shape[1], block.attention.heads
    parts = linear(block.attention.query_key_value, norm(block.attention_norm, tokens))
    query, key, value = (parts[:, place * width : (place + 1) * width] for place in range(3))
    step, maps, mixed = width // heads, [], []
    for head in range(heads):
        own = slice(head * step, (head + 1) * step)
        scores = np.exp(query[:, own] @ key[:, own].T / math.sqrt(step))
        maps.append(scores / scores.sum(axis=1, keepdims=True))
        mixed.append(maps[-1] @ value[:, own])
    tokens = tokens + linear(block.attention.out, np.concatenate(mixed, axis=1))
    hidden = linear(block.mlp[0], norm(block.mlp_norm, tokens))
    erf = np.vectorize(math.erf)
    return tokens + linear(block.mlp[2], 0.5 * hidden * (1 + erf(hidden / math.sqrt(2)))), np.stack(maps)


def test_the_patch_of_interest_is_what_the_context_token_attends_to_in_the_last_block():
    encoder = model().encoder
    images = frames(1)
    with torch.no_grad():
        found = encoder(images)
        embedded = F.conv2d(images, encoder.patch_embedding.weight, encoder.patch_embedding.bias, stride=8)
        tokens = embedded.flatten(2).mT[0] + encoder.positions
        tokens = torch.cat([encoder.context_token[None], tokens]).double().numpy()
    for block in encoder.blocks:
        tokens, maps = attend(block, tokens)
    scores = maps.mean(axis=0)[0, 1:]
    np.testing.assert_allclose(found.interest[0], scores / scores.sum(), rtol=1e-4)
    np.testing.assert_allclose(found.interest.sum(), 1, rtol=1e-5)
    normed = tokens - tokens.mean(axis=1, keepdims=True)
    normed /= np.sqrt((normed**2).mean(axis=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(found.context[0], normed[0], atol=1e-4)
    np.testing.assert_allclose(found.patches[0], normed[1:], atol=1e-4)


# -- diagonal micro-attention


def plain_dma(attention: MicroAttention, second, swapped, interest=None, cosine=False):
    """Eq. 8, 9 and 12 in loops: the map, (N, N), and P_dma before the output layer, (N, D)."""

    def linear(layer, x):
        return layer.weight.detach().double().numpy() @ x + layer.bias.detach().double().numpy()

    count, width = second.shape
    query = [linear(attention.query, second[i]) for i in range(count)]
    key = [linear(attention.key, swapped[j]) for j in range(count)]
    scores = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            product = sum(query[i][k] * key[j][k] for k in range(width))
            if cosine:
                product /= math.sqrt(sum(query[i] ** 2)) * math.sqrt(sum(key[j] ** 2))
            scores[i, j] = product * (math.log(count) if cosine else 1 / math.sqrt(width))
    shares = np.zeros_like(scores)
    for j in range(count):
        total = sum(math.exp(scores[i, j]) for i in range(count))
        for i in range(count):
            shares[i, j] = math.exp(scores[i, j]) / total
    found = np.zeros((count, width))
    for j in range(count):
        weight = shares[j, j] if interest is None else shares[j, j] * interest[j] * count
        found[j] = weight * linear(attention.value, swapped[j])
    return shares, found


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("weighed", [False, True])
def test_micro_attention_is_the_formula(similarity, weighed):
    torch.manual_seed(1)
    attention = MicroAttention(8, similarity=similarity)
    for layer in (attention.query, attention.key, attention.value):
        torch.nn.init.normal_(layer.weight, std=0.5)
        torch.nn.init.normal_(layer.bias)
    second, swapped = torch.randn(2, 1, 7, 8)
    interest = torch.rand(1, 7).softmax(dim=1) if weighed else None
    shares, expected = plain_dma(
        attention,
        second[0].double().numpy(),
        swapped[0].double().numpy(),
        None if interest is None else interest[0].double().numpy(),
        similarity == "cosine",
    )
    expected = expected @ attention.out.weight.detach().double().numpy().T + attention.out.bias.detach().numpy()
    with torch.no_grad():
        np.testing.assert_allclose(attention(second, swapped, interest)[0], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(attention.map(second, swapped)[0], shares, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(attention.log_diagonal(second, swapped)[0], np.log(np.diag(shares)), rtol=1e-4)
    np.testing.assert_allclose(shares.sum(axis=0), 1)


def test_the_code_s_cross_attention_gathers_the_values_of_all_patches():
    torch.manual_seed(1)
    attention = MicroAttention(8, "full")
    second, swapped = torch.randn(2, 3, 7, 8)
    with torch.no_grad():
        expected = attention.out(attention.map(second, swapped).mT @ attention.value(swapped))
        torch.testing.assert_close(attention(second, swapped), expected, rtol=1e-4, atol=1e-5)


def dense(rows, columns):
    return (rows @ columns.mT).log_softmax(dim=-1).diagonal(dim1=-2, dim2=-1)


@pytest.mark.parametrize(("count", "chunk"), [(5, 64), (9, 4), (16, 16), (7, 1)])
def test_the_diagonal_without_the_map_is_the_diagonal_of_the_map(count, chunk):
    rows, columns = (2 * torch.randn(3, count, 6, generator=seeded(place), requires_grad=True) for place in (0, 1))
    rows.retain_grad(), columns.retain_grad()
    found = log_diagonal_attention(rows, columns, chunk=chunk)
    torch.testing.assert_close(found, dense(rows, columns), rtol=1e-5, atol=1e-5)
    weight = torch.randn(3, count, generator=seeded(2))
    expected = torch.autograd.grad((dense(rows, columns) * weight).sum(), (rows, columns))
    given = torch.autograd.grad((found * weight).sum(), (rows, columns))
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_diagonal_is_exact():
    rows, columns = (torch.randn(2, 5, 3, generator=seeded(place), dtype=torch.float64) for place in (0, 1))
    rows.requires_grad_(), columns.requires_grad_()
    assert torch.autograd.gradcheck(lambda one, other: log_diagonal_attention(one, other, chunk=2), (rows, columns))


def test_the_diagonal_of_784_patches_equals_the_dense_one_to_five_digits():
    rows, columns = torch.randn(2, 1, 784, 64, generator=seeded())
    torch.testing.assert_close(
        log_diagonal_attention(rows, columns).exp(), dense(rows, columns).exp(), rtol=1e-5, atol=1e-5
    )


def test_no_map_is_held_while_the_diagonal_is_taken():
    count, sizes = 600, []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            sizes.extend(one.numel() for one in torch.utils._pytree.tree_leaves(found) if torch.is_tensor(one))
            return found

    rows, columns = (torch.randn(1, count, 16, generator=seeded(place), requires_grad=True) for place in (0, 1))
    with Watch():
        log_diagonal_attention(rows, columns, chunk=32).sum().backward()
    assert max(sizes) < count * count / 4


# -- losses


def test_the_loss_is_reconstruction_and_agreement_as_in_the_formulas():
    network = model(reconstruction_weight=2.0, agreement_weight=3.0)
    first, second = frames(3, seed=3), frames(3, seed=4)
    losses = network.pretraining_loss(first, second, done=0.0, generator=seeded(5))
    generator = seeded(5)
    mean, deviation = (torch.tensor(one).view(3, 1, 1) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    onset, apex = (first - mean) / deviation, (second - mean) / deviation
    with torch.no_grad():
        swapped = network.encoder(network.swap(onset, apex, generator))
        whole = network.encoder(apex)
        cropped = network.encoder(random_crops(apex, 32, (0.4, 1.0), generator))
        diagonal = network.micro_attention.map(whole.patches, swapped.patches).diagonal(dim1=1, dim2=2)
        weight = (diagonal * whole.interest * 16)[..., None]
        values = network.micro_attention.value(swapped.patches)
        pixels = network.decoder(network.micro_attention.out(weight * values)).numpy()
    wanted = onset.numpy()
    total, number = 0.0, 0
    for clip in range(3):
        for patch in range(16):
            top, left = 8 * (patch // 4), 8 * (patch % 4)
            for y in range(8):
                for x in range(8):
                    for channel in range(3):
                        given = pixels[clip, patch, (y * 8 + x) * 3 + channel]
                        total += (given - wanted[clip, channel, top + y, left + x]) ** 2
                        number += 1
    agreement = float(((whole.context - cropped.context) ** 2).mean())
    assert losses["reconstruction"].item() == pytest.approx(total / number, rel=1e-4)
    assert losses["agreement"].item() == pytest.approx(agreement, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(2 * total / number + 3 * agreement, rel=1e-4)
    assert losses["loss"].requires_grad
    assert not losses["reconstruction"].requires_grad


def test_crops_are_parts_of_the_frame_at_full_size():
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    found = random_crops(ramp.expand(200, -1, -1, -1), 64, (0.4, 1.0), seeded())
    spans = (found[:, 0, 0, -1] - found[:, 0, 0, 0]).numpy()
    torch.testing.assert_close(found, found[:, :1, :1].expand_as(found))
    # The side of a crop is the root of its area times that of its shape.
    assert spans.min() > math.sqrt(0.4 * 3 / 4) - 0.05
    assert spans.max() <= 1
    assert spans.std() > 0.05
    whole = random_crops(frames(2), 32, (1.0, 1.0), seeded())
    assert whole.shape == (2, 3, 32, 32)


def test_patches_may_be_normalised_before_they_are_reconstructed():
    network = model(normalise_patches=True)
    wanted = network._wanted(frames(2))
    torch.testing.assert_close(wanted.mean(dim=-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(wanted.var(dim=-1), torch.ones(2, 16), atol=1e-3, rtol=0)


@pytest.mark.parametrize("cls", [MuBert, MuBertTiny])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"attention": "full"},
        {"interest": False},
        {"attention": "none", "interest": False},
        {"agreement": "dino", "small_crops": 2, "head_width": 32},
    ],
    ids=lambda arguments: ",".join(map(str, arguments.values())) or "paper",
)
def test_training_without_labels_reaches_every_part_and_lowers_the_loss(cls, arguments):
    network = model(cls, **{**arguments, "changes": 0}).train()
    network.begin_pretraining()
    parameters = [one for one in network.parameters() if one.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    first, second = (F.interpolate(frames(4, 3, seed), 32, mode="bilinear") for seed in (3, 4))
    second = 0.9 * first + 0.1 * second
    reached = []
    for step in range(40):
        losses = network.pretraining_loss(first, second, done=step / 40, generator=seeded(step))
        optimizer.zero_grad()
        losses["loss"].backward()
        if step == 0:
            for name, parameter in network.named_parameters():
                assert parameter.requires_grad == (parameter.grad is not None), name
        optimizer.step()
        network.after_step()
        reached.append(losses["reconstruction"].item())
    assert np.mean(reached[-5:]) < 0.8 * np.mean(reached[:3])


def test_the_same_generator_gives_the_same_loss():
    network = model(MuBertTiny)
    found = [
        network.pretraining_loss(frames(), frames(seed=1), done=0.0, generator=seeded(seed))["loss"].item()
        for seed in (3, 3, 4)
    ]
    assert found[0] == found[1] != found[2]


def test_the_teacher_of_the_code_s_agreement_follows_slowly_and_stops_at_the_end():
    torch.manual_seed(0)
    encoder = MicroEncoder(32, 8, 16, 1, 2, 2.0)
    agreement = DinoAgreement(encoder, outputs=8, hidden=32)
    large = [frames(2, seed=1), frames(2, seed=2)]
    before = agreement.teacher["encoder"].context_token.clone()
    with torch.no_grad():
        encoder.context_token.add_(1.0)
    for done, moved in ((0.0, 0.003), (1.0, 0.0)):
        agreement.teacher["encoder"].context_token.copy_(before)
        assert agreement(encoder, large, [], done).item() > 0
        agreement.follow(encoder)
        torch.testing.assert_close(agreement.teacher["encoder"].context_token, before + moved, atol=1e-6, rtol=0)
    assert agreement.centre.abs().sum() > 0


def test_the_code_s_agreement_is_the_cross_entropy_of_teacher_and_student_on_other_crops():
    torch.manual_seed(0)
    encoder = MicroEncoder(32, 8, 16, 1, 2, 2.0)
    agreement = DinoAgreement(encoder, outputs=8, hidden=32)
    agreement.centre += torch.randn(8, generator=seeded()) / 10
    large, small = [frames(2, seed=1), frames(2, seed=2)], [frames(2, 16, seed=3)]
    with torch.no_grad():
        scores = [agreement.head(encoder(crop).context).double().numpy() for crop in (*large, *small)]
        found = agreement(encoder, large, small, 0.0).item()
    centre = agreement.centre.double().numpy()
    terms = []
    for one in range(2):
        for other in range(3):
            if one == other:
                continue
            for clip in range(2):
                sharp = np.exp((scores[one][clip] - centre) / 0.04)
                log_share = scores[other][clip] / 0.1 - math.log(np.exp(scores[other][clip] / 0.1).sum())
                terms.append(-(sharp / sharp.sum() * log_share).sum())
    assert found == pytest.approx(np.mean(terms), rel=1e-4)


# -- the backbone


def test_parameter_counts_are_those_of_the_published_network():
    with torch.device("meta"):
        network = MuBert()

    def millions(part):
        return sum(one.numel() for one in part.parameters()) / 1e6

    assert millions(network.encoder) == pytest.approx(12.7, abs=0.05)
    assert millions(network.micro_attention) == pytest.approx(1.05, abs=0.005)
    assert millions(network.decoder) == pytest.approx(13.0, abs=0.05)
    assert (network.side**2, network.embed_dim) == (784, 512)
    assert network.decoder.pixels.out_features == 8 * 8 * 3


def test_the_paper_sized_network_has_the_parameters_of_its_layers():
    """Sections 4.1, 4.2 and 5.2 written out: patches of 8 x 8 x 3, d = 512, four blocks on either side."""
    block = 4 * (512 * 512 + 512) + (512 * 2048 + 2048) + (2048 * 512 + 512) + 2 * 2 * 512
    encoder = 192 * 512 + 512 + 512 + 4 * block + 2 * 512  # patch embedding, contextual token, blocks, last norm
    decoder = 512 * 512 + 512 + 4 * block + 2 * 512 + 512 * 192 + 192
    with torch.device("meta"):
        parts = dict(MuBert().named_children())
    counts = {name: sum(one.numel() for one in part.parameters()) for name, part in parts.items()}
    assert counts == {"encoder": encoder, "micro_attention": 4 * (512 * 512 + 512), "decoder": decoder}


def test_training_without_labels_is_that_of_section_5_2():
    recipe = MuBert.pretraining_recipe
    assert (recipe.optimizer, recipe.learning_rate, recipe.schedule) == ("adamw", 1e-4, "cosine")
    assert (recipe.batch_size, recipe.distance) == (64, (5, 11))
    assert recipe.steps == 100 * 8_000_000 / (64 * 32)
    network = MuBert(image_size=32, width=16, depth=1, heads=2, decoder_depth=1)
    assert network.swapping == {"ratio": 0.5, "min_block": 16, "min_aspect": 0.3}  # Algorithm 1


def test_the_tiny_network_is_tiny():
    network = MuBertTiny()
    assert sum(one.numel() for one in network.parameters()) < 1.5e6
    assert network.input_specs[0].size == (112, 112)


def test_the_paper_s_embedding_is_the_mean_of_p_dma_between_onset_and_apex_over_its_mean_weight():
    network = model()
    inputs = pair()
    attention = network.micro_attention
    with torch.no_grad():
        onset, apex = network._encode(inputs)
        weight = attention.map(apex.patches, onset.patches).diagonal(dim1=1, dim2=2) * apex.interest
        values = (weight[..., None] * attention.value(onset.patches)).sum(dim=1) / weight.sum(dim=1, keepdim=True)
        torch.testing.assert_close(network(inputs), attention.out(values), rtol=1e-4, atol=1e-5)


def test_the_embedding_of_both_ways_is_zero_without_movement_and_turns_around_with_time():
    network = model(MuBertTiny, changes=2)
    inputs = pair()
    with torch.no_grad():
        still = network({"onset": inputs["onset"], "apex": inputs["onset"]})
        there = network(inputs)
        back = network({"onset": inputs["apex"], "apex": inputs["onset"]})
        change = network.change(*network._encode(inputs)).unflatten(1, (4, 4))
    assert there.shape == (2, network.embed_dim) == (2, 16 * 16 + 4)
    torch.testing.assert_close(still, torch.zeros_like(still), atol=1e-5, rtol=0)
    torch.testing.assert_close(there[:, :-4], -back[:, :-4], atol=1e-5, rtol=1e-4)
    for row in range(2):
        for column in range(2):
            mean = change[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(dim=(1, 2))
            torch.testing.assert_close(there[:, 256 + 2 * row + column], 20 * mean)


def test_p_dma_is_averaged_region_by_region():
    network = model(regions=2)
    inputs = pair()
    with torch.no_grad():
        onset, apex = network._encode(inputs)
        features = network._weighed(apex, onset, relative=True).unflatten(1, (4, 4))
        found = network(inputs).unflatten(1, (16, 2, 2))
    torch.testing.assert_close(found[:, :, 1, 0], features[:, 2:, :2].mean(dim=(1, 2)))


@pytest.mark.parametrize("attention", ["diagonal", "full"])
def test_the_bias_that_both_ways_cancel_is_trained_without_labels_alone(attention, tmp_path):
    network = model(MuBertTiny, attention=attention, changes=0).train()
    bias = network.micro_attention.out.bias
    assert not bias.requires_grad
    assert model(both_ways=False).micro_attention.out.bias.requires_grad
    before = network(pair()).detach()
    with torch.no_grad():
        bias.add_(1.0)
    torch.testing.assert_close(network(pair()), before, rtol=1e-4, atol=1e-5)
    network.begin_pretraining()
    assert all(parameter.requires_grad for parameter in network.parameters())
    network.pretraining_loss(frames(), frames(seed=1), done=0.0, generator=seeded())["loss"].backward()
    assert bias.grad.any()
    # Weights are saved and loaded whatever is frozen in them.
    network.save_pretrained(tmp_path / "weights")
    again = MuBertTiny.from_pretrained(tmp_path / "weights")
    assert torch.equal(again.micro_attention.out.bias, bias)
    assert not again.micro_attention.out.bias.requires_grad


def test_labels_train_all_but_the_decoder_and_what_cancels_out():
    network = model(MuBertTiny, agreement="dino", head_width=32).train()
    classifier = torch.nn.Linear(network.embed_dim, 2)
    targets = Targets(torch.tensor([0, 1]), ("a", "b"))
    network.training_loss(pair(), targets, classifier).backward()
    for name, parameter in network.named_parameters():
        trained = not name.startswith(("decoder.", "dino.")) and name != "micro_attention.out.bias"
        assert parameter.requires_grad == trained, name
        assert (parameter.grad is not None) == trained, name


@pytest.mark.parametrize("cls", [MuBert, MuBertTiny])
def test_maps_lie_between_none_and_one_and_the_last_is_the_product(cls):
    network = model(cls)
    with torch.no_grad():
        maps = network.explain_maps(pair(3))
    assert list(maps) == ["dma", "poi", "dma_poi"]
    for found in maps.values():
        assert found.shape == (3, 4, 4)
        assert 0 <= found.min() <= found.max() <= 1
    product = maps["dma"] * maps["poi"]
    torch.testing.assert_close(maps["dma_poi"], product / product.amax(dim=(1, 2), keepdim=True))


def test_the_map_of_the_published_code_is_one_minus_the_diagonal_over_its_largest():
    network = model()
    inputs = pair(3)
    with torch.no_grad():
        diagonal = network.attention_map(inputs).diagonal(dim1=1, dim2=2)
        expected = 1 - diagonal / diagonal.amax(dim=1, keepdim=True)
        torch.testing.assert_close(network.explain_maps(inputs)["dma"].flatten(1), expected, rtol=1e-3, atol=1e-5)


def test_the_relative_map_shows_the_one_patch_that_changed():
    network = model(MuBertTiny, depth=1)
    inputs = {"onset": frames(1)}
    inputs["apex"] = inputs["onset"].clone()
    with torch.no_grad():
        assert network.explain_maps(inputs)["dma"].max() < 1e-5
        inputs["apex"][:, :, 8:16, 16:24] = frames(1, 8, seed=9)
        found = network.explain_maps(inputs)["dma"][0]
    assert found.argmax() == 1 * 4 + 2
    assert found.flatten().sort().values[-2] < 0.5 * found.max()


def test_parts_that_are_left_out_have_no_map():
    with torch.no_grad():
        assert list(model(interest=False).explain_maps(pair())) == ["dma"]
        assert list(model(attention="none", interest=False).explain_maps(pair())) == []
    with pytest.raises(FsmerError, match="attention='none'"):
        model(attention="none", interest=False).attention_map(pair())


def test_small_crops_are_encoded_with_positions_between_those_of_the_frame():
    network = model()
    small = network.encoder(frames(1, 16))
    assert small.patches.shape == (1, 4, 16)
    places = torch.tensor([0.5, 2.5])
    seen = []
    network.encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network.encoder.patch_embedding.weight.data.zero_()
    network.encoder(frames(1, 16))
    torch.testing.assert_close(seen[0][0, 1:], sine_positions(16, places, places))


def test_likeness_at_the_start_sees_texture_as_much_as_brightness():
    torch.manual_seed(0)
    weight = MuBertTiny().encoder.patch_embedding.weight.detach()

    def answer(patch):
        return (weight * patch).sum(dim=(1, 2, 3)).norm().item()

    bright = torch.ones(3, 8, 8)
    waves = torch.cos(math.pi * 2 * (torch.arange(8) + 0.5) / 8).expand(3, 8, 8)
    assert answer(waves) > 2 * answer(bright)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 30}, "multiple of patch_size"),
        ({"width": 18}, "multiple of four"),
        ({"attention": "some"}, "attention is 'some'"),
        ({"attention": "none"}, "set interest=False"),
        ({"swap_ratio": 0.0}, "swap_ratio 0.0"),
        ({"crop_area": (0.9, 0.4)}, "crop_area"),
        ({"regions": 0}, "regions is 0"),
        ({"attention": "none", "interest": False, "changes": 2}, "set changes=0"),
    ],
)
def test_arguments_that_cannot_be_are_refused_in_one_sentence(arguments, message):
    with pytest.raises(FsmerError, match=message):
        model(**arguments)


def test_frames_that_do_not_fit_are_refused():
    network = model()
    with pytest.raises(SpecMismatchError, match="only onset"):
        network({"onset": frames()})
    with pytest.raises(SpecMismatchError, match="onset and apex, but was given Tensor"):
        network(frames())
    with pytest.raises(SpecMismatchError, match=r"\(2, 3, 16, 16\)"):
        network.pretraining_loss(frames(2, 16), frames(2, 16), done=0.0, generator=seeded())
    with pytest.raises(SpecMismatchError, match="2 onsets and 1 apexes"):
        network({"onset": frames(2), "apex": frames(1)})
