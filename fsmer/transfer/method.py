"""The contract that every method keeps: a backbone and a support set in, a recognizer out."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from fsmer.ambient import guarded
from fsmer.backbones import Backbone, ClassDirections, embed
from fsmer.data import ClipSet
from fsmer.errors import SupportError, unknown_name
from fsmer.outside import outside_call, outside_value
from fsmer.plugins import METHODS, declared, outside_origin
from fsmer.transfer.heads import FittedHead, checked_head, class_scores
from fsmer.transfer.recognizer import Recognizer
from fsmer.transfer.registry import load_method
from fsmer.transfer.source_model import (
    Classes,
    MethodError,
    Progress,
    SourceModel,
    require,
    support_codes,
    typed_params,
)

__all__ = ["Method", "learnt", "many_learnt", "method_call", "solves_together", "source_learnt"]

# A chunk of episodes is sized so that its scores take little memory, however many clips are queried.
_SCORE_BYTES = 64 << 20
_MAX_CHUNK = 256
# Scoring every clip by one matrix product beats gathering each episode's queries up to about this many clips a query.
_SHARED_QUERIES = 16
# No number of steps, learning rate or factor is sensible above.
_MOST = 100_000
# Which member of many, and what it has learnt.
Learnt = tuple[int, Recognizer]
# The methods of a `Method` that compute.
COMPUTING = {"fit", "fit_head", "fit_many", "fit_checkpoints", "refit", "solve", "train_source"}


@dataclass(frozen=True)
class Method(ABC):
    """Hyper-parameters of one way to turn a backbone and a support set into a recognizer.

    Subclasses are frozen dataclasses that set `name` and write `fit_head`, which fits the classifiers of many
    episodes at once. One episode is the case E = 1, so `fit` (what is deployed) and `solve` (what is measured) run
    the same code.

    Attributes
    ----------
    batched : bool
        What a class declares of itself, in its own body: ``batched: ClassVar[bool] = True`` says that its episodes may
        be solved together, since it keeps nothing of one for another. Without it, every episode is handed over alone
        to a copy of the method. Classes that extend one which declares it declare it anew or do without.
    transductive : bool
        Of a class: whether answers to queries depend on each other. `solve` and `evaluate` then hand over exactly the
        queries of an episode, and reports say so.
    saves_head : bool
        Whether a saved recognizer holds what `fit_head` gives, as the tensors of a `Head`. Otherwise it is fitted anew,
        to the embeddings of the saved support, when the recognizer is loaded.
    """

    name: ClassVar[str] = ""
    batched: ClassVar[bool] = False
    transductive: ClassVar[bool] = False
    saves_head: ClassVar[bool] = True
    # Bytes that fitting a chunk of episodes may touch; methods that go over them again and again want them in cache.
    _fit_bytes: ClassVar[int] = 16 << 20

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "ClassVar" not in str(inspect.get_annotations(cls).get("batched", "ClassVar")):
            raise MethodError(
                f"{cls.__name__} makes batched a parameter, but it is said of the class; write "
                "batched: ClassVar[bool] = True, or batched = True."
            )
        # Code from outside asks fsmer for what it needs, and is left as it is.
        if declared(cls, "batched"):
            _guard(cls)

    @property
    def origin(self) -> str:
        """Where it is from: the plugin that registered it, or its module; nothing for fsmer's own."""
        return outside_origin(METHODS, type(self))

    @property
    def keeps_backbone(self) -> bool:
        """Whether the backbone stays as it is, so that embeddings can be computed once and shared by all episodes."""
        return True

    def for_model(self, model: SourceModel) -> Self:
        """This method with what episodic training has taught the backbone of `model`; itself, for most methods."""
        return self

    @property
    def averages_mirrored(self) -> bool:
        """Whether its recognizers average the logits of a clip and of its mirror image."""
        return False

    @abstractmethod
    def fit_head(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None = None) -> FittedHead:
        """Fit one classifier an episode.

        Parameters
        ----------
        embeddings : Tensor of shape (E, S, D)
            Support embeddings; S may be 0 where a method can do without labels.
        codes : int64 Tensor of shape (E, S)
            Class of each support clip, 0 to way - 1; -1 marks padding, so that episodes of unequal size can share a
            batch.
        way : int
            Number of classes C; a class may be absent from the support.
        prior : ClassDirections, optional
            What the backbone or a source knows of the classes: weight (C, D) shared by all episodes, or (E, C, D).

        Returns
        -------
        FittedHead
            With leading dimension E; a `Head`, or classifiers of another form (see `saves_head`).

        Raises
        ------
        SupportError
            There is nothing to learn from.
        """

    def fit(
        self,
        backbone: Backbone | SourceModel,
        support: ClipSet,
        *,
        source: ClipSet | None = None,
        classes: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Recognizer:
        """Learn from `support` and return a recognizer.

        Parameters
        ----------
        backbone : Backbone or SourceModel
            Not changed; a method that trains it works on a copy.
        support : ClipSet
            Labelled clips.
        source : ClipSet, optional
            Labelled clips of another domain, learnt first (see `train_source`).
        classes : sequence of str, optional
            The classes in the order of the recognizer's columns; default the sorted labels of `support`.
        progress : callable, optional
            Called with (steps done, steps in all) while a backbone is trained.
        """
        model = SourceModel.wrap(backbone)
        if source is not None:
            model = source_learnt(self, model, source, progress)
        return self._learn(model, support, classes, progress)

    def _learn(self, model: SourceModel, support: ClipSet, classes: Classes, progress: Progress | None) -> Recognizer:
        names, codes = support_codes(support, classes)
        embeddings = embed(model.backbone, support)
        method = self.for_model(model)
        head = method.fit_head(embeddings[None], codes[None], len(names), model.class_directions(names))
        return Recognizer(model, method, names, head, embeddings, codes)

    def fit_many(
        self,
        model: Backbone | SourceModel | Sequence[SourceModel],
        supports: Sequence[ClipSet],
        *,
        seeds: Sequence[int | None],
        classes: Sequence[tuple[str, ...]],
        memory: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, Recognizer]]:
        """Learn from many supports, each for itself, and hand over every recognizer as soon as it is finished.

        One by one with `fit`, unless the method trains small backbones side by side.

        Parameters
        ----------
        model : Backbone, SourceModel, or sequence of SourceModel
            Where every member starts, or where each of them does; not changed.
        supports : sequence of ClipSet
            One a member; asked for when its turn comes.
        seeds : sequence of int or None
            In place of the method's own seed, one a member; ``None`` keeps it, as does a method without one.
        classes : sequence of tuple of str
            The classes of each member, in the order of its recognizer's columns.
        memory : int, optional
            Bytes that members trained side by side may take together.
        progress : callable, optional
            Called with (members finished, members in all).

        Yields
        ------
        int, Recognizer
            Which member, and what it has learnt, in any order.
        """
        if isinstance(model, str) or not isinstance(model, Sequence):
            model = [SourceModel.wrap(model)] * len(classes)
        if len(model) != len(classes):
            raise ValueError(f"{len(model)} models came for {len(classes)} members; give one for all, or one for each.")
        members = [(start, self.seeded(seed), names) for start, seed, names in zip(model, seeds, classes, strict=True)]
        finished = self._learn_many(members, supports, memory)
        for done, (member, recognizer) in enumerate(finished, start=1):
            yield member, recognizer
            if progress is not None:
                progress(done, len(classes))

    def _learn_many(
        self, each: Sequence[tuple[SourceModel, Self, tuple[str, ...]]], supports: Sequence[ClipSet], memory: int | None
    ) -> Iterator[tuple[int, Recognizer]]:
        # one member at a time takes what one takes
        for number, (start, method, names) in enumerate(each):
            yield number, learnt(method, start, supports[number], classes=names)

    def train_source(
        self, backbone: Backbone | SourceModel, source: ClipSet, *, progress: Progress | None = None
    ) -> SourceModel:
        """Learn from a labelled source domain before any target clip is seen.

        A method that neither trains the backbone nor starts from known classes has nothing to take over.
        """
        return self._learn_source(SourceModel.wrap(backbone), source, progress)

    def _learn_source(self, model: SourceModel, source: ClipSet, progress: Progress | None) -> SourceModel:
        return model

    def solve(
        self,
        embeddings: Tensor,
        support: Any,
        codes: Any,
        query: Any = None,
        *,
        way: int,
        prior: ClassDirections | None = None,
        classes: Any = None,
        chunk: int | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """Fit and score many episodes on embeddings that were computed once, chunk by chunk.

        Memory is bounded by the chunk, whatever the number of episodes and clips.

        Parameters
        ----------
        embeddings : Tensor of shape (N, D)
            One row a clip.
        support, codes : int arrays of shape (E, S)
            Row of each support clip, and its class 0 to way - 1 in that episode (-1: padding).
        query : int array of shape (E, Q), optional
            Rows to score (-1: padding, whose logits mean nothing); default every one of the N clips in each episode.
            The caller leaves the support out then; transductive methods do so themselves, with NaN in its place.
        way : int
            Classes an episode.
        prior : ClassDirections, optional
            What is known of the classes, with one row a class.
        classes : int array of shape (E, way), optional
            Which rows of `prior` are an episode's classes, in the order of `codes`; default all of them, in their
            order.
        chunk : int, optional
            Episodes at a time; default such that a chunk stays in cache and its scores below 64 MiB.

        Yields
        ------
        slice, Tensor of shape (e, Q, way)
            Which episodes, and their logits; Q is N without `query`.
        """
        support_rows, query_rows = _indices(support), None if query is None else _indices(query)
        size = chunk or self._chunk_size(embeddings, support_rows.shape[1], query_rows, way)
        if query_rows is not None and not self.transductive:
            query_rows = query_rows.clamp_min(0)
        score = self._scorer(embeddings, support_rows, _indices(codes), query_rows, way=way)
        for start in range(0, len(support_rows), size):
            part = slice(start, min(start + size, len(support_rows)))
            known = prior
            if prior is not None and classes is not None:
                rows = _indices(classes[part])
                known = replace(prior, weight=prior.weight[rows], bias=prior.bias[rows], known=prior.known[rows])
            yield part, score(part, known)

    def refit(self, embeddings: Tensor, codes: Tensor, way: int, prior: ClassDirections | None) -> FittedHead:
        """Fit the head of one episode, embeddings (S, D) and codes (S,), anew without touching the backbone."""
        return self.fit_head(embeddings[None], codes[None], way, prior)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name, in the manner of scikit-learn."""
        return asdict(self)

    def set_params(self, **params: Any) -> Self:
        """A method with these parameters changed; this one stays as it is, since methods are immutable."""
        with _making(type(self)):
            return replace(self, **self._typed(params))

    @classmethod
    def from_params(cls, params: Mapping[str, Any], member: str = "") -> Self:
        """The method with `params` in place of its defaults; what `fsmer.load_method` gives.

        Parameters
        ----------
        params : mapping of str to object
            Text is read as the parameter's type.
        member : str
            What stands behind a colon in its name, for a class that stands for many methods.

        Raises
        ------
        UnknownNameError
            No such parameter or member.
        MethodError
            A value that the method cannot work with.
        """
        if member:
            raise unknown_name("method", f"{cls.name}:{member}", METHODS)
        with _making(cls):
            return cls(**cls._typed(params))

    @classmethod
    def from_folder(cls, told: Mapping[str, Any], folder: Path) -> Method:
        """The method of a saved recognizer: `told` has ``name`` and ``params``, `folder` what `save_files` wrote."""
        return load_method(told["name"], **told["params"])

    def save_files(self, folder: Path) -> None:
        """Write what a saved recognizer needs beside its parameters to `folder`; nothing, for most methods."""
        del folder

    def seeded(self, seed: int | None) -> Self:
        """This method with another seed; itself for ``None``, or where it has none."""
        has_seed = any(one.name == "seed" for one in fields(self))
        return replace(self, seed=seed) if has_seed and seed is not None else self  # type: ignore[call-arg]

    def to_dict(self) -> dict[str, Any]:
        """Name and parameters, for a report or a recognizer's config."""
        return {"name": self.name, "params": self.get_params()}

    @classmethod
    def _typed(cls, params: Mapping[str, Any], name: str = "") -> dict[str, Any]:
        """Values of known parameters as the types that their annotations name; `name` is the method's in messages."""
        # A class from outside may name its types as such and not as text.
        kinds = {one.name: getattr(one.type, "__name__", str(one.type)) for one in fields(cls) if one.compare}
        return typed_params(params, kinds, f"the method {name or cls.name!r}")

    def _scorer(
        self, embeddings: Tensor, support: Tensor, codes: Tensor, query: Tensor | None, *, way: int
    ) -> Callable[[slice, ClassDirections | None], Tensor]:
        shared = _shares_queries(embeddings, query)

        def score(part: slice, prior: ClassDirections | None) -> Tensor:
            fitted = self.fit_head(embeddings[support[part]], codes[part], way, prior)
            head = checked_head(fitted, len(codes[part]), way, f"the method {self.name!r} ({type(self).__name__})")
            if query is None:
                return class_scores(head, embeddings, way)
            rows = query[part]
            if not (shared and head.shares_queries):
                return class_scores(head, embeddings[rows], way)
            return class_scores(head, embeddings, way).gather(1, rows[..., None].expand(-1, -1, way))

        return score

    def _chunk_size(self, embeddings: Tensor, shots: int, query: Tensor | None, way: int) -> int:
        clips, width = embeddings.shape
        fitted = 4 * width * (shots + 4 * way)
        # Without shared queries each episode's own are gathered; two tensors of that size live at once.
        shared = query is None or _shares_queries(embeddings, query)
        scored = 4 * (clips * way if query is None or shared else query.shape[1] * (width + way))
        return max(1, min(_MAX_CHUNK, self._fit_bytes // max(fitted, 1), _SCORE_BYTES // max(2 * scored, 1)))

    def _require_choice(self, parameter: str, *choices: str) -> None:
        given = f"{parameter}={getattr(self, parameter)!r} is no choice of the method {self.name!r}"
        require(getattr(self, parameter) in choices, f"{given}; use one of {', '.join(map(repr, choices))}.")

    def _require_in_range(self, *parameters: str) -> None:
        # Checked here, so that a saved recognizer cannot ask for steps without end either.
        for name in parameters:
            value = getattr(self, name)
            require(0 <= value <= _MOST, f"{name}={value} is out of range; give a number from 0 to {_MOST}.")

    def _need_support(self, codes: Tensor) -> None:
        if codes.shape[1] == 0:
            raise SupportError(
                f"the method {self.name!r} learns from labelled clips, but the support set is empty; "
                "give labelled clips (at least one shot), or use 'zero_shot' with a backbone that knows the classes."
            )


def _making(cls: type[Method]) -> AbstractContextManager[None]:
    who = f"making the method {cls.name!r} ({cls.__name__}) by its parameters"
    return outside_call(who, MethodError, "make it a frozen dataclass whose parameters have defaults")


def method_call(method: Method) -> AbstractContextManager[None]:
    """What methods are called in: for those from outside, `outside_call`."""
    who = f"the method {method.name!r} ({type(method).__name__})"
    return outside_call(who, MethodError) if method.origin else nullcontext()


def learnt(method: Method, model: SourceModel, support: ClipSet, **options: Any) -> Recognizer:
    """What ``method.fit`` gives; `MethodError` where it fails or gives no recognizer."""
    with method_call(method):
        found: Any = method.fit(model, support, **options)
    if not isinstance(found, Recognizer):
        raise MethodError(
            f"fit of the method {method.name!r} ({type(method).__name__}) gives {outside_value(found)}, but a "
            "Recognizer is expected; mend its fit."
        )
    return found


def source_learnt(method: Method, model: SourceModel, source: ClipSet, progress: Progress | None) -> SourceModel:
    """What ``method.train_source`` gives; `MethodError` where it fails or gives no `SourceModel`."""
    with method_call(method):
        found: Any = method.train_source(model, source, progress=progress)
    if not isinstance(found, SourceModel):
        raise MethodError(
            f"train_source of the method {method.name!r} ({type(method).__name__}) gives {outside_value(found)}, but a "
            "SourceModel is expected; mend its train_source."
        )
    return found


def many_learnt(method: Method, models: Any, supports: Sequence[ClipSet], **options: Any) -> Iterator[Learnt]:
    """What ``method.fit_many`` gives; `MethodError` where it fails, or is not one recognizer a support."""
    who, left = f"fit_many of the method {method.name!r} ({type(method).__name__})", set(range(len(supports)))
    with method_call(method):
        found: Any
        for found in method.fit_many(models, supports, **options):
            pair = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], Recognizer)
            if not pair or found[0] not in left:
                raise MethodError(
                    f"{who} gives {outside_value(found)}, but the number of a member and its Recognizer are expected, "
                    "each once; mend its fit_many."
                )
            left.remove(found[0])
            yield found
    if left:
        raise MethodError(f"{who} gives no recognizer for {len(left)} of {len(supports)} supports; mend its fit_many.")


def solves_together(method: Method) -> bool:
    """Whether a method's own class declares that its episodes may be solved together (`Method.batched`)."""
    return declared(type(method), "batched")


def _guard(cls: type) -> None:
    """Let what a class computes not depend on what is set around a call."""
    for name in COMPUTING & vars(cls).keys():
        setattr(cls, name, guarded(vars(cls)[name]))


_guard(Method)


def _indices(values: Any) -> Tensor:
    # Copied, since torch warns of arrays that it may not write to.
    return values.long() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, dtype=np.int64))


def _shares_queries(embeddings: Tensor, query: Tensor | None) -> bool:
    return query is None or len(embeddings) <= _SHARED_QUERIES * query.shape[1]
