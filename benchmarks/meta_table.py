"""Training on episodes against supervised training, for the same number of clips seen: ``make meta-table``.

A row is a backbone and an approach: how it is trained on the base sets of action units, and by which method it is then
adapted. Each is judged with 1 and 5 shots on `novel-units-5way`, `uneven-queries` and `new-camera`. Finished rows are
added to the table and trained weights are kept, so that an interrupted table goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import fsmer
from benchmarks.releases import commit_name
from fsmer.backbones import Backbone
from fsmer.data.text_tables import shipped_rows
from fsmer.io import write_json

BASE = "base-units-5way"
PROTOCOLS = {"novel": "novel-units-5way", "uneven": "uneven-queries", "camera": "new-camera"}
SHOTS = (1, 5)
TASKS = 600
BUDGET = 48_000
# Tasks a step of the outer loop.
BATCH = 4
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "meta_learning.csv"


@dataclass(frozen=True)
class Network:
    """A backbone, its constructor arguments, and the learning rate of training on episodes."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    rate: float = 1e-3

    def start(self) -> Backbone:
        """As every training begins: the weights that ship, else fresh ones."""
        if self.name == "facs-flow":
            return fsmer.load_model(self.name)
        torch.manual_seed(0)
        return fsmer.create_model(self.name, **self.arguments)


@dataclass(frozen=True)
class Approach:
    """A training and the method afterwards; None adapts as episodes have trained it."""

    label: str
    training: str
    method: str | None = None
    params: dict[str, Any] = field(default_factory=dict)


NETWORKS = (
    Network("ststnet"),
    Network("facs-flow", rate=1e-4),
    Network("fr"),
    Network("basic_inception"),
    Network("flow_resnet18", {"size": 56}),
    Network("mubert_tiny"),
)
FULL = ("ststnet", "facs-flow")
# Names of base and novel classes are FACS descriptions, which episodic training is not given: no start from them.
COSINE = {"init": "prototype"}
APPROACHES = {
    "untrained": Approach("as it begins, then `cosine`", "", "cosine", COSINE),
    "cosine": Approach("supervised, then `cosine`", "supervised", "cosine", COSINE),
    "simpleshot": Approach("supervised, then `simpleshot`", "supervised", "simpleshot"),
    "alpha_tim": Approach("supervised, then `alpha_tim` (transductive)", "supervised", "alpha_tim"),
    "laplacian_shot": Approach("supervised, then `laplacian_shot` (transductive)", "supervised", "laplacian_shot"),
    "protonet": Approach("`protonet` on episodes", "protonet"),
    "anil": Approach("`anil` on episodes", "anil"),
    "maml": Approach("`maml` on episodes", "maml"),
    "r2d2": Approach("`r2d2` on episodes", "r2d2"),
}
EVERYWHERE = ("untrained", "cosine", "simpleshot", "alpha_tim", "protonet", "anil")
# A first row of the classifier for all classes: `new-camera` has three of them.
PARAMS: dict[str, dict[str, Any]] = {"anil": {"shared_head": True}, "maml": {"shared_head": True}}

CELLS = [f"{place}_{shot}" for place in PROTOCOLS for shot in SHOTS]
COLUMNS = [
    *("name", "label", "budget", "seconds"),
    *(f"{cell}{end}" for cell in CELLS for end in ("", "_low", "_high")),
    *("command", "seeds", "versions", "weights", "date", "commit", "note"),
]


def grid() -> list[tuple[Network, str]]:
    """Backbone and approach of every row."""
    return [
        (network, approach)
        for network in NETWORKS
        for approach in APPROACHES
        if network.name in FULL or approach in EVERYWHERE
    ]


def row_name(network: Network, approach: str, budget: int) -> str:
    """What tells a row from others: another budget makes another row."""
    own = f"{network.name}-{approach}"
    return own if budget == BUDGET else f"{own}-{budget}"


def trained(network: Network, training: str, budget: int, folder: Path) -> tuple[Backbone, float]:
    """The backbone after a training, which is done once, and the processor seconds of it."""
    if not training:
        return network.start().eval(), 0.0
    weights = folder / f"{network.name}-{training}-{budget}"
    note = weights.with_suffix(".json")
    if note.is_file():
        return fsmer.load_model(weights), float(json.loads(note.read_text())["seconds"])
    start, base = network.start(), _clips(network, BASE)
    began = time.process_time()
    if training == "supervised":
        epochs = math.ceil(budget / len(base))
        base = base[: budget // epochs]
        rate = {"learning_rate": network.rate} if network.name in FULL else {}
        backbone = fsmer.train(start, base, epochs=epochs, seed=0, **rate).backbone
    else:
        protocol = fsmer.load_protocol(BASE)
        clips = BATCH * protocol.params["way"] * (protocol.params["shot"] + protocol.params["query"])
        steps = max(1, round(budget / clips))
        how = {"steps": steps, "batch": BATCH, "learning_rate": network.rate, **PARAMS.get(training, {})}
        backbone = fsmer.meta_train(start, protocol, training, clips=base, **how)
    seconds = time.process_time() - began
    backbone.save_pretrained(weights)
    write_json(note, {"seconds": seconds})
    return backbone, seconds


def measured(network: Network, approach: str, budget: int, folder: Path, tasks: int = TASKS) -> dict[str, str]:
    """The figures of a row: UF1, mean over the tasks with the 95 % interval of that mean."""
    way = APPROACHES[approach]
    backbone, seconds = trained(network, way.training, budget, folder)
    found = {"seconds": f"{seconds:.0f}"} if way.training else {}
    method = None if way.method is None else fsmer.load_method(way.method, **way.params)
    for place, protocol in PROTOCOLS.items():
        for shot in SHOTS:
            chosen = fsmer.load_protocol(protocol, shot=shot, episodes=tasks)
            report = fsmer.evaluate(chosen, backbone, method, clips=_clips(network, protocol))
            values = report.episodes["uf1"]
            half = 1.96 * values.std() / math.sqrt(len(values))
            shown = {"": report.uf1, "_low": report.uf1 - half, "_high": report.uf1 + half}
            found |= {f"{place}_{shot}{end}": f"{value:.3f}".removeprefix("0") for end, value in shown.items()}
    return found


def fill(
    path: Path, wanted: Callable[[str], bool], budget: int, folder: Path, tasks: int = TASKS
) -> list[dict[str, str]]:
    """Measure the wanted rows that `path` lacks, and write each as it is finished; all rows that it then has."""
    folder.mkdir(parents=True, exist_ok=True)
    commit = commit_name()  # of the code that runs, whatever is changed meanwhile
    held: dict[str, Mapping[str, str]] = {row["name"]: row for row in shipped_rows(path)} if path.is_file() else {}
    for network, approach in grid():
        name = row_name(network, approach, budget)
        if name in held or not wanted(f"{network.name}-{approach}"):
            continue
        print(f"{name} ...", flush=True)
        figures = measured(network, approach, budget, folder, tasks)
        asked = "" if budget == BUDGET else f" --budget {budget}"
        held[name] = {
            "name": name,
            "label": f"`{network.name}`, {APPROACHES[approach].label}",
            "budget": str(budget) if APPROACHES[approach].training else "",
            **figures,
            "command": f"python -m benchmarks.meta_table --rows {network.name}-{approach}{asked}",
            "seeds": "0",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "commit": commit,
        }
        order = {row_name(network, approach, budget): number for number, (network, approach) in enumerate(grid())}
        listed = sorted(held.values(), key=lambda row: order.get(row["name"], len(order)))
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(listed)
        print(figures, flush=True)
    return [dict(row) for row in held.values()]


@lru_cache(len(PROTOCOLS) + 1)  # those of one backbone
def _drawn(protocol: str, specs: tuple[Any, ...]) -> fsmer.ClipSet:
    return fsmer.load_protocol(protocol).make_clips(specs=specs)


def _clips(network: Network, protocol: str) -> fsmer.ClipSet:
    return _drawn(protocol, tuple(network.start().input_specs))


def main() -> None:
    """Fill the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="*", metavar="PATTERN", help="such as 'ststnet-*' or '*-anil'; default all")
    parser.add_argument("--budget", type=int, default=BUDGET, help="clips that each training sees")
    parser.add_argument("--tasks", type=int, default=TASKS, help="tasks a figure is the mean of")
    parser.add_argument("--table", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=Path("out/meta_table"), help="folder for trained weights")
    options = parser.parse_args()
    rows = fill(options.table, lambda name: fnmatchcase(name, options.rows), options.budget, options.out, options.tasks)
    for row in rows:
        print(row["label"], *(f"{cell}={row[cell]}" for cell in CELLS), sep="  ")


if __name__ == "__main__":
    main()
