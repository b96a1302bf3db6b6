"""What the backbone knows of the classes as a cosine head: used as it is, or as the start of fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from fsmer.backbones import Backbone, ClassDirections, embed
from fsmer.data import ClipSet
from fsmer.errors import SupportError
from fsmer.training.fine_tuning import Classifier, Tuning
from fsmer.transfer.fine_tuning import FineTuning, classifier_head
from fsmer.transfer.heads import (
    Adam,
    Head,
    balanced_weights,
    base_centre,
    batched_product,
    class_means,
    one_hot,
    prior_head,
)
from fsmer.transfer.method import Method
from fsmer.transfer.registry import register_method
from fsmer.transfer.source_model import Progress, SourceModel, absent_bias, require, support_codes

__all__ = ["Cosine", "ZeroShot"]

_DEFAULT_SCALE = 10.0
_TINY = 1e-12
# Probability beforehand that what is known of the classes is worth nothing on the target.
_AT_CHANCE = 0.25


@register_method("cosine")
@dataclass(frozen=True)
class Cosine(FineTuning):
    """Cosine classifier (MERAU eq. 6-7, with a scale) that corrects the zero-shot answer by the labelled clips.

    The logit of class c is ``scale * cos(z - μ, w_c) + bias_c``. The directions w start from what the backbone
    or a source knows of the classes, mixed with the support's class means, and are trained by cross-entropy (eq. 8)
    and Adam, while a penalty with the weight λ keeps them near their start. Without knowledge of the classes the class
    means alone are the start.

    Where the backbone also says how clips of one class scatter (the ``precision`` of its `ClassDirections`), the
    labelled clips answer in closed form instead, without steps: to the zero-shot logit of class c is added

        n / (n + prior_shots) * (u - (m_c + m) / 2) . P (m_c - m),

    the linear discriminant (Fisher 1936) of unit embeddings u with the source's inverse scatter P, where m_c is the
    mean of the class's n clips and m that of all classes. A handful of clips cannot show which differences matter; the
    source, from which P comes, has seen that in thousands. `steps`, `learning_rate`, `pull`, `balanced`, `train_bias`
    have no effect then; any other `init` than ``"auto"`` brings them back.

    MERAU's own cosine classifier, "MERAU (CD)" in its tables, has no start, scale, centre or penalty and is trained
    with the backbone: ``train_backbone=True, init="random", scale=1, centre=False, pull=0``.

    Parameters
    ----------
    init : {"auto", "zero_shot", "prototype", "random"}
        Start of the directions. ``"auto"``: the known direction counted as `prior_shots` clips, as far as the labelled
        clips confirm it, plus the class's clips, each as a unit vector; the clips alone for an unknown class; the
        closed form above where the backbone knows all classes and their scatter. ``"zero_shot"``: the known direction
        alone. ``"prototype"``: the mean embedding at its own length (Chen et al. 2019; easyfsl). ``"random"``: a
        seeded Gaussian.
    prior_shots : float
        How many labelled clips known directions are worth at most. They are worth the less, the surer the labelled
        clips show that their zero-shot answer is by chance; with the closed form above they always count in full.
    pull : float
        λ, the weight of the penalty 1 - cos(w_c, start of w_c), summed over classes, beside the mean cross-entropy.
        Under ``init="auto"`` and a backbone that stays as it is, a known class whose direction is worth more than its
        own n clips is held that much more: a few clips do not outweigh what is known.
    centre : bool
        Subtract μ, the backbone's own centre or, where it knows none of the classes, the mean of the support's class
        means.
    scale : float or None
        Factor on the cosine; ``None``: that of the known directions, else 10.
    train_bias : bool
        Train the biases of the classes too.
    steps : int
        Adam steps; 0 leaves the directions at their start. This and all further parameters are those of `FineTuning`.
    """

    batched: ClassVar[bool] = True

    init: str = "auto"
    prior_shots: float = 45.0
    pull: float = 1.0
    centre: bool = True
    scale: float | None = None
    train_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_choice("init", "auto", "zero_shot", "prototype", "random")
        self._require_in_range("prior_shots", "pull")
        if self.scale is not None:
            self._require_in_range("scale")
            require(self.scale > 0, f"scale={self.scale} is not positive; give a factor above 0 or None.")

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None) -> Head:
        """All episodes' classifiers trained side by side; an empty support returns the prior as it is.

        A class with neither support nor prior gets probability 0.
        """
        if prior is not None:
            informed = prior.known.any(dim=-1).expand(len(embeddings))
            if not bool(informed.all()):
                return self._fit_apart(embeddings, codes, way, prior, informed)
        if prior is None or self.init in ("prototype", "random"):
            self._need_support(codes)
        members = one_hot(codes, way)
        scale, centre = self._scale(prior), self._centre(embeddings, members, prior)
        if prior is not None and codes.shape[1] == 0:
            weight, bias = prior_head(prior, len(embeddings), way)
            return Head("cosine", weight * (scale / prior.scale), bias, centre)
        centred = embeddings if centre is None else embeddings - centre[:, None]
        if self.init == "auto" and prior is not None and prior.precision is not None and bool(prior.known.all()):
            return self._discriminant(F.normalize(centred, dim=-1), members, prior, scale, centre)
        worth = self._prior_counts(embeddings, members, prior)
        weight, bias = self._start(centred, codes, members, worth, prior)
        if self.steps:
            shares = balanced_weights(members, balanced=self.balanced)
            pulls = self.pull * (worth / members.sum(dim=-1).clamp_min(1)).clamp_min(1)
            self._descend(F.normalize(centred, dim=-1), members, shares, pulls, weight, bias, scale)
        return Head("cosine", scale * F.normalize(weight, dim=-1), bias, centre)

    def _discriminant(
        self, units: Tensor, members: Tensor, prior: ClassDirections, scale: float, centre: Tensor | None
    ) -> Head:
        """The zero-shot head plus the support's linear discriminant; without support a class stays zero-shot."""
        weight, bias = prior_head(prior, len(units), members.shape[1])
        means, counts = class_means(units, members)
        present = (counts > 0).float()[..., None]
        middle = (present * means).sum(dim=1, keepdim=True) / present.sum(dim=1, keepdim=True).clamp_min(1)
        share = (counts / (counts + self.prior_shots).clamp_min(_TINY))[..., None]
        toward = share * present * (means - middle) @ cast(Tensor, prior.precision)
        weight = weight * (scale / prior.scale) + toward
        return Head("cosine", weight, bias - (toward * (means + middle)).sum(dim=-1) / 2, centre)

    def _fit_apart(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections, informed: Tensor) -> Head:
        """Episodes of which nothing is known are fitted without the prior, as they would be alone."""
        head = self.fit_head(embeddings[~informed], codes[~informed], way)
        if not bool(informed.any()):
            return head
        if prior.weight.ndim == 3:
            held = {name: getattr(prior, name)[informed] for name in ("weight", "bias", "known")}
            prior = replace(prior, **held)
        other = self.fit_head(embeddings[informed], codes[informed], way, prior)
        # Where in (uninformed, informed) each episode has gone.
        places = torch.argsort(torch.argsort(informed.int(), stable=True))
        centres = [part.centre.expand(len(part), -1) for part in (head, other) if part.centre is not None]
        centre = torch.cat(centres)[places] if centres else None
        weight, bias = torch.cat([head.weight, other.weight]), torch.cat([head.bias, other.bias])
        return Head("cosine", weight[places], bias[places], centre)

    def start(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None) -> Classifier:
        """Where the classifier begins when the backbone is trained too."""
        members = one_hot(codes[None], way)
        centre = self._centre(embeddings[None], members, prior)
        centred = embeddings[None] if centre is None else embeddings[None] - centre[:, None]
        worth = self._prior_counts(embeddings[None], members, prior)
        weight, bias = self._start(centred, codes[None], members, worth, prior)
        middle = None if centre is None else centre[0]
        classifier = Classifier(weight[0], bias[0], scale=self._scale(prior), centre=middle, pull=self.pull)
        classifier.bias.requires_grad_(self.train_bias)
        return classifier

    def _learn_source(self, model: SourceModel, source: ClipSet, progress: Progress | None) -> SourceModel:
        """Fit the cosine classifier (with `train_backbone` the backbone too) to the source; its directions become the
        start for the classes that source and target name alike."""
        if not self.keeps_backbone:
            return super()._learn_source(model, source, progress)
        names, codes = support_codes(source, None)
        prior = model.class_directions(names)
        # A source is large enough to train on, and the closed form gives no directions of unit length to hand on.
        start = None if prior is None else replace(prior, precision=None)
        head = self.fit_head(embed(model.backbone, source)[None], codes[None], len(names), start)
        source_model = _with_directions(model.backbone, names, head, self._scale(prior))
        if prior is None or source_model.directions is None or prior.precision is None:
            return source_model
        # The backbone has stayed as it is, and so has the scatter of its embeddings.
        return replace(source_model, directions=replace(source_model.directions, precision=prior.precision))

    def _source_model(self, training: Tuning) -> SourceModel:
        names, head = training.targets.classes, classifier_head(training.classifier)
        return _with_directions(training.backbone, names, head, training.classifier.scale or _DEFAULT_SCALE)

    def _scale(self, prior: ClassDirections | None) -> float:
        if self.scale is not None:
            return self.scale
        return _DEFAULT_SCALE if prior is None else prior.scale

    def _centre(self, embeddings: Tensor, members: Tensor, prior: ClassDirections | None) -> Tensor | None:
        return base_centre(embeddings, members, prior) if self.centre else None

    def _start(
        self, centred: Tensor, codes: Tensor, members: Tensor, worth: Tensor, prior: ClassDirections | None
    ) -> tuple[Tensor, Tensor]:
        (episodes, _, width), way = centred.shape, members.shape[1]
        if self.init == "random":
            generator = torch.Generator().manual_seed(self.seed)
            weight = torch.randn(way, width, generator=generator) / math.sqrt(width)
            return weight.repeat(episodes, 1, 1), absent_bias(codes, way)
        if self.init == "prototype":
            return class_means(centred, members)[0], absent_bias(codes, way)
        if self.init == "zero_shot" and prior is None:
            raise SupportError(
                "init='zero_shot' of the method 'cosine' needs a backbone or source that knows the classes, but this "
                "one knows none of them; use init='auto', which starts from the labelled clips then."
            )
        means, counts = class_means(F.normalize(centred, dim=-1), members)
        if prior is None:
            return F.normalize(means, dim=-1), absent_bias(codes, way)
        direction, bias = prior_head(prior, episodes, way)
        direction = F.normalize(direction, dim=-1)
        known, counts = prior.known.expand(episodes, way), counts[..., None]
        if self.init == "auto":
            # A von Mises-Fisher mean: the known direction is a conjugate prior worth so many observations.
            direction = torch.where(counts > 0, worth[..., None] * direction + counts * means, direction)
        weight = F.normalize(torch.where(known[..., None], direction, means), dim=-1)
        return weight, bias.masked_fill(~known & (counts[..., 0] == 0), -math.inf)

    def _prior_counts(self, embeddings: Tensor, members: Tensor, prior: ClassDirections | None) -> Tensor:
        """How many labelled clips the known direction of every class is worth under ``init="auto"``, (E, way)."""
        counts = members.sum(dim=-1)
        if prior is None or self.init != "auto":
            return torch.zeros_like(counts)
        return self.prior_shots * _skill(prior, embeddings, members)[:, None] * prior.known

    def _descend(
        self, units: Tensor, members: Tensor, shares: Tensor, pulls: Tensor, weight: Tensor, bias: Tensor, scale: float
    ) -> None:
        """Adam on `weight` (and `bias`) in place, with the gradient written out.

        With a = dLoss/dcos, the gradient with respect to w is (sum_i a_i u_i - (sum_i a_i cos_i) w/|w|) / |w|. The
        pull is one more row u = start of each class with a = -pull, so that it costs no pass of its own.
        """
        episodes, way, _ = weight.shape
        clips = units.shape[1]
        rows = torch.cat([units, F.normalize(weight, dim=-1)], dim=1) if self.pull else units
        turned = rows.transpose(1, 2)
        slopes = units.new_zeros(episodes, way, rows.shape[1])
        if self.pull:
            slopes[:, :, clips:] = -torch.diag_embed(pulls)
        scaled_shares = shares[:, None] * scale
        cosines, gradient = torch.empty_like(slopes), torch.empty_like(weight)
        adam = Adam(weight, self.learning_rate)
        bias_adam = Adam(bias, self.learning_rate) if self.train_bias else None
        for _ in range(self.steps):
            lengths = torch.linalg.vector_norm(weight, dim=-1).clamp_min_(_TINY)[..., None]
            batched_product(weight, turned, out=cosines).div_(lengths)
            logits = torch.add(bias[..., None], cosines[:, :, :clips], alpha=scale)
            torch.mul(torch.softmax(logits, dim=1).sub_(members), scaled_shares, out=slopes[:, :, :clips])
            radial = (slopes * cosines).sum(dim=-1, keepdim=True).div_(lengths.square())
            batched_product(slopes / lengths, rows, out=gradient).addcmul_(weight, radial, value=-1)
            adam.step(gradient)
            if bias_adam is not None:
                bias_adam.step(slopes[:, :, :clips].sum(dim=-1) / scale)


@register_method("zero_shot")
@dataclass(frozen=True)
class ZeroShot(Method):
    """Class directions that the backbone learnt in pretraining, used as they are.

    The support set is not read. After a source domain it is the source's cosine classifier used directly on the target.
    """

    batched: ClassVar[bool] = True

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None) -> Head:
        """The prior as a head; a class that it does not know scores as the mean of those that it knows."""
        if prior is None or not bool(prior.known.any(dim=-1).all()):
            raise SupportError(
                f"the method {self.name!r} needs a backbone that knows the classes without labels, but this one knows "
                "none of them; use a method that learns from labelled clips, or class names that the backbone knows "
                "(such as negative, positive, surprise)."
            )
        weight, bias = prior_head(prior, len(embeddings), way)
        return Head("cosine", weight, bias, prior.centre[None])

    def _learn_source(self, model: SourceModel, source: ClipSet, progress: Progress | None) -> SourceModel:
        """Fit a cosine classifier to the source, to be used directly on the classes that both domains name alike."""
        return Cosine()._learn_source(model, source, progress)


def _skill(prior: ClassDirections, embeddings: Tensor, members: Tensor) -> Tensor:
    """How much better than chance the zero-shot answer is, 0 to 1, as clips of known classes show it, (E,).

    The posterior mean. Beforehand the answer is at chance with probability `_AT_CHANCE`, else its skill s has density
    4 s**3: words that a network has learnt mostly hold, and three clips alone say little against them.
    """
    known = prior.known.expand(members.shape[:2])
    weight, bias = prior_head(prior, len(embeddings), members.shape[1])
    told = Head("cosine", weight, bias, prior.centre[None]).logits(embeddings)
    told = told.masked_fill(~known[:, None], -math.inf)
    # Among a single known class there is nothing to tell: what is believed beforehand stays.
    asked = members * (known & (known.sum(dim=-1, keepdim=True) > 1))[..., None]
    right = (one_hot(told.argmax(dim=-1), members.shape[1]) * asked).sum(dim=(1, 2))
    wrong = asked.sum(dim=(1, 2)) - right
    skills = (torch.arange(100, device=embeddings.device) + 0.5) / 100
    density = F.normalize(skills**3, p=1, dim=0)
    # The first entry is chance.
    skills = torch.cat([skills.new_zeros(1), skills])
    beforehand = torch.cat([density.new_tensor([_AT_CHANCE]), (1 - _AT_CHANCE) * density])
    chance = 1 / known.sum(dim=-1).clamp_min(2)[:, None]
    rate = chance + (1 - chance) * skills
    evidence = right[:, None] * rate.log() + wrong[:, None] * (1 - rate).log()
    return torch.softmax(beforehand.log() + evidence, dim=-1) @ skills


def _with_directions(backbone: Backbone, names: tuple[str, ...], head: Head, scale: float) -> SourceModel:
    weight = head.weight[0] / scale
    centre = torch.zeros(weight.shape[-1]) if head.centre is None else head.centre[0]
    directions = ClassDirections(weight, head.bias[0], torch.ones(len(names), dtype=torch.bool), scale, centre)
    return SourceModel(backbone, names, directions)
