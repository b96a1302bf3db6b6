"""Clips or arrays through a backbone, in batches, once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fsmer.ambient import library_settings
from fsmer.arrays import as_float32, plain_array
from fsmer.backbones.base import Backbone, Inputs, check_weights
from fsmer.backbones.registry import as_backbone
from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, FsmerError, MediaError, SpecMismatchError
from fsmer.outside import outside_call, outside_value

__all__ = ["check_clips", "check_inputs", "embed", "mirror_media", "read_inputs"]

Arrays = dict[str, NDArray[np.float32]]

# Clips a forward pass: many small maps, few videos, so that memory stays bounded whatever a clip weighs.
MAX_BATCH = 256
BATCH_BYTES = 16 << 20


@library_settings()
def embed(
    backbone: Backbone | str | os.PathLike[str],
    clips: Any,
    *,
    batch_size: int | None = None,
    mirror: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Embeddings of `clips`, float32 of shape (N, embed_dim), on the CPU.

    Parameters
    ----------
    backbone : Backbone, str or path
        Or the name or folder of one. Used in evaluation mode; its training mode is restored afterwards.
    clips : ClipSet, array of shape (N, \\*spec.shape), or mapping of kind to such arrays
        A clip set's media is read batch by batch, so memory stays bounded. A mapping is for backbones that expect
        several media.
    batch_size : int, optional
        Clips a forward pass; default as many as 16 MiB of media hold, at most 256.
    mirror : bool, default False
        Of the mirrored clips instead, see `mirror_media`.
    progress : callable, optional
        Called with (clips done, clips in all) after each batch.

    Returns
    -------
    float32 Tensor of shape (N, embed_dim)
        One row a clip, on the CPU.

    Raises
    ------
    SpecMismatchError
        The clips' media is not what the backbone expects.
    MediaError
        An array has values that are not finite, a clip's media cannot be read, or its embedding is not finite.
    DataError
        The batch size is below 1.
    WeightsError
        The network's weights are not finite.

    Examples
    --------
    >>> import fsmer
    >>> fsmer.embed("facs-flow", fsmer.synthetic_clips(n=4)).shape
    torch.Size([4, 192])
    """
    backbone = as_backbone(backbone)
    if lacking := backbone.unprepared():
        warnings.warn(lacking, stacklevel=2)
    device = next((parameter.device for parameter in backbone.parameters()), torch.device("cpu"))
    arrays: Arrays = {}
    if hasattr(clips, "specs"):
        check_clips(backbone, clips)
        total = len(clips)
    else:
        arrays = check_inputs(backbone, clips)
        total = len(next(iter(arrays.values())))
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise DataError(f"batch_size={batch_size!r} is no number of clips; give 1 or a larger whole number, or None.")
    size = batch_size or batch_of(backbone)
    was_training = backbone.training
    if was_training:
        backbone.eval()
    parts = []
    try:
        with torch.inference_mode():
            for start in range(0, total, size):
                stop = min(start + size, total)
                if arrays:
                    inputs = _feed(backbone, {kind: array[start:stop] for kind, array in arrays.items()}, device)
                else:
                    inputs = read_inputs(backbone, clips, np.arange(start, stop), device)
                part = _embedded(backbone, _mirrored(backbone, inputs) if mirror else inputs)
                broken = ~torch.isfinite(part).all(dim=1)
                if broken.any():
                    raise _not_finite(backbone, clips, start + int(broken.nonzero()[0]))
                parts.append(part)
                if progress is not None:
                    progress(stop, total)
    finally:
        if was_training:
            backbone.train()
    # Cloned outside inference mode: heads are fitted on embeddings, and autograd refuses inference tensors.
    return torch.cat(parts).clone() if parts else torch.zeros(0, backbone.embed_dim)


def mirror_media(media: Tensor, spec: InputSpec) -> Tensor:
    """Media (B, \\*spec.shape) of the same movement on the mirrored face. Mirroring turns horizontal flow round: u
    becomes -u, or 1 - u where it is min-max normalised."""
    mirrored = media.flip(-1)
    if "u" not in spec.channels:
        return mirrored
    place = spec.channels.index("u")
    before, u, after = mirrored.split([place, 1, len(spec.channels) - place - 1], dim=-3)
    return torch.cat([before, 1 - u if spec.normalisation == "minmax" else -u, after], dim=-3)


def _embedded(backbone: Backbone, inputs: Inputs) -> Tensor:
    """What the network makes of a batch, float32 on the CPU."""
    who = f"the model {backbone.name or type(backbone).__name__!r} ({type(backbone).__name__})"
    wanted = ", ".join(spec.describe() for spec in backbone.input_specs)
    clips = len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values())))
    with outside_call(f"{who} on {wanted}", remedy="make it with other arguments, or mend its forward"):
        found: Any = backbone(inputs)
        wide = isinstance(found, Tensor) and found.shape == (clips, backbone.embed_dim or 1)
        if not wide or not found.is_floating_point():
            raise FsmerError(
                f"{who} gives {outside_value(found)} for {clips} clips of {wanted}, but floating-point embeddings of "
                f"shape ({clips}, {backbone.embed_dim or '1 or more'}) are expected; mend its forward or its embed_dim."
            )
        return found.float().cpu()


def _not_finite(backbone: Backbone, clips: Any, row: int) -> FsmerError:
    """The error for an embedding with NaN or infinity; the weights are to blame where they hold such values too."""
    check_weights(backbone)
    clip = f"clip number {row} of the array"
    if hasattr(clips, "specs"):
        clip = f"clip {str(clips.ids[row])!r} of data set {str(clips.datasets[row])!r}"
    return MediaError(
        f"the model {backbone.name or type(backbone).__name__!r} gives an embedding that is not finite for {clip}; "
        "leave the clip out, or use other weights."
    )


def _mirrored(backbone: Backbone, inputs: Inputs) -> Inputs:
    if isinstance(inputs, Tensor):
        return mirror_media(inputs, backbone.input_specs[0])
    return {spec.kind: mirror_media(inputs[spec.kind], spec) for spec in backbone.input_specs}


def batch_of(backbone: Backbone) -> int:
    """How many clips make a batch of bounded memory."""
    clip_bytes = sum(4 * int(np.prod(spec.shape)) for spec in backbone.input_specs)
    return max(1, min(MAX_BATCH, BATCH_BYTES // clip_bytes))


def check_clips(backbone: Backbone, clips: Any) -> None:
    """Raise `SpecMismatchError` unless the clip set holds all media that the backbone expects."""
    check_media(clips, backbone.input_specs, repr(backbone.name))


def check_media(clips: Any, specs: Sequence[InputSpec], who: str) -> None:
    """Raise `SpecMismatchError` unless the clip set holds all media that `who` expects."""
    for wanted in specs:
        if wanted.kind not in clips.specs:
            held = ", ".join(held.describe() for held in clips.specs.values()) or "no media"
            raise SpecMismatchError(f"the clips hold {held}, but {who} expects {wanted.describe()}; prepare those.")
        clips.specs[wanted.kind].check_feeds(wanted, who=who)


def read_inputs(backbone: Backbone, clips: Any, rows: NDArray[np.int64], device: torch.device | str = "cpu") -> Inputs:
    """What the backbone's ``forward`` gets for some rows of a clip set (see `check_clips`). `MediaError` where a clip's
    media cannot be read, or its apex is its onset."""
    arrays = {}
    for wanted in backbone.input_specs:
        held: InputSpec = clips.specs[wanted.kind]
        arrays[wanted.kind] = held.pick_channels(np.asarray(clips.read(wanted.kind, rows)), wanted)
    if "onset" in arrays and "apex" in arrays and arrays["onset"].shape == arrays["apex"].shape:
        still = (arrays["onset"] == arrays["apex"]).reshape(len(rows), -1).all(axis=1)
        if still.any():
            row = rows[int(still.argmax())]
            raise MediaError(
                f"nothing moves in clip {str(clips.ids[row])!r} of data set {str(clips.datasets[row])!r}: its onset "
                "and its apex are one and the same picture; mark its apex anew or leave it out."
            )
    return _feed(backbone, arrays, device)


def check_inputs(backbone: Backbone, values: ArrayLike | Mapping[str, ArrayLike]) -> Arrays:
    """Plain arrays as float32 of shape (N, \\*spec.shape) by kind, or an error that names both shapes."""
    specs = backbone.input_specs
    given = values if isinstance(values, Mapping) else {specs[0].kind: values}
    missing = [spec.kind for spec in specs if spec.kind not in given]
    if missing:
        raise SpecMismatchError(
            f"{backbone.name!r} expects {', '.join(spec.describe() for spec in specs)}, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; give a dict with one array a kind."
        )
    arrays = {spec.kind: _checked(backbone, spec, given[spec.kind]) for spec in specs}
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{len(array)} {kind}" for kind, array in arrays.items())
        raise SpecMismatchError(
            f"the media are of different numbers of clips ({lengths}); give one array of each kind for every clip."
        )
    return arrays


def _checked(backbone: Backbone, spec: InputSpec, values: Any) -> NDArray[np.float32]:
    wanted = f"(N, {', '.join(map(str, spec.shape))})"
    try:
        array = as_float32(plain_array(values))
    except DataError as error:
        raise SpecMismatchError(
            f"clips are needed as a ClipSet or as one array of numbers, shape {wanted}: {error}"
        ) from error
    if array.shape == spec.shape:
        array = array[None]
    if array.shape[1:] != spec.shape:
        raise SpecMismatchError(
            f"the array has shape {array.shape}, but {backbone.name!r} expects {spec.describe()}, "
            f"shape {wanted}; prepare the clips with that recipe."
        )
    broken = ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    if broken.any():
        first = int(np.flatnonzero(broken)[0])
        raise MediaError(f"clip number {first} of the array has values that are not finite; remove or repair it.")
    return array


def _feed(backbone: Backbone, arrays: Arrays, device: torch.device | str) -> Inputs:
    # A network may be kept in another precision than media are.
    dtype = next((value.dtype for value in backbone.parameters() if value.is_floating_point()), torch.float32)
    tensors = {
        # Copied where it is read-only, which torch warns of.
        kind: torch.from_numpy(np.require(array, np.float32, ["C", "W"])).to(device, dtype)
        for kind, array in arrays.items()
    }
    return tensors if len(backbone.input_specs) > 1 else tensors[backbone.input_specs[0].kind]
