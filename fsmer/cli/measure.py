"""Commands that measure: evaluate, compare, audit, bench, mmd."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Literal

import typer

from fsmer.cli import options
from fsmer.cli.app import command, command_line
from fsmer.cli.console import Console, complain, say, say_json
from fsmer.cli.options import DATA, MODEL, OUTPUT, RUNNING, option
from fsmer.cli.progress import shown_progress
from fsmer.cli.show import methods_table, print_bench, print_entry, show_report


@command("fsmer evaluate kshot --way 3 --shot 5 --data DIR --out OUT")
def evaluate(
    protocol: Annotated[
        str, typer.Argument(metavar="PROTOCOL", help="Name of a protocol (see 'fsmer protocols'), or a YAML file.")
    ],
    data: options.Data = [],
    prefix: options.Prefix = [],
    where: options.Where = None,
    scheme: options.Scheme = None,
    model: options.Model = "facs-flow",
    method: options.MethodName = None,
    param: options.Param = [],
    train_backbone: Annotated[
        bool, option(MODEL, None, "Fine-tune the network too (-p train_backbone=true).", "--train-backbone")
    ] = False,
    argument: options.Argument = [],
    way: options.Way = None,
    shot: options.Shot = None,
    query: options.Query = None,
    episodes: Annotated[int | None, options.number_of_episodes()] = None,
    neighbours: options.Neighbours = False,
    describe: options.Describe = [],
    seed: Annotated[int | None, options.SEED] = None,
    seeds: options.Seeds = None,
    select: options.Select = "fixed",
    grid: Annotated[
        list[str], option(MODEL, "KEY=V,V", "What --select chooses from, e.g. epochs=10,20; repeatable.")
    ] = [],
    jobs: options.Jobs = "auto",
    isolate: Annotated[
        Literal["none", "process"],
        option(RUNNING, "CHOICE", "none, or process: every fold in its own process, for code from outside."),
    ] = "none",
    device: options.Device = None,
    cache: Annotated[bool, option(RUNNING, None, "Use embeddings that an earlier run has made.")] = True,
    out: Annotated[Path | None, option(OUTPUT, "DIR", "Folder for report.json, predictions.csv and more.")] = None,
    resume: options.Resume = True,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Evaluate a method on a model by a protocol: UF1, UAR and accuracy with 95 % intervals."""
    from fsmer.episodic import load_protocol
    from fsmer.evaluation import evaluate as run
    from fsmer.evaluation.initial_weights import InitialWeights

    asked = options.episodes_of(way=way, shot=shot, query=query, episodes=episodes, neighbours=neighbours or None)
    chosen = load_protocol(protocol, **asked)
    params = [*param, *(["train_backbone=true"] if train_backbone else [])]
    solver = options.method_of_model(model, method, params)
    start = InitialWeights.of(model, solver, options.json_pairs(argument, "--argument"), device)
    specs = start.backbone(0).input_specs
    clips = options.read_data(data, where, scheme, prefix, specs=specs) if data else None
    with shown_progress() as progress:
        report = run(
            chosen,
            start,
            solver,
            clips=clips,
            descriptions=options.text_pairs(describe, "--describe"),
            seed=seed,
            seeds=options.seeds_of(seeds),
            select=select,
            grid={key: value.split(",") for key, value in options.text_pairs(grid, "--grid").items()},
            jobs=options.jobs_of(jobs),
            isolate=isolate,
            cache=cache,
            progress=progress,
            out=out,
            resume=resume,
            overwrite=overwrite,
            call=command_line(),
        )
    if report.folder is not None:
        complain(f"{out} was already finished, nothing to repeat")
    show_report(report, out, as_json)


@command("fsmer compare out/pixels out/facs-flow --out out/comparison")
def compare(
    reports: Annotated[
        list[Path], typer.Argument(metavar="REPORT", help="Folders that 'fsmer evaluate' wrote, two or more.")
    ],
    name: Annotated[
        list[str], option(OUTPUT, "NAME", "What to call a report, once for each in their order; default its folder.")
    ] = [],
    draws: Annotated[int, option(RUNNING, "N", "Bootstrap samples of the paired tests.", min=100)] = 2000,
    seed: Annotated[int, options.SEED] = 0,
    out: Annotated[Path | None, option(OUTPUT, "DIR", "Folder for compare.html, .md, .json and pictures.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare reports: figures, paired tests, and warnings where reports are hard to compare."""
    from fsmer.reporting.compare import compare as run

    comparison = run(*reports, names=name or None, draws=draws, seed=seed)
    if out is not None:
        comparison.save(out)
    if as_json:
        return say_json(comparison.to_dict())
    console = Console()
    console.print(methods_table(comparison.reports, "report"))
    for warning in comparison.warnings:
        console.print(f"warning: {warning}", style="yellow")
    for result in (*comparison.tests, comparison.ranking):
        if result is not None:
            console.print(str(result))
    if out is not None:
        console.print(f"written to {out}")


@command("fsmer mmd DIR_A DIR_B --model facs-flow --out domains.png")
def mmd(
    a: Annotated[str, typer.Argument(metavar="A", help="Clips of one domain: a folder, or synthetic:DOMAIN.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Clips of the other.")],
    where_a: Annotated[str | None, option(DATA, "CONDITION", "Rows of A to keep.")] = None,
    where_b: Annotated[str | None, option(DATA, "CONDITION", "Rows of B to keep.")] = None,
    model: options.Model = "facs-flow",
    argument: options.Argument = [],
    kernel: Annotated[str, option(MODEL, "NAME", "rbf or linear.")] = "rbf",
    bandwidths: Annotated[
        str, option(MODEL, "RULE|LIST", "Of the RBF kernel: median, mixture, or numbers with commas.")
    ] = "median",
    estimator: Annotated[str, option(MODEL, "NAME", "unbiased or biased.")] = "unbiased",
    permutations: Annotated[int, option(RUNNING, "N", "Regroupings for the p-value; 0 for none.", min=0)] = 1000,
    max_samples: Annotated[int, option(RUNNING, "N", "Larger sets are sub-sampled to so many clips.", min=2)] = 2000,
    seed: Annotated[int, options.SEED] = 0,
    out: Annotated[Path, option(OUTPUT, "FILE", "Picture of both domains.")] = Path("domains.png"),
    as_json: options.AsJson = False,
) -> None:
    """Distance of two domains: maximum mean discrepancy of their embeddings, with a picture."""
    from fsmer.backbones import embed, load_model
    from fsmer.backbones.registry import fresh_model
    from fsmer.drawing import save_figure
    from fsmer.reporting.plots import domains_figure
    from fsmer.transfer import mmd as discrepancy

    arguments = options.json_pairs(argument, "--argument")
    # Weights that an argument names, such as ImageNet's, are weights too.
    backbone = fresh_model(model, seed, arguments).eval() if arguments else load_model(model)
    if backbone.untrained:
        complain(
            f"{model} has random weights, so that the distance is one of random features; give trained ones, as MERAU "
            "does with a ResNet18 that has seen no faces (--model flow_resnet18 --argument weights=imagenet)."
        )
    embeddings = []
    with shown_progress() as progress:
        for side, where in ((a, where_a), (b, where_b)):
            clips = options.read_data([side], where, None, labelled=False)
            stage = functools.partial(progress, f"embedding {side}")
            embeddings.append(embed(backbone, clips, progress=stage).numpy())
    result = discrepancy(
        *embeddings,
        kernel=kernel,
        bandwidths=options.bandwidths_of(bandwidths),
        estimator=estimator,
        permutations=permutations,
        max_samples=max_samples,
        seed=seed,
    )
    names = (Path(a).name + (f" ({where_a})" if where_a else ""), Path(b).name + (f" ({where_b})" if where_b else ""))
    chance = "" if result.p_value is None else f", p = {result.p_value:.3g}"
    save_figure(domains_figure(*embeddings, names=names, title=f"{backbone.name}: MMD {result.value:.4f}{chance}"), out)
    if as_json:
        return say_json(result.to_dict() | {"a": a, "b": b, "model": model, "picture": str(out)})
    Console().print(str(result))
    Console().print(f"picture in {out}")


@command("fsmer audit out/facs-flow")
def audit(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A results folder, a CSV of splits or predictions, a folder of clips, or the STSTNet release.",
        ),
    ],
    stated: Annotated[
        list[str], option(DATA, "METRIC=X", "Stated figure to check predictions for, e.g. uf1=0.86; repeatable.")
    ] = [],
    as_json: options.AsJson = False,
) -> None:
    """Find leaks and errors: people on both sides, duplicates, labels that disagree, figures averaged over folds."""
    from fsmer.auditing import audit as run

    found = run(path, stated=options.number_pairs(stated, "--stated"))
    if as_json:
        say_json(found.to_dict())
    else:
        say(found)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


@command("fsmer bench fr-2 --data DIR --out out/fr-2")
def bench(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Name of a published table.")] = None,
    data: options.Data = [],
    prefix: options.Prefix = [],
    out: Annotated[Path | None, option(OUTPUT, "DIR", "Folder for the table; default out/NAME.")] = None,
    seeds: options.Seeds = None,
    row: Annotated[list[str], option(MODEL, "PATTERN", "Wildcard of methods to run; repeatable.")] = ["*"],
    weights: Annotated[list[str], option(MODEL, "MODEL=DIR", "Weights to start a model from; repeatable.")] = [],
    select: options.Select = "fixed",
    neighbours: options.Neighbours = False,
    jobs: options.Jobs = "auto",
    synthetic: Annotated[bool, option(DATA, None, "On synthetic clips, to see it run.", "--synthetic")] = False,
    quick: Annotated[bool, option(RUNNING, None, "Train for a few steps only, to try it.", "--quick")] = False,
    resume: options.Resume = True,
    as_json: options.AsJson = False,
) -> None:
    """Run a published table on your data, measured figures beside published ones; without a name, list the tables."""
    from fsmer.data import read_clips
    from fsmer.published import list_tables, run_table

    if name is None:
        tables = list_tables()
        if as_json:
            return say_json([one.to_dict() for one in tables])
        console = Console()
        for one in tables:
            paper = f"{one.paper.split(' (')[0]}, {one.table}"
            print_entry(console, one.name, f"needs {', '.join(one.datasets())}", paper, one.title)
        return
    folder = out or Path("out") / name
    with shown_progress() as progress:
        result = run_table(
            name,
            options.with_prefixes([read_clips(one) for one in data], prefix),
            out=folder,
            seeds=options.seeds_of(seeds),
            rows=row,
            quick=quick,
            synthetic=synthetic,
            weights=options.text_pairs(weights, "--weights"),
            select=select,
            jobs=options.jobs_of(jobs),
            neighbours=neighbours,
            resume=resume,
            progress=progress,
        )
    if as_json:
        return say_json(result.to_dict())
    console = Console()
    console.print(f"{result.table.paper}, {result.table.table}: {result.table.title}", style="bold")
    for stamp in result.stamps:
        console.print(stamp, style="bold red")
    print_bench(console, result)
    console.print(f"the table with all differences in {folder / 'table.md'}")
