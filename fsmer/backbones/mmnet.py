"""`mmnet`: what moved, from apex minus onset, joined with where on the face, from a coarse onset (Li et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.backbones import Backbone, TrainRecipe, register_backbone
from fsmer.backbones.base import IMAGENET_MEAN, IMAGENET_SD, constructor_arguments
from fsmer.data.spec import image_spec
from fsmer.errors import FsmerError
from fsmer.kernels.noise import own_generator

__all__ = ["THREE_CLASS_ARGUMENTS", "THREE_CLASS_RECIPE", "MMNet"]

Attention = Literal["continuous", "independent", "none"]


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution that keeps the size (but for its stride), then batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs)
    )


class CABlock(nn.Module):
    """Continuous-attention block (section 2.2, Fig. 3b), or one of the two blocks that Tables 3 and 4 compare it with.
    With ``"continuous"`` attention the map is multiplied by the map of the block before (eq. 1), with ``"independent"``
    it is not (Table 4); ``"none"`` is ResNet18's building block, two 3x3 convolutions and no map (baseline of Table 3).
    `stride` is that of the 3x3 convolution and of the shortcut. With `identity_shortcut` a block that changes neither
    size nor channels adds its input as it is, in place of the 1x1 convolution that eq. 2 gives every block."""

    def __init__(self, inputs: int, outputs: int, stride: int, attention: Attention, identity_shortcut: bool) -> None:
        super().__init__()
        self.stride = stride
        self.continuous = attention == "continuous"
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.conv2 = convolution(outputs, outputs, 3 if attention == "none" else 1)
        as_it_is = identity_shortcut and stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if as_it_is else convolution(inputs, outputs, 1, stride)
        self.gate = None if attention == "none" else nn.Sequential(*convolution(2, 1, 1), nn.Sigmoid())

    def forward(self, features: Tensor, prior: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Features (B, outputs, h, w) and their attention map (B, 1, h, w). `prior` is the map of the block before,
        ``None`` in the first one."""
        mixed = self.conv2(F.relu(self.conv1(features), inplace=True))
        found = F.relu(mixed + self.shortcut(features), inplace=True)  # F_conv, eq. 2
        if self.gate is None:
            return found, None
        attention = self.gate(torch.cat([found.amax(dim=1, keepdim=True), found.mean(dim=1, keepdim=True)], dim=1))
        if self.continuous and prior is not None:
            attention = attention * (F.max_pool2d(prior, 3, self.stride, padding=1) if self.stride > 1 else prior)
        return found * attention, attention  # eq. 3


class TransformerBlock(nn.Module):
    """Encoder block of ViT with normalisation first: self-attention, then two linear layers, each added to its input.
    In training each branch is left out of a clip with probability `drop_path` (stochastic depth)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.heads, self.drop_path = heads, drop_path
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, width) to tokens of the same shape."""
        tokens = tokens + self._kept(self.attend(self.norm1(tokens)))
        return tokens + self._kept(self.mlp(self.norm2(tokens)))

    def attend(self, tokens: Tensor) -> Tensor:
        """Self-attention of several heads over all tokens."""
        query, key, value = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))

    def _kept(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        kept = branch.new_empty(len(branch), 1, 1).bernoulli_(keep, generator=own_generator(branch.device))
        return branch * kept / keep


class PositionCalibration(nn.Module):
    """Position-calibration module (section 2.3): a shallow ViT on an onset of `grid` x `grid` pixels, a patch each.
    `width` is the number of channels of the main branch's last map; `layers` and `heads` are N_L and N_H of Table 5.
    `drop_path` is that of the last layer and rises evenly from 0 in the first."""

    def __init__(self, grid: int, width: int, layers: int, heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.grid = grid
        self.patch = nn.Linear(3, width)
        self.places = nn.Parameter(torch.empty(1, grid * grid, width))
        steps = max(layers - 1, 1)
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, heads, mlp_ratio, drop_path * layer / steps) for layer in range(layers))
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        nn.init.trunc_normal_(self.places, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, onset: Tensor) -> Tensor:
        """Position embeddings E_pos (B, width, grid, grid) of normalised onsets (B, 3, H, W)."""
        # Torch scales with anti-aliasing in full precision only.
        small = F.interpolate(onset.float(), size=(self.grid, self.grid), mode="bilinear", antialias=True)
        tokens = self.patch(small.to(onset.dtype).flatten(2).transpose(1, 2)) + self.places
        return self.norm(self.blocks(tokens)).transpose(1, 2).unflatten(2, (self.grid, self.grid))


@register_backbone("mmnet")
class MMNet(Backbone):
    """MMNet: continuous attention on apex minus onset, calibrated by a small ViT on the 14x14 onset.

    H. Li, M. Sui, Z. Zhu, F. Zhao, "MMNet: Muscle motion-guided network for micro-expression recognition", 2022. The
    main branch sees nothing but the difference of the two images, which carries little of who the person is; the side
    branch sees the face at rest, too coarse for texture, and says what lies where. The two maps are added (section 2.1,
    Fig. 2). What the paper leaves out is taken from the published code (github.com/muse1998/MMNet) and named below.

    Parameters
    ----------
    size : int
        Height and width of onset and apex; 224 (section 3.2).
    stem : sequence of (channels, stride)
        3x3 convolutions before the first block. The paper names none; the published code has 180 channels at half the
        size, then 128.
    stages : sequence of (channels, stride)
        The CA blocks, four of them (section 2.2). The paper gives the last map, 512x14x14; the widths before it are
        the published code's.
    attention : {"continuous", "independent", "none"}
        See `CABlock`; ``"independent"`` is the comparison of Table 4, ``"none"`` the ResNet blocks of Table 3.
    position : bool
        Whether the position-calibration branch is there; ``False`` is the comparison of Table 3.
    layers, heads : int
        Transformer layers N_L = 2 and heads N_H = 4 of the position branch (section 3.2, best of Table 5; section 3.3
        names the two numbers the other way round once).
    mlp_ratio : float
        Hidden width of a transformer layer over its width; 4 as in ViT.
    drop_path : float
        Stochastic depth of the last transformer layer; 0. `THREE_CLASS_ARGUMENTS` holds what the published code
        changes for three classes: 3 layers, `mlp_ratio` 2, `drop_path` 0.3.
    identity_shortcut : bool
        Whether the first block adds its input as it is (published code) in place of through a 1x1 convolution (eq. 2).
        With ``attention="none"`` the input is always added as it is, as in ResNet18.
    pool : int, optional
        ``None``: the embedding is the whole last map, flattened (512 x 14 x 14 = 100,352 numbers): the paper names no
        pooling, and the published classifier is one linear layer on all of it. A number averages the map over a grid
        of `pool` x `pool` cells first, so that heads that compare embeddings of a few clips get a short one: 2 gives
        2,048 numbers that still tell brows from mouth and left from right, 1 gives 512 that do not.

    Notes
    -----
    Compared with the paper, section by section:

    * 2.1: both branches, their inputs and the sum as there. The images are normalised by ImageNet's mean and standard
      deviation, then subtracted (published code). Since the classifier is linear on the sum, the position branch can
      only add a score that depends on the onset alone; it reaches the motion branch through their common training.
    * 2.2, eq. 1-3: as there; batch normalisation after every convolution (that of the attention included) and ReLU as
      in the published code. A prior map is brought to size by 3x3 max-pooling with the block's stride. Eq. 2 gives
      every block a convolution in its shortcut; the published code leaves it out in the first (`identity_shortcut`).
      Eq. 1-3 let every block double the channels and halve the size, which the published widths (128, 128, 256, 512
      at 112, 56, 28, 14) do only in the last two; ``stem=[[32, 1]], stages=[[64, 2], [128, 2], [256, 2], [512, 2]]``
      is the reading to the letter.
    * 2.3: as there: 196 patches of one pixel, 512 numbers each, learnt position embeddings, no class token. The onset
      is scaled with anti-aliasing; whether the published code does so depends on the version of torchvision.
    * 3.1, 3.2: faces cut out by Dlib's landmarks come before a backbone (``fsmer.preprocess``); classes and scores are
      an evaluation's. Optimiser, learning rate, batch, epochs and loss as there; `recipe` says what was left open. Of
      its augmentation, mirroring and cropping are in the recipe. Colour jitter is not, nor is the published code's
      rotation by up to 3 degrees (``augment=("flip", "crop", "rotate")`` adds it). Absent, too, is the choice of one
      of the four frames next to the annotated onset and apex in training: a clip holds one onset and one apex.
    * 3.3: all rows of Tables 3, 4 and 5 can be built by options.
    * 3.5: `explain_maps` gives the maps of all blocks; Fig. 4 shows the first.

    The published code also builds parts that its loss never reads (an action unit head, time embeddings, another
    position convolution, a head and a mask in the ViT); they are absent here. Its three-class script groups the first
    convolution in a way that cannot be built; its transformer settings are in `THREE_CLASS_ARGUMENTS`, its training in
    `THREE_CLASS_RECIPE` (``model.recipe = THREE_CLASS_RECIPE`` before training).
    """

    trusted: ClassVar[bool] = True
    recipe: ClassVar[TrainRecipe] = TrainRecipe(
        source=(
            "MMNet section 3.2: AdamW, 8e-4, batch 32, 70 epochs, exponential decay, flip and crop. Weight decay 0.6, "
            "factor 0.987 an epoch and crops of up to 15 pixels are the published code's (which decays for 50 epochs "
            "and trains for 74); colour jitter and the choice among neighbouring frames are left out."
        ),
        optimizer="adamw",
        learning_rate=8e-4,
        weight_decay=0.6,
        epochs=70,
        batch_size=32,
        schedule="exponential",
        gamma=0.987,
        augment=("flip", "crop"),
        crop_pixels=15,
    )

    def __init__(
        self,
        size: int = 224,
        stem: Sequence[Sequence[int]] = ((180, 2), (128, 1)),
        stages: Sequence[Sequence[int]] = ((128, 1), (128, 2), (256, 2), (512, 2)),
        attention: Attention = "continuous",
        position: bool = True,
        layers: int = 2,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        identity_shortcut: bool = False,
        pool: int | None = None,
    ) -> None:
        config = constructor_arguments(locals())
        grid = size
        for _, stride in (*stem, *stages):
            grid = (grid - 1) // stride + 1
        width = stages[-1][0]
        if position and width % heads:
            raise FsmerError(f"{heads} heads do not divide the last stage's {width} channels; choose another number.")
        if pool is not None and not 1 <= pool <= grid:
            raise FsmerError(f"pool is {pool}, but the last map is {grid}x{grid}; give 1 to {grid}, or None for all.")
        super().__init__(
            input_spec=[image_spec("onset", size), image_spec("apex", size)],
            embed_dim=width * (grid if pool is None else pool) ** 2,
            config=config,
        )
        self.pool = pool
        self.mean = nn.Buffer(torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.sd = nn.Buffer(torch.tensor(IMAGENET_SD).view(3, 1, 1), persistent=False)
        channels = 3
        self.stem = nn.Sequential()
        for outputs, stride in stem:
            self.stem.extend([*convolution(channels, outputs, 3, stride), nn.ReLU(inplace=True)])
            channels = outputs
        self.blocks = nn.ModuleList()
        for outputs, stride in stages:
            self.blocks.append(CABlock(channels, outputs, stride, attention, identity_shortcut or attention == "none"))
            channels = outputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.position = PositionCalibration(grid, width, layers, heads, mlp_ratio, drop_path) if position else None

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Embeddings (B, embed_dim) of ``{"onset": ..., "apex": ...}``, each (B, 3, size, size) in 0..1."""
        onset, apex = self.media_of(inputs)
        fused, _ = self.motion(onset, apex)
        if self.position is not None:
            fused = fused + self.position((onset - self.mean) / self.sd)
        if self.pool is not None:
            fused = F.adaptive_avg_pool2d(fused, self.pool)
        return fused.flatten(1)

    def motion(self, onset: Tensor, apex: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The main branch: its last map F_M (B, width, grid, grid) and the attention map of each block, (B, 1, h, w).
        `onset` and `apex` are (B, 3, size, size) in 0..1."""
        # The difference of the normalised images: their mean cancels out, and subtracting first keeps the digits that
        # a difference of two nearly equal images needs at low precision.
        difference = (apex - onset) / self.sd
        # Not channels last, though that is faster: there the backward pass of a strided 1x1 convolution overwrites
        # foreign memory in torch 2.15 on a CPU with several threads.
        features, attention, maps = self.stem(difference), None, []
        for block in self.blocks:
            features, attention = block(features, attention)
            if attention is not None:
                maps.append(attention)
        return features, maps

    @torch.no_grad()
    def explain_maps(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Attention maps Attn^i (eq. 1) of all blocks, each (B, h, w) in 0..1 at its own size; Fig. 4 shows the first.
        Empty with ``attention="none"``."""
        _, maps = self.motion(*self.media_of(inputs))
        return {f"attention {number}": found[:, 0].float() for number, found in enumerate(maps, 1)}


# What the published code changes to tell three classes apart; the paper itself names one setting for all experiments.
THREE_CLASS_ARGUMENTS: Mapping[str, Any] = {"layers": 3, "mlp_ratio": 2.0, "drop_path": 0.3}
THREE_CLASS_RECIPE = replace(
    MMNet.recipe,
    source="published code of MMNet for three classes (CASME2_3.py)",
    weight_decay=0.7,
    epochs=99,
    batch_size=24,
    augment=("flip", "crop", "rotate"),
    crop_pixels=4,
    rotate_degrees=4.0,
)
