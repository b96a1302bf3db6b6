"""Episodes, K-shot samplers and protocols; nothing here needs torch."""

from __future__ import annotations

from fsmer.episodic.datasets import DATASETS, DatasetInfo, dataset_info
from fsmer.episodic.episode import Episode, Episodes
from fsmer.episodic.library import list_protocols, load_protocol, read_protocol
from fsmer.episodic.protocols import (
    CDE,
    KINDS,
    FoldEpisodes,
    HoldoutDatabase,
    KShot,
    KShotEpisodes,
    LeaveOneSubjectOut,
    Protocol,
    Requirement,
    SourceTarget,
    SubjectRatio,
    SyntheticClips,
)
from fsmer.episodic.samplers import EpisodeBatch, EpisodePlan, KShotSampler

__all__ = [
    "CDE",
    "DATASETS",
    "KINDS",
    "DatasetInfo",
    "Episode",
    "EpisodeBatch",
    "EpisodePlan",
    "Episodes",
    "FoldEpisodes",
    "HoldoutDatabase",
    "KShot",
    "KShotEpisodes",
    "KShotSampler",
    "LeaveOneSubjectOut",
    "Protocol",
    "Requirement",
    "SourceTarget",
    "SubjectRatio",
    "SyntheticClips",
    "dataset_info",
    "list_protocols",
    "load_protocol",
    "read_protocol",
]
