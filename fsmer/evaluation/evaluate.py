"""`evaluate`: run a method over a protocol, fit on each episode's support, answer its queries, and report.

The code that fits and scores is the one that `fsmer.adapt` deploys, and what learns gets a support set of its own:
nothing that it holds leads to a label of the query side. What each step does is in the module that it is from: `setup`
(what is evaluated, and its identity), `run_folder`, `seed_runs` (with `solving` and `training_folds`) and `run_report`.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from fsmer.ambient import library_settings
from fsmer.backbones import Backbone
from fsmer.backbones.base import check_weights
from fsmer.data import ClipSet
from fsmer.episodic import Protocol
from fsmer.errors import DataError, MediaError
from fsmer.evaluation import setup
from fsmer.evaluation.embedding_cache import as_folder, content_ids
from fsmer.evaluation.initial_weights import InitialWeights
from fsmer.evaluation.predictions import REPORT_FILE
from fsmer.evaluation.report import Report
from fsmer.evaluation.run_folder import RunFolder
from fsmer.evaluation.run_report import kept_embeddings, run_account, run_report, write_page
from fsmer.evaluation.seed_runs import SeedRuns
from fsmer.evaluation.selection import Rule, plan_grid
from fsmer.evaluation.setup import Evaluation, Progress, RunOptions, no_progress
from fsmer.io import check_writable
from fsmer.outside import code_digest
from fsmer.plugins import METRICS
from fsmer.transfer import Method, load_method
from fsmer.transfer.adapt import described, method_for
from fsmer.transfer.source_model import SourceModel

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

__all__ = ["evaluate"]


@library_settings()
def evaluate(
    protocol: Protocol | str | os.PathLike[str],
    model: Backbone | InitialWeights | str | os.PathLike[str],
    method: Method | ClassifierMixin | str | None = None,
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
        How episodes are made, see `fsmer.load_protocol`.
    model : Backbone, name of `fsmer.list_models`, folder of weights, or InitialWeights
        A name without weights that ship starts from fresh weights, drawn anew with each seed; only for methods that
        train the network.
    method : Method, name of `fsmer.list_methods`, or classifier of scikit-learn, optional
        How a support set becomes a recognizer, as `fsmer.adapt` takes it.
    clips : ClipSet, optional
        Labelled clips; protocols on synthetic clips make their own.
    descriptions : mapping of str to str, optional
        What classes look like in words, see `fsmer.adapt`.
    arguments : mapping, optional
        Constructor arguments of a backbone that is given by name, which then starts from fresh weights even where some
        ship; with a backbone, a folder of weights or InitialWeights they are refused, since its own are fixed.
    seed : int, optional
        Seed of the episodes and the bootstrap, in place of the protocol's own (where it has one).
    seeds : int or sequence of int, optional
        Seeds of the method (initial weights, order of batches, augmentation); a number n stands for its own seed and
        the n - 1 that follow. The episodes stay the same. Figures are then means over seeds. Default: its own seed.
    select : {"fixed", "nested", "oracle"}, default "fixed"
        How epochs and parameters are chosen: not at all; on subject-disjoint inner folds of each support; or on the
        query side itself, which is what many published scripts do and no estimate (see `fsmer.evaluation.selection`).
    grid : mapping of str to sequence, optional
        Parameters of the method and the values to choose from; default, for methods that train the backbone, how long
        (see `fsmer.evaluation.selection.plan_grid`).
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
        Bytes that folds trained side by side on a GPU may take together; on a CPU they are trained one by one.
    device : str or torch.device, optional
        Where the network computes, such as ``"cuda"``; default where it is, which for names and folders is the CPU.
    cache : bool or path, default True
        Where embeddings of methods that keep the backbone are found again, see `fsmer.evaluation.embedding_cache`.
        True: the default folder; False: nowhere.
    progress : callable, optional
        Called with (what is being done, done, in all).
    out : path, optional
        Folder for what `Report.save` writes and for the page ``report.html`` (see `Report.to_html`), as the command
        ``fsmer evaluate`` fills it. While the evaluation runs, finished episodes are kept there too, so that an
        interrupted one leaves no broken file and goes on where it was. A finished one that is asked for again gives
        the report that is there; with more seeds, those that are there are not trained again.
    resume : bool, default True
        Whether to go on with what is there. It counts only for the very same protocol, weights, method and clips;
        that of anything else is refused.
    overwrite : bool, default False
        Replace a report of something else, or its unfinished run, instead of refusing. The old report stays until the
        new one is there.
    call : str, optional
        What the report names as its origin, such as a command line; default this call.

    Returns
    -------
    Report
        Figures with intervals, every answer, and how they were made.

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
    >>> import fsmer
    >>> clips = fsmer.synthetic_clips(n=24, subjects=4)
    >>> report = fsmer.evaluate("loso", "facs-flow", "protonet", clips=clips, out="my-report")
    >>> report.counts["episodes"], len(report.predictions)
    (4, 24)
    >>> low, high = report.interval("uf1")
    >>> low <= report.uf1 <= high
    True
    """
    began, started = time.perf_counter(), datetime.now(UTC)
    place, told = None if out is None else Path(out), progress or no_progress
    options = RunOptions(jobs, isolate, memory, device, as_folder(cache), told, place, resume, overwrite)
    chosen = setup.resolved_protocol(protocol, seed)
    solver = load_method("cosine" if method is None else method)
    start = InitialWeights.of(model, solver, arguments, options.device)
    if method is None and start.given is not None:
        solver = method_for(SourceModel(start.given))
    numbers = setup.method_seeds(solver, seeds)
    if solver.keeps_backbone and options.jobs not in (None, 1, "auto"):
        idle = f"{solver.name!r} keeps the network as it is and trains nothing in the folds."
        # Beyond this function and what wraps it.
        warnings.warn(f"jobs={options.jobs} has no effect: {idle}", stacklevel=3)
    backbone = start.backbone(numbers[0])
    check_weights(backbone)
    given_clips, clips = clips, setup.prepared_clips(chosen, clips, backbone)
    episodes = chosen.split(clips)
    setup.check_size(chosen, episodes)
    # What is trained, and the values to choose from.
    solver, note = setup.method_for_weights(start, solver, grid, has_source=episodes.source is not None)
    if note:
        warnings.warn(note, stacklevel=3)
    described(SourceModel.wrap(backbone), descriptions or {})
    trainings, points = plan_grid(solver, backbone, select, grid)
    drawn, words = int(chosen.params.get("seed", seed or 0)), dict(descriptions or {})
    one = Evaluation(chosen, drawn, clips, episodes, start, backbone, words, solver, numbers, select, trainings, points)
    asked = {"seed": seed, "seeds": seeds, "select": select, "grid": grid}
    given = {**asked, "jobs": options.jobs, "isolate": options.isolate}
    run = run_account(one, options, call, given, started)
    with kept_embeddings(options) as options:
        runs = SeedRuns(one, options)
        # The folder, where the same run may be finished, or partly so.
        folder = None
        if options.out is not None:
            check_writable(options.out)
            # Whether all is there already is seen without embedding anything.
            content = runs.content(embed=not (options.out / REPORT_FILE).is_file())
            run["identity"], run["seeds"] = one.identity(content, options.isolate), numbers
            if metrics := code_digest(METRICS[name] for name in METRICS.outside()):
                run["metrics"] = metrics
            how = {"resume": options.resume, "overwrite": options.overwrite, "keep": not solver.keeps_backbone}
            folder = runs.folder = RunFolder(options.out, run["identity"], numbers, metrics=metrics, **how)
            if folder.finished:
                try:
                    report = Report.load(options.out)
                except DataError:
                    pass  # one that lost one of its tables is made again
                else:
                    folder.finalize()
                    write_page(report, start, given_clips, options)
                    return report
        try:
            results = {number: runs.solve(number) for number in numbers}
        except BaseException as error:
            if folder is not None:
                folder.drop_empty()
            if isinstance(error, MediaError):
                # Queries are asked about under no name: reading all clips finds the one whose medium it is.
                content_ids(backbone, clips[episodes.codes >= 0])
            raise
        finally:
            runs.end()
        report = run_report(one, results, options, note, unrecorded=folder is not None and bool(folder.unrecorded))
        run |= {"seconds": round(time.perf_counter() - began, 1), "resumed": runs.resumed}
        report = replace(report, run=run)
        if folder is not None:
            with folder.replacing():
                report.save(folder.folder)
            write_page(report, start, given_clips, options)
        return report
