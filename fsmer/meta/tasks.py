"""Tasks to train on: few-shot problems as stacked tensors, from the episodes of a protocol or drawn without end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fsmer.backbones import Backbone, read_inputs
from fsmer.backbones.base import Inputs
from fsmer.data import ClipSet, InputSpec
from fsmer.episodic import DrawnTasks, Protocol, TaskArrays, TaskRows
from fsmer.episodic.episode import Episode, Ints
from fsmer.episodic.episodes import KShotEpisodes
from fsmer.errors import ProtocolError
from fsmer.synthetic.clips import Normalisation
from fsmer.training.frozen_layers import FrozenLayers

__all__ = ["ClipTasks", "TaskBatch", "Tasks", "UnitSetTasks"]

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
    """

    support: Any
    support_codes: Tensor
    query: Any
    query_codes: Tensor
    way: int

    def __len__(self) -> int:
        return len(self.support_codes)

    def task(self, number: int) -> TaskBatch:
        """One of them, as a batch of one."""
        part = slice(number, number + 1)
        return self.mapped(lambda value: value[part])

    def mapped(self, change: Callable[[Tensor], Tensor]) -> TaskBatch:
        """With each tensor changed."""
        names = ("support", "support_codes", "query", "query_codes")
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
        self.frozen = FrozenLayers(backbone, clips) if upper else None
        self.kept: Inputs | None = None
        clip_bytes = sum(4 * int(np.prod(spec.shape)) for spec in backbone.input_specs)
        if not upper and clip_bytes * len(clips) <= CACHE_BYTES:
            self.kept = read_inputs(backbone, clips, np.arange(len(clips)), self.device)

    def __call__(self, rows: Ints) -> Inputs:
        """Of clips (T, N), with these leading dimensions."""
        flat = rows.ravel()
        if self.frozen is not None:
            found: Inputs = self.frozen(flat)
        elif self.kept is not None:
            index = torch.from_numpy(flat).to(self.device)
            found = tree_map(lambda media: media.index_select(0, index), self.kept)
        else:
            found = read_inputs(self.backbone, self.clips, flat, self.device)
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
        Prepared, as `Protocol.split` takes them. Of a source-then-target protocol, tasks are dealt from the clips of
        the source alone: the target is not there to be trained on.
    backbone : Backbone
        Whose media are read.
    seed : int
        Of the order of the classes in each task. A class that always had the same place could be learned by heart.
    device : torch.device, optional
    """

    def __init__(
        self, protocol: Protocol, clips: ClipSet, backbone: Backbone, *, seed: int = 0, upper: bool = False
    ) -> None:
        self.protocol, self.clips, self.seed = protocol, clips, seed
        self.episodes = protocol.split(clips)
        ways = {len(self.episodes[0].classes)} if self.episodes.uniform else {len(one.classes) for one in self.episodes}
        if len(ways) > 1:
            raise ProtocolError(
                f"the episodes of protocol {protocol.name!r} have {min(ways)} to {max(ways)} classes, but tasks to "
                "train on have the same number each; choose a K-shot protocol with a way."
            )
        self.way = ways.pop()
        self._media = _Media(backbone, clips, upper=upper)

    def batch(self, start: int, count: int) -> TaskBatch:
        episodes = self._episodes(start, count)
        places = self._places(start, count)
        sides = []
        for side in ("support", "query"):
            rows = [getattr(one, side) for one in episodes]
            longest = max(len(one) for one in rows)
            padded = np.zeros((count, longest), dtype=np.int64)
            codes = np.full((count, longest), -1, dtype=np.int64)
            for number, (one, own) in enumerate(zip(episodes, rows, strict=True)):
                padded[number, : len(own)] = own
                codes[number, : len(own)] = places[number][_codes(one, own, self.episodes.classes, self.episodes.codes)]
            sides.append((self._media(padded), self._media.codes(codes)))
        (support, support_codes), (query, query_codes) = sides
        return TaskBatch(support, support_codes, query, query_codes, self.way)

    def describe(self) -> dict[str, Any]:
        ids = [str(name) for name in self.clips.ids]
        return {"protocol": self.protocol.hash, "clips": ids, "seed": self.seed}

    def _episodes(self, start: int, count: int) -> Sequence[Episode]:
        if isinstance(self.episodes, KShotEpisodes):
            drawn = self.episodes.plan.draw(start, start + count)
            return [drawn[number] for number in range(count)]
        return [self.episodes[number % len(self.episodes)] for number in range(start, start + count)]

    def _places(self, start: int, count: int) -> list[Ints]:
        """The place of each class of each task."""
        generators = (np.random.Generator(np.random.PCG64([self.seed, start + number])) for number in range(count))
        return [one.permutation(self.way) for one in generators]


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
        return TaskBatch(support, media.codes(found.support_codes), query, media.codes(found.query_codes), self.way)

    def describe(self) -> dict[str, Any]:
        return {"drawn": asdict(self.drawn)}

    def _of(self, maps: Any) -> _Media:
        spec = InputSpec(
            size=(self.drawn.size, self.drawn.size), normalisation=self.drawn.normalisation, flow_method=None
        )
        clips = ClipSet.from_arrays(maps, None, spec=spec)
        return _Media(self.backbone, clips, upper=self.upper)


def _codes(episode: Episode, rows: Ints, classes: Sequence[str], codes: Ints) -> Ints:
    """Places of the clips' classes among those of the episode."""
    place = np.full(len(classes), -1, dtype=np.int64)
    place[[classes.index(name) for name in episode.classes]] = np.arange(len(episode.classes))
    found: Ints = place[codes[rows]]
    return found
