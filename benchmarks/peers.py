"""easyfsl 1.5.0 as it is meant to be used, with the one patch that its sampler needs on torch 2.10 and later."""

from __future__ import annotations

import numpy as np
import torch
from easyfsl.datasets import FeaturesDataset
from easyfsl.methods import FewShotClassifier
from easyfsl.samplers import TaskSampler
from easyfsl.utils import evaluate
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

__all__ = ["PeerSampler", "features", "peer_evaluate", "peer_predictions"]


class _TakesDataSource(Sampler):
    def __init__(self, data_source: object = None) -> None:
        """TaskSampler hands over ``data_source``, which torch's sampler takes no more."""


class PeerSampler(TaskSampler, _TakesDataSource):
    """easyfsl's sampler; the second base stands between it and torch's sampler."""


def features(embeddings: Tensor, labels: np.ndarray) -> FeaturesDataset:
    """Cached embeddings as easyfsl's data set."""
    return FeaturesDataset(labels.tolist(), embeddings, [str(label) for label in np.unique(labels)])


def peer_evaluate(model: FewShotClassifier, data: FeaturesDataset, sampler: PeerSampler) -> int:
    """Number of episodes that easyfsl's ``evaluate`` went through, drawing them with its own sampler."""
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)
    evaluate(model, loader, device="cpu", use_tqdm=False)
    return len(sampler)


def peer_predictions(
    model: FewShotClassifier, data: FeaturesDataset, support: np.ndarray, query: np.ndarray, *, way: int
) -> Tensor:
    """What easyfsl's ``evaluate`` predicts on given episodes, shape (E, Q); rows class after class."""
    episodes = len(support)
    shot, asked = support.shape[1] // way, query.shape[1] // way
    rows = np.concatenate([support.reshape(episodes, way, shot), query.reshape(episodes, way, asked)], axis=2)
    sampler = PeerSampler(data, way, shot, asked, episodes)
    loader = DataLoader(data, batch_sampler=rows.reshape(episodes, -1).tolist(), collate_fn=sampler.episodic_collate_fn)
    found: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, inputs, output: found.append(output.argmax(dim=1)))
    evaluate(model, loader, device="cpu", use_tqdm=False)
    handle.remove()
    return torch.stack(found)
