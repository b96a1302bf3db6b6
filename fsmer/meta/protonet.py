"""Prototypical networks trained on episodes (MERAU Algorithm 1; Snell et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from fsmer.backbones import Backbone
from fsmer.backbones.adaptation import Adaptation
from fsmer.meta.algorithm import Algorithm, Learner, register_algorithm
from fsmer.meta.tasks import TaskBatch
from fsmer.transfer.fine_tuning import encoder_rate_note
from fsmer.transfer.heads import class_means, one_hot
from fsmer.transfer.source_model import absent_bias, require

__all__ = ["ProtoNetTraining"]


@register_algorithm("protonet")
@dataclass(frozen=True)
class ProtoNetTraining(Algorithm):
    """Queries are to be nearest to the mean of their class's support (MERAU Algorithm 1, eq. 9-10; Snell et al. 2017).

    The loss is the cross-entropy of a softmax over minus squared Euclidean distances. Equation 10 is printed with the
    signs of its distance and of its logarithm mixed up; what is meant is ``d(c_j, p) + log sum_k exp(-d(c_k, p))``.
    Algorithm 1 moves the weights after every single query; here a step takes all queries of its tasks together.

    Parameters
    ----------
    encoder_rate, projection_rate : float
        Learning rates: MERAU's Table 2, column ProtoNet (1e-5 and 1e-4), which are those of an encoder that was
        trained before. Layers whose name begins with ``projection`` are the projection layers.
    random_encoder_rate : float
        At least this is the encoder's rate while its weights are random (`Backbone.untrained`), as in the fine-tuning
        methods. Ours; 0 keeps Table 2's.
    """

    trains_batch_norm: ClassVar[bool] = True

    encoder_rate: float = 1e-5
    projection_rate: float = 1e-4
    random_encoder_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("encoder_rate", "projection_rate", "random_encoder_rate"):
            value = getattr(self, name)
            require(0 <= value <= 100, f"{name}={value}: give a number from 0 to 100.")

    def rates(self, learning_rate: float | None) -> Mapping[str, float]:
        if learning_rate is not None:
            return {"": learning_rate}
        return {"": self.encoder_rate, "projection": self.projection_rate}

    def for_weights(self, *, untrained: bool) -> Self:
        if not untrained or not self.encoder_rate:
            return self
        return replace(self, encoder_rate=max(self.encoder_rate, self.random_encoder_rate))

    def rate_note(self, backbone: Backbone) -> str:
        return encoder_rate_note(backbone, self.encoder_rate, self.random_encoder_rate)

    def answers(self, learner: Learner, tasks: TaskBatch, *, training: bool) -> Tensor:
        support, query = learner.embed_both(tasks)
        prototypes, _ = class_means(support, one_hot(tasks.support_codes, tasks.way))
        squared = (query[:, :, None] - prototypes[:, None]).square().sum(dim=-1)
        return absent_bias(tasks.support_codes, tasks.way)[:, None] - squared

    def adaptation(self, learner: Learner) -> Adaptation:
        return Adaptation(self.name, "protonet", {}, {})
