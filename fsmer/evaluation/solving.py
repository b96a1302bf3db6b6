"""Episodes of methods that keep the backbone: clips are embedded once, and many episodes are solved together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsmer.backbones import ClassDirections
from fsmer.episodic.episodes import checked_batches
from fsmer.episodic.shuffles import query_orders
from fsmer.errors import ProtocolError
from fsmer.evaluation.answers import EpisodeTask, put_back
from fsmer.evaluation.episode_results import EpisodeResults
from fsmer.evaluation.isolated import Answer
from fsmer.outside import outside_value
from fsmer.transfer import Method
from fsmer.transfer.method import method_call
from fsmer.transfer.source_model import MethodError

__all__ = ["solve_episodes"]

# Episodes handed to a method at once, and clips x episodes that their query masks may cover.
BATCH = 128
MASK_CELLS = 1 << 26
# Clips x folds whose supports may be written out as indices at once.
FOLD_CELLS = 1 << 22

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class _Batch:
    """Some episodes as arrays, from number `first`."""

    first: int
    names: tuple[str, ...]
    classes: Indices  # (E, way)
    support: Indices  # clips, (E, S)
    labels: Indices  # the places of their classes, (E, S); -1 where the support is shorter
    # Clips, (E, Q), and which cells are asked about, which come before the others; `None`: a column for every clip.
    query: Indices | None
    asked: NDArray[np.bool_]


def solve_episodes(task: EpisodeTask, embeddings: Tensor, todo: NDArray[np.bool_]) -> Iterator[EpisodeResults]:
    """Answers of the episodes in `todo` (E,) and of such as are solved with them; `embeddings` (N, D) of all clips."""
    prior = task.model.class_directions(task.episodes.classes)
    if task.method.transductive:
        _check_queries(task)
    for batch in (_uniform if task.episodes.uniform else _folds)(task, todo):
        yield from _solve_batch(task, embeddings, prior, batch)


def _uniform(task: EpisodeTask, todo: NDArray[np.bool_]) -> Iterator[_Batch]:
    # Masks become indices for transductive methods.
    cells = FOLD_CELLS if task.method.transductive else MASK_CELLS
    size = max(1, min(BATCH, cells // max(len(task.clips), 1))) if task.trusted else 1
    # The batches of finished episodes are drawn again, which is quick, and passed over.
    for drawn in checked_batches(task.episodes, size):
        numbers = range(drawn.start, drawn.start + len(drawn))
        if todo[numbers.start : numbers.stop].any():
            names = tuple(f"episode {number}" for number in numbers)
            asked = drawn.query_mask() if drawn.query is None else np.ones(drawn.query.shape, dtype=bool)
            support, labels = drawn.support, drawn.support_labels
            yield _Batch(drawn.start, names, drawn.classes, support, labels, drawn.query, asked)


def _folds(task: EpisodeTask, todo: NDArray[np.bool_]) -> Iterator[_Batch]:
    """Episodes of different lengths; those about the same classes come together, padded to the longest."""
    episodes, classes = task.episodes, task.episodes.classes
    size = max(1, min(BATCH, FOLD_CELLS // max(len(task.clips), 1))) if task.trusted else 1
    # Whole batches, even where some of their folds are done, so that folds meet as without a break.
    for low in range(0, len(episodes), size):
        if not todo[low : low + size].any():
            continue
        folds = episodes[low : low + size]
        alike = len({fold.classes for fold in folds}) == 1
        for first, group in [(low, folds)] if alike else [(low + i, [fold]) for i, fold in enumerate(folds)]:
            order = np.array([classes.index(name) for name in group[0].classes])
            place = np.full(len(classes) + 1, -1, dtype=np.int64)
            place[order] = np.arange(len(order))
            support, filled = _padded([fold.support for fold in group])
            labels = np.where(filled, place[episodes.codes[support]], -1)
            own = np.broadcast_to(order, (len(group), len(order)))
            names = tuple(fold.name for fold in group)
            yield _Batch(first, names, own, support, labels, *_padded([fold.query for fold in group]))


def _solve_batch(
    task: EpisodeTask, embeddings: Tensor, prior: ClassDirections | None, batch: _Batch
) -> Iterator[EpisodeResults]:
    columns, asked, support, method = batch.query, batch.asked, batch.support, task.method
    method = method.for_model(task.model)
    if not task.trusted:
        columns = (np.flatnonzero(asked[0]) if columns is None else columns[asked])[None]
        asked = np.ones(columns.shape, dtype=bool)
        method, model = task.learner()
        method = method.for_model(model)
    elif method.transductive and columns is None:
        columns, asked = _padded([np.flatnonzero(row) for row in asked])
    handed, order = columns, None
    if columns is not None:
        order = _orders(task, batch.first, asked)
        handed = np.take_along_axis(columns, order, axis=1)
        if method.transductive:
            handed = np.where(asked, handed, -1)
        if not task.trusted:
            # The clips of this episode alone, since rows of the whole table tell which clips lie beside which.
            embeddings = embeddings[torch.from_numpy(np.concatenate([support, handed], axis=1)[0])]
            support, handed = np.split(np.arange(len(embeddings))[None], [support.shape[1]], axis=1)
    way = batch.classes.shape[1]
    everything = way == len(task.episodes.classes) and bool((batch.classes == np.arange(way)).all())
    options = {"way": way, "prior": prior, "classes": None if everything else batch.classes}
    arguments = (method, (embeddings, support, batch.labels, handed), options)
    pieces: Iterable[Answer] = _probabilities(*arguments)
    if task.processes is not None:
        about = f"{batch.names[0]!r}" + (f" and {len(batch.names) - 1:,} more" if len(batch.names) > 1 else "")
        pieces = task.processes.call(_probabilities, *arguments, threads=torch.get_num_threads(), about=about)
    for start, _, answers in pieces:
        piece = slice(start, start + len(answers))
        if order is not None:
            answers = put_back(answers, order[piece])
        episode, column = np.nonzero(asked[piece])
        clip = column if columns is None else columns[piece][episode, column]
        found = task.checked(answers[episode, column], way, batch.names[piece], episode)
        yield task.results(batch.first + start, batch.names[piece], batch.classes[piece], episode, clip, found)


def _check_queries(task: EpisodeTask) -> None:
    """Refuse episodes with a single query, which a transductive method has nothing to compare with."""
    for batch in (_uniform if task.episodes.uniform else _folds)(task, np.ones(len(task.episodes), dtype=bool)):
        for name, asked in zip(batch.names, batch.asked.sum(axis=1).tolist(), strict=True):
            if asked == 1:
                raise ProtocolError(
                    f"the method {task.method.name!r} compares the query clips of an episode with each other, but "
                    f"{name!r} has only one; leave out subjects with one clip, or use a method that answers each clip "
                    "by itself, such as 'simpleshot'."
                )
        if task.episodes.uniform:
            return


def _orders(task: EpisodeTask, first: int, asked: NDArray[np.bool_]) -> Indices:
    """Orders of the queries of the episodes from number `first`, (E, Q); cells that are not asked stay behind."""
    lengths = asked.sum(axis=1)
    orders = np.tile(np.arange(asked.shape[1]), (len(asked), 1))
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        orders[rows, :length] = query_orders(task.query_seed, first + rows, length)
    return orders


def _probabilities(method: Method, arrays: Sequence[Any], options: Mapping[str, Any]) -> Iterator[Answer]:
    """Place of the first episode of a chunk and the probabilities (e, Q, way), chunk by chunk; see `Method.solve`."""
    embeddings, support, _, query = arrays
    wanted, done = (len(embeddings) if query is None else query.shape[1], options["way"]), 0
    who = f"solve of the method {method.name!r} ({type(method).__name__})"
    with method_call(method):
        for piece, logits in method.solve(*arrays, **options):
            start = piece.start if isinstance(piece, slice) else None
            if start != done or not isinstance(logits, Tensor) or logits.shape[1:] != wanted or not len(logits):
                raise MethodError(
                    f"{who} gives {outside_value(piece)} and {outside_value(logits)}, but the slice of the episodes "
                    f"from {done} on and their logits (E, {wanted[0]}, {wanted[1]}) are expected; mend its solve."
                )
            done += len(logits)
            yield start, [], torch.softmax(logits, dim=-1).numpy()
    if done != len(support):
        raise MethodError(f"{who} answers {done} of {len(support)} episodes; mend its solve.")


def _padded(rows: Sequence[Indices]) -> tuple[Indices, NDArray[np.bool_]]:
    """Index lists of unequal length as one array, and which of its cells are filled."""
    lengths = np.array([len(row) for row in rows])
    filled = np.arange(lengths.max(initial=0)) < lengths[:, None]
    values = np.zeros(filled.shape, dtype=np.int64)
    values[filled] = np.concatenate(rows)
    return values, filled
