"""The compiled kernel: large ties, and scratch arrays."""

from typing import get_args

import numpy as np
import pytest

from prune_fe.topology import birth_times
from prune_fe.topology.births import Rank


def test_an_edge_whose_two_elements_are_equal_is_one_edge() -> None:
    maps = np.random.default_rng(0).integers(0, 4, (20_000, 8, 8)).astype(np.float32)
    symmetric = np.maximum(maps, maps.transpose(0, 2, 1))
    np.testing.assert_array_equal(birth_times(symmetric, "edges"), birth_times(maps, "edges"))


def test_maps_before_it_leave_no_trace_in_a_map() -> None:
    maps = np.random.default_rng(0).integers(0, 4, (200, 20, 20)).astype(np.float32)
    np.testing.assert_array_equal(birth_times(maps), [int(birth_times(values)) for values in maps])


@pytest.mark.parametrize("levels", [2, 3, 10, 40])
def test_large_maps_of_few_values_are_quick(levels: int) -> None:
    # Thousands of equal elements: one must not list the triangles, of which a map of this size has 1.9 million.
    maps = np.random.default_rng(levels).integers(0, levels, (2, 224, 224)).astype(np.float32)
    for rank in get_args(Rank):
        np.testing.assert_array_equal(birth_times(maps, rank), birth_times(maps.transpose(0, 2, 1), rank))
