"""Commands that list what there is, and the demonstration."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fsmer.cli import options
from fsmer.cli.app import command
from fsmer.cli.console import Console, say, say_json
from fsmer.cli.options import OUTPUT, option
from fsmer.cli.progress import shown_progress
from fsmer.cli.show import methods_table, plain_table, print_entry
from fsmer.errors import reason_of


@command("fsmer demo --out out/demo")
def demo(
    out: Annotated[Path, option(OUTPUT, "DIR", "Folder for table, picture and recognizer.")] = Path("fsmer-demo"),
    model: options.Model = "facs-flow",
    seed: Annotated[int, options.SEED] = 0,
    episodes: Annotated[int, options.number_of_episodes(min=2)] = 200,
    as_json: options.AsJson = False,
) -> None:
    """A demonstration without data: synthetic clips of one domain, few labels of another, every method side by side."""
    from fsmer.cli.demo import run_demo

    with shown_progress() as progress:
        result = run_demo(out, model, seed=seed, episodes=episodes, progress=progress)
    if as_json:
        return say_json(result.to_dict())
    console = Console()
    console.print(f"5-shot on the synthetic domain {result.target!r}, with {result.source!r} as source", style="bold")
    console.print(methods_table(result.reports))
    console.print(f"a recognizer learnt from {result.support} labelled clips; its answers on {result.asked} new ones:")
    console.print(f"  {result.right} of {result.asked} right; for example {result.example}")
    for name, path in result.files.items():
        console.print(f"  {name:<12}{path}")


@command("fsmer models")
def models(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="Wildcard, e.g. 'facs*'.")] = "*",
    as_json: options.AsJson = False,
) -> None:
    """List the models and methods; of a single model, which parts of its paper are implemented."""
    from fsmer.backbones import list_models
    from fsmer.transfer import list_methods

    found = list_models(pattern)
    if as_json:
        listed = [asdict(one) | {"input_specs": [spec.to_dict() for spec in one.input_specs]} for one in found]
        return say_json({"models": listed, "methods": [asdict(one) for one in list_methods()]})
    console = Console()
    for one in found:
        media = "; ".join(spec.describe() for spec in one.input_specs) or "-"
        numbers = "-" if one.embed_dim is None else f"{one.embed_dim:,}"
        parameters = one.parameters or 0
        facts = (
            "-" if one.parameters is None else f"{parameters / 1e6:.2f} M" if parameters >= 1e5 else f"{parameters:,}",
            "-" if one.flops is None else f"{one.flops / 1e9:.3g}",
            "weights shipped" if one.pretrained else "no weights",
        )
        shown = "{} parameters, {} GFLOPs, {}".format(*facts)
        print_entry(console, one.name, shown, one.summary, f"input: {media}; {numbers} numbers out")
    console.print()
    if len(found) == 1:
        say(found[0].card(console.width))
        return
    methods = plain_table("method", "what")
    for method in list_methods():
        methods.add_row(method.name, method.said)
    console.print(methods)


@command("fsmer protocols megc2019-cde")
def protocols(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show all settings of this one.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the named protocols, or show one of them."""
    from fsmer.episodic import list_protocols, load_protocol

    if name is not None:
        protocol = load_protocol(name)
        settings = protocol.to_dict() | {"hash": protocol.hash}
        if as_json:
            return say_json(settings)
        table = plain_table("setting", "value")
        for key, value in settings.items():
            table.add_row(key, value if isinstance(value, str) else json.dumps(value, default=str))
        Console().print(table)
        return
    found = list(map(_protocol_line, list_protocols()))
    if as_json:
        return say_json(found)
    table = plain_table("protocol", "hash", "what")
    for one in found:
        table.add_row(one["name"], one["hash"] or "-", one["title"] or "-")
    Console().print(table)


def _protocol_line(name: str) -> dict[str, str | None]:
    from fsmer.episodic import load_protocol

    try:
        one = load_protocol(name)
        return {"name": one.name, "title": one.title, "hash": one.hash}
    # Code from outside raises whatever it likes, and the other protocols are listed all the same.
    except Exception as error:
        return {"name": name, "title": reason_of(error), "hash": None}
