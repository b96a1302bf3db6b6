"""What was found when a data set on disk was compared with its annotation."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from fsmer.data.clips import ClipSet

__all__ = ["Audit", "Finding"]

# Longer lists are in the table; a terminal holds this many.
SHOWN = 40
WIDTH = 80
# Further to the right a column is a strip that nobody reads.
WIDEST_START = 48


@dataclass(frozen=True)
class Finding:
    """One thing about one clip that differs from what its annotation promises.

    Parameters
    ----------
    clip, subject : str
        Which clip.
    problem : str
        Kind of finding, e.g. ``"folder missing"`` or ``"apex out of range"``.
    detail : str
        What was found, and what was done about it.
    used : bool
        Whether the clip is used nevertheless.
    """

    clip: str
    subject: str
    problem: str
    detail: str
    used: bool


@dataclass(frozen=True)
class Audit:
    """Comparison of a data set's annotation with the frames on disk. ``str()`` gives a readable table.

    Parameters
    ----------
    name, title : str
        The adapter's name and the data set's full name.
    root : Path
        Folder that was looked at.
    annotation : str
        Where the annotation is from.
    frames : str
        Folder that holds the frames, and its kind: raw or cropped.
    annotated : int
        Clips that the annotation lists.
    clips : ClipSet or None
        Clips that can be used, without media; None when there is none. See `fsmer.datasets.read_dataset`.
    findings : tuple of Finding
        In the order of the annotation.
    remarks : tuple of str
        On the annotation as a whole, e.g. how many rows are macro-expressions.
    published : mapping of str to int
        What the release should hold: ``clips``, ``subjects`` and labels, as far as known.
    """

    name: str
    title: str
    root: Path
    annotation: str
    frames: str
    annotated: int
    clips: ClipSet | None
    findings: tuple[Finding, ...] = ()
    remarks: tuple[str, ...] = ()
    published: Mapping[str, int] = field(default_factory=dict)

    @property
    def usable(self) -> int:
        """Number of clips that can be used."""
        return 0 if self.clips is None else len(self.clips)

    @property
    def subjects(self) -> int:
        """Number of people in the clips that can be used."""
        return 0 if self.clips is None else len(self.clips.subject_names)

    @property
    def labels(self) -> dict[str, int]:
        """Label -> clips that can be used, most frequent first; clips without a label under ``"no label"``."""
        words = [] if self.clips is None else ["no label" if one is None else one for one in self.clips.labels.tolist()]
        return dict(sorted(Counter(words).items(), key=lambda item: (-item[1], item[0])))

    @property
    def problems(self) -> dict[str, int]:
        """Kind of finding -> number of clips."""
        return dict(Counter(problem for problem, _ in self._problems_of_clips()).most_common())

    @property
    def left_out(self) -> tuple[str, ...]:
        """Ids of annotated clips that cannot be used, each once."""
        return tuple(dict.fromkeys(one.clip for one in self.findings if not one.used))

    @property
    def complete(self) -> bool:
        """Whether every annotated clip can be used."""
        return self.usable == self.annotated

    @property
    def table(self) -> pd.DataFrame:
        """One row a finding: clip, subject, problem, detail, used."""
        types = dict.fromkeys(("clip", "subject", "problem", "detail"), "str") | {"used": "bool"}
        return pd.DataFrame([vars(one) for one in self.findings], columns=list(types)).astype(types)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = ("name", "annotation", "frames", "annotated", "usable", "subjects", "labels", "problems")
        return {
            **{name: getattr(self, name) for name in plain},
            "root": str(self.root),
            "published": dict(self.published),
            "remarks": list(self.remarks),
            "findings": self.table.to_dict("records"),
        }

    def __str__(self) -> str:
        known = [_count(self.published[key], key[:-1]) for key in ("clips", "subjects") if key in self.published]
        published = f" (published: {', '.join(known)})" if known else ""
        labels = [
            f"{name} {n}" + (f" of {self.published[name]}" if self.published.get(name, n) != n else "")
            for name, n in self.labels.items()
        ]
        usable = f"{self.usable} of {_count(self.annotated, 'clip')}, {_count(self.subjects, 'subject')}{published}"
        facts = [
            ("annotation", f"{self.annotation}: {_count(self.annotated, 'clip')}"),
            ("frames", self.frames),
            ("usable", usable),
            *([("labels", ", ".join(labels))] if labels else []),
            *(("remark", remark) for remark in self.remarks),
        ]
        lines = [f"{self.title} ({self.name}) in {self.root}"]
        for name, text in facts:
            lines += _hanging(f"  {name:12}", text, 14)
        if not self.findings:
            return "\n".join([*lines, "  nothing to report: every annotated frame is there"])
        left_out = set(self.left_out)
        lost = Counter(problem for problem, clip in self._problems_of_clips() if clip in left_out)
        summary = [
            (problem, str(count), f"{count - lost[problem]} used, {lost[problem]} left out")
            for problem, count in self.problems.items()
        ]
        # What is left out matters most, so it is shown first.
        shown = sorted(self.findings, key=lambda one: one.used)[:SHOWN]
        rows = [(one.clip, one.problem, "used" if one.used else "left out", one.detail) for one in shown]
        lines += ["", *_columns(("problem", "clips", ""), summary)]
        lines += ["", *_columns(("clip", "problem", "", "what was found"), rows)]
        if len(self.findings) > SHOWN:
            lines.append(f"... and {len(self.findings) - SHOWN} more, all of them in the audit's table")
        return "\n".join(lines)

    def _problems_of_clips(self) -> dict[tuple[str, str], None]:
        return dict.fromkeys((one.problem, one.clip) for one in self.findings)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _columns(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    # The last column may be long: it goes on below itself, or, where that would be a narrow strip, on lines of its own.
    widths = [max(len(row[place]) for row in [header, *rows]) for place in range(len(header) - 1)]
    start = 2 + sum(widths) + 2 * len(widths)
    lines = []
    for row in [header, *rows]:
        before = "  " + "".join(cell.ljust(width) + "  " for cell, width in zip(row, widths, strict=False))
        if start <= WIDEST_START or start + len(row[-1]) <= WIDTH:
            lines += _hanging(before, row[-1], start)
        else:
            lines += [before.rstrip(), *_hanging(" " * 6, row[-1], 6)]
    return lines


def _hanging(before: str, text: str, indent: int) -> list[str]:
    # Paths and names are longer than a line now and then, and stay whole.
    wrapper = textwrap.TextWrapper(WIDTH, subsequent_indent=" " * indent, break_long_words=False)
    wrapper.break_on_hyphens = False
    return wrapper.wrap(before + text) or [before.rstrip()]
