"""What episodic training has taught a backbone about being adapted: a method, its parameters and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from typing_extensions import TypedDict

__all__ = ["PREFIX", "Adaptation", "AdaptationConfig"]

# Of its tensors' names in those of a backbone.
PREFIX = "adaptation."
# Names of tensors may hold dots, names of buffers may not.
DOT = "/"


class AdaptationConfig(TypedDict):
    """What ``config.json`` says of it."""

    algorithm: str
    method: str
    params: dict[str, Any]


class Adaptation(nn.Module):
    """How a backbone that was trained on episodes is adapted to a support set.

    It is a part of the backbone, ``Backbone.adaptation``, so that it is copied, saved and loaded with the weights.

    Parameters
    ----------
    algorithm : str
        The algorithm that trained it (see `fsmer.meta_train`).
    method : str
        Name of the method that `fsmer.adapt` then takes by default.
    params : mapping of str to object
        Parameters of that method: plain values.
    tensors : mapping of str to Tensor
        What was learned beside the weights, such as a first classifier or learning rates.
    """

    def __init__(self, algorithm: str, method: str, params: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.algorithm = algorithm
        self.method = method
        self.params = dict(params)
        for name, value in tensors.items():
            self.register_buffer(name.replace(".", DOT), value.detach().clone())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {name.replace(DOT, "."): value for name, value in self.named_buffers()}

    def to_dict(self) -> AdaptationConfig:
        """Plain values for ``config.json``."""
        return {"algorithm": self.algorithm, "method": self.method, "params": self.params}
