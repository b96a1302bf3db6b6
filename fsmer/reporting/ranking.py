"""Many methods ranked over subjects, data sets or episodes: Friedman's test and Nemenyi's critical difference.

References
----------
Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7, 2006 (Friedman, Nemenyi, the picture).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fsmer.errors import DataError
from fsmer.evaluation.metrics import METRICS, Floats, score_confusion
from fsmer.evaluation.report import Report
from fsmer.evaluation.report_tables import NAMES
from fsmer.reporting.statistics import shown_p
from fsmer.reporting.tallies import check_pair, classes_asked, counted, report_name, row_codes, seed_codes

__all__ = ["CriticalDifference", "critical_difference", "nemenyi"]

Block = Literal["subject", "dataset", "episode"]


@dataclass(frozen=True)
class CriticalDifference:
    """Many methods over many blocks: mean ranks, Friedman's test and Nemenyi's critical difference."""

    names: tuple[str, ...]  # the methods, best mean rank first
    ranks: tuple[float, ...]  # mean rank of each over the blocks, 1 is best; ties share their ranks
    means: tuple[float, ...]  # mean figure of each over the blocks
    metric: str  # what was ranked
    block: str  # over what
    blocks: int
    friedman: float  # Friedman's chi-squared, corrected for ties; 0 where every block is a tie
    p_value: float  # its p-value; 1 where every block is a tie
    alpha: float
    difference: float  # mean ranks further apart than this differ at level alpha (Nemenyi)
    p_values: tuple[tuple[float, ...], ...]  # Nemenyi's p-value of each pair, in the order of names
    # Longest runs of methods in which no two differ; a method that differs from all others is in none.
    groups: tuple[tuple[str, ...], ...]

    @property
    def blocks_in_words(self) -> str:
        return "data sets" if self.block == "dataset" else f"{self.block}s"

    def to_dict(self) -> dict[str, Any]:
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
    reports : mapping of str to Report, or sequence of Report
        At least three, on the same clips; a sequence is named after method and model.
    block : {"subject", "dataset", "episode"}, default "subject"
        What the methods are ranked on: every subject, data set or episode (fold) once.
    metric : {"uf1", "uar", "acc", "acc_merau"}, optional
        Default accuracy over subjects, whose few clips seldom show every class, and UF1 otherwise.
    alpha : float, default 0.05
        Level of the critical difference.

    Returns
    -------
    CriticalDifference
        Mean ranks, both tests, and groups that do not differ.

    Raises
    ------
    DataError
        Fewer than three reports or two blocks, reports that judge other clips, an unknown block or metric.

    Examples
    --------
    >>> import fsmer
    >>> clips = fsmer.synthetic_clips(n=24, subjects=4)
    >>> methods = ("protonet", "cosine", "logistic")
    >>> reports = {name: fsmer.evaluate("loso", "facs-flow", name, clips=clips) for name in methods}
    >>> found = fsmer.critical_difference(reports)
    >>> found.blocks, sorted(found.names)
    (4, ['cosine', 'logistic', 'protonet'])
    """
    named = dict(reports) if isinstance(reports, Mapping) else {report_name(report): report for report in reports}
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
        check_pair(report, other, (first, name), same_folds=block == "episode")
    scores = np.stack([_block_scores(one, block, chosen) for one in named.values()], axis=1)
    return nemenyi(scores, list(named), metric=chosen, block=block, alpha=alpha)


def nemenyi(
    scores: ArrayLike, names: Sequence[str], *, metric: str = "score", block: str = "block", alpha: float = 0.05
) -> CriticalDifference:
    """Friedman's test and Nemenyi's critical difference of a table of scores (N, k), higher is better.

    Rows are blocks (two at least) and columns the methods `names` (three at least); `metric` and `block` are words for
    scores and rows, `alpha` is the level, between 0 and 1. `DataError` for another shape, a score that is no finite
    number, or such a level.
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


def _block_scores(report: Report, block: Block, metric: str) -> Floats:
    """One figure a block, mean over seeds; blocks in sorted order."""
    table = report.predictions
    columns = ("dataset", "subject") if block == "subject" else (block,)
    group, groups = row_codes(*(table[name] for name in columns))
    among = classes_asked(report, group)
    counts = counted(report, (group, groups), seed_codes(table))
    scores = score_confusion(counts, None if among is None else among[:, None])
    values: Floats = getattr(scores, metric)
    return values.mean(axis=1)
