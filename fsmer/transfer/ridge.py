"""Ridge regression on one-hot labels: the head of R2-D2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsmer.backbones import ClassDirections
from fsmer.training.ridge import ridge_weights
from fsmer.transfer.heads import Head, one_hot
from fsmer.transfer.method import Method
from fsmer.transfer.registry import register_method
from fsmer.transfer.source_model import absent_bias, require

__all__ = ["Ridge"]


@register_method("ridge")
@dataclass(frozen=True)
class Ridge(Method):
    """Linear classifier by ridge regression on one-hot labels, in closed form (R2-D2, Bertinetto et al. 2019).

    A column of ones joins the embeddings, and its weights are penalised like the others. The paper learns the
    penalty, a scale and a bias of the answers in episodic training; its bias is the same for all classes and cancels
    in the softmax, so it is left out.

    Parameters
    ----------
    penalty : float
        λ of eq. 4, above 0; the default is where the authors' training starts.
    scale : float
        α of eq. 7, factor on the answers before the softmax; without effect on predictions. The regression answers
        near 0 and 1, so small scales give nearly even probabilities.
    """

    batched: ClassVar[bool] = True

    penalty: float = 1.0
    scale: float = 10.0

    def __post_init__(self) -> None:
        for name in ("penalty", "scale"):
            value = getattr(self, name)
            require(0 < value < float("inf"), f"{name}={value} is out of range; give a finite number above 0.")

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None) -> Head:
        """All episodes' regressions solved together; a class without support gets probability 0."""
        self._need_support(codes)
        # A system of clips that lie close together is solved in double precision; padding becomes rows of zeros.
        given = (codes >= 0)[..., None]
        values = torch.cat([embeddings, torch.ones_like(embeddings[..., :1])], dim=-1).double()
        targets = one_hot(codes, way).transpose(1, 2).double()
        found = ridge_weights(torch.where(given, values, 0.0), targets, self.penalty)
        found = (self.scale * found).float().transpose(1, 2)
        return Head("linear", found[..., :-1].contiguous(), found[..., -1] + absent_bias(codes, way))
