"""Where each action unit moves the face: mirrored displacement bumps on a canonical face.

The tables beside this file hold the landmarks, the displacements, the combinations of action units that emotions are
seen with, and where skin has texture. Anatomy follows the Facial Action Coding System (Ekman & Friesen 1978, Ekman,
Friesen & Hager 2002): which muscle pulls which skin where. Positions are set on a canonical frontal face; amplitudes
are relative to a clearly visible movement of 1.

The face frame: x to the right and y down in units of the crop width, origin at the crop's centre, edges at -0.5 and
0.5. Every bump hangs on a named landmark, so that individual geometry moves it with the face.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fsmer.data.text_tables import shipped_rows

__all__ = ["EMOTION_ACTION_UNITS", "FIELDS", "LANDMARKS", "Bump", "EmotionPattern"]

Pair = tuple[float, float]


def table_rows(name: str) -> list[dict[str, str]]:
    """Rows of one of the tables of this folder."""
    return shipped_rows(Path(__file__).parent / "tables" / f"{name}.csv")


def pair(row: Mapping[str, str], first: str, second: str) -> Pair:
    """Two numbers of a row."""
    return float(row[first]), float(row[second])


# Canonical landmarks, right half of the picture; the left half mirrors it. The crop is the one of the MEGC 2019 habit:
# brows to lower lip, about 4:5, squeezed to a square. Distances follow adult anthropometry (Farkas 1994): pupils 63 mm
# apart, mouth line about 67 mm, nose base 45 mm and lower edge of the lower lip 80 mm below them, mouth 50 mm wide.
LANDMARKS: dict[str, Pair] = {row["landmark"]: pair(row, "x", "y") for row in table_rows("landmarks")}


@dataclass(frozen=True)
class Bump:
    """One Gaussian displacement: ``direction`` at the centre, fading with ``sigma``."""

    landmark: str  # key of `LANDMARKS`
    sigma: Pair  # standard deviations in x and y, in crop widths
    # Displacement (dx, dy) at the centre on the right half (outward and down positive); dx changes sign on the left
    # half
    direction: Pair
    offset: Pair = (0.0, 0.0)  # centre relative to the landmark


@dataclass(frozen=True)
class EmotionPattern:
    """One combination of action units that an emotion is seen with."""

    units: tuple[int, ...]  # action unit numbers
    weight: float  # how often, relative to the emotion's other patterns
    one_sided: float = 0.12  # probability that only one half of the face shows it


FIELDS: dict[int, tuple[Bump, ...]] = {}
for _row in table_rows("displacements"):
    _sigma, _direction = pair(_row, "sigma_x", "sigma_y"), pair(_row, "outward", "down")
    _bump = Bump(_row["landmark"], _sigma, _direction, pair(_row, "offset_x", "offset_y"))
    FIELDS[int(_row["unit"])] = (*FIELDS.get(int(_row["unit"]), ()), _bump)

# Prototypes after EMFACS (Friesen & Ekman 1983), thinned to the partial and low-intensity combinations that the
# micro-expression databases report: CASME II (Yan et al. 2014, Table 3: disgust by AU 9, 10, 4+7; repression by AU 15,
# 17; happiness by AU 6, 12; surprise by AU 1+2, 25), SAMM (Davison et al. 2018) and SMIC's coarse classes. Weights are
# our own.
EMOTION_ACTION_UNITS: dict[str, tuple[EmotionPattern, ...]] = {}
for _row in table_rows("emotions"):
    _pattern = EmotionPattern(tuple(map(int, _row["units"].split("+"))), *pair(_row, "weight", "one_sided"))
    EMOTION_ACTION_UNITS[_row["emotion"]] = (*EMOTION_ACTION_UNITS.get(_row["emotion"], ()), _pattern)
