"""CASME: ``CASME_raw_selected/sub01/EP01_5/EP01_5-1.jpg`` or ``Cropped/sub01/EP01_5/reg_EP01_5-1.jpg``.

Frame numbers get leading zeros in the later part of the release, which the order by number does not mind. The sheet has
two apex columns, of which the second is filled for a part of the clips only (a backslash stands for none); the first
counts. Its columns ``Onset`` and ``Total`` are milliseconds.
"""

from __future__ import annotations

from fsmer.datasets.base import Adapter, register_dataset, release, roles


@register_dataset("casme")
class Casme(Adapter):
    """CASME."""

    title = "CASME"
    subject_prefix = "sub"
    frames_per_second = 60.0
    sheets = ("CASME-coded*.xls*", "casme*.xls*", "casme*.csv")
    columns = roles(
        subject="Subject", name="Filename", onset="OnsetF", apex="ApexF1", offset="OffsetF", aus="AU", label="Emotion"
    )
    places = ("CASME_raw_selected", "Cropped", ".")
    labels = frozenset(
        {"contempt", "disgust", "fear", "happiness", "others", "repression", "sadness", "surprise", "tense"}
    )
    published = release(clips=193, subjects=19)
