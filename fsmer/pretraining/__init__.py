"""How weights are made: functions ``pretrain(out, *, seed, steps, resume, progress)``, one a backbone.

Those that teach themselves also take ``frames``, a tree of recordings, ``params`` of the recipe and ``arguments`` of
the backbone, see `fsmer.pretraining.self_supervised`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from fsmer.errors import FsmerError, UnknownNameError, unknown_name

__all__ = ["PRETRAINERS", "load_pretrainer"]
__dir__ = __all__.copy  # tab completion shows public names only

# Backbone name -> "module:function". Modules are imported when asked for.
PRETRAINERS: dict[str, str] = {
    "facs-flow": "fsmer.pretraining.facs_flow:pretrain_facs_flow",
    "mubert_small": "fsmer.pretraining.self_supervised:pretrain_mubert_small",
    "mubert_tiny": "fsmer.pretraining.self_supervised:pretrain_mubert_tiny",
    "tcae": "fsmer.pretraining.self_supervised:pretrain_tcae",
}


def load_pretrainer(name: str) -> Callable[..., Path]:
    """The function that makes the weights of backbone `name`.

    Raises
    ------
    UnknownNameError
        No such backbone; the nearest of those that have one are suggested.
    FsmerError
        The backbone learns from labels alone.
    """
    if name not in PRETRAINERS:
        from fsmer.backbones.registry import backbone_class

        try:
            backbone_class(name)
        except UnknownNameError:
            raise unknown_name("model with a pretraining recipe", name, PRETRAINERS) from None
        raise FsmerError(
            f"{name!r} does not teach itself: train it with labels ('fsmer train {name}'), or pretrain one of "
            f"{', '.join(sorted(PRETRAINERS))}."
        )
    module, function = PRETRAINERS[name].split(":")
    found: Callable[..., Path] = getattr(import_module(module), function)
    return found
