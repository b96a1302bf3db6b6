"""Checks of the parameters of protocols."""

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np

from fsmer.data.schemes import canonical_dataset
from fsmer.errors import ProtocolError

__all__ = [
    "check_text", "check_whole", "described", "nearest", "refuse_unknown", "store_datasets", "store_names",
    "store_subset",
]  # fmt: skip

# Clips or episodes of one protocol: more than anybody runs, and few enough that none is asked for by mistake.
MOST = 1_000_000
MOST_SEED = 2**64 - 1


def store_names(protocol: Any, *names: str) -> None:
    """Turn parameters that list names into sorted tuples; one text may hold several, parted by commas."""
    for name in names:
        value = getattr(protocol, name)
        if value is None:
            continue
        parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
        listed = isinstance(parts, list | tuple) and len(parts) > 0
        if not listed or not all(isinstance(part, str) and part for part in parts):
            raise ProtocolError(f"{name}={value!r} is not a list of names; write them as text, in quotes where needed.")
        object.__setattr__(protocol, name, tuple(sorted(parts)))


def store_datasets(protocol: Any, *names: str) -> None:
    """As `store_names` for names of data sets, none of which may be in two of the parameters."""
    store_names(protocol, *names)
    sides: list[str] = []
    for name in names:
        if getattr(protocol, name) is not None:
            side = sorted({canonical_dataset(part) for part in getattr(protocol, name)})
            object.__setattr__(protocol, name, tuple(side))
            sides += side
    both = sorted({part for part in sides if sides.count(part) > 1})
    if both:
        raise ProtocolError(f"{both[0]!r} is on both sides ({' and '.join(names)}); a data set can be on one only.")


def store_subset(protocol: Any) -> None:
    """Turn `class_subset` of a protocol, where it has one, into a sorted tuple of at least two classes."""
    if getattr(protocol, "class_subset", None) is not None:
        store_names(protocol, "class_subset")
        classes = protocol.class_subset
        if len(set(classes)) < max(2, len(classes)):
            raise ProtocolError(f"class_subset={classes!r} is not possible; name at least two classes, each once.")


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Refuse anything but a whole number from `low` to `high`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        most = "" if high is None else f" and at most {high}"
        raise ProtocolError(f"{name}={value!r} is not possible; give a whole number of at least {low}{most}.")


def check_text(name: str, value: Any) -> str:
    """The value, which must be text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ProtocolError(f"{name}={value!r} is not a name; write it as text, in quotes where needed.")
    return value


def refuse_unknown(given: Iterable[Any], known: Iterable[str], what: str) -> None:
    """Refuse a key that is not known; `what` says what it should be."""
    names = list(known)
    for key in given:
        if key not in names:
            listed = f"Known: {', '.join(names)}." if names else "There are none."
            raise ProtocolError(f"{str(key)!r} is not {what}: {nearest(str(key), names)}{listed}")


def nearest(given: str, known: Iterable[str]) -> str:
    """A question with the nearest known name, or nothing."""
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


def described(value: object) -> str:
    """The type of a value in words."""
    return "nothing" if value is None else f"a {type(value).__name__}"
