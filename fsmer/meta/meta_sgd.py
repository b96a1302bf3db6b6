"""Meta-SGD (Li et al. 2017)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsmer.backbones import Backbone
from fsmer.backbones.adaptation import DOT
from fsmer.meta.algorithm import Learner, register_algorithm
from fsmer.meta.maml import InnerLoopTraining
from fsmer.training.inner_loop import HEAD, adaptable
from fsmer.transfer.inner_loop import RATE

__all__ = ["MetaSGD"]


@register_algorithm("meta_sgd")
@dataclass(frozen=True)
class MetaSGD(InnerLoopTraining):
    """As `maml`, but every weight has a learning rate of its own, which is learned (Li et al. 2017, Algorithm 1).

    One step, as in the paper; `inner_rate` is where all rates begin (the paper draws them from 0.005 to 0.1). A rate
    may become negative.
    """

    inner_steps: int = 1

    second_order: ClassVar[bool] = True

    def begin(self, backbone: Backbone, way: int) -> dict[str, Tensor]:
        head = super().begin(backbone, way)
        changed: dict[str, Tensor] = dict(adaptable(backbone, upper=False))
        changed |= dict(zip(HEAD, (head["weight"], head["bias"]), strict=True))
        rates = {f"{RATE}{name}": torch.full(value.shape, self.inner_rate) for name, value in changed.items()}
        return head | {name.replace(".", DOT): value for name, value in rates.items()}

    def inner_rates(self, learner: Learner, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: learner.learned[f"{RATE}{name}".replace(".", DOT)].expand_as(value) for name, value in weights.items()
        }

    def learned_tensors(self, learned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rates = {name.replace(DOT, "."): value for name, value in learned.items()}
        return super().learned_tensors(learned) | {name: one for name, one in rates.items() if name.startswith(RATE)}
