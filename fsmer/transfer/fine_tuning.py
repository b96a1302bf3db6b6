"""What the fine-tuning methods share: learning rates, and training a backbone together with its classifier."""

from __future__ import annotations

import copy
import functools
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar, Generic, Self, TypeVar

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from fsmer.backbones import Backbone, ClassDirections, embed
from fsmer.backbones.base import backbone_call
from fsmer.backbones.targets import make_targets
from fsmer.data import ClipSet
from fsmer.memory import cache_share
from fsmer.training.fine_tuning import Classifier, Tuning
from fsmer.training.frozen_layers import ContentDigests, FrozenLayers
from fsmer.training.stacked import Member, can_stack, train_together
from fsmer.training.supervised import Augmentation, for_training
from fsmer.transfer.heads import FittedHead, Head
from fsmer.transfer.method import Method
from fsmer.transfer.recognizer import Recognizer
from fsmer.transfer.source_model import Classes, Progress, SourceModel, require, support_codes

__all__ = ["FineTuning", "TrainsTogether", "encoder_rate_note"]

T = TypeVar("T", bound=Member)

# Below, random weights hardly move in as many steps as are usual here.
_LOW_RATE = 1e-4


@dataclass(frozen=True)
class TrainsTogether(Method, Generic[T]):
    """A method whose trainings of small backbones can go on side by side."""

    batched: ClassVar[bool] = True

    @abstractmethod
    def _begin(self, model: SourceModel, support: ClipSet, classes: Classes) -> T:
        """A training that has not begun."""

    @abstractmethod
    def _end(self, model: SourceModel, training: T, *, embed_now: bool = True) -> Recognizer:
        """What a training that has ended has learnt; takes the network over.

        Unless `embed_now`, the support is embedded when somebody asks for it.
        """

    @abstractmethod
    def rate_note(self, backbone: Backbone, *, is_source: bool = False) -> str:
        """What is to be said of the learning rates of random weights, on a source or a support; mostly nothing."""

    def _learn(self, model: SourceModel, support: ClipSet, classes: Classes, progress: Progress | None) -> Recognizer:
        if self.keeps_backbone:
            return super()._learn(model, support, classes, progress)
        training = self._begin(model, support, classes)
        training.run(progress=progress)
        return self._end(model, training)

    def fit_checkpoints(
        self,
        backbone: Backbone | SourceModel,
        support: ClipSet,
        checkpoint_steps: Sequence[int],
        *,
        classes: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, Recognizer]]:
        """One training of the backbone; gives the recognizer at every checkpoint step as `fit` would if it ended there.

        These are numbers of epochs of ``train`` or steps of fine-tuning; those behind the last one are not taken.
        The learning rate falls as planned for the whole training.
        """
        model = SourceModel.wrap(backbone)
        training = self._begin(model, support, classes)
        for step in sorted(set(checkpoint_steps)):
            training.run(until=step, progress=progress)
            held = copy.copy(training)
            held.backbone, held.classifier = copy.deepcopy(training.backbone), copy.deepcopy(training.classifier)
            yield step, self._ended_at(step)._end(model, held, embed_now=False)

    def _ended_at(self, checkpoint_step: int) -> Self:
        """The method that trains so long."""
        return self

    def _learn_many(
        self, each: Sequence[tuple[SourceModel, Self, tuple[str, ...]]], supports: Sequence[ClipSet], memory: int | None
    ) -> Iterator[tuple[int, Recognizer]]:
        if self.keeps_backbone or not all(can_stack(start.backbone) for start, *_ in each):
            yield from super()._learn_many(each, supports, memory)
            return
        digests = ContentDigests()

        def begin(number: int) -> T:
            start, method, names = each[number]
            with digests.used():
                return method._begin(start, supports[number], names)

        for number, training in train_together(len(each), begin, memory=memory):
            start, method, _ = each[number]
            # A fold's support is seldom asked for again, and embedding it takes as long as many steps.
            yield number, method._end(start, training, embed_now=False)


@dataclass(frozen=True)
class FineTuning(TrainsTogether[Tuning]):
    """Parameters and training shared by the linear and the cosine fine-tuning of MERAU (section III.B.3, Table 2).

    The classifier is trained with cross-entropy (eq. 8) and Adam on the support set, on frozen embeddings or together
    with the backbone. A backbone's layers whose name begins with ``projection``, wherever they sit in it, are the
    paper's projection layers; all others are its encoder.

    Parameters
    ----------
    steps : int
        Adam steps on the support (the paper leaves the number open): on all of it at once while the backbone is
        frozen, else in batches where it has at least two of them.
    learning_rate : float
        Of the classifier; Table 2: 2e-3.
    balanced : bool
        Classes weigh alike in the loss whatever their number of clips. Ours: eq. 8 has no weights (False).
    train_backbone : bool
        Train a copy of the backbone too.
    layers : {"auto", "all", "upper", "norms"}
        Which of its layers the support trains. Table 2 trains all; ``"auto"`` leaves those alone that the backbone
        calls its `Backbone.lower_layers` (`facs-flow` has some) and computes what they give once a clip. ``"norms"``
        trains scale and shift of all normalisation layers and nothing else of the backbone (Frankle et al. 2021).
    adapter_rank : int
        If not 0, each weight W of the linear and convolutional layers that `layers` names is changed by a matrix of at
        most this rank, W + B A, and nothing else of the backbone (Hu et al. 2021, with α = rank). The recognizer has
        plain weights. A and B learn at the rates of the layer they change. A source trains all layers in full.
    encoder_rate, projection_rate : float
        Learning rates of the backbone on the support; Table 2: 1e-5 and 1e-3.
    source_epochs : int
        Passes over a source set when the backbone is trained on it (the paper leaves the number open).
    source_learning_rate, source_encoder_rate, source_projection_rate : float
        Learning rates on the source; Table 2: 1.2e-3, 1e-5, 1.2e-3.
    random_encoder_rate : float
        At least this is the encoder's rate while its weights are random (`Backbone.untrained`). Ours: Table 2's rate is
        for an encoder that was trained before, and hardly moves another. 0 keeps Table 2's.
    source_augment : bool
        Source clips are changed at random as the backbone's recipe says, as in the paper (section IV.A); the support is
        not.
    batch_size : int
        Clips a step when the backbone is trained; a smaller set is taken whole.
    seed : int
        Of random initial weights and of the order of batches.
    """

    batched: ClassVar[bool] = True
    _fit_bytes: ClassVar[int] = cache_share()

    steps: int = 200
    learning_rate: float = 2e-3
    balanced: bool = True
    train_backbone: bool = False
    layers: str = "auto"
    adapter_rank: int = 0
    encoder_rate: float = 1e-5
    projection_rate: float = 1e-3
    source_epochs: int = 30
    source_learning_rate: float = 1.2e-3
    source_encoder_rate: float = 1e-5
    source_projection_rate: float = 1.2e-3
    random_encoder_rate: float = 1e-3
    source_augment: bool = False
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        self._require_choice("layers", "auto", "all", "upper", "norms")
        require(self.batch_size > 0, f"batch_size={self.batch_size} is not positive; give at least one clip a batch.")
        rates = ("learning_rate", "encoder_rate", "projection_rate")
        sources = (f"source_{rate}" for rate in rates)
        self._require_in_range("steps", "source_epochs", "random_encoder_rate", "adapter_rank", *rates, *sources)
        if self.layers == "norms":
            require(self.train_backbone, "layers='norms' trains layers of the backbone; give train_backbone=True too.")
        if self.adapter_rank:
            given = f"adapter_rank={self.adapter_rank}"
            require(self.train_backbone, f"{given} trains a part of the backbone; give train_backbone=True too.")
            require(
                self.layers != "norms",
                f"{given} changes linear and convolutional layers, but layers='norms' trains none; give one of both.",
            )

    @property
    def keeps_backbone(self) -> bool:
        """False with ``train_backbone=True``."""
        return not self.train_backbone

    @abstractmethod
    def start(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None) -> Classifier:
        """The untrained classifier of one support set: embeddings (S, D), codes (S,)."""

    def rate_note(self, backbone: Backbone, *, is_source: bool = False) -> str:
        """What is to be said of the encoder's learning rate on a source or a support; nothing for trained weights."""
        rate = self.source_encoder_rate if is_source else self.encoder_rate
        return "" if self.keeps_backbone else encoder_rate_note(backbone, rate, self.random_encoder_rate)

    def _ended_at(self, checkpoint_step: int) -> Self:
        return replace(self, steps=checkpoint_step)

    def _begin(self, model: SourceModel, support: ClipSet, classes: Classes, *, is_source: bool = False) -> Tuning:
        names, codes = support_codes(support, classes)
        self._need_support(codes[None])
        untrained = model.backbone.untrained
        backbone = for_training(model.backbone, support, names, self.seed)
        # Too few clips to estimate batch statistics from: normalisation layers stay as they were trained.
        backbone.eval()
        with backbone_call(backbone, "lower_layers"):
            lower = tuple(backbone.lower_layers())
        every = is_source or self.layers in ("all", "norms") or (self.layers == "auto" and not lower)
        frozen = None if every else FrozenLayers(backbone, support)
        embeddings = embed(backbone, support) if frozen is None else frozen.embeddings()
        classifier = self.start(embeddings, codes, len(names), model.class_directions(names))
        steps, rates = self.steps, (self.encoder_rate, self.projection_rate, self.learning_rate)
        augmentation = None
        if is_source:
            backbone.train()
            steps = self.source_epochs * max(1, len(support) // self.batch_size)
            rates = (self.source_encoder_rate, self.source_projection_rate, self.source_learning_rate)
            if self.source_augment:
                augmentation = Augmentation(backbone.recipe, backbone.input_specs)
        if note := self.rate_note(model.backbone, is_source=is_source):
            # Beyond the methods that every training goes through.
            warnings.warn(note, stacklevel=3)
        if untrained and rates[0]:
            rates = (max(rates[0], self.random_encoder_rate), *rates[1:])
        batches = list(islice(self._batches(len(support)), steps))
        targets = make_targets(support, codes, names, balanced=self.balanced)
        norms_only, rank = (False, 0) if is_source else (self.layers == "norms", self.adapter_rank)
        return Tuning(
            backbone,
            classifier,
            support,
            targets,
            batches,
            rates,
            self.seed,
            frozen,
            augmentation,
            norms_only=norms_only,
            adapter_rank=rank,
        )

    def _end(self, model: SourceModel, training: Tuning, *, embed_now: bool = True) -> Recognizer:
        training.classifier.to("cpu")
        training.finish()
        adapted, targets = replace(model, backbone=training.backbone), training.targets
        later = functools.partial(embed, training.backbone, training.clips)
        head = classifier_head(training.classifier)
        return Recognizer(adapted, self, targets.classes, head, later() if embed_now else later, targets.labels)

    def _learn_source(self, model: SourceModel, source: ClipSet, progress: Progress | None) -> SourceModel:
        if self.keeps_backbone:
            return model
        # The classifier of the source is dropped, as in MERAU, unless `_source_model` takes it over.
        training = self._begin(model, source, None, is_source=True)
        training.run(progress=progress)
        training.classifier.to("cpu")
        training.finish()
        training.backbone.eval()
        return self._source_model(training)

    def refit(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None) -> FittedHead:
        """Fit the head of one episode anew; a backbone that was trained stays as it is."""
        head_alone = replace(self, train_backbone=False, layers="auto", adapter_rank=0)
        return head_alone.fit_head(embeddings[None], codes[None], way, prior)

    def _source_model(self, training: Tuning) -> SourceModel:
        return SourceModel(training.backbone)

    def _batches(self, clips: int) -> Iterator[np.ndarray]:
        """Shuffled batches of nearly equal size without end; always the whole set where it fits in one batch."""
        count = max(1, clips // self.batch_size)
        whole, rng = np.arange(clips), np.random.default_rng(self.seed)
        while True:
            yield from [whole] if count == 1 else np.array_split(rng.permutation(clips), count)


def encoder_rate_note(backbone: Backbone, rate: float, random_rate: float) -> str:
    """What is to be said of an encoder that learns at `rate`, and at least at `random_rate` while its weights are
    random; nothing for trained weights."""
    if not backbone.untrained or rate == 0:
        return ""
    begun = f"the encoder of {backbone.name!r} starts from random weights"
    if random_rate > rate:
        return (
            f"{begun} and learns at {random_rate:g} (random_encoder_rate) in place of {rate:g}, the rate for one that "
            "was trained before, at which a random one hardly moves."
        )
    return f"{begun}, which hardly move at the learning rate {rate:g}." if rate < _LOW_RATE else ""


def classifier_head(classifier: Classifier) -> Head:
    """A trained classifier as the head of one episode."""
    weight, bias = classifier.weight.detach(), classifier.bias.detach()[None].clone()
    if classifier.scale is None:
        return Head("linear", weight[None].clone(), bias)
    centre = None if classifier.centre is None else classifier.centre[None].clone()
    return Head("cosine", classifier.scale * F.normalize(weight, dim=-1)[None], bias, centre)
