"""Options that commands share, and how their text is read."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fsmer.errors import DataError

if TYPE_CHECKING:
    from fsmer.data import ClipSet, InputSpec
    from fsmer.transfer import Method


# The groups that help shows options in, in this order.
DATA, MODEL, EPISODES, RUNNING, OUTPUT = GROUPS = ("Data", "Model and method", "Episodes", "Running", "Output")


def option(group: str, metavar: str | None, text: str, *names: str, **settings: Any) -> Any:
    """An option in one of the `GROUPS`; `metavar` says what its value is, None for a switch."""
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=group, **settings)


SYNTHETIC = "synthetic:"
SYNTHETIC_CLIPS = 300
DATA_HELP = "Folder of clips, or synthetic:DOMAIN[:N[:SEED]] for drawn ones; repeat it to pool several."
Data = Annotated[list[str], option(DATA, "DIR", DATA_HELP, "--data", "-d")]
Prefix = Annotated[
    list[str], option(DATA, "NAME", "Put before the clip ids of a --data folder; once for each, in their order.")
]
Where = Annotated[str | None, option(DATA, "CONDITION", "Rows to keep, e.g. \"dataset == 'smic'\".")]
Scheme = Annotated[str | None, option(DATA, "NAME", "Label scheme to apply, e.g. megc2019.")]
Root = Annotated[Path, option(DATA, "DIR", "Folder of the download.")]
FrameKind = Annotated[
    Literal["raw", "cropped"] | None, option(DATA, "KIND", "raw or cropped, where a download holds both.")
]
Sheet = Annotated[Path | None, option(DATA, "FILE", "The annotation sheet, if it lies elsewhere.")]
Corrections = Annotated[Path | None, option(DATA, "FILE", "Your own table of corrections, CSV.")]

Model = Annotated[str, option(MODEL, "NAME|DIR", "Name of a model, or a folder of weights.", "--model", "-m")]
MethodName = Annotated[
    str | None,
    option(MODEL, "NAME", "Name of a method; default: cosine, or what a model that was trained on episodes brings."),
]
Param = Annotated[
    list[str],
    option(MODEL, "KEY=VALUE", "Parameter of the method or recipe, e.g. batch_size=16; repeatable.", "--param", "-p"),
]
Argument = Annotated[
    list[str],
    option(MODEL, "KEY=VALUE", "Constructor argument of the model; repeatable.", "--argument", "-a"),
]
Steps = Annotated[int | None, option(RUNNING, "N", "Optimiser steps; default the recipe's.")]
Log = Annotated[
    Path | None, option(OUTPUT, "DIR", "Folder for TensorBoard: loss and learning rate of every epoch or step.")
]
Describe = Annotated[
    list[str], option(MODEL, "CLASS=WORDS", "Movements of a class, e.g. 'smile=lip corner puller'; repeatable.")
]
Select = Annotated[
    Literal["fixed", "nested", "oracle"],
    option(
        MODEL,
        "CHOICE",
        "Epochs and parameters: fixed, nested (chosen inside the support) or oracle (on the test clips).",
    ),
]

Way = Annotated[int | None, option(EPISODES, "N", "Classes an episode.")]
Shot = Annotated[int | None, option(EPISODES, "N", "Support clips of each class.")]
Query = Annotated[str | None, option(EPISODES, "N|rest", "Query clips of each class; rest: all others.")]
number_of_episodes = functools.partial(option, EPISODES, "N", "Number of episodes.")
Neighbours = Annotated[
    bool, option(EPISODES, None, "Learn from neighbour frames too; they are never asked about.", "--neighbours")
]

SEED = option(RUNNING, "N", "Seed of what the command draws, such as episodes or bootstrap samples.", min=0)
Seeds = Annotated[
    str | None, option(RUNNING, "N|LIST", "Seeds of the method: how many, or which (0,1,2); figures are their means.")
]
Jobs = Annotated[str, option(RUNNING, "N|auto", "Folds trained at a time; auto: one a core as far as memory goes.")]
Device = Annotated[str | None, option(RUNNING, "NAME", "Where the network computes, e.g. cuda; default the CPU.")]
Resume = Annotated[bool, option(RUNNING, None, "Go on with an interrupted run of the same settings.")]
Import = Annotated[
    list[str],
    option(
        RUNNING,
        "FILE|MODULE",
        "Python code of yours that registers models, methods or the like; repeatable.",
        "--import",
    ),
]

Overwrite = Annotated[bool, option(OUTPUT, None, "Replace the report of another run in the folder.", "--overwrite")]
AsJson = Annotated[bool, option(OUTPUT, None, "Print JSON on standard output, nothing else.", "--json")]


def read_data(
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
    sets = with_prefixes(sets, prefix)
    clips = concat(sets) if len(sets) > 1 else sets[0]
    if where is not None:
        clips = clips.select(where)
    return clips if scheme is None else clips.relabel(scheme)


def with_prefixes(sets: list[ClipSet], prefix: Sequence[str]) -> list[ClipSet]:
    """The sets with clip ids of their own, where prefixes are given."""
    if not prefix:
        return sets
    if len(prefix) != len(sets):
        raise typer.BadParameter(
            f"there are {len(sets)} --data and {len(prefix)} --prefix; give one for each, in the same order",
            param_hint="--prefix",
        )
    return [clips.with_prefix(name) for clips, name in zip(sets, prefix, strict=True)]


def method_of(name: str, params: Sequence[str]) -> Method:
    """The method of that name with parameters as ``--param`` gives them."""
    from fsmer.transfer import load_method

    return load_method(name, **text_pairs(params, "--param"))


def episodes_of(**asked: int | str | None) -> dict[str, int | str]:
    """Parameters of a protocol that were given, such as way, shot and query."""
    query = asked.get("query")
    asked["query"] = int(query) if isinstance(query, str) and query.isdecimal() else query
    return {key: value for key, value in asked.items() if value is not None}


def method_of_model(model: str, name: str | None, params: Sequence[str]) -> Method:
    """The method of that name or, without one, that of the model's folder of weights."""
    from fsmer.backbones.registry import load_model, names_saved_weights
    from fsmer.transfer.adapt import method_for
    from fsmer.transfer.source_model import SourceModel

    if name is None and names_saved_weights(model):
        return method_for(SourceModel(load_model(model)), **text_pairs(params, "--param"))
    return method_of(name or "cosine", params)


def number_pairs(pairs: Sequence[str], option: str) -> dict[str, float]:
    """KEY=NUMBER options."""
    try:
        return {key: float(value) for key, value in text_pairs(pairs, option).items()}
    except ValueError as error:
        raise typer.BadParameter(f"{error}; give numbers, such as uf1=0.86", param_hint=option) from error


def seeds_of(text: str | None) -> int | list[int] | None:
    """How many seeds, or which."""
    parts = [] if text is None else text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise typer.BadParameter(f"{text!r} is neither a number of seeds nor a list, as 0,1,2", param_hint="--seeds")
    numbers = [int(part) for part in parts]
    return None if text is None else numbers[0] if len(numbers) == 1 else numbers


def jobs_of(text: str) -> int | Literal["auto"]:
    """A number of jobs, or to choose one."""
    try:
        return "auto" if text == "auto" else int(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is neither a number of jobs nor auto", param_hint="--jobs") from error


def bandwidths_of(text: str) -> str | list[float]:
    """Numbers with commas, or the name of a rule."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return text


def text_pairs(entries: Sequence[str], option: str) -> dict[str, str]:
    """KEY=VALUE options as text."""
    pairs = {}
    for entry in entries:
        key, mark, value = entry.partition("=")
        if not mark or not key.strip():
            raise typer.BadParameter(f"{entry!r} is not KEY=VALUE, as in --param steps=50", param_hint=option)
        pairs[key.strip()] = value.strip()
    return pairs


def json_pairs(entries: Sequence[str], option: str) -> dict[str, Any]:
    """KEY=VALUE options with values as JSON writes them, or else as text."""
    from pydantic_core import from_json

    values: dict[str, Any] = dict(text_pairs(entries, option))
    for key, text in values.items():
        with contextlib.suppress(ValueError):
            values[key] = from_json(text, allow_inf_nan=False)
    return values
