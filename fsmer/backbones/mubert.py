"""Micron-BERT, one class since embedding, maps and label-free training all read one attention between two frames."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.backbones import Backbone, TrainRecipe, register_backbone
from fsmer.backbones import mubert_networks as networks
from fsmer.backbones.base import IMAGENET_MEAN, IMAGENET_SD, constructor_arguments
from fsmer.backbones.mubert_pretraining import DinoAgreement, draw_blocks, random_crops, swap_mask
from fsmer.backbones.recipe import PretrainRecipe
from fsmer.data.spec import image_spec
from fsmer.errors import FsmerError

__all__ = ["MuBert", "MuBertTiny"]

# Where the embedding joins both: distances between clips are then no longer those of P_dma's many entries alone.
FEATURE_GAIN = 0.25
CHANGE_GAIN = 20.0


@register_backbone("mubert_small")
class MuBert(Backbone):
    """µ-BERT of the paper's size: encoder and diagonal micro-attention on onset and apex, pretrained on frame pairs.

    Nguyen et al., "Micron-BERT: BERT-based Facial Micro-Expression Recognition", CVPR 2023. Equations, sections and
    Algorithm 1 are cited where they are written. For recognition (Sec. 5.3) onset and apex take the places of I_t and
    I_{t+δ}, nothing is swapped, and the embedding is made of P_dma.

    Parameters
    ----------
    image_size, patch_size : int
        Sides of the frames and of the patches in pixels (Sec. 4.1: 224 and 8, hence 784 patches).
    width, depth, decoder_depth : int
        Length of every vector, blocks of encoder and decoder (Sec. 5.2: 512, 4, 4).
    heads : int
        Attention heads of each block (published code: 4).
    mlp_ratio : float
        Hidden width of the perceptrons over `width` (published code: 4).
    attention : {"diagonal", "full", "none"}
        Diagonal micro-attention (eq. 8-9), the cross attention that the published weights use in its place, or neither
        (MB1 of Table 6, with ``interest=False``).
    interest : bool
        Weigh patches by the patch-of-interest scores (eq. 12) and train with the agreement loss; False is MB2 of
        Table 6.
    agreement : {"mse", "dino"}
        Mean squared difference of contextual features (eq. 15), or the teacher and student of the published code.
    reconstruction_weight, agreement_weight : float
        γ and β of eq. 13. The paper does not give them; published code: 1 and 1.
    swap_ratio, min_block, min_aspect : float
        r_s, min_bs and min_ar of Algorithm 1, whose defaults these are.
    crop_area : (low, high)
        Share of the frame that Crop (eq. 10) keeps. Not in the paper; this is the range of DINO's large crops.
    small_crops : int
        Further crops that the student sees with ``agreement="dino"`` (published arguments: 8), 5 % to `crop_area`'s
        lower end of the frame, shown at 3/7 of its size.
    head_width : int
        Hidden width of the head of ``"dino"`` (published code: 2048).
    normalise_patches : bool
        Reconstruct each patch after bringing it to mean 0 and deviation 1 (an option of the published code).
    similarity : {"dot", "cosine"}
        Scores of the micro-attention: products over sqrt(d) as in the published code, or cosines times log(N). The
        second are bounded: training cannot bring every entry of the diagonal to one by telling places apart, and a
        patch unlike all others weighs one half.
    noise : float
        Deviation of normal noise on P_dma in training without labels. With it, the weights W decide how precisely
        each patch reaches the decoder; without, any weight but zero does.
    start : {"xavier", "likeness"}
        Initial weights: those of the published code, or `begin_with_likeness`.
    reading : {"diagonal", "relative"}
        How `explain_maps` reads a change from the attention: ``1 - diag / max`` as the published code does, or how far
        the diagonal between the frames falls below that of each frame with itself, see `change`.
    both_ways : bool
        The embedding is P_dma with onset and apex exchanged minus P_dma, so that it is zero without movement and
        holds what patches became as well as what they were; the bias of P_dma cancels out and is frozen except in
        training without labels. The paper uses P_dma alone.
    regions : int
        Average P_dma, over the mean weight W, in that many rows and columns of regions. The paper does not say how
        P_dma enters the classifier; 1 averages over the whole frame.
    changes : int
        Join the map of `change`, averaged over that many rows and columns of regions, to the embedding, times 20, and
        P_dma times 0.25; 0 leaves it out, as the paper does.

    Notes
    -----
    There, of the paper: patches and fixed sine positions (eq. 1-2), pre-norm blocks (eq. 3-4), decoder with pixel layer
    (eq. 5-6), Algorithm 1, diagonal micro-attention (eq. 8-9), contextual token, agreement and patch of interest
    (eq. 10-12), losses (eq. 13-15), encoder and micro-attention as the backbone of recognition (Sec. 5.3).

    From the published code, where the paper is silent: heads, width of the perceptrons, one attention head with the
    scale 1/sqrt(d) and an output layer after eq. 9, layer norm after the last block, decoder embedding and positions,
    ImageNet's mean and deviation, how the diagonal is read as a map.

    Settled here: S is multiplied by the number of patches within W, which the output layer can undo and which keeps
    P_dma at the size of the tokens; S is the mean of the heads, without the contextual token's share. Crop (eq. 10)
    keeps 40 to 100 % of the frame. Rounding in Algorithm 1 is in `draw_blocks`. The sum over i in eq. 8 is taken as
    printed: shares over the patches of I_{t+δ}. How P_dma enters the classifier the paper does not say: here its mean
    over the frame, divided by the mean of W, is the embedding, and the classifier on it is linear.

    Deviations: training without labels counts steps instead of epochs, and those of one GPU's batch; either frame of a
    pair may be the earlier one, where the paper adds δ.

    Absent: the 8 million frames of CAS(ME)³ and the authors' weights; dropout and augmentation of fine-tuning, of
    which the paper says nothing; the other networks of its tables and figures (ViT, MoCo, BEiT and MAE of Table 6, RAFT
    and MagNet of Fig. 7). Eq. 7 gives the reason for swapping and has no place in code. The decoder is frozen except in
    training without labels, as recognition leaves it out.
    """

    trusted: ClassVar[bool] = True
    recipe: ClassVar[TrainRecipe] = TrainRecipe(
        source="Micron-BERT gives no values for fine-tuning; AdamW with a cosine to zero from 1e-4 as in its Sec. 5.2, "
        "epochs, batch size, warm-up and weight decay are fsmer's own",
        learning_rate=1e-4,
        epochs=50,
        batch_size=16,
        warmup_epochs=5,
        clip_gradient=1.0,
    )
    pretraining_recipe: ClassVar[PretrainRecipe] = PretrainRecipe(
        source="Micron-BERT Sec. 5.2: AdamW, 1e-4 with a cosine to zero, 64 pairs a GPU, frames 5 to 11 apart; 100 "
        "epochs of 8 million frames are 390,625 steps on its 32 GPUs, here as many with the pairs of one. Weight decay "
        "is not given: AdamW's usual 0.01",
        optimizer="adamw",
        learning_rate=1e-4,
        weight_decay=0.01,
        steps=390_625,
        batch_size=64,
        distance=(5, 11),
        schedule="cosine",
    )

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 8,
        width: int = 512,
        depth: int = 4,
        heads: int = 4,
        decoder_depth: int = 4,
        mlp_ratio: float = 4.0,
        attention: Literal["diagonal", "full", "none"] = "diagonal",
        interest: bool = True,
        agreement: Literal["mse", "dino"] = "mse",
        reconstruction_weight: float = 1.0,
        agreement_weight: float = 1.0,
        swap_ratio: float = 0.5,
        min_block: float = 16.0,
        min_aspect: float = 0.3,
        crop_area: Sequence[float] = (0.4, 1.0),
        small_crops: int = 8,
        head_width: int = 2048,
        normalise_patches: bool = False,
        similarity: Literal["dot", "cosine"] = "dot",
        noise: float = 0.0,
        start: Literal["xavier", "likeness"] = "xavier",
        reading: Literal["diagonal", "relative"] = "diagonal",
        both_ways: bool = False,
        regions: int = 1,
        changes: int = 0,
    ) -> None:
        config = constructor_arguments(locals())
        _check_arguments(config)
        specs = [image_spec("onset", image_size), image_spec("apex", image_size)]
        super().__init__(input_spec=specs, embed_dim=width * regions**2 + changes**2, config=config)
        self.patch_size = patch_size
        self.side = image_size // patch_size
        self.interest = interest
        self.swapping = {"ratio": swap_ratio, "min_block": min_block, "min_aspect": min_aspect}
        self.both_ways, self.regions, self.changes = both_ways, regions, changes
        self.mean = nn.Buffer(torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.deviation = nn.Buffer(torch.tensor(IMAGENET_SD).view(3, 1, 1), persistent=False)
        self.encoder = networks.MicroEncoder(image_size, patch_size, width, depth, heads, mlp_ratio)
        self.micro_attention = None if attention == "none" else networks.MicroAttention(width, attention, similarity)
        self.decoder = networks.MicroDecoder(self.side, patch_size, width, decoder_depth, heads, mlp_ratio)
        if start == "likeness":
            networks.begin_with_likeness(self.encoder, self.decoder, self.micro_attention)
        self.dino = DinoAgreement(self.encoder, hidden=head_width) if interest and agreement == "dino" else None
        # Labels do not reach what serves training without them; `begin_pretraining` gives it back.
        self.decoder.requires_grad_(False)
        if both_ways and self.micro_attention is not None:
            # P_dma one way less P_dma the other way: what both hold is gone.
            self.micro_attention.out.bias.requires_grad_(False)
        if self.dino is not None:
            self.dino.requires_grad_(False)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Embeddings (B, embed_dim) of ``{"onset": ..., "apex": ...}``, images (B, 3, H, W) from 0 to 1."""
        onset, apex = self._encode(inputs)
        # The diagonal is of the order of 1/N: the mean over patches becomes one weighted by W.
        features = self._weighed(apex, onset, relative=True)
        if self.both_ways:
            features = self._weighed(onset, apex, relative=True) - features
        found = self._averaged(features, self.regions)
        if not self.changes:
            return found
        changes = self._averaged(self.change(onset, apex)[..., None].to(found.dtype), self.changes)
        return torch.cat([FEATURE_GAIN * found, CHANGE_GAIN * changes], dim=1)

    def _averaged(self, values: Tensor, regions: int) -> Tensor:
        """Means of values (B, N, D) over the patches of each region, (B, D * regions ** 2)."""
        return F.adaptive_avg_pool2d(values.mT.unflatten(2, (self.side, self.side)), regions).flatten(1)

    def begin_pretraining(self) -> None:
        """Make trainable what serves training without labels: decoder, head of ``"dino"``, bias of P_dma."""
        self.decoder.requires_grad_(True)
        if self.micro_attention is not None:
            self.micro_attention.out.bias.requires_grad_(True)
        if self.dino is not None:
            self.dino.head.requires_grad_(True)

    def pretraining_loss(
        self, first: Tensor, second: Tensor, *, done: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """``"loss"`` (eq. 13), and detached ``"reconstruction"`` (eq. 14) and ``"agreement"`` (eq. 15) of frame pairs.
        `first` and `second` are I_t and I_{t+δ}, (B, 3, H, W) from 0 to 1. The share `done` of the training that is
        over sets the teacher's momentum with ``agreement="dino"``; the generator draws the blocks of Algorithm 1 and
        the crops."""
        pair, options = self.media_of({"onset": first, "apex": second}), self.config
        first, second = ((frames - self.mean) / self.deviation for frames in pair)
        views = [self.swap(first, second, generator), second]
        if self.interest and self.dino is None:
            views.append(random_crops(second, second.shape[-1], options["crop_area"], generator))
        swapped, whole, *cropped = self.encoder(torch.cat(views)).split(len(first))
        features = self._weighed(whole, swapped)
        if options["noise"]:
            drawn = torch.randn(features.shape, generator=generator, device=generator.device)
            features = features + options["noise"] * drawn.to(features)
        pixels = self.decoder(features)
        reconstruction = F.mse_loss(pixels.float(), self._wanted(first).float())
        losses = {"loss": options["reconstruction_weight"] * reconstruction, "reconstruction": reconstruction.detach()}
        if self.interest:
            if self.dino is None:
                agreement = F.mse_loss(whole.context, cropped[0].context)
            else:
                agreement = self.dino(self.encoder, *self._crops(second, generator), done)
            losses |= {
                "loss": losses["loss"] + options["agreement_weight"] * agreement,
                "agreement": agreement.detach(),
            }
        return losses

    def after_step(self) -> None:
        """Let the teacher of ``"dino"`` follow after an optimiser step."""
        if self.dino is not None:
            self.dino.follow(self.encoder)

    def swap(self, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
        """I_{t/s}: `first` with blocks of patches from `second` (Sec. 4.4, Algorithm 1), drawn anew for each pair."""
        drawn = [draw_blocks(self.side, self.side, generator=generator, **self.swapping) for _ in first]
        masks = torch.stack([swap_mask(blocks, self.side, self.side) for blocks in drawn])
        pixels = masks.repeat_interleave(self.patch_size, dim=1).repeat_interleave(self.patch_size, dim=2)
        return torch.where(pixels[:, None].to(first.device), second, first)

    def explain_maps(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What moved and what counts, by patch: ``"dma"``, ``"poi"`` and their product ``"dma_poi"``. Each is (B, H /
        patch_size, W / patch_size) from 0 to 1: where the diagonal of the attention between the frames is low (see
        `reading`), the patch-of-interest scores of the apex over their largest (eq. 11), and the product over its
        largest (Fig. 7). Maps that the network is built without are left out."""
        onset, apex = self._encode(inputs)
        maps = {}
        if self.micro_attention is not None:
            maps["dma"] = self.change(onset, apex)
        if self.interest:
            maps["poi"] = _over_largest(apex.interest.float())
        if len(maps) == 2:
            maps["dma_poi"] = _over_largest(maps["dma"] * maps["poi"])
        return {name: values.unflatten(1, (self.side, self.side)) for name, values in maps.items()}

    def change(self, onset: networks.Encoded, apex: networks.Encoded) -> Tensor:
        """How much each patch changed according to the diagonal, (B, N) from 0 to 1. With ``reading="diagonal"`` this
        is ``1 - diag(Â) / max diag(Â)``. A patch that resembles its neighbours has a low diagonal without moving,
        though. ``"relative"`` takes the logarithm of the diagonal from onset to apex and from apex to onset less that
        of each frame with itself; half that sum, at most zero, is c and the map ``1 - exp(c)``."""
        attention = cast(networks.MicroAttention, self.micro_attention)
        before, after = onset.patches, apex.patches
        diagonal = attention.log_diagonal(after, before)
        if self.config["reading"] == "diagonal":
            return -torch.expm1(diagonal - diagonal.amax(dim=1, keepdim=True))
        across = diagonal + attention.log_diagonal(before, after)
        still = attention.log_diagonal(before, before) + attention.log_diagonal(after, after)
        return -torch.expm1(((across - still) / 2).clamp(max=0))

    def _encode(self, inputs: dict[str, Tensor]) -> tuple[networks.Encoded, networks.Encoded]:
        """Onset and apex through the encoder."""
        frames = torch.cat(self.media_of(inputs))
        onset, apex = self.encoder((frames - self.mean) / self.deviation).split(len(frames) // 2)
        return onset, apex

    def _weighed(self, second: networks.Encoded, swapped: networks.Encoded, *, relative: bool = False) -> Tensor:
        """P_dma (eq. 9 or 12), or the patches of I_{t/s} as they are where there is no micro-attention."""
        if self.micro_attention is None:
            return swapped.patches
        interest = second.interest if self.interest else None
        return self.micro_attention(second.patches, swapped.patches, interest, relative=relative)

    def _wanted(self, first: Tensor) -> Tensor:
        """What the decoder has to give back."""
        pixels = networks.patchify(first, self.patch_size)
        if not self.config["normalise_patches"]:
            return pixels
        spread = (pixels.var(dim=-1, keepdim=True) + 1e-6).sqrt()
        return (pixels - pixels.mean(dim=-1, keepdim=True)) / spread

    def _crops(self, frames: Tensor, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
        """Two large crops and the small ones of the published code."""
        area, small = self.config["crop_area"], max(1, round(self.side * 3 / 7)) * self.patch_size
        return (
            [random_crops(frames, frames.shape[-1], area, generator) for _ in range(2)],
            [random_crops(frames, small, (0.05, area[0]), generator) for _ in range(self.config["small_crops"])],
        )


TINY: Mapping[str, Any] = {
    "image_size": 112, "width": 128, "depth": 2, "decoder_depth": 2, "normalise_patches": True, "similarity": "cosine",
    "noise": 0.5, "start": "likeness", "reading": "relative", "both_ways": True, "regions": 4, "changes": 7,
}  # fmt: skip


@register_backbone("mubert_tiny")
class MuBertTiny(MuBert):
    """µ-BERT for two processor cores: frames of 112, width 128, two blocks each; pretrained in minutes.

    As `MuBert` (``mubert_small``), whose parameters it takes, as keywords, and whose notes hold; the values that differ
    are fsmer's own. `image_size` 112 makes 196 patches. With the paper's values of `normalise_patches`, `similarity`,
    `noise` and `start`, a short training makes the diagonal tell places apart and no longer changes, see
    `begin_with_likeness`. With those of `reading`, `both_ways`, `regions` and `changes`, where and how a face moves is
    lost in a mean over the frame.

    Notes
    -----
    What of the paper is there, what comes from the published code and what is absent: as in ``mubert_small``.

    Deviations beside those of ``mubert_small``: the size; what is reconstructed is normalised patch by patch (an option
    of the published code); cosines in place of products in eq. 8, noise on P_dma during training without labels, other
    initial weights; maps read relative to each frame with itself; the embedding takes P_dma both ways, by region, and
    the map of changes. Learning rate, steps and batch size of both trainings differ too.
    """

    trusted: ClassVar[bool] = True
    recipe: ClassVar[TrainRecipe] = replace(
        MuBert.recipe,
        source="fsmer's own choice for a network of this size",
        learning_rate=5e-4,
        epochs=30,
        warmup_epochs=2,
    )
    pretraining_recipe: ClassVar[PretrainRecipe] = replace(
        MuBert.pretraining_recipe,
        source="distance as in Micron-BERT Sec. 5.2; the rest is fsmer's own choice for two processor cores",
        learning_rate=1e-3,
        weight_decay=0.05,
        steps=1000,
        batch_size=8,
        warmup_steps=30,
        clip_gradient=1.0,
    )

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{**TINY, **arguments})


# `MuBert`'s own arguments with other defaults.
MuBertTiny.__signature__ = inspect.signature(MuBert).replace(  # type: ignore[attr-defined]
    parameters=[
        one.replace(default=TINY.get(name, one.default), kind=one.KEYWORD_ONLY)
        for name, one in inspect.signature(MuBert).parameters.items()
    ]
)


def _over_largest(values: Tensor) -> Tensor:
    return values / values.amax(dim=1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


def _check_arguments(arguments: dict[str, Any]) -> None:
    """One sentence about the first argument that cannot be used."""
    image, patch, width = arguments["image_size"], arguments["patch_size"], arguments["width"]
    if min(image, patch) < 1 or image % patch:
        raise FsmerError(f"image_size {image} is not a multiple of patch_size {patch}; choose sizes that divide.")
    if width < 4 or width % 4 or width % arguments["heads"]:
        raise FsmerError(
            f"width {width} cannot be split into {arguments['heads']} heads and two-dimensional positions; choose a "
            "multiple of four and of the heads."
        )
    if arguments["attention"] == "none" and arguments["interest"]:
        raise FsmerError("patches of interest weigh micro-attention, but attention is 'none'; set interest=False too.")
    if not (0 < arguments["swap_ratio"] <= 1 and 0 < arguments["min_aspect"] <= 1 and arguments["min_block"] >= 1):
        raise FsmerError(
            f"blocks cannot be drawn with swap_ratio {arguments['swap_ratio']}, min_block {arguments['min_block']} and "
            f"min_aspect {arguments['min_aspect']}; the ratios lie above 0 and up to 1, the block has 1 patch or more."
        )
    crop = arguments["crop_area"]
    if len(crop) != 2 or not 0.05 <= crop[0] <= crop[1] <= 1:
        raise FsmerError(f"crop_area is {crop}, which must be two shares of a frame from 0.05 to 1, the lower first.")
    for name, least in (("regions", 1), ("changes", 0)):
        if arguments[name] < least:
            raise FsmerError(f"{name} is {arguments[name]}, but must be {least} or more.")
    if arguments["attention"] == "none" and arguments["changes"]:
        raise FsmerError("changes are read from micro-attention, but attention is 'none'; set changes=0 too.")
