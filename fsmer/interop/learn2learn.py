"""learn2learn: a protocol as its task set, a backbone inside its algorithms, what they adapted as a recognizer."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fsmer.ambient import library_settings
from fsmer.backbones import Backbone, as_backbone, check_clips, embed, read_inputs
from fsmer.backbones.base import Inputs, evaluation_mode
from fsmer.data import ClipSet
from fsmer.episodic import Episode, Protocol
from fsmer.errors import DataError, FsmerError
from fsmer.interop.episode_tasks import EpisodeTasks
from fsmer.kernels.differentiation import second_order
from fsmer.outside import outside_call
from fsmer.transfer import Head, Method, Recognizer, SourceModel, load_method
from fsmer.transfer.inputs import as_labelled_clips
from fsmer.transfer.recognizer import Labelled

__all__ = ["EmbeddingModule", "Task", "meta_dataset", "module", "recognizer", "task_set"]

# Support clips by which an adapted module is compared with the recognizer that is made of it.
_COMPARED = 16


class Task(tuple[Inputs, Tensor]):
    """One episode as learn2learn gives a task, the pair (data, labels), which also knows its support from its query.

    Attributes
    ----------
    support, query : pair of (tensor or dict of str to tensor, int64 tensor)
        Data and labels of the one and of the other side.
    episode : Episode
        What it was made of; labels are places in ``episode.classes`` unless transforms say otherwise.
    """

    _in_support: Tensor
    episode: Episode

    def __new__(cls, data: Inputs, labels: Tensor, in_support: Tensor, episode: Episode) -> Self:
        found = super().__new__(cls, (data, labels))
        found._in_support, found.episode = in_support, episode
        return found

    @property
    def support(self) -> tuple[Inputs, Tensor]:
        """What is learnt from."""
        return self._part(self._in_support)

    @property
    def query(self) -> tuple[Inputs, Tensor]:
        """What is asked about."""
        return self._part(~self._in_support)

    def _part(self, rows: Tensor) -> tuple[Inputs, Tensor]:
        data, labels = self
        chosen = {kind: one[rows] for kind, one in data.items()} if isinstance(data, dict) else data[rows]
        return chosen, labels[rows]


class _LabelledMedia(Dataset[tuple[Inputs, int]]):
    """Single clips as (media, class); the class is a place in ``clips.classes``."""

    def __init__(self, clips: ClipSet, backbone: Backbone) -> None:
        check_clips(backbone, clips)
        self.clips, self.backbone, self.codes = clips, backbone, clips.codes()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[Inputs, int]:
        media = read_inputs(self.backbone, self.clips, np.array([index]))
        one = {kind: medium[0] for kind, medium in media.items()} if isinstance(media, dict) else media[0]
        return one, int(self.codes[index])


def meta_dataset(clips: ClipSet, backbone: Backbone | str | os.PathLike[str]) -> Any:
    """Clips as a ``learn2learn.data.MetaDataset``, from which its transforms draw tasks of their own.

    Parameters
    ----------
    clips : ClipSet
        Labelled clips with the media that the backbone expects.
    backbone : Backbone, str or path
        The network whose media are read, or its name or folder.

    Returns
    -------
    MetaDataset
        Its items are (media, label): a tensor of shape spec.shape, or a dict of them by kind where the backbone expects
        several, and the class as a place in ``clips.classes``. No media is read before it is asked for.

    Raises
    ------
    FsmerError
        learn2learn is not installed.
    SpecMismatchError
        The clips hold other media than the backbone expects.
    DataError
        There are no clips, or one has no label.
    """
    library = _library()
    if not len(clips):
        raise DataError("the clip set is empty, so no task can be drawn from it; give labelled clips.")
    data = _LabelledMedia(clips, as_backbone(backbone))
    members = {code: np.flatnonzero(data.codes == code).tolist() for code in np.unique(data.codes).tolist()}
    return library.data.MetaDataset(data, labels_to_indices=members)


def task_set(
    protocol: Protocol | str | os.PathLike[str],
    clips: ClipSet | None,
    backbone: Backbone | str | os.PathLike[str],
    *,
    task_transforms: Callable[[Any], Sequence[Callable[[Any], Any]]] | None = None,
    task_collate: Callable[[Any], Any] | None = None,
) -> Any:
    """The episodes of a protocol as a ``learn2learn.data.Taskset``, with ``sample()``, ``len`` and iteration.

    Parameters
    ----------
    protocol : Protocol, str or path
        What deals the episodes, or its name or file.
    clips : ClipSet or None
        Labelled clips with the media that the backbone expects; the protocol selects and relabels them. None for a
        protocol that makes its own.
    backbone : Backbone, str or path
        The network whose media are read, or its name or folder.
    task_transforms : callable, optional
        Gives learn2learn's task transforms for the `meta_dataset` of the clips, such as
        ``lambda dataset: [LoadData(dataset), RemapLabels(dataset)]``. Each episode is handed to them as the description
        of a task; how many classes and clips there are says the protocol. Without transforms, media are loaded and
        labels are places in the episode's classes.
    task_collate : callable, optional
        As learn2learn takes it, for tasks that transforms make; default torch's own.

    Returns
    -------
    Taskset
        Task number i is episode i of the protocol, as a `Task`: (data, labels) with the support before the query, which
        are apart in its attributes ``support`` and ``query``. Source clips of source-then-target protocols are left
        out.

    Raises
    ------
    FsmerError
        learn2learn is not installed.
    ProtocolError
        There are no clips, or the protocol cannot deal them.
    SpecMismatchError
        The clips hold other media than the backbone expects.
    """
    kind = _taskset_class()
    tasks = EpisodeTasks.of(protocol, clips, backbone)
    dataset = meta_dataset(tasks.clips, tasks.backbone)
    transforms = None if task_transforms is None else list(task_transforms(dataset))
    return kind(dataset, tasks, transforms, task_collate)


@functools.cache
def _taskset_class() -> Any:
    library = _library()

    class ProtocolTaskset(library.data.Taskset):  # type: ignore[name-defined]
        """A task set whose tasks are the episodes of a protocol, in their order."""

        def __init__(self, dataset: Any, tasks: EpisodeTasks, transforms: Any, collate: Any) -> None:
            super().__init__(dataset, task_transforms=transforms, num_tasks=len(tasks.episodes), task_collate=collate)
            self.tasks, self.transformed = tasks, transforms is not None

        # learn2learn's `sample` and iteration take their tasks from here.
        def __getitem__(self, i: int) -> Task:
            episode = self.tasks.episodes[i]
            rows = np.concatenate([episode.support, episode.query])
            if not self.transformed:
                data, labels = self.tasks.media(rows), self.tasks.labels(episode, rows)
            else:
                description = [library.data.DataDescription(row) for row in rows.tolist()]
                for transform in self.task_transforms:
                    description = transform(description)
                rows = np.array([one.index for one in description])
                data, labels = self.get_task(description)
            # Transforms may have left clips out or put them in another order.
            in_support = torch.from_numpy(np.isin(rows, episode.support))
            return Task(data, labels, in_support, episode)

    return ProtocolTaskset


class EmbeddingModule(nn.Module):
    """A backbone as a plain module whose parameters are those that embeddings depend on; see `module`.

    Attributes
    ----------
    backbone : Backbone
        A copy of the backbone, in which all other parameters are buffers.
    embed_dim : int
        Length of the embedding.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        used = backbone.embedding_parameters()
        if not used:
            raise FsmerError(
                f"no parameter of {backbone.name!r} that its embedding depends on can be trained, so there is nothing "
                "to adapt; give a backbone with trainable layers, or adapt a classifier on its embeddings."
            )
        self.embed_dim = backbone.embed_dim
        # In a tuple, so that torch does not take its parameters for those of this module.
        self._original = (copy.deepcopy(backbone),)
        self.backbone = copy.deepcopy(backbone)
        for name, value in list(self.backbone.named_parameters()):
            if name not in used:
                place, _, own = name.rpartition(".")
                part = self.backbone.get_submodule(place)
                delattr(part, own)
                part.register_buffer(own, value.detach())

    def forward(self, inputs: Inputs) -> Tensor:
        """Embeddings of shape (B, embed_dim), whose gradients can be differentiated again."""
        with second_order():
            return self.backbone(inputs)

    def as_backbone(self) -> Backbone:
        """A backbone with the weights that the module has by now, in evaluation mode."""
        found = copy.deepcopy(self._original[0])
        found.load_state_dict(self.backbone.state_dict())
        return found.eval()


@library_settings()
def module(backbone: Backbone | str | os.PathLike[str]) -> EmbeddingModule:
    """A backbone as a plain torch module that learn2learn's algorithms adapt as they adapt any other.

    Its parameters are those that embeddings depend on (`Backbone.embedding_parameters`), so that none is without a
    gradient, and gradients can be differentiated again, so that second-order MAML and Meta-SGD work. Parameters of
    losses, decoders and words, and those that are frozen, are buffers. It needs no learn2learn.

    Parameters
    ----------
    backbone : Backbone, str or path
        The network, or its name or folder. It is copied with its mode: what comes from a name or folder is in
        evaluation mode, in which normalisation layers keep their statistics, until ``train()`` is called.

    Returns
    -------
    EmbeddingModule
        Gives embeddings of shape (B, embed_dim). Put a ``torch.nn.Linear`` behind it for a classifier.

    Raises
    ------
    FsmerError
        No parameter that its embedding depends on can be trained.

    Examples
    --------
    >>> import torch
    >>> import fsmer
    >>> from fsmer.interop.learn2learn import module
    >>> features = module("facs-flow")
    >>> network = torch.nn.Sequential(features, torch.nn.Linear(features.embed_dim, 3))
    >>> loss = network(torch.rand(2, 3, 28, 28)).square().mean()
    >>> slopes = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
    >>> features.as_backbone().name
    'facs-flow'
    """
    return EmbeddingModule(as_backbone(backbone))


@library_settings()
def recognizer(
    adapted: nn.Module, support: Labelled, *, classes: Sequence[str] | None = None, method: Method | str | None = None
) -> Recognizer:
    """What learn2learn adapted as a recognizer, which predicts, is saved and is loaded without learn2learn.

    Parameters
    ----------
    adapted : Module
        An adapted clone of ``MAML``, ``MetaSGD`` or another algorithm, or any module that gives the logits of one
        ``torch.nn.Linear`` on an `EmbeddingModule`. Of ANIL, ``torch.nn.Sequential(features, adapted_head)``.
    support : ClipSet, list of Clip, or pair (arrays, labels)
        Labelled clips that it was adapted to, in any order.
    classes : sequence of str, optional
        Names of classes in the order of the logits; default the sorted labels of the support.
    method : Method or str, optional
        What fits the head anew when `Recognizer.update` learns further clips; default fine-tuning of a linear head on
        the embeddings of the adapted network.

    Returns
    -------
    Recognizer
        Its network is in evaluation mode: its answers are those of the adapted module after ``eval()``.

    Raises
    ------
    DataError
        The module is no linear classifier on an `EmbeddingModule`, or has another number of classes.
    SupportError
        The support is empty or has clips without a label.
    """
    features, linear = _parts_of(adapted)
    backbone = features.as_backbone()
    clips = as_labelled_clips(support, backbone)
    names = clips.classes if classes is None else tuple(map(str, classes))
    if linear.out_features != len(names):
        raise DataError(
            f"the adapted module has {linear.out_features} classes, but {len(names)} are named ({', '.join(names)}); "
            "give the classes in the order of its logits."
        )
    codes = torch.from_numpy(np.asarray(clips.codes(names), dtype=np.int64))
    bias = torch.zeros(len(names)) if linear.bias is None else linear.bias.detach().float().cpu()
    head = Head("linear", linear.weight.detach().float().cpu()[None].clone(), bias[None].clone())
    embeddings = embed(backbone, clips)
    _check_logits(adapted, features, clips[:_COMPARED], head.logits(embeddings[:_COMPARED])[0])
    refit = load_method("finetune", train_backbone=True) if method is None else load_method(method)
    return Recognizer(SourceModel(backbone), refit, names, head, embeddings, codes)


def _parts_of(adapted: Any) -> tuple[EmbeddingModule, nn.Linear]:
    """The embedding and the one linear layer behind it."""
    parts = list(adapted.modules()) if isinstance(adapted, nn.Module) else []
    features = [part for part in parts if isinstance(part, EmbeddingModule)]
    inside = {id(part) for one in features for part in one.modules()}
    linear = [part for part in parts if isinstance(part, nn.Linear) and id(part) not in inside]
    if len(features) != 1 or len(linear) != 1 or linear[0].in_features != features[0].embed_dim:
        raise DataError(
            f"the adapted module ({type(adapted).__name__}) holds {len(features)} backbones made by "
            f"fsmer.interop.learn2learn.module and {len(linear)} linear layers beside them, but one of each is "
            "expected, such as torch.nn.Sequential(features, torch.nn.Linear(features.embed_dim, ways))."
        )
    return features[0], linear[0]


def _check_logits(adapted: nn.Module, features: EmbeddingModule, clips: ClipSet, expected: Tensor) -> None:
    """Raise `DataError` where the module computes something else than its linear layer on its embedding."""
    device, who = next(features.parameters()).device, f"the adapted module ({type(adapted).__name__})"
    media = read_inputs(features.backbone, clips, np.arange(len(clips)), device)
    with evaluation_mode(adapted), torch.no_grad(), outside_call(who, DataError):
        found: Any = adapted(media)
    rounding = 1e-3 * float(expected.abs().max())
    same = isinstance(found, Tensor) and found.shape == expected.shape
    if not same or not torch.allclose(found.float().cpu(), expected, rtol=1e-3, atol=rounding):
        raise DataError(
            f"{who} gives other logits than its linear layer on its embedding; "
            "put nothing but the linear layer behind the module that fsmer.interop.learn2learn.module gives."
        )


def _library() -> Any:
    try:
        import learn2learn
    except ImportError as error:
        raise FsmerError(
            "tasks for learn2learn need that library, which is not installed or cannot be imported; run: make "
            "learn2learn (in the sources of fsmer), which builds its release 0.2.0 for this Python."
        ) from error
    return learn2learn
