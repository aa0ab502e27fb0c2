"""Scores and statistics, against tables by hand and against rliable 1.2.0."""

import math
from typing import Any

import numpy as np
import pytest

from herdbook.core.environments import EnvironmentSpec, ReferenceScores
from herdbook.evaluation.scores import find_references, normalised_score
from herdbook.evaluation.statistics import (
    bootstrap_interval,
    interquartile_mean,
    performance_profiles,
    probability_of_improvement,
    rank_correlation,
    t_interval,
)

SCORES = [[50.0, 54.5, 45.9], [36.6, 43.2, 35.1], [50.9, 70.1, 42.6], [40.7, 57.3, 55.4], [51.6, 36.0, 49.6]]
OTHERS = [[50.4, 19.8, 33.1], [11.5, 20.7, 12.4], [36.5, 21.0, 44.1], [42.4, 37.2, 2.2], [31.9, 39.3, 41.7]]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1, 2, 3, 100], 2.5),  # a quarter of four: one value off each end
        ([0, 1, 2, 3, 4, 5, 6, 700], 3.5),
        ([4, 8, 6], 6.0),  # less than one value off each end: nothing is cut
        ([5], 5.0),
        ([[1, 100], [2, 3]], 2.5),
    ],
)
def test_interquartile_mean_by_hand(scores: list[float], expected: float) -> None:
    assert interquartile_mean(scores) == pytest.approx(expected)


def test_t_interval_by_hand() -> None:
    estimate = t_interval([1.0, 2.0, 3.0])  # s = 1, t(0.975, 2) = 4.302653
    assert estimate.value == pytest.approx(2)
    assert estimate.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert 2 - estimate.low == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_one_seed_has_no_interval() -> None:
    assert math.isnan(t_interval([3.0]).low)
    assert math.isnan(bootstrap_interval([3.0]).high)


def test_bootstrap_agrees_with_rliable() -> None:
    """Its values, of 50,000 resamples: 47.667 (42.278, 52.022), and 47.967 (43.6, 52.293) of the mean."""
    iqm = bootstrap_interval(SCORES, resamples=20_000)
    assert (iqm.value, iqm.low, iqm.high) == pytest.approx((47.6667, 42.278, 52.022), abs=0.15)
    mean = bootstrap_interval(SCORES, np.mean, resamples=20_000)
    assert (mean.value, mean.low, mean.high) == pytest.approx((47.9667, 43.6, 52.293), abs=0.15)


def test_bootstrap_is_stratified() -> None:
    """Tasks on different scales: runs are drawn within a task, so two constant tasks leave no spread."""
    estimate = bootstrap_interval([[0.0, 1000.0]] * 4, np.mean)
    assert (estimate.low, estimate.value, estimate.high) == (500, 500, 500)


def test_bootstrap_is_a_function_of_its_seed() -> None:
    assert bootstrap_interval(SCORES, seed=3) == bootstrap_interval(SCORES, seed=3)
    assert bootstrap_interval(SCORES, seed=3) != bootstrap_interval(SCORES, seed=4)


def test_bootstrap_against_rliable_itself() -> None:
    library = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    values, bounds = library.get_interval_estimates({"x": np.array(SCORES)}, metrics.aggregate_iqm, reps=1_000)
    ours = bootstrap_interval(SCORES, resamples=20_000)
    assert ours.value == pytest.approx(values["x"])
    assert (ours.low, ours.high) == pytest.approx(tuple(bounds["x"].ravel()), abs=0.8)


def test_profiles_and_improvement_through_rliable() -> None:
    pytest.importorskip("rliable")
    profile, bounds = performance_profiles({"x": SCORES}, [30, 50, 70], resamples=50)["x"]
    assert profile == pytest.approx([1, 0.4, 1 / 15])
    assert bounds.shape == (2, 3)
    estimate = probability_of_improvement(SCORES, OTHERS, resamples=50)
    assert estimate.value == pytest.approx(13 / 15)
    assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize(
    ("y", "expected"),
    [([1, 2, 3, 4, 5], 1.0), ([5, 4, 3, 2, 1], -1.0), ([2, 1, 3, 5, 4], 0.8), ([1, 1, 2, 3, 4], 0.9746794)],
)
def test_rank_correlation_by_hand(y: list[float], expected: float) -> None:
    """1 − 6 Σd² / n(n² − 1): two neighbours swapped twice make Σd² = 4, so 1 − 24/120. A tie shares its ranks."""
    estimate = rank_correlation([10, 20, 30, 40, 50], y)
    assert estimate.value == pytest.approx(expected)
    assert -1 <= estimate.low <= estimate.value + 1e-9 <= estimate.high + 2e-9
    with pytest.raises(ValueError, match="at least 3"):
        rank_correlation([1, 2], [1, 2])


@pytest.mark.parametrize(
    ("x", "y", "resamples", "message"),
    [
        ([1, 1, 1], [1, 2, 3], 2000, "expected values that differ, .* got 3 times 1"),
        ([1, 2, 3], [5, 5, 5], 2000, "expected values that differ, .* got 3 times 5"),
        ([0] * 99 + [1], range(100), 1, "expected a resample of the 100 pairs in which both sides vary, got none in 1"),
        ([1, 2, 3], [1, 2, 3], 0, "got none in 0"),
    ],
)
def test_ranks_that_are_all_ties_have_no_correlation(x: Any, y: Any, resamples: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_correlation(x, list(y), resamples=resamples, seed=1)


def test_missing_rliable_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rliable", None)
    with pytest.raises(ImportError, match=r"herdbook\[stats\]"):
        performance_profiles({"x": SCORES}, [0.0])


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [math.inf]])
def test_scores_that_are_not_finite_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        interquartile_mean(scores)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        t_interval([1, 2], confidence)


def test_scores_run_from_0_to_100_not_to_1() -> None:
    hopper = ReferenceScores(-20.272305, 3234.3, "D4RL")
    assert normalised_score([-20.272305, 3234.3, 1607.0138475], hopper) == pytest.approx([0, 100, 50])


def test_d4rl_references_on_other_environments_are_labelled_a_convention() -> None:
    found = find_references(None, EnvironmentSpec(id="Hopper-v5"))
    assert found is not None
    assert (found.minimum, found.maximum) == (-20.272305, 3234.3)
    assert "convention" in found.source


def test_recorded_references_come_first_and_others_have_none() -> None:
    own = ReferenceScores(0, 1, "our own")
    assert find_references(own, "Hopper-v5") is own
    assert find_references(None, "Pendulum-v1") is None
    assert find_references(None) is None


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (math.nan, 1), (0, math.inf)])
def test_references_are_ordered_and_finite(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="minimum < maximum"):
        ReferenceScores(low, high, "")
