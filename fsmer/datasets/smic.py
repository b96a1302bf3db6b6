"""SMIC: high-speed (HS), visible-light (VIS) and near-infrared (NIR) cameras, as short and as long clips.

Short: ``SMIC_all_raw/HS/s3/micro/negative/s3_ne_03/image000123.bmp`` (VIS and NIR without ``image``, crops with
``reg_``). No sheet comes with them; the folders say everything. Long: ``HS_long/SMIC-HS-E/s03/s3_ne_03/`` with
``image000123.jpg`` and a sheet, in which up to three expressions share one clip. There is no apex anywhere, so the
middle frame stands in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fsmer.data.schemes import canonical_dataset
from fsmer.datasets.annotation import Annotation, numbered, states_nothing
from fsmer.datasets.base import Adapter, FrameKind, Survey, register_dataset, release, roles
from fsmer.datasets.folders import Folders
from fsmer.datasets.sheets import SheetRow
from fsmer.errors import DataError

CLASSES = {"ne": "negative", "po": "positive", "sur": "surprise"}
NAME = re.compile(r"s(\d+)_([a-z]+)_(\d+)", re.IGNORECASE)
SPEED = {"HS": 100.0, "VIS": 25.0, "NIR": 25.0}
PUBLISHED = {
    "HS": {"clips": 164, "subjects": 16, "negative": 70, "positive": 51, "surprise": 43},
    **{part: {"clips": 71, "subjects": 8, "negative": 23, "positive": 28, "surprise": 20} for part in ("VIS", "NIR")},
}


@register_dataset("smic-nir", part="NIR")
@register_dataset("smic-vis", part="VIS")
@register_dataset("smic", part="HS")
class SmicShort(Adapter):
    """One camera's short clips, which begin at the onset and end at the offset."""

    labels = frozenset(CLASSES.values())
    has_apex = False

    def __init__(self, part: str) -> None:
        self.dataset = canonical_dataset(f"smic{part}")
        self.name = self.dataset
        self.title = f"SMIC-{part}"
        self.aliases = (f"smic-{part.lower()}",)
        self.frames_per_second = SPEED[part]
        self.places = (f"SMIC_all_raw/{part}", f"SMIC_all_cropped/{part}", part)
        self.published = release(**PUBLISHED[part])

    def survey(self, root: Path, folders: Folders, frames: FrameKind | None, sheet: Path | None) -> Survey:
        if sheet is not None:
            raise DataError(f"{self.title} takes its annotation from the names of its folders; leave the sheet out.")
        for place in self.find_places(root, folders, frames):
            found = tuple(_short_clips(place, folders))
            if found:
                return Survey(found, "names of the folders", place)
        raise self.wrong_root(root, frames, ["frames"])

    def folder(self, place: Path, clip: Annotation, folders: Folders) -> Path | None:
        return Path(clip.place)


@register_dataset("smic-nir-long", part="NIR")
@register_dataset("smic-vis-long", part="VIS")
@register_dataset("smic-long", part="HS")
class SmicLong(Adapter):
    """One camera's long clips, in which the sheet gives onset and offset."""

    columns = roles(
        subject="Subject", name="Filename", onset="OnsetF", offset="OffsetF", onset2="Onset2F", offset2="Offset2F",
        onset3="Onset3F", offset3="Offset3F", label="Emotion",
    )  # fmt: skip
    needed = ("subject", "name", "onset", "offset", "label")
    labels = frozenset(CLASSES.values())
    has_apex = False
    segmented = False

    def __init__(self, part: str) -> None:
        self.dataset = canonical_dataset(f"smic{part}")
        self.name = f"{self.dataset}-long"
        self.title = f"SMIC-{part}-E (long clips)"
        self.aliases = (f"smic-{part.lower()}-long", f"smic-{part.lower()}-e")
        self.frames_per_second = SPEED[part]
        # The workbook of the high-speed part has a worksheet for each camera.
        self.sheets = tuple(dict.fromkeys(f"SMIC?{camera}?E_annotation*.xls*" for camera in (part, "HS")))
        self.worksheet = part
        self.places = (f"{part}_long/SMIC-{part}-E", f"SMIC-{part}-E", f"{part}_long")

    def clips(self, row: SheetRow) -> Sequence[Annotation]:
        # Remarks stand below the last clip.
        if NAME.fullmatch(row["name"]) is None:
            return ()
        subject, clip = numbered(row["subject"], "s"), _clip_id(row["name"])
        pairs = [("", row["onset"], row["offset"])]
        pairs += [
            (f"_{number}", row[f"onset{number}"], row[f"offset{number}"])
            for number in (2, 3)
            if not states_nothing(row[f"onset{number}"]) and row[f"onset{number}"] != "0"
        ]
        label = CLASSES.get(row["label"].lower(), row["label"])
        return [
            replace(Annotation.of(row, clip=clip + suffix, subject=subject), label=label, onset=onset, offset=offset)
            for suffix, onset, offset in pairs
        ]


def _short_clips(place: Path, folders: Folders) -> Iterator[Annotation]:
    for person in sorted(folders.children(place), key=lambda path: numbered(path.name)):
        micro = folders.child(person, "micro")
        if micro is None or re.fullmatch(r"s\d+", person.name, re.IGNORECASE) is None:
            continue
        for emotion in folders.children(micro):
            for clip in folders.children(emotion):
                yield Annotation(
                    clip=_clip_id(clip.name),
                    subject=numbered(person.name, "s"),
                    name=clip.name,
                    label=CLASSES.get(emotion.name.lower(), emotion.name),
                    place=str(clip),
                )


def _clip_id(name: str) -> str:
    # Folders write s3_ne_03, the clip list of MEGC 2019 and the long set's subjects s03.
    found = NAME.fullmatch(name)
    return name if found is None else f"s{int(found[1]):02d}_{found[2].lower()}_{found[3]}"
