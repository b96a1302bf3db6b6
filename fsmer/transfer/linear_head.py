"""Linear heads: one that is fine-tuned, and the logistic regression of scikit-learn as a plain reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fsmer.backbones import ClassDirections
from fsmer.training.fine_tuning import Classifier
from fsmer.transfer.fine_tuning import FineTuning
from fsmer.transfer.heads import Adam, Head, balanced_weights, batched_product, one_hot
from fsmer.transfer.method import Method
from fsmer.transfer.registry import register_method
from fsmer.transfer.source_model import absent_bias, require

__all__ = ["Finetune", "Logistic"]


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
        return Classifier(self._initial(way, embeddings.shape[-1]), absent_bias(codes[None], way)[0])

    def _initial(self, way: int, width: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return (2 * torch.rand(way, width, generator=generator) - 1) / math.sqrt(width)


@register_method("logistic")
@dataclass(frozen=True)
class Logistic(Method):
    """Multinomial logistic regression on embeddings standardised by the support's own mean and deviation.

    Parameters
    ----------
    C : float
        Inverse strength of the L2 penalty, as in scikit-learn. The default is the best of 0.003, 0.01, 0.03, 0.1 and 1
        by leave-one-subject-out on the synthetic domains clinic and field.
    balanced : bool
        Weigh classes alike whatever their number of clips.
    max_iter : int
        Limit of solver iterations.
    """

    batched: ClassVar[bool] = True

    C: float = 0.01
    balanced: bool = True
    max_iter: int = 1000

    def __post_init__(self) -> None:
        require(self.C > 0, f"C={self.C} is not positive; give a value above 0 (smaller means a stronger penalty).")
        require(self.max_iter > 0, f"max_iter={self.max_iter} is not positive; give at least one iteration.")

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None) -> Head:
        """One regression an episode, its standardisation folded into weight and bias."""
        self._need_support(codes)
        episodes, _, width = embeddings.shape
        weight = torch.zeros(episodes, way, width)
        bias = torch.full((episodes, way), float("-inf"))
        for episode, (values, labels) in enumerate(zip(embeddings.double().numpy(), codes.numpy(), strict=True)):
            kept = labels >= 0
            present, rows, offsets = self._fit_one(values[kept], labels[kept])
            weight[episode, present] = torch.from_numpy(rows).float()
            bias[episode, present] = torch.from_numpy(offsets).float()
        return Head("linear", weight, bias)

    def _fit_one(self, values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        from sklearn.linear_model import LogisticRegression

        present = np.unique(labels)
        if len(present) == 1:
            return present, np.zeros((1, values.shape[1])), np.zeros(1)
        mean, deviation = values.mean(axis=0), values.std(axis=0)
        deviation[deviation == 0] = 1.0
        model = LogisticRegression(C=self.C, class_weight="balanced" if self.balanced else None, max_iter=self.max_iter)
        model.fit((values - mean) / deviation, labels)
        rows, offsets = model.coef_ / deviation, model.intercept_
        if len(present) == 2:
            # Two classes come as one row, the log odds of the second.
            rows, offsets = np.vstack([np.zeros_like(rows), rows]), np.append(0.0, offsets)
        return present, rows, offsets - rows @ mean
