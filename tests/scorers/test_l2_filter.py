"""L2 of the filter against a loop over its weights."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prune_fe.scorers.l2_filter import L2Filter
from prune_fe.scoring.score import score
from prune_fe.tracing.layers import Layer


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=30, deadline=None)
def test_it_is_the_root_of_the_sum_of_squares(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(rng.integers([1, 1, 1, 1], [6, 4, 4, 4]))
    weight = weight.round() if ties else weight
    weight[rng.random(len(weight)) < 0.2] = 0
    keep = L2Filter().score_layer(Layer("", len(weight), (0, 0)), torch.from_numpy(weight)).keep
    for unit, filter in enumerate(weight):
        assert keep[unit].item() == pytest.approx(math.sqrt(sum(w * w for w in filter.flatten().tolist())), rel=1e-12)


def test_by_hand_and_apart_from_l1() -> None:
    conv = nn.Conv2d(2, 3, 1)
    conv.weight = nn.Parameter(torch.tensor([[3.0, -4.0], [0.0, 0.0], [-6.0, 0.0]]).view(3, 2, 1, 1))
    model = nn.Sequential(conv)
    assert score(model, scorer="l2-filter").keep["0"].tolist() == [5, 0, 6]
    assert score(model, scorer="l2-filter").weakest("0", 3) == [1, 0, 2]
    assert score(model, scorer="l1-filter").weakest("0", 3) == [1, 2, 0]
