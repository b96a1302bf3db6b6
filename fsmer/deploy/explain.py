"""Which parts of a clip a network uses: its own maps, or integrated gradients, beside the pictures they belong to."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from fsmer.ambient import library_settings
from fsmer.arrays import plain_array
from fsmer.backbones import Backbone
from fsmer.backbones.base import backbone_call
from fsmer.backbones.embedding import check_clips, check_inputs, read_inputs
from fsmer.data import Clip, ClipSet, InputSpec
from fsmer.deploy.explanation import Explanation
from fsmer.errors import DataError, FsmerError, MediaError, unknown_name
from fsmer.outside import outside_value
from fsmer.transfer.heads import FittedHead, Head
from fsmer.transfer.recognizer import Recognizer, load_trained

Explainable = Clip | ClipSet | Sequence[Clip] | ArrayLike | Mapping[str, ArrayLike]
Tensors = dict[str, Tensor]
# Steps of integrated gradients that pass through the network together; bounds memory for large images.
_STEPS_AT_ONCE = 8
# Attributions are averaged over the pixels within this share of the map's width: single pixels are noise.
_REACH = 1 / 28


@library_settings()
def explain(
    model: Recognizer | Backbone | str | os.PathLike[str],
    clips: Explainable,
    *,
    out: str | os.PathLike[str] | None = None,
    method: Literal["own", "gradient"] | None = None,
    target: str | None = None,
    steps: int = 16,
) -> Explanation | list[Explanation]:
    """Show which parts of a clip a network uses.

    Where the backbone has maps of its own (MMNet's attention, for example), these are shown. Otherwise the map is the
    integrated gradient (Sundararajan et al. 2017, by captum) along the way from the same clip without movement to the
    clip as it is, so that it tells which movement mattered: absolute values summed over channels and time, averaged
    over a small window, divided by the largest. What it explains is the logit of the predicted class above the mean of
    the others (a logit alone is known only up to what all classes share), or, for a bare backbone, how far the movement
    takes the embedding (squared distance).

    A clip without movement is: flow of zero (``"signed"``) or each channel's median (``"minmax"``, where zero is lost),
    the onset in place of the apex, the first frame in place of all. A single image without a partner is compared with
    grey.

    Parameters
    ----------
    model : Recognizer, Backbone, str or path
        Or the folder of either, or the name of a backbone. Used in evaluation mode; its training mode is restored
        afterwards.
    clips : ClipSet, Clip, sequence of Clip, array of shape (N, \\*spec.shape), or mapping of kind to such arrays
        What to explain. Media of a clip that are no input of the backbone are drawn too, and flow is estimated where a
        clip has pictures alone. A single `Clip`, or arrays without the axis of clips, give one explanation, everything
        else a list.
    out : path, optional
        Folder for the pictures of a list (one PNG a clip, numbered, named by id), or a PNG file for one explanation.
    method : {"own", "gradient"}, optional
        Ask for the backbone's own maps or for the gradient; default its own where it has any.
    target : str, optional
        Class to explain in place of the predicted one, for gradients through a recognizer.
    steps : int, default 16
        Points along the way of the integrated gradient.

    Returns
    -------
    Explanation or list of Explanation
        The maps, and what the network answers.

    Raises
    ------
    SpecMismatchError
        A clip lacks a medium that the backbone expects.
    MediaError
        A medium cannot be read, or nothing moves in the clip.
    FsmerError
        A gradient map is needed and captum is not installed (extra ``explain``), or the backbone has no maps of its
        own though they were asked for.
    UnknownNameError
        `target` is none of the recognizer's classes, or `method` is unknown.
    OutputError
        A picture cannot be written.

    Notes
    -----
    A plain gradient would not do: on synthetic clips it marks skin that stands still for `facs-flow` (area under
    the ROC curve 0.30 for skin that the expression moves; 0.92 for the integrated gradient with 16 steps).

    Examples
    --------
    >>> import fsmer
    >>> clips = fsmer.synthetic_clips("lab", 30)
    >>> recognizer = fsmer.adapt("facs-flow", clips)
    >>> explanation = fsmer.explain(recognizer, clips[0], steps=4, out="clip.png")
    >>> list(explanation.maps), explanation.prediction in recognizer.classes_
    (['gradient of the flow'], True)
    """
    network = _Network.of(model, target)
    if method not in (None, "own", "gradient"):
        raise unknown_name("method of explaining", method, ("own", "gradient"))
    if steps < 1:
        raise DataError(f"steps is {steps}, but the integrated gradient needs at least one.")
    asked, alone = _as_clips(clips, network.backbone)
    found = []
    for number, clip in enumerate(asked):
        one = _explain_clip(network, clip, method, steps)
        if out is not None:
            name = re.sub(r"[^\w.-]+", "_", clip.id)
            one.save(out if alone else Path(out) / f"{number:0{len(str(len(asked) - 1))}d}_{name}.png")
        found.append(one)
    return found[0] if alone else found


@dataclass(frozen=True)
class _Network:
    """A backbone with the head on it, where there is one."""

    backbone: Backbone
    head: FittedHead | None = None
    classes: tuple[str, ...] = ()
    target: int | None = None

    @classmethod
    def of(cls, model: Recognizer | Backbone | str | os.PathLike[str], target: str | None) -> _Network:
        model = load_trained(model)
        if isinstance(model, Recognizer):
            classes = tuple(str(name) for name in model.classes_)
            if target is not None and target not in classes:
                raise unknown_name("class", target, classes)
            if model.method.transductive:
                raise DataError(
                    f"the recognizer of the method {model.method.name!r} answers clips together, so one alone does not "
                    "explain an answer; explain its backbone, or a recognizer of a method such as 'simpleshot'."
                )
            place = None if target is None else classes.index(target)
            head = model.head
            if isinstance(head, Head):
                # Copies, for a head that was fitted in inference mode would be refused by autograd.
                with torch.inference_mode(False):
                    tensors = {key: value.clone() for key, value in head.tensors().items()}
                head = Head.from_tensors(head.kind, tensors)
            return cls(model.backbone, head, classes, place)
        if target is not None:
            raise DataError(
                f"the backbone {model.name!r} alone has no class {target!r} to explain; "
                "give a Recognizer (fsmer.adapt)."
            )
        return cls(model)

    def feed(self, inputs: Tensors) -> Tensor:
        """Embeddings, float32 on the CPU, where the head is."""
        kinds = [spec.kind for spec in self.backbone.input_specs]
        embeddings: Tensor = self.backbone(inputs if len(kinds) > 1 else inputs[kinds[0]])
        return embeddings.float().cpu()


def _explain_clip(network: _Network, clip: Clip, method: Literal["own", "gradient"] | None, steps: int) -> Explanation:
    backbone = network.backbone
    holder = ClipSet.from_clips([clip])
    check_clips(backbone, holder)
    media = {kind: (lazy.spec, clip.read(kind)) for kind, lazy in clip.media.items()}
    device = next((parameter.device for parameter in backbone.parameters()), torch.device("cpu"))
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.inference_mode(False):
            read = read_inputs(backbone, holder, np.arange(1), device)
            inputs = read if isinstance(read, dict) else {backbone.input_specs[0].kind: read}
            still = {spec.kind: _without_movement(spec, inputs) for spec in backbone.input_specs}
            if all(torch.equal(inputs[kind], still[kind]) for kind in inputs):
                raise MediaError(
                    f"nothing moves in clip {clip.id!r} of data set {clip.dataset!r} (its {' and '.join(inputs)} show "
                    "one and the same picture), so there is nothing to explain; mark its apex anew or leave it out."
                )
            with torch.no_grad():
                logits = None if network.head is None else network.head.logits(network.feed(inputs))[0, 0]
                maps = {} if method == "gradient" else _own_maps(backbone, read)
            about = f"maps of {backbone.name} itself"
            if method == "own" and not maps:
                raise FsmerError(
                    f"the backbone {backbone.name!r} has no maps of its own; leave the method out, or ask for "
                    "'gradient'."
                )
            if not maps:
                maps, about = _gradient_maps(network, inputs, still, logits, steps)
    finally:
        backbone.train(was_training)
    return Explanation(
        clip=clip.id,
        maps={name: values[0].float().cpu().numpy() for name, values in maps.items()},
        about=about,
        media=media,
        label=clip.label,
        classes=network.classes,
        probabilities=np.zeros(0, np.float32) if logits is None else torch.softmax(logits, dim=0).numpy(),
    )


def _own_maps(backbone: Backbone, inputs: Any) -> Tensors:
    with backbone_call(backbone, "explain_maps"):
        found: Any = backbone.explain_maps(inputs)
    if not isinstance(found, Mapping) or not all(isinstance(one, Tensor) and len(one) == 1 for one in found.values()):
        raise FsmerError(
            f"explain_maps of the model {backbone.name!r} ({type(backbone).__name__}) gives {outside_value(found)}, "
            "but a dict of tensors with one row a clip is expected; mend its explain_maps."
        )
    return dict(found)


def _without_movement(spec: InputSpec, inputs: Tensors) -> Tensor:
    """The same clip as if nothing moved, for one medium."""
    values = inputs[spec.kind]
    if spec.kind not in ("onset", "apex", "frames"):
        if spec.normalisation == "signed":
            return torch.zeros_like(values)
        still = values.flatten(-2).median(dim=-1).values[..., None, None].expand_as(values).clone()
        if "strain" in spec.channels:
            still[..., spec.channels.index("strain"), :, :] = 0
        return still
    if spec.kind == "frames":
        return values[:, :1].expand_as(values).clone()
    other = "onset" if spec.kind == "apex" else "apex"
    if other not in inputs or inputs[other].shape != values.shape:
        return torch.full_like(values, 0.5)
    return inputs["onset"].clone()


def _gradient_maps(
    network: _Network, inputs: Tensors, still: Tensors, logits: Tensor | None, steps: int
) -> tuple[Tensors, str]:
    """Integrated gradients by medium, (1, h, w) in 0..1, and what they explain."""
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise FsmerError(
            "a gradient map needs the package captum, which is not installed; run: pip install 'fsmer[explain]', or "
            "take a backbone that has maps of its own."
        ) from error
    kinds = list(inputs)
    # Other classifiers than a head of tensors have no gradient.
    if not isinstance(network.head, Head) or logits is None:
        start = network.feed(still).detach()
        about = f"integrated gradient of how far the embedding of {network.backbone.name} is from the still clip's"

        def score(embeddings: Tensor) -> Tensor:
            return (embeddings - start).square().sum(dim=1)
    else:
        head = network.head
        place = int(logits.argmax()) if network.target is None else network.target
        # A class that nothing is known of has a logit of minus infinity.
        others = [row for row in torch.isfinite(logits).nonzero()[:, 0].tolist() if row != place]
        about = f"integrated gradient of the logit of {network.classes[place]}, from the still clip to this one"

        def score(embeddings: Tensor) -> Tensor:
            found = head.logits(embeddings)[0]
            return found[:, place] - found[:, others].mean(dim=1) if others else found[:, place]

    def scored(*values: Tensor) -> Tensor:
        found = score(network.feed(dict(zip(kinds, values, strict=True))))
        # Nothing is added; but autograd refuses a medium that the network does not use (TCAE: the onset).
        return found + sum((0 * value).flatten(1).sum(dim=1).float().cpu() for value in values)

    with torch.enable_grad():
        attributions = IntegratedGradients(scored).attribute(
            tuple(inputs.values()), baselines=tuple(still.values()), n_steps=steps, internal_batch_size=_STEPS_AT_ONCE
        )
    maps = {}
    for kind, values in zip(kinds, attributions, strict=True):
        summed = values.detach().abs().sum(dim=tuple(range(1, values.ndim - 2)))
        reach = int(_REACH * summed.shape[-1])
        around = F.pad(summed[:, None], (reach,) * 4, mode="replicate")
        maps[f"gradient of the {kind}"] = F.avg_pool2d(around, 2 * reach + 1, 1)[:, 0].float()
    top = max(float(one.max()) for one in maps.values())
    scaled = {name: one / top if top > 0 else one for name, one in maps.items()}
    # A medium that stays as it is on the way (the onset) has no part in it.
    return {name: one for name, one in scaled.items() if one.any()} or scaled, about


def _as_clips(values: Any, backbone: Backbone) -> tuple[ClipSet | Sequence[Clip], bool]:
    """What is to be explained, and whether it was given as one clip."""
    if isinstance(values, Clip):
        return [values], True
    if isinstance(values, ClipSet) or (
        isinstance(values, (list, tuple)) and all(isinstance(value, Clip) for value in values)
    ):
        if not len(values):
            raise DataError("there is no clip to explain; give at least one.")
        return values, False
    arrays = check_inputs(backbone, values)
    given = values if isinstance(values, Mapping) else dict.fromkeys(arrays, values)
    # In their own type, since 8-bit values are divided by 255.
    own = {kind: plain_array(given[kind]) for kind in arrays}
    alone = all(own[spec.kind].ndim == len(spec.shape) for spec in backbone.input_specs)
    own = {kind: own[kind].reshape(array.shape) for kind, array in arrays.items()}
    return ClipSet.from_arrays(own, None, spec=backbone.input_specs, datasets="clip"), alone
