"""`r3d10_attribute`, `r3d18_attribute`, `r3d34_attribute`: 3D-ResNets on frames and flow, taught by FACS phrases."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.ambient import library_settings
from fsmer.backbones import Backbone, ClassDirections, Targets, TrainRecipe, register_backbone
from fsmer.backbones.base import constructor_arguments
from fsmer.backbones.text_tower import OWN_TOWERS, TextTower
from fsmer.backbones.weights import made_from_folder
from fsmer.data.facs import ACTION_UNIT_ORDER, describe_aus, units_of_description
from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, FsmerError, WeightsError
from fsmer.synthetic.class_descriptions import emotions_of
from fsmer.synthetic.facs_fields import EMOTION_ACTION_UNITS

__all__ = ["R3D10Attribute", "R3D18Attribute", "R3D34Attribute", "cross_modal_contrastive"]

# Brightness of Kinetics videos, which the cited 3D-ResNets are fed with.
RGB_MEAN = (0.4345, 0.4051, 0.3775)
RGB_STD = (0.2768, 0.2713, 0.2737)
# Training compares plain cosines (eq. 4 has no temperature), too flat for probabilities; this is the scale with which
# cosine classifiers start elsewhere in fsmer.
SCALE = 10.0

# Table I: blocks of conv2_x to conv5_x.
DEPTHS: Mapping[int, tuple[int, int, int, int]] = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}

Stem = Literal["table", "hara"]
Shortcut = Literal["A", "B"]


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions with batch normalisation and a shortcut (Table I; He et al. 2016). The first has the
    `stride`. Where the shape changes, shortcut ``"A"`` subsamples and adds empty channels, ``"B"`` is a 1x1x1
    convolution with batch normalisation."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm3d(outputs)
        self.stride = stride
        self.added_channels = outputs - inputs
        self.shortcut: nn.Module | None = None
        if shortcut == "B" and (stride != 1 or self.added_channels):
            convolution = nn.Conv3d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm3d(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """Features of shape (B, outputs, T / stride, H / stride, W / stride)."""
        if self.shortcut is not None:
            beside = self.shortcut(inputs)
        else:
            beside = inputs[:, :, :: self.stride, :: self.stride, :: self.stride]
            beside = F.pad(beside, (0, 0, 0, 0, 0, 0, 0, self.added_channels))
        features = F.relu(self.norm1(self.conv1(inputs)))
        return F.relu(self.norm2(self.conv2(features)) + beside)


class ResNet3D(nn.Sequential):
    """One stream: the 3D-ResNet of Table I with a linear layer in place of its softmax. The layers carry the table's
    names: ``conv1``, ``conv2_x`` to ``conv5_x`` (`width` channels, doubled at every later stage), ``average_pool``,
    ``fc``. Stem ``"table"``: 3x7x7 convolution of stride 1x2x2, then a maximum over three frames with stride 2, which
    gives the 8x56x56 of Table I; ``"hara"``: 7x7x7 convolution of stride 1x2x2, then 3x3x3 max pooling of stride 2 in
    all three axes (8x28x28), as in the code of the cited 3D-ResNets."""

    def __init__(
        self, channels: int, *, depth: int, width: int, embed_dim: int, stem: Stem, shortcut: Shortcut
    ) -> None:
        if stem == "table":
            convolution = nn.Conv3d(channels, width, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False)
            pool = nn.MaxPool3d((3, 1, 1), stride=(2, 1, 1), padding=(1, 0, 0))
        else:
            convolution = nn.Conv3d(channels, width, 7, stride=(1, 2, 2), padding=3, bias=False)
            pool = nn.MaxPool3d(3, stride=2, padding=1)
        super().__init__()
        self.conv1 = nn.Sequential(convolution, nn.BatchNorm3d(width), nn.ReLU(inplace=True), pool)
        inputs = width
        for number, blocks in enumerate(DEPTHS[depth]):
            outputs, stride = width << number, 1 if number == 0 else 2
            first = BasicBlock(inputs, outputs, stride, shortcut)
            further = (BasicBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1))
            self.add_module(f"conv{number + 2}_x", nn.Sequential(first, *further))
            inputs = outputs
        self.average_pool = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())
        self.fc = nn.Linear(inputs, embed_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def cross_modal_contrastive(video: Tensor, text: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Cross-modal contrastive loss of Song et al. (2022), eq. 3-5.

    Every clip, z_m in `video`, (N, D), against its own text, z_a in the same row of `text`, (N, D), and those of all
    other clips: the mean over i of ``-log(d(v_i, t_i) / (d(v_i, t_i) + sum over j != i of d(v_i, t_j)))`` with
    ``d(v, t) = exp(cos(v, t) / temperature)``; eq. 4 has no temperature, which is 1.

    >>> float(cross_modal_contrastive(torch.eye(2), torch.eye(2)))  # -log(e / (e + 1))
    0.3132616877555847
    """
    # In single precision whatever the network computes in: differences of cosines are what it learns from.
    with torch.autocast(video.device.type, enabled=False):
        cosines = F.normalize(video.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T
        return F.cross_entropy(cosines / temperature, torch.arange(len(cosines), device=cosines.device))


@register_backbone("r3d10_attribute")
class R3D10Attribute(Backbone):
    """Two 3D-ResNet10 on 16 frames and their flow, drawn towards FACS phrases; knows classes described in words.

    Song, Wang, Wu, Huang, Xiao: Micro-Expression Recognition Based on Attribute Information Embedding and Cross-modal
    Contrastive Learning (2022). Depth 10 is the paper's best (figures 2 and 3).

    Parameters
    ----------
    width : int
        Channels of the first stage; Table I: 64.
    size : int
        Height and width of frames and flow in pixels; section IV-B: 112.
    frames : int
        Frames that the clip is interpolated to; section IV-B: 16.
    stream_dim : int
        Length of z_rgb and of z_flow; section III-A: 128, together 256.
    stem : {"table", "hara"}
        See `ResNet3D`; Table I by default.
    shortcut : {"A", "B"}
        See `BasicBlock`. The paper does not say; B is the default of the cited 3D-ResNets' code.
    alpha : float
        Weight of the contrastive loss in eq. 8, 0 to 1; 0 trains the streams alone (L_theta of Table IV). The text of
        the paper does not tell the value used (Fig. 4): 0.5. It may be set on the model later on.
    temperature : float
        Divides the cosines of eq. 5; the paper has none, which is 1.
    text : str
        The text tower, see `TextTower`. Once it has taught the weights, ``config["text"]`` names the one that did, also
        where this was ``"auto"``.
    train_text : bool
        Train the BERT together with the streams (section IV-C) rather than only the linear layer on it.

    Notes
    -----
    There: Table I at all three depths, both streams with weights of their own, concatenation (eq. 1), BERT on the
    phrases of a clip's action units (eq. 2), contrastive loss (eq. 3-5), class losses of video and text (eq. 6-7), the
    total (eq. 8), inference without BERT.

    Deviations, and what is settled here: Table I gives conv1 a stride of 1x2x2 and yet 8 frames out of 16, so a maximum
    over time halves them; the stem of the cited 3D-ResNets' code is ``stem="hara"``. The k negative pairs of eq. 3 are
    all other clips of the batch, equal texts included. z_a is the mean over BERT's tokens through a linear layer. The
    6-layer MiniLM stands for BERT. The phrases are fsmer's own words. Frames are normalised by the mean and deviation
    of Kinetics, flow is taken in thousandths of the face width. The 16 frames have 15 flow maps between them; the 16th
    map repeats the last of these, so that both streams are as long as Table I has them. Weights start as in He et al.
    (2015).

    Added: after training the vectors of the thirty phrases are kept, and a class described in words is their
    combination; the paper names zero-sample learning as its model but does not do it. Trained weights can be trained
    further on clips without action units; the loss is that of the video classes (eq. 6) alone then.

    Absent: Kinetics weights (the paper names none; there are none for depth 10 or for flow). Faces cut out by dlib,
    interpolation to 16 frames by TIM and Farneback flow (section IV-B) come before a backbone: they are choices of
    ``fsmer.preprocess``. The split of the people 3:2 and the mean of five runs (section IV-C, E) are an evaluation's.
    """

    trusted: ClassVar[bool] = True
    depth: ClassVar[int] = 10
    recipe: ClassVar[TrainRecipe] = TrainRecipe(
        source=(
            "Song et al. 2022, section IV-C: Adam, learning rate 0.0001, batches of 32, 200 iterations, read as passes "
            "over the clips; schedule, weight decay and augmentation are not given: none"
        ),
        optimizer="adam",
        learning_rate=1e-4,
        weight_decay=0.0,
        epochs=200,
        batch_size=32,
        schedule="constant",
    )

    def __init__(
        self,
        width: int = 64,
        size: int = 112,
        frames: int = 16,
        stream_dim: int = 128,
        stem: Stem = "table",
        shortcut: Shortcut = "B",
        alpha: float = 0.5,
        temperature: float = 1.0,
        text: str = "auto",
        train_text: bool = True,
    ) -> None:
        config = constructor_arguments(locals())
        for name in ("width", "size", "frames", "stream_dim"):
            if config[name] < 1:
                raise FsmerError(f"{name} is {config[name]}, but 1 or more is expected.")
        if not 0 <= alpha <= 1:
            raise FsmerError(f"alpha is {alpha}, but a weight from 0 (no text) to 1 (text alone) is expected.")
        if not temperature > 0:
            raise FsmerError(f"temperature is {temperature}, but it must be positive.")
        super().__init__(
            input_spec=(
                InputSpec("frames", (size, size), ("red", "green", "blue"), "unit", frames=frames),
                InputSpec("flows", (size, size), ("u", "v"), "signed", frames=frames),
            ),
            embed_dim=2 * stream_dim,
            config=config,
        )
        self.alpha, self.temperature = alpha, temperature
        self.rgb, self.flow = (
            ResNet3D(channels, depth=self.depth, width=width, embed_dim=stream_dim, stem=stem, shortcut=shortcut)
            for channels in (3, 2)
        )
        self.text_tower: TextTower | None = None
        self.text_classifier: nn.Linear | None = None
        self.text_classes: tuple[str, ...] = ()
        self._said_text_is_lost = False
        # A saved config may name the tower that taught its weights, but nothing is opened or fetched by that name.
        self._foreign_text = made_from_folder() and text not in OWN_TOWERS
        self.mean = nn.Buffer(torch.tensor(RGB_MEAN).view(3, 1, 1, 1), persistent=False)
        self.std = nn.Buffer(torch.tensor(RGB_STD).view(3, 1, 1, 1), persistent=False)
        # What stays of the text tower: the vector of each unit's phrase, and the steps that it was trained for.
        self.unit_embeddings = nn.Buffer(torch.zeros(len(ACTION_UNIT_ORDER), self.embed_dim))
        self.text_steps = nn.Buffer(torch.zeros((), dtype=torch.long))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """z_m = (z_rgb, z_flow) of eq. 1, (B, embed_dim). `inputs` has ``"frames"``, (B, T, 3, H, W), 0..1, and
        ``"flows"``, (B, T, 2, H, W), thousandths of the face width."""
        # Channels before time.
        frames, flows = (medium.transpose(1, 2) for medium in self.media_of(inputs))
        return torch.cat([self.rgb((frames - self.mean) / self.std), self.flow(flows)], dim=-1)

    def set_classes(self, classes: Sequence[str]) -> None:
        """Make the text side ready for training: the tower if there is none yet, and its classifier (eq. 7) anew.
        Nothing is made where ``alpha`` is 0 or where the tower was dropped after training: the vectors that it left
        then stand for the text. `WeightsError` where the text tower that was asked for is not there, or only a saved
        config asks for it."""
        if self.alpha == 0 or (self.text_tower is None and self.text_steps > 0):
            return
        like = next(self.rgb.parameters())
        if self.text_tower is None:
            if self._foreign_text:
                raise WeightsError(
                    f"the config of these {self.name!r} weights names the text tower {self.config['text']!r}, but only "
                    f"{', '.join(map(repr, OWN_TOWERS))} are opened for saved weights; give that tower as text= of a "
                    "model that you make anew."
                )
            self.text_tower = TextTower(
                self.config["text"], embed_dim=self.embed_dim, trainable=self.config["train_text"]
            ).to(like.device, like.dtype)
            self.text_tower.train(self.training)
        self.text_classes = tuple(classes)
        self.text_classifier = nn.Linear(self.embed_dim, len(classes), device=like.device, dtype=like.dtype)

    def training_loss(self, inputs: Mapping[str, Tensor], targets: Targets, classifier: nn.Module) -> Tensor:
        """Total loss of eq. 8: (1 - alpha) (L_video + L_text) + alpha L_contrastive.

        L_video (eq. 6) is the cross-entropy of ``classifier`` on z_m, L_text (eq. 7) that of the text side's own
        classifier on z_a, L_contrastive (eq. 3-5) `cross_modal_contrastive` within the batch. Clips whose action units
        are unknown, or that show none of the thirty, have no text and take part in L_video alone. With ``alpha`` 0 the
        loss is L_video: L_text then teaches the video streams nothing. Once the tower is dropped the vectors that it
        left are the text, and there is no L_text; where no clip has action units, the loss is L_video then too, and a
        warning says so once. `DataError` where no clip has action units and the text side is yet to learn, `FsmerError`
        where `set_classes` was not called with the targets' classes.
        """
        embeddings = self(inputs)
        video_loss = targets.cross_entropy(classifier(embeddings))
        if self.alpha == 0:
            return video_loss
        text_is_lost = self.text_tower is None and bool(self.text_steps > 0)
        if targets.action_units is None:
            if not text_is_lost:
                raise DataError(
                    f"the clips have no action units, which {self.name!r} learns its text from; fill their 'aus' "
                    "column, or set alpha=0 to train on the labels alone."
                )
            if not self._said_text_is_lost:
                self._said_text_is_lost = True
                warnings.warn(
                    f"the clips have no action units, so {self.name!r} goes on from its trained weights by the labels "
                    "alone, without its contrastive loss.",
                    stacklevel=2,
                )
            return video_loss
        # Comparisons with NaN are false, so rows of unknown units are left out too.
        active = targets.action_units > 0.5
        told = active.any(dim=1)
        if not bool(told.any()):
            return (1 - self.alpha) * video_loss
        class_loss: Tensor | float = 0.0
        if self.text_tower is not None and self.text_classifier is not None:
            if self.text_classes != targets.classes:
                raise self._wrong_classes(targets.classes)
            text = self._read(self.text_tower, active[told])
            class_loss = replace(targets, labels=targets.labels[told]).cross_entropy(self.text_classifier(text))
            if torch.is_grad_enabled():
                self.text_steps.add_(1)
        elif text_is_lost:
            text = active[told].to(self.unit_embeddings.dtype) @ F.normalize(self.unit_embeddings, dim=-1)
        else:
            raise self._wrong_classes(targets.classes)
        contrastive = cross_modal_contrastive(embeddings[told], text, temperature=self.temperature)
        return (1 - self.alpha) * (video_loss + class_loss) + self.alpha * contrastive

    def _wrong_classes(self, classes: Sequence[str]) -> FsmerError:
        made = f"made for {', '.join(self.text_classes)}" if self.text_classes else "not made yet"
        return FsmerError(
            f"the text side of {self.name!r} is {made}, but the clips' classes are {', '.join(classes)}; call "
            "set_classes with these before training."
        )

    @staticmethod
    def _read(tower: TextTower, active: Tensor) -> Tensor:
        """z_a of eq. 2 for rows of active units, (N, embed_dim); a sentence that several clips share is read once."""
        sentences = [describe_aus(compress(ACTION_UNIT_ORDER, row)) for row in active.tolist()]
        distinct = list(dict.fromkeys(sentences))
        places = torch.tensor([distinct.index(sentence) for sentence in sentences], device=active.device)
        return tower(distinct)[places]

    def finish_training(self) -> None:
        """Keep the vectors of the thirty phrases and drop the text tower, which inference does not need."""
        self._keep_phrases()
        self.text_tower, self.text_classifier, self.text_classes = None, None, ()

    def _keep_phrases(self) -> None:
        """Write what the tower makes of each unit's phrase to `unit_embeddings`, provided that it was trained. What
        ``text="auto"`` has come to is written to `config` with them: afterwards nothing else tells."""
        if self.text_tower is None or not bool(self.text_steps > 0):
            return
        self.config = {**self.config, "text": self.text_tower.source}
        was_training = self.text_tower.training
        self.text_tower.eval()
        every_unit = torch.eye(len(ACTION_UNIT_ORDER), device=self.unit_embeddings.device)
        with torch.no_grad():
            self.unit_embeddings.copy_(self._read(self.text_tower, every_unit))
        self.text_tower.train(was_training)

    def save_pretrained(self, folder: str | Path, **options: Any) -> Path:  # type: ignore[override]
        """As in `Backbone`, without the text tower: the vectors of the thirty phrases stand for it."""
        self._keep_phrases()
        kept = self.text_tower, self.text_classifier
        self.text_tower = self.text_classifier = None
        try:
            return super().save_pretrained(folder, **options)
        finally:
            self.text_tower, self.text_classifier = kept

    @library_settings()
    def class_directions(self, classes: Sequence[str]) -> ClassDirections | None:
        """Directions of classes described in words, once the text side is trained. A class is known by an emotion's
        name (the combinations of units that it is seen with, by their weights), by negative, positive or surprise (the
        emotions that these stand for), by FACS names (``"cheek raiser, lip corner puller"``) or by action units
        (``"6+12"``). A combination's direction is the sum of its phrases' unit vectors."""
        if not bool(self.text_steps > 0):
            return None
        self._keep_phrases()
        units = F.normalize(self.unit_embeddings.detach().float().cpu(), dim=-1)
        found = [_direction(name, units) for name in classes]
        return ClassDirections.of(found, scale=SCALE, centre=torch.zeros(self.embed_dim))


@register_backbone("r3d18_attribute")
class R3D18Attribute(R3D10Attribute):
    """Two 3D-ResNet18 on 16 frames and their flow, drawn towards FACS phrases; knows classes described in words.

    All but the depth (Table I) is as in `R3D10Attribute`.
    """

    trusted: ClassVar[bool] = True
    depth = 18


@register_backbone("r3d34_attribute")
class R3D34Attribute(R3D10Attribute):
    """Two 3D-ResNet34 on 16 frames and their flow, drawn towards FACS phrases; knows classes described in words.

    All but the depth (Table I) is as in `R3D10Attribute`.
    """

    trusted: ClassVar[bool] = True
    depth = 34


def _direction(name: str, units: Tensor) -> Tensor | None:
    """Direction of one class, of unit length, from those of the units, (30, D); None for a name without a meaning."""
    emotions = emotions_of(name)
    if emotions:
        parts = []
        for emotion in emotions:
            patterns = [one.weight * _combined(one.units, units) for one in EMOTION_ACTION_UNITS[emotion]]
            parts.append(F.normalize(torch.stack(patterns).sum(dim=0), dim=-1))
        return F.normalize(torch.stack(parts).mean(0), dim=-1)
    numbers = units_of_description(name)
    if not numbers or not set(numbers) <= set(ACTION_UNIT_ORDER):
        return None
    return _combined(numbers, units)


def _combined(numbers: Sequence[int], units: Tensor) -> Tensor:
    return F.normalize(units[[ACTION_UNIT_ORDER.index(number) for number in numbers]].sum(dim=0), dim=-1)
