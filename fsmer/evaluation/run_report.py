"""From the answers of all seeds to the report."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from fsmer.backbones import Backbone
from fsmer.backbones.base import is_trusted
from fsmer.data import ClipSet
from fsmer.errors import ProtocolError
from fsmer.evaluation.initial_weights import InitialWeights
from fsmer.evaluation.predictions import PAGE_FILE
from fsmer.evaluation.report import Report
from fsmer.evaluation.seed_runs import SeedResult
from fsmer.evaluation.selection import describe_selection
from fsmer.evaluation.setup import Evaluation, RunOptions
from fsmer.outside import outside_call
from fsmer.plugins import BACKBONES, METHODS, PROTOCOLS, outside_origin, plugin_entry
from fsmer.transfer import Method
from fsmer.transfer.fine_tuning import TrainsTogether
from fsmer.transfer.method import solves_together

__all__ = ["kept_embeddings", "run_account", "run_report", "write_page"]


def run_account(
    one: Evaluation, options: RunOptions, call: str | None, given: Mapping[str, Any], started: datetime
) -> dict[str, Any]:
    """How and when a run is made, for `Report.run`; `given` are the options in which it differs from a plain call."""
    words = [repr(name) for name in (one.protocol.name, one.backbone.name, one.method.name)]
    words += [f"{key}={value!r}" for key, value in given.items() if value is not None]
    return {
        "call": call or f"fsmer.evaluate({', '.join(words)})",
        "started": started.strftime("%Y-%m-%d %H:%M:%S UTC"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "isolation": options.isolate or "none",
        "from_outside": _from_outside(one.method, one.backbone),
    }


def _from_outside(method: Method, backbone: Backbone) -> list[str]:
    """The method and the backbone, in words, where their code is not that of fsmer and labels are shown to it."""
    found = []
    if method.origin:
        found.append(f"the method {method.name!r}" + (", declared batched" if solves_together(method) else ""))
    # A network that a method of fsmer keeps as it is embeds clips and is told no label.
    other = outside_origin(BACKBONES, type(backbone)) or not is_trusted(backbone)
    if other and (method.origin or not method.keeps_backbone):
        found.append(f"the backbone {backbone.name!r}" + (", declared trusted" if is_trusted(backbone) else ""))
    return found


def run_report(
    one: Evaluation, results: Mapping[int, SeedResult], options: RunOptions, note: str, *, unrecorded: bool = False
) -> Report:
    """The report of a run from its results by seed; `note` is what is to be said about the method, or nothing.

    `unrecorded`: some episodes are of an earlier version, which did not write with which arithmetic.
    """
    episodes, protocol = one.episodes, one.protocol
    first = next(iter(results.values())).answers
    asked_twice = bool(np.bincount(first.predictions.clip).max(initial=0) > 1)
    settings = {"name": protocol.name, "title": protocol.title, "hash": protocol.hash, "settings": protocol.to_dict()}
    settings |= plugin_entry(PROTOCOLS, type(protocol))
    make = functools.partial(
        Report.from_predictions,
        one.clips,
        codes=episodes.codes,
        classes=episodes.classes,
        names=first.names,
        among=None if first.among.all() else first.among,
        # Folds divide the clips among themselves and are pooled; episodes that judge clips repeatedly are averaged.
        averaging="episodes" if len(episodes) > 1 and (episodes.uniform or asked_twice) else "pooled",
        seed=one.seed,
        protocol=settings | ({"descriptions": one.descriptions} if one.descriptions else {}),
        model=_model_entry(one, results),
        method=one.method.to_dict()
        | plugin_entry(METHODS, type(one.method))
        | ({"transductive": True} if one.method.transductive else {})
        | ({"batched": True} if one.method.origin and solves_together(one.method) else {}),
    )
    chosen = {number: (first.names, result.chosen) for number, result in results.items() if result.chosen is not None}
    honest = {number: result.honest.predictions for number, result in results.items() if result.honest is not None}
    report = make(
        {number: result.answers.predictions for number, result in results.items()},
        selection=describe_selection(one.rule, one.grid_points, chosen),
        honest=make(honest).figures if honest else None,
        notes=[*([note] if note else []), *_notes(one, results, options)],
    )
    arithmetic, before = one.arithmetic, "unknown for the episodes of an earlier version, then " if unrecorded else ""
    versions = dict(report.versions) | {name: f"{before}{value}" for name, value in arithmetic.items()}
    return replace(report, isolation=options.isolate or "none", versions=versions)


def _model_entry(one: Evaluation, results: Mapping[int, SeedResult]) -> dict[str, Any]:
    weights = {number: result.weights for number, result in results.items()}
    entry: dict[str, Any] = {
        "name": one.backbone.name,
        **plugin_entry(BACKBONES, type(one.backbone)),
        "weights_hash": "+".join(dict.fromkeys(weights.values())),
        "input_specs": [spec.to_dict() for spec in one.backbone.input_specs],
    }
    if one.start.given is None:
        entry |= {"fresh": True, "weights_by_seed": {str(number): value for number, value in weights.items()}}
        entry |= {"arguments": dict(one.start.arguments)} if one.start.arguments else {}
    return entry


def _notes(one: Evaluation, results: Mapping[int, SeedResult], options: RunOptions) -> list[str]:
    notes, name = [], one.method.name
    if one.method.transductive:
        notes.append(
            f"{name!r} is transductive: it looked at all query clips of an episode together, so the figures depend on "
            "how many there are and on their shares of the classes; compare them with those of other such methods."
        )
    if options.isolate == "process":
        shared = one.method.keeps_backbone and solves_together(one.method)
        batch = f"; {name!r} solves many folds together, which share a process" if shared else ""
        notes.append(f"Every fold was fitted and answered in a process of its own (isolate='process'){batch}.")
    parts = [result.answers.predictions.probabilities for result in results.values()]
    if len(parts) > 1 and all(np.array_equal(parts[0], other, equal_nan=True) for other in parts[1:]):
        notes.append(
            f"All {len(parts)} seeds gave the same answers: {name!r} with these parameters draws nothing at "
            "random, so the seeds say nothing about how much the figures vary."
        )
    has_source = one.episodes.source is not None
    if isinstance(one.method, TrainsTogether) and (told := one.method.rate_note(one.backbone, is_source=has_source)):
        notes.append(f"Learning rates: {told}")
    with outside_call(f"missing_classes of {type(one.episodes).__name__}", ProtocolError):
        missing = [(str(fold), str(label)) for fold, label in one.episodes.missing_classes()]
    if missing:
        notes.append(
            f"The support of {len({fold for fold, _ in missing})} of {len(one.episodes)} episodes lacks a class, such "
            f"as that of {missing[0][0]} ({missing[0][1]}); queries of that class count all the same."
        )
    return notes


@contextlib.contextmanager
def kept_embeddings(options: RunOptions) -> Iterator[RunOptions]:
    """The same options; where a page is made without a cache, with one that holds embeddings until then."""
    if options.cache is not None or options.out is None:
        yield options
        return
    with tempfile.TemporaryDirectory() as kept:
        yield replace(options, cache=Path(kept))


def write_page(report: Report, start: InitialWeights, clips: ClipSet | None, options: RunOptions) -> None:
    """Put ``report.html`` beside a report in the folder of its run, unless that of a finished run is there.

    `clips` are those that were given; protocols that make their own get a page without maps.
    """
    if options.out is None or (report.folder is not None and (options.out / PAGE_FILE).is_file()):
        return
    backbone = None if clips is None else start.backbone(report.per_seed[0]["seed"])
    report.to_html(options.out / PAGE_FILE, clips=clips, backbone=backbone, cache=options.cache or False)
