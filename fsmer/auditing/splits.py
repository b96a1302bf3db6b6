"""Audit of divisions into training and test sides: tables of splits, and the folders of the STSTNet release."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from fsmer.auditing import findings
from fsmer.auditing.findings import Audit, Findings, Severity, Table, number
from fsmer.auditing.media import Media, check_media
from fsmer.data.ststnet_release import IMAGE_ENDINGS, STSTNET_DATASETS, STSTNET_FOLDER, STSTNET_LABELS
from fsmer.errors import DataError
from fsmer.io import file_digest

__all__ = ["audit_splits", "audit_ststnet"]

# Clips in all folds together, each fold with those of its training side.
MOST_ROWS = 20_000_000
# A validation side that shares people with the training side chooses too boldly, but touches no test figure.
_SIDE_PAIRS: tuple[tuple[str, str, Severity], ...] = (
    ("train", "test", "serious"),
    ("validation", "test", "serious"),
    ("train", "validation", "warning"),
)


def audit_splits(path: Path, given: Table, near: float) -> Audit:
    """Audit a table that deals clips to folds or to training and test sides."""
    out = Findings()
    table = given.frame.assign(dataset=given.frame["dataset"] if "dataset" in given else "")
    if "fold" not in table:
        table["fold"] = "the split"
    if "side" not in table:
        # Each clip with the fold that tests it; the others teach that fold.
        if table["fold"].nunique() < 2:
            raise DataError(
                f"{path} puts all clips in fold {table['fold'].iloc[0]!r} and has no column that says train or test; "
                "give the fold that tests each clip, or the sides."
            )
        folds = sorted(table["fold"].unique())
        if len(folds) * len(table) > MOST_ROWS:
            raise DataError(
                f"{path} deals {len(table):,} clips to {len(folds):,} folds, which is more than can be looked through; "
                "check which of its columns names the fold."
            )
        whole = pd.concat(
            [
                table.assign(side=np.where(table["fold"] == fold, "test", "train"), own=table["fold"], fold=fold)
                for fold in folds
            ],
            ignore_index=True,
        )
    else:
        whole = table
    _check_sides(whole, out)
    _check_both_sides(whole, "clip", out)
    if "subject" in whole:
        _check_both_sides(whole, "subject", out)
    findings.check_identities(whole, out)
    if "label" in whole:
        _check_taught(whole, out)
    else:
        out.unchecked.append("labels, since the table has no column for them")
    _check_tested_once(whole, out, explicit="side" in given)
    files = table.drop_duplicates(["dataset", "clip"]) if "file" in table else table[:0]
    places = [findings.file_inside(path.parent, name) for name in files["file"]] if len(files) else []
    there = [place for place in places if place is not None]
    if there and len(there) == len(places):
        media = Media.of_files(there)
        check_media(files, media, near, out, sides=whole)
    else:
        out.unchecked.append("the media, since the table does not name files beside or below it")
    return out.result(path, "splits", findings.counts_of(whole) | {"folds": whole["fold"].nunique()})


def _check_sides(table: pd.DataFrame, out: Findings) -> None:
    out.looked_at("folds without a side")
    for side, word in (("train", "training"), ("test", "test")):
        there = set(table.loc[table["side"] == side, "fold"])
        gone = [fold for fold in dict.fromkeys(table["fold"]) if fold not in there]
        out.each("missing-side", "serious", gone, "fold has", "folds have", f"no {word} side")
    numbers = sorted({int(fold) for fold in table["fold"].unique() if re.fullmatch(r"\d{1,18}", fold)})
    if len(numbers) == table["fold"].nunique():
        lacking = numbers[-1] - numbers[0] + 1 - len(numbers)
        # One after each number that has no successor: there may be far more than could be listed.
        gaps = [one + 1 for one, other in pairwise(numbers) if other > one + 1]
        out.each("missing-fold", "warning", gaps, "number is", "numbers are", "missing among the folds", lacking)


def _check_both_sides(table: pd.DataFrame, what: str, out: Findings) -> None:
    """No clip or subject (`what`) on two sides of one fold."""
    out.looked_at("clips on both sides" if what == "clip" else "subjects on both sides of a fold")
    for first, second, severity in _SIDE_PAIRS:
        both = _shared(table, ["dataset", what], first, second)
        if both:
            here = number(len({key[1:] for key in both}), f"{what} is", f"{what}s are")
            folds = f"{len({key[0] for key in both}):,} of {table['fold'].nunique():,} folds"
            message = f"{here} on the {first} and the {second} side of the same fold (in {folds})"
            words = [f"{name}{findings.of_dataset(dataset)} in fold {fold}" for fold, dataset, name in both]
            out.add(f"{what}-on-both-sides", severity, message, words)


def _shared(table: pd.DataFrame, keys: list[str], first: str, second: str) -> list[tuple[str, str, str]]:
    """(fold, *keys) of what is on both sides, sorted."""
    sides = [
        set(table.loc[table["side"] == side, ["fold", *keys]].drop_duplicates().itertuples(index=False, name=None))
        for side in (first, second)
    ]
    return sorted(sides[0] & sides[1])


def _check_taught(table: pd.DataFrame, out: Findings) -> None:
    out.looked_at("classes absent from a training side")
    taught = set(table.loc[table["side"] == "train", ["fold", "label"]].itertuples(index=False, name=None))
    asked = table.loc[table["side"] == "test", ["fold", "label"]].drop_duplicates().itertuples(index=False, name=None)
    folds = {fold for fold, _ in taught}
    lacking = sorted((fold, label) for fold, label in asked if (fold, label) not in taught and fold in folds)
    if lacking:
        where = number(len({fold for fold, _ in lacking}), "fold", "folds")
        message = f"In {where} a class that is asked for is absent from the training side"
        out.add("class-not-taught", "warning", message, (f"{label!r} in fold {fold}" for fold, label in lacking))
    never = sorted(set(table["label"]) - set(table.loc[table["side"] == "test", "label"]))
    out.each("class-absent", "warning", never, "class is", "classes are", "asked for in no fold")


def _check_tested_once(table: pd.DataFrame, out: Findings, explicit: bool) -> None:
    if not explicit or table["fold"].nunique() < 2:
        return
    out.looked_at("clips that are tested never or twice")
    tests = table[table["side"] == "test"].drop_duplicates(["fold", "dataset", "clip"])
    times = tests.groupby(["dataset", "clip"], sort=True).size()
    several = [clip for _, clip in times[times > 1].index]
    rest = "on the test side of more than one fold, which pooled figures count repeatedly"
    out.each("tested-twice", "warning", several, "clip is", "clips are", rest)
    every = set(table[["dataset", "clip"]].itertuples(index=False, name=None))
    never = [clip for _, clip in sorted(every - set(times.index))]
    whole = f"of {len(every):,} clips"
    rest = "on no test side, so a fold may be missing"
    out.each("never-tested", "warning", never, f"{whole} is", f"{whole} are", rest)


def audit_ststnet(folder: Path, near: float) -> Audit:
    """Audit folders ``<subject>/u_train|u_test/<label>`` of maps."""
    root = folder / STSTNET_FOLDER if (folder / STSTNET_FOLDER).is_dir() else folder
    out = Findings()
    people = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    rows: list[tuple[str, str, str, str, str, str]] = []
    strange: list[str] = []
    for person in people:
        dataset = next(
            (name for pattern, name in STSTNET_DATASETS.items() if re.fullmatch(pattern, person.name, re.IGNORECASE)),
            "unknown",
        )
        for side in ("train", "test"):
            for place in sorted((person / f"u_{side}").glob("*")):
                if not place.is_dir() or place.name.startswith("."):
                    continue
                if place.name not in STSTNET_LABELS:
                    strange.append(str(place.relative_to(root)))
                    continue
                label = STSTNET_LABELS[place.name]
                rows += [
                    (person.name, side, label, file.stem, str(file), dataset)
                    for file in sorted(place.iterdir())
                    if file.suffix.lower() in IMAGE_ENDINGS and not file.name.startswith(".") and file.is_file()
                ]
    if not rows:
        raise DataError(
            f"{root} holds no maps as <subject>/u_train|u_test/<0|1|2>/<clip>.png; give the folder {STSTNET_FOLDER}."
        )
    table = pd.DataFrame(rows, columns=["fold", "side", "label", "clip", "file", "dataset"])
    called = ("class folder is", "class folders are", "called neither 0 nor 1 nor 2")
    out.each("unknown-class", "serious", strange, *called)
    everybody = pd.DataFrame({"fold": [person.name for person in people], "side": "none"})
    _check_sides(pd.concat([table, everybody], ignore_index=True), out)
    tested = table[table["side"] == "test"]
    owners = tested.groupby("clip", sort=True)["fold"].unique()
    twice = [f"{clip}: {' and '.join(names)}" for clip, names in owners.items() if len(names) > 1]
    rest = "on the test side of more than one subject"
    out.each("tested-twice", "serious", twice, "clip is", "clips are", rest)
    owner = {clip: names[0] for clip, names in owners.items()}
    of = dict(zip(tested["fold"], tested["dataset"], strict=True))
    # The folder is the subject that is tested; a clip is of the subject in its name, or else of that which tests it.
    known = {person.name.lower(): person.name for person in people}
    named = table["clip"].str.split(r"[_\-]", regex=True).str[0].str.lower().map(known)
    table["subject"] = named.fillna(table["clip"].map(owner)).fillna("")
    table["dataset"] = table["subject"].map(of).fillna(table["dataset"])
    _check_both_sides(table, "clip", out)
    _check_both_sides(table[table["subject"] != ""], "subject", out)
    stray = table[~table["clip"].isin(owner)].drop_duplicates("clip")["clip"]
    rest = "learnt from but on nobody's test side, so a subject is missing"
    out.each("never-tested", "warning", stray, "clip is", "clips are", rest)
    _check_ststnet_gaps(table, owner, out)
    findings.check_one_identity(table[["dataset", "clip", "label"]], out)
    _check_taught(table, out)
    _check_copies(table, out)
    # One file a clip is enough to compare clips; copies of it were compared byte by byte.
    first = table.sort_values(["side", "fold"], kind="stable").drop_duplicates("clip").reset_index(drop=True)
    check_media(first, Media.of_files([Path(name) for name in first["file"]]), near, out, sides=table)
    counts = {"clips": table["clip"].nunique(), "subjects": len(people), "files": len(table)}
    return out.result(folder, "ststnet", counts)


def _check_ststnet_gaps(table: pd.DataFrame, owner: Mapping[str, str], out: Findings) -> None:
    out.looked_at("training sides that lack clips")
    lacking = []
    for fold, part in table[table["side"] == "train"].groupby("fold", sort=True):
        others = {clip for clip, subject in owner.items() if subject != fold}
        gone = len(others - set(part["clip"]))
        if gone:
            lacking.append(f"u_train of {fold} lacks {gone} clips of the others")
    called = ("training side lacks", "training sides lack", "clips of others")
    out.each("incomplete-training-side", "warning", lacking, *called)


def _check_copies(table: pd.DataFrame, out: Findings) -> None:
    out.looked_at("copies of a clip that differ")
    try:
        table = table.assign(digest=[file_digest(name) for name in table["file"]])
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}; check its permissions.") from error
    versions = table.groupby("clip", sort=True)["digest"].nunique()
    rest = "copies with other contents in other folders"
    out.each("copies-differ", "warning", versions.index[versions > 1], "clip has", "clips have", rest)
