"""`facs-flow`: a compact CNN on 28x28 flow maps, pretrained on synthetic FACS motion alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.backbones.base import Backbone, ClassDirections
from fsmer.backbones.registry import register_backbone
from fsmer.data.spec import InputSpec
from fsmer.data.synthetic import ACTION_UNIT_ORDER, EMOTION_ORDER

__all__ = ["COARSE_CLASSES", "FacsFlow"]

# The three classes of MEGC 2019 and SMIC, then every emotion of the synthetic data: one direction each.
COARSE_CLASSES: tuple[str, ...] = ("negative", "positive", "surprise")


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


@register_backbone("facs-flow")
class FacsFlow(Backbone):
    """Four-stage CNN on u, v, strain; knows action units and emotions from synthetic FACS motion.

    Each map is standardised and joined by two coordinate channels; four stages of two 3x3 convolutions halve the picture from the
    second stage on; a linear layer gives the embedding. Heads on it: one logit an action unit, and cosine classifiers (MERAU eq. 6-7
    with a scale) for the three coarse classes and for the single emotions, which are what `class_directions` hands out.

    Parameters
    ----------
    widths : sequence of int
        Channels of the stages.
    embed_dim : int
        Length of the embedding.
    scale : float
        Factor on the cosines.
    mirror : bool
        In evaluation mode, average the embedding with that of the mirrored face (left-right is not what a class depends on).
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 128, 128),
        embed_dim: int = 128,
        scale: float = 12.0,
        mirror: bool = True,
    ) -> None:
        spec = InputSpec(kind="flow", size=(28, 28), channels=("u", "v", "strain"), normalisation="minmax")
        config = {"widths": list(widths), "embed_dim": embed_dim, "scale": scale, "mirror": mirror}
        super().__init__(input_spec=spec, embed_dim=embed_dim, config=config)
        self.scale = scale
        self.mirror = mirror
        channels = [len(spec.channels) + 2, *widths]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(ConvBlock(inputs, outputs, stride=1 if stage == 0 else 2), ConvBlock(outputs, outputs))
                for stage, (inputs, outputs) in enumerate(pairwise(channels))
            )
        )
        side = spec.size[0]
        for _ in widths[1:]:
            side = (side + 1) // 2
        self.projection = nn.Linear(widths[-1] * side * side, embed_dim)
        self.unit_head = nn.Linear(embed_dim, len(ACTION_UNIT_ORDER))
        self.coarse_head = nn.Parameter(0.1 * torch.randn(len(COARSE_CLASSES), embed_dim))
        self.emotion_head = nn.Parameter(0.1 * torch.randn(len(EMOTION_ORDER), embed_dim))
        axis = torch.linspace(-1, 1, spec.size[0])
        self.register_buffer("coordinates", torch.stack(torch.meshgrid(axis, axis, indexing="xy"))[None], persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Embeddings of shape (B, embed_dim) for minmax maps of shape (B, 3, 28, 28)."""
        if self.training or not self.mirror:
            return self._embed(inputs)
        # Mirroring turns the direction of u around: 1 - u on a map scaled to 0..1.
        mirrored = inputs.flip(-1)
        mirrored = torch.cat([1 - mirrored[:, :1], mirrored[:, 1:]], dim=1)
        both: Tensor = self._embed(torch.cat([inputs, mirrored]))
        return both.view(2, len(inputs), -1).mean(dim=0)

    def _embed(self, inputs: Tensor) -> Tensor:
        centred = inputs - inputs.mean(dim=(2, 3), keepdim=True)
        standardised = centred / (centred.std(dim=(2, 3), keepdim=True) + 1e-3)
        coordinates = self.coordinates.to(standardised.dtype).expand(len(inputs), -1, -1, -1)
        features = self.stages(torch.cat([standardised, coordinates], dim=1))
        embedding: Tensor = self.projection(features.flatten(1))
        return embedding

    def unit_logits(self, embeddings: Tensor) -> Tensor:
        """Logits of the action units, (B, 30), in the order of `fsmer.data.synthetic.ACTION_UNIT_ORDER`."""
        logits: Tensor = self.unit_head(embeddings)
        return logits

    def cosine_logits(self, embeddings: Tensor, directions: Tensor) -> Tensor:
        """Scaled cosines between embeddings (B, D) and class directions (C, D)."""
        return self.scale * F.normalize(embeddings, dim=-1) @ F.normalize(directions, dim=-1).T

    def class_directions(self, classes: Sequence[str]) -> ClassDirections | None:
        """Directions of the coarse classes and single emotions that were learnt in pretraining."""
        rows = dict(zip((*EMOTION_ORDER, *COARSE_CLASSES), [*self.emotion_head.detach(), *self.coarse_head.detach()], strict=True))
        known = torch.tensor([name in rows for name in classes])
        if not bool(known.any()):
            return None
        blank = torch.zeros(self.embed_dim)
        return ClassDirections(
            weight=torch.stack([rows.get(name, blank).cpu() for name in classes]),
            bias=torch.zeros(len(classes)),
            known=known,
            scale=self.scale,
            centre=blank,
        )
