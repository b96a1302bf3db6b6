"""Commands that make models and recognizers: train, adapt, pretrain."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fsmer.cli import options
from fsmer.cli.app import command, command_line
from fsmer.cli.console import Console, say_json
from fsmer.cli.options import DATA, EPISODES, MODEL, OUTPUT, RUNNING, option
from fsmer.cli.progress import shown_progress
from fsmer.cli.show import losses_text, show_report
from fsmer.errors import DataError, FsmerError


@command("fsmer train fr --protocol loso --data DIR --out OUT")
def train(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|DIR", help="Name of a model (fresh weights), or a folder of weights to go on from."
        ),
    ],
    data: options.Data,
    out: Annotated[Path, option(OUTPUT, "DIR", "Folder for the recognizer or, with a protocol, the report.")],
    protocol: Annotated[
        str | None,
        option(EPISODES, "NAME", "Train on the support of every episode and test on its queries; default: all clips."),
    ] = None,
    prefix: options.Prefix = [],
    where: options.Where = None,
    scheme: options.Scheme = None,
    param: options.Param = [],
    argument: options.Argument = [],
    pretrained: Annotated[bool, option(MODEL, None, "Start from the weights that ship.", "--pretrained")] = False,
    log: options.Log = None,
    jobs: options.Jobs = "auto",
    device: options.Device = None,
    resume: options.Resume = True,
    overwrite: options.Overwrite = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a model with labels, by its paper's recipe."""
    from fsmer.backbones import load_model
    from fsmer.backbones.base import as_device
    from fsmer.backbones.registry import fresh_model, refuse_arguments
    from fsmer.drawing import loss_figure, save_figure
    from fsmer.episodic import load_protocol
    from fsmer.evaluation import evaluate as run
    from fsmer.training.checkpoints import history_file
    from fsmer.transfer.full_training import Train

    method = options.method_of("train", param)
    if not isinstance(method, Train):
        raise FsmerError("the method registered as 'train' is not fsmer's own; register yours under another name.")
    if log is not None and protocol is not None:
        raise typer.BadParameter("a log is of one training; leave --protocol out", param_hint="--log")
    if overwrite and protocol is None:
        raise typer.BadParameter("a recognizer is replaced in any case; leave it out", param_hint="--overwrite")
    arguments = options.json_pairs(argument, "--argument")
    if pretrained:
        backbone = load_model(name)
        refuse_arguments(backbone, arguments, f"the weights of {name!r} (--pretrained)")
    else:
        backbone = fresh_model(name, method.seed, arguments)
    if device is not None:
        backbone = backbone.to(as_device(device))
    clips = options.read_data(data, where, scheme, prefix, specs=backbone.input_specs)
    with shown_progress() as progress:
        if protocol is not None:
            report = run(
                load_protocol(protocol),
                backbone,
                method,
                clips=clips,
                jobs=options.jobs_of(jobs),
                progress=progress,
                out=out,
                resume=resume,
                overwrite=overwrite,
                call=command_line(),
            )
        else:
            recognizer, course = method.run(
                backbone, clips, out, resume=resume, progress=functools.partial(progress, "training"), log=log
            )
    if protocol is not None:
        show_report(report, out, as_json)
        return
    losses = course["losses"]
    title = f"{backbone.name}, {len(clips)} clips"
    picture = save_figure(loss_figure(losses, title=title), history_file(out).with_suffix(".png"))
    if as_json:
        names = [str(known) for known in recognizer.classes_]
        return say_json(
            {"out": str(out), "classes": names, "clips": len(clips), "losses": losses, "curve": str(picture)}
        )
    shown = f"{losses[0]:.3f}" + (f" -> {losses[-1]:.3f}" if len(losses) > 1 else "")
    done = f"trained {backbone.name} on {len(clips):,} clips, loss {shown} (curve in {picture})"
    Console().print(f"{done}; recognizer in {out}")


@command("fsmer meta-train ststnet --tasks kshot --data DIR --out my-weights")
def meta_train(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|DIR",
            help="Name of a model (with the weights that ship, else fresh ones), or a folder of weights.",
        ),
    ],
    tasks: Annotated[str, option(EPISODES, "NAME", "Protocol whose episodes are trained on (see 'fsmer protocols').")],
    out: Annotated[Path, option(OUTPUT, "DIR", "Folder for the weights.")],
    algorithm: Annotated[
        str, option(MODEL, "NAME", "anil, fomaml, maml, meta_sgd, metaoptnet, protonet, r2d2 or reptile.")
    ] = "protonet",
    data: options.Data = [],
    prefix: options.Prefix = [],
    where: options.Where = None,
    scheme: options.Scheme = None,
    validation: Annotated[
        list[str], option(DATA, "DIR", "Clips of other people or classes to validate on; repeatable.")
    ] = [],
    validation_where: Annotated[str | None, option(DATA, "WORDS", "Which of the validation clips, as --where.")] = None,
    way: options.Way = None,
    shot: options.Shot = None,
    query: options.Query = None,
    neighbours: options.Neighbours = False,
    steps: options.Steps = None,
    batch: Annotated[int, option(RUNNING, "N", "Tasks a step.")] = 4,
    learning_rate: Annotated[
        float | None, option(RUNNING, "RATE", "Of the outer loop; default the algorithm's.")
    ] = None,
    patience: Annotated[
        int | None, option(RUNNING, "N", "Looks at the validation tasks without a better one before the end.")
    ] = None,
    layers: Annotated[
        Literal["auto", "all", "upper"], option(MODEL, "CHOICE", "Layers to train; auto: not the lower ones.")
    ] = "auto",
    augment: Annotated[
        bool, option(RUNNING, None, "Change clips at random each time, as the model's recipe says.", "--augment")
    ] = False,
    seed: Annotated[int, options.SEED] = 0,
    param: options.Param = [],
    argument: options.Argument = [],
    log: options.Log = None,
    device: options.Device = None,
    resume: options.Resume = True,
    as_json: options.AsJson = False,
) -> None:
    """Train a model on few-shot tasks, so that few labelled clips of new classes teach it more."""
    from fsmer.drawing import loss_figure, save_figure
    from fsmer.episodic import load_protocol
    from fsmer.meta import meta_train as run
    from fsmer.meta.training import start_model
    from fsmer.schema import read_json
    from fsmer.training.checkpoints import history_file

    asked = options.episodes_of(way=way, shot=shot, query=query, neighbours=neighbours or None)
    protocol = load_protocol(tasks, **asked)
    backbone, _ = start_model(name, seed, options.json_pairs(argument, "--argument"))
    specs = backbone.input_specs
    clips = options.read_data(data, where, scheme, prefix, specs=specs) if data else None
    params: dict[str, Any] = {} if steps is None else {"steps": steps}
    params |= options.text_pairs(param, "--param")
    judged = options.read_data(validation, validation_where, scheme, [], specs=specs) if validation else None
    with shown_progress() as progress:
        run(
            name,
            protocol,
            algorithm,
            clips=clips,
            validation=None if judged is None else (protocol, judged),
            batch=batch,
            learning_rate=learning_rate,
            patience=patience,
            layers=layers,
            augment=augment,
            seed=seed,
            arguments=options.json_pairs(argument, "--argument"),
            device=device,
            out=out,
            resume=resume,
            progress=functools.partial(progress, "training"),
            log=log,
            **params,
        )
    history = history_file(out)
    rows = read_json(history, dict, what="a history", remedy="train again", error=DataError)["history"]
    figure = loss_figure(
        [row["loss"] for row in rows], steps=[row["step"] for row in rows], title=f"{backbone.name}, {algorithm}"
    )
    picture = save_figure(figure, history.with_suffix(".png"))
    if as_json:
        return say_json({"out": str(out), "algorithm": algorithm, "history": rows, "curve": str(picture)})
    Console().print(
        f"trained {backbone.name} by {algorithm}, {rows[-1]['step']:,} steps of {batch} tasks (curve in {picture}); "
        f"weights in {out}"
    )


@command("fsmer adapt --data DIR --method cosine --out my-recognizer")
def adapt(
    out: Annotated[Path, option(OUTPUT, "DIR", "Folder for the recognizer.")],
    data: options.Data = [],
    prefix: options.Prefix = [],
    where: options.Where = None,
    scheme: options.Scheme = None,
    model: options.Model = "facs-flow",
    method: options.MethodName = None,
    param: options.Param = [],
    describe: options.Describe = [],
    as_json: options.AsJson = False,
) -> None:
    """Learn a recognizer from a few labelled clips, or from words alone, and save it."""
    from fsmer.backbones import load_model
    from fsmer.transfer import adapt as learn
    from fsmer.transfer import recognizer_of_words

    backbone = load_model(model)
    words = options.text_pairs(describe, "--describe")
    if not data and not words:
        raise DataError("nothing to learn from: give labelled clips with --data, or describe classes with --describe.")
    with shown_progress() as progress:
        if not data:
            recognizer = recognizer_of_words(backbone, words)
        else:
            clips = options.read_data(data, where, scheme, prefix, specs=backbone.input_specs)
            report = functools.partial(progress, "training")
            solver = options.method_of_model(model, method, param)
            recognizer = learn(backbone, clips, solver, descriptions=words, progress=report)
    recognizer.save(out)
    names = [str(name) for name in recognizer.classes_]
    if as_json:
        say_json(
            {
                "out": str(out),
                "classes": names,
                "support": recognizer.support_size,
                "model": model,
                "method": recognizer.method.name,
            }
        )
        return
    Console().print(f"learnt {', '.join(names)} from {recognizer.support_size} clips; recognizer in {out}")


@command("fsmer pretrain facs-flow --out my-weights --seed 0")
def pretrain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a model.")],
    out: Annotated[Path, option(OUTPUT, "DIR", "Folder for the weights.")],
    seed: Annotated[int, options.SEED] = 0,
    steps: options.Steps = None,
    frames: Annotated[
        Path | None,
        option(DATA, "DIR", "Frame folders or videos, for self-supervised models; default: synthetic frames."),
    ] = None,
    param: options.Param = [],
    argument: options.Argument = [],
    device: options.Device = None,
    resume: options.Resume = True,
) -> None:
    """Make a model's weights without labels: from nothing but a seed, or from your own frames."""
    from fsmer.pretraining import load_pretrainer

    params, arguments = options.json_pairs(param, "--param"), options.json_pairs(argument, "--argument")
    given = {"frames": frames, "params": params or None, "arguments": arguments or None, "device": device}
    more = {key: value for key, value in given.items() if value is not None}
    make = load_pretrainer(name)
    try:
        inspect.signature(make).bind(out, seed=seed, steps=steps, resume=resume, progress=None, **more)
    except TypeError as error:
        raise DataError(
            f"{name!r} is trained on synthetic flow alone and takes no frames, parameters, arguments or device; leave "
            "them out."
        ) from error
    with shown_progress() as progress:
        folder = make(
            out,
            seed=seed,
            steps=steps,
            resume=resume,
            # Before the first loss is known, clips are drawn.
            progress=lambda done, total, losses: progress(
                f"training {losses_text(losses)}" if losses else "drawing clips", done, total
            ),
            **more,
        )
    Console().print(f"weights in {folder}; use them with --model {folder}")
