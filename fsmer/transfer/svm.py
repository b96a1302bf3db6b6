"""A linear support vector machine for all classes at once, on embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fsmer.backbones import ClassDirections
from fsmer.training.support_vectors import svm_weights
from fsmer.transfer.heads import Head, one_hot
from fsmer.transfer.method import Method
from fsmer.transfer.registry import register_method
from fsmer.transfer.source_model import absent_bias, require

__all__ = ["SupportVectors"]


@register_method("svm")
@dataclass(frozen=True)
class SupportVectors(Method):
    """Multi-class support vector machine of Crammer and Singer, without bias, as MetaOptNet has it (Lee et al. 2019).

    Parameters
    ----------
    weight : float
        C, the weight of errors; Lee et al. take 0.1.
    scale : float
        Factor on the scores before the softmax; without effect on predictions.

    Examples
    --------
    >>> import torch
    >>> embeddings = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])
    >>> head = SupportVectors().fit_head(embeddings, torch.tensor([[0, 1]]), way=2)
    >>> head.logits(torch.tensor([[1.0, 0.0]])).argmax().item()
    0
    """

    batched: ClassVar[bool] = True
    # The equations of a few episodes at a time: clips times classes, squared, in double precision.
    _fit_bytes: ClassVar[int] = 4 << 20

    weight: float = 0.1
    scale: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.weight <= 1e6, f"weight={self.weight} is out of range; give a number above 0, at most 1e6.")
        require(self.scale > 0, f"scale={self.scale} is not positive; give a factor above 0.")

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None) -> Head:
        """A linear classifier an episode; a class without support gets probability 0."""
        self._need_support(codes)
        weights = svm_weights(embeddings, one_hot(codes, way), self.weight)
        return Head("linear", self.scale * weights, absent_bias(codes, way))
