"""The thirty action units (FACS) that micro-expression data sets code, with words for what moves."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from fsmer.data.text_tables import shipped_rows
from fsmer.errors import UnknownNameError

__all__ = [
    "ACTION_UNITS", "ACTION_UNIT_ORDER", "EMOTION_ORDER", "ActionUnit", "action_unit", "describe_aus",
    "units_of_description",
]  # fmt: skip

TABLE = Path(__file__).parent / "tables" / "action_units.csv"


@dataclass(frozen=True)
class ActionUnit:
    """One action unit.

    Parameters
    ----------
    number : int
        FACS number.
    name : str
        FACS name, e.g. ``"Lip Corner Puller"``.
    region : str
        Part of the face: brow, eye, nose, cheek, mouth, chin or jaw.
    phrase : str
        What moves, in plain words.
    """

    number: int
    name: str
    region: str
    phrase: str

    def __str__(self) -> str:
        return f"AU{self.number} {self.name}"


ACTION_UNITS: Mapping[int, ActionUnit] = MappingProxyType(
    {int(row["number"]): ActionUnit(**row | {"number": int(row["number"])}) for row in shipped_rows(TABLE)}  # type: ignore[arg-type]
)
"""Number -> action unit: Table II of the attribute-embedding 3D-ResNet paper (2022), its misprints put right."""
# The order of columns wherever action units are numbers in an array.
ACTION_UNIT_ORDER: tuple[int, ...] = tuple(sorted(ACTION_UNITS))
# Likewise of emotions.
EMOTION_ORDER: tuple[str, ...] = (
    *("happiness", "surprise", "disgust", "repression", "anger"),
    *("contempt", "fear", "sadness", "tense", "others"),
)


def action_unit(number: int | str) -> ActionUnit:
    """Action unit by number.

    Parameters
    ----------
    number : int or str
        ``12``, ``"12"`` or ``"AU12"``.

    Raises
    ------
    UnknownNameError
        The table has no such unit.

    Examples
    --------
    >>> action_unit("AU12").phrase
    'the corners of the mouth go up and outwards'
    """
    digits = re.fullmatch(r"\s*(?:AU)?\s*([0-9]{1,9})\s*", str(number), re.IGNORECASE)
    found = ACTION_UNITS.get(int(digits.group(1))) if digits else None
    if found is None:
        raise UnknownNameError(f"action unit {number!r} is unknown; give one of {', '.join(map(str, ACTION_UNITS))}.")
    return found


def describe_aus(numbers: Iterable[int]) -> str:
    """Words for what moves when these action units act together; units outside the table are named by number.

    Examples
    --------
    >>> describe_aus([6, 12])
    'the cheeks go up and the skin beside the eyes gathers; the corners of the mouth go up and outwards'
    """
    return "; ".join(
        ACTION_UNITS[number].phrase if number in ACTION_UNITS else f"action unit {number} acts" for number in numbers
    )


def units_of_description(text: str) -> tuple[int, ...]:
    """Sorted numbers of the action units of a movement that is described by FACS names, numbers or the table's phrases.

    Parts are divided by ``,``, ``;``, ``+``, ``&`` or ``and``; each is a name (``"cheek raiser"``), a number (``"12"``,
    ``"AU12"``) or a phrase of the table, in whatever letter case. Where any part is none of these there are no units,
    so that a class's plain name is no description.

    >>> units_of_description("cheek raiser, lip corner puller"), units_of_description("AU4 + 7")
    ((6, 12), (4, 7))
    >>> units_of_description("happiness")
    ()
    """
    parts = [text] if _unit_of_words(text) else re.split(r"[,;+&]|\band\b", text, flags=re.IGNORECASE)
    units = [_unit_of_words(part) for part in parts if part.strip()]
    return () if None in units else tuple(sorted({unit for unit in units if unit is not None}))


def _unit_of_words(words: str) -> int | None:
    plain = " ".join(words.lower().split()).rstrip(".")
    digits = re.fullmatch(r"(?:au ?)?([0-9]{1,9})", plain)
    if digits:
        return int(digits[1]) if int(digits[1]) in ACTION_UNITS else None
    named = (unit.number for unit in ACTION_UNITS.values() if plain in (unit.name.lower(), unit.phrase.lower()))
    return next(named, None)
