"""FPGM against equation 4 of He et al. 2019, written as loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prune_fe.errors import InputError
from prune_fe.scorers.fpgm import FPGM
from prune_fe.scoring.score import score
from prune_fe.tracing.layers import Layer


def scored(weight: Tensor) -> list[float]:
    return FPGM().score_layer(Layer("", len(weight), (0, 0)), weight).keep.tolist()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_it_is_the_sum_of_the_distances_to_all_filters(seed: int) -> None:
    rng = np.random.default_rng(seed)
    units, channels, side = rng.integers([1, 1, 1], [40, 4, 4])  # from 26 on cdist would like matrix products
    weight = rng.standard_normal((units, channels, side, side))
    if rng.random() < 0.5:
        weight = weight.round()  # ties and equal filters
    weight[rng.random(units) < 0.2] = 0
    for i, distance in enumerate(scored(torch.from_numpy(weight))):
        differences = [(weight[i] - weight[j]).flatten().tolist() for j in range(units)]
        expected = sum(math.sqrt(sum(d * d for d in difference)) for difference in differences)
        assert distance == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_by_hand() -> None:
    # |1 + 1| + |1 − 2| = 3, 2 + 3 = 5, 1 + 3 = 4; torch-pruning's, between |w|, would be 1, 1, 2
    conv = nn.Conv2d(1, 3, 1)
    conv.weight = nn.Parameter(torch.tensor([1.0, -1.0, 2.0]).view(3, 1, 1, 1))
    assert score(nn.Sequential(conv), scorer="fpgm").keep["0"].tolist() == [3, 5, 4]


def test_small_distances_between_large_filters_are_not_lost() -> None:
    weight = torch.full((30, 1, 1, 1), 1e4, dtype=torch.float64)
    weight[7] += 1e-7
    assert scored(weight)[7] == pytest.approx(29e-7, rel=1e-4)
    assert scored(weight)[0] == pytest.approx(1e-7, rel=1e-4)


def test_equal_filters_and_a_single_one_have_distance_0() -> None:
    assert scored(torch.ones(5, 2, 3, 3).double()) == [0] * 5
    assert scored(torch.randn(1, 2, 3, 3).double()) == [0]


def test_a_layer_without_filters_of_its_own_is_refused_by_name() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    with pytest.raises(InputError, match="layer '0' is a Block and has no filters of its own"):
        score(nn.Sequential(Block()), scorer="fpgm", layers=["0"], example=torch.zeros(1, 3, 4, 4))


def first_pruned_as_the_program_does(weight: np.ndarray, by_norm: int, by_distance: int) -> tuple[set[int], list[int]]:
    """He et al.'s program: the filters that the norm prunes, and those that the distance prunes, in this order."""
    norms = [math.sqrt(sum(w * w for w in filters.flatten().tolist())) for filters in weight]
    order = sorted(range(len(weight)), key=lambda i: norms[i])
    large = order[by_norm:]
    sums = {i: sum(np.linalg.norm(weight[i] - weight[j]) for j in large) for i in large}
    return set(order[:by_norm]), sorted(large, key=lambda i: sums[i])[:by_distance]


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.25, 0.3, 1.0]))
@settings(max_examples=30, deadline=None)
def test_a_share_by_the_norm_is_what_the_authors_program_prunes(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    units = int(rng.integers(4, 30))  # of two filters that are left, both have the same distance
    weight = rng.standard_normal((units, 2, 3, 3)) * rng.uniform(0.1, 2, (units, 1, 1, 1))
    by_norm = int(round(share * units, 9))
    norm, distance = first_pruned_as_the_program_does(weight, by_norm, (units - by_norm) // 2)
    keep = FPGM(share).score_layer(Layer("", units, (0, 0)), torch.from_numpy(weight)).keep
    order = keep.argsort().tolist()
    assert set(order[:by_norm]) == norm
    assert order[by_norm : by_norm + len(distance)] == distance


def test_a_share_by_the_norm_by_hand() -> None:
    # 0.1 · 10 is one filter. Of 1, 3, 4, …, 11 the first goes by its norm, and then the middle of the rest.
    weight = torch.tensor([1.0, *range(3, 12)], dtype=torch.float64).view(10, 1, 1, 1)
    scored = FPGM(0.1).score_layer(Layer("", 10, (0, 0)), weight)
    assert scored.keep.tolist() == [-1, 36, 29, 24, 21, 20, 21, 24, 29, 36]
    assert scored.raw["l2_filter"].tolist() == weight.flatten().tolist()
    # Norms rank the first ones, here two of them.
    assert FPGM(0.2).score_layer(Layer("", 10, (0, 0)), weight).keep[:2].tolist() == [-3, -1]


def test_too_few_filters_for_a_share_are_ranked_by_distance() -> None:
    weight = torch.randn(5, 2, 3, 3).double()
    assert FPGM(0.1).score_layer(Layer("", 5, (0, 0)), weight).keep.tolist() == scored(weight)


def test_wrong_settings_say_what_is_allowed() -> None:
    with pytest.raises(InputError, match="scorer 'fpgm' has no setting 'p'; it has norm_share"):
        FPGM.with_settings("fpgm", {"p": 2})
    for share in (-0.1, 1.1, float("nan"), True, "half"):
        with pytest.raises(InputError, match=f"fpgm: norm_share is {share!r}, allowed are numbers from 0 to 1"):
            FPGM(share)  # type: ignore[arg-type]
