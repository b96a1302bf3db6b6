"""`fr` and `basic_inception` keep to the formulas, sizes and variants of the FR paper."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fsmer
from fsmer.backbones import embed
from fsmer.backbones.fr import (
    CDMER_RECIPE,
    FR,
    BasicInception,
    InceptionBlock,
    InceptionStream,
    ProposalModule,
    proposal_loss,
)
from fsmer.backbones.targets import Targets
from fsmer.errors import FsmerError, UnknownNameError
from fsmer.kernels.compiled import compiled
from fsmer.kernels.inception import _library

CLASSES = ("negative", "positive", "surprise")
SMALL = {"filters": (2, 3), "shared_width": 12, "detector_width": 5, "hidden_width": 7, "size": 12}
VARIANTS = [
    {"variant": "fr", "fusion": "sum"},
    {"variant": "fr", "fusion": "concat"},
    {"variant": "fr", "fusion": "concat", "hidden_width": 0},
    {"variant": "fr_fc", "fusion": "sum"},
    {"variant": "basic_inception"},
]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def small(**arguments: object) -> FR:
    return FR(**{**SMALL, **arguments})  # type: ignore[arg-type]


def maps_of(n: int, size: int = 12, seed: int = 1) -> Tensor:
    return torch.rand(n, 2, size, size, generator=torch.Generator().manual_seed(seed))


def targets_of(n: int, classes: tuple[str, ...] = CLASSES) -> Targets:
    return Targets(torch.arange(n) % len(classes), classes)


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


# ---- the network against the paper's numbers and formulas


@pytest.mark.parametrize(
    ("backbone", "classes", "millions"),
    [(FR, 3, 10.2418), (FR, 4, 11.4231), (BasicInception, 3, 6.4803), (BasicInception, 4, 6.4813)],
)
def test_parameters_with_the_classifier_are_those_of_table_7(backbone, classes: int, millions: float):
    with torch.device("meta"):
        model = backbone()
        model.set_classes([f"class {number}" for number in range(classes)])
        parts = (model, nn.Linear(model.embed_dim, classes))
    count = sum(value.numel() for part in parts for value in part.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


def test_a_class_more_costs_what_it_costs_in_table_7():
    def count(classes: int) -> int:
        with torch.device("meta"):
            return sum(value.numel() for value in FR(branches=classes).parameters()) + 257 * classes

    assert (count(4) - count(3)) / 1e6 == pytest.approx(11.4231 - 10.2418, rel=0.001)


def test_two_blocks_bring_28_pixels_to_64_maps_of_7_by_7_a_stream():
    stream = FR().streams[0]
    maps = torch.rand(2, 1, 28, 28)
    shapes = []
    for layer in stream:
        maps = layer(maps)
        shapes.append(tuple(maps.shape[1:]))
    assert shapes == [(24, 28, 28), (24, 14, 14), (64, 14, 14), (64, 7, 7), (64 * 7 * 7,)]


def convolve(maps: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Plain loops: (C, H, W) maps, zeros around, ReLU."""
    outputs, inputs, side, _ = weight.shape
    reach = side // 2
    height, width = maps.shape[1:]
    found = np.zeros((outputs, height, width))
    for o in range(outputs):
        for y in range(height):
            for x in range(width):
                total = bias[o]
                for c in range(inputs):
                    for dy in range(-reach, reach + 1):
                        for dx in range(-reach, reach + 1):
                            if 0 <= y + dy < height and 0 <= x + dx < width:
                                total += weight[o, c, dy + reach, dx + reach] * maps[c, y + dy, x + dx]
                found[o, y, x] = max(total, 0.0)
    return found


def test_an_inception_block_joins_its_four_paths():
    block = InceptionBlock(2, 3)
    for layer in (block.points, block.conv3, block.conv5, block.pooled):
        nn.init.normal_(layer.bias)
    values = arrays(block)
    maps = torch.randn(1, 2, 4, 5)
    plain = maps[0].double().numpy()
    weight, bias = values["points.weight"], values["points.bias"]
    point, before3, before5 = (convolve(plain, weight[i : i + 3], bias[i : i + 3]) for i in (0, 3, 6))
    pooled = np.zeros_like(plain)
    for y in range(4):
        for x in range(5):
            pooled[:, y, x] = plain[:, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max(axis=(1, 2))
    expected = [
        point,
        convolve(before3, values["conv3.weight"], values["conv3.bias"]),
        convolve(before5, values["conv5.weight"], values["conv5.bias"]),
        convolve(pooled, values["pooled.weight"], values["pooled.bias"]),
    ]
    np.testing.assert_allclose(block(maps)[0].detach().numpy(), np.concatenate(expected), atol=1e-5)


def plain_branch(values: dict[str, np.ndarray], shared: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    """Expression-specific feature and detector logit of branch k for one clip, in plain loops (eq. 2-3)."""
    width = len(shared)
    scores = [
        sum(values["units.weight"][k * width + i, j] * shared[j] for j in range(width))
        + values["units.bias"][k * width + i]
        for i in range(width)
    ]
    total = sum(np.exp(score) for score in scores)
    specific = np.array([np.exp(score) / total * shared[i] for i, score in enumerate(scores)])
    weight, bias = values["detector_weight"][k], values["detector_bias"][k, 0]
    hidden = [max(0.0, sum(specific[i] * weight[i, h] for i in range(width)) + bias[h]) for h in range(weight.shape[1])]
    decision = sum(hidden[h] * values["decision_weight"][k, h, 0] for h in range(len(hidden)))
    return specific, decision + values["decision_bias"][k, 0, 0]


def randomised_proposal() -> ProposalModule:
    module = ProposalModule(6, 3, 4, attention=True)
    for value in module.parameters():
        nn.init.normal_(value)
    return module


def test_attention_and_detectors_are_those_of_plain_loops():
    module = randomised_proposal()
    values = arrays(module)
    shared = torch.rand(5, 6)
    specific = module(shared)
    logits = module.detect(specific)
    weights = module.weights(shared)
    assert specific.shape == weights.shape == (5, 3, 6)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(5, 3))
    for clip in range(5):
        for k in range(3):
            feature, logit = plain_branch(values, shared[clip].double().numpy(), k)
            np.testing.assert_allclose(specific[clip, k].detach().numpy(), feature, atol=1e-5)
            assert logits[clip, k].item() == pytest.approx(logit, abs=1e-4)


def test_without_attention_a_branch_is_one_fully_connected_layer():
    module = ProposalModule(6, 3, 4, attention=False)
    values = arrays(module)
    shared = torch.rand(2, 6)
    found = module(shared).detach().numpy()
    for clip in range(2):
        for k in range(3):
            weight = values["units.weight"][k * 6 : (k + 1) * 6]
            expected = np.maximum(weight @ shared[clip].double().numpy(), 0)
            np.testing.assert_allclose(found[clip, k], expected, atol=1e-5)


def test_proposal_loss_is_the_mean_of_the_detectors_losses():
    logits = torch.randn(7, 4) * 3
    labels = torch.tensor([0, 1, 2, 3, 3, 0, 2])
    detectors = []
    for k in range(4):
        total = 0.0
        for i in range(7):
            p = 1 / (1 + np.exp(-float(logits[i, k])))
            total -= np.log(p) if int(labels[i]) == k else np.log(1 - p)
        detectors.append(total / 7)
    assert proposal_loss(logits, labels).item() == pytest.approx(sum(detectors) / 4, rel=1e-5)


@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_fused_feature_is_the_sum_or_the_row_of_the_branches(fusion: str):
    model = small(fusion=fusion, hidden_width=0).eval()
    maps = maps_of(4)
    shared = model.shared_features(maps)
    specific = model.proposal(shared).detach().numpy()
    found = model(maps).detach().numpy()
    for clip in range(4):
        rows = [specific[clip, k] for k in range(3)]
        expected = [sum(row[i] for row in rows) for i in range(12)] if fusion == "sum" else np.concatenate(rows)
        np.testing.assert_allclose(found[clip], expected, rtol=1e-5, atol=1e-7)


def test_total_loss_is_classification_plus_085_of_the_proposal_loss():
    model = small(dropout=0.0)
    assert FR().balance == 0.85
    classifier = nn.Linear(model.embed_dim, 3)
    maps, targets = maps_of(6), targets_of(6)
    logits = model.proposal.detect(model.proposal(model.shared_features(maps)))
    expected = targets.cross_entropy(classifier(model(maps))) + 0.85 * proposal_loss(logits, targets.labels)
    torch.testing.assert_close(model.training_loss(maps, targets, classifier), expected)


def test_each_stream_sees_its_own_component_alone():
    model = small().eval()
    maps = maps_of(3)
    changed = maps.clone()
    changed[:, 1] = torch.rand(3, 12, 12)
    for number, stream in enumerate(model.streams):
        same = torch.equal(stream(maps[:, number, None]), stream(changed[:, number, None]))
        assert same is (number == 0)
    assert not torch.equal(model(maps), model(changed))


def test_keras_start_draws_every_layer_of_the_paper_from_its_own_range():
    model = FR()
    branch = model.proposal.units.weight
    assert branch.abs().max().item() == pytest.approx((6 / 2048) ** 0.5, rel=0.01)
    points = model.streams[0][2].points.weight
    assert (6 / 40) ** 0.5 * 0.9 < points.abs().max().item() <= (6 / 40) ** 0.5
    assert all(not value.any() for name, value in model.named_parameters() if name.endswith("bias"))


# ---- training and classes


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_every_parameter_gets_a_gradient_and_the_embedding_has_its_length(arguments):
    model = small(**arguments)
    assert model.eval()(maps_of(1)).shape == (1, model.embed_dim)
    classifier = nn.Linear(model.embed_dim, 3)
    model.train().training_loss(maps_of(8), targets_of(8), classifier).backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert torch.isfinite(value.grad).all(), name


def test_dropout_acts_on_the_embedding_in_training_alone():
    model = small()
    seen: list[Tensor] = []

    class Spy(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.detach())
            return super().forward(inputs)

    spy = Spy(model.embed_dim, 3)
    maps, targets = maps_of(200), targets_of(200)
    model.train().training_loss(maps, targets, spy)
    model.eval().training_loss(maps, targets, spy)
    active = seen[1] != 0
    assert (seen[0][active] == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    torch.testing.assert_close(seen[1], model(maps))


def test_embedding_of_a_clip_depends_on_no_label_and_no_other_clip():
    model = small().eval()
    maps = maps_of(5)
    before = model(maps)
    model.training_loss(maps, targets_of(5), nn.Linear(model.embed_dim, 3))
    assert torch.equal(model(maps), before)
    torch.testing.assert_close(model(maps[2:3]), before[2:3])


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
def test_new_classes_get_fresh_branches_and_keep_the_streams(arguments, tmp_path: Path):
    model = small(**arguments).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.set_classes(["tense", "disgust", "surprise", "repression", "others"])
    after = model.state_dict()
    for name, value in before.items():
        if name.startswith(("streams", "shared")):
            assert torch.equal(after[name], value), name
        elif name == "proposal.units.weight":
            assert after[name].shape[0] == 5 * 12
            assert not torch.equal(after[name][: len(value)], value)
    classifier = nn.Linear(model.embed_dim, 5)
    model.training_loss(maps_of(5), targets_of(5, ("a", "b", "c", "d", "e")), classifier).backward()
    model.save_pretrained(tmp_path / "weights")
    again = FR.from_pretrained(tmp_path / "weights")
    assert again.config == model.config
    assert again.embed_dim == model.embed_dim
    assert torch.equal(again(maps_of(3)), model(maps_of(3)))


def test_basic_inception_is_the_variant_of_fr_under_its_own_name(tmp_path: Path):
    model = BasicInception(filters=(2, 3), shared_width=12, size=12).eval()
    assert set(model.config) == {"filters", "shared_width", "dropout", "size"}
    same = small(variant="basic_inception").eval()
    same.load_state_dict(model.state_dict())
    assert torch.equal(same(maps_of(2)), model(maps_of(2)))
    model.save_pretrained(tmp_path / "weights")
    assert torch.equal(BasicInception.from_pretrained(tmp_path / "weights")(maps_of(2)), model(maps_of(2)))


@pytest.mark.parametrize("variant", ["fr", "fr_fc", "basic_inception"])
def test_sixteen_clips_can_be_learnt_by_heart_by_classifier_and_detectors(variant: str):
    sizes = {"filters": (4, 8), "shared_width": 64, "detector_width": 16, "hidden_width": 32}
    model = small(variant=variant, dropout=0.0, **sizes)
    classifier = nn.Linear(model.embed_dim, 3)
    optimizer = torch.optim.Adam([*model.parameters(), *classifier.parameters()], lr=3e-3)
    maps, targets = maps_of(16), targets_of(16)
    for _ in range(120):
        optimizer.zero_grad()
        model.training_loss(maps, targets, classifier).backward()
        optimizer.step()
    assert torch.equal(classifier(model.eval()(maps)).argmax(dim=1), targets.labels)
    if model.proposal is not None:
        found = model.proposal.detect(model.proposal(model.shared_features(maps))) > 0
        assert torch.equal(found, nn.functional.one_hot(targets.labels, 3).bool())


# ---- with the rest of fsmer


def test_maps_that_hold_strain_too_are_read_by_the_names_of_their_channels():
    clips = fsmer.synthetic_clips(n=4)
    assert clips.specs["flow"].channels == ("u", "v", "strain")
    model = FR(filters=(2, 3), shared_width=12, hidden_width=7).eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(np.ascontiguousarray(clips.media("flow")[:, :2])))
    torch.testing.assert_close(embed(model, clips).float(), expected, rtol=1e-4, atol=1e-6)


def test_runs_in_bfloat16():
    model = small().eval()
    maps = maps_of(6)
    expected = model(maps)
    found = model.to(torch.bfloat16)(maps.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.02)


def test_recipe_is_the_papers():
    assert (FR.recipe.learning_rate, FR.recipe.batch_size, FR.recipe.schedule) == (1e-3, 32, "constant")
    assert BasicInception.recipe == FR.recipe
    # Sections 6.1.3 and 6.1.4.
    assert (CDMER_RECIPE.optimizer, CDMER_RECIPE.learning_rate, CDMER_RECIPE.momentum) == ("sgd", 5e-4, 0.8)
    assert (CDMER_RECIPE.batch_size, CDMER_RECIPE.epochs) == (32, FR.recipe.epochs)


def test_a_model_is_trained_by_the_recipe_that_it_is_given(tmp_path: Path):
    model = small()
    model.recipe = CDMER_RECIPE  # type: ignore[misc]
    clips = fsmer.synthetic_clips("lab", 9, seed=1, size=12)
    fsmer.train(model, clips, out=tmp_path / "trained", epochs=1)
    kept = json.loads((tmp_path / "trained.history.json").read_text())["recipe"]
    assert (kept["optimizer"], kept["learning_rate"], kept["momentum"], kept["epochs"]) == ("sgd", 5e-4, 0.8, 1)


# ---- bad input


def test_unknown_variants_and_fusions_are_refused_by_name():
    with pytest.raises(UnknownNameError, match="'fr_fc'"):
        FR(variant="fr-fc")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="'mean'"):
        FR(fusion="mean")  # type: ignore[arg-type]


def test_fewer_than_two_classes_are_refused():
    with pytest.raises(FsmerError, match=r"two or more.*1"):
        small().set_classes(["surprise"])
    with pytest.raises(FsmerError, match="two or more"):
        small(branches=1)


def test_targets_of_other_classes_than_the_branches_are_refused():
    model = small()
    with pytest.raises(FsmerError, match=r"3.*2.*set_classes"):
        model.training_loss(maps_of(2), targets_of(2, ("a", "b")), nn.Linear(model.embed_dim, 2))


def test_maps_too_small_for_the_poolings_are_refused():
    with pytest.raises(FsmerError, match=r"\b4\b"):
        FR(size=3)


# -- compiled streams ---------------------------------------------------------------------------------------------


needs_compiler = pytest.mark.skipif(compiled("inception") is None, reason="no C compiler")


def taken(stream: InceptionStream, maps: Tensor) -> bool:
    """Whether compiled code makes the features."""
    return type(stream(maps).grad_fn).__name__ == "_FeaturesBackward"


@needs_compiler
@pytest.mark.parametrize(
    ("filters", "side", "clips"),
    [((6, 16), 28, 32), ((6, 16), 28, 1), ((16, 6), 30, 17), ((6,), 13, 3), ((6, 16, 16), 29, 5)],
)
def test_compiled_streams_give_the_features_and_slopes_of_torch(filters, side: int, clips: int):
    stream, maps = InceptionStream(filters), torch.randn(clips, 1, side, side)
    for value in stream.parameters():
        nn.init.normal_(value, std=0.3)
    assert taken(stream, maps)
    found = []
    for features in (stream(maps), nn.Sequential.forward(stream, maps)):
        stream.zero_grad()
        slopes = torch.randn(features.shape, generator=torch.Generator().manual_seed(5))
        features.backward(slopes)
        found.append([features.detach(), *(value.grad.clone() for value in stream.parameters())])
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=2e-5 * float(torchs.abs().max()))


@needs_compiler
def test_compiled_streams_leave_to_torch_what_they_cannot_do(monkeypatch):
    stream, maps = InceptionStream((6, 16)), torch.rand(2, 1, 28, 28)
    assert taken(stream, maps)
    with torch.no_grad():
        assert stream(maps).grad_fn is None
    with torch.autocast("cpu", torch.bfloat16):
        assert taken(stream, maps)
        assert stream(maps).dtype == torch.float32, "they stay exact where the rest is rounded"
    assert not taken(stream, maps.clone().requires_grad_())
    assert not taken(InceptionStream((4, 16)), maps)
    assert not taken(stream.double(), maps.double())
    monkeypatch.setattr("fsmer.kernels.inception._library", lambda: None)
    assert not taken(stream.float(), maps)


@needs_compiler
def test_compiled_streams_pass_on_what_is_not_a_number_and_go_back_once():
    stream, maps = InceptionStream((6, 16)), torch.rand(3, 1, 28, 28)
    maps[1, 0, 3, 4] = float("nan")
    features = stream(maps)
    assert features[1].isnan().any()
    assert not features[[0, 2]].isnan().any()
    loss = features[[0, 2]].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        loss.backward()


@needs_compiler
def test_compiled_streams_train_a_network_as_torch_does(monkeypatch):
    clips = fsmer.synthetic_clips("lab", 33, seed=4)
    trained = []
    for library in (_library, _library, lambda: None):
        monkeypatch.setattr("fsmer.kernels.inception._library", library)
        torch.manual_seed(2)
        network = FR(shared_width=64, detector_width=16, hidden_width=64, dropout=0.0)
        recognizer = fsmer.train(network, clips, epochs=2, batch_size=17)
        trained.append(recognizer.backbone.state_dict())
    compiled_once, compiled_again, by_torch = trained
    for name, value in by_torch.items():
        assert torch.equal(compiled_once[name], compiled_again[name]), name
        torch.testing.assert_close(compiled_once[name], value, rtol=0, atol=2e-3, msg=name)


@needs_compiler
def test_two_streams_under_way_at_once_do_not_share_their_room():
    stream, first, second = InceptionStream((6, 16)), torch.rand(20, 1, 28, 28), torch.rand(20, 1, 28, 28)
    wanted = []
    for maps in (first, second):
        stream.zero_grad()
        nn.Sequential.forward(stream, maps).square().sum().backward()
        wanted.append([value.grad.clone() for value in stream.parameters()])
    for _ in range(3):
        begun = [stream(first), stream(second)]
        for features, slopes in zip(begun, wanted, strict=True):
            stream.zero_grad()
            features.square().sum().backward()
            for value, slope in zip(stream.parameters(), slopes, strict=True):
                torch.testing.assert_close(value.grad, slope, rtol=1e-3, atol=1e-4 * float(slope.abs().max()))
