"""What the fine-tuning methods share: learning rates, and training a backbone together with its classifier."""

from __future__ import annotations

import copy
import functools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.backbones import Backbone, ClassDirections, Targets, embed, read_inputs
from fsmer.backbones.base import Inputs
from fsmer.kernels.noise import Draws
from fsmer.training.frozen_layers import LowerLayers
from fsmer.training.stacked import Step, Training, can_stack, train_together
from fsmer.training.supervised import draws_noise_alone, for_classes, make_targets, take
from fsmer.transfer.heads import Head
from fsmer.transfer.method import Method, Progress, SourceModel, require, require_choice, support_codes
from fsmer.transfer.recognizer import Recognizer

if TYPE_CHECKING:
    from fsmer.data import ClipSet

__all__ = ["Classifier", "FineTuning", "TrainsTogether"]


class Classifier(nn.Module):
    """A trainable classifier over embeddings: linear (MERAU eq. 5) or, with a scale, cosine (eq. 6-7).

    Parameters
    ----------
    weight : Tensor of shape (C, D)
    bias : Tensor of shape (C,)
        Not trained here; minus infinity for a class that is absent.
    scale : float, optional
        Factor on the cosine; ``None`` makes the classifier linear.
    centre : Tensor of shape (D,), optional
        Subtracted before the cosine.
    pull : float
        Weight of the penalty 1 - cos(w, start) of every class.
    """

    start: Tensor
    centre: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        scale: float | None = None,
        centre: Tensor | None = None,
        pull: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(bias.clone(), requires_grad=False)
        self.scale = scale
        self.pull = pull
        self.register_buffer("start", F.normalize(weight, dim=-1).clone())
        self.register_buffer("centre", None if centre is None else centre.clone())

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits of shape (B, C)."""
        if self.scale is None:
            return embeddings @ self.weight.T + self.bias
        centred = embeddings if self.centre is None else embeddings - self.centre
        return self.scale * F.normalize(centred, dim=-1) @ F.normalize(self.weight, dim=-1).T + self.bias

    def penalty(self) -> Tensor:
        """How far the directions have moved from where they started."""
        return self.pull * (1 - (F.normalize(self.weight, dim=-1) * self.start).sum(dim=-1)).sum()

    def head(self) -> Head:
        """The classifier as the head of one episode."""
        weight = self.weight.detach()
        if self.scale is None:
            return Head("linear", weight[None].clone(), self.bias.detach()[None].clone())
        centre = None if self.centre is None else self.centre[None].clone()
        return Head("cosine", self.scale * F.normalize(weight, dim=-1)[None], self.bias.detach()[None].clone(), centre)


T = TypeVar("T", bound=Training)


@dataclass(frozen=True)
class TrainsTogether(Method, Generic[T]):
    """A method whose trainings of small backbones can go on side by side."""

    @abstractmethod
    def _begin(self, model: SourceModel, support: ClipSet, classes: Sequence[str] | None) -> T:
        """A training that has not begun."""

    @abstractmethod
    def _end(self, model: SourceModel, training: T, *, at_once: bool = True) -> Recognizer:
        """What a training that has ended has learnt; takes the network over.

        Unless `at_once`, the support is embedded when somebody asks for it.
        """

    def fit_many(
        self,
        model: Backbone | SourceModel | Sequence[SourceModel],
        supports: Sequence[ClipSet],
        *,
        seeds: Sequence[int | None],
        classes: Sequence[tuple[str, ...]],
        memory: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, Recognizer]]:
        """Learn from many supports; small backbones are trained together, see `Method.fit_many` and `can_stack`."""
        starts = SourceModel.of_members(model, len(classes))
        if self.keeps_backbone or not all(can_stack(start.backbone) for start in starts):
            yield from super().fit_many(model, supports, seeds=seeds, classes=classes, memory=memory, progress=progress)
            return
        methods = [self.seeded(seed) for seed in seeds]

        def begin(member: int) -> T:
            return methods[member]._begin(starts[member], supports[member], classes[member])

        finished = train_together(len(classes), begin, memory=memory)
        for done, (member, training) in enumerate(finished, start=1):
            # A fold's support is seldom asked for again, and embedding it takes as long as many steps.
            yield member, methods[member]._end(starts[member], training, at_once=False)
            if progress is not None:
                progress(done, len(classes))


@dataclass(frozen=True)
class FineTuning(TrainsTogether["_Tuning"]):
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
        Classes weigh alike in the loss whatever their number of clips.
    train_backbone : bool
        Train a copy of the backbone too.
    layers : {"auto", "all", "upper"}
        Which of its layers the support trains. Table 2 trains all; ``"auto"`` leaves those alone that the backbone
        calls its `Backbone.lower_layers` (`facs-flow` has some) and computes what they give once a clip.
    encoder_rate, projection_rate : float
        Learning rates of the backbone on the support; Table 2: 1e-5 and 1e-3.
    source_epochs : int
        Passes over a source set when the backbone is trained on it (the paper leaves the number open).
    source_learning_rate, source_encoder_rate, source_projection_rate : float
        Learning rates on the source; Table 2: 1.2e-3, 1e-5, 1.2e-3.
    batch_size : int
        Clips a step when the backbone is trained; a smaller set is taken whole.
    seed : int
        Of random initial weights and of the order of batches.
    """

    _fit_bytes: ClassVar[int] = 3 << 20

    steps: int = 200
    learning_rate: float = 2e-3
    balanced: bool = True
    train_backbone: bool = False
    layers: str = "auto"
    encoder_rate: float = 1e-5
    projection_rate: float = 1e-3
    source_epochs: int = 30
    source_learning_rate: float = 1.2e-3
    source_encoder_rate: float = 1e-5
    source_projection_rate: float = 1.2e-3
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        require_choice(self.name, "layers", self.layers, ("auto", "all", "upper"))
        require(self.steps >= 0, f"steps={self.steps} is negative; give 0 or more.")
        require(self.source_epochs >= 0, f"source_epochs={self.source_epochs} is negative; give 0 or more.")
        require(self.batch_size > 0, f"batch_size={self.batch_size} is not positive; give at least one clip a batch.")
        for key in ("learning_rate", "encoder_rate", "projection_rate"):
            for name in (key, f"source_{key}"):
                require(
                    getattr(self, name) >= 0,
                    f"{name}={getattr(self, name)} is negative; give a learning rate of 0 or more.",
                )

    @property
    def keeps_backbone(self) -> bool:
        """False with ``train_backbone=True``."""
        return not self.train_backbone

    @abstractmethod
    def start(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None) -> Classifier:
        """The untrained classifier of one support set: embeddings (S, D), codes (S,)."""

    def fit(
        self,
        backbone: Backbone | SourceModel,
        support: ClipSet,
        *,
        source: ClipSet | None = None,
        classes: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Recognizer:
        """Learn from `support`; see `Method.fit`."""
        if self.keeps_backbone:
            return super().fit(backbone, support, source=source, classes=classes, progress=progress)
        model = SourceModel.wrap(backbone)
        if source is not None:
            model = self.train_source(model, source, progress=progress)
        tuning = self._begin(model, support, classes)
        tuning.alone(progress)
        return self._end(model, tuning)

    def fit_stages(
        self,
        backbone: Backbone | SourceModel,
        support: ClipSet,
        stages: Sequence[int],
        *,
        classes: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, Recognizer]]:
        """One training of the backbone, looked at on its way.

        Parameters
        ----------
        backbone, support, classes, progress
            As for `fit`.
        stages : sequence of int
            After how many steps; those behind the last stage are not taken.

        Yields
        ------
        int, Recognizer
            The stage, and the recognizer that `fit` gives with so many steps.
        """
        model = SourceModel.wrap(backbone)
        tuning = self._begin(model, support, classes)
        for stage in tuning.until(sorted(set(stages)), progress):
            held = copy.copy(tuning)
            held.backbone, held.classifier = copy.deepcopy(tuning.backbone), copy.deepcopy(tuning.classifier)
            yield stage, replace(self, steps=stage)._end(model, held, at_once=False)

    def _begin(self, model: SourceModel, support: ClipSet, classes: Sequence[str] | None) -> _Tuning:
        """A fine-tuning of backbone and classifier that has not begun."""
        names, codes = support_codes(support, classes)
        self._need_support(codes[None])
        backbone = for_classes(model.backbone, names, self.seed)
        # Too few clips to estimate batch statistics from: normalisation layers stay as they were trained.
        backbone.eval()
        lower = self._lower(backbone, support)
        embeddings = embed(backbone, support) if lower is None else lower.embeddings()
        classifier = self.start(embeddings, codes, len(names), model.class_directions(names))
        rates = (self.encoder_rate, self.projection_rate, self.learning_rate)
        batches = list(islice(self._batches(len(support)), self.steps))
        targets = make_targets(support, codes, names, balanced=self.balanced)
        return _Tuning(backbone, classifier, support, targets, batches, rates, self.seed, lower)

    def _lower(self, backbone: Backbone, support: ClipSet) -> LowerLayers | None:
        """The layers that stay as they are, or None where all are trained."""
        if self.layers == "all" or (self.layers == "auto" and not backbone.lower_layers()):
            return None
        return LowerLayers(backbone, support)

    def _end(self, model: SourceModel, training: _Tuning, *, at_once: bool = True) -> Recognizer:
        """See `TrainsTogether`."""
        training.classifier.to("cpu")
        training.let_train_lower(True)
        training.backbone.finish_training()
        adapted, targets = replace(model, backbone=training.backbone), training.targets
        later = functools.partial(embed, training.backbone, training.clips)
        head = training.classifier.head()
        return Recognizer(adapted, self, targets.classes, head, later() if at_once else later, targets.labels)

    def train_source(
        self, backbone: Backbone | SourceModel, source: ClipSet, *, progress: Progress | None = None
    ) -> SourceModel:
        """Train a copy of the backbone and a classifier on the source; the classifier is then dropped (as in MERAU)."""
        model = SourceModel.wrap(backbone)
        if self.keeps_backbone:
            return model
        trained, classifier, names = self._train_on_source(model, source, progress)
        return self._source_model(trained, classifier, names)

    def refit(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None) -> Head:
        """Fit the head of one episode anew; a backbone that was trained stays as it is."""
        return replace(self, train_backbone=False).fit_head(embeddings[None], codes[None], way, prior)

    def _source_model(self, backbone: Backbone, classifier: Classifier, names: tuple[str, ...]) -> SourceModel:
        del classifier, names
        return SourceModel(backbone)

    def _train_on_source(
        self, model: SourceModel, source: ClipSet, progress: Progress | None
    ) -> tuple[Backbone, Classifier, tuple[str, ...]]:
        names, codes = support_codes(source, None)
        self._need_support(codes[None])
        backbone = for_classes(model.backbone, names, self.seed)
        classifier = self.start(embed(backbone, source), codes, len(names), model.class_directions(names))
        backbone.train()
        steps = self.source_epochs * max(1, len(source) // self.batch_size)
        batches = list(islice(self._batches(len(source)), steps))
        rates = (self.source_encoder_rate, self.source_projection_rate, self.source_learning_rate)
        targets = make_targets(source, codes, names, balanced=self.balanced)
        _Tuning(backbone, classifier, source, targets, batches, rates, self.seed).alone(progress)
        classifier.to("cpu")
        backbone.finish_training()
        return backbone.eval(), classifier, names

    def _batches(self, clips: int) -> Iterator[np.ndarray]:
        """Shuffled batches of nearly equal size without end; always the whole set where it fits in one batch."""
        count = max(1, clips // self.batch_size)
        whole, rng = np.arange(clips), np.random.default_rng(self.seed)
        while True:
            yield from [whole] if count == 1 else np.array_split(rng.permutation(clips), count)


class _Tuning(Training):
    """One fine-tuning of backbone and classifier, in given batches.

    Parameters
    ----------
    backbone : Backbone
        In the mode that it is trained in.
    classifier : Classifier
    clips : ClipSet
    targets : Targets
        Of all the clips.
    batches : sequence of int arrays
        Rows of each step.
    rates : tuple of float
        Learning rates of encoder, projection layers and classifier.
    seed : int
        Of dropout.
    lower : LowerLayers, optional
        Layers of the backbone that are not trained.
    """

    def __init__(
        self,
        backbone: Backbone,
        classifier: Classifier,
        clips: ClipSet,
        targets: Targets,
        batches: Sequence[np.ndarray],
        rates: tuple[float, float, float],
        seed: int,
        lower: LowerLayers | None = None,
    ) -> None:
        self.backbone = backbone
        self.classifier: Classifier = classifier
        self.clips = clips
        self.targets = targets
        self.batches = batches
        self.rates = rates
        self.seed = seed
        self.lower = lower
        self.device = next((value.device for value in backbone.parameters()), torch.device("cpu"))
        classifier.to(self.device)
        self.let_train_lower(False)

    def let_train_lower(self, trained: bool) -> None:
        """Keep the lower layers from being trained, or let them be trained again."""
        names = self.lower.names if self.lower else set()
        for name, value in self.backbone.named_parameters():
            if name in names:
                value.requires_grad_(trained)

    def alone(self, progress: Progress | None = None) -> None:
        """All steps by themselves; `progress` is told (steps done, steps in all)."""
        for _ in self.until([len(self.batches)], progress):
            pass

    def until(self, stops: Sequence[int], progress: Progress | None = None) -> Iterator[int]:
        """The same, pausing after each of these numbers of steps, which rise."""
        named = {"backbone": self.backbone, "classifier": self.classifier}
        optimizer = self.make_optimizer(
            [
                (f"{prefix}.{name}", value)
                for prefix, module in named.items()
                for name, value in module.named_parameters()
                if value.requires_grad
            ]
        )
        steps, done, draws = self.steps(), 0, Draws(self.seed)
        for stop in stops:
            with draws.used(everywhere=not draws_noise_alone(self.backbone)), torch.enable_grad():
                for step in islice(steps, stop - done):
                    if step.seed is not None:
                        draws.seed(step.seed)
                    loss = self.backbone.training_loss(step.inputs, step.targets, self.classifier)
                    optimizer.zero_grad()
                    (loss + self.classifier.penalty()).backward()
                    optimizer.step()
                    done += 1
                    if progress is not None:
                        progress(done, len(self.batches))
            yield stop

    def likeness(self) -> tuple[Any, ...]:
        """Learning rates and the size of every batch."""
        sizes = [len(rows) for rows in self.batches]
        head = (self.classifier.scale, self.classifier.pull, self.classifier.centre is None)
        units = self.targets.action_units is None
        weights = self.targets.class_weights is None
        return (self.rates, sizes, head, len(self.targets.classes), units, weights)

    def steps(self) -> Iterator[Step]:
        """All steps in order; media of a set that fits in one batch are read once."""
        kept: tuple[np.ndarray, Inputs, Targets] | None = None
        for number, rows in enumerate(self.batches):
            if kept is None or kept[0] is not rows:
                inputs = self.lower(rows) if self.lower else read_inputs(self.backbone, self.clips, rows, self.device)
                kept = (rows, inputs, take(self.targets, rows, self.device))
            yield Step(kept[1], kept[2], seed=None if number else self.seed)

    def make_optimizer(self, named: Sequence[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """Adam with a learning rate for encoder, projection layers and classifier each."""
        groups: list[list[nn.Parameter]] = [[], [], []]
        for name, value in named:
            groups[2 if name.startswith("classifier.") else int(_is_projection(name))].append(value)
        listed = [{"params": values, "lr": rate} for values, rate in zip(groups, self.rates, strict=True) if values]
        return torch.optim.Adam(listed, fused=True)

    def took(self, step: Step, loss: float) -> None:
        """Nothing is made of the losses."""

    def penalty(self, classifier: nn.Module) -> Tensor:
        """That of the classifier, see `Classifier.penalty`."""
        return cast(Classifier, classifier).penalty()


def _is_projection(parameter: str) -> bool:
    return any(part.startswith("projection") for part in parameter.split("."))
