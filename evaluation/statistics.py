"""Statistics over a few seeds: interquartile mean, bootstrap and t-intervals; performance profiles by rliable."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic and its confidence interval; the bounds are NaN for a single value."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: ArrayLike, axis: int | None = None) -> Any:
    """Mean of the middle half of all scores, or along `axis` (Agarwal et al. 2021, arXiv:2108.13264)."""
    return scipy.stats.trim_mean(_finite(scores), 0.25, axis=axis)


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean of `values` [seeds] with Student's t-interval: mean ± t · s/√n, s with n − 1 degrees of freedom."""
    x = _finite(values).ravel()
    if x.size == 1:
        return Estimate(float(x[0]), math.nan, math.nan)
    half = scipy.stats.t.ppf(_two_sided(confidence), x.size - 1) * x.std(ddof=1) / math.sqrt(x.size)
    return Estimate(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Callable[..., Any] = interquartile_mean,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Estimate:
    """Stratified bootstrap with percentile intervals, as in rliable (Agarwal et al. 2021, arXiv:2108.13264).

    Args:
        scores: `[runs]` or `[runs, tasks]`; runs are resampled with replacement within each task.
        statistic: Function of an array along `axis` (a keyword); it reads the scores of all tasks together.
        seed: Seed of the resampling.
        confidence: Probability mass between the bounds.
        resamples: Number of resamples.

    Raises ValueError if there are no scores, one is not finite, or `confidence` is outside (0, 1).
    """
    x = _finite(scores)
    x = x[:, None] if x.ndim == 1 else x  # [runs, tasks]
    if x.ndim != 2:
        raise ValueError(f"expected scores [runs] or [runs, tasks], got shape {x.shape}")
    tail = 1 - _two_sided(confidence)
    value = float(statistic(x.reshape(-1), axis=-1))
    if len(x) == 1:
        return Estimate(value, math.nan, math.nan)
    drawn = np.random.default_rng(seed).integers(len(x), size=(resamples, *x.shape))
    sampled = np.take_along_axis(x[None], drawn, axis=1).reshape(resamples, -1)
    low, high = np.quantile(statistic(sampled, axis=-1), [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def rank_correlation(x: ArrayLike, y: ArrayLike, *, seed: int = 0, resamples: int = 2000) -> Estimate:
    """Spearman's rank correlation of pairs, with a 95 % percentile bootstrap interval over the pairs.

    Resamples with a constant side have no correlation and are left out. Raises ValueError for fewer than three pairs,
    for a constant side, and if no resample is left.
    """
    a, b = _finite(x), _finite(y)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 3:
        raise ValueError(f"expected two lists of equal length, at least 3, got shapes {a.shape} and {b.shape}")
    for side in (a, b):
        if np.ptp(side) == 0:
            raise ValueError(f"expected values that differ, which ranks need, got {len(side)} times {side[0]:g}")
    drawn = np.random.default_rng(seed).integers(len(a), size=(resamples, len(a)))
    varied = [i for i in drawn if np.ptp(a[i]) > 0 and np.ptp(b[i]) > 0]
    if not varied:
        wanted = f"a resample of the {len(a)} pairs in which both sides vary"
        raise ValueError(f"expected {wanted}, got none in {resamples}; give more resamples, or pairs with fewer ties")
    found = [_spearman(a[i], b[i]) for i in varied]
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(_spearman(a, b), float(low), float(high))


def _spearman(a: FloatArray, b: FloatArray) -> float:
    ranks = scipy.stats.rankdata(np.stack([a, b]), axis=1)
    return float(np.corrcoef(ranks)[0, 1])


def performance_profiles(
    scores: Mapping[str, ArrayLike], thresholds: Sequence[float], *, seed: int = 0, resamples: int = 2000
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Performance profiles by rliable: the fraction of runs above each threshold, with 95 % intervals.

    `scores` are `[runs, tasks]` for each algorithm. Returns (`[thresholds]`, `[2, thresholds]` lower and upper bounds)
    for each algorithm. Raises ImportError without the extra `stats`.
    """
    library, _ = _rliable()

    def profile(x: FloatArray) -> FloatArray:
        return np.array([library.run_score_deviation(x, threshold) for threshold in thresholds])

    return _intervals(library, {name: _matrix(x) for name, x in scores.items()}, profile, seed, resamples)


def probability_of_improvement(
    scores: ArrayLike, others: ArrayLike, *, seed: int = 0, resamples: int = 2000
) -> Estimate:
    """P(a run in `scores` beats a run in `others`), averaged over tasks, with a 95 % interval, by rliable.

    `scores`, `others`: `[runs, tasks]` of two algorithms. Raises ImportError without the extra `stats`.
    """
    library, metrics = _rliable()
    pair = {"pair": (_matrix(scores), _matrix(others))}
    value, bounds = _intervals(library, pair, metrics.probability_of_improvement, seed, resamples)["pair"]
    return Estimate(float(value), float(bounds[0].item()), float(bounds[1].item()))


def _intervals(library: Any, scores: dict[str, Any], statistic: Any, seed: int, resamples: int) -> dict[str, Any]:
    state = np.random.RandomState(seed)  # the type that rliable's bootstrap expects
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # arch, which rliable uses, renames that argument
        values, bounds = library.get_interval_estimates(scores, statistic, reps=resamples, random_state=state)
    return {name: (values[name], bounds[name]) for name in scores}


def _rliable() -> tuple[Any, Any]:
    try:
        from rliable import library, metrics
    except ImportError as error:
        users = "performance profiles and the probability of improvement"
        raise ImportError(f"{users} need rliable ({error}): pip install 'herdbook[stats]'") from error
    return library, metrics


def _matrix(scores: ArrayLike) -> FloatArray:
    x = _finite(scores)
    if x.ndim != 2:
        raise ValueError(f"expected scores [runs, tasks], got shape {x.shape}")
    return x


def _two_sided(confidence: float) -> float:
    """Quantile level of the upper bound."""
    if not 0 < confidence < 1:
        raise ValueError(f"expected confidence in (0, 1), got {confidence}")
    return 0.5 + confidence / 2


def _finite(scores: ArrayLike) -> FloatArray:
    x = np.asarray(scores, dtype=np.float64)
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"expected finite scores, at least one; got {x.tolist()}")
    return x
