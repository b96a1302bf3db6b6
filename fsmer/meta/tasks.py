"""Tasks to train on: few-shot problems as stacked tensors, from the episodes of a protocol or drawn without end."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fsmer.backbones import Backbone, read_inputs
from fsmer.backbones.base import Inputs
from fsmer.data import ClipSet
from fsmer.episodic import Protocol
from fsmer.episodic.episode import Episode, Ints
from fsmer.episodic.episodes import KShotEpisodes
from fsmer.errors import ProtocolError
from fsmer.training.frozen_layers import FrozenLayers

__all__ = ["ClipTasks", "TaskBatch", "Tasks"]

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

    def without_lower(self, backbone: Backbone) -> Tasks:
        """The same tasks with what the lower layers of the backbone make of media in their place."""
        return _LowerTasks(self, backbone)


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
        self.protocol, self.clips, self.backbone, self.seed = protocol, clips, backbone, seed
        self.device = next((one.device for one in backbone.parameters()), torch.device("cpu"))
        self.episodes = protocol.split(clips)
        ways = {len(self.episodes[0].classes)} if self.episodes.uniform else {len(one.classes) for one in self.episodes}
        if len(ways) > 1:
            raise ProtocolError(
                f"the episodes of protocol {protocol.name!r} have {min(ways)} to {max(ways)} classes, but tasks to "
                "train on have the same number each; choose a K-shot protocol with a way."
            )
        self.way = ways.pop()
        self.frozen = FrozenLayers(backbone, clips) if upper else None
        self._media: Inputs | None = None
        clip_bytes = sum(4 * int(np.prod(spec.shape)) for spec in backbone.input_specs)
        if not upper and clip_bytes * len(clips) <= CACHE_BYTES:
            self._media = read_inputs(backbone, clips, np.arange(len(clips)), self.device)

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
            sides.append((self._read(padded), torch.from_numpy(codes).to(self.device)))
        (support, support_codes), (query, query_codes) = sides
        return TaskBatch(support, support_codes, query, query_codes, self.way)

    def describe(self) -> dict[str, Any]:
        ids = [str(name) for name in self.clips.ids]
        return {"protocol": self.protocol.hash, "clips": ids, "seed": self.seed}

    def without_lower(self, backbone: Backbone) -> Tasks:
        return ClipTasks(self.protocol, self.clips, backbone, seed=self.seed, upper=True)

    def _episodes(self, start: int, count: int) -> Sequence[Episode]:
        if isinstance(self.episodes, KShotEpisodes):
            drawn = self.episodes.plan.draw(start, start + count)
            return [drawn[number] for number in range(count)]
        return [self.episodes[number % len(self.episodes)] for number in range(start, start + count)]

    def _places(self, start: int, count: int) -> list[Ints]:
        """The place of each class of each task."""
        generators = (np.random.Generator(np.random.PCG64([self.seed, start + number])) for number in range(count))
        return [one.permutation(self.way) for one in generators]

    def _read(self, rows: Ints) -> Inputs:
        flat = rows.ravel()
        if self.frozen is not None:
            found: Inputs = self.frozen(flat)
        elif self._media is not None:
            index = torch.from_numpy(flat).to(self.device)
            found = tree_map(lambda media: media.index_select(0, index), self._media)
        else:
            found = read_inputs(self.backbone, self.clips, flat, self.device)
        split: Inputs = tree_map(lambda value: value.unflatten(0, rows.shape), found)
        return split


class _LowerTasks(Tasks):
    def __init__(self, tasks: Tasks, backbone: Backbone) -> None:
        self.tasks, self.backbone, self.way = tasks, backbone, tasks.way

    def batch(self, start: int, count: int) -> TaskBatch:
        found = self.tasks.batch(start, count)
        return replace(found, support=self._lower(found.support), query=self._lower(found.query))

    def describe(self) -> dict[str, Any]:
        return self.tasks.describe()

    def _lower(self, inputs: Any) -> Any:
        leading = next(iter(inputs.values())).shape[:2] if isinstance(inputs, dict) else inputs.shape[:2]
        flat = tree_map(lambda value: value.flatten(0, 1), inputs)
        with torch.no_grad():
            return tree_map(lambda value: value.unflatten(0, leading), self.backbone.lower(flat))


def _codes(episode: Episode, rows: Ints, classes: Sequence[str], codes: Ints) -> Ints:
    """Places of the clips' classes among those of the episode."""
    place = np.full(len(classes), -1, dtype=np.int64)
    place[[classes.index(name) for name in episode.classes]] = np.arange(len(episode.classes))
    found: Ints = place[codes[rows]]
    return found


def told(tasks: Tasks) -> str:
    """`Tasks.describe` as text, for comparison."""
    return json.dumps(tasks.describe(), sort_keys=True)
