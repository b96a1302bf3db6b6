"""Action units that a class shows, by its name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fsmer.data.au_parser import parse_aus
from fsmer.data.facs import ACTION_UNIT_ORDER, units_of_description
from fsmer.synthetic.domains import THREE_CLASSES
from fsmer.synthetic.facs_fields import EMOTION_ACTION_UNITS

__all__ = ["described_units", "emotions_of", "unit_shares"]


def described_units(name: str) -> tuple[int, ...]:
    """Action units of a class that is named by them, as words (`units_of_description`) or as an annotation writes them.

    Empty when any of it is not understood, or no unit that `ACTION_UNIT_ORDER` lists.
    """
    numbers = units_of_description(name)
    if not numbers:
        parsed = parse_aus(name)
        numbers = () if parsed.unparsed else parsed.numbers()
    return numbers if set(numbers) <= set(ACTION_UNIT_ORDER) else ()


def emotions_of(name: str, coarse: Mapping[str, str] = THREE_CLASSES) -> list[str]:
    """The emotions that a class stands for: itself, or those of a coarse class; empty for any other name."""
    return [name] if name in EMOTION_ACTION_UNITS else [emotion for emotion in coarse if coarse[emotion] == name]


def unit_shares(name: str, coarse: Mapping[str, str] = THREE_CLASSES) -> NDArray[np.float32] | None:
    """How often a class shows each action unit, float32 (len(ACTION_UNIT_ORDER),) in 0..1; None without a FACS meaning.

    A name is an emotion of `EMOTION_ACTION_UNITS`, a coarse class (a value of `coarse`, the mean of its emotions), or a
    description (see `described_units`).
    """
    emotions = emotions_of(name, coarse)
    if emotions:
        return np.asarray(np.mean([_emotion_shares(emotion) for emotion in emotions], axis=0))
    numbers = described_units(name)
    return np.isin(ACTION_UNIT_ORDER, numbers).astype(np.float32) if numbers else None


def _emotion_shares(emotion: str) -> NDArray[np.float32]:
    patterns = EMOTION_ACTION_UNITS[emotion]
    shares = np.zeros(len(ACTION_UNIT_ORDER), dtype=np.float32)
    for pattern in patterns:
        shares += pattern.weight * np.isin(ACTION_UNIT_ORDER, list(pattern.units))
    return shares / np.float32(sum(pattern.weight for pattern in patterns))
