"""`evaluate`: run a method over a protocol, fit on each episode's support, answer its queries, and report.

Methods that keep the backbone embed each clip once and solve many episodes together; the others train folds side by
side, in parallel processes or one by one. In any case the code that fits and scores is the one that `fsmer.adapt`
deploys, and what learns gets a support set of its own: nothing that it holds leads to a label of the query side.
Queries are handed over in an order that is drawn for each episode, and answers are put back into that of the episode.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fsmer.ambient import library_settings
from fsmer.backbones import Backbone
from fsmer.backbones.base import check_weights, is_trusted
from fsmer.errors import DataError, MediaError, ProtocolError
from fsmer.evaluation.embedding_cache import as_folder, content_ids
from fsmer.evaluation.episodes_run import Progress, _Engine, _Result, _silent, seeded
from fsmer.evaluation.initial_weights import InitialWeights
from fsmer.evaluation.isolated import Processes
from fsmer.evaluation.predictions import REPORT_FILE
from fsmer.evaluation.report import Report
from fsmer.evaluation.run_folder import RunFolder
from fsmer.evaluation.selection import GridPoint, Rule, describe, families
from fsmer.io import check_writable
from fsmer.plugins import BACKBONES, METHODS, PROTOCOLS, outside_origin, plugin_entry
from fsmer.transfer import Method, load_method
from fsmer.transfer.adapt import described
from fsmer.transfer.fine_tuning import FineTuning
from fsmer.transfer.full_training import Train
from fsmer.transfer.method import solves_together
from fsmer.transfer.source_model import SourceModel
from fsmer.version import __version__

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

    from fsmer.data import ClipSet
    from fsmer.episodic import Protocol
    from fsmer.episodic.episodes import Episodes

__all__ = [
    "check_jobs",
    "evaluate",
]


# Answers that a report can hold: above, the predictions alone would fill the memory of most machines.
MAX_ANSWERS = 50_000_000


@library_settings()
def evaluate(
    protocol: Protocol | str | os.PathLike[str],
    model: Backbone | InitialWeights | str | os.PathLike[str],
    method: Method | ClassifierMixin | str = "cosine",
    *,
    clips: ClipSet | None = None,
    descriptions: Mapping[str, str] | None = None,
    arguments: Mapping[str, Any] | None = None,
    seed: int | None = None,
    seeds: int | Sequence[int] | None = None,
    select: Rule = "fixed",
    grid: Mapping[str, Sequence[Any]] | None = None,
    jobs: int | Literal["auto"] | None = None,
    isolate: Literal["none", "process"] | None = None,
    memory: int | None = None,
    device: str | torch.device | None = None,
    cache: bool | str | os.PathLike[str] = True,
    progress: Progress | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    overwrite: bool = False,
    call: str | None = None,
) -> Report:
    """Judge a method on a backbone by a protocol.

    The query side of an episode is read after its recognizer has been fitted, and nothing is chosen on it (but by
    ``select="oracle"``, which says so on every number).

    Parameters
    ----------
    protocol : Protocol, name of `fsmer.list_protocols` or path of a YAML file
    model : Backbone, name of `fsmer.list_models`, folder of weights, or InitialWeights
        A name without weights that ship starts from fresh weights, drawn anew with each seed; only for methods that
        train the network.
    method : Method, name of `fsmer.list_methods`, or classifier of scikit-learn
    clips : ClipSet, optional
        Labelled clips; protocols on synthetic clips make their own.
    descriptions : mapping of str to str, optional
        What classes look like in words, see `fsmer.adapt`.
    arguments : mapping, optional
        Constructor arguments of a backbone given by name, which then starts from fresh weights even where some ship;
        with a backbone, a folder of weights or a InitialWeights they are refused, since its own are fixed.
    seed : int, optional
        In place of the protocol's own seed (where it has one); also seeds the bootstrap. It decides on episodes.
    seeds : int or sequence of int, optional
        Seeds of the method (initial weights, order of batches, augmentation); a number n stands for its own seed and
        the n - 1 that follow. The episodes stay the same. Figures are then means over seeds. Default: its own seed.
    select : {"fixed", "nested", "oracle"}
        How epochs and parameters are chosen: not at all; on subject-disjoint inner folds of each support; or on the
        query side itself, which is what many published scripts do and no estimate (see `fsmer.evaluation.selection`).
    grid : mapping of str to sequence, optional
        Parameters of the method and the values to choose from; default, for methods that train the backbone, how long
        (see `fsmer.evaluation.selection.families`).
    jobs : int or "auto", optional
        Folds trained at a time in processes of their own (-1: one a core), for methods that train the backbone; when
        memory runs out, fewer go on. ``"auto"``: one a core as far as memory goes, once the first fold has shown that
        there is more to do than processes take to start. Default: in this process, small backbones side by side; or
        what a surrounding ``joblib.parallel_config`` says, so that a Dask or Ray cluster can take over. On a CPU every
        fold is trained on one thread, so that the report is the same however many there are.
    isolate : {"none", "process"}, optional
        ``"process"``: every fold is fitted and answered in a process of its own, so that code from outside can hand
        nothing on from fold to fold (folds that a method of fsmer solves together share one). It costs less than a
        second a fold and some seconds at the start; see ``docs/honesty.md``. Default ``"none"``.
    memory : int, optional
        Bytes that folds trained side by side on a GPU may take together; on a CPU they take turns.
    device : str or torch.device, optional
        Where the network is trained and asked, such as ``"cuda"``; default where it is, which for names and folders is
        the CPU.
    cache : bool or path
        Where embeddings of methods that keep the backbone are found again, see `fsmer.evaluation.embedding_cache`.
        True: the default folder; False: nowhere.
    progress : callable, optional
        Called with (what is being done, done, in all).
    out : path, optional
        Folder for the report (see `Report.save`). While the evaluation runs, finished episodes are kept there too, so
        that an interrupted one leaves no broken file and goes on where it was. A finished one that is asked for again
        gives the report that is there; with more seeds, those that are there are not trained again.
    resume : bool
        Whether to go on with what is there. It counts only for the very same protocol, weights, method and clips;
        that of anything else is refused.
    overwrite : bool
        Replace a report of something else, or its unfinished run, instead of refusing. The old report stays until the
        new one is there.
    call : str, optional
        What the report names as its origin, such as a command line; default this call.

    Returns
    -------
    Report

    Raises
    ------
    ProtocolError
        The clips cannot give these episodes, or the seeds, the selection or the isolation make no sense.
    MissingDatasetError
        A data set that the protocol names is not among the clips.
    UnknownNameError
        No such protocol, model, method or parameter.
    WeightsError
        The model has no weights and the method would not train it, or arguments came with weights.
    DeviceError
        No such device here.
    OutputError
        `out` cannot be written, or holds a report or an unfinished run of something else.

    Warns
    -----
    UserWarning
        Memory has run out and fewer folds go on at a time, `jobs` has no effect, or fresh weights meet a method that
        adjusts trained ones; with its defaults the method ``"train"`` takes its place.

    Examples
    --------
    >>> report = fsmer.evaluate("loso", "facs-flow", "logistic", clips=clips)  # doctest: +SKIP
    >>> report.uf1, report.interval("uf1")  # doctest: +SKIP
    >>> tuned = load_method("finetune", train_backbone=True)  # doctest: +SKIP
    >>> fsmer.evaluate("loso", "facs-flow", tuned, clips=clips, seeds=3).per_seed  # doctest: +SKIP
    """
    began = time.perf_counter()
    if seed is not None and seed < 0:
        raise ProtocolError(f"seed={seed} is negative; give 0 or a larger whole number.")
    check_jobs(jobs)
    if isolate not in (None, "none", "process"):
        raise ProtocolError(f"isolate={isolate!r} is not possible; give 'process' or 'none'.")
    chosen = _as_protocol(protocol, seed)
    solver = load_method(method)
    runs = _seeds(solver, seeds)
    start = InitialWeights.of(model, solver, arguments, device)
    if solver.keeps_backbone and jobs not in (None, 1, "auto"):
        warnings.warn(
            f"jobs={jobs} has no effect: {solver.name!r} keeps the network as it is and trains nothing in the folds.",
            stacklevel=3,
        )
    backbone = start.backbone(runs[0])
    check_weights(backbone)
    clips = _prepared(chosen, clips, backbone)
    episodes = chosen.split(clips)
    solver, fresh = _for_fresh_weights(start, solver, grid or {}, has_source=episodes.source is not None)
    if fresh:
        warnings.warn(fresh, stacklevel=3)
    _check_size(chosen, episodes)
    described(SourceModel.wrap(backbone), descriptions or {})
    groups, candidates = families(solver, backbone, select, grid)
    settings = {"name": chosen.name, "title": chosen.title, "hash": chosen.hash, "settings": chosen.to_dict()}
    settings |= plugin_entry(PROTOCOLS, type(chosen))
    if descriptions:
        settings["descriptions"] = dict(descriptions)
    if out is not None:
        check_writable(out)
    drawn = int(chosen.params.get("seed", seed or 0))
    engine = _Engine(
        drawn=drawn,
        processes=Processes() if isolate == "process" else None,
        clips=clips,
        episodes=episodes,
        start=start,
        descriptions=dict(descriptions or {}),
        families=groups,
        candidates=candidates,
        rule=select,
        jobs=jobs,
        memory=memory,
        cache=as_folder(cache),
        progress=progress or _silent,
        seeds=runs,
    )
    options = {"seed": seed, "seeds": seeds, "select": select, "grid": grid, "jobs": jobs, "isolate": isolate}
    run: dict[str, Any] = {
        "call": call or _call(chosen, start, solver, **options),
        "started": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "isolation": isolate or "none",
        "from_outside": _from_outside(solver, backbone),
    }
    if out is not None:
        # Whether all is there already is seen without embedding anything.
        content = engine.content(backbone, embed=not (Path(out) / REPORT_FILE).is_file())
        identity = _identity(settings, start, solver, clips, content, (select, candidates), drawn)
        if isolate == "process":
            identity["isolation"] = isolate
        engine.folder = RunFolder(Path(out), identity, runs, resume=resume, overwrite=overwrite)
        run |= {"seeds": runs, "identity": identity}
        if engine.folder.finished:
            # A report that lost one of its tables is made again.
            with contextlib.suppress(DataError):
                found = Report.load(out)
                engine.folder.finalize(keep=not solver.keeps_backbone)
                return found
    try:
        results = {number: engine.solved(number, seeded(solver, number)) for number in runs}
    except BaseException as error:
        if engine.folder is not None:
            engine.folder.drop_empty()
        if isinstance(error, MediaError):
            # Queries are asked about under no name: looking through all clips says whose medium it is.
            content_ids(backbone, clips[episodes.codes >= 0])
        raise
    finally:
        if engine.processes is not None:
            engine.processes.end()
    report = _report(engine, results, settings, solver, backbone, drawn, fresh)
    run |= {"seconds": round(time.perf_counter() - began, 1), "resumed": engine.taken_over}
    report = replace(report, run=run, isolation=run["isolation"])
    if engine.folder is not None:
        with engine.folder.replacing(keep=not solver.keeps_backbone):
            report.save(engine.folder.folder)
    return report


def check_jobs(jobs: Any) -> None:
    """Raise `ProtocolError` for a number of jobs that is none."""
    if jobs not in (None, -1, "auto") and (not isinstance(jobs, int) or jobs < 1):
        raise ProtocolError(f"jobs={jobs!r} is not possible; give 1 or more, -1 for one a core, or 'auto'.")


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


def _report(
    engine: _Engine,
    results: Mapping[int, _Result],
    settings: dict[str, Any],
    method: Method,
    backbone: Backbone,
    seed: int,
    fresh: str,
) -> Report:
    episodes = engine.episodes
    first = next(iter(results.values())).answers
    asked_twice = bool(np.bincount(first.predictions.clip).max(initial=0) > 1)
    weights = {number: one.weights for number, one in results.items()}
    model: dict[str, Any] = {
        "name": backbone.name,
        **plugin_entry(BACKBONES, type(backbone)),
        "weights_hash": "+".join(dict.fromkeys(weights.values())),
        "input_specs": [spec.to_dict() for spec in backbone.input_specs],
    }
    if engine.start.given is None:
        model |= {"fresh": True, "weights_by_seed": {str(number): value for number, value in weights.items()}}
        model |= {"arguments": dict(engine.start.arguments)} if engine.start.arguments else {}
    make = functools.partial(
        Report.from_predictions,
        engine.clips,
        codes=episodes.codes,
        classes=episodes.classes,
        names=first.names,
        among=None if first.among.all() else first.among,
        # Folds divide the clips among themselves and are pooled; episodes that judge clips repeatedly are averaged.
        averaging="episodes" if len(episodes) > 1 and (episodes.uniform or asked_twice) else "pooled",
        seed=seed,
        protocol=settings,
        model=model,
        method=method.to_dict()
        | plugin_entry(METHODS, type(method))
        | ({"batched": True} if method.origin and solves_together(method) else {}),
    )
    chosen = {number: (first.names, one.chosen) for number, one in results.items() if one.chosen is not None}
    honest = {number: one.honest.predictions for number, one in results.items() if one.honest is not None}
    return make(
        {number: one.answers.predictions for number, one in results.items()},
        selection=describe(engine.rule, engine.candidates, chosen),
        honest=make(honest).figures if honest else None,
        notes=[*([fresh] if fresh else []), *_notes(engine, results, method)],
    )


def _for_fresh_weights(
    start: InitialWeights, method: Method, grid: Mapping[str, Any], *, has_source: bool
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


def _notes(engine: _Engine, results: Mapping[int, _Result], method: Method) -> list[str]:
    """What a reader of the figures should know."""
    notes, episodes = [], engine.episodes
    if engine.processes is not None:
        shared = method.keeps_backbone and solves_together(method)
        batch = f"; {method.name!r} solves many folds together, which share a process" if shared else ""
        notes.append(f"Every fold was fitted and answered in a process of its own (isolate='process'){batch}.")
    parts = [one.answers.predictions.probabilities for one in results.values()]
    if len(parts) > 1 and all(np.array_equal(parts[0], other, equal_nan=True) for other in parts[1:]):
        notes.append(
            f"All {len(parts)} seeds gave the same answers: {method.name!r} with these parameters draws nothing at "
            "random, so the seeds say nothing about how much the figures vary."
        )
    missing = episodes.missing_classes()
    if missing:
        where = sorted({name for name, _ in missing})
        notes.append(
            f"The support of {len(where)} of {len(episodes)} episodes lacks a class, such as that of {missing[0][0]} "
            f"({missing[0][1]}); queries of that class count all the same."
        )
    return notes


def _seeds(method: Method, asked: int | Sequence[int] | None) -> list[int]:
    own = int(method.get_params().get("seed", 0))
    if asked is None:
        return [own]
    if isinstance(asked, int | np.integer) and not isinstance(asked, bool):
        if asked < 1:
            raise ProtocolError(f"seeds={asked} is not possible; give at least one seed.")
        return list(range(own, own + int(asked)))
    listed = list(asked) if isinstance(asked, Sequence) and not isinstance(asked, str) else []
    whole = all(isinstance(one, int | np.integer) and not isinstance(one, bool) and one >= 0 for one in listed)
    if not listed or not whole or len(set(listed)) < len(listed):
        raise ProtocolError(
            f"seeds={asked!r} is not possible; give how many, or different whole numbers of at least 0."
        )
    return [int(one) for one in listed]


def _call(protocol: Protocol, start: InitialWeights, method: Method, **options: Any) -> str:
    """The call of `evaluate` in short."""
    model = start.name if start.given is None else start.given.name
    words = [repr(name) for name in (protocol.name, model, method.name)]
    given = [f"{key}={value!r}" for key, value in options.items() if value is not None]
    return f"fsmer.evaluate({', '.join([*words, *given])})"


def _as_protocol(protocol: Protocol | str | os.PathLike[str], seed: int | None) -> Protocol:
    from fsmer.episodic import load_protocol

    chosen = load_protocol(protocol)
    return chosen.with_params(seed=seed) if seed is not None and "seed" in chosen.params else chosen


def _prepared(protocol: Protocol, clips: ClipSet | None, backbone: Backbone) -> ClipSet:
    """The clips of the protocol's data sets under its label scheme, or its own synthetic ones."""
    if clips is None and not protocol.synthetic:
        raise ProtocolError(
            f"the protocol {protocol.name!r} needs clips: give some (clips=, or --data on the command line)."
        )
    return protocol.make_clips(specs=backbone.input_specs) if clips is None else protocol.prepare(clips)


def _check_size(protocol: Protocol, episodes: Episodes) -> None:
    # Folds ask each clip about once; K-shot episodes that judge every remaining clip ask all of them every time.
    if not episodes.uniform or protocol.params.get("query") != "rest":
        return
    answers = len(episodes) * int((episodes.codes >= 0).sum())
    if answers > MAX_ANSWERS:
        raise ProtocolError(
            f"{len(episodes):,} episodes that each judge every remaining clip give about {answers:,} answers, more "
            f"than the {MAX_ANSWERS:,} that a report holds; ask for fewer episodes, or for some queries (query=15)."
        )


def _identity(
    protocol: Mapping[str, Any],
    start: InitialWeights,
    method: Method,
    clips: ClipSet,
    content: NDArray[np.uint8],
    selection: tuple[str, Sequence[GridPoint]],
    seed: int,
) -> dict[str, str]:
    """What must be the same for a run to go on with the episodes of another, in the words of messages."""
    table = hashlib.sha256()
    for values in (clips.ids, clips.datasets, clips.subjects, clips.labels, clips.table["aus"].to_numpy(object)):
        table.update("\n".join(map(str, values.tolist())).encode() + b"\0")
    rule, candidates = selection
    tried = json.dumps([[one.stage, dict(one.values)] for one in candidates], default=str)
    words = json.dumps(protocol.get("descriptions", {}), sort_keys=True)
    params = {name: value for name, value in method.get_params().items() if name != "seed"}
    return {
        "version of fsmer": __version__,
        "protocol": f"{protocol['name']}, hash {protocol['hash']}",
        "description of classes": hashlib.sha256(words.encode()).hexdigest()[:16],
        "model": start.describe(),
        "method": f"{method.name} with {json.dumps(params, sort_keys=True, default=str)}",
        "seed of episodes and bootstrap": str(seed),
        "selection": f"{rule}, hash {hashlib.sha256(tried.encode()).hexdigest()[:8]}",
        "table of clips": f"{len(clips):,} clips of {', '.join(clips.dataset_names)}, hash {table.hexdigest()[:16]}",
        # The media too: flow that was extracted anew under the same ids is another run.
        "content of the media": f"hash {hashlib.sha256(content.tobytes()).hexdigest()[:16]}",
    }
