"""``python -m benchmarks [PART ...]``: run the benchmarks on one core and say which promises hold."""

from __future__ import annotations

import argparse
import os
import platform
import sys

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks import (
    bench_backbones,
    bench_diagonal_attention,
    bench_episodes,
    bench_folds,
    bench_generator,
    bench_latency,
    bench_methods,
    bench_sampler,
)
from benchmarks.figures import print_figures

PARTS = ("sampler", "methods", "generator", "latency", "attention", "backbones", "folds", "episodes")


def main() -> int:
    """Run the asked parts; 1 when a promise is broken."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed of fsmer beside its peers, one core."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)} (default: all)")
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="compare all 1,000 fine-tuned episodes, train all 68 folds of facs-flow (takes minutes)",
    )
    asked = parser.parse_args()
    unknown = sorted(set(asked.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    parts = asked.parts or PARTS
    torch.set_num_threads(1)
    print(
        f"fsmer benchmarks: one thread of {os.cpu_count()}, {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {np.__version__}. Ratios are what to trust."
    )
    figures = []
    with threadpool_limits(1):
        if "sampler" in parts:
            figures += bench_sampler.run()
        if "methods" in parts:
            figures += bench_methods.run(thorough=asked.thorough)
        if "generator" in parts:
            figures += bench_generator.run()
        if "latency" in parts:
            figures += bench_latency.run()
        if "attention" in parts:
            figures += bench_diagonal_attention.run()
        if "backbones" in parts:
            figures += bench_backbones.run()
        if "folds" in parts:
            figures += bench_folds.run(thorough=asked.thorough)
        if "episodes" in parts:
            figures += bench_episodes.run()
    print_figures(figures)
    broken = [figure.name for figure in figures if not figure.kept]
    print(f"broken: {', '.join(broken)}" if broken else "all promises kept")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
