"""Where learning starts: one backbone for all seeds, or fresh weights for each seed."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fsmer.backbones import Backbone, as_backbone, load_model, model_hash
from fsmer.backbones.base import CONFIG_FILE, as_device
from fsmer.backbones.registry import backbone_class, fresh_model, refuse_arguments
from fsmer.errors import UnknownNameError, WeightsError
from fsmer.resources import resource_folder
from fsmer.transfer import Method

__all__ = ["InitialWeights"]


@dataclass(frozen=True)
class InitialWeights:
    """Where learning starts: one backbone for all seeds, or fresh weights by seed."""

    given: Backbone | None  # None: fresh weights, of the backbone with this name and these arguments
    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # where fresh weights go

    @classmethod
    def of(
        cls,
        model: Backbone | InitialWeights | str | os.PathLike[str],
        method: Method,
        arguments: Mapping[str, Any] | None = None,
        device: str | torch.device | None = None,
    ) -> InitialWeights:
        """Load what `evaluate` was given as its model; errors as there."""
        if device is not None:
            where = as_device(device)
            start = cls.of(model, method, arguments)
            # The caller's own network stays where it is.
            given = None if start.given is None else copy.deepcopy(start.given).to(where)
            return replace(start, given=given, device=where)
        if isinstance(model, InitialWeights):
            if arguments:
                raise WeightsError(
                    f"{', '.join(arguments)} came with initial weights, which have arguments of their own; make them "
                    "with these (InitialWeights.of)."
                )
            return model
        if not isinstance(model, (str, os.PathLike)):
            refuse_arguments(as_backbone(model), arguments, "a backbone")
            return cls(model)
        name = os.fspath(model)
        try:
            backbone_class(name)
        except UnknownNameError:
            # A folder or a repository; anything else is refused by name.
            backbone = load_model(name)
            refuse_arguments(backbone, arguments, f"the weights in {name}")
            return cls(backbone)
        if not arguments and (resource_folder("pretrained") / name / CONFIG_FILE).is_file():
            return cls(load_model(name))
        if method.keeps_backbone:
            raise WeightsError(
                f"no weights of {name!r} are there to start from, and the method {method.name!r} would judge random "
                "ones, since it keeps the network as it is; train it (--method train, or --train-backbone with a "
                "fine-tuning method) or give a folder of weights."
            )
        return cls(None, name, dict(arguments or {}))

    def backbone(self, seed: int) -> Backbone:
        if self.given is not None:
            return self.given
        return fresh_model(self.name, seed, dict(self.arguments)).eval().to(self.device)

    def describe(self) -> str:
        weights = () if self.given is None else self.given.parameters()
        device = next((one.device for one in weights), self.device)
        # The arithmetic of another device gives other digits.
        where = "" if device.type == "cpu" else f" on {device.type}"
        if self.given is not None:
            return f"{self.given.name} with weights {model_hash(self.given)}{where}"
        made = f" and {json.dumps(dict(self.arguments), sort_keys=True, default=str)}" if self.arguments else ""
        return f"{self.name} with fresh weights{made}{where}"
