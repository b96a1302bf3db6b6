"""Reptile (Nichol et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fsmer.backbones.adaptation import Adaptation
from fsmer.meta.algorithm import Learner, joined, register_algorithm
from fsmer.meta.maml import InnerLoopTraining
from fsmer.meta.tasks import TaskBatch
from fsmer.transfer.source_model import require

__all__ = ["Reptile"]


@register_algorithm("reptile")
@dataclass(frozen=True)
class Reptile(InnerLoopTraining):
    """Move the weights towards where gradient steps on each task lead (Nichol et al. 2018, Algorithm 1).

    A task's clips are not split in training: the steps are taken on support and query together. The paper takes Adam
    without momentum and batches of 10 clips in the inner loop; here the steps are plain gradient steps on all clips,
    as in the adaptation that follows. The outer step is that of the paper, 1.0, without its decay to zero.

    Parameters
    ----------
    inner_steps : int
        Steps a task in training; the paper takes 8 on MiniImagenet.
    adaptation_steps : int
        Steps on a support set later; the paper takes 50.
    """

    inner_steps: int = 8
    adaptation_steps: int = 50

    outer_rate: ClassVar[float] = 1.0
    optimizer: ClassVar[str] = "sgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.adaptation_steps
        require(0 <= steps <= 1000, f"adaptation_steps={steps}: give a number from 0 to 1,000.")

    def step(self, learner: Learner, tasks: TaskBatch) -> dict[str, float]:
        loss_sum = 0.0
        for number in range(len(tasks)):
            one = tasks.task(number)
            whole = replace(
                one, support=joined(one.support, one.query), support_codes=joined(one.support_codes, one.query_codes)
            )
            adapted = self.adapted(learner, whole, 0, training=True)
            # The outer step goes against this "gradient".
            for name, value in adapted.weights.items():
                target = learner.parameter(name)
                # Where classes share a first row, it moves to the mean of theirs.
                rows = value.numel() // target.numel()
                away = (target.detach() - value.detach().sum_to_size(target.shape) / rows) / len(tasks)
                target.grad = away if target.grad is None else target.grad + away
            with torch.no_grad():
                logits = adapted.logits(learner.backbone, whole.mapped(lambda value: value[0]).support)
                codes = whole.support_codes[0]
                loss_sum += float(F.cross_entropy(logits, codes, ignore_index=-1))
        return {"loss": loss_sum / len(tasks)}

    def answers(self, learner: Learner, tasks: TaskBatch, *, training: bool) -> Tensor:
        longer = replace(self, inner_steps=self.adaptation_steps)
        return super(Reptile, longer).answers(learner, tasks, training=training)

    def adaptation(self, learner: Learner) -> Adaptation:
        found = super().adaptation(learner)
        params: dict[str, Any] = {**found.params, "steps": self.adaptation_steps}
        return Adaptation(self.name, found.method, params, self.learned_tensors(dict(learner.learned.items())))
