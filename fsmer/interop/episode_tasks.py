"""The episodes of a protocol as tensors: what other few-shot libraries call tasks."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fsmer.backbones import Backbone, as_backbone, check_clips, read_inputs
from fsmer.backbones.base import Inputs
from fsmer.data import ClipSet
from fsmer.episodic import Episode, Episodes, Protocol, load_protocol
from fsmer.episodic.episode import Ints
from fsmer.evaluation.setup import prepared_clips

__all__ = ["EpisodeTasks"]


@dataclass(frozen=True)
class EpisodeTasks:
    """Episodes with the clips that they are dealt from, and the network whose media are read."""

    episodes: Episodes
    clips: ClipSet
    backbone: Backbone

    @classmethod
    def of(
        cls,
        protocol: Protocol | str | os.PathLike[str],
        clips: ClipSet | None,
        backbone: Backbone | str | os.PathLike[str],
    ) -> EpisodeTasks:
        """Of the clips that the protocol selects and relabels, or makes where none are given.

        Raises `ProtocolError` where the protocol has no clips or cannot deal them, and `SpecMismatchError` where they
        hold other media than the backbone expects.
        """
        dealt, network = load_protocol(protocol), as_backbone(backbone)
        prepared = prepared_clips(dealt, clips, network)
        check_clips(network, prepared)
        return cls(dealt.split(prepared), prepared, network)

    def media(self, rows: Ints) -> Inputs:
        """Media of the clips in these rows as the network takes them, in its precision, on the CPU."""
        return read_inputs(self.backbone, self.clips, np.asarray(rows))

    def labels(self, episode: Episode, rows: Ints) -> Tensor:
        """Places of the clips' classes among those of the episode, int64 of shape (len(rows),)."""
        place = {name: number for number, name in enumerate(episode.classes)}
        names = self.episodes.classes
        return torch.tensor([place[names[code]] for code in self.episodes.codes[rows]], dtype=torch.int64)
