"""`wrap`: any `torch.nn.Module` as a backbone, in one call."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fsmer.ambient import library_settings
from fsmer.backbones.base import Backbone, blank_media, check_saveable
from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, SpecMismatchError
from fsmer.outside import code_digest, outside_call


class WrappedModule(Backbone):
    """A plain module as a backbone, see `wrap`."""

    def __init__(self, module: nn.Module, expects: Sequence[InputSpec]) -> None:
        super().__init__(input_spec=expects, embed_dim=0, config={})
        self.module = module
        # Names what tells two modules with equal weights apart, so that neither takes over the results of the other.
        readable = re.sub(r"\W+", "_", type(module).__name__)
        held = [(name, value) for part in module.modules() for name, value in vars(part).items() if name[0] != "_"]
        facts = [(name, getattr(value, "__qualname__", repr(value))) for name, value in held if name != "training"]
        # A backbone inside it shows itself as one line, without its layers.
        layers = [nn.Module.__repr__(part) for part in module.modules() if isinstance(part, Backbone)]
        content = f"{(module, facts, layers)}{code_digest(module.modules())}".encode()
        self.name = f"{readable}-{hashlib.sha256(content).hexdigest()[:8]}"  # type: ignore[misc]

    def forward(self, inputs: Any) -> Tensor:
        """Embeddings of shape (B, embed_dim); of (B, embed_dim, 1, 1) the last two axes are dropped."""
        found = self.module(inputs)
        if isinstance(found, Tensor) and found.ndim > 2 and found.shape[2:].numel() == 1:
            return found.flatten(1)
        return found

    def save_pretrained(self, folder: str | Path, **_: Any) -> Path:  # type: ignore[override]
        """Refused: saved weights cannot name the code that they belong to."""
        check_saveable(self)
        raise AssertionError("a wrapped module is never registered")


@library_settings()
def wrap(module: nn.Module, expects: InputSpec | Sequence[InputSpec], embed_dim: int | None = None) -> Backbone:
    """A plain module as a backbone that every function of fsmer takes in place of a model's name.

    Parameters
    ----------
    module : Module
        Gives embeddings of shape (B, D), or (B, D, 1, 1), for media of shape (B, \\*spec.shape). It is copied: neither
        its weights nor its mode change, and the backbone does not follow when it is trained further.
    expects : InputSpec or sequence of InputSpec
        The media that it takes. With several it is called with a dict of tensors by kind.
    embed_dim : int, optional
        D; default what the module gives for media of zeros.

    Returns
    -------
    Backbone
        In evaluation mode. Its name ends in a digest of the module's structure and of the source of its classes, by
        which results are told apart from those of another module with equal weights. It cannot be saved, since saved
        weights name no code: for that, register a class (`fsmer.backbones.register_backbone`).

    Raises
    ------
    DataError
        `module` is no plain module, or `expects` no InputSpec.
    SpecMismatchError
        The module fails on media of `expects`, or gives no embeddings of length `embed_dim` for them.

    Examples
    --------
    >>> import torch
    >>> import fsmer
    >>> network = torch.nn.Sequential(torch.nn.AvgPool2d(7), torch.nn.Flatten())
    >>> fsmer.wrap(network, fsmer.InputSpec("flow", (28, 28), ("u", "v"), "minmax")).embed_dim
    32
    """
    if not isinstance(module, nn.Module) or isinstance(module, Backbone):
        what = "a Backbone already" if isinstance(module, Backbone) else f"no torch.nn.Module but {module!r:.100}"
        raise DataError(f"wrap was given {what}; give a plain module that is made already, or use the backbone as is.")
    specs = tuple(expects) if isinstance(expects, (list, tuple)) else (expects,)
    if not specs or not all(isinstance(spec, InputSpec) for spec in specs):
        raise DataError(f"expects is {expects!r:.100}; give the InputSpec of each medium that the module takes.")
    if len({spec.kind for spec in specs}) < len(specs):
        raise DataError(f"expects names a kind twice ({', '.join(spec.kind for spec in specs)}); give one of each.")
    who = type(module).__name__
    wanted = ", ".join(spec.describe() for spec in specs)
    # Code from outside raises whatever it likes.
    remedy = "give the InputSpec of what it takes, or correct its forward, which gets a tensor for one medium, "
    with outside_call(f"the module {who} on {wanted}", SpecMismatchError, f"{remedy}a dict by kind for several"):
        made = WrappedModule(copy.deepcopy(module), specs).eval()
        with torch.no_grad():
            found = made(blank_media(made, specs))
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2:
        given = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise SpecMismatchError(
            f"the module {who} gives {given} for two clips of {wanted}, but a tensor of shape (2, D) is expected; let "
            "its forward give one vector a clip, for example by pooling and torch.nn.Flatten."
        )
    if embed_dim not in (None, found.shape[1]):
        raise SpecMismatchError(
            f"the module {who} gives {found.shape[1]} numbers a clip, but embed_dim is {embed_dim}; leave it out."
        )
    made.embed_dim = found.shape[1]
    return made
