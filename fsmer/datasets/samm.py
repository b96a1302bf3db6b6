"""SAMM: ``006/006_1_2/006_05562.jpg``, grey; third-party crops are ``SAMM_CROP/006/006_1_2/...``.

Thirteen rows of notes stand above the column names in most copies of the sheet, none in others. A slash in the action
units means "or", a question mark an unclear offset. The padding of frame numbers differs between clips.
"""

from __future__ import annotations

from fsmer.datasets.base import Adapter, register_dataset, release


@register_dataset("samm")
class Samm(Adapter):
    """SAMM."""

    title = "SAMM"
    subject_width = 3
    frames_per_second = 200.0
    sheets = ("*SAMM_Micro_FACS_Codes*.xls*", "*SAMM*")
    worksheet = "MICRO_ONLY"
    places = ("SAMM", "SAMM_CROP", ".")
    labels = frozenset({"anger", "contempt", "disgust", "fear", "happiness", "others", "sadness", "surprise"})
    published = release(
        clips=159, subjects=29, anger=57, others=26, happiness=26, surprise=15, contempt=12, disgust=9, fear=8,
        sadness=6,
    )  # fmt: skip
