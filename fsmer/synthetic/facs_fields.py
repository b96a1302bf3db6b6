"""Where each action unit moves the face: mirrored displacement bumps on a canonical face.

The tables in `TABLES` hold the displacements and the combinations of action units that emotions are seen with. Anatomy
follows the Facial Action Coding System (Ekman & Friesen 1978, Ekman, Friesen & Hager 2002): which muscle pulls
which skin where. Positions are set on a canonical frontal face; amplitudes are relative to a clearly visible movement
of 1.

The face frame: x to the right and y down in units of the crop width, origin at the crop's centre, edges at -0.5 and
0.5. Every bump hangs on a named landmark, so that individual geometry moves it with the face.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

__all__ = ["EMOTION_ACTION_UNITS", "FIELDS", "LANDMARKS", "Bump", "EmotionPattern"]

# Canonical landmarks, right half of the picture; the left half mirrors it. The crop is the one of the MEGC 2019 habit:
# brows to lower lip, about 4:5, squeezed to a square. Distances follow adult anthropometry (Farkas 1994): pupils 63 mm
# apart, mouth line about 67 mm, nose base 45 mm and lower edge of the lower lip 80 mm below them, mouth 50 mm wide.
LANDMARKS: dict[str, tuple[float, float]] = {
    "brow_inner": (0.125, -0.32),
    "brow_outer": (0.35, -0.335),
    "lid_upper": (0.285, -0.24),
    "lid_lower": (0.285, -0.195),
    "eye_inner": (0.16, -0.205),
    "eye_outer": (0.41, -0.215),
    "nose_root": (0.04, -0.21),
    "nose_side": (0.075, -0.04),
    "nose_wing": (0.11, 0.07),
    "cheek": (0.31, 0.03),
    "nasolabial": (0.225, 0.11),
    "mouth_corner": (0.205, 0.225),
    "lip_upper": (0.08, 0.195),
    "lip_lower": (0.08, 0.29),
    "chin": (0.07, 0.43),
    "jaw": (0.36, 0.38),
}


@dataclass(frozen=True)
class Bump:
    """One Gaussian displacement: ``direction`` at the centre, fading with ``sigma``."""

    landmark: str  # key of `LANDMARKS`
    sigma: tuple[float, float]  # standard deviations in x and y, in crop widths
    # Displacement (dx, dy) at the centre on the right half (outward and down positive); dx changes sign on the left
    # half
    direction: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)  # centre relative to the landmark


@dataclass(frozen=True)
class EmotionPattern:
    """One combination of action units that an emotion is seen with."""

    units: tuple[int, ...]  # action unit numbers
    weight: float  # how often, relative to the emotion's other patterns
    one_sided: float = 0.12  # probability that only one half of the face shows it


TABLES = Path(__file__).parent / "tables"


def _read_table(name: str, key: str) -> dict[str, list[dict[str, str]]]:
    with (TABLES / name).open(encoding="utf-8", newline="") as handle:
        return {value: list(rows) for value, rows in groupby(csv.DictReader(handle), lambda row: row[key])}


def _pair(row: Mapping[str, str], first: str, second: str) -> tuple[float, float]:
    return float(row[first]), float(row[second])


FIELDS: dict[int, tuple[Bump, ...]] = {
    int(unit): tuple(
        Bump(
            row["landmark"],
            _pair(row, "sigma_x", "sigma_y"),
            _pair(row, "outward", "down"),
            _pair(row, "offset_x", "offset_y"),
        )
        for row in rows
    )
    for unit, rows in _read_table("displacements.csv", "unit").items()
}
# Prototypes after EMFACS (Friesen & Ekman 1983), thinned to the partial and low-intensity combinations that the
# micro-expression databases report: CASME II (Yan et al. 2014, Table 3: disgust by AU 9, 10, 4+7; repression by AU 15,
# 17; happiness by AU 6, 12; surprise by AU 1+2, 25), SAMM (Davison et al. 2018) and SMIC's coarse classes. Weights are
# our own.
EMOTION_ACTION_UNITS: dict[str, tuple[EmotionPattern, ...]] = {
    emotion: tuple(
        EmotionPattern(tuple(map(int, row["units"].split("+"))), *_pair(row, "weight", "one_sided")) for row in rows
    )
    for emotion, rows in _read_table("emotions.csv", "emotion").items()
}
