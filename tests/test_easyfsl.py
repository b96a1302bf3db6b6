"""easyfsl beside fsmer: its methods take backbones as they are, and its form of batches holds episodes of protocols."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import small_model

import fsmer
from fsmer.errors import ProtocolError, SpecMismatchError
from fsmer.interop.easyfsl import episode_loader


@pytest.fixture(scope="module")
def clips() -> fsmer.ClipSet:
    return fsmer.synthetic_clips("lab", 45, seed=3)


def test_batches_are_the_episodes_of_the_protocol(clips: fsmer.ClipSet) -> None:
    protocol = fsmer.load_protocol("kshot", way=2, shot=2, query=3, episodes=4)
    maps = torch.from_numpy(clips.media())
    loader = episode_loader(protocol, clips, "facs-flow")
    assert len(loader) == 4
    for batch, episode in zip(loader, protocol.split(clips), strict=True):
        support, support_labels, query, query_labels, truth = batch
        torch.testing.assert_close(support, maps[episode.support])
        torch.testing.assert_close(query, maps[episode.query])
        for labels, side in ((support_labels, episode.support), (query_labels, episode.query)):
            assert [clips.classes[truth[label]] for label in labels.tolist()] == clips.labels[side].tolist()


def test_easyfsl_evaluates_a_backbone_on_the_episodes_of_a_protocol(clips: fsmer.ClipSet) -> None:
    methods: Any = pytest.importorskip("easyfsl.methods", reason="it is not installed (pip install 'fsmer[easyfsl]')")
    from easyfsl.utils import evaluate

    backbone = fsmer.load_model("facs-flow")
    protocol = fsmer.load_protocol("kshot", way=3, shot=3, query=4, episodes=20)
    loader = episode_loader(protocol, clips, backbone)
    accuracy = evaluate(methods.PrototypicalNetworks(backbone), loader, device="cpu", use_tqdm=False)
    report = fsmer.evaluate(protocol, backbone, "protonet", clips=clips)
    assert accuracy == pytest.approx(report.acc, abs=1e-9)


@pytest.mark.parametrize("name", ["SimpleShot", "MatchingNetworks", "Finetune", "TIM", "BDCSPN"])
def test_methods_of_easyfsl_answer_with_embeddings_of_a_backbone(name: str, clips: fsmer.ClipSet) -> None:
    methods: Any = pytest.importorskip("easyfsl.methods", reason="it is not installed (pip install 'fsmer[easyfsl]')")
    backbone = fsmer.load_model("facs-flow")
    options = {"feature_dimension": backbone.embed_dim} if name == "MatchingNetworks" else {}
    model = getattr(methods, name)(backbone, **options)
    protocol = fsmer.load_protocol("kshot", way=3, shot=3, query=4, episodes=1)
    support, labels, query, _, _ = next(iter(episode_loader(protocol, clips, backbone)))
    model.process_support_set(support, labels)
    assert model(query).shape == (12, 3)


def test_an_episode_without_support_of_a_class_is_refused_by_name(clips: fsmer.ClipSet) -> None:
    with pytest.raises(ProtocolError, match="no support clip of"):
        list(episode_loader(fsmer.load_protocol("kshot", shot=0, episodes=1), clips, "facs-flow"))


def test_no_clips_and_several_media_are_refused(clips: fsmer.ClipSet) -> None:
    with pytest.raises(ProtocolError, match=r"kshot.*needs clips"):
        episode_loader("kshot", None, "facs-flow")
    merau = small_model("merau")
    several = fsmer.synthetic_clips("lab", 12, specs=merau.input_specs)
    with pytest.raises(SpecMismatchError, match=r"merau.*several media.*one tensor"):
        episode_loader(fsmer.load_protocol("kshot", shot=1), several, merau)
