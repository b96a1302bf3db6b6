"""Twin-Cycle Autoencoder (Li, Zeng, Shan, Chen, CVPR 2019): a code of facial action apart from a code of head pose.

Two frames of one face differ by what the face does and by how the head moves. An encoder gives each frame two codes;
one decoder turns the action unit codes of both frames into a flow field, the other the pose codes into another, and
the two flows together must warp the first frame into the second. Warped with one of the flows alone, the face must
take over that code from the second frame and keep the other code, and the way back must lead to the first frame: these
are the twin cycles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fsmer.backbones import Backbone, TrainRecipe, register_backbone
from fsmer.backbones.base import constructor_arguments
from fsmer.backbones.recipe import PretrainRecipe
from fsmer.backbones.tcae_networks import Encoder, FlowDecoder, check_frame_size
from fsmer.data.spec import image_spec
from fsmer.errors import FsmerError

__all__ = ["Tcae", "curriculum_mean", "curriculum_window", "warp"]

# Training crops: a square whose side is 200 to 223 of 256 pixels, inside the central 224 (published data loader).
CROP_SIDES = (200, 224)
CROP_FRAME = 256


@register_backbone("tcae")
class Tcae(Backbone):
    """Twin-Cycle Autoencoder: action unit code of the apex frame, self-supervised on pairs of frames.

    Parameters
    ----------
    size : int
        Side of the frames in pixels, a power of two from 16; 256 as published.
    width : int
        Channels of the first convolution; published 32.
    code_dim : int
        Length of each of the two codes; published 256.
    embedding : {"apex", "difference"}
        ``"apex"``: the action unit code of the apex frame, which is what MERAU (section III.B.1) takes from TCAE and
        what TCAE's own classifier sees. ``"difference"``: that code less the onset's (our own), which removes the
        resting face.
    frozen : bool
        Keep the encoder as it is in supervised training, as TCAE's own evaluation and MERAU do. Off by default, so that
        labels can train it too.
    jitter : {"each", "pair", "none"}
        Random crops in self-supervised training: of each frame by itself, as in the published loader (it adds head
        shifts to learn from), one for both frames of a pair, or none.
    pixel_weight, code_weight, cycle_weight, flow_weight : float
        Weights of the losses of `pretraining_loss`; published 10, 1, 1 and 0.1.
    pose_grid : int, optional
        Our own: makes the pose flow as smooth as the motion of a head is, a grid of so many points a side with straight
        lines between them; None, as published, leaves both decoders free to move every pixel.

    Raises
    ------
    FsmerError
        An argument is out of range.

    Notes
    -----
    There: encoder with two codes, two flow decoders with mixing logits, warping, all ten losses and their weights, the
    curriculum over sorted losses, the crops and the optimiser, all as in the authors' published code. The text of the
    conference paper was not at hand to compare them with.

    Deviations: the curriculum's window moves at equal shares of the training, where the published code waits for the
    validation loss to stall for 15 epochs and then lowers the learning rate; a batch's crop size is drawn anew each
    step instead of each epoch. Sampling keeps the meaning that it had in the PyTorch of the publication (the grid's
    ends are pixel centres). Pairs come from one high-speed recording, a few frames apart, where the authors took any
    two frames of a celebrity video at one frame a second; number of steps and distance are our choice. By default
    labels train the encoder too, where the authors freeze it and train a linear classifier on its code
    (``frozen=True``). ``embedding="difference"`` and `pose_grid` are our own.

    Absent: the authors' weights and their face alignment; their classifier (batch normalisation and a linear layer) is
    the head that a method puts on the embedding.
    """

    trusted: ClassVar[bool] = True
    recipe: ClassVar[TrainRecipe] = TrainRecipe(
        source="fsmer's own choice; TCAE's authors train only a linear classifier on the frozen code",
        learning_rate=3e-4,
        augment=("flip", "crop"),
        crop_pixels=8,
    )
    pretraining_recipe: ClassVar[PretrainRecipe] = PretrainRecipe(
        source="TCAE's published training code (SGD 1e-3, momentum 0.9, batches of 64); steps, distance and a constant "
        "learning rate are fsmer's own choice",
        optimizer="sgd",
        learning_rate=1e-3,
        weight_decay=0.0,
        momentum=0.9,
        steps=20_000,
        batch_size=64,
        distance=(5, 20),
        schedule="constant",
    )

    def __init__(
        self,
        size: int = 256,
        width: int = 32,
        code_dim: int = 256,
        embedding: Literal["apex", "difference"] = "apex",
        frozen: bool = False,
        jitter: Literal["each", "pair", "none"] = "each",
        pixel_weight: float = 10.0,
        code_weight: float = 1.0,
        cycle_weight: float = 1.0,
        flow_weight: float = 0.1,
        pose_grid: int | None = None,
    ) -> None:
        config = constructor_arguments(locals())
        check_frame_size(size)
        if pose_grid is not None and not 2 <= pose_grid <= size:
            raise FsmerError(f"tcae's pose_grid is {pose_grid}, but it must be 2 to {size} points a side, or None.")
        super().__init__(
            input_spec=[image_spec("onset", size), image_spec("apex", size)], embed_dim=code_dim, config=config
        )
        self.pose_grid, self.embedding, self.jitter = pose_grid, embedding, jitter
        self.weights = {"pixel": pixel_weight, "code": code_weight, "cycle": cycle_weight, "flow": flow_weight}
        self.encoder = Encoder(size, width, code_dim)
        self.au_decoder = FlowDecoder(size, width, code_dim)
        self.pose_decoder = FlowDecoder(size, width, code_dim)
        # Labels reach the action unit code alone; `begin_pretraining` gives the rest back to training without labels.
        self.requires_grad_(False)
        self.encoder.shared.requires_grad_(not frozen)
        self.encoder.au_branch.requires_grad_(not frozen)
        self._resting = frozen

    def forward(self, inputs: Any) -> Tensor:
        """Embeddings (B, code_dim) for a dict of ``onset`` and ``apex`` frames, each (B, 3, size, size) in 0..1."""
        code: Tensor = self.encoder(*self.media_of(inputs, "apex"))
        if self.embedding == "difference":
            code = code - self.encoder(*self.media_of(inputs, "onset"))
        return code

    def train(self, mode: bool = True) -> Tcae:
        """Training mode; a frozen encoder keeps its batch statistics."""
        super().train(mode)
        if self._resting:
            self.encoder.eval()
        return self

    def begin_pretraining(self) -> None:
        """Make every parameter trainable, `frozen` or not: training without labels uses them all."""
        self.requires_grad_(True)
        self._resting = False

    def pretraining_loss(
        self, first: Tensor, second: Tensor, *, done: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The curriculum's mean of each of the ten losses and their weighted sum. `first` and `second`, (B, 3, size,
        size) in 0..1, are frames of one sequence: the source, and the target that it is warped to. `done` is the share
        of the training that is over, which moves the curriculum's window, see `curriculum_window`; the generator draws
        the crops. The result has ``"loss"`` with a gradient, and every term of `terms` by name, without weight or
        gradient."""
        if self.jitter != "none":
            first, second = random_crops(first, second, generator, apart=self.jitter == "each")
        window = curriculum_window(done)
        means = {name: curriculum_mean(values, window) for name, values in self.terms(first, second).items()}
        loss = torch.stack([self.weights[name.split("_")[0]] * value for name, value in means.items()]).sum()
        return {"loss": loss, **{name: value.detach() for name, value in means.items()}}

    def terms(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The ten losses of every pair, each of shape (B,). ``pixel``: mean absolute difference of the jointly warped
        source from the target. ``code_X_Y``: mean squared difference of code Y in the frame warped by flow X (``au``,
        ``pose`` or both, ``mixed``) from what it should be, the target's where flow X carries it and the source's where
        it does not. ``cycle_X``: mean absolute difference from the source of the frame that was warped by flow X and
        back. ``flow``: mean absolute action unit flow."""
        target_au, target_pose = self.encoder.codes(target)
        source_au, source_pose = self.encoder.codes(source)
        au_flow, au_logits = self.au_decoder(source_au, target_au)
        pose_flow, pose_logits = self._pose_flow(source_pose, target_pose)
        share = torch.sigmoid(au_logits - pose_logits)  # the softmax over two logits
        by_au, by_pose = warp(source, au_flow), warp(source, pose_flow)
        mixed = warp(source, share * au_flow + (1 - share) * pose_flow)
        au_of_au, pose_of_au = self.encoder.codes(by_au)
        au_of_pose, pose_of_pose = self.encoder.codes(by_pose)
        au_of_mixed, pose_of_mixed = self.encoder.codes(mixed)
        # The way back: the warped frame's pixels are given, only the flow is learnt.
        au_back = warp(by_au.detach(), self.au_decoder(au_of_au, source_au)[0])
        pose_back = warp(by_pose.detach(), self._pose_flow(pose_of_pose, source_pose)[0])
        return {
            "pixel": _distance(mixed, target),
            "code_pose_pose": _squared(pose_of_pose, target_pose),
            "code_pose_au": _squared(au_of_pose, source_au),
            "code_au_pose": _squared(pose_of_au, source_pose),
            "code_au_au": _squared(au_of_au, target_au),
            "code_mixed_pose": _squared(pose_of_mixed, target_pose),
            "code_mixed_au": _squared(au_of_mixed, target_au),
            "cycle_au": _distance(au_back, source),
            "cycle_pose": _distance(pose_back, source),
            "flow": au_flow.abs().flatten(1).mean(dim=1),
        }

    def _pose_flow(self, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        flow, logits = self.pose_decoder(one, other)
        if self.pose_grid is not None:
            coarse = F.adaptive_avg_pool2d(flow, self.pose_grid)
            flow = F.interpolate(coarse, size=flow.shape[-2:], mode="bilinear", align_corners=False)
        return flow, logits

    def explain_maps(self, inputs: Any) -> dict[str, Tensor]:
        """How far the two decoders move each pixel from onset to apex, each (B, size, size), largest 1. They say
        something after training without labels, in which alone decoders are trained."""
        onset, apex = self.media_of(inputs)
        au, pose = zip(self.encoder.codes(onset), self.encoder.codes(apex), strict=True)
        flows = {"au_flow": self.au_decoder(*au)[0], "pose_flow": self._pose_flow(*pose)[0]}
        maps = {name: flow.float().norm(dim=1) for name, flow in flows.items()}
        return {name: found / found.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12) for name, found in maps.items()}


def warp(images: Tensor, flow: Tensor) -> Tensor:
    """Images (B, C, H, W) sampled at every pixel's place plus `flow`, (B, 2, H, W) in grid units, x before y. The grid
    runs from -1 to 1 between the centres of the outermost pixels, so one pixel is 2 / (W - 1); places outside are moved
    to the edge. Computed in float32, in which a place is exact to a small part of a pixel."""
    height, width = images.shape[-2:]
    rows = torch.linspace(-1, 1, height, device=images.device)
    columns = torch.linspace(-1, 1, width, device=images.device)
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    places = (grid + flow.float().permute(0, 2, 3, 1)).clamp(-1, 1)
    return F.grid_sample(images.float(), places, align_corners=True).to(images.dtype)


def curriculum_window(done: float) -> tuple[float, float]:
    """Which part of the sorted losses counts when the share `done` of the training is over: (0, 0.5) to (0.4, 0.9). The
    window moves by 0.1 until its upper end has passed 0.85 (published training); here each place lasts equally long."""
    moved = min(int(done * 5), 4) * 0.1
    return moved, 0.5 + moved


def curriculum_mean(values: Tensor, window: Sequence[float]) -> Tensor:
    """Mean of the sorted `values`, (B,), from the share window[0] to the share window[1] of them, at least one."""
    count = len(values)
    # 0.1 + 0.1 + 0.1 is a little more than 0.3; the places must not depend on it.
    start, stop = (int(round(share * count, 6)) for share in window)
    return values.sort().values[start : max(stop, start + 1)].mean()


def random_crops(first: Tensor, second: Tensor, generator: torch.Generator, *, apart: bool) -> tuple[Tensor, Tensor]:
    """Both batches of frames (B, 3, S, S) cropped to squares of one side and brought back to their size. The side is
    200 to 223 pixels of 256; each square lies anywhere in the central 224, for every frame by itself (`apart`) or in
    the same place for the frames of a pair."""
    side = int(torch.randint(*CROP_SIDES, (1,), generator=generator, device=generator.device))
    room = (CROP_SIDES[1] - side) / CROP_FRAME
    places = torch.rand(2, len(first), 2, generator=generator, device=generator.device)
    if not apart:
        places[1] = places[0]
    offsets = ((2 * places - 1) * room).to(first.device)
    scale = torch.eye(2, device=first.device) * side / CROP_FRAME

    def cropped(frames: Tensor, offset: Tensor) -> Tensor:
        theta = torch.cat([scale.expand(len(frames), 2, 2), offset[..., None]], dim=-1)
        grid = F.affine_grid(theta, list(frames.shape), align_corners=False)
        return F.grid_sample(frames.float(), grid, padding_mode="border", align_corners=False).to(frames.dtype)

    return cropped(first, offsets[0]), cropped(second, offsets[1])


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).abs().flatten(1).mean(dim=1)


def _squared(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().mean(dim=1)
