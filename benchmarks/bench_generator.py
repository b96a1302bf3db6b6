"""Drawing synthetic flow maps."""

from __future__ import annotations

from benchmarks.figures import Figure, best_rate
from fsmer.synthetic.clips import synthetic_maps

MAPS = 2048


def run() -> list[Figure]:
    """Rate in maps a second at 28x28, on one core."""
    rate = best_rate(lambda: len(synthetic_maps(MAPS, seed=1).maps), rounds=3)
    return [Figure("synthetic maps, 28x28", f"{rate:,.0f}/s", promise="1,000/s", kept=rate >= 1000)]
