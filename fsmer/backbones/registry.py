"""Which backbones there are, by name, and how to load one."""

from __future__ import annotations

import fnmatch
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fsmer.ambient import library_settings
from fsmer.backbones.base import Backbone, check_made
from fsmer.backbones.recipe import PretrainRecipe, TrainRecipe
from fsmer.backbones.weights import CONFIG_FILE, WeightsFolder, fetch_weights, load_folder
from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, FsmerError, SpecMismatchError, WeightsError, reason_of, unknown_name
from fsmer.io import restore_folder
from fsmer.kernels.noise import Draws
from fsmer.listing import Listing
from fsmer.memory import out_of_memory
from fsmer.parameters import check_arguments
from fsmer.plugins import BACKBONES, OWN
from fsmer.resources import resource_folder
from fsmer.text import without_marks

__all__ = ["ModelInfo", "create_model", "list_models", "load_model", "register_backbone"]


@dataclass(frozen=True)
class ModelInfo:
    """One line of `list_models`.

    Parameters
    ----------
    name, summary : str
    parameters : int or None
        Numbers that the network holds and training may change; None, here and below, where the network of a plugin
        cannot be made and run with its defaults (`notes` say why).
    flops : int or None
        Floating-point operations of embedding one clip (a multiplication and an addition count as two).
    embed_dim : int or None
    input_specs : tuple of InputSpec
        What it expects, one entry a medium; empty where that is not known.
    pretrained : bool
        Whether weights ship with fsmer.
    notes : str
        What of its paper is there, what deviates and what is absent, and how it is trained by default.
    """

    name: str
    summary: str
    parameters: int | None
    flops: int | None
    embed_dim: int | None
    input_specs: tuple[InputSpec, ...]
    pretrained: bool
    notes: str = field(repr=False)

    def card(self, width: int = 80) -> str:
        """The notes as a page of text, `width` characters wide; items of a list keep their indent."""
        found = []
        for part in re.split(r"\n(?=\* |\n|Source: )", without_marks(self.notes)):
            line = " ".join(part.split())
            indent = "  " if line.startswith("* ") else ""
            filled = textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False)
            found.append(f"\n{filled}" if part.startswith("\n") else filled)
        return "\n".join(found)


# Class decorator that enters a backbone in the registry under a name.
register_backbone = BACKBONES.register

# The class registered under a name; an unknown one raises `UnknownNameError` with the nearest names, or with the
# plugin (the second argument) that registered it when it was saved.
backbone_class: Callable[..., type[Backbone]] = BACKBONES.find


def saved_class(held: WeightsFolder) -> type[Backbone]:
    """The class of the network in a folder of weights."""
    return backbone_class(held.config["backbone"], held.config.get("plugin"))


@library_settings()
def create_model(name: str, **arguments: object) -> Backbone:
    """A backbone of that name with fresh (untrained) weights.

    Parameters
    ----------
    name : str
        A name of `list_models`.
    **arguments : object
        Arguments of its constructor in place of their defaults.

    Returns
    -------
    Backbone
        In training mode.

    Raises
    ------
    UnknownNameError
        No such backbone, or an argument that its constructor does not take.
    FsmerError
        A value that the constructor cannot work with.

    Examples
    --------
    >>> import fsmer
    >>> fsmer.create_model("ststnet", dropout=0.2).config
    {'padding': 1, 'dropout': 0.2, 'size': 28}
    """
    cls = backbone_class(name)
    arguments = BACKBONES.preset(name) | arguments
    known = list(inspect.signature(cls).parameters)
    for argument in arguments:
        if argument not in known:
            raise unknown_name("argument", argument, known, of=f"the model {name!r}")
    try:
        check_arguments(cls, arguments)
        made = cls(**arguments)  # type: ignore[arg-type]
    # Code from outside raises whatever it likes.
    except Exception as error:
        if isinstance(error, FsmerError) or out_of_memory(error):
            raise
        raise FsmerError(
            f"{name!r} cannot be made with {_listed(arguments) or 'its defaults'} ({reason_of(error)}); "
            "check the values against its documentation."
        ) from error
    check_made(made)
    return made


@library_settings()
def load_model(name_or_folder: str | Path) -> Backbone:
    """A backbone with trained weights, in evaluation mode.

    Parameters
    ----------
    name_or_folder : str or Path
        A registered name whose weights ship with fsmer (see `list_models`), a folder that ``save_pretrained`` made, or
        a hub repository (``hf://owner/name``).

    Returns
    -------
    Backbone
        With its weights.

    Raises
    ------
    UnknownNameError
        Neither a registered name nor a folder.
    WeightsError
        The weights are missing, cut short, altered or from a newer fsmer.

    Examples
    --------
    >>> import fsmer
    >>> fsmer.load_model("facs-flow").embed_dim
    192
    """
    name = str(name_or_folder)
    if names_saved_weights(name):
        folder = fetch_weights(name)
        return load_folder(folder, lambda held: saved_class(held).from_folder(held), hub=True)
    cls = backbone_class(name)
    folder = resource_folder("pretrained") / name
    if not folder.is_dir():
        free = f"'fsmer pretrain {name}' (without labels) or " if hasattr(cls, "pretraining_recipe") else ""
        takes_others = "weights" in inspect.signature(cls).parameters
        others = " Or start from those of ImageNet (the argument weights=imagenet)." if takes_others else ""
        raise WeightsError(
            f"no weights of {name!r} ship with this fsmer; make them with {free}'fsmer train {name}' (with labels) and "
            f"load that folder.{others}"
        )
    return cls.from_pretrained(folder)


def as_backbone(model: Backbone | str | os.PathLike[str]) -> Backbone:
    """The backbone that any form of a model stands for: one as it is, or a name or folder as `load_model` takes it.

    A plain module, of which nothing says what it expects, raises `SpecMismatchError`, and anything else `DataError`;
    names and folders raise what `load_model` does.
    """
    if isinstance(model, Backbone):
        check_made(model)
        return model
    if isinstance(model, (str, os.PathLike)):
        return load_model(os.fspath(model))
    if isinstance(model, nn.Module):
        raise SpecMismatchError(
            f"the module {type(model).__name__} does not say which media it expects; give "
            "fsmer.wrap(module, expects=InputSpec(...)) in its place."
        )
    raise DataError(
        f"a model was given as {type(model).__name__}; give the name or folder of one, a Backbone (fsmer.load_model), "
        "or a module in fsmer.wrap."
    )


def names_saved_weights(model: str | Path) -> bool:
    """Whether `model` is a folder or a hub repository of weights; a registered name is neither, whatever lies there."""
    name = str(model)
    if name in BACKBONES:
        return False
    if not os.path.isdir(name):
        with suppress(OSError, ValueError):  # what can be no path is a name that nobody has
            restore_folder(name)  # where a killed writer has moved it aside
    return os.path.isdir(name) or "/" in name


def refuse_arguments(backbone: Backbone, arguments: Mapping[str, object] | None, origin: str) -> None:
    """Raise `WeightsError` if constructor arguments came with a `backbone` that has its weights already. What the
    numbers of a network mean follows from the arguments that it was made with; others would need other weights.
    `origin` says where they are from: "the weights in FOLDER"."""
    if arguments:
        name = backbone.name
        raise WeightsError(
            f"{_listed(arguments)} came with {origin}, but these are of a {name!r} that is made already, with "
            f"arguments of its own; leave the arguments out, or give the name {name!r}, which begins with fresh "
            "weights."
        )


def _listed(arguments: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())


@library_settings()
def list_models(pattern: str = "*") -> list[ModelInfo]:
    """All registered backbones, sorted by name.

    Parameters
    ----------
    pattern : str, default "*"
        Wildcards as in file names, e.g. ``"r3d*"``.

    Returns
    -------
    list of ModelInfo
        One entry a backbone whose name matches.

    Examples
    --------
    >>> import fsmer
    >>> [(model.name, model.pretrained) for model in fsmer.list_models("facs*")]
    [('facs-flow', True)]
    """
    found = Listing[ModelInfo](title="models", row=_model_row)
    for name in sorted(fnmatch.filter(BACKBONES, pattern)):
        cls = BACKBONES[name]
        facts: dict[str, Any] = dict.fromkeys(("parameters", "flops", "embed_dim")) | {"input_specs": ()}
        notes = [class_notes(cls)]
        try:
            notes.append(training_notes(cls))
            with torch.device("meta"):  # shapes alone: nothing is drawn or stored
                model = cls(**BACKBONES.preset(name))
            facts |= {"embed_dim": model.embed_dim, "input_specs": model.input_specs}
            facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
            facts["flops"] = _count_flops(model)
        # Code from outside raises whatever it likes, and the other models are listed all the same.
        except Exception as error:
            if BACKBONES.origin(name) == OWN or out_of_memory(error):
                raise
            notes.append(f"It cannot be made and run with its defaults ({type(error).__name__}: {reason_of(error)}).")
        pretrained = (resource_folder("pretrained") / name / CONFIG_FILE).is_file()
        shown = "\n\n".join(filter(None, notes))
        found.append(ModelInfo(name, BACKBONES.summary(name), **facts, pretrained=pretrained, notes=shown))
    if not found and not any(character in pattern for character in "*?["):
        raise unknown_name("model", pattern, BACKBONES)
    return found


def _model_row(one: ModelInfo) -> dict[str, str]:
    count = one.parameters
    size = "-" if count is None else f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,}"
    media = ", ".join(spec.kind for spec in one.input_specs)
    weights = "shipped" if one.pretrained else "none"
    return {"model": one.name, "parameters": size, "weights": weights, "input": media, "what it is": one.summary}


def class_notes(cls: type[Backbone]) -> str:
    """The section ``Notes`` of a backbone's documentation, or of the class that it varies."""
    for one in cls.__mro__:
        text = inspect.cleandoc(one.__doc__ or "")
        found = re.search(r"^Notes\n-+\n(.*?)(?=^\S[^\n]*\n-{3,}$|\Z)", text, re.M | re.S)
        if found:
            return found.group(1).strip()
    return ""


def training_notes(cls: type[Backbone]) -> str:
    """The backbone's default training, with labels and (where it has one) without, and where its values come from."""
    recipe = cls.recipe
    augmentation = " and ".join(recipe.augment) or "no"
    lines = [
        f"Training (`recipe`): {_optimiser(recipe)}, {recipe.epochs} epochs in batches of {recipe.batch_size}, "
        f"{recipe.schedule} learning rate, {augmentation} augmentation.",
        f"Source: {recipe.source.rstrip('.')}.",
    ]
    free: PretrainRecipe | None = getattr(cls, "pretraining_recipe", None)
    if free is not None:
        low, high = free.distance
        lines += [
            "",
            f"Training without labels (`pretraining_recipe`): {_optimiser(free)}, {free.steps:,} steps of "
            f"{free.batch_size} pairs of frames {low} to {high} apart, {free.schedule} learning rate.",
            f"Source: {free.source.rstrip('.')}.",
        ]
    return "\n".join(textwrap.fill(line, 116) for line in lines)


def _optimiser(recipe: TrainRecipe | PretrainRecipe) -> str:
    name = {"adam": "Adam", "adamw": "AdamW", "sgd": f"SGD with momentum {recipe.momentum:g}"}[recipe.optimizer]
    rates = recipe.rates if isinstance(recipe, TrainRecipe) else {}
    fresh = recipe.random_rates if isinstance(recipe, TrainRecipe) else {}
    layers = ", ".join(
        f"{prefix} {rate:g}" + (f", from random weights {fresh[prefix]:g}" if prefix in fresh else "")
        for prefix, rate in rates.items()
    )
    decay = f", weight decay {recipe.weight_decay:g}" if recipe.weight_decay else ""
    return f"{name} at {recipe.learning_rate:g}{f' ({layers})' if layers else ''}{decay}"


def _count_flops(model: Backbone) -> int:
    media = {spec.kind: torch.empty(1, *spec.shape, device="meta") for spec in model.input_specs}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(media if len(media) > 1 else next(iter(media.values())))
    return int(counter.get_total_flops())


def fresh_model(model: Backbone | str | Path, seed: int, arguments: Mapping[str, Any] | None = None) -> Backbone:
    """A backbone as it is, from a folder, or by name with fresh weights drawn with `seed`. Raises as `create_model` and
    `load_model` do, and `WeightsError` where arguments came with weights."""
    if not isinstance(model, (str, os.PathLike)) or names_saved_weights(model):
        backbone = as_backbone(model)
        refuse_arguments(backbone, arguments, "a backbone" if backbone is model else f"the weights in {model}")
        return backbone
    with Draws(seed).used():
        return create_model(str(model), **(arguments or {}))
