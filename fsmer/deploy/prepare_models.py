"""Preparing clips for backbones by name: what `fsmer.preprocess.prepare` does, with the input specs of models."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsmer.data.spec import InputSpec
from fsmer.episodic.neighbour_frames import NeighbourFrames
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
    neighbours: int | None = None,
    **options: Any,
) -> Prepared:
    """Make the media that some backbones need of a data set on disk, all in one pass.

    Parameters
    ----------
    source : str, ClipSet or DataFrame
        Name of a data set (see `fsmer.list_datasets`), clips of `read_dataset`, or a table with one recording a row,
        see `fsmer.preprocess.prepare.prepare`.
    root : path or None
        Folder of the data set; for a table, the folder that relative paths start from (None: the current one).
    out : path
        Folder for the clip sets, the recipe and a report.
    models : str or sequence of str
        Names of backbones (see `fsmer.list_models`), or folders of weights.
    neighbours : int, optional
        Make frames beside the apex clips of their own too, more of them for rare classes, so that every class has
        about so many times the clips of the rarest one (MERAU, eq. 11, whose number is 5); see
        `fsmer.episodic.neighbour_frames.NeighbourFrames`. Protocols learn from them where they are told to
        (``neighbours=True``) and never ask about them.
    **options : object
        Further arguments of `fsmer.preprocess.prepare.prepare`, such as ``recipe``, ``scheme`` and ``workers``.

    Returns
    -------
    Prepared
        One clip set, or, where the backbones want different media of one kind, one for each group that can share,
        in sub-folders named after the backbones.

    Raises
    ------
    UnknownNameError
        No such model.
    DataError
        Neighbours are asked for and a clip's frames are not known.

    Examples
    --------
    >>> from pathlib import Path
    >>> import cv2
    >>> import pandas as pd
    >>> import fsmer
    >>> from fsmer.synthetic.recordings import synthetic_videos
    >>> (video,) = synthetic_videos(1, size=96, frames=12)
    >>> Path("clip").mkdir()
    >>> for number, frame in enumerate(video.frames):
    ...     written = cv2.imwrite(f"clip/{number}.png", frame[..., ::-1])
    >>> table = pd.DataFrame({"path": ["clip"], "label": ["positive"], "apex": [6]})
    >>> recipe = fsmer.PreprocessRecipe(detector="cropped")
    >>> prepared = fsmer.prepare(table, None, "prepared", models="facs-flow", recipe=recipe, workers=1)
    >>> fsmer.read_clips("prepared").media().shape
    (1, 3, 28, 28)
    """
    if neighbours is not None:
        options["extend"] = NeighbourFrames(factor=neighbours).table
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
