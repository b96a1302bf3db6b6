"""Protocols: what is learnt from and what is judged on, as a named, seeded stream of episodes over a clip set."""

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from fsmer.data.clips import ClipSet
from fsmer.episodic.checks import MOST, check_whole, store_datasets
from fsmer.episodic.episode import Ints, Mask
from fsmer.episodic.episodes import Episodes, FoldEpisodes, KShotEpisodes
from fsmer.episodic.plan import EpisodePlan
from fsmer.episodic.protocol import Protocol, register_protocol
from fsmer.episodic.samplers import KShotSampler
from fsmer.episodic.shuffles import random_order
from fsmer.episodic.sides import clips_per_unit, distinct_subjects, subjects_of, two_sides, units_with
from fsmer.episodic.uneven import UnevenPlan
from fsmer.errors import ProtocolError

__all__ = ["CDE", "HoldoutDatabase", "KShot", "LeaveOneSubjectOut", "SourceTarget", "SubjectRatio", "UnevenKShot"]

_ATTEMPTS = 255


@register_protocol("kshot")
@dataclass(frozen=True)
class KShot(Protocol):
    """K-shot episodes: `shot` support clips of each class, judged on other clips of the same set.

    Episodes depend on the clips' ids, not on the order of their rows.

    Parameters
    ----------
    way, shot, query, balance, subject_disjoint, seed
        See `KShotSampler`.
    episodes : int
        How many. Where all of them would be the same (``shot=0``, all classes, every clip a query) there is one.
    class_subset : tuple of str or None
        Fixed subset of classes; None takes all that the clips have.

    Examples
    --------
    >>> KShot(way=3, shot=5, episodes=1000).hash
    '632a10a4e4ad9b6e'
    """

    summary = "K-shot episodes from any labelled clips"

    way: int | None = None
    shot: int = 5
    query: int | Literal["rest"] = "rest"
    episodes: int = 1000
    balance: Literal["class", "natural"] = "class"
    subject_disjoint: bool = False
    class_subset: tuple[str, ...] | None = None
    seed: int = 0

    def check_parameters(self) -> None:
        check_whole("episodes", self.episodes, 1, MOST)
        self.sampler()  # checks the others
        for name in ("way", "shot", "query"):
            if isinstance(getattr(self, name), int | np.integer):
                check_whole(name, getattr(self, name), 0, MOST)

    def sampler(self) -> KShotSampler:
        """The sampler that draws the episodes."""
        own = {field.name: getattr(self, field.name) for field in fields(KShotSampler) if field.name != "classes"}
        return KShotSampler(**own, classes=self.class_subset)

    def deal(self, clips: ClipSet, classes: tuple[str, ...], codes: Ints) -> Episodes:
        ids = clips.ids
        in_order = bool(np.all(ids[:-1] <= ids[1:]))
        order = None if in_order else np.argsort(ids, kind="stable")
        subjects = distinct_subjects(f"protocol {self.name!r}", clips, codes >= 0) if self.subject_disjoint else None
        plan = self._plan(codes, subjects, names=classes, order=order)
        all_alike = self.shot == 0 and self.query == "rest" and plan.way == len(classes)
        return KShotEpisodes(plan, 1 if all_alike else self.episodes, self._source(clips))

    def _plan(self, codes: Ints, subjects: Ints | None, *, names: tuple[str, ...], order: Ints | None) -> EpisodePlan:
        return self.sampler().plan(codes, subjects, names=names, order=order)

    def _source(self, clips: ClipSet) -> Ints | None:
        return None


@register_protocol("uneven")
@dataclass(frozen=True)
class UnevenKShot(KShot):
    """K-shot episodes whose queries are of uneven classes: the setting of alpha-TIM (Veilleux et al. 2021).

    The support has `shot` clips of each class. Each episode draws shares of the classes from a Dirichlet distribution
    and deals its ``way * query`` query clips accordingly; a class may get none.

    Parameters
    ----------
    way, shot, query, episodes, subject_disjoint, class_subset, seed
        As in `KShot`; `query` counts the clips a class on average.
    shares : int
        Parameter of the Dirichlet distribution: 1 makes all shares equally likely, high values make them even.
    """

    summary = "K-shot episodes whose classes are asked about unequally often, by Dirichlet shares"

    query: int = 5
    shares: int = 2

    def check_parameters(self) -> None:
        check_whole("query", self.query, 1, MOST)
        check_whole("shares", self.shares, 1, 100)
        if self.balance != "class":
            raise ProtocolError(
                f"balance={self.balance!r} has no meaning here, where shares says how uneven classes are."
            )
        super().check_parameters()

    def _plan(self, codes: Ints, subjects: Ints | None, *, names: tuple[str, ...], order: Ints | None) -> EpisodePlan:
        sampler = replace(self.sampler(), way=self.way or len(names))
        return UnevenPlan(sampler, codes, subjects, names=names, order=order, shares=self.shares)


@register_protocol("source_target")
@dataclass(frozen=True)
class SourceTarget(KShot):
    """Source-then-target K-shot: learn from a source data set first, then from `shot` clips per class of the target.

    The setting of MERAU (section III.A): the source's labelled clips may have other classes; support and query are
    drawn from the target.

    Parameters
    ----------
    source, target : tuple of str or None
        Data sets of either side; None means every other data set. To be split, a protocol needs one of the two.
    way, shot, query, episodes, balance, subject_disjoint, class_subset, seed
        As in `KShot`, for the target.
    """

    summary = "train on a source data set, adapt with K clips per class of the target"

    source: tuple[str, ...] | None = None
    target: tuple[str, ...] | None = None

    def check_parameters(self) -> None:
        super().check_parameters()
        store_datasets(self, "source", "target")

    def judged(self, clips: ClipSet) -> Mask | None:
        return two_sides(self.name, clips, self.source, self.target)[1]

    def _source(self, clips: ClipSet) -> Ints | None:
        return np.flatnonzero(two_sides(self.name, clips, self.source, self.target)[0])


@register_protocol("loso")
@dataclass(frozen=True)
class LeaveOneSubjectOut(Protocol):
    """LOSO: each subject is the query once, with the clips of all others as support.

    A subject is a person of one data set: equal names in two data sets are two people. A fold whose support lacks a
    class is kept, and its queries count (see `Episodes.missing_classes`).

    Parameters
    ----------
    class_subset : tuple of str or None
        Fixed subset of classes; None takes all that the clips have.
    """

    summary = "leave one subject out, over all data sets of the clips"

    class_subset: tuple[str, ...] | None = None

    def deal(self, clips: ClipSet, classes: tuple[str, ...], codes: Ints) -> Episodes:
        units, names = subjects_of(self.name, clips, codes)
        people = np.arange(len(names))
        return FoldEpisodes(classes, codes, units, names, lambda index: (people != index, people == index))


@register_protocol("cde")
@dataclass(frozen=True)
class CDE(LeaveOneSubjectOut):
    """CDE (composite database evaluation, MEGC 2019): LOSO over two or more data sets pooled into one.

    Its parameter is that of `LeaveOneSubjectOut`.
    """

    summary = "composite database evaluation: two or more data sets pooled, then leave one subject out"

    def deal(self, clips: ClipSet, classes: tuple[str, ...], codes: Ints) -> Episodes:
        held = [clips.dataset_names[code] for code in np.unique(clips.dataset_codes()[codes >= 0])]
        if len(held) < 2:
            raise ProtocolError(
                f"protocol {self.name!r} needs at least two data sets, but has {held[0]} only; add another or use loso."
            )
        return super().deal(clips, classes, codes)


@register_protocol("holdout")
@dataclass(frozen=True)
class HoldoutDatabase(Protocol):
    """Train on some data sets, test on others.

    Parameters
    ----------
    train, test : tuple of str or None
        Data sets of either side. With one of them None, that side is every other data set. With both None, each data
        set is the test side once, with all others as the train side (leave one database out).
    class_subset : tuple of str or None
        Fixed subset of classes; None takes all that the clips have.

    Notes
    -----
    The twelve CDMER tasks (FR paper, Table 10) are of this kind. In those between the parts of SMIC the same people
    were recorded by two cameras, as the benchmark has it; otherwise the sides share no subject.
    """

    summary = "train on one data set and test on another; by default each data set is tested in turn"

    train: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None
    class_subset: tuple[str, ...] | None = None

    def check_parameters(self) -> None:
        store_datasets(self, "train", "test")

    def judged(self, clips: ClipSet) -> Mask | None:
        if self.train is None and self.test is None:
            return None
        return np.logical_or(*two_sides(self.name, clips, self.train, self.test))

    def deal(self, clips: ClipSet, classes: tuple[str, ...], codes: Ints) -> Episodes:
        units, names = clips.dataset_codes(), clips.dataset_names
        if self.train is None and self.test is None:
            test_sides = [np.arange(len(names)) == code for code in np.unique(units[codes >= 0])]
            pairs = [(~test_side, test_side) for test_side in test_sides]
            if len(pairs) < 2:
                raise ProtocolError(
                    f"protocol {self.name!r} needs at least two data sets, but has {names[units[0]]} only; use loso."
                )
        else:
            support_side, query_side = two_sides(self.name, clips, self.train, self.test)
            pairs = [(units_with(units, support_side, len(names)), units_with(units, query_side, len(names)))]
        held = clips_per_unit(codes, units, len(classes))
        titles = []
        for support_side, query_side in pairs:
            trained, tested = held[support_side].sum(axis=0), held[query_side].sum(axis=0)
            sides = (support_side, query_side)
            title = " -> ".join("+".join(names[code] for code in np.flatnonzero(side)) for side in sides)
            if np.count_nonzero(trained) < 2 or not tested.any():
                counts = [f"{name} {n}" for name, n in zip(classes, trained, strict=True)]
                raise ProtocolError(
                    f"protocol {self.name!r}, {title}: the train side has {', '.join(counts)} and the test side "
                    f"{int(tested.sum())} clips; at least two classes to learn from and one clip to test are needed."
                )
            titles.append(title)
        return FoldEpisodes(classes, codes, units, titles, lambda index: pairs[index])


@register_protocol("ratio")
@dataclass(frozen=True)
class SubjectRatio(Protocol):
    """Subject-disjoint ratio splits: a share of the subjects is the support, the rest the query, repeated.

    Subjects are dealt at random until both sides have clips of every class.

    Parameters
    ----------
    ratio : float
        Share of the subjects on the support side, between 0 and 1; each side gets at least one.
    repeats : int
        How many splits.
    class_subset : tuple of str or None
        Fixed subset of classes; None takes all that the clips have.
    seed : int
        From 0 to 2**64 - 1.
    """

    summary = "subject-disjoint splits by a ratio of the subjects, repeated"

    ratio: float = 0.8
    repeats: int = 10
    class_subset: tuple[str, ...] | None = None
    seed: int = 0

    def check_parameters(self) -> None:
        number = isinstance(self.ratio, int | float) and not isinstance(self.ratio, bool)
        if not number or not 0 < self.ratio < 1:
            raise ProtocolError(f"ratio={self.ratio!r} is not possible; give a number between 0 and 1, such as 0.8.")
        check_whole("repeats", self.repeats, 1, 100_000)
        check_whole("seed", self.seed, 0, 2**64 - 1)

    def deal(self, clips: ClipSet, classes: tuple[str, ...], codes: Ints) -> Episodes:
        units, names = subjects_of(self.name, clips, codes)
        held = clips_per_unit(codes, units, len(classes)) > 0
        holders = held.sum(axis=0)
        if holders.min() < 2:
            code = int(holders.argmin())
            raise ProtocolError(
                f"protocol {self.name!r}: class {classes[code]!r} has one subject only; leave it out or use loso."
            )
        in_support = min(len(names) - 1, max(1, int(self.ratio * len(names) + 0.5)))
        # Subjects are numbered by name, so the splits do not depend on the order of rows.
        dealt = [self._deal(held, in_support, repeat, classes) for repeat in range(self.repeats)]
        titles = [f"split {repeat}" for repeat in range(self.repeats)]
        return FoldEpisodes(classes, codes, units, titles, lambda index: (dealt[index], ~dealt[index]))

    def _deal(self, held: Mask, in_support: int, repeat: int, classes: tuple[str, ...]) -> Mask:
        lacking = np.zeros(len(classes), dtype=np.int64)
        for attempt in range(_ATTEMPTS):
            support_side = np.zeros(len(held), dtype=bool)
            support_side[random_order(self.seed, repeat, len(held), attempt)[:in_support]] = True
            both = held[support_side].any(axis=0) & held[~support_side].any(axis=0)
            if both.all():
                return support_side
            lacking += ~both
        raise ProtocolError(
            f"protocol {self.name!r}: with {in_support} of {len(held)} subjects on one side, no split in {_ATTEMPTS} "
            f"tries has every class on both sides, most often {classes[int(lacking.argmax())]!r}; change the ratio."
        )
