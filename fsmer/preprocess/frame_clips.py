"""Clip sets of recordings whose media are made now or when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsmer.data.clips import ClipSet
from fsmer.data.media import ArrayStore, MediaStore, RowError
from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, MediaError
from fsmer.preprocess.face_detectors import FaceDetector
from fsmer.preprocess.frame_source import Recent
from fsmer.preprocess.media import ClipMedia, apex_method, apex_source, checked_specs, made_spec, make_media, needs_apex
from fsmer.preprocess.recipe import PreprocessRecipe

__all__ = ["clips_from_frames"]

# Bytes of finished clips that a lazy clip set keeps, so that its kinds of media are made in one go.
KEPT_BYTES = 64 << 20
# Notes on an apex that is not annotated, by the method that finds it.
APEX_NOTES = {name: f"the apex is spotted ({name})." for name in ("flow", "difference")}
APEX_NOTES["middle"] = "the middle frame stands for the apex."


def _bytes(made: ClipMedia) -> int:
    return sum(array.nbytes for array in made.media.values())


@dataclass(frozen=True)
class _ClipMaker:
    """Makes the media of one clip, all kinds at once, and keeps those of a few clips."""

    sequences: Sequence[Any]
    specs: tuple[InputSpec, ...]
    recipe: PreprocessRecipe
    detector: FaceDetector
    times: Mapping[str, Sequence[int | None]]
    kept: Recent[ClipMedia] = field(default_factory=lambda: Recent(KEPT_BYTES, _bytes))

    def __call__(self, row: int) -> ClipMedia:
        times: dict[str, Any] = {name: values[row] for name, values in self.times.items()}
        return make_media(self.sequences[row], self.specs, recipe=self.recipe, detector=self.detector, **times)


@dataclass(frozen=True)
class FrameMediaStore:
    """One kind of medium of clips that are made from their recordings when they are read."""

    spec: InputSpec
    maker: _ClipMaker

    def __len__(self) -> int:
        return len(self.maker.sequences)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Make the asked rows; a recording that cannot be used raises `RowError`, which the clip set names."""
        out = np.empty((len(rows), *self.spec.shape), np.float32)
        for place, row in enumerate(rows.tolist()):
            try:
                out[place] = self.maker.kept.get(row, self.maker).media[self.spec.kind]
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
        The label of each clip; None for one without.
    specs : InputSpec or sequence of InputSpec
        The media to make, one a kind, e.g. a backbone's `input_specs`.
    onsets, apexes, offsets : sequence of N frame numbers, optional
        As for `media_from_frames`; an entry of None stands for the default of that clip.
    subjects : sequence of N or str, optional
        Who each clip shows, see `ClipSet.from_arrays`.
    datasets : sequence of N or str, default "mine"
        Where each clip is from.
    ids, aus : sequence of N, optional
        Unique ids, and action units as the annotation writes them.
    recipe : PreprocessRecipe, optional
        Default: face found by the cascade, apex as given or spotted by flow, Farneback, TIM.
    lazy : bool, default False
        Make each clip's media when they are read (and again when they are read again) instead of now.
    progress : callable, optional
        Called with (clips done, clips in all).

    Returns
    -------
    ClipSet
        Its table has the columns ``onset``, ``apex``, ``offset`` (as used; as given when lazy), ``apex_from``
        (``"annotation"``, the method that finds it, or empty where no medium needs it), ``recipe`` (the hash) and
        ``notes``, on an apex that is spotted or replaced and (unless lazy) on frames that were interpolated.

    Raises
    ------
    MediaError
        A recording cannot be used; the message names the clip. Lazily made clips raise when they are read.
    DataError
        Lengths that differ, a doubled id.

    Examples
    --------
    >>> import fsmer
    >>> from fsmer.synthetic.recordings import synthetic_videos
    >>> drawn = [video.frames for video in synthetic_videos(2, size=96, frames=12)]
    >>> recipe = fsmer.PreprocessRecipe(detector="cropped")
    >>> clips = fsmer.clips_from_frames(
    ...     drawn, ["positive", "negative"], specs=fsmer.InputSpec(), apexes=[6, 6], recipe=recipe
    ... )
    >>> clips.media().shape, clips.table["apex_from"].tolist()
    ((2, 3, 28, 28), ['annotation', 'annotation'])
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
    stores: Mapping[str, MediaStore]
    specs_made = [made_spec(spec, steps) for spec in wanted]
    methods = [apex_method(steps, apex) if needs_apex(wanted) else None for apex in times["apex"]]
    notes = [APEX_NOTES.get(method or "", "") for method in methods]
    if lazy:
        stores = {spec.kind: FrameMediaStore(spec, make) for spec in specs_made}
    else:
        arrays = {spec.kind: np.empty((n, *spec.shape), np.float32) for spec in specs_made}
        for row in range(n):
            try:
                made = make(row)
            except MediaError as error:
                raise type(error)(f"clip {named[row]!r}: {error}") from error
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
    frame = frame.assign(apex_from=[apex_source(method) for method in methods], recipe=steps.hash, notes=notes)
    return ClipSet.from_table(frame, stores)


def _per_clip(name: str, values: Iterable[int | None] | None, n: int) -> list[int | None]:
    if values is None:
        return [None] * n
    listed = [None if value is None or value != value else int(value) for value in values]
    if len(listed) != n:
        raise DataError(f"there are {n} recordings but {len(listed)} {name} frames; give one a clip, or None.")
    return listed
