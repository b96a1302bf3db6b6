"""Each backbone written down plainly, layer by layer, with the weights of the one that it is compared with."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, TypeVar

import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.video.resnet import BasicBlock, Conv3DSimple, VideoResNet

from fsmer.backbones import Backbone, Targets
from fsmer.backbones.base import Inputs
from fsmer.backbones.flow_resnet18 import SIGNED_UNIT, FlowResNet18
from fsmer.backbones.fr import FR, InceptionBlock
from fsmer.backbones.merau import Merau
from fsmer.backbones.mmnet import CABlock, MMNet
from fsmer.backbones.mubert import CHANGE_GAIN, FEATURE_GAIN, MuBert
from fsmer.backbones.r3d_attribute import DEPTHS, R3D10Attribute, ResNet3D
from fsmer.backbones.tcae import Tcae
from fsmer.backbones.tcae_networks import AuEncoder

__all__ = ["plain", "plain_loss"]

L = TypeVar("L", nn.Conv2d, nn.Linear)


def plain(backbone: Backbone) -> nn.Module:
    """The plain network of a backbone; it gives the same embeddings."""
    made: nn.Module = next(kind(backbone) for owner, kind in KINDS.items() if isinstance(backbone, owner))
    return made.train(backbone.training)


def plain_loss(network: nn.Module, inputs: Inputs, targets: Targets, classifier: nn.Module) -> Tensor:
    """Loss of a training step: FR's total loss, cross-entropy for all others."""
    if isinstance(network, PlainFR):
        return network.loss(inputs, targets, classifier)
    return F.cross_entropy(classifier(network(inputs)), targets.labels)


class PlainFlow(nn.Module):
    """timm's resnet18 and a projection."""

    def __init__(self, own: FlowResNet18) -> None:
        super().__init__()
        self.encoder = timm.create_model(
            "resnet18",
            in_chans=len(own.config["channels"]),
            num_classes=0,
            channels=own.config["widths"],
            layers=own.config["depths"],
        )
        self.projection: nn.Module = nn.Identity()
        if own.projection is not None:
            self.projection = nn.Sequential(nn.Linear(own.config["widths"][-1], own.embed_dim), nn.ReLU())
        take_over(self, own)

    def forward(self, inputs: Tensor) -> Tensor:
        """Embeddings of signed flow maps."""
        found: Tensor = self.projection(self.encoder(inputs / SIGNED_UNIT))
        return found


class PlainInception(nn.Module):
    """An Inception-V1 block of four paths, each convolution by itself."""

    def __init__(self, own: InceptionBlock) -> None:
        super().__init__()
        points, biases = own.points.weight.chunk(3), own.points.bias.chunk(3)
        self.point, before3, before5 = (convolution(*pair) for pair in zip(points, biases, strict=True))
        conv3, conv5, pooled = (convolution(one.weight, one.bias) for one in (own.conv3, own.conv5, own.pooled))
        self.third = nn.Sequential(before3, nn.ReLU(), conv3)
        self.fifth = nn.Sequential(before5, nn.ReLU(), conv5)
        self.pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), pooled)

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature maps."""
        paths = (self.point, self.third, self.fifth, self.pooled)
        return torch.cat([F.relu(path(inputs)) for path in paths], dim=1)


class PlainFR(nn.Module):
    """FR with a loop over its branches; without branches for Basic Inception."""

    def __init__(self, own: FR) -> None:
        super().__init__()
        self.balance, self.dropout = own.balance, own.dropout
        self.streams = nn.ModuleList(
            nn.Sequential(*(PlainInception(part) if isinstance(part, InceptionBlock) else part for part in stream))
            for stream in own.streams
        )
        self.shared = linear(own.shared.weight, own.shared.bias)
        self.attention, self.detectors = nn.ModuleList(), nn.ModuleList()
        self.hidden: nn.Linear | None = None
        if own.proposal is not None and own.hidden is not None:
            part = own.proposal
            units = zip(part.units.weight.chunk(part.branches), part.units.bias.chunk(part.branches), strict=True)
            self.attention.extend(linear(*pair) for pair in units)
            for branch in range(part.branches):
                hidden = linear(part.detector_weight[branch].T, part.detector_bias[branch, 0])
                decision = linear(part.decision_weight[branch].T, part.decision_bias[branch, 0])
                self.detectors.append(nn.Sequential(hidden, nn.ReLU(), decision))
            self.hidden = linear(own.hidden.weight, own.hidden.bias)

    def features(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Embeddings and the features of each branch."""
        streams = [stream(inputs[:, number : number + 1]) for number, stream in enumerate(self.streams)]
        shared = F.relu(self.shared(torch.cat(streams, dim=1)))
        if self.hidden is None:
            return shared, []
        specific = [units(shared).softmax(dim=1) * shared for units in self.attention]
        fused = specific[0]
        for one in specific[1:]:
            fused = fused + one
        return F.relu(self.hidden(fused)), specific

    def forward(self, inputs: Tensor) -> Tensor:
        """Embeddings of maps of u and v."""
        return self.features(inputs)[0]

    def loss(self, inputs: Any, targets: Targets, classifier: nn.Module) -> Tensor:
        """Total loss (eq. 8)."""
        embeddings, specific = self.features(inputs)
        loss = F.cross_entropy(classifier(F.dropout(embeddings, self.dropout)), targets.labels)
        for branch, (detector, features) in enumerate(zip(self.detectors, specific, strict=True)):
            truth = (targets.labels == branch).float()
            proposal = F.binary_cross_entropy_with_logits(detector(features)[:, 0], truth)
            loss = loss + self.balance * proposal / len(specific)
        return loss


class PlainCABlock(nn.Module):
    """Continuous-attention block."""

    def __init__(self, own: CABlock) -> None:
        super().__init__()
        parts = (own.conv1, own.conv2, own.shortcut, own.gate)
        self.conv1, self.conv2, self.shortcut, self.gate = (copy.deepcopy(part) for part in parts)
        self.stride = own.stride

    def forward(self, features: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features and attention."""
        found = F.relu(self.conv2(F.relu(self.conv1(features))) + self.shortcut(features))
        pooled = torch.cat([found.max(dim=1, keepdim=True).values, found.mean(dim=1, keepdim=True)], dim=1)
        attention: Tensor = self.gate(pooled)
        if prior is not None:
            attention = attention * (F.max_pool2d(prior, 3, 2, padding=1) if self.stride == 2 else prior)
        return found * attention, attention


class PlainMMNet(nn.Module):
    """MMNet with timm's blocks in its position branch."""

    def __init__(self, own: MMNet) -> None:
        super().__init__()
        self.stem = copy.deepcopy(own.stem)
        self.blocks = nn.ModuleList(PlainCABlock(block) for block in own.blocks)
        branch = own.position
        self.patch = copy.deepcopy(branch.patch)
        self.places = nn.Parameter(branch.places.detach().clone())
        arguments = own.config
        self.transformer = timm_blocks(
            branch.blocks, branch.places.shape[-1], arguments["heads"], arguments["mlp_ratio"]
        )
        self.norm = copy.deepcopy(branch.norm)
        self.grid, self.pool = branch.grid, arguments["pool"]
        self.register_buffer("mean", own.mean.clone())
        self.register_buffer("sd", own.sd.clone())

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embeddings of onset and apex."""
        onset, apex = ((inputs[kind] - self.mean) / self.sd for kind in ("onset", "apex"))
        features, attention = self.stem(apex - onset), None
        for block in self.blocks:
            features, attention = block(features, attention)
        small = F.interpolate(onset, size=(self.grid, self.grid), mode="bilinear", antialias=True)
        tokens = self.norm(self.transformer(self.patch(small.flatten(2).transpose(1, 2)) + self.places))
        fused = features + tokens.transpose(1, 2).reshape(features.shape)
        return (fused if self.pool is None else F.adaptive_avg_pool2d(fused, self.pool)).flatten(1)


class PlainVideo(VideoResNet):
    """torchvision's video ResNet with the stem, the widths and the depth of a stream."""

    def __init__(self, own: ResNet3D, depth: int) -> None:
        first = own.conv1[0]
        width, blocks = first.out_channels, DEPTHS[depth]
        super().__init__(BasicBlock, [Conv3DSimple] * 4, [1] * 4, lambda: copy.deepcopy(own.conv1))
        self.inplanes = width
        for number, count in enumerate(blocks):
            stride = 1 if number == 0 else 2
            made = self._make_layer(BasicBlock, Conv3DSimple, width << number, count, stride)
            setattr(self, f"layer{number + 1}", made)
        self.fc = nn.Linear(width << 3, own.fc.out_features)
        take_over(self, own)


class PlainR3D(nn.Module):
    """Two of torchvision's video ResNets side by side."""

    def __init__(self, own: R3D10Attribute) -> None:
        super().__init__()
        self.rgb, self.flow = (PlainVideo(stream, own.depth) for stream in (own.rgb, own.flow))
        self.register_buffer("mean", own.mean.clone())
        self.register_buffer("std", own.std.clone())

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embeddings of frames and flows."""
        frames, flows = (inputs[kind].transpose(1, 2) for kind in ("frames", "flows"))
        return torch.cat([self.rgb((frames - self.mean) / self.std), self.flow(flows)], dim=1)


class PlainMuBert(nn.Module):
    """µ-BERT's encoder of timm's blocks, and micro-attention from the whole map."""

    def __init__(self, own: MuBert) -> None:
        super().__init__()
        encoder, arguments = own.encoder, own.config
        self.patch_embedding = copy.deepcopy(encoder.patch_embedding)
        self.context_token = nn.Parameter(encoder.context_token.detach().clone())
        self.blocks = timm_blocks(encoder.blocks, encoder.width, arguments["heads"], arguments["mlp_ratio"])
        self.norm = copy.deepcopy(encoder.norm)
        self.micro = copy.deepcopy(own.micro_attention)
        self.register_buffer("positions", encoder.positions.clone())
        self.register_buffer("mean", own.mean.clone())
        self.register_buffer("deviation", own.deviation.clone())
        self.side, self.both_ways, self.regions, self.changes = own.side, own.both_ways, own.regions, own.changes

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Patches and their interest."""
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2) + self.positions
        tokens = torch.cat([self.context_token.expand(len(images), 1, -1), patches], dim=1)
        tokens = self.blocks[:-1](tokens)
        # The last block's attention is needed itself.
        last = self.blocks[-1]
        query, key, value = last.attn.qkv(last.norm1(tokens)).chunk(3, dim=2)
        heads = last.attn.num_heads
        query, key, value = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value))
        attention = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1)
        tokens = tokens + last.attn.proj((attention @ value).transpose(1, 2).flatten(2))
        tokens = self.norm(tokens + last.mlp(last.norm2(tokens)))
        scores = attention[:, :, 0, 1:].mean(dim=1)
        return tokens[:, 1:], scores / scores.sum(dim=1, keepdim=True)

    def diagonal(self, second: Tensor, swapped: Tensor) -> Tensor:
        """The attention of every patch to itself, from the whole map."""
        query, key = self.micro.scored(second, swapped)
        return (key @ query.transpose(1, 2)).softmax(dim=2).diagonal(dim1=1, dim2=2)

    def weighed(self, second: Tensor, interest: Tensor, swapped: Tensor) -> Tensor:
        """P_dma over its mean weight."""
        weight = self.diagonal(second, swapped) * interest
        weight = weight / weight.mean(dim=1, keepdim=True)
        found: Tensor = self.micro.out(self.micro.value(swapped) * weight[:, :, None])
        return found

    def pooled(self, values: Tensor, regions: int) -> Tensor:
        """Means by region."""
        grid = values.transpose(1, 2).unflatten(2, (self.side, self.side))
        return F.adaptive_avg_pool2d(grid, regions).flatten(1)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embeddings of onset and apex."""
        (onset, on), (apex, at) = (
            self.encode((inputs[kind] - self.mean) / self.deviation) for kind in ("onset", "apex")
        )
        features = self.weighed(apex, at, onset)
        if self.both_ways:
            features = self.weighed(onset, on, apex) - features
        found = self.pooled(features, self.regions)
        if not self.changes:
            return found
        across = self.diagonal(apex, onset) * self.diagonal(onset, apex)
        still = self.diagonal(onset, onset) * self.diagonal(apex, apex)
        change = 1 - (across / still).sqrt().clamp(max=1)
        return torch.cat([FEATURE_GAIN * found, CHANGE_GAIN * self.pooled(change[:, :, None], self.changes)], dim=1)


class PlainTcae(nn.Module):
    """The encoder of action unit codes, convolution after convolution."""

    def __init__(self, own: Tcae) -> None:
        super().__init__()
        self.layers = plain_encoder(own.encoder)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embeddings of the apex."""
        found: Tensor = self.layers(inputs["apex"])
        return found


class PlainMerau(nn.Module):
    """MERAU's three parts one after the other."""

    def __init__(self, own: Merau) -> None:
        super().__init__()
        self.flow = PlainFlow(own.flow_encoder)
        self.code = plain_encoder(own.au_encoder)
        self.detector = copy.deepcopy(own.au_detector)
        names = ("projection_flow", "projection_code", "projection_logits")
        self.projections = nn.ModuleList(copy.deepcopy(getattr(own, name)) for name in names)

    def train(self, mode: bool = True) -> PlainMerau:
        """Training mode but for the frozen parts."""
        super().train(mode)
        self.code.eval()
        self.detector.eval()
        return self

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embeddings of flow and apex."""
        code = self.code(inputs["apex"])
        parts = (self.flow(inputs["flow"]), code, self.detector(code))
        return torch.cat([F.relu(layer(part)) for layer, part in zip(self.projections, parts, strict=True)], dim=1)


# What timm's blocks normalise with.
NORM = functools.partial(nn.LayerNorm, eps=1e-6)

KINDS: dict[type[Backbone], Callable[..., nn.Module]] = {
    FlowResNet18: PlainFlow,
    FR: PlainFR,
    MMNet: PlainMMNet,
    R3D10Attribute: PlainR3D,
    MuBert: PlainMuBert,
    Tcae: PlainTcae,
    Merau: PlainMerau,
}


def plain_encoder(own: AuEncoder) -> nn.Sequential:
    """TCAE's encoder of action units as one sequence of layers."""
    stages = chain(own.shared, own.au_branch)
    layers = [layer for stage in stages for layer in (stage if isinstance(stage, nn.Sequential) else [stage])]
    return nn.Sequential(*copy.deepcopy(layers), nn.Flatten())


def timm_blocks(own: Iterable[nn.Module], width: int, heads: int, mlp_ratio: float) -> nn.Sequential:
    """timm's transformer blocks with the weights of `own`, whose layers come in the same order."""
    blocks = []
    for block in own:
        made = Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=NORM)
        take_over(made, block)
        blocks.append(made)
    return nn.Sequential(*blocks)


def take_over(network: nn.Module, own: nn.Module) -> None:
    """Copy parameters and batch statistics in order, and whether parameters are trained."""
    with torch.no_grad():
        for theirs, ours in zip(network.buffers(), own.buffers(), strict=True):
            theirs.copy_(ours)
        for theirs, ours in zip(network.parameters(), own.parameters(), strict=True):
            theirs.copy_(ours)
            theirs.requires_grad_(ours.requires_grad)


def convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A convolution that keeps the size."""
    outputs, inputs, side = weight.shape[:3]
    made = nn.Conv2d(inputs, outputs, side, padding=side // 2)
    return _filled(made, weight, bias)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer."""
    return _filled(nn.Linear(weight.shape[1], weight.shape[0]), weight, bias)


def _filled(layer: L, weight: Tensor, bias: Tensor) -> L:
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer
