"""Sort a few items of a map on the CPU."""

import numpy as np

from prune_fe.topology.compiling import compiled
from prune_fe.topology.lanes import address_of, fill, if_greater, lane_count, lane_of, load_first, plus

MAX_RANKED = 128  # beyond this many items a radix sort is faster than rank_sort
DIGIT_BITS = 8  # of the radix sort


@compiled
def sort(items, order, n, base, n_bits):
    """Write the first n items to `order` in rising order, and overwrite them.

    Args:
        items: The items, unsorted.
        order: Output.
        n: Number of items.
        base: A lower bound of −key.
        n_bits: −key − base is below 2 to the n_bits.
    """
    if n <= MAX_RANKED:
        rank_sort(items, order, n)
        return
    # Two digits a round, so that the result is in `items` after each.
    for shift in range(0, n_bits, 2 * DIGIT_BITS):
        sort_digit(items, order, n, base, shift)
        sort_digit(order, items, n, base, shift + DIGIT_BITS)
    order[:n] = items[:n]


@compiled
def rank_sort(items, order, n):
    """Write the first n items to `order` in rising order; they have to be different.

    The position of an item is the number of smaller ones: n² comparisons, but in vectors and without branches.
    """
    numbers = address_of(items)
    one, n_lanes = fill(numbers, 1), np.int64(lane_count(numbers))
    # Two vectors at once, so that each item that is read is compared with both.
    for first in range(0, n, 2 * n_lanes):
        second = first + n_lanes
        own, ranks = load_first(numbers, np.uint64(first), n - first), fill(numbers, 0)
        more, more_ranks = load_first(numbers, np.uint64(second), n - second), fill(numbers, 0)
        for i in range(n):
            item = fill(numbers, items[i])
            ranks = if_greater(own, item, plus(ranks, one), ranks)
            more_ranks = if_greater(more, item, plus(more_ranks, one), more_ranks)
        for lane in range(min(n_lanes, n - first)):
            order[lane_of(ranks, lane)] = items[first + lane]
        for lane in range(min(n_lanes, n - second)):
            order[lane_of(more_ranks, lane)] = items[second + lane]


@compiled
def sort_digit(items, order, n, base, shift):
    """Sort stably by the digit of −key − base at bit `shift`: one pass of a radix sort."""
    # Where the next item of each digit goes: after all items of smaller digits.
    ends = np.zeros((1 << DIGIT_BITS) + 1, np.int64)
    for i in range(n):
        ends[digit_of(items[i], base, shift) + 1] += 1
    for digit in range(1 << DIGIT_BITS):
        ends[digit + 1] += ends[digit]
    for i in range(n):
        digit = digit_of(items[i], base, shift)
        order[ends[digit]] = items[i]
        ends[digit] += 1


@compiled
def digit_of(item, base, shift):
    """Return the digit of −key − base at bit `shift`."""
    return ((item >> 32) - base) >> shift & ((1 << DIGIT_BITS) - 1)


@compiled
def bit_length(number):
    """Return how many bits a number ≥ 0 has."""
    n = 0
    while number >> n:
        n += 1
    return n
