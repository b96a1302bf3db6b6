"""What pixels say without any network: ``python -m benchmarks.pixels DIR`` prints reference figures.

Each figure is a reading of the labels in DIR, and a row of ``releases.csv``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

import fsmer
from benchmarks.releases import READINGS, append, row_of
from fsmer.backbones import Backbone
from fsmer.data import InputSpec

EPISODES = 1000


class Pixels(Backbone):
    """A flow map as it is, flattened."""

    name = "pixels"

    def __init__(self, size: int = 28) -> None:
        spec = InputSpec("flow", (size, size), ("u", "v", "strain"), "minmax")
        super().__init__(input_spec=spec, embed_dim=3 * size * size, config={"size": size})

    def forward(self, inputs: Tensor) -> Tensor:
        """Pixels of shape (B, 3 * size * size)."""
        return inputs.flatten(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Leave one subject out on everything, then few labels in each data set."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pixels", description=__doc__)
    parser.add_argument("data", help="folder of flow maps, 28x28")
    parser.add_argument(
        "--to", type=Path, default=READINGS, help="table of readings (default: benchmarks/releases.csv)"
    )
    asked = parser.parse_args(arguments)
    clips = fsmer.read_clips(asked.data)
    command = ["python", "-m", "benchmarks.pixels", "DIR"]
    report = fsmer.evaluate("loso", Pixels(), "logistic", clips=clips)
    append(row_of(report, command, "logistic regression, one subject left out"), asked.to)
    print(f"leave one subject out, logistic regression: UF1 {report.uf1:.3f}, UAR {report.uar:.3f}")
    protocol = fsmer.load_protocol("kshot", way=3, shot=5, episodes=EPISODES)
    for name in sorted(set(clips.datasets)):
        report = fsmer.evaluate(protocol, Pixels(), "protonet", clips=clips[clips.datasets == name])
        append(row_of(report, command, "nearest class mean, 5 labels a class"), asked.to)
        print(f"{name}, 5 labels a class, nearest class mean: UF1 {report.uf1:.3f}")


if __name__ == "__main__":
    main()
