"""Statistics of reports: seeds, intervals by subjects, paired tests of two methods, critical difference of many."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_backbone
from sklearn.metrics import f1_score, recall_score

import fsmer
from fsmer.drawing import save_figure
from fsmer.errors import DataError
from fsmer.evaluation import Report, bootstrap_interval, evaluate
from fsmer.reporting.plots import critical_difference_figure
from fsmer.reporting.ranking import critical_difference, nemenyi
from fsmer.reporting.statistics import SeedSummary, mcnemar, paired_comparison, report_interval, seed_summary
from fsmer.reporting.tallies import tally

CLASSES = ("negative", "positive", "surprise")


@pytest.fixture(scope="module")
def loso() -> Report:
    """A LOSO report of a frozen network on synthetic clips of two data sets."""
    return evaluate(
        "loso", tiny_backbone.TinyBackbone(), "protonet", clips=fsmer.synthetic_clips("lab", 90, seed=3, subjects=9)
    )


@pytest.fixture(scope="module")
def kshot() -> Report:
    """A K-shot report on the same kind of clips."""
    clips = fsmer.synthetic_clips("lab", 60, seed=3, subjects=6)
    protocol = fsmer.load_protocol("kshot", way=3, shot=2, query=4, episodes=7)
    return evaluate(protocol, tiny_backbone.TinyBackbone(), "protonet", clips=clips)


def answers(
    like: Report, rng: np.random.Generator, rate: float, *, seeds: tuple[int, ...] = (), name: str = "made"
) -> Report:
    """`like` with other answers: right with probability `rate`, for each of `seeds`."""
    parts = []
    for seed in seeds or (0,):
        table = like.predictions.copy()
        right = rng.random(len(table)) < rate
        table["predicted"] = np.where(right, table["label"], rng.choice(CLASSES, len(table)))
        if seeds:
            table.insert(0, "seed", seed)
        parts.append(table)
    method = {"name": name, "params": {}}
    return dataclasses.replace(like, predictions=pd.concat(parts, ignore_index=True), method=method)


def pooled(table: pd.DataFrame) -> tuple[float, float, float]:
    """UF1, UAR and accuracy by scikit-learn."""
    truth, predicted = table["label"], table["predicted"]
    options: dict[str, Any] = {"labels": CLASSES, "average": "macro", "zero_division": 0}
    return (
        f1_score(truth, predicted, **options),
        recall_score(truth, predicted, **options),
        float((truth == predicted).mean()),
    )


def test_seeds_are_summarised_as_a_distribution(loso: Report) -> None:
    report = answers(loso, np.random.default_rng(0), 0.6, seeds=(4, 5, 6))
    each = [pooled(part) for _, part in report.predictions.groupby("seed")]
    for place, metric in enumerate(("uf1", "uar", "acc")):
        found = seed_summary(report)[metric]
        values = [one[place] for one in each]
        assert found.each == pytest.approx(values)
        assert (found.mean, found.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
        assert (found.low, found.high) == pytest.approx((min(values), max(values)))
    assert "3 seeds" in str(seed_summary(report)["uf1"])


def test_a_single_seed_has_no_deviation(loso: Report) -> None:
    found = seed_summary(loso)["uf1"]
    assert (found.sd, found.mean) == (None, pytest.approx(loso.uf1))
    assert "one seed" in str(found)
    with pytest.raises(DataError, match="seed"):
        SeedSummary.of([])


def test_the_interval_of_one_seed_is_the_bootstrap_interval_and_that_of_equal_seeds_too() -> None:
    counts = np.random.default_rng(1).integers(0, 6, (11, 3, 3))
    once = bootstrap_interval(counts, draws=300, seed=2)
    assert bootstrap_interval(counts[None], draws=300, seed=2) == once
    thrice = bootstrap_interval(np.stack([counts] * 3), draws=300, seed=2)
    for metric, bounds in once.items():
        assert thrice[metric] == pytest.approx(bounds)


def test_the_interval_of_several_seeds_draws_the_same_subjects_for_all() -> None:
    rng = np.random.default_rng(5)
    counts = rng.integers(0, 5, (2, 6, 3, 3))
    found = bootstrap_interval(counts, draws=50, seed=9)
    times = np.random.default_rng(9).multinomial(6, np.full(6, 1 / 6), size=50)
    means = []
    for row in times:
        figures = []
        for seed in range(2):
            whole = sum(row[subject] * counts[seed, subject] for subject in range(6))
            recalls = [whole[c, c] / whole[c].sum() if whole[c].sum() else 0.0 for c in range(3)]
            figures.append(np.mean(recalls))
        means.append(np.mean(figures))
    assert found["uar"] == pytest.approx(np.percentile(means, [2.5, 97.5]))


def test_nothing_is_said_of_a_single_subject_and_wrong_shapes_are_refused() -> None:
    assert bootstrap_interval(np.ones((2, 1, 3, 3)))["uf1"] is None
    with pytest.raises(DataError, match=r"\(subjects, C, C\) or \(seeds, subjects, C, C\)"):
        bootstrap_interval(np.ones((4, 3, 2)))


def test_a_report_of_folds_gets_the_interval_that_it_carries(loso: Report) -> None:
    assert report_interval(loso, seed=loso.seed)["uf1"] == pytest.approx(loso.interval("uf1"))


def test_episodes_are_averaged_as_the_report_averages_them(kshot: Report) -> None:
    assert kshot.averaging == "episodes"
    assert seed_summary(kshot)["uf1"].mean == pytest.approx(kshot.uf1)
    low, high = report_interval(kshot, draws=200)["acc"] or (0, 0)
    assert low < kshot.acc < high


def test_episodes_about_some_of_the_classes_average_over_those_alone() -> None:
    clips = fsmer.synthetic_clips("lab", 60, seed=3, subjects=6)
    protocol = fsmer.load_protocol("kshot", way=2, shot=2, query=4, episodes=9)
    report = evaluate(protocol, tiny_backbone.TinyBackbone(), "protonet", clips=clips)
    assert seed_summary(report)["uf1"].mean == pytest.approx(report.uf1)


# Expected: `mcnemar(table, exact=True)` and `mcnemar(table, exact=False, correction=True)` of statsmodels; the first
# table is Agresti's approval ratings.
@pytest.mark.parametrize(
    ("table", "exact", "statistic", "corrected"),
    [
        ((794, 86, 150, 570), 3.7159361395713866e-05, 16.81779661016949, 4.114562281345944e-05),
        ((30, 12, 5, 20), 0.143463134765625, 2.1176470588235294, 0.1456100953968629),
        ((100, 3, 1, 4), 0.625, 0.25, 0.6170750774519738),
    ],
)
def test_mcnemar_agrees_with_statsmodels(
    table: tuple[int, int, int, int], exact: float, statistic: float, corrected: float
) -> None:
    a = np.repeat([True, True, False, False], table)
    b = np.repeat([True, False, True, False], table)
    found = mcnemar(a, b)
    assert (found.both, found.only_a, found.only_b, found.neither) == table
    assert found.p_exact == pytest.approx(exact)
    assert found.statistic == pytest.approx(statistic)
    assert found.p_corrected == pytest.approx(corrected)


def test_mcnemar_of_equal_answers_shows_no_difference() -> None:
    same = mcnemar([True, False, True], [True, False, True])
    assert (same.p_exact, same.p_corrected, same.statistic) == (1.0, 1.0, 0.0)
    balanced = mcnemar([True, False], [False, True])
    assert (balanced.p_exact, balanced.p_corrected) == (1.0, 1.0)
    with pytest.raises(DataError, match=r"\(1,\) and \(2,\)"):
        mcnemar([True], [True, False])


def test_a_paired_comparison_draws_the_same_subjects_for_both_sides(loso: Report) -> None:
    rng = np.random.default_rng(3)
    a, b = answers(loso, rng, 0.8, seeds=(0, 1), name="a"), answers(loso, rng, 0.5, name="b")
    found = paired_comparison(a, b, draws=200, seed=7)
    # Subjects in sorted order, drawn as counts; a's figure is the mean of its two seeds.
    people = sorted(set(a.predictions["subject"]))
    times = np.random.default_rng(7).multinomial(len(people), np.full(len(people), 1 / len(people)), size=200)
    drawn = []
    for row in times:
        sides = []
        for report in (a, b):
            seeds = (
                report.predictions["seed"] if "seed" in report.predictions else pd.Series(0, report.predictions.index)
            )
            figures = []
            for seed in sorted(set(seeds)):
                part = report.predictions[seeds == seed].set_index("subject")
                chosen = np.repeat(people, row)
                figures.append(pooled(pd.concat([part.loc[[name]] for name in chosen]))[0])
            sides.append(np.mean(figures))
        drawn.append(sides[0] - sides[1])
    one = found.differences["uf1"]
    assert one.interval == pytest.approx(np.percentile(drawn, [2.5, 97.5]))
    tail = min(np.sum(np.array(drawn) <= 0), np.sum(np.array(drawn) >= 0)) + 1
    assert one.p_value == pytest.approx(2 * tail / 201)
    assert one.difference == pytest.approx(one.a - one.b)
    assert (found.seeds, found.subjects, found.clips) == ((2, 1), 9, 90)


def test_a_clip_counts_as_right_where_most_of_its_seeds_are(loso: Report) -> None:
    rng = np.random.default_rng(4)
    a, b = answers(loso, rng, 0.7, seeds=(0, 1, 2), name="a"), answers(loso, rng, 0.6, seeds=(0, 1, 2), name="b")
    found = paired_comparison(a, b, draws=50)
    right = []
    for report in (a, b):
        table = report.predictions
        hits = (table["label"] == table["predicted"]).groupby(table["clip"]).sum()
        right.append(hits >= 2)
    assert found.mcnemar.only_a == int((right[0] & ~right[1]).sum())
    assert found.mcnemar.only_b == int((~right[0] & right[1]).sum())
    assert len(found.mcnemar_by_seed) == 3
    first = [report.predictions.query("seed == 1").set_index("clip").sort_index() for report in (a, b)]
    hits = [part["label"] == part["predicted"] for part in first]
    assert found.mcnemar_by_seed[1].only_a == int((hits[0] & ~hits[1]).sum())
    assert "most of its answers" in str(found)


def test_clips_that_half_of_the_seeds_get_right_speak_for_neither(loso: Report) -> None:
    rng = np.random.default_rng(6)
    a, b = answers(loso, rng, 0.6, seeds=(0, 1), name="a"), answers(loso, rng, 0.6, name="b")
    found = paired_comparison(a, b, draws=50)
    table = a.predictions
    hits = (table["label"] == table["predicted"]).groupby(table["clip"]).sum()
    once = b.predictions.set_index("clip")
    right = (once["label"] == once["predicted"]).reindex(hits.index)
    assert found.ties == int((hits == 1).sum()) > 0
    assert found.mcnemar.only_a == int(((hits == 2) & ~right).sum())
    assert found.mcnemar.only_b == int(((hits == 0) & right).sum())
    assert f"{found.ties} are left out, since half of their answers are right in one of the two" in str(found)


def test_a_report_compared_with_itself_shows_no_difference(loso: Report) -> None:
    found = paired_comparison(loso, loso, draws=50)
    assert found.differences["acc"].interval == (0.0, 0.0)
    assert found.differences["acc"].p_value == 1.0
    assert found.mcnemar.p_exact == 1.0
    assert found.to_dict()["differences"]["acc"]["difference"] == 0.0


def test_a_clear_difference_is_found_and_chance_is_not(loso: Report) -> None:
    rng = np.random.default_rng(8)
    good, bad, other = (answers(loso, rng, rate, name=str(rate)) for rate in (0.95, 0.35, 0.951))
    assert (paired_comparison(good, bad).differences["uf1"].p_value or 1) < 0.01
    assert (paired_comparison(good, other).differences["uf1"].p_value or 0) > 0.05


def test_reports_that_cannot_be_paired_are_refused_in_one_sentence(loso: Report, kshot: Report) -> None:
    fewer = dataclasses.replace(loso, predictions=loso.predictions.iloc[3:])
    with pytest.raises(DataError, match=r"87 .* 3 "):
        paired_comparison(loso, fewer)
    relabelled = loso.predictions.copy()
    relabelled.loc[0, "label"] = next(name for name in CLASSES if name != relabelled.loc[0, "label"])
    with pytest.raises(DataError, match="label"):
        paired_comparison(loso, dataclasses.replace(loso, predictions=relabelled))
    moved = loso.predictions.copy()
    moved.loc[0, "episode"] = moved["episode"].iloc[-1]
    with pytest.raises(DataError, match="folds"):
        paired_comparison(loso, dataclasses.replace(loso, predictions=moved))
    assert paired_comparison(loso, dataclasses.replace(loso, predictions=moved), same_folds=False, draws=20).clips == 90
    with pytest.raises(DataError, match="episodes"):
        paired_comparison(loso, kshot)
    with pytest.raises(DataError, match="negative, positive"):
        paired_comparison(loso, dataclasses.replace(loso, classes=("negative", "positive")))


def test_folds_may_be_numbered_otherwise(loso: Report) -> None:
    turned = loso.predictions.copy()
    turned["episode"] = turned["episode"].max() - turned["episode"]
    turned = turned.iloc[::-1].reset_index(drop=True)
    found = paired_comparison(loso, dataclasses.replace(loso, predictions=turned), draws=20)
    assert found.differences["uf1"].difference == pytest.approx(0.0)


# q at level .05 divided by sqrt(2), as in Demsar 2006, Table 5(a).
@pytest.mark.parametrize(("count", "q"), [(3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_that_of_the_tables(count: int, q: float) -> None:
    scores = np.random.default_rng(0).random((14, count))
    found = nemenyi(scores, [f"m{i}" for i in range(count)])
    assert found.difference == pytest.approx(q * np.sqrt(count * (count + 1) / (6 * 14)), rel=5e-4)


def test_friedman_agrees_with_the_example_of_demsar() -> None:
    # Demsar 2006, Table 6: AUC of C4.5 with and without two ways of tuning on 14 data sets; mean ranks 3.143, 2.000,
    # 2.893, 1.964 and chi-squared 9.28 (printed without the correction for ties).
    scores = np.array(
        [
            [0.763, 0.768, 0.771, 0.798],
            [0.599, 0.591, 0.590, 0.569],
            [0.954, 0.971, 0.968, 0.967],
            [0.628, 0.661, 0.654, 0.657],
            [0.882, 0.888, 0.886, 0.898],
            [0.936, 0.931, 0.916, 0.931],
            [0.661, 0.668, 0.609, 0.685],
            [0.583, 0.583, 0.563, 0.625],
            [0.775, 0.838, 0.866, 0.875],
            [1.000, 1.000, 1.000, 1.000],
            [0.940, 0.962, 0.965, 0.962],
            [0.619, 0.666, 0.614, 0.669],
            [0.972, 0.981, 0.9751, 0.975],
            [0.957, 0.978, 0.946, 0.970],
        ]
    )
    found = nemenyi(scores, ["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"])
    ranks = dict(zip(found.names, found.ranks, strict=True))
    assert ranks == pytest.approx({"C4.5": 3.143, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}, abs=6e-4)
    assert found.difference == pytest.approx(1.25, abs=0.006)
    untied = 12 * 14 / (4 * 5) * (sum(rank**2 for rank in found.ranks) - 4 * 5**2 / 4)
    assert untied == pytest.approx(9.28, abs=0.006)
    # The correction divides by 1 - sum(t^3 - t) / (N (k^3 - k)).
    ties = sum(float(((row[:, None] == row).sum(axis=1) ** 2 - 1).sum()) for row in scores)
    assert found.friedman == pytest.approx(untied / (1 - ties / (14 * (4**3 - 4))))
    assert found.p_value < 0.05
    assert found.names[0] == "C4.5+m+cf"


def test_methods_within_the_critical_difference_share_a_bar() -> None:
    blocks = np.arange(40)[:, None] * 0.001
    # Two equal pairs: within a pair the better one changes from block to block.
    swing = np.where(np.arange(40)[:, None] % 2 == 0, 1, -1) * 0.01
    scores = np.hstack([0.9 + swing, 0.9 - swing, 0.5 + swing, 0.5 - swing]) + blocks
    found = nemenyi(scores, ["a", "b", "c", "d"])
    assert {frozenset(group) for group in found.groups} == {frozenset("ab"), frozenset("cd")}
    place = {name: row for row, name in enumerate(found.names)}
    p = np.array(found.p_values)
    assert p[place["a"], place["c"]] < 0.001 < 0.5 < p[place["a"], place["b"]]
    assert np.allclose(p, p.T)
    every = nemenyi(np.ones((5, 3)), ["a", "b", "c"])
    assert (every.friedman, every.p_value, every.groups) == (0.0, 1.0, (("a", "b", "c"),))


def test_reports_are_ranked_over_subjects_data_sets_and_folds(loso: Report) -> None:
    rng = np.random.default_rng(2)
    reports = {name: answers(loso, rng, rate, name=name) for name, rate in (("x", 0.95), ("y", 0.6), ("z", 0.2))}
    found = critical_difference(reports)
    assert (found.block, found.blocks, found.metric) == ("subject", 9, "acc")
    assert found.names == ("x", "y", "z")
    shares = [
        (report.predictions["label"] == report.predictions["predicted"]).groupby(report.predictions["subject"]).mean()
        for report in reports.values()
    ]
    assert found.means == pytest.approx([share.mean() for share in shares])
    folds = critical_difference(reports, block="episode", metric="acc")
    assert folds.ranks == pytest.approx(found.ranks)
    with pytest.raises(DataError, match="two"):
        critical_difference(reports, block="dataset")


def test_rankings_that_cannot_be_made_are_refused(loso: Report) -> None:
    with pytest.raises(DataError, match="three"):
        critical_difference({"a": loso, "b": loso})
    with pytest.raises(DataError, match="mapping"):
        critical_difference([loso, loso, loso])
    with pytest.raises(DataError, match="'subject', 'dataset'"):
        critical_difference({"a": loso, "b": loso, "c": loso}, block="clip")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"f2.*uf1"):
        critical_difference({"a": loso, "b": loso, "c": loso}, metric="f2")
    with pytest.raises(DataError, match="finite"):
        nemenyi(np.full((3, 3), np.nan), ["a", "b", "c"])
    with pytest.raises(DataError, match="alpha=5"):
        nemenyi(np.eye(3), ["a", "b", "c"], alpha=5)


def test_pictures_show_every_method_once(tmp_path: Any) -> None:
    names = ["facs-flow", "fr", "ststnet", "pixels + logistic", "basic_inception"]
    scores = np.random.default_rng(0).random((20, 5)) + np.array([0.6, 0.4, 0.3, 0.35, 0.0])
    result = nemenyi(scores, names, metric="acc", block="subject")
    figure = critical_difference_figure(result)
    words = [text.get_text() for text in figure.axes[0].texts]
    assert all(sum(name in text for text in words) == 1 for name in names)
    bars = [line for line in figure.axes[0].lines if line.get_linewidth() == 3.5]
    assert len(bars) == len(result.groups)
    assert save_figure(figure, tmp_path / "cd.png").stat().st_size > 5000


def test_episodes_over_many_classes_are_counted_by_their_own_classes_alone():
    """Matrices of all classes of a thousand episodes would take gigabytes; figures stay those of the reports."""
    names = ["1", "4", "9", "10", "12", "14", "15", "17", "18", "20", "23", "24", "25", "26", "27", "28"]
    clips = fsmer.synthetic_clips("lab", 96, subjects=4, classes=names)
    protocol = fsmer.load_protocol("kshot", way=3, shot=2, query=2, episodes=12)
    reports = [evaluate(protocol, tiny_backbone.TinyBackbone(), name, clips=clips) for name in ("protonet", "cosine")]
    for report in reports:
        counted = tally(report)
        assert counted.counts.shape[-2:] == (3, 3)
        assert counted.counts.sum() == len(report.predictions)
        assert counted.figures()["uf1"] == pytest.approx(report.uf1)
        assert counted.figures()["uar"] == pytest.approx(report.uar)
    found = paired_comparison(*reports, draws=50).differences["uf1"]
    assert found.difference == pytest.approx(reports[0].uf1 - reports[1].uf1)
