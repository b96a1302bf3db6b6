"""First-order model-agnostic meta-learning (Finn et al. 2017, section 5.2)."""

from __future__ import annotations

from dataclasses import dataclass

from fsmer.meta.algorithm import register_algorithm
from fsmer.meta.maml import InnerLoopTraining

__all__ = ["FirstOrderMAML"]


@register_algorithm("fomaml")
@dataclass(frozen=True)
class FirstOrderMAML(InnerLoopTraining):
    """As `maml`, but the gradients of the steps count as constants (Finn et al. 2017, section 5.2)."""
