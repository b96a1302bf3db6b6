"""`fr` and `basic_inception`: two-stream Inception on small flow maps, with a branch of features for each class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.backbones import Backbone, Targets, TrainRecipe, register_backbone
from fsmer.backbones.base import constructor_arguments
from fsmer.data.spec import InputSpec
from fsmer.errors import FsmerError
from fsmer.kernels.dense import OneDnnLinear
from fsmer.kernels.inception import compiled_features
from fsmer.kernels.noise import dropout

__all__ = ["CDMER_RECIPE", "FR", "BasicInception"]

L = TypeVar("L", nn.Conv2d, nn.Linear)


def glorot(weight: Tensor, fan_in: int, fan_out: int) -> None:
    bound = math.sqrt(6 / (fan_in + fan_out))
    nn.init.uniform_(weight, -bound, bound)


def keras_start(layer: L, *, side_by_side: int = 1) -> L:
    """The layer with the start that Keras gives it: Glorot uniform weights, zero biases. `side_by_side` says how many
    layers of the paper it holds."""
    outputs, inputs = layer.weight.shape[:2]
    area = layer.weight[0, 0].numel()
    glorot(layer.weight, inputs * area, outputs * area // side_by_side)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class InceptionBlock(nn.Module):
    """Inception-V1 block of four paths, each with the same number of filters (FR section 3.1). The paths are a 1x1
    convolution, 1x1 then 3x3, 1x1 then 5x5, and 3x3 max pooling then 1x1; every convolution is followed by ReLU and the
    paths are joined along the channels, ``4 * filters`` in all."""

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        # The three 1x1 convolutions that read the input itself are one convolution, cut in three afterwards.
        self.points = keras_start(nn.Conv2d(inputs, 3 * filters, 1), side_by_side=3)
        self.conv3 = keras_start(nn.Conv2d(filters, filters, 3, padding=1))
        self.conv5 = keras_start(nn.Conv2d(filters, filters, 5, padding=2))
        self.pooled = keras_start(nn.Conv2d(inputs, filters, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps of shape (B, 4 * filters, H, W)."""
        point, before3, before5 = _pointwise(self.points, inputs).chunk(3, dim=1)
        pooled = _pointwise(self.pooled, F.max_pool2d(inputs, 3, stride=1, padding=1))
        paths = [point, self.conv3(F.relu(before3)), self.conv5(F.relu(before5)), pooled]
        return F.relu(torch.cat(paths, dim=1))


def _pointwise(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """A 1x1 convolution. That of a single map is a product, written so that channels come to lie together: nothing in
    the layout of one channel says that they should, and without it all that follows takes a third longer."""
    if inputs.shape[1] > 1 or layer.bias is None:
        return layer(inputs)
    return (inputs.movedim(1, -1) * layer.weight.flatten() + layer.bias).movedim(-1, 1)


class InceptionStream(nn.Sequential):
    """Inception blocks, each followed by 2x2 max pooling, on the map of one flow component; flattened."""

    def __init__(self, filters: Sequence[int]) -> None:
        super().__init__()
        for inputs, count in zip((1, *(4 * count for count in filters)), filters, strict=False):
            self.extend([InceptionBlock(inputs, count), nn.MaxPool2d(2)])
        self.append(nn.Flatten())
        self.filters = tuple(filters)

    def forward(self, inputs: Tensor) -> Tensor:
        """Features (B, 4 * filters * pixels) of maps (B, 1, side, side)."""
        weights = [
            value
            for block in self
            if isinstance(block, InceptionBlock)
            for layer in (block.points, block.conv3, block.conv5, block.pooled)
            for value in (layer.weight, cast(Tensor, layer.bias))
        ]
        found = compiled_features(inputs, self.filters, weights)
        return super().forward(inputs) if found is None else found


class ProposalModule(nn.Module):
    """K branches, each with its own attention and its own detector of one class (FR section 3.2). Branches lie side by
    side in single tensors, so that all of them cost one matrix product a layer. With `attention` False, fully connected
    layers alone make their features (FR-fc, section 4.3)."""

    def __init__(self, width: int, branches: int, detector_width: int, attention: bool) -> None:
        super().__init__()
        self.branches, self.attention = branches, attention
        self.units = keras_start(OneDnnLinear(width, branches * width), side_by_side=branches)
        self.detector_weight = nn.Parameter(torch.empty(branches, width, detector_width))
        self.detector_bias = nn.Parameter(torch.zeros(branches, 1, detector_width))
        self.decision_weight = nn.Parameter(torch.empty(branches, detector_width, 1))
        self.decision_bias = nn.Parameter(torch.zeros(branches, 1, 1))
        glorot(self.detector_weight, width, detector_width)
        glorot(self.decision_weight, detector_width, 1)

    def weights(self, shared: Tensor) -> Tensor:
        """Attention weights a_k (eq. 2), (B, K, D) for shared features (B, D); each branch's sum to 1."""
        return self.units(shared).unflatten(1, (self.branches, -1)).softmax(dim=-1)

    def forward(self, shared: Tensor) -> Tensor:
        """Expression-specific features z*_k (eq. 3), (B, K, D) for shared features (B, D)."""
        if self.attention:
            return self.weights(shared) * shared[:, None]
        return F.relu(self.units(shared)).unflatten(1, (self.branches, -1))

    def detect(self, specific: Tensor) -> Tensor:
        """Logits of the detectors, (B, K), for expression-specific features (B, K, D)."""
        hidden = F.relu(torch.baddbmm(self.detector_bias, specific.transpose(0, 1), self.detector_weight))
        return torch.baddbmm(self.decision_bias, hidden, self.decision_weight)[..., 0].T


def proposal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the detectors of their binary cross-entropies, "this class or not" (FR eq. 4-5). The paper sums over
    clips; here it is their mean, as in the classification loss beside it, so that the balance of the two is the paper's
    whatever the size of a batch. `logits` are (B, K), before the sigmoid; `labels` int64, (B,)."""
    truth = (labels[:, None] == torch.arange(logits.shape[1], device=labels.device)).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, truth)


@register_backbone("fr")
class FR(Backbone):
    """Feature refinement: two-stream Inception on u and v, one attention branch a class, their features summed.

    Zhou et al., "Feature refinement: an expression-specific feature learning and fusion method for micro-expression
    recognition". Each flow component passes its own stream of two Inception-V1 blocks (section 3.1); both flattened
    streams and one fully connected layer give the expression-shared feature z. K branches weigh z by softmax attention
    (eq. 2-3); a detector on each learns to tell its class from the others (eq. 4-5). The fused feature (eq. 6) goes
    through the first fully connected layer of the classification module (section 3.3), whose output is the embedding;
    the second one is the linear classifier that every backbone gets.

    Parameters
    ----------
    variant : {"fr", "fr_fc", "basic_inception"}
        Rows of the paper's Table 1: ``"fr_fc"`` has no attention in its branches, ``"basic_inception"`` no branches at
        all (its embedding is z).
    fusion : {"sum", "concat"}
        How the branches are joined (eq. 6 or Table 1c).
    branches : int
        K, the number of classes; `set_classes` changes it.
    filters : sequence of int
        Filters of the Inception blocks; 6 and 16 in section 3.1.
    shared_width : int
        Length of z; 1024 by the count of parameters in Table 7 (see Notes).
    detector_width : int
        Hidden units of each detector; 128 by the same count.
    hidden_width : int
        Units of the first fully connected layer of the classification module; 256 by the same count. 0 leaves that
        layer out, so that the embedding is the fused feature itself. Not used by ``"basic_inception"``.
    dropout : float
        Share of the embedding dropped before the classifier in training (section 3.3).
    balance : float
        Weight lambda of the proposal loss (eq. 8); 0.85 in section 6.1.1.
    size : int
        Side of the maps in pixels; 28 in section 4.2.

    Notes
    -----
    There: both streams, all branches and their losses, element-wise sum, all rows of Table 1 but Dual-Inception (which
    differs from ``"basic_inception"`` in the choice of the apex alone), Keras' initialisation (Glorot uniform, zero
    biases).

    Widths: the paper states filters alone. The authors' earlier Dual-Inception code has one block a layer, padding that
    keeps the size, and 1024 units after the flattened 2 x 64 x 7 x 7 maps. Table 7 agrees: Basic Inception grows by
    0.0010 M from three to four classes, so its last layer reads 1024 values, and such a network has 6.45 M parameters
    (6.48 M in the table). FR grows by 1.1813 M a class: 1.0496 M for attention from 1024 to 1024, and 0.1313 M for a
    detector of 1024 - 128 - 1. What is left over, 0.22 M, is one more layer in the classification module: 256 units
    give 10.25 M at three classes and 11.43 M at four (10.24 M and 11.42 M in the table; the number that would fill the
    gap exactly, 215, is not one that a person chooses).

    Open in the paper: activations (ReLU here, as in the earlier code), optimiser and epochs (see `recipe`), and how the
    numbers of a flow picture are scaled (each component from its least to its largest value here). The public code of
    Dual-Inception is the repository xly135846/MEGC2019; none of FR itself was found.

    Deviations: losses are means over a batch, not sums. A component is one channel; the earlier code reads it as a
    picture of three. The last fully connected layer is the engine's linear classifier, so the embedding is what that
    layer reads. `recipe` is that of the composite database (section 6.1.1); CDMER and single databases have a rate of
    0.0005 and a momentum of 0.8 (sections 6.1.3-4), which is `CDMER_RECIPE`.

    Absent here, since they come before a backbone: cropped faces (the paper's are Libfacedetection's), apex spotting
    (eq. 1) and TV-L1 flow; ``fsmer.preprocess`` has frame difference among its ways to spot an apex, and TV-L1 among
    its flows. The averages over ten rounds and the metrics (section 6.2, eq. 9-13) are an evaluation's.
    """

    trusted: ClassVar[bool] = True
    recipe: ClassVar[TrainRecipe] = TrainRecipe(
        source="FR section 6.1.1 (rate 0.001, batches of 32, no momentum); the optimiser is not named there: Adam, as "
        "in the authors' earlier code, since plain gradient descent at that rate has not left the start after 20 "
        "epochs; 40 epochs are that code's too, with the last one taken",
        optimizer="adam",
        learning_rate=1e-3,
        weight_decay=0.0,
        epochs=40,
        batch_size=32,
        schedule="constant",
    )
    stackable: ClassVar[bool] = True

    def __init__(
        self,
        variant: Literal["fr", "fr_fc", "basic_inception"] = "fr",
        fusion: Literal["sum", "concat"] = "sum",
        branches: int = 3,
        filters: Sequence[int] = (6, 16),
        shared_width: int = 1024,
        detector_width: int = 128,
        hidden_width: int = 256,
        dropout: float = 0.5,
        balance: float = 0.85,
        size: int = 28,
    ) -> None:
        config = constructor_arguments(locals())
        self._check_count(branches, "branches is")
        least = 2 ** len(filters)
        if size < least:
            raise FsmerError(f"maps of {size} pixels vanish in {len(filters)} halvings; give at least {least}.")
        super().__init__(
            input_spec=InputSpec(kind="flow", size=(size, size), channels=("u", "v"), normalisation="minmax"),
            embed_dim=shared_width,
            config=config,
        )
        self.variant, self.fusion, self.dropout, self.balance = variant, fusion, dropout, balance
        self.shared_width, self.detector_width, self.hidden_width = shared_width, detector_width, hidden_width
        self.streams = nn.ModuleList(InceptionStream(filters) for _ in range(2))
        self.shared = keras_start(OneDnnLinear(2 * 4 * filters[-1] * (size // least) ** 2, shared_width))
        self.proposal: ProposalModule | None = None
        self.hidden: nn.Linear | None = None
        if variant != "basic_inception":
            self._make_branches(branches)
        # Narrow convolutions and pooling run faster on CPUs when the channels of a pixel lie together.
        self.to(memory_format=torch.channels_last)

    def forward(self, inputs: Tensor) -> Tensor:
        """Embeddings of shape (B, embed_dim) for minmax maps of u and v, (B, 2, size, size)."""
        shared = self.shared_features(inputs)
        return shared if self.proposal is None else self._refine(self.proposal(shared))

    def training_loss(self, inputs: Tensor, targets: Targets, classifier: nn.Module) -> Tensor:
        """Total loss of a batch: ``balance`` times the proposal loss plus cross-entropy (eq. 8). `FsmerError` where the
        targets have another number of classes than there are branches."""
        shared = self.shared_features(inputs)
        if self.proposal is None:
            return targets.cross_entropy(classifier(dropout(shared, self.dropout, self.training)))
        if len(targets.classes) != self.proposal.branches:
            raise FsmerError(
                f"{self.name!r} has {self.proposal.branches} branches, but the clips have {len(targets.classes)} "
                f"classes ({', '.join(targets.classes)}); call set_classes with them before training."
            )
        specific = self.proposal(shared)
        embeddings = dropout(self._refine(specific), self.dropout, self.training)
        proposal = proposal_loss(self.proposal.detect(specific), targets.labels)
        return self.balance * proposal + targets.cross_entropy(classifier(embeddings))

    def shared_features(self, inputs: Tensor) -> Tensor:
        """The expression-shared feature z, (B, shared_width)."""
        streams = [stream(inputs[:, number, None]) for number, stream in enumerate(self.streams)]
        return F.relu(self.shared(torch.cat(streams, dim=1)))

    def set_classes(self, classes: Sequence[str]) -> None:
        """Make one fresh branch for each of `classes`; ``"basic_inception"`` has none to make. Where the branches are
        concatenated, the layer that reads them is made anew too. Fewer than two classes raise `FsmerError`."""
        self._check_count(len(classes), "was given")
        if self.proposal is not None:
            self._make_branches(len(classes))
            self.config["branches"] = len(classes)

    def _check_count(self, count: int, given: str) -> None:
        if count < 2:
            raise FsmerError(f"{self.name!r} tells two or more classes apart, but {given} {count}; give two or more.")

    def _make_branches(self, branches: int) -> None:
        own = self.shared.weight
        self.proposal = ProposalModule(self.shared_width, branches, self.detector_width, self.variant == "fr").to(own)
        fused_width = self.shared_width * (branches if self.fusion == "concat" else 1)
        if self.hidden_width and (self.hidden is None or self.hidden.in_features != fused_width):
            self.hidden = keras_start(OneDnnLinear(fused_width, self.hidden_width)).to(own)
        self.embed_dim = self.hidden_width or fused_width
        self.train(self.training)

    def _refine(self, specific: Tensor) -> Tensor:
        """Embeddings, (B, embed_dim), of expression-specific features, (B, K, shared_width)."""
        fused = specific.sum(dim=1) if self.fusion == "sum" else specific.flatten(1)
        return fused if self.hidden is None else F.relu(self.hidden(fused))


@register_backbone("basic_inception")
class BasicInception(FR):
    """Two-stream Inception on u and v with one fully connected layer; FR without its branches.

    The ablation "Basic Inception" of the FR paper (Table 1a, Table 7): the expression-shared feature is the embedding.

    Parameters
    ----------
    filters, shared_width, dropout, size
        As in `FR`.

    Notes
    -----
    There: both streams and the shared feature; 6.45 M parameters with a classifier of three classes (6.48 M in
    Table 7). Deviation: dropout before the classifier, which the paper states for its classification module without
    saying whether this variant has it too. Absent: what ``fr`` lacks too.
    """

    trusted: ClassVar[bool] = True

    def __init__(
        self, filters: Sequence[int] = (6, 16), shared_width: int = 1024, dropout: float = 0.5, size: int = 28
    ) -> None:
        super().__init__("basic_inception", filters=filters, shared_width=shared_width, dropout=dropout, size=size)
        self.config = {key: self.config[key] for key in ("filters", "shared_width", "dropout", "size")}


# Gradient descent is what has a momentum in Keras, with which the paper was made; it names no optimiser.
CDMER_RECIPE = replace(
    FR.recipe,
    source="FR section 6.1.3 (CDMER) and 6.1.4 (single databases): rate 0.0005, momentum 0.8, batches of 32; the "
    "optimiser is not named and taken to be gradient descent (20 epochs of 96 synthetic clips lower the loss by 0.003 "
    "with it); 40 epochs are those of the authors' earlier code",
    optimizer="sgd",
    learning_rate=5e-4,
    momentum=0.8,
)
