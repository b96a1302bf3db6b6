"""`Protocol`: a named, seeded stream of episodes over a clip set, and what every kind of protocol shares."""

from __future__ import annotations

import difflib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fsmer.data.schemes import canonical_dataset, load_scheme
from fsmer.data.subjects import written_twice
from fsmer.datasets.catalog import dataset_info
from fsmer.episodic.episode import Episode
from fsmer.episodic.episodes import Episodes
from fsmer.episodic.samplers import EpisodeBatch, EpisodePlan
from fsmer.errors import MissingDatasetError, ProtocolError
from fsmer.plugins import PROTOCOLS

if TYPE_CHECKING:
    from fsmer.data.clips import ClipSet

__all__ = [
    "FoldEpisodes",
    "KShotEpisodes",
    "Protocol",
    "Requirement",
    "SyntheticClips",
    "people_apart",
]


Ints = NDArray[np.int64]


Mask = NDArray[np.bool_]


# Part of what is hashed: goes up when the same content would make other episodes than before.
_HASHED_FORMAT = 1
MOST = 1_000_000


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
        object.__setattr__(self, "dataset", canonical_dataset(_text("dataset", self.dataset)))
        if self.scheme is not None and not load_scheme(_text("scheme", self.scheme)).covers(self.dataset):
            raise ProtocolError(
                f"label scheme {self.scheme!r} does not say how to read {self.dataset}; choose another."
            )

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
    """

    domain: str
    clips: int
    seed: int = 0

    def __post_init__(self) -> None:
        _text("domain", self.domain)
        _whole("clips", self.clips, 1, MOST)
        _whole("seed", self.seed, 0, 2**64 - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in a protocol file."""
        return {"synthetic": asdict(self)}


class KShotEpisodes(Episodes):
    """Episodes of a K-shot protocol, made one by one or as arrays.

    Attributes
    ----------
    plan : EpisodePlan
        Draws them; its class codes are those of `codes`.
    pool : ndarray of int64
        Indices of the clips that can be in support or query.
    """

    uniform = True

    def __init__(self, plan: EpisodePlan, count: int, source: Ints | None = None) -> None:
        self.plan = plan
        self.classes = plan.names
        self.codes = plan.codes
        self.source = source
        self._count = count

    def __len__(self) -> int:
        return self._count

    @property
    def pool(self) -> Ints:
        return np.flatnonzero(self.codes >= 0)

    def _make(self, index: int) -> Episode:
        return replace(self.plan.draw(index, index + 1)[0], source=self.source)

    def batches(self, size: int = 64) -> Iterator[EpisodeBatch]:
        """Yield the episodes as arrays, `size` at a time; class codes are indices into `classes`."""
        _whole("size", size, 1)
        return (self.plan.draw(low, min(low + size, len(self))) for low in range(0, len(self), size))


class FoldEpisodes(Episodes):
    """Episodes that deal whole units (subjects, data sets) to support and query.

    Parameters
    ----------
    classes : tuple of str
    codes : ndarray of int64, shape (N,)
        Class of each clip; -1 leaves it out.
    units : ndarray of int64, shape (N,)
        Unit of each clip, from 0.
    names : sequence of str
        One name an episode.
    sides : callable
        Episode number -> two boolean arrays over the units: those of the support and those of the query.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        codes: Ints,
        units: Ints,
        names: Iterable[str],
        sides: Callable[[int], tuple[Mask, Mask]],
    ) -> None:
        self.classes = classes
        self.codes = codes
        self._units = units
        self._names = tuple(names)
        self._sides = sides

    def __len__(self) -> int:
        return len(self._names)

    def _make(self, index: int) -> Episode:
        learns, asked = self._sides(index)
        used = self.codes >= 0
        support = np.flatnonzero(learns[self._units] & used)
        query = np.flatnonzero(asked[self._units] & used)
        return Episode(support, query, self.classes, self._names[index])

    def missing_classes(self) -> tuple[tuple[str, str], ...]:
        """Pairs (episode name, class) where the support has no clip of a class; the protocol still judges it."""
        held = _counts(self.codes, self._units, len(self.classes)) > 0
        missing = []
        for index, name in enumerate(self._names):
            there = held[self._sides(index)[0]].any(axis=0)
            missing += [(name, self.classes[code]) for code in np.flatnonzero(~there)]
        return tuple(missing)


@dataclass(frozen=True, kw_only=True)
class Protocol(ABC):
    """A named, seeded way to deal the clips of a clip set into episodes.

    `split` gives the episodes. Everything that decides which clips end up where is a parameter and goes into `hash`;
    name, title, paper and notes are words for people.

    Parameters
    ----------
    name : str
        Short name; by default the kind.
    title, paper, notes : str
        One line on what it is, the paper that defines it, and choices that the paper leaves open.
    requirements : tuple of Requirement
        Data sets that `prepare` selects and relabels. Empty: any clips will do.
    synthetic : tuple of SyntheticClips
        Clips that `make_clips` makes.
    """

    kind: ClassVar[str]
    summary: ClassVar[str]

    name: str = ""
    title: str = ""
    paper: str = ""
    notes: str = ""
    requirements: tuple[Requirement, ...] = ()
    synthetic: tuple[SyntheticClips, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.kind.replace("_", "-"))
        object.__setattr__(self, "title", self.title or self.summary)
        object.__setattr__(self, "requirements", tuple(self.requirements))
        object.__setattr__(self, "synthetic", tuple(self.synthetic))
        if self.requirements and self.synthetic:
            raise ProtocolError(f"protocol {self.name!r} asks for data sets and makes synthetic clips; keep one.")
        for field in ("name", "title", "paper", "notes"):
            if not isinstance(getattr(self, field), str):
                raise ProtocolError(f"{field}={getattr(self, field)!r} is not text; put it in quotes.")
        self._check_parameters()

    # ---- what a kind of protocol defines

    @abstractmethod
    def _check_parameters(self) -> None:
        """Bring parameters into their final form and refuse impossible ones."""

    @abstractmethod
    def _split(self, clips: ClipSet, classes: tuple[str, ...], codes: Ints) -> Episodes:
        """Make the episodes; `codes` are indices into `classes`, -1 for clips to leave out."""

    def _judged(self, clips: ClipSet) -> Mask | None:
        """Which clips can be in support or query; None means all."""
        return None

    # ---- what every protocol offers

    def split(self, clips: ClipSet) -> Episodes:
        """Deal the clips into episodes.

        Parameters
        ----------
        clips : ClipSet
            Labelled clips, already prepared where the protocol has requirements.

        Returns
        -------
        Episodes
            A sequence of known length whose items are made when asked for.

        Raises
        ------
        ProtocolError
            The clips cannot give these episodes; the message names the class, subject or data set and its count.
        MissingDatasetError
            A data set that the protocol names is not among the clips.
        """
        return self._split(clips, *self._labelling(clips))

    def classes(self, clips: ClipSet) -> tuple[str, ...]:
        """Classes that the protocol tells apart on these clips, sorted."""
        return self._labelling(clips)[0]

    def prepare(self, clips: ClipSet) -> ClipSet:
        """Select the data sets that the protocol needs and read their labels by its schemes.

        Clips of a protocol without requirements come back as they are.

        Raises
        ------
        MissingDatasetError
            A data set is not among the clips; the message says where to request it.
        DataError
            A label is unknown to the scheme.
        ProtocolError
            No clip of a data set is left under the scheme.
        """
        if self.synthetic:
            domains = sorted(part.domain for part in self.synthetic)
            if sorted(clips.dataset_names) != domains:
                raise ProtocolError(
                    f"protocol {self.name!r} runs on synthetic clips that it makes itself ({', '.join(domains)}), but "
                    f"was given clips of {', '.join(clips.dataset_names)}; leave them out, or choose a protocol for "
                    "them such as kshot."
                )
            return clips
        if not self.requirements:
            return clips
        from fsmer.data.clips import concat

        _places_of(self, clips, [need.dataset for need in self.requirements])
        by_scheme: dict[str | None, list[str]] = {}
        for need in self.requirements:
            by_scheme.setdefault(need.scheme, []).append(need.dataset)
        parts = []
        for scheme, datasets in by_scheme.items():
            codes = [place for places in _places_of(self, clips, datasets) for place in places]
            part = clips[np.isin(clips.dataset_codes(), codes)]
            parts.append(part if scheme is None else part.relabel(scheme))
        prepared = parts[0] if len(parts) == 1 else concat(parts)
        left = {canonical_dataset(name) for name in prepared.dataset_names}
        for need in self.requirements:
            if need.dataset not in left:
                raise ProtocolError(
                    f"protocol {self.name!r}: no clip of {need.dataset} has a label that scheme {need.scheme!r} keeps; "
                    "check the labels of that data set."
                )
        return prepared

    def make_clips(self, **options: Any) -> ClipSet:
        """Make the synthetic clips that the protocol runs on.

        Parameters
        ----------
        **options
            Passed to `fsmer.synthetic_clips`, e.g. ``size=56`` or ``normalisation="signed"``.

        Raises
        ------
        ProtocolError
            The protocol runs on recorded clips.
        """
        if not self.synthetic:
            wanted = ", ".join(need.dataset for need in self.requirements) or "labelled clips of your own"
            raise ProtocolError(f"protocol {self.name!r} does not make its clips; give it {wanted}.")
        from fsmer.data.clips import concat
        from fsmer.synthetic.clips import synthetic_clips

        parts = [synthetic_clips(part.domain, n=part.clips, seed=part.seed, **options) for part in self.synthetic]
        return parts[0] if len(parts) == 1 else concat(parts)

    @property
    def params(self) -> dict[str, Any]:
        """Parameters by name, as plain values."""
        own = {field.name for field in fields(self)} - {field.name for field in fields(Protocol)}
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name in own}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def with_params(self, **changes: Any) -> Protocol:
        """The same protocol with other parameters.

        Raises
        ------
        ProtocolError
            It has no parameter of that name, or the value is impossible.
        """
        _refuse_unknown(changes, self.params, f"a parameter of protocol {self.name!r}")
        return replace(self, **changes)

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the SHA-256 of kind, parameters, data sets and their label schemes.

        Equal hashes mean equal episodes of the same clips.
        """
        data = [need.content() for need in sorted(self.requirements, key=lambda need: need.dataset)]
        data += [part.to_dict() for part in sorted(self.synthetic, key=lambda part: part.domain)]
        content = {"format": _HASHED_FORMAT, "kind": self.kind, "params": self.params, "data": data}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the keys of a protocol file; `from_dict` reads them back."""
        words = {"name": self.name, "title": self.title, "paper": self.paper, "notes": self.notes}
        return {**words, "kind": self.kind, "params": self.params, "data": self._data()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Protocol:
        """Make a protocol of the keys of a protocol file.

        Raises
        ------
        ProtocolError
            A key is missing, unknown or has an impossible value; the message names it.
        """
        if not isinstance(values, Mapping):
            raise ProtocolError(f"a protocol is a mapping with the keys {', '.join(_FILE_KEYS)}, not {_a(values)}.")
        _refuse_unknown(values, _FILE_KEYS, "a key of a protocol")
        if "kind" not in values:
            raise ProtocolError(f"the protocol has no key 'kind'; choose one of {', '.join(PROTOCOLS)}.")
        kind = values["kind"]
        if not isinstance(kind, str) or kind not in PROTOCOLS:
            raise ProtocolError(
                f"kind {kind!r} is unknown: {_nearest(str(kind), PROTOCOLS)}Known: {', '.join(PROTOCOLS)}."
            )
        params = values.get("params") or {}
        if not isinstance(params, Mapping):
            raise ProtocolError(f"'params' must be a mapping of parameters to values, not {_a(params)}.")
        known = [field.name for field in fields(PROTOCOLS[kind])]
        words = [field.name for field in fields(Protocol)]
        _refuse_unknown(params, [name for name in known if name not in words], f"a parameter of kind {kind!r}")
        requirements, synthetic = _read_data(values.get("data") or [])
        given = {key: values[key] for key in ("name", "title", "paper", "notes") if values.get(key) is not None}
        return PROTOCOLS[kind](**given, requirements=requirements, synthetic=synthetic, **params)

    # ---- shared pieces

    def _data(self) -> list[dict[str, Any]]:
        return [need.to_dict() for need in self.requirements] + [part.to_dict() for part in self.synthetic]

    def _labelling(self, clips: ClipSet) -> tuple[tuple[str, ...], Ints]:
        """Classes of the clips that are judged, and for each clip its index among them or -1."""
        if not len(clips):
            raise ProtocolError(f"protocol {self.name!r} was given an empty clip set; give it labelled clips.")
        codes, judged = clips.codes(), self._judged(clips)
        if judged is not None:
            codes = np.where(judged, codes, -1)
        present = np.bincount(codes[codes >= 0], minlength=len(clips.classes)) > 0
        names = [name for name, there in zip(clips.classes, present, strict=True) if there]
        wanted: tuple[str, ...] | None = getattr(self, "class_subset", None)
        for name in wanted or ():
            if name not in names:
                raise ProtocolError(
                    f"protocol {self.name!r} needs the class {name!r}, but no clip has it; the clips have "
                    f"{', '.join(names) or 'no labels'}."
                )
        chosen = tuple(name for name in names if wanted is None or name in wanted)
        if len(chosen) < 2:
            raise ProtocolError(
                f"protocol {self.name!r} needs clips of at least two classes, but has {', '.join(chosen) or 'none'}; "
                "add clips of other classes."
            )
        place = {name: code for code, name in enumerate(chosen)}
        lookup = np.array([*(place.get(name, -1) for name in clips.classes), -1], dtype=np.int64)
        return chosen, lookup[codes]


_FILE_KEYS = ("name", "title", "paper", "notes", "kind", "params", "data")


def people_apart(what: str, clips: ClipSet, used: Mask) -> Ints:
    """Person of each clip, as `ClipSet.subject_codes` gives it, for what keeps people apart.

    Parameters
    ----------
    what : str
        What keeps them apart, for the message.
    clips : ClipSet
    used : ndarray of bool, shape (N,)
        Clips in play.

    Raises
    ------
    ProtocolError
        A person of these clips is written in two ways within a data set, and would count as two.
    DataError
        Subjects are known for a part of a data set only.
    """
    units, everybody = clips.subject_codes(), clips.subject_names
    found = written_twice(everybody[unit] for unit in np.unique(units[used]).tolist())
    if found:
        one, other = (f"{subject!r} of data set {dataset!r}" for dataset, subject in found[0][:2])
        more = f" (and so with {len(found) - 1} more)" if len(found) > 1 else ""
        raise ProtocolError(
            f"{what} keeps people apart, but the subjects {one} and {other} look like one person written in two "
            f"ways{more}; write them alike in the table, or give clips of different people different dataset names."
        )
    return units


def _people(protocol: Protocol, clips: ClipSet, codes: Ints) -> tuple[Ints, list[str]]:
    """Subjects that have clips in play: number of each clip's subject (0 where it is out of play) and their names."""
    units, everybody = people_apart(f"protocol {protocol.name!r}", clips, codes >= 0), clips.subject_names
    present = np.bincount(units[codes >= 0], minlength=len(everybody)) > 0
    names = ["/".join(everybody[unit]) for unit in np.flatnonzero(present)]
    if len(names) < 2:
        whose = "an unknown subject (their table names none)" if names[0].endswith("/") else repr(names[0])
        raise ProtocolError(
            f"protocol {protocol.name!r} needs clips of at least two subjects, but all {np.count_nonzero(codes >= 0)} "
            f"come from {whose}; add clips of other people or name the subjects."
        )
    return np.maximum(np.cumsum(present) - 1, 0)[units], names


def _places_of(protocol: Protocol, clips: ClipSet, datasets: Iterable[str]) -> list[list[int]]:
    """For each data set the codes that the clips have for it."""
    there = [canonical_dataset(name) for name in clips.dataset_names]
    wanted = map(canonical_dataset, datasets)
    places = {name: [code for code, other in enumerate(there) if other == name] for name in wanted}
    missing = [name for name, codes in places.items() if not codes]
    if missing:
        known = [info.where_to_request() for info in map(dataset_info, missing) if info is not None]
        near = _nearest(missing[0], there)
        remedy = "; ".join(known) + "; then read it with the other clips." if known else f"{near}Check the name."
        raise MissingDatasetError(
            f"protocol {protocol.name!r} needs the data set{'s' * (len(missing) > 1)} {', '.join(missing)}, but the "
            f"clips come from {', '.join(clips.dataset_names)}: {remedy}"
        )
    return list(places.values())


def _sides_of(
    protocol: Protocol, clips: ClipSet, first: tuple[str, ...] | None, second: tuple[str, ...] | None
) -> tuple[Mask, Mask]:
    """Clips of two sides of data sets; a side that is None is everything outside the other."""
    codes = clips.dataset_codes()
    masks: list[Mask | None] = []
    for side in (first, second):
        if side is None:
            masks.append(None)
        else:
            wanted = [place for places in _places_of(protocol, clips, side) for place in places]
            masks.append(np.isin(codes, wanted))
    one, two = masks
    if one is None and two is not None:
        one = ~two
    if two is None and one is not None:
        two = ~one
    if one is None or two is None:
        raise ProtocolError(
            f"protocol {protocol.name!r} needs to know its sides; name a source or a target among the data sets "
            f"{', '.join(clips.dataset_names)}."
        )
    if not one.any() or not two.any():
        raise ProtocolError(
            f"protocol {protocol.name!r} needs data sets on two sides, but the clips come from "
            f"{', '.join(clips.dataset_names)} only; add another data set."
        )
    return one, two


def _units_of(units: Ints, mask: Mask, total: int) -> Mask:
    return np.bincount(units[mask], minlength=total) > 0


def _counts(codes: Ints, units: Ints, classes: int) -> Ints:
    """Clips of each unit and class, shape (units, classes)."""
    used = codes >= 0
    total = int(units.max(initial=-1)) + 1
    return np.bincount(units[used] * classes + codes[used], minlength=total * classes).reshape(total, classes)


def _read_data(entries: Any) -> tuple[tuple[Requirement, ...], tuple[SyntheticClips, ...]]:
    if not isinstance(entries, list | tuple):
        raise ProtocolError(f"'data' must be a list of data sets or synthetic clips, not {_a(entries)}.")
    requirements: list[Requirement] = []
    synthetic: list[SyntheticClips] = []
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise ProtocolError(f"an entry of 'data' must be a mapping such as {{dataset: casme2}}, not {entry!r}.")
        if "synthetic" in entry:
            _refuse_unknown(entry, ["synthetic"], "a key beside 'synthetic'")
            values = entry["synthetic"]
            if not isinstance(values, Mapping) or not {"domain", "clips"} <= set(values):
                raise ProtocolError(f"'synthetic' needs a domain and a number of clips, but is {values!r}.")
            _refuse_unknown(values, ["domain", "clips", "seed"], "a key of 'synthetic'")
            synthetic.append(SyntheticClips(**values))
        else:
            _refuse_unknown(entry, ["dataset", "scheme"], "a key of an entry of 'data'")
            if "dataset" not in entry:
                raise ProtocolError(f"the entry {dict(entry)!r} of 'data' names no dataset; add it.")
            requirements.append(Requirement(**entry))
    return tuple(requirements), tuple(synthetic)


def _store_names(protocol: Protocol, *names: str) -> None:
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


def _store_plain(protocol: Protocol, *names: str) -> None:
    """Turn numbers of numpy into Python's own, so that they hash and print alike."""
    for name in names:
        value = getattr(protocol, name)
        if isinstance(value, np.generic):
            object.__setattr__(protocol, name, value.item())


def _store_datasets(protocol: Protocol, *names: str) -> None:
    _store_names(protocol, *names)
    sides = []
    for name in names:
        side = getattr(protocol, name)
        if side is not None:
            side = tuple(sorted({canonical_dataset(part) for part in side}))
            object.__setattr__(protocol, name, side)
            sides.append(side)
    both = set(sides[0]) & set(sides[1]) if len(sides) == 2 else set()
    if both:
        raise ProtocolError(
            f"{sorted(both)[0]!r} is on both sides ({' and '.join(names)}); a data set can be on one only."
        )


def _check_subset(classes: tuple[str, ...] | None) -> None:
    if classes is not None and len(set(classes)) < max(2, len(classes)):
        raise ProtocolError(f"class_subset={classes!r} is not possible; name at least two classes, each once.")


def _whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        most = "" if high is None else f" and at most {high}"
        raise ProtocolError(f"{name}={value!r} is not possible; give a whole number of at least {low}{most}.")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ProtocolError(f"{name}={value!r} is not a name; write it as text, in quotes where needed.")
    return value


def _refuse_unknown(given: Iterable[Any], known: Iterable[str], what: str) -> None:
    names = list(known)
    for key in given:
        if key not in names:
            listed = f"Known: {', '.join(names)}." if names else "There are none."
            raise ProtocolError(f"{str(key)!r} is not {what}: {_nearest(str(key), names)}{listed}")


def _nearest(given: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


def _a(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
