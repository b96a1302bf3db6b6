"""`Adapter`: how any data set on disk becomes a table of clips; the file of each data set says only what is special."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase as fnmatch
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from fsmer.data.au_parser import parse_aus
from fsmer.data.clips import ClipSet
from fsmer.data.schemes import canonical_dataset
from fsmer.datasets.annotation import Annotation, numbered, plain_label, states_nothing, with_unique_ids
from fsmer.datasets.audit import Audit, Finding
from fsmer.datasets.catalog import DatasetInfo, dataset_info
from fsmer.datasets.corrections import Correction, apply_corrections, read_corrections, shipped_corrections
from fsmer.datasets.folders import Folders, folder_key
from fsmer.datasets.sheets import SHEET_ENDINGS, SheetRow, SheetTable, plain, read_sheets
from fsmer.datasets.timing import Form, LeftOut, Notes, frame_timing, timing_table, video_timing
from fsmer.errors import DataError, MissingDatasetError, PluginError
from fsmer.outside import outside_call, outside_value
from fsmer.plugins import DATASETS, outside_origin

__all__ = ["Adapter", "FrameKind", "Survey", "register_dataset", "release", "roles"]

A = TypeVar("A", bound="Adapter")

FrameKind = Literal["raw", "cropped"]


@dataclass(frozen=True)
class Survey:
    """What an adapter found under a root, before single frames are checked.

    `source` says where the annotations are from, `place` is the folder that holds the frames, and `remarks` are about
    the annotation as a whole.
    """

    annotations: tuple[Annotation, ...]
    source: str
    place: Path
    remarks: tuple[str, ...] = ()


def roles(**names: str | tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    """Columns of an annotation: role -> the names that releases give the column."""
    return MappingProxyType({role: (name,) if isinstance(name, str) else name for role, name in names.items()})


def release(**counts: int) -> Mapping[str, int]:
    """What a release holds: ``clips``, ``subjects`` and labels."""
    return MappingProxyType(counts)


def register_dataset(name: str, **preset: Any) -> Callable[[type[A]], type[A]]:
    """Class decorator that enters an `Adapter` under `name`, for `read_dataset` and every command on data sets.

    With `preset`, values for the class's parameters, one class may have several names.

    Parameters
    ----------
    name : str
        Name in `read_dataset`.
    **preset : object
        Values of the adapter's parameters that the name implies; the name is then a second one for it.

    Returns
    -------
    callable
        The decorator.

    Raises
    ------
    PluginError
        The name is taken by another class, or the class is no `Adapter` that states its title and frames a second.

    Examples
    --------
    >>> import fsmer
    >>> from fsmer.datasets import Adapter, register_dataset
    >>> @register_dataset("my-lab")
    ... class MyLab(Adapter):
    ...     title = "Recordings of my lab"
    ...     frames_per_second = 120.0
    >>> "my-lab" in [entry.name for entry in fsmer.list_datasets()]
    True
    """

    register = DATASETS.register(name, **preset)

    def enter(cls: type[A]) -> type[A]:
        if isinstance(cls, type) and issubclass(cls, Adapter) and not preset:
            lacks = [fact for fact in ("title", "frames_per_second") if not hasattr(cls, fact)]
            if lacks:
                raise PluginError(f"the class {cls.__name__} for data set {name!r} states no {lacks[0]}; add it.")
            _check_facts(cls, name)
            cls.name, cls.dataset = name, cls.dataset or name
        return register(cls)

    return enter


def _check_facts(cls: type[Adapter], name: str) -> None:
    """Raise `PluginError` for a class variable of another form than `Adapter` reads."""
    texts, speed = ("sheets", "places", "aliases", "needed"), cls.frames_per_second
    forms: dict[str, tuple[bool, str]] = {
        one: (
            isinstance(value := getattr(cls, one), (tuple, list)) and all(isinstance(text, str) for text in value),
            'a tuple of texts, as in ("one",),',
        )
        for one in texts
    }
    forms["title"] = isinstance(cls.title, str), "a text"
    forms["frames_per_second"] = (
        speed is None or (isinstance(speed, (int, float)) and speed > 0),
        "a number above 0 or None",
    )
    forms["labels"] = isinstance(cls.labels, (set, frozenset)), "a frozenset of texts"
    forms["published"] = isinstance(cls.published, Mapping), "what fsmer.datasets.release makes"
    forms["columns"] = isinstance(cls.columns, Mapping), "what fsmer.datasets.roles makes"
    for key, (kept, form) in forms.items():
        if not kept and not isinstance(getattr(cls, key), property):  # whose value an adapter alone knows
            raise PluginError(
                f"the class {cls.__name__} for data set {name!r} states {key}={outside_value(getattr(cls, key))}, but "
                f"{form} is expected."
            )
    columns, needed = cls.columns, cls.needed
    absent = [] if property in (type(columns), type(needed)) else [role for role in needed if role not in columns]
    if absent and cls.sheets:
        raise PluginError(
            f"the class {cls.__name__} for data set {name!r} needs the role {absent[0]!r}, of which its columns "
            f"({', '.join(cls.columns)}) say nothing; add it to columns, or take it out of needed."
        )


class Adapter:
    """One data set: its sheet, its columns, its folders, its quirks.

    A subclass states the class variables and, where its data set is special, `clips` (how a row of the sheet becomes
    clips) and `folder` (where a clip's frames are; ``place/subject/clip`` by default). A data set without a sheet
    overrides `survey`.
    """

    name: str  # name in `read_dataset`, which `register_dataset` writes
    # Key in tables, protocols and label schemes; the name unless the data set has several parts or forms.
    dataset: str = ""
    given_out_as: str = ""  # key of the data set with which it is given out, if that is another
    title: str  # name for people
    aliases: tuple[str, ...] = ()  # other names of the adapter
    frames_per_second: float | None
    # File names of the annotation with wildcards, the best first; of one pattern the last by name is taken.
    sheets: tuple[str, ...] = ()
    # Role -> names of the column in the releases, compared without case, blanks and punctuation.
    columns: Mapping[str, tuple[str, ...]] = roles(
        subject="Subject", name="Filename", onset="OnsetFrame", apex="ApexFrame", offset="OffsetFrame",
        aus="Action Units", label="Estimated Emotion",
    )  # fmt: skip
    # Roles without which a sheet is not the annotation.
    needed: tuple[str, ...] = ("subject", "name", "onset", "apex", "offset", "label")
    subject_prefix: str = ""  # what stands before the number of a subject in tables and folders
    subject_width: int = 2  # digits of that number
    worksheet: str = ""  # worksheet to try first
    places: tuple[str, ...] = ()  # folders that hold the frames, the best first, see `Folders.find`
    kind: FrameKind = "raw"  # kind of frames in folders that do not have "crop" in their names
    labels: frozenset[str] = frozenset()  # labels that the annotation may have; empty for any
    has_apex: bool = True  # whether the annotation gives apexes, so that a missing one is worth a word
    # Whether a folder holds one clip, so that its first and last frame can stand in for an unknown onset or offset.
    segmented: bool = True
    first_video_frame: int = 0  # number of a video's first frame in the annotation
    prefix_columns: bool = True  # whether the sheet's own columns get ``sheet_`` before their names
    published: Mapping[str, int] = release()  # clips, subjects and labels of the release, as far as known

    def clips(self, row: SheetRow) -> Sequence[Annotation]:
        """Clips of a row of the sheet: one as a rule, none for a total, a remark or a macro-expression."""
        if not (row["subject"] and row["name"]):
            return ()
        subject = numbered(row["subject"], self.subject_prefix, self.subject_width)
        own = re.match(rf"{re.escape(folder_key(subject))}[^a-z0-9]", folder_key(row["name"]))
        return (Annotation.of(row, clip=row["name"] if own else f"{subject}_{row['name']}", subject=subject),)

    def folder(self, place: Path, clip: Annotation, folders: Folders) -> Path | None:
        """Folder of frames (or video) of a clip below `place`, or None where there is none."""
        return folders.descend(place, clip.subject, clip.name)

    def survey(self, root: Path, folders: Folders, frames: FrameKind | None, sheet: Path | None) -> Survey:
        """Find the annotation and the folder of frames.

        Raises
        ------
        MissingDatasetError
            The root holds no annotation or no folder of frames; the message says what was expected.
        DataError
            The annotation cannot be read or has other columns.
        """
        files = self._sheet_files(root, folders) if sheet is None else [sheet]
        places = self.find_places(root, folders, frames)
        if not files or not places:
            below = [place for place in places if place != root]
            raise self.wrong_root(
                root, frames, [what for what, there in (("sheet", files), ("frames", below)) if not there]
            )
        table = self.table(files)
        read = [self.clips(row) for row in table.rows]
        annotations = tuple(one for clips in read for one in clips)
        if not annotations:
            raise DataError(f"{table.sheet.path} lists no clip of {self.title}; give the sheet of the release.")
        # Other data sets have folders of the same name, and unpacked folders hold themselves, so the clips decide.
        held = [sum(self.folder(place, one, folders) is not None for one in annotations) for place in places]
        if not any(held):
            first = annotations[0]
            raise MissingDatasetError(
                f"none of the {len(annotations)} clips of {self.title} that {table.sheet.path.name} lists, such as "
                f"{first.name!r} of subject {first.subject!r}, has a folder of frames in "
                f"{', '.join(map(str, places[:3]))}; give the folder to which the whole release was unpacked."
            )
        worksheet = f" (worksheet {table.sheet.name})" if table.sheet.name else ""
        place = next(place for place, clips in zip(places, held, strict=True) if 2 * clips >= max(held))
        return Survey(
            annotations, table.sheet.path.name + worksheet, place, self.remarks(table, sum(not clips for clips in read))
        )

    def remarks(self, table: SheetTable, skipped: int) -> tuple[str, ...]:
        """Remarks on the sheet as a whole, of which `skipped` rows are no clips."""
        if not skipped:
            return ()
        rows = "1 row is" if skipped == 1 else f"{skipped} rows are"
        return (f"{rows} no clip in {table.sheet.path.name} and not read",)

    def table(self, files: Sequence[Path]) -> SheetTable:
        """Table of the first file that has the columns of the annotation.

        Where none has, the `DataError` is about the first.
        """
        return self.table_with(files, self.needed)

    def table_with(self, files: Sequence[Path], needed: Sequence[str]) -> SheetTable:
        """As `table`, for columns of these roles."""
        refused: DataError | None = None
        for file in files:
            try:
                title = f"the annotation of {self.title}"
                return SheetTable.of(read_sheets(file), self.columns, needed, title=title, first=self.worksheet)
            except DataError as error:
                refused = refused or error
        raise refused or DataError(f"no sheet is given as the annotation of {self.title}.")

    def check(
        self,
        root: str | os.PathLike[str],
        *,
        frames: FrameKind | None = None,
        sheet: str | os.PathLike[str] | None = None,
        corrections: str | os.PathLike[str] | None = None,
    ) -> Audit:
        """Compare annotation and disk; parameters and errors as for `fsmer.datasets.check_dataset`."""
        if frames not in (None, "raw", "cropped"):
            raise DataError(f"frames is {frames!r}, but 'raw', 'cropped' or None (whichever is there) is expected.")
        top = Path(os.path.abspath(root))
        if not top.is_dir():
            raise MissingDatasetError(
                f"the root {top} of {self.title} {'is a file' if top.exists() else 'does not exist'}; give its folder."
            )
        own = () if corrections is None else read_corrections(corrections)
        who = f"the adapter {type(self).__name__} of the data set {self.name!r} on {top}"
        with outside_call(who, DataError) if outside_origin(DATASETS, type(self)) else nullcontext():
            return self._compared(top, frames, sheet, own)

    def _compared(
        self, top: Path, frames: FrameKind | None, sheet: str | os.PathLike[str] | None, own: Sequence[Correction]
    ) -> Audit:
        folders = Folders()
        survey = self.survey(top, folders, frames, None if sheet is None else Path(sheet))
        records: list[dict[str, Any]] = []
        findings: list[Finding] = []
        for clip, doubled in with_unique_ids(survey.annotations):
            notes: Notes = [("doubled", doubled)] if doubled else []
            used = True
            try:
                records.append(self._record(clip, survey.place, folders, (*shipped_corrections(), *own), notes))
            except LeftOut as reason:
                notes.append(reason.args)
                used = False
            findings += [Finding(clip.clip, clip.subject, problem, detail, used) for problem, detail in notes]
        return Audit(
            name=self.name,
            title=self.title,
            root=top,
            annotation=survey.source,
            frames=f"{os.path.relpath(survey.place, top)} ({self.kind_of(top, survey.place)})",
            annotated=len(survey.annotations),
            clips=ClipSet.from_table(timing_table(records)) if records else None,
            findings=tuple(findings),
            remarks=(*survey.remarks, *self._unused(own, survey.annotations)),
            published=self.published,
        )

    @property
    def info(self) -> DatasetInfo | None:
        """Owner and licence; None for a folder of one's own."""
        return dataset_info(self.given_out_as or self.dataset)

    def kind_of(self, root: Path, place: Path) -> FrameKind:
        """Whether a folder holds raw or cropped frames: every official crop has "crop" in the name of some folder."""
        known = {plain(part) for pattern in self.places for part in pattern.split("/")}
        # The root may be one of these folders itself; otherwise its name is the user's.
        own = (root.name,) if plain(root.name) in known else ()
        parts = (*own, *place.relative_to(root).parts)
        return "cropped" if any("crop" in part.lower() for part in parts) else self.kind

    def find_places(self, root: Path, folders: Folders, frames: FrameKind | None) -> list[Path]:
        """Folders that may hold the frames, the best first."""
        found = [place for pattern in self.places for place in folders.find(root, pattern)]
        return [place for place in dict.fromkeys(found) if frames in (None, self.kind_of(root, place))]

    def wrong_root(self, root: Path, frames: FrameKind | None, missing: Sequence[str]) -> MissingDatasetError:
        """The error for a root that lacks something: what was expected, and where to request the data set."""
        lacks = {
            "sheet": f"no annotation sheet (expected: {_or(self.sheets)})",
            "frames": f"no folder of {frames or ''}{' ' if frames else ''}frames (expected: {_or(self.places)})",
        }
        request = "" if self.info is None else f", or {self.info.where_to_request()}"
        return MissingDatasetError(
            f"{root} is not the root of {self.title}: it has {' and '.join(lacks[what] for what in missing)}, "
            f"there or up to three folders below; give the folder to which the release was unpacked{request}."
        )

    def _sheet_files(self, root: Path, folders: Folders) -> list[Path]:
        files = folders.files(root, SHEET_ENDINGS)
        newest = sorted(files, key=lambda one: one.name, reverse=True)
        named = [file for pattern in self.sheets for file in newest if fnmatch(file.name.lower(), pattern.lower())]
        # Users rename sheets, so any other may be it if it has the columns.
        return list(dict.fromkeys([*named, *files]))

    def _record(
        self, clip: Annotation, place: Path, folders: Folders, corrections: Sequence[Correction], notes: Notes
    ) -> dict[str, Any]:
        # Folders have the names that the sheet gives before corrections.
        path = self.folder(place, clip, folders)
        corrected, applied = apply_corrections(clip.dataset or self.dataset, clip, corrections)
        for one in applied:
            given = getattr(clip, one.column)
            notes.append(("corrected", f"{one.column} {given!r} is {one.value!r}: {one.reason} ({one.source})"))
        if path is None:
            raise LeftOut("folder missing", f"no folder {clip.name!r} of subject {clip.subject!r} in {place}")
        form = Form(self.has_apex, self.segmented, self.first_video_frame)
        if path.is_file():
            timing = video_timing(path, corrected, notes, form)
        else:
            timing = frame_timing(folders.frames(path), corrected, notes, form)
        label = plain_label(corrected.label)
        if not label:
            notes.append(("label missing", f"the annotation has {corrected.label!r}"))
        elif self.labels and not self.labels.issuperset(label.split("+")):
            notes.append(("label unknown", f"{corrected.label!r} is none of {', '.join(sorted(self.labels))}"))
        aus = "" if states_nothing(corrected.aus) else corrected.aus
        units = parse_aus(corrected.aus)
        if units.unparsed or units.unclear:
            notes.append(("action units unclear", f"the annotation has {corrected.aus!r}"))
        record = {
            "clip": corrected.clip,
            "dataset": corrected.dataset or self.dataset,
            "subject": corrected.subject,
            "label": label or None,
            "aus": aus,
            "name": corrected.name,
            "path": str(path),
            **timing,
            "frames_per_second": corrected.frames_per_second or self.frames_per_second,
        }
        prefix = "sheet_" if self.prefix_columns else ""
        return record | {f"{prefix}{name}": text for name, text in corrected.own.items() if prefix + name not in record}

    def _unused(self, own: Sequence[Correction], clips: Sequence[Annotation]) -> list[str]:
        # A misspelt correction must not pass for an applied one.
        return [
            f"the correction of clip {one.clip!r} of subject {one.subject!r} is not used: there is no such clip"
            for one in own
            if canonical_dataset(one.dataset) in (self.dataset, *{clip.dataset for clip in clips})
            and not any(one.names(clip.dataset or self.dataset, clip) for clip in clips)
        ]


def _or(names: Sequence[str]) -> str:
    shown = ["the folders of the subjects themselves" if name == "." else name for name in names]
    return " or ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)
