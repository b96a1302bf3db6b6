"""Fine-tuning with a linear head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsmer.backbones import ClassDirections
from fsmer.training.fine_tuning import Classifier
from fsmer.transfer.fine_tuning import FineTuning
from fsmer.transfer.heads import Adam, Head, balanced_weights, batched_product, one_hot
from fsmer.transfer.registry import register_method
from fsmer.transfer.source_model import absent_bias

__all__ = ["Finetune"]


@register_method("finetune")
@dataclass(frozen=True)
class Finetune(FineTuning):
    """Linear classifier on the embedding, y = W^T e (MERAU eq. 5), trained by cross-entropy (eq. 8) and Adam.

    The weights start anew for the target's classes, as in the paper, from the uniform distribution of a fresh linear
    layer (the same for every episode). Its parameters are those of `FineTuning`.
    """

    batched: ClassVar[bool] = True

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None) -> Head:
        """All episodes' classifiers trained side by side, with the gradient of the cross-entropy written out."""
        del prior
        self._need_support(codes)
        members = one_hot(codes, way)
        shares = balanced_weights(members, balanced=self.balanced)[:, None]
        bias = absent_bias(codes, way)
        weight = self._initial(way, embeddings.shape[-1]).repeat(len(embeddings), 1, 1)
        adam, gradient = Adam(weight, self.learning_rate), torch.empty_like(weight)
        turned = embeddings.transpose(1, 2)
        logits = embeddings.new_empty(members.shape)
        for _ in range(self.steps):
            batched_product(weight, turned, out=logits).add_(bias[..., None])
            slopes = torch.softmax(logits, dim=1).sub_(members).mul_(shares)
            adam.step(batched_product(slopes, embeddings, out=gradient))
        return Head("linear", weight, bias)

    def start(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None) -> Classifier:
        """Fresh weights; a class without support stays out."""
        del prior
        return Classifier(self._initial(way, embeddings.shape[-1]), absent_bias(codes[None], way)[0])

    def _initial(self, way: int, width: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return (2 * torch.rand(way, width, generator=generator) - 1) / math.sqrt(width)
