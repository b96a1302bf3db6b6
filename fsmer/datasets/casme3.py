"""CAS(ME)^3, parts A and C.

Part A comes as whole recordings, ``part_A/spNO.1/a/color/1204.jpg``, and as clips,
``Part_A_ME_clip/frame/spNO.1_a_1204/1204.jpg``; folders may write ``spNo``. One recording holds several expressions,
so a clip's id has the onset in it. Part C is ``part_C/01/a/color/1204.jpg``, without apexes. The first frames of some
recordings are lost, which makes onset and apex fall together in some rows; about one clip in ten misses frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fsmer.datasets.annotation import Annotation, frame_number, numbered
from fsmer.datasets.base import Adapter, register_dataset, release, roles
from fsmer.datasets.folders import Folders, folder_key
from fsmer.datasets.sheets import SheetRow


@register_dataset("casme3")
class Casme3A(Adapter):
    """CAS(ME)^3, part A."""

    title = "CAS(ME)^3 part A"
    aliases = ("casme3-a", "casme3a")
    frames_per_second = 30.0
    sheets = ("cas(me)3_part_A_ME_label_JpgIndex_v*.xls*", "cas(me)3_part_A_ME*", "cas(me)3_part_A_v*.xls*")
    columns = roles(
        subject="Subject", name="Filename", onset="Onset", apex="Apex", offset="Offset", aus="AU", label="emotion",
        expression="Expression type",
    )  # fmt: skip
    worksheet = "label"
    places = ("Part_A_ME_clip/frame", "frame", "part_A", ".")
    labels = frozenset({"anger", "disgust", "fear", "happiness", "others", "sadness", "surprise"})
    segmented = False
    published = release(clips=860, subjects=94)

    def clips(self, row: SheetRow) -> Sequence[Annotation]:
        if not (row["subject"] and row["name"]) or "macro" in row["expression"].lower():
            return ()
        subject = numbered(row["subject"], "spNO.", 1)
        return (Annotation.of(row, clip=f"{subject}_{row['name']}_{row['onset']}", subject=subject),)

    def folder(self, place: Path, clip: Annotation, folders: Folders) -> Path | None:
        one_clip = folders.child(place, f"{clip.subject}_{clip.name}_{clip.onset}")
        recording = one_clip or folders.descend(place, clip.subject, clip.name)
        return None if recording is None else folders.child(recording, "color") or recording


@register_dataset("casme3-c")
class Casme3C(Adapter):
    """CAS(ME)^3, part C."""

    title = "CAS(ME)^3 part C"
    given_out_as = "casme3"
    aliases = ("casme3c",)
    frames_per_second = 30.0
    sheets = ("cas(me)3_part_C_ME*.xls*", "cas(me)3_part_C*")
    columns = roles(subject="sub", name="count", onset="onset", offset="offset", aus="au", label="emotion")
    needed = ("subject", "name", "onset", "offset", "label")
    places = ("part_C", ".")
    has_apex = False
    segmented = False
    published = release(clips=165, subjects=31)

    def folder(self, place: Path, clip: Annotation, folders: Folders) -> Path | None:
        person = folders.child(place, clip.subject)
        if person is None:
            return None
        # Releases put one or two levels between person and frames; some users make a folder a clip.
        recordings = [path for path in _below(person, folders) if len(folders.frames(path))]
        counted = [
            path
            for path in recordings
            if folder_key(clip.name) in (folder_key(path.name), folder_key(path.parent.name)) and path != person
        ]
        onset = frame_number(clip.onset)
        whole = [path for path in recordings if onset is not None and onset in folders.frames(path).numbers]
        return next(iter([*counted, *whole, *recordings]), None)


def _below(person: Path, folders: Folders) -> Iterator[Path]:
    level = [person]
    for _ in range(3):
        yield from level
        level = [child for path in level for child in folders.children(path) if child.name.lower() != "depth"]
