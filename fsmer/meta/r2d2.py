"""Ridge regression as a differentiable classifier (Bertinetto et al. 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fsmer.backbones import Backbone
from fsmer.backbones.adaptation import Adaptation
from fsmer.meta.algorithm import Algorithm, Learner, register_algorithm
from fsmer.meta.tasks import TaskBatch
from fsmer.training.ridge import ridge_weights
from fsmer.transfer.heads import one_hot
from fsmer.transfer.source_model import absent_bias

__all__ = ["R2D2"]


@register_algorithm("r2d2")
@dataclass(frozen=True)
class R2D2(Algorithm):
    """The classifier of a task is a ridge regression on its one-hot labels (R2-D2, Bertinetto et al. 2019, eq. 4-7).

    Its penalty and the scale that makes logits of its answers are learned; they begin at 1 and 10. The bias of eq. 7,
    which is the same for all classes, is left out, as in the method ``ridge``.
    """

    trains_batch_norm: ClassVar[bool] = True

    def begin(self, backbone: Backbone, way: int) -> dict[str, Tensor]:
        return {"log_penalty": torch.tensor(0.0), "log_scale": torch.tensor(math.log(10.0))}

    def answers(self, learner: Learner, tasks: TaskBatch, *, training: bool) -> Tensor:
        support, query = (F.pad(one, (0, 1), value=1.0) for one in learner.embed_both(tasks))
        members = one_hot(tasks.support_codes, tasks.way).transpose(1, 2)
        given = members.sum(dim=2, keepdim=True)
        weights = ridge_weights((support * given).double(), members.double(), learner.learned["log_penalty"].exp())
        scores = learner.learned["log_scale"].exp() * torch.bmm(query, weights.float())
        return scores + absent_bias(tasks.support_codes, tasks.way)[:, None]

    def adaptation(self, learner: Learner) -> Adaptation:
        values = {name.removeprefix("log_"): math.exp(float(value.detach())) for name, value in learner.learned.items()}
        return Adaptation(self.name, "ridge", values, {})
