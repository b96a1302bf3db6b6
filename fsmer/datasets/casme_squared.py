"""CAS(ME)^2: ``rawpic/s15/15_0102eatingworms/img001.jpg``, ``rawvideo/...avi`` or ``cropped/1/disgust2_2/img1.jpg``.

The workbook has three worksheets without column names, told by their order because their names differ between
copies: the expressions, which participant is which folder, and which stimulus has which code. Folders are found by
their codes, since one stimulus name lacks a letter on disk and one recording lies in another subject's folder. An
offset of 0 means that the expression ends at its apex. Only micro-expressions are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fsmer.datasets.annotation import Annotation, numbered
from fsmer.datasets.base import Adapter, register_dataset, release
from fsmer.datasets.folders import VIDEO_ENDINGS, Folders, folder_key
from fsmer.datasets.sheets import SheetRow, SheetTable, read_sheets
from fsmer.errors import DataError

HEADER = ("participant", "clip", "onset", "apex", "offset", "aus", "emotion", "expression", "self_report")
ROLES = ("participant", "name", "onset", "apex", "offset", "aus", "label", "expression", "self_report")

# What the second and third worksheet say, for copies that lack them: participants 1 to 22, and stimuli.
PEOPLE = (15, 16, 19, 20, 21, 22, 23, 24, 25, 26, 27, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 40)
CODES = {
    "disgust1": "0101", "disgust2": "0102", "anger1": "0401", "anger2": "0402",
    "happy1": "0502", "happy2": "0503", "happy3": "0505", "happy4": "0507", "happy5": "0508",
}  # fmt: skip


@register_dataset("casme-squared")
class CasmeSquared(Adapter):
    """CAS(ME)^2, its micro-expressions."""

    title = "CAS(ME)^2"
    frames_per_second = 30.0
    sheets = ("CAS(ME)^2code_final*.xls*", "CAS(ME)^2*")
    places = ("rawpic", "selectedpic", "cropped", "rawvideo")
    labels = frozenset({"negative", "others", "positive", "surprise"})
    segmented = False
    first_video_frame = 1
    published = release(clips=57, subjects=22)

    def table(self, files: Sequence[Path]) -> SheetTable:
        sheets = read_sheets(files[0])
        rows = [
            (number, row)
            for number, row in enumerate(sheets[0].rows, 1)
            if len(row) > 7 and row[0].isdecimal() and "expression" in row[7].lower()
        ]
        if not rows:
            raise DataError(
                f"{files[0]} is not the annotation of CAS(ME)^2: its first worksheet has no row of "
                f"{', '.join(HEADER)}; give the sheet of the release."
            )
        second, third = (sheets[place].rows if len(sheets) > place else () for place in (1, 2))
        found_people = (row for row in second if len(row) > 2 and row[2].isdecimal() and re.fullmatch(r"s\d+", row[1]))
        people = {str(number): f"s{folder}" for number, folder in enumerate(PEOPLE, 1)}
        people |= {row[2]: row[1] for row in found_people}
        # Numbers lose the zero in front.
        found_codes = (row for row in third if len(row) > 1 and row[0].isdecimal() and row[1])
        codes = CODES | {row[1].lower(): row[0].zfill(4) for row in found_codes}
        found = []
        for number, row in rows:
            cells = dict(zip(ROLES, row, strict=False))
            stimulus = cells["name"].rpartition("_")[0] or cells["name"]
            own = dict(zip(HEADER, row, strict=False))
            subject = people.get(cells["participant"], numbered(cells["participant"], "participant"))
            found.append(SheetRow(number, cells | {"subject": subject, "code": codes.get(stimulus.lower(), "")}, own))
        return SheetTable(sheets[0], HEADER, tuple(found))

    def remarks(self, table: SheetTable, skipped: int) -> tuple[str, ...]:
        return (f"{skipped} of {len(table.rows)} expressions are macro-expressions and not read",) if skipped else ()

    def clips(self, row: SheetRow) -> Sequence[Annotation]:
        if "micro" not in row["expression"].lower():
            return ()
        clip = Annotation.of(row, clip=f"{row['subject']}_{row['name']}", subject=row["subject"])
        return (replace(clip, offset=clip.apex if clip.offset == "0" else clip.offset, place=row["code"]),)

    def folder(self, place: Path, clip: Annotation, folders: Folders) -> Path | None:
        for person in (clip.own["participant"], clip.subject):
            found = folders.descend(place, person, clip.name)
            if found is not None:
                return found
        # Own folder first, then everybody's, since one recording lies in another subject's folder.
        own = folders.child(place, clip.subject)
        people = [*([own] if own else []), *folders.children(place)]
        begins = re.compile(folder_key(f"{clip.subject.removeprefix('s')}_{clip.place}") + r"(?!\d)")
        recordings = (
            path
            for person in people
            for path in (*folders.children(person), *folders.files(person, VIDEO_ENDINGS, depth=0))
        )
        return next((path for path in recordings if clip.place and begins.match(folder_key(path.name))), None)
