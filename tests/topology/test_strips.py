"""Strips and columns: what they hold of a map, for maps by themselves and interleaved ones."""

import numba
import numpy as np
import pytest

from prune_fe.topology import kernel, strips


@numba.njit
def make_scratch(size, like, n_units):
    """Call the compiled function, which has no wrapper for Python."""
    return kernel.make_scratch(size, like, n_units, np.empty((size, (size + 63) // 64), np.uint64))


@numba.njit
def fill_tops(bits, n_elements, strip_tops, tops):
    """Call the compiled function, which has no wrapper for Python."""
    return strips.fill_tops(bits, 0, n_elements, strip_tops, tops)


@numba.njit
def fill_interleaved_tops(bits, n_units, numbers, strip_tops, column_tops, lows):
    """Call the compiled function, which has no wrapper for Python."""
    strips.fill_interleaved_tops(bits, 0, n_units, n_units, numbers, strip_tops, column_tops, lows)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
@pytest.mark.parametrize(("size", "units"), [(3, 2), (21, 70), (30, 64), (65, 33), (70, 3)])
def test_the_largest_and_second_largest_of_each_strip(size: int, units: int, dtype: type[np.integer]) -> None:
    n_elements = size * size
    limit = np.iinfo(dtype).max - strips.ROW_MASK  # larger keys are not finite numbers
    rng = np.random.default_rng(size)
    maps = rng.integers(-limit, limit, (n_elements, units), dtype)
    maps[rng.random(maps.shape) < np.linspace(0, 1, units)] = 0  # from no zeros to only zeros
    keys = np.where(maps < 0, np.iinfo(dtype).min - maps, maps)  # sign and magnitude, as IEEE numbers have them
    scratch = make_scratch(size, maps, units)
    n_strips, n_columns = len(scratch.strips) - 1, len(scratch.columns) - 1
    numbers = n_elements, n_strips, n_columns
    fill_interleaved_tops(maps.reshape(-1), units, numbers, scratch.strip_tops, scratch.column_tops, scratch.lows)
    np.testing.assert_array_equal(scratch.lows[:units], keys.min(axis=0))
    tops = scratch.strip_tops.reshape(n_strips, -1, 2, strips.BLOCK)
    for strip in range(n_strips):
        own = keys[strip::n_strips]
        rows = np.arange(units)
        largest, packed = (tops[strip, :, i].reshape(-1)[:units].astype(np.int64) for i in (0, 1))
        np.testing.assert_array_equal(largest, own.max(axis=0))
        np.testing.assert_array_equal(own[packed & strips.ROW_MASK, rows], largest)
        # The second largest, rounded up; of a strip with fewer rows than the others it may be too large.
        bound = (packed | strips.ROW_MASK) + 1
        second = np.sort(own, axis=0)[-2] if len(own) > 1 else own[0]
        assert (bound >= second).all()
        if len(own) % strips.STRIP_ROWS == 0:
            assert (bound - second <= strips.ROW_MASK).all()
            assert (bound[second == 0] == 0).all()
    if n_columns < n_strips:
        by_column = scratch.column_tops.reshape(n_columns, -1)[:, :units]
        for column in range(n_columns):
            members = np.arange(column, n_strips, n_columns)
            expected = np.max([keys[strip::n_strips].max(axis=0) for strip in members], axis=0)
            np.testing.assert_array_equal(by_column[column], expected)


@pytest.mark.parametrize("size", [29, 56, 65, 112, 224])
def test_a_strip_of_interleaved_maps_has_elements_of_different_columns_of_the_map(size: int) -> None:
    n_strips, _ = strips.strip_counts(size, True)
    columns = np.arange(0, size * size, n_strips) % size
    assert len(columns) >= strips.STRIP_ROWS
    gaps = np.diff(np.sort(columns), append=size + columns.min())
    assert gaps.min() > size / len(columns) - 4


@pytest.mark.parametrize("size", [3, 21, 65, 100])
def test_a_map_by_itself(size: int) -> None:
    maps = np.random.default_rng(size).integers(-1000, 1000, size * size, np.int32)
    keys = np.where(maps < 0, np.iinfo(np.int32).min - maps, maps)
    scratch = make_scratch(size, maps, 1)
    n_strips, n_columns = len(scratch.strips) - 1, len(scratch.columns) - 1
    lowest, highest = fill_tops(maps, size * size, scratch.strip_tops, scratch.tops[0])
    assert (lowest, highest) == (keys.min(), keys.max())
    for column in range(n_columns):
        members = [keys[strip::n_strips].max() for strip in range(column, n_strips, n_columns)]
        assert scratch.tops[0][column] == max(members)
