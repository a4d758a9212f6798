"""Small maps, many at once: the same births as one map after the other, or left open."""

import ctypes
from collections.abc import Callable

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from prune_fe.topology import birth_times, kernel, small_maps
from prune_fe.topology.births import INFINITY, INTEGER, has_hole, layout_of
from prune_fe.topology.portable import first_births

Draw = Callable[[str, int, int], Tensor]


@numba.njit
def fill_births(bits, starts, n_units, stride, size, infinity, births):
    """Call the compiled function, which has no wrapper for Python."""
    work = small_maps.make_work(size, bits)
    small_maps.fill_births(bits, starts, n_units, stride, size, infinity, work, births)


def births_of(maps: Tensor) -> np.ndarray:
    """The birth times of maps (images, units, m, m) by small_maps.py, UNSURE among them: (images · units,)."""
    dtype, size = str(maps.dtype).removeprefix("torch."), maps.shape[-1]
    layout = layout_of(maps)
    births = np.full(len(layout.starts) * layout.n_units, 99, np.int32)
    memory = (ctypes.c_char * (layout.n_numbers * maps.itemsize)).from_address(layout.address)
    numbers = np.frombuffer(bytearray(memory), INTEGER[dtype])
    fill_births(numbers, layout.starts, layout.n_units, layout.stride, size, INFINITY[dtype], births)
    return births


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 14, 27, 28])
def test_what_is_sure_is_the_kernels(kind: str, size: int, draw_maps: Draw) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        maps = draw_maps(kind, size, 3 * 37).to(dtype).view(3, 37, size, size)
        expected = first_births(maps.flatten(0, 1).float(), False, has_hole).numpy()
        for form in (torch.contiguous_format, torch.channels_last):
            found = births_of(maps.contiguous(memory_format=form))
            sure = found != small_maps.UNSURE
            np.testing.assert_array_equal(found[sure], expected[sure])
            if kind in ("random", "rectified") and dtype == torch.float32:
                assert sure.mean() > 0.95  # levels of 16 bits are seldom equal


def hole(weights: list[float]) -> Tensor:
    """A map (6, 6) of zeros, except for a cycle of four edges with these weights."""
    maps = torch.zeros(6, 6)
    for weight, (a, b) in zip(weights, [(0, 1), (1, 2), (2, 3), (3, 0)], strict=True):
        maps[a, b] = weight
    return maps


def test_a_birth_is_sure_if_equal_weights_come_later_only() -> None:
    maps = hole([9, 8, 7, 6])[None, None]
    for a, b in [(0, 4), (1, 4), (4, 5)]:
        maps[0, 0, a, b] = 2
    assert births_of(maps).tolist() == [4]
    maps[0, 0, 4, 5] = maps[0, 0, 0, 4] = maps[0, 0, 0, 5] = 10  # a triangle of equal weights, before the hole
    assert births_of(maps).tolist() == [small_maps.UNSURE]
    assert birth_times(maps).tolist() == [[7]]


def test_a_cycle_of_equal_weights_is_left_open() -> None:
    ring = torch.zeros(5, 5)
    for a, b in [(0, 1), (1, 2), (2, 3), (3, 0)]:
        ring[a, b] = 1
    path = ring.clone()
    path[3, 0] = 0  # the same weights without a cycle
    maps = torch.stack([ring, path])[None]
    assert births_of(maps).tolist() == [small_maps.UNSURE, 0]
    assert birth_times(maps).tolist() == [[1, 0]]


def test_an_element_of_the_same_level_as_the_birth_leaves_it_open() -> None:
    birth = hole([9, 8, 7, 6.5])
    just_below, just_above = birth.clone(), birth.clone()
    just_below[4, 4], just_above[4, 4] = 6.5 - 1e-6, 6.5 + 1e-6
    maps = torch.stack([birth, just_below, just_above])[None]
    assert births_of(maps).tolist() == [4, small_maps.UNSURE, small_maps.UNSURE]
    assert birth_times(maps).tolist() == [[4, 4, 5]]


def test_symmetric_maps_are_sure() -> None:
    maps = torch.rand(1, 64, 9, 9, generator=torch.Generator().manual_seed(0))
    maps = maps + maps.mT
    found = births_of(maps)
    sure = found != small_maps.UNSURE
    assert sure.mean() > 0.95
    np.testing.assert_array_equal(found[sure], birth_times(maps).flatten().numpy()[sure])


def test_each_map_has_levels_of_its_own_range() -> None:
    maps = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0)).repeat(1, 70, 1, 1)
    expected = birth_times(maps[0, :1]).item()
    assert expected > 0
    lanes = torch.arange(70)[:, None, None]
    for form in (torch.contiguous_format, torch.channels_last):
        moved = (maps * 2.0 ** (lanes % 11 - 5) + (lanes * 7 % 70 - 35)).contiguous(memory_format=form)
        assert births_of(moved).tolist() == [expected] * 70


def test_maps_of_half_precision_are_sure_if_only_their_levels_would_be_equal() -> None:
    maps = hole([9, 8, 7, 6.5])
    maps[4, 4] = 6.5 - 2**-8
    maps[5, 5] = 60000
    assert births_of(maps[None, None]).tolist() == [small_maps.UNSURE]
    assert births_of(maps[None, None].half()).tolist() == [5]


def test_maps_are_read_where_they_begin_if_the_last_one_alone_is_where_a_neighbour_would_be() -> None:
    memory = torch.randn(3, 300, generator=torch.Generator().manual_seed(0))
    maps = memory.unfold(1, 64, 3).permute(1, 0, 2).unflatten(2, (8, 8))
    starts = layout_of(maps).starts
    assert starts[15] == 15
    assert starts[1] == 300
    assert birth_times(maps).tolist() == birth_times(maps.contiguous()).tolist()


def test_equal_weights_do_not_matter_where_a_vertex_has_all_others_as_neighbours() -> None:
    cone = torch.zeros(6, 6)
    cone[5, :5] = 6
    cone[0, 1] = cone[2, 3] = 6  # triangles of equal weights
    late_cone = torch.zeros(6, 6)
    late_cone[5, :5] = torch.tensor([9, 8, 7, 6, 5])
    late_cone[4, 0] = 5  # in a triangle with the last edge of the vertex
    maps = torch.stack([cone, late_cone])[None]
    assert births_of(maps.half()).tolist() == [0, 0]
    assert births_of(maps).tolist() == [0, small_maps.UNSURE]  # the level of 5 may be that of several numbers
    assert birth_times(maps).tolist() == [[0, 0]]


def test_weights_are_not_taken_for_the_smallest_one_because_their_level_is() -> None:
    maps = 1 + 1e-6 * hole([9, 8, 7, 6])
    maps.fill_diagonal_(-1e6)  # so that all weights have the same level
    assert births_of(maps[None, None]).tolist() == [small_maps.UNSURE]
    assert birth_times(maps[None]).tolist() == [4]


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_maps_that_are_not_finite_are_marked(value: float, dtype: torch.dtype) -> None:
    maps = torch.zeros(1, 50, 5, 5, dtype=dtype)
    maps[0, 7, 2, 2] = maps[0, 49, 4, 0] = value
    for form in (torch.contiguous_format, torch.channels_last):
        found = births_of(maps.contiguous(memory_format=form))
        assert np.flatnonzero(found == kernel.NOT_FINITE).tolist() == [7, 49]


def test_denormal_numbers_count_where_torch_takes_them_for_zero() -> None:
    maps = torch.rand(1, 64, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = birth_times(maps).flatten().numpy()
    denormal = (maps * 2**20).int().view(torch.float32)  # the order stays, and equal ones would be seen
    assert denormal.max() < torch.finfo(torch.float32).tiny
    assert torch.set_flush_denormal(True)
    try:
        found = births_of(denormal)
        assert set(found[found != expected]) <= {small_maps.UNSURE}
        assert birth_times(denormal).flatten().tolist() == expected.tolist()
    finally:
        torch.set_flush_denormal(False)
