"""L1 of the activation against a loop over every pixel."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prune_fe.errors import InputError
from prune_fe.scorers.base import LayerScore
from prune_fe.scorers.l1_activation import L1Activation


def scored(maps: Tensor, labels: Tensor, classes: int) -> LayerScore:
    sums: Any = L1Activation().measure(maps, labels, classes)
    return L1Activation().score_layer(sums)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_it_is_the_mean_over_the_images_of_the_summed_absolute_map(
    awkward_maps: Callable[[int], Any], seed: int
) -> None:
    maps, labels, classes = awkward_maps(seed)
    score = scored(maps, labels, classes)
    for unit in range(maps.shape[1]):
        total = sum(abs(value) for image in maps for row in image[unit].tolist() for value in row)
        assert score.keep[unit].item() == pytest.approx(total / len(maps), rel=1e-12)


def test_by_hand() -> None:
    maps = torch.tensor([[[[1.0, -2.0], [0.0, 3.0]], [[0.0, 0.0], [0.0, 0.0]]],
                         [[[-4.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]])  # fmt: skip
    score = scored(maps, torch.tensor([0, 0]), 1)
    assert score.keep.tolist() == [(6 + 4) / 2, (0 + 1) / 2]
    assert score.raw["l1_activation"].equal(score.keep)


def test_half_precision_maps_are_summed_in_double() -> None:
    maps = torch.full((1, 1, 200, 200), 2.0, dtype=torch.float16)  # 80000 is more than float16 can hold
    assert scored(maps, torch.tensor([0]), 1).keep.item() == 80000


def test_wrong_settings_say_what_is_allowed() -> None:
    with pytest.raises(InputError, match="scorer 'l1-activation' has no setting 'p'; it has read"):
        L1Activation.with_settings("l1-activation", {"p": 2})
    with pytest.raises(InputError, match="l1-activation: read is 'output', allowed are map, before_norm"):
        L1Activation(read="output")  # type: ignore[arg-type]
