"""Synthetic domains: the cameras, populations and classes that drawn clips come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fsmer.data.facs import ACTION_UNIT_ORDER
from fsmer.errors import unknown_name
from fsmer.listing import Listing

__all__ = ["DOMAINS", "Domain", "clip_table", "list_domains", "load_domain"]

# A displacement of 1 in the field tables, in thousandths of the face width: about 2 pixels on a face of 224
# (micro-expressions move skin by some 0.5 to 4 pixels there).
UNIT_DISPLACEMENT = 9.0
THREE_CLASSES: Mapping[str, str] = {"happiness": "positive", "surprise": "surprise"} | dict.fromkeys(
    ("disgust", "repression", "anger", "contempt", "fear", "sadness"), "negative"
)
FIVE_CLASSES: Mapping[str, str] = {name: name for name in ("happiness", "surprise", "disgust", "repression", "others")}
_WEIGHTS = {"disgust": 1.6, "repression": 1.0, "anger": 1.2, "contempt": 0.7, "fear": 0.5, "sadness": 0.7}


@dataclass(frozen=True)
class Domain:
    """A place where synthetic clips are recorded: camera, crop, noise, intensity and label scheme.

    Lengths are in crop widths; amplitudes are relative to a clearly visible action unit (1). Pairs are (mean, standard
    deviation), (x, y), or the ends of a range.
    """

    name: str
    summary: str
    # Emotion to label; classes are drawn equally often, emotions of a class by their weights (1 where there is none).
    labels: Mapping[str, str] = field(default_factory=lambda: THREE_CLASSES)
    emotion_weights: Mapping[str, float] = field(default_factory=lambda: dict(_WEIGHTS))
    crop_scale: tuple[float, float] = (1.0, 0.08)  # of the face in the crop; 1 fills it as the canonical landmarks do
    crop_aspect: tuple[float, float] = (1.0, 0.06)  # vertical over horizontal stretch
    crop_shift: tuple[float, float] = (0.02, 0.03)  # misplacement of the crop, standard deviations of x and y
    crop_offset: tuple[float, float] = (0.0, 0.0)  # systematic misplacement
    crop_angle: float = 0.04  # standard deviation of in-plane rotation, radians
    geometry: float = 0.015  # standard deviation of every landmark's own position
    # How differently faces move by the same action unit: at 1 every bump of it wanders by some 0.017, grows or shrinks
    # by a quarter, turns by some 0.2 radian and weakens or strengthens by half (standard deviations).
    variety: float = 1.0
    intensity: tuple[float, float] = (0.2, 1.4)  # of action units
    asymmetry: float = 0.25  # standard deviation of each side's relative intensity
    head: float = 1.5  # of rigid motion; the clip's own amplitude is this times a number skewed towards 0
    blink: float = 0.5  # probability that a lid is caught moving
    noise: float = 0.7  # amplitude of the estimator's noise
    smoothness: tuple[float, float] = (0.006, 0.045)  # reach of the estimator's smoothing
    extra_units: float = 0.12  # probability of one further, unrelated action unit at low intensity
    judging: bool = False  # protocols judge on it, and nothing trains on it

    @property
    def key(self) -> int:
        """Number that keeps the draws of one domain apart from those of others."""
        return int.from_bytes(self.name.encode()[:8].ljust(8, b"\0"), "little")


_LAB = Domain(
    "lab",
    "high-speed laboratory camera: tight frontal crops, little head motion, clean flow",
    crop_scale=(1.0, 0.04), crop_shift=(0.01, 0.015), crop_angle=0.02, variety=0.5,
    head=0.35, blink=0.2, noise=0.15, smoothness=(0.012, 0.03),
)  # fmt: skip
_FIVE = "the laboratory with five classes: happiness, surprise, disgust, repression, others"
DOMAINS: dict[str, Domain] = {
    domain.name: domain
    for domain in (
        Domain("broad", "every camera, crop and estimator at once: what facs-flow is pretrained on"),
        _LAB,
        Domain(
            "clinic",
            "consulting room: loose crops from above, talking heads, weak expressions, smoother flow",
            crop_scale=(0.88, 0.06), crop_aspect=(1.08, 0.05), crop_offset=(0.02, 0.06), crop_shift=(0.03, 0.04),
            intensity=(0.3, 1.0), head=1.0, blink=0.45, noise=0.35, smoothness=(0.03, 0.06),
        ),
        Domain(
            "field",
            "webcam at home: strong compression noise, turning heads, wide crops",
            crop_scale=(0.94, 0.1), crop_aspect=(0.95, 0.08), crop_shift=(0.04, 0.05), crop_angle=0.08,
            head=1.4, blink=0.4, noise=0.6, smoothness=(0.02, 0.06),
        ),
        replace(_LAB, name="lab-five", summary=_FIVE, labels=FIVE_CLASSES),
        # Nothing that fsmer ships or trains has seen clips of these two.
        Domain(
            "kiosk",
            "camera of a terminal, for judging alone: tight crops from below, tilted heads, patchy flow",
            crop_scale=(1.1, 0.06), crop_aspect=(0.9, 0.05), crop_offset=(-0.03, -0.05), crop_shift=(0.03, 0.03),
            crop_angle=0.07, variety=1.1, intensity=(0.3, 1.2), head=0.8, blink=0.4, noise=0.45,
            smoothness=(0.006, 0.02), judging=True,
        ),
        Domain(
            "infrared",
            "near-infrared camera, for judging alone: skin without texture, uneven movement, far-reaching flow",
            crop_scale=(0.92, 0.05), crop_aspect=(1.04, 0.06), crop_offset=(0.03, 0.02), variety=1.1,
            intensity=(0.25, 1.1), asymmetry=0.4, head=0.6, blink=0.3, noise=0.3, smoothness=(0.045, 0.075),
            judging=True,
        ),
    )
}  # fmt: skip


def list_domains() -> list[str]:
    """Names of the synthetic domains.

    Returns
    -------
    list of str
        The names.

    Examples
    --------
    >>> import fsmer
    >>> fsmer.list_domains()
    ['broad', 'clinic', 'field', 'infrared', 'kiosk', 'lab', 'lab-five']
    """
    return Listing(sorted(DOMAINS), "synthetic domains", _domain_row)


def _domain_row(name: str) -> dict[str, str]:
    return {"domain": name, "what it is like": DOMAINS[name].summary}


def load_domain(name: str | Domain) -> Domain:
    """The domain of that name; an unknown one raises `UnknownNameError` with the nearest names."""
    if isinstance(name, Domain):
        return name
    if name not in DOMAINS:
        raise unknown_name("synthetic domain", name, DOMAINS)
    return DOMAINS[name]


def clip_table(
    place: Domain,
    name: str,
    subjects: int,
    units: Iterable[NDArray[np.bool_]],
    *,
    emotions: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> pd.DataFrame:
    """Table of drawn clips, which are called by `name` and their number and dealt to the subjects in turn.

    They have emotions, which say the labels, or labels alone.
    """
    numbers = np.array(ACTION_UNIT_ORDER)
    named = list(labels) or [place.labels[emotion] for emotion in emotions]
    table = pd.DataFrame(
        {
            "clip": [f"{name}_{index:06d}" for index in range(len(named))],
            "dataset": place.name,
            "subject": [f"{place.name}{index % subjects + 1:03d}" for index in range(len(named))],
            "label": named,
            "aus": ["+".join(map(str, numbers[row])) for row in units],
        }
    )
    return table if len(labels) else table.assign(emotion=list(emotions))
