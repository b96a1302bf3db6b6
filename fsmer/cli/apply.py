"""Commands that use a recognizer or a model: predict, explain."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from fsmer.cli import options
from fsmer.cli.app import command
from fsmer.cli.console import Console, complain, say_json
from fsmer.cli.options import DATA, OUTPUT, option
from fsmer.cli.progress import shown_progress
from fsmer.cli.show import plain_table
from fsmer.errors import DataError
from fsmer.io import atomic_path, check_writable
from fsmer.text import write_csv

EXIT_NO_FACE = 2


@command("fsmer predict video.mp4 --out answer")
def predict(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="A video or folder of frames; with --data, the folder of a recognizer."),
    ],
    data: options.Data = [],
    prefix: options.Prefix = [],
    where: options.Where = None,
    model: options.Model = "facs-flow",
    out: Annotated[
        Path | None, option(OUTPUT, "PATH", "Folder (recording) or CSV file (clips) for the answers.")
    ] = None,
    face: Annotated[int, option(DATA, "N", "Which of several faces: 0 the largest, 1 the next.", min=0)] = 0,
    as_json: options.AsJson = False,
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
    from fsmer.transfer.recognizer import load_trained

    if (source / "config.json").is_file():
        raise DataError(f"{source} holds weights and no recording; give the clips to ask it about with --data.")
    try:
        with shown_progress() as progress:
            found = predict_recording(
                source, load_trained(model), which=face, progress=functools.partial(progress, "reading")
            )
    except NoFaceError as error:
        complain(error)
        raise typer.Exit(EXIT_NO_FACE) from error
    for note in found.notes:
        complain(note)
    if out is not None:
        found.save(out)
    if as_json:
        return say_json(found.to_dict())
    console = Console()
    console.print(found.summary())
    if found.intervals:
        table = plain_table("onset", "apex", "offset", "label", "p", "AUs", "what moves")
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
    clips = options.read_data(data, where, None, prefix, labelled=False, specs=loaded.backbone.input_specs)
    with shown_progress() as progress:
        probabilities = loaded.predict_proba(clips, progress=functools.partial(progress, "embedding clips"))
    frame = clips.table[["clip", "dataset", "subject"]].astype(str)
    frame["predicted"] = loaded.classes_[probabilities.argmax(axis=1)].astype(object)
    for column, name in enumerate(loaded.classes_):
        frame[f"p_{name}"] = probabilities[:, column].astype(float).round(6)
    if out is not None:
        with atomic_path(out) as temporary:
            write_csv(frame, temporary)
    if as_json:
        return say_json(frame.to_dict("records"))
    if out is not None:
        Console().print(f"answers for {len(frame):,} clips in {out}")
        return
    table = plain_table(*frame.columns)
    for row in frame.itertuples(index=False):
        table.add_row(*(value if isinstance(value, str) else f"{value:.3f}" for value in row))
    Console().print(table)


@command("fsmer explain my-recognizer --data DIR --clips 4 --out pictures")
def explain(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder of a recognizer or of weights, or the name of a model.")
    ],
    data: options.Data,
    out: Annotated[Path, option(OUTPUT, "DIR", "Folder for one picture a clip.")],
    prefix: options.Prefix = [],
    where: options.Where = None,
    clips: Annotated[int, option(DATA, "N", "The first so many clips.", min=1)] = 6,
    how: Annotated[
        Literal["own", "gradient"] | None,
        option(
            OUTPUT, "MAP", "own: the network's own map, the default where it has one; gradient: integrated gradients."
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Pictures of what a model's answers depend on: the clip's media and the network's map side by side."""
    from fsmer.backbones import Backbone
    from fsmer.deploy.explain import explain as draw
    from fsmer.transfer.recognizer import load_trained

    asked = load_trained(model)
    specs = asked.input_specs if isinstance(asked, Backbone) else asked.backbone.input_specs
    shown = options.read_data(data, where, None, prefix, labelled=False, specs=specs)[:clips]
    check_writable(out)
    found = draw(asked, shown, out=out, method=how)
    pictures = found if isinstance(found, list) else [found]
    if as_json:
        return say_json([{"clip": one.clip, "predicted": one.prediction, "maps": sorted(one.maps)} for one in pictures])
    Console().print(f"{len(pictures)} picture{'' if len(pictures) == 1 else 's'} in {out}")
