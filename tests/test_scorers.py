"""UF1 and UAR in other people's loops are those of the reports."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, make_scorer
from sklearn.model_selection import cross_val_score

from fsmer.evaluation import score
from fsmer.evaluation.scorers import uar_score, uf1_score

CLASSES = ("negative", "positive", "surprise")


@pytest.mark.parametrize("labels", [None, CLASSES, (*CLASSES, "others")])
def test_scores_are_those_of_a_report(labels: tuple[str, ...] | None) -> None:
    generator = np.random.default_rng(0)
    for known in (1, 2, 3):  # classes that the truth has; answers may name all
        truth = generator.choice(CLASSES[:known], 40)
        said = np.where(generator.random(40) < 0.4, generator.choice(CLASSES, 40), truth)
        expected = score(truth, said, labels)
        assert uf1_score(truth, said, labels=labels) == pytest.approx(expected["uf1"], abs=1e-15)
        assert uar_score(truth, said, labels=labels) == pytest.approx(expected["uar"], abs=1e-15)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_a_class_that_the_truth_lacks_counts_as_zero_unlike_balanced_accuracy() -> None:
    truth, said = ["negative", "negative"], ["negative", "positive"]
    assert uar_score(truth, said) == 0.25
    assert balanced_accuracy_score(truth, said) == 0.5
    assert uar_score(truth, said, labels=CLASSES) == pytest.approx(0.5 / 3)


def test_cross_validation_of_scikit_learn_takes_them() -> None:
    generator = np.random.default_rng(1)
    labels = np.repeat(CLASSES, 10)
    points = generator.normal(size=(30, 2)) + np.repeat([[0, 0], [5, 0], [0, 5]], 10, axis=0)
    for metric in (uf1_score, uar_score):
        found = cross_val_score(LogisticRegression(), points, labels, cv=5, scoring=make_scorer(metric))
        assert found.shape == (5,)
        assert found.mean() > 0.9
