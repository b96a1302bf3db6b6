"""Checks of what a backbone, method, protocol or data set adapter promises, of fsmer and of others; one
file, since a check is known by the name of its function here, and whoever adds a promise adds one function.

A check does nothing where the promise is kept, and raises an ``AssertionError`` that names the thing and says what
differs. `check_backbone`, `check_method`, `check_protocol` and `check_adapter` run every check of one thing;
`parametrize_with_checks` makes a pytest test of each, as `sklearn.utils.estimator_checks` does for estimators.
"""

from __future__ import annotations

import copy
import inspect
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsmer.backbones import Backbone, ClassDirections, create_model, embed, load_model, model_hash, read_inputs
from fsmer.backbones.base import check_made
from fsmer.backbones.targets import make_targets
from fsmer.data.clips import ClipSet
from fsmer.data.schemes import load_scheme
from fsmer.data.spec import InputSpec
from fsmer.datasets import Adapter, frame_files, load_adapter
from fsmer.episodic import KShot, Protocol, load_protocol
from fsmer.errors import DataError, FsmerError, MissingDatasetError, SupportError, reason_of, unknown_name
from fsmer.memory import out_of_memory
from fsmer.outside import outside_value
from fsmer.synthetic import synthetic_clips
from fsmer.transfer import Method, adapt, load_method, train
from fsmer.transfer.recognizer import Recognizer

if TYPE_CHECKING:
    import pytest

__all__ = [
    "Check", "check_adapter", "check_backbone", "check_method", "check_protocol", "checks", "parametrize_with_checks",
]  # fmt: skip

Kind = Literal["backbone", "method", "protocol", "adapter"]


@dataclass(frozen=True)
class Check:
    """One promise of one thing; calling it raises an ``AssertionError`` where the promise is broken.

    Its `kind` and `subject` are those of `checks`; name and docstring of its `function`, which takes the thing and the
    options that concern it, say what is promised.

    Parameters
    ----------
    kind : {"backbone", "method", "protocol", "adapter"}
        What `subject` is.
    subject : object
        What is checked, as for `checks`.
    function : callable
        Takes the thing and the options that concern it; its name and docstring say what is promised.

    Examples
    --------
    >>> from fsmer.testing import checks
    >>> check = checks("method", "protonet")[0]
    >>> check.kind, check.subject
    ('method', 'protonet')
    >>> check()
    """

    kind: Kind
    subject: Any
    function: Callable[..., None]

    def __call__(self, **options: Any) -> None:
        made = self._made()
        wanted = inspect.signature(self.function).parameters
        # Checks train backbones; all else is immutable.
        given = copy.deepcopy(made) if self.kind == "backbone" else made
        try:
            self.function(given, **{key: value for key, value in options.items() if key in wanted})
        except AssertionError as error:
            raise AssertionError(f"{self._who(made)}: {error}") from error
        except MissingDatasetError:  # of the folder that was given
            raise
        except FsmerError as error:
            raise AssertionError(f"{self._who(made)}: {error}") from error
        except Exception as error:
            if out_of_memory(error):
                raise
            promise = str(self.function.__doc__).strip().partition("\n")[0]
            raise AssertionError(
                f"{self._who(made)}: it fails with {type(error).__name__} ({reason_of(error)}) where this is checked: "
                f"{promise}"
            ) from error

    def _who(self, made: Any) -> str:
        return f"{self.kind} {getattr(made, 'name', '') or type(made).__name__!r}"

    def _made(self) -> Any:
        (load, cls), given = _LOADED[self.kind], self.subject
        made, reason = load(given) if isinstance(given, str) else given, ""
        if callable(made) and not isinstance(made, cls):
            try:
                made = made()
            except Exception as error:  # of code from outside
                reason = f" ({reason_of(error)})"
        if self.kind == "method" and hasattr(made, "fit") and not isinstance(made, type):
            made = load(made)  # a classifier of scikit-learn
        if not isinstance(made, cls):
            raise AssertionError(
                f"{given!r:.100} is no {self.kind} and makes none{reason}; give a registered name, an fsmer "
                f"{cls.__name__}, or a class or function that makes one without arguments."
            )
        if isinstance(made, Backbone):
            check_made(made)
        return made

    def __str__(self) -> str:
        # Of a partial call, its arguments are what tells things apart.
        made = self.subject.args[0] if isinstance(self.subject, partial) else self.subject
        name = made if isinstance(made, str) else getattr(made, "name", "") or type(made).__name__
        return f"{name}-{self.function.__name__.removeprefix(f'{self.kind}_')}"


def checks(kind: Kind, subject: Any) -> list[Check]:
    """Every check of one thing.

    Parameters
    ----------
    kind : {"backbone", "method", "protocol", "adapter"}
        What `subject` is.
    subject : object
        A registered name (a backbone gets fresh weights), a class or function that makes the thing without arguments,
        or the thing itself, of which every check gets a copy. Checks train a backbone: one made small is quicker. A
        method may be a classifier of scikit-learn.

    Returns
    -------
    list of Check
        To be called one by one.

    Raises
    ------
    UnknownNameError
        No such kind.

    Examples
    --------
    >>> from fsmer.testing import checks
    >>> [check.kind for check in checks("method", "protonet")][:2]
    ['method', 'method']
    """
    if not isinstance(kind, str) or kind not in _LOADED:
        raise unknown_name("kind of checks", kind, _LOADED)
    return [Check(kind, subject, value) for name, value in globals().items() if name.startswith(f"{kind}_")]


def parametrize_with_checks(kind: Kind, subjects: Sequence[Any]) -> pytest.MarkDecorator:
    """Decorator of a test with the argument ``check``, which pytest runs for every one of the `checks` of every thing.

    Parameters
    ----------
    kind : {"backbone", "method", "protocol", "adapter"}
        What the subjects are.
    subjects : sequence of object
        What is checked, each as for `checks`.

    Returns
    -------
    MarkDecorator
        Of pytest.

    Examples
    --------
    >>> from fsmer.testing import parametrize_with_checks
    >>> @parametrize_with_checks("method", ["protonet", "cosine"])
    ... def test_a_method_keeps_the_contract(check):
    ...     check()
    """
    import pytest

    if isinstance(subjects, str) or not isinstance(subjects, Sequence):
        raise DataError(f"subjects is {subjects!r:.100}; give a list of what is checked.")
    return pytest.mark.parametrize("check", [check for one in subjects for check in checks(kind, one)], ids=str)


def check_backbone(subject: Any, *, untrained: Sequence[str] = ()) -> None:
    """Check that a backbone keeps the contract of `fsmer.Backbone`.

    Parameters
    ----------
    subject : object
        What is checked, as for `checks`.
    untrained : sequence of str, default ()
        Ends of names of parameters that training with labels leaves as they are.

    Examples
    --------
    >>> from functools import partial
    >>> import fsmer
    >>> from fsmer.testing import check_backbone
    >>> check_backbone(partial(fsmer.create_model, "ststnet"))
    """
    listed = isinstance(untrained, Sequence) and not isinstance(untrained, str)
    if not listed or not all(isinstance(one, str) for one in untrained):
        raise DataError(f"untrained is {outside_value(untrained)}; give a list of ends of names of parameters.")
    _check("backbone", subject, untrained=untrained)


def check_method(subject: Any) -> None:
    """Check that a method keeps the contract of `fsmer.transfer.Method`.

    Parameters
    ----------
    subject : object
        What is checked, as for `checks`.

    Examples
    --------
    >>> from fsmer.testing import check_method
    >>> check_method("protonet")
    """
    _check("method", subject)


def check_protocol(subject: Any, clips: ClipSet | None = None, *, subject_disjoint: bool | None = None) -> None:
    """Check that a protocol keeps the contract of `fsmer.episodic.Protocol`.

    Parameters
    ----------
    subject : object
        What is checked, as for `checks`.
    clips : ClipSet, optional
        Clips that it splits; default its own synthetic ones, or a table that fits its requirements.
    subject_disjoint : bool, optional
        Whether no person may be in both the support and the queries of an episode; default the protocol's
        ``subject_disjoint``, or where it has none, that it is no K-shot protocol.

    Examples
    --------
    >>> from fsmer.testing import check_protocol
    >>> check_protocol("loso")
    """
    if clips is not None and not isinstance(clips, ClipSet):
        raise DataError(f"clips is {outside_value(clips)}; give a ClipSet, or leave it out.")
    if subject_disjoint not in (True, False, None):
        raise DataError(f"subject_disjoint is {outside_value(subject_disjoint)}; give True or False, or leave it out.")
    _check("protocol", subject, clips=clips, subject_disjoint=subject_disjoint)


def check_adapter(subject: Any, root: str | os.PathLike[str], *, clips: int | None = None) -> None:
    """Check that an adapter reads a release, or an imitation of it, whole and rightly.

    Parameters
    ----------
    subject : object
        What is checked, as for `checks`.
    root : path
        Folder of the release, as for `fsmer.read_dataset`.
    clips : int, optional
        How many clips the release has.

    Examples
    --------
    >>> from pathlib import Path
    >>> import cv2
    >>> import numpy as np
    >>> from fsmer.datasets import Adapter, roles
    >>> from fsmer.testing import check_adapter
    >>> class Videos(Adapter):
    ...     name = dataset = "videos"
    ...     title = "Videos of a lab"
    ...     frames_per_second = 100.0
    ...     sheets = ("takes.csv",)
    ...     columns = roles(subject="who", name="take", onset="start", apex="peak", offset="end", label="class")
    ...     places = ("recordings",)
    >>> for take in ("recordings/01/a", "recordings/02/b"):
    ...     Path("release", take).mkdir(parents=True)
    ...     for number in range(4):
    ...         written = cv2.imwrite(f"release/{take}/{number}.png", np.full((8, 8, 3), 50 * number, np.uint8))
    >>> import pandas as pd
    >>> takes = pd.DataFrame({"who": [1, 2], "take": ["a", "b"], "start": 0, "peak": 2, "end": 3, "class": ["x", "y"]})
    >>> takes.to_csv("release/takes.csv", index=False)
    >>> check_adapter(Videos, "release", clips=2)
    """
    if not isinstance(root, (str, os.PathLike)):
        raise DataError(f"root is {outside_value(root)}; give the folder of the release.")
    if clips is not None and (not isinstance(clips, int) or isinstance(clips, bool)):
        raise DataError(f"clips is {outside_value(clips)}; give how many the release has, or leave it out.")
    _check("adapter", subject, root=root, clips=clips)


def _check(kind: Kind, subject: Any, **options: Any) -> None:
    for check in checks(kind, subject):
        check(**options)


def _require(kept: Any, message: str) -> None:
    if not kept:
        raise AssertionError(message)


def _close(found: Tensor, wanted: Tensor, what: str, *, rtol: float = 1e-3, atol: float = 1e-4) -> None:
    """Raise with the largest difference unless both have the same shape and close values."""
    _require(found.shape == wanted.shape, f"{what} have shapes {tuple(found.shape)} and {tuple(wanted.shape)}.")
    worst = float((found - wanted).nan_to_num(0, 0, 0).abs().max()) if found.numel() else 0.0
    _require(torch.allclose(found, wanted, rtol=rtol, atol=atol, equal_nan=True), f"{what} differ by {worst:.3g}.")


def _clips(backbone: Backbone, rows: int = 12) -> ClipSet:
    """Synthetic clips with its media; it is in evaluation mode from here on."""
    return synthetic_clips("lab", rows, seed=1, specs=backbone.eval().input_specs)


def _loss(backbone: Backbone, clips: ClipSet) -> Tensor:
    """The training loss of one batch, after the parts for its classes have been made."""
    backbone.set_classes(clips.classes)
    classifier = nn.Linear(backbone.embed_dim, len(clips.classes))
    targets = make_targets(clips, torch.from_numpy(clips.codes()), clips.classes)
    torch.manual_seed(0)
    return backbone.train().training_loss(read_inputs(backbone, clips, np.arange(len(clips))), targets, classifier)


@torch.no_grad()
def backbone_gives_a_vector_a_clip(backbone: Backbone) -> None:
    """Embeddings are finite float32 of shape (N, embed_dim), the same at every pass, and clips differ."""
    clips = _clips(backbone)
    inputs = read_inputs(backbone, clips, np.arange(len(clips)))
    found = backbone(inputs)
    wanted = (len(clips), backbone.embed_dim)
    _require(found.shape == wanted, f"embeddings have shape {tuple(found.shape)}, but {wanted} is expected.")
    _require(found.dtype == torch.float32, f"embeddings are {found.dtype}, but torch.float32 is expected.")
    _require(torch.isfinite(found).all(), "an embedding of finite media is not finite.")
    _require(found.std(dim=0).max() > 0, "every clip has the same embedding.")
    _require(torch.equal(backbone(inputs), found), "two passes over the same media in evaluation mode differ.")
    embed(backbone.train(), clips)
    _require(backbone.training, "embed leaves it in evaluation mode.")


def backbone_embeds_each_clip_alone(backbone: Backbone) -> None:
    """An embedding depends neither on other clips of the batch nor on the form in which media are given."""
    clips = _clips(backbone)
    together = embed(backbone, clips)
    alone = torch.cat([embed(backbone, clips[row : row + 1]) for row in range(3)])
    _close(together[:3], alone, "embeddings of clips together and apart")
    _close(together, embed(backbone, clips, batch_size=5), "embeddings in batches of 12 and of 5 clips")
    specs = backbone.input_specs
    arrays = {one.kind: clips.specs[one.kind].pick_channels(clips.media(one.kind), one) for one in specs}
    given = arrays if len(specs) > 1 else arrays[specs[0].kind]
    _close(embed(backbone, given), together, "embeddings of a clip set and of its arrays", rtol=0, atol=1e-5)


def backbone_gets_gradients(backbone: Backbone, untrained: Sequence[str] = ()) -> None:
    """The training loss gives every trainable parameter a finite gradient that is not zero."""
    # Some layers start at zero on purpose, and what lies before them has no gradient until they have moved.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    loss = _loss(backbone, _clips(backbone))
    _require(loss.ndim == 0, f"training_loss has shape {tuple(loss.shape)}, but one number is expected.")
    loss.backward()
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad and not name.endswith(tuple(untrained)):
            gradient = parameter.grad
            _require(gradient is not None and gradient.any(), f"{name} gets no gradient from training_loss.")
            _require(gradient.isfinite().all(), f"the gradient of {name} is not finite.")  # type: ignore[union-attr]


def backbone_trains_on_any_number_of_classes(backbone: Backbone) -> None:
    """One backbone is trained on two classes and then on five."""
    clips, specs = _clips(backbone), backbone.input_specs
    media, held = {one.kind: clips.media(one.kind) for one in specs}, [clips.specs[one.kind] for one in specs]
    for classes in ("ab", "abcde"):
        labels = [classes[place % len(classes)] for place in range(len(clips))]
        loss = _loss(backbone, ClipSet.from_arrays(media, labels, aus=clips.table["aus"].tolist(), spec=held))
        loss.backward()
        _require(loss.isfinite() and len(embed(backbone, clips)), f"training fails with {len(classes)} classes.")


def backbone_is_saved_to_the_bit(backbone: Backbone) -> None:
    """It loads as the same class with the same config, buffers and embeddings, and loading draws nothing."""
    clips = _clips(backbone)
    _require(backbone.name, "it has no name; register it with register_backbone.")
    backbone.set_classes(("one", "two"))
    backbone.finish_training()
    with tempfile.TemporaryDirectory() as folder:
        backbone.eval().save_pretrained(folder)
        state = torch.get_rng_state()
        again = load_model(folder)
        endings = sorted(Path(name).suffix for name in os.listdir(folder))
    _require(torch.equal(torch.get_rng_state(), state), "loading draws random numbers.")
    _require(endings == [".json", ".safetensors"], f"it is saved as {endings}; JSON and safetensors are expected.")
    _require(type(again) is type(backbone) and not again.training, "it loads as another class, or in training mode.")
    for key in ("config", "input_specs", "embed_dim"):
        one, other = getattr(backbone, key), getattr(again, key)
        _require(one == other, f"{key} is {one!r}, and {other!r} after loading; hand it to super().__init__.")
    _require(model_hash(again) == model_hash(backbone), "its weights are others after loading.")
    for (name, one), other in zip(backbone.named_buffers(), again.buffers(), strict=True):
        _require(torch.equal(one, other), f"the buffer {name} is another one after loading.")
    _require(torch.equal(embed(again, clips), embed(backbone, clips)), "its embeddings are others after loading.")


def backbone_is_adapted(backbone: Backbone) -> None:
    """Methods learn with it frozen; fine-tuning and training change a copy, which is saved with its recognizer."""
    clips = _clips(backbone)
    before = model_hash(backbone)
    for name in ("cosine", "protonet", "finetune"):
        recognizer = adapt(backbone, clips, name)
        _require(recognizer.backbone is backbone, f"the method {name!r} answers with another backbone.")
        sums = recognizer.predict_proba(clips).sum(axis=1)
        _require(np.allclose(sums, 1, atol=1e-5), f"probabilities of the method {name!r} do not sum to 1.")
    tuned = adapt(backbone, clips, "finetune", train_backbone=True, steps=3, encoder_rate=1e-3)
    # Two epochs: where the rate is warmed up, the first step has none.
    for how, one in (("fine-tuning", tuned), ("two epochs of its recipe", train(backbone, clips[:8], epochs=2))):
        _require(model_hash(backbone) == before, f"{how} changes the backbone that was given and not a copy.")
        _require(model_hash(one.backbone) != before, f"{how} changes none of its weights.")
        with tempfile.TemporaryDirectory() as folder:
            one.save(folder)
            again = Recognizer.load(folder).predict_proba(clips)
        _require(np.array_equal(again, one.predict_proba(clips)), "a recognizer with it is saved as another one.")


WAY, WIDTH = 3, 24


class _Pooled(Backbone):
    """A quick backbone that has directions for every class: random projections of pooled flow."""

    def __init__(self) -> None:
        super().__init__(input_spec=InputSpec(), embed_dim=WIDTH, config={})
        self.layer = nn.Linear(3 * 49, WIDTH)
        for value in self.parameters():
            value.data = 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(F.avg_pool2d(inputs - inputs.mean(dim=(2, 3), keepdim=True), 4).flatten(1))

    def class_directions(self, classes: Sequence[str]) -> ClassDirections:
        return _directions(len(classes))


def _directions(way: int = WAY) -> ClassDirections:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    return ClassDirections(draw(way, WIDTH), draw(way), torch.ones(way, dtype=torch.bool), 6.0, 0.2 * draw(WIDTH))


def _blobs(way: int = WAY, spread: float = 0.6) -> list[Tensor]:
    """Support (6, S, D) of separate classes, codes (6, S), queries (6, Q, D), and their codes (6, Q)."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(way, WIDTH, generator=generator)
    sides = []
    for clips in (5, 7):
        codes = torch.arange(way).repeat_interleave(clips).expand(6, -1).clone()
        sides += [means[codes] + spread * torch.randn(*codes.shape, WIDTH, generator=generator), codes]
    return sides


def _episodes(way: int = WAY, of: int = WAY) -> list[Any]:
    """Embeddings (N, D) of a data set of `of` classes; support rows, codes, query rows and classes of nine episodes."""
    generator, rng = torch.Generator().manual_seed(3), np.random.default_rng(0)
    labels = np.arange(30 * of) % of
    means, noise = (torch.randn(rows, WIDTH, generator=generator) for rows in (of, len(labels)))
    classes = np.sort([rng.permutation(of)[:way] for _ in range(9)], axis=1)
    drawn = np.array([[rng.permutation(np.flatnonzero(labels == name))[:9] for name in row] for row in classes])
    codes = np.tile(np.repeat(np.arange(way), 4), (9, 1))
    return [means[labels] + noise, drawn[..., :4].reshape(9, -1), codes, drawn[..., 4:].reshape(9, -1), classes]


def method_solves_each_episode_alone(method: Method) -> None:
    """Episodes that are fitted together, padded or not, have the answers of each alone."""
    (support, codes, query, _), prior = _blobs(), _directions()
    together = method.fit_head(support, codes, WAY, prior).logits(query)
    each = zip(support.split(1), codes.split(1), query.split(1), strict=True)
    alone = torch.cat([method.fit_head(one, code, WAY, prior).logits(asked) for one, code, asked in each])
    _close(together, alone, "logits of episodes fitted together and alone", rtol=1e-4)
    padded, marked = F.pad(support, (0, 0, 0, 4), value=100), F.pad(codes, (0, 4), value=-1)
    found = method.fit_head(padded, marked, WAY, prior).logits(query)
    _close(found, together, "logits with and without padding (code -1) of the support", rtol=1e-4)


def method_solves_as_it_fits(method: Method) -> None:
    """`solve` gives what `fit_head` gives for one episode after the other, whatever the chunk and the classes."""
    for way, of in ((WAY, WAY), (2, 5)):
        embeddings, support, codes, query, classes = _episodes(way, of)
        prior = _directions(of)
        for rows in (query, None):
            wanted = []
            for episode, own in enumerate(classes):
                known = ClassDirections(prior.weight[own], prior.bias[own], prior.known[own], prior.scale, prior.centre)
                fitted = embeddings[support[episode]][None], torch.from_numpy(codes[episode])[None]
                asked = np.arange(len(embeddings)) if rows is None else rows[episode]
                if method.transductive:
                    asked = np.setdiff1d(asked, support[episode], assume_unique=True)
                logits = torch.full((len(embeddings) if rows is None else rows.shape[1], way), torch.nan)
                logits[asked if rows is None else slice(None)] = method.fit_head(*fitted, way, known).logits(
                    embeddings[asked][None]
                )[0]
                wanted.append(logits)
            for chunk in (None, 1, 4):
                options = {"way": way, "prior": prior, "classes": classes, "chunk": chunk}
                parts = list(method.solve(embeddings, support, codes, rows, **options))
                ends = [0, *(part.stop for part, _ in parts)]
                _require([part.start for part, _ in parts] == ends[:-1], "solve leaves episodes out.")
                # Logits of one method may differ by a constant a query, so probabilities are compared.
                found = torch.cat([logits for _, logits in parts]).softmax(-1)
                _close(found, torch.stack(wanted).softmax(-1), "probabilities of solve and of fit_head")


def method_answers_each_query_by_its_media(method: Method) -> None:
    """An answer depends neither on the place of a query among the others nor on its label, measured or deployed."""
    embeddings, support, codes, query, _ = _episodes()
    order = np.random.default_rng(1).permutation(query.shape[1])
    one, other = (
        torch.cat([part for _, part in method.solve(embeddings, support, codes, rows, way=WAY, prior=_directions())])
        for rows in (query, query[:, order])
    )
    _close(other.softmax(-1), one[:, order].softmax(-1), "answers to queries in another order")
    clips = synthetic_clips("lab", 24, seed=1, specs=[InputSpec()])
    recognizer = method.fit(_Pooled().eval(), clips[:12], classes=clips.classes)
    asked, labels, spec = clips[12:], clips[12:].labels, clips.specs["flow"]
    order, false = np.random.default_rng(1).permutation(12), np.roll(np.sort(labels), 6)
    plain, mixed, mislabelled = (
        torch.from_numpy(recognizer.predict_proba(ClipSet.from_arrays(media, named, spec=spec)))
        for media, named in ((asked.media(), labels), (asked.media()[order], labels[order]), (asked.media(), false))
    )
    _close(mixed, plain[order], "answers of its recognizer to clips in another order")
    _close(mislabelled, plain, "answers of its recognizer to clips with other labels", rtol=0, atol=0)


def method_tells_classes_apart(method: Method) -> None:
    """It solves easy episodes, gives a class without support no probability, and refuses an empty support.

    A method that needs a backbone with knowledge of the classes says so with a `SupportError` and is left out.
    """
    support, codes, query, asked = _blobs(spread=0.2)
    try:
        head = method.fit_head(support, codes, WAY)
    except SupportError:
        return
    share = float((head.logits(query).argmax(-1) == asked).float().mean())
    _require(share > 0.98, f"{share:.0%} of the queries of well separated classes are right, below 98 %.")
    support, codes, query, _ = _blobs(way=WAY - 1)
    absent = method.fit_head(support, codes, WAY).logits(query).softmax(-1)
    _require((absent[..., -1] == 0).all() and absent.isfinite().all(), "a class without support gets a probability.")
    with suppress(SupportError):
        method.fit_head(torch.zeros(1, 0, WIDTH), torch.zeros(1, 0, dtype=torch.long), WAY)
        raise AssertionError("an empty support without prior knowledge is not refused with a SupportError.")


def method_has_the_manners_of_scikit_learn(method: Method) -> None:
    """It is immutable, cloned by scikit-learn, loaded by its name, and its parameters are plain values."""
    from sklearn.base import clone

    params = method.get_params()
    _require(method.name, "it has no name; register it with register_method.")
    _require(clone(method) == method, "sklearn.base.clone gives another method.")
    _require(load_method(method.name, **params) == method, "it is another method when loaded by name with its params.")
    again = json.loads(json.dumps(method.to_dict()))["params"]
    _require(again == params, f"its parameters are {params}, and {again} after JSON; use plain values.")
    field = next((one.name for one in fields(method)), "name")
    with suppress(AttributeError):  # FrozenInstanceError is one
        setattr(method, field, getattr(method, field))
        raise AssertionError(f"its attribute {field!r} can be changed; make it a frozen dataclass.")


def method_repeats_its_results(method: Method) -> None:
    """Fitting twice gives the same bits and leaves the global random states of torch and NumPy alone."""
    support, codes, query, _ = _blobs()
    states = [[torch.get_rng_state().numpy(), np.random.get_state()[1].copy()]]  # type: ignore[index]  # noqa: NPY002
    one, other = (method.fit_head(support, codes, WAY, _directions()).logits(query) for _ in range(2))
    states += [[torch.get_rng_state().numpy(), np.random.get_state()[1]]]  # type: ignore[index]  # noqa: NPY002
    _require(torch.equal(one, other), "fitting the same support twice gives two results; seed it.")
    _require(all(map(np.array_equal, *states)), "fitting changes the global random state; draw from a generator.")


def _dealt(protocol: Protocol, clips: ClipSet | None) -> ClipSet:
    """Prepared clips: those given, its own, or thirteen of each label that it asks for, of six people a data set."""
    if clips is None and protocol.synthetic:
        clips = protocol.make_clips(size=8)
    elif clips is None:
        labels = {name: ["negative", "positive", "surprise"] for name in ("casme2", "samm", "smic")}
        needs = {one.dataset: load_scheme(one.scheme).mapping for one in protocol.requirements if one.scheme}
        labels = {name: list(mapping[name]) for name, mapping in needs.items()} or labels
        rows = [
            (f"{dataset}-{place:04d}", dataset, f"{place % 6 + 1:03d}", label)
            for dataset, names in labels.items()
            for place, label in enumerate(np.repeat(names, 13))
        ]
        clips = ClipSet.from_table(pd.DataFrame(rows, columns=["clip", "dataset", "subject", "label"]))
    return protocol.prepare(clips)


def protocol_gives_whole_episodes(protocol: Protocol, clips: ClipSet | None = None) -> None:
    """Episodes are a sequence with distinct names; each has queries, and clips whose labels are its classes."""
    clips = _dealt(protocol, clips)
    episodes = protocol.split(clips)
    listed = list(episodes)
    _require(len(listed) == len(episodes) >= 1, f"len is {len(episodes)}, but {len(listed)} episodes come.")
    _require(len({one.name for one in listed}) == len(listed), "two episodes have the same name.")
    classes = tuple(sorted(episodes.classes))
    _require(protocol.classes(clips) == episodes.classes == classes, "its classes are not sorted, or not the same.")
    _require(len(episodes.codes) == len(clips), "its codes are not one for each clip.")
    for one in listed:
        _require(len(one.query), f"{one.name} has no query.")
        for side in (one.support, one.query):
            whole = side.dtype == np.int64 and len(set(side.tolist())) == len(side)
            _require(whole, f"the rows of {one.name} are not int64, or a clip is there twice.")
            for row, label, code in zip(side, clips.labels[side], episodes.codes[side], strict=True):
                known = label in one.classes and label == episodes.classes[code]
                _require(known, f"clip {clips.ids[row]!r} of {one.name} has label {label!r}, but code {code}.")


def protocol_keeps_sides_apart(
    protocol: Protocol, clips: ClipSet | None = None, subject_disjoint: bool | None = None
) -> None:
    """No clip is on both sides of an episode, and no person where the protocol keeps people apart."""
    clips = _dealt(protocol, clips)
    people = clips.subject_codes()
    if subject_disjoint is None:
        subject_disjoint = bool(getattr(protocol, "subject_disjoint", not isinstance(protocol, KShot)))
    for one in protocol.split(clips):
        both = np.intersect1d(one.support, one.query)
        _require(not len(both), f"{len(both)} clips of {one.name} are in the support and in the queries.")
        shared = np.intersect1d(people[one.support], people[one.query])[: None if subject_disjoint else 0]
        names = ", ".join("/".join(clips.subject_names[person]) for person in shared)
        _require(not names, f"subjects on both sides of {one.name}: {names}.")


def protocol_survives_json(protocol: Protocol) -> None:
    """Written as a dictionary and read again it is the same protocol with the same hash."""
    again = Protocol.from_dict(json.loads(json.dumps(protocol.to_dict())))
    _require(again == protocol, "it is another protocol after to_dict, JSON and from_dict.")
    _require(again.hash == protocol.hash and len(protocol.hash) == 16, "its hash is another one after from_dict.")
    _require(protocol.title, "it has no title; set the class variable summary.")


def protocol_ignores_the_order_of_rows(protocol: Protocol, clips: ClipSet | None = None) -> None:
    """Clips in another order of rows make the same episodes."""
    clips = _dealt(protocol, clips)
    mixed = clips[np.random.default_rng(3).permutation(len(clips))]
    for one, other in zip(protocol.split(clips), protocol.split(mixed), strict=True):
        sides = (one.support, other.support), (one.query, other.query)
        same = one.name == other.name and all(set(clips.ids[a]) == set(mixed.ids[b]) for a, b in sides)
        _require(same, f"{one.name} has other clips when the rows are in another order.")


def _read(adapter: Adapter, root: Any) -> ClipSet:
    clips = adapter.check(root).clips
    if clips is None:
        raise AssertionError(f"no clip below {root} can be used.")
    return clips


def adapter_loses_no_clip(adapter: Adapter, root: Any, clips: int | None = None) -> None:
    """Every annotated clip is read, or a finding says why not; ids, subjects and data sets are there."""
    read, audit = _read(adapter, root), adapter.check(root)
    left = len(audit.left_out)
    known = f"{audit.annotated} clips are annotated, {audit.usable} read and {left} left out by a finding"
    _require(audit.usable + len(audit.left_out) == audit.annotated, f"{known}.")
    _require(clips in (None, audit.annotated), f"{known}, but the release has {clips}.")
    _require(len(set(read.ids)) == len(read), "two clips have the same id.")
    _require(not read.specs, "it has read media; a data set is a table of clips.")
    _require(all(map(all, read.subject_names)), "a clip has no subject or no data set.")


def adapter_gives_the_annotated_frames(adapter: Adapter, root: Any) -> None:
    """The frames at the positions of onset, apex and offset are those whose numbers are annotated."""
    for row in _read(adapter, root).table.itertuples():
        ordered = row.onset_index <= row.apex_index <= row.offset_index
        _require(ordered, f"onset, apex and offset of clip {row.clip!r} are not in this order.")
        if Path(row.path).is_file():
            continue  # frames of a video have no numbers
        numbers = [int(re.findall(r"\d+", file.stem)[-1]) for file in frame_files(row.path)]
        middle = (row.onset_index + row.offset_index) // 2
        pairs = {
            "number of frames": (len(numbers), row.frames),
            "order of frames": (numbers, sorted(numbers)),
            "range": ((numbers[0], numbers[-1]), (row.first, row.last)),
            "onset": (numbers[row.onset_index], row.onset),
            "apex": (numbers[row.apex_index], row.apex if row.apex_from == "annotation" else numbers[middle]),
            "offset": (numbers[row.offset_index], row.offset),
        }
        for key, (found, wanted) in pairs.items():
            _require(found == wanted, f"the {key} of clip {row.clip!r} is {found}, but {wanted} is annotated.")


def adapter_refuses_other_folders(adapter: Adapter, root: Any) -> None:
    """A folder that is absent, a file or without the release is refused in one sentence that names it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "archive.zip").write_bytes(b"PK")
        (Path(folder) / "empty").mkdir()
        for name in ("gone", "archive.zip", "empty"):
            try:
                adapter.check(Path(folder) / name)
            except MissingDatasetError as error:
                text = str(error)
                one = text.endswith(".") and "\n" not in text and name in text
                _require(one, f"the refusal of {name!r} is not one sentence that names it: {text}")
            else:
                raise AssertionError(f"the folder {name!r} is not refused with a MissingDatasetError.")


_LOADED: dict[str, Any] = {"backbone": (create_model, Backbone), "method": (load_method, Method)}
_LOADED |= {"protocol": (load_protocol, Protocol), "adapter": (load_adapter, Adapter)}
