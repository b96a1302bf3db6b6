"""The backbone's own knowledge of the classes, without any labelled clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from fsmer.backbones import Backbone, ClassDirections
from fsmer.errors import SupportError
from fsmer.transfer.cosine_head import Cosine
from fsmer.transfer.heads import Head, prior_head
from fsmer.transfer.method import Method
from fsmer.transfer.registry import register_method
from fsmer.transfer.source_model import Progress, SourceModel

if TYPE_CHECKING:
    from fsmer.data import ClipSet

__all__ = ["ZeroShot"]


@register_method("zero_shot")
@dataclass(frozen=True)
class ZeroShot(Method):
    """Class directions that the backbone learnt in pretraining, used as they are.

    The support set is not read. After a source domain it is the source's cosine classifier used directly on the target.
    """

    batched: ClassVar[bool] = True

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
        return Cosine().train_source(backbone, source, progress=progress)
