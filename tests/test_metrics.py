"""UF1, UAR and accuracy are what the papers' equations, scikit-learn and a hand calculation say."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from fsmer.errors import DataError
from fsmer.evaluation.metrics import (
    METRICS,
    bootstrap_interval,
    confusion_matrix,
    mean_interval,
    score,
    score_confusion,
)

pairs = st.integers(2, 6).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), min_size=1, max_size=60),
    )
)


@given(pairs)
def test_figures_equal_scikit_learn_with_absent_classes_counted_as_zero(
    case: tuple[int, list[tuple[int, int]]],
) -> None:
    n_classes, rows = case
    truth, predicted = (list(side) for side in zip(*rows, strict=True))
    labels = list(range(n_classes))
    counts = confusion_matrix(truth, predicted, n_classes)
    np.testing.assert_array_equal(counts, reference.confusion_matrix(truth, predicted, labels=labels))
    found = score_confusion(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"labels": labels, "average": None, "zero_division": 0}
        np.testing.assert_allclose(found.f1, reference.f1_score(truth, predicted, **options))
        np.testing.assert_allclose(found.recall, reference.recall_score(truth, predicted, **options))
        np.testing.assert_allclose(found.precision, reference.precision_score(truth, predicted, **options))
    assert found.uf1 == pytest.approx(np.mean(found.f1))
    assert found.uar == pytest.approx(np.mean(found.recall))
    assert found.acc == pytest.approx(reference.accuracy_score(truth, predicted))


@given(pairs)
def test_merau_accuracy_counts_true_negatives_as_its_equation_14(case: tuple[int, list[tuple[int, int]]]) -> None:
    n_classes, rows = case
    hits = everything = 0
    for of_class in range(n_classes):
        for true_label, label in rows:
            hits += (true_label == of_class) == (label == of_class)
            everything += 1
    truth, predicted = zip(*rows, strict=True)
    assert score_confusion(confusion_matrix(truth, predicted, n_classes)).acc_merau == pytest.approx(hits / everything)


def test_a_hand_worked_example() -> None:
    # truth: 4 negative, 3 positive, 2 surprise.
    #              neg pos sur
    confusion = [[3, 1, 0], [1, 1, 1], [0, 0, 2]]
    found = score_confusion(confusion)
    f1 = [6 / (6 + 1 + 1), 2 / (2 + 1 + 2), 4 / (4 + 1 + 0)]
    np.testing.assert_allclose(found.f1, f1)
    assert found.uf1 == pytest.approx((0.75 + 0.4 + 0.8) / 3)
    assert found.uar == pytest.approx((3 / 4 + 1 / 3 + 1) / 3)
    assert found.acc == pytest.approx(6 / 9)
    assert found.acc_merau == pytest.approx((6 + (4 + 5 + 6)) / 27)


def test_a_class_that_the_truth_lacks_is_counted_as_zero_not_skipped() -> None:
    found = score(["negative"] * 4, ["negative"] * 4, classes=["negative", "positive", "surprise"])
    assert found["acc"] == 1
    assert found["uf1"] == pytest.approx(1 / 3)
    assert found["uar"] == pytest.approx(1 / 3)


def test_many_episodes_at_once_equal_one_by_one() -> None:
    generator = np.random.default_rng(3)
    groups = generator.integers(0, 20, 500)
    truth, predicted = generator.integers(0, 4, (2, 500))
    together = score_confusion(confusion_matrix(truth, predicted, 4, groups=groups, n_groups=21))
    assert together.uf1.shape == (21,)
    for episode in range(20):
        chosen = groups == episode
        alone = score_confusion(confusion_matrix(truth[chosen], predicted[chosen], 4))
        for name in METRICS:
            assert getattr(together, name)[episode] == getattr(alone, name)
    assert together.uf1[20] == 0  # an episode without any clip


def test_pooled_figures_do_not_depend_on_the_order_of_clips() -> None:
    generator = np.random.default_rng(0)
    truth, predicted = generator.choice(["a", "b", "c"], (2, 50))
    order = generator.permutation(50)
    assert score(truth, predicted) == score(truth[order], predicted[order])


def test_interval_over_episodes_is_the_normal_one() -> None:
    low, high = mean_interval([0.2, 0.4, 0.6, 0.8]) or (0, 0)
    half = 1.96 * math.sqrt(sum((x - 0.5) ** 2 for x in (0.2, 0.4, 0.6, 0.8)) / 3) / 2
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)
    assert mean_interval([0.5]) is None


def test_bootstrap_draws_subjects_and_has_the_width_of_theory() -> None:
    # 400 subjects with one clip each, 70 % right: the standard error of accuracy is sqrt(0.7 * 0.3 / 400).
    right = np.arange(400) < 280
    confusions = np.zeros((400, 2, 2))
    confusions[np.arange(400), 0, np.where(right, 0, 1)] = 1
    low, high = bootstrap_interval(confusions)["acc"] or (0, 0)
    error = math.sqrt(0.7 * 0.3 / 400)
    assert (low, high) == pytest.approx((0.7 - 1.96 * error, 0.7 + 1.96 * error), abs=0.006)
    # The same clips in ten persons who are each wholly right or wholly wrong say far less.
    people = confusions.reshape(10, 40, 2, 2).sum(axis=1)
    wide = bootstrap_interval(people)["acc"] or (0, 0)
    assert wide[1] - wide[0] > 4 * (high - low)


def test_bootstrap_is_repeatable_and_silent_about_one_subject() -> None:
    confusions = np.random.default_rng(1).integers(0, 5, (12, 3, 3))
    assert bootstrap_interval(confusions, seed=4) == bootstrap_interval(confusions, seed=4)
    assert bootstrap_interval(confusions, seed=4) != bootstrap_interval(confusions, seed=5)
    assert bootstrap_interval(confusions[:1]) == dict.fromkeys(METRICS)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: confusion_matrix([0, 1], [0], 2), "same length"),
        (lambda: confusion_matrix([0, 2], [0, 1], 2), "there are 2 classes"),
        (lambda: confusion_matrix([0], [-1], 2), "from -1"),
        (lambda: confusion_matrix([0], [0], 2, groups=[3], n_groups=2), "one code from 0 to 1"),
        (lambda: score_confusion(np.zeros((2, 3))), r"shape \(2, 3\)|has \(2, 3\)"),
        (lambda: score(["a"], ["b"], classes=["a"]), "labels b are not among"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(call: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        call()  # type: ignore[operator]


def test_episodes_about_some_of_the_classes_are_averaged_over_these_alone() -> None:
    generator = np.random.default_rng(8)
    small = generator.integers(0, 9, (5, 2, 2))
    wide = np.zeros((5, 4, 4), dtype=int)
    wide[:, 1:4:2, 1:4:2] = small
    alone, among = score_confusion(small), score_confusion(wide, among=np.tile([False, True, False, True], (5, 1)))
    for name in METRICS:
        np.testing.assert_allclose(getattr(among, name), getattr(alone, name))
