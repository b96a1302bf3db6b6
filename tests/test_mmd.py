"""The discrepancy of two domains equals an independent implementation and the cases with a known answer."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import linear_kernel, rbf_kernel
from tiny_backbone import TinyBackbone

import fsmer
from fsmer.backbones import embed
from fsmer.errors import DataError
from fsmer.synthetic import synthetic_clips
from fsmer.transfer import MMDResult, mmd


def naive(a, b, kernel, estimator):
    """Three double loops, as the definition of Gretton et al. (2012, eq. 3 and 5) reads."""

    def mean(x, y, same):
        total, count = 0.0, 0
        for i in range(len(x)):
            for j in range(len(y)):
                if not (same and estimator == "unbiased" and i == j):
                    total += kernel(x[i], y[j])
                    count += 1
        return total / count

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


def rbf(width):
    return lambda x, y: math.exp(-sum((p - q) ** 2 for p, q in zip(x, y, strict=True)) / (2 * width**2))


def dot(x, y):
    return sum(p * q for p, q in zip(x, y, strict=True))


@settings(max_examples=30)
@given(
    st.integers(2, 9), st.integers(2, 9), st.integers(1, 4), st.integers(0, 10**6),
    st.sampled_from(["unbiased", "biased"]), st.sampled_from(["rbf", "linear"]),
)  # fmt: skip
def test_it_equals_the_definition_written_as_loops(n, m, width, seed, estimator, kernel):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, width)), rng.normal(loc=0.5, size=(m, width))
    found = mmd(a, b, kernel=kernel, bandwidths=[1.3], estimator=estimator, permutations=0)
    expected = naive(a.tolist(), b.tolist(), rbf(1.3) if kernel == "rbf" else dot, estimator)
    assert found.squared == pytest.approx(expected, rel=1e-9, abs=1e-10)
    assert found.value == pytest.approx(math.sqrt(max(expected, 0)), abs=1e-5)


def test_the_mixture_is_the_mean_of_its_kernels_as_scikit_learn_computes_them():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 5)), rng.normal(size=(20, 5)) + 0.3
    found = mmd(a, b, bandwidths="mixture", estimator="biased", permutations=0)
    assert len(found.bandwidths) == 5
    pooled = np.concatenate([a, b])
    distances = [np.linalg.norm(p - q) for i, p in enumerate(pooled) for q in pooled[:i]]
    np.testing.assert_allclose(found.bandwidths, np.median(distances) * np.sqrt(2.0) ** np.arange(-2, 3))
    expected = np.mean(
        [
            rbf_kernel(a, a, g).mean() + rbf_kernel(b, b, g).mean() - 2 * rbf_kernel(a, b, g).mean()
            for g in (1 / (2 * width**2) for width in found.bandwidths)
        ]
    )
    assert found.squared == pytest.approx(expected, rel=1e-9)
    single = mmd(a, b, estimator="biased", permutations=0)
    assert single.bandwidths == pytest.approx((np.median(distances),))


def test_the_linear_kernel_gives_the_distance_of_the_means():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(40, 6)), rng.normal(size=(25, 6)) + 2
    found = mmd(a, b, kernel="linear", estimator="biased", permutations=0)
    assert found.value == pytest.approx(np.linalg.norm(a.mean(axis=0) - b.mean(axis=0)))
    unbiased = mmd(a, b, kernel="linear", permutations=0).squared
    inner = linear_kernel(a, a).sum() - (a**2).sum()
    other = linear_kernel(b, b).sum() - (b**2).sum()
    expected = inner / (40 * 39) + other / (25 * 24) - 2 * a.mean(axis=0) @ b.mean(axis=0)
    assert unbiased == pytest.approx(expected)


def test_gaussians_have_the_discrepancy_of_the_closed_form():
    """N(m, s^2 I) and N(n, s^2 I): 2 (w^2 / (w^2 + 2 s^2))^(D/2) (1 - exp(-|m - n|^2 / (2 (w^2 + 2 s^2))))."""
    width, deviation, shift, size, bandwidth = 3, 0.8, 1.2, 2000, 1.5
    rng = np.random.default_rng(2)
    a = deviation * rng.normal(size=(size, width))
    b = deviation * rng.normal(size=(size, width))
    b[:, 0] += shift
    wide = bandwidth**2 + 2 * deviation**2
    expected = 2 * (bandwidth**2 / wide) ** (width / 2) * (1 - math.exp(-(shift**2) / (2 * wide)))
    found = mmd(a, b, bandwidths=[bandwidth], permutations=0)
    assert found.squared == pytest.approx(expected, rel=0.05)


def test_a_set_against_itself_has_no_discrepancy():
    points = np.random.default_rng(3).normal(size=(30, 4))
    assert mmd(points, points, estimator="biased", permutations=0).value == pytest.approx(0, abs=1e-7)
    assert mmd(points, points, permutations=0).squared < 0
    assert mmd(points, points, permutations=0).value == 0.0


def test_two_points_far_apart_reach_the_largest_value_of_the_kernel():
    a, b = np.zeros((3, 1)), np.full((4, 1), 1e6)
    assert mmd(a, b, bandwidths=[1.0], permutations=0).squared == pytest.approx(2.0)
    assert mmd(np.zeros((3, 2)), np.zeros((4, 2))).squared == 0.0


def test_order_sides_origin_and_rotation_do_not_matter():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(20, 3)), rng.normal(size=(15, 3)) + 0.4
    value = mmd(a, b, permutations=0).squared
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    for first, second in (
        (b, a),
        (a[::-1], rng.permutation(b)),
        (a + 1e4, b + 1e4),
        (a @ turn, b @ turn),
        (5 * a, 5 * b),
    ):
        assert mmd(first, second, permutations=0).squared == pytest.approx(value, rel=1e-6, abs=1e-9)


def test_the_p_value_tells_a_shift_from_chance():
    rng = np.random.default_rng(5)
    far = mmd(rng.normal(size=(40, 4)), rng.normal(size=(40, 4)) + 1, permutations=199)
    assert far.p_value == pytest.approx(1 / 200)
    same = [
        mmd(rng.normal(size=(15, 2)), rng.normal(size=(20, 2)), permutations=99, seed=seed).p_value
        for seed in range(200)
    ]
    # Under equal domains the p-value is uniform: 5% fall below 0.05 and half below 0.5 (binomial, 4 deviations).
    assert 0.0 <= np.mean([p <= 0.05 for p in same]) <= 0.12
    assert 0.36 <= np.mean([p <= 0.5 for p in same]) <= 0.64


def test_the_p_value_of_few_samples_equals_full_enumeration():
    """Of the 20 groupings of 3 against 3, the observed one and its mirror image are the farthest apart."""
    a, b = np.array([[0.0], [0.1], [0.2]]), np.array([[5.0], [5.1], [5.2]])
    found = mmd(a, b, permutations=4000, seed=1)
    assert found.p_value == pytest.approx(2 / 20, abs=0.02)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_the_same_seed_gives_the_same_result_and_large_sets_are_sub_sampled(estimator):
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=(200_000, 8)), rng.normal(size=(900, 8)) + 0.5
    start = time.perf_counter()
    found = mmd(a, b, max_samples=300, permutations=200, estimator=estimator, seed=3)
    assert time.perf_counter() - start < 5
    assert (found.samples_a, found.samples_b) == (300, 300)
    assert found == mmd(a, b, max_samples=300, permutations=200, estimator=estimator, seed=3)
    assert found.squared != mmd(a, b, max_samples=300, permutations=0, estimator=estimator, seed=4).squared
    assert found.squared == pytest.approx(mmd(a[:4000], b, max_samples=4000, permutations=0).squared, rel=0.3)


def test_clip_sets_are_compared_by_the_embeddings_of_a_model():
    lab, clinic = synthetic_clips("lab", 50, seed=1), synthetic_clips("clinic", 40, seed=2)
    backbone = TinyBackbone()
    found = mmd(lab, clinic, model=backbone, permutations=99)
    direct = mmd(embed(backbone, lab), embed(backbone, clinic), permutations=99)
    assert found == direct
    same = mmd(lab[:25], lab[25:], model=backbone, permutations=99)
    assert found.squared > same.squared
    assert fsmer.mmd is mmd


def test_the_result_is_data_first():
    found = mmd(np.zeros((4, 2)), np.ones((5, 2)), kernel="linear", permutations=19)
    assert isinstance(found, MMDResult)
    assert json.loads(json.dumps(found.to_dict()))["squared"] == pytest.approx(2.0)
    assert "MMD 1.4142" in str(found)
    assert "p = " in str(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "cubic"}, "kernel='cubic' is not known; use 'rbf' or 'linear'"),
        ({"estimator": "best"}, "estimator='best' is not known"),
        ({"bandwidths": "silverman"}, "use 'median', 'mixture' or a list"),
        ({"bandwidths": [1.0, -2.0]}, "finite numbers above 0"),
        ({"bandwidths": []}, "finite numbers above 0"),
        ({"permutations": -1}, "permutations=-1 is negative"),
        ({"max_samples": 1}, "max_samples=1 is too few"),
        ({"b": np.zeros((4, 3))}, "a has 2 values a sample, b has 3"),
        ({"b": np.zeros((1, 2))}, "b has 1 samples"),
        ({"b": np.zeros(4)}, r"b has shape \(4,\)"),
        ({"b": np.full((4, 2), np.nan)}, "b has values that are not finite"),
        ({"a": synthetic_clips("lab", 4)}, "a is a set of clips.* give the model"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(change, message):
    values = {"a": np.zeros((4, 2)), "b": np.ones((4, 2))} | change
    with pytest.raises(DataError, match=message):
        mmd(values.pop("a"), values.pop("b"), **values)
