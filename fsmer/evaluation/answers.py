"""A method on episodes: what each episode hands over, and what becomes of the answers about its queries.

Queries are handed over in an order that is drawn for each episode, without labels, and answers are put back into that
of the episode.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsmer.data import ClipSet
from fsmer.episodic.episode import Ints
from fsmer.episodic.episodes import Episodes
from fsmer.episodic.shuffles import query_orders
from fsmer.evaluation.episode_results import EpisodeResults
from fsmer.evaluation.isolated import Processes
from fsmer.evaluation.predictions import Predictions
from fsmer.evaluation.selection import TrainingRun
from fsmer.transfer import Method
from fsmer.transfer.method import solves_together
from fsmer.transfer.recognizer import check_answers
from fsmer.transfer.source_model import SourceModel

__all__ = ["EpisodeTask", "Fold", "put_back"]

Shares = NDArray[np.float32]
# Method, model, support, query, classes, and the checkpoint steps at which the query is answered.
Fold = tuple[Method, SourceModel, "ClipSet", "ClipSet", tuple[str, ...], tuple[int, ...]]


@dataclass(frozen=True)
class EpisodeTask:
    """One training of a method, from one model, on some episodes."""

    training: TrainingRun
    model: SourceModel
    clips: ClipSet
    episodes: Episodes
    query_seed: int  # of the orders in which queries are handed over
    processes: Processes | None  # where every fold has a process of its own

    @property
    def method(self) -> Method:
        return self.training.method

    @property
    def trusted(self) -> bool:
        """Whether episodes are solved together; else each comes alone: supports of others hold labels of queries."""
        return solves_together(self.method)

    def learner(self) -> tuple[Method, SourceModel]:
        """Method and model for one fold: copies for code from outside, which may train in place and so remember."""
        return (self.method, self.model) if self.trusted else copy.deepcopy((self.method, self.model))

    def isolated(self, rows: Ints, *, labelled: bool = True) -> ClipSet:
        """These clips, from which nothing leads to any other."""
        return self.clips[rows].isolated(labelled=labelled, in_memory=not self.trusted or self.processes is not None)

    def query(self, number: int) -> ClipSet:
        query = self.episodes[number].query
        return self.isolated(query[query_orders(self.query_seed, [number], len(query))[0]], labelled=False)

    def fold(self, number: int) -> Fold:
        episode = self.episodes[number]
        support = self.isolated(episode.support)
        return *self.learner(), support, self.query(number), episode.classes, self.training.checkpoint_steps

    def fold_results(self, number: int, classes: Sequence[str], answers: Shares) -> EpisodeResults:
        """The answers (Q, way) to `query` about these classes."""
        episode = self.episodes[number]
        owner = np.zeros(len(episode.query), dtype=np.int64)
        order = query_orders(self.query_seed, [number], len(owner))
        answers = self.checked(answers, len(classes), (episode.name,), owner, order[0])
        columns = np.array([[self.episodes.classes.index(name) for name in classes]])
        return self.results(number, (episode.name,), columns, owner, episode.query, put_back(answers[None], order)[0])

    def checked(self, answers: Shares, way: int, *where: Any) -> Shares:
        """The answers, if they are probabilities; episodes, owner and order are `where`, as for `check_answers`."""
        return check_answers(answers, way, f"the method {self.method.name!r}", *where)

    def results(
        self, start: int, names: tuple[str, ...], classes: Ints, episode: Ints, clip: Ints, answers: Shares
    ) -> EpisodeResults:
        """Answers about the classes (E, way) of the episodes from number `start`, in columns of all classes."""
        among = np.zeros((len(names), len(self.episodes.classes)), dtype=bool)
        np.put_along_axis(among, classes, True, axis=1)
        shares = np.full((len(clip), among.shape[1]), np.nan, dtype=np.float32)
        columns = classes[episode]
        np.put_along_axis(shares, columns, answers, axis=1)
        predicted = columns[np.arange(len(clip)), answers.argmax(axis=1)] if len(clip) else np.zeros(0)
        own = Predictions((start + episode).astype(np.int32), clip.astype(np.int64), predicted.astype(np.int16), shares)
        return EpisodeResults(np.arange(start, start + len(names)), names, among, own)


def put_back(answers: Shares, order: Ints) -> Shares:
    """Answers (E, Q, C) to queries that were handed over in an order (E, Q), in the order before."""
    found = np.empty_like(answers)
    found[np.arange(len(order))[:, None], order] = answers
    return found
