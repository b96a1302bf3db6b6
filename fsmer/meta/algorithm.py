"""The contract that every meta-learning algorithm keeps: a network and a batch of tasks in, gradients out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from fsmer.backbones import Backbone
from fsmer.backbones.adaptation import Adaptation
from fsmer.listing import Listing
from fsmer.meta.tasks import TaskBatch
from fsmer.plugins import ALGORITHMS
from fsmer.training.inner_loop import HEAD
from fsmer.transfer.source_model import typed_params

__all__ = ["Algorithm", "Learner", "joined", "list_algorithms", "load_algorithm", "query_loss", "register_algorithm"]

# Class decorator that enters an algorithm under a name.
register_algorithm = ALGORITHMS.register


@dataclass
class Learner:
    """What is trained: a backbone, and what an algorithm learns beside its weights.

    Parameters
    ----------
    backbone : Backbone
    learned : ParameterDict
        Names without dots.
    upper : bool
        Whether tasks hold what the lower layers of the backbone make of media, which then stay as they are.
    """

    backbone: Backbone
    learned: nn.ParameterDict
    upper: bool = False

    @property
    def whole(self) -> nn.ModuleDict:
        """Both as one module."""
        return nn.ModuleDict({"backbone": self.backbone, "learned": self.learned})

    def parameter(self, name: str) -> nn.Parameter:
        """The parameter of the backbone, or of the first classifier, that the inner loop calls so."""
        return self.learned[name.removeprefix("head.")] if name in HEAD else self.backbone.get_parameter(name)

    def embed(self, inputs: Any) -> Tensor:
        """Embeddings (T, N, D) of media (T, N, ...), all in one pass."""
        leaf = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
        found: Tensor = self.backbone(tree_map(lambda value: value.flatten(0, 1), inputs))
        return found.unflatten(0, leaf.shape[:2])

    def embed_both(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """Embeddings of support and query, all in one pass; clips that several tasks have in common pass once, unless
        the network is in training mode, where what passes changes batch statistics."""
        if tasks.rows and not any(module.training for module in self.backbone.modules()):
            return self._embed_distinct(tasks)
        shots = tasks.support_codes.shape[1]
        both = joined(tasks.support, tasks.query)
        found = self.embed(both)
        return found[:, :shots], found[:, shots:]

    def _embed_distinct(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        support, query = tasks.rows
        rows = np.concatenate([support.numpy().ravel(), query.numpy().ravel()])
        _, first, places = np.unique(rows, return_index=True, return_inverse=True)
        device, split = tasks.support_codes.device, support.numel()
        # In the order of first occurrence, so that those of the support come first.
        order = np.argsort(first)
        picked, number = first[order], np.argsort(order)
        parts = [torch.from_numpy(one).to(device) for one in (picked[picked < split], picked[picked >= split] - split)]

        def chosen(one: Tensor, other: Tensor) -> Tensor:
            pairs = zip((one, other), parts, strict=True)
            return torch.cat([side.flatten(0, 1).index_select(0, index) for side, index in pairs])

        media = tree_map(chosen, tasks.support, tasks.query)
        found = self.backbone(media).index_select(0, torch.from_numpy(number[places.ravel()]).to(device))
        return found[:split].unflatten(0, support.shape), found[split:].unflatten(0, query.shape)


@dataclass(frozen=True)
class Algorithm(ABC):
    """Parameters of one way to train a backbone on tasks, so that it is quickly adapted to new ones.

    Subclasses are frozen dataclasses that write `answers` and `adaptation`. Those whose gradient is not that of the
    loss of all answers together write `step` too.

    Attributes
    ----------
    outer_rate : float
        Learning rate where none is asked for.
    optimizer : {"adam", "sgd"}
        Of the outer loop.
    trains_batch_norm : bool
        Whether, by default, batch normalisation takes the statistics of what passes in training, and the running
        averages afterwards, as in supervised training.
    """

    name: ClassVar[str] = ""
    outer_rate: ClassVar[float] = 1e-3
    optimizer: ClassVar[str] = "adam"
    trains_batch_norm: ClassVar[bool] = False

    def begin(self, backbone: Backbone, way: int) -> dict[str, Tensor]:
        """What is learned beside the weights, as it is before the first step, by names without dots."""
        return {}

    def rates(self, learning_rate: float | None) -> Mapping[str, float]:
        """Learning rates of the outer loop by a part of the parameters' names; ``""`` is that of all others."""
        return {"": self.outer_rate if learning_rate is None else learning_rate}

    def for_weights(self, *, untrained: bool) -> Self:
        """With the rates that random weights need, where they are `untrained`."""
        del untrained
        return self

    def rate_note(self, backbone: Backbone) -> str:
        """What is to be said of the rates of a backbone's random weights; mostly nothing."""
        del backbone
        return ""

    @abstractmethod
    def answers(self, learner: Learner, tasks: TaskBatch, *, training: bool) -> Tensor:
        """Logits (T, Q, C) of the queries; with `training` they are differentiated."""

    def step(self, learner: Learner, tasks: TaskBatch) -> dict[str, float]:
        """Leave the gradients of a batch of tasks in the parameters and return figures, ``"loss"`` among them."""
        logits = self.answers(learner, tasks, training=True)
        loss = query_loss(logits, tasks.query_codes)
        loss.backward()
        return {"loss": float(loss.detach()), "accuracy": accuracy(logits, tasks.query_codes)}

    @abstractmethod
    def adaptation(self, learner: Learner) -> Adaptation:
        """How a backbone that was trained like this is adapted."""

    def get_params(self) -> dict[str, Any]:
        """Parameters by name."""
        return asdict(self)

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Self:
        """With `params` in place of the defaults; text is read as the parameter's type.

        `UnknownNameError` for an unknown parameter, `MethodError` for a value that it cannot work with.
        """
        kinds = {one.name: str(one.type) for one in fields(cls)}
        return cls(**typed_params(params, kinds, f"the algorithm {cls.name!r}"))


def load_algorithm(algorithm: str | Algorithm, **params: Any) -> Algorithm:
    """An algorithm by name with `params` in place of its defaults, or one as it is.

    Parameters
    ----------
    algorithm : str or Algorithm
        A name of `list_algorithms`.
    **params : object
        Parameters.

    Returns
    -------
    Algorithm
        The algorithm.

    Raises
    ------
    UnknownNameError
        No such algorithm or parameter.
    MethodError
        A value that it cannot work with.

    Examples
    --------
    >>> from fsmer.meta import load_algorithm
    >>> load_algorithm("maml", inner_steps=3).inner_steps
    3
    """
    if isinstance(algorithm, Algorithm):
        return type(algorithm).from_params({**algorithm.get_params(), **params})
    cls: type[Algorithm] = ALGORITHMS.find(algorithm)
    found: Algorithm = cls.from_params({**ALGORITHMS.preset(algorithm), **params})
    return found


def list_algorithms() -> list[str]:
    """Names of the meta-learning algorithms.

    Returns
    -------
    list of str
        The names; shown in a notebook, a table with a line on each.

    Examples
    --------
    >>> import fsmer
    >>> fsmer.list_algorithms()
    ['anil', 'fomaml', 'maml', 'meta_sgd', 'metaoptnet', 'protonet', 'r2d2', 'reptile']
    """
    return Listing(sorted(ALGORITHMS), "algorithms", lambda name: {"algorithm": name, "what": ALGORITHMS.summary(name)})


def query_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """Mean cross-entropy over all queries; classes of probability 0 in a task count as they are."""
    return F.cross_entropy(logits.flatten(0, 1), codes.flatten(), ignore_index=-1)


def accuracy(logits: Tensor, codes: Tensor) -> float:
    """Share of queries whose most probable class is their own."""
    asked = codes >= 0
    right = (logits.detach().argmax(dim=-1) == codes) & asked
    return float(right.sum() / asked.sum().clamp_min(1))


def joined(one: Any, other: Any) -> Any:
    """Media or codes of two sides of the same tasks as one, (T, N + M, ...)."""
    if isinstance(one, dict):
        return {kind: torch.cat([one[kind], other[kind]], dim=1) for kind in one}
    return torch.cat([one, other], dim=1)
