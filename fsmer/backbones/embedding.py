"""Clips or arrays through a backbone, in batches, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsmer.backbones.base import Backbone
from fsmer.errors import MediaError, SpecMismatchError

__all__ = ["check_inputs", "embed"]


def embed(
    backbone: Backbone,
    clips: Any,
    *,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Embeddings of `clips`, float32 of shape (N, embed_dim), on the CPU.

    Parameters
    ----------
    backbone : Backbone
        Used in evaluation mode; its training mode is restored afterwards.
    clips : ClipSet or array of shape (N, \\*input_spec.shape)
        A clip set's media is read batch by batch, so memory stays bounded.
    batch_size : int
        Clips a forward pass.
    progress : callable, optional
        Called with (clips done, clips in all) after each batch.

    Raises
    ------
    SpecMismatchError
        The clips' media is not what the backbone eats.
    MediaError
        An array has values that are not finite, or a clip's media cannot be read.
    """
    spec = backbone.input_spec
    if hasattr(clips, "specs"):
        if spec.kind not in clips.specs:
            held = ", ".join(held.describe() for held in clips.specs.values()) or "no media"
            raise SpecMismatchError(
                f"the clips hold {held}, but {backbone.name!r} eats {spec.describe()}; prepare that media."
            )
        clips.specs[spec.kind].check_feeds(spec, who=repr(backbone.name))
        total = len(clips)

        def read(start: int, stop: int) -> np.ndarray:
            return np.asarray(clips.read(spec.kind, np.arange(start, stop)))
    else:
        array = check_inputs(backbone, clips)
        total = len(array)

        def read(start: int, stop: int) -> np.ndarray:
            return array[start:stop]

    device = next((parameter.device for parameter in backbone.parameters()), torch.device("cpu"))
    was_training = backbone.training
    if was_training:
        backbone.eval()
    parts = []
    try:
        with torch.inference_mode():
            for start in range(0, total, batch_size):
                stop = min(start + batch_size, total)
                inputs = torch.from_numpy(np.ascontiguousarray(read(start, stop), dtype=np.float32)).to(device)
                parts.append(backbone(inputs).float().cpu())
                if progress is not None:
                    progress(stop, total)
    finally:
        if was_training:
            backbone.train()
    # Cloned outside inference mode: heads are fitted on embeddings, and autograd refuses inference tensors.
    return torch.cat(parts).clone() if parts else torch.zeros(0, backbone.embed_dim)


def check_inputs(backbone: Backbone, values: Any) -> np.ndarray:
    """Plain arrays as float32 of shape (N, \\*input_spec.shape), or an error that names both shapes."""
    spec = backbone.input_spec
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise SpecMismatchError(
            f"clips are needed as a ClipSet or as one array of numbers, shape (N, {', '.join(map(str, spec.shape))}), "
            f"not as {type(values).__name__} ({error})."
        ) from error
    if array.ndim == len(spec.shape) and array.shape == spec.shape:
        array = array[None]
    if array.shape[1:] != spec.shape:
        raise SpecMismatchError(
            f"the array has shape {array.shape}, but {backbone.name!r} eats {spec.describe()}, "
            f"shape (N, {', '.join(map(str, spec.shape))}); prepare the clips with that recipe."
        )
    broken = ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    if broken.any():
        raise MediaError(
            f"clip number {int(np.flatnonzero(broken)[0])} of the array has values that are not finite; "
            "remove or repair it."
        )
    return array
