"""From one frame sequence to exactly the media that backbones ask for, and from many to a clip set."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.data.clips import ClipSet
from fsmer.data.media import ArrayStore, MediaStore, RowError
from fsmer.data.spec import COLOURS, InputKind, InputSpec
from fsmer.errors import DataError, MediaError, SpecMismatchError
from fsmer.plugins import INPUT_KINDS
from fsmer.preprocess.apex import check_interval, spot_apex
from fsmer.preprocess.faces import CroppedFaces, CroppedFrames, FaceDetector, FacePose, locate_face, track_faces
from fsmer.preprocess.flow import flow_map, optical_flow, resize_area
from fsmer.preprocess.reading import Frame, FrameSource, open_frames
from fsmer.preprocess.recipe import PreprocessRecipe
from fsmer.preprocess.time import resample

__all__ = ["KINDS", "ClipMedia", "clips_from_frames", "crop_frames", "make_media", "media_from_frames", "pair_media"]

KINDS = ("apex", "flow", "flows", "frames", "onset")
# Mean movement in pixels of the crop: two equal pictures stay below (Farneback's rounding gives 0.001), and a third of
# a grey level of noise is above.
STILL = 0.003
# Bytes of finished clips that a lazy clip set keeps, so that its kinds of media are made in one go.
KEPT_BYTES = 64 << 20
# What is said of an apex that nobody annotated, by the method that finds it.
APEX_NOTES = {
    "flow": "the apex is spotted (flow).",
    "difference": "the apex is spotted (difference).",
    "middle": "the middle frame stands for the apex.",
}


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
    """The face of a sequence as the recipe crops it, cut lazily.

    Parameters
    ----------
    frames : FrameSource or anything that `open_frames` takes
    recipe : PreprocessRecipe
    onset : int
        Frame that decides on the crop of the whole clip.
    detector : FaceDetector, optional
        Made already; default the recipe's.

    Raises
    ------
    NoFaceError
        No face is seen where one is needed.
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
    frames : FrameSource or anything that `open_frames` takes
        Video file, folder of images, array ``(T, H, W, 3)`` or list of images.
    specs : InputSpec or sequence of InputSpec
        One a kind: ``"flow"`` (onset to apex), ``"onset"``, ``"apex"``, ``"frames"`` and ``"flows"`` (onset to offset,
        resampled; entry t leads from resampled frame t to t + 1, the last repeats the one before it).
    onset, apex, offset : int, optional
        Frame numbers from 0; the defaults are the first frame, what the recipe says, and the last frame.
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

    With `eight_bit`, images (kinds ``"onset"``, ``"apex"`` and ``"frames"``) come as uint8, a quarter of the bytes that
    say the same: brightness is always rounded to one of 256 values, and value / 255 is what comes otherwise.
    """
    wanted = checked_specs(specs)
    steps = recipe or PreprocessRecipe()
    source = _in_memory(open_frames(frames))
    searches = needs_apex(wanted)
    given = apex if searches and steps.apex in ("given", "annotated") else None
    first, last = check_interval(len(source), onset, given, offset, name=source.name)
    crops = crop_frames(source, steps, onset=first, detector=detector)
    top, method = None, None
    if searches:
        method = _apex_method(steps, apex)
        top = spot_apex(crops, method, onset=first, apex=apex, offset=last).index
    media, notes = _from_crops(crops, wanted, first, top, last, steps)
    held = media if eight_bit else _as_floats(media)
    return ClipMedia(held, first, top, last, method, (*source.notes, *notes))


def needs_apex(specs: Iterable[InputSpec]) -> bool:
    """Whether some of these media are made from the apex."""
    return any(spec.kind in INPUT_KINDS and INPUT_KINDS[spec.kind].needs_apex for spec in specs)


def apex_source(method: str | None) -> str:
    """Where an apex that `method` found is from, as tables of clips say it."""
    return "annotation" if method == "annotated" else method or ""


def _apex_method(recipe: PreprocessRecipe, apex: int | None) -> str:
    """How the recipe finds the apex of a clip whose annotation is `apex`."""
    if recipe.apex == "given":
        return "flow" if apex is None else "annotated"
    return recipe.apex


def pair_media(
    onset: ArrayLike, apex: ArrayLike, specs: Sequence[InputSpec] | InputSpec, *, recipe: PreprocessRecipe | None = None
) -> dict[str, NDArray[np.float32]]:
    """Media of the kinds flow, onset and apex from two face crops.

    Parameters
    ----------
    onset, apex : images of one size
    specs, recipe
        As in `media_from_frames`; only flow, head motion and strain of the recipe matter.
    """
    wanted = checked_specs(specs)
    timed = next((spec.kind for spec in wanted if spec.frames is not None), None)
    if timed is not None:
        raise SpecMismatchError(f"two frames cannot give {timed!r}, which spans a clip; use media_from_frames.")
    source = open_frames([onset, apex])
    return _as_floats(_from_crops(source, wanted, 0, 1, 1, recipe or PreprocessRecipe())[0])


def _in_memory(source: FrameSource) -> FrameSource:
    # A stream gives its frames once, but a clip needs its onset again; clips are short.
    return source if source.count is not None else open_frames(list(source), timestamps=source.timestamps)


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
    twice = next((spec.kind for spec in wanted if [one.kind for one in wanted].count(spec.kind) > 1), None)
    if twice is not None:
        raise SpecMismatchError(f"two different media of kind {twice!r} were asked for; a clip holds one a kind.")
    return wanted


def _from_crops(
    crops: FrameSource,
    specs: Sequence[InputSpec],
    onset: int,
    apex: int | None,
    offset: int,
    recipe: PreprocessRecipe,
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    media: dict[str, NDArray[Any]] = {}
    notes: list[str] = []
    count = offset - onset + 1
    for spec in specs:
        if spec.kind not in KINDS:
            kind: InputKind = INPUT_KINDS[spec.kind]
            place = None if apex is None or not kind.needs_apex else apex - onset
            media[spec.kind] = kind.media(np.stack([crops[n] for n in range(onset, offset + 1)]), spec, place)
        elif spec.kind == "flow":
            top = onset if apex is None else apex
            method = recipe.load_flow(spec.flow_method)
            flow = optical_flow(crops[onset], crops[top], method)
            _check_moves([flow], f"frames {onset} and {top} of {crops.name}")
            media["flow"] = _map(flow, spec, recipe)
        elif spec.kind in ("onset", "apex"):
            number = onset if spec.kind == "onset" or apex is None else apex
            media[spec.kind] = _image(crops[number], spec.size)
        elif spec.kind == "frames":
            length = spec.frames or 1
            images = (resize_area(np.moveaxis(crops[n], 2, 0), spec.size) for n in range(onset, offset + 1))
            media["frames"] = _eight_bit(resample(images, count, length, method=recipe.time).frames)
            notes += _made_up(count, length, recipe.time)
        else:
            length = spec.frames or 2
            resampled = resample((crops[n] for n in range(onset, offset + 1)), count, length, method=recipe.time).frames
            method = recipe.load_flow(spec.flow_method)
            steps = [optical_flow(one, two, method) for one, two in pairwise(_eight_bit(resampled))]
            _check_moves(steps, f"frames {onset} and {offset} of {crops.name}")
            maps = [_map(step, spec, recipe) for step in steps]
            media["flows"] = np.stack([*maps, maps[-1]])
            notes += _made_up(count, length, recipe.time)
    return media, list(dict.fromkeys(notes))


def _map(flow: NDArray[np.float32], spec: InputSpec, recipe: PreprocessRecipe) -> NDArray[np.float32]:
    return flow_map(flow, spec, remove_head=recipe.head_motion == "remove", shear=recipe.strain_shear)


def _check_moves(flows: Sequence[NDArray[np.float32]], where: str) -> None:
    import cv2

    if max(cv2.mean(cv2.magnitude(*flow))[0] for flow in flows) < STILL:
        raise MediaError(
            f"there is no movement between {where} (a still picture?), so there is no flow to recognise; give the "
            "frames of an expression."
        )


def _made_up(count: int, length: int, method: str) -> list[str]:
    if count >= length:
        return []
    return [f"the clip has {count} frames; {length} were interpolated from them ({method})."]


def _image(crop: Frame, size: tuple[int, int]) -> NDArray[np.uint8]:
    import cv2

    planes: NDArray[np.uint8] = np.stack(cv2.split(crop)).astype(np.uint8, copy=False)
    return planes if planes.shape[1:] == size else _eight_bit(resize_area(planes, size))


def _eight_bit(brightness: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(np.clip(brightness, 0, 255)).astype(np.uint8)


def _as_floats(media: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {
        kind: array.astype(np.float32) / np.float32(255) if array.dtype == np.uint8 else array
        for kind, array in media.items()
    }


# -- clip sets --------------------------------------------------------------------------------------------------------


class _Maker:
    """Makes the media of one clip when the first of its kinds is read, and keeps a few."""

    def __init__(self, make: _ClipMaker) -> None:
        self._make = make
        self._kept: OrderedDict[int, dict[str, NDArray[np.float32]]] = OrderedDict()
        self._bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make, "_kept": OrderedDict(), "_bytes": 0}

    def __call__(self, row: int) -> dict[str, NDArray[np.float32]]:
        if row not in self._kept:
            self._kept[row] = self._make(row).media
            self._bytes += _bytes(self._kept[row])
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                self._bytes -= _bytes(self._kept.popitem(last=False)[1])
        self._kept.move_to_end(row)
        return self._kept[row]


def _bytes(media: Mapping[str, NDArray[np.float32]]) -> int:
    return sum(array.nbytes for array in media.values())


@dataclass(frozen=True)
class FrameMediaStore:
    """One kind of medium of clips that are made from their recordings when they are read."""

    spec: InputSpec
    count: int
    maker: _Maker

    def __len__(self) -> int:
        return self.count

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Make the asked rows; a recording that cannot be used raises `RowError`, which the clip set names."""
        out = np.empty((len(rows), *self.spec.shape), np.float32)
        for place, row in enumerate(rows.tolist()):
            try:
                out[place] = self.maker(row)[self.spec.kind]
            except RowError:
                raise
            except MediaError as error:
                raise RowError(row, str(error)) from error
        return out


def clips_from_frames(
    sequences: Sequence[Any],
    labels: Sequence[str | None] | None,
    *,
    specs: Sequence[InputSpec] | InputSpec,
    onsets: Sequence[int | None] | None = None,
    apexes: Sequence[int | None] | None = None,
    offsets: Sequence[int | None] | None = None,
    subjects: Sequence[str] | str | None = None,
    datasets: Sequence[str] | str = "mine",
    ids: Sequence[str] | None = None,
    aus: Sequence[str] | None = None,
    recipe: PreprocessRecipe | None = None,
    lazy: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ClipSet:
    """Make a clip set of recordings, one frame sequence a clip.

    Parameters
    ----------
    sequences : sequence of N recordings
        Video files, folders of images, arrays or lists of images, see `open_frames`.
    labels : sequence of N labels or None, or None
    specs : InputSpec or sequence of InputSpec
        The media to make, one a kind, e.g. a backbone's `input_specs`.
    onsets, apexes, offsets : sequence of N frame numbers or None, optional
    subjects, datasets, ids, aus
        As in `ClipSet.from_arrays`.
    recipe : PreprocessRecipe, optional
    lazy : bool
        Make each clip's media when they are read (and again when they are read again) instead of now.
    progress : callable, optional
        Called with (clips done, clips in all).

    Returns
    -------
    ClipSet
        Its table has the columns ``onset``, ``apex``, ``offset`` (as used; as given when lazy), ``apex_from``
        (``"annotation"``, the method that finds it, or empty where no medium needs it), ``recipe`` (the hash) and
        ``notes``, which tell an apex that is spotted or stood in for and (unless lazy) frames that were made up.

    Raises
    ------
    MediaError
        A recording cannot be used; the message names the clip. Lazily made clips raise when they are read.
    DataError
        Lengths that differ, a doubled id.
    """
    import pandas as pd

    wanted = checked_specs(specs)
    steps = recipe or PreprocessRecipe()
    n = len(sequences)
    if not n:
        raise DataError("there are no recordings; a clip set needs at least one clip.")
    times = {
        name: _per_clip(name, values, n) for name, values in (("onset", onsets), ("apex", apexes), ("offset", offsets))
    }
    dataset = [datasets] * n if isinstance(datasets, str) else list(datasets)
    named = list(ids) if ids is not None else [f"{dataset[row]}-{row:0{len(str(n - 1))}d}" for row in range(n)]
    columns: dict[str, Sequence[Any]] = {
        "clip": named,
        "dataset": dataset,
        "subject": [subjects or ""] * n if subjects is None or isinstance(subjects, str) else list(subjects),
        "label": [None] * n if labels is None else list(labels),
        "aus": [""] * n if aus is None else list(aus),
    }
    for name, values in columns.items():
        if len(values) != n:
            raise DataError(f"there are {n} recordings but {len(values)} entries of {name!r}; give one a clip.")
    make = _ClipMaker(sequences, tuple(wanted), steps, steps.load_detector(), times)
    stores: dict[str, MediaStore] = {}
    specs_made = [made_spec(spec, steps) for spec in wanted]
    methods: list[str | None] = [None] * n
    if needs_apex(wanted):
        methods = [_apex_method(steps, apex) for apex in times["apex"]]
    notes = [APEX_NOTES.get(method or "", "") for method in methods]
    if lazy:
        maker = _Maker(make)
        stores = {spec.kind: FrameMediaStore(spec, n, maker) for spec in specs_made}
    else:
        arrays = {spec.kind: np.empty((n, *spec.shape), np.float32) for spec in specs_made}
        for row, made in enumerate(_made(make, named, n)):
            for kind, array in made.media.items():
                arrays[kind][row] = array
            times["onset"][row], times["apex"][row], times["offset"][row] = made.onset, made.apex, made.offset
            notes[row] = " ".join(filter(None, (notes[row], *made.notes)))
            if progress is not None:
                progress(row + 1, n)
        stores = {spec.kind: ArrayStore(arrays[spec.kind], spec) for spec in specs_made}
    frame = pd.DataFrame({name: pd.Series(list(values), dtype=object) for name, values in columns.items()})
    for name, values in times.items():
        frame[name] = pd.array(values, dtype="Int64")
    frame["apex_from"] = [apex_source(method) for method in methods]
    frame["recipe"] = steps.hash
    frame["notes"] = notes
    return ClipSet.from_table(frame, stores)


@dataclass(frozen=True)
class _ClipMaker:
    """All that it takes to make one clip's media by its row."""

    sequences: Sequence[Any]
    specs: tuple[InputSpec, ...]
    recipe: PreprocessRecipe
    detector: FaceDetector
    times: Mapping[str, Sequence[int | None]]

    def __call__(self, row: int) -> ClipMedia:
        return make_media(
            self.sequences[row],
            self.specs,
            recipe=self.recipe,
            detector=self.detector,
            onset=self.times["onset"][row],
            apex=self.times["apex"][row],
            offset=self.times["offset"][row],
        )


def _made(make: _ClipMaker, names: Sequence[str], n: int) -> Iterator[ClipMedia]:
    for row in range(n):
        try:
            yield make(row)
        except MediaError as error:
            raise type(error)(f"clip {names[row]!r}: {error}") from error


def _per_clip(name: str, values: Iterable[int | None] | None, n: int) -> list[int | None]:
    if values is None:
        return [None] * n
    listed = [None if value is None or value != value else int(value) for value in values]
    if len(listed) != n:
        raise DataError(f"there are {n} recordings but {len(listed)} {name} frames; give one a clip, or None.")
    return listed


def made_spec(spec: InputSpec, recipe: PreprocessRecipe) -> InputSpec:
    """What is held then: the flow method is known."""
    if spec.kind not in ("flow", "flows"):
        return spec
    return replace(spec, flow_method=spec.flow_method or recipe.flow)
