"""The backbone's own knowledge of the classes, without any labelled clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fsmer.backbones import Backbone, ClassDirections
from fsmer.errors import SupportError
from fsmer.transfer.heads import Head
from fsmer.transfer.method import Method, Progress, SourceModel

if TYPE_CHECKING:
    from fsmer.data import ClipSet

__all__ = ["ZeroShot"]


@dataclass(frozen=True)
class ZeroShot(Method):
    """Class directions that the backbone learnt in pretraining, used as they are.

    The support set is not read. After a source domain it is the source's cosine classifier used directly on the target.
    """

    name: ClassVar[str] = "zero_shot"

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None) -> Head:
        """The prior as a head; a class that it does not know scores as the mean of those that it knows."""
        del codes
        if prior is None or not bool(prior.known.any(dim=-1).all()):
            raise SupportError(
                f"the method {self.name!r} needs a backbone that knows the classes without labels, but this one knows "
                "none of them; use a method that learns from labelled clips, or class names that the backbone knows "
                "(such as negative, positive, surprise)."
            )
        weight, bias = prior_head(prior, len(embeddings), way)
        return Head("cosine", weight, bias, prior.centre[None])

    def train_source(
        self, backbone: Backbone | SourceModel, source: ClipSet, *, progress: Progress | None = None
    ) -> SourceModel:
        """Fit a cosine classifier to the source, to be used directly on the classes that both domains name alike."""
        from fsmer.transfer.cosine_head import Cosine

        return Cosine().train_source(backbone, source, progress=progress)


def prior_head(prior: ClassDirections, episodes: int, way: int) -> tuple[Tensor, Tensor]:
    """Weight (E, C, D) and bias (E, C) of a cosine head that scores as ``prior.logits`` does."""
    known = prior.known.expand(episodes, way)
    share = known.float() / known.sum(dim=-1, keepdim=True).clamp_min(1)
    weight = (prior.scale * F.normalize(prior.weight, dim=-1)).expand(episodes, -1, -1)
    bias = prior.bias.expand(episodes, way)
    mean_weight = torch.einsum("ec,ecd->ed", share, weight)[:, None]
    mean_bias = (share * bias).sum(dim=-1, keepdim=True)
    return torch.where(known[..., None], weight, mean_weight), torch.where(known, bias, mean_bias)
