"""What is evaluated and how: the arguments of `evaluate` as a protocol, clips, weights, a method and options."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fsmer import kernels
from fsmer.backbones import Backbone
from fsmer.data import ClipSet
from fsmer.episodic import Protocol, load_protocol
from fsmer.episodic.episodes import Episodes
from fsmer.errors import ProtocolError
from fsmer.evaluation.embedding_cache import network_code
from fsmer.evaluation.initial_weights import InitialWeights
from fsmer.evaluation.selection import GridPoint, Rule, TrainingRun
from fsmer.evaluation.training_folds import on_cpu
from fsmer.outside import code_digest
from fsmer.transfer import Method
from fsmer.transfer.fine_tuning import FineTuning
from fsmer.transfer.full_training import Train
from fsmer.version import __version__

__all__ = ["Evaluation", "Progress", "RunOptions", "check_jobs", "check_size", "listed_seeds", "method_for_weights"]
__all__ += ["method_seeds", "no_progress", "prepared_clips", "resolved_protocol"]

# Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """Tell nobody."""
    del stage, done, total


@dataclass(frozen=True)
class RunOptions:
    """How `fsmer.evaluate` runs what it evaluates, as its options; `ProtocolError` where jobs or isolate cannot be."""

    jobs: int | str | None = None
    isolate: str | None = None
    memory: int | None = None
    device: str | torch.device | None = None
    cache: Path | None = None
    progress: Progress = no_progress
    out: Path | None = None
    resume: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_jobs(self.jobs)
        if self.isolate not in (None, "none", "process"):
            raise ProtocolError(f"isolate={self.isolate!r} is not possible; give 'process' or 'none'.")


def check_jobs(jobs: Any) -> None:
    """Raise `ProtocolError` for a number of jobs that is none."""
    if jobs not in (None, -1, "auto") and (not isinstance(jobs, int) or jobs < 1):
        raise ProtocolError(f"jobs={jobs!r} is not possible; give 1 or more, -1 for one a core, or 'auto'.")


# Answers that a report can hold: above, the predictions alone would fill the memory of most machines.
MAX_ANSWERS = 50_000_000


@dataclass(frozen=True)
class Evaluation:
    """All that the answers depend on; see `fsmer.evaluate`.

    `seed` is that of episodes, of the orders of their queries and of the bootstrap, `seeds` are those of the method;
    `backbone` is what the first seed starts from; by `rule`, one of `grid_points` is chosen for each episode.
    """

    protocol: Protocol
    seed: int
    clips: ClipSet
    episodes: Episodes
    start: InitialWeights
    backbone: Backbone
    descriptions: dict[str, str]
    method: Method
    seeds: list[int]
    rule: Rule
    trainings: list[TrainingRun]
    grid_points: list[GridPoint]

    @property
    def arithmetic(self) -> dict[str, str]:
        """What of this machine can change a digit: for trainings on a CPU `kernels.describe`, else nothing."""
        trains = self.episodes.source is not None or not self.method.keeps_backbone
        return kernels.describe() if trains and on_cpu(self.backbone) else {}

    def identity(self, content: NDArray[np.uint8], isolate: str | None) -> dict[str, str]:
        """What a run and the one that it goes on from must share, in words; `content` are ids, uint8 (N, 16)."""
        clips, table = self.clips, hashlib.sha256()
        for values in (clips.ids, clips.datasets, clips.subjects, clips.labels, clips.table["aus"].to_numpy(object)):
            table.update("\n".join(map(str, values.tolist())).encode() + b"\0")
        tried = json.dumps([[point.checkpoint_step, dict(point.values)] for point in self.grid_points], default=str)
        names = ", ".join(clips.dataset_names)
        params = {name: value for name, value in self.method.get_params().items() if name != "seed"}
        identity = {
            "version of fsmer": __version__,
            "protocol": f"{self.protocol.name}, hash {self.protocol.hash}",
            "description of classes": _hash(json.dumps(self.descriptions, sort_keys=True).encode()),
            "model": self.start.describe(),
            "method": f"{self.method.name} with {json.dumps(params, sort_keys=True, default=str)}",
            "seed of episodes and bootstrap": str(self.seed),
            "selection": f"{self.rule}, hash {_hash(tried.encode())[:8]}",
            "table of clips": f"{len(clips):,} clips of {names}, hash {table.hexdigest()[:16]}",
            # The media too: flow that was extracted anew under the same ids is another run.
            "content of the media": f"hash {_hash(content.tobytes())}",
        }
        parts = list(vars(self.method).values())
        parts += [part for one in parts if hasattr(one, "get_params") for part in one.get_params().values()]
        codes = {
            "model": network_code(self.backbone),
            "method": code_digest([self.method, *parts]),
            "protocol": code_digest([self.protocol, self.episodes]),
        }
        identity |= {f"code of the {name}": f"hash {code}" for name, code in codes.items() if code}
        if arithmetic := self.arithmetic:
            identity["arithmetic"] = f"this machine with {json.dumps(arithmetic)}"
        return identity | ({"isolation": isolate} if isolate == "process" else {})


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def resolved_protocol(protocol: Protocol | str | os.PathLike[str], seed: int | None) -> Protocol:
    """The protocol, with this seed in place of its own where it has one."""
    if seed is not None and seed < 0:
        raise ProtocolError(f"seed={seed} is negative; give 0 or a larger whole number.")
    chosen = load_protocol(protocol)
    return chosen.with_params(seed=seed) if seed is not None and "seed" in chosen.params else chosen


def method_seeds(method: Method, asked: int | Sequence[int] | None) -> list[int]:
    """The seeds that `seeds` of `evaluate` asks for."""
    own = int(method.get_params().get("seed", 0))
    return [own] if asked is None else listed_seeds(asked, own)


def listed_seeds(asked: int | Sequence[int], first: int) -> list[int]:
    """So many seeds from `first` on, or those that are asked for; `ProtocolError` where that is impossible."""
    if isinstance(asked, int | np.integer) and not isinstance(asked, bool):
        if asked < 1:
            raise ProtocolError(f"seeds={asked} is not possible; give at least one seed.")
        return list(range(first, first + int(asked)))
    listed = list(asked) if isinstance(asked, Sequence) and not isinstance(asked, str) else []
    whole = all(isinstance(one, int | np.integer) and not isinstance(one, bool) and one >= 0 for one in listed)
    if not listed or not whole or len(set(listed)) < len(listed):
        raise ProtocolError(f"seeds={asked!r} is not possible; give how many, or different whole numbers from 0 on.")
    return [int(one) for one in listed]


def prepared_clips(protocol: Protocol, clips: ClipSet | None, backbone: Backbone) -> ClipSet:
    """The clips of the protocol's data sets under its label scheme, or its own synthetic ones."""
    if clips is not None:
        return protocol.prepare(clips)
    if not protocol.synthetic:
        raise ProtocolError(f"protocol {protocol.name!r} needs clips: give some (clips=, or --data on a command line).")
    return protocol.make_clips(specs=backbone.input_specs)


def check_size(protocol: Protocol, episodes: Episodes) -> None:
    """Refuse more answers than a report holds."""
    # Folds ask each clip about once; K-shot episodes that judge every remaining clip ask all of them every time.
    if not episodes.uniform or protocol.params.get("query") != "rest":
        return
    answers = len(episodes) * int((episodes.codes >= 0).sum())
    if answers > MAX_ANSWERS:
        raise ProtocolError(
            f"{len(episodes):,} episodes that each judge every remaining clip give about {answers:,} answers, more "
            f"than the {MAX_ANSWERS:,} that a report holds; ask for fewer episodes, or for some queries (query=15)."
        )


def method_for_weights(
    start: InitialWeights, method: Method, grid: Mapping[str, Any] | None, *, has_source: bool
) -> tuple[Method, str]:
    """What trains the network, and what is to be said about it: fine-tuning has nothing to adjust in fresh weights.

    They are trained by their own recipe instead, unless parameters of fine-tuning are asked for, or a source comes
    first, which fine-tuning has rates for. Methods from elsewhere know what they do.
    """
    if start.given is not None or not isinstance(method, FineTuning) or method.origin:
        return method, ""
    begun = f"{start.name!r} starts from fresh weights, and {method.name!r} is made to adjust trained ones"
    plain = type(method)(train_backbone=method.train_backbone, seed=method.seed)
    if method != plain or has_source or grid:
        return method, f"{begun}: this is not the training of its paper, which is the method 'train' (--method train)."
    return Train(seed=method.seed), f"{begun}: it is trained by its paper's recipe instead, by the method 'train'."
