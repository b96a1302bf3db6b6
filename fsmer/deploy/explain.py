"""Where a network looks in a clip: its own maps, or integrated gradients, beside the pictures they belong to."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from fsmer.ambient import library_settings
from fsmer.arrays import plain_array
from fsmer.backbones import Backbone
from fsmer.backbones.embedding import check_clips, read_inputs
from fsmer.data import Clip, ClipSet, InputSpec
from fsmer.drawing import BLUE, DPI, GREY, LIGHT, blank_figure, draw_flow, save_figure, wrapped
from fsmer.errors import DataError, FsmerError, MediaError, SpecMismatchError, unknown_name
from fsmer.preprocess.flow import optical_flow
from fsmer.transfer.heads import FittedHead, Head
from fsmer.transfer.recognizer import Recognizer, load_trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Explainable = Clip | ClipSet | Sequence[Clip] | ArrayLike | Mapping[str, ArrayLike]

__all__ = ["Explanation", "explain"]

Array = NDArray[np.float32]
Medium = tuple[InputSpec, Array]
Tensors = dict[str, Tensor]

# What a picture says over maps whose names are a paper's letters.
MAP_TITLES = {
    "dma": "micro-attention",
    "poi": "patch of interest",
    "dma_poi": "attention × interest",
    "au_flow": "action unit flow",
    "pose_flow": "head pose flow",
}
# Steps of integrated gradients that pass through the network together; bounds memory for large images.
_STEPS_AT_ONCE = 8
# Flow between smaller pictures cannot be estimated.
_LEAST_FOR_FLOW = 16
# Attributions are averaged over the pixels within this share of the map's width: single pixels say little.
_REACH = 1 / 28
_MISSING = (
    "a gradient map needs the package captum, which is not installed; run: pip install 'fsmer[explain]', "
    "or take a backbone that has maps of its own."
)


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a network looked at in one clip, and what it answered.

    In a notebook it shows itself as a picture.

    Parameters
    ----------
    clip : str
        Id of the clip.
    maps : mapping of str to float32 array of shape (h, w)
        Where the network looked, in 0..1, each at its own size.
    about : str
        What the maps are, in words.
    media : mapping of str to (InputSpec, array)
        What the clip shows, by kind.
    label : str or None
        The clip's own label.
    classes : tuple of str
        Classes of the recognizer; empty for a bare backbone.
    probabilities : float32 array of shape (C,)
        Of `classes`.
    """

    clip: str
    maps: Mapping[str, Array] = field(repr=False)
    about: str
    media: Mapping[str, Medium] = field(repr=False)
    label: str | None = None
    classes: tuple[str, ...] = ()
    probabilities: Array = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def prediction(self) -> str | None:
        """The most probable class; None for a bare backbone."""
        return self.classes[int(self.probabilities.argmax())] if self.classes else None

    def figure(self) -> Figure:
        """Picture of the clip's media, the probabilities and the maps laid over the face (or the flow).

        A map is drawn from nothing at its median to full colour at its largest value; its range stands below it.
        """
        shown = _media_panels(self.media)
        if self.classes:
            shown.append(_Panel("probabilities", "", self._draw_probabilities))
        back = _background(self.media)
        maps = [_map_panel(MAP_TITLES.get(name, name), values, back) for name, values in self.maps.items()]
        rows = [shown + maps] if len(shown) + len(maps) <= 5 else [shown, maps]
        columns = max(map(len, rows))
        figure = blank_figure(1.75 * columns, 2.1 * len(rows) + 0.45)
        for row, panels in enumerate(rows):
            for column, panel in enumerate(panels):
                axes = figure.add_subplot(len(rows), columns, row * columns + column + 1)
                axes.set_title(panel.title, fontsize=8, pad=3)
                panel.draw(axes)
                if panel.note:
                    axes.set_xlabel(panel.note, fontsize=6.5, color=GREY, labelpad=2)
        figure.suptitle(wrapped(self._headline(), 24 * columns), fontsize=9)
        figure.supxlabel(wrapped(self.about, 30 * columns), fontsize=7, color=GREY)
        return figure

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture as PNG, whole or not at all.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        return save_figure(self.figure(), path)

    def _headline(self) -> str:
        labelled = f"labelled {self.label}" if self.label else ""
        if self.prediction is None:
            return f"{self.clip}{': ' if labelled else ''}{labelled}"
        found = f"{self.prediction} ({self.probabilities.max():.0%})"
        return f"{self.clip}: {found}{', ' if labelled else ''}{labelled}"

    def _draw_probabilities(self, axes: Axes) -> None:
        places = range(len(self.classes))
        colours = [BLUE if name == self.prediction else LIGHT for name in self.classes]
        axes.barh(places, self.probabilities, color=colours, height=0.45)
        for place, (name, share) in enumerate(zip(self.classes, self.probabilities, strict=True)):
            # Names above their bars: beside them they would take the width that the bars need.
            axes.text(0, place - 0.3, name, fontsize=7, va="bottom")
            axes.text(1, place - 0.3, f"{share:.0%}", fontsize=7, va="bottom", ha="right", color=GREY)
        axes.set_xlim(0, 1)
        axes.set_ylim(max(len(self.classes), 5) - 0.5, -0.8)
        axes.set_box_aspect(1)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.figure().savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
        return stream.getvalue()


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
    """Show where a network looks in a clip.

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
    clips : Clip, ClipSet, sequence of Clip, array of shape (N, \\*spec.shape), or mapping of kind to such arrays
        What to explain. Media of a clip that the backbone does not eat are drawn too, and flow is estimated where a
        clip has pictures alone. A single `Clip`, or arrays without the axis of clips, give one explanation, everything
        else a list.
    out : path, optional
        Where to write: a PNG file for one explanation, a folder for a list (one PNG a clip, numbered, named by id).
    method : {"own", "gradient"}, optional
        Ask for the backbone's own maps or for the gradient; default its own where it has any.
    target : str, optional
        Class to explain in place of the predicted one, for gradients through a recognizer.
    steps : int
        Points along the way of the integrated gradient.

    Returns
    -------
    Explanation or list of Explanation

    Raises
    ------
    SpecMismatchError
        A clip lacks a medium that the backbone eats.
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
    A plain gradient would not do: on synthetic clips it makes `facs-flow` look at skin that stands still (area under
    the ROC curve 0.30 for skin that the expression moves; 0.92 for the integrated gradient with 16 steps).

    Examples
    --------
    >>> explanation = explain(recognizer, clips[0], out="clip.png")  # doctest: +SKIP
    >>> explanation.prediction, list(explanation.maps)  # doctest: +SKIP
    ('positive', ['gradient of the flow'])
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


# -- the network -------------------------------------------------------------------------------------------------------


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
                maps = {} if method == "gradient" else backbone.explain_maps(read)
            about = f"maps of {backbone.name} itself"
            if method == "own" and not maps:
                raise FsmerError(
                    f"the backbone {backbone.name!r} has no maps of its own; leave the method out, or ask for "
                    "'gradient'."
                )
            if not maps:
                maps, about = _gradient_maps(network, inputs, still, logits, steps)
    finally:
        if was_training:
            backbone.train()
    return Explanation(
        clip=clip.id,
        maps={name: values[0].float().cpu().numpy() for name, values in maps.items()},
        about=about,
        media=media,
        label=clip.label,
        classes=network.classes,
        probabilities=np.zeros(0, np.float32) if logits is None else torch.softmax(logits, dim=0).numpy(),
    )


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
        raise FsmerError(_MISSING) from error
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
        # Nothing is added; but autograd refuses a medium that the network does not look at (TCAE: the onset).
        return found + sum((0 * value).flatten(1).sum(dim=1).float().cpu() for value in values)

    with torch.enable_grad():
        attributions = IntegratedGradients(scored).attribute(
            tuple(inputs.values()),
            baselines=tuple(still.values()),
            n_steps=steps,
            internal_batch_size=_STEPS_AT_ONCE,
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
    specs = backbone.input_specs
    given = dict(values) if isinstance(values, Mapping) else {specs[0].kind: values}
    wanted = " and ".join(f"{spec.describe()}, shape (N, {', '.join(map(str, spec.shape))})" for spec in specs)
    try:
        arrays = {kind: plain_array(array) for kind, array in given.items()}
    except DataError as error:
        raise SpecMismatchError(f"clips of {backbone.name!r} are arrays of {wanted}: {error}") from error
    alone = all(spec.kind in arrays and arrays[spec.kind].shape == spec.shape for spec in specs)
    if alone:
        arrays = {kind: array[None] for kind, array in arrays.items()}
    unfit = [spec.kind for spec in specs if spec.kind not in arrays or arrays[spec.kind].shape[1:] != spec.shape]
    if unfit or len(arrays) > len(specs):
        held = ", ".join(f"{kind} {array.shape}" for kind, array in arrays.items()) or "nothing"
        raise SpecMismatchError(
            f"the arrays are {held}, but {backbone.name!r} eats {wanted}; give one array of each kind."
        )
    return ClipSet.from_arrays(arrays, None, spec=specs, datasets="clip"), alone


# -- the picture -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Panel:
    title: str
    note: str
    draw: Callable[[Axes], None]


def _media_panels(media: Mapping[str, Medium]) -> list[_Panel]:
    """One panel a picture that the clip has; without flow, that between onset and apex, and their difference."""
    panels = []
    for kind in ("onset", "apex"):
        if kind in media:
            panels.append(_image_panel(kind, media[kind][1]))
    if "frames" in media:
        frames, most = media["frames"][1], _most_moved(media)
        if "onset" not in media:
            panels.append(_image_panel("first frame", frames[0]))
        if "apex" not in media:
            panels.append(_image_panel(f"frame {most + 1} of {len(frames)}", frames[most]))
    others = media.keys() - {"onset", "apex", "frames", "flow", "flows"}
    panels += [_image_panel(kind, _grey(media[kind][1])[None].repeat(3, 0)) for kind in sorted(others)]
    flows = dict(flows_of(media))
    panels += [_flow_panel(title, flow) for title, flow in flows.items()]
    if not flows:
        for title, first, second in _pairs(media):
            if min(first.shape[1:]) >= _LEAST_FOR_FLOW:
                start, end = (np.clip(np.moveaxis(image, 0, 2), 0, 1) for image in (first, second))
                panels.append(_flow_panel("flow", optical_flow(start, end), "estimated (Farnebäck)"))
            panels.append(_difference_panel(title, first, second))
    return panels


def flows_of(media: Mapping[str, Medium]) -> Iterator[tuple[str, Array]]:
    if "flow" in media:
        spec, flow = media["flow"]
        yield "flow", _centred(flow) if spec.normalisation == "minmax" else flow
    elif "flows" in media:
        way = _way(media["flows"][1])
        most = _farthest(way)
        yield f"flow, frame 1 to {most + 2}", way[most]


def _way(flows: Array) -> Array:
    """Flow from the first frame to each of the others, of steps whose last only repeats the one before."""
    return np.asarray(np.cumsum(flows[:-1], axis=0))


def _farthest(way: Array) -> int:
    return int(np.hypot(way[:, 0], way[:, 1]).mean(axis=(1, 2)).argmax())


def _pairs(media: Mapping[str, Medium]) -> Iterator[tuple[str, Array, Array]]:
    if "onset" in media and "apex" in media and media["onset"][1].shape == media["apex"][1].shape:
        yield "apex − onset", media["onset"][1], media["apex"][1]
    elif "frames" in media:
        frames = media["frames"][1]
        yield "change", frames[0], frames[_most_moved(media)]


def _most_moved(media: Mapping[str, Medium]) -> int:
    """The frame farthest from the first: by flow where each frame has one, for light and noise change frames too."""
    frames = media["frames"][1]
    if "flows" in media and len(media["flows"][1]) == len(frames) > 1:
        return 1 + _farthest(_way(media["flows"][1]))
    return int(np.abs(frames - frames[0]).mean(axis=(1, 2, 3)).argmax())


def _centred(flow: Array) -> Array:
    """Min-max maps with each direction's median, which stands in for no movement, at zero."""
    centred = flow.copy()
    centred[:2] -= np.median(centred[:2], axis=(1, 2), keepdims=True)
    return centred


def _background(media: Mapping[str, Medium]) -> Array:
    """A grey picture (h, w) in 0..1 to lay maps over: the face where the clip shows one, else how much moved."""
    for kind in ("apex", "onset"):
        if kind in media:
            return np.asarray(media[kind][1].mean(axis=0))
    if "frames" in media:
        return np.asarray(media["frames"][1][_most_moved(media)].mean(axis=0))
    flow = next((values for _, values in flows_of(media)), None)
    if flow is None:
        return _grey(next(iter(media.values()))[1])
    amount = flow[2] - flow[2].min() if len(flow) > 2 else np.hypot(flow[0], flow[1])
    return np.asarray(1 - 0.6 * amount / max(float(amount.max()), 1e-12))


def _grey(values: Array) -> Array:
    """A medium of any kind as one picture (h, w) in 0..1: the mean over all but height and width."""
    mean = values.reshape(-1, *values.shape[-2:]).mean(axis=0)
    return np.asarray((mean - mean.min()) / max(float(np.ptp(mean)), 1e-12))


def _image_panel(title: str, image: Array) -> _Panel:
    def draw(axes: Axes) -> None:
        axes.imshow(np.clip(np.moveaxis(image, 0, 2), 0, 1))
        _bare(axes)

    return _Panel(title, "", draw)


def _flow_panel(title: str, flow: Array, note: str = "") -> _Panel:
    def draw(axes: Axes) -> None:
        draw_flow(axes, flow.astype(np.float64), 12)

    return _Panel(title, note or ("strain and direction" if len(flow) > 2 else "length and direction"), draw)


def _difference_panel(title: str, first: Array, second: Array) -> _Panel:
    change = (second - first).mean(axis=0)
    limit = max(float(np.quantile(np.abs(change), 0.995)), 1e-6)

    def draw(axes: Axes) -> None:
        axes.imshow(change, cmap="RdBu_r", vmin=-limit, vmax=limit)
        _bare(axes)

    return _Panel(title, f"darker (blue), brighter (red), ±{limit:.1%}", draw)


def _map_panel(title: str, values: Array, back: Array) -> _Panel:
    low, middle, top = float(values.min()), float(np.median(values)), float(values.max())
    height, width = back.shape

    def draw(axes: Axes) -> None:
        axes.imshow(back, cmap="gray", vmin=0, vmax=1)
        share = np.clip((values - middle) / (top - middle), 0, 1) if top > middle else np.zeros_like(values)
        place = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(share, cmap="inferno", vmin=0, vmax=1, alpha=0.85 * share, extent=place, interpolation="bilinear")
        _bare(axes)

    rows, columns = values.shape
    return _Panel(title, f"{rows}×{columns}, {low:.2g} to {top:.2g}", draw)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(LIGHT)
