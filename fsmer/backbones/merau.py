"""MERAU (Dai & Feng, IEEE Access 2021): action unit code, action unit predictions and optical flow in one embedding.

A frozen Twin-Cycle Autoencoder encoder reads the apex frame; a frozen detector turns its code into the logits of ten
action units; a ResNet18 reads the flow from onset to apex. Each of the three goes through a projection layer of its
own, and the projections side by side are the embedding (eq. 3).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.ambient import library_settings
from fsmer.backbones import Backbone, ClassDirections, TrainRecipe, register_backbone
from fsmer.backbones.base import constructor_arguments
from fsmer.backbones.embedding import check_media
from fsmer.backbones.flow_resnet18 import FlowResNet18
from fsmer.backbones.recipe import Preparation
from fsmer.backbones.targets import action_unit_targets
from fsmer.backbones.tcae import Tcae
from fsmer.backbones.tcae_networks import AuEncoder, check_frame_size
from fsmer.backbones.weights import refuse_other_files
from fsmer.data import ClipSet
from fsmer.data.facs import ACTION_UNIT_ORDER
from fsmer.data.spec import image_spec
from fsmer.errors import DataError, FsmerError, SpecMismatchError
from fsmer.synthetic.class_descriptions import unit_shares

__all__ = ["MERAU_UNITS", "Merau", "au_loss"]

# The ten action units of CASME II that the paper names (section III.A): inner and outer brow raiser, brow lowerer, lid
# tightener, nose wrinkler, upper lip raiser, lip corner puller, dimpler, lip corner depressor, chin raiser.
MERAU_UNITS = (1, 2, 4, 7, 9, 10, 12, 14, 15, 17)

# What a TCAE encoder's sizes are called in `Tcae` and here.
TCAE_SIZES = {"size": "frame_size", "width": "frame_width", "code_dim": "code_dim"}


@register_backbone("merau")
class Merau(Backbone):
    """MERAU: action unit code and logits of the apex frame beside a ResNet18 on the optical flow, projected and joined.

    Parameters
    ----------
    frame_size, frame_width, code_dim : int
        Of the TCAE encoder, see `AuEncoder`; published 256, 32 and 256.
    units : sequence of int
        FACS numbers that the detector predicts; the paper's ten are `MERAU_UNITS`.
    projection_dim : int
        Length of each of the three projections (section III.B: "the same feature space"); the paper gives no number.
    flow : mapping, optional
        Constructor arguments of `FlowResNet18`, whose own projection is always left out.
    tcae : str, optional
        Folder of a trained `tcae` (``fsmer pretrain tcae``), whose encoder is taken over with its frame size, width and
        length of code. The tensors stored with a saved backbone take its place, so that its config does not name it.

    Raises
    ------
    FsmerError
        An argument is out of range.
    WeightsError
        `tcae` is no folder of a trained TCAE.

    Notes
    -----
    There: the apex frame alone into the frozen TCAE encoder, a frozen detector of the ten action units (eq. 1-2; the
    BCE is the usual one, since eq. 1 as printed has 1 - log where log of 1 - is meant), the flow ResNet18, three
    projections with ReLU, their concatenation (eq. 3), the layer-wise learning rates of Table 2, random crops,
    resizing and rotations in training. Outside this file: neighbour frames (eq. 11) are made by ``fsmer prepare
    --add-neighbours 5`` and learnt from by protocols with ``neighbours=True``; fine-tuning (eq. 5 and 8) is the method
    ``finetune`` with ``train_backbone=True, balanced=False, source_augment=True``, and its cosine classifier (eq. 6-7)
    ``cosine`` with these and ``init="random", centre=False, scale=1, pull=0`` (its defaults are fsmer's own); the
    nearest prototype (eq. 9) is ``protonet``, and its training on episodes (eq. 10, Algorithm 1, last column of Table
    2) ``fsmer.meta_train`` with the algorithm ``protonet``; the distance of domains (eq. 15) is ``fsmer.transfer.mmd``.

    Open in the paper and chosen here: the projections' length (128), the detector's form (batch normalisation and a
    linear layer without bias, as in TCAE's published code), Adam, epochs, batch size, and how far clips are shifted (4
    pixels), resized (10 %) and turned (3 degrees).

    Deviations: the paper's rate of 1e-5 is for a ResNet18 that was trained before (``flow={"weights": "imagenet"}``, or
    a file); one that starts at random hardly moves at it, and learns at 1e-3 until it has been trained (`random_rates`
    of the recipe, ``random_encoder_rate`` of the fine-tuning methods). `class_directions` is ours: the detector's
    logits that a class is expected to show, sent through their own projection, are a direction that needs no label.

    Absent: the baselines of its tables (LBP-TOP, VGG, CapsuleNet, Liu's network) and the support vector machines on
    principal components of Table 5. The authors' TCAE weights: give those of ``fsmer pretrain tcae`` as `tcae` (``fsmer
    train merau --argument tcae=DIR``). With a TCAE that was not pretrained the action unit code is random and the
    detector learns little from it. It sees the apex alone: on drawn faces of 64 pixels classes described in words stay
    at chance even with a TCAE that was pretrained on such faces. Every training of the network, by ``train`` or a
    fine-tuning method, on a source or a support, fits the detector first where the clips have annotated action units
    and warns where they have none; `detector_preparation` gives that training on other clips. Embedding clips with a
    detector that was never fitted warns too.
    """

    trusted: ClassVar[bool] = True
    recipe: ClassVar[TrainRecipe] = replace(
        FlowResNet18.recipe,
        source="MERAU, Table 2 (rates) and section IV.A (crops, resizing and rotations); the flow encoder's rate is "
        "raised from 1e-5 where it starts at random; optimiser, epochs, batch size and sizes of the augmentations are "
        "open there",
        rates={"flow_encoder": 1e-5, "projection": 1.2e-3, "classifier": 1.2e-3},
        random_rates={"flow_encoder": 1e-3},
    )

    def __init__(
        self,
        frame_size: int = 256,
        frame_width: int = 32,
        code_dim: int = 256,
        units: Sequence[int] = MERAU_UNITS,
        projection_dim: int = 128,
        flow: Mapping[str, Any] | None = None,
        tcae: str | None = None,
    ) -> None:
        config = constructor_arguments(locals()) | {"tcae": None}
        trained = None
        # Not a part of the weights: whether somebody has been told that the detector stays random.
        self._told = False
        if tcae is not None:
            refuse_other_files("tcae")
            trained = Tcae.from_pretrained(tcae)
            config |= {own: trained.config[name] for name, own in TCAE_SIZES.items()}
            frame_size, frame_width, code_dim = (config[own] for own in TCAE_SIZES.values())
        check_frame_size(frame_size)
        if not units or len(set(units)) < len(units) or not set(units) <= set(ACTION_UNIT_ORDER):
            raise FsmerError(
                f"merau's units are {list(units)}, but one or more different action units are expected, of "
                f"{', '.join(map(str, ACTION_UNIT_ORDER))}."
            )
        flow_encoder = FlowResNet18(**{**(flow or {}), "projection_dim": 0})
        super().__init__(
            input_spec=[flow_encoder.input_spec, image_spec("apex", frame_size)],
            embed_dim=3 * projection_dim,
            config=config | {"flow": flow_encoder.config},
        )
        self.units = tuple(units)
        self.flow_encoder = flow_encoder
        self.au_encoder = AuEncoder(frame_size, frame_width, code_dim)
        self.au_detector = nn.Sequential(nn.BatchNorm1d(code_dim), nn.Linear(code_dim, len(units), bias=False))
        self.projection_flow = nn.Linear(flow_encoder.embed_dim, projection_dim)
        self.projection_code = nn.Linear(code_dim, projection_dim)
        self.projection_logits = nn.Linear(len(units), projection_dim)
        # Mean logit of each unit: over all clips the detector was trained on, those without the unit, those with it.
        self.unit_logits = nn.Buffer(torch.zeros(3, len(units)))
        self.au_encoder.requires_grad_(False)
        self.au_detector.requires_grad_(False)
        if trained is not None:
            self.load_au_encoder(trained)

    def forward(self, inputs: Any) -> Tensor:
        """Embeddings (B, 3 * projection_dim) for a dict of ``flow`` and ``apex``."""
        (flow,) = self.media_of(inputs, "flow")
        code, logits = self.au_features(inputs)
        features = self.projection_flow(self.flow_encoder(flow))
        parts = (features, self.projection_code(code), self.projection_logits(logits))
        return torch.cat([F.relu(part) for part in parts], dim=1)

    def au_features(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """Action unit code (B, code_dim) and logits (B, units) of the ``apex`` frames in `inputs`."""
        code = self.au_encoder(*self.media_of(inputs, "apex"))
        return code, self.au_detector(code)

    def train(self, mode: bool = True) -> Merau:
        """Training mode of what is trained; the action unit branch keeps its batch statistics."""
        super().train(mode)
        self.au_encoder.eval()
        self.au_detector.eval()
        return self

    def load_au_encoder(self, tcae: Tcae) -> None:
        """Take over the encoder of a trained TCAE (section IV.B.2). `SpecMismatchError` where it has another frame
        size, width or code length."""
        own = self.au_encoder.state_dict()
        given = {name: value for name, value in tcae.encoder.state_dict().items() if not name.startswith("pose_branch")}
        if own.keys() != given.keys() or any(own[name].shape != value.shape for name, value in given.items()):
            held = ", ".join(f"{name} {tcae.config[name]}" for name in TCAE_SIZES)
            wanted = ", ".join(f"{name} {self.config[own]}" for name, own in TCAE_SIZES.items())
            raise SpecMismatchError(
                f"the TCAE is made with {held}, but merau's encoder with {wanted}; make them alike."
            )
        self.au_encoder.load_state_dict(given)

    def preparations(self, clips: ClipSet, *, seed: int) -> Iterator[Preparation]:
        """The action unit detector on the clips' annotated action units, unless it has been fitted before. Warns where
        no clip has any: the detector then stays random."""
        if bool(self.unit_logits.any()):
            return
        try:
            yield self.detector_preparation(clips, seed=seed)
        except DataError as error:
            self._told = True
            warnings.warn(f"the action unit detector of 'merau' stays random: {error}", stacklevel=2)

    def unprepared(self) -> str:
        """A sentence where the action unit detector is random and nobody has been told."""
        if self._told or bool(self.unit_logits.any()):
            return ""
        return (
            "the action unit detector of 'merau' is random, and so is what it adds to the embedding; train the network "
            "on clips with an 'aus' column ('fsmer train merau', or a fine-tuning method with train_backbone=True)."
        )

    def detector_preparation(
        self, clips: ClipSet, *, epochs: int = 100, learning_rate: float = 0.0012, batch_size: int = 32, seed: int = 0
    ) -> Preparation:
        """Training of the detector on frozen codes of the apex frames (MERAU, eq. 1-2 and section IV.B.2).

        At its end it measures what the logits are with and without each unit, from which `class_directions` works.
        `fsmer.training.preparation.train_part` carries it out. The learning rate is the paper's and Adam's; optimiser,
        epochs and batch size are open there. Clips without annotated action units are left out.

        Raises
        ------
        DataError
            No clip, or only one, has annotated action units.
        SpecMismatchError
            The clips hold no apex frames of the model's size.
        """
        check_media(clips, self.input_specs[1:], "the detector")
        targets = action_unit_targets(clips)
        rows = np.zeros(0, np.int64) if targets is None else np.flatnonzero(~targets.isnan().any(dim=1).numpy())
        if targets is None or len(rows) < 2:
            raise DataError(
                f"{len(rows)} of {len(clips)} clips have annotated action units, but the detector learns from two or "
                "more; give clips with an 'aus' column."
            )
        device = next(self.parameters()).device
        codes = self._codes(clips, rows).to(device)
        present = targets[rows][:, [ACTION_UNIT_ORDER.index(unit) for unit in self.units]].to(device)

        def finish() -> None:
            with torch.no_grad():
                self.unit_logits.copy_(_logit_means(self.au_detector(codes), present))

        return Preparation(self.au_detector, codes, present, au_loss, finish, epochs, batch_size, learning_rate, seed)

    def _codes(self, clips: ClipSet, rows: np.ndarray) -> Tensor:
        """Action unit codes of the apex frames, read a few at a time."""
        device, encoder = next(self.parameters()).device, self.au_encoder.eval()
        with torch.no_grad():
            chunks = (clips.read("apex", rows[at : at + 32]) for at in range(0, len(rows), 32))
            return torch.cat([encoder(torch.from_numpy(chunk).to(device)).cpu() for chunk in chunks])

    @library_settings()
    def class_directions(self, classes: Sequence[str]) -> ClassDirections | None:
        """Directions of classes from the action units that they show, once the detector is trained. An emotion shows
        its FACS combinations, a coarse class the combinations of its emotions, and a class named by action units
        (``"4+7"``, ``"lip corner puller"``) just these. The logits expected for them go through ``projection_logits``;
        the other two projections say nothing about a class yet and are left out (zero)."""
        if not bool(self.unit_logits.any()):
            return None
        overall, absent, present = self.unit_logits.detach().cpu().float()
        layer = self.projection_logits
        weight, bias = layer.weight.detach().cpu().float(), layer.bias.detach().cpu().float()
        zeros = torch.zeros(self.embed_dim - layer.out_features)
        resting = F.relu(weight @ overall + bias)
        places = [ACTION_UNIT_ORDER.index(unit) for unit in self.units]
        directions: list[Tensor | None] = []
        for every in map(unit_shares, classes):
            if every is None or not every[places].any():  # nothing is known of the class, or none of it is detected
                directions.append(None)
                continue
            share = torch.from_numpy(every[places])
            expected = F.relu(weight @ (absent + share * (present - absent)) + bias)
            directions.append(torch.cat([zeros, expected - resting]))
        # The scale sharpens probabilities and moves no decision.
        return ClassDirections.of(directions, scale=10.0, centre=torch.cat([zeros, resting]))


def au_loss(logits: Tensor, present: Tensor) -> Tensor:
    """Mean binary cross-entropy over units and clips (MERAU, eq. 1) of logits (B, units); `present` is 1 or 0."""
    return F.binary_cross_entropy_with_logits(logits, present)


def _logit_means(logits: Tensor, present: Tensor) -> Tensor:
    """Mean logit of each unit over all clips, those without it and those with it, (3, units); the overall mean where
    one of the two sets is empty."""
    overall = logits.mean(dim=0)
    means = [overall]
    for member in (1 - present, present):
        count = member.sum(dim=0)
        means.append(torch.where(count > 0, (logits * member).sum(dim=0) / count.clamp_min(1), overall))
    return torch.stack(means)
