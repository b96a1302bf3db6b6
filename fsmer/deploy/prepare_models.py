"""Preparing clips for backbones by name: what `fsmer.preprocess.prepare` does, with the input specs of models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, UnknownNameError
from fsmer.preprocess.prepare import Prepared
from fsmer.preprocess.prepare import prepare as prepare_specs

if TYPE_CHECKING:
    import pandas as pd

    from fsmer.data import ClipSet

__all__ = ["prepare", "specs_of_models"]


def prepare(
    source: str | ClipSet | pd.DataFrame,
    root: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    models: str | Sequence[str],
    **options: Any,
) -> Prepared:
    """Make the media that some backbones need of a data set on disk, all in one pass.

    Parameters
    ----------
    source, root, out, **options
        As for `fsmer.preprocess.prepare.prepare`.
    models : str or sequence of str
        Names of backbones (see `fsmer.list_models`), or folders of weights.

    Returns
    -------
    Prepared
        One clip set, or, where the backbones want different media of one kind, one for each group that can share,
        in sub-folders named after the backbones.

    Raises
    ------
    UnknownNameError
        No such model.
    """
    return prepare_specs(source, root, out, specs=specs_of_models(models), **options)


def specs_of_models(models: str | Sequence[str]) -> dict[str, tuple[InputSpec, ...]]:
    """The input specs of backbones, by name; `DataError` for no model or two folders of one name.

    Nothing is trained or loaded for names of backbones.
    """
    import torch

    from fsmer.backbones.registry import create_model, load_model

    found: dict[str, tuple[InputSpec, ...]] = {}
    for asked in dict.fromkeys([models] if isinstance(models, str) else models):
        try:
            with torch.device("meta"):  # the specs alone: no weights are drawn
                name, backbone = asked, create_model(asked)
        except UnknownNameError:
            name, backbone = Path(asked).name, load_model(asked)
        if name in found:
            raise DataError(f"two models are called {name!r}; prepare for them one after the other.")
        found[name] = backbone.input_specs
    if not found:
        raise DataError("no model was named; name at least one backbone, e.g. facs-flow.")
    return found
