"""`facs-flow`: a compact ensemble of CNNs on 28x28 flow maps, pretrained on synthetic FACS motion alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.ambient import library_settings
from fsmer.backbones import Backbone, ClassDirections, TrainRecipe, register_backbone
from fsmer.backbones.base import constructor_arguments
from fsmer.backbones.embedding import mirror_media
from fsmer.data.spec import InputSpec
from fsmer.synthetic.class_descriptions import unit_shares
from fsmer.synthetic.clips import ACTION_UNIT_ORDER, EMOTION_ORDER
from fsmer.synthetic.domains import THREE_CLASSES

__all__ = ["COARSE_CLASSES", "FacsFlow", "FlowBranch"]

# The three classes of MEGC 2019 and SMIC; the single emotions are those of the synthetic data.
COARSE_CLASSES: tuple[str, ...] = ("negative", "positive", "surprise")
CLASSES: tuple[str, ...] = (*COARSE_CLASSES, *EMOTION_ORDER)
# Pretraining draws the emotions of the coarse classes alone; the directions of others stay as random as they began.
LEARNT: frozenset[str] = frozenset(COARSE_CLASSES) | frozenset(THREE_CLASSES)

SIDE = 28


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class FlowBranch(nn.Module):
    """One network of the ensemble with its own heads; `pool` 2 averages the map over 2x2 pixels first. Each map is
    standardised and joined by two coordinate channels; four stages of two 3x3 convolutions bring it down to 4x4; a
    linear layer gives the embedding. On it sit one logit an action unit and one direction a class."""

    def __init__(self, widths: Sequence[int], embed_dim: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        strides = [1, 2, 2, 2] if pool == 1 else [1, 1, 2, 2]
        self.stages = nn.Sequential()
        for (inputs, outputs), stride in zip(pairwise([5, *widths]), strides, strict=True):
            self.stages.append(nn.Sequential(_block(inputs, outputs, stride), _block(outputs, outputs)))
        self.projection = nn.Linear(widths[-1] * 16, embed_dim)
        self.unit_head = nn.Linear(embed_dim, len(ACTION_UNIT_ORDER))
        self.directions = nn.Parameter(0.1 * torch.randn(len(CLASSES), embed_dim))
        axis = torch.linspace(-1, 1, SIDE // pool)
        self.coordinates = nn.Buffer(torch.stack(torch.meshgrid(axis, axis, indexing="xy"))[None], persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Embeddings of unit length, (B, embed_dim)."""
        return self.upper(self.lower(inputs))

    def lower(self, inputs: Tensor) -> Tensor:
        """Features (B, C, h, w) below the last stage."""
        return self.stages[:-1](self.prepare(inputs))

    def upper(self, features: Tensor) -> Tensor:
        """Embeddings of unit length, (B, embed_dim), of what `lower` gives."""
        return F.normalize(self.projection(self.stages[-1](features).flatten(1)).float(), dim=-1)

    def prepare(self, inputs: Tensor) -> Tensor:
        """Pooled and standardised maps with coordinates, (B, 5, 28 / pool, 28 / pool)."""
        maps = F.avg_pool2d(inputs, self.pool) if self.pool > 1 else inputs
        centred = maps - maps.mean(dim=(2, 3), keepdim=True)
        standardised = centred / (centred.std(dim=(2, 3), keepdim=True) + 1e-3)
        coordinates = self.coordinates.to(standardised.dtype).expand(len(maps), -1, -1, -1)
        return torch.cat([standardised, coordinates], dim=1)


class SideBySide:
    """Branches of one `pool` run as a single network of grouped convolutions, with batch normalisation folded in. Gives
    what the branches give one after the other in evaluation mode, in fewer and larger operations."""

    def __init__(self, branches: list[FlowBranch]) -> None:
        self.first = branches[0]
        self.count = len(branches)
        self.layers: list[tuple[Tensor, Tensor, tuple[int, ...]]] = []
        # The eight convolutions with their normalisation, in order.
        stages: Any = [branch.stages for branch in branches]
        blocks = ([block for stage in own for block in stage] for own in stages)
        for same in zip(*blocks, strict=True):
            weight, bias = (torch.cat(parts) for parts in zip(*(_fold(*block[:2]) for block in same), strict=True))
            self.layers.append((weight, bias, same[0][0].stride))
        self.weight = torch.stack([branch.projection.weight.detach() for branch in branches])
        self.bias = torch.stack([branch.projection.bias.detach() for branch in branches])

    def __call__(self, inputs: Tensor) -> list[Tensor]:
        """Unit embeddings of each branch, (B, embed_dim)."""
        features = self.first.prepare(inputs)
        for number, (weight, bias, stride) in enumerate(self.layers):
            groups = self.count if number else 1
            features = F.relu_(F.conv2d(features, weight, bias, stride, padding=1, groups=groups))
        parts = features.flatten(1).view(len(inputs), self.count, -1).transpose(0, 1)
        return list(F.normalize(torch.baddbmm(self.bias[:, None], parts, self.weight.transpose(1, 2)), dim=-1))


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that does its normalisation too."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    factor = (norm.weight / torch.sqrt(variance + norm.eps)).detach()
    return convolution.weight.detach() * factor[:, None, None, None], norm.bias.detach() - mean * factor


@register_backbone("facs-flow")
class FacsFlow(Backbone):
    """Ensemble of small CNNs on u, v, strain; knows action units and emotions from synthetic FACS motion.

    The embedding joins those of the branches, each scaled to unit length, so that the cosine with the joined class
    directions is the mean of the branches' cosines: the ensemble is one cosine classifier (MERAU eq. 6-7 with a scale).
    Those directions are what `class_directions` hands out. Half of the branches take the map at half its resolution,
    which makes their errors differ.

    Parameters
    ----------
    widths : sequence of int
        Channels of each branch's stages.
    branch_dim : int
        Length of each branch's embedding.
    pools : sequence of int
        One branch an entry, see `FlowBranch`.
    scale : float
        Factor on the cosines.
    smooth : float
        In evaluation mode, how far every map is drawn towards its 3x3 mean; pretraining shows up to 0.7. The finest
        patches that an estimator leaves carry no expression, and real and synthetic maps differ most in them.
    mirror : bool
        In evaluation mode, average the embedding with that of the mirrored face (left-right is not what a class depends
        on).
    """

    trusted: ClassVar[bool] = True
    recipe: ClassVar[TrainRecipe] = TrainRecipe(
        source="fsmer's own choice; embeddings have unit length, so the classifier needs large weights and learns fast",
        learning_rate=5e-4,
        rates={"classifier": 5e-2},
        label_smoothing=0.1,
        augment=("flip", "crop"),
        crop_pixels=1,
    )
    stackable: ClassVar[bool] = True

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 96),
        branch_dim: int = 48,
        pools: Sequence[int] = (1, 2, 1, 2),
        scale: float = 12.0,
        smooth: float = 0.7,
        mirror: bool = True,
    ) -> None:
        super().__init__(
            input_spec=InputSpec(kind="flow", size=(SIDE, SIDE), channels=("u", "v", "strain"), normalisation="minmax"),
            embed_dim=branch_dim * len(pools),
            config=constructor_arguments(locals()),
        )
        self.scale, self.smooth, self.mirror = scale, smooth, mirror
        self.branches = nn.ModuleList(FlowBranch(widths, branch_dim, pool) for pool in pools)
        self._folded_state: tuple[tuple[int, int], ...] = ()
        self._side_by_side: dict[int, SideBySide] = {}
        # Inverse scatter of embeddings inside a class, measured on synthetic clips after training.
        self.precision = nn.Buffer(torch.eye(self.embed_dim))

    def forward(self, inputs: Tensor | dict[str, Tensor]) -> Tensor:
        """Embeddings of shape (B, embed_dim) for minmax maps of shape (B, 3, 28, 28), or for what `lower` gives."""
        if isinstance(inputs, dict):
            parts = [
                branch.upper(part.flatten(0, 1)).unflatten(0, part.shape[:2]).mean(dim=1)
                for branch, part in zip(self.networks, inputs.values(), strict=True)
            ]
            return torch.cat(parts, dim=-1) / len(parts) ** 0.5
        if self.training:
            return self._embed(inputs).to(inputs.dtype)
        views = self._views(inputs)
        return self._embed(views).view(-1, len(inputs), self.embed_dim).mean(dim=0).to(inputs.dtype)

    def lower_layers(self) -> list[nn.Module]:
        """All stages of the branches but the last. On a few hundred clips they change nothing for the better:
        pretraining has shown them the whole variety of motion, and what differs between cameras and labels is how
        features are put together."""
        return [stage for branch in self.networks for stage in list(branch.stages)[:-1]]

    def lower(self, inputs: Tensor) -> dict[str, Tensor]:
        """Features of each branch, (B, views, C, h, w); in evaluation mode the mirrored face is the second view."""
        views = inputs if self.training else self._views(inputs)
        return {
            str(number): branch.lower(views).unflatten(0, (-1, len(inputs))).transpose(0, 1)
            for number, branch in enumerate(self.networks)
        }

    def _views(self, inputs: Tensor) -> Tensor:
        """Maps as evaluation mode embeds them: smoothed, then mirrored as well, (views * B, 3, 28, 28)."""
        maps = smoothed(inputs, self.smooth)
        return torch.cat([maps, mirror_media(maps, self.input_spec)]) if self.mirror else maps

    def _embed(self, inputs: Tensor) -> Tensor:
        folded = not self.training and torch.is_inference_mode_enabled()
        if not folded:
            # This may be a training step, and fused optimisers change weights without raising their version.
            self._folded_state = ()
        parts = self._folded(inputs) if folded else [branch(inputs) for branch in self.networks]
        return torch.cat(parts, dim=-1) / len(parts) ** 0.5

    def _folded(self, inputs: Tensor) -> list[Tensor]:
        """Embeddings of the branches from `SideBySide` networks, which are made anew when a weight has changed."""
        state = tuple((value.data_ptr(), value._version) for value in (*self.parameters(), *self.buffers()))
        if state != self._folded_state:
            groups: dict[int, list[FlowBranch]] = {}
            for branch in self.networks:
                groups.setdefault(branch.pool, []).append(branch)
            self._side_by_side = {pool: SideBySide(group) for pool, group in groups.items()}
            self._folded_state = state
        found = {pool: iter(together(inputs)) for pool, together in self._side_by_side.items()}
        return [next(found[branch.pool]) for branch in self.networks]

    @property
    def networks(self) -> list[FlowBranch]:
        """The branches, typed."""
        return cast(list[FlowBranch], list(self.branches))

    def unit_logits(self, embeddings: Tensor) -> Tensor:
        """Logits of the action units, (B, 30), in the order of `ACTION_UNIT_ORDER`; the mean of the branches."""
        parts = (self.scale * len(self.branches) ** 0.5 * embeddings).chunk(len(self.branches), dim=-1)
        scores = [branch.unit_head(part) for branch, part in zip(self.networks, parts, strict=True)]
        return torch.stack(scores).mean(dim=0)

    @library_settings()
    def class_directions(self, classes: Sequence[str]) -> ClassDirections | None:
        """Directions of classes that need no label. The coarse classes and the emotions of pretraining have directions
        of their own. Further emotions with a FACS description (tense, others) and classes named by action units
        (``"4+7"``, ``"AU12"``, ``"cheek raiser, lip corner puller"``) get the sum of their units' directions in the
        action unit head, averaged over the combinations that the emotion is seen with."""
        found = [self._direction(name) for name in classes]
        blank = torch.zeros(self.embed_dim)
        return ClassDirections.of(found, scale=self.scale, centre=blank, precision=self.precision.cpu())

    def _direction(self, name: str) -> Tensor | None:
        """The joined direction of one class, of unit length, or None."""
        if name in LEARNT:
            parts = [branch.directions.detach().cpu()[CLASSES.index(name)] for branch in self.networks]
        elif (shares := unit_shares(name)) is not None:
            shown = torch.from_numpy(shares)
            parts = [shown @ F.normalize(branch.unit_head.weight.detach().cpu(), dim=-1) for branch in self.networks]
        else:
            return None
        return F.normalize(torch.cat([F.normalize(part, dim=-1) for part in parts]), dim=-1)


def smoothed(inputs: Tensor, amount: float | Tensor) -> Tensor:
    """Maps (B, C, H, W) drawn towards their 3x3 mean by `amount`; a negative amount sharpens."""
    mean = F.avg_pool2d(F.pad(inputs, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return inputs + amount * (mean - inputs)
