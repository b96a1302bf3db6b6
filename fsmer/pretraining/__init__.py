"""How weights are made: functions ``pretrain(out, *, seed, steps, resume, progress)``, one a backbone.

Those that train without labels also take ``frames``, a tree of recordings, see `fsmer.pretraining.self_supervised`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from fsmer.errors import unknown_name

__all__ = ["PRETRAINERS", "load_pretrainer"]

# Backbone name -> "module:function". Modules are imported when asked for.
PRETRAINERS: dict[str, str] = {
    "facs-flow": "fsmer.pretraining.facs_flow:pretrain_facs_flow",
    "mubert_small": "fsmer.pretraining.self_supervised:pretrain_mubert_small",
    "mubert_tiny": "fsmer.pretraining.self_supervised:pretrain_mubert_tiny",
    "tcae": "fsmer.pretraining.self_supervised:pretrain_tcae",
}


def load_pretrainer(name: str) -> Callable[..., Path]:
    """The function that makes the weights of backbone `name`; an unknown name raises `UnknownNameError`."""
    if name not in PRETRAINERS:
        raise unknown_name("model with a pretraining recipe", name, PRETRAINERS)
    module, function = PRETRAINERS[name].split(":")
    found: Callable[..., Path] = getattr(import_module(module), function)
    return found
