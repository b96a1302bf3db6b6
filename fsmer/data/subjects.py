"""Which ways of writing a subject mean one person."""

import re
from collections import defaultdict
from collections.abc import Iterable

from fsmer.data.schemes import canonical_dataset

__all__ = ["written_twice"]

_NUMBERED = re.compile(r"(sub(?:ject)?|s|p|)[\s_-]*0*(\d+)(?:\.0)?")


def written_twice(people: Iterable[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Groups of subjects that are one person in several spellings, such as ``6`` and ``006`` of one data set.

    `people` are pairs of data set (``""`` where it is not known) and subject, every pair once; a data set may be spelt
    in several ways as well. The groups have the pairs of each such person, in the order given.
    """
    spellings: dict[tuple[str, str], list[tuple[str, tuple[str, str]]]] = defaultdict(list)
    for dataset, subject in people:
        word, rest = _parts(subject)
        # Where the data set is unknown, sub05 and s05 are two people.
        spellings[canonical_dataset(dataset), rest if dataset else word + rest].append((word[:1], (dataset, subject)))
    return [group for one in spellings.values() for group in _groups(one) if len(group) > 1]


def _parts(subject: str) -> tuple[str, str]:
    """The leading word of a subject and what follows, without letter case and leading zeros."""
    plain = subject.strip().lower()
    parts = _NUMBERED.fullmatch(plain)
    return ("", plain) if parts is None else (parts.group(1), parts.group(2))


def _groups(spelt: list[tuple[str, tuple[str, str]]]) -> list[list[tuple[str, str]]]:
    """Subjects of one number: p01 and s01 are two people, such as a patient and one of the staff."""
    words: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for word, pair in spelt:
        words[word].append(pair)
    # A bare number goes with the one word that there is.
    return list(words.values()) if {"p", "s"} <= words.keys() else [[pair for _, pair in spelt]]
