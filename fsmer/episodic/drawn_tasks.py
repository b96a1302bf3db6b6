"""Few-shot tasks drawn from FACS without end: their classes are sets of action units, their clips flow maps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsmer.episodic.checks import MOST, MOST_SEED, check_whole
from fsmer.episodic.episode import Ints, Words
from fsmer.episodic.plan import EpisodePlan
from fsmer.episodic.samplers import KShotSampler
from fsmer.episodic.shuffles import TASK, below, child_keys, shuffled
from fsmer.episodic.uneven import UnevenPlan
from fsmer.errors import ProtocolError
from fsmer.synthetic.clips import Normalisation, unit_set_maps
from fsmer.synthetic.domains import load_domain
from fsmer.synthetic.unit_sets import Family, UnitSet, family_of, unit_set, unit_sets

__all__ = ["DrawnTasks", "TaskArrays", "TaskRows"]

# Streams of a task, see `fsmer.episodic.shuffles`.
_DOMAIN, _PLACES, _FLIPS, _OTHERS = range(4)


@dataclass(frozen=True, eq=False)
class TaskRows:
    """Several tasks as rows of `DrawnTasks.pool`.

    Attributes
    ----------
    support, query : ndarray of int64, shapes (T, S) and (T, Q)
        Rows of the pool.
    support_codes, query_codes : ndarray of int64, shapes (T, S) and (T, Q)
        Class of each clip in its task, 0 to way - 1; those of the support are as labelled, wrong labels included.
    classes : ndarray of int64, shape (T, way)
        Which of `DrawnTasks.sets` each class is.
    domains : ndarray of int64, shape (T,)
        Which of `DrawnTasks.domains` each task is from.
    """

    support: Ints
    support_codes: Ints
    query: Ints
    query_codes: Ints
    classes: Ints
    domains: Ints

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True, eq=False)
class TaskArrays:
    """Several tasks with their media.

    Attributes
    ----------
    support, query : ndarray of float32, shapes (T, S, 3, size, size) and (T, Q, 3, size, size)
        Flow maps: u, v and strain.
    support_codes, query_codes : ndarray of int64, shapes (T, S) and (T, Q)
        As in `TaskRows`.
    classes : tuple of tuple of UnitSet
        The classes of each task, in the order of the codes.
    domains : tuple of str
        The domain of each task.
    """

    support: NDArray[np.float32]
    support_codes: Ints
    query: NDArray[np.float32]
    query_codes: Ints
    classes: tuple[tuple[UnitSet, ...], ...]
    domains: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.domains)

    @property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """The classes as FACS has them, such as ``6+12``."""
        return tuple(tuple(one.name for one in classes) for classes in self.classes)


@dataclass(frozen=True)
class DrawnTasks:
    """An endless list of few-shot tasks whose classes are sets of action units, the same for a seed on every machine.

    A task has one domain, `way` classes of one family, and clips that are in its support or its query. Which clips,
    classes and labels it has is decided by integers; clips are drawn once, as a pool, or anew for each task.

    Parameters
    ----------
    way, shot, query : int
        Classes a task, support clips a class, and query clips a class.
    domains : tuple of str
        Names of `list_domains`, one of which is drawn for each task.
    family : {"base", "validation", "novel"}
        Which sets of action units are classes (`fsmer.synthetic.unit_sets.unit_sets`). Families share no set.
    classes : tuple of UnitSet or str, optional
        Some of the family, for instance ``"6+12"``, ``"L14"`` or ``UnitSet((12,), intensity=(0.2, 0.5))``; None takes
        all.
    uneven : int, optional
        The query's ``way * query`` clips are dealt to the classes by Dirichlet shares of this parameter, for instance
        2. None gives each class `query` clips.
    wrong_labels : float
        Probability that a support clip is labelled as another class of its task.
    pool : int or None
        Clips of each class in each domain that tasks choose from. None draws new clips for each task, which takes about
        a millisecond a clip.
    size, normalisation
        Of the maps, as in `fsmer.synthetic.clips.synthetic_maps`.
    seed : int
        From 0 to 2**64 - 1.

    Raises
    ------
    ProtocolError
        A number is not possible, there are fewer classes than `way`, or a class is of another family.
    UnknownNameError
        There is no such domain, family or action unit; the message names the nearest.

    Examples
    --------
    >>> from fsmer.episodic import DrawnTasks
    >>> tasks = DrawnTasks(way=3, shot=2, query=4, domains=("lab",), classes=("12", "15", "1+2", "4"), pool=8)
    >>> batch = tasks.batch(0, 5)
    >>> batch.support.shape, batch.query_codes.shape
    ((5, 6, 3, 28, 28), (5, 12))
    """

    way: int = 5
    shot: int = 5
    query: int = 15
    domains: tuple[str, ...] = ("broad",)
    family: Family = "base"
    classes: tuple[UnitSet | str, ...] | None = None
    uneven: int | None = None
    wrong_labels: float = 0.0
    pool: int | None = 64
    size: int = 28
    normalisation: Normalisation = "minmax"
    seed: int = 0

    def __post_init__(self) -> None:
        given: Any = self.domains
        object.__setattr__(self, "domains", (given,) if isinstance(given, str) else tuple(given))
        if not self.domains:
            raise ProtocolError("domains=() is not possible; name at least one of fsmer.list_domains().")
        for name in self.domains:
            load_domain(name)
        check_whole("way", self.way, 2, MOST)
        check_whole("shot", self.shot, 1, MOST)
        check_whole("query", self.query, 1, MOST)
        check_whole("seed", self.seed, 0, MOST_SEED)
        unit_sets(self.family)  # refuses an unknown one
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(unit_set(one) for one in self.classes))
            self._check_classes()
        if self.way > len(self.sets):
            raise ProtocolError(
                f"way={self.way} is too high for {len(self.sets)} {self.family} classes; lower it or name more classes."
            )
        if self.uneven is not None:
            check_whole("uneven", self.uneven, 1, 100)
        share = self.wrong_labels
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ProtocolError(f"wrong_labels={share!r} is not possible; give a share from 0 to below 1, such as 0.1.")
        if self.pool is not None:
            check_whole("pool", self.pool, self._clips_a_class, MOST)

    def _check_classes(self) -> None:
        names = [one.name for one in self.sets]
        for one in self.sets:
            if family_of(one) != self.family:
                raise ProtocolError(
                    f"class {one.name} is {family_of(one)}, but the tasks are {self.family}; leave it out, or set "
                    f"family={family_of(one)!r}."
                )
            if names.count(one.name) > 1:
                raise ProtocolError(f"class {one.name} is named more than once; name each class once.")

    @cached_property
    def sets(self) -> tuple[UnitSet, ...]:
        """All classes that tasks draw from."""
        return unit_sets(self.family) if self.classes is None else tuple(map(unit_set, self.classes))

    def rows(self, start: int, count: int) -> TaskRows:
        """Tasks `start` to `start + count - 1` as rows of the pool; a task is the same in whichever range it is drawn.

        Clips and domains are numbered as `pool_codes` and `pool_domains` have them.
        """
        drawn = self._plan.draw(start, start + count)
        keys = child_keys(np.array([self.seed], dtype=np.uint64), 0)
        keys = child_keys(child_keys(keys, np.arange(start, start + count)), TASK)
        domains = below(child_keys(keys, _DOMAIN), np.full(count, len(self.domains)))
        # A class that always had the same place in its task could be learned by heart.
        places = shuffled(child_keys(keys, _PLACES), np.full(count, self.way), self.way).T
        classes = np.empty_like(places)
        np.put_along_axis(classes, places, drawn.classes, axis=1)
        assert drawn.query is not None  # the sampler counts queries
        offset = (domains * len(self._plan.codes))[:, None]
        support_codes = np.take_along_axis(places, drawn.support_labels, axis=1)
        query_codes = np.take_along_axis(places, drawn.labels(drawn.query), axis=1)
        labelled = self._mislabelled(keys, support_codes)
        return TaskRows(drawn.support + offset, labelled, drawn.query + offset, query_codes, classes, domains)

    def batch(self, start: int, count: int) -> TaskArrays:
        """Tasks `start` to `start + count - 1` with their flow maps."""
        rows = self.rows(start, count)
        if self.pool is None:
            drawn = [self._new_clips(rows, number, start + number) for number in range(count)]
            shape = (0, 3, self.size, self.size)
            maps = np.stack(drawn) if drawn else np.empty((0, *shape), np.float32)
            support, query = maps[:, : rows.support.shape[1]], maps[:, rows.support.shape[1] :]
        else:
            support, query = self.pool_maps[rows.support], self.pool_maps[rows.query]
        classes = tuple(tuple(self.sets[code] for code in codes) for codes in rows.classes.tolist())
        domains = tuple(self.domains[number] for number in rows.domains.tolist())
        return TaskArrays(support, rows.support_codes, query, rows.query_codes, classes, domains)

    def task(self, index: int) -> TaskArrays:
        """Task `index`, as a batch of one."""
        return self.batch(index, 1)

    @cached_property
    def pool_maps(self) -> NDArray[np.float32]:
        """Flow maps of all clips that tasks choose from, (N, 3, size, size): domain after domain, class after class.

        Whatever is made of a clip, such as an embedding, can be made of these once and be taken by `rows`.
        """
        options: dict[str, Any] = {"size": self.size, "normalisation": self.normalisation}
        parts = [
            unit_set_maps(self.sets, self._plan.codes, domain=name, seed=(self.seed, 0), **options).maps
            for name in self.domains
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @cached_property
    def pool_codes(self) -> Ints:
        """Which of `sets` each clip of `pool_maps` is, (N,)."""
        return np.tile(self._plan.codes, len(self.domains))

    @property
    def _clips_a_class(self) -> int:
        """Clips that one task may take from one class."""
        return self.shot + (self.query if self.uneven is None else self.way * self.query)

    @cached_property
    def _plan(self) -> EpisodePlan:
        sampler = KShotSampler(way=self.way, shot=self.shot, query=self.query, seed=self.seed)
        codes = np.repeat(np.arange(len(self.sets)), self.pool or self._clips_a_class)
        names = [one.name for one in self.sets]
        if self.uneven is None:
            return EpisodePlan(sampler, codes, names=names)
        return UnevenPlan(sampler, codes, names=names, shares=self.uneven)

    def _mislabelled(self, keys: Words, codes: Ints) -> Ints:
        """Codes with some of them changed to another class."""
        clips = np.arange(codes.shape[1])
        coins = child_keys(child_keys(keys, _FLIPS)[:, None], clips)
        others = child_keys(child_keys(keys, _OTHERS)[:, None], clips)
        steps = 1 + below(others, np.full(codes.shape, self.way - 1))
        return np.where(coins < np.uint64(int(self.wrong_labels * 2**64)), (codes + steps) % self.way, codes)

    def _new_clips(self, rows: TaskRows, number: int, index: int) -> NDArray[np.float32]:
        """Maps of one task's support and query, drawn for it alone."""
        codes = np.concatenate([rows.support[number], rows.query[number]]) % len(self._plan.codes)
        domain = self.domains[int(rows.domains[number])]
        maps = unit_set_maps(
            self.sets, self._plan.codes[codes], domain=domain, seed=(self.seed, 1, index), size=self.size,
            normalisation=self.normalisation,
        ).maps  # fmt: skip
        return maps
