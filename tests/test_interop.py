"""What fsmer offers to other libraries needs none of them, and says what is missing."""

from __future__ import annotations

import importlib.util
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import NAMES, clips_for, small_model
from tiny_backbone import TinyBackbone

import fsmer
from fsmer.backbones import read_inputs
from fsmer.errors import FsmerError
from fsmer.interop import learn2learn as interop


def test_without_learn2learn_its_tasks_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    interop._taskset_class.cache_clear()
    clips = fsmer.synthetic_clips("lab", 12)
    for ask in (
        lambda: interop.task_set("kshot", clips, "facs-flow"),
        lambda: interop.meta_dataset(clips, "facs-flow"),
    ):
        with pytest.raises(FsmerError, match="make learn2learn") as raised:
            ask()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", NAMES)
def test_embedding_parameters_are_those_that_change_embeddings(name: str) -> None:
    model = small_model(name)
    mode, state = model.training, torch.random.get_rng_state()
    used = model.embedding_parameters()
    assert model.training == mode
    assert torch.equal(torch.random.get_rng_state(), state)
    media = read_inputs(model, clips_for(model, 3), np.arange(3))
    with torch.no_grad():
        before = model(media)
        for key, value in model.named_parameters():
            if key not in used and value.requires_grad:
                value.add_(1.0)
        torch.testing.assert_close(model(media), before, rtol=0, atol=0)
    assert set(used) <= {key for key, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("name", NAMES)
def test_a_module_embeds_as_its_backbone_and_holds_what_the_embedding_needs(name: str) -> None:
    backbone = small_model(name)
    features = interop.module(backbone)
    media = read_inputs(backbone, clips_for(backbone, 3), np.arange(3))
    with torch.no_grad():
        torch.testing.assert_close(features(media), backbone(media), rtol=1e-4, atol=1e-5)
    names = {key.removeprefix("backbone.") for key, _ in features.named_parameters()}
    assert names == set(backbone.embedding_parameters())
    assert features.backbone.state_dict().keys() == backbone.state_dict().keys()
    slopes = torch.autograd.grad(features(media).square().sum(), list(features.parameters()), create_graph=True)
    assert all(slope.requires_grad for slope in slopes)


def test_a_backbone_that_cannot_be_trained_is_no_module() -> None:
    frozen = TinyBackbone().requires_grad_(False)
    pooled = fsmer.wrap(torch.nn.Sequential(torch.nn.AvgPool2d(7), torch.nn.Flatten()), frozen.input_spec)
    for backbone in (frozen, pooled):
        assert backbone.embedding_parameters() == {}
        with pytest.raises(FsmerError, match=f"{backbone.name}.*can be trained"):
            interop.module(backbone)


def test_a_backbone_that_fails_on_blank_media_says_what_it_can_do() -> None:
    class Failing(TinyBackbone):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise ZeroDivisionError("nothing moves")

    with pytest.raises(FsmerError, match=r"blank media.*nothing moves.*embedding_parameters"):
        interop.module(Failing())


def test_a_module_leaves_its_backbone_alone() -> None:
    backbone = TinyBackbone()
    features = interop.module(backbone)
    with torch.no_grad():
        for value in features.parameters():
            value.add_(1.0)
    fresh = TinyBackbone()
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in backbone.state_dict().items())
    assert not torch.equal(features.as_backbone().encoder.weight, backbone.encoder.weight)
    assert all(value.requires_grad for value in features.as_backbone().parameters())


@pytest.fixture(scope="module")
def installer(repository: Path) -> Any:
    path = repository / "tools" / "install_learn2learn.py"
    spec = importlib.util.spec_from_file_location("install_learn2learn", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_another_archive_than_the_known_release_is_not_built(installer: Any, tmp_path: Path) -> None:
    archive = tmp_path / "learn2learn-0.2.0.tar.gz"
    archive.write_bytes(b"something else")
    with pytest.raises(SystemExit, match=installer.SHA256):
        installer.check(archive)


def test_c_files_of_the_release_are_made_anew(installer: Any, tmp_path: Path) -> None:
    data = tmp_path / "learn2learn-0.2.0" / "learn2learn" / "data"
    data.mkdir(parents=True)
    for name in ("transforms.c", "transforms.pyx"):
        (data / name).write_text("")
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as held:
        held.add(tmp_path / "learn2learn-0.2.0", "learn2learn-0.2.0")
    (tmp_path / "out").mkdir()
    sources = installer.unpacked(archive, tmp_path / "out")
    assert [path.name for path in (sources / "learn2learn" / "data").iterdir()] == ["transforms.pyx"]


def test_a_step_that_fails_is_told_with_its_last_lines(installer: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such thing"):
        installer.run("-c", "raise SystemExit('no such thing')", where=tmp_path)
