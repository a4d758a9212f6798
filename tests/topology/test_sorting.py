"""Sorting the items of a slice: the order of numpy's sort."""

import numba
import numpy as np
import pytest

from prune_fe.topology import sorting


@numba.njit
def sort(items, order, n, base, n_bits):
    """Call the compiled function, which has no wrapper for Python."""
    sorting.sort(items, order, n, base, n_bits)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 17, 40, sorting.MAX_RANKED, sorting.MAX_RANKED + 1, 3000])
@pytest.mark.parametrize("n_bits", [1, 9, 30])
def test_items_come_out_in_rising_order(n: int, n_bits: int) -> None:
    rng = np.random.default_rng(n)
    base = -(1 << 31) + 5
    keys, indices = base + rng.integers(0, 1 << n_bits, n), np.sort(rng.permutation(2 * n)[:n])
    items = (keys << 32) | indices
    order = np.zeros(n + 2, np.int64)
    expected = np.sort(items)
    sort(np.append(items, [7, 7]), order, n, base, n_bits)
    assert order.tolist() == [*expected.tolist(), 0, 0]
