"""The compiled kernel: large ties, scratch arrays, and what is compiled."""

from typing import Any, get_args

import numpy as np
import pytest

from prune_fe.topology import birth_times, kernel, small_maps
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


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_read_only_array_needs_no_compilation_of_its_own(kind: type[np.floating]) -> None:
    maps = np.random.default_rng(0).standard_normal((3, 10, 10)).astype(kind)
    frozen = maps.copy()
    frozen.setflags(write=False)
    births = birth_times(maps)
    functions: list[Any] = [kernel.fill_births, kernel.fill_ranks, small_maps.fill_births]
    compiled = [len(function.signatures) for function in functions]
    np.testing.assert_array_equal(birth_times(frozen), births)
    assert [len(function.signatures) for function in functions] == compiled


def test_ranks_number_the_different_values_of_each_map() -> None:
    values = np.array([[3.0, -1.0, 3.0, 0.0], [np.nan, 1.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0]])
    ranks = np.empty(values.shape, np.int32)
    kernel.fill_ranks(values, ranks)
    assert ranks.tolist() == [[2, 0, 2, 1], [np.iinfo(np.int32).max] * 4, [0] * 4]
