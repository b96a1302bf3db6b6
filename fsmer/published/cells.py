"""Runs one cell of a published table: its settings, its clips, its reports, and what was kept of an earlier run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from annotated_types import Ge

from fsmer.backbones import Backbone, load_model, model_hash
from fsmer.backbones.merau import Merau
from fsmer.backbones.registry import fresh_model
from fsmer.data import ClipSet, InputSpec, concat
from fsmer.data.schemes import canonical_dataset
from fsmer.datasets.catalog import dataset_info
from fsmer.episodic import SourceTarget
from fsmer.errors import DataError, FsmerError, MissingDatasetError, ProtocolError, SpecMismatchError, WeightsError
from fsmer.evaluation import Report, evaluate
from fsmer.evaluation.initial_weights import InitialWeights
from fsmer.evaluation.metrics import mean_interval
from fsmer.evaluation.predictions import PAGE_FILE, REPORT_FILE
from fsmer.evaluation.report_tables import SHOWN
from fsmer.evaluation.selection import Rule
from fsmer.evaluation.setup import Progress, listed_seeds
from fsmer.io import write_json
from fsmer.meta import load_algorithm, meta_train
from fsmer.meta.tasks import SourceEpisodes, source_episodes
from fsmer.published.clips import clips_of_dataset, dataset_labels, dataset_titles, media_specs, stand_in_clips
from fsmer.published.results import Measured
from fsmer.published.tables import PublishedTable, Settings
from fsmer.reporting.statistics import report_interval, seed_summary
from fsmer.schema import entries, read_json, read_yaml
from fsmer.training.preparation import train_part
from fsmer.training.supervised import for_classes
from fsmer.transfer import load_method
from fsmer.transfer.fine_tuning import TrainsTogether
from fsmer.version import __version__

__all__ = ["CellRunner", "small_settings"]

SMALL = Path(__file__).parent / "small.yaml"
CELL_FILE = "cell.json"
# MERAU's Algorithm 1, the step "episodes": ProtoNet on one episode of the source at a time, whose clips are changed at
# random as in fine-tuning (section IV.A). The paper leaves the number of episodes open: as many as show so many clips
# as fine-tuning sees on the source.
EPISODES: dict[str, Any] = {"algorithm": "protonet", "batch": 1, "augment": True}
# What the file of a cell keeps of it.
KEPT = ("values", "intervals", "each", "honest")

QUICK_EPISODES, SYNTHETIC_EPISODES = 20, 2
SYNTHETIC_QUERIES = 2  # of each class beside the shots

_NUMBERS = dict[str, float]
# Versions before left the honest figures to the report.
_FIGURES = {"values": _NUMBERS, "each": dict[str, list[float]], "honest": NotRequired[_NUMBERS]}
_PART: Any = entries(_FIGURES | {"intervals": dict[str, tuple[float, float] | None]})
_CELL = entries({"seconds": Annotated[float, Ge(0)] | None, "parts": dict[str, _PART]})


@dataclass
class CellRunner:
    """One run of a table, cell by cell; the fields are those of `run_table`."""

    table: PublishedTable
    sets: list[ClipSet]
    out: Path
    seeds: int | Sequence[int]
    quick: bool
    synthetic: bool
    weights: dict[str, str]
    select: Rule
    jobs: int | Literal["auto"] | None
    neighbours: bool
    resume: bool
    progress: Progress
    _made: dict[str, ClipSet] = field(default_factory=dict)
    _done: set[str] = field(default_factory=set)
    _last: tuple[str, list[Report]] | None = None
    _digests: dict[tuple[int, tuple[str, ...]], tuple[ClipSet, str]] = field(default_factory=dict)

    def measure(self, row: int, column: int) -> Measured:
        """One cell; whatever fsmer refuses becomes its reason."""
        found = self._run(row, column)
        if "parameters" not in self.table.metrics:
            return found
        settings = self.table.settings(row, column)
        counted = _parameters(settings, self.table.columns[column].classes or 0)
        return replace(found, values={**found.values, "parameters": counted})

    def _run(self, row: int, column: int) -> Measured:
        part = self.table.columns[column].part
        try:
            settings = self._settings(row, column)
            settings, clips, partial = self._clips(settings, media_specs(settings), part)
            outcome = self._outcome(settings, clips, part)
            lacking = _source(settings, clips).note if "episodes" in settings.before else ""
            told = " ".join(filter(None, (partial, self._rate_note(settings), lacking)))
        except (MissingDatasetError, SpecMismatchError) as error:
            return Measured("missing", str(error))
        except FsmerError as error:
            return Measured("refused", str(error))
        return replace(outcome, status="partial" if partial else "measured", reason=told)

    def _rate_note(self, settings: Settings) -> str:
        """What is to be said of the learning rates of a cell's network."""
        method = load_method(settings.method, **settings.params)
        trains = isinstance(method, TrainsTogether) and not method.keeps_backbone
        if not trains and "episodes" not in settings.before:
            return ""
        start = self._given(settings)
        if start is None:
            start = fresh_model(settings.model, 0, dict(settings.arguments))
        if isinstance(method, TrainsTogether) and trains:
            note = method.rate_note(start, is_source=settings.protocol.kind == "source_target")
        else:
            note = load_algorithm(EPISODES["algorithm"]).rate_note(start)
        return f"{note[:1].upper()}{note[1:]}"

    def _settings(self, row: int, column: int) -> Settings:
        settings = self.table.settings(row, column)
        if self.neighbours:
            settings = replace(settings, protocol=settings.protocol.with_params(neighbours=True))
        if not self.quick:
            return settings
        protocol = settings.protocol
        if "episodes" in protocol.params:
            few = SYNTHETIC_EPISODES if self.synthetic else QUICK_EPISODES
            protocol = protocol.with_params(episodes=min(few, protocol.params["episodes"]))
        small = small_settings()
        params = {**settings.params, **small["params"].get(settings.method, {})}
        own = small["arguments"].get(settings.model, {}) if self.synthetic else {}
        return replace(settings, protocol=protocol, params=params, arguments={**own, **settings.arguments})

    def _clips(self, settings: Settings, specs: Sequence[InputSpec], part: str | None) -> tuple[Settings, ClipSet, str]:
        """Clips for a cell, its protocol cut to what is there, and what is lacking, in words."""
        protocol, partial = settings.protocol, ""
        if self.synthetic:
            each = int(protocol.params.get("shot", 0)) + SYNTHETIC_QUERIES
            needs = protocol.requirements
            wanted = [(need.dataset, dataset_labels(protocol, need.dataset, need.scheme)) for need in needs]
            stand_ins = (stand_in_clips(dataset, labels, each, tuple(specs)) for dataset, labels in wanted)
            return settings, self._once([*wanted, each], specs, lambda: concat(list(stand_ins))), ""
        there = {canonical_dataset(name) for clips in self.sets for name in clips.dataset_names}
        left = tuple(need for need in protocol.requirements if need.dataset in there)
        missing = [need.dataset for need in protocol.requirements if need.dataset not in there]
        needed = [need.dataset for need in left]
        if missing:
            where = "; ".join(info.where_to_request() for info in map(dataset_info, missing) if info is not None)
            lacking = dataset_titles(missing)
            if protocol.kind != "cde" or len(left) < 2 or part in missing:
                raise MissingDatasetError(f"needs {lacking}: {where}.")
            partial = (
                f"measured on {dataset_titles(needed)} alone, so it cannot be compared with the published figure, "
                f"which has {lacking} too: {where}."
            )
            name = f"{protocol.name}-without-{'-'.join(missing)}"
            settings = replace(settings, protocol=replace(protocol, requirements=left, name=name))
        sets = (clips_of_dataset(self.sets, one, specs, settings.model) for one in needed)
        kinds = [spec.kind for spec in specs]
        return settings, self._once(needed, specs, lambda: concat(list(sets), kinds=kinds)), partial

    def _once(self, what: Sequence[Any], specs: Sequence[InputSpec], make: Callable[[], ClipSet]) -> ClipSet:
        """The same object for the same clips, so that their media are read and hashed once."""
        key = json.dumps([what, [spec.to_dict() for spec in specs]])
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _seeds(self, settings: Settings) -> list[int] | None:
        """The seeds of a cell, from that of its method on; ``None`` where nothing is drawn."""
        params = load_method(settings.method, **settings.params).get_params()
        if "seed" not in params and not settings.before:
            return None
        return listed_seeds(self.seeds, int(params.get("seed", 0)))

    def _outcome(self, settings: Settings, clips: ClipSet, part: str | None) -> Measured:
        seeds = self._seeds(settings)
        key = self._key(settings, clips, seeds)
        folder = self.out / "cells" / f"{settings.model}-{settings.method}-{key}"
        kept = (_kept(folder) if self.resume or key in self._done else None) or {"seconds": None, "parts": {}}
        self._done.add(key)
        name = part or "all"
        # Without: kept by a version that left the honest figures to the report.
        if "honest" not in kept["parts"].get(name, {}):
            reports, seconds = self._reports(key, settings, clips, seeds, folder)
            found = _figures(reports, part)
            if self.select == "oracle" and part is not None:
                fixed = self._choosing_nothing._outcome(settings, clips, part).values
                found = replace(found, honest={share: fixed[share] for share in SHOWN})
            kept["seconds"] = seconds if kept["seconds"] is None else kept["seconds"]
            kept["parts"][name] = {what: getattr(found, what) for what in KEPT}
            kept |= {"model": settings.model, "arguments": dict(settings.arguments), "method": settings.method}
            write_json(folder / CELL_FILE, kept, sealed=True)
        figures = dict(kept["parts"][name])
        figures["each"] = {share: tuple(values) for share, values in figures["each"].items()}
        if "seconds" in self.table.metrics and kept["seconds"] is not None:
            figures["values"] = {**figures["values"], "seconds": kept["seconds"]}
        return Measured("measured", folder=str(folder.relative_to(self.out)), **figures)

    @cached_property
    def _choosing_nothing(self) -> CellRunner:
        """The same runs by the rule ``"fixed"``: reports have honest figures of all their clips, but not of a part."""
        return replace(self, select="fixed", _last=None)

    def _reports(
        self, key: str, settings: Settings, clips: ClipSet, seeds: list[int] | None, folder: Path
    ) -> tuple[list[Report], float | None]:
        """The reports of a run, one, or one a seed, and the seconds that a seed took if they were made now."""
        # The columns of a composite ask for the same run one after the other.
        if self._last is not None and self._last[0] == key:
            return self._last[1], None
        begun, started = folder.exists(), time.perf_counter()
        reports = []
        runs: Sequence[int | None] = (seeds or ()) if settings.before else (None,)
        for seed in runs:
            # Runs on synthetic clips take seconds: they keep their figures and no reports.
            place = None if self.synthetic else folder if seed is None else folder / f"seed-{seed}"
            report = self._held(place) or (
                self._evaluate(settings, settings.model, clips, seeds, place)
                if seed is None
                else self._prepared(settings, clips, seed, place)
            )
            reports.append(report)
        # A run that was cut and went on has no time of its own.
        seconds = None if begun else (time.perf_counter() - started) / len(seeds or (0,))
        self._last = (key, reports)
        return self._last[1], seconds

    def _held(self, place: Path | None) -> Report | None:
        """The report of an earlier run; one that is damaged is made again."""
        if self.resume and place is not None and all((place / one).is_file() for one in (REPORT_FILE, PAGE_FILE)):
            with contextlib.suppress(DataError):
                return Report.load(place)
        return None

    def _evaluate(
        self, settings: Settings, model: Backbone | str, clips: ClipSet, seeds: list[int] | None, folder: Path | None
    ) -> Report:
        given = self.weights.get(model) if isinstance(model, str) else None
        fresh = isinstance(model, str) and given is None
        method = load_method(settings.method, **settings.params)
        return evaluate(
            settings.protocol,
            given or model,
            method,
            clips=clips,
            arguments=(dict(settings.arguments) or None) if fresh else None,
            seeds=seeds,
            select=self.select,
            # Some rows of a table train and others do not, which is no reason to say so row by row.
            jobs=None if method.keeps_backbone else self.jobs,
            out=folder,
            resume=self.resume,
            # The folder is named after all that the run depends on.
            overwrite=True,
            progress=self.progress,
        )

    def _prepared(self, settings: Settings, clips: ClipSet, seed: int, folder: Path | None) -> Report:
        """One seed of a cell whose backbone learns from the source before the episodes begin."""
        seeds = [seed] if "seed" in load_method(settings.method).get_params() else None
        return self._evaluate(settings, self._taught(settings, clips, seed), clips, seeds, folder)

    def _taught(self, settings: Settings, clips: ClipSet, seed: int) -> Backbone:
        backbone = self._given(settings) or fresh_model(settings.model, seed, dict(settings.arguments))
        small = small_settings()["params"] if self.quick else {"train": {}, "finetune": {}}
        source = _source(settings, clips).clips
        for step in settings.before:
            if step == "episodes":
                passes = load_method("finetune", **small["finetune"]).get_params()["source_epochs"]
                backbone = _episodes_trained(backbone, settings, clips, passes=passes, seed=seed)
            elif step != "au_detector":
                raise ProtocolError(f"{step!r} is no step before the episodes; use 'au_detector' or 'episodes'.")
            elif isinstance(backbone, Merau):
                train_part(backbone.detector_preparation(source, seed=seed, **small["train"]))
            else:
                raise ProtocolError(f"{settings.model!r} has no action unit detector to fit; only merau has.")
        return backbone.eval()

    def _key(self, settings: Settings, clips: ClipSet, seeds: list[int] | None) -> str:
        """What two runs must have in common for one to stand for the other."""
        start = self._start(settings)
        values = {
            "version": __version__,
            "protocol": settings.protocol.hash,
            "model": settings.model,
            "arguments": dict(settings.arguments),
            "weights": None if start is None else model_hash(start),
            "method": settings.method,
            "params": dict(settings.params),
            "before": list(settings.before),
            **({"episodes": EPISODES} if "episodes" in settings.before else {}),
            "seeds": seeds,
            "select": self.select,
            "clips": self._digest(clips, [spec.kind for spec in media_specs(settings)]),
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def _start(self, settings: Settings) -> Backbone | None:
        """The weights that a cell starts from, given or shipped; ``None``: fresh ones."""
        given = self._given(settings)
        if given is not None or settings.before:
            return given
        method = load_method(settings.method, **settings.params)
        return InitialWeights.of(settings.model, method, settings.arguments).given

    def _given(self, settings: Settings) -> Backbone | None:
        """The weights that were given for the network of a cell, refused where they are of another variant."""
        given = self.weights.get(settings.model)
        if given is None:
            return None
        backbone = load_model(given)
        for key, value in settings.arguments.items():
            held = backbone.config.get(key)
            # Otherwise all rows of an ablation would be measured on the one network that was given.
            if json.dumps(held, sort_keys=True) != json.dumps(value, sort_keys=True):
                raise WeightsError(
                    f"the weights in {given} are of a {settings.model!r} with {key}={held!r}, but this row is about "
                    f"{key}={value!r}; give weights of that variant, or none."
                )
        return backbone

    def _digest(self, clips: ClipSet, kinds: Sequence[str]) -> str:
        key = (id(clips), tuple(kinds))
        if key not in self._digests:
            digest = hashlib.sha256()
            near = (clips.table["neighbour_of"].to_numpy(),) if "neighbour_of" in clips.table.columns else ()
            for values in (clips.ids, clips.datasets, clips.subjects, clips.labels, *near):
                digest.update("\n".join(map(str, values.tolist())).encode())
            for kind in kinds:
                digest.update(json.dumps(clips.specs[kind].to_dict(), sort_keys=True).encode())
                for media in clips.batches(kind, 256):
                    digest.update(np.ascontiguousarray(media).tobytes())
            # The clips are kept with their digest, so that no other set takes their id.
            self._digests[key] = (clips, digest.hexdigest())
        return self._digests[key][1]


def _source(settings: Settings, clips: ClipSet) -> SourceEpisodes:
    """What a cell learns from before its episodes begin."""
    protocol = settings.protocol
    if not isinstance(protocol, SourceTarget):
        raise ProtocolError(
            f"protocol {protocol.name!r} has no source to learn from before; use a source-then-target one."
        )
    return source_episodes(protocol, clips)


def _episodes_trained(backbone: Backbone, settings: Settings, clips: ClipSet, *, passes: int, seed: int) -> Backbone:
    """A backbone trained on episodes that show as many clips as `passes` over the source."""
    found = _source(settings, clips)
    dealt = found.protocol
    steps = math.ceil(passes * len(found.clips) / ((dealt.way or 0) * (dealt.shot + int(dealt.query))))
    protocol = settings.protocol.with_params(seed=seed)
    with warnings.catch_warnings():
        # The cell says both, once for all seeds.
        warnings.filterwarnings("ignore", "the encoder of|Of the target's classes")
        return meta_train(backbone, protocol, clips=clips, steps=steps, seed=seed, **EPISODES)


def _kept(folder: Path) -> dict[str, Any] | None:
    """What was kept of a run; ``None`` where there is nothing, or it is damaged."""
    try:
        return dict(read_json(folder / CELL_FILE, _CELL, what="a measured cell", remedy="run it again"))
    except DataError:
        return None


def _figures(reports: Sequence[Report], part: str | None) -> Measured:
    """Figures of one report of several seeds, or of one report a seed; of one data set's clips alone with `part`."""
    if part is not None:
        tables = (one.predictions[one.predictions["dataset"].map(canonical_dataset) == part] for one in reports)
        reports = [replace(a, predictions=b.reset_index(drop=True)) for a, b in zip(reports, tables, strict=True)]
    summaries = [seed_summary(report) for report in reports]
    each = {name: tuple(value for one in summaries for value in one[name].each) for name in SHOWN}
    intervals: dict[str, tuple[float, float] | None] = {}
    if reports[0].averaging == "episodes":
        for name in SHOWN:
            by_episode = [report.episodes.groupby("episode", sort=True)[name].mean().to_numpy() for report in reports]
            intervals[name] = mean_interval(np.mean(by_episode, axis=0))
    elif len(reports) == 1:
        found = report_interval(reports[0])
        intervals = {name: found[name] for name in SHOWN}
    values = {name: float(np.mean(each[name])) for name in SHOWN}
    # Of all clips of a report, so of no part.
    told = [report.honest for report in reports if report.honest is not None] if part is None else []
    honest = {name: float(np.mean([one[name] for one in told])) for name in SHOWN} if told else {}
    return Measured("measured", values=values, intervals=intervals, each=each, honest=honest)


def _parameters(settings: Settings, classes: int) -> float:
    """Millions of numbers that training may change, network and linear classifier together."""
    backbone = fresh_model(settings.model, 0, dict(settings.arguments))
    made = for_classes(backbone, tuple(f"class {number}" for number in range(classes)), 0)
    own = sum(value.numel() for value in made.parameters())
    return (own + (made.embed_dim + 1) * classes) / 1e6


@cache
def small_settings() -> dict[str, dict[str, dict[str, Any]]]:
    """What quick runs take in place of the settings of methods and networks, by ``"params"`` or ``"arguments"``."""
    schema = dict[str, dict[str, dict[str, Any]]]
    return read_yaml(SMALL, schema, what="the settings of quick runs", remedy="install fsmer again", error=FsmerError)
