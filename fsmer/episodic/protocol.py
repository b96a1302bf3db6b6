"""`Protocol`: a named, seeded stream of episodes over a clip set, and what every kind of protocol shares."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np

from fsmer.data.clips import ClipSet, concat
from fsmer.data.schemes import canonical_dataset
from fsmer.episodic.checks import described, nearest, refuse_unknown, store_subset
from fsmer.episodic.episode import Ints, Mask
from fsmer.episodic.episodes import Episodes, episodes_fault
from fsmer.episodic.requirements import Requirement, SyntheticClips, read_data
from fsmer.episodic.sides import dataset_codes_of
from fsmer.errors import ProtocolError, reason_of
from fsmer.outside import outside_call, outside_value
from fsmer.plugins import PROTOCOLS

__all__ = ["Protocol", "register_protocol"]

# Class decorator: enters a `Protocol` under the name of its kind.
register_protocol = PROTOCOLS.register

# Part of what is hashed: goes up when the same content would make other episodes than before.
_HASHED_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Protocol(ABC):
    """A named, seeded way to deal the clips of a clip set into episodes.

    `split` gives the episodes. Everything that decides which clips end up where is a parameter and goes into `hash`;
    name, title, paper and notes are words for people. A kind of protocol is a frozen dataclass that extends this,
    states a `summary` and defines `deal`; `register_protocol` gives it its name.

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
    summary: ClassVar[str] = ""

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
        for word in _WORDS:
            if not isinstance(getattr(self, word), str):
                raise ProtocolError(f"{word}={getattr(self, word)!r} is not text; put it in quotes.")
        store_subset(self)
        for field in fields(self):
            # Numbers of NumPy would hash and print unlike Python's own.
            value = getattr(self, field.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, field.name, value.item())
        self.check_parameters()

    def check_parameters(self) -> None:  # noqa: B027, most kinds have nothing to refuse
        """Bring parameters into their final form (``object.__setattr__``) and refuse impossible ones."""

    @abstractmethod
    def deal(self, clips: ClipSet, classes: tuple[str, ...], codes: Ints) -> Episodes:
        """Make the episodes, for instance `FoldEpisodes`, with these classes.

        `codes`, int64 of shape (N,), are each clip's index into `classes`, and -1 for clips to leave out.
        """

    def judged(self, clips: ClipSet) -> Mask | None:
        """Which clips can be in support or query; None means all."""
        return None

    def split(self, clips: ClipSet) -> Episodes:
        """Deal labelled clips, already prepared where the protocol has requirements, into episodes.

        They come as a sequence of known length whose items are made when asked for.

        Raises
        ------
        ProtocolError
            The clips cannot give these episodes; the message names the class, subject or data set and its count.
        MissingDatasetError
            A data set that the protocol names is not among the clips.
        """
        labelling = self._labelling(clips)
        who = f"deal of the protocol {self.name!r} ({type(self).__name__})"
        with outside_call(who, ProtocolError):
            found: Any = self.deal(clips, *labelling)
            fault = episodes_fault(found, len(clips))
        if fault:
            raise ProtocolError(
                f"{who} gives {fault}, but Episodes of {len(clips)} clips are expected, such as FoldEpisodes; mend its "
                "deal."
            )
        return found

    def classes(self, clips: ClipSet) -> tuple[str, ...]:
        """Classes of the protocol's episodes on these clips, sorted."""
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
                    f"protocol {self.name!r} makes its clips itself ({', '.join(domains)}), but was given clips of "
                    f"{', '.join(clips.dataset_names)}; leave them out, or choose a protocol for them such as kshot."
                )
            return clips
        if not self.requirements:
            return clips
        dataset_codes_of(self.name, clips, [need.dataset for need in self.requirements])
        parts = []
        for scheme in dict.fromkeys(need.scheme for need in self.requirements):
            datasets = [need.dataset for need in self.requirements if need.scheme == scheme]
            part = clips[np.isin(clips.dataset_codes(), dataset_codes_of(self.name, clips, datasets))]
            parts.append(part if scheme is None else part.relabel(scheme))
        prepared = parts[0] if len(parts) == 1 else concat(parts)
        left = {canonical_dataset(name) for name in prepared.dataset_names}
        for need in self.requirements:
            if need.dataset not in left:
                raise ProtocolError(
                    f"protocol {self.name!r}: scheme {need.scheme!r} keeps no clip of {need.dataset}; check its labels."
                )
        return prepared

    def make_clips(self, **options: Any) -> ClipSet:
        """Make the synthetic clips that the protocol runs on; `ProtocolError` where it runs on recorded ones.

        Options such as ``size=56`` or ``normalisation="signed"`` are handed to `fsmer.synthetic_clips`.
        """
        if not self.synthetic:
            wanted = ", ".join(need.dataset for need in self.requirements) or "labelled clips of your own"
            raise ProtocolError(f"protocol {self.name!r} does not make its clips; give it {wanted}.")
        from fsmer.synthetic.clips import synthetic_clips

        parts = [
            synthetic_clips(part.domain, n=part.clips, seed=part.seed, classes=part.classes(), **options)
            for part in self.synthetic
        ]
        return parts[0] if len(parts) == 1 else concat(parts)

    @property
    def params(self) -> dict[str, Any]:
        """Parameters by name, as plain values."""
        values = {name: getattr(self, name) for name in _parameters(type(self))}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def with_params(self, **changes: Any) -> Protocol:
        """The same protocol with other parameters; `ProtocolError` for an unknown one or an impossible value."""
        refuse_unknown(changes, self.params, f"a parameter of protocol {self.name!r}")
        with outside_call(f"making the protocol {self.name!r} ({type(self).__name__}) with {changes}", ProtocolError):
            return replace(self, **changes)

    @property
    def hash(self) -> str:
        """16 hexadecimal digits of the SHA-256 of kind, parameters, data sets and their label schemes.

        Equal hashes mean equal episodes of the same clips.
        """
        data = [need.content() for need in sorted(self.requirements, key=lambda need: need.dataset)]
        data += [part.content() for part in sorted(self.synthetic, key=lambda part: part.domain)]
        content = {"format": _HASHED_FORMAT, "kind": self.kind, "params": self.params, "data": data}
        try:
            canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ProtocolError(
                f"the parameters of the protocol {self.name!r} ({type(self).__name__}) cannot be written as JSON "
                f"({reason_of(error)}); use plain, finite values."
            ) from error
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the keys of a protocol file; `from_dict` reads them back."""
        words = {name: getattr(self, name) for name in _WORDS}
        data = [need.to_dict() for need in self.requirements] + [part.to_dict() for part in self.synthetic]
        return {**words, "kind": self.kind, "params": self.params, "data": data}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Protocol:
        """Make a protocol of the keys of a protocol file; a `ProtocolError` names one that is missing or wrong."""
        if not isinstance(values, Mapping):
            raise ProtocolError(f"a protocol is a mapping with {', '.join(_FILE_KEYS)}, not {described(values)}.")
        refuse_unknown(values, _FILE_KEYS, "a key of a protocol")
        if "kind" not in values:
            raise ProtocolError(f"the protocol has no key 'kind'; choose one of {', '.join(PROTOCOLS)}.")
        kind = values["kind"]
        if not isinstance(kind, str) or kind not in PROTOCOLS:
            near = nearest(str(kind), PROTOCOLS)
            raise ProtocolError(f"kind {kind!r} is unknown: {near}Known: {', '.join(PROTOCOLS)}.")
        params = values.get("params") or {}
        if not isinstance(params, Mapping):
            raise ProtocolError(f"'params' must be a mapping of parameters to values, not {described(params)}.")
        refuse_unknown(params, _parameters(PROTOCOLS[kind]), f"a parameter of kind {kind!r}")
        requirements, synthetic = read_data(values.get("data") or [])
        given = {key: values[key] for key in _WORDS if values.get(key) is not None}
        return make_protocol(kind, **given, requirements=requirements, synthetic=synthetic, **params)

    def _labelling(self, clips: ClipSet) -> tuple[tuple[str, ...], Ints]:
        """Classes of the clips that are judged, and for each clip its index among them or -1."""
        if not len(clips):
            raise ProtocolError(f"protocol {self.name!r} was given an empty clip set; give it labelled clips.")
        codes = clips.codes()
        with outside_call(f"judged of the protocol {self.name!r} ({type(self).__name__})", ProtocolError):
            judged = self.judged(clips)
        if judged is not None:
            mask = np.asarray(judged)
            if mask.dtype != bool or mask.shape != codes.shape:
                raise ProtocolError(
                    f"judged of the protocol {self.name!r} ({type(self).__name__}) gives {outside_value(judged)}, but "
                    f"a boolean array of {len(codes)} clips is expected; mend its judged."
                )
            codes = np.where(mask, codes, -1)
        names = [clips.classes[code] for code in np.unique(codes[codes >= 0])]
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


def make_protocol(kind: str, **values: Any) -> Protocol:
    """A protocol of a registered kind, with what its name implies and these values; `ProtocolError` where it fails."""
    remedy = "give its parameters in a YAML file, or defaults in its class"
    with outside_call(f"making the protocol {kind.replace('_', '-')!r}", ProtocolError, remedy):
        made: Protocol = PROTOCOLS[kind](**PROTOCOLS.preset(kind) | values)
        return made


def _parameters(kind: type[Protocol]) -> list[str]:
    words = {field.name for field in fields(Protocol)}
    return [field.name for field in fields(kind) if field.name not in words]


_WORDS = ("name", "title", "paper", "notes")
_FILE_KEYS = (*_WORDS, "kind", "params", "data")
