"""Almost no inner loop (Raghu et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsmer.backbones.adaptation import Adaptation
from fsmer.meta.algorithm import Algorithm, Learner, register_algorithm
from fsmer.meta.maml import InnerLoopTraining
from fsmer.meta.tasks import TaskBatch
from fsmer.training.inner_loop import head_steps
from fsmer.transfer.heads import one_hot

__all__ = ["ANIL"]


@register_algorithm("anil")
@dataclass(frozen=True)
class ANIL(InnerLoopTraining):
    """As `maml`, but the inner loop changes the classifier alone (Raghu et al. 2020, section 4; second order).

    All clips of a batch pass the backbone once, and the classifiers of its tasks take their steps together. Inner rate
    and steps are those of the paper for MiniImagenet (0.01 and 5); batch normalisation does not enter the inner loop.
    """

    trains_batch_norm: ClassVar[bool] = True

    def answers(self, learner: Learner, tasks: TaskBatch, *, training: bool) -> Tensor:
        support, query = learner.embed_both(tasks)
        weight, bias = (one.expand(len(tasks), *one.shape) for one in self.first_head(learner, tasks.way))
        members = one_hot(tasks.support_codes, tasks.way)
        weight, bias = head_steps(weight, bias, support, members, self.inner_steps, self.inner_rate)
        return torch.baddbmm(bias[:, None], query, weight.transpose(1, 2))

    def step(self, learner: Learner, tasks: TaskBatch) -> dict[str, float]:
        return Algorithm.step(self, learner, tasks)

    def adaptation(self, learner: Learner) -> Adaptation:
        # Its backbone is that of `meta_train`, whose rule holds for batch normalisation.
        params = {"steps": self.inner_steps, "learning_rate": self.inner_rate, "adapts": "head"}
        return Adaptation(self.name, "inner_loop", params, self.learned_tensors(dict(learner.learned.items())))
