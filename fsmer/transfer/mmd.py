"""Maximum mean discrepancy: how far apart two domains are, and whether that could be chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fsmer.ambient import library_settings
from fsmer.arrays import plain_array
from fsmer.backbones import Backbone, embed
from fsmer.data import ClipSet
from fsmer.errors import DataError

__all__ = ["MMDResult", "mmd"]

# Factors on the median distance that the mixture averages over; neighbours differ by 2 in squared bandwidth, as in
# DAN (Long et al. 2015).
MIXTURE = tuple(math.sqrt(2.0) ** power for power in (-2, -1, 0, 1, 2))
KERNELS, ESTIMATORS = ("rbf", "linear"), ("unbiased", "biased")
# Permutations in one matrix product; bounds its memory.
_PERMUTATION_BLOCK = 128
_ROW_BLOCK = 1024

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MMDResult:
    """What `mmd` found.

    Parameters
    ----------
    value : float
        The discrepancy itself (MERAU eq. 15): the root of `squared`, 0 where the unbiased estimate is negative.
    squared : float
        Estimate of its square; the unbiased one scatters around 0 when the domains are alike.
    p_value : float or None
        Share of random regroupings of all samples that are at least as far apart, the observed one counted in;
        ``None`` without permutations.
    kernel, estimator : str
    bandwidths : tuple of float
        Of the RBF kernels that were averaged; empty for the linear kernel.
    samples_a, samples_b : int
        How many samples were compared, after sub-sampling.
    permutations, seed : int
    """

    value: float
    squared: float
    p_value: float | None
    kernel: str
    estimator: str
    bandwidths: tuple[float, ...]
    samples_a: int
    samples_b: int
    permutations: int
    seed: int

    def __str__(self) -> str:
        chance = "" if self.p_value is None else f", p = {self.p_value:.4g} ({self.permutations} permutations)"
        return (
            f"MMD {self.value:.4f} (squared {self.squared:.4g}, {self.kernel}, {self.estimator}; "
            f"{self.samples_a} and {self.samples_b} samples{chance})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "bandwidths": list(self.bandwidths)}


@library_settings()
def mmd(
    a: ClipSet | ArrayLike,
    b: ClipSet | ArrayLike,
    *,
    model: Backbone | str | Path | None = None,
    kernel: str = "rbf",
    bandwidths: str | Sequence[float] = "median",
    estimator: str = "unbiased",
    permutations: int = 1000,
    max_samples: int = 2000,
    seed: int = 0,
) -> MMDResult:
    """Maximum mean discrepancy between two sets of embeddings or clips (MERAU eq. 15; Gretton et al. 2012).

    The squared discrepancy is E k(a, a') + E k(b, b') - 2 E k(a, b), in double precision.

    Parameters
    ----------
    a, b : ClipSet, or array of shape (N, D)
        Two domains: embeddings as they are, or clips to be embedded by `model`.
    model : Backbone, str or Path, optional
        Needed for clips.
    kernel : {"rbf", "linear"}, default "rbf"
        ``"rbf"``: exp(-||x - y||^2 / (2 bandwidth^2)). ``"linear"``: x . y, so the discrepancy is the distance
        between the means.
    bandwidths : {"median", "mixture"} or sequence of float, default "median"
        Of the RBF kernel. ``"median"``: the median distance between any two of all samples. ``"mixture"``: the mean
        of five kernels around that, at factors 1/2 to 2. Numbers: the mean of kernels of these bandwidths.
    estimator : {"unbiased", "biased"}, default "unbiased"
        ``"unbiased"`` leaves a sample's kernel with itself out; ``"biased"`` keeps it and is never negative.
    permutations : int, default 1000
        Random regroupings for the p-value; 0 leaves it out.
    max_samples : int, default 2000
        A larger set is replaced by that many of its samples, drawn without replacement.
    seed : int, default 0
        Seed of sub-sampling and permutations.

    Returns
    -------
    MMDResult
        The discrepancy, its square and the p-value.

    Raises
    ------
    DataError
        Clips without a model, sets of different width, fewer than two samples, values that are not finite, or an
        unknown choice.

    Notes
    -----
    MERAU (section IV.C) compares features of a ResNet18 that has seen none of its data sets and names neither kernel
    nor estimator, so that its figures (1.1588 from CASME II to SMIC, 0.0756 to CASME) are on a scale of their own.

    Examples
    --------
    >>> import numpy as np
    >>> import fsmer
    >>> fsmer.mmd(np.zeros((4, 2)), np.ones((5, 2)), kernel="linear", permutations=0).squared
    2.0
    """
    for name, given, choices in (("kernel", kernel, KERNELS), ("estimator", estimator, ESTIMATORS)):
        if given not in choices:
            raise DataError(f"{name}={given!r} is not known; use {' or '.join(map(repr, choices))}.")
    if permutations < 0:
        raise DataError(f"permutations={permutations} is negative; give 0 or more.")
    if max_samples < 2:
        raise DataError(f"max_samples={max_samples} is too few; give at least 2.")
    rng = np.random.default_rng(seed)
    first, second = (_samples(values, name, model, max_samples, rng) for values, name in ((a, "a"), (b, "b")))
    if first.shape[1] != second.shape[1]:
        widths_given = f"a has {first.shape[1]} values a sample, b has {second.shape[1]}"
        raise DataError(f"{widths_given}; compare embeddings of one model.")
    pooled = np.concatenate([first, second])
    # The discrepancy does not depend on the origin; one in the middle keeps inner products accurate.
    pooled = pooled - pooled.mean(axis=0)
    if kernel == "linear":
        widths: tuple[float, ...] = ()
        values = pooled @ pooled.T
    else:
        squares = _squared_distances(pooled)
        widths = _bandwidths(bandwidths, squares)
        values = _mixed_rbf(squares, widths)
    count = len(first)
    observed = np.zeros((1, len(pooled)))
    observed[0, :count] = 1.0
    squared = float(_discrepancies(values, observed, estimator)[0])
    p_value = None
    if permutations:
        sizes = [min(_PERMUTATION_BLOCK, permutations - start) for start in range(0, permutations, _PERMUTATION_BLOCK)]
        groups = (rng.permuted(np.repeat(observed, size, axis=0), axis=1) for size in sizes)
        drawn = np.concatenate([_discrepancies(values, group, estimator) for group in groups])
        # Rounding must not turn a regrouping that equals the observed one into a smaller one.
        reached = drawn >= squared - 1e-12 * max(1.0, abs(squared))
        p_value = (1 + int(reached.sum())) / (1 + permutations)
    value, samples = math.sqrt(max(squared, 0.0)), (count, len(second))
    return MMDResult(value, squared, p_value, kernel, estimator, widths, *samples, permutations, seed)


def _samples(values: Any, name: str, model: Any, limit: int, rng: np.random.Generator) -> Array:
    clips = hasattr(values, "specs")
    if clips and model is None:
        raise DataError(f"{name} is a set of clips, which has no distances by itself; give the model to embed it with.")
    found = values if clips else np.asarray(plain_array(values, name), dtype=np.float64)
    if not clips and found.ndim != 2:
        raise DataError(f"{name} has shape {found.shape}; give embeddings of shape (N, D), or a clip set and a model.")
    if len(found) < 2:
        raise DataError(f"{name} has {len(found)} samples; at least two are needed to compare domains.")
    if len(found) > limit:
        # Sub-sampled before embedding: clips that are left out need not be read.
        found = found[np.sort(rng.choice(len(found), limit, replace=False))]
    if clips:
        found = embed(model, found).numpy().astype(np.float64)
    if not np.isfinite(found).all():
        raise DataError(f"{name} has values that are not finite; repair or remove these samples.")
    return found


def _squared_distances(samples: Array) -> Array:
    lengths = np.einsum("nd,nd->n", samples, samples)
    squares = lengths[:, None] + lengths - 2 * samples @ samples.T
    np.fill_diagonal(squares, 0.0)
    return np.maximum(squares, 0.0, out=squares)


def _bandwidths(asked: str | Sequence[float], squares: Array) -> tuple[float, ...]:
    if isinstance(asked, str):
        if asked not in ("median", "mixture"):
            raise DataError(f"bandwidths={asked!r} is unknown; use 'median', 'mixture' or a list of positive numbers.")
        above = squares[np.triu_indices(len(squares), k=1)]
        # Half of all pairs may coincide; any positive bandwidth is right when all do.
        middle = math.sqrt(float(np.median(above))) or math.sqrt(float(above.max())) or 1.0
        return (middle,) if asked == "median" else tuple(factor * middle for factor in MIXTURE)
    given = tuple(float(width) for width in asked)
    if not given or not all(math.isfinite(width) and width > 0 for width in given):
        raise DataError(f"bandwidths={asked!r} are not all positive; give one or more finite numbers above 0.")
    return given


def _mixed_rbf(squares: Array, widths: tuple[float, ...]) -> Array:
    values = np.zeros_like(squares)
    for start in range(0, len(squares), _ROW_BLOCK):
        rows = squares[start : start + _ROW_BLOCK]
        for width in widths:
            values[start : start + _ROW_BLOCK] += np.exp(rows / (-2 * width**2))
    return values / len(widths)


def _discrepancies(values: Array, groups: Array, estimator: str) -> Array:
    """Squared discrepancy of each grouping: `groups` of shape (P, N) is 1 for the first domain and 0 for the second."""
    sums = groups @ values
    diagonal = values.diagonal()
    within_first = np.einsum("pn,pn->p", sums, groups)
    from_first = sums.sum(axis=1)
    across = from_first - within_first
    within_second = values.sum() - from_first - across
    first, second = groups.sum(axis=1), (1 - groups).sum(axis=1)
    if estimator == "biased":
        squared = within_first / first**2 + within_second / second**2 - 2 * across / (first * second)
        return np.maximum(squared, 0.0)
    own = groups @ diagonal
    first_part = (within_first - own) / (first * (first - 1))
    second_part = (within_second - (diagonal.sum() - own)) / (second * (second - 1))
    return first_part + second_part - 2 * across / (first * second)
