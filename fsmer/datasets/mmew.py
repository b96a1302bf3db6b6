"""MMEW: ``Micro_Expression/disgust/S01-02-001/1.jpg``, crops of the face.

Some copies have the subject above the emotion. Clips are called person-emotion-sample. Sixteen rows of the sheet have
no usable apex or offset. The folder of the class others is called repression.
"""

from __future__ import annotations

from pathlib import Path

from fsmer.datasets.annotation import Annotation, plain_label
from fsmer.datasets.base import Adapter, register_dataset, release
from fsmer.datasets.folders import Folders


@register_dataset("mmew")
class Mmew(Adapter):
    """MMEW, its micro-expressions."""

    title = "MMEW"
    subject_prefix = "S"
    frames_per_second = 90.0
    sheets = ("MMEW_Micro_Exp*.xls*", "MMEW_Micro_Exp*.csv", "MMEW*")
    places = ("Micro_Expression", ".")
    kind = "cropped"
    labels = frozenset({"anger", "disgust", "fear", "happiness", "others", "repression", "sadness", "surprise"})
    published = release(
        clips=300, subjects=36, surprise=89, disgust=72, others=66, happiness=36, fear=16, sadness=13, anger=8
    )

    def folder(self, place: Path, clip: Annotation, folders: Folders) -> Path | None:
        label = plain_label(clip.label)
        emotions = [label, "repression"] if label == "others" else [label]
        person = folders.child(place, clip.subject) or folders.child(place, clip.subject.removeprefix("S"))
        tops = [place] if person is None else [place, person]
        found = (
            folders.descend(top, *names)
            for top in tops
            for names in (*([one, clip.name] for one in emotions), [clip.name])
        )
        return next((path for path in found if path is not None), None)
