"""L1 of the filter against a loop over its weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prune_fe.errors import InputError
from prune_fe.scorers.l1_filter import L1Filter
from prune_fe.scoring.score import score
from prune_fe.tracing.layers import Layer


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=30, deadline=None)
def test_it_is_the_sum_of_absolute_weights(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(rng.integers([1, 1, 1, 1], [6, 4, 4, 4]))
    weight = weight.round() if ties else weight
    weight[rng.random(len(weight)) < 0.2] = 0
    keep = L1Filter().score_layer(Layer("", len(weight), (0, 0)), torch.from_numpy(weight)).keep
    for unit, filter in enumerate(weight):
        assert keep[unit].item() == pytest.approx(sum(abs(w) for w in filter.flatten().tolist()), rel=1e-12)


def test_by_hand() -> None:
    conv = nn.Conv2d(2, 3, 1)
    conv.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.0, 0.0], [-3.0, -4.0]]).view(3, 2, 1, 1))
    assert score(nn.Sequential(conv), scorer="l1-filter").keep["0"].tolist() == [3, 0, 7]


def test_a_depthwise_filter_is_its_own_channel() -> None:
    conv = nn.Conv2d(2, 2, (1, 2), groups=2)
    conv.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [5.0, 0.5]]).view(2, 1, 1, 2))
    assert score(nn.Sequential(conv), scorer="l1-filter").keep["0"].tolist() == [3, 5.5]


def test_it_has_no_settings() -> None:
    with pytest.raises(InputError, match="scorer 'l1-filter' has no setting 'p'; it has none"):
        L1Filter.with_settings("l1-filter", {"p": 2})
