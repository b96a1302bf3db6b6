"""SimpleShot: the nearest class mean of centred embeddings of unit length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from fsmer.backbones import ClassDirections
from fsmer.data import ClipSet
from fsmer.transfer.heads import Head, base_centre, class_means, one_hot
from fsmer.transfer.method import Method
from fsmer.transfer.registry import register_method
from fsmer.transfer.source_model import Progress, SourceModel, absent_bias, centred_on, require

__all__ = ["SimpleShot"]


@register_method("simpleshot")
@dataclass(frozen=True)
class SimpleShot(Method):
    """Nearest class mean of embeddings that are centred and scaled to unit length (Wang et al. 2019).

    The paper's CL2N: the mean of the base classes is subtracted, then every embedding is divided by its length. The
    centre is the backbone's own where it knows one of the classes, or the mean of the source's embeddings after a
    source domain. Where neither is known it is the mean of the support's class means, which the paper has not.

    The logit of a class is the scaled cosine between a clip and the class mean, as in easyfsl. The paper takes the
    Euclidean distance, which differs by the length of the class mean; with one clip a class both are the same.

    Parameters
    ----------
    scale : float
        Factor on the cosine before the softmax; without effect on predictions.
    """

    batched: ClassVar[bool] = True

    scale: float = 10.0

    def __post_init__(self) -> None:
        require(self.scale > 0, f"scale={self.scale} is not positive; give a factor above 0.")

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None) -> Head:
        """Class means as one head an episode; a class without support gets probability 0."""
        self._need_support(codes)
        members = one_hot(codes, way)
        centre = base_centre(embeddings, members, prior)
        means, _ = class_means(F.normalize(embeddings - centre[:, None], dim=-1), members)
        return Head("cosine", self.scale * F.normalize(means, dim=-1), absent_bias(codes, way), centre)

    def _learn_source(self, model: SourceModel, source: ClipSet, progress: Progress | None) -> SourceModel:
        return centred_on(model, source)
