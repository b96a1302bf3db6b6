"""Clip sets of drawn frame sequences, rendered when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsmer.data.clips import ClipSet
from fsmer.data.spec import COLOURS, InputSpec
from fsmer.errors import DataError, unknown_name
from fsmer.synthetic.domains import Domain, clip_table, load_domain
from fsmer.synthetic.drawn_recording import SyntheticRecording
from fsmer.synthetic.flow_maps import min_max, optical_strain
from fsmer.synthetic.recordings import check_request, draw_clip, draw_script
from fsmer.synthetic.scene import Array, Camera, Image, checked_size
from fsmer.synthetic.unit_sets import UnitSet, dealt_codes, unit_set

_IMAGE = (COLOURS,), ("unit",)
_FLOW = (("u", "v"), ("u", "v", "strain")), ("minmax", "signed")
# Channels, normalisations and the least number of frames, of every kind of medium.
_KINDS: dict[str, tuple[tuple[tuple[str, ...], ...], tuple[str, ...], int | None]] = {
    **dict.fromkeys(("onset", "apex"), (*_IMAGE, None)),
    "frames": (*_IMAGE, 1),
    "flow": (*_FLOW, None),
    "flows": (*_FLOW, 2),
}


@dataclass(frozen=True)
class _FrameStore:
    """One medium of synthetic clips, drawn when it is read."""

    spec: InputSpec
    domain: Domain
    clips: int
    options: dict[str, Any]
    asked: Sequence[UnitSet | None]  # of each clip, its class

    def __len__(self) -> int:
        return self.clips

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Draw the asked rows."""
        out = np.empty((len(rows), *self.spec.shape), np.float32)
        for place, row in enumerate(rows.tolist()):
            out[place] = self._medium(
                draw_clip(self.domain, row, size=self.spec.size, units=self.asked[row], **self.options)
            )
        return out

    def _medium(self, recording: SyntheticRecording) -> Array:
        interval = recording.intervals[0]
        if self.spec.kind in ("onset", "apex"):
            return _channels_first(recording.frame(getattr(interval, self.spec.kind)))
        if self.spec.kind == "flow":
            return self._maps(recording.flow(interval.onset, interval.apex)[None])[0]
        times = np.round(np.linspace(0, len(recording) - 1, self.spec.frames or 1)).astype(int).tolist()
        if self.spec.kind == "frames":
            return np.stack([_channels_first(recording.frame(time)) for time in times])
        steps = [recording.flow(*pair) for pair in pairwise(times)]
        return self._maps(np.stack([*steps, steps[-1]]))

    def _maps(self, flow: Array) -> Array:
        """Flow in pixels, (N, 2, height, width), as the spec wants it."""
        maps = flow * np.float32(1000 / self.spec.size[1])
        if "strain" in self.spec.channels:
            maps = np.concatenate([maps, optical_strain(maps)[:, None]], axis=1)
        return maps if self.spec.normalisation == "signed" else min_max(maps)


def _check_spec(spec: InputSpec) -> None:
    if spec.kind not in _KINDS:
        raise unknown_name("kind of medium", spec.kind, _KINDS)
    channels, normalisations, least = _KINDS[spec.kind]
    lasts = spec.frames is None if least is None else (spec.frames or 0) >= least
    if spec.channels not in channels or spec.normalisation not in normalisations or not lasts:
        length = "" if least is None else f" and {least} frames or more"
        raise DataError(
            f"{spec.describe()} cannot be drawn: {spec.kind} has channels "
            f"{' or '.join(', '.join(names) for names in channels)}, "
            f"normalisation {' or '.join(normalisations)}{length}."
        )
    checked_size(spec.size)


def _channels_first(frame: Image) -> Array:
    return np.moveaxis(frame, -1, 0).astype(np.float32) / np.float32(255)


def synthetic_frame_clips(
    domain: str | Domain = "lab",
    n: int = 60,
    *,
    seed: int = 0,
    specs: Sequence[InputSpec],
    subjects: int = 20,
    frames: int = 24,
    frames_per_second: float = 100.0,
    camera: Camera | None = None,
    classes: Sequence[UnitSet | str] = (),
) -> ClipSet:
    """A clip set of synthetic sequences with the media that are asked for, drawn when they are read.

    Flow is the true one. The table is that of `fsmer.synthetic.synthetic_clips`: label, action units and emotion.

    Clip i is video i of `synthetic_videos` of the same options; `frames` is the length of the sequences themselves.
    Specs are one a medium: images (``"onset"``, ``"apex"``, ``"frames"``) in red, green and blue from 0 to 1, maps
    (``"flow"``, ``"flows"``) in u, v and maybe strain. ``"frames"`` are spread evenly over the sequence; ``"flows"``
    lead from each of them to the next, the last one again. Classes are sets of action units, as in `synthetic_clips`;
    they differ in units and side, not in timing. A `DataError` is raised for a number that is out of range or a medium
    that cannot be drawn.
    """
    place = load_domain(domain)
    check_request(seed, frames, frames_per_second)
    if n < 1 or subjects < 1:
        raise DataError(f"cannot draw {n} clips of {subjects} subjects: both must be 1 or more.")
    if not specs:
        raise DataError("no media were asked for: give at least one InputSpec, for instance that of a backbone.")
    for spec in specs:
        _check_spec(spec)
    if len({spec.kind for spec in specs}) < len(specs):
        raise DataError("two specs ask for one kind of medium: give one spec a kind.")
    options: dict[str, Any] = {"seed": seed, "subjects": subjects, "camera": camera or Camera.of(place)}
    options |= {"frames": frames, "frames_per_second": frames_per_second}
    name, sets = f"{place.name}_frames_{seed}", [unit_set(one) for one in classes]
    asked: list[UnitSet | None] = [None] * n
    if sets:
        name, asked = f"{name}_units", [sets[code] for code in dealt_codes(sets, n, seed).tolist()]
    drawn = [draw_script(place, seed, index, index % subjects, asked[index])[2] for index in range(n)]
    emotions = [] if sets else [movement.emotion for movement in drawn]
    labels = [one.name for one in asked if one is not None]
    units = [movement.units for movement in drawn]
    frame = clip_table(place, name, subjects, units, emotions=emotions, labels=labels)
    stores = {spec.kind: _FrameStore(replace(spec, flow_method=None), place, n, options, asked) for spec in specs}
    return ClipSet.from_table(frame, media=stores)
