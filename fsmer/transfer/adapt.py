"""`adapt`: from a model and a handful of labelled clips to a recognizer, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fsmer.ambient import library_settings
from fsmer.backbones import Backbone
from fsmer.backbones.base import check_weights
from fsmer.data import ClipSet
from fsmer.data.table import known_texts
from fsmer.errors import SupportError
from fsmer.transfer.inputs import as_labelled_clips
from fsmer.transfer.method import Method, learnt, source_learnt
from fsmer.transfer.recognizer import Labelled, Recognizer
from fsmer.transfer.registry import load_method
from fsmer.transfer.source_model import Progress, SourceModel

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

__all__ = ["adapt", "described", "method_for", "recognizer_of_words"]


@library_settings()
def adapt(
    model: Backbone | SourceModel | str | Path,
    support_set: Labelled,
    method: str | Method | ClassifierMixin | None = None,
    *,
    classes: Sequence[str] | None = None,
    source: ClipSet | None = None,
    descriptions: Mapping[str, str] | None = None,
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
    method : str, Method or classifier of scikit-learn, optional
        How a support set becomes a recognizer, see `fsmer.load_method`. Default: how a model that was trained on
        episodes (`fsmer.meta_train`) learned to be adapted, and ``"cosine"`` for any other.
    classes : sequence of str, optional
        The classes in the order of the recognizer's columns; default the sorted labels of the support set. A class
        without support must be known to the model, as with the coarse emotions of ``facs-flow``.
    source : ClipSet, optional
        Labelled clips of another domain, to learn from first.
    descriptions : mapping of str to str, optional
        What classes look like in words: FACS names, action unit numbers or names of emotions, for example
        ``{"smile": "cheek raiser, lip corner puller"}``. The method starts there, for the clips to correct.
    progress : callable, optional
        Called with (steps done, steps in all) while a backbone is trained.
    **params : object
        Parameters of the method in place of its defaults.

    Returns
    -------
    Recognizer
        Its columns are in the order of `classes`.

    Raises
    ------
    SupportError
        The support set is empty, unlabelled or of one class, or a named class has neither clips nor a model that
        knows it.
    SpecMismatchError
        The clips' media is not what the backbone expects.
    UnknownNameError
        No such model, method or parameter.

    Examples
    --------
    >>> import fsmer
    >>> support_set = fsmer.synthetic_clips("lab", 30)
    >>> recognizer = fsmer.adapt("facs-flow", support_set)
    >>> recognizer.predict(fsmer.synthetic_clips("clinic", 5)).shape
    (5,)
    """
    start = SourceModel.wrap(model)
    chosen = method_for(start, method, **params)
    check_weights(start.backbone)
    start = described(start, descriptions or {})
    clips = as_labelled_clips(support_set, start.backbone)
    if source is not None:
        start = source_learnt(chosen, start, as_labelled_clips(source, start.backbone), progress)
    _check_classes(clips, classes, start)
    return learnt(chosen, start, clips, classes=classes, progress=progress)


def method_for(model: SourceModel, method: str | Method | ClassifierMixin | None = None, **params: Any) -> Method:
    """The method that is asked for or, by default, the one that the backbone was trained for, else ``cosine``."""
    taught = model.backbone.adaptation
    if method is not None or taught is None:
        return load_method("cosine" if method is None else method, **params)
    return load_method(taught.method, **{**taught.params, **params})


@library_settings()
def recognizer_of_words(
    model: Backbone | SourceModel | str | Path, descriptions: Mapping[str, str], *, others: Sequence[str] = ()
) -> Recognizer:
    """A recognizer of classes that are described in words, without a single labelled clip.

    Parameters
    ----------
    model : Backbone, SourceModel, str or Path
        One that knows action units or words: `facs-flow`, or a backbone with a text or action unit head after
        training.
    descriptions : mapping of str to str
        What classes look like in words: class name -> FACS names or action unit numbers (``"cheek raiser, lip corner
        puller"``, ``"6+12"``), or the name of an emotion that the model knows.
    others : sequence of str, default ()
        Further classes that the model knows by their name.

    Returns
    -------
    Recognizer
        Of the method ``cosine``, so that ``update`` lets labelled clips correct the words later.

    Raises
    ------
    SupportError
        Fewer than two classes, or a description that the model does not understand.

    Examples
    --------
    >>> import fsmer
    >>> recognizer = fsmer.recognizer_of_words(
    ...     "facs-flow", {"smile": "cheek raiser, lip corner puller", "frown": "brow lowerer"}
    ... )
    >>> recognizer.classes_.tolist(), recognizer.support_size
    (['smile', 'frown'], 0)
    """
    start = SourceModel.wrap(model)
    check_weights(start.backbone)
    start = described(start, descriptions)
    names = tuple(known_texts([*descriptions, *others], "classes"))
    if len(set(names)) < 2 or len(set(names)) != len(names):
        raise SupportError(
            f"{len(set(names))} different classes are described ({', '.join(names)}); describe two or more, each once."
        )
    method = load_method("cosine")
    blank, codes = torch.zeros(0, start.backbone.embed_dim), torch.zeros(0, dtype=torch.int64)
    head = method.fit_head(blank[None], codes[None], len(names), start.class_directions(names))
    return Recognizer(start, method, names, head, blank, codes)


def described(model: SourceModel, descriptions: Mapping[str, str]) -> SourceModel:
    """`model` with descriptions of classes; raises `SupportError` where its backbone does not understand one."""
    if not descriptions:
        return model
    names = known_texts(list(descriptions), "descriptions")
    known = model.backbone.class_directions(list(descriptions.values()))
    for place, (name, text) in enumerate(zip(names, descriptions.values(), strict=True)):
        if known is None or not bool(known.known[place]):
            raise SupportError(
                f"the model {model.backbone.name!r} does not understand the description {text!r} of the class "
                f"{name!r}; use FACS names or action unit numbers (such as 'cheek raiser, lip corner puller' or "
                "'6+12') and a model that knows action units, such as 'facs-flow'."
            )
    return replace(model, descriptions={**model.descriptions, **dict(zip(names, descriptions.values(), strict=True))})


def _check_classes(clips: ClipSet, classes: Sequence[str] | None, model: SourceModel) -> None:
    names = clips.classes if classes is None else tuple(known_texts(classes, "classes"))
    if len(set(names)) != len(names):
        raise SupportError(f"classes names a class twice: {', '.join(names)}; give each class once.")
    if len(names) < 2:
        raise SupportError(
            f"the support set has one class ({', '.join(names)}, {len(clips)} clips); give clips of at least two."
        )
    counts = np.bincount(clips.codes(names), minlength=len(names))
    known = model.class_directions(names)
    for place, name in enumerate(names):
        if counts[place] == 0 and (known is None or not bool(known.known[place])):
            raise SupportError(
                f"the class {name!r} has no clip in the support set, and the model {model.backbone.name!r} does not "
                "know it either; give labelled clips of it or leave it out of classes."
            )
