"""Audit of clips and their media: what is listed twice, missing, unreadable, or nearly the same as something else."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fsmer.auditing import findings
from fsmer.auditing.findings import Audit, Findings, Severity, Table, either
from fsmer.data import ClipSet
from fsmer.data.images import opened_image
from fsmer.errors import DataError

__all__ = ["NEAR", "Media", "audit_clips", "check_media", "near_duplicates"]

# Correlation of two maps, averaged over a grid of 14 x 14 cells, from which they count as nearly the same: more than
# the two most alike of 309 real flow maps reach, less than a map keeps that is resized to double size and back, or gets
# noise of 2 % of its range (docs/results/honesty.csv).
NEAR = 0.97
GRID = 14
_ROWS = 1024
Pairs = list[tuple[int, int, float]]  # (row, row, correlation)


def near_duplicates(maps: Sequence[NDArray[Any]] | NDArray[Any], *, near: float = NEAR) -> list[tuple[int, int, float]]:
    """Pairs of maps that show nearly the same, whatever their brightness, contrast, size or slight noise.

    Every map is averaged over a grid of 14 x 14 cells, each channel brought to mean 0 and the whole to length 1; the
    product of two is their correlation. Maps without any variation match nothing.

    Parameters
    ----------
    maps : array of shape (N, channels, height, width), or list of arrays (channels, height, width)
        Of one number of channels.
    near : float
        Correlation from which a pair counts.

    Returns
    -------
    list of (row, row, correlation)
        The most alike first.
    """
    prints = [_fingerprint(np.asarray(one)) for one in maps]
    return _alike(np.stack(prints), near) if prints else []


def audit_clips(folder: Path, near: float) -> Audit:
    """Audit a folder of clips: its index, or the saved clip set, and the media."""
    out = Findings()
    if (folder / "clips.json").is_file():
        clips = ClipSet.load(folder)
        columns = {"clip": clips.ids, "dataset": clips.datasets, "subject": clips.subjects}
        table = pd.DataFrame({name: [str(value) for value in values] for name, values in columns.items()})
        if clips.table["label"].notna().any():
            table["label"] = ["" if label is None else str(label) for label in clips.labels]
        media = Media.of_clips(clips)
    else:
        given = Table.read(folder / "index.csv")
        table = given.frame.assign(dataset=given.frame["dataset"] if "dataset" in given else "")
        _check_index(folder / "index.csv", table, out)
        places = [findings.file_inside(folder, name) for name in table["file"]] if "file" in table else []
        files = [place for place in places if place is not None]
        there = np.array([place is not None for place in places], dtype=bool)
        out.looked_at("missing files")
        lost = ("map that the index names is", "maps that the index names are", "not in its folder or below")
        out.each("missing-file", "serious", table.loc[~there, "file"] if places else (), *lost)
        table = table.loc[there].reset_index(drop=True) if places else table
        media = Media.of_files(files)
    findings.check_identities(table, out)
    if "subject" in table and "label" in table:
        _check_few_subjects(table, out)
    if len(media):
        check_media(table, media, near, out)
    else:
        out.unchecked.append("the media, since none are there")
    counts = findings.counts_of(table) | {"clips": len(table), "data sets": table["dataset"].nunique()}
    return out.result(folder, "clips", counts)


def _check_index(index: Path, table: pd.DataFrame, out: Findings) -> None:
    out.looked_at("clips listed twice", "empty cells")
    twice = table.loc[table.duplicated(["dataset", "clip"], keep=False)].drop_duplicates(["dataset", "clip"])
    out.each("listed-twice", "serious", twice["clip"], "clip stands", "clips stand", f"twice in {index.name}")
    for column in ("clip", "subject", "label"):
        if column in table:
            rows = [f"row {row + 2}" for row in table.index[table[column] == ""]]
            out.each(f"empty-{column}", "warning", rows, "row has", "rows have", f"no {column}")


def _check_few_subjects(table: pd.DataFrame, out: Findings) -> None:
    out.looked_at("classes of a single subject")
    labelled = table[table["label"] != ""]
    people = labelled.drop_duplicates(["label", "dataset", "subject"]).groupby("label", sort=True).size()
    lonely = [str(label) for label, count in people.items() if count < 2]
    if lonely and len(labelled.drop_duplicates(["dataset", "subject"])) > 1:
        message = f"All clips that are {either(lonely)} come from one subject, so a fold that leaves that subject out "
        out.add("class-not-taught", "warning", f"{message}cannot learn it", lonely)


@dataclass(frozen=True)
class Media:
    """Fingerprints and digests of media, and what could not be read."""

    features: NDArray[np.float32]
    digests: list[str]
    broken: dict[int, str]

    def __len__(self) -> int:
        return len(self.digests)

    @classmethod
    def of_files(cls, files: Sequence[Path]) -> Media:
        def read(row: int) -> NDArray[np.float32]:
            # Its header is checked first, as a small file may hold a huge picture.
            with opened_image(files[row]):
                image = cv2.imdecode(np.frombuffer(files[row].read_bytes(), np.uint8), cv2.IMREAD_COLOR)
            if image is None:
                raise DataError("is no image that can be read")
            return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)

        return cls._of(len(files), read)

    @classmethod
    def of_clips(cls, clips: ClipSet) -> Media:
        kinds = list(clips.specs)
        if not kinds:
            return cls(np.zeros((0, 0), dtype=np.float32), [], {})

        def read(row: int) -> NDArray[np.float32]:
            if "flow" in kinds:
                return clips.read("flow", [row])[0]
            if "onset" in kinds and "apex" in kinds:
                # Two neutral faces of one person are alike; what changed between onset and apex is not.
                return clips.read("apex", [row])[0] - clips.read("onset", [row])[0]
            medium = clips.read(kinds[0], [row])[0]
            return medium.reshape(-1, *medium.shape[-2:])

        return cls._of(len(clips), read)

    @classmethod
    def _of(cls, count: int, read: Callable[[int], NDArray[np.float32]]) -> Media:
        features: list[NDArray[np.float32]] = []
        digests: list[str] = []
        broken: dict[int, str] = {}
        for row in range(count):
            try:
                medium = np.ascontiguousarray(read(row))
            except (OSError, DataError, cv2.error) as error:
                broken[row] = str(error)
                features.append(np.zeros(0, dtype=np.float32))
                digests.append(f"broken {row}")
            else:
                features.append(_fingerprint(medium))
                digests.append(hashlib.sha256(medium.tobytes() + str(medium.shape).encode()).hexdigest())
        table = np.zeros((count, max(map(len, features), default=0)), dtype=np.float32)
        for row, one in enumerate(features):
            # Media of another number of channels are like no other.
            if len(one) == table.shape[1]:
                table[row] = one
        return cls(table, digests, broken)


def check_media(
    table: pd.DataFrame, media: Media, near: float, out: Findings, *, sides: pd.DataFrame | None = None
) -> None:
    """Exact and near-duplicates among the clips of `table`, whose rows are those of `media`."""
    out.looked_at("media that cannot be read", "duplicated media", "nearly the same media")
    clips = table["clip"].tolist()
    broken = [clips[row] for row in media.broken]
    out.each("unreadable-media", "serious", broken, "medium cannot", "media cannot", "be read")
    flat = [clips[row] for row in np.flatnonzero(~media.features.any(axis=1)) if row not in media.broken]
    out.each("constant-media", "warning", flat, "clip shows", "clips show", "no variation at all")
    same: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(media.digests):
        same[digest].append(row)
    exact = [(rows[0], other, 1.0) for rows in same.values() for other in rows[1:]]
    group = {row: rows[0] for rows in same.values() for row in rows}
    alike = [pair for pair in _alike(media.features, near) if group[pair[0]] != group[pair[1]]]
    for check, what, pairs in (
        ("duplicated-media", "the same media under two names", exact),
        ("near-duplicate-media", "nearly the same media", alike),
    ):
        if pairs:
            _add_pairs(check, what, pairs, table, out, sides)


def _add_pairs(
    check: str, what: str, pairs: Pairs, table: pd.DataFrame, out: Findings, sides: pd.DataFrame | None
) -> None:
    rows = table.to_dict("records")
    across_sets = sum(rows[a]["dataset"] != rows[b]["dataset"] for a, b, _ in pairs)
    people = sum(
        (rows[a]["dataset"], rows[a].get("subject", "")) != (rows[b]["dataset"], rows[b].get("subject", ""))
        for a, b, _ in pairs
    )
    leaking = people > 0
    tail = f"; {people:,} of two people, so that a protocol may put one on each side" if people else "; of one person"
    if sides is not None:
        crossing = _crossing([(rows[a], rows[b]) for a, b, _ in pairs], sides)
        leaking = crossing > 0
        tail = f"; {crossing:,} with one on the training and the other on the test side of a fold" if crossing else ""
    if across_sets:
        tail += f"; {across_sets:,} across data sets"
    # Nearly the same media of one person may be two expressions of the same kind.
    severity: Severity = "serious" if leaking else "warning"
    names = [f"{row['clip']}{findings.of_dataset(row['dataset'])}" for row in rows]
    words = [f"{names[a]} and {names[b]}" + ("" if near == 1 else f" ({near:.3f})") for a, b, near in pairs]
    out.each(check, severity, words, "pair of clips shows", "pairs of clips show", f"{what}{tail}")
    if "label" in table:
        unlike = [
            f"{rows[a]['clip']} {rows[a]['label']} and {rows[b]['clip']} {rows[b]['label']}"
            for a, b, _ in pairs
            if rows[a]["label"] != rows[b]["label"]
        ]
        one, many = f"pair that shows {what} has", f"pairs that show {what} have"
        out.each("labels-disagree", "serious", unlike, one, many, "two labels")


def _crossing(pairs: Sequence[tuple[Mapping[str, str], Mapping[str, str]]], sides: pd.DataFrame) -> int:
    """How many pairs have a fold that learns from one and is judged on the other."""
    places: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for fold, side, dataset, clip in sides[["fold", "side", "dataset", "clip"]].itertuples(index=False, name=None):
        places[dataset, clip].add((fold, side))
    turned = {"train": "test", "test": "train"}
    return sum(
        any(
            (fold, turned[side]) in places[b["dataset"], b["clip"]]
            for fold, side in places[a["dataset"], a["clip"]]
            if side in turned
        )
        for a, b in pairs
    )


def _fingerprint(medium: NDArray[Any]) -> NDArray[np.float32]:
    """A map (channels, height, width) as one row of length 1; all zeros where it does not vary."""
    values = np.ascontiguousarray(np.asarray(medium, dtype=np.float32).transpose(1, 2, 0))
    cells = cv2.resize(values, (GRID, GRID), interpolation=cv2.INTER_AREA).reshape(GRID * GRID, -1)
    cells = cells - cells.mean(axis=0)
    length = float(np.linalg.norm(cells))
    if not np.isfinite(length) or length <= 1e-6 * max(float(np.abs(values).max()), 1e-12):
        return np.zeros(cells.size, dtype=np.float32)
    return (cells / length).astype(np.float32).ravel()


def _alike(features: NDArray[np.float32], near: float) -> Pairs:
    """Pairs of rows whose product reaches `near`, a block of rows at a time, the most alike first."""
    pairs: Pairs = []
    for start in range(0, len(features), _ROWS):
        block = features[start : start + _ROWS] @ features[start:].T
        first, second = np.nonzero(block >= near)
        keep = second > first
        pairs += [
            (start + int(a), start + int(b), min(float(block[a, b]), 1.0))
            for a, b in zip(first[keep], second[keep], strict=True)
        ]
    return sorted(pairs, key=lambda pair: -pair[2])
