"""Every backbone trained on one synthetic domain and adapted to another: ``make table`` prints the table.

Each row is a run of the public API: fresh weights, `fsmer.train` on the source by the backbone's recipe with fewer
epochs, then `fsmer.evaluate` on the target. Sizes are such that two CPU cores train each in minutes; the papers' sizes
are the constructors' defaults. Finished rows and trained weights are kept, so that an interrupted table goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import fsmer
from fsmer.backbones import Backbone
from fsmer.io import write_json

SOURCE, TARGET = ("broad", 600, 1), ("clinic", 180, 2)
SHOTS = (1, 5, 10)
EPISODES = 200
# Shots in which the network before its training is judged too: what its shape alone is worth.
FRESH_SHOT = 5


@dataclass(frozen=True)
class Row:
    """One line: a backbone, its constructor arguments and its training."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    epochs: int = 0
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.arguments.items()) or "default"


VIDEO = {"width": 16, "size": 56, "frames": 8, "text": "scratch"}
ROWS = (
    Row("facs-flow"),
    Row("fr", epochs=20),
    Row("basic_inception", epochs=20),
    Row("ensemble", epochs=20),
    Row("ststnet", epochs=300, params={"learning_rate": 1e-3}),
    Row("flow_resnet18", {"size": 56}, epochs=15),
    Row("tcae", {"size": 64, "embedding": "difference"}, epochs=20),
    Row("merau", {"frame_size": 64, "flow": {"size": 56}}, epochs=15),
    Row("mmnet", {"size": 56, "stem": [[24, 1]], "stages": [[48, 2], [48, 1], [96, 2], [96, 1]], "pool": 7}, epochs=15),
    Row("mubert_tiny", epochs=10),
    Row("r3d10_attribute", VIDEO, epochs=15, params={"learning_rate": 1e-3}),
    Row("r3d18_attribute", VIDEO, epochs=15, params={"learning_rate": 1e-3}),
    Row("r3d34_attribute", VIDEO, epochs=15, params={"learning_rate": 1e-3}),
)


def trained(row: Row, found: dict[str, Any], weights: Path, seed: int = 0) -> Backbone:
    """The backbone after its training, which is done once; its processor seconds are noted in `found`."""
    if not row.epochs:
        found["seconds"] = 0.0
        return fsmer.load_model(row.name)
    if "seconds" in found and (weights / "config.json").is_file():
        return fsmer.load_model(weights)
    # Of all cores together, so that a busy machine gives about the same.
    started = time.process_time()
    backbone = _fresh(row, seed)
    source = _clips(SOURCE, backbone)
    backbone = fsmer.train(backbone, source, epochs=row.epochs, seed=seed, **row.params).backbone
    found["seconds"] = time.process_time() - started
    backbone.save_pretrained(weights)
    return backbone


def judged(backbone: Backbone, seed: int = TARGET[2]) -> dict[str, Any]:
    """Zero-shot, where the backbone knows words, and few-shot UF1 on the target, whose clips are drawn with `seed`."""
    target = _clips((*TARGET[:2], seed), backbone)
    found: dict[str, Any] = {"parameters": sum(value.numel() for value in backbone.parameters())}
    if backbone.class_directions(target.classes) is not None:
        found["0"] = fsmer.evaluate(fsmer.load_protocol("kshot", shot=0), backbone, "zero_shot", clips=target).uf1
    return found | {str(shot): _score(backbone, target, shot) for shot in SHOTS}


def measure_fresh(row: Row, seed: int = 0) -> float:
    """The same network before its training, with `FRESH_SHOT` labelled clips a class."""
    backbone = _fresh(row, seed)
    return _score(backbone, _clips(TARGET, backbone), FRESH_SHOT)


def _fresh(row: Row, seed: int) -> Backbone:
    torch.manual_seed(seed)
    return fsmer.create_model(row.name, **row.arguments)


def _score(backbone: Backbone, target: fsmer.ClipSet, shot: int) -> float:
    protocol = fsmer.load_protocol("kshot", shot=shot, episodes=EPISODES)
    return fsmer.evaluate(protocol, backbone, "cosine", clips=target).uf1


def _clips(domain: tuple[str, int, int], backbone: Backbone) -> fsmer.ClipSet:
    name, n, seed = domain
    clips = fsmer.synthetic_clips(name, n, seed=seed, specs=backbone.input_specs)
    # Drawn once; every epoch reads the media again.
    media = {spec.kind: clips.media(spec.kind) for spec in backbone.input_specs}
    table = clips.table
    return fsmer.ClipSet.from_arrays(
        media,
        clips.labels,
        subjects=clips.subjects,
        datasets=clips.datasets,
        ids=clips.ids,
        aus=table["aus"].astype(str).tolist(),
        spec=[clips.specs[spec.kind] for spec in backbone.input_specs],
    )


def table(results: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| backbone | sizes | parameters | epochs | training, processor s | zero-shot | 1-shot | 5-shot | 10-shot | "
        "5-shot untrained |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        if row.name not in results:
            continue
        found = results[row.name]
        scores = " | ".join(f"{found[shot]:.2f}" if shot in found else "-" for shot in ("0", "1", "5", "10", "fresh"))
        trained = f"{row.epochs} | {found['seconds']:.0f}" if row.epochs else "shipped | -"
        held = found["parameters"]
        size = f"{held / 1e6:.2f} M" if held > 10_000 else f"{held:,}"
        lines.append(f"| `{row.name}` | {row.sizes} | {size} | {trained} | {scores} |")
    return "\n".join(lines)


def main() -> None:
    """Fill and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="rows to run; default all")
    parser.add_argument("--out", type=Path, default=Path("out/backbones.json"))
    parser.add_argument("--judge", action="store_true", help="judge the trained weights beside --out once more")
    parser.add_argument(
        "--others", type=int, metavar="SEED", help="judge on target clips of another seed instead, which are not kept"
    )
    options = parser.parse_args()
    results: dict[str, dict[str, Any]] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for row in ROWS:
        if options.names and row.name not in options.names:
            continue
        found = results.setdefault(row.name, {})
        print(f"{row.name} ...", flush=True)
        if options.judge or options.others is not None or str(SHOTS[-1]) not in found:
            backbone = trained(row, found, options.out.with_suffix("") / row.name)
            write_json(options.out, results)
            if options.others is not None:
                print(
                    f"{row.name} on the clips of seed {options.others}: {judged(backbone, options.others)}", flush=True
                )
                continue
            found |= judged(backbone)
            write_json(options.out, results)
        if "fresh" not in found:
            found["fresh"] = measure_fresh(row)
            write_json(options.out, results)
        print(f"{row.name}: {found}", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
