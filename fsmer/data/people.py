"""Which ways of writing a subject mean one person."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from fsmer.data.schemes import canonical_dataset

__all__ = ["plain_subject", "written_twice"]

_NUMBERED = re.compile(r"(sub(?:ject)?|s|p|)[\s_-]*0*(\d+)(?:\.0)?")


def plain_subject(subject: str, *, in_one_dataset: bool = True) -> str:
    """A subject without what spellings differ in: letter case, leading zeros and, in one data set, a leading word.

    Over data sets the word tells sub05 of one from s05 of another.

    Parameters
    ----------
    subject : str
    in_one_dataset : bool
        Whether all subjects that it is compared with are of its data set.

    Examples
    --------
    >>> plain_subject("006"), plain_subject("sub06"), plain_subject("sub06", in_one_dataset=False)
    ('6', '6', 'sub6')
    """
    parts = _NUMBERED.fullmatch(subject.strip().lower())
    if parts is None:
        return subject.strip().lower()
    return parts.group(2) if in_one_dataset else "".join(parts.groups())


def written_twice(people: Iterable[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Groups of subjects that are one person in several spellings, such as ``6`` and ``006`` of one data set.

    Parameters
    ----------
    people : iterable of (str, str)
        Data set (``""`` where it is not known) and subject of each person, every pair once. A data set may be spelt
        in several ways as well.

    Returns
    -------
    list of list of (str, str)
        The pairs of each such person, in the order given.
    """
    spellings: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for dataset, subject in people:
        key = plain_subject(subject, in_one_dataset=bool(dataset))
        spellings[canonical_dataset(dataset), key].append((dataset, subject))
    return [group for pairs in spellings.values() for group in _by_word(pairs) if len(group) > 1]


def _by_word(pairs: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Subjects of one number: p01 and s01 are two people, such as a patient and one of the staff."""
    words: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for pair in pairs:
        parts = _NUMBERED.fullmatch(pair[1].strip().lower())
        words[parts.group(1)[:1] if parts else ""].append(pair)
    # A bare number goes with the one word that there is.
    return list(words.values()) if {"p", "s"} <= words.keys() else [pairs]
