"""Solving episodes on cached embeddings beside easyfsl: inductive and transductive methods, and the memory it takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.figures import Figure, best_rate, best_rates, has_easyfsl, peak_memory
from benchmarks.sets import WAY, cached_set, five_classes
from fsmer import KShotSampler
from fsmer.backbones import ClassDirections
from fsmer.transfer import Method, load_method

WIDTH = 512
EPISODES = 1000
# easyfsl takes minutes for 1,000 episodes of fine-tuning; its rate does not depend on how many there are.
PEER_EPISODES = 40
CHECKED_EPISODES = 100
MEMORY_EPISODES = 20_000


def run(*, thorough: bool = False) -> list[Figure]:
    """Rates in episodes a second, 3-way 5-shot with 15 queries a class, drawing included on both sides."""
    if not has_easyfsl("methods"):
        return []
    from easyfsl.methods import Finetune, PrototypicalNetworks

    from benchmarks.peers import PeerSampler, features, peer_evaluate, peer_predictions

    embeddings, labels = cached_set(width=WIDTH)
    data = features(embeddings, labels)
    plan = KShotSampler(way=WAY, shot=5, query=15).plan(labels)

    def solve(method: Method, episodes: int) -> Tensor:
        found = torch.empty(episodes, WAY * 15, dtype=torch.int8)
        for start in range(0, episodes, EPISODES):
            batch = plan.draw(start, min(start + EPISODES, episodes))
            solved = method.solve(embeddings, batch.support, batch.support_labels, batch.query, way=WAY)
            for part, logits in solved:
                found[start + part.start : start + part.stop] = logits.argmax(dim=-1)
        return found

    def compare(
        name: str, method: Method, peer: Callable[[], torch.nn.Module], count: int, checked: int, times: int
    ) -> list[Figure]:
        solve(method, 50)
        sampler = PeerSampler(data, WAY, 5, 15, count)
        fast, slow = best_rates(
            lambda: len(solve(method, EPISODES)), lambda: peer_evaluate(peer(), data, sampler), rounds=4, repeats=2
        )
        batch = plan.draw(0, checked)
        same = solve(method, checked) == peer_predictions(peer(), data, batch.support, batch.query, way=WAY)
        return [
            Figure(name, f"{fast:,.0f}/s", f"{slow:,.1f}/s", fast / slow, f"{times}x", fast >= times * slow),
            Figure(
                f"{name}: predictions like the peer's",
                f"{int(same.sum()):,} of {same.numel():,}",
                promise="all",
                kept=bool(same.all()),
            ),
        ]

    # easyfsl's Finetune in this library's parameters: class means at their own length, plain cross-entropy, no centre.
    plain = load_method(
        "cosine", init="prototype", pull=0.0, centre=False, balanced=False, scale=1.0, learning_rate=1e-4, steps=200
    )
    checked = EPISODES if thorough else CHECKED_EPISODES
    return [
        *compare("ProtoNet, 512-d", load_method("protonet"), PrototypicalNetworks, EPISODES, EPISODES, 50),
        *compare("cosine head, 200 Adam steps, 512-d", plain, Finetune, PEER_EPISODES, checked, 40),
        _limit(lambda: len(solve(plain, EPISODES))),
        *_transductive(checked),
        *_memory(solve),
    ]


def _transductive(checked: int) -> list[Figure]:
    """5-way 5-shot with 75 queries that are answered together."""
    from easyfsl.methods import TIM, LaplacianShot

    from benchmarks.peers import PeerSampler, features, peer_evaluate, peer_predictions

    embeddings, labels = five_classes(width=WIDTH)
    centre = embeddings.mean(dim=0)
    data = features(embeddings, labels)
    plan = KShotSampler(way=5, shot=5, query=15).plan(labels)
    nothing = torch.zeros(5, dtype=torch.bool)
    prior = ClassDirections(torch.zeros(5, WIDTH), torch.zeros(5), nothing, 1.0, centre)
    # easyfsl's TIM in this library's parameters: cosines, and Shannon's entropy.
    shannon = load_method(
        "alpha_tim", alpha=1.0, distance="cosine", scale=10.0, conditional_weight=0.1, steps=50, centre=True
    )

    def solve(method: Method, episodes: int) -> Tensor:
        batch = plan.draw(0, episodes)
        solved = method.solve(embeddings, batch.support, batch.support_labels, batch.query, way=5, prior=prior)
        return torch.cat([logits.argmax(dim=-1) for _, logits in solved])

    figures = []
    for name, method, peer in (
        ("LaplacianShot, 512-d", load_method("laplacian_shot"), LaplacianShot),
        ("TIM (alpha_tim with alpha=1), 50 Adam steps, 512-d", shannon, TIM),
    ):
        solve(method, 50)
        model = peer(feature_centering=centre, feature_normalization=2)
        sampler = PeerSampler(data, 5, 5, 15, PEER_EPISODES)
        fast, slow = best_rates(
            lambda method=method: len(solve(method, EPISODES)),
            lambda model=model, sampler=sampler: peer_evaluate(model, data, sampler),
            rounds=4,
            repeats=1,
        )
        batch = plan.draw(0, checked)
        same = solve(method, checked) == peer_predictions(model, data, batch.support, batch.query, way=5)
        figures += [
            Figure(name, f"{fast:,.0f}/s", f"{slow:,.1f}/s", fast / slow, "20x", fast >= 20 * slow),
            Figure(
                f"{name}: predictions like the peer's",
                f"{int(same.sum()):,} of {same.numel():,}",
                promise="all",
                kept=bool(same.all()),
            ),
        ]
    return figures


def _limit(cosine: Callable[[], int]) -> Figure:
    """The bytes that fitting cosine heads moves, beside the rate at which this machine copies memory."""
    # Ones, since pages of zeros that nobody has written to are all one page.
    large, target = (np.ones(1 << 26, np.float32) for _ in range(2))

    def copy() -> int:
        np.copyto(target, large)
        return 2 * large.nbytes

    # A step reads the support twice; Adam and the gradient go over the weights of an episode 21 times.
    moved = 200 * 4 * WIDTH * (2 * 5 * WAY + 21 * WAY) * best_rate(cosine, rounds=3)
    copied = best_rate(copy)
    name = "cosine head: bytes moved, beside a plain copy in memory"
    return Figure(name, f"{moved / 1e9:.0f} GB/s", f"{copied / 1e9:.0f} GB/s", moved / copied)


def _memory(solve: Callable[[Method, int], Tensor]) -> list[Figure]:
    figures = []
    for name, method in (
        ("ProtoNet", load_method("protonet")),
        ("cosine head", load_method("cosine", steps=2)),
    ):
        needed = peak_memory(lambda method=method: solve(method, MEMORY_EPISODES))
        if needed is not None:
            figures.append(_memory_figure(f"memory, {name}, {MEMORY_EPISODES:,} episodes", needed))
    embeddings, labels = cached_set(width=64, repeats=500)
    batch = KShotSampler(way=WAY, shot=5).plan(labels).draw(0, 20)

    def rest() -> None:
        for name in ("protonet", "cosine"):
            method = load_method(name, **({"steps": 2} if name == "cosine" else {}))
            for _, logits in method.solve(embeddings, batch.support, batch.support_labels, way=WAY):
                np.bincount(logits.argmax(dim=-1).flatten())

    needed = peak_memory(rest)
    if needed is not None:
        figures.append(_memory_figure(f"memory, both, query the rest of {len(labels):,} clips", needed))
    return figures


def _memory_figure(name: str, needed: float) -> Figure:
    return Figure(name, f"{needed:.0f} MiB", promise="256 MiB", kept=needed <= 256)
