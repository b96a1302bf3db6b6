"""Whether one result is better than another: seeds as a distribution, intervals, and paired tests of two reports.

Everything works on the predictions of `Report` objects. The independent unit is the subject: clips of one person
resemble each other, so intervals and bootstrap tests draw whole subjects.

References
----------
McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 1947.
Efron and Tibshirani, An introduction to the bootstrap, 1993 (percentile intervals, section 13.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from fsmer.errors import DataError
from fsmer.evaluation.metrics import BOOTSTRAP_DRAWS, METRICS, percentile_interval
from fsmer.evaluation.report import Report
from fsmer.evaluation.report_tables import NAMES, SHOWN
from fsmer.reporting.tallies import check_pair, report_name, tally

__all__ = ["Difference", "McNemar", "PairedComparison", "SeedSummary", "mcnemar", "paired_comparison"]
__all__ += ["report_interval", "seed_summary", "shown_p"]


@dataclass(frozen=True)
class SeedSummary:
    """One figure over several seeds."""

    each: tuple[float, ...]  # one a seed, in the order of the seeds
    mean: float
    sd: float | None  # sample standard deviation (n - 1); None for a single seed
    low: float  # the smallest
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedSummary:
        """Summarise values, one a seed; `DataError` where there is none."""
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
    """McNemar's test of two recognizers on the same clips."""

    both: int  # clips that both classified rightly
    only_a: int  # only the first
    only_b: int  # only the second
    neither: int
    p_exact: float  # two-sided p-value of the binomial test on the clips that only one of them got right
    statistic: float  # (|only_a - only_b| - 1)^2 / (only_a + only_b): chi-squared with continuity correction
    p_corrected: float  # its p-value with one degree of freedom


@dataclass(frozen=True)
class Difference:
    """First minus second in one figure, by paired bootstrap over subjects."""

    a: float  # the figure of the first
    b: float
    difference: float  # a - b
    interval: tuple[float, float] | None  # 95 % percentile interval; None with fewer than two subjects
    p_value: float | None  # two-sided: twice the smaller share of bootstrap differences on either side of zero

    @property
    def certainty(self) -> str:
        """Interval and p-value in words; nothing with fewer than two subjects."""
        if self.interval is None or self.p_value is None:
            return ""
        return f"[{self.interval[0]:+.4f}, {self.interval[1]:+.4f}], p {shown_p(self.p_value)}"


@dataclass(frozen=True)
class PairedComparison:
    """Two reports on the same clips and folds, compared; see `paired_comparison`.

    A clip counts as right where more than half of its answers (one a seed and episode) are. Where half are right and
    half wrong, in either report, it says nothing and is left out of McNemar's test.
    """

    names: tuple[str, str]  # what the two are called
    clips: int  # distinct clips that both were judged on
    subjects: int
    seeds: tuple[int, int]  # how many seeds each was run with
    mcnemar: McNemar  # over clips
    # One a seed, where both ran the same number of several seeds and ask a clip once a seed; else empty.
    mcnemar_by_seed: tuple[McNemar, ...]
    differences: dict[str, Difference]  # for uf1, uar and acc
    draws: int  # bootstrap samples
    ties: int = 0  # clips that mcnemar leaves out

    @property
    def how(self) -> str:
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


def seed_summary(report: Report) -> dict[str, SeedSummary]:
    """The figures of a report, each of `METRICS`, as a distribution over its seeds."""
    by_seed = tally(report).by_seed()
    return {name: SeedSummary.of(by_seed[name].tolist()) for name in METRICS}


def report_interval(
    report: Report, *, draws: int = BOOTSTRAP_DRAWS, seed: int = 0
) -> dict[str, tuple[float, float] | None]:
    """95 % intervals of a report's figures by `METRICS` name; ``None`` with fewer than two subjects.

    The figures are means over its seeds, and over episodes where it averages over them. Whole subjects are drawn with
    replacement, see `fsmer.evaluation.bootstrap_interval`. For K-shot reports this is the uncertainty from who was
    filmed; the report's own interval is the one from which episodes were drawn.
    """
    counts = tally(report)
    drawn = counts.samples(draws, seed) if counts.subjects > 1 else {}
    return {name: percentile_interval(drawn[name]) if drawn else None for name in METRICS}


def mcnemar(right_a: ArrayLike, right_b: ArrayLike) -> McNemar:
    """McNemar's test of right answers (N,), one value a clip for each side, exact and with continuity correction.

    It takes clips for independent. Clips of one subject are not, so `paired_comparison` gives a bootstrap over subjects
    beside it. `DataError` where lengths differ.
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
        Two reports on the same clips.
    names : tuple of str, optional
        What to call them; default their methods and models.
    same_folds : bool, default True
        Whether to refuse reports whose folds deal the clips otherwise. Episodes of a K-shot protocol must always agree.
    draws : int, default 2000
        Bootstrap samples.
    seed : int, default 0
        Seed of the bootstrap.

    Returns
    -------
    PairedComparison
        McNemar's test, and the difference of every figure with its interval.

    Raises
    ------
    DataError
        The two judge other clips, give a clip other labels, tell other classes apart, or use other folds.

    Examples
    --------
    >>> import fsmer
    >>> clips = fsmer.synthetic_clips(n=24, subjects=4)
    >>> nearest, cosine = (fsmer.evaluate("loso", "facs-flow", name, clips=clips) for name in ("protonet", "cosine"))
    >>> found = fsmer.paired_comparison(nearest, cosine, names=("protonet", "cosine"), draws=100)
    >>> found.clips, sorted(found.differences)
    (24, ['acc', 'uar', 'uf1'])
    """
    names = names or (report_name(a), report_name(b))
    check_pair(a, b, names, same_folds)
    first, second = tally(a), tally(b)
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


def _right(table: pd.DataFrame) -> pd.Series[Any]:
    return table["label"].astype(str) == table["predicted"].astype(str)


def _share_right(report: Report) -> pd.Series[Any]:
    table = report.predictions
    return _right(table).groupby([table["dataset"], table["clip"]]).mean()


def _right_by_seed(report: Report) -> list[NDArray[np.bool_]]:
    """For every seed whether each clip was right, clips sorted; nothing where a seed asks a clip repeatedly."""
    table, keys = report.predictions, ["seed", "dataset", "clip"]
    if "seed" not in table or table.duplicated(keys).any():
        return []
    return [_right(part).to_numpy() for _, part in table.sort_values(keys, kind="stable").groupby("seed")]


def shown_p(value: float) -> str:
    """A p-value in words: four digits, or that it is smaller than these can say."""
    return "below 0.0001" if value < 0.0001 else f"{value:.4f}"
