"""Finished episodes of a run: written at once, in any order, and taken up by the very same run alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired

from fsmer.errors import DataError, OutputError
from fsmer.evaluation.episode_results import PartStore, RunSize, stored_files
from fsmer.evaluation.predictions import PAGE_FILE, REPORT_FILE, RUN_FILE, run_of
from fsmer.io import check_writable, locked, remove_folder
from fsmer.schema import entries, read_json

__all__ = ["RunFolder", "flat", "unfinished_words"]

# Folders with the episodes of a run that is not finished, and of the one that made the report.
PARTS, KEPT = ".parts-", ".kept-"
# Part of what is compared: goes up when parts on disk can no longer be read.
FORMAT_VERSION = 3
# Entries of an identity that earlier versions did not write: where one of two runs lacks it, they are the same.
OPTIONAL = ("arithmetic",)


# What is read of a store's ``run.json``, and what messages say of a report.
_ABOUT = entries({"format_version": int, "run": dict[str, str], "unrecorded": NotRequired[list[str]]})
_NAMES = entries(dict.fromkeys(("method", "model", "protocol"), entries({"name": str})))


class RunFolder:
    """The folder of a report: what is kept there of unfinished runs, and of the finished one that made the report.

    `identity` is what makes a run the very same, in the words of messages: runs that differ in it never meet. More
    `seeds` than those of a finished run go on from it. Without `resume` a run is made anew and unfinished ones are
    removed; `overwrite` allows to replace a report (once the new one is there) or an unfinished run of something else,
    which is refused otherwise (`OutputError`); with `keep`, finished episodes stay beside the report for further seeds.
    `finished`: the report of this very run, with these seeds and metrics (`code_digest`), is there.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, str],
        seeds: Sequence[int],
        *,
        resume: bool,
        overwrite: bool,
        keep: bool = True,
        metrics: str = "",
    ) -> None:
        check_writable(folder)
        self.folder = folder
        self.identity = dict(identity)
        self.seeds = list(seeds)
        self.overwrite = overwrite
        self.keep = keep
        # Entries of `OPTIONAL` that are not known of all episodes that are gone on with.
        self.unrecorded: set[str] = set()
        self._refuse_report()
        # A run that was killed before its first episode was finished left nothing to go on with.
        self.drop_empty()
        for other in _stores(folder, PARTS, KEPT):
            if not resume and other.name.startswith(PARTS):
                remove_folder(other)
            elif refusal := self._difference(other):
                if not overwrite:
                    raise OutputError(refusal)
                remove_folder(other)
        held = run_of(folder) or {}
        same = "identity" in held and not self._another(held["identity"])
        same_metrics = metrics in ("", held.get("metrics"))
        self.finished = resume and same and same_metrics and held.get("seeds") == self.seeds
        for other in [] if resume else _stores(folder, KEPT):
            remove_folder(other)

    def store(self, size: RunSize, **member: Any) -> PartStore:
        """The store of one part of the run, such as a seed."""
        about: dict[str, Any] = {"format": "fsmer-run", "format_version": FORMAT_VERSION, "run": self.identity}
        about |= {"part": member}
        named = about | {"run": {name: value for name, value in self.identity.items() if name not in OPTIONAL}}
        key = hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()[:16]
        kept = self.folder / f"{KEPT}{key}"
        place = kept if kept.is_dir() else self.folder / f"{PARTS}{key}"
        with contextlib.suppress(DataError):
            held = read_json(place / RUN_FILE, _ABOUT, what="a run", remedy="start anew")
            lacking = {name for name in OPTIONAL if name in self.identity and name not in held["run"]}
            if unrecorded := sorted(lacking.union(held.get("unrecorded", ()))):
                self.unrecorded.update(unrecorded)
                about["unrecorded"] = unrecorded
        return PartStore(place, about, size)

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        """Hold off other runs while the report is written, and remove an older one that it could be mixed with."""
        with locked(self.folder):
            self._refuse_report()
            for name in (REPORT_FILE, PAGE_FILE):
                (self.folder / name).unlink(missing_ok=True)
            yield
            self.finalize()

    def finalize(self) -> None:
        """The report is there: keep the episodes of this run, in case more seeds are asked for, or drop them."""
        for folder in _stores(self.folder, PARTS):
            if self._difference(folder):
                continue  # of another run that goes on beside this one
            kept = folder.with_name(f"{KEPT}{folder.name.removeprefix(PARTS)}")
            if self.keep and not kept.exists():
                folder.rename(kept)
            else:
                # At once: no other run may find half of a store.
                remove_folder(folder)

    def drop_empty(self) -> None:
        for folder in _stores(self.folder, PARTS, KEPT):
            if not stored_files(folder):
                remove_folder(folder)

    def _refuse_report(self) -> None:
        """Refuse to replace a finished report by that of anything else than the same run with more seeds."""
        path = self.folder / REPORT_FILE
        if self.overwrite or not path.is_file():
            return
        remedy = "choose another folder, or replace it with --overwrite (overwrite=True)"
        held = run_of(self.folder) or {}
        if "identity" not in held:
            raise OutputError(
                f"{self.folder} holds {_words_of(path)}, of which no {RUN_FILE} says how it was made, and would now "
                f"get that of {self.identity['method']} on {self.identity['model']}; {remedy}."
            )
        if another := self._another(held["identity"]):
            raise OutputError(f"{self.folder} holds {_words_of(path)} with {another}; {remedy}.")
        if not set(held["seeds"]) <= set(self.seeds):
            known, asked = (", ".join(map(str, some)) for some in (held["seeds"], self.seeds))
            raise OutputError(
                f"{self.folder} holds {_words_of(path)} of the seeds {known}, but the seeds {asked} are asked for; "
                f"ask for those that are there and more, {remedy}."
            )

    def _difference(self, other: Path) -> str:
        """Why the episodes in this folder cannot be gone on with; nothing where they can."""
        try:
            about = read_json(other / RUN_FILE, _ABOUT, what="a run", remedy="start anew")
        except DataError:
            about = None
        if not other.is_dir():
            return ""  # another run has just removed it
        if about is None or about["format_version"] != FORMAT_VERSION:
            return (
                f"{self.folder} holds an unfinished run that another version of fsmer wrote or that lost its "
                f"{RUN_FILE}, whose episodes cannot be taken over; choose another folder or start anew with "
                "--no-resume (resume=False)."
            )
        another = self._another(about["run"])
        return another and (
            f"{self.folder} holds an unfinished run with {another}, and results of the two must not be mixed; go on "
            "with that run as it was begun, choose another folder, or start anew with --no-resume (resume=False)."
        )

    def _another(self, identity: Mapping[str, str]) -> str:
        """The first entry in which another run differs from this one, in words; nothing where it is the same."""
        for name in dict.fromkeys([*self.identity, *identity]):
            if name in OPTIONAL and not (name in identity and name in self.identity):
                continue
            before, value = identity.get(name, "none"), self.identity.get(name, "none")
            if before != value:
                return f"another {name} ({_change(before, value)})"
        return ""


def unfinished_words(folder: Path) -> str:
    """Of a folder whose run did not come to its report: how far it came and how it goes on; nothing for any other."""
    stores = _stores(folder, PARTS, KEPT)
    if not stores or (folder / REPORT_FILE).exists():
        return ""
    count = sum(len(stored_files(store)) for store in stores)
    parts = f"{count:,} finished part{'' if count == 1 else 's'}" if count else "no finished part yet"
    return f"{folder} holds an unfinished run with {parts} and no report; run the same evaluation again to go on."


def _stores(folder: Path, *kinds: str) -> list[Path]:
    return sorted(path for kind in kinds for path in folder.glob(f"{kind}*"))


def _change(before: str, now: str) -> str:
    """How a value of a run's identity differs from another one, parameter by parameter where the names are the same."""
    (what, old), (name, new) = _parameters(before), _parameters(now)
    if what != name:
        return f"{what}, now {name}"
    differing = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    changes = [f"{key} was {old.get(key, 'not there')}, is {new.get(key, 'not there')} now" for key in differing]
    return f"{name}: {', '.join(changes)}"


def _parameters(value: str) -> tuple[str, dict[str, str]]:
    """Name and parameters of a value such as ``finetune with {"steps": 60}``; nested ones by dotted names."""
    name, brace, rest = value.partition("{")
    try:
        held, end = json.JSONDecoder().raw_decode(brace + rest) if brace else ({}, 0)
    except ValueError:
        return value, {}
    texts = {key: json.dumps(one) for key, one in flat(held).items()}
    return name.strip().removesuffix(" with").removesuffix(" and") + (brace + rest)[end:], texts


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Parameters, those within parameters under dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        found |= flat(value, f"{before}{key}.") if nested else {f"{before}{key}": value}
    return found


def _words_of(path: Path) -> str:
    try:
        held = read_json(path, _NAMES, what="a report", remedy="make it again")
    except DataError:
        return "a report that cannot be read"
    return f"the finished report of {held['method']['name']} on {held['model']['name']} by {held['protocol']['name']}"
