"""Sets of action units as classes: which occur together, and which are for training and which are kept apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fsmer.data.au_parser import parse_aus
from fsmer.data.facs import ACTION_UNIT_ORDER, describe_aus
from fsmer.errors import DataError, unknown_name
from fsmer.synthetic.domains import Domain
from fsmer.synthetic.facs_fields import EMOTION_ACTION_UNITS, table_rows
from fsmer.synthetic.individuals import Patterns

__all__ = ["FAMILIES", "UnitSet", "dealt_codes", "family_of", "patterns_of", "unit_set", "unit_sets"]

Side = Literal["both", "left", "right"]
Family = Literal["base", "validation", "novel"]
FAMILIES: tuple[str, ...] = get_args(Family)
# Of 100 sets outside the emotions, this many are for validation and this many novel; the rest is base.
_SHARES = {"validation": 15, "novel": 25}


@dataclass(frozen=True)
class UnitSet:
    """A class: action units that move together.

    Parameters
    ----------
    units : tuple of int
        Numbers that `ACTION_UNIT_ORDER` lists, in any order.
    side : {"both", "left", "right"}, default "both"
        Half of the face, as FACS has it: left is that of the person, the right half of the picture.
    intensity : tuple of float, optional
        Lowest and highest strength, 1 is clearly visible; None takes those of the domain.

    Examples
    --------
    >>> UnitSet((12, 6)).name, UnitSet((14,), side="left").name
    ('6+12', 'L14')
    """

    units: tuple[int, ...]
    side: Side = "both"
    intensity: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for unit in self.units:
            if unit not in ACTION_UNIT_ORDER:
                raise unknown_name("action unit", unit, map(str, ACTION_UNIT_ORDER))
        object.__setattr__(self, "units", tuple(sorted(set(self.units))))
        if not self.units:
            raise DataError("a class of no action unit cannot be drawn: name at least one, such as 12.")
        if self.side not in get_args(Side):
            raise unknown_name("side", self.side, get_args(Side))
        if self.units == (46,) and self.side == "both":
            raise DataError("a wink (action unit 46) closes one eye: give side 'left' or 'right'.")
        low, high = self.intensity or (0.0, 1.0)
        if not 0 <= low <= high < np.inf:
            raise DataError(
                f"intensity {self.intensity} is not possible: give a lowest and a highest one, such as .3, 1."
            )

    @property
    def name(self) -> str:
        """As FACS coders write it: ``6+12``, ``L14`` for the left half alone."""
        letter = {"both": "", "left": "L", "right": "R"}[self.side]
        return "+".join(f"{letter}{unit}" for unit in self.units)

    @property
    def description(self) -> str:
        """What moves, in plain words."""
        words = describe_aus(self.units)
        return words if self.side == "both" else f"{words}, on the {self.side} half of the face alone"


def unit_set(name: str | UnitSet) -> UnitSet:
    """The class of a name such as ``6+12`` or ``L14``; `DataError` where it is none."""
    if isinstance(name, UnitSet):
        return name
    parsed = parse_aus(name)
    letters = {"".join(unit.sides) for unit in parsed.units}
    open_choice = any(unit.choice is not None for unit in parsed.units)
    if parsed.unparsed or open_choice or not parsed.units or len(letters) > 1 or not letters <= {"", "L", "R"}:
        raise DataError(
            f"{name!r} is no set of action units: write numbers of FACS joined by +, such as 6+12, or L12 and R12 for "
            "one half of the face."
        )
    sides: dict[str, Side] = {"": "both", "L": "left", "R": "right"}
    return UnitSet(parsed.numbers(), sides[letters.pop()])


@lru_cache(maxsize=1)
def _emotion_sets() -> frozenset[tuple[int, ...]]:
    """What domains draw emotions with, and so what supervised training sees."""
    return frozenset(tuple(sorted(one.units)) for patterns in EMOTION_ACTION_UNITS.values() for one in patterns)


def family_of(one: str | UnitSet) -> str:
    """Whether a set of action units is for training (base), validation, or novel; the side makes no difference.

    Sets that emotions are drawn with are base: whoever trained on clips of emotions has seen them. The others are dealt
    by a digest of their numbers, for ever.
    """
    units = unit_set(one).units
    if units in _emotion_sets():
        return "base"
    digest = hashlib.sha256("+".join(map(str, units)).encode()).digest()
    place = int.from_bytes(digest[:8], "big") % 100
    if place < _SHARES["novel"]:
        return "novel"
    return "validation" if place < _SHARES["novel"] + _SHARES["validation"] else "base"


def _movements() -> dict[tuple[int, ...], tuple[str, bool]]:
    """Movements of one half of the face each: which half, upper or lower, and whether left or right shows it alone."""
    rows = table_rows("movements")
    return {tuple(map(int, row["units"].split("+"))): (row["face"], row["one_sided"] == "yes") for row in rows}


@lru_cache(maxsize=8)
def unit_sets(family: str | None = None) -> tuple[UnitSet, ...]:
    """The classes of a family, sorted by name; all of them without one.

    They are the sets that emotions are drawn with, single movements, and one movement of the upper face with one of the
    lower, where nothing in them pulls against each other; movements that occur on one half of the face also have either
    half as a class of its own.
    """
    if family is not None and family not in FAMILIES:
        raise unknown_name("family of action unit sets", family, FAMILIES)
    movements = _movements()
    upper = [units for units, (face, _) in movements.items() if face == "upper"]
    lower = [units for units, (face, _) in movements.items() if face == "lower"]
    rivals = {frozenset(map(int, row["units"].split("+"))) for row in table_rows("antagonists")}
    found = {UnitSet(units) for units in _emotion_sets()}
    for parts in (*((units,) for units in movements), *product(upper, lower)):
        units = tuple(sorted(sum(parts, ())))
        if rivals.isdisjoint(map(frozenset, combinations(units, 2))):
            either = ("left", "right") if all(movements[part][1] for part in parts) else ()
            found |= {UnitSet(units, side) for side in (*(() if 46 in units else ("both",)), *either)}
    chosen = [one for one in found if family in (None, family_of(one))]
    return tuple(sorted(chosen, key=lambda one: (one.units, one.side)))


def dealt_codes(sets: Sequence[UnitSet], count: int, seed: int) -> NDArray[np.int64]:
    """Classes of clips: each class once in every run of as many clips, in an order drawn for the run.

    A clip's class does not depend on how many there are, and people who are dealt the clips in turn get many classes.
    `DataError` for a class that is named twice.
    """
    names = [one.name for one in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"class {twice} is named more than once: name each class once.")
    runs = range(-(-count // len(sets)))
    orders = [np.random.Generator(np.random.PCG64([seed, number])).permutation(len(sets)) for number in runs]
    return np.concatenate([np.empty(0, np.int64), *orders])[:count]


def patterns_of(sets: Sequence[UnitSet], codes: NDArray[np.int64], domain: Domain) -> Patterns:
    """What is asked of clips of these classes; `codes`, (B,), are indices into `sets`."""
    halves = np.array([("right", "left").index(one.side) if one.side != "both" else -1 for one in sets])[codes]
    # The person's left half is the right half of the picture, side 0: what stays still is the other one.
    return Patterns(
        units=np.array([np.isin(ACTION_UNIT_ORDER, one.units) for one in sets])[codes],
        one_sided=(halves >= 0).astype(np.float64),
        still=np.maximum(halves, 0),
        intensity=np.array([one.intensity or domain.intensity for one in sets], dtype=np.float64)[codes],
    )
