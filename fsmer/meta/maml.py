"""Model-agnostic meta-learning (Finn et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fsmer.backbones import Backbone
from fsmer.backbones.adaptation import Adaptation
from fsmer.meta.algorithm import Algorithm, Learner, accuracy, query_loss, register_algorithm
from fsmer.meta.tasks import TaskBatch
from fsmer.training.inner_loop import BATCH_NORM, HEAD, Adapted, adaptable, inner_loop
from fsmer.transfer.source_model import require

__all__ = ["MAML", "InnerLoopTraining"]


@dataclass(frozen=True)
class InnerLoopTraining(Algorithm):
    """What all algorithms share that train the weights from which a few gradient steps on the support lead far.

    Parameters
    ----------
    inner_steps : int
        Gradient steps on the support.
    inner_rate : float
        Their learning rate.
    shared_head : bool
        One first row of the classifier for all classes (Ye and Chao 2022), so that the model serves any number of them.
        The papers have a row a class.
    batch_norm : {"task", "inherited"}
        Statistics of batch normalisation: those of the support, by which queries are normalised too, or those of the
        backbone, which are of no use in fresh weights. The published code takes those of the queries, so that the
        answer to one depends on the others.
    """

    inner_steps: int = 5
    inner_rate: float = 0.01
    shared_head: bool = False
    batch_norm: str = "task"

    second_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(0 <= self.inner_steps <= 1000, f"inner_steps={self.inner_steps}: give a number from 0 to 1,000.")
        require(0 < self.inner_rate <= 100, f"inner_rate={self.inner_rate}: give a number above 0, at most 100.")
        require(self.batch_norm in BATCH_NORM, f"batch_norm={self.batch_norm!r}: give one of {', '.join(BATCH_NORM)}.")

    def begin(self, backbone: Backbone, way: int) -> dict[str, Tensor]:
        rows = 1 if self.shared_head else way
        # As torch initialises a linear layer, so that a step reaches the backbone too.
        bound = backbone.embed_dim**-0.5
        generator = torch.Generator().manual_seed(0)
        weight = (2 * torch.rand(rows, backbone.embed_dim, generator=generator) - 1) * bound
        return {"weight": weight, "bias": torch.zeros(rows)}

    def adapted(self, learner: Learner, tasks: TaskBatch, number: int, *, training: bool) -> Adapted:
        """The weights after the inner loop of one task."""
        one = tasks.task(number).mapped(lambda value: value[0])
        weights: dict[str, Tensor] = dict(adaptable(learner.backbone, upper=learner.upper))
        weights |= dict(zip(HEAD, self.first_head(learner, tasks.way), strict=True))
        return inner_loop(
            learner.backbone,
            weights,
            one.support,
            one.support_codes,
            steps=self.inner_steps,
            rates=self.inner_rates(learner, weights),
            second_order=training and self.second_order,
            statistics=self.batch_norm,
        )

    def first_head(self, learner: Learner, way: int) -> tuple[Tensor, Tensor]:
        """Weight (C, D) and bias (C,) before the first step."""
        weight, bias = learner.learned["weight"], learner.learned["bias"]
        return weight.expand(way, -1), bias.expand(way)

    def inner_rates(self, learner: Learner, weights: Mapping[str, Tensor]) -> float | dict[str, Tensor]:
        """Learning rates of the steps."""
        return self.inner_rate

    def answers(self, learner: Learner, tasks: TaskBatch, *, training: bool) -> Tensor:
        found = []
        for number in range(len(tasks)):
            with torch.enable_grad():
                adapted = self.adapted(learner, tasks, number, training=training)
            found.append(adapted.logits(learner.backbone, tasks.task(number).mapped(lambda value: value[0]).query))
        return torch.stack(found)

    def step(self, learner: Learner, tasks: TaskBatch) -> dict[str, float]:
        """One task after the other, so that memory holds the steps of one."""
        loss_sum, right = 0.0, 0.0
        for number in range(len(tasks)):
            one = tasks.task(number)
            logits = self.answers(learner, one, training=True)
            loss = query_loss(logits, one.query_codes)
            (loss / len(tasks)).backward()
            loss_sum += float(loss.detach())
            right += accuracy(logits, one.query_codes)
        return {"loss": loss_sum / len(tasks), "accuracy": right / len(tasks)}

    def adaptation(self, learner: Learner) -> Adaptation:
        params: dict[str, Any] = {"steps": self.inner_steps, "learning_rate": self.inner_rate}
        params |= {"layers": "upper" if learner.upper else "all", "batch_norm": self.batch_norm}
        return Adaptation(self.name, "inner_loop", params, self.learned_tensors(dict(learner.learned.items())))

    def learned_tensors(self, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `fsmer.transfer.inner_loop` finds again."""
        return {HEAD[0]: learned["weight"], HEAD[1]: learned["bias"]}


@register_algorithm("maml")
@dataclass(frozen=True)
class MAML(InnerLoopTraining):
    """Train the weights from which a few gradient steps on the support lead far (Finn et al. 2017, Algorithm 1).

    The gradient goes through the steps themselves (second order). Defaults of the paper for MiniImagenet: 5 steps of
    0.01, outer Adam at 1e-3.
    """

    second_order: ClassVar[bool] = True
