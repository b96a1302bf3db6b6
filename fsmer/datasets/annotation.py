"""What a data set says of one clip, before its frames are read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fsmer.data.schemes import SPELLINGS
from fsmer.datasets.sheets import SheetRow

__all__ = ["Annotation", "frame_number", "numbered", "plain_label", "states_nothing", "with_unique_ids"]

# Cells that stand for nothing: CASME II writes / or \ for an unknown apex, SAMM ? for an unclear offset.
NOTHING = frozenset({"", "/", "\\", "?", "-", "n/a", "na", "nan", "none", "#n/a"})


@dataclass(frozen=True)
class Annotation:
    """One clip as its sheet (or the names of its folders) describe it; every cell is text as written."""

    clip: str  # id for tables: unique in the data set
    subject: str  # who it is, in the data set's one spelling ("sub01", "006")
    name: str  # the clip's own name in the sheet, or of its folder
    label: str = ""
    aus: str = ""
    onset: str = ""  # frame numbers
    apex: str = ""
    offset: str = ""
    place: str = ""  # path that the sheet itself states; empty where the data set's layout says where the clip is
    dataset: str = ""  # what the sheet states of it and of its speed, if it does
    frames_per_second: float | None = None
    own: Mapping[str, str] = field(default_factory=dict)  # all columns of the sheet -> text
    # Whether the sheet gives the clip a name; otherwise it is called like its video or folder, which may hold others.
    named: bool = True

    @classmethod
    def of(cls, row: SheetRow, *, clip: str, subject: str) -> Annotation:
        """The annotation that a row of a sheet states, for adapters whose columns have these names as roles."""
        cells: dict[str, Any] = {role: row[role] for role in ("name", "label", "aus", "onset", "apex", "offset")}
        return cls(clip=clip, subject=subject, own=row.own, **cells)


def states_nothing(cell: str) -> bool:
    """Whether a cell is empty or holds one of the marks that stand for nothing."""
    return cell.strip().lower() in NOTHING


def numbered(cell: str, prefix: str = "", width: int = 2) -> str:
    """Name from the first number of a cell: ``numbered("7", "sub")`` is ``"sub07"``; other cells stay as they are."""
    digits = re.search(r"\d+", cell)
    return f"{prefix}{digits[0].lstrip('0').zfill(width)}" if digits else cell.strip()


def frame_number(cell: str) -> int | None:
    """Frame number that a cell states (a question mark behind it is overlooked), or None; none has over 15 digits."""
    digits = re.fullmatch(r"0*(\d{1,15})(?:\.0*)?\s*[?？]?", cell.strip())
    return int(digits[1]) if digits else None


def plain_label(cell: str) -> str:
    """Label in the one spelling that tables have: lower case, ``others``, ``happiness``, ``sadness``; ``""`` for none.

    Double labels keep both names: ``"Surprise+Positive"`` -> ``"surprise+positive"``.
    """
    words = [" ".join(word.lower().split()) for word in cell.split("+")]
    return "" if states_nothing(cell) else "+".join(SPELLINGS.get(word, word) for word in words)


def with_unique_ids(clips: Sequence[Annotation]) -> Iterator[tuple[Annotation, str]]:
    """Clips with what is to be said of their ids: those that come up twice get the onset and a running number."""
    counts = Counter(clip.clip for clip in clips)
    places = Counter(clip.clip for clip in {(clip.clip, clip.place): clip for clip in clips}.values())
    taken: set[str] = set()
    for clip in clips:
        name, said = clip.clip, ""
        if counts[name] > 1:
            if clip.named:
                said = f"the annotation names it {counts[name]} times"
            elif places[name] > 1:
                said = f"{places[name]} videos or folders of the annotation are called {name!r}"
            name = f"{name}_{clip.onset}" if clip.onset else name
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}-{number}", number + 1
            said = said or f"the annotation has {clip.place} from the same onset more than once"
        taken.add(unique)
        yield replace(clip, clip=unique), said
