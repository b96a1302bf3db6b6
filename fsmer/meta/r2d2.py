"""Ridge regression as a differentiable classifier (Bertinetto et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsmer.backbones import Backbone
from fsmer.backbones.adaptation import Adaptation
from fsmer.meta.algorithm import Algorithm, Learner, register_algorithm
from fsmer.meta.tasks import TaskBatch
from fsmer.training.ridge import ridge_weights
from fsmer.transfer.heads import one_hot

__all__ = ["R2D2"]


@register_algorithm("r2d2")
@dataclass(frozen=True)
class R2D2(Algorithm):
    """The classifier of a task is a ridge regression on its one-hot labels (R2-D2, Bertinetto et al. 2019, eq. 4-6).

    Its regularisation, and the scale and bias that make logits of its answers, are learned; they begin at 50, 1 and 0.
    """

    trains_batch_norm: ClassVar[bool] = True

    def begin(self, backbone: Backbone, way: int) -> dict[str, Tensor]:
        return {
            "log_regularisation": torch.tensor(math.log(50.0)),
            "scale": torch.tensor(1.0),
            "bias": torch.tensor(0.0),
        }

    def answers(self, learner: Learner, tasks: TaskBatch, *, training: bool) -> Tensor:
        support, query = learner.embed_both(tasks)
        members = one_hot(tasks.support_codes, tasks.way)
        weight = ridge_weights(support, members.transpose(1, 2), learner.learned["log_regularisation"].exp())
        return learner.learned["scale"] * torch.bmm(query, weight) + learner.learned["bias"]

    def adaptation(self, learned: Mapping[str, Tensor]) -> Adaptation:
        values = {name: float(value) for name, value in learned.items()}
        params = {"regularisation": math.exp(values["log_regularisation"]), "scale": values["scale"]}
        return Adaptation(self.name, "ridge", params, {})
