"""`Recognizer`: a backbone with a fitted head, in the manners of scikit-learn, saved to one folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

import numpy as np
import torch
from annotated_types import Len
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from typing_extensions import TypedDict

from fsmer.ambient import library_settings
from fsmer.arrays import as_float32, plain_array
from fsmer.backbones import Backbone, ClassDirections, as_backbone, embed
from fsmer.backbones.base import CONFIG_FILE, WEIGHTS_FILE, check_saveable, check_weights
from fsmer.backbones.registry import saved_class
from fsmer.backbones.weights import OPEN_TENSORS, REMEDY, WeightsFolder, file_sha256, load_folder, read_config
from fsmer.data import Clip, ClipSet
from fsmer.data.table import known_texts
from fsmer.episodic.episode import Ints
from fsmer.errors import DataError, FsmerError, MediaError, OutputError, WeightsError
from fsmer.html import Facts, Grid, object_html
from fsmer.io import atomic_folder, write_json
from fsmer.outside import outside_call
from fsmer.plugins import METHODS, plugin_entry
from fsmer.probabilities import unsound_answers
from fsmer.schema import Count, Names, checked
from fsmer.tensor_files import check_finite, under, write_tensors
from fsmer.text import one_line, shortened
from fsmer.transfer.heads import KINDS, FittedHead, Head, MethodError, checked_head, class_scores
from fsmer.transfer.inputs import as_inputs, as_labelled_clips, plain_labels
from fsmer.transfer.source_model import Progress, SourceModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fsmer.deploy.explanation import Explanation
    from fsmer.transfer.method import Method

Inputs = ClipSet | Clip | Sequence[Clip] | ArrayLike | Mapping[str, ArrayLike]
Labelled = ClipSet | Sequence[Clip] | tuple[ArrayLike | Mapping[str, ArrayLike], ArrayLike]

__all__ = ["Recognizer"]

RECOGNIZER_VERSION = 1
# What the method ``sklearn`` writes beside the weights.
ESTIMATOR_FILE = "estimator.skops"


class _MethodConfig(TypedDict):
    name: str
    params: dict[str, Any]
    plugin: NotRequired[str]


class _SourceConfig(TypedDict):
    classes: Names
    scale: float


class _RecognizerConfig(TypedDict):
    """What the entry ``recognizer`` of ``config.json`` must say."""

    version: Count
    classes: Annotated[Names, Len(1)]
    method: _MethodConfig
    head: str
    source: _SourceConfig | None
    support_size: NotRequired[Count]
    descriptions: NotRequired[dict[str, str]]


class Recognizer:
    """Answers which class a clip shows; made by `fsmer.adapt` or a method's ``fit``.

    Inputs of all methods are a clip set, a clip, a list of clips, or an array of shape (N, channels, height, width)
    or, for one clip, (channels, height, width) as the backbone expects it (floats, or 8-bit values that are divided by
    255). A backbone with several media takes a dict with one array a kind.

    Attributes
    ----------
    backbone : Backbone
        The network that embeds clips.
    head : FittedHead
        The classifier on the embedding.
    method : Method
        What fitted the head.
    classes_ : str array of shape (C,)
        Class names in the order of the columns of `predict_proba`.
    support_size : int
        Labelled clips that were learnt from.

    Examples
    --------
    >>> import fsmer
    >>> recognizer = fsmer.adapt("facs-flow", fsmer.synthetic_clips("lab", 30))
    >>> recognizer.classes_.tolist(), recognizer.support_size
    (['negative', 'positive', 'surprise'], 30)
    >>> recognizer.backbone.name, recognizer.method.name, len(recognizer.head)
    ('facs-flow', 'cosine', 1)
    >>> clips = fsmer.synthetic_clips("clinic", 20)
    >>> recognizer.predict(clips).shape, recognizer.predict_proba(clips).shape
    ((20,), (20, 3))
    >>> recognizer.decision_function(clips).shape
    (20, 3)
    >>> 0 <= recognizer.score(clips) <= 1
    True
    """

    def __init__(
        self,
        model: SourceModel,
        method: Method,
        classes: Sequence[str],
        head: FittedHead,
        support: Tensor | Callable[[], Tensor],
        codes: Tensor,
    ) -> None:
        self.method = method
        self.classes_: NDArray[np.str_] = np.array(list(classes), dtype=str)
        self._model = model
        self._head = checked_head(head, 1, len(self.classes_), f"the method {method.name!r} ({type(method).__name__})")
        # What `update` learns from together with new clips; embeddings, so that no media has to be kept. A recognizer
        # that is but looked at and thrown away may put off computing them.
        self._held = support
        self._codes = codes
        try:
            check_finite(head.tensors(), f"the head fitted by {method.name!r}", unbounded=("bias",))
        except WeightsError:
            # Where the network's own weights are to blame, they are named.
            check_weights(model.backbone)
            raise

    @property
    def _support(self) -> Tensor:
        """Embeddings of the support, (S, embed_dim)."""
        if not isinstance(self._held, Tensor):
            self._held = self._held()
        return self._held

    @property
    def backbone(self) -> Backbone:
        """The network that embeds clips."""
        return self._model.backbone

    @property
    def head(self) -> FittedHead:
        """The classifier on the embedding, with a leading dimension of 1."""
        return self._head

    @property
    def support_size(self) -> int:
        """Number of labelled clips that the head was fitted to."""
        return len(self._codes)

    def __repr__(self) -> str:
        known = shortened(one_line(", ".join(self.classes_)), 90)
        return f"Recognizer({self.backbone.name}, {self.method.name}; {known}; {self.support_size} support clips)"

    def _repr_html_(self) -> str:
        counts = torch.bincount(self._codes, minlength=len(self.classes_)).tolist()
        params = ", ".join(f"{key}={value}" for key, value in self.method.get_params().items())
        facts = [("method", self.method.name), ("parameters", params), ("backbone", repr(self.backbone))]
        rows = [[str(name), count] for name, count in zip(self.classes_, counts, strict=True)]
        size = f"{self.support_size:,} support clip{'s' * (self.support_size != 1)}"
        title = f"Recognizer of {len(self.classes_)} classes, {size}"
        return object_html(title, Facts(facts), Grid("", ["class", "support clips"], rows))

    @library_settings()
    def decision_function(self, clips: Inputs, *, progress: Progress | None = None) -> NDArray[np.float32]:
        """Logits of every class.

        Parameters
        ----------
        clips : ClipSet, Clip, list of Clip, array, or mapping of kind to arrays
            What to answer for, in any form that the class names.
        progress : callable, optional
            Called with (clips embedded, clips in all); a clip counts twice where its mirror image counts too.

        Returns
        -------
        float32 array of shape (N, C)
            Minus infinity for a class that nothing was known of.

        Raises
        ------
        SpecMismatchError
            The clips' media is not what the backbone expects.
        MediaError
            A clip's media cannot be read, or its scores are not finite.
        """
        inputs = as_inputs(clips, self.backbone)
        mirrored = (False, True) if self.method.averages_mirrored else (False,)
        logits = []
        for before, mirror in enumerate(mirrored):

            def told(done: int, total: int, before: int = before) -> None:
                if progress is not None:
                    progress(before * total + done, len(mirrored) * total)

            embeddings = embed(self.backbone, inputs, mirror=mirror, progress=told)
            logits.append(class_scores(self._head, embeddings, len(self.classes_))[0])
        found: NDArray[np.float32] = torch.stack(logits).mean(dim=0).numpy()
        # A class of which nothing is known has minus infinity.
        wrong = (np.isnan(found) | (found == np.inf)).any(axis=1) | ~np.isfinite(found).any(axis=1)
        if wrong.any():
            raise MediaError(
                f"clip number {wrong.argmax()} has scores that are not finite; its values are too large for the "
                "recognizer, so leave it out or prepare it anew."
            )
        return found

    @library_settings()
    def predict_proba(self, clips: Inputs, *, progress: Progress | None = None) -> NDArray[np.float32]:
        """Probabilities of every class; rows sum to 1.

        Parameters
        ----------
        clips : ClipSet, Clip, list of Clip, array, or mapping of kind to arrays
            What to answer for, in any form that the class names.
        progress : callable, optional
            Called with (clips embedded, clips in all), see `decision_function`.

        Returns
        -------
        float32 array of shape (N, C)
            Columns are in the order of `classes_`.
        """
        logits = torch.from_numpy(self.decision_function(clips, progress=progress))
        return np.asarray(torch.softmax(logits, dim=1).numpy())

    @library_settings()
    def predict(self, clips: Inputs) -> NDArray[np.str_]:
        """The most probable class of each clip.

        Parameters
        ----------
        clips : ClipSet, Clip, list of Clip, array, or mapping of kind to arrays
            What to answer for, in any form that the class names.

        Returns
        -------
        str array of shape (N,)
            Names of `classes_`.
        """
        return self.classes_[self.decision_function(clips).argmax(axis=1)]

    @library_settings()
    def score(self, clips: Inputs, labels: ArrayLike | None = None) -> float:
        """Share of clips whose predicted class is their label.

        Parameters
        ----------
        clips : ClipSet, Clip, list of Clip, array, or mapping of kind to arrays
            What to answer for, in any form that the class names.
        labels : sequence of str, optional
            Default the clip set's own labels.

        Returns
        -------
        float
            The share, in 0..1.

        Raises
        ------
        DataError
            There are no labels, or not one a clip.
        """
        if labels is None:
            if not hasattr(clips, "labels"):
                raise DataError("score needs labels: give them as the second argument, or give a labelled clip set.")
            labels = clips.labels
        wanted = np.array(known_texts(plain_labels(labels), "labels"), dtype=object)
        found = self.predict(clips)
        if len(wanted) != len(found) or not len(found):
            raise DataError(
                f"score was given {len(found)} clips and {len(wanted)} labels; give one label a clip, and at least one."
            )
        return float((found == wanted).mean())

    @library_settings()
    def explain(self, clips: Inputs, **options: Any) -> Explanation | list[Explanation]:
        """Which parts of clips the network uses, as pictures.

        Parameters
        ----------
        clips : ClipSet, Clip, list of Clip, array, or mapping of kind to arrays
            What to explain.
        **options : object
            Further arguments of `fsmer.explain`.

        Returns
        -------
        Explanation or list of Explanation
            As `fsmer.explain` gives them.

        Examples
        --------
        >>> import fsmer
        >>> clips = fsmer.synthetic_clips("lab", 30)
        >>> recognizer = fsmer.adapt("facs-flow", clips)
        >>> list(recognizer.explain(clips[0], steps=4).maps)
        ['gradient of the flow']
        """
        from fsmer.deploy.explain import explain

        return explain(self, clips, **options)

    def plot(self, clip: Clip | ArrayLike | Mapping[str, ArrayLike], **options: Any) -> Figure:
        """A matplotlib figure of one clip: its media, the probability of each class, and which parts count for it.

        The maps are those of `explain`, which says what may be given and raised.

        Parameters
        ----------
        clip : Clip, array, or mapping of kind to arrays
            What is drawn, in any form that the class names.
        **options : object
            Further arguments of `fsmer.explain`.

        Returns
        -------
        Figure
            Not shown and not saved.

        Raises
        ------
        DataError
            Several clips were given.

        Examples
        --------
        >>> import fsmer
        >>> clips = fsmer.synthetic_clips("lab", 30)
        >>> recognizer = fsmer.adapt("facs-flow", clips)
        >>> recognizer.plot(clips[0], steps=4).savefig("clip.png")
        """
        found = self.explain(clip, **options)
        if isinstance(found, list):
            raise DataError(f"{len(found)} clips were given, but one is drawn; choose one, such as clips[0].")
        return found.figure()

    @library_settings()
    def update(self, more_clips: Labelled) -> Recognizer:
        """A recognizer that has learnt from `more_clips` too; this one stays as it is.

        New labels become new classes, added behind the known ones. The head is fitted anew to the old and new clips
        together, so the result is that of adapting with all of them at once; a backbone that was trained stays as it
        is.

        Parameters
        ----------
        more_clips : ClipSet, list of Clip, or pair (arrays, labels)
            Labelled clips.

        Returns
        -------
        Recognizer
            A new one.

        Raises
        ------
        SupportError
            No clips, or clips without labels.

        Examples
        --------
        >>> import fsmer
        >>> recognizer = fsmer.adapt("facs-flow", fsmer.synthetic_clips("lab", 30))
        >>> recognizer.update(fsmer.synthetic_clips("clinic", 10)).support_size
        40
        """
        clips = as_labelled_clips(more_clips, self.backbone)
        known = tuple(str(name) for name in self.classes_)
        classes = known + tuple(name for name in clips.classes if name not in known)
        embeddings = torch.cat([self._support, embed(self.backbone, clips)])
        codes = torch.cat([self._codes, torch.from_numpy(np.asarray(clips.codes(classes), dtype=np.int64))])
        with outside_call(f"refit of the method {self.method.name!r}", MethodError):
            head = self.method.refit(embeddings, codes, len(classes), self._model.class_directions(classes))
        return Recognizer(self._model, self.method, classes, head, embeddings, codes)

    @library_settings()
    def save(self, folder: str | Path) -> Path:
        """Write the recognizer to `folder` as ``config.json`` and ``model.safetensors``.

        The folder holds the backbone, the head and the embeddings of the support clips (for `update`), no media and
        no clip ids; it appears whole or not at all.

        Parameters
        ----------
        folder : str or Path
            Folder to write.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        WeightsError
            The backbone is not registered, so that nothing could load it again.
        OutputError
            The folder cannot be written, or holds something else than a recognizer.

        Examples
        --------
        >>> import fsmer
        >>> folder = fsmer.adapt("facs-flow", fsmer.synthetic_clips("lab", 30)).save("my-recognizer")
        >>> fsmer.Recognizer.load(folder).support_size
        30
        """
        target = Path(folder)
        known = {CONFIG_FILE, WEIGHTS_FILE, ESTIMATOR_FILE}
        others = {path.name for path in target.iterdir()} - known if target.is_dir() else set()
        if others:
            raise OutputError(
                f"cannot save a recognizer to {target}: the folder holds other things "
                f"({', '.join(sorted(others)[:3])}); choose a new or empty folder, or one that holds a recognizer."
            )
        backbone = self.backbone
        check_saveable(backbone)
        tensors = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
        tensors |= {f"head.{key}": value for key, value in self._head.tensors().items()}
        tensors |= {"support.embeddings": self._support, "support.codes": self._codes}
        source = self._model.directions
        named = () if source is None else ("weight", "bias", "centre", "precision")
        tensors |= {f"source.{name}": value for name in named if (value := getattr(source, name)) is not None}
        config: dict[str, Any] = {
            "recognizer": {
                "version": RECOGNIZER_VERSION,
                "classes": self.classes_.tolist(),
                "method": self.method.to_dict() | plugin_entry(METHODS, type(self.method)),
                "head": self._head.kind,
                "support_size": self.support_size,
                "source": None if source is None else {"classes": list(self._model.classes), "scale": source.scale},
                "descriptions": dict(self._model.descriptions),
            }
        }
        with atomic_folder(folder) as temporary:
            self.method.save_files(temporary)
            write_tensors(temporary / WEIGHTS_FILE, tensors, unbounded=OPEN_TENSORS)
            config = backbone.describe_config(file_sha256(temporary / WEIGHTS_FILE)) | config
            write_json(temporary / CONFIG_FILE, config, sealed=True)
        return target

    @classmethod
    @library_settings()
    def load(cls, folder: str | Path) -> Recognizer:
        """Read what `save` wrote; neither the training data nor a network connection is needed.

        Parameters
        ----------
        folder : str or Path
            Folder to read.

        Returns
        -------
        Recognizer
            It gives the answers of the one that was saved.

        Raises
        ------
        WeightsError
            The folder holds no recognizer, is damaged, or was written by a newer fsmer.
        """
        return load_folder(folder, cls._from_folder)

    @classmethod
    def _from_folder(cls, held: WeightsFolder) -> Recognizer:
        described = _described(held)
        classes, kind, source = tuple(described["classes"]), described["head"], described["source"]
        try:
            told = described["method"]
            found = METHODS.find(told["name"].partition(":")[0], told.get("plugin"))
            method = found.from_folder(told, held.folder)
            backbone = held.make(saved_class(held), "backbone.")
            _check_shapes(held.shapes, kind if method.saves_head else None, len(classes), source, backbone.embed_dim)
        except FsmerError as error:
            raise WeightsError(
                f"{held.folder} is not a recognizer that this fsmer can read ({str(error).rstrip('.')}); "
                "save it again with the installed version."
            ) from error
        tensors = held.tensors(unbounded=OPEN_TENSORS)
        held.load(backbone, tensors, "backbone.")
        # Tensors in another precision, such as a file that was made smaller.
        own = {name: value for name, value in tensors.items() if not name.startswith("backbone.")}
        rest = {name: value.float() if value.is_floating_point() else value for name, value in own.items()}
        for name in sorted(rest.keys() - {"support.codes"}):
            held.check_real(name, rest[name])
        codes = rest["support.codes"]
        real = codes.is_floating_point() or codes.is_complex()
        if real or not bool(((codes >= 0) & (codes < len(classes))).all()):
            raise WeightsError(
                f"the tensor 'support.codes' of {held.folder} names classes outside 0 to {len(classes) - 1}; {REMEDY}."
            )
        model = SourceModel(backbone, descriptions=dict(described.get("descriptions", {})))
        if source is not None:
            known = under("source.", rest)
            everyone = torch.ones(len(source["classes"]), dtype=torch.bool)
            scatter = known["centre"], known.get("precision")
            directions = ClassDirections(known["weight"], known["bias"], everyone, source["scale"], *scatter)
            model = replace(model, classes=tuple(source["classes"]), directions=directions)
        support, codes = rest["support.embeddings"], codes.long()
        method = method.for_model(model)
        if method.saves_head:
            head = Head.from_tensors(kind, under("head.", rest))
        else:
            try:
                head = method.refit(support, codes, len(classes), model.class_directions(classes))
            except FsmerError as error:
                raise WeightsError(f"{held.folder} cannot be fitted to its support: {error}") from error
        return cls(model, method, classes, head, support, codes)


def load_trained(model: Recognizer | Backbone | str | os.PathLike[str]) -> Recognizer | Backbone:
    """A recognizer as it is or from its folder; the backbone that anything else stands for, see `as_backbone`."""
    if isinstance(model, Recognizer):
        return model
    named = isinstance(model, (str, os.PathLike)) and os.path.isfile(os.path.join(model, CONFIG_FILE))
    if named and "recognizer" in read_config(Path(model)):  # type: ignore[arg-type]
        return Recognizer.load(model)  # type: ignore[arg-type]
    return as_backbone(model)


def _described(held: WeightsFolder) -> _RecognizerConfig:
    """What the config of a folder says of its recognizer."""
    found = held.config.get("recognizer")
    if found is None:
        raise WeightsError(f"{held.folder} holds a backbone, not a recognizer; use fsmer.load_model and adapt it.")
    version = found.get("version")
    if isinstance(version, int) and version > RECOGNIZER_VERSION:
        raise WeightsError(
            f"{held.folder} was written by a newer fsmer (recognizer format {version}, this version reads up to "
            f"{RECOGNIZER_VERSION}); upgrade fsmer."
        )
    words = "a config of a recognizer"
    config = checked(found, _RecognizerConfig, held.folder / CONFIG_FILE, what=words, remedy=REMEDY, error=WeightsError)
    names = config["classes"]
    if len(set(names)) < len(names):
        raise WeightsError(f"{held.folder} names a class twice ({', '.join(names)}); {REMEDY}.")
    return config


def _check_shapes(
    shapes: Mapping[str, tuple[int, ...]], kind: str | None, way: int, source: _SourceConfig | None, width: int
) -> None:
    """Raise `WeightsError` unless the tensors of a recognizer fit its classes and its network."""
    if kind not in (*KINDS, None):
        raise WeightsError(f"its head is of the unknown kind {kind!r}")
    clips = shapes.get("support.codes", (0,))[0] if len(shapes.get("support.codes", ())) == 1 else 0
    wanted: dict[str, tuple[int, ...]] = {"support.codes": (clips,), "support.embeddings": (clips, width)}
    if kind is not None:
        wanted |= {"head.weight": (1, way, width), "head.bias": (1, way)}
    if "head.centre" in shapes:
        wanted["head.centre"] = (1, width)
    if source is not None:
        known = len(source["classes"])
        wanted |= {"source.weight": (known, width), "source.bias": (known,), "source.centre": (width,)}
        if "source.precision" in shapes:
            wanted["source.precision"] = (width, width)
    for name, shape in wanted.items():
        if shapes.get(name) != shape:
            found = "missing" if name not in shapes else f"of shape {shapes[name]}"
            raise WeightsError(f"its tensor {name!r} is {found}, but {way} classes and embed_dim {width} need {shape}")


def check_answers(
    answers: Any, classes: int, who: str, episodes: Sequence[str], owner: Ints, order: Ints | None = None
) -> NDArray[np.float32]:
    """Probabilities of shape (Q, classes), as the method `who` gave them.

    `owner`, (Q,), is the place of every query's episode among those named `episodes`; `order`, (Q,), is the number of
    every query in its episode, where they come in another order. Raises `FsmerError` where they have another shape, are
    not finite, lie outside 0..1 or do not sum to 1.
    """
    found = as_float32(plain_array(answers, f"the answer of {who} in {episodes[0]}"))
    clips = len(owner)
    if found.shape != (clips, classes):
        raise FsmerError(
            f"the answer of {who} in {episodes[0]} has shape {found.shape}, but {clips} clips and {classes} classes "
            f"need ({clips}, {classes}); mend its predict_proba."
        )
    wrong = unsound_answers(found)
    if wrong.any():
        row = int(wrong.argmax())
        shown = ", ".join(f"{value:g}" for value in found[row])
        query = np.count_nonzero(owner[:row] == owner[row]) if order is None else order[row]
        raise FsmerError(
            f"the answer of {who} in {episodes[owner[row]]} on query {query} is ({shown}), but probabilities are "
            "finite, not negative and sum to 1; mend the method, or use other weights."
        )
    return found
