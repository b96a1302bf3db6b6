"""`ensemble`: several networks of one kind, trained side by side on the same clips, that answer with their mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.backbones import Backbone, Targets, TrainRecipe, create_model, register_backbone
from fsmer.backbones.fr import FR
from fsmer.backbones.recipe import Preparation
from fsmer.data import ClipSet
from fsmer.errors import FsmerError


@register_backbone("ensemble")
class Ensemble(Backbone):
    """Several networks of one kind from unlike fresh weights, trained side by side; their mean logits decide.

    With a few hundred clips, two trainings of one network that differ by their seed alone disagree on some of them;
    their mean is steadier (Lakshminarayanan, Pritzel and Blundell, "Simple and scalable predictive uncertainty
    estimation using deep ensembles", section 2.4). The embedding is that of all members side by side, so that a linear
    classifier on it is the mean of one classifier a member.

    Parameters
    ----------
    of : str
        Registered name of the members.
    members : int
        How many; 5 in that paper, 3 here.
    arguments : mapping, optional
        Constructor arguments of the members.

    Notes
    -----
    There: members with initial weights of their own, each trained on its own loss.

    Deviations: members see the same batches, augmented alike, so that initial weights and dropout alone set them apart.
    They share the classifier's bias, whose gradient is the sum of theirs, and a recipe that limits the norm of the
    gradient limits that of all together. Logits are averaged, not probabilities. A cosine classifier cannot be cut into
    one a member: with it all members learn from the cross-entropy of their common embedding, without their own losses.
    Absent: adversarial training (section 2.3).

    The recipe is that of the members (shown here: of ``fr``, the default), and the loss is the sum of theirs. Members
    begin with fresh weights, also where some ship; what they know of classes without labels is not used, lower layers
    are trained as all others are, and there is no training without labels.
    """

    trusted: ClassVar[bool] = True
    recipe: ClassVar[TrainRecipe] = FR.recipe

    def __init__(self, of: str = "fr", members: int = 3, arguments: Mapping[str, Any] | None = None) -> None:
        if not isinstance(members, int) or isinstance(members, bool) or members < 1:
            raise FsmerError(f"members={members!r} is no number of members; give 1 or a larger whole number.")
        if arguments is not None and not isinstance(arguments, Mapping):
            raise FsmerError(
                f"arguments={arguments!r} are no arguments of {of!r}; give names and values, on a command line as "
                'JSON: arguments={"size": 28}.'
            )
        if of == self.name:
            raise FsmerError(f"the members of an {self.name!r} cannot be ensembles too; name another model.")
        made = [create_model(of, **(arguments or {})) for _ in range(members)]
        super().__init__(
            input_spec=made[0].input_specs,
            embed_dim=0,
            config={"of": of, "members": members, "arguments": made[0].config},
        )
        self.members = nn.ModuleList(made)
        recipe = made[0].recipe
        rates, random_rates = (_longer(one, members) for one in (recipe.rates, recipe.random_rates))
        self.recipe = replace(recipe, rates=rates, random_rates=random_rates)  # type: ignore[misc]
        self._follow()

    @property
    def _backbones(self) -> list[Backbone]:
        return cast(list[Backbone], list(self.members))

    def forward(self, inputs: Any) -> Tensor:
        """Embeddings of shape (B, embed_dim): the members' own side by side, each divided by their number."""
        return torch.cat([member(inputs) for member in self._backbones], dim=1) / len(self.members)

    def training_loss(self, inputs: Any, targets: Targets, classifier: nn.Module) -> Tensor:
        """Sum of the members' losses; each of them has its own columns of a linear classifier."""
        if getattr(classifier, "scale", None) is not None:
            return targets.cross_entropy(classifier(self(inputs)), label_smoothing=self.recipe.label_smoothing)
        losses = [
            member.training_loss(inputs, targets, _Columns(classifier, place, self.embed_dim))
            for place, member in enumerate(self._backbones)
        ]
        return torch.stack(losses).sum()

    def set_classes(self, classes: Sequence[str]) -> None:
        for member in self._backbones:
            member.set_classes(classes)
        self._follow()

    def preparations(self, clips: ClipSet, *, seed: int) -> Iterator[Preparation]:
        """What the members' paper trains first, with a seed for each."""
        for place, member in enumerate(self._backbones):
            yield from member.preparations(clips, seed=seed * len(self.members) + place)

    def finish_training(self) -> None:
        for member in self._backbones:
            member.finish_training()
        self._follow()

    def explain_maps(self, inputs: Any) -> dict[str, Tensor]:
        """The members' own maps, averaged."""
        found = [member.explain_maps(inputs) for member in self._backbones]
        return {name: torch.stack([one[name] for one in found]).mean(dim=0) for name in found[0]}

    def _follow(self) -> None:
        """Take over what the members' classes decide: their arguments and the length of their embeddings."""
        self.config["arguments"] = self._backbones[0].config
        self.embed_dim = sum(member.embed_dim for member in self._backbones)


class _Columns(nn.Module):
    """The classifier of an ensemble on one member's part of the embedding, whose whole length is `width`."""

    def __init__(self, classifier: nn.Module, place: int, width: int) -> None:
        super().__init__()
        self.classifier, self.place, self.width = classifier, place, width

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits (B, C) for the member's embeddings (B, D)."""
        before = self.place * embeddings.shape[1]
        return self.classifier(F.pad(embeddings, (before, self.width - before - embeddings.shape[1])))


def _longer(rates: Mapping[str, float], members: int) -> dict[str, float]:
    """Rates of layers as a recipe names them in a member, by their names in here; the classifier is outside."""
    found: dict[str, float] = {}
    for layer, rate in rates.items():
        longer = [f"members.{place}.{layer}" for place in range(members)]
        found |= dict.fromkeys([layer] if layer.startswith("classifier") else longer, rate)
    return found
