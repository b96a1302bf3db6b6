"""Prototypical networks: the nearest class mean in embedding space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fsmer.backbones import ClassDirections
from fsmer.transfer.heads import Head, class_means, one_hot
from fsmer.transfer.method import Method
from fsmer.transfer.registry import register_method
from fsmer.transfer.source_model import absent_bias, require

__all__ = ["ProtoNet"]

# Up to this many clips all inner products fit in 64 MiB, and episodes become look-ups in that table.
_GRAM_CLIPS = 4096


@register_method("protonet_cosine", distance="cosine")
@register_method("protonet")
@dataclass(frozen=True)
class ProtoNet(Method):
    """Nearest prototype (MERAU eq. 9; Snell et al. 2017).

    The prototype of a class is the mean of its support embeddings; the logit of a class is minus the squared Euclidean
    distance to its prototype, or the scaled cosine between the two.

    Parameters
    ----------
    distance : {"euclidean", "cosine"}
        ``"cosine"`` is registered as ``protonet_cosine`` too.
    scale : float
        Factor on the cosine before the softmax; without effect on predictions.

    Examples
    --------
    >>> import torch
    >>> embeddings = torch.tensor([[[0.0, 0.0], [2.0, 0.0], [5.0, 5.0]]])
    >>> head = ProtoNet().fit_head(embeddings, torch.tensor([[0, 0, 1]]), way=2)
    >>> head.logits(torch.tensor([[1.0, 1.0]])).tolist()
    [[[-1.0, -32.0]]]
    """

    batched: ClassVar[bool] = True

    distance: str = "euclidean"
    scale: float = 10.0

    def __post_init__(self) -> None:
        self._require_choice("distance", "euclidean", "cosine")
        require(self.scale > 0, f"scale={self.scale} is not positive; give a factor above 0.")

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None) -> Head:
        """Prototypes as one head an episode; a class without support gets probability 0."""
        self._need_support(codes)
        prototypes, _ = class_means(embeddings, one_hot(codes, way))
        if self.distance == "euclidean":
            return Head("distance", prototypes, absent_bias(codes, way))
        return Head("cosine", self.scale * F.normalize(prototypes, dim=-1), absent_bias(codes, way))

    def _scorer(
        self, embeddings: Tensor, support: Tensor, codes: Tensor, query: Tensor | None, *, way: int
    ) -> Callable[[slice, ClassDirections | None], Tensor]:
        # The table costs N products a clip, the direct way one product for each prototype of each episode.
        worth = len(embeddings) <= min(_GRAM_CLIPS, 2 * len(support) * way)
        order = _by_class(codes, way) if self.distance == "euclidean" and worth else None
        if order is None:
            return super()._scorer(embeddings, support, codes, query, way=way)
        # ||q - c||^2 = q.q - 2 q.c + c.c, and c is a mean of clips: every term is a mean of inner products between
        # clips, which one matrix product gives for all episodes. The origin is moved to keep the sum accurate in
        # float32.
        centred = embeddings - embeddings.mean(dim=0)
        products = centred @ centred.T
        lengths = products.diagonal()
        members = support.gather(1, order).unflatten(1, (way, -1))

        def score(part: slice, prior: ClassDirections | None) -> Tensor:
            rows = members[part]
            episodes, _, shots = rows.shape
            means = F.embedding_bag(rows.reshape(-1, shots), products, mode="mean").unflatten(0, (episodes, way))
            own = means.gather(2, rows).mean(dim=2)
            if query is not None:
                asked = query[part]
                means = means.gather(2, asked[:, None].expand(-1, way, -1))
            squared = lengths if query is None else lengths[asked][:, None]
            # In memory as it is read, class by class: softmax and argmax of a turned view are ten times slower.
            return (2 * means - own[..., None] - squared).clamp_max_(0).transpose(1, 2).contiguous()

        return score


def _by_class(codes: Tensor, way: int) -> Tensor | None:
    """Order that puts each episode's support class by class, if all classes of all episodes have equally many clips."""
    episodes, shots = codes.shape
    if episodes == 0 or shots == 0 or shots % way:
        return None
    ordered, order = torch.sort(codes, dim=1, stable=True)
    wanted = torch.arange(way, device=codes.device).repeat_interleave(shots // way)
    return order if bool((ordered == wanted).all()) else None
