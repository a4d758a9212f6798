"""Ids of channels are described, narrowed and expanded without losing which dimension they are in."""

import numpy as np
import torch

from prune_fe.tracing.channel_ids import (
    broadcast_size,
    expand_along,
    ids_along,
    is_resized,
    narrow_to,
    resize,
    rows_along,
    to_tensor,
    varying_dims,
)

IDS = expand_along(np.array([4, 5, 6]), 1, (2, 3, 5))
"""Three channels in the middle."""

TWO = torch.arange(6).view(1, 2, 3, 1).expand(4, 2, 3, 7)
"""Channels in two dimensions."""


def test_ids_differ_along_their_dimension_only() -> None:
    assert IDS.shape == (2, 3, 5)
    assert IDS[1, :, 4].tolist() == [4, 5, 6]
    assert varying_dims(IDS) == [1]
    assert varying_dims(IDS.contiguous()) == [1]
    assert varying_dims(TWO) == [1, 2]
    assert varying_dims(torch.zeros(2, 3, dtype=torch.int64)) == []
    assert varying_dims(torch.tensor(3)) == []


def test_ids_are_read_along_dimensions() -> None:
    assert ids_along(IDS, [1]).tolist() == [4, 5, 6]
    assert ids_along(TWO, [1, 2]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert narrow_to(TWO, [2]).shape == (1, 1, 3, 1)
    assert rows_along(TWO, 2).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert rows_along(TWO, 1).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert rows_along(IDS, 1).tolist() == [[4, 5, 6]]


def test_dimensions_without_channels_may_change_their_size() -> None:
    assert is_resized(IDS, torch.zeros(2, 3, 1))
    assert not is_resized(IDS, torch.zeros(2, 4, 5))
    assert not is_resized(IDS, torch.zeros(2, 3))
    assert torch.equal(resize(IDS, (1, 3, 9)), expand_along(np.array([4, 5, 6]), 1, (1, 3, 9)))


def test_an_array_of_any_strides_becomes_a_tensor() -> None:
    assert to_tensor(np.arange(6)[::-2]).tolist() == [5, 3, 1]


def test_sizes_are_those_before_broadcasting() -> None:
    bias = torch.zeros(3, 1)
    assert [broadcast_size(bias, dim, 4) for dim in range(4)] == [1, 1, 3, 1]
