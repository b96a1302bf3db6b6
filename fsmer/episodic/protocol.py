"""`Protocol`: a named, seeded stream of episodes over a clip set, and what every kind of protocol shares."""

from __future__ import annotations

import hashlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np

from fsmer.data.clips import ClipSet, concat
from fsmer.data.schemes import canonical_dataset
from fsmer.episodic.checks import described, nearest, refuse_unknown, store_subset
from fsmer.episodic.episode import Ints, Mask
from fsmer.episodic.episodes import Episodes, episodes_fault, with_neighbours
from fsmer.episodic.requirements import Requirement, SyntheticClips, read_data
from fsmer.episodic.sides import NO_NEIGHBOUR, check_clip_set, dataset_codes_of, neighbour_parents
from fsmer.errors import ProtocolError, reason_of
from fsmer.outside import outside_call, outside_value
from fsmer.plugins import PROTOCOLS

__all__ = ["Protocol", "added_parameter", "register_protocol"]

# Class decorator: enters a `Protocol` under the name of its kind.
register_protocol = PROTOCOLS.register

# Part of what is hashed: goes up when the same content would make other episodes than before.
_HASHED_FORMAT = 1
_ADDED = "hashed only where it differs from its default"


def added_parameter(default: Any) -> Any:
    """Field of a parameter that a kind of protocol did not have when it was first released.

    Its default must mean the episodes that there were without it. It enters `Protocol.hash` only where it differs from
    that, so that protocols which do not use it keep the hash under which their results were reported.
    """
    return field(default=default, metadata={_ADDED: True})


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
    neighbours : bool
        Whether neighbour frames among the clips (column ``neighbour_of``, see `NeighbourFrames`) are learnt from: in
        the source, and in supports that hold all clips of their side. A neighbour is on the side of its clip and never
        a query. False, as without neighbours: they are left out. A parameter, hashed where it is true.
    """

    kind: ClassVar[str]
    summary: ClassVar[str] = ""

    name: str = ""
    title: str = ""
    paper: str = ""
    notes: str = ""
    requirements: tuple[Requirement, ...] = ()
    synthetic: tuple[SyntheticClips, ...] = ()
    neighbours: bool = added_parameter(False)

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
        for one in fields(self):
            # Numbers of NumPy would hash and print unlike Python's own.
            value = getattr(self, one.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, one.name, value.item())
        if not isinstance(self.neighbours, bool):
            raise ProtocolError(f"neighbours={self.neighbours!r} is not understood; choose true or false.")
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
        parents = neighbour_parents(clips)
        labelling = self._labelling(clips, parents)
        who = f"deal of the protocol {self.name!r} ({type(self).__name__})"
        with outside_call(who, ProtocolError):
            found: Any = self.deal(clips, *labelling)
            fault = episodes_fault(found, len(clips))
        if fault:
            raise ProtocolError(
                f"{who} gives {fault}, but Episodes of {len(clips)} clips are expected, such as FoldEpisodes; mend its "
                "deal."
            )
        self._place_neighbours(found, parents)
        return found

    def classes(self, clips: ClipSet) -> tuple[str, ...]:
        """Classes of the protocol's episodes on these clips, sorted."""
        return self._labelling(clips, neighbour_parents(clips))[0]

    def prepare(self, clips: ClipSet) -> ClipSet:
        """Select the data sets that the protocol needs and read their labels by its schemes.

        Clips of a protocol without requirements come back as they are.

        Raises
        ------
        MissingDatasetError
            A data set is not among the clips; the message says where to request it.
        DataError
            A label is unknown to the scheme, or the clips are no clip set.
        ProtocolError
            No clip of a data set is left under the scheme.
        """
        check_clip_set(clips)
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
        unused = {one.name for one in fields(self) if _ADDED in one.metadata and getattr(self, one.name) == one.default}
        params = {name: value for name, value in self.params.items() if name not in unused}
        content = {"format": _HASHED_FORMAT, "kind": self.kind, "params": params, "data": data}
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

    def _place_neighbours(self, episodes: Episodes, parents: Ints | None) -> None:
        """Let episodes that were dealt without neighbour frames have them where they are learnt from, or nowhere."""
        source = episodes.source
        if not self.neighbours:
            if parents is None:
                return
            if source is not None:
                episodes.source = source[parents[source] == NO_NEIGHBOUR]
            use = "neighbours=True (--neighbours) learns from them"
            if source is None and episodes.uniform:
                use = "a protocol with a source or with folds can learn from them"
            count = int((parents != NO_NEIGHBOUR).sum())
            # Beyond `split`, for whoever called it.
            warnings.warn(f"protocol {self.name!r} leaves {count} neighbour frames out; {use}.", stacklevel=3)
            return
        if source is None and episodes.uniform:
            raise ProtocolError(
                f"protocol {self.name!r} learns from so many clips of each class and has no source, so that neighbour "
                "frames have no place in it; leave neighbours off, or take a protocol with a source or with folds."
            )
        if parents is None:
            raise ProtocolError(
                f"protocol {self.name!r} is to learn from neighbour frames, but none of the {len(episodes.codes)} "
                "clips is one (column 'neighbour_of'); make them with 'fsmer prepare NAME --add-neighbours 5', or "
                "leave neighbours off."
            )
        if source is not None:
            episodes.source = with_neighbours(source, parents)
        if not episodes.uniform:
            episodes.codes = np.where(parents >= 0, episodes.codes[np.maximum(parents, 0)], episodes.codes)
            episodes.parents = parents

    def _labelling(self, clips: ClipSet, parents: Ints | None) -> tuple[tuple[str, ...], Ints]:
        """Classes of the clips that are judged, and for each clip its index among them or -1, as for neighbours."""
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
        if parents is not None:
            codes = np.where(parents == NO_NEIGHBOUR, codes, -1)
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
    words = {one.name for one in fields(Protocol) if _ADDED not in one.metadata}
    return [one.name for one in fields(kind) if one.name not in words]


_WORDS = ("name", "title", "paper", "notes")
_FILE_KEYS = (*_WORDS, "kind", "params", "data")
