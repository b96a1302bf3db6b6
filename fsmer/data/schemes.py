"""Label schemes: which class each data set's own label becomes, or that it is left out, as declared tables."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from fsmer.data.table import known_texts, plain_text, plain_texts
from fsmer.errors import DataError, unknown_name
from fsmer.schema import Count, Names, read_yaml

__all__ = [
    "Exclusion", "LabelScheme", "RelabelReport", "canonical_dataset", "list_schemes", "load_scheme", "subject_number",
]  # fmt: skip

TABLES = Path(__file__).parent / "tables" / "schemes"
# The same word in several sheets: SAMM writes "Other", CAS(ME)^3 writes "happy" and "sad".
SPELLINGS = {"other": "others", "happy": "happiness", "sad": "sadness", "angry": "anger"}
# Keys are lower case with everything but letters, digits and carets removed.
DATASET_SPELLINGS = {name: name for name in ("4dme", "casme", "casme2", "casme3", "mmew", "samm", "smic")} | {
    "casmei": "casme",
    "casmeii": "casme2",
    "casme^3": "casme3",
    "casme^2": "casme-squared",
    "casmesquared": "casme-squared",
    "smichs": "smic",
    "smicvis": "smic-vis",
    "smicnir": "smic-nir",
}


def canonical_dataset(name: str) -> str:
    """Key of a data set, whatever its spelling: ``"CASME II"`` -> ``"casme2"``, ``"SMIC_VIS"`` -> ``"smic-vis"``.

    SMIC without further words is its high-speed part, SMIC-HS. A name that is not known comes back in lower case.
    """
    return DATASET_SPELLINGS.get(re.sub(r"[^a-z0-9^]", "", name.lower()), name.strip().lower())


@dataclass(frozen=True)
class Exclusion:
    """A clip that a scheme's source leaves out although its label would be kept.

    Parameters
    ----------
    dataset, subject, clip : str
        The data set's key, the subject's number and the clip's name in the data set's own annotation.
    reason : str
        Why it is left out.
    """

    dataset: str
    subject: str
    clip: str
    reason: str

    def matches(self, dataset: str, subject: str, clip: str) -> bool:
        """Whether a clip is the one meant; ids may carry the subject before the clip's own name."""
        return (
            canonical_dataset(dataset) == self.dataset
            and subject_number(subject) == subject_number(self.subject)
            and re.search(rf"(^|[^A-Za-z0-9]){re.escape(self.clip)}$", clip) is not None
        )


@dataclass(frozen=True)
class LabelScheme:
    """A named way to turn the labels of one or more data sets into a common list of classes.

    Parameters
    ----------
    name : str
        Short name, e.g. ``"megc2019"``.
    classes : tuple of str
        The classes that come out.
    mapping : mapping
        For each data set, its label -> class; ``None`` means that clips of this label are left out on purpose. The
        key ``"*"`` stands for every data set that has no entry of its own.
    title, source : str
        One line on what it is, and the paper and table that define it.
    counts : mapping, optional
        Clips per class that the source reports for each data set.
    exclusions : tuple of Exclusion, optional
        Single clips that the source leaves out.

    Raises
    ------
    DataError
        A label maps to a class that the scheme does not list.
    """

    name: str
    classes: tuple[str, ...]
    mapping: Mapping[str, Mapping[str, str | None]]
    title: str = ""
    source: str = ""
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    exclusions: tuple[Exclusion, ...] = ()

    def __post_init__(self) -> None:
        normal: dict[str, Mapping[str, str | None]] = {}
        classes = tuple(known_texts(self.classes, "classes"))
        for dataset, table in self.mapping.items():
            for label, into in table.items():
                if into is not None and plain_text(into) not in classes:
                    raise DataError(
                        f"label scheme {self.name!r} maps {label!r} of {dataset} to {into!r}, "
                        f"which is none of its classes ({', '.join(classes)}); add the class or correct it."
                    )
            normal[canonical_dataset(dataset)] = {_plain(label): plain_text(into) for label, into in table.items()}
        object.__setattr__(self, "mapping", normal)
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "exclusions", tuple(self.exclusions))

    def covers(self, dataset: str) -> bool:
        """Whether the scheme says how to read that data set."""
        return canonical_dataset(dataset) in self.mapping or "*" in self.mapping

    def class_of(self, dataset: str, label: str) -> str | None:
        """Class of one label, or None where the scheme leaves it out.

        Letter case and the usual spelling variants (Other/Others, happy, sad, angry) do not matter. A `DataError` is
        raised where the scheme does not cover the data set, or does not know the label.
        """
        table = self.mapping.get(canonical_dataset(dataset), self.mapping.get("*"))
        if table is None:
            raise DataError(
                f"label scheme {self.name!r} does not say how to read the labels of data set {dataset!r}; it covers "
                f"{', '.join(sorted(self.mapping))}. Choose another scheme or rename the data set in the table."
            )
        plain = _plain(label)
        for spelling in (plain, SPELLINGS.get(plain, plain)):
            if spelling in table:
                return table[spelling]
        near = difflib.get_close_matches(plain, table, n=1, cutoff=0.5)
        hint = f"the nearest is {near[0]!r}. " if near else ""
        raise DataError(
            f"label {label!r} of data set {dataset!r} is unknown to label scheme {self.name!r}: {hint}"
            f"Known: {', '.join(sorted(table))}; correct the label or choose another scheme."
        )


@dataclass(frozen=True)
class RelabelReport:
    """What `ClipSet.relabel` did.

    Parameters
    ----------
    scheme : str
        Name of the scheme.
    mapped : dict
        ``(dataset, old label) -> (class, number of clips)``.
    dropped : dict
        ``(dataset, old label) -> number of clips`` left out; clips without a label stand under ``""``.
    excluded : tuple of (str, str)
        ``(clip id, reason)`` of single clips that the scheme's source leaves out.
    """

    scheme: str
    mapped: Mapping[tuple[str, str], tuple[str, int]]
    dropped: Mapping[tuple[str, str], int]
    excluded: tuple[tuple[str, str], ...] = ()

    @property
    def n_kept(self) -> int:
        """Number of clips that have a class now."""
        return sum(count for _, count in self.mapped.values())

    @property
    def n_dropped(self) -> int:
        """Number of clips left out."""
        return sum(self.dropped.values()) + len(self.excluded)

    def __str__(self) -> str:
        lines = [f"label scheme {self.scheme}: kept {self.n_kept} clips, left out {self.n_dropped}"]
        lines += [f"  {dataset}: {old} -> {new} ({n})" for (dataset, old), (new, n) in self.mapped.items()]
        lines += [f"  {dataset}: {old or 'no label'} left out ({n})" for (dataset, old), n in self.dropped.items()]
        return "\n".join([*lines, *(f"  {clip} left out: {reason}" for clip, reason in self.excluded)])


def list_schemes() -> tuple[str, ...]:
    """Names of the built-in label schemes, sorted.

    Returns
    -------
    tuple of str
        The names.

    Examples
    --------
    >>> import fsmer
    >>> "megc2019" in fsmer.list_schemes()
    True
    """
    return tuple(sorted(path.stem for path in TABLES.glob("*.yaml")))


def load_scheme(name: str | LabelScheme) -> LabelScheme:
    """Built-in label scheme by its name.

    Parameters
    ----------
    name : str or LabelScheme
        A name of `list_schemes`; a `LabelScheme` comes back as it is.

    Returns
    -------
    LabelScheme
        The scheme.

    Raises
    ------
    UnknownNameError
        There is none of that name; the message suggests the nearest.

    Examples
    --------
    >>> import fsmer
    >>> fsmer.load_scheme("megc2019").class_of("casme2", "Disgust")
    'negative'
    """
    if isinstance(name, LabelScheme):
        return name
    if name not in list_schemes():
        raise unknown_name("label scheme", name, list_schemes())
    return _read_scheme(name)


class _SchemeFile(TypedDict):
    classes: Names
    labels: dict[str, dict[str, Names]]
    title: str
    source: str
    counts: NotRequired[dict[str, dict[str, Count]]]
    exclusions: NotRequired[list[Exclusion]]


@cache
def _read_scheme(name: str) -> LabelScheme:
    values = read_yaml(TABLES / f"{name}.yaml", _SchemeFile, what="a label scheme", remedy="install fsmer again")
    return LabelScheme(
        name=name,
        classes=tuple(values["classes"]),
        # The files list labels under their class, as papers print them; "left out" gathers the dropped ones.
        mapping={
            dataset: {label: None if into == "left out" else into for into, labels in table.items() for label in labels}
            for dataset, table in values["labels"].items()
        },
        title=values["title"],
        source=" ".join(values["source"].split()),
        counts=values.get("counts", {}),
        exclusions=tuple(values.get("exclusions", ())),
    )


def _plain(label: Any) -> str:
    (text,) = plain_texts([label], "label")
    return " ".join((text or "").lower().split())


def subject_number(subject: str) -> str:
    """First number of a subject's name without leading zeros, by which spellings of one subject are compared."""
    digits = re.search(r"\d+", subject)
    return digits[0].lstrip("0") or "0" if digits else subject.lower()
