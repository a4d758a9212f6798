"""Inf-FS against the inverse matrix, entry by entry."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from prune_fe.errors import InputError
from prune_fe.scorers.infinite_feature_selection import Sigma, infinite_feature_selection, spearman

Array = NDArray[Any]


def entry(one: Array, other: Array, alpha: float) -> float:
    spread = max(column.std(ddof=1) if len(set(column)) > 1 else 0.0 for column in (one, other))
    dead = len(set(one)) == 1 or len(set(other)) == 1
    correlation = 1.0 if dead else round(scipy.stats.spearmanr(one, other).statistic, 12)
    return alpha * spread + (1 - alpha) * (1 - abs(correlation))


def inf_fs(responses: Array, alpha: float = 0.5, r: float | None = None) -> Array:
    """Roffo et al. 2015, entry by entry, with the inverse; responses: (images, features)."""
    features = responses.shape[1]
    A = np.zeros((features, features))
    for i in range(features):
        for j in range(features):
            A[i, j] = entry(responses[:, i], responses[:, j], alpha)
    radius = max(abs(np.linalg.eigvals(A)))
    if radius == 0:
        return np.zeros(features)
    S = np.linalg.inv(np.eye(features) - (0.9 / radius if r is None else r) * A) - np.eye(features)
    return S.sum(axis=1)


def awkward_responses(seed: int) -> Array:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(rng.integers([2, 1], [12, 7]))
    if rng.random() < 0.5:
        values = values.round()  # ties
    if rng.random() < 0.5:
        values = values.clip(min=0)
    values[:, rng.random(values.shape[1]) < 0.2] = rng.choice([0, 0.1])  # dead, and stuck
    return values


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@settings(max_examples=80, deadline=None)
def test_inf_fs_is_the_row_sums_of_the_inverse(seed: int, alpha: float) -> None:
    responses = awkward_responses(seed)
    found = infinite_feature_selection(torch.from_numpy(responses), alpha)
    np.testing.assert_allclose(found, inf_fs(responses, alpha), rtol=1e-7, atol=1e-9)


def test_inf_fs_is_the_sum_over_the_paths_of_every_length() -> None:
    responses = np.random.default_rng(0).standard_normal((9, 4))
    r = 0.01
    A = np.array([[entry(responses[:, i], responses[:, j], 0.5) for j in range(4)] for i in range(4)])
    power, total = np.eye(4), np.zeros((4, 4))
    for _ in range(60):
        power = power @ (r * A)
        total += power
    found = infinite_feature_selection(torch.from_numpy(responses), 0.5, r)
    np.testing.assert_allclose(found, total.sum(axis=1), rtol=1e-12)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_spearman_is_scipys(seed: int) -> None:
    values = awkward_responses(seed)
    values = np.hstack([values, np.random.default_rng(seed).standard_normal((len(values), 1))])
    found = spearman(torch.from_numpy(values))
    for i in range(values.shape[1]):
        for j in range(values.shape[1]):
            if len(set(values[:, i])) > 1 and len(set(values[:, j])) > 1:
                expected = scipy.stats.spearmanr(values[:, i], values[:, j]).statistic
                assert found[i, j].item() == pytest.approx(expected, abs=1e-12)


def test_inf_fs_by_hand() -> None:
    # Two responses in opposite order: |Spearman| = 1. σ = √2 and 2√2, so A = ½ [[√2, 2√2], [2√2, 2√2]].
    responses = torch.tensor([[0.0, 4.0], [2.0, 0.0]])
    a, r = np.sqrt(2), 0.1
    A = np.array([[a / 2, a], [a, a]])
    determinant = (1 - r * A[0, 0]) * (1 - r * A[1, 1]) - (r * A[0, 1]) ** 2
    expected = [(1 - r * a + r * a) / determinant - 1, (1 - r * a / 2 + r * a) / determinant - 1]
    assert infinite_feature_selection(responses, 0.5, r).tolist() == pytest.approx(expected)


def test_a_single_response_has_the_score_of_a_loop_on_itself() -> None:
    # A = [α σ], r A = 0.9: 0.9 + 0.9² + … = 9
    assert infinite_feature_selection(torch.randn(5, 1), 0.5).tolist() == pytest.approx([9])


def test_dead_responses_gain_nothing() -> None:
    responses = torch.randn(20, 4)
    responses[:, [0, 2]] = torch.tensor([0, 0.1])
    found = infinite_feature_selection(responses, 0.5)
    assert found[0] == found[2]
    assert max(found[0], found[2]) < min(found[1], found[3])


def test_responses_that_are_all_dead_or_stuck_have_score_0() -> None:
    for images in range(2, 40):  # of many equal numbers the computed deviation is not always 0
        stuck = torch.full((images, 3), 0.1, dtype=torch.float64)
        assert infinite_feature_selection(stuck, 0.5).tolist() == [0, 0, 0]
        assert infinite_feature_selection(stuck, 0.5, r=3.0).tolist() == [0, 0, 0]


def test_responses_in_the_same_or_the_opposite_order_differ_by_nothing_but_their_spread() -> None:
    for images in range(2, 40):
        response = torch.randn(images)
        alike = torch.stack([response, response.exp(), -response], dim=1)
        assert spearman(alike).abs().eq(1).all()
        assert infinite_feature_selection(alike, alpha=0).tolist() == [0, 0, 0]


def scaled_inf_fs(responses: Array, alpha: float) -> Array:
    """Inf-FS as its authors' programs have it: the matrix of the larger deviations is scaled to [0, 1]."""
    features = responses.shape[1]
    spread, rest = np.zeros((features, features)), np.zeros((features, features))
    for i in range(features):
        for j in range(features):
            spread[i, j] = entry(responses[:, i], responses[:, j], 1.0)
            rest[i, j] = entry(responses[:, i], responses[:, j], 0.0)
    largest, spread = spread.max(), spread - spread.min()
    spread = spread / spread.max() if spread.max() > 1e-12 * largest else np.zeros_like(spread)
    A = alpha * spread + (1 - alpha) * rest
    radius = max(abs(np.linalg.eigvals(A)))
    if radius == 0:
        return np.zeros(features)
    return (np.linalg.inv(np.eye(features) - 0.9 / radius * A) - np.eye(features)).sum(axis=1)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=40, deadline=None)
def test_sigma_minmax_scales_the_deviations_to_0_and_1(seed: int, alpha: float) -> None:
    responses = awkward_responses(seed)
    found = infinite_feature_selection(torch.from_numpy(responses), alpha, sigma="minmax")
    np.testing.assert_allclose(found, scaled_inf_fs(responses, alpha), rtol=1e-7, atol=1e-9)


def test_only_scaled_deviations_count_where_responses_are_small() -> None:
    responses = torch.from_numpy(np.random.default_rng(3).standard_normal((20, 5)))
    one, small = (infinite_feature_selection(responses * scale, 0.5, sigma="minmax") for scale in (1, 1e-6))
    assert torch.allclose(one, small)
    alone = infinite_feature_selection(responses, 0.0)
    assert torch.allclose(infinite_feature_selection(responses * 1e-6, 0.5), alone, rtol=1e-4)
    assert not torch.allclose(small, alone, rtol=1e-2)


@pytest.mark.parametrize("sigma", ["raw", "minmax"])
def test_features_with_the_same_responses_have_the_same_score(sigma: Sigma) -> None:
    for features in (3, 20, 60):
        responses = torch.from_numpy(np.random.default_rng(features).standard_normal((30, features)))
        numbers = torch.arange(features).repeat(3)[torch.randperm(3 * features)]
        found = infinite_feature_selection(responses[:, numbers], 0.5, sigma=sigma)
        for feature in range(features):
            assert len(set(found[numbers == feature].tolist())) == 1
        assert len(set(found.tolist())) == features


def test_only_a_given_r_lets_the_scores_follow_the_scale() -> None:
    responses = torch.randn(20, 4).double()
    one, half = (infinite_feature_selection(responses * scale, 1.0) for scale in (1, 0.5))
    assert torch.allclose(one, half)
    one, half = (infinite_feature_selection(responses * scale, 1.0, r=0.01) for scale in (1, 0.5))
    assert (half < one).all()


def test_an_r_that_is_too_large_is_refused_with_the_bound() -> None:
    responses = np.random.default_rng(1).standard_normal((9, 4))
    A = np.array([[entry(responses[:, i], responses[:, j], 0.5) for j in range(4)] for i in range(4)])
    bound = 1 / max(abs(np.linalg.eigvals(A)))
    infinite_feature_selection(torch.from_numpy(responses), 0.5, r=bound * 0.999)
    with pytest.raises(InputError, match=f"nisp: r is .*; the sum over all paths only exists below .* = {bound:.6g}"):
        infinite_feature_selection(torch.from_numpy(responses), 0.5, r=bound * 1.001)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_equal_responses_have_equal_scores_in_every_type_and_whatever_the_sign_of_zero(dtype: torch.dtype) -> None:
    responses = torch.randn(20, 6).relu().to(dtype)[:, [0, 1, 2, 3, 4, 5, 2, 3, 2]]
    responses[:, 8] = torch.where(responses[:, 8] == 0, -responses[:, 8], responses[:, 8])
    found = infinite_feature_selection(responses, 0.5).tolist()
    assert found[2] == found[6] == found[8]
    assert found[3] == found[7]
