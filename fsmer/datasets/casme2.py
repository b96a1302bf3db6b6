"""CASME II: ``CASME2_RAW_selected/sub01/EP02_01f/img46.jpg`` or ``Cropped/sub01/EP02_01f/reg_img46.jpg``.

Subjects are text (``01``) in the sheet of 2014 and numbers in that of 2019. One apex is a slash (a backslash in some
copies), five action-unit cells are question marks. The objective classes come in a sheet of their own; where it lies
beside the other, they are in the column ``sheet_objective_class``.
"""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from pathlib import Path

from fsmer.datasets.annotation import numbered
from fsmer.datasets.base import Adapter, FrameKind, Survey, register_dataset, release
from fsmer.datasets.folders import Folders
from fsmer.datasets.sheets import SHEET_ENDINGS, SheetTable, read_sheets

OBJECTIVE = "casme2-objectiveclasses*"
OBJECTIVE_COLUMNS = {"subject": ("Subject",), "name": ("Filename",), "class": ("Objective Class",)}


@register_dataset("casme2")
class Casme2(Adapter):
    """CASME II."""

    title = "CASME II"
    subject_prefix = "sub"
    frames_per_second = 200.0
    sheets = ("CASME2-coding-2*.xls*", "CASME2-coding*", "CASME2*")
    places = ("CASME2_RAW_selected", "CASME2-RAW", "Cropped", "Cropped-updated", ".")
    labels = frozenset({"disgust", "fear", "happiness", "others", "repression", "sadness", "surprise"})
    published = release(
        clips=255, subjects=26, others=99, disgust=63, happiness=32, repression=27, surprise=25, sadness=7, fear=2
    )

    def survey(self, root: Path, folders: Folders, frames: FrameKind | None, sheet: Path | None) -> Survey:
        found = super().survey(root, folders, frames, sheet)
        files = folders.files(root, SHEET_ENDINGS)
        objective = next((file for file in files if fnmatch.fnmatchcase(file.name.lower(), OBJECTIVE)), None)
        if objective is None:
            return found
        table = SheetTable.of(
            read_sheets(objective), OBJECTIVE_COLUMNS, tuple(OBJECTIVE_COLUMNS), title="the objective classes"
        )
        classes = {(numbered(row["subject"], "sub"), row["name"]): row["class"] for row in table.rows}
        clips = tuple(
            replace(clip, own={**clip.own, "objective_class": classes.get((clip.subject, clip.name), "")})
            for clip in found.annotations
        )
        return replace(found, annotations=clips)
