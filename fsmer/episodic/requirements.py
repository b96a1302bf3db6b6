"""What a protocol needs: data sets with their label schemes, or synthetic clips."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fsmer.data.schemes import canonical_dataset, load_scheme
from fsmer.episodic.checks import MOST, MOST_SEED, check_text, check_whole, described, refuse_unknown
from fsmer.errors import ProtocolError
from fsmer.synthetic.unit_sets import UnitSet, unit_sets

__all__ = ["Requirement", "SyntheticClips", "read_data"]


@dataclass(frozen=True)
class Requirement:
    """A data set that a protocol needs, and the label scheme to read it with.

    Parameters
    ----------
    dataset : str
        Its key, e.g. ``"casme2"``; other spellings are turned into it.
    scheme : str or None
        Name of a label scheme (`fsmer.list_schemes`); None leaves the labels as they are.

    Raises
    ------
    UnknownNameError
        There is no label scheme of that name.
    ProtocolError
        The scheme does not cover the data set, or a value is not text.
    """

    dataset: str
    scheme: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dataset", canonical_dataset(check_text("dataset", self.dataset)))
        if self.scheme is not None and not load_scheme(check_text("scheme", self.scheme)).covers(self.dataset):
            raise ProtocolError(f"label scheme {self.scheme!r} does not cover {self.dataset}; choose another.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in a protocol file."""
        return {"dataset": self.dataset} if self.scheme is None else {"dataset": self.dataset, "scheme": self.scheme}

    def content(self) -> dict[str, Any]:
        """What decides which clips it selects with which labels: the scheme's own content in place of its name."""
        if self.scheme is None:
            return {"dataset": self.dataset}
        scheme = load_scheme(self.scheme)
        labels = scheme.mapping.get(self.dataset, scheme.mapping.get("*"))
        left_out = sorted([one.subject, one.clip] for one in scheme.exclusions if one.dataset == self.dataset)
        return {"dataset": self.dataset, "labels": labels, "left_out": left_out}


@dataclass(frozen=True)
class SyntheticClips:
    """Synthetic clips that a protocol runs on (`fsmer.synthetic_clips`); their data set is called like the domain.

    Parameters
    ----------
    domain : str
        Name of a domain (`fsmer.list_domains`).
    clips : int
        How many.
    seed : int
        Seed of the generator.
    units : {"base", "validation", "novel"} or None
        A family of sets of action units, which are the classes (`fsmer.synthetic.unit_sets.unit_sets`). None draws the
        emotions of the domain.
    """

    domain: str
    clips: int
    seed: int = 0
    units: str | None = None

    def __post_init__(self) -> None:
        check_text("domain", self.domain)
        check_whole("clips", self.clips, 1, MOST)
        check_whole("seed", self.seed, 0, MOST_SEED)
        self.classes()

    def classes(self) -> tuple[UnitSet, ...]:
        """The sets of action units that are classes; empty where clips show emotions."""
        return () if self.units is None else unit_sets(self.units)

    def content(self) -> dict[str, Any]:
        """What decides on the clips: the sets of a family in place of its name."""
        classes = [one.name for one in self.classes()]
        return self.to_dict() | ({"classes": classes} if classes else {})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in a protocol file."""
        values = asdict(self)
        if self.units is None:
            del values["units"]
        return {"synthetic": values}


def read_data(entries: Any) -> tuple[tuple[Requirement, ...], tuple[SyntheticClips, ...]]:
    """The entries of ``data`` in a protocol file."""
    if not isinstance(entries, list | tuple):
        raise ProtocolError(f"'data' must be a list of data sets or synthetic clips, not {described(entries)}.")
    requirements: list[Requirement] = []
    synthetic: list[SyntheticClips] = []
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise ProtocolError(f"an entry of 'data' must be a mapping such as {{dataset: casme2}}, not {entry!r}.")
        if "synthetic" in entry:
            refuse_unknown(entry, ["synthetic"], "a key beside 'synthetic'")
            values = entry["synthetic"]
            if not isinstance(values, Mapping) or not {"domain", "clips"} <= set(values):
                raise ProtocolError(f"'synthetic' needs a domain and a number of clips, but is {values!r}.")
            refuse_unknown(values, ["domain", "clips", "seed", "units"], "a key of 'synthetic'")
            synthetic.append(SyntheticClips(**values))
        else:
            refuse_unknown(entry, ["dataset", "scheme"], "a key of an entry of 'data'")
            if "dataset" not in entry:
                raise ProtocolError(f"the entry {dict(entry)!r} of 'data' names no dataset; add it.")
            requirements.append(Requirement(**entry))
    return tuple(requirements), tuple(synthetic)
