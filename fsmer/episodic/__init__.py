"""Episodes, K-shot samplers and protocols; nothing here needs torch."""

from fsmer.datasets.catalog import DATASETS, DatasetInfo, dataset_info
from fsmer.episodic.class_splits import ClassSplit, split_classes
from fsmer.episodic.drawn_tasks import DrawnTasks, TaskArrays, TaskRows
from fsmer.episodic.episode import Episode
from fsmer.episodic.episodes import Episodes, FoldEpisodes, KShotEpisodes
from fsmer.episodic.library import list_protocols, load_protocol, read_protocol
from fsmer.episodic.plan import EpisodeBatch, EpisodePlan
from fsmer.episodic.protocol import Protocol, register_protocol
from fsmer.episodic.protocols import (
    CDE,
    HoldoutDatabase,
    KShot,
    LeaveOneSubjectOut,
    SourceTarget,
    SubjectRatio,
    UnevenKShot,
)
from fsmer.episodic.requirements import Requirement, SyntheticClips
from fsmer.episodic.samplers import KShotSampler

__all__ = [
    "CDE", "DATASETS", "ClassSplit", "DatasetInfo", "DrawnTasks", "Episode", "EpisodeBatch", "EpisodePlan",
    "Episodes", "FoldEpisodes", "HoldoutDatabase", "KShot", "KShotEpisodes", "KShotSampler", "LeaveOneSubjectOut",
    "Protocol", "Requirement", "SourceTarget", "SubjectRatio", "SyntheticClips", "TaskArrays", "TaskRows",
    "UnevenKShot", "dataset_info", "list_protocols", "load_protocol", "read_protocol", "register_protocol",
    "split_classes",
]  # fmt: skip
__dir__ = __all__.copy  # tab completion shows public names only
