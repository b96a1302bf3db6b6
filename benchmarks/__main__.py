"""``python -m benchmarks [PART ...]``: run the benchmarks on one core and say which promises hold."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable

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
    bench_meta,
    bench_methods,
    bench_sampler,
)
from benchmarks.figures import Figure, print_figures

# What runs each part, told whether to be thorough.
PARTS: dict[str, Callable[[bool], list[Figure]]] = {
    "sampler": lambda _: bench_sampler.run(),
    "methods": lambda thorough: bench_methods.run(thorough=thorough),
    "generator": lambda _: bench_generator.run(),
    "latency": lambda _: bench_latency.run(),
    "attention": lambda _: bench_diagonal_attention.run(),
    "backbones": lambda _: bench_backbones.run(),
    "folds": lambda thorough: bench_folds.run(thorough=thorough),
    "episodes": lambda _: bench_episodes.run(),
    "meta": lambda _: bench_meta.run(),
}


def main() -> int:
    """Run the asked parts; 1 when a promise is missed."""
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
    parts = asked.parts or list(PARTS)
    torch.set_num_threads(1)
    print(
        f"fsmer benchmarks: one thread of {os.cpu_count()}, {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {np.__version__}. Ratios are what to trust."
    )
    figures = []
    with threadpool_limits(1):
        for part, run in PARTS.items():
            if part in parts:
                found = run(asked.thorough)
                # At once: all of them take half an hour.
                print_figures(found)
                figures += found
    if not figures:
        print("nothing was measured")
        return 1
    missed = [
        figure.name + ("" if figure.ratio is None else f" ({figure.ratio:.1f}x of {figure.promise})")
        for figure in figures
        if not figure.kept
    ]
    print(f"missed: {', '.join(missed)}" if missed else "all promises kept")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
