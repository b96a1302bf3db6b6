"""Commands that measure: evaluate, compare, audit, bench, mmd."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from fsmer.cli.app import _command_line, command
from fsmer.cli.console import Console, complain, say, say_json
from fsmer.cli.options import (
    Argument,
    AsJson,
    Data,
    Describe,
    Device,
    Jobs,
    MethodName,
    Model,
    Overwrite,
    Param,
    Prefix,
    Scheme,
    Where,
    _bandwidths,
    _jobs,
    _method,
    _numbers,
    _pairs,
    _prefixed,
    _read,
    _seeds,
    _values,
    _whole,
)
from fsmer.cli.progress import _progress
from fsmer.cli.show import _methods_table, _print_bench, _short, _show_report, _table


@command("fsmer evaluate kshot --way 3 --shot 5 --episodes 1000 --data DIR --model facs-flow --method cosine --out OUT")
def evaluate(
    protocol: Annotated[str, typer.Argument(help="Name of a protocol (see 'fsmer protocols') or a YAML file.")],
    data: Data = [],  # noqa: B006
    prefix: Prefix = [],  # noqa: B006
    where: Where = None,
    scheme: Scheme = None,
    model: Model = "facs-flow",
    method: MethodName = "cosine",
    param: Param = [],  # noqa: B006
    train_backbone: Annotated[
        bool, typer.Option("--train-backbone", help="Fine-tune the network too, as --param train_backbone=true.")
    ] = False,
    argument: Argument = [],  # noqa: B006
    way: Annotated[int | None, typer.Option(help="Classes an episode.", show_default=False)] = None,
    shot: Annotated[int | None, typer.Option(help="Support clips of each class.", show_default=False)] = None,
    query: Annotated[
        str | None, typer.Option(help="Query clips of each class, or 'rest' for all.", show_default=False)
    ] = None,
    episodes: Annotated[int | None, typer.Option(help="Number of episodes.", show_default=False)] = None,
    describe: Describe = [],  # noqa: B006
    seed: Annotated[
        int | None, typer.Option(help="Of the episodes and of the bootstrap.", min=0, show_default=False)
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Of the method: how many, or which (0,1,2); figures are means over them.", show_default=False
        ),
    ] = None,
    select: Annotated[
        Literal["fixed", "nested", "oracle"],
        typer.Option(
            help="Epochs and parameters: as they are; chosen on inner folds of the support; or, to see what that "
            "hides, on the test clips."
        ),
    ] = "fixed",
    grid: Annotated[
        list[str],
        typer.Option(help="What --select chooses from, as KEY=VALUE,VALUE; may be repeated.", show_default=False),
    ] = [],  # noqa: B006
    jobs: Jobs = "auto",
    isolate: Annotated[
        Literal["none", "process"],
        typer.Option(help="'process': each fold in a process of its own, for methods and models from outside."),
    ] = "none",
    device: Device = None,
    cache: Annotated[bool, typer.Option(help="Find embeddings again that an earlier run has made.")] = True,
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.json, predictions.csv and more.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option(help="Keep what is there of a run of the same settings.")] = True,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Judge a method on a model by a protocol: UF1, UAR and accuracy with 95 % intervals."""
    from fsmer.episodic import load_protocol
    from fsmer.evaluation import evaluate as run
    from fsmer.evaluation.initial_weights import InitialWeights
    from fsmer.evaluation.predictions import PAGE_FILE

    asked = {"way": way, "shot": shot, "query": _whole(query), "episodes": episodes}
    chosen = load_protocol(protocol, **{key: value for key, value in asked.items() if value is not None})
    solver = _method(method, [*param, *(["train_backbone=true"] if train_backbone else [])])
    arguments = _values(argument, "--argument")
    start = InitialWeights.of(model, solver, arguments, device)
    specs = start.backbone(0).input_specs
    clips = _read(data, where, scheme, prefix, specs=specs) if data else None
    # The page shows embeddings too: without a cache they are kept until it is made.
    with contextlib.nullcontext(True) if cache else tempfile.TemporaryDirectory() as kept:
        with _progress() as progress:
            report = run(
                chosen,
                start,
                solver,
                clips=clips,
                descriptions=_pairs(describe, "--describe"),
                seed=seed,
                seeds=_seeds(seeds),
                select=select,
                grid={key: value.split(",") for key, value in _pairs(grid, "--grid").items()},
                jobs=_jobs(jobs),
                isolate=isolate,
                cache=kept,
                progress=progress,
                out=out,
                resume=resume,
                overwrite=overwrite,
                call=_command_line(),
            )
        if report.folder is not None:
            complain(f"{out} was already finished, nothing to repeat")
        if out is not None and (report.folder is None or not (out / PAGE_FILE).is_file()):
            # Protocols that make their own clips get a page without maps.
            first = None if clips is None else start.backbone(report.per_seed[0]["seed"])
            report.to_html(out / PAGE_FILE, clips=clips, backbone=first, cache=kept)
    _show_report(report, out, as_json)


@command("fsmer compare out/pixels out/facs-flow --out out/comparison")
def compare(
    reports: Annotated[list[Path], typer.Argument(help="Folders that 'fsmer evaluate' wrote, two or more.")],
    name: Annotated[
        list[str],
        typer.Option(help="What to call the reports, once for each in their order; default their folders."),
    ] = [],  # noqa: B006
    draws: Annotated[int, typer.Option(help="Bootstrap samples of the paired tests.", min=100)] = 2000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for compare.html, .md, .json and pictures.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put reports side by side: figures, paired tests, and in words what makes them hard to compare."""
    from fsmer.reporting.compare import compare as run

    comparison = run(*reports, names=name or None, draws=draws, seed=seed)
    if out is not None:
        comparison.save(out)
    if as_json:
        say_json(comparison.to_dict())
        return
    console = Console()
    console.print(_methods_table(comparison.reports, "report"))
    for warning in comparison.warnings:
        console.print(f"take care: {warning}", style="yellow")
    for result in (*comparison.tests, comparison.ranking):
        if result is not None:
            console.print(str(result))
    if out is not None:
        console.print(f"written to {out}")


@command("fsmer mmd DIR_A DIR_B --model facs-flow --out domains.png")
def mmd(
    a: Annotated[str, typer.Argument(help="Clips of one domain: a folder, or synthetic:DOMAIN.")],
    b: Annotated[str, typer.Argument(help="Clips of the other.")],
    where_a: Annotated[str | None, typer.Option(help="Rows of A to keep.", show_default=False)] = None,
    where_b: Annotated[str | None, typer.Option(help="Rows of B to keep.", show_default=False)] = None,
    model: Model = "facs-flow",
    kernel: Annotated[str, typer.Option(help="rbf or linear.")] = "rbf",
    bandwidths: Annotated[
        str, typer.Option(help="Of the RBF kernel: median, mixture, or numbers with commas.")
    ] = "median",
    estimator: Annotated[str, typer.Option(help="unbiased or biased.")] = "unbiased",
    permutations: Annotated[int, typer.Option(help="Regroupings for the p-value; 0 for none.", min=0)] = 1000,
    max_samples: Annotated[int, typer.Option(help="Larger sets are sub-sampled.", min=2)] = 2000,
    seed: Annotated[int, typer.Option(help="Of sub-sampling and permutations.", min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Picture of both domains.")] = Path("domains.png"),
    as_json: AsJson = False,
) -> None:
    """How far two domains are apart: maximum mean discrepancy of their embeddings, with a picture."""
    from fsmer.backbones import embed, load_model
    from fsmer.drawing import save_figure
    from fsmer.reporting.plots import domains_figure
    from fsmer.transfer import mmd as discrepancy

    backbone = load_model(model)
    embeddings = []
    with _progress() as progress:
        for side, where in ((a, where_a), (b, where_b)):
            clips = _read([side], where, None, labelled=False)
            stage = functools.partial(progress, f"embedding {side}")
            embeddings.append(embed(backbone, clips, progress=stage).numpy())
    result = discrepancy(
        *embeddings,
        kernel=kernel,
        bandwidths=_bandwidths(bandwidths),
        estimator=estimator,
        permutations=permutations,
        max_samples=max_samples,
        seed=seed,
    )
    names = (Path(a).name + (f" ({where_a})" if where_a else ""), Path(b).name + (f" ({where_b})" if where_b else ""))
    save_figure(domains_figure(*embeddings, names=names, title=f"{backbone.name}: {_short(result)}"), out)
    if as_json:
        say_json(result.to_dict() | {"a": a, "b": b, "model": model, "picture": str(out)})
        return
    Console().print(str(result))
    Console().print(f"picture in {out}")


@command("fsmer audit out/facs-flow")
def audit(
    path: Annotated[
        Path,
        typer.Argument(
            help="A results folder, a CSV of splits or predictions, a folder of clips, or the STSTNet release."
        ),
    ],
    stated: Annotated[
        list[str],
        typer.Option(help="A claimed figure to check predictions for, as uf1=0.86; repeatable.", show_default=False),
    ] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Look for leaks and slips: people on both sides, duplicates, labels that disagree, figures averaged over folds."""
    from fsmer.auditing import audit as look

    found = look(path, stated=_numbers(stated, "--stated"))
    if as_json:
        say_json(found.to_dict())
    else:
        say(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


@command("fsmer bench fr-2 --data DIR --out out/fr-2")
def bench(
    name: Annotated[str | None, typer.Argument(help="Name of a published table.", show_default=False)] = None,
    data: Data = [],  # noqa: B006
    prefix: Prefix = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option(help="Folder for the table; default out/NAME.", show_default=False)
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="How many, or which (0,1,2); default as the paper.", show_default=False)
    ] = None,
    row: Annotated[list[str], typer.Option("--row", help="Wildcard of methods to run; may be repeated.")] = ["*"],  # noqa: B006
    weights: Annotated[
        list[str], typer.Option(help="Weights to start from as MODEL=FOLDER; may be repeated.", show_default=False)
    ] = [],  # noqa: B006
    select: Annotated[
        Literal["fixed", "nested", "oracle"], typer.Option(help="How epochs are chosen, as for 'fsmer evaluate'.")
    ] = "fixed",
    jobs: Jobs = "auto",
    synthetic: Annotated[bool, typer.Option("--synthetic", help="On made-up clips, to see it run.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Train for a moment only, to try it.")] = False,
    resume: Annotated[bool, typer.Option(help="Keep finished runs of the same settings.")] = True,
    as_json: AsJson = False,
) -> None:
    """Run a published table on the data at hand, measured beside published; without a name, list the tables."""
    from fsmer.data import read_clips
    from fsmer.published import list_tables, run_table

    if name is None:
        tables = list_tables()
        if as_json:
            say_json([one.to_dict() for one in tables])
            return
        listing = _table("table", "paper", "what", "needs")
        for one in tables:
            paper = f"{one.paper.split(' (')[0]}, {one.table}"
            listing.add_row(one.name, paper, one.title, ", ".join(one.datasets()))
        Console().print(listing)
        return
    folder = out or Path("out") / name
    with _progress() as progress:
        result = run_table(
            name,
            _prefixed([read_clips(one) for one in data], prefix),
            out=folder,
            seeds=_seeds(seeds),
            rows=row,
            quick=quick,
            synthetic=synthetic,
            weights=_pairs(weights, "--weights"),
            select=select,
            jobs=_jobs(jobs),
            resume=resume,
            progress=progress,
        )
    if as_json:
        say_json(result.to_dict())
        return
    console = Console()
    console.print(f"{result.table.paper}, {result.table.table}: {result.table.title}", style="bold")
    for stamp in result.stamps:
        console.print(stamp, style="bold red")
    _print_bench(console, result)
    console.print(f"the whole table with all differences in {folder / 'table.md'}")
