"""Tasks to train on: few-shot problems as stacked tensors, from the episodes of a protocol or drawn without end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fsmer.backbones import Backbone, check_clips, read_inputs
from fsmer.backbones.base import Inputs
from fsmer.data import ClipSet, InputSpec
from fsmer.data.schemes import canonical_dataset
from fsmer.episodic import DrawnTasks, KShot, Protocol, SourceTarget, TaskArrays, TaskRows
from fsmer.episodic.episode import Episode, Ints
from fsmer.episodic.episodes import KShotEpisodes
from fsmer.episodic.sides import NO_NEIGHBOUR, check_clip_set, dataset_codes_of, neighbour_parents
from fsmer.errors import ProtocolError
from fsmer.synthetic.clips import Normalisation
from fsmer.training.frozen_layers import FrozenLayers
from fsmer.training.supervised import Augmentation

__all__ = ["ClipTasks", "SourceEpisodes", "TaskBatch", "Tasks", "UnitSetTasks", "source_episodes", "source_tasks"]

# Media of all clips are kept where they take no more bytes.
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class TaskBatch:
    """Tasks of one shape.

    Parameters
    ----------
    support, query : tensor of shape (T, S, \\*spec.shape) and (T, Q, \\*spec.shape), or dicts of such tensors
        Media, or what `Backbone.lower` makes of them.
    support_codes, query_codes : int64 tensors of shape (T, S) and (T, Q)
        Class of each clip, 0 to way - 1; -1 marks padding.
    way : int
        Classes a task.
    rows : tuple of int64 tensors of shape (T, S) and (T, Q), or empty
        Numbers of the clips of support and query, where equal numbers stand for equal media.
    """

    support: Any
    support_codes: Tensor
    query: Any
    query_codes: Tensor
    way: int
    rows: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.support_codes)

    def task(self, number: int) -> TaskBatch:
        """One of them, as a batch of one."""
        part = slice(number, number + 1)
        return self.mapped(lambda value: value[part])

    def mapped(self, change: Callable[[Tensor], Tensor]) -> TaskBatch:
        """With each tensor changed."""
        names = ("support", "support_codes", "query", "query_codes", "rows")
        return replace(self, **{name: tree_map(change, getattr(self, name)) for name in names})


class Tasks(ABC):
    """An endless list of tasks, the same ones whenever and in whatever portions they are asked for.

    Attributes
    ----------
    way : int
        Classes a task.
    """

    way: int

    @abstractmethod
    def batch(self, start: int, count: int) -> TaskBatch:
        """Tasks from number `start` on."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain values that tell these tasks from others, for a checkpoint and a model card."""


class _Media:
    """Media of clips, or what the lower layers of a backbone make of them: read once where memory allows."""

    def __init__(self, backbone: Backbone, clips: ClipSet, *, upper: bool) -> None:
        self.backbone, self.clips = backbone, clips
        self.device = next((one.device for one in backbone.parameters()), torch.device("cpu"))
        self.upper = upper
        self.kept: Inputs | None = None
        clip_bytes = sum(4 * int(np.prod(spec.shape)) for spec in backbone.input_specs)
        if not upper and clip_bytes * len(clips) <= CACHE_BYTES:
            self.kept = read_inputs(backbone, clips, np.arange(len(clips)), self.device)

    @cached_property
    def frozen(self) -> FrozenLayers:
        """Made when first asked for: by then the backbone is prepared."""
        return FrozenLayers(self.backbone, self.clips)

    def __call__(self, rows: Ints, changed: Callable[[Inputs], Inputs] | None = None) -> Inputs:
        """Of clips (T, N), with these leading dimensions, changed at random where asked for."""
        flat = rows.ravel()
        if self.upper:
            found: Inputs = self.frozen(flat)
        elif self.kept is not None:
            index = torch.from_numpy(flat).to(self.device)
            found = tree_map(lambda media: media.index_select(0, index), self.kept)
        else:
            found = read_inputs(self.backbone, self.clips, flat, self.device)
        found = changed(found) if changed is not None else found
        split: Inputs = tree_map(lambda value: value.unflatten(0, rows.shape), found)
        return split

    def codes(self, values: Ints) -> Tensor:
        return torch.from_numpy(values).to(self.device)


class ClipTasks(Tasks):
    """The episodes of a protocol on labelled clips, as tasks.

    Parameters
    ----------
    protocol : Protocol
        K-shot protocols go on beyond their number of episodes; others begin again.
    clips : ClipSet
        Prepared, as `Protocol.split` takes them.
    backbone : Backbone
        Whose media are read.
    seed : int
        Of the order of the classes in each task, and of what changes its clips. A class that always had the same place
        could be learned by heart.
    upper : bool
        Whether what the lower layers of the backbone make of media takes their place.
    augment : bool
        Whether clips are changed at random, as the backbone's recipe says.
    neighbours : bool
        Whether a clip is shown by itself or one of its neighbour frames at random (column ``neighbour_of``). They are
        dealt with their clip, so that neighbours are never on two sides of a task.
    note : str
        What is to be said of these tasks.

    Raises
    ------
    ProtocolError
        Numbers of classes differ from one episode to the next; the protocol has a source, of which `source_tasks` makes
        tasks; episodes have no support; no clip has neighbour frames; or the recipe changes no clips.
    SpecMismatchError
        The clips hold other media than the backbone expects.
    """

    def __init__(
        self,
        protocol: Protocol,
        clips: ClipSet,
        backbone: Backbone,
        *,
        seed: int = 0,
        upper: bool = False,
        augment: bool = False,
        neighbours: bool = False,
        note: str = "",
    ) -> None:
        self.protocol, self.clips, self.seed, self.note = protocol, clips, seed, note
        if augment and not backbone.recipe.augment:
            raise ProtocolError(
                f"clips were to be changed at random, but the recipe of {backbone.name!r} names no change; leave "
                "augment off."
            )
        self.augmentation = Augmentation(backbone.recipe, backbone.input_specs) if augment else None
        self._neighbours = _Neighbours.of(protocol.name, clips) if neighbours else None
        if self._neighbours is not None:
            self.clips = self._neighbours.clips
        check_clips(backbone, self.clips)
        self.episodes = protocol.split(clips if self._neighbours is None else self._neighbours.dealt)
        if self.episodes.source is not None:
            raise ProtocolError(
                f"the episodes of protocol {protocol.name!r} are those of its target, which is not there to be trained "
                "on; make tasks of its source with fsmer.meta.source_tasks."
            )
        if not len(self.episodes[0].support):
            raise ProtocolError(
                f"the episodes of protocol {protocol.name!r} have no support clip (shot=0), but tasks to train on are "
                "learned from theirs; give at least one shot."
            )
        ways = {len(self.episodes[0].classes)} if self.episodes.uniform else {len(one.classes) for one in self.episodes}
        if len(ways) > 1:
            raise ProtocolError(
                f"the episodes of protocol {protocol.name!r} have {min(ways)} to {max(ways)} classes, but tasks to "
                "train on have the same number each; choose a K-shot protocol with a way."
            )
        self.way = ways.pop()
        self._media = _Media(backbone, self.clips, upper=upper)

    def batch(self, start: int, count: int) -> TaskBatch:
        episodes = self._episodes(start, count)
        places = self._places(start, count)
        sides = []
        for number_of_side, side in enumerate(("support", "query"), start=1):
            given = [getattr(one, side) for one in episodes]
            labels = [
                place[_codes(one, rows, self.episodes.classes, self.episodes.codes)]
                for one, rows, place in zip(episodes, given, places, strict=True)
            ]
            rows, codes = _padded(given, 0), _padded(labels, -1)
            draws = [
                np.random.Generator(np.random.PCG64([self.seed, number, number_of_side]))
                for number in range(start, start + count)
            ]
            if self._neighbours is not None:
                rows = self._neighbours.shown(rows, draws)
            media = self._media(rows, self._changes(draws, rows.shape[1]))
            sides.append((media, self._media.codes(codes), torch.from_numpy(rows)))
        (support, support_codes, support_rows), (query, query_codes, query_rows) = sides
        # A clip that is changed at random differs each time.
        shown: tuple[Tensor, ...] = () if self.augmentation is not None else (support_rows, query_rows)
        return TaskBatch(support, support_codes, query, query_codes, self.way, shown)

    def describe(self) -> dict[str, Any]:
        ids = [str(name) for name in self.clips.ids]
        own: dict[str, Any] = {"protocol": self.protocol.hash, "clips": ids, "seed": self.seed}
        if self.augmentation is not None:
            own["augment"] = self.augmentation.recipe.to_dict()
        return own | ({} if self._neighbours is None else {"neighbours": True})

    def _changes(self, draws: Sequence[np.random.Generator], count: int) -> Callable[[Inputs], Inputs] | None:
        """What changes `count` clips of each task at random, whatever the tasks that they are asked for with."""
        augmentation = self.augmentation
        if augmentation is None:
            return None
        each = [augmentation.draw(rng, count) for rng in draws]
        changes = [np.concatenate(one) for one in zip(*each, strict=True)]
        return lambda inputs: augmentation.apply(inputs, changes)

    def _episodes(self, start: int, count: int) -> Sequence[Episode]:
        if isinstance(self.episodes, KShotEpisodes):
            drawn = self.episodes.plan.draw(start, start + count)
            return [drawn[number] for number in range(count)]
        return [self.episodes[number % len(self.episodes)] for number in range(start, start + count)]

    def _places(self, start: int, count: int) -> list[Ints]:
        """The place of each class of each task."""
        generators = (np.random.Generator(np.random.PCG64([self.seed, start + number])) for number in range(count))
        return [one.permutation(self.way) for one in generators]


@dataclass(frozen=True)
class SourceEpisodes:
    """What `source_episodes` gives.

    Attributes
    ----------
    protocol : KShot
        Deals the source.
    clips : ClipSet
        The clips of the source, prepared; with their neighbour frames where the protocol learns from them.
    note : str
        What of the target's classes the source lacks; empty where it lacks none.
    """

    protocol: KShot
    clips: ClipSet
    note: str


def source_episodes(protocol: SourceTarget, clips: ClipSet) -> SourceEpisodes:
    """Episodes of the source of a source-then-target protocol, in the form of those of its target.

    They have the target's classes as far as the source has them (MERAU, section III.B.3: "samples in only categories
    E_t from D_train"). Where it has fewer than two of them no episode can be made so, and all classes of the source
    take their place: the paper reports two such pairs (CASME hard, SMIC) and does not say what their episodes were.
    There are as many classes an episode as in the target, or all that are left, and as many shots.
    Queries a class are the protocol's; where these are all clips that are left, they are as many as shots, or as many
    as the smallest class leaves.

    Parameters
    ----------
    protocol : SourceTarget
    clips : ClipSet
        Clips of the source. Those of the target are not read, and need not be there where the protocol names classes.

    Raises
    ------
    MissingDatasetError
        The source is not among the clips.
    ProtocolError
        The source has fewer than two classes.
    """
    if protocol.source is None and protocol.target is None:
        raise ProtocolError(f"protocol {protocol.name!r} has no source to train on; name its source or its target.")
    check_clip_set(clips)
    wanted, prepared = protocol.class_subset, clips
    if wanted is None:
        prepared = protocol.prepare(clips)
        wanted = protocol.classes(prepared)
    elif protocol.requirements:
        needs = tuple(need for need in protocol.requirements if _is_source(protocol, need.dataset))
        prepared = replace(protocol, requirements=needs).prepare(clips)
    names = [name for name in prepared.dataset_names if _is_source(protocol, name)]
    rows = np.isin(prepared.dataset_codes(), dataset_codes_of(protocol.name, prepared, protocol.source or names))
    source = prepared[rows]
    parents, codes = neighbour_parents(source), source.codes()
    if parents is not None:
        own = parents == NO_NEIGHBOUR
        codes = codes[own]
        source = source if protocol.neighbours else source[own]
    counts = np.bincount(codes[codes >= 0], minlength=len(source.classes))
    held = {name: int(count) for name, count in zip(source.classes, counts, strict=True) if count}
    if len(held) < 2:
        raise ProtocolError(
            f"tasks need clips of two classes or more, but the source of protocol {protocol.name!r} has "
            f"{', '.join(held) or 'none'}; give source clips of other classes."
        )
    shared = tuple(name for name in wanted if name in held)
    absent = [name for name in wanted if name not in held]
    note = ""
    if len(shared) < 2:
        there = f"{shared[0]!r} alone" if shared else "none"
        note = (
            f"Of the target's classes the source has {there} and an episode needs two, so that training took all "
            f"classes of the source: {', '.join(held)}."
        )
    elif absent:
        note = f"Of the target's classes the source lacks {', '.join(absent)}; training took {', '.join(shared)}."
    chosen = shared if len(shared) > 1 else tuple(held)
    query = protocol.query
    if query == "rest":
        query = max(1, min(protocol.shot, min(held[name] for name in chosen) - protocol.shot))
    kept = {name: getattr(protocol, name) for name in ("shot", "episodes", "balance", "subject_disjoint", "seed")}
    way = min(protocol.way or len(wanted), len(chosen))
    dealt = KShot(name=f"{protocol.name}-source", way=way, query=query, class_subset=chosen, **kept)
    return SourceEpisodes(dealt, source, note)


def source_tasks(
    protocol: SourceTarget,
    clips: ClipSet,
    backbone: Backbone,
    *,
    seed: int = 0,
    upper: bool = False,
    augment: bool = False,
) -> ClipTasks:
    """Tasks of the source of a source-then-target protocol, see `source_episodes`; no clip of the target is in any.

    Parameters
    ----------
    protocol : SourceTarget
        With ``neighbours=True`` clips are shown by their neighbour frames too.
    clips : ClipSet
        Clips of the source; those of the target are left alone.
    backbone, seed, upper, augment
        As in `ClipTasks`.

    Raises
    ------
    MissingDatasetError
        The source is not among the clips.
    ProtocolError
        The source cannot give such tasks.
    """
    found = source_episodes(protocol, clips)
    how: dict[str, Any] = {"seed": seed, "upper": upper, "augment": augment, "neighbours": protocol.neighbours}
    return ClipTasks(found.protocol, found.clips, backbone, note=found.note, **how)


def _is_source(protocol: SourceTarget, dataset: str) -> bool:
    name = canonical_dataset(dataset)
    return name in protocol.source if protocol.source is not None else name not in (protocol.target or ())


@dataclass(frozen=True)
class _Neighbours:
    """Clips and their neighbour frames: each clip with its own is a group.

    `clips` holds those that are `dealt` and the neighbours behind them; the group of clip i is the `counts[i]` rows of
    `members` from `starts[i]` on.
    """

    clips: ClipSet
    dealt: ClipSet
    starts: Ints
    counts: Ints
    members: Ints

    @classmethod
    def of(cls, name: str, clips: ClipSet) -> _Neighbours:
        """`ProtocolError`, in the `name` of a protocol, where no clip is a neighbour frame."""
        parents = neighbour_parents(clips)
        if parents is None:
            raise ProtocolError(
                f"protocol {name!r} is to learn from neighbour frames, but none of the {len(clips)} clips is one "
                "(column 'neighbour_of'); make them with 'fsmer prepare NAME --add-neighbours 5', or leave neighbours "
                "off."
            )
        own = np.flatnonzero(parents == NO_NEIGHBOUR)
        both = clips[np.concatenate([own, np.flatnonzero(parents >= 0)])]
        above = neighbour_parents(both)
        assert above is not None
        owner = np.where(above >= 0, above, np.arange(len(both)))
        counts = np.bincount(owner, minlength=len(own))
        return cls(both, both[: len(own)], np.cumsum(counts) - counts, counts, np.argsort(owner, kind="stable"))

    def shown(self, rows: Ints, draws: Sequence[np.random.Generator]) -> Ints:
        """For each of the clips (T, N) the row of itself or of one of its neighbour frames."""
        steps = np.stack([rng.integers(self.counts[own]) for own, rng in zip(rows, draws, strict=True)])
        found: Ints = self.members[self.starts[rows] + steps]
        return found


class UnitSetTasks(Tasks):
    """Tasks that are drawn without end, for a backbone that takes square flow maps.

    Parameters
    ----------
    drawn : DrawnTasks
    backbone : Backbone
    upper : bool
        Whether what its lower layers make of the maps takes their place.
    """

    def __init__(self, drawn: DrawnTasks, backbone: Backbone, *, upper: bool = False) -> None:
        spec = backbone.input_specs[0]
        if len(backbone.input_specs) > 1 or spec.kind != "flow" or spec.size[0] != spec.size[1]:
            raise ProtocolError(
                f"tasks are drawn as square flow maps, but {backbone.name!r} takes "
                f"{' and '.join(one.describe() for one in backbone.input_specs)}; give a protocol that makes its "
                "clips, such as base-units-5way."
            )
        self.drawn = replace(drawn, size=spec.size[0], normalisation=cast(Normalisation, spec.normalisation))
        self.backbone, self.upper, self.way = backbone, upper, drawn.way
        self._media = None if drawn.pool is None else self._of(self.drawn.pool_maps)

    def batch(self, start: int, count: int) -> TaskBatch:
        found: TaskArrays | TaskRows
        rows: tuple[Tensor, ...] = ()
        if self._media is None:
            found = self.drawn.batch(start, count)
            sides = found.support, found.query
            media = self._of(np.concatenate([side.reshape(-1, *side.shape[2:]) for side in sides]))
            split = found.support_codes.size
            support, query = (
                media(np.arange(codes.size).reshape(codes.shape) + first)
                for codes, first in ((found.support_codes, 0), (found.query_codes, split))
            )
        else:
            found, media = self.drawn.rows(start, count), self._media
            support, query = media(found.support), media(found.query)
            rows = torch.from_numpy(found.support), torch.from_numpy(found.query)
        codes = media.codes(found.support_codes), media.codes(found.query_codes)
        return TaskBatch(support, codes[0], query, codes[1], self.way, rows)

    def describe(self) -> dict[str, Any]:
        return {"drawn": asdict(self.drawn)}

    def _of(self, maps: Any) -> _Media:
        spec = InputSpec(
            size=(self.drawn.size, self.drawn.size), normalisation=self.drawn.normalisation, flow_method=None
        )
        clips = ClipSet.from_arrays(maps, None, spec=spec)
        return _Media(self.backbone, clips, upper=self.upper)


def _padded(rows: Sequence[Ints], filler: int) -> Ints:
    """Rows of different lengths as one array, filled up behind."""
    found = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for number, own in enumerate(rows):
        found[number, : len(own)] = own
    return found


def _codes(episode: Episode, rows: Ints, classes: Sequence[str], codes: Ints) -> Ints:
    """Places of the clips' classes among those of the episode."""
    place = np.full(len(classes), -1, dtype=np.int64)
    place[[classes.index(name) for name in episode.classes]] = np.arange(len(episode.classes))
    found: Ints = place[codes[rows]]
    return found
