"""Full training of a backbone by its paper's recipe: `train`, and the many-shot end of the same engine."""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fsmer.ambient import library_settings
from fsmer.backbones import Backbone, ClassDirections, TrainRecipe, embed, model_hash
from fsmer.backbones.base import as_device, backbone_call, check_saveable
from fsmer.backbones.registry import fresh_model
from fsmer.backbones.targets import make_targets
from fsmer.data import ClipSet
from fsmer.errors import FsmerError
from fsmer.io import check_writable, write_json
from fsmer.kernels.noise import Draws
from fsmer.outside import outside_value
from fsmer.training.checkpoints import history_file, remove_checkpoint, running_folder
from fsmer.training.loop import tensorboard_log
from fsmer.training.supervised import Trainer, for_training
from fsmer.transfer.fine_tuning import TrainsTogether
from fsmer.transfer.heads import Head
from fsmer.transfer.inputs import as_labelled_clips
from fsmer.transfer.linear_head import Finetune
from fsmer.transfer.recognizer import Labelled, Recognizer
from fsmer.transfer.registry import register_method
from fsmer.transfer.source_model import Progress, SourceModel, require, support_codes

__all__ = ["Train", "train"]


@register_method("train")
@dataclass(frozen=True)
class Train(TrainsTogether[Trainer]):
    """Train backbone and linear classifier together on all labelled clips, by the backbone's own recipe.

    Parameters
    ----------
    epochs, batch_size, learning_rate, weight_decay
        In place of the recipe's; ``None`` keeps them. Another learning rate scales those of single layers alike.
    augment : bool
        Whether training clips are changed at random as the recipe says.
    mirror : bool
        Average the logits of a clip and of its mirror image in prediction. Which half of a face moves is not what a
        class depends on. No paper's recipe has it.
    precision : {"auto", "float32", "bfloat16"}
        Of the network's arithmetic; ``"auto"`` is bfloat16 on a GPU and float32 on a CPU.
    seed : int
        Of initial weights of the classifier, order of clips, augmentation and dropout. The backbone's own initial
        weights are those of the model that is given.
    """

    batched: ClassVar[bool] = True

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    augment: bool = True
    mirror: bool = False
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name}={value} is not positive; give a value above 0 or none.")
        self._require_choice("precision", "auto", "float32", "bfloat16")

    @property
    def keeps_backbone(self) -> bool:
        return False

    @property
    def averages_mirrored(self) -> bool:
        return self.mirror

    def recipe(self, backbone: Backbone) -> TrainRecipe:
        """The backbone's recipe with this method's changes."""
        own = backbone.recipe
        if not isinstance(own, TrainRecipe):
            raise FsmerError(
                f"the recipe of the model {backbone.name!r} ({type(backbone).__name__}) is {outside_value(own)}, but a "
                "TrainRecipe is expected; mend its class."
            )
        own = own.for_weights(untrained=backbone.untrained)
        own_values = ("epochs", "batch_size", "learning_rate", "weight_decay")
        changes: dict[str, Any] = {name: one for name in own_values if (one := getattr(self, name)) is not None}
        if self.learning_rate is not None:
            factor = self.learning_rate / own.learning_rate
            changes["rates"] = {prefix: rate * factor for prefix, rate in own.rates.items()}
        if not self.augment:
            changes["augment"] = ()
        return replace(own, **changes)

    def rate_note(self, backbone: Backbone, *, is_source: bool = False) -> str:
        """What is to be said of the recipe's learning rates where weights are random; nothing for trained ones."""
        del is_source  # the recipe is the same
        own, used = backbone.recipe, self.recipe(backbone).rates
        if not own.random_rates or not backbone.untrained:
            return ""
        before, now = (
            {part: one.get(part, own.learning_rate) for part in own.random_rates} for one in (own.rates, used)
        )
        told = ", ".join(f"{part} at {now[part]:g} in place of {before[part]:g}" for part in own.random_rates)
        return f"{backbone.name!r} starts from random weights and learns {told}, the paper's rate for trained weights."

    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None) -> Head:
        """A linear classifier on embeddings that stay as they are, see `Finetune`."""
        return Finetune(seed=self.seed).fit_head(embeddings, codes, way, prior)

    def _learn_source(self, model: SourceModel, source: ClipSet, progress: Progress | None) -> SourceModel:
        # The classifier of the source is dropped, as in MERAU.
        return SourceModel(self.fit(model, source, progress=progress).backbone)

    def run(
        self,
        model: Backbone,
        clips: ClipSet,
        out: Path | None,
        *,
        classes: Sequence[str] | None = None,
        resume: bool = True,
        progress: Progress | None = None,
        log: str | Path | None = None,
    ) -> tuple[Recognizer, dict[str, Any]]:
        """Train; `out` gets the recognizer, its loss curve, its recipe and, on the way, checkpoints; see `train`.

        Returns the recognizer and what ``<out>.history.json`` holds: recipe, seed, number of clips, losses of epochs.
        """
        if out is not None:
            check_writable(out)
        running, key, start = None if out is None else running_folder(out), None, SourceModel(model)
        with tensorboard_log(log) as after_epoch:
            trainer = self._begin(start, clips, classes)
            recipe = trainer.recipe.to_dict()
            if running is not None:
                # What two trainings must have in common for one to go on from the other's checkpoint. Nothing else asks
                # for it, and hashing a large network takes a while.
                key = {
                    "recipe": recipe,
                    "method": self.to_dict(),
                    "start": model_hash(trainer.backbone),
                    "classes": list(trainer.targets.classes),
                    "clips": [str(name) for name in clips.ids],
                }
            trainer.run(folder=running, key=key, resume=resume, progress=progress, after_epoch=after_epoch)
        recognizer = self._end(start, trainer)
        history = {"recipe": recipe, "seed": self.seed, "clips": len(clips), "losses": trainer.losses}
        if out is not None and running is not None:
            recognizer.save(out)
            write_json(history_file(out), history)
            remove_checkpoint(running)
        return recognizer, history

    def _begin(self, model: SourceModel, support: ClipSet, classes: Sequence[str] | None) -> Trainer:
        names, codes = support_codes(support, classes)
        self._need_support(codes[None])
        recipe = self.recipe(model.backbone)
        if note := self.rate_note(model.backbone):
            # Beyond the methods that every training goes through.
            warnings.warn(note, stacklevel=3)
        backbone = for_training(model.backbone, support, names, self.seed)
        with Draws(self.seed).used():
            classifier = nn.Linear(backbone.embed_dim, len(names))
        targets = make_targets(support, codes, names, balanced=recipe.balanced)
        return Trainer(backbone, classifier, support, targets, recipe, seed=self.seed, precision=self.precision)

    def _end(self, model: SourceModel, training: Trainer, *, embed_now: bool = True) -> Recognizer:
        backbone, classifier, support = training.backbone, training.classifier, training.clips
        names, codes = training.targets.classes, training.targets.labels
        with backbone_call(backbone, "finish_training"):
            backbone.finish_training()
        classifier.cpu()
        weight, bias = (value.detach() for value in classifier.parameters())
        # A class without clips has been pushed down in every step, but it is unknown rather than unlikely.
        bias = bias.masked_fill(torch.bincount(codes, minlength=len(names)) == 0, -math.inf)
        head = Head("linear", weight[None].clone(), bias[None].clone())
        embeddings = embed(backbone, support) if embed_now else functools.partial(embed, backbone, support)
        return Recognizer(replace(model, backbone=backbone), self, names, head, embeddings, codes)


@library_settings()
def train(
    model: Backbone | str | Path,
    clips: Labelled,
    *,
    out: str | Path | None = None,
    classes: Sequence[str] | None = None,
    arguments: dict[str, Any] | None = None,
    device: str | torch.device | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    log: str | Path | None = None,
    **params: Any,
) -> Recognizer:
    """Train a backbone with labels, by its paper's recipe, to a recognizer.

    Parameters
    ----------
    model : Backbone, str or Path
        A backbone to go on from; the folder of one; or a registered name, which starts from fresh weights drawn with
        the seed.
    clips : ClipSet, list of Clip, or pair (arrays, labels)
        Labelled clips; none of them is held back to choose anything.
    out : path, optional
        Folder for the recognizer; beside it the loss of every epoch is written to ``<out>.history.json`` and, while
        training goes on, a checkpoint to ``<out>.training``.
    classes : sequence of str, optional
        The classes in the order of the recognizer's columns; default the sorted labels.
    arguments : dict, optional
        Constructor arguments of a backbone that is given by name; weights that are there already fix their own.
    device : str or torch.device, optional
        Where the network computes, such as ``"cuda"``; default where it is, which for names and folders is the CPU.
    resume : bool, default True
        Whether to go on with what is there: a checkpoint of the same training.
    progress : callable, optional
        Called with (steps done, steps in all).
    log : path, optional
        Folder for the loss and the learning rate of every epoch as TensorBoard reads them (extra ``tensorboard``).
    **params : object
        Parameters of the method ``train`` in place of its defaults (see `fsmer.list_methods`): epochs, batch_size,
        learning_rate, seed, ...

    Returns
    -------
    Recognizer
        With the trained backbone.

    Raises
    ------
    UnknownNameError
        No such model or parameter.
    SpecMismatchError
        The clips' media is not what the backbone expects.
    SupportError
        Clips without labels, or nothing to train.
    WeightsError
        A checkpoint of another training is in the way, or arguments came with weights that are there already.
    DeviceError
        No such device here.
    FsmerError
        A log is asked for and the package tensorboard is missing.

    Examples
    --------
    >>> import fsmer
    >>> recognizer = fsmer.train("ststnet", fsmer.synthetic_clips(n=12), epochs=1)
    >>> recognizer.classes_.tolist()
    ['negative', 'positive', 'surprise']
    """
    method = Train.from_params(params)
    where = None if device is None else as_device(device)
    backbone = fresh_model(model, method.seed, arguments)
    if out is not None:
        check_saveable(backbone)  # before hours of training
    if where is not None:
        # The caller's own network stays where it is.
        backbone = copy.deepcopy(backbone).to(where)
    labelled = as_labelled_clips(clips, backbone)
    folder = None if out is None else Path(out)
    return method.run(backbone, labelled, folder, classes=classes, resume=resume, progress=progress, log=log)[0]
