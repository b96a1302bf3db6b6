"""Options that commands share, and how their text is read."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fsmer.errors import DataError

if TYPE_CHECKING:
    from fsmer.data import ClipSet, InputSpec
    from fsmer.transfer import Method


def optional(*names: str, **settings: Any) -> Any:
    """An option that may be left out, without a default to show."""
    return typer.Option(*names, show_default=False, **settings)


SYNTHETIC = "synthetic:"
SYNTHETIC_CLIPS = 300
DATA_HELP = (
    "Folder of clips (with index.csv, a saved clip set, or the STSTNet release); repeat to pool several. "
    "synthetic:DOMAIN, with :N clips and :SEED behind it if wanted, makes clips."
)
Data = Annotated[list[str], optional("--data", "-d", help=DATA_HELP)]
Prefix = Annotated[
    list[str],
    optional(
        help="Put before the clip ids of a --data folder, so that two with the same ids can be pooled; once for each."
    ),
]
Where = Annotated[str | None, optional(help="Rows to keep, e.g. \"dataset == 'smic'\".")]
Scheme = Annotated[str | None, optional(help="Label scheme to apply, e.g. megc2019.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Name of a model, or a folder of weights.")]
MethodName = Annotated[str, typer.Option("--method", help="Name of a method.")]
Param = Annotated[list[str], optional("--param", "-p", help="A method's parameter as KEY=VALUE; may be repeated.")]
Argument = Annotated[
    list[str], optional("--argument", "-a", help="A constructor argument of the model as KEY=VALUE; may be repeated.")
]
Describe = Annotated[
    list[str],
    optional(
        "--describe",
        help="What a class looks like as CLASS=WORDS, e.g. 'smile=cheek raiser, lip corner puller'; may be repeated.",
    ),
]
FrameKind = Annotated[Literal["raw", "cropped"] | None, optional(help="raw or cropped, where a download holds both.")]
Sheet = Annotated[Path | None, optional(help="The annotation sheet, if it lies elsewhere.")]
Corrections = Annotated[Path | None, optional(help="Your own table of corrections, CSV.")]
Jobs = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        help="Folds trained at a time, each in a process of its own; auto: one a core as far as memory goes.",
    ),
]
Device = Annotated[str | None, optional(help="Where the network computes, such as cuda; default the CPU.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the report of another run that is in the folder.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else.")]


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
