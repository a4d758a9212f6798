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


def test_it_has_no_settings() -> None:
    with pytest.raises(InputError, match="scorer 'fpgm' has no setting 'p'; it has none"):
        FPGM.with_settings("fpgm", {"p": 2})
