"""`adapt`: from a model and a handful of labelled clips to a recognizer, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fsmer.backbones import Backbone, load_model
from fsmer.errors import SupportError
from fsmer.transfer.base import Method, Progress, SourceModel
from fsmer.transfer.recognizer import Recognizer, as_labelled_clips
from fsmer.transfer.registry import load_method

if TYPE_CHECKING:
    from fsmer.data import ClipSet
    from fsmer.transfer.recognizer import Labelled

__all__ = ["adapt"]


def adapt(
    model: Backbone | SourceModel | str | Path,
    support_set: Labelled,
    method: str | Method = "cosine",
    *,
    classes: Sequence[str] | None = None,
    source: ClipSet | None = None,
    progress: Progress | None = None,
    **params: Any,
) -> Recognizer:
    """Learn to tell the classes of a support set apart.

    This is one episode of `fsmer.evaluate` with your own support set; both run the same code.

    Parameters
    ----------
    model : Backbone, SourceModel, str or Path
        A backbone, or the name or folder of one (see `fsmer.load_model`).
    support_set : ClipSet, list of Clip, or pair (arrays, labels)
        Labelled clips; five a class are enough.
    method : str or Method
        See `fsmer.list_methods`.
    classes : sequence of str, optional
        The classes in the order of the recognizer's columns; default the sorted labels of the support set. A class
        without support must be known to the model, as with the coarse emotions of ``facs-flow``.
    source : ClipSet, optional
        Labelled clips of another domain, to learn from first.
    progress : callable, optional
        Called with (steps done, steps in all) while a backbone is trained.
    **params
        Parameters of the method in place of its defaults.

    Returns
    -------
    Recognizer

    Raises
    ------
    SupportError
        The support set is empty, unlabelled or of one class, or a named class has neither clips nor a model that
        knows it.
    SpecMismatchError
        The clips' media is not what the backbone eats.
    UnknownNameError
        No such model, method or parameter.

    Examples
    --------
    >>> import fsmer
    >>> support_set = fsmer.synthetic_clips("lab", 30)
    >>> recognizer = fsmer.adapt("facs-flow", support_set)  # doctest: +SKIP
    >>> recognizer.predict(fsmer.synthetic_clips("clinic", 5))  # doctest: +SKIP
    """
    chosen = load_method(method, **params)
    start = SourceModel.wrap(model if isinstance(model, (Backbone, SourceModel)) else load_model(model))
    clips = as_labelled_clips(support_set, start.backbone)
    if source is not None:
        start = chosen.train_source(start, as_labelled_clips(source, start.backbone), progress=progress)
    _check_classes(clips, classes, start)
    return chosen.fit(start, clips, classes=classes, progress=progress)


def _check_classes(clips: ClipSet, classes: Sequence[str] | None, model: SourceModel) -> None:
    names = clips.classes if classes is None else tuple(str(name) for name in classes)
    if len(set(names)) != len(names):
        raise SupportError(f"classes names a class twice: {', '.join(names)}; give each class once.")
    if len(names) < 2:
        raise SupportError(
            f"the support set has one class only ({', '.join(names)}, {len(clips)} clips); "
            "give labelled clips of at least two classes."
        )
    counts = np.bincount(clips.codes(names), minlength=len(names))
    known = model.class_directions(names)
    for place, name in enumerate(names):
        if counts[place] == 0 and (known is None or not bool(known.known[place])):
            raise SupportError(
                f"the class {name!r} has no clip in the support set, and the model {model.backbone.name!r} does not "
                "know it either; give labelled clips of it or leave it out of classes."
            )
