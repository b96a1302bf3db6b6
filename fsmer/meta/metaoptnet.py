"""A support vector machine as a differentiable classifier (Lee et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsmer.backbones import Backbone
from fsmer.backbones.adaptation import Adaptation
from fsmer.meta.algorithm import Algorithm, Learner, register_algorithm
from fsmer.meta.tasks import TaskBatch
from fsmer.training.support_vectors import svm_weights
from fsmer.transfer.heads import one_hot
from fsmer.transfer.source_model import absent_bias, require

__all__ = ["MetaOptNet"]


@register_algorithm("metaoptnet")
@dataclass(frozen=True)
class MetaOptNet(Algorithm):
    """The classifier of a task is a support vector machine (MetaOptNet-SVM, Lee et al. 2019, eq. 8 and 12).

    The paper's solver of the dual (OptNet, 15 iterations) is replaced by one that is exact, see
    `fsmer.training.support_vectors`. The scale of the logits is learned. The paper smooths the labels of the queries by
    0.1, which is left out.

    Parameters
    ----------
    weight : float
        C, the weight of errors; Lee et al. take 0.1.
    """

    weight: float = 0.1

    trains_batch_norm: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(0 < self.weight <= 1e6, f"weight={self.weight} is out of range; give a number above 0, at most 1e6.")

    def begin(self, backbone: Backbone, way: int) -> dict[str, Tensor]:
        return {"scale": torch.tensor(1.0)}

    def answers(self, learner: Learner, tasks: TaskBatch, *, training: bool) -> Tensor:
        support, query = learner.embed_both(tasks)
        weights = svm_weights(support, one_hot(tasks.support_codes, tasks.way), self.weight)
        scores = torch.bmm(query, weights.transpose(1, 2))
        return learner.learned["scale"] * scores + absent_bias(tasks.support_codes, tasks.way)[:, None]

    def adaptation(self, learner: Learner) -> Adaptation:
        # Predictions of a scale below zero are those of the other sign; a softmax that is trained does not go there.
        scale = max(float(learner.learned["scale"].detach()), 1e-6)
        return Adaptation(self.name, "svm", {"weight": self.weight, "scale": scale}, {})
