"""What transductive methods share: heads that answer all query clips of an episode together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fsmer.backbones import ClassDirections
from fsmer.data import ClipSet
from fsmer.errors import DataError
from fsmer.transfer.heads import FittedHead, base_centre, one_hot
from fsmer.transfer.method import Method
from fsmer.transfer.source_model import Progress, SourceModel, centred_on

__all__ = ["Transductive", "TransductiveHead"]


@dataclass(frozen=True)
class TransductiveHead(FittedHead):
    """Supports of E episodes, kept until their queries come.

    Parameters
    ----------
    method : Transductive
        Answers the queries of every episode together.
    support : Tensor of shape (E, S, D)
        Embeddings as `method` prepares them.
    members : Tensor of shape (E, C, S)
        Which clips are of which class, see `one_hot`.
    centre : Tensor of shape (E, D) or (1, D), optional
        Subtracted from queries.
    """

    method: Transductive
    support: Tensor
    members: Tensor
    centre: Tensor | None
    kind: str = "transductive"

    def __len__(self) -> int:
        return len(self.support)

    def logits(self, queries: Tensor) -> Tensor:
        """Class scores of shape (E, Q, C); the answer to one query depends on all others of its episode.

        Raises `DataError` for a single query.
        """
        if queries.shape[-2] == 1:
            raise DataError(
                f"the method {self.method.name!r} compares query clips with each other, but only one was given; give "
                "all clips in one call (at least 2), or use a method that answers each by itself, such as 'simpleshot'."
            )
        asked = _units(queries if queries.ndim == 3 else queries[None], self.centre).expand(len(self), -1, -1)
        if asked.shape[1] == 0:
            return asked.new_zeros(len(self), 0, self.members.shape[1])
        return self.method.answers(self.support, self.members, asked)


@dataclass(frozen=True)
class Transductive(Method):
    """A method whose recognizers look at all query clips of a call together; it takes embeddings of unit length."""

    transductive: ClassVar[bool] = True
    saves_head: ClassVar[bool] = False

    @property
    def centres(self) -> bool:
        """Whether embeddings are centred before they are scaled to unit length."""
        return True

    @abstractmethod
    def answers(self, support: Tensor, members: Tensor, queries: Tensor) -> Tensor:
        """Logits (E, Q, C) of queries (E, Q, D) by the support (E, S, D) with its `members` (E, C, S)."""

    def fit_head(
        self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None
    ) -> TransductiveHead:
        """Supports as they are; fitting waits for the queries. A class without support gets probability 0."""
        self._need_support(codes)
        members = one_hot(codes, way)
        centre = base_centre(embeddings, members, prior) if self.centres else None
        # Padding counts for nothing, whatever stands there.
        support = _units(embeddings, centre) * (codes >= 0)[..., None]
        return TransductiveHead(self, support, members, centre)

    def _learn_source(self, model: SourceModel, source: ClipSet, progress: Progress | None) -> SourceModel:
        return centred_on(model, source) if self.centres else model

    def _scorer(
        self, embeddings: Tensor, support: Tensor, codes: Tensor, query: Tensor | None, *, way: int
    ) -> Callable[[slice, ClassDirections | None], Tensor]:
        def score(part: slice, prior: ClassDirections | None) -> Tensor:
            rows, learnt = support[part], codes[part]
            asked = _others(len(embeddings), rows, learnt) if query is None else query[part]
            lengths = (asked >= 0).sum(dim=1)
            found = embeddings.new_full((*asked.shape, way), torch.nan)
            # Episodes meet those with as many queries, so that padding is no query.
            for length in lengths.unique().tolist():
                alike = (lengths == length).nonzero()[:, 0]
                own = asked[alike]
                picked = own[own >= 0].view(len(alike), length)
                known = prior
                if prior is not None and prior.weight.ndim == 3:
                    known = replace(
                        prior, **{name: getattr(prior, name)[alike] for name in ("weight", "bias", "known")}
                    )
                head = self.fit_head(embeddings[rows[alike]], learnt[alike], way, known)
                logits = found[alike]
                logits[own >= 0] = head.logits(embeddings[picked]).flatten(0, 1)
                found[alike] = logits
            return found

        return score

    def _chunk_size(self, embeddings: Tensor, shots: int, query: Tensor | None, way: int) -> int:
        clips, width = embeddings.shape
        rows = shots + (clips if query is None else query.shape[1])
        return max(1, self._fit_bytes // (4 * width * (rows + 4 * way)))


def _others(clips: int, support: Tensor, codes: Tensor) -> Tensor:
    """Each episode's clips that are not in its support, (E, N); -1 in the places of those that are."""
    found = torch.arange(clips).repeat(len(support), 1)
    episode = torch.arange(len(support))[:, None].expand_as(support)
    found[episode[codes >= 0], support[codes >= 0]] = -1
    return found


def _units(embeddings: Tensor, centre: Tensor | None) -> Tensor:
    return F.normalize(embeddings if centre is None else embeddings - centre[:, None], dim=-1)
