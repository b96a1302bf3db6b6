"""Findings of an audit, the tables that it reads, and the checks that all kinds of tables share."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from fsmer.data.schemes import written_twice
from fsmer.data.text_tables import path_inside, read_table_text
from fsmer.errors import DataError

__all__ = ["Audit", "Finding", "Findings", "Table", "check_identities", "check_one_identity", "counts_of", "either"]
__all__ += ["file_inside", "number", "of_dataset"]

Severity = Literal["serious", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("serious", "warning", "note")
# Examples kept with a finding.
EXAMPLES = 20

# What the columns of tables in the wild are called; the first that is there counts.
COLUMNS: dict[str, tuple[str, ...]] = {
    "clip": ("clip", "clip_id", "clipid", "sample", "sample_id", "filename", "video", "video_id", "name", "id"),
    "dataset": ("dataset", "data_set", "database", "db", "corpus"),
    "subject": ("subject", "subject_id", "subjectid", "sub", "subj", "sub_id", "person", "participant"),
    "label": (
        *("label", "truth", "true", "y_true", "target", "gt", "ground_truth"),
        *("emotion", "estimated emotion", "class"),
    ),
    "predicted": ("predicted", "prediction", "pred", "y_pred", "predicted_label", "output"),
    "fold": ("fold", "fold_id", "episode", "cv", "test_fold", "split_id"),
    "side": ("split", "side", "set", "phase", "subset", "partition", "part"),
    "file": ("file", "path", "image", "media"),
    "seed": ("seed", "run"),
    "oracle": ("oracle",),
}
# Annotation sheets call recordings alike from subject to subject; such a name is whole with the subject before it.
WITHIN_SUBJECT = ("filename", "video", "name")
SIDES = {
    **dict.fromkeys(("train", "training", "support", "fit", "learn", "source", "u_train"), "train"),
    **dict.fromkeys(("test", "testing", "query", "eval", "evaluation", "target", "u_test"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
KINDS = {
    "report": "a results folder",
    "predictions": "a table of predictions",
    "splits": "a list of splits",
    "ststnet": "folders of training and test maps in the STSTNet layout",
    "clips": "a folder of clips",
}


@dataclass(frozen=True)
class Finding:
    """One thing that the audit found."""

    check: str  # short name of the check, e.g. "subject-on-both-sides"
    # Serious: the figures cannot be trusted, or say other than they claim. Warning: they may be. Note: worth knowing.
    severity: Severity
    message: str  # one sentence in plain language
    count: int = 1  # how many clips, pairs, folds or subjects it concerns
    examples: tuple[str, ...] = ()  # some of them

    def __str__(self) -> str:
        shown = "; ".join(self.examples[:3])
        more = f" ({shown}{', ...' if self.count > 3 and len(self.examples) > 2 else ''})" if shown else ""
        return f"{self.severity}: {self.message}{more} [{self.check}]"


@dataclass(frozen=True)
class Audit:
    """What an audit found; see `audit`."""

    path: str
    kind: str  # what was found there: a key of KINDS
    counts: dict[str, int]  # clips, subjects, folds and the like
    findings: tuple[Finding, ...]  # the serious ones first
    checks: tuple[str, ...]  # what was looked at, in words
    unchecked: tuple[str, ...] = ()  # what could not be looked at, and why
    # Computed anew from predictions, by metric and the way they were averaged.
    figures: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether there is nothing serious and no warning."""
        return all(finding.severity == "note" for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """For a shell: 0 nothing serious, 3 something serious (1 and 2 are refusals and wrong command lines)."""
        return 3 if any(finding.severity == "serious" for finding in self.findings) else 0

    @property
    def verdict(self) -> str:
        """The outcome in plain language."""
        number = Counter(finding.severity for finding in self.findings)
        if number["serious"]:
            worst = next(finding for finding in self.findings if finding.severity == "serious")
            others = number["serious"] + number["warning"] - 1
            also = f", and {others} more finding{'s' if others > 1 else ''}" if others else ""
            return f"Do not trust these figures yet: {worst.message}{also}."
        if number["warning"]:
            things = "1 thing needs" if number["warning"] == 1 else f"{number['warning']} things need"
            return f"Nothing that breaks the figures was found, but {things} an explanation."
        return f"Nothing wrong was found in {len(self.checks)} checks."

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"verdict": self.verdict, "clean": self.clean, "exit_code": self.exit_code}

    def __str__(self) -> str:
        counts = ", ".join(number(value, name.removesuffix("s"), name) for name, value in self.counts.items())
        lines = [f"{self.path}: {KINDS[self.kind]} with {counts}", self.verdict]
        lines += [f"  {finding}" for finding in self.findings]
        for metric, ways in self.figures.items():
            lines.append(f"  {metric}: " + ", ".join(f"{value:.4f} {way}" for way, value in ways.items()))
        lines += [f"  looked at: {', '.join(self.checks)}"]
        lines += [f"  not looked at: {reason}" for reason in self.unchecked]
        return "\n".join(lines)


class Findings:
    """Findings and checks as they come in."""

    def __init__(self) -> None:
        self.found: list[Finding] = []
        self.checks: list[str] = []
        self.unchecked: list[str] = []

    def add(
        self, check: str, severity: Severity, message: str, examples: Iterable[object] = (), count: int = 0
    ) -> None:
        shown = tuple(map(str, examples))
        self.found.append(Finding(check, severity, message, count or len(shown) or 1, shown[:EXAMPLES]))

    def each(
        self, check: str, severity: Severity, things: Iterable[object], one: str, many: str, rest: str, count: int = 0
    ) -> None:
        """A finding about these things whose sentence begins with their number; none where there are none."""
        shown = list(things)
        if shown or count:
            self.add(check, severity, f"{number(count or len(shown), one, many)} {rest}", shown, count)

    def looked_at(self, *what: str) -> None:
        self.checks.extend(what)

    def result(
        self, path: Path, kind: str, counts: dict[str, int], figures: dict[str, dict[str, float]] | None = None
    ) -> Audit:
        ordered = sorted(self.found, key=lambda finding: SEVERITIES.index(finding.severity))
        return Audit(
            str(path), kind, counts, tuple(ordered), tuple(self.checks), tuple(self.unchecked), dict(figures or {})
        )


@dataclass(frozen=True)
class Table:
    """A CSV table with its columns under their usual names, all cells as text."""

    frame: pd.DataFrame
    header: list[str]

    @classmethod
    def read(cls, path: Path) -> Table:
        text = read_table_text(path)
        try:
            mark = max((",", ";", "\t"), key=text.partition("\n")[0].count)
            raw = pd.read_csv(io.StringIO(text), sep=mark, dtype=str, keep_default_na=False, na_filter=False)
        except ValueError as error:
            raise DataError(
                f"{path} cannot be read as a table ({' '.join(str(error).split())}); give a CSV file in UTF-8 with a "
                "header."
            ) from error
        if raw.empty:
            raise DataError(f"{path} holds no rows; give a table with at least one row under its header.")
        header = [str(name) for name in raw.columns]
        plain = {name.strip().lower(): name for name in header}
        columns: dict[str, Any] = {}
        taken: dict[str, str] = {}
        for key, spellings in COLUMNS.items():
            spelling = next((spelling for spelling in spellings if spelling in plain), None)
            if spelling is not None:
                columns[key] = raw[plain[spelling]].astype(str).str.strip()
                taken[key] = spelling
        if taken.get("clip") in WITHIN_SUBJECT and "subject" in columns:
            columns["clip"] = columns["subject"] + "/" + columns["clip"]
        # One word names a fold in one table and a side in the next; what stands under it decides.
        for key, other in (("side", "fold"), ("fold", "side")):
            if key in columns and other not in columns:
                sides = set(columns[key].str.lower()) <= set(SIDES)
                if sides != (key == "side"):
                    columns[other] = columns.pop(key)
        if "side" in columns:
            known = columns["side"].str.lower()
            strange = sorted(set(known) - set(SIDES))
            if strange:
                raise DataError(
                    f"{path} calls a side {strange[0]!r}; write train, validation or test, or support, query."
                )
            columns["side"] = known.map(SIDES)
        if "clip" not in columns and "file" in columns:
            columns["clip"] = columns["file"]
        if "clip" not in columns:
            raise DataError(
                f"{path} has no column with the ids of clips (clip, filename, video or the like); its columns are "
                f"{', '.join(header)}."
            )
        return cls(pd.DataFrame(columns), header)

    def __contains__(self, name: str) -> bool:
        return name in self.frame.columns


def check_identities(table: pd.DataFrame, out: Findings) -> None:
    """One label, one subject and one data set for every clip, and one name for every subject."""
    check_one_identity(table, out)
    if "subject" in table:
        _check_written_subjects(table, out)
    else:
        out.unchecked.append("subjects, since the table has no column for them")
    _check_same_ids(table, out)


def check_one_identity(table: pd.DataFrame, out: Findings) -> None:
    """One label and one subject for every clip."""
    for column in ("label", "subject"):
        if column in table:
            out.looked_at(f"clips with more than one {column}")
            held = table.groupby(["dataset", "clip"], sort=True)[column].unique()
            several = [f"{clip}: {' and '.join(values)}" for (_, clip), values in held.items() if len(values) > 1]
            out.each(f"two-{column}s", "serious", several, "clip has", "clips have", f"more than one {column}")


def _check_written_subjects(table: pd.DataFrame, out: Findings) -> None:
    """No person under two spellings within a data set, such as ``6`` and ``006``."""
    out.looked_at("subjects written in several ways")
    people = table.drop_duplicates(["dataset", "subject"])[["dataset", "subject"]]
    words = [
        " and ".join(repr(subject) for _, subject in group) + of_dataset(group[0][0])
        for group in written_twice(people.itertuples(index=False, name=None))
    ]
    rest = (
        "written in several ways within one data set, which protocols refuse and others take for two people that may "
        "be on both sides"
    )
    out.each("one-person-two-names", "serious", words, "person is", "persons are", rest)


def _check_same_ids(table: pd.DataFrame, out: Findings) -> None:
    if table["dataset"].nunique() < 2:
        return
    out.looked_at("clip ids that occur in two data sets")
    held = table.groupby("clip", sort=True)["dataset"].unique()
    several = [f"{clip} in {' and '.join(names)}" for clip, names in held.items() if len(names) > 1]
    rest = "in more than one data set, so one copy may teach while the other is judged"
    out.each("clip-in-two-data-sets", "serious", several, "clip occurs", "clips occur", rest)


def counts_of(table: pd.DataFrame) -> dict[str, int]:
    """How many clips and, where the table names them, subjects there are."""
    return {f"{name}s": len(table.drop_duplicates(["dataset", name])) for name in ("clip", "subject") if name in table}


def of_dataset(name: str) -> str:
    """Words that name the data set of something, where it is known."""
    return f" of {name}" if name else ""


def file_inside(folder: Path, name: str) -> Path | None:
    """The file that a table in `folder` names; ``None`` where it is not there or leads out of the folder."""
    try:
        path = path_inside(folder, name)
    except ValueError:
        return None
    return Path(path) if os.path.isfile(path) else None


def number(count: int, one: str, many: str) -> str:
    """How many there are, and the words that agree with it."""
    return f"{count:,} {one if count == 1 else many}"


def either(names: Sequence[str]) -> str:
    """Names in quotes with "or" before the last."""
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"
