"""Clips keep their course at any number of frames, and say when frames were made up."""

from __future__ import annotations

import numpy as np
import pytest

from fsmer.errors import DataError, UnknownNameError
from fsmer.preprocess.time import linear_weights, resample, tim_weights, time_weights


def tim_by_decomposition(frames: np.ndarray, count: int) -> np.ndarray:
    """The published procedure in plain steps: centre, decompose, map the path graph's curve back (Zhou et al. 2011)."""
    n = len(frames)
    data = frames.reshape(n, -1).T.astype(float)
    mean = data.mean(axis=1, keepdims=True)
    u, s, vt = np.linalg.svd(data - mean, full_matrices=False)
    u, q = u[:, : n - 1], (np.diag(s) @ vt)[: n - 1]
    curve = np.empty((n - 1, n))
    for k in range(1, n):
        for j in range(1, n + 1):
            curve[k - 1, j - 1] = np.sin(np.pi * k * j / n + np.pi * (n - k) / (2 * n))
    m = q @ np.linalg.pinv(curve)
    out = []
    for t in np.linspace(1 / n, 1, count):
        y = np.array([np.sin(np.pi * k * t + np.pi * (n - k) / (2 * n)) for k in range(1, n)])
        out.append((u @ (m @ y[:, None]) + mean)[:, 0])
    return np.array(out).reshape(count, *frames.shape[1:])


@pytest.mark.parametrize(("source", "count"), [(9, 16), (16, 9), (2, 5), (30, 16), (12, 12)])
def test_tim_equals_the_published_procedure(source: int, count: int) -> None:
    frames = np.random.default_rng(source).random((source, 5, 8))
    expected = tim_by_decomposition(frames, count)
    np.testing.assert_allclose(tim_weights(source, count) @ frames.reshape(source, -1), expected.reshape(count, -1))
    np.testing.assert_allclose(resample(frames, source, count).frames, expected, atol=1e-5)


def test_the_curve_lies_on_eigenvectors_of_the_path_graph() -> None:
    n = 7
    laplacian = np.diag([1.0, *[2.0] * (n - 2), 1.0]) - np.eye(n, k=1) - np.eye(n, k=-1)
    for k in range(1, n):
        y = np.sin(np.pi * k * np.arange(1, n + 1) / n + np.pi * (n - k) / (2 * n))
        ratio = (laplacian @ y)[np.abs(y) > 1e-9] / y[np.abs(y) > 1e-9]
        np.testing.assert_allclose(ratio, ratio[0])


@pytest.mark.parametrize("method", ["tim", "linear"])
def test_ends_and_brightness_are_kept(method: str) -> None:
    for source, count in ((9, 16), (40, 16), (2, 16), (16, 16)):
        weights = time_weights(source, count, method)
        np.testing.assert_allclose(weights.sum(axis=1), 1)
        np.testing.assert_allclose(weights[0], np.eye(source)[0], atol=1e-9)
        np.testing.assert_allclose(weights[-1], np.eye(source)[-1], atol=1e-9)
    np.testing.assert_allclose(time_weights(12, 12, method), np.eye(12), atol=1e-9)
    np.testing.assert_allclose(time_weights(1, 3, method), np.ones((3, 1)))


def test_linear_is_half_way_between_neighbours() -> None:
    np.testing.assert_allclose(linear_weights(2, 3), [[1, 0], [0.5, 0.5], [0, 1]])


def test_a_sine_is_followed_by_tim_better_than_by_straight_lines() -> None:
    def course(times: np.ndarray) -> np.ndarray:
        return np.sin(2 * np.pi * times) ** 2

    few, many = course(np.linspace(0, 1, 12)), course(np.linspace(0, 1, 40))
    errors = [np.abs(time_weights(12, 40, method) @ few - many).mean() for method in ("tim", "linear")]
    assert errors[0] < 0.5 * errors[1]


def test_a_short_clip_says_that_frames_were_interpolated() -> None:
    frames = np.random.default_rng(0).random((9, 4, 4, 3))
    made = resample(iter(frames), 9, 16)
    assert made.interpolated
    assert (made.method, made.source_frames, len(made.frames)) == ("tim", 9, 16)
    assert not resample(frames, 9, 5).interpolated
    same = resample(frames, 9, 9)
    assert (same.method, same.interpolated) == ("none", False)
    np.testing.assert_allclose(same.frames, frames, atol=1e-6)


def test_impossible_requests_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="'linear'"):
        time_weights(3, 4, "liner")
    with pytest.raises(DataError, match="1 or more"):
        tim_weights(0, 4)
    with pytest.raises(DataError, match=r"5 frames.* 3 "):
        resample(np.zeros((3, 2)), 5, 4)
