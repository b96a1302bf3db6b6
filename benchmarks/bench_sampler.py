"""Drawing episodes: fsmer's sampler beside easyfsl's."""

from __future__ import annotations

import numpy as np

from benchmarks.figures import Figure, best_rate, best_rates, has_easyfsl
from benchmarks.sets import COUNTS, WAY, cached_set
from fsmer import KShotSampler

EPISODES = 20_000
CHUNK = 1000


def run() -> list[Figure]:
    """Rates in episodes a second, 3-way 5-shot with 15 queries a class or the rest."""
    if not has_easyfsl("sampler"):
        return []
    from benchmarks.peers import PeerSampler, features

    embeddings, labels = cached_set(width=2)
    data = features(embeddings, labels)
    counted, rest = KShotSampler(way=WAY, shot=5, query=15), KShotSampler(way=WAY, shot=5, query="rest")
    large = np.repeat(np.arange(3), [1_000_000 * count // sum(COUNTS) for count in COUNTS])

    def draw(sampler: KShotSampler, codes: np.ndarray) -> float:
        plan = sampler.plan(codes)

        def work() -> int:
            for start in range(0, EPISODES, CHUNK):
                plan.draw(start, start + CHUNK)
            return EPISODES

        return best_rate(work)

    plan = counted.plan(labels)
    peer = PeerSampler(data, WAY, 5, 15, 2000)

    def ours() -> int:
        for start in range(0, EPISODES, CHUNK):
            plan.draw(start, start + CHUNK)
        return EPISODES

    fast, slow = best_rates(ours, lambda: len(list(peer)), rounds=5)
    figures = [
        Figure(
            "draw episodes, 442 clips",
            f"{fast:,.0f}/s",
            f"{slow:,.0f}/s",
            fast / slow,
            "8x and 50,000/s",
            fast >= 8 * slow and fast >= 50_000,
        )
    ]
    for name, sampler, codes in (
        ("draw episodes, 442 clips, query the rest", rest, labels),
        ("draw episodes, 1,000,000 clips", counted, large),
        ("draw episodes, 1,000,000 clips, query the rest", rest, large),
    ):
        rate = draw(sampler, codes)
        figures.append(Figure(name, f"{rate:,.0f}/s", promise="50,000/s", kept=rate >= 50_000))
    return figures
