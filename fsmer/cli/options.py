"""Options that commands share, and how their text is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fsmer.errors import DataError

if TYPE_CHECKING:
    from fsmer.data import ClipSet, InputSpec
    from fsmer.transfer import Method


SYNTHETIC = "synthetic:"


SYNTHETIC_CLIPS = 300


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
