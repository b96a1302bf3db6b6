"""Every backbone beside a plain version of itself; then the memory that embedding a large set takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks import streaming
from benchmarks.figures import Figure, best_rates
from benchmarks.plain_backbones import plain, plain_loss
from fsmer.backbones import Backbone, Targets, create_model
from fsmer.backbones.base import Inputs

CLASSES = ("negative", "positive", "surprise")
ROUNDS = 6
# How much longer than its plain version a backbone may take.
ALLOWED = 1.15
SAME = 1e-5


@dataclass(frozen=True)
class Case:
    """A backbone at a size that one core goes through in a fraction of a second."""

    name: str
    reference: str
    batch: int
    arguments: dict[str, Any] = field(default_factory=dict)


# alpha=0 leaves out the text, of which there is no plain version.
VIDEO = {"width": 32, "size": 56, "frames": 8, "alpha": 0.0}
CASES = (
    Case("flow_resnet18", "timm resnet18", 4, {"size": 112}),
    Case("basic_inception", "convolution by convolution", 64),
    Case("fr", "loop over the branches", 64),
    Case("tcae", "layers in sequence", 16, {"size": 64}),
    Case("merau", "layers in sequence", 4, {"frame_size": 64, "flow": {"size": 112}}),
    Case("mmnet", "timm Blocks, plain layers", 2, {"size": 112}),
    Case("mubert_tiny", "timm Blocks, dense map", 4),
    Case("mubert_small", "timm Blocks, dense map", 1, {"image_size": 112}),
    Case("r3d10_attribute", "torchvision VideoResNet", 4, VIDEO),
    Case("r3d18_attribute", "torchvision VideoResNet", 4, VIDEO),
    Case("r3d34_attribute", "torchvision VideoResNet", 2, VIDEO),
)


def run() -> list[Figure]:
    """Time of a forward pass and of a training step, in turn with the plain version, and streaming."""
    figures, differences = [], []
    for case in CASES:
        found, difference = compare(case)
        figures += found
        differences.append(difference)
    largest = max(differences)
    same = Figure("embeddings of both: largest difference", f"{largest:.0e}", promise="1e-5", kept=largest <= SAME)
    return [*figures, same, *streaming.run()]


def compare(case: Case, rounds: int = ROUNDS) -> tuple[list[Figure], float]:
    """Both times of one backbone, and how far its embeddings are from the plain ones, relative to their size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = create_model(case.name, **case.arguments)
        inputs = drawn_inputs(own, case.batch)
        other = plain(own)
        classifier = nn.Linear(own.embed_dim, len(CLASSES))
        targets = Targets(torch.arange(case.batch) % len(CLASSES), CLASSES)

        def step(loss: Callable[[], torch.Tensor], network: nn.Module) -> int:
            loss().backward()
            network.zero_grad(set_to_none=True)
            return 1

        ours, peer = best_rates(
            lambda: step(lambda: own.training_loss(inputs, targets, classifier), own),
            lambda: step(lambda: plain_loss(other, inputs, targets, classifier), other),
            rounds=rounds,
        )
        trained = figure(f"{case.name}, training step ({case.reference})", ours, peer)
        own.eval()
        other.eval()
        with torch.inference_mode():
            ours, peer = best_rates(lambda: len(own(inputs)), lambda: len(other(inputs)), rounds=rounds)
        answered = figure(f"{case.name}, forward", ours / case.batch, peer / case.batch)
        return [answered, trained], difference(own, inputs)


def figure(name: str, ours: float, peer: float) -> Figure:
    """A line of the table from two rates in passes a second."""
    share = peer / ours
    return Figure(
        name,
        f"{1000 / ours:.1f} ms, {share:.2f} of the peer's time",
        f"{1000 / peer:.1f} ms",
        ours / peer,
        f"{ALLOWED:.2f} of it",
        share <= ALLOWED,
    )


def difference(own: Backbone, inputs: Inputs) -> float:
    """Largest difference of the embeddings relative to the largest of them."""
    with torch.inference_mode():
        ours, theirs = own(inputs), plain(own)(inputs)
    return float((ours - theirs).abs().max() / ours.abs().max())


def drawn_inputs(backbone: Backbone, batch: int) -> Inputs:
    """Random media of the backbone's kinds."""
    generator = torch.Generator().manual_seed(1)
    media = {spec.kind: torch.rand(batch, *spec.shape, generator=generator) for spec in backbone.input_specs}
    return media if len(media) > 1 else next(iter(media.values()))
