"""How weights are made: one file a backbone, each a function ``pretrain(out, *, seed, steps, resume, progress)``."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from fsmer.errors import unknown_name

__all__ = ["PRETRAINERS", "load_pretrainer"]

# Backbone name -> "module:function". Modules are imported when asked for.
PRETRAINERS: dict[str, str] = {"facs-flow": "fsmer.pretraining.facs_flow:pretrain_facs_flow"}


def load_pretrainer(name: str) -> Callable[..., Path]:
    """The function that makes the weights of backbone `name`; an unknown name raises `UnknownNameError`."""
    if name not in PRETRAINERS:
        raise unknown_name("model with a pretraining recipe", name, PRETRAINERS)
    module, function = PRETRAINERS[name].split(":")
    found: Callable[..., Path] = getattr(import_module(module), function)
    return found
