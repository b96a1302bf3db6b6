"""The episodes of a run: fitted and answered together, side by side, in processes, or one by one."""

from __future__ import annotations

import contextlib
import copy
import functools
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsmer.backbones import Backbone, ClassDirections, model_hash
from fsmer.backbones.base import is_trusted
from fsmer.episodic.shuffles import query_orders, random_order
from fsmer.evaluation.embedding_cache import content_ids, embed_cached
from fsmer.evaluation.initial_weights import InitialWeights
from fsmer.evaluation.isolated import Answer, ProcessEnded, Processes
from fsmer.evaluation.predictions import Predictions
from fsmer.evaluation.run_folder import EpisodeResults, PartStore, RunFolder, RunSize
from fsmer.evaluation.selection import GridPoint, InnerEpisodes, Rule, TrainingRun, best
from fsmer.memory import free_memory, out_of_memory
from fsmer.training.stacked import can_stack
from fsmer.transfer import Method, Recognizer
from fsmer.transfer.adapt import described
from fsmer.transfer.fine_tuning import FineTuning, TrainsTogether
from fsmer.transfer.full_training import Train
from fsmer.transfer.method import solves_together
from fsmer.transfer.recognizer import check_answers
from fsmer.transfer.source_model import SourceModel

if TYPE_CHECKING:
    from fsmer.data import ClipSet
    from fsmer.episodic.episodes import Episodes

__all__ = [
    "Progress",
]


# Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


# Results of episodes that are solved together are written at least this often; trained folds at once.
FLUSH_SECONDS = 10.0


# Episodes handed to a method at once, and clips x episodes that their query masks may cover.
BATCH = 128


MASK_CELLS = 1 << 26


# Clips x folds whose supports may be written out as indices at once.
FOLD_CELLS = 1 << 22


# What processes take to start, on a machine that is not idle; folds that are done by then stay in this one.
START_SECONDS = 15.0


# What a worker needs beside weights, their gradients, moments and copies.
WORKER_BYTES, COPIES = 1 << 30, 8


# In place of a stage: the end of the training.
END = 0


@dataclass(frozen=True)
class _Result:
    """What one seed gave."""

    answers: EpisodeResults
    weights: str
    honest: EpisodeResults | None = None
    chosen: NDArray[np.int64] | None = None


@dataclass
class _Engine:
    """One evaluation: what is solved on what, with which means; `solved` does the work of one seed."""

    # Seed of the episodes and of the orders of their queries.
    drawn: int
    processes: Processes | None
    clips: ClipSet
    episodes: Episodes
    start: InitialWeights
    descriptions: dict[str, str]
    families: list[TrainingRun]
    candidates: list[GridPoint]
    rule: Rule
    jobs: int | str | None
    memory: int | None
    cache: Path | None
    progress: Progress
    folder: RunFolder | None = None
    taken_over: int = 0
    fold_seconds: float | None = None
    seeds: Sequence[int] = ()
    # Answers of seeds whose turn has not come, trained in one stack with those of an earlier one.
    ahead: dict[int, list[EpisodeResults]] = field(default_factory=dict)
    _embedded: tuple[Backbone, Tensor] | None = None
    _content: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    _inner: InnerEpisodes | None = None

    def content(self, backbone: Backbone, *, embed: bool) -> NDArray[np.uint8]:
        """Content ids of the clips in play; with `embed`, embeddings too where the method keeps the backbone."""
        if embed and self.families[0].method.keeps_backbone:
            self.embeddings(backbone)
        else:
            used = self.clips[self.episodes.codes >= 0]
            self._content = content_ids(backbone, used, progress=_stage(self.progress, "looking at clips"))
        return self._content

    def embeddings(self, backbone: Backbone) -> Tensor:
        """One row a clip; clips that no episode uses are not read and stay zero."""
        if self._embedded is not None and self._embedded[0] is backbone:
            return self._embedded[1]
        used = np.flatnonzero(self.episodes.codes >= 0)
        # A network from outside could embed a clip by its row among the others, which may lie class by class.
        order = np.arange(len(used)) if is_trusted(backbone) else random_order(self.drawn, 0, len(used))
        stage = _stage(self.progress, "embedding clips")
        found, content = embed_cached(backbone, self.clips[used[order]], folder=self.cache, progress=stage)
        embeddings = torch.zeros(len(self.clips), found.shape[1])
        embeddings[torch.from_numpy(used[order])] = found
        self._content = np.empty_like(content)
        self._content[order] = content
        self._embedded = (backbone, embeddings)
        return embeddings

    def solved(self, seed: int, method: Method) -> _Result:
        """Answers of all episodes by one seed, chosen as the rule says."""
        backbone = self.start.backbone(seed)
        model = described(SourceModel.wrap(backbone), self.descriptions)
        weights = model_hash(backbone)
        solve = functools.partial(self._solve, model, seed, weights)
        if self.rule == "fixed":
            others = self._later(seed) if self._stacks(method, backbone) else []
            return _Result(solve(TrainingRun(method), self.episodes, others=others)[END], weights)
        tried = [TrainingRun(seeded(one.method, seed), one.stages) for one in self.families]
        everything = np.arange(len(self.episodes))
        among, truth = _among(self.episodes), self.episodes.codes
        if self.rule == "oracle":
            found = [solve(one, self.episodes) for one in tried]
            answers = [found[one.family][one.stage] for one in self.candidates]
            places = best(answers, truth, everything, among, "acc")
            picked = [part.only(places == place) for place, part in enumerate(answers)]
            return _Result(
                EpisodeResults.joined([part for part in picked if part is not None]), weights, answers[0], places
            )
        if self._inner is None:
            self._inner = InnerEpisodes(self.episodes, self.clips)
        found = [solve(one, self._inner) for one in tried]
        answers = [found[one.family][one.stage] for one in self.candidates]
        places = best(answers, truth, self._inner.owner, among, "uf1")
        parts = []
        for place in np.unique(places).tolist():
            one = self.candidates[place]
            stages = (one.stage,) if one.stage != END else ()
            outer = TrainingRun(tried[one.family].method, stages)
            parts.append(solve(outer, self.episodes, wanted=places == place)[one.stage])
        return _Result(EpisodeResults.joined(parts), weights, chosen=places)

    def _solve(
        self,
        model: SourceModel,
        seed: int,
        weights: str,
        family: TrainingRun,
        episodes: Episodes,
        *,
        wanted: NDArray[np.bool_] | None = None,
        others: Sequence[_Other] = (),
    ) -> dict[int, EpisodeResults]:
        """Answers of one family of candidates, by stage."""
        inner = episodes is self._inner
        stages = family.stages or (END,)
        name = "inner episodes" if inner else "episodes"
        ready = self.ahead.pop(seed, [])
        run = _Run(self, model, family, episodes, others, ready)
        stores = {stage: store for stage in stages if (store := self._store(seed, weights, family, episodes, stage))}
        if wanted is None:
            wanted = np.ones(len(episodes), dtype=bool)
        found, held = _answers(run, stages, stores, wanted, _stage(self.progress, name))
        # What is ready has been written too.
        self.taken_over += held - (len(ready) if stores else 0)
        return found

    def _store(
        self, seed: int, weights: str, family: TrainingRun, episodes: Episodes, stage: int = END
    ) -> PartStore | None:
        if self.folder is None:
            return None
        inner = episodes is self._inner
        about = {"seed": seed, "weights": weights, "method": family.method.to_dict(), "inner": inner}
        size = RunSize(len(episodes), len(self.clips), len(episodes.classes))
        return self.folder.store(size, **about, stage=stage)

    def _stacks(self, method: Method, backbone: Backbone) -> bool:
        """Whether trainings of several seeds can go on as one stacked model, which is how a GPU is kept busy."""
        return (
            isinstance(method, TrainsTogether)
            and solves_together(method)
            and self.processes is None
            and not method.keeps_backbone
            and self.episodes.source is None
            and (self.jobs == "auto" or _processes(self.jobs) is None)
            and can_stack(backbone)
            and not _on_cpu(SourceModel.wrap(backbone))
        )

    def _later(self, seed: int) -> list[_Other]:
        """The seeds that come after this one, and which of their episodes are missing."""
        others = []
        for number in self.seeds[self.seeds.index(seed) + 1 :]:
            backbone = self.start.backbone(number)
            family = TrainingRun(seeded(self.families[0].method, number))
            store = self._store(number, model_hash(backbone), family, self.episodes)
            missing = np.ones(len(self.episodes), dtype=bool)
            for part in [*self.ahead.get(number, []), *([] if store is None else store.read())]:
                missing[part.numbers] = False
            model = described(SourceModel.wrap(backbone), self.descriptions)
            others.append(_Other(number, model, np.flatnonzero(missing), store))
        return others


@dataclass(frozen=True)
class _Other:
    """A seed whose episodes are trained in one stack with those of an earlier one."""

    seed: int
    model: SourceModel
    numbers: NDArray[np.int64]
    store: PartStore | None


class _Run:
    """One method on some episodes; `parts` does the work.

    `others` are trained in one go where the run does not keep the backbone; their answers are laid ready in the engine.
    `ready` are answers that an earlier run has laid ready for this one.
    """

    def __init__(
        self,
        engine: _Engine,
        model: SourceModel,
        family: TrainingRun,
        episodes: Episodes,
        others: Sequence[_Other] = (),
        ready: Sequence[EpisodeResults] = (),
    ) -> None:
        self.engine = engine
        self.others = others
        self.ready = ready
        self.method = family.method
        self.stages = family.stages
        self.clips = engine.clips
        self.episodes = episodes
        self.classes = episodes.classes
        self.model = model
        # Methods that do not declare it get one episode at a time: among others, labels of its queries could be found.
        self.together = solves_together(family.method)
        self.in_memory = not self.together or engine.processes is not None

    def parts(self, todo: NDArray[np.bool_]) -> Iterator[tuple[int, EpisodeResults]]:
        """Stage and answers of the episodes in `todo` (and of such as come with them), a few episodes at a time."""
        for part in self.ready:
            yield END, part
            todo = todo & ~np.isin(np.arange(len(todo)), part.numbers)
        source = self.episodes.source
        if source is not None:
            training = _stage(self.engine.progress, "training on the source")
            taught = self.clips[source].isolated(in_memory=self.in_memory)
            self.model = self.method.train_source(self.model, taught, progress=training)
        if not self.method.keeps_backbone:
            yield from self._trained(np.flatnonzero(todo))
            return
        embeddings = self.engine.embeddings(self.model.backbone)
        prior = self.model.class_directions(self.classes)
        solved = self._uniform if self.episodes.uniform else self._folds
        for part in solved(embeddings, prior, todo):
            yield END, part

    def _uniform(self, embeddings: Tensor, prior: Any, todo: NDArray[np.bool_]) -> Iterator[EpisodeResults]:
        size = max(1, min(BATCH, MASK_CELLS // max(len(self.clips), 1))) if self.together else 1
        # The batches of finished episodes are drawn again, which is quick, and passed over.
        for batch in self.episodes.batches(size):
            first, stop = batch.start, batch.start + len(batch)
            if not todo[first:stop].any():
                continue
            query = batch.query
            asked = batch.query_mask() if query is None else np.ones(query.shape, dtype=bool)
            yield from self._solved(
                embeddings,
                prior,
                first,
                tuple(f"episode {number}" for number in range(first, stop)),
                batch.classes,
                (batch.support, batch.support_labels),
                (query, asked),
            )

    def _folds(self, embeddings: Tensor, prior: Any, todo: NDArray[np.bool_]) -> Iterator[EpisodeResults]:
        size = max(1, min(BATCH, FOLD_CELLS // max(len(self.clips), 1))) if self.together else 1
        # Whole batches, even where some of their folds are done, so that folds meet as without a break.
        for low in range(0, len(self.episodes), size):
            if not todo[low : low + size].any():
                continue
            folds = self.episodes[low : low + size]
            # Folds about the same classes are solved together, padded to the longest.
            alike = len({fold.classes for fold in folds}) == 1
            for first, group in [(low, folds)] if alike else [(low + i, [fold]) for i, fold in enumerate(folds)]:
                order = np.array([self.classes.index(name) for name in group[0].classes])
                place = np.full(len(self.classes) + 1, -1, dtype=np.int64)
                place[order] = np.arange(len(order))
                support, filled = _padded([fold.support for fold in group])
                yield from self._solved(
                    embeddings,
                    prior,
                    first,
                    tuple(fold.name for fold in group),
                    np.broadcast_to(order, (len(group), len(order))),
                    (support, np.where(filled, place[self.episodes.codes[support]], -1)),
                    _padded([fold.query for fold in group]),
                )

    def _solved(
        self,
        embeddings: Tensor,
        prior: Any,
        first: int,
        names: tuple[str, ...],
        classes: NDArray[np.int64],
        support: tuple[NDArray[np.int64], NDArray[np.int64]],
        query: tuple[NDArray[np.int64] | None, NDArray[np.bool_]],
    ) -> Iterator[EpisodeResults]:
        """Fit and score episodes from arrays.

        `support` is clips and their classes; `query` is clips (``None``: a column for every clip) and the cells asked,
        which come before the others.
        """
        columns, asked = query
        method = self.method
        if not self.together:
            columns = np.flatnonzero(asked[0])[None] if columns is None else columns[asked][None]
            asked = np.ones(columns.shape, dtype=bool)
            method, _ = self._learner()
        handed, order = columns, None
        if columns is not None:
            order = self._orders(first, asked)
            handed = np.take_along_axis(columns, order, axis=1)
        if not self.together:
            # The clips of this episode alone, since rows of the whole table tell which clips lie beside which.
            rows = np.concatenate([support[0], handed], axis=1)
            embeddings = embeddings[torch.from_numpy(rows[0])]
            places = np.arange(rows.shape[1])[None]
            support, handed = (places[:, : support[0].shape[1]], support[1]), places[:, support[0].shape[1] :]
        all_classes = classes.shape[1] == len(self.classes) and bool((classes == np.arange(len(self.classes))).all())
        task = (method, embeddings, *support, handed, classes.shape[1], prior, None if all_classes else classes)
        pieces: Iterable[Answer] = _solve(*task)
        if self.engine.processes is not None:
            about = f"{names[0]!r}" + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")
            pieces = self.engine.processes.call(_solve, *task, threads=torch.get_num_threads(), about=about)
        for start, _, answers in pieces:
            piece = slice(start, start + len(answers))
            if order is not None:
                answers = _put_back(answers, order[piece])
            episode, column = np.nonzero(asked[piece])
            clip = column if columns is None else columns[piece][episode, column]
            found = self._checked(answers[episode, column], classes.shape[1], names[piece], episode)
            yield self._part(first + start, names[piece], classes[piece], episode, clip, found)

    def _orders(self, first: int, asked: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Orders of the queries of the episodes from number `first`, (E, Q); cells that are not asked stay behind."""
        lengths = asked.sum(axis=1)
        orders = np.tile(np.arange(asked.shape[1]), (len(asked), 1))
        for length in np.unique(lengths).tolist():
            rows = np.flatnonzero(lengths == length)
            orders[rows, :length] = query_orders(self.engine.drawn, first + rows, length)
        return orders

    def _trained(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, EpisodeResults]]:
        """Episodes of a method that changes the backbone, each as soon as it is finished."""
        rest, count = numbers, _processes(self.engine.jobs)
        if self.engine.processes is not None:
            count = self._worth(len(numbers)) if self.engine.jobs == "auto" else count or 1
            yield from self._in_processes(numbers, count)
            return
        if count is None and self.engine.jobs == "auto":
            count = self._worth(len(numbers))
            if count > 1 and self.engine.fold_seconds is None:
                first, rest = numbers[:1], numbers[1:]
                began = time.perf_counter()
                yield from self._here(first)
                self.engine.fold_seconds = time.perf_counter() - began
            if len(rest) * (self.engine.fold_seconds or 0.0) < START_SECONDS:
                count = 1
        if count is not None and count > 1 and len(rest) > 1:
            rest = yield from self._in_processes(rest, count)
        yield from self._here(rest)

    def _worth(self, folds: int) -> int:
        """How many processes this machine has cores and memory for; one where the folds cannot leave this process."""
        from joblib import cpu_count  # type: ignore[import-untyped]

        weights = list(self.model.backbone.parameters())
        stays = not self.together and self.engine.processes is None
        if stays or not _on_cpu(self.model):
            return 1
        each = WORKER_BYTES + COPIES * sum(value.numel() * value.element_size() for value in weights)
        return max(1, min(int(cpu_count()), folds, free_memory() // each))

    def _here(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, EpisodeResults]]:
        """Episodes in this process."""
        with _one_thread() if _on_cpu(self.model) else contextlib.nullcontext():
            if self.stages:
                for number in numbers.tolist():
                    for stage, classes, answers in _fold_answers(*self._fold(number)):
                        yield stage, self._answered(number, classes, answers)
            else:
                for number, recognizer in self._recognizers(numbers):
                    answers = recognizer.predict_proba(self._query(number))
                    yield END, self._answered(number, recognizer.classes_.tolist(), answers)

    def _recognizers(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, Recognizer]]:
        if not self.together:
            supports = _Supports(self.clips, self.episodes, numbers, in_memory=True)
            for member, number in enumerate(numbers.tolist()):
                method, model = self._learner()
                yield number, method.fit(model, supports[member], classes=self.episodes[number].classes)
            return
        # What others have left to do comes behind the episodes of this run.
        more = [(other, number) for other in self.others for number in other.numbers.tolist()]
        everyone = np.concatenate([numbers, *(other.numbers for other in self.others)])
        if not len(everyone):
            return
        found = self.method.fit_many(
            [self.model] * len(numbers) + [other.model for other, _ in more] if more else self.model,
            _Supports(self.clips, self.episodes, everyone),
            seeds=[None] * len(numbers) + [other.seed for other, _ in more],
            classes=[self.episodes[number].classes for number in everyone.tolist()],
            memory=self.engine.memory,
        )
        for member, recognizer in found:
            if member < len(numbers):
                yield int(numbers[member]), recognizer
                continue
            other, number = more[member - len(numbers)]
            answers = recognizer.predict_proba(self._query(number))
            part = self._answered(number, recognizer.classes_.tolist(), answers)
            if other.store is not None:
                other.store.write([part])
            self.engine.ahead.setdefault(other.seed, []).append(part)

    def _in_processes(
        self, numbers: NDArray[np.int64], count: int
    ) -> Generator[tuple[int, EpisodeResults], None, NDArray[np.int64]]:
        """Episodes in `count` processes, in fewer when memory runs out; returns those that are left for this one.

        Isolated ones are all done in processes, each in one of its own, of which threads are in charge.
        """
        from joblib import Parallel, delayed

        left, apart = numbers.tolist(), self.engine.processes
        how: dict[str, Any] = {} if apart is None else {"prefer": "threads"}
        while left and (count > 1 or apart is not None):
            tasks = (
                delayed(_fold_in_process)(number, self.episodes[number].name, apart, *self._fold(number))
                for number in tuple(left)
            )
            try:
                for number, found in Parallel(n_jobs=count, return_as="generator_unordered", **how)(tasks):
                    left.remove(number)
                    for stage, classes, answers in found:
                        yield stage, self._answered(number, classes, answers)
            except Exception as error:
                if count == 1 or not (isinstance(error, ProcessEnded) or out_of_memory(error)):
                    raise
                fewer = min(count, len(left)) // 2
                warnings.warn(
                    f"memory ran out with {count} folds at a time ({type(error).__name__}); going on with "
                    f"{max(fewer, 1)} at a time.",
                    stacklevel=2,
                )
                count = max(fewer, 1)
        return np.array(left, dtype=np.int64)

    def _fold(self, number: int) -> tuple[Method, SourceModel, ClipSet, ClipSet, tuple[str, ...], tuple[int, ...]]:
        episode = self.episodes[number]
        support = self.clips[episode.support].isolated(in_memory=self.in_memory)
        return *self._learner(), support, self._query(number), episode.classes, self.stages

    def _learner(self) -> tuple[Method, SourceModel]:
        """Method and model for one fold: copies for code from outside, which may train in place and so remember."""
        return (self.method, self.model) if self.together else copy.deepcopy((self.method, self.model))

    def _query(self, number: int) -> ClipSet:
        query = self.episodes[number].query
        order = query_orders(self.engine.drawn, [number], len(query))[0]
        return self.clips[query[order]].isolated(labelled=False, in_memory=self.in_memory)

    def _answered(self, number: int, classes: Sequence[str], answers: NDArray[np.float32]) -> EpisodeResults:
        episode = self.episodes[number]
        owner = np.zeros(len(episode.query), dtype=np.int64)
        handed = query_orders(self.engine.drawn, [number], len(owner))
        answers = self._checked(answers, len(classes), (episode.name,), owner, handed[0])
        answers = _put_back(answers[None], handed)[0]
        order = np.array([[self.classes.index(name) for name in classes]])
        return self._part(number, (episode.name,), order, owner, episode.query, answers)

    def _checked(
        self,
        answers: Any,
        way: int,
        episodes: Sequence[str],
        owner: NDArray[np.int64],
        order: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        return check_answers(answers, way, f"the method {self.method.name!r}", episodes, owner, order)

    def _part(
        self,
        start: int,
        names: tuple[str, ...],
        classes: NDArray[np.int64],
        episode: NDArray[np.int64],
        clip: NDArray[np.int64],
        answers: NDArray[np.float32],
    ) -> EpisodeResults:
        """Put answers about an episode's own classes (E, way) into columns of all classes."""
        among = np.zeros((len(names), len(self.classes)), dtype=bool)
        np.put_along_axis(among, classes, True, axis=1)
        probabilities = np.full((len(clip), len(self.classes)), np.nan, dtype=np.float32)
        columns = classes[episode]
        np.put_along_axis(probabilities, columns, answers, axis=1)
        predicted = columns[np.arange(len(clip)), answers.argmax(axis=1)] if len(clip) else np.zeros(0)
        return EpisodeResults(
            np.arange(start, start + len(names)),
            names,
            among,
            Predictions(
                episode=(start + episode).astype(np.int32),
                clip=clip.astype(np.int64),
                predicted=predicted.astype(np.int16),
                probabilities=probabilities,
            ),
        )


class _Supports(Sequence["ClipSet"]):
    """The supports of some episodes, each made apart from all other clips when it is asked for."""

    def __init__(
        self, clips: ClipSet, episodes: Episodes, numbers: NDArray[np.int64], *, in_memory: bool = False
    ) -> None:
        self._in_memory = in_memory
        self._clips = clips
        self._episodes = episodes
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> ClipSet: ...
    @overload
    def __getitem__(self, index: slice) -> list[ClipSet]: ...
    def __getitem__(self, index: int | slice) -> ClipSet | list[ClipSet]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self._clips[self._episodes[int(self._numbers[index])].support].isolated(in_memory=self._in_memory)


def _answers(
    run: _Run,
    stages: Sequence[int],
    stores: Mapping[int, PartStore],
    wanted: NDArray[np.bool_],
    progress: Callable[[int, int], None],
) -> tuple[dict[int, EpisodeResults], int]:
    """All wanted episodes, those of an earlier start from its store, and how many these are."""
    parts = {stage: stores[stage].read() if stage in stores else [] for stage in stages}
    done = {stage: np.zeros(len(wanted), dtype=bool) for stage in stages}
    for stage, held in parts.items():
        # What two files hold counts once.
        kept = []
        for part in held:
            new = part.only(wanted & ~done[stage])
            if new is not None:
                done[stage][new.numbers] = True
                kept.append(new)
        parts[stage] = kept
    total = int(wanted.sum())

    def finished() -> int:
        return int(np.logical_and.reduce(list(done.values())).sum())

    before = finished()
    progress(before, total)
    fresh: dict[int, list[EpisodeResults]] = {stage: [] for stage in stages}
    written = time.monotonic()
    patience = FLUSH_SECONDS if run.method.keeps_backbone else 0.0

    def flush() -> None:
        for stage, waiting in fresh.items():
            if waiting:
                parts[stage].append(stores[stage].write(waiting) if stage in stores else EpisodeResults.joined(waiting))
                fresh[stage] = []

    try:
        todo = wanted & ~np.logical_and.reduce(list(done.values()))
        if todo.any():
            for stage, part in run.parts(todo):
                new = part.only(wanted & ~done[stage])
                if new is None:
                    continue
                fresh[stage].append(new)
                done[stage][new.numbers] = True
                if stores and time.monotonic() - written >= patience:
                    flush()
                    written = time.monotonic()
                progress(finished(), total)
    finally:
        # Whatever stops the run, a key press included: what is done is kept for the next one.
        flush()
    return {stage: EpisodeResults.joined(held) for stage, held in parts.items()}, before


def _put_back(answers: NDArray[np.float32], order: NDArray[np.int64]) -> NDArray[np.float32]:
    """Answers (E, Q, C) to queries that were handed over in an order (E, Q), in the order before."""
    found = np.empty_like(answers)
    found[np.arange(len(order))[:, None], order] = answers
    return found


def _solve(
    method: Method,
    embeddings: Tensor,
    support: NDArray[np.int64],
    codes: NDArray[np.int64],
    query: NDArray[np.int64] | None,
    way: int,
    prior: ClassDirections | None,
    classes: NDArray[np.int64] | None,
) -> Iterator[Answer]:
    """Number of the first episode of a chunk and the probabilities (e, Q, way), chunk by chunk; see `Method.solve`."""
    for piece, logits in method.solve(embeddings, support, codes, query, way=way, prior=prior, classes=classes):
        yield piece.start, [], torch.softmax(logits, dim=-1).numpy()


def _fold_answers(
    method: Method,
    model: SourceModel,
    support: ClipSet,
    query: ClipSet,
    classes: tuple[str, ...],
    stages: tuple[int, ...],
) -> Iterator[Answer]:
    """Learn one fold and answer its queries, at its stages where it has any."""
    if stages and isinstance(method, (Train, FineTuning)):
        for stage, recognizer in method.fit_stages(model, support, stages, classes=classes):
            yield stage, recognizer.classes_.tolist(), recognizer.predict_proba(query)
        return
    if solves_together(method):
        # As folds in one process are trained, to the last bit.
        ((_, recognizer),) = method.fit_many(model, [support], seeds=[None], classes=[classes])
    else:
        recognizer = method.fit(model, support, classes=classes)
    yield END, recognizer.classes_.tolist(), recognizer.predict_proba(query)


def _fold_in_process(number: int, name: str, processes: Processes | None, *fold: Any) -> tuple[int, list[Answer]]:
    """One fold in a worker, or in a process that is its own."""
    if processes is not None:
        return number, processes.call(_fold_answers, *fold, threads=1, about=repr(name))
    with _one_thread():
        return number, list(_fold_answers(*fold))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Folds are what runs in parallel: threads below would fight for the same cores, and their number change digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _on_cpu(model: SourceModel) -> bool:
    return all(value.device.type == "cpu" for value in model.backbone.parameters())


def _processes(jobs: int | str | None) -> int | None:
    """How many folds at a time are asked for, here or by a surrounding joblib configuration; ``None``: nobody asked."""
    from joblib import effective_n_jobs
    from joblib.parallel import LokyBackend, get_active_backend  # type: ignore[import-untyped]

    if isinstance(jobs, int):
        return int(effective_n_jobs(jobs)) if jobs != 1 else 1
    backend, count = get_active_backend()
    if count is None and isinstance(backend, LokyBackend):
        return None
    # A cluster knows best how many it is.
    return int(effective_n_jobs(-1 if count is None else count))


def seeded(method: Method, seed: int) -> Method:
    """The method with this seed, where it has one."""
    return method.set_params(seed=seed) if "seed" in method.get_params() else method


def _among(episodes: Episodes) -> NDArray[np.bool_]:
    """Classes of each episode, (E, C)."""
    place = {name: code for code, name in enumerate(episodes.classes)}
    among = np.zeros((len(episodes), len(place)), dtype=bool)
    for number, episode in enumerate(episodes):
        among[number, [place[name] for name in episode.classes]] = True
    return among


def _stage(progress: Progress, name: str) -> Callable[[int, int], None]:
    # No closure over anything but the callback: what is handed to a learner must lead nowhere.
    return functools.partial(progress, name)


def _padded(rows: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Index lists of unequal length as one array, and which of its cells are filled."""
    lengths = np.array([len(row) for row in rows])
    filled = np.arange(lengths.max(initial=0)) < lengths[:, None]
    values = np.zeros(filled.shape, dtype=np.int64)
    values[filled] = np.concatenate(rows)
    return values, filled


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total
