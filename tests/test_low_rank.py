"""Fine-tuning of normalisation layers alone, and by low-rank adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fsmer
from fsmer.backbones import Backbone
from fsmer.errors import FsmerError, SupportError
from fsmer.transfer.source_model import MethodError

HOW: dict[str, Any] = {"train_backbone": True, "steps": 3, "encoder_rate": 1e-2, "projection_rate": 1e-2}


@pytest.fixture(scope="module", params=["ststnet", "flow_resnet18", "facs-flow"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    arguments = {"size": 28} if request.param == "flow_resnet18" else {}
    made = (
        fsmer.load_model("facs-flow")
        if request.param == "facs-flow"
        else fsmer.create_model(request.param, **arguments)
    )
    return made.eval()


def support(backbone: Backbone, n: int = 9) -> fsmer.ClipSet:
    return fsmer.synthetic_clips("lab", n, seed=1, specs=backbone.input_specs)


def changes(backbone: Backbone, recognizer: fsmer.Recognizer) -> dict[str, Tensor]:
    """Parameters that the training changed, by how much."""
    before, after = dict(backbone.named_parameters()), dict(recognizer.backbone.named_parameters())
    assert list(before) == list(after)
    moved = {name: (after[name] - before[name]).detach() for name in before}
    return {name: value for name, value in moved.items() if value.any()}


@pytest.mark.parametrize("method", ["finetune", "cosine"])
def test_adapters_change_each_weight_by_a_matrix_of_at_most_their_rank(backbone: Backbone, method: str) -> None:
    moved = changes(backbone, fsmer.adapt(backbone, support(backbone), method, **HOW, layers="all", adapter_rank=2))
    assert moved
    assert all(name.endswith("weight") and value.ndim > 1 for name, value in moved.items())
    for value in moved.values():
        singular = torch.linalg.svdvals(value.flatten(1).double())
        assert bool((singular[2:] < 1e-4 * singular[0]).all())


def test_adapters_change_only_the_layers_that_are_trained() -> None:
    backbone = fsmer.load_model("facs-flow")
    lower = {id(value) for layer in backbone.lower_layers() for value in layer.parameters()}
    below = {name for name, value in backbone.named_parameters() if id(value) in lower}
    recognizer = fsmer.adapt(backbone, support(backbone), "finetune", **HOW, adapter_rank=2)
    assert below
    assert changes(backbone, recognizer)
    assert not below & set(changes(backbone, recognizer))
    assert all(value.requires_grad for value in recognizer.backbone.parameters())


def test_adapters_of_full_rank_start_where_the_network_is(backbone: Backbone) -> None:
    recognizer = fsmer.adapt(backbone, support(backbone), "finetune", **{**HOW, "steps": 0}, adapter_rank=10_000)
    assert not changes(backbone, recognizer)


def test_norms_alone_change(backbone: Backbone) -> None:
    names = set(changes(backbone, fsmer.adapt(backbone, support(backbone), "finetune", **HOW, layers="norms")))
    modules = dict(backbone.named_modules())
    assert names
    assert all("Norm" in type(modules[name.rpartition(".")[0]]).__name__ for name in names)


def test_a_network_without_norms_says_what_can_be_trained() -> None:
    backbone = fsmer.create_model("fr")
    with pytest.raises(SupportError, match=r"'norms'.*'fr'.*layers='all'"):
        fsmer.adapt(backbone, support(backbone), "finetune", **HOW, layers="norms")


@pytest.mark.parametrize("how", [{"layers": "norms"}, {"adapter_rank": 2}])
def test_a_recognizer_so_trained_is_saved_loaded_and_updated(how: dict[str, Any], tmp_path: Path) -> None:
    backbone = fsmer.load_model("facs-flow")
    recognizer = fsmer.adapt(backbone, support(backbone), "finetune", **HOW, **how)
    queries = fsmer.synthetic_clips("clinic", 6, seed=2)
    recognizer.save(tmp_path / "saved")
    loaded = fsmer.Recognizer.load(tmp_path / "saved")
    assert np.array_equal(loaded.decision_function(queries), recognizer.decision_function(queries))
    updated = loaded.update(fsmer.synthetic_clips("field", 3, seed=4))
    assert np.isfinite(updated.decision_function(queries)).all()


@pytest.mark.parametrize("how", [{"layers": "norms"}, {"adapter_rank": 2}])
def test_trainings_side_by_side_give_what_each_gives_alone(how: dict[str, Any]) -> None:
    from fsmer.training.stacked import train_together
    from fsmer.transfer.source_model import SourceModel

    torch.manual_seed(0)
    model = SourceModel(fsmer.create_model("flow_resnet18", size=28))
    method = fsmer.load_method("finetune", **HOW, **how)
    supports = [fsmer.synthetic_clips("lab", 6, seed=seed, specs=model.backbone.input_specs) for seed in (1, 2)]
    stacked = dict(train_together(2, lambda number: method._begin(model, supports[number], None), engine="stack"))
    for number, clips in enumerate(supports):
        alone = method.fit(model, clips)
        together = method._end(model, stacked[number])
        assert changes(model.backbone, alone)
        for one, other in zip(alone.backbone.parameters(), together.backbone.parameters(), strict=True):
            assert torch.allclose(one, other, atol=2e-4)


def test_each_number_of_steps_gives_what_a_training_that_long_gives() -> None:
    backbone = fsmer.load_model("facs-flow")
    clips = support(backbone)
    method = fsmer.load_method("finetune", **HOW, adapter_rank=2)
    found = dict(method.fit_checkpoints(backbone, clips, [1, 3]))
    whole = method.fit(backbone, clips)
    assert len(changes(backbone, found[1])) == len(changes(backbone, whole))
    assert np.array_equal(found[3].decision_function(clips), whole.decision_function(clips))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"adapter_rank": 2}, ("adapter_rank=2", "train_backbone=True")),
        ({"layers": "norms"}, ("layers='norms'", "train_backbone=True")),
        ({"layers": "norms", "adapter_rank": 2, "train_backbone": True}, ("adapter_rank=2", "layers='norms'")),
        ({"adapter_rank": -1, "train_backbone": True}, ("adapter_rank=-1", "0")),
        ({"adapter_rank": 1.5, "train_backbone": True}, ("adapter_rank", "1.5")),
        ({"layers": "norm", "train_backbone": True}, ("layers='norm'", "'norms'")),
    ],
)
@pytest.mark.parametrize("method", ["finetune", "cosine"])
def test_a_combination_that_trains_nothing_is_refused_in_one_sentence(
    method: str, how: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises((MethodError, FsmerError)) as caught:
        fsmer.load_method(method, **how)
    assert all(word in str(caught.value) for word in words)
