"""Intervals and agreement against what is known of them."""

import math

import numpy as np
import pytest
from scipy.stats import rankdata

from prune_fe.measure.statistics import (
    Estimate,
    bootstrap,
    kendall,
    partial_spearman,
    simultaneous,
    spearman,
    spearman_over_groups,
)


def test_an_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(1).normal(3, 2, size=400)
    found = bootstrap(values)
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert found.mean == values.mean()
    assert (found.low, found.high) == pytest.approx((found.mean - 1.96 * error, found.mean + 1.96 * error), abs=0.02)
    assert found == bootstrap(values)
    assert found.n == 400


def test_the_true_mean_is_in_the_interval_as_often_as_is_said() -> None:
    generator = np.random.default_rng(0)
    found = [bootstrap(generator.normal(size=50), resamples=500, seed=number) for number in range(400)]
    assert 0.91 < np.mean([each.low < 0 < each.high for each in found]) < 0.98


def test_pairs_are_told_apart_that_their_means_do_not_tell() -> None:
    level = np.random.default_rng(0).normal(0, 10, size=50)
    better = level + 0.1 + 0.01 * np.arange(50) % 0.05
    assert bootstrap(better - level).not_zero
    first, second = bootstrap(better), bootstrap(level)
    assert first.low < second.mean < first.high
    assert not Estimate(0.0, -1.0, 1.0, 9).not_zero
    assert not Estimate(1.0, 1.0, 1.0, 1).not_zero
    assert Estimate(1.0, 1.0, 1.0, 1).text(".1f") == "1.0"


def test_one_value_is_its_own_interval() -> None:
    assert bootstrap([2.0]) == Estimate(2.0, 2.0, 2.0, 1)
    for wrong in ([], [math.nan], [[1.0]]):
        with pytest.raises(ValueError, match="a bootstrap needs finite numbers"):
            bootstrap(wrong)  # type: ignore[arg-type]


def test_intervals_of_all_pairs_hold_at_once() -> None:
    """Of ten equally good columns some pair is told apart in one trial of twenty; one by one, far more often."""
    generator, pairs = np.random.default_rng(0), [(i, j) for i in range(10) for j in range(i)]
    at_once, one_by_one = [], []
    for trial in range(200):
        right = (generator.random((300, 10)) < 0.5).astype(float)
        at_once.append(any(each.not_zero for each in simultaneous(right, pairs, 400, trial)))
        alone = [bootstrap(right[:, i] - right[:, j], 200, trial) for i, j in pairs[:12]]
        one_by_one.append(any(each.not_zero for each in alone))
    assert np.mean(at_once) < 0.1
    assert np.mean(one_by_one) > 0.2


def test_intervals_of_pairs_are_those_of_their_differences() -> None:
    values = np.random.default_rng(0).normal([0, 1, 1], 1, size=(500, 3))
    one, two = simultaneous(values, [(1, 0), (0, 1)])
    alone = bootstrap(values[:, 1] - values[:, 0])
    assert (one.mean, one.n) == (pytest.approx(alone.mean), 500)
    assert (one.low, one.high) == (pytest.approx(alone.low, abs=0.01), pytest.approx(alone.high, abs=0.01))
    assert (two.mean, two.low, two.high) == pytest.approx((-one.mean, -one.high, -one.low))
    same = simultaneous(np.ones((5, 2)), [(0, 1)])[0]
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    assert simultaneous(values, []) == []
    with pytest.raises(ValueError, match="a bootstrap needs finite numbers"):
        simultaneous(np.full((3, 2), math.nan), [(0, 1)])


def test_rank_correlations() -> None:
    a, b = np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 4, 3])
    assert spearman(a, b) == pytest.approx(0.8)
    assert kendall(a, b) == pytest.approx(4 / 6)
    assert (spearman(a, -a), kendall(a, -a)) == pytest.approx((-1, -1))
    assert (spearman(a, np.ones(4)), kendall(np.ones(4), b)) == (0, 0)


def test_infinite_values_have_ranks() -> None:
    a, b = np.array([1.0, -np.inf, 3, -np.inf]), np.array([2.0, 1, 4, 1])
    assert spearman(a, b) == pytest.approx(1)
    assert spearman(np.full(4, -np.inf), b) == 0


def test_partial_correlation_is_that_of_the_residuals_of_ranks() -> None:
    random = np.random.default_rng(0)
    given = random.random(200).round(1)  # with ties
    a, b = given + random.random(200), given - random.random(200)
    ranks = [rankdata(values) for values in (a, b, given)]
    slopes = [np.polyfit(ranks[2], values, 1) for values in ranks[:2]]
    left = [values - np.polyval(slope, ranks[2]) for values, slope in zip(ranks, slopes, strict=False)]
    found = partial_spearman(a, b, given)
    assert found == pytest.approx(np.corrcoef(*left)[0, 1])
    assert found < 0.2 < spearman(a, b)
    assert partial_spearman(a, b, np.ones(200)) == pytest.approx(spearman(a, b))
    for alike in (a, -a, np.exp(a), b):
        assert partial_spearman(a, b, alike) == 0


def test_the_rank_correlation_over_groups_is_that_of_the_means_and_its_interval_that_of_drawn_groups():
    generator = np.random.default_rng(0)
    a = generator.normal(size=(12, 5)) + np.arange(5)
    b = generator.normal(size=(12, 5)) - np.arange(5)
    found = spearman_over_groups(a, b, resamples=500, seed=1)
    assert found.mean == pytest.approx(spearman(a.mean(axis=0), b.mean(axis=0)))
    drawn = []
    for counts in np.random.default_rng(1).multinomial(12, np.full(12, 1 / 12), size=500):
        rows = np.repeat(np.arange(12), counts)
        drawn.append(spearman(a[rows].mean(axis=0), b[rows].mean(axis=0)))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    assert found.n == 12
    assert spearman_over_groups(a, np.ones((12, 5))).mean == 0
