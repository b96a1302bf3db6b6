"""`Recognizer`: a backbone with a fitted head, in the manners of scikit-learn, saved to one folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import save_file
from torch import Tensor

from fsmer.backbones import Backbone, ClassDirections, embed
from fsmer.backbones.base import CONFIG_FILE, WEIGHTS_FILE, file_sha256, read_config, read_weights
from fsmer.backbones.embedding import check_inputs
from fsmer.backbones.registry import backbone_class
from fsmer.data.table import known_texts
from fsmer.errors import DataError, MediaError, OutputError, SupportError, WeightsError
from fsmer.io import atomic_folder, write_json
from fsmer.transfer.heads import KINDS, Head

if TYPE_CHECKING:
    from fsmer.data import Clip, ClipSet
    from fsmer.evaluation.explain import Explanation
    from fsmer.transfer.base import Method, SourceModel

    Inputs = ClipSet | Clip | Sequence[Clip] | ArrayLike | Mapping[str, ArrayLike]
    Labelled = ClipSet | Sequence[Clip] | tuple[ArrayLike | Mapping[str, ArrayLike], ArrayLike]

__all__ = ["Recognizer", "as_labelled_clips"]

RECOGNIZER_VERSION = 1


class Recognizer:
    """Answers which class a clip shows; made by `fsmer.adapt` or a method's ``fit``.

    Inputs of all methods are a clip set, a clip, a list of clips, or an array of shape (N, channels, height, width)
    or, for one clip, (channels, height, width) as the backbone eats it (floats, or 8-bit values that are divided by
    255). A backbone that eats several media takes a dict with one array a kind.

    Attributes
    ----------
    backbone : Backbone
    method : Method
        What fitted the head.
    classes_ : str array of shape (C,)
        Class names in the order of the columns of `predict_proba`.
    support_size : int
        Labelled clips that were learnt from.
    """

    def __init__(
        self,
        model: SourceModel,
        method: Method,
        classes: Sequence[str],
        head: Head,
        support: Tensor | Callable[[], Tensor],
        codes: Tensor,
    ) -> None:
        self.method = method
        self.classes_: NDArray[np.str_] = np.array(list(classes), dtype=str)
        self._model = model
        self._head = head
        # What `update` learns from together with new clips; embeddings, so that no media has to be kept. A recognizer
        # that is but looked at and thrown away may put off computing them.
        self._held = support
        self._codes = codes

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
    def head(self) -> Head:
        """The classifier on the embedding, with a leading dimension of 1."""
        return self._head

    @property
    def support_size(self) -> int:
        """Number of labelled clips that the head was fitted to."""
        return len(self._codes)

    def __repr__(self) -> str:
        known = ", ".join(self.classes_)
        return f"Recognizer({self.backbone.name}, {self.method.name}; {known}; {self.support_size} support clips)"

    def decision_function(
        self, clips: Inputs, *, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Logits of shape (N, C); minus infinity for a class that nothing was known of.

        `progress` is called with (looks taken, looks in all), one look a clip, or two where mirrored clips count too.
        """
        inputs = _as_inputs(clips, self.backbone)
        looks = (False, True) if self.method.looks_mirrored else (False,)
        logits = []
        for before, mirror in enumerate(looks):

            def told(done: int, total: int, before: int = before) -> None:
                if progress is not None:
                    progress(before * total + done, len(looks) * total)

            logits.append(self._head.logits(embed(self.backbone, inputs, mirror=mirror, progress=told))[0])
        found: NDArray[np.float32] = torch.stack(logits).mean(dim=0).numpy()
        return found

    def predict_proba(
        self, clips: Inputs, *, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Probabilities of shape (N, C) in the order of `classes_`; rows sum to 1.

        `progress` is called as by `decision_function`.
        """
        logits = torch.from_numpy(self.decision_function(clips, progress=progress))
        probabilities: NDArray[np.float32] = torch.softmax(logits, dim=1).numpy()
        return probabilities

    def predict(self, clips: Inputs) -> NDArray[np.str_]:
        """The most probable class of each clip, text of shape (N,)."""
        return self.classes_[self.decision_function(clips).argmax(axis=1)]

    def score(self, clips: Inputs, labels: ArrayLike | None = None) -> float:
        """Share of clips whose predicted class is their label.

        Parameters
        ----------
        clips
            As for `predict`.
        labels : sequence of str, optional
            Default the clip set's own labels.

        Raises
        ------
        DataError
            There are no labels, or not one a clip.
        """
        if labels is None:
            if not hasattr(clips, "labels"):
                raise DataError("score needs labels: give them as the second argument, or give a labelled clip set.")
            labels = clips.labels
        wanted = np.array(known_texts(labels, "labels"), dtype=object)
        found = self.predict(clips)
        if len(wanted) != len(found) or not len(found):
            raise DataError(
                f"score was given {len(found)} clips and {len(wanted)} labels; give one label a clip, and at least one."
            )
        return float((found == wanted).mean())

    def explain(self, clips: Inputs, **options: Any) -> Explanation | list[Explanation]:
        """Where the network looks in `clips`, as pictures; see `fsmer.evaluation.explain.explain`."""
        from fsmer.evaluation.explain import explain

        return explain(self, clips, **options)

    def update(self, more_clips: Labelled) -> Recognizer:
        """A recognizer that has learnt from `more_clips` too; this one stays as it is.

        New labels become new classes, added behind the known ones. The head is fitted anew to the old and new clips
        together, so the result is that of adapting with all of them at once; a backbone that was trained stays as it
        is.

        Parameters
        ----------
        more_clips
            A labelled clip set, a list of labelled clips, or a pair (arrays, labels).

        Raises
        ------
        SupportError
            No clips, or clips without labels.
        """
        clips = as_labelled_clips(more_clips, self.backbone)
        known = tuple(str(name) for name in self.classes_)
        classes = known + tuple(name for name in clips.classes if name not in known)
        embeddings = torch.cat([self._support, embed(self.backbone, clips)])
        codes = torch.cat([self._codes, torch.from_numpy(np.asarray(clips.codes(classes), dtype=np.int64))])
        head = self.method.refit(embeddings, codes, len(classes), self._model.class_directions(classes))
        return Recognizer(self._model, self.method, classes, head, embeddings, codes)

    def save(self, folder: str | Path) -> Path:
        """Write the recognizer to `folder` as ``config.json`` and ``model.safetensors``.

        The folder holds the backbone, the head and the embeddings of the support clips (for `update`), no media and
        no clip ids; it appears whole or not at all.

        Raises
        ------
        WeightsError
            The backbone is not registered, so that nothing could load it again.
        OutputError
            The folder cannot be written, or holds something else than a recognizer.
        """
        target = Path(folder)
        others = {path.name for path in target.iterdir()} - {CONFIG_FILE, WEIGHTS_FILE} if target.is_dir() else set()
        if others:
            raise OutputError(
                f"cannot save a recognizer to {target}: the folder holds other things "
                f"({', '.join(sorted(others)[:3])}); choose a new or empty folder, or one that holds a recognizer."
            )
        backbone = self.backbone
        if not backbone.name or backbone_class(backbone.name) is not type(backbone):
            raise WeightsError(
                f"the backbone {type(backbone).__name__} is not registered, so a saved recognizer could not be loaded "
                "again; decorate its class with fsmer.backbones.register_backbone."
            )
        tensors = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
        tensors |= {f"head.{key}": value for key, value in self._head.tensors().items()}
        tensors |= {"support.embeddings": self._support, "support.codes": self._codes}
        source = self._model.directions
        if source is not None:
            tensors |= {"source.weight": source.weight, "source.bias": source.bias, "source.centre": source.centre}
            if source.precision is not None:
                tensors["source.precision"] = source.precision
        config: dict[str, Any] = {
            "recognizer": {
                "version": RECOGNIZER_VERSION,
                "classes": self.classes_.tolist(),
                "method": self.method.to_dict(),
                "head": self._head.kind,
                "support_size": self.support_size,
                "source": None if source is None else {"classes": list(self._model.classes), "scale": source.scale},
                "descriptions": dict(self._model.descriptions),
            },
        }
        with atomic_folder(folder) as temporary:
            # Tensors that share memory (views of one class table, tied weights) cannot be stored as they are.
            stored = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
            save_file(stored, str(temporary / WEIGHTS_FILE), metadata={"format": "pt"})
            config = backbone.describe_config(file_sha256(temporary / WEIGHTS_FILE)) | config
            write_json(temporary / CONFIG_FILE, config)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Recognizer:
        """Read what `save` wrote; neither the training data nor a network connection is needed.

        Raises
        ------
        WeightsError
            The folder holds no recognizer, is damaged, or was written by a newer fsmer.
        """
        from fsmer.transfer.base import SourceModel
        from fsmer.transfer.registry import load_method

        config = read_config(folder)
        described = config.get("recognizer")
        if not isinstance(described, dict):
            raise WeightsError(
                f"{folder} holds a backbone, not a recognizer; load it with fsmer.load_model and adapt it."
            )
        try:
            if int(described["version"]) > RECOGNIZER_VERSION:
                raise WeightsError(
                    f"{folder} was written by a newer fsmer (recognizer format {described['version']}, this version "
                    f"reads up to {RECOGNIZER_VERSION}); upgrade fsmer."
                )
            classes, kind, source = tuple(described["classes"]), described["head"], described["source"]
            if kind not in KINDS:
                raise ValueError(f"its head is of the unknown kind {kind!r}")
            tensors = read_weights(folder, config["weights_sha256"])
            method = load_method(described["method"]["name"], **described["method"]["params"])
            backbone = backbone_class(config["backbone"])(**config["arguments"])
            backbone.load_state_dict(_under("backbone.", tensors))
            backbone.classes = tuple(config.get("classes", ()))
            head = Head.from_tensors(kind, _under("head.", tensors))
            model = SourceModel(backbone.eval(), descriptions=dict(described.get("descriptions", {})))
            if source is not None:
                known = _under("source.", tensors)
                everyone = torch.ones(len(source["classes"]), dtype=torch.bool)
                directions = ClassDirections(
                    known["weight"],
                    known["bias"],
                    everyone,
                    float(source["scale"]),
                    known["centre"],
                    known.get("precision"),
                )
                model = replace(model, classes=tuple(source["classes"]), directions=directions)
            return cls(model, method, classes, head, tensors["support.embeddings"], tensors["support.codes"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise WeightsError(
                f"{folder} is not a recognizer that this fsmer can read ({str(error).splitlines()[0]}); "
                "save it again with the installed version."
            ) from error


def as_labelled_clips(values: Any, backbone: Backbone) -> ClipSet:
    """Labelled clips in any form that `fsmer.adapt` takes, as a clip set.

    Raises
    ------
    SupportError
        Nothing is there, a clip has no label, or it is none of these forms.
    """
    from fsmer.data import Clip, ClipSet

    if isinstance(values, ClipSet):
        clips = values
    elif isinstance(values, tuple) and len(values) == 2 and not isinstance(values[0], Clip):
        media, labels = values[0], np.asarray(values[1], dtype=object).ravel()
        arrays = {kind: np.asarray(one) for kind, one in media.items()} if isinstance(media, Mapping) else None
        first = np.asarray(media) if arrays is None else next(iter(arrays.values()), np.zeros(0))
        if first.ndim == 0 or len(first) != len(labels):
            raise SupportError(
                f"{len(first) if first.ndim else 'no'} arrays came with {len(labels)} labels; give one label each."
            )
        if len(first) == 0:
            raise _empty()
        specs = backbone.input_specs
        if arrays is not None:
            clips = ClipSet.from_arrays(arrays, labels, spec=specs)
        else:
            clips = ClipSet.from_arrays(first, labels, spec=specs[0] if first.shape[1:] == specs[0].shape else None)
    elif isinstance(values, (list, tuple)) and all(isinstance(value, Clip) for value in values):
        if not values:
            raise _empty()
        clips = ClipSet.from_clips(values)
    else:
        raise SupportError(
            f"labelled clips were given as {type(values).__name__}; "
            "give a ClipSet, a list of Clips, or a pair (arrays, labels)."
        )
    if not len(clips):
        raise _empty()
    for name, label in zip(clips.ids, clips.labels, strict=True):
        # A missing label may come as None, as empty text, or as the NaN of a table.
        if label is None or label == "" or label != label:
            raise SupportError(
                f"clip {name!r} has no label, but learning needs one for every clip; label it or leave it out."
            )
    return clips


def _as_inputs(values: Any, backbone: Backbone) -> Any:
    from fsmer.data import Clip, ClipSet
    from fsmer.data.media import ArrayStore, check_arrays

    if isinstance(values, ClipSet):
        return values
    specs = backbone.input_specs
    if isinstance(values, Clip) and all(spec.kind in values.media for spec in specs):
        # One clip is what a live camera asks about: read as it is, for a table of one row costs more than the network.
        arrays = {}
        for spec in specs:
            held = values.media[spec.kind].spec
            held.check_feeds(spec, who=repr(backbone.name))
            arrays[spec.kind] = held.pick_channels(values.read(spec.kind), spec)
        return arrays
    if isinstance(values, Clip):
        return ClipSet.from_clips([values])
    if isinstance(values, (list, tuple)) and values and all(isinstance(value, Clip) for value in values):
        return ClipSet.from_clips(values)
    raw = values if isinstance(values, Mapping) else {specs[0].kind: values}
    given = {kind: np.asarray(one) for kind, one in raw.items()}
    # 8-bit values become 0..1 before anything is compared.
    for spec in specs:
        array = given.get(spec.kind)
        if array is not None and array.dtype == np.uint8 and array.shape in (spec.shape, (len(array), *spec.shape)):
            array = array[None] if array.shape == spec.shape else array
            given[spec.kind] = ArrayStore(array, spec).read(np.arange(len(array)))
    arrays = check_inputs(backbone, given)
    for spec in specs:
        problem = check_arrays(arrays[spec.kind], spec)
        if problem is not None:
            raise MediaError(f"clip number {problem[0]} of the array cannot be used: {problem[1]}")
    return arrays


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _empty() -> SupportError:
    return SupportError("the support set is empty; give at least one labelled clip of every class.")
