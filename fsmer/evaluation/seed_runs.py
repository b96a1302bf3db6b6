"""An evaluation seed by seed: what is chosen, what an earlier start has finished, and what is left to solve."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsmer.backbones import Backbone, model_hash
from fsmer.backbones.base import is_trusted
from fsmer.episodic.episode import Mask
from fsmer.episodic.episodes import Episodes
from fsmer.episodic.shuffles import random_order
from fsmer.evaluation.answers import EpisodeTask
from fsmer.evaluation.embedding_cache import content_ids, embed_cached
from fsmer.evaluation.episode_results import EpisodeResults, FinishedEpisodes, PartStore, RunSize
from fsmer.evaluation.isolated import Processes
from fsmer.evaluation.run_folder import RunFolder
from fsmer.evaluation.selection import END, InnerEpisodes, TrainingRun, best_points
from fsmer.evaluation.setup import Evaluation, RunOptions
from fsmer.evaluation.solving import solve_episodes
from fsmer.evaluation.training_folds import OtherSeed, TrainingFolds, on_cpu, process_count
from fsmer.training.stacked import can_stack
from fsmer.transfer import Method
from fsmer.transfer.adapt import described
from fsmer.transfer.fine_tuning import TrainsTogether
from fsmer.transfer.method import solves_together, source_learnt
from fsmer.transfer.source_model import SourceModel

__all__ = ["SeedResult", "SeedRuns"]

# Results of episodes that are solved together are written at least this often; trained folds at once.
FLUSH_SECONDS = 10.0


@dataclass(frozen=True)
class SeedResult:
    """What one seed gave."""

    answers: EpisodeResults
    weights: str  # hash of those that learning started from
    honest: EpisodeResults | None = None  # of an oracle, the answers with the method's own values
    chosen: NDArray[np.int64] | None = None  # grid point of each episode, where one was chosen


class SeedRuns:
    """Solves an evaluation seed by seed; `resumed` counts the episodes that an earlier start had finished."""

    def __init__(self, evaluation: Evaluation, options: RunOptions) -> None:
        self.evaluation = evaluation
        self.options = options
        self.folder: RunFolder | None = None
        self.resumed = 0
        self._processes = Processes() if options.isolate == "process" else None
        self._training = TrainingFolds(options.jobs, options.memory)
        self._embedded: tuple[Backbone, Tensor] | None = None
        self._content = np.zeros((0, 0), np.uint8)
        self._inner: InnerEpisodes | None = None

    def end(self) -> None:
        if self._processes is not None:
            self._processes.end()

    def content(self, *, embed: bool) -> NDArray[np.uint8]:
        """Content ids of the clips in play; with `embed`, embeddings too where the method keeps the backbone."""
        one = self.evaluation
        if embed and one.method.keeps_backbone:
            self._embeddings(one.backbone)
        else:
            progress = functools.partial(self.options.progress, "reading clips")
            self._content = content_ids(one.backbone, one.clips[one.episodes.codes >= 0], progress=progress)
        return self._content

    def _embeddings(self, backbone: Backbone) -> Tensor:
        """One row a clip; clips that no episode uses are not read and stay zero."""
        if self._embedded is not None and self._embedded[0] is backbone:
            return self._embedded[1]
        clips, used = self.evaluation.clips, np.flatnonzero(self.evaluation.episodes.codes >= 0)
        # A network from outside could embed a clip by its row among the others, which may lie class by class.
        order = np.arange(len(used)) if is_trusted(backbone) else random_order(self.evaluation.seed, 0, len(used))
        progress = functools.partial(self.options.progress, "embedding clips")
        found, content = embed_cached(backbone, clips[used[order]], folder=self.options.cache, progress=progress)
        embeddings = torch.zeros(len(clips), found.shape[1])
        embeddings[torch.from_numpy(used[order])] = found
        self._content = np.empty_like(content)
        self._content[order] = content
        self._embedded = (backbone, embeddings)
        return embeddings

    def solve(self, seed: int) -> SeedResult:
        """Answers of all episodes by one seed, chosen as the rule says."""
        one = self.evaluation
        backbone = one.start.backbone(seed)
        weights = model_hash(backbone)
        solve = functools.partial(self._solve, self._model(backbone), seed, weights)
        trainings = [TrainingRun(run.method.seeded(seed), run.checkpoint_steps) for run in one.trainings]
        if one.rule == "fixed":
            others = self._later_seeds(seed) if self._stacks(backbone) else []
            return SeedResult(solve(trainings[0], one.episodes, others=others)[END], weights)
        if one.rule == "nested" and self._inner is None:
            self._inner = InnerEpisodes(one.episodes, one.clips)
        asked: Episodes = one.episodes if self._inner is None else self._inner
        owner = np.arange(len(asked)) if self._inner is None else self._inner.owner
        found = [solve(run, asked) for run in trainings]
        answers = [found[point.training][point.checkpoint_step] for point in one.grid_points]
        chosen = best_points(answers, one.episodes, owner, "acc" if one.rule == "oracle" else "uf1")
        if one.rule == "oracle":
            picked = [part.only(chosen == place) for place, part in enumerate(answers)]
            joined = EpisodeResults.joined([part for part in picked if part is not None])
            return SeedResult(joined, weights, answers[0], chosen)
        parts = []
        for place in np.unique(chosen).tolist():
            point = one.grid_points[place]
            steps = (point.checkpoint_step,) if point.checkpoint_step != END else ()
            outer = TrainingRun(trainings[point.training].method, steps)
            parts.append(solve(outer, one.episodes, wanted=chosen == place)[point.checkpoint_step])
        return SeedResult(EpisodeResults.joined(parts), weights, chosen=chosen)

    def _model(self, backbone: Backbone) -> SourceModel:
        return described(SourceModel.wrap(backbone), self.evaluation.descriptions)

    def _solve(
        self,
        model: SourceModel,
        seed: int,
        weights: str,
        run: TrainingRun,
        episodes: Episodes,
        *,
        wanted: Mask | None = None,
        others: Sequence[OtherSeed] = (),
    ) -> dict[int, EpisodeResults]:
        """Answers of one training by checkpoint step: those of an earlier start from its store, the others anew."""
        one, steps = self.evaluation, run.checkpoint_steps or (END,)
        task = EpisodeTask(run, model, one.clips, episodes, one.seed, self._processes)
        stores = {step: store for step in steps if (store := self._store(seed, weights, run.method, episodes, step))}
        prefetched = self._training.prefetched.pop(seed, [])
        notify = functools.partial(self.options.progress, "episodes" if episodes is one.episodes else "inner episodes")
        wanted = np.ones(len(episodes), dtype=bool) if wanted is None else wanted
        finished = FinishedEpisodes(stores, steps, wanted)
        # What was prefetched has been written too, but not by an earlier start.
        self.resumed += finished.count() - (len(prefetched) if stores else 0)
        notify(finished.count(), int(wanted.sum()))
        written = time.monotonic()
        patience = FLUSH_SECONDS if run.method.keeps_backbone else 0.0
        try:
            if (todo := finished.missing()).any():
                for step, part in self._results(task, todo, prefetched, others):
                    finished.add(step, part)
                    if stores and time.monotonic() - written >= patience:
                        finished.write()
                        written = time.monotonic()
                    notify(finished.count(), int(wanted.sum()))
        finally:
            # Whatever stops the run, a key press included: what is done is kept for the next one.
            finished.write()
        return finished.joined()

    def _results(
        self, task: EpisodeTask, todo: Mask, prefetched: Sequence[EpisodeResults], others: Sequence[OtherSeed]
    ) -> Iterator[tuple[int, EpisodeResults]]:
        """Checkpoint step and results of the episodes in `todo` (and of such as come with them)."""
        for part in prefetched:
            yield END, part
            todo = todo & ~np.isin(np.arange(len(todo)), part.numbers)
        if task.episodes.source is not None:
            progress = functools.partial(self.options.progress, "training on the source")
            source = task.isolated(task.episodes.source)
            task = replace(task, model=source_learnt(task.method, task.model, source, progress))
        if task.method.keeps_backbone:
            embeddings = self._embeddings(task.model.backbone)
            yield from ((END, part) for part in solve_episodes(task, embeddings, todo))
        else:
            yield from self._training.results(task, np.flatnonzero(todo), others)

    def _store(self, seed: int, weights: str, method: Method, episodes: Episodes, step: int = END) -> PartStore | None:
        if self.folder is None:
            return None
        inner = episodes is not self.evaluation.episodes
        size = RunSize(len(episodes), len(self.evaluation.clips), len(episodes.classes))
        # On disk a checkpoint step is called a stage.
        about = {"seed": seed, "weights": weights, "method": method.to_dict(), "inner": inner, "stage": step}
        return self.folder.store(size, **about)

    def _stacks(self, backbone: Backbone) -> bool:
        """Whether trainings of several seeds can go on as one stacked model, which is how a GPU is kept busy."""
        method, jobs = self.evaluation.method, self.options.jobs
        together = isinstance(method, TrainsTogether) and solves_together(method) and not method.keeps_backbone
        alone = self._processes is None and self.evaluation.episodes.source is None
        here = together and alone and (jobs == "auto" or process_count(jobs) is None)
        return here and can_stack(backbone) and not on_cpu(backbone)

    def _later_seeds(self, seed: int) -> list[OtherSeed]:
        one, others = self.evaluation, []
        for number in one.seeds[one.seeds.index(seed) + 1 :]:
            backbone = one.start.backbone(number)
            store = self._store(number, model_hash(backbone), one.method.seeded(number), one.episodes)
            missing = np.ones(len(one.episodes), dtype=bool)
            for part in [*self._training.prefetched.get(number, []), *([] if store is None else store.read())]:
                missing[part.numbers] = False
            others.append(OtherSeed(number, self._model(backbone), np.flatnonzero(missing), store))
        return others
