"""The mean activation against a loop over every pixel."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prune_fe.errors import InputError
from prune_fe.scorers.base import LayerScore
from prune_fe.scorers.mean_activation import MeanActivation


def scored(maps: Tensor, labels: Tensor, classes: int) -> LayerScore:
    sums: Any = MeanActivation().measure(maps, labels, classes)
    return MeanActivation().score_layer(sums)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_it_is_the_mean_over_positions_and_images(awkward_maps: Callable[[int], Any], seed: int) -> None:
    maps, labels, classes = awkward_maps(seed)
    keep = scored(maps, labels, classes).keep
    for unit in range(maps.shape[1]):
        values = [value for image in maps for row in image[unit].tolist() for value in row]
        assert keep[unit].item() == pytest.approx(sum(values) / len(values), rel=1e-12, abs=1e-14)


def test_by_hand() -> None:
    maps = torch.tensor([[[[1.0, -2.0], [0.0, 3.0]]], [[[-8.0, 0.0], [0.0, 0.0]]]])
    score = scored(maps, torch.tensor([0, 0]), 1)
    assert score.keep.tolist() == [-6 / 8]
    assert score.raw["mean_activation"].equal(score.keep)


def test_it_has_no_settings() -> None:
    with pytest.raises(InputError, match="scorer 'mean-activation' has no setting 'p'; it has none"):
        MeanActivation.with_settings("mean-activation", {"p": 2})
