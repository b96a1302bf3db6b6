"""4DME, its grey stream: ``gray_micro/{sub_ID}/{fold_name}/...`` or ``gray_micro_crop/...``.

Column names end in an apostrophe in the sheets before the first release, and the last row is a total there. A label may
be double (``Surprise+Positive``). Action units marked ``(k)`` are held and do not move: `fsmer.data.parse_aus` tells
them from the others, so the text stays as written. Columns of single action units are kept (``sheet_au1``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fsmer.datasets.annotation import Annotation
from fsmer.datasets.base import Adapter, register_dataset, release, roles
from fsmer.datasets.folders import folder_key
from fsmer.datasets.sheets import SheetRow


@register_dataset("4dme")
class FourDme(Adapter):
    """4DME, the micro-expressions of its grey stream."""

    title = "4DME (grey stream)"
    frames_per_second = 60.0
    sheets = ("4DME_Labelling_Micro_release*.xls*", "Micro_and_Macro-expression_labels*.xls*", "4DME*")
    columns = roles(
        subject=("sub_ID", "SubID"), name="fold_name", onset="Onset", apex="Apex", offset="Offset", aus="AUs",
        label="Emotion",
    )  # fmt: skip
    places = ("gray_micro", "micro_short_gray_video", "gray_micro_crop", "micro_short_gray_video_cropped")
    labels = frozenset({"negative", "others", "positive", "repression", "surprise"})
    published = release(clips=267)

    def clips(self, row: SheetRow) -> Sequence[Annotation]:
        subject, name = row["subject"].strip("'"), row["name"].strip("'")
        if not (subject and name):
            return ()
        clip = name if folder_key(name).startswith(f"{folder_key(subject)}_") else f"{subject}_{name}"
        return (replace(Annotation.of(row, clip=clip, subject=subject), name=name),)
