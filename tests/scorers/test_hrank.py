"""HRank against numpy's singular values, map by map."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prune_fe.errors import InputError
from prune_fe.scorers.hrank import HRank


def rank_of(maps: Tensor) -> list[float]:
    """maps: (images, units, height, width)."""
    sums: Any = HRank().measure(maps, torch.zeros(len(maps), dtype=torch.int64), 1)
    return HRank().score_layer(sums).keep.tolist()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_it_is_the_mean_over_the_images_of_the_rank(awkward_maps: Callable[[int], Any], seed: int) -> None:
    maps, _, _ = awkward_maps(seed)
    keep = rank_of(maps)
    for unit in range(maps.shape[1]):
        singular = [np.linalg.svd(image[unit].numpy(), compute_uv=False) for image in maps]
        ranks = [sum(value > 1e-10 for value in values) for values in singular]
        assert keep[unit] == sum(ranks) / len(maps)


def test_a_dead_map_has_rank_0_an_outer_product_1_and_the_identity_all() -> None:
    outer = torch.outer(torch.rand(6) + 1, torch.rand(6) + 1)
    assert rank_of(torch.stack([torch.zeros(6, 6), outer, torch.eye(6)])[None]) == [0, 1, 6]


def test_by_hand_over_two_images_that_are_not_square() -> None:
    # rows 1 and 2 are equal: rank 2 of 3×4; the other image has one row: rank 1
    one = torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, 4], [0, 1, 0, 0]])
    other = torch.tensor([[0.0, 0, 0, 0], [5, 6, 7, 8], [0, 0, 0, 0]])
    assert rank_of(torch.stack([one, other])[:, None]) == [1.5]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rounding_gives_no_rank(dtype: torch.dtype) -> None:
    ramp = torch.linspace(1, 2, 8, dtype=torch.float64).to(dtype)
    copies = torch.outer(torch.tensor([1, 3, 5, 7], dtype=dtype), ramp.to(dtype)) / 3
    flat = torch.full((8, 8), 0.1, dtype=dtype)
    assert rank_of(flat[None, None]) == [1]
    assert rank_of(copies[None, None]) == [1]


def test_what_counts_follows_the_precision_of_the_maps() -> None:
    map = torch.diag(torch.tensor([1.0, 1e-9], dtype=torch.float64))
    assert rank_of(map[None, None]) == [2]
    assert rank_of(map[None, None].float()) == [1]


def test_wrong_settings_say_what_is_allowed() -> None:
    with pytest.raises(InputError, match="scorer 'hrank' has no setting 'p'; it has read"):
        HRank.with_settings("hrank", {"p": 2})
    with pytest.raises(InputError, match="hrank: read is 'output', allowed are map, before_norm"):
        HRank(read="output")  # type: ignore[arg-type]
