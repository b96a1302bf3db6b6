"""Classes, and if wanted people, of a clip set dealt into base, validation and novel."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fsmer.data.clips import ClipSet
from fsmer.episodic.checks import MOST_SEED, check_whole
from fsmer.errors import ProtocolError, unknown_name

__all__ = ["ClassSplit", "split_classes"]


class ClassSplit(NamedTuple):
    """Clips to train on, to choose by, and to be judged on; no class is in two of them."""

    base: ClipSet
    validation: ClipSet
    novel: ClipSet


def split_classes(
    clips: ClipSet,
    *,
    base: float | Sequence[str] = 0.6,
    validation: float | Sequence[str] = 0.2,
    people: bool = False,
    way: int = 2,
    seed: int = 0,
) -> ClassSplit:
    """Deal the classes of a clip set into base, validation and novel, by their names and a seed.

    The order of the rows makes no difference.

    Parameters
    ----------
    clips : ClipSet
        Labelled clips.
    base, validation : float or sequence of str
        Share of the classes that goes to that side, 0 to 1, or the names of its classes; novel gets the others.
    people : bool, default False
        Deal the people in the same shares, too, and keep of each side the clips of its people alone, so that no person
        is on two sides.
    way : int, default 2
        Classes that each side must have at least, as tasks need them. A validation share of 0 leaves that side empty.
    seed : int, default 0
        From 0 to 2**64 - 1.

    Returns
    -------
    ClassSplit
        Its three clip sets have the classes of their side.

    Raises
    ------
    ProtocolError
        There are too few classes or people for the sides, a class is named on two sides, or a share is not possible.
    UnknownNameError
        No clip has a class of that name; the message names the nearest.

    Examples
    --------
    >>> import fsmer
    >>> from fsmer.episodic import split_classes
    >>> clips = fsmer.synthetic_clips("lab", 80, classes=["12", "6+12", "15", "1+2", "4", "4+7", "9", "17"])
    >>> [side.classes for side in split_classes(clips, base=0.5, validation=0.25)]
    [('1+2', '15', '4', '4+7'), ('6+12', '9'), ('12', '17')]
    """
    check_whole("seed", seed, 0, MOST_SEED)
    check_whole("way", way, 1)
    names = sorted(set(clips.classes))
    sides = _dealt("classes", names, base, validation, seed)
    for side, chosen in zip(ClassSplit._fields, sides, strict=True):
        if len(chosen) < way and not (side == "validation" and not chosen):
            raise ProtocolError(
                f"the {side} side gets {len(chosen)} of {len(names)} classes, but {way} are needed; add clips of other "
                "classes, or change the shares base and validation."
            )
    masks = [np.isin(clips.labels.astype(str), chosen) for chosen in sides]
    if people:
        subjects = clips.subject_names
        persons = [f"{dataset}/{subject}" for dataset, subject in subjects]
        shares = [len(side) / len(names) for side in sides]
        teams = _dealt("people", persons, shares[0], shares[1], seed)
        found = np.array(persons, dtype=object)[clips.subject_codes()]
        masks = [mask & np.isin(found.astype(str), team) for mask, team in zip(masks, teams, strict=True)]
        for side, chosen, mask in zip(ClassSplit._fields, sides, masks, strict=True):
            missing = sorted(set(chosen) - set(clips.labels[mask].astype(str)))
            if missing:
                raise ProtocolError(
                    f"none of the people on the {side} side has a clip of {missing[0]!r}; choose another seed, or "
                    "people=False."
                )
    return ClassSplit(*(clips[np.flatnonzero(mask)] for mask in masks))


def _dealt(
    what: str, names: Sequence[str], base: float | Sequence[str], validation: float | Sequence[str], seed: int
) -> tuple[list[str], list[str], list[str]]:
    """Names of the three sides."""
    given = {"base": base, "validation": validation}
    wanted: dict[str, list[str]] = {side: [] for side in given}
    for side, value in given.items():
        if isinstance(value, str) or not isinstance(value, int | float):
            wanted[side] = [value] if isinstance(value, str) else list(value)
    for name in (*wanted["base"], *wanted["validation"]):
        if name not in names:
            raise unknown_name("class", name, names)
    both = sorted(set(wanted["base"]) & set(wanted["validation"]))
    if both:
        raise ProtocolError(f"class {both[0]!r} is asked for as base and as validation; name it on one side only.")
    shares = {side: float(value) for side, value in given.items() if isinstance(value, int | float)}
    if any(isinstance(value, bool) for value in given.values()) or not all(0 <= one <= 1 for one in shares.values()):
        raise ProtocolError(f"base={base!r} and validation={validation!r} are not possible; give shares from 0 to 1.")
    if sum(shares.values()) > 1 + 1e-9:
        raise ProtocolError(f"base={base!r} and validation={validation!r} add up to more than 1; lower one of them.")
    taken = {*wanted["base"], *wanted["validation"]}
    # In the order of a digest of the name: a class that is added later moves few others.
    left = sorted((name for name in names if name not in taken), key=lambda name: _place(name, seed))
    for side, share in shares.items():
        count = int(share * len(names) + 0.5)
        wanted[side], left = left[:count], left[count:]
    return wanted["base"], wanted["validation"], left


def _place(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()
