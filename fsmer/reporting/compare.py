"""Several reports side by side: figures, differences, paired tests, and in words what makes them hard to compare."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fsmer.drawing import save_figure
from fsmer.errors import DataError
from fsmer.evaluation import report_tables as tables
from fsmer.evaluation.report import Report
from fsmer.evaluation.report_tables import NAMES, ORACLE, SHOWN, Figure, Table, markdown_table
from fsmer.evaluation.run_folder import flat
from fsmer.io import check_writable, write_json, write_text
from fsmer.reporting.html import confusion_picture
from fsmer.reporting.page import page
from fsmer.reporting.plots import critical_difference_figure, methods_figure
from fsmer.reporting.ranking import CriticalDifference, critical_difference
from fsmer.reporting.statistics import PairedComparison, paired_comparison, shown_p
from fsmer.text import markdown, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

__all__ = ["Comparison", "compare"]

MAX_CLIPS = 100  # listed ones on which the reports disagree
TESTS = (
    "Differences are first minus second; interval and p by paired bootstrap over subjects. Right alone: clips that "
    "only the first and only the second gets right by most of their answers, tested by McNemar (exact; it takes clips "
    "for independent). No p-value is corrected for the number of pairs."
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Reports side by side."""

    reports: Mapping[str, Report]  # in the order given; the name of an ORACLE report says so
    warnings: tuple[str, ...]  # what stands in the way of comparing the figures, one sentence each
    tests: tuple[PairedComparison, ...]  # of every two reports that judge the same clips in the same folds
    ranking: CriticalDifference | None = None  # of three or more reports on the same clips, over subjects

    @property
    def shown(self) -> tuple[str, ...]:
        """The figures that all reports have."""
        return tables.shared(self.reports.values())

    @property
    def title(self) -> str:
        return " against ".join(self.reports)

    def to_dict(self) -> dict[str, Any]:
        keys = [key for name in self.shown for key in (name, f"{name}_interval")]
        listed = []
        for name, report in self.reports.items():
            values = report.to_dict()
            listed.append(
                {
                    "name": name,
                    "title": report.title,
                    "rule": report.selection["rule"],
                    **{key: values[key] for key in [*keys, "per_seed", "per_dataset", "per_class", "counts"]},
                    "protocol_hash": report.protocol["hash"],
                    "weights_hash": report.model["weights_hash"],
                }
            )
        return {
            "format": "fsmer-comparison",
            "format_version": 1,
            "reports": listed,
            "warnings": list(self.warnings),
            "tests": [test.to_dict() for test in self.tests],
            "ranking": None if self.ranking is None else self.ranking.to_dict(),
        }

    def markdown(self) -> str:
        rows: list[list[Any]] = []
        for name, one in self.reports.items():
            sizes = (one.counts["clips"], one.counts["subjects"], len(one.per_seed))
            rows.append([name, *sizes, *tables.figure_cells(one.figures, self.shown)])
        tests = [[" - ".join(one.names), *(" ".join(cell) for cell in _test_cells(one))] for one in self.tests]
        heads, tested = ([NAMES.get(name, name) for name in names] for names in (self.shown, SHOWN))
        lines = [f"# {markdown(self.title)}", ""]
        lines += [line for warning in self.warnings for line in (f"> **Take care:** {markdown(warning)}", "")]
        lines += markdown_table(Table("Figures", ("report", "clips", "subjects", "seeds", *heads), rows))
        if tests:
            lines += ["", *markdown_table(Table("Tests", ("first - second", *tested, "McNemar"), tests)), "", TESTS]
        if self.ranking is not None:
            lines += ["", "```", str(self.ranking), "```"]
        return "\n".join([*lines, ""])

    def __str__(self) -> str:
        parts = [
            f"{name}: {', '.join(f'{NAMES.get(n, n)} {Figure.of(report.figures, n)}' for n in self.shown)}"
            for name, report in self.reports.items()
        ]
        parts += [f"take care: {warning}" for warning in self.warnings]
        parts += [str(test) for test in self.tests]
        if self.ranking is not None:
            parts.append(str(self.ranking))
        return "\n".join(parts)

    def figure(self, metric: str = "uf1") -> Picture:
        """One dot with its interval for each report, best on top."""
        return methods_figure(self.reports, metric=metric)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """One self-contained page; also written to `path` where one is given (`OutputError` where that fails)."""
        reports = self.reports
        low, high = _scale(reports.values())
        origins = [tables.provenance(report) for report in reports.values()]
        text = page(
            "comparison.html.j2",
            self.title,
            comparison=self,
            shared=self.shown,
            oracle=any(report.oracle for report in reports.values()),
            figure_of=Figure.of,
            low=low,
            high=high,
            hows=sorted({report.how for report in reports.values()}),
            classes=len(next(iter(reports.values())).classes),
            how_tested=TESTS,
            tests=[(test.names, _test_cells(test)) for test in self.tests],
            ranking_p=None if self.ranking is None else shown_p(self.ranking.p_value),
            by_dataset=_beside(_column(report.per_dataset, "uf1") for report in reports.values()),
            by_class=_beside(_column(report.per_class, "f1") for report in reports.values()),
            pictures=[confusion_picture(name, report.confusion, report.classes) for name, report in reports.items()],
            most_classes=max(len(report.classes) for report in reports.values()),
            disputed=_disputed(reports) if self.tests else None,
            origins=_beside({str(key): value for key, value in one.rows} for one in origins),
        )
        if path is not None:
            write_text(path, text)
        return text

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``compare.json``, ``compare.md``, ``compare.html`` and ``compare.png``, each whole or not at all.

        Three or more reports on the same clips add ``ranks.png``, their critical-difference diagram. `OutputError`
        where the folder cannot be written.
        """
        target = Path(folder)
        check_writable(target)
        save_figure(self.figure(), target / "compare.png")
        if self.ranking is not None:
            save_figure(critical_difference_figure(self.ranking), target / "ranks.png")
        write_text(target / "compare.md", self.markdown())
        self.to_html(target / "compare.html")
        write_json(target / "compare.json", self.to_dict())
        return target


def compare(
    *reports: Report | str | os.PathLike[str], names: Sequence[str] | None = None, draws: int = 2000, seed: int = 0
) -> Comparison:
    """Put reports side by side.

    Reports on other clips, labels or folds are shown all the same, but neither paired nor ranked, and a warning says
    why.

    Parameters
    ----------
    *reports : Report or path
        Two or more; a path is a folder that an evaluation wrote.
    names : sequence of str, optional
        One a report; default the names of the folders, or method and model.
    draws : int, default 2000
        Bootstrap samples of the paired tests.
    seed : int, default 0
        Seed of the bootstrap.

    Returns
    -------
    Comparison
        Warnings, paired tests of every two reports, and a ranking of three or more.

    Raises
    ------
    DataError
        Fewer than two reports, a folder without a whole report, figures or probabilities that are none, or another
        number of names.

    Examples
    --------
    >>> import fsmer
    >>> clips = fsmer.synthetic_clips(n=24, subjects=4)
    >>> nearest, cosine = (fsmer.evaluate("loso", "facs-flow", name, clips=clips) for name in ("protonet", "cosine"))
    >>> comparison = fsmer.compare(nearest, cosine, names=["protonet", "cosine"], draws=100)
    >>> comparison.title, len(comparison.tests)
    ('protonet against cosine', 1)
    """
    if len(reports) < 2:
        raise DataError(f"a comparison needs at least two reports, but got {len(reports)}; give another one.")
    if names is not None and len(names) != len(reports):
        raise DataError(f"there are {len(reports)} reports but {len(names)} names; give one for each.")
    loaded = [report if isinstance(report, Report) else Report.load(report) for report in reports]
    shown = [one_line(name) for name in names or _names(reports)]
    named = dict(zip(_distinct(shown, loaded), loaded, strict=True))
    for name, report in named.items():
        if report.unsound:
            raise DataError(f"the report {name} cannot be compared: {report.unsound}; evaluate again.")
    oracle = [name for name, report in named.items() if report.oracle]
    honest = [name for name in named if name not in oracle]
    warnings, tests = [], []
    if oracle and honest:
        warnings.append(
            f"settings were chosen on the judged clips for {' and '.join(oracle)} but not for {' and '.join(honest)}; "
            "figures of the two kinds do not tell which is better."
        )
    joint = [name for name, report in named.items() if report.transductive]
    if 0 < len(joint) < len(named):
        others = " and ".join(name for name in named if name not in joint)
        warnings.append(
            f"{' and '.join(joint)} looked at all query clips of an episode together and {others} at each alone; a "
            "difference may come from that."
        )
    for (first, a), (second, b) in combinations(named.items(), 2):
        if a.protocol["hash"] != b.protocol["hash"]:
            words = _protocol_words((first, a), (second, b))
            warnings.append(f"{first} and {second} follow other protocols: {words}.")
        try:
            tests.append(paired_comparison(a, b, names=(first, second), draws=draws, seed=seed))
        except DataError as error:
            warnings.append(f"{first} and {second} are not tested against each other: {error}")
    ranking = None
    if len(named) > 2 and len(tests) == len(named) * (len(named) - 1) // 2 and tests[0].subjects > 1:
        ranking = critical_difference(named)
    return Comparison(named, tuple(warnings), tuple(tests), ranking)


def _names(reports: Sequence[Report | str | os.PathLike[str]]) -> list[str]:
    """Folders by their last part where that tells them apart; reports by what was run."""
    last = [
        f"{one.method['name']} on {one.model['name']}" if isinstance(one, Report) else Path(one).resolve().name
        for one in reports
    ]
    twice = {name for name, count in Counter(last).items() if count > 1}
    return [
        str(one) if name in twice and not isinstance(one, Report) else name
        for name, one in zip(last, reports, strict=True)
    ]


def _distinct(names: list[str], reports: Sequence[Report]) -> list[str]:
    """Names with ORACLE where it applies, numbered where they would be the same."""
    named = [report.stamped(name) for name, report in zip(names, reports, strict=True)]
    stamped = [f"{name} [{ORACLE}]" if report.oracle else name for name, report in zip(named, reports, strict=True)]
    earlier = [stamped[:place].count(name) for place, name in enumerate(stamped)]
    return [f"{name} ({count + 1})" if count else name for name, count in zip(stamped, earlier, strict=True)]


def _protocol_words(one: tuple[str, Report], other: tuple[str, Report]) -> str:
    """In what two protocols differ: their kind or, where that is the same, their settings."""
    (first, a), (second, b) = one, other
    mine, theirs = (report.protocol["settings"] for report in (a, b))
    if mine.get("kind") != theirs.get("kind"):
        kinds = (f"{name} {settings.get('kind')}" for name, settings in ((first, mine), (second, theirs)))
        return ", ".join(kinds)
    mine, theirs = flat(mine), flat(theirs)
    words = [
        f"{key.removeprefix('params.')} is {mine.get(key, 'not set')} in {first} and "
        f"{theirs.get(key, 'not set')} in {second}"
        for key in {**mine, **theirs}
        if mine.get(key) != theirs.get(key)
    ]
    return "; ".join(words) or f"{a.protocol['name']} and {b.protocol['name']}"


def _test_cells(test: PairedComparison) -> list[tuple[str, str]]:
    """Difference and how sure it is, for every figure, then McNemar's counts and their p-value."""
    cells = [(f"{one.difference:+.4f}", one.certainty) for one in test.differences.values()]
    return [*cells, (f"{test.mcnemar.only_a:,} to {test.mcnemar.only_b:,}", f"p {shown_p(test.mcnemar.p_exact)}")]


def _scale(reports: Iterable[Report]) -> tuple[float, float]:
    """One scale for all bars, as narrow as the intervals allow, in steps of 0.05."""
    every = [
        value
        for report in reports
        for metric in SHOWN
        for value in (report.figures[metric], *(report.interval(metric) or ()))
    ]
    low, high = math.floor(min(every) * 20) / 20, math.ceil(max(every) * 20) / 20
    return low, high if high > low else low + 0.05


def _column(rows: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Figure]:
    return {key: Figure.of(row, name) for key, row in rows.items()}


def _beside(columns: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    """Rows of (key, a cell for each column), with a dash where a column lacks the key."""
    held = list(columns)
    return [[key, *(one.get(key, "–") for one in held)] for key in dict.fromkeys(key for one in held for key in one)]


def _disputed(reports: Mapping[str, Report]) -> dict[str, Any]:
    """Clips that some reports mostly get right and others do not, the most disputed first."""
    shares = {}
    for name, report in reports.items():
        told = report.predictions
        right = told["label"] == told["predicted"]
        shares[name] = right.groupby([told[key] for key in ("dataset", "subject", "clip", "label")]).mean()
    joint = pd.DataFrame(shares).dropna()
    disputed = joint[(joint > 0.5).nunique(axis=1) > 1]
    spread = (disputed.max(axis=1) - disputed.min(axis=1)).sort_values(ascending=False, kind="stable")
    rows = [
        [clip, dataset, subject or "(unknown)", label, *(f"{share:.0%}" for share in own)]
        for (dataset, subject, clip, label), own in zip(
            spread.index[:MAX_CLIPS], disputed.loc[spread.index[:MAX_CLIPS]].to_numpy(), strict=True
        )
    ]
    cut = f"; the first {MAX_CLIPS} are listed" if len(spread) > MAX_CLIPS else ""
    words = f"{len(disputed):,} of {len(joint):,} clips are mostly right in some reports and not in others{cut}."
    return {"words": words, "rows": rows}
