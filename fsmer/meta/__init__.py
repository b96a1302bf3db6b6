"""Episodic training: algorithms, one file each, that train a backbone on many few-shot tasks."""

from fsmer.meta.algorithm import Algorithm, list_algorithms, load_algorithm, register_algorithm
from fsmer.meta.tasks import ClipTasks, TaskBatch, Tasks, UnitSetTasks, source_tasks
from fsmer.meta.training import meta_train

__all__ = [
    "Algorithm", "ClipTasks", "TaskBatch", "Tasks", "UnitSetTasks", "list_algorithms", "load_algorithm",
    "meta_train", "register_algorithm", "source_tasks",
]  # fmt: skip
