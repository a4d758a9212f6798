"""Sort a few items of a map on the CPU."""

import numpy as np

from prune_fe.topology.compiling import compiled

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
    """Write each item to the position given by the number of smaller ones: n² steps, but vectorised, no branches."""
    for i in range(n):
        item = items[i]
        rank = 0
        for j in range(n):
            rank += items[j] < item
        order[rank] = item


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
