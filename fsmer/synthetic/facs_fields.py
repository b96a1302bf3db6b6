"""Where each action unit moves the face: mirrored displacement bumps on a canonical face.

Anatomy follows the Facial Action Coding System (Ekman & Friesen 1978, Ekman, Friesen & Hager 2002): which muscle pulls
which skin where. Positions are set on a canonical frontal face; amplitudes are relative to a clearly visible movement
of 1.

The face frame: x to the right and y down in units of the crop width, origin at the crop's centre, edges at -0.5 and
0.5. Every bump hangs on a named landmark, so that individual geometry moves it with the face.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """One Gaussian displacement: ``direction`` at the centre, fading with ``sigma``.

    Parameters
    ----------
    landmark : str
        Key of `LANDMARKS`.
    sigma : tuple of float
        Standard deviations in x and y, in crop widths.
    direction : tuple of float
        Displacement (dx, dy) at the centre on the right half (outward and down positive); dx changes sign on the left
        half.
    offset : tuple of float
        Centre relative to the landmark.
    """

    landmark: str
    sigma: tuple[float, float]
    direction: tuple[float, float]
    offset: tuple[float, float] = (0.0, 0.0)


FIELDS: dict[int, tuple[Bump, ...]] = {
    # Frontalis, inner part: the inner brow and the forehead above it go up.
    1: (
        Bump("brow_inner", (0.078, 0.057), (0.05, -1.0)),
        Bump("brow_inner", (0.104, 0.081), (0.0, -0.6), (0, -0.108)),
        Bump("lid_upper", (0.078, 0.034), (0.0, -0.2), (-0.054, -0.036)),
    ),
    # Frontalis, outer part.
    2: (
        Bump("brow_outer", (0.091, 0.057), (0.0, -1.0)),
        Bump("brow_outer", (0.117, 0.081), (0.0, -0.6), (0, -0.108)),
        Bump("lid_upper", (0.078, 0.034), (0.0, -0.25), (0.068, -0.036)),
    ),
    # Corrugator and depressor supercilii: brows down and together, the upper lid is pushed down.
    4: (
        Bump("brow_inner", (0.078, 0.057), (-0.55, 0.9)),
        Bump("brow_outer", (0.117, 0.057), (-0.3, 0.55), (-0.081, 0)),
        Bump("nose_root", (0.065, 0.057), (-0.2, 0.5), (0, -0.084)),
        Bump("lid_upper", (0.078, 0.029), (-0.05, 0.35), (0, -0.036)),
    ),
    # Levator palpebrae: the upper lid goes up.
    5: (
        Bump("lid_upper", (0.072, 0.023), (0.0, -1.0)),
        Bump("lid_upper", (0.078, 0.029), (0.0, -0.35), (0, -0.048)),
    ),
    # Orbicularis oculi, orbital part: cheek up, skin around the eye drawn towards it.
    6: (
        Bump("cheek", (0.104, 0.063), (-0.1, -0.9)),
        Bump("eye_outer", (0.065, 0.057), (-0.6, 0.15), (0.054, 0)),
        Bump("lid_lower", (0.078, 0.023), (0.0, -0.55)),
        Bump("brow_outer", (0.078, 0.046), (-0.1, 0.2), (0, 0.036)),
    ),
    # Orbicularis oculi, palpebral part: lids tighten, the lower more than the upper.
    7: (
        Bump("lid_lower", (0.078, 0.025), (-0.1, -0.9)),
        Bump("lid_upper", (0.078, 0.023), (0.0, 0.55)),
        Bump("eye_outer", (0.046, 0.034), (-0.35, 0.0)),
    ),
    # Levator labii superioris alaeque nasi: nose sides and upper lip up, brows down.
    9: (
        Bump("nose_side", (0.052, 0.069), (0.1, -1.0)),
        Bump("nose_wing", (0.046, 0.04), (0.15, -0.8)),
        Bump("nose_root", (0.065, 0.046), (-0.2, 0.5), (0.027, -0.06)),
        Bump("brow_inner", (0.078, 0.046), (-0.3, 0.5)),
        Bump("lip_upper", (0.065, 0.034), (0.0, -0.45)),
        Bump("cheek", (0.091, 0.057), (-0.1, -0.3), (-0.081, 0)),
    ),
    # Levator labii superioris: the upper lip up, the nasolabial furrow deepens.
    10: (
        Bump("lip_upper", (0.085, 0.032), (0.05, -1.0)),
        Bump("nasolabial", (0.065, 0.069), (0.1, -0.7), (-0.041, -0.012)),
        Bump("nose_wing", (0.039, 0.034), (0.15, -0.45)),
        Bump("cheek", (0.091, 0.057), (0.0, -0.25), (-0.054, 0.024)),
    ),
    # Zygomaticus minor: the middle of the nasolabial furrow up and out.
    11: (
        Bump("nasolabial", (0.065, 0.063), (0.4, -0.8)),
        Bump("lip_upper", (0.052, 0.034), (0.15, -0.35), (0.041, 0)),
    ),
    # Zygomaticus major: lip corners back and up, the cheek follows.
    12: (
        Bump("mouth_corner", (0.065, 0.05), (0.7, -0.85)),
        Bump("nasolabial", (0.06, 0.07), (0.5, -0.9), (0.04, 0.02)),
        Bump("cheek", (0.1, 0.08), (0.3, -0.7), (0.0, 0.05)),
        Bump("jaw", (0.09, 0.09), (0.3, -0.4), (-0.02, -0.16)),
        Bump("lip_lower", (0.07, 0.035), (0.3, -0.4), (0.03, 0.0)),
        Bump("lid_lower", (0.065, 0.023), (0.0, -0.2)),
    ),
    # Levator anguli oris: corners up sharply, cheeks puff.
    13: (
        Bump("mouth_corner", (0.052, 0.057), (0.2, -1.0)),
        Bump("cheek", (0.078, 0.069), (0.35, -0.4), (0, 0.072)),
    ),
    # Buccinator: corners pulled in towards the teeth, a dimple beside them.
    14: (
        Bump("mouth_corner", (0.058, 0.046), (0.9, -0.1)),
        Bump("mouth_corner", (0.052, 0.057), (-0.5, 0.0), (0.135, 0)),
        Bump("lip_lower", (0.052, 0.034), (0.3, -0.05), (0.054, 0)),
    ),
    # Depressor anguli oris: corners down.
    15: (
        Bump("mouth_corner", (0.065, 0.046), (0.1, 1.0)),
        Bump("mouth_corner", (0.065, 0.057), (0.0, 0.55), (0.027, 0.084)),
        Bump("chin", (0.065, 0.046), (0.0, -0.25), (0, -0.036)),
    ),
    # Depressor labii inferioris: the lower lip down and out.
    16: (
        Bump("lip_lower", (0.078, 0.034), (0.15, 1.0)),
        Bump("chin", (0.078, 0.057), (0.05, 0.5), (0.027, -0.072)),
    ),
    # Mentalis: chin boss and lower lip up.
    17: (
        Bump("chin", (0.091, 0.063), (0.0, -1.0)),
        Bump("lip_lower", (0.104, 0.029), (0.0, -0.7)),
        Bump("mouth_corner", (0.052, 0.034), (0.05, 0.2), (0, 0.012)),
        Bump("lip_upper", (0.078, 0.023), (0.0, -0.2)),
    ),
    # Incisivii: lips drawn together and forward.
    18: (
        Bump("mouth_corner", (0.065, 0.057), (-1.0, 0.0)),
        Bump("lip_upper", (0.065, 0.029), (-0.3, -0.25)),
        Bump("lip_lower", (0.065, 0.029), (-0.3, 0.25)),
    ),
    # Risorius: corners straight back.
    20: (
        Bump("mouth_corner", (0.072, 0.057), (1.0, 0.15)),
        Bump("jaw", (0.091, 0.081), (0.5, 0.15), (-0.068, -0.072)),
        Bump("chin", (0.078, 0.057), (0.2, 0.15), (0.054, -0.048)),
    ),
    # Orbicularis oris: lips funnel outward.
    22: (
        Bump("lip_upper", (0.078, 0.029), (-0.2, -0.8)),
        Bump("lip_lower", (0.078, 0.029), (-0.2, 0.8)),
        Bump("mouth_corner", (0.052, 0.046), (-0.7, 0.0)),
    ),
    # Orbicularis oris: lips tighten and narrow.
    23: (
        Bump("lip_upper", (0.078, 0.023), (-0.15, 0.7)),
        Bump("lip_lower", (0.078, 0.025), (-0.15, -0.7)),
        Bump("mouth_corner", (0.046, 0.04), (-0.5, 0.0)),
    ),
    # Orbicularis oris: lips pressed together.
    24: (
        Bump("lip_upper", (0.098, 0.025), (0.0, 0.8)),
        Bump("lip_lower", (0.098, 0.029), (0.0, -1.0)),
        Bump("chin", (0.091, 0.046), (0.0, -0.4), (0, -0.048)),
        Bump("mouth_corner", (0.046, 0.04), (0.2, 0.1)),
    ),
    # Lips part: the lower lip falls a little, the upper rises a little.
    25: (
        Bump("lip_lower", (0.091, 0.032), (0.0, 1.0)),
        Bump("lip_upper", (0.078, 0.023), (0.0, -0.35)),
        Bump("chin", (0.091, 0.069), (0.0, 0.4), (0, -0.048)),
    ),
    # The jaw drops, the lower lip goes with it.
    26: (
        Bump("chin", (0.143, 0.103), (0.0, 1.0)),
        Bump("lip_lower", (0.104, 0.04), (0.0, 0.9)),
        Bump("jaw", (0.104, 0.103), (0.0, 0.6)),
    ),
    # The mouth is stretched open: further down, corners inward.
    27: (
        Bump("chin", (0.156, 0.115), (0.0, 1.4)),
        Bump("lip_lower", (0.104, 0.052), (0.0, 1.3)),
        Bump("jaw", (0.117, 0.115), (-0.1, 0.9)),
        Bump("mouth_corner", (0.052, 0.057), (-0.5, 0.4)),
        Bump("lip_upper", (0.078, 0.023), (0.0, -0.3)),
    ),
    # Lips sucked in over the teeth.
    28: (
        Bump("lip_upper", (0.098, 0.029), (0.0, 1.0)),
        Bump("lip_lower", (0.098, 0.034), (0.0, -1.0)),
        Bump("mouth_corner", (0.046, 0.034), (-0.3, 0.0)),
    ),
    # The levator relaxes: the upper lid droops.
    41: (
        Bump("lid_upper", (0.072, 0.029), (0.0, 0.7)),
        Bump("brow_outer", (0.091, 0.034), (0.0, 0.15), (-0.108, 0.036)),
    ),
    # Both lids close to a slit.
    42: (Bump("lid_upper", (0.072, 0.025), (0.0, 0.9)), Bump("lid_lower", (0.072, 0.021), (0.0, -0.5))),
    # Eyes closed.
    43: (Bump("lid_upper", (0.072, 0.034), (0.0, 1.3), (0, 0.012)), Bump("lid_lower", (0.072, 0.017), (0.0, -0.2))),
    # Squint: lids and the skin around them press together.
    44: (
        Bump("lid_upper", (0.078, 0.025), (0.0, 0.7)),
        Bump("lid_lower", (0.078, 0.025), (0.0, -0.8)),
        Bump("cheek", (0.091, 0.046), (0.0, -0.35), (0, -0.048)),
        Bump("brow_outer", (0.104, 0.034), (-0.1, 0.3), (-0.095, 0.024)),
    ),
    # Blink: between onset and apex the lid may be caught on its way down or up.
    45: (Bump("lid_upper", (0.065, 0.023), (0.0, 1.5), (0, 0.014)), Bump("lid_lower", (0.065, 0.014), (0.0, -0.2))),
    # Wink: one eye closes, the cheek helps.
    46: (
        Bump("lid_upper", (0.065, 0.029), (0.0, 1.3), (0, 0.012)),
        Bump("lid_lower", (0.072, 0.023), (0.0, -0.4)),
        Bump("cheek", (0.078, 0.052), (0.0, -0.4), (0, -0.024)),
    ),
}


@dataclass(frozen=True)
class EmotionPattern:
    """One combination of action units that an emotion is seen with.

    Parameters
    ----------
    units : tuple of int
        Action unit numbers.
    weight : float
        How often, relative to the emotion's other patterns.
    one_sided : float
        Probability that only one half of the face shows it.
    """

    units: tuple[int, ...]
    weight: float
    one_sided: float = 0.12


def _patterns(*rows: tuple[float, float, tuple[int, ...]]) -> tuple[EmotionPattern, ...]:
    return tuple(EmotionPattern(units, weight, one_sided) for weight, one_sided, units in rows)


# Weight, chance of one-sidedness, units. Prototypes after EMFACS (Friesen & Ekman 1983), thinned to the partial and
# low-intensity combinations that the micro-expression databases report: CASME II (Yan et al. 2014, Table 3: disgust by
# AU 9, 10, 4+7; repression by AU 15, 17; happiness by AU 6, 12; surprise by AU 1+2, 25), SAMM (Davison et al. 2018) and
# SMIC's coarse classes. Weights are our own.
EMOTION_ACTION_UNITS: dict[str, tuple[EmotionPattern, ...]] = {
    "happiness": _patterns(
        (3.0, 0.3, (12,)),
        (3.0, 0.2, (6, 12)),
        (0.6, 0.2, (6,)),
        (0.6, 0.1, (12, 25)),
        (0.5, 0.05, (6, 12, 25)),
        (0.5, 0.1, (7, 12)),
        (0.4, 0.05, (6, 7, 12)),
        (0.3, 0.3, (12, 14)),
        (0.2, 0.2, (12, 17)),
        (0.2, 0.1, (12, 24)),
        (0.2, 0.1, (10, 12)),
        (0.2, 0.2, (13,)),
    ),
    "surprise": _patterns(
        (4.0, 0.1, (1, 2)),
        (0.9, 0.4, (2,)),
        (0.6, 0.1, (1,)),
        (1.0, 0.05, (1, 2, 5)),
        (0.6, 0.05, (5,)),
        (0.7, 0.05, (1, 2, 25)),
        (0.5, 0.05, (1, 2, 26)),
        (0.4, 0.05, (1, 2, 5, 26)),
        (0.4, 0.0, (25, 26)),
        (0.3, 0.0, (25,)),
        (0.2, 0.0, (27,)),
    ),
    "disgust": _patterns(
        (1.4, 0.05, (4,)),
        (1.5, 0.05, (4, 7)),
        (1.0, 0.1, (9,)),
        (1.0, 0.05, (4, 9)),
        (1.0, 0.2, (10,)),
        (0.5, 0.1, (9, 10)),
        (0.8, 0.05, (4, 7, 9)),
        (0.5, 0.1, (4, 7, 10)),
        (0.4, 0.15, (7,)),
        (0.4, 0.1, (7, 10)),
        (0.3, 0.1, (10, 17)),
        (0.4, 0.05, (4, 6, 7)),
        (0.3, 0.0, (4, 17)),
        (0.3, 0.1, (44,)),
    ),
    "repression": _patterns(
        (1.0, 0.2, (15,)),
        (1.0, 0.0, (17,)),
        (1.0, 0.05, (15, 17)),
        (1.0, 0.4, (14,)),
        (0.5, 0.2, (14, 17)),
        (0.7, 0.0, (24,)),
        (0.5, 0.0, (17, 24)),
        (0.3, 0.1, (12, 15)),
        (0.2, 0.1, (12, 17, 24)),
        (0.3, 0.0, (23,)),
        (0.2, 0.0, (18,)),
        (0.2, 0.0, (28,)),
        (0.2, 0.1, (4, 15)),
        (0.2, 0.2, (15, 14)),
    ),
    "anger": _patterns(
        (1.6, 0.05, (4,)),
        (1.6, 0.05, (4, 7)),
        (0.5, 0.15, (7,)),
        (0.4, 0.0, (4, 5)),
        (0.4, 0.0, (4, 5, 7)),
        (0.4, 0.0, (23,)),
        (0.4, 0.0, (24,)),
        (0.4, 0.0, (4, 17)),
        (0.2, 0.0, (17, 23)),
        (0.2, 0.0, (7, 23)),
        (0.2, 0.1, (4, 10)),
        (0.2, 0.0, (4, 24)),
    ),
    "contempt": _patterns(
        (2.0, 0.7, (14,)),
        (0.8, 0.95, (12,)),
        (0.6, 0.9, (12, 14)),
        (0.3, 0.5, (10, 14)),
        (0.3, 0.5, (14, 17)),
        (0.2, 0.6, (15,)),
    ),
    "fear": _patterns(
        (0.8, 0.0, (1, 4)),
        (0.9, 0.0, (1, 2, 4)),
        (0.6, 0.0, (4, 5)),
        (0.6, 0.15, (20,)),
        (0.4, 0.0, (1, 2, 4, 5)),
        (0.3, 0.0, (5, 20)),
        (0.4, 0.1, (20, 25)),
        (0.2, 0.0, (1, 2, 4, 20)),
    ),
    "sadness": _patterns(
        (1.2, 0.05, (1, 4)),
        (0.7, 0.15, (15,)),
        (0.6, 0.0, (17,)),
        (0.6, 0.0, (15, 17)),
        (0.3, 0.0, (1, 15)),
        (0.4, 0.05, (4, 15)),
        (0.4, 0.0, (1, 4, 15)),
        (0.2, 0.05, (1, 4, 17)),
        (0.2, 0.05, (11, 17)),
    ),
    "tense": _patterns(
        (1.0, 0.05, (4,)),
        (1.0, 0.1, (7,)),
        (0.7, 0.0, (24,)),
        (0.6, 0.0, (17,)),
        (0.5, 0.3, (14,)),
        (0.4, 0.0, (43,)),
        (0.4, 0.0, (4, 7)),
        (0.4, 0.05, (20,)),
    ),
    "others": _patterns(
        (1.5, 0.05, (4,)),
        (1.0, 0.05, (4, 7)),
        (0.6, 0.3, (14,)),
        (0.5, 0.0, (17,)),
        (0.4, 0.2, (12,)),
        (0.4, 0.2, (7,)),
        (0.4, 0.1, (10,)),
        (0.4, 0.4, (2,)),
        (0.3, 0.0, (26,)),
        (0.3, 0.0, (18,)),
        (0.3, 0.0, (41,)),
        (0.3, 0.2, (16,)),
    ),
}
