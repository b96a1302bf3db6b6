"""From one frame sequence to exactly the media that backbones ask for, and which of them one clip set can hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.data.spec import COLOURS, InputKind, InputSpec
from fsmer.errors import DataError, MediaError, SpecMismatchError
from fsmer.plugins import INPUT_KINDS
from fsmer.preprocess.apex import check_interval, spot_apex
from fsmer.preprocess.face_detectors import CroppedFaces, FaceDetector
from fsmer.preprocess.face_tracking import CroppedFrames, locate_face, track_faces
from fsmer.preprocess.faces import FacePose
from fsmer.preprocess.flow import FlowMethod, flow_map, optical_flow, resize_area
from fsmer.preprocess.frame_source import Frame, FrameSource
from fsmer.preprocess.reading import open_frames
from fsmer.preprocess.recipe import PreprocessRecipe
from fsmer.preprocess.time import resample

__all__ = ["KINDS", "ClipMedia", "crop_frames", "group_specs", "make_media", "media_from_frames", "pair_media"]

# Computes flow from onset, apex and a flow method.
Estimate = Callable[[ArrayLike, ArrayLike, FlowMethod], NDArray[np.float32]]
KINDS = ("apex", "flow", "flows", "frames", "onset")
# Mean movement in pixels of the crop: two equal pictures stay below (Farneback's rounding gives 0.001), and a third of
# a grey level of noise is above.
STILL = 0.003


@dataclass(frozen=True)
class ClipMedia:
    """Media of one clip with what was decided on the way.

    Parameters
    ----------
    media : dict of str to float32 array
        Kind -> array of the spec's shape (images uint8 where they were asked for so).
    onset, apex, offset : int
        Frame numbers in the sequence. The apex is None where no medium needs it.
    apex_method : str or None
        How the apex was found.
    notes : tuple of str
        What had to be assumed or made up, one sentence each, e.g. interpolated frames.
    """

    media: dict[str, NDArray[Any]]
    onset: int
    apex: int | None
    offset: int
    apex_method: str | None = None
    notes: tuple[str, ...] = field(default=())


def crop_frames(
    frames: FrameSource | Any, recipe: PreprocessRecipe, *, onset: int = 0, detector: FaceDetector | None = None
) -> FrameSource:
    """The face of a sequence as the recipe crops it, cut lazily; frame `onset` decides on the crop of the whole clip.

    `NoFaceError` where no face is seen though one is needed.
    """
    source = open_frames(frames)
    finder = recipe.load_detector() if detector is None else detector
    if isinstance(finder, CroppedFaces):
        height, width = source.size
        size = (min(recipe.crop_size[0], height), min(recipe.crop_size[1], width))
        whole = FacePose((width - 1) / 2, (height - 1) / 2, width, 0.0, height / width)
        return source if size == source.size else CroppedFrames(source, whole, size)
    if recipe.crop == "frame":
        poses, _ = track_faces(source, finder, which=recipe.face)
        return CroppedFrames(source, poses, recipe.crop_size)
    return CroppedFrames(source, locate_face(source, finder, onset, which=recipe.face), recipe.crop_size)


def media_from_frames(
    frames: FrameSource | Any,
    specs: Sequence[InputSpec] | InputSpec,
    *,
    onset: int | None = None,
    apex: int | None = None,
    offset: int | None = None,
    recipe: PreprocessRecipe | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Make exactly the media that `specs` ask for from one frame sequence.

    Parameters
    ----------
    frames : FrameSource, path, array, sequence of arrays or iterable of arrays
        Video file, folder of images, array ``(T, H, W, 3)`` or anything else that `open_frames` takes.
    specs : InputSpec or sequence of InputSpec
        One a kind: ``"flow"`` (onset to apex), ``"onset"``, ``"apex"``, ``"frames"`` and ``"flows"`` (onset to offset,
        resampled; entry t leads from resampled frame t to t + 1, the last repeats the one before it).
    onset, apex, offset : int, optional
        Frame numbers from 0; the defaults are the first frame, the recipe's apex, and the last frame.
    recipe : PreprocessRecipe, optional
        Default: face found by the cascade, apex as given or spotted by flow, Farneback, TIM.

    Returns
    -------
    dict of str to float32 array
        Kind -> array of the spec's shape.

    Raises
    ------
    MediaError
        The frames cannot be read, differ in size, are fewer than 2, show no face, have an impossible apex, or show no
        movement.
    SpecMismatchError
        A spec that cannot be made from frames.

    See Also
    --------
    make_media : the same with a report of what was assumed.

    Examples
    --------
    >>> import fsmer
    >>> from fsmer.synthetic.recordings import synthetic_videos
    >>> (video,) = synthetic_videos(1, size=96, frames=12)
    >>> recipe = fsmer.PreprocessRecipe(detector="cropped")
    >>> media = fsmer.media_from_frames(video.frames, fsmer.InputSpec(), apex=6, recipe=recipe)
    >>> media["flow"].shape
    (3, 28, 28)
    """
    return make_media(frames, specs, onset=onset, apex=apex, offset=offset, recipe=recipe).media


def make_media(
    frames: FrameSource | Any,
    specs: Sequence[InputSpec] | InputSpec,
    *,
    onset: int | None = None,
    apex: int | None = None,
    offset: int | None = None,
    recipe: PreprocessRecipe | None = None,
    detector: FaceDetector | None = None,
    eight_bit: bool = False,
) -> ClipMedia:
    """As `media_from_frames`, with the frames used and notes on what was assumed or interpolated.

    With `eight_bit`, images (kinds ``"onset"``, ``"apex"`` and ``"frames"``) come as uint8, a quarter of the bytes
    without any loss: brightness is always rounded to one of 256 values, and value / 255 is what comes otherwise.
    """
    wanted = checked_specs(specs)
    steps = recipe or PreprocessRecipe()
    source = open_frames(frames)
    if source.count is None:
        # A stream gives its frames once, but a clip needs its onset again; clips are short.
        source = open_frames(list(source), timestamps=source.timestamps)
    searches = needs_apex(wanted)
    given = apex if searches and steps.apex in ("given", "annotated") else None
    first, last = check_interval(len(source), onset, given, offset, name=source.name)
    crops = crop_frames(source, steps, onset=first, detector=detector)
    top, method = None, None
    if searches:
        method = apex_method(steps, apex)
        top = spot_apex(crops, method, onset=first, apex=apex, offset=last).index
    media, notes = _from_crops(crops, wanted, first, top, last, steps)
    held = media if eight_bit else _as_floats(media)
    return ClipMedia(held, first, top, last, method, (*source.notes, *notes))


def needs_apex(specs: Iterable[InputSpec]) -> bool:
    """Whether some of these media are made from the apex."""
    return any(spec.kind in INPUT_KINDS and INPUT_KINDS[spec.kind].needs_apex for spec in specs)


def apex_source(method: str | None) -> str:
    """Where an apex that `method` found is from, as tables of clips name it."""
    return "annotation" if method == "annotated" else method or ""


def apex_method(recipe: PreprocessRecipe, apex: int | None) -> str:
    """How the recipe finds the apex of a clip whose annotation is `apex`."""
    if recipe.apex == "given":
        return "flow" if apex is None else "annotated"
    return recipe.apex


def pair_media(
    onset: ArrayLike,
    apex: ArrayLike,
    specs: Sequence[InputSpec] | InputSpec,
    *,
    recipe: PreprocessRecipe | None = None,
    estimate: Estimate = optical_flow,
) -> dict[str, NDArray[np.float32]]:
    """Media of the kinds flow, onset and apex from two face crops.

    Parameters
    ----------
    onset, apex : images of one size
    specs, recipe
        As in `media_from_frames`; only flow, head motion and strain of the recipe matter.
    estimate : callable
        What computes flow from onset, apex and a flow method, where it was computed already.
    """
    wanted = checked_specs(specs)
    for spec in wanted:
        if spec.frames is not None:
            raise SpecMismatchError(f"two frames cannot give {spec.kind!r}, which spans a clip; use media_from_frames.")
    source = open_frames([onset, apex])
    return _as_floats(_from_crops(source, wanted, 0, 1, 1, recipe or PreprocessRecipe(), estimate)[0])


def checked_specs(specs: Sequence[InputSpec] | InputSpec) -> list[InputSpec]:
    wanted = [specs] if isinstance(specs, InputSpec) else list(specs)
    if not wanted:
        raise DataError("no media were asked for; give at least one InputSpec, e.g. a backbone's input_specs.")
    for spec in wanted:
        if spec.kind not in KINDS:
            INPUT_KINDS.find(spec.kind).check(spec)
            continue
        timed = spec.kind in ("flows", "frames")
        if timed != (spec.frames is not None) or (spec.kind == "flows" and (spec.frames or 0) < 2):
            raise SpecMismatchError(
                f"{spec.describe()} cannot be made: kinds 'frames' and 'flows' need their length in frames (flows 2 or "
                "more), the others must not have one."
            )
        if spec.kind in ("onset", "apex", "frames") and (spec.channels, spec.normalisation) != (COLOURS, "unit"):
            raise SpecMismatchError(
                f"images cannot be made as {spec.describe()}: channels red, green, blue and normalisation 'unit' are "
                "expected."
            )
        if [one.kind for one in wanted].count(spec.kind) > 1:
            raise SpecMismatchError(f"two media of kind {spec.kind!r} were asked for; a clip holds one a kind.")
    return wanted


def _from_crops(
    crops: FrameSource,
    specs: Sequence[InputSpec],
    onset: int,
    apex: int | None,
    offset: int,
    recipe: PreprocessRecipe,
    estimate: Estimate = optical_flow,
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    media: dict[str, NDArray[Any]] = {}
    notes: dict[str, None] = {}
    count, top = offset - onset + 1, onset if apex is None else apex
    for spec in specs:
        if spec.kind not in KINDS:
            kind: InputKind = INPUT_KINDS[spec.kind]
            place = None if apex is None or not kind.needs_apex else apex - onset
            media[spec.kind] = kind.media(np.stack([crops[n] for n in range(onset, offset + 1)]), spec, place)
        elif spec.kind == "flow":
            flow = estimate(crops[onset], crops[top], recipe.load_flow(spec.flow_method))
            _check_moves([flow], f"frames {onset} and {top} of {crops.name}")
            media["flow"] = _map(flow, spec, recipe)
        elif spec.kind in ("onset", "apex"):
            media[spec.kind] = _image(crops[onset if spec.kind == "onset" else top], spec.size)
        else:
            length = spec.frames or 2
            images: Iterable[NDArray[Any]] = (crops[number] for number in range(onset, offset + 1))
            if spec.kind == "frames":
                images = (resize_area(np.moveaxis(image, 2, 0), spec.size) for image in images)
            resampled = resample(images, count, length, method=recipe.time)
            if resampled.interpolated:
                notes[f"the clip has {count} frames; {length} were interpolated from them ({recipe.time})."] = None
            media[spec.kind] = _eight_bit(resampled.frames)
        if spec.kind == "flows":
            method = recipe.load_flow(spec.flow_method)
            steps = [optical_flow(one, two, method) for one, two in pairwise(media["flows"])]
            _check_moves(steps, f"frames {onset} and {offset} of {crops.name}")
            maps = [_map(step, spec, recipe) for step in steps]
            media["flows"] = np.stack([*maps, maps[-1]])
    return media, list(notes)


def _map(flow: NDArray[np.float32], spec: InputSpec, recipe: PreprocessRecipe) -> NDArray[np.float32]:
    return flow_map(flow, spec, remove_head=recipe.head_motion == "remove", shear=recipe.strain_shear)


def _check_moves(flows: Sequence[NDArray[np.float32]], where: str) -> None:
    if max(cv2.mean(cv2.magnitude(*flow))[0] for flow in flows) < STILL:
        raise MediaError(
            f"there is no movement between {where} (a still picture?), so there is no flow to recognise; give the "
            "frames of an expression."
        )


def _image(crop: Frame, size: tuple[int, int]) -> NDArray[np.uint8]:
    planes = np.stack(cv2.split(crop)).astype(np.uint8, copy=False)
    return planes if planes.shape[1:] == size else _eight_bit(resize_area(planes, size))


def _eight_bit(brightness: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(np.clip(brightness, 0, 255)).astype(np.uint8)


def _as_floats(media: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {
        kind: array.astype(np.float32) / np.float32(255) if array.dtype == np.uint8 else array
        for kind, array in media.items()
    }


def made_spec(spec: InputSpec, recipe: PreprocessRecipe) -> InputSpec:
    """What is held then: the flow method is known."""
    if spec.kind not in ("flow", "flows"):
        return spec
    return replace(spec, flow_method=spec.flow_method or recipe.flow)


def group_specs(wanted: Mapping[str, Sequence[InputSpec]]) -> dict[str, tuple[InputSpec, ...]]:
    """Put the media that several backbones want into as few clip sets as can hold them.

    Two specs of one kind share a medium when they differ in nothing but channels (it gets those of both; readers pick
    theirs by name) and in a flow method that only one of them names. Backbones whose specs cannot be shared get a clip
    set of their own; each backbone goes to the first set that fits. The result has names joined by ``+`` -> specs of
    that clip set, sorted by kind.

    >>> small, large = InputSpec("onset", (28, 28), ("red", "green", "blue"), "unit"), InputSpec("flow")
    >>> list(group_specs({"a": [small], "b": [large], "c": [InputSpec("flow", (56, 56))]}))
    ['a+b', 'c']
    """
    groups: list[tuple[list[str], dict[str, InputSpec]]] = []
    for name, specs in wanted.items():
        own = _united({}, specs)
        if own is None:
            raise SpecMismatchError(f"{name!r} asks for two different media of one kind; a clip holds one a kind.")
        for names, held in groups:
            both = _united(held, list(own.values()))
            if both is not None:
                names.append(name)
                held.update(both)
                break
        else:
            groups.append(([name], own))
    return {"+".join(names): tuple(held[kind] for kind in sorted(held)) for names, held in groups}


def _united(held: Mapping[str, InputSpec], specs: Sequence[InputSpec]) -> dict[str, InputSpec] | None:
    found = dict(held)
    for spec in specs:
        other = found.get(spec.kind)
        if other is None:
            found[spec.kind] = spec
            continue
        alike = replace(spec, channels=other.channels, flow_method=other.flow_method) == other
        if not alike or (None not in (spec.flow_method, other.flow_method) and spec.flow_method != other.flow_method):
            return None
        further = (name for name in spec.channels if name not in other.channels)
        found[spec.kind] = replace(
            other, channels=(*other.channels, *further), flow_method=other.flow_method or spec.flow_method
        )
    return found


def grouped_specs(
    specs: InputSpec | Sequence[InputSpec] | Mapping[str, Sequence[InputSpec]],
) -> dict[str, list[InputSpec]]:
    if isinstance(specs, Mapping):
        groups = group_specs(specs)
        named = {name if len(groups) > 1 else "": list(held) for name, held in groups.items()}
    else:
        listed = [specs] if isinstance(specs, InputSpec) else list(specs)
        united = _united({}, listed)
        if united is None:
            kinds = [spec.kind for spec in listed]
            kind = next(kind for kind in kinds if kinds.count(kind) > 1)
            both = " and ".join(spec.describe() for spec in listed if spec.kind == kind)
            raise SpecMismatchError(
                f"different media of kind {kind!r} were asked for ({both}), but a clip holds one a kind; give a "
                "mapping of name to specs, so that each gets a clip set of its own."
            )
        named = {"": [united[kind] for kind in sorted(united)]}
    if not named:
        raise DataError("no media were asked for; name at least one backbone or give at least one InputSpec.")
    return {name: checked_specs(held) for name, held in named.items()}
