"""What a clip set shows of itself: counts and a few flow maps as HTML, and flow maps by class as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fsmer.data.clip import Clip, listed
from fsmer.data.shown_flow import Array, flow_kind, flows_of
from fsmer.drawing import flow_tiles, grid_figure
from fsmer.errors import DataError, FsmerError, SpecMismatchError
from fsmer.html import Facts, Grid, Pictures, object_html
from fsmer.text import one_line, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fsmer.data.clips import ClipSet

__all__ = ["clips_figure", "clips_html", "clips_text", "maps_by_class"]

Codes = NDArray[np.int64]
UNLABELLED = "no label"
# Clips in a strip of maps, and classes and clips of each in a figure.
STRIP, MAX_CLASSES, MOST_OF_CLASS = 6, 12, 24


def clips_text(clips: ClipSet) -> str:
    """The set in one line: its size, data sets, labels and media."""
    labels, label_codes, datasets, dataset_codes = _codings(clips)
    parts = (
        f"{len(clips)} clips",
        _counted(datasets, dataset_codes) or "no data set",
        _counted(labels, label_codes) or "no labels",
        "; ".join(spec.describe() for spec in clips.specs.values()) or "no media",
    )
    return f"ClipSet({'; '.join(shortened(one_line(part), 90) for part in parts)})"


def _codings(clips: ClipSet) -> tuple[list[str], Codes, list[str], Codes]:
    """Labels and data sets that occur, each with the index of every clip's own; -1 for none."""
    table = clips.table
    coded = [table[name].cat for name in ("label", "dataset")]
    (labels, of_label), (datasets, of_dataset) = (
        (one.categories.tolist(), one.codes.to_numpy(np.int64)) for one in coded
    )
    return labels, of_label, datasets, of_dataset


def _counted(names: list[str], codes: Codes) -> str:
    counts = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
    return ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))


def clips_html(clips: ClipSet) -> str:
    """Counts by data set and class, people, media, and flow maps of a few clips; never a picture of a face."""
    labels, label_codes, datasets, dataset_codes = _codings(clips)
    counts = np.zeros((len(datasets), len(labels) + 1), dtype=np.int64)
    np.add.at(counts, (dataset_codes, label_codes), 1)  # -1 is the last column
    head = ["data set", "people", "clips", *labels, *([UNLABELLED] if counts[:, -1].any() else [])]
    people = clips.subject_names
    rows: list[list[Any]] = []
    for name, own in zip(datasets, counts, strict=True):
        rows.append([name, sum(dataset == name for dataset, _ in people), int(own.sum()), *own.tolist()][: len(head)])
    if len(rows) > 1:
        rows.append(["all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])])
    media = [("media", spec.describe()) for spec in clips.specs.values()] or [("media", "none")]
    parts: list[Any] = [
        Grid("Clips by data set and class", head, rows),
        Facts(media),
    ]
    strip, flaw = _strip(clips)
    if strip:
        parts.append(Pictures("Flow maps: u, v and strain (blue below zero, red above; strain darker)", strip))
    nouns = ("clip" if len(clips) == 1 else "clips", "person" if len(people) == 1 else "people")
    title = f"ClipSet: {len(clips):,} {nouns[0]} of {len(people):,} {nouns[1]}"
    return object_html(title, *parts, note=flaw)


def _strip(clips: ClipSet) -> tuple[list[tuple[bytes, str, str]], str]:
    """Pictures of a few clips, and why one cannot be shown."""
    kind = flow_kind(clips.specs)
    found: list[tuple[bytes, str, str]] = []
    for clip in _in_turn(clips, STRIP) if kind else ():
        try:
            flow = _flow_of(clip, kind)
        except FsmerError as error:
            return found, f"A map cannot be shown: {error}"
        label = clip.label or UNLABELLED
        found.append((flow_tiles(flow), f"Flow map of clip {clip.id}, {label}", f"{label}: {clip.id}"))
    return found, ""


def _in_turn(clips: ClipSet, count: int) -> list[Clip]:
    """The first clips of each class, classes in turn."""
    own = _places_by_class(clips).values()
    turns = sorted((turn, row, place) for row, places in enumerate(own) for turn, place in enumerate(places[:count]))
    return [clips[place] for _, _, place in turns[:count]]


def _places_by_class(clips: ClipSet) -> dict[str, list[int]]:
    labels, codes, _, _ = _codings(clips)
    found = {name: np.flatnonzero(codes == number).tolist() for number, name in enumerate(labels)}
    unlabelled = np.flatnonzero(codes < 0).tolist()
    return {**found, UNLABELLED: unlabelled} if unlabelled else found


def _flow_of(clip: Clip, kind: str) -> Array:
    return next(flow for _, flow in flows_of({kind: (clip.media[kind].spec, clip.read(kind))}))


def maps_by_class(
    clips: ClipSet, count: int, classes: Sequence[str] | None = None
) -> dict[str, list[tuple[str, Array]]]:
    """The flow maps of the first `count` clips of each class with their ids, for a figure.

    Raises
    ------
    SpecMismatchError
        The clips hold no flow.
    MediaError
        A map cannot be read.
    """
    kind = flow_kind(clips.specs)
    if not kind:
        raise SpecMismatchError(
            f"these clips hold {listed(clips.specs) or 'no media'}, but flow maps are drawn; prepare them with flow."
        )
    if not len(clips):
        raise DataError("the clip set holds no clips, so there is nothing to draw.")
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or not 1 <= count <= MOST_OF_CLASS:
        raise DataError(
            f"{count!r} clips of each class cannot be drawn; give a whole number from 1 to {MOST_OF_CLASS}."
        )
    places = _places_by_class(clips)
    names = list(places if classes is None else classes)[:MAX_CLASSES]
    found: dict[str, list[tuple[str, Array]]] = {}
    for name in names:
        shown = [clips[place] for place in places.get(name, [])[:count]]
        found[name] = [(clip.id, _flow_of(clip, kind)) for clip in shown]
    return found


def clips_figure(clips: ClipSet, count: int) -> Figure:
    """Flow maps by class."""
    shown = maps_by_class(clips, count)
    left = len(_places_by_class(clips)) - len(shown)
    more = f"; {left} more classes are not drawn" if left > 0 else ""
    return grid_figure({"": shown}, title=f"{len(clips):,} clips, the first {count} of each class{more}")
