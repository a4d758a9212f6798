"""Vectors of integers: each function against numpy, lane by lane."""

import ctypes
import mmap
import sys
from typing import Any

import numba
import numpy as np
import pytest
import torch

from prune_fe.topology import lanes
from prune_fe.topology.lanes import address_of, fill, if_greater, load, load_first, prefetch, smallest, store


@numba.njit
def compute(one, other, results, n_first):
    """Write a row of results for each function."""
    at = np.uint64(1)  # not where a vector begins
    a, b = load(address_of(one), at), load(address_of(other), at)
    prefetch(address_of(one), np.uint64(1) << np.uint64(40))  # an address that is not there does no harm
    store(address_of(results[0]), 0, a)
    store(address_of(results[1]), 0, lanes.higher(a, b))
    store(address_of(results[2]), 0, lanes.lower(a, b))
    store(address_of(results[3]), 0, lanes.plus(a, b))
    store(address_of(results[4]), 0, lanes.minus(a, b))
    store(address_of(results[5]), 0, lanes.bits_of_both(a, b))
    store(address_of(results[6]), 0, lanes.bits_of_either(a, b))
    store(address_of(results[7]), 0, if_greater(a, b, fill(address_of(one), 5), smallest(address_of(one))))
    store(address_of(results[8]), 0, load_first(address_of(one), at, n_first))


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_each_function_is_numpys(dtype: type[np.integer]) -> None:
    limits: Any = np.iinfo(dtype)
    n = lanes.N_LANES[limits.bits]
    rng = np.random.default_rng(0)
    one, other = rng.integers(limits.min, limits.max, (2, n + 1), dtype, endpoint=True)
    one[1:4], other[1:4] = (limits.min, 7, limits.max), (limits.max, 7, limits.min)
    a, b = one[1:], other[1:]
    for n_first in (0, 1, n - 1, n):
        results = np.empty((9, n), dtype)
        compute(one, other, results, n_first)
        expected = [a, np.maximum(a, b), np.minimum(a, b), a + b, a - b, a & b, a | b, np.where(a > b, 5, limits.min)]
        np.testing.assert_array_equal(results, [*expected, np.where(np.arange(n) < n_first, a, limits.min)])


@pytest.mark.skipif(sys.platform != "linux", reason="memory is protected in another way")
def test_lanes_behind_the_first_ones_are_not_read() -> None:
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    last = np.frombuffer(memory, np.int32)[mmap.PAGESIZE // 4 - 3 : mmap.PAGESIZE // 4]
    last[:] = 1, 2, 3
    result = np.ones(16, np.int32)
    next_page, protect = ctypes.c_void_p(last.ctypes.data + last.nbytes), ctypes.CDLL(None).mprotect
    assert protect(next_page, mmap.PAGESIZE, 0) == 0  # reading it would end the process
    read_first(last, result, 3)
    assert protect(next_page, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    assert result.tolist() == [1, 2, 3] + 13 * [np.iinfo(np.int32).min]


@numba.njit
def read_first(words, result, n):
    """Write the first n words to the result."""
    store(address_of(result), 0, load_first(address_of(words), np.uint64(0), n))


@numba.njit
def transpose_some(numbers, starts, offset, output, distance):
    """Call lanes.transpose, and write the result from the third number on."""
    index = np.uint64(2)
    lanes.transpose(address_of(numbers), address_of(starts), offset, address_of(output), index, distance)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_vectors_are_transposed(dtype: type[np.integer]) -> None:
    n = lanes.N_LANES[np.iinfo(dtype).bits]
    rng = np.random.default_rng(0)
    numbers = rng.integers(-999, 999, 5000, dtype)
    starts = rng.integers(0, 5000 - n - 7, n, np.uint64)
    output = np.zeros((n, n + 3), dtype)
    transpose_some(numbers, starts, np.uint64(7), output.reshape(-1), np.uint64(n + 3))
    rows = np.array([numbers[start + 7 : start + 7 + n] for start in starts.astype(int)])
    np.testing.assert_array_equal(output[:, 2 : n + 2], rows.T)
    assert not output[:, :2].any()
    assert not output[:, n + 2 :].any()


@numba.njit
def bits_of(one, other, word):
    """Return what the functions that give or take a word return."""
    at = np.uint64(0)
    flags = lanes.greater(load(address_of(one), at), load(address_of(other), at))
    return flags, lanes.set_bits(np.uint64(word)), lanes.trailing_zeros(np.uint64(word))


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
@pytest.mark.parametrize("word", [1, 2, 0b1011000, (1 << 64) - 1, 1 << 63])
def test_words_have_a_bit_for_each_lane(dtype: type[np.integer], word: int) -> None:
    n = lanes.N_LANES[np.iinfo(dtype).bits]
    one, other = np.random.default_rng(0).integers(-2, 3, (2, n), dtype)
    flags, n_set, first = bits_of(one, other, np.uint64(word))
    assert [flags >> lane & 1 for lane in range(n)] == (one > other).tolist()
    assert flags >> n == 0
    assert (n_set, first) == (word.bit_count(), f"{word:b}"[::-1].index("1"))


@numba.njit
def levels_of(keys, lowest, highest, levels):
    """Write the levels of many vectors of keys; the lowest and the highest key are one number for each lane."""
    first = np.uint64(0)
    low, high = load(address_of(lowest), first), load(address_of(highest), first)
    for at in range(first, np.uint64(len(keys)), lanes.lane_count(address_of(keys))):
        store(address_of(levels), at, lanes.levels_between(load(address_of(keys), at), low, high))


FLOAT32 = np.finfo(np.float32)


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize(
    ("low", "high"),
    [
        (0.0, 1.0),
        (-3.0, 7.0),
        (-5.0, -4.999),
        (FLOAT32.min, FLOAT32.max),  # the difference overflows
        (0.0, FLOAT32.max),
        (-FLOAT32.tiny, FLOAT32.tiny),
        (0.0, FLOAT32.smallest_subnormal * 300),  # the factor overflows
        (FLOAT32.smallest_subnormal, FLOAT32.tiny * 2),
        (1e30, 1.001e30),
    ],
)
def test_levels_have_the_order_of_the_numbers(low: float, high: float, flush: bool) -> None:
    least = np.iinfo(np.int32).min
    bits = np.array([low, high], np.float32).view(np.int32)
    first, last = np.where(bits < 0, least - bits.astype(np.int64), bits).tolist()
    keys = np.linspace(first, last, 1 << 16).astype(np.int64)
    # Neighbouring keys too, because two of them may be one level, and at both ends they may not.
    ends = np.concatenate([first + np.arange(64), last - np.arange(64), keys[:: 1 << 10] + 1])
    keys = np.sort(np.concatenate([keys, ends[(ends >= first) & (ends <= last)]]))
    keys = keys[: len(keys) - len(keys) % 16].astype(np.int32)
    levels = np.zeros_like(keys)
    assert not flush or torch.set_flush_denormal(True)
    try:
        levels_of(keys, np.full(16, first, np.int32), np.full(16, last, np.int32), levels)
    finally:
        torch.set_flush_denormal(False)
    assert (np.diff(levels) >= 0).all()
    assert ((levels == lanes.LOWEST_LEVEL) == (keys == first)).all()
    assert ((levels == lanes.HIGHEST_LEVEL) == (keys == last)).all()
    if 1e-30 < float(high) - float(low) < float(FLOAT32.max):
        assert len(np.unique(levels)) > 1000


@numba.njit
def narrow_some(numbers, result):
    """Write two vectors of 32 bits as one of 16."""
    at = np.uint64(0)
    first = load(address_of(numbers), at)
    second = load(lanes.behind(address_of(numbers), np.uint64(16)), at)
    store(address_of(result), at, lanes.narrow(first, second))


def test_two_vectors_become_one_of_half_as_many_bits() -> None:
    numbers = np.random.default_rng(0).integers(-(1 << 15), 1 << 15, 32, np.int32)
    result = np.zeros(32, np.int16)
    narrow_some(numbers, result)
    assert result.tolist() == numbers.tolist()
