"""Whether one result is better than another: seeds as a distribution, paired tests of two, critical difference of many.

Everything works on the predictions of `Report` objects. The independent unit is the subject: clips of one person
resemble each other, so intervals and bootstrap tests draw whole subjects.

References
----------
McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 1947.
Efron and Tibshirani, An introduction to the bootstrap, 1993 (percentile intervals, section 13.3).
Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7, 2006 (Friedman, Nemenyi, the picture).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.errors import DataError
from fsmer.evaluation.metrics import (
    BLOCK_CELLS,
    BOOTSTRAP_DRAWS,
    METRICS,
    Floats,
    drawn_subjects,
    percentile_interval,
    score_confusion,
)
from fsmer.evaluation.report_tables import NAMES, SHOWN

if TYPE_CHECKING:
    import pandas as pd

    from fsmer.evaluation.report import Report

__all__ = [
    "CriticalDifference",
    "Difference",
    "McNemar",
    "PairedComparison",
    "SeedSummary",
    "critical_difference",
    "mcnemar",
    "nemenyi",
    "paired_comparison",
    "report_interval",
    "seed_summary",
    "shown_p",
]

Block = Literal["subject", "dataset", "episode"]

# Counts by subject, seed, episode and class that one report may need: 8 GiB.
MOST_CELLS = 1 << 30


@dataclass(frozen=True)
class SeedSummary:
    """One figure over several seeds.

    Parameters
    ----------
    each : tuple of float
        The figure of every seed, in the order of the seeds.
    mean : float
    sd : float or None
        Sample standard deviation (n - 1); ``None`` for a single seed.
    low, high : float
        The smallest and the largest.
    """

    each: tuple[float, ...]
    mean: float
    sd: float | None
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedSummary:
        """Summarise values, one a seed.

        Raises
        ------
        DataError
            There is none.
        """
        numbers = np.asarray(values, dtype=np.float64)
        if numbers.ndim != 1 or not numbers.size:
            raise DataError("a summary over seeds needs at least one figure; give one for each seed.")
        return cls(
            each=tuple(numbers.tolist()),
            mean=float(numbers.mean()),
            sd=float(numbers.std(ddof=1)) if numbers.size > 1 else None,
            low=float(numbers.min()),
            high=float(numbers.max()),
        )

    def __str__(self) -> str:
        if self.sd is None:
            return f"{self.mean:.4f} (one seed)"
        return f"{self.mean:.4f} sd {self.sd:.4f} ({self.low:.4f} to {self.high:.4f}, {len(self.each)} seeds)"


@dataclass(frozen=True)
class McNemar:
    """McNemar's test of two recognizers on the same clips.

    Parameters
    ----------
    both, only_a, only_b, neither : int
        Clips that both, only the first, only the second, and neither classified rightly.
    p_exact : float
        Two-sided p-value of the binomial test on the clips that only one of them got right.
    statistic : float
        (\\|only_a - only_b\\| - 1)^2 / (only_a + only_b), the chi-squared statistic with continuity correction.
    p_corrected : float
        Its p-value with one degree of freedom.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    p_exact: float
    statistic: float
    p_corrected: float


@dataclass(frozen=True)
class Difference:
    """First minus second in one figure, by paired bootstrap over subjects.

    Parameters
    ----------
    a, b : float
        The figure of each.
    difference : float
        a - b.
    interval : tuple of float or None
        95 % percentile interval of the difference; ``None`` with fewer than two subjects.
    p_value : float or None
        Two-sided: twice the smaller share of bootstrap differences on either side of zero.
    """

    a: float
    b: float
    difference: float
    interval: tuple[float, float] | None
    p_value: float | None

    @property
    def certainty(self) -> str:
        """Interval and p-value in words; nothing with fewer than two subjects."""
        if self.interval is None or self.p_value is None:
            return ""
        return f"[{self.interval[0]:+.4f}, {self.interval[1]:+.4f}], p {shown_p(self.p_value)}"


@dataclass(frozen=True)
class PairedComparison:
    """Two reports on the same clips and folds, compared; see `paired_comparison`.

    Parameters
    ----------
    names : tuple of str
        What the two are called.
    clips, subjects : int
        Distinct clips and subjects that both were judged on.
    seeds : tuple of int
        How many seeds each was run with.
    mcnemar : McNemar
        Over clips; a clip counts as right where more than half of its answers (one a seed and episode) are. Where half
        are right and half wrong, in either report, it says nothing and is left out.
    mcnemar_by_seed : tuple of McNemar
        One a seed, where both reports ran the same number of several seeds and ask a clip once a seed; else empty.
    differences : dict
        For ``uf1``, ``uar`` and ``acc``.
    draws : int
        Bootstrap samples.
    ties : int
        Clips that `mcnemar` leaves out.
    """

    names: tuple[str, str]
    clips: int
    subjects: int
    seeds: tuple[int, int]
    mcnemar: McNemar
    mcnemar_by_seed: tuple[McNemar, ...]
    differences: dict[str, Difference]
    draws: int
    ties: int = 0

    @property
    def how(self) -> str:
        """One sentence: what the figures and tests are."""
        once = self.seeds == (1, 1) and not self.ties
        rule = "each clip has one answer" if once else "a clip is right where most of its answers are"
        if self.ties:
            left_out = f"{self.ties:,} {'is' if self.ties == 1 else 'are'} left out"
            rule = f"{rule}, and {left_out}, since half of their answers are right in one of the two"
        return (
            f"paired bootstrap: {self.draws:,} draws of {self.subjects:,} subjects, the same for both, of the mean "
            f"over seeds ({self.seeds[0]} and {self.seeds[1]}); McNemar: {self.clips:,} clips, {rule}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"how": self.how}

    def __str__(self) -> str:
        lines = [f"{self.names[0]} against {self.names[1]} on {self.clips:,} clips of {self.subjects:,} subjects"]
        for metric, one in self.differences.items():
            sure = f"95 % {one.certainty}" if one.certainty else "interval unknown (one subject)"
            lines.append(f"  {NAMES[metric]:<8} {one.a:.4f} - {one.b:.4f} = {one.difference:+.4f}, {sure}")
        test = self.mcnemar
        lines.append(
            f"  McNemar: only {self.names[0]} right {test.only_a:,}, only {self.names[1]} right {test.only_b:,}, "
            f"exact p {shown_p(test.p_exact)}, with continuity correction p {shown_p(test.p_corrected)}"
        )
        lines.append(f"  ({self.how})")
        return "\n".join(lines)


@dataclass(frozen=True)
class CriticalDifference:
    """Many methods over many blocks: mean ranks, Friedman's test and Nemenyi's critical difference.

    Parameters
    ----------
    names : tuple of str
        The methods, best mean rank first.
    ranks : tuple of float
        Mean rank of each over the blocks, 1 is best; ties share their ranks.
    means : tuple of float
        Mean figure of each over the blocks.
    metric, block : str
        What was ranked, and over what.
    blocks : int
    friedman, p_value : float
        Friedman's chi-squared (corrected for ties) and its p-value; 0 and 1 where every block is a tie.
    alpha : float
    difference : float
        Mean ranks further apart than this differ at level `alpha` (Nemenyi).
    p_values : tuple of tuple of float
        Nemenyi's p-value of each pair, in the order of `names`.
    groups : tuple of tuple of str
        Longest runs of methods in which no two differ; a method that differs from all others is in none.
    """

    names: tuple[str, ...]
    ranks: tuple[float, ...]
    means: tuple[float, ...]
    metric: str
    block: str
    blocks: int
    friedman: float
    p_value: float
    alpha: float
    difference: float
    p_values: tuple[tuple[float, ...], ...]
    groups: tuple[tuple[str, ...], ...]

    @property
    def blocks_in_words(self) -> str:
        """What was ranked over, in the plural."""
        return "data sets" if self.block == "dataset" else f"{self.block}s"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{len(self.names)} methods over {self.blocks:,} {self.blocks_in_words} by "
            f"{NAMES.get(self.metric, self.metric)}: Friedman chi-squared {self.friedman:.3f}, "
            f"p {shown_p(self.p_value)}; critical difference of mean ranks {self.difference:.3f} at level "
            f"{self.alpha:g} (Nemenyi)"
        ]
        lines += [
            f"  {rank:6.3f}  {name} (mean {mean:.4f})"
            for name, rank, mean in zip(self.names, self.ranks, self.means, strict=True)
        ]
        lines += [f"  no difference shown among: {', '.join(group)}" for group in self.groups]
        return "\n".join(lines)


def seed_summary(report: Report) -> dict[str, SeedSummary]:
    """The figures of a report as a distribution over its seeds.

    Returns
    -------
    dict
        For each of `METRICS`.
    """
    by_seed = _tally(report).by_seed()
    return {name: SeedSummary.of(by_seed[name].tolist()) for name in METRICS}


def report_interval(
    report: Report, *, draws: int = BOOTSTRAP_DRAWS, seed: int = 0
) -> dict[str, tuple[float, float] | None]:
    """95 % intervals of a report's figures (mean over its seeds, and over episodes where it averages over them).

    Whole subjects are drawn with replacement, see `fsmer.evaluation.bootstrap_interval`. For K-shot reports this is the
    uncertainty from who was filmed; the report's own interval is the one from which episodes were drawn.

    Returns
    -------
    dict
        For each of `METRICS` (low, high), or ``None`` with fewer than two subjects.
    """
    return _tally(report).interval(draws, seed)


def mcnemar(right_a: ArrayLike, right_b: ArrayLike) -> McNemar:
    """McNemar's test, exact and with continuity correction.

    It takes clips for independent. Clips of one subject are not, so `paired_comparison` gives a bootstrap over subjects
    beside it.

    Parameters
    ----------
    right_a, right_b : bool arrays of shape (N,)
        Whether each clip was classified rightly by the first and by the second.

    Raises
    ------
    DataError
        Lengths differ.

    Examples
    --------
    >>> from fsmer.reporting.statistics import mcnemar
    >>> test = mcnemar([True] * 9 + [False], [True] * 3 + [False] * 7)
    >>> test.only_a, test.only_b, test.p_exact
    (6, 0, 0.03125)
    """
    from scipy.stats import binomtest, chi2

    first, second = np.asarray(right_a, dtype=bool), np.asarray(right_b, dtype=bool)
    if first.ndim != 1 or first.shape != second.shape:
        raise DataError(
            f"the two lists of right answers have shapes {first.shape} and {second.shape}; give one value for each "
            "clip, in the same order."
        )
    only_a, only_b = int((first & ~second).sum()), int((~first & second).sum())
    unlike = only_a + only_b
    # The correction may not turn equality into a difference, so it stops at zero (as R's mcnemar.test does).
    statistic = max(abs(only_a - only_b) - 1, 0) ** 2 / unlike if unlike else 0.0
    return McNemar(
        both=int((first & second).sum()),
        only_a=only_a,
        only_b=only_b,
        neither=int((~first & ~second).sum()),
        p_exact=float(binomtest(only_a, unlike, 0.5).pvalue) if unlike else 1.0,
        statistic=float(statistic),
        p_corrected=float(chi2.sf(statistic, 1)),
    )


def paired_comparison(
    a: Report,
    b: Report,
    *,
    names: tuple[str, str] | None = None,
    same_folds: bool = True,
    draws: int = BOOTSTRAP_DRAWS,
    seed: int = 0,
) -> PairedComparison:
    """Compare two reports on the same clips: McNemar's test and a paired bootstrap over subjects.

    Reports of several seeds are compared by their mean over seeds, whatever the number of seeds of each; a bootstrap
    draw takes the same subjects for both sides and all seeds.

    Parameters
    ----------
    a, b : Report
    names : tuple of str, optional
        What to call them; default their methods and models.
    same_folds : bool
        Whether to refuse reports whose folds deal the clips otherwise. Episodes of a K-shot protocol must always agree.
    draws : int
        Bootstrap samples.
    seed : int
        Of the bootstrap.

    Raises
    ------
    DataError
        The two judge other clips, give a clip other labels, tell other classes apart, or use other folds.

    Examples
    --------
    >>> a, b = Report.load("out/facs-flow"), Report.load("out/pixels")  # doctest: +SKIP
    >>> print(paired_comparison(a, b))  # doctest: +SKIP
    """
    names = names or (_name(a), _name(b))
    _check_pair(a, b, names, same_folds)
    first, second = _tally(a), _tally(b)
    figures = (first.figures(), second.figures())
    samples = (first.samples(draws, seed), second.samples(draws, seed))
    differences = {}
    for metric in SHOWN:
        interval, p_value = None, None
        if first.subjects > 1:
            drawn = samples[0][metric] - samples[1][metric]
            interval = percentile_interval(drawn)
            # One is added so that no finite number of draws claims certainty.
            tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum())) + 1
            p_value = min(1.0, 2 * tail / (draws + 1))
        left, right = (float(one[metric]) for one in figures)
        differences[metric] = Difference(left, right, left - right, interval, p_value)
    share_a = _share_right(a)
    share_b = _share_right(b).reindex(share_a.index)
    # A tie counted as wrong would speak against whichever report has an even number of seeds.
    clear = (share_a != 0.5) & (share_b != 0.5)
    halves = (_right_by_seed(a), _right_by_seed(b))
    several = len(halves[0]) == len(halves[1])
    return PairedComparison(
        names=names,
        clips=len(share_a),
        subjects=first.subjects,
        seeds=(first.seeds, second.seeds),
        mcnemar=mcnemar(share_a[clear] > 0.5, share_b[clear] > 0.5),
        mcnemar_by_seed=tuple(mcnemar(*pair) for pair in zip(*halves, strict=True)) if several else (),
        differences=differences,
        draws=draws,
        ties=int((~clear).sum()),
    )


def critical_difference(
    reports: Mapping[str, Report] | Sequence[Report],
    *,
    block: Block = "subject",
    metric: str | None = None,
    alpha: float = 0.05,
) -> CriticalDifference:
    """Rank several methods in every block, test whether they differ at all (Friedman) and which do (Nemenyi).

    Parameters
    ----------
    reports : mapping of name to Report, or sequence of Report (named after method and model)
        At least three, on the same clips.
    block : {"subject", "dataset", "episode"}
        What the methods are ranked on: every subject, data set or episode (fold) once.
    metric : {"uf1", "uar", "acc", "acc_merau"}, optional
        Default accuracy over subjects, whose few clips seldom show every class, and UF1 otherwise.
    alpha : float
        Level of the critical difference.

    Raises
    ------
    DataError
        Fewer than three reports or two blocks, reports that judge other clips, an unknown block or metric.
    """
    named = dict(reports) if isinstance(reports, Mapping) else {_name(report): report for report in reports}
    if len(named) != len(reports):
        raise DataError("two of the reports have the same method and model; give a mapping of name to report.")
    if block not in ("subject", "dataset", "episode"):
        raise DataError(f"block={block!r} is not known; use 'subject', 'dataset' or 'episode'.")
    chosen = metric or ("acc" if block == "subject" else "uf1")
    if chosen not in METRICS:
        raise DataError(f"metric={chosen!r} is not known; use one of {', '.join(METRICS)}.")
    if len(named) < 3:
        raise DataError(
            f"a critical difference needs at least three reports, and {len(named)} are given; use paired_comparison "
            "for two."
        )
    (first, report), *others = named.items()
    for name, other in others:
        _check_pair(report, other, (first, name), same_folds=block == "episode")
    scores = np.stack([_block_scores(one, block, chosen) for one in named.values()], axis=1)
    return nemenyi(scores, list(named), metric=chosen, block=block, alpha=alpha)


def nemenyi(
    scores: ArrayLike, names: Sequence[str], *, metric: str = "score", block: str = "block", alpha: float = 0.05
) -> CriticalDifference:
    """Friedman's test and Nemenyi's critical difference of a table of scores, higher is better.

    Parameters
    ----------
    scores : array of shape (N, k)
        One row a block, one column a method; k at least 3, N at least 2.
    names : sequence of str
        The k methods.
    metric, block : str
        What the scores and rows are, for words.
    alpha : float
        Level, between 0 and 1.

    Raises
    ------
    DataError
        Too few rows or columns, a score that is no number, or names that do not fit.
    """
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] < 2 or table.shape[1] < 3 or table.shape[1] != len(names):
        raise DataError(
            f"scores of shape {table.shape} for {len(names)} methods cannot be ranked; a row a block (two at least) "
            "and a column a method (three at least) are needed."
        )
    if not np.isfinite(table).all():
        raise DataError("a score is not a finite number; every method needs a score in every block.")
    if not 0 < alpha < 1:
        raise DataError(f"alpha={alpha} is no level of a test; give a number between 0 and 1.")
    rows, count = table.shape
    ranks = rankdata(-table, axis=1).mean(axis=0)
    if (table == table[:, :1]).all():
        # Every block is a tie: the statistic is 0 / 0, and nothing speaks for a difference.
        friedman, p_value = 0.0, 1.0
    else:
        friedman, p_value = map(float, friedmanchisquare(*table.T))
    spread = math.sqrt(count * (count + 1) / (6 * rows))
    difference = float(studentized_range.ppf(1 - alpha, count, np.inf)) / math.sqrt(2) * spread
    order = np.argsort(ranks, kind="stable")
    sorted_ranks = ranks[order]
    apart = np.abs(sorted_ranks[:, None] - sorted_ranks[None])
    p_values = np.clip(studentized_range.sf(apart * math.sqrt(2) / spread, count, np.inf), 0, 1)
    np.fill_diagonal(p_values, 1.0)
    ordered = tuple(str(names[index]) for index in order)
    groups: list[tuple[int, int]] = []
    for start in range(count):
        stop = int(np.flatnonzero(sorted_ranks - sorted_ranks[start] <= difference)[-1])
        # A run inside the one before says nothing new.
        if stop > start and (not groups or stop > groups[-1][1]):
            groups.append((start, stop))
    return CriticalDifference(
        names=ordered,
        ranks=tuple(sorted_ranks.tolist()),
        means=tuple(table.mean(axis=0)[order].tolist()),
        metric=metric,
        block=block,
        blocks=rows,
        friedman=friedman,
        p_value=p_value,
        alpha=alpha,
        difference=difference,
        p_values=tuple(tuple(row) for row in p_values.tolist()),
        groups=tuple(ordered[start : stop + 1] for start, stop in groups),
    )


@dataclass(frozen=True)
class _Tally:
    """Confusion matrices of a report by subject, seed and episode; pooled reports have one episode.

    `counts` has shape (S, R, E, C, C); `among`, (E, C), says which classes each episode is about.
    """

    counts: Floats
    among: NDArray[np.bool_] | None

    @property
    def subjects(self) -> int:
        return self.counts.shape[0]

    @property
    def seeds(self) -> int:
        return self.counts.shape[1]

    def by_seed(self) -> dict[str, Floats]:
        """Figures of every seed, (R,)."""
        return {name: values[0] for name, values in self._scores(np.ones((1, self.subjects))).items()}

    def figures(self) -> dict[str, Floats]:
        """Figures, mean over seeds."""
        return {name: values.mean() for name, values in self.by_seed().items()}

    def samples(self, draws: int, seed: int) -> dict[str, Floats]:
        """Figures of bootstrap samples, (draws,); the same seed draws the same subjects."""
        parts: dict[str, list[Floats]] = {name: [] for name in METRICS}
        held = max(1, BLOCK_CELLS // max(int(np.prod(self.counts.shape[1:])), 1))
        for times in drawn_subjects(self.subjects, draws, seed):
            for low in range(0, len(times), held):
                for name, values in self._scores(times[low : low + held]).items():
                    parts[name].append(values.mean(axis=1))
        return {name: np.concatenate(values) for name, values in parts.items()}

    def interval(self, draws: int, seed: int) -> dict[str, tuple[float, float] | None]:
        if self.subjects < 2:
            return dict.fromkeys(METRICS)
        return {name: percentile_interval(values) for name, values in self.samples(draws, seed).items()}

    def _scores(self, times: Floats) -> dict[str, Floats]:
        """Figures, (draws, R), when each subject counts `times` (draws, S)."""
        counts = np.tensordot(times, self.counts, axes=1)
        scores = score_confusion(counts, self.among)
        # An episode none of whose queries was drawn says nothing.
        asked = counts.any(axis=(-2, -1))
        several = np.maximum(asked.sum(axis=-1), 1)
        return {name: (getattr(scores, name) * asked).sum(axis=-1) / several for name in METRICS}


def _tally(report: Report) -> _Tally:
    table = report.predictions
    if table.empty:
        raise DataError(f"the report {_name(report)!r} holds no predictions; evaluate again.")
    averaged = report.averaging == "episodes"
    episode, episodes = _factor(table["episode"]) if averaged else (np.zeros(len(table), dtype=np.int64), 1)
    counts = _counted(report, _factor(table["dataset"], table["subject"]), _runs(table), (episode, episodes))
    return _Tally(counts, _among(report, episode) if averaged else None)


def _counted(report: Report, *axes: tuple[NDArray[np.int64], int]) -> Floats:
    """Confusion matrices by the codes of each axis, (..., C, C)."""
    classes = len(report.classes)
    shape = (*(size for _, size in axes), classes, classes)
    if math.prod(shape) > MOST_CELLS:
        raise DataError(
            f"the report {_name(report)!r} names too many subjects, seeds and episodes to count by each of them "
            f"({' by '.join(f'{size:,}' for size in shape)}); check its table of predictions."
        )
    place = np.ravel_multi_index((*(codes for codes, _ in axes), *_codes(report)), shape)
    return np.bincount(place, minlength=math.prod(shape)).reshape(shape).astype(np.float64)


def _among(report: Report, group: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """The classes that each group of rows is about, (G, C); ``None``: all. The others have no probability."""
    columns = [f"p_{name}" for name in report.classes]
    if not set(columns) <= set(report.predictions):
        return None
    told = report.predictions[columns].notna().to_numpy()
    if told.all():
        return None
    among = np.zeros((int(group.max()) + 1, len(report.classes)), dtype=bool)
    np.logical_or.at(among, (group[:, None], np.arange(len(report.classes))), told)
    return among


def _block_scores(report: Report, block: Block, metric: str) -> Floats:
    """One figure a block, mean over seeds; blocks in sorted order."""
    table = report.predictions
    columns = ("dataset", "subject") if block == "subject" else (block,)
    group, groups = _factor(*(table[name] for name in columns))
    among = _among(report, group)
    scores = score_confusion(_counted(report, (group, groups), _runs(table)), None if among is None else among[:, None])
    values: Floats = getattr(scores, metric)
    return values.mean(axis=1)


def _runs(table: pd.DataFrame) -> tuple[NDArray[np.int64], int]:
    """Code of the seed of every row, and how many seeds there are."""
    return _factor(table["seed"]) if "seed" in table else (np.zeros(len(table), dtype=np.int64), 1)


def _factor(*columns: pd.Series[Any]) -> tuple[NDArray[np.int64], int]:
    """Codes of the distinct rows of some columns in sorted order, and how many there are."""
    import pandas as pd

    index = pd.MultiIndex.from_arrays([column.to_numpy() for column in columns])
    codes, distinct = pd.factorize(index, sort=True)
    return codes.astype(np.int64), len(distinct)


def _codes(report: Report) -> list[NDArray[np.int64]]:
    """Codes of the true and of the predicted class of every row."""
    import pandas as pd

    found = []
    for name in ("label", "predicted"):
        values = pd.Index(report.classes).get_indexer(report.predictions[name].astype(str))
        if (values < 0).any():
            strange = report.predictions[name].to_numpy()[values < 0][0]
            raise DataError(
                f"the predictions of {_name(report)!r} name the class {strange!r}, which is none of its classes "
                f"{', '.join(report.classes)}; evaluate again."
            )
        found.append(values.astype(np.int64))
    return found


def _check_pair(a: Report, b: Report, names: Sequence[str], same_folds: bool) -> None:
    """Refuse two reports that judge other things, in words that use `names` for them."""
    first, second = names
    both = f"{first} and {second}"
    if sorted(a.classes) != sorted(b.classes):
        raise DataError(
            f"{both} tell other classes apart ({', '.join(a.classes)}; {', '.join(b.classes)}), which are other tasks; "
            "compare reports of one protocol."
        )
    if a.averaging != b.averaging:
        raise DataError(f"one of {both} averages over episodes and the other pools folds; compare like with like.")
    keys = ["dataset", "clip"]
    mine, theirs = (
        report.predictions.drop_duplicates(keys).set_index(keys)[["label", "subject"]].astype(str) for report in (a, b)
    )
    alone = mine.index.symmetric_difference(theirs.index)
    if len(alone):
        shared = len(mine.index.intersection(theirs.index))
        raise DataError(
            f"{both} judge other clips: {shared:,} are in both, {len(mine) - shared:,} only in {first} and "
            f"{len(theirs) - shared:,} only in {second}, for example {alone[0][1]!r} of {alone[0][0]}; compare reports "
            "on the same clips."
        )
    for column in ("label", "subject"):
        unlike = mine[column] != theirs[column].reindex(mine.index)
        if unlike.any():
            dataset, clip = mine.index[int(np.argmax(unlike.to_numpy()))]
            raise DataError(
                f"{both} give clip {clip!r} of {dataset} another {column}; compare reports on the same labels."
            )
    if (same_folds or a.averaging == "episodes") and _folds(a) != _folds(b):
        raise DataError(
            f"{both} deal the clips into other folds or episodes, so they learnt from other clips; run both by the "
            "same protocol and seed of episodes."
        )


def _folds(report: Report) -> set[frozenset[tuple[str, str]]] | list[tuple[int, str, str]]:
    """The folds as sets of clips, whatever their numbers; episodes that ask clips repeatedly keep theirs."""
    table = report.predictions
    keys = ["episode", "dataset", "clip"]
    if report.averaging == "episodes":
        return sorted(map(tuple, table[keys].drop_duplicates().to_numpy().tolist()))
    return {frozenset(zip(part["dataset"], part["clip"], strict=True)) for _, part in table[keys].groupby("episode")}


def _right(table: pd.DataFrame) -> pd.Series[Any]:
    return table["label"].astype(str) == table["predicted"].astype(str)


def _share_right(report: Report) -> pd.Series[Any]:
    """Share of right answers of every clip."""
    table = report.predictions
    return _right(table).groupby([table["dataset"], table["clip"]]).mean()


def _right_by_seed(report: Report) -> list[NDArray[np.bool_]]:
    """For every seed whether each clip was right, clips sorted; nothing where a seed asks a clip repeatedly."""
    table, keys = report.predictions, ["seed", "dataset", "clip"]
    if "seed" not in table or table.duplicated(keys).any():
        return []
    return [_right(part).to_numpy() for _, part in table.sort_values(keys, kind="stable").groupby("seed")]


def _name(report: Report) -> str:
    return f"{report.method['name']} on {report.model['name']}"


def shown_p(value: float) -> str:
    """A p-value in words: four digits, or that it is smaller than these can say."""
    return "below 0.0001" if value < 0.0001 else f"{value:.4f}"
