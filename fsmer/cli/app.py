"""The command ``fsmer``: everything that a shell script or a first visitor wants, as thin wrappers around the library.

Exit codes: 0 done, 1 refused (one sentence on standard error says why), 2 wrong command line or a recording without a
face, 3 an audit found something serious, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import json
import shlex
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import fsmer
from fsmer.cli.console import Console, complain, open_streams, say, say_json
from fsmer.errors import DataError, FsmerError, OutputError
from fsmer.io import atomic_path, check_writable
from fsmer.memory import out_of_memory
from fsmer.text import printable, write_csv

if TYPE_CHECKING:
    from fsmer.backbones import Backbone
    from fsmer.data import ClipSet, InputSpec
    from fsmer.evaluation import Report
    from fsmer.published import BenchResult
    from fsmer.transfer import Method, Recognizer

__all__ = ["app", "main"]

EXIT_REFUSED = 1
EXIT_NO_FACE = 2
EXIT_INTERRUPTED = 130
NO_MEMORY = (
    "memory has run out; end other programs, or ask for less at a time: fewer --jobs (or --workers), a smaller batch "
    "(-p batch_size=8), fewer clips (--where) or a smaller model; what a run with --out has finished is kept."
)
# Where no terminal shows bars: seconds before the first line that says how far it is, and between two of them.
FIRST_LINE = 30.0
BETWEEN_LINES = 60.0
SYNTHETIC = "synthetic:"
SYNTHETIC_CLIPS = 300

app = typer.Typer(
    name="fsmer",
    help="Few-shot micro-expression recognition. Start with [bold]fsmer demo[/bold]: it needs no data.",
    epilog=(
        "Exit codes: 0 done; 1 refused, with one sentence on standard error; 2 wrong command line, or no face in a "
        "recording; 3 an audit found something serious; 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DATA_HELP = (
    "Folder of clips (with index.csv, a saved clip set, or the STSTNet release); repeat to pool several. "
    "synthetic:DOMAIN, with :N clips and :SEED behind it if wanted, makes clips."
)
Data = Annotated[list[str], typer.Option("--data", "-d", help=DATA_HELP, show_default=False)]
Prefix = Annotated[
    list[str],
    typer.Option(
        help="Put before the clip ids of a --data folder, so that two with the same ids can be pooled; once for each.",
        show_default=False,
    ),
]
Where = Annotated[str | None, typer.Option(help="Rows to keep, e.g. \"dataset == 'smic'\".", show_default=False)]
Scheme = Annotated[str | None, typer.Option(help="Label scheme to apply, e.g. megc2019.", show_default=False)]
Model = Annotated[str, typer.Option("--model", "-m", help="Name of a model, or a folder of weights.")]
MethodName = Annotated[str, typer.Option("--method", help="Name of a method.")]
Param = Annotated[
    list[str],
    typer.Option("--param", "-p", help="A method's parameter as KEY=VALUE; may be repeated.", show_default=False),
]
Argument = Annotated[
    list[str],
    typer.Option(
        "--argument",
        "-a",
        help="A constructor argument of the model as KEY=VALUE; may be repeated.",
        show_default=False,
    ),
]
Describe = Annotated[
    list[str],
    typer.Option(
        "--describe",
        help="What a class looks like as CLASS=WORDS, e.g. 'smile=cheek raiser, lip corner puller'; may be repeated.",
        show_default=False,
    ),
]
FrameKind = Annotated[
    Literal["raw", "cropped"] | None,
    typer.Option(help="raw or cropped, where a download holds both.", show_default=False),
]
Sheet = Annotated[Path | None, typer.Option(help="The annotation sheet, if it lies elsewhere.", show_default=False)]
Corrections = Annotated[Path | None, typer.Option(help="Your own table of corrections, CSV.", show_default=False)]
Jobs = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        help="Folds trained at a time, each in a process of its own; auto: one a core as far as memory goes.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Where the network computes, such as cuda; default the CPU.", show_default=False),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the report of another run that is in the folder.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else.")]


def main() -> None:
    """Entry point of the console script."""
    open_streams()
    try:
        try:
            app()
        finally:
            # What is printed must be there before the exit code says so.
            print(end="", flush=True)
    except OutputError as error:
        complain(error)
        sys.exit(EXIT_REFUSED)


def command(example: str, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose help ends in `example` and whose refusals become one sentence and an exit code."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                with _warnings_in_words():
                    function(*args, **kwargs)
            except FsmerError as error:
                complain(error)
                raise typer.Exit(EXIT_REFUSED) from error
            except KeyboardInterrupt as error:
                complain("interrupted; what was finished is kept, run the same command to go on.")
                raise typer.Exit(EXIT_INTERRUPTED) from error
            except Exception as error:
                if not out_of_memory(error):
                    raise
                complain(NO_MEMORY)
                raise typer.Exit(EXIT_REFUSED) from error

        name = function.__name__.removesuffix("_")
        app.command(name, epilog=f"Example: [cyan]{escape(example)}[/cyan]", **options)(guarded)
        return function

    return register


@contextlib.contextmanager
def _warnings_in_words() -> Iterator[None]:
    """What fsmer warns of as one sentence on standard error, without the place in its code."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if category is UserWarning:
                complain(message)
            else:
                shown(message, category, *place)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _print_version(wanted: bool) -> None:
    if wanted:
        say(fsmer.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    del version


@command("fsmer demo --out out/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for table, picture and recognizer.")] = Path("fsmer-demo"),
    model: Model = "facs-flow",
    seed: Annotated[int, typer.Option(help="Seed of the episodes.", min=0)] = 0,
    episodes: Annotated[int, typer.Option(help="Episodes of the comparison.", min=2)] = 200,
    as_json: AsJson = False,
) -> None:
    """See it work: synthetic clips of one domain, few labels of another, every method side by side."""
    from fsmer.cli.demo import run_demo

    with _progress() as progress:
        result = run_demo(out, model, seed=seed, episodes=episodes, progress=progress)
    if as_json:
        say_json(result.to_dict())
        return
    console = Console()
    console.print(f"5-shot on the synthetic domain {result.target!r}, with {result.source!r} as source", style="bold")
    console.print(_methods_table(result.reports))
    console.print(f"learnt from {result.support} labelled clips, then asked about {result.asked} new ones:")
    console.print(f"  {result.right} of {result.asked} right; for example {result.example}")
    for name, path in result.files.items():
        console.print(f"  {name:<12}{path}")


@command("fsmer models")
def models(
    pattern: Annotated[str, typer.Argument(help="Wildcard, e.g. 'facs*'.")] = "*",
    as_json: AsJson = False,
) -> None:
    """List the models and the methods that can be put on them; of a single model, what of its paper is there."""
    from fsmer.backbones import list_models
    from fsmer.transfer import list_methods

    found = list_models(pattern)
    if as_json:
        models_out = [
            {
                "name": one.name,
                "summary": one.summary,
                "parameters": one.parameters,
                "flops": one.flops,
                "embed_dim": one.embed_dim,
                "input_specs": [spec.to_dict() for spec in one.input_specs],
                "pretrained": one.pretrained,
                "notes": one.notes,
            }
            for one in found
        ]
        methods_out = [{"name": one.name, "summary": one.summary, "params": one.params} for one in list_methods()]
        say_json({"models": models_out, "methods": methods_out})
        return
    table = _table("model", "parameters", "GFLOPs", "weights", "what it is and eats")
    for column in table.columns[:-1]:
        column.no_wrap = True
    for one in found:
        eats = "; ".join(spec.describe() for spec in one.input_specs)
        table.add_row(
            one.name,
            f"{one.parameters / 1e6:.2f} M" if one.parameters >= 1e5 else f"{one.parameters:,}",
            f"{one.flops / 1e9:.3g}",
            "shipped" if one.pretrained else "none",
            Text.assemble(f"{one.summary} ", (f"{eats}; {one.embed_dim:,} numbers.", "dim")),
        )
    if len(found) == 1:
        Console().print(table)
        say(f"\n{found[0].card(Console().width)}")
        return
    methods = _table("method", "what")
    for method in list_methods():
        methods.add_row(method.name, method.summary)
    Console().print(table, methods)


@command("fsmer protocols megc2019-cde")
def protocols(
    name: Annotated[str | None, typer.Argument(help="Show this one whole.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List the named protocols, or show one of them."""
    from fsmer.episodic import list_protocols, load_protocol

    if name is not None:
        protocol = load_protocol(name)
        settings = protocol.to_dict() | {"hash": protocol.hash}
        if as_json:
            say_json(settings)
            return
        table = _table("setting", "value")
        for key, value in settings.items():
            table.add_row(key, value if isinstance(value, str) else json.dumps(value, default=str))
        Console().print(table)
        return
    found = [load_protocol(known) for known in list_protocols()]
    if as_json:
        say_json([{"name": one.name, "title": one.title, "hash": one.hash} for one in found])
        return
    table = _table("protocol", "hash", "what")
    for one in found:
        table.add_row(one.name, one.hash, one.title)
    Console().print(table)


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
    from fsmer.evaluation.evaluate import StartingPoint
    from fsmer.evaluation.report import PAGE_FILE

    asked = {"way": way, "shot": shot, "query": _whole(query), "episodes": episodes}
    chosen = load_protocol(protocol, **{key: value for key, value in asked.items() if value is not None})
    solver = _method(method, [*param, *(["train_backbone=true"] if train_backbone else [])])
    arguments = _values(argument, "--argument")
    start = StartingPoint.of(model, solver, arguments, device)
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


@command("fsmer train fr --protocol loso --data DIR --out OUT")
def train(
    name: Annotated[str, typer.Argument(help="Name of a model (fresh weights), or a folder of weights to go on from.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for the recognizer or, with a protocol, the report.")],
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Train once for every episode, on its support, and judge on its queries; default: train on all clips.",
            show_default=False,
        ),
    ] = None,
    prefix: Prefix = [],  # noqa: B006
    where: Where = None,
    scheme: Scheme = None,
    param: Param = [],  # noqa: B006
    argument: Argument = [],  # noqa: B006
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start from the weights that ship.")] = False,
    log: Annotated[
        Path | None,
        typer.Option(help="Folder for TensorBoard: loss and learning rate of every epoch.", show_default=False),
    ] = None,
    jobs: Jobs = "auto",
    device: Device = None,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run of the same settings.")] = True,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Train a model with labels, by its paper's recipe."""
    from fsmer.backbones import load_model
    from fsmer.backbones.base import as_device
    from fsmer.backbones.registry import refuse_arguments
    from fsmer.episodic import load_protocol
    from fsmer.evaluation import evaluate as run
    from fsmer.reporting.plots import loss_figure, save_figure
    from fsmer.transfer.full_training import HISTORY, Train, fresh_model

    method = _method("train", param)
    if not isinstance(method, Train):
        raise FsmerError("the method registered as 'train' is not fsmer's own; register yours under another name.")
    if log is not None and protocol is not None:
        raise typer.BadParameter("a log is of one training; leave --protocol out", param_hint="--log")
    if overwrite and protocol is None:
        raise typer.BadParameter("a recognizer is replaced in any case; leave it out", param_hint="--overwrite")
    arguments = _values(argument, "--argument")
    if pretrained:
        backbone = load_model(name)
        refuse_arguments(backbone, arguments, f"the weights of {name!r} (--pretrained)")
    else:
        backbone = fresh_model(name, method.seed, arguments)
    if device is not None:
        backbone = backbone.to(as_device(device))
    clips = _read(data, where, scheme, prefix, specs=backbone.input_specs)
    with _progress() as progress:
        if protocol is not None:
            report = run(
                load_protocol(protocol),
                backbone,
                method,
                clips=clips,
                jobs=_jobs(jobs),
                progress=progress,
                out=out,
                resume=resume,
                overwrite=overwrite,
                call=_command_line(),
            )
        else:
            recognizer, course = method.run(
                backbone, clips, out, resume=resume, progress=functools.partial(progress, "training"), log=log
            )
    if protocol is not None:
        _show_report(report, out, as_json)
        return
    history = out.with_name(f"{out.name}.{HISTORY}")
    losses = course["losses"]
    figure = loss_figure(losses, title=f"{backbone.name}, {len(clips)} clips")
    picture = save_figure(figure, history.with_suffix(".png"))
    if as_json:
        names = [str(known) for known in recognizer.classes_]
        say_json({"out": str(out), "classes": names, "clips": len(clips), "losses": losses, "curve": str(picture)})
        return
    shown = f"{losses[0]:.3f}" + (f" -> {losses[-1]:.3f}" if len(losses) > 1 else "")
    Console().print(
        f"trained {backbone.name} on {len(clips):,} clips, loss {shown} (curve in {picture}); recognizer in {out}",
    )


@command("fsmer adapt --data DIR --where \"dataset == 'smic'\" --model facs-flow --method cosine --out my-recognizer")
def adapt(
    out: Annotated[Path, typer.Option(help="Folder for the recognizer.")],
    data: Data = [],  # noqa: B006
    prefix: Prefix = [],  # noqa: B006
    where: Where = None,
    scheme: Scheme = None,
    model: Model = "facs-flow",
    method: MethodName = "cosine",
    param: Param = [],  # noqa: B006
    describe: Describe = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Learn a recognizer from a few labelled clips, or from words alone, and save it."""
    from fsmer.backbones import load_model
    from fsmer.transfer import adapt as learn
    from fsmer.transfer import recognizer_of_words

    backbone = load_model(model)
    words = _pairs(describe, "--describe")
    if not data and not words:
        raise DataError("nothing to learn from: give labelled clips with --data, or describe classes with --describe.")
    with _progress() as progress:
        if not data:
            recognizer = recognizer_of_words(backbone, words)
        else:
            clips = _read(data, where, scheme, prefix, specs=backbone.input_specs)
            report = functools.partial(progress, "training")
            recognizer = learn(backbone, clips, _method(method, param), descriptions=words, progress=report)
    recognizer.save(out)
    names = [str(name) for name in recognizer.classes_]
    if as_json:
        say_json(
            {"out": str(out), "classes": names, "support": recognizer.support_size, "model": model, "method": method}
        )
        return
    Console().print(
        f"learnt {', '.join(names)} from {recognizer.support_size} clips; recognizer in {out}",
    )


@command("fsmer predict video.mp4 --out answer")
def predict(
    source: Annotated[Path, typer.Argument(help="A video or a folder of frames; with --data, a recognizer's folder.")],
    data: Data = [],  # noqa: B006
    prefix: Prefix = [],  # noqa: B006
    where: Where = None,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="For a recording: name of a model, or folder of weights or a recognizer."),
    ] = "facs-flow",
    out: Annotated[
        Path | None, typer.Option(help="Folder (recording) or CSV file (clips) for the answers.", show_default=False)
    ] = None,
    face: Annotated[
        int,
        typer.Option(
            help="Which of several faces, from the largest (0) down in the first picture with so many.", min=0
        ),
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Movements of a face in a recording, or a saved recognizer's answers on clips; labels are not needed."""
    if not data:
        _predict_recording(source, model, out, face, as_json)
        return
    if face:
        raise typer.BadParameter("clips show one face each; leave it out with --data", param_hint="--face")
    _predict_clips(source, data, prefix, where, out, as_json)


def _predict_recording(source: Path, model: str, out: Path | None, face: int, as_json: bool) -> None:
    from fsmer.deploy.recording import predict_recording
    from fsmer.preprocess.faces import NoFaceError

    if (source / "config.json").is_file():
        raise DataError(f"{source} holds weights and no recording; give the clips to ask it about with --data.")
    try:
        with _progress() as progress:
            found = predict_recording(
                source, _trained(model), which=face, progress=functools.partial(progress, "reading")
            )
    except NoFaceError as error:
        complain(error)
        raise typer.Exit(EXIT_NO_FACE) from error
    for note in found.notes:
        complain(note)
    if out is not None:
        found.save(out)
    if as_json:
        say_json(found.to_dict())
        return
    console = Console()
    console.print(found.summary())
    if found.intervals:
        table = _table("onset", "apex", "offset", "label", "p", "AUs", "what moves")
        for one in found.intervals:
            times = (f"{value:.2f}" for value in (one.onset_s, one.apex_s, one.offset_s))
            share = f"{one.probabilities[one.label]:.2f}"
            table.add_row(*times, one.label, share, "+".join(map(str, one.aus)), one.words)
        console.print(table)
    if out is not None:
        console.print(f"timeline in {out}")


def _predict_clips(
    recognizer: Path, data: Sequence[str], prefix: Sequence[str], where: str | None, out: Path | None, as_json: bool
) -> None:
    from fsmer.transfer import Recognizer

    loaded = Recognizer.load(recognizer)
    clips = _read(data, where, None, prefix, labelled=False, specs=loaded.backbone.input_specs)
    with _progress() as progress:
        probabilities = loaded.predict_proba(clips, progress=functools.partial(progress, "looking at clips"))
    frame = clips.table[["clip", "dataset", "subject"]].astype(str)
    frame["predicted"] = loaded.classes_[probabilities.argmax(axis=1)].astype(object)
    for column, name in enumerate(loaded.classes_):
        frame[f"p_{name}"] = probabilities[:, column].astype(float).round(6)
    if out is not None:
        with atomic_path(out) as temporary:
            write_csv(frame, temporary)
    if as_json:
        say_json(frame.to_dict("records"))
        return
    if out is not None:
        Console().print(f"answers for {len(frame):,} clips in {out}")
        return
    table = _table(*frame.columns)
    for row in frame.itertuples(index=False):
        table.add_row(*(value if isinstance(value, str) else f"{value:.3f}" for value in row))
    Console().print(table)


@command("fsmer pretrain facs-flow --out my-weights --seed 0")
def pretrain(
    name: Annotated[str, typer.Argument(help="Name of a model.")],
    out: Annotated[Path, typer.Option(help="Folder for the weights.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and clips.", min=0)] = 0,
    steps: Annotated[
        int | None, typer.Option(help="Optimiser steps; default the recipe's.", show_default=False)
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option(
            help="Any tree of frame folders or videos, for models that teach themselves; no labels are read. "
            "Default: synthetic frames.",
            show_default=False,
        ),
    ] = None,
    param: Annotated[
        list[str],
        typer.Option(
            "--param",
            "-p",
            help="A field of the model's recipe as KEY=VALUE, e.g. batch_size=16, learning_rate=1e-4 or "
            "distance=[3,6], for models that teach themselves; may be repeated.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    argument: Argument = [],  # noqa: B006
    device: Device = None,
    resume: Annotated[bool, typer.Option(help="Go on from a checkpoint in the folder.")] = True,
) -> None:
    """Make a model's weights without labels: from nothing but a seed, or from your own frames."""
    from fsmer.pretraining import load_pretrainer

    more: dict[str, Any] = {}
    if frames is not None:
        more["frames"] = frames
    if param:
        more["params"] = _values(param, "--param")
    if argument:
        more["arguments"] = _values(argument, "--argument")
    if device is not None:
        more["device"] = device
    make = load_pretrainer(name)
    try:
        inspect.signature(make).bind(out, seed=seed, steps=steps, resume=resume, progress=None, **more)
    except TypeError as error:
        raise DataError(
            f"{name!r} is trained on synthetic flow alone and takes no frames, parameters, arguments or device; leave "
            "them out."
        ) from error
    with _progress() as progress:
        folder = make(
            out,
            seed=seed,
            steps=steps,
            resume=resume,
            # Before the first loss is known, clips are drawn.
            progress=lambda done, total, losses: progress(
                f"training {_losses(losses)}" if losses else "drawing clips", done, total
            ),
            **more,
        )
    Console().print(f"weights in {folder}; use them with --model {folder}")


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
    from fsmer.reporting.plots import domains_figure, save_figure
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


@command("fsmer explain my-recognizer --data DIR --clips 4 --out pictures")
def explain(
    model: Annotated[str, typer.Argument(help="Folder of a recognizer or of weights, or the name of a model.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for one picture a clip.")],
    prefix: Prefix = [],  # noqa: B006
    where: Where = None,
    clips: Annotated[int, typer.Option(help="The first so many clips.", min=1)] = 6,
    how: Annotated[
        Literal["own", "gradient"] | None,
        typer.Option(help="own: the network's own map; gradient: integrated gradients; default own where it has one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Pictures of where a model looks: the clip's media and the network's map side by side."""
    from fsmer.backbones import Backbone
    from fsmer.deploy.explain import explain as draw

    asked = _trained(model)
    specs = asked.input_specs if isinstance(asked, Backbone) else asked.backbone.input_specs
    shown = _read(data, where, None, prefix, labelled=False, specs=specs)[:clips]
    check_writable(out)
    found = draw(asked, shown, out=out, method=how)
    pictures = found if isinstance(found, list) else [found]
    if as_json:
        say_json([{"clip": one.clip, "predicted": one.prediction, "maps": sorted(one.maps)} for one in pictures])
        return
    Console().print(
        f"{len(pictures)} picture{'' if len(pictures) == 1 else 's'} in {out}",
    )


@command("fsmer datasets")
def datasets(as_json: AsJson = False) -> None:
    """List the data sets that fsmer reads, and where a licence is requested."""
    from fsmer.datasets import list_datasets

    found = list_datasets()
    if as_json:
        say_json([asdict(one) for one in found])
        return
    console = Console()
    for one in found:
        known = ((one.clips, "clips"), (one.subjects, "people"), (one.frames_per_second, "frames a second"))
        facts = ", ".join([one.title, *(f"{value:g} {unit}" for value, unit in known if value is not None)])
        console.print(Text.assemble((one.name, "bold"), f"  {facts}"))
        for line in (f"annotation: {one.annotation}", one.request):
            if line:
                console.print(Padding(line, (0, 0, 0, 4)))


@command("fsmer check casme2 --root DIR")
def check(
    name: Annotated[str, typer.Argument(help="Name of a data set (see 'fsmer datasets').")],
    root: Annotated[Path, typer.Option(help="Folder of the download.")],
    frames: FrameKind = None,
    sheet: Sheet = None,
    corrections: Corrections = None,
    as_json: AsJson = False,
) -> None:
    """Audit a download: what is there, what is missing, which apexes cannot be right."""
    from fsmer.datasets import check_dataset

    audit = check_dataset(name, root, frames=frames, sheet=sheet, corrections=corrections)
    if as_json:
        say_json(audit.to_dict())
        return
    say(audit)


@command("fsmer prepare casme2 --root DIR --out DIR --for facs-flow --for mmnet")
def prepare(
    name: Annotated[str, typer.Argument(help="Name of a data set (see 'fsmer datasets'); generic reads any CSV.")],
    root: Annotated[Path, typer.Option(help="Folder of the download.")],
    out: Annotated[Path, typer.Option(help="Folder for the clips.")],
    models: Annotated[
        list[str], typer.Option("--for", help="Model whose media are made; repeat it, or put further names behind it.")
    ],
    more: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Further models.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="recipe.json of another preparation.", show_default=False)] = None,
    scheme: Scheme = None,
    frames: FrameKind = None,
    sheet: Sheet = None,
    corrections: Corrections = None,
    workers: Annotated[
        int | None, typer.Option(help="Clips made at a time; default one a core.", min=1, show_default=False)
    ] = None,
    backend: Annotated[str | None, typer.Option(help="joblib's backend, e.g. dask or ray.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option(help="Go on with an interrupted run; otherwise make all anew.")] = True,
    as_json: AsJson = False,
) -> None:
    """Make the clips of a data set for some models: face, apex and flow, once, in parallel; resumable."""
    from fsmer.deploy.prepare_models import prepare as make
    from fsmer.preprocess import PreprocessRecipe

    with _progress() as progress:
        done = make(
            name,
            root,
            out,
            models=[*models, *(more or [])],
            recipe=None if recipe is None else PreprocessRecipe.load(recipe).with_current_versions(),
            scheme=scheme,
            frames=frames,
            sheet=sheet,
            corrections=corrections,
            workers=workers,
            backend=backend,
            resume=resume,
            progress=lambda state: progress("preparing", state.done, state.total),
        )
    folders = [str(done.folder / part) for part in done.sets]
    if as_json:
        say_json(done.report.to_dict() | {"out": folders})
        return
    say(done.report)
    for folder in folders:
        Console().print(f"clips in {folder}")


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


def _print_bench(console: Console, result: BenchResult) -> None:
    """What ran, narrow enough for 80 columns: a table for each method, and below why cells are empty."""
    from fsmer.published.tables import METRIC_TITLES

    reasons: dict[str, int] = {}
    rows = [line for line in result.lines() if line["status"] != "published only"]
    for (group, method), lines in itertools.groupby(rows, key=lambda line: (line["group"], line["method"])):
        console.print()
        name = f"{method} ({group})" if group and not method.endswith(f"({group})") else method
        console.print(name, style="bold")
        table = _table("", "", "published", "measured")
        for column in table.columns[1:]:
            column.no_wrap = True
        table.columns[0].no_wrap = False
        for title, cells in itertools.groupby(lines, key=lambda line: line["column"]):
            for number, line in enumerate(cells):
                spread = f" ± {line['sd_text']}" if line["sd_text"] else ""
                shown = f"{line['stamp']} {line['measured_text']}{spread}".strip() if line["measured_text"] else ""
                why = line["reason"] if not shown or line["status"] == "partial" else ""
                mark = f"[{reasons.setdefault(why, len(reasons) + 1)}]" if why else ""
                metric, old = METRIC_TITLES[line["metric"]], line["published_text"] or "-"
                table.add_row("" if number else title, metric, old, f"{shown} {mark}".strip())
                if line["honest_text"]:
                    beside = f"honest {line['honest_text']}, gap {line['gap_text']}"
                    table.add_row("", "", "", beside)
        console.print(table)
    console.print()
    for reason, number in reasons.items():
        console.print(f"[{number}] {reason}")


def _read(
    data: Sequence[str],
    where: str | None,
    scheme: str | None,
    prefix: Sequence[str] = (),
    *,
    labelled: bool = True,
    specs: Sequence[InputSpec] = (),
) -> ClipSet:
    """All named clips pooled, then selected, then relabelled; synthetic ones are made with the media of `specs`."""
    from fsmer.data import concat, read_clips
    from fsmer.synthetic.clips import synthetic_clips

    sets = []
    for name in data:
        if name.startswith(SYNTHETIC):
            domain, *numbers = name.removeprefix(SYNTHETIC).split(":")
            if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
                raise DataError(f"{name!r} is not understood; write for example synthetic:lab, or synthetic:lab:300:7.")
            count, seed, *_ = [*map(int, numbers), *(SYNTHETIC_CLIPS, 0)[len(numbers) :]]
            sets.append(synthetic_clips(domain, n=count, seed=seed, specs=specs))
        else:
            sets.append(read_clips(name, labelled=labelled))
    sets = _prefixed(sets, prefix)
    clips = concat(sets) if len(sets) > 1 else sets[0]
    if where is not None:
        clips = clips.select(where)
    return clips if scheme is None else clips.relabel(scheme)


def _prefixed(sets: list[ClipSet], prefix: Sequence[str]) -> list[ClipSet]:
    """The sets with clip ids of their own, where prefixes are given."""
    if not prefix:
        return sets
    if len(prefix) != len(sets):
        raise typer.BadParameter(
            f"there are {len(sets)} --data and {len(prefix)} --prefix; give one for each, in the same order",
            param_hint="--prefix",
        )
    return [clips.with_prefix(name) for clips, name in zip(sets, prefix, strict=True)]


def _method(name: str, params: Sequence[str]) -> Method:
    from fsmer.transfer import load_method

    return load_method(name, **_pairs(params, "--param"))


def _whole(text: str | None) -> int | str | None:
    """A whole number where `text` is one; other words (``rest``) are judged by the protocol."""
    return int(text) if text is not None and text.isdecimal() else text


def _numbers(pairs: Sequence[str], option: str) -> dict[str, float]:
    """KEY=NUMBER options."""
    try:
        return {key: float(value) for key, value in _pairs(pairs, option).items()}
    except ValueError as error:
        raise typer.BadParameter(f"{error}; give numbers, such as uf1=0.86", param_hint=option) from error


def _seeds(text: str | None) -> int | list[int] | None:
    """How many seeds, or which."""
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise typer.BadParameter(
            f"{text!r} is neither a number of seeds nor a list such as 0,1,2", param_hint="--seeds"
        )
    return int(text) if len(parts) == 1 else [int(part) for part in parts]


def _jobs(text: str) -> int | Literal["auto"]:
    """A number of jobs, or to choose one."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither a number of jobs nor auto", param_hint="--jobs") from error


def _bandwidths(text: str) -> str | list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return text


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Bars with the time left on standard error while it is a terminal; a plain line a minute otherwise."""
    console = Console(stderr=True)
    with _bars(console) if console.is_terminal else _lines() as show:
        yield show


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, transient=True) as bars:

        def show(stage: str, done: int, total: int) -> None:
            # The first word names the bar; what follows it (losses) may change from call to call.
            stage = printable(stage)
            key = stage.split(" ")[0]
            if key not in tasks or done < bars.tasks[tasks[key]].completed:
                tasks[key] = bars.add_task(stage, total=total)
            bars.update(tasks[key], completed=done, total=total, description=stage)

        yield show


@contextlib.contextmanager
def _lines() -> Iterator[Callable[[str, int, int], None]]:
    """Lines from a thread of their own, since a single fold may take longer than the time between two of them."""
    lines, over = _Lines(), threading.Event()
    teller = threading.Thread(target=lines.tell, args=(over.wait,), daemon=True)
    teller.start()
    try:
        yield lines.show
    finally:
        over.set()
        teller.join()


@dataclass(frozen=True)
class _Stage:
    """A part of long work: how much of it is done, and when and with how much it began."""

    key: str
    title: str
    done: int
    total: int
    since: float
    first: int

    def told(self, now: float) -> str:
        left = ""
        if self.first < self.done < self.total:
            seconds = (self.total - self.done) * (now - self.since) / (self.done - self.first)
            left = f" (about {_clock_time(seconds)} left)"
        return f"{self.title} {self.done:,}/{self.total:,}{left}"


class _Lines:
    """How far long work is, for a log file: how long it takes already, what goes on, and what may be left of that."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._stages: list[_Stage] = []

    def show(self, title: str, done: int, total: int) -> None:
        key = title.split(" ")[0]
        before = [one.key for one in self._stages]
        place = before.index(key) if key in before else len(before)
        one = _Stage(key, title, done, total, self._clock(), done)
        if key in before and done >= self._stages[place].done:
            one = replace(one, since=self._stages[place].since, first=self._stages[place].first)
        # Those that began after it were steps on its way, and are over.
        self._stages = [*self._stages[:place], one]

    def tell(self, wait: Callable[[float], bool]) -> None:
        """Write lines to standard error until `wait`, given seconds, returns True."""
        pause = FIRST_LINE
        while not wait(pause):
            pause = BETWEEN_LINES
            try:
                complain(self.line())
            except OSError:
                # Nobody reads any more, which must not disturb the work.
                return

    def line(self) -> str:
        now, stages = self._clock(), self._stages
        going_on = [one for one in stages if one.done < one.total] or stages[-1:]
        told = ", ".join(one.told(now) for one in going_on) or "getting ready"
        return f"after {_clock_time(now - self._began)}: {told}"


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _trained(model: str) -> Backbone | Recognizer:
    """The recognizer of a folder that holds one, else the backbone of that name or folder."""
    from fsmer.backbones import load_model
    from fsmer.backbones.weights import CONFIG_FILE, read_config
    from fsmer.transfer import Recognizer

    if (Path(model) / CONFIG_FILE).is_file() and "recognizer" in read_config(model):
        return Recognizer.load(model)
    return load_model(model)


def _show_report(report: Report, out: Path | None, as_json: bool) -> None:
    if as_json:
        say_json(report.to_dict())
        return
    _print_report(report)
    if out is not None:
        Console().print(f"written to {out}")


def _command_line() -> str:
    """What was typed, as a report names it."""
    return shlex.join(["fsmer", *sys.argv[1:]])


def _pairs(entries: Sequence[str], option: str) -> dict[str, str]:
    pairs = {}
    for entry in entries:
        key, mark, value = entry.partition("=")
        if not mark or not key.strip():
            raise typer.BadParameter(f"{entry!r} is not KEY=VALUE, as in --param steps=50", param_hint=option)
        pairs[key.strip()] = value.strip()
    return pairs


def _values(entries: Sequence[str], option: str) -> dict[str, Any]:
    """KEY=VALUE options with values as JSON writes them, or else as text."""
    return {key: _plain(value) for key, value in _pairs(entries, option).items()}


def _plain(text: str) -> Any:
    from pydantic_core import from_json

    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        return text


def _print_report(report: Report) -> None:
    console = Console()
    console.print(f"{report.title}, model {report.model['name']}", style="bold")
    table = _table("clips of", "clips", "UF1", "UAR", "Acc")
    stamp = "ORACLE " if report.oracle else ""
    parts = {"all": report.figures | {"clips": report.counts["clips"]}}
    if len(report.per_dataset) > 1:
        parts |= report.per_dataset
    for name, figures in parts.items():
        table.add_row(name, f"{figures['clips']:,}", *_figures(figures))
    if report.honest is not None and report.gap is not None:
        table.add_row("honest, same run", f"{report.counts['clips']:,}", *_figures(report.honest))
        table.add_row("gap", "", *(f"{report.gap[metric]:+.3f}" for metric in ("uf1", "uar", "acc")))
    for row in report.per_seed if len(report.per_seed) > 1 else []:
        table.add_row(f"seed {row['seed']}", "", *(f"{stamp}{row[metric]:.3f}" for metric in ("uf1", "uar", "acc")))
    console.print(table)
    shown = (f"{stamp}{name}" for name in ("F1", "recall", "precision"))
    classes = _table("class", "clips", *shown, *(f"as\n{name}" for name in report.classes))
    for (name, row), counts in zip(report.per_class.items(), report.confusion.tolist(), strict=True):
        shares = (f"{stamp}{row[key]:.3f}" for key in ("f1", "recall", "precision"))
        classes.add_row(name, f"{row['clips']:,}", *shares, *(f"{count:,}" for count in counts))
    console.print(classes)
    for line in (report.how, *report.notes):
        console.print(line)


def _methods_table(reports: Mapping[str, Report], head: str = "method") -> Table:
    table = _table(head, "UF1", "UAR", "Acc")
    for name, report in sorted(reports.items(), key=lambda item: -item[1].uf1):
        table.add_row(name, *_figures(report.figures))
    return table


def _figures(figures: Mapping[str, Any]) -> list[str]:
    """UF1, UAR and accuracy with intervals, short enough for a terminal of 80 columns: ``0.842 [.839, .845]``."""
    cells = []
    for metric in ("uf1", "uar", "acc"):
        bounds = figures[f"{metric}_interval"]
        shown = "" if bounds is None else " [" + ", ".join(f"{bound:.3f}".removeprefix("0") for bound in bounds) + "]"
        stamp = "ORACLE " if figures.get("oracle") else ""
        cells.append(f"{stamp}{figures[metric]:.3f}{shown}")
    return cells


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, header in enumerate(headers):
        table.add_column(header, overflow="fold", no_wrap=number == 0)
    return table


def _losses(losses: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in losses.items())


def _short(result: Any) -> str:
    chance = "" if result.p_value is None else f", p = {result.p_value:.3g}"
    return f"MMD {result.value:.4f}{chance}"
