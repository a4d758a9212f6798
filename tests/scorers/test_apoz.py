"""APoZ against equation 1 of Hu et al. 2016, written as loops."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prune_fe.errors import InputError
from prune_fe.scorers.apoz import APoZ
from prune_fe.scorers.base import LayerScore


def scored(maps: Tensor, labels: Tensor, classes: int) -> LayerScore:
    sums: Any = APoZ().measure(maps, labels, classes)
    return APoZ().score_layer(sums)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_it_is_the_share_of_zeros_behind_the_relu(awkward_maps: Callable[[int], Any], seed: int) -> None:
    maps, labels, classes = awkward_maps(seed)
    score = scored(maps, labels, classes)
    for unit in range(maps.shape[1]):
        behind = [max(value, 0) for image in maps for row in image[unit].tolist() for value in row]
        assert score.raw["zero_share"][unit].item() == sum(value == 0 for value in behind) / len(behind)
    assert score.keep.equal(-score.raw["zero_share"])


def test_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 0.0], [0.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]],
                         [[[4.0, 0.0], [0.5, 2.0]], [[0.0, 0.0], [0.0, 0.0]]]])  # fmt: skip
    score = scored(maps, torch.tensor([0, 0]), 1)
    assert score.keep.tolist() == [-3 / 8, -1]


def test_what_is_not_finite_is_no_active_value() -> None:
    maps = torch.ones(2, 3, 2, 2)
    maps[1, 2, 0, 1] = torch.nan
    with pytest.raises(InputError, match="unit 2: the map of image 1 of the batch holds NaN or infinite values"):
        APoZ().measure(maps, torch.tensor([0, 0]), 1)


def test_it_has_no_settings() -> None:
    with pytest.raises(InputError, match="scorer 'apoz' has no setting 'p'; it has none"):
        APoZ.with_settings("apoz", {"p": 2})
