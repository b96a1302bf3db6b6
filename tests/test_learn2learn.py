"""learn2learn beside fsmer: protocols as its task sets, backbones inside its algorithms, and back as recognizers."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import NAMES, clips_for, small_model
from torch import Tensor, nn
from torch.nn import functional as F

import fsmer
from fsmer.backbones import Backbone
from fsmer.errors import DataError, ProtocolError, SpecMismatchError
from fsmer.interop import learn2learn as interop

l2l: Any = pytest.importorskip("learn2learn", reason="it is not installed (make learn2learn)")

# Second derivatives of the largest network take long.
SIZED = [pytest.param(name, marks=pytest.mark.slow if name == "r3d34_attribute" else ()) for name in NAMES]


@dataclass(frozen=True)
class Adapted:
    """What learn2learn makes of one task: parameters of network and head after the inner steps, and the query loss."""

    features: dict[str, Tensor]
    head: dict[str, Tensor]
    loss: Tensor
    learner: nn.Module


def adapted_by_learn2learn(
    algorithm: str,
    features: nn.Module,
    head: nn.Linear,
    support: tuple[Tensor, Tensor],
    query: tuple[Tensor, Tensor],
    *,
    rate: float,
    steps: int,
) -> Adapted:
    """The reference: ``maml``, ``fomaml``, ``anil`` or ``meta_sgd`` of learn2learn on one task.

    The loss goes back to `features` and `head`, whose gradients are those of a meta-step on this task. In ANIL the
    head alone is adapted.
    """
    if algorithm == "anil":
        inner = l2l.algorithms.MAML(head, lr=rate).clone()
        network: nn.Module = nn.Sequential(features, inner)
    else:
        whole = nn.Sequential(features, head)
        maml = algorithm in ("maml", "fomaml")
        learner = (
            l2l.algorithms.MAML(whole, lr=rate, first_order=algorithm == "fomaml")
            if maml
            else l2l.algorithms.MetaSGD(whole, lr=rate)
        )
        network = inner = learner.clone()
    for _ in range(steps):
        inner.adapt(F.cross_entropy(network(support[0]), support[1]))
    loss = F.cross_entropy(network(query[0]), query[1])
    body, last = network if algorithm == "anil" else network.module
    last = last.module if algorithm == "anil" else last
    return Adapted(dict(body.named_parameters()), dict(last.named_parameters()), loss, network)


def classifier(backbone: Backbone, ways: int = 3) -> tuple[interop.EmbeddingModule, nn.Linear]:
    torch.manual_seed(1)
    features = interop.module(backbone)
    return features, nn.Linear(features.embed_dim, ways)


def task_of(backbone: Backbone, clips: fsmer.ClipSet, shot: int = 2) -> interop.Task:
    return interop.task_set(fsmer.load_protocol("kshot", way=3, shot=shot, query=shot, episodes=1), clips, backbone)[0]


@pytest.fixture(scope="module")
def clips() -> fsmer.ClipSet:
    return fsmer.synthetic_clips("lab", 45, seed=3)


def test_a_protocol_is_a_task_set_of_its_episodes(clips: fsmer.ClipSet) -> None:
    protocol = fsmer.load_protocol("kshot", way=3, shot=2, query=4, episodes=5)
    backbone = fsmer.create_model("ststnet")
    tasks = interop.task_set(protocol, clips, backbone)
    assert isinstance(tasks, l2l.data.Taskset)
    assert len(tasks) == 5
    maps = torch.from_numpy(clips.media())
    for task, episode in zip(tasks, protocol.split(clips), strict=True):
        data, labels = task
        assert data.shape == (18, 3, 28, 28)
        torch.testing.assert_close(data[:6], maps[episode.support])
        torch.testing.assert_close(task.query[0], maps[episode.query])
        assert [episode.classes[code] for code in task.support[1]] == clips.labels[episode.support].tolist()
        assert [episode.classes[code] for code in task.query[1]] == clips.labels[episode.query].tolist()
        assert labels.dtype == torch.int64
    sampled, labels = tasks.sample()
    (support, support_labels), (query, _) = l2l.data.partition_task(sampled, labels, shots=2)
    assert support.shape == (6, 3, 28, 28)
    assert query.shape == (12, 3, 28, 28)
    assert support_labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_folds_of_unequal_size_are_tasks_too(clips: fsmer.ClipSet) -> None:
    protocol = fsmer.load_protocol("loso")
    for task, episode in zip(interop.task_set(protocol, clips, "facs-flow"), protocol.split(clips), strict=True):
        assert len(task.support[1]) == len(episode.support)
        assert len(task.query[1]) == len(episode.query)


def test_task_transforms_change_tasks_and_support_stays_known(clips: fsmer.ClipSet) -> None:
    protocol = fsmer.load_protocol("kshot", way=3, shot=2, query=1, episodes=2)
    transforms = l2l.data.transforms
    chosen = interop.task_set(
        protocol,
        clips,
        "facs-flow",
        task_transforms=lambda dataset: [
            transforms.FilterLabels(dataset, [0, 2]),
            transforms.ConsecutiveLabels(dataset),
            transforms.LoadData(dataset),
            transforms.RemapLabels(dataset),
        ],
    )
    for task in chosen:
        data, labels = task
        assert data.shape == (6, 3, 28, 28)
        assert labels.sort().values.tolist() == [0, 0, 0, 1, 1, 1]
        assert task.support[1].sort().values.tolist() == [0, 0, 1, 1]
        for kept in (task.support[0], task.query[0]):
            side = task.episode.support if len(kept) == 4 else task.episode.query
            known = torch.from_numpy(clips.media()[side])
            assert all(bool((known == one).flatten(1).all(dim=1).any()) for one in kept)


def test_clips_are_a_data_set_from_which_learn2learn_draws_tasks(clips: fsmer.ClipSet) -> None:
    dataset = interop.meta_dataset(clips, "facs-flow")
    transforms = l2l.data.transforms
    kinds = [transforms.NWays(dataset, n=2), transforms.KShots(dataset, k=3), transforms.LoadData(dataset)]
    tasks = l2l.data.Taskset(dataset, [*kinds, transforms.RemapLabels(dataset)], num_tasks=3)
    data, labels = tasks.sample()
    assert data.shape == (6, 3, 28, 28)
    assert labels.sort().values.tolist() == [0, 0, 0, 1, 1, 1]
    media, label = dataset[7]
    torch.testing.assert_close(media, torch.from_numpy(clips.media()[7]))
    assert clips.classes[label] == clips.labels[7]


def test_clips_without_a_label_and_empty_sets_are_refused(clips: fsmer.ClipSet) -> None:
    labels = clips.labels.copy()
    labels[7] = None
    partly = fsmer.ClipSet.from_arrays(clips.media(), labels, ids=clips.ids, spec=clips.specs["flow"])
    with pytest.raises(DataError, match=f"{clips.ids[7]}.*no label"):
        interop.meta_dataset(partly, "facs-flow")
    with pytest.raises(DataError, match="empty"):
        interop.meta_dataset(clips[:0], "facs-flow")


@pytest.mark.parametrize("name", SIZED)
def test_every_backbone_is_adapted_by_second_order_maml_and_comes_back(name: str, tmp_path: Path) -> None:
    backbone = small_model(name)
    held = clips_for(backbone, 12)
    task = task_of(backbone, held, shot=1)
    features, head = classifier(backbone)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    found = adapted_by_learn2learn("maml", features, head, task.support, task.query, rate=0.05, steps=2)
    found.loss.backward()
    for value in (*features.parameters(), *head.parameters()):
        assert value.grad is not None
        assert value.grad.isfinite().all()
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())

    learnt = interop.recognizer(found.learner, held[task.episode.support], classes=task.episode.classes)
    with torch.no_grad():
        logits = found.learner.eval()(task.query[0])
    given = learnt.decision_function(held[task.episode.query])
    np.testing.assert_allclose(given, logits.numpy(), rtol=1e-3, atol=1e-3 * float(logits.abs().max()))
    again = fsmer.Recognizer.load(learnt.save(tmp_path / "saved"))
    np.testing.assert_array_equal(again.predict(held[task.episode.query]), learnt.predict(held[task.episode.query]))


@pytest.mark.parametrize("algorithm", ["maml", "fomaml", "anil", "meta_sgd"])
@pytest.mark.parametrize("name", ["ststnet", "fr", "facs-flow"])
def test_every_algorithm_adapts_and_gives_a_gradient_to_what_is_trained(name: str, algorithm: str) -> None:
    backbone = fsmer.load_model(name) if name == "facs-flow" else small_model(name)
    task = task_of(backbone, clips_for(backbone, 24))
    features, head = classifier(backbone)
    # Without statistics of its own the embeddings of `ststnet` are of the scale of 8-bit values.
    learn = functools.partial(adapted_by_learn2learn, rate=1e-6 if name == "ststnet" else 0.05, steps=3)
    found = learn(algorithm, features, head, task.support, task.query)
    start = F.cross_entropy(head(features(task.support[0])), task.support[1])
    with torch.no_grad():
        end = F.cross_entropy(found.learner(task.support[0]), task.support[1])
    assert end < start
    found.loss.backward()
    assert all(value.grad is not None for value in (*features.parameters(), *head.parameters()))
    moved = any(not torch.equal(value, found.features[key]) for key, value in features.named_parameters())
    assert moved == (algorithm != "anil")
    again = learn(algorithm, features, head, task.support, task.query)
    torch.testing.assert_close(again.loss, found.loss)


def test_meta_training_with_learn2learn_gives_a_backbone_of_fsmer(clips: fsmer.ClipSet) -> None:
    features, head = classifier(fsmer.create_model("ststnet"))
    maml = l2l.algorithms.MAML(nn.Sequential(features, head), lr=0.05)
    optimizer = torch.optim.Adam(maml.parameters(), lr=1e-3)
    protocol = fsmer.load_protocol("kshot", way=3, shot=2, query=3, episodes=3)
    for task in interop.task_set(protocol, clips, features.backbone):
        learner = maml.clone()
        learner.adapt(F.cross_entropy(learner(task.support[0]), task.support[1]))
        optimizer.zero_grad()
        F.cross_entropy(learner(task.query[0]), task.query[1]).backward()
        optimizer.step()
    backbone = features.as_backbone()
    assert not backbone.training
    with torch.no_grad():
        media = torch.from_numpy(clips.media()[:4])
        torch.testing.assert_close(backbone(media), features.eval()(media))
    assert fsmer.adapt(backbone, clips).predict(clips[:2]).shape == (2,)


def test_a_recognizer_of_an_adapted_module_learns_more_clips(clips: fsmer.ClipSet) -> None:
    backbone = small_model("ststnet")
    task = task_of(backbone, clips)
    features, head = classifier(backbone)
    found = adapted_by_learn2learn("anil", features, head, task.support, task.query, rate=0.05, steps=2)
    support = clips[task.episode.support]
    learnt = interop.recognizer(found.learner, support)
    assert learnt.classes_.tolist() == list(clips.classes)
    assert learnt.support_size == 6
    arrays = interop.recognizer(found.learner, (support.media(), support.labels))
    np.testing.assert_array_equal(arrays.predict_proba(clips), learnt.predict_proba(clips))
    assert learnt.update(clips[task.episode.query]).support_size == 12


def test_what_is_no_linear_classifier_on_an_embedding_is_no_recognizer(clips: fsmer.ClipSet) -> None:
    features, head = classifier(small_model("ststnet"))
    for other in (nn.Linear(3, 3), nn.Sequential(features, head, nn.Linear(3, 3)), features, "maml"):
        with pytest.raises(DataError, match=r"torch\.nn\.Sequential"):
            interop.recognizer(other, clips)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="other logits"):
        interop.recognizer(nn.Sequential(features, nn.Tanh(), head), clips)
    with pytest.raises(DataError, match="3 classes, but 2 are named"):
        interop.recognizer(nn.Sequential(features, head), clips, classes=["negative", "positive"])


def test_the_reference_leaves_its_starting_point_alone(clips: fsmer.ClipSet) -> None:
    features, head = classifier(small_model("ststnet"))
    task = task_of(features.backbone, clips)
    before = copy.deepcopy(nn.Sequential(features, head).state_dict())
    for algorithm in ("maml", "fomaml", "anil", "meta_sgd"):
        adapted_by_learn2learn(algorithm, features, head, task.support, task.query, rate=0.05, steps=2)
        now = nn.Sequential(features, head).state_dict()
        assert all(torch.equal(value, before[key]) for key, value in now.items())


def test_a_protocol_without_clips_and_clips_of_other_media_are_refused(clips: fsmer.ClipSet) -> None:
    with pytest.raises(ProtocolError, match=r"kshot.*needs clips"):
        interop.task_set("kshot", None, "facs-flow")
    with pytest.raises(SpecMismatchError, match=r"flow.*frames"):
        interop.task_set("kshot", clips, small_model("r3d10_attribute"))
