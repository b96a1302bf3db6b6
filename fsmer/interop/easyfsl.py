"""easyfsl: the episodes of a protocol as batches of its form. Its methods take a backbone of fsmer as it is."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fsmer.backbones import Backbone
from fsmer.data import ClipSet
from fsmer.episodic import Protocol
from fsmer.errors import ProtocolError, SpecMismatchError
from fsmer.interop.episode_tasks import EpisodeTasks

__all__ = ["EpisodeBatches", "episode_loader"]

# Support images, their labels, query images, their labels, and the codes of the classes that labels stand for.
Batch = tuple[Tensor, Tensor, Tensor, Tensor, list[int]]


class EpisodeBatches(Dataset[Batch]):
    """A batch an episode, as easyfsl's ``TaskSampler.episodic_collate_fn`` makes them; see `episode_loader`."""

    def __init__(self, tasks: EpisodeTasks) -> None:
        if len(tasks.backbone.input_specs) > 1:
            kinds = ", ".join(spec.kind for spec in tasks.backbone.input_specs)
            raise SpecMismatchError(
                f"{tasks.backbone.name!r} expects several media ({kinds}), but easyfsl takes one tensor a side; give a "
                "backbone with one medium, or classify its embeddings by easyfsl."
            )
        self.tasks = tasks

    def __len__(self) -> int:
        return len(self.tasks.episodes)

    def __getitem__(self, index: int) -> Batch:
        tasks = self.tasks
        episode = tasks.episodes[index]
        support, query = tasks.labels(episode, episode.support), tasks.labels(episode, episode.query)
        missing = np.setdiff1d(np.arange(len(episode.classes)), support.numpy())
        if len(missing):
            raise ProtocolError(
                f"{episode.name} has no support clip of {episode.classes[missing[0]]!r}, but easyfsl needs one of "
                "every class; give a protocol such as kshot with at least one shot."
            )
        # The tensor of the one medium.
        images: list[Any] = [tasks.media(rows) for rows in (episode.support, episode.query)]
        return images[0], support, images[1], query, [tasks.episodes.classes.index(name) for name in episode.classes]


def episode_loader(
    protocol: Protocol | str | os.PathLike[str],
    clips: ClipSet | None,
    backbone: Backbone | str | os.PathLike[str],
    **options: Any,
) -> DataLoader[Batch]:
    """The episodes of a protocol as a torch data loader of easyfsl's form.

    Parameters
    ----------
    protocol : Protocol, str or path
        What deals the episodes, or its name or file.
    clips : ClipSet or None
        Labelled clips with the media that the backbone expects; the protocol selects and relabels them. None for a
        protocol that makes its own.
    backbone : Backbone, str or path
        The network whose media are read, or its name or folder.
    **options : object
        Further arguments of ``torch.utils.data.DataLoader``, such as ``num_workers``.

    Returns
    -------
    DataLoader
        A batch an episode: support images, their labels, query images, their labels, and for each label the number of
        its class among all classes of the protocol.

    Raises
    ------
    ProtocolError
        There are no clips, the protocol cannot deal them, or an episode has no support of a class.
    SpecMismatchError
        The clips hold other media than the backbone expects, or it expects several.

    Examples
    --------
    >>> import fsmer
    >>> from fsmer.interop.easyfsl import episode_loader
    >>> protocol = fsmer.load_protocol("kshot", way=3, shot=2, query=4, episodes=10)
    >>> loader = episode_loader(protocol, fsmer.synthetic_clips("lab", 60), "facs-flow")
    >>> support, labels, query, truth, classes = next(iter(loader))
    >>> support.shape, query.shape, classes
    (torch.Size([6, 3, 28, 28]), torch.Size([12, 3, 28, 28]), [0, 1, 2])
    """
    return DataLoader(EpisodeBatches(EpisodeTasks.of(protocol, clips, backbone)), batch_size=None, **options)
