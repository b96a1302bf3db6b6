"""Episodes of methods that train the backbone: side by side in this process, or in processes of their own."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import joblib  # type: ignore[import-untyped]
import numpy as np
import torch
from joblib.parallel import LokyBackend, get_active_backend  # type: ignore[import-untyped]
from numpy.typing import NDArray

from fsmer.backbones import Backbone
from fsmer.data import ClipSet
from fsmer.evaluation.answers import EpisodeTask, Fold
from fsmer.evaluation.episode_results import EpisodeResults, PartStore
from fsmer.evaluation.isolated import Answer, ProcessEnded, Processes
from fsmer.evaluation.selection import END
from fsmer.memory import free_memory, out_of_memory
from fsmer.transfer import Recognizer
from fsmer.transfer.fine_tuning import FineTuning
from fsmer.transfer.full_training import Train
from fsmer.transfer.method import learnt, many_learnt, method_call, solves_together
from fsmer.transfer.source_model import SourceModel

__all__ = ["OtherSeed", "TrainingFolds", "on_cpu", "process_count"]

# What processes take to start, on a machine that is not idle; folds that are done by then stay in this one.
START_SECONDS = 15.0
# What a worker needs beside weights, their gradients, moments and copies.
WORKER_BYTES, COPIES = 1 << 30, 8

Results = Iterator[tuple[int, EpisodeResults]]


@dataclass(frozen=True)
class OtherSeed:
    """A later seed, whose missing episodes are trained in one stack with those of an earlier one."""

    seed: int
    model: SourceModel
    numbers: NDArray[np.int64]
    store: PartStore | None


class TrainingFolds:
    """Trains and answers folds, for all seeds of an evaluation."""

    def __init__(self, jobs: int | str | None, memory: int | None) -> None:
        self.jobs = jobs
        self.memory = memory
        # Results of later seeds that were trained in one stack with those of an earlier one.
        self.prefetched: dict[int, list[EpisodeResults]] = {}
        # How long the first fold took, once it was timed.
        self._fold_seconds: float | None = None

    def results(self, task: EpisodeTask, numbers: NDArray[np.int64], others: Sequence[OtherSeed] = ()) -> Results:
        """Checkpoint step and results of these episodes, each as soon as it is finished."""
        rest, count = numbers, process_count(self.jobs)
        if task.processes is not None:
            count = self._worker_count(task, len(numbers)) if self.jobs == "auto" else count or 1
            yield from self.in_processes(task, numbers, count)
            return
        if count is None and self.jobs == "auto":
            count = self._worker_count(task, len(numbers))
            if count > 1 and self._fold_seconds is None:
                first, rest = numbers[:1], numbers[1:]
                began = time.perf_counter()
                yield from self._in_process(task, first, others)
                self._fold_seconds = time.perf_counter() - began
            if len(rest) * (self._fold_seconds or 0.0) < START_SECONDS:
                count = 1
        if count is not None and count > 1 and len(rest) > 1:
            rest = yield from self.in_processes(task, rest, count)
        yield from self._in_process(task, rest, others)

    @staticmethod
    def _worker_count(task: EpisodeTask, folds: int) -> int:
        """How many processes this machine has cores and memory for; one where the folds cannot leave this process."""
        if not on_cpu(task.model.backbone) or not (task.trusted or task.processes):
            return 1
        weights = sum(value.numel() * value.element_size() for value in task.model.backbone.parameters())
        return max(1, min(int(joblib.cpu_count()), folds, free_memory() // (WORKER_BYTES + COPIES * weights)))

    def _in_process(self, task: EpisodeTask, numbers: NDArray[np.int64], others: Sequence[OtherSeed]) -> Results:
        with _one_thread() if on_cpu(task.model.backbone) else contextlib.nullcontext():
            if task.trusted and not task.training.checkpoint_steps:
                yield from self._side_by_side(task, numbers, others)
                return
            for number in numbers.tolist():
                if task.training.checkpoint_steps:
                    for step, classes, answers in _fold_answers(*task.fold(number)):
                        yield step, task.fold_results(number, classes, answers)
                    continue
                (method, model), episode = task.learner(), task.episodes[number]
                recognizer = learnt(method, model, task.isolated(episode.support), classes=episode.classes)
                yield END, task.fold_results(number, *_answers(recognizer, task.query(number)))

    def _side_by_side(self, task: EpisodeTask, numbers: NDArray[np.int64], others: Sequence[OtherSeed]) -> Results:
        # What others have left to do comes behind the episodes of this run.
        more = [(other, number) for other in others for number in other.numbers.tolist()]
        everyone = [*numbers.tolist(), *(number for _, number in more)]
        if not everyone:
            return
        trained = many_learnt(
            task.method,
            [task.model] * len(numbers) + [other.model for other, _ in more] if more else task.model,
            _Supports(task, everyone),
            seeds=[None] * len(numbers) + [other.seed for other, _ in more],
            classes=[task.episodes[number].classes for number in everyone],
            memory=self.memory,
        )
        for member, recognizer in trained:
            number = everyone[member]
            found = task.fold_results(number, *_answers(recognizer, task.query(number)))
            if member < len(numbers):
                yield END, found
                continue
            other, _ = more[member - len(numbers)]
            if other.store is not None:
                other.store.write([found])
            self.prefetched.setdefault(other.seed, []).append(found)

    def in_processes(
        self, task: EpisodeTask, numbers: NDArray[np.int64], count: int
    ) -> Generator[tuple[int, EpisodeResults], None, NDArray[np.int64]]:
        """Episodes in `count` processes, in fewer when memory runs out; returns those that are left for this one.

        Isolated ones are all done in processes, each in one of its own, of which threads are in charge.
        """
        left = numbers.tolist()
        how: dict[str, Any] = {} if task.processes is None else {"prefer": "threads"}
        while left and (count > 1 or task.processes is not None):
            jobs = (
                joblib.delayed(fold_in_process)(number, task.episodes[number].name, task.processes, *task.fold(number))
                for number in tuple(left)
            )
            try:
                for number, found in joblib.Parallel(n_jobs=count, return_as="generator_unordered", **how)(jobs):
                    left.remove(number)
                    for step, classes, answers in found:
                        yield step, task.fold_results(number, classes, answers)
            except Exception as error:
                if count == 1 or not (isinstance(error, ProcessEnded) or out_of_memory(error)):
                    raise
                fewer = max(min(count, len(left)) // 2, 1)
                words = f"memory ran out with {count} folds at a time ({type(error).__name__}); going on with {fewer}."
                warnings.warn(words, stacklevel=2)
                count = fewer
        return np.array(left, dtype=np.int64)


class _Supports(Sequence["ClipSet"]):
    """The supports of some episodes, each made apart from all other clips when it is asked for."""

    def __init__(self, task: EpisodeTask, numbers: Sequence[int]) -> None:
        self._task = task
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self._task.isolated(self._task.episodes[self._numbers[index]].support)


def fold_in_process(number: int, name: str, processes: Processes | None, *fold: Any) -> tuple[int, list[Answer]]:
    """One fold in a worker, or in a process that is its own."""
    if processes is not None:
        return number, processes.call(_fold_answers, *fold, threads=1, about=repr(name))
    with _one_thread():
        return number, list(_fold_answers(*fold))


def _fold_answers(*fold: *Fold) -> Iterator[Answer]:
    """Learn one fold and answer its queries, at its checkpoint steps where it has any."""
    method, model, support, query, classes, steps = fold
    if steps and isinstance(method, (Train, FineTuning)):
        for step, recognizer in method.fit_checkpoints(model, support, steps, classes=classes):
            yield step, *_answers(recognizer, query)
    elif solves_together(method):
        # As folds in one process are trained, to the last bit.
        ((_, recognizer),) = many_learnt(method, model, [support], seeds=[None], classes=[classes])
        yield END, *_answers(recognizer, query)
    else:
        yield END, *_answers(learnt(method, model, support, classes=classes), query)


def _answers(recognizer: Recognizer, query: ClipSet) -> tuple[list[str], NDArray[np.float32]]:
    with method_call(recognizer.method):
        return recognizer.classes_.tolist(), recognizer.predict_proba(query)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Folds are what runs in parallel: threads below would fight for the same cores, and their number change digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_cpu(backbone: Backbone) -> bool:
    """Whether all weights are on the CPU."""
    return all(value.device.type == "cpu" for value in backbone.parameters())


def process_count(jobs: int | str | None) -> int | None:
    """How many folds at a time are asked for, here or by a surrounding joblib configuration; ``None``: nobody asked."""
    if isinstance(jobs, int):
        return int(joblib.effective_n_jobs(jobs)) if jobs != 1 else 1
    backend, count = get_active_backend()
    if count is None and isinstance(backend, LokyBackend):
        return None
    # A cluster knows best how many it is.
    return int(joblib.effective_n_jobs(-1 if count is None else count))
