"""`evaluate`: run a method over a protocol, fit on each episode's support, answer its queries, and report.

Methods that keep the backbone embed each clip once and solve many episodes together; the others go through them one by
one. Either way the code that fits and scores is the one that `fsmer.adapt` deploys.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsmer import __version__
from fsmer.backbones import Backbone, embed, load_model, model_hash
from fsmer.errors import ProtocolError
from fsmer.evaluation.report import Predictions, Report
from fsmer.io import atomic_path, check_writable
from fsmer.transfer import Method, load_method
from fsmer.transfer.adapt import described
from fsmer.transfer.base import SourceModel

if TYPE_CHECKING:
    from fsmer.data import ClipSet
    from fsmer.episodic import Protocol
    from fsmer.episodic.episode import Episode, Episodes

__all__ = ["Progress", "evaluate"]

# Called with what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

# Results on their way to a report are written at least this often.
FLUSH_SECONDS = 10.0
# Episodes handed to a method at once, and clips x episodes that their query masks may cover.
BATCH = 128
MASK_CELLS = 1 << 26
# Answers that a report can hold: above, the predictions alone would fill the memory of most machines.
MAX_ANSWERS = 50_000_000
# Clips x folds whose supports may be written out as indices at once.
FOLD_CELLS = 1 << 22


def evaluate(
    protocol: Protocol | str | os.PathLike[str],
    model: Backbone | str | os.PathLike[str],
    method: Method | str = "cosine",
    *,
    clips: ClipSet | None = None,
    descriptions: Mapping[str, str] | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> Report:
    """Judge a method on a backbone by a protocol.

    The query side of an episode is read after its recognizer has been fitted, and nothing is chosen on it.

    Parameters
    ----------
    protocol : Protocol, name of `fsmer.list_protocols` or path of a YAML file
    model : Backbone, name of `fsmer.list_models` or folder of weights
    method : Method or name of `fsmer.list_methods`
    clips : ClipSet, optional
        Labelled clips; protocols on synthetic clips make their own.
    descriptions : mapping of str to str, optional
        What classes look like in words, see `fsmer.adapt`.
    seed : int, optional
        In place of the protocol's own seed (where it has one); also seeds the bootstrap.
    progress : callable, optional
        Called with (what is being done, done, in all).
    out : path, optional
        Folder for the report (see `Report.save`). While the evaluation runs, finished episodes are kept there too, so
        that an interrupted one leaves no broken file and goes on where it was.
    resume : bool
        Whether to go on with such episodes; they count only for the very same protocol, weights, method and clips.

    Returns
    -------
    Report

    Raises
    ------
    ProtocolError
        The clips cannot give these episodes.
    MissingDatasetError
        A data set that the protocol names is not among the clips.
    UnknownNameError
        No such protocol, model or method.
    OutputError
        `out` cannot be written.

    Examples
    --------
    >>> report = fsmer.evaluate("loso", "facs-flow", "logistic", clips=clips)  # doctest: +SKIP
    >>> report.uf1, report.interval("uf1")  # doctest: +SKIP
    """
    if seed is not None and seed < 0:
        raise ProtocolError(f"seed={seed} is negative; give 0 or a larger whole number.")
    chosen = _as_protocol(protocol, seed)
    solver = load_method(method)
    backbone = model if isinstance(model, Backbone) else load_model(os.fspath(model))
    clips = _prepared(chosen, clips, backbone)
    episodes = chosen.split(clips)
    _check_size(chosen, episodes)
    weights = model_hash(backbone)
    known = described(SourceModel.wrap(backbone), descriptions or {})
    run = _Run(known, solver, clips, episodes, progress or _silent)
    settings = {"name": chosen.name, "title": chosen.title, "hash": chosen.hash, "settings": chosen.to_dict()}
    if descriptions:
        settings["descriptions"] = dict(descriptions)
    store = None
    if out is not None:
        check_writable(out)
        key = _run_key(settings, weights, solver, clips, clips[episodes.codes >= 0])
        store = _PartStore(Path(out), key, resume=resume)
    part = _all_episodes(run, store)
    asked_twice = bool(np.bincount(part.predictions.clip).max(initial=0) > 1)
    report = Report.from_predictions(
        clips,
        part.predictions,
        codes=episodes.codes,
        classes=episodes.classes,
        names=part.names,
        among=None if part.among.all() else part.among,
        # Folds divide the clips among themselves and are pooled; episodes that judge clips repeatedly are averaged.
        averaging="episodes" if len(episodes) > 1 and (episodes.uniform or asked_twice) else "pooled",
        seed=int(chosen.params.get("seed", seed or 0)),
        protocol=settings,
        model={
            "name": backbone.name,
            "weights_hash": weights,
            "input_specs": [spec.to_dict() for spec in backbone.input_specs],
        },
        method=solver.to_dict(),
    )
    if store is not None:
        report.save(store.folder)
        store.clear()
    return report


@dataclass(frozen=True)
class _Part:
    """Answers of the episodes `start` to `start + len(names) - 1`."""

    start: int
    names: tuple[str, ...]
    among: NDArray[np.bool_]
    predictions: Predictions

    @property
    def stop(self) -> int:
        return self.start + len(self.names)

    @classmethod
    def joined(cls, parts: Sequence[_Part]) -> _Part:
        return cls(
            start=parts[0].start,
            names=tuple(name for part in parts for name in part.names),
            among=np.concatenate([part.among for part in parts]),
            predictions=Predictions.joined([part.predictions for part in parts]),
        )


class _Run:
    """One evaluation: what to fit on what; `parts` does the work."""

    def __init__(
        self, model: SourceModel, method: Method, clips: ClipSet, episodes: Episodes, progress: Progress
    ) -> None:
        self.method = method
        self.clips = clips
        self.episodes = episodes
        self.classes = episodes.classes
        self.progress = progress
        self.model = model

    def parts(self, start: int) -> Iterator[_Part]:
        """Answers from episode `start` on, a few episodes at a time."""
        source = self.episodes.source
        if source is not None:
            training = self._stage("training on the source")
            self.model = self.method.train_source(self.model, self.clips[source], progress=training)
        if not self.method.keeps_backbone:
            yield from (self._fitted(index, self.episodes[index]) for index in range(start, len(self.episodes)))
            return
        embeddings = self._embeddings()
        prior = self.model.class_directions(self.classes)
        if self.episodes.uniform:
            yield from self._uniform(embeddings, prior, start)
        else:
            yield from self._folds(embeddings, prior, start)

    def _embeddings(self) -> Tensor:
        """One row a clip; clips that no episode uses are not read and stay zero."""
        used = np.flatnonzero(self.episodes.codes >= 0)
        stage = self._stage("embedding clips")
        if len(used) == len(self.clips):
            return embed(self.model.backbone, self.clips, progress=stage)
        found = embed(self.model.backbone, self.clips[used], progress=stage)
        embeddings = torch.zeros(len(self.clips), found.shape[1])
        embeddings[torch.from_numpy(used)] = found
        return embeddings

    def _uniform(self, embeddings: Tensor, prior: Any, start: int) -> Iterator[_Part]:
        size = max(1, min(BATCH, MASK_CELLS // max(len(self.clips), 1)))
        # The batches of finished episodes are drawn again, which is quick, and passed over.
        for batch in self.episodes.batches(size):
            first, stop = batch.start, batch.start + len(batch)
            if stop <= start:
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

    def _folds(self, embeddings: Tensor, prior: Any, start: int) -> Iterator[_Part]:
        size = max(1, min(BATCH, FOLD_CELLS // max(len(self.clips), 1)))
        # From the beginning of the batch that was cut, so that folds meet in the same batches as without a break.
        for low in range(start - start % size, len(self.episodes), size):
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
    ) -> Iterator[_Part]:
        """Fit and score episodes from arrays.

        `support` is clips and their classes; `query` is clips (``None``: a column for every clip) and the cells asked.
        """
        columns, asked = query
        all_classes = classes.shape[1] == len(self.classes) and bool((classes == np.arange(len(self.classes))).all())
        for piece, logits in self.method.solve(
            embeddings,
            *support,
            columns,
            way=classes.shape[1],
            prior=prior,
            classes=None if all_classes else classes,
        ):
            episode, column = np.nonzero(asked[piece])
            clip = column if columns is None else columns[piece][episode, column]
            answers = torch.softmax(logits, dim=-1).numpy()[episode, column]
            yield self._part(first + piece.start, names[piece], classes[piece], episode, clip, answers)

    def _fitted(self, index: int, episode: Episode) -> _Part:
        """One episode of a method that changes the backbone."""
        recognizer = self.method.fit(self.model, self.clips[episode.support], classes=episode.classes)
        answers = recognizer.predict_proba(self.clips[episode.query])
        order = np.array([[self.classes.index(name) for name in recognizer.classes_]])
        owner = np.zeros(len(episode.query), dtype=np.int64)
        return self._part(index, (episode.name,), order, owner, episode.query, answers)

    def _part(
        self,
        start: int,
        names: tuple[str, ...],
        classes: NDArray[np.int64],
        episode: NDArray[np.int64],
        clip: NDArray[np.int64],
        answers: NDArray[np.float32],
    ) -> _Part:
        """Put answers about an episode's own classes (E, way) into columns of all classes."""
        among = np.zeros((len(names), len(self.classes)), dtype=bool)
        np.put_along_axis(among, classes, True, axis=1)
        probabilities = np.full((len(clip), len(self.classes)), np.nan, dtype=np.float32)
        columns = classes[episode]
        np.put_along_axis(probabilities, columns, answers, axis=1)
        predicted = columns[np.arange(len(clip)), answers.argmax(axis=1)] if len(clip) else np.zeros(0)
        return _Part(
            start,
            names,
            among,
            Predictions(
                episode=(start + episode).astype(np.int32),
                clip=clip.astype(np.int64),
                predicted=predicted.astype(np.int16),
                probabilities=probabilities,
            ),
        )

    def _stage(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(name, done, total)


def _all_episodes(run: _Run, store: _PartStore | None) -> _Part:
    total = len(run.episodes)
    parts = store.read() if store is not None else []
    done = parts[-1].stop if parts else 0
    run.progress("episodes", done, total)
    fresh: list[_Part] = []
    written = time.monotonic()
    try:
        if done < total:
            for part in run.parts(done):
                if part.stop <= done:
                    continue
                if part.start < done:  # a batch that was cut: its head is stored already
                    part = _tail(part, done)
                fresh.append(part)
                done = part.stop
                run.progress("episodes", done, total)
                if store is not None and time.monotonic() - written > FLUSH_SECONDS:
                    parts.append(store.write(fresh))
                    fresh, written = [], time.monotonic()
    except BaseException:
        # Whatever stops the run, a key press included: what is done is kept for the next one.
        if store is not None and fresh:
            store.write(fresh)
        if store is not None and not done:
            store.drop()
        raise
    return _Part.joined([*parts, *fresh])


def _tail(part: _Part, start: int) -> _Part:
    cut = start - part.start
    keep = part.predictions.episode >= start
    names = ("episode", "clip", "predicted", "probabilities")
    predictions = Predictions(*(getattr(part.predictions, name)[keep] for name in names))
    return _Part(start, part.names[cut:], part.among[cut:], predictions)


class _PartStore:
    """Finished episodes of a run that is not finished, as ``.npz`` files in a hidden folder beside the report."""

    def __init__(self, folder: Path, key: str, *, resume: bool) -> None:
        self.folder = folder
        self.parts = folder / f".parts-{key}"
        if not resume:
            shutil.rmtree(self.parts, ignore_errors=True)
        # Find out now, not after hours, that the folder cannot be written.
        with atomic_path(self.parts / "started") as temporary:
            temporary.touch()

    def write(self, parts: Sequence[_Part]) -> _Part:
        part = _Part.joined(parts)
        arrays = {name: getattr(part.predictions, name) for name in ("episode", "clip", "predicted", "probabilities")}
        with (
            atomic_path(self.parts / f"{part.start:08d}-{part.stop:08d}.npz") as temporary,
            open(temporary, "wb") as stream,
        ):
            np.savez(stream, allow_pickle=False, names=np.array(part.names), among=part.among, **arrays)
        return part

    def read(self) -> list[_Part]:
        """The stored episodes from the first on, up to the first gap."""
        found: list[_Part] = []
        for path in sorted(self.parts.glob("*.npz")):
            start, stop = (int(number) for number in path.stem.split("-"))
            if start != (found[-1].stop if found else 0):
                break
            try:
                with np.load(path, allow_pickle=False) as held:
                    predictions = Predictions(held["episode"], held["clip"], held["predicted"], held["probabilities"])
                    part = _Part(start, tuple(held["names"].tolist()), held["among"], predictions)
            except (OSError, ValueError, KeyError, zipfile.BadZipFile):
                # Not written by this code, since it writes whole files: these episodes are computed again.
                break
            if part.stop != stop:
                break
            found.append(part)
        return found

    def drop(self) -> None:
        """Remove what this folder keeps of this run alone."""
        shutil.rmtree(self.parts, ignore_errors=True)

    def clear(self) -> None:
        """Remove what this folder keeps of unfinished runs."""
        for folder in self.folder.glob(".parts-*"):
            shutil.rmtree(folder, ignore_errors=True)


def _as_protocol(protocol: Protocol | str | os.PathLike[str], seed: int | None) -> Protocol:
    from fsmer.episodic import load_protocol

    chosen = load_protocol(protocol)
    return chosen.with_params(seed=seed) if seed is not None and "seed" in chosen.params else chosen


def _prepared(protocol: Protocol, clips: ClipSet | None, backbone: Backbone) -> ClipSet:
    """The clips of the protocol's data sets under its label scheme, or its own synthetic ones."""
    if clips is None and not protocol.synthetic:
        raise ProtocolError(
            f"the protocol {protocol.name!r} needs clips: give some (clips=, or --data on the command line)."
        )
    return protocol.make_clips(specs=backbone.input_specs) if clips is None else protocol.prepare(clips)


def _check_size(protocol: Protocol, episodes: Episodes) -> None:
    # Folds ask each clip about once; K-shot episodes that judge every remaining clip ask all of them every time.
    if not episodes.uniform or protocol.params.get("query") != "rest":
        return
    answers = len(episodes) * int((episodes.codes >= 0).sum())
    if answers > MAX_ANSWERS:
        raise ProtocolError(
            f"{len(episodes):,} episodes that each judge every remaining clip give about {answers:,} answers, more "
            f"than the {MAX_ANSWERS:,} that a report holds; ask for fewer episodes, or for some queries (query=15)."
        )


def _run_key(protocol: dict[str, Any], weights: str, method: Method, clips: ClipSet, used: ClipSet) -> str:
    digest = hashlib.sha256(json.dumps([protocol, weights, method.to_dict()], sort_keys=True, default=str).encode())
    for values in (clips.ids, clips.datasets, clips.subjects, clips.labels):
        digest.update("\n".join(map(str, values.tolist())).encode())
    # The media too: flow that was extracted anew under the same ids is another run.
    for kind in clips.specs:
        for maps in used.batches(kind, 1024):
            digest.update(np.ascontiguousarray(maps).tobytes())
    digest.update(__version__.encode())
    digest.update(json.dumps({kind: spec.to_dict() for kind, spec in clips.specs.items()}, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _padded(rows: Sequence[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Index lists of unequal length as one array, and which of its cells are filled."""
    lengths = np.array([len(row) for row in rows])
    filled = np.arange(lengths.max(initial=0)) < lengths[:, None]
    values = np.zeros(filled.shape, dtype=np.int64)
    values[filled] = np.concatenate(rows)
    return values, filled


def _silent(stage: str, done: int, total: int) -> None:
    del stage, done, total
