"""A backbone small enough for tests of everything that does not depend on which backbone it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.backbones import Backbone, ClassDirections, register_backbone
from fsmer.data import InputSpec


@register_backbone("tiny-for-tests")
class TinyBackbone(Backbone):
    """One pooling and two linear layers; knows the classes in `knows` by seeded random directions."""

    def __init__(self, embed_dim: int = 16, knows: Sequence[str] = (), seed: int = 0) -> None:
        spec = InputSpec(kind="flow", size=(28, 28), channels=("u", "v", "strain"), normalisation="minmax")
        super().__init__(
            input_spec=spec, embed_dim=embed_dim, config={"embed_dim": embed_dim, "knows": list(knows), "seed": seed}
        )
        generator = torch.Generator().manual_seed(seed)
        self.knows = tuple(knows)
        self.encoder = nn.Linear(3 * 49, 32)
        self.projection = nn.Linear(32, embed_dim)
        for value in self.parameters():
            value.data = 0.3 * torch.randn(value.shape, generator=generator)
        self.register_buffer("directions", torch.randn(len(self.knows), embed_dim, generator=generator))
        self.register_buffer("centre", 0.1 * torch.randn(embed_dim, generator=generator))
        self.register_buffer("precision", torch.eye(embed_dim) + 0.1)

    def forward(self, inputs: Tensor) -> Tensor:
        pooled = F.avg_pool2d(inputs - inputs.mean(dim=(2, 3), keepdim=True), 4).flatten(1)
        return self.projection(torch.relu(self.encoder(pooled)))

    def class_directions(self, classes: Sequence[str]) -> ClassDirections | None:
        known = torch.tensor([name in self.knows for name in classes])
        if not bool(known.any()):
            return None
        blank = torch.zeros(self.embed_dim)
        rows = [self.directions[self.knows.index(name)] if name in self.knows else blank for name in classes]
        bias = torch.where(known, torch.arange(len(known)) * 0.1, torch.zeros(len(known)))
        return ClassDirections(torch.stack(rows), bias, known, 8.0, self.centre, self.precision)
