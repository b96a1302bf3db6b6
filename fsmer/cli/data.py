"""Commands on data sets: datasets, check, prepare."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fsmer.cli import options
from fsmer.cli.app import command
from fsmer.cli.console import Console, say, say_json
from fsmer.cli.options import DATA, MODEL, OUTPUT, RUNNING, option
from fsmer.cli.progress import shown_progress
from fsmer.cli.show import print_entry


@command("fsmer datasets")
def datasets(as_json: options.AsJson = False) -> None:
    """List the data sets that fsmer reads, and where a licence is requested."""
    from fsmer.datasets import list_datasets

    found = list_datasets()
    if as_json:
        return say_json([asdict(one) for one in found])
    console = Console()
    for one in found:
        known = ((one.clips, "clips"), (one.subjects, "people"), (one.frames_per_second, "frames a second"))
        facts = ", ".join([one.title, *(f"{value:g} {unit}" for value, unit in known if value is not None)])
        print_entry(console, one.name, facts, f"annotation: {one.annotation}", one.request)


@command("fsmer check casme2 --root DIR")
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a data set (see 'fsmer datasets').")],
    root: options.Root,
    frames: options.FrameKind = None,
    sheet: options.Sheet = None,
    corrections: options.Corrections = None,
    as_json: options.AsJson = False,
) -> None:
    """Audit a download: what is there, what is missing, which apexes cannot be right."""
    from fsmer.datasets import check_dataset

    audit = check_dataset(name, root, frames=frames, sheet=sheet, corrections=corrections)
    if as_json:
        return say_json(audit.to_dict())
    say(audit)


@command("fsmer prepare casme2 --root DIR --out DIR --for facs-flow")
def prepare(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a data set (see 'fsmer datasets'); generic reads any CSV.")
    ],
    root: options.Root,
    out: Annotated[Path, option(OUTPUT, "DIR", "Folder for the clips.")],
    models: Annotated[list[str], option(MODEL, "NAME", "Model whose media are made; repeatable.", "--for")],
    more: Annotated[list[str] | None, typer.Argument(metavar="MODEL", help="Further models, as with --for.")] = None,
    recipe: Annotated[Path | None, option(DATA, "FILE", "recipe.json of another preparation.")] = None,
    scheme: options.Scheme = None,
    neighbours: Annotated[
        int | None,
        option(
            DATA,
            "N",
            "Frames beside the apex as more clips, up to N times the rarest class (MERAU: 5).",
            "--add-neighbours",
            min=1,
        ),
    ] = None,
    frames: options.FrameKind = None,
    sheet: options.Sheet = None,
    corrections: options.Corrections = None,
    workers: Annotated[int | None, option(RUNNING, "N", "Clips made at a time; default one a core.", min=1)] = None,
    backend: Annotated[str | None, option(RUNNING, "NAME", "joblib's backend, e.g. dask or ray.")] = None,
    resume: options.Resume = True,
    as_json: options.AsJson = False,
) -> None:
    """Make the clips of a data set for some models: face, apex and flow, once, in parallel; resumable."""
    from fsmer.deploy.prepare_models import prepare as make
    from fsmer.preprocess import PreprocessRecipe

    with shown_progress() as progress:
        done = make(
            name,
            root,
            out,
            models=[*models, *(more or [])],
            recipe=None if recipe is None else PreprocessRecipe.load(recipe).with_current_versions(),
            scheme=scheme,
            neighbours=neighbours,
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
        return say_json(done.report.to_dict() | {"out": folders})
    say(done.report)
    for folder in folders:
        Console().print(f"clips in {folder}")
