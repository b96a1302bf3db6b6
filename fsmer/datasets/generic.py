"""Any folder with a table: ``clip, subject, path, onset, apex, offset, label, aus`` and more, most of them optional.

A clip is a folder of frames or a video, below the folder that is read. Frame numbers are those in the file names of
frames, and count from 0 in a video. What has no onset and offset is taken whole. Without a column of names, clips are
called like their video or folder, with the onset behind it where that has several.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from fsmer.data.text_tables import path_inside
from fsmer.datasets.annotation import Annotation, states_nothing
from fsmer.datasets.base import Adapter, register_dataset, roles
from fsmer.datasets.folders import VIDEO_ENDINGS, Folders
from fsmer.datasets.sheets import SheetRow, SheetTable, plain
from fsmer.errors import DataError


@register_dataset("generic")
class Generic(Adapter):
    """A folder of one's own with a CSV or Excel table."""

    dataset = "mine"
    title = "a data set of your own"
    aliases = ("mine", "csv")
    frames_per_second = None
    sheets = ("clips.*", "index.*", "annotation*", "label*", "*.csv")
    columns = roles(
        name=("clip", "id", "name"), place=("path", "folder", "video", "file"), subject="subject", dataset="dataset",
        onset="onset", apex="apex", offset="offset", label=("label", "emotion"), aus=("aus", "au", "action units"),
        fps=("frames_per_second", "fps"),
    )  # fmt: skip
    places = (".",)
    has_apex = False
    prefix_columns = False

    def table(self, files: Sequence[Path]) -> SheetTable:
        try:
            return self.table_with(files, ("name",))
        except DataError as refused:
            with contextlib.suppress(DataError):
                return self.table_with(files, ("place",))
            raise refused from None

    def clips(self, row: SheetRow) -> Sequence[Annotation]:
        place = row["place"]
        name = row["name"] or PurePosixPath(place.replace("\\", "/")).stem
        if not name:
            return ()
        _refuse_seconds(row)
        roles = {plain(known) for names in self.columns.values() for known in names}
        own = {column: text for column, text in row.own.items() if plain(column) not in roles}
        # Programs write lists the way their language does: [6, 12] or ['AU6', 'AU12'].
        aus = re.sub(r"['\"]", "", row["aus"][1:-1]) if re.fullmatch(r"\[.*\]", row["aus"]) else row["aus"]
        clip = Annotation.of(row, clip=name, subject=row["subject"])
        clip = replace(clip, name=name, place=place, own=own, named=bool(row["name"]))
        return (replace(clip, aus=aus, dataset=row["dataset"], frames_per_second=_speed(row)),)

    def folder(self, place: Path, clip: Annotation, folders: Folders) -> Path | None:
        if clip.place:
            try:
                stated = Path(path_inside(place, clip.place))
            except ValueError as error:
                raise DataError(f"clip {clip.name!r} of the table: {error}.") from error
            is_video = os.path.isfile(stated) and stated.suffix.lower() in VIDEO_ENDINGS
            return stated if is_video or os.path.isdir(stated) else None
        tops = (place, *(folders.child(place, name) for name in (clip.subject, clip.dataset) if name))
        for top in filter(None, tops):
            found = folders.child(top, clip.name)
            videos = folders.files(top, VIDEO_ENDINGS, depth=0) if found is None else []
            found = found or next((video for video in videos if clip.name in (video.name, video.stem)), None)
            if found is not None:
                return found
        return None


def _refuse_seconds(row: SheetRow) -> None:
    """Times would be taken for unknown frames, and the whole recording for the clip."""
    for role in ("onset", "apex", "offset"):
        if re.fullmatch(r"\d*[.,]\d*[1-9]\d*", row[role].strip()):
            raise DataError(
                f"row {row.number} of the table has {role} {row[role]!r}, but a frame number without a fraction is "
                "expected; multiply seconds by the frames a second and round."
            )


def _speed(row: SheetRow) -> float | None:
    if states_nothing(row["fps"]):
        return None
    try:
        speed = float(row["fps"])
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise DataError(
            f"row {row.number} of the table has {row['fps']!r} frames a second, but a number above 0 is expected."
        )
    return speed
