"""Choosing epochs and parameters: not at all, on the support alone, or (to show what that hides) on the test clips.

``"fixed"`` takes the method as it is. ``"nested"`` deals the subjects of each support into inner folds and takes what
is best there; the query side is asked once, at the end. ``"oracle"`` takes for every episode what is best on its own
query side, as many published scripts do; its figures are no estimate of anything and carry that name everywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fsmer.backbones import Backbone
from fsmer.data import ClipSet
from fsmer.episodic.episode import Episode
from fsmer.episodic.episodes import Episodes
from fsmer.episodic.sides import distinct_subjects
from fsmer.errors import ProtocolError
from fsmer.evaluation.episode_results import EpisodeResults
from fsmer.evaluation.metrics import confusion_matrix, score_confusion
from fsmer.transfer import Method, load_method
from fsmer.transfer.fine_tuning import FineTuning
from fsmer.transfer.full_training import Train
from fsmer.transfer.source_model import require

__all__ = ["INNER_FOLDS", "RULES", "GridPoint", "InnerEpisodes", "Rule", "TrainingRun", "best_points"]
__all__ += ["describe_selection", "plan_grid"]

Rule = Literal["fixed", "nested", "oracle"]
RULES: tuple[Rule, ...] = ("fixed", "nested", "oracle")
INNER_FOLDS = 3  # parts into which the subjects of a support are divided
# At how many steps a fine-tuning is evaluated when nothing else is asked.
CHECKPOINTS = 20
END = 0  # in place of a checkpoint step: the end of the training


@dataclass(frozen=True)
class TrainingRun:
    """One training, which answers for the grid points of all its checkpoint steps."""

    method: Method
    checkpoint_steps: tuple[int, ...] = ()  # epochs or steps after which it is evaluated; empty: at its end alone


@dataclass(frozen=True)
class GridPoint:
    """One choice: the values of parameters, and the number and checkpoint step of the training that has them."""

    training: int
    checkpoint_step: int
    values: Mapping[str, Any]


def plan_grid(
    method: Method, backbone: Backbone, rule: str, grid: Mapping[str, Sequence[Any]] | None
) -> tuple[list[TrainingRun], list[GridPoint]]:
    """What is to be tried, the method's own values first; `grid` has values as numbers or text.

    The length of a training (``epochs`` of ``train``, ``steps`` of a fine-tuning of the backbone) is planned for the
    largest value and evaluated after each of the others too, so that they cost nothing; its own value is that end.
    Without a grid: every epoch of the backbone's recipe, or 20 steps of a fine-tuning. `ProtocolError` for an unknown
    rule, a grid without a rule that chooses, or nothing to choose from; `UnknownNameError` or `MethodError` for a
    parameter or value.
    """
    if rule not in RULES:
        raise ProtocolError(f"select={rule!r} is no rule; use one of {', '.join(RULES)}.")
    if rule == "fixed":
        if grid:
            raise ProtocolError(f"select='fixed' chooses nothing from a grid ({', '.join(grid)}); use select='nested'.")
        return [TrainingRun(method)], [GridPoint(0, END, {})]
    asked = dict(grid or {})
    # The parameter that says how long a training is, whose smaller values it passes on its way; or nothing.
    tuned = isinstance(method, FineTuning) and not method.keeps_backbone
    length = "epochs" if isinstance(method, Train) else "steps" if tuned else ""
    if not asked and isinstance(method, Train):
        asked = {length: range(1, method.recipe(backbone).epochs + 1)}
    elif not asked and isinstance(method, FineTuning) and length:
        asked = {length: sorted({math.ceil(method.steps * part / CHECKPOINTS) for part in range(1, CHECKPOINTS + 1)})}
    for name, values in asked.items():
        if isinstance(values, str) or not len(values):
            raise ProtocolError(f"the grid of {name!r} is {values!r}; give a list with at least one value.")
    if not asked:
        raise ProtocolError(
            f"select={rule!r} has nothing to choose from: the method {method.name!r} keeps the network as it is; give "
            "a grid, such as {'steps': [50, 100, 200]} (--grid steps=50,100,200)."
        )
    lengths = asked.pop(length, ()) if length else ()
    given = [load_method(method, **{length: value}).get_params()[length] for value in lengths]
    require(None not in given, f"the grid of {length!r} holds none; give whole numbers.")
    steps: list[int] = sorted(set(given))
    if steps:
        require(steps[0] > 0, f"the grid of {length!r} holds {steps[0]}; give whole numbers above 0.")
        method = load_method(method, **{length: steps[-1]})
    own = {name: value for name, value in method.get_params().items() if name in asked}
    listed: dict[str, list[Any]] = {}
    for name, values in asked.items():
        typed = [load_method(method, **{name: value}).get_params()[name] for value in values]
        listed[name] = list(dict.fromkeys([own[name], *typed]))
    trainings: list[TrainingRun] = []
    points: list[GridPoint] = []
    for chosen in itertools.product(*listed.values()):
        settings = dict(zip(listed, chosen, strict=True))
        own_points = [(step, settings | {length: step}) for step in steps[::-1]] or [(END, settings)]
        points += [GridPoint(len(trainings), step, values) for step, values in own_points]
        trainings.append(TrainingRun(load_method(method, **settings), tuple(steps)))
    return trainings, points


class InnerEpisodes(Episodes):
    """Subject-disjoint folds inside the supports of other episodes; `owner` has the number of that of each fold.

    `ProtocolError` where a support cannot be divided by subjects into folds that teach two classes.
    """

    def __init__(self, outer: Episodes, clips: ClipSet) -> None:
        self.classes, self.codes, self.source = outer.classes, outer.codes, outer.source
        self.parents = outer.parents
        people = distinct_subjects("select='nested'", clips, outer.codes >= 0)
        self._folds: list[Episode] = []
        owners: list[int] = []
        for number, episode in enumerate(outer):
            folds = _subject_folds(episode, people, outer.codes)
            if not folds:
                raise ProtocolError(
                    f"select='nested' needs supports that can be divided by subjects, but that of {episode.name!r} "
                    f"({len(episode.support)} clips of {len(np.unique(people[episode.support]))} subjects) leaves "
                    "fewer than two classes to learn from; use select='fixed'."
                )
            self._folds += folds
            owners += [number] * len(folds)
        self.owner = np.array(owners, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._folds)

    def _make(self, index: int) -> Episode:
        return self._folds[index]


def best_points(
    answers: Sequence[EpisodeResults], episodes: Episodes, owner: NDArray[np.int64], figure: Literal["uf1", "acc"]
) -> NDArray[np.int64]:
    """Which of the grid points (one part of `answers` each) is best for each of `episodes`; the first of equals.

    `owner` has for each episode of `answers` the number of that of `episodes` which it chooses for, by the `figure` of
    the answers of all episodes of one owner pooled.
    """
    among = np.zeros((len(episodes), len(episodes.classes)), dtype=bool)
    for number, episode in enumerate(episodes):
        among[number, [episodes.classes.index(name) for name in episode.classes]] = True
    scores = []
    for part in answers:
        found, groups = part.predictions, owner[part.predictions.episode]
        truth, count = episodes.codes[found.clip], among.shape[1]
        counts = confusion_matrix(truth, found.predicted, count, groups=groups, n_groups=len(among))
        scores.append(getattr(score_confusion(counts, among), figure))
    return np.argmax(np.stack(scores), axis=0)


def describe_selection(
    rule: str, points: Sequence[GridPoint], seeds: Mapping[int, tuple[Sequence[str], Any]]
) -> dict[str, Any]:
    """What a report says of the choice; `seeds` have the names of the episodes and the chosen grid point of each."""
    if rule == "fixed":
        return {"rule": rule}
    by = (
        f"UF1 pooled over {INNER_FOLDS} subject-disjoint folds of the support"
        if rule == "nested"
        else "accuracy on the query side of the episode itself, which no honest choice may look at"
    )
    return {
        "rule": rule,
        "by": by,
        "candidates": [dict(one.values) for one in points],
        "chosen": [
            {"seed": seed, "episode": name, **points[int(place)].values}
            for seed, (names, places) in seeds.items()
            for name, place in zip(names, places, strict=True)
        ],
    }


def _subject_folds(episode: Episode, people: NDArray[np.int64], codes: NDArray[np.int64]) -> list[Episode]:
    """The subjects of a support in parts of about as many clips; the largest go first, each to the smallest part."""
    support = episode.support
    subjects, member, counts = np.unique(people[support], return_inverse=True, return_counts=True)
    part = np.zeros(len(subjects), dtype=np.int64)
    held = np.zeros(min(INNER_FOLDS, len(subjects)), dtype=np.int64)
    for subject in np.argsort(-counts, kind="stable"):
        part[subject] = held.argmin()
        held[part[subject]] += counts[subject]
    folds = []
    for number in range(len(held)):
        asked = part[member] == number
        if len(np.unique(codes[support[~asked]])) > 1:
            name = f"{episode.name}: inner fold {number + 1}"
            folds.append(Episode(support[~asked], support[asked], episode.classes, name, episode.source))
    return folds
