"""A backbone as methods take it over, with what a source domain has taught it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fsmer.ambient import library_settings
from fsmer.backbones import Backbone, ClassDirections, as_backbone, embed
from fsmer.backbones.base import backbone_call
from fsmer.data import ClipSet
from fsmer.data.table import known_texts
from fsmer.errors import FsmerError, unknown_name
from fsmer.outside import outside_value
from fsmer.parameters import typed_value
from fsmer.training.loop import Progress
from fsmer.transfer.heads import MethodError, one_hot

__all__ = ["MethodError", "Progress", "SourceModel", "support_codes", "typed_params"]

# Names of classes in the order of columns; None for the sorted labels of the clips.
Classes = Sequence[str] | None


@dataclass(frozen=True)
class SourceModel:
    """A backbone together with what a labelled source domain taught about classes.

    Every method takes it wherever it takes a backbone, so that a source is learnt once and adapted from many times.

    Parameters
    ----------
    backbone : Backbone
    classes : tuple of str
        Names of the source classes, in the order of the rows of `directions`.
    directions : ClassDirections, optional
        A cosine classifier of the source classes; ``None`` when the source changed the backbone only. With no row it
        holds the centre of the source's embeddings and nothing of classes.
    descriptions : mapping of str to str
        What a class of that name looks like, in words that the backbone understands (FACS names, action unit numbers,
        names of emotions).
    """

    backbone: Backbone
    classes: tuple[str, ...] = ()
    directions: ClassDirections | None = None
    descriptions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def wrap(cls, model: Backbone | SourceModel | str | os.PathLike[str]) -> SourceModel:
        """`model` itself if it is a `SourceModel` already, else the backbone that it stands for (see `as_backbone`)."""
        return model if isinstance(model, SourceModel) else cls(as_backbone(model))

    @library_settings()
    def class_directions(self, classes: Sequence[str]) -> ClassDirections | None:
        """What is known of `classes`: the source's direction if it has a class of that name, else the backbone's.

        A class that is described counts by its description, whatever its name.
        """
        own: Any
        with backbone_call(self.backbone, "class_directions"):
            own = self.backbone.class_directions([self.descriptions.get(name, name) for name in classes])
        shape = len(classes), self.backbone.embed_dim
        if own is not None and (not isinstance(own, ClassDirections) or own.weight.shape != shape):
            given = outside_value(own.weight if isinstance(own, ClassDirections) else own)
            raise FsmerError(
                f"class_directions of the model {self.backbone.name!r} ({type(self.backbone).__name__}) gives {given}, "
                f"but None or ClassDirections with a weight of shape {shape} are expected; mend its class_directions."
            )
        source = self.directions
        shared = [name in self.classes and name not in self.descriptions for name in classes]
        if source is None or not (any(shared) or source.weight.shape[0] == 0):
            return own
        if not any(shared):
            return own or _only_centre(source.centre, len(shared))
        if own is not None and not torch.equal(own.centre, source.centre):
            # Cosines about another centre cannot be compared; what was learnt from labels counts.
            own = None
        rows = [self.classes.index(name) if held else 0 for name, held in zip(classes, shared, strict=True)]
        held = torch.tensor(shared)
        if own is None:
            zeros = torch.zeros(len(rows), source.weight.shape[1])
            own = replace(source, weight=zeros, bias=zeros[:, 0], known=held)
        weight, known = (F.normalize(one, dim=-1) for one in (source.weight[rows], own.weight))
        return replace(
            source,
            weight=torch.where(held[:, None], weight, known),
            bias=torch.where(held, source.bias[rows], own.bias),
            known=held | own.known,
            precision=own.precision,
        )


def centred_on(model: SourceModel, source: ClipSet) -> SourceModel:
    """`model` with the mean of the source's embeddings as the centre of those of classes that it does not know."""
    centre = embed(model.backbone, source).mean(dim=0)
    return SourceModel(model.backbone, directions=_only_centre(centre, 0), descriptions=model.descriptions)


def _only_centre(centre: Tensor, classes: int) -> ClassDirections:
    """Directions of so many classes of which nothing is known but where embeddings lie."""
    blank = torch.zeros(classes, len(centre))
    return ClassDirections(blank, blank[:, 0], torch.zeros(classes, dtype=torch.bool), 1.0, centre)


def support_codes(support: ClipSet, classes: Sequence[str] | None) -> tuple[tuple[str, ...], Tensor]:
    """Class names and int64 codes of a labelled clip set."""
    names = support.classes if classes is None else tuple(known_texts(classes, "classes"))
    return names, torch.from_numpy(np.asarray(support.codes(names), dtype=np.int64))


def absent_bias(codes: Tensor, way: int) -> Tensor:
    """Bias of shape (E, C): 0 for classes in the support, minus infinity for absent ones."""
    present = one_hot(codes, way).any(dim=-1)
    return torch.zeros(present.shape).masked_fill_(~present, float("-inf"))


def require(condition: bool, message: str) -> None:
    """Raise `MethodError` with `message` unless `condition` holds."""
    if not condition:
        raise MethodError(message)


def typed_params(params: Mapping[str, Any], kinds: Mapping[str, str], owner: str) -> dict[str, Any]:
    """Values of known parameters as the types that `kinds` names for them; `owner` is whose they are, in messages.

    `UnknownNameError` for a parameter that is not among `kinds`, `MethodError` for a value of another type.
    """
    found = {}
    for key, value in params.items():
        if key not in kinds:
            raise unknown_name("parameter", key, kinds, of=owner)
        try:
            found[key] = typed_value(value, kinds[key])
        except ValueError as error:
            raise MethodError(f"{key}={value!r} of {owner} is not understood; expected {error}.") from error
    return found
