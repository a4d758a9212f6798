"""Read maps where they lie on the CPU, once, and find the elements above a floor without reading all again.

A map lies by itself, or interleaved as in PyTorch's channels-last format, where the elements of all units at one
position lie side by side. It is divided into strips, each of every n-th element, and the strips into columns, each of
every n-th strip (for small maps, a column is one strip). One pass over all elements finds the largest of each strip,
its top. The columns' tops show how large the first few elements of the map are, and only strips with such a top are
read again. For interleaved maps the pass takes all units at once, because memory is read in whole cache lines and
fastest in order, and it keeps a bound of the second largest of each strip too: most strips need not be read again.
"""

import math

import numpy as np
from numba.extending import register_jitable

from prune_fe.topology.compiling import compiled
from prune_fe.topology.lanes import (
    address_of,
    bits_of_both,
    bits_of_either,
    fill,
    greater,
    higher,
    if_greater,
    lane_count,
    load,
    load_first,
    lower,
    minus,
    plus,
    prefetch,
    smallest,
    store,
    trailing_zeros,
    transpose,
)

BLOCK = 64  # how many interleaved units lie side by side in the tops of a strip
CACHED_TOPS = 1 << 12  # how many tops of interleaved units' strips stay in the fastest cache
AHEAD = 1024  # how many numbers ahead interleaved maps are fetched to the cache: a page of 32-bit numbers
STRIP_ROWS = 4  # how many elements of a strip of interleaved units are merged at once: more are read more slowly
ROW_MASK = 15  # the bits of a number that tell which row of an interleaved strip its top is
MAX_ROWS_OF_ONE_WORD = 64  # up to this size, a set of vertices is one word, and a column one strip


@register_jitable
def slice_size(size):
    """Return how many elements kernel.py's first slice should have: about as many as a birth needs on these maps."""
    return 14 + size // 4


@register_jitable
def strip_counts(size: int, is_interleaved: bool) -> tuple[int, int]:
    """Return how many strips a map of size × size elements is divided into, and how many columns the strips form."""
    n_elements = size * size
    elements_per_wanted = n_elements / (1.5 * slice_size(size))
    if is_interleaved:
        # The tops of many units should stay in the cache, so a strip has the more elements the larger the maps are.
        n_rows = STRIP_ROWS * (1 if size <= 20 else 2 if size <= 128 else 4)
    else:
        n_rows = max(1, round(elements_per_wanted ** (1 / 2 if size <= MAX_ROWS_OF_ONE_WORD else 1 / 3)))
    n_strips = -(-n_elements // n_rows)
    if is_interleaved:
        # The largest elements often lie along a border, many of them in one column of the map. So that they are in
        # different strips, each element of a strip is further right than the one before, modulo the row: by 1/4, 3/8
        # or 7/16 of a row if there are 4, 8 or 16 elements, so that they are in different columns of the map.
        n_strips += ((n_rows // 2 - 1) * size // n_rows - n_strips) % size
    if size <= MAX_ROWS_OF_ONE_WORD:
        return n_strips, n_strips
    return n_strips, min(n_strips, math.ceil(elements_per_wanted ** (1 / 3) * 1.5 * slice_size(size)))


@compiled
def strip_width(n_units):
    """Return how many numbers the tops of a strip of interleaved units take: two for each unit, in whole blocks."""
    return 2 * BLOCK * -(-n_units // BLOCK)


@compiled
def key_at(bits, index):
    """Return the key of the IEEE number with these bits: an integer in the order of the numbers; −0 and +0 share one.

    An IEEE number is a sign and a magnitude, so ±magnitude has the order of the numbers.
    """
    word = bits[np.uint64(index)]  # a loop with a signed index is not vectorised
    return word if word >= 0 else bits.dtype.type(np.iinfo(bits.dtype).min - word)


@compiled
def fill_tops(bits, start, n_elements, strip_tops, tops):
    """Write the largest key of each strip and column of a map, and return the lowest and the highest key.

    For most maps this is the only pass over all elements.
    """
    n_strips, n_columns = len(strip_tops), len(tops)
    rows = strip_tops if n_columns < n_strips else tops
    lowest = key_at(bits, start)
    for strip in range(n_strips):
        key = key_at(bits, start + strip)
        rows[strip] = key
        lowest = min(lowest, key)
    for first in range(n_strips, n_elements, n_strips):
        for strip in range(min(n_strips, n_elements - first)):
            key = key_at(bits, start + first + strip)
            rows[np.uint64(strip)] = max(rows[np.uint64(strip)], key)
            lowest = min(lowest, key)
    if n_columns < n_strips:
        tops[:] = rows[:n_columns]
        for first in range(n_columns, n_strips, n_columns):
            for column in range(min(n_columns, n_strips - first)):
                tops[np.uint64(column)] = max(tops[np.uint64(column)], rows[np.uint64(first + column)])
    return lowest, largest(tops)


@compiled
def largest(values):
    """Return the largest value."""
    result = values[0]
    for i in range(len(values)):
        result = max(result, values[i])
    return result


@compiled
def fill_interleaved_tops(bits, start, stride, n_units, numbers, strip_tops, column_tops, lows):
    """Write the tops of each strip and column and the lowest key of interleaved units.

    Args:
        bits: The bit patterns.
        start: Where the first unit's map begins.
        stride: Distance between two elements of a map.
        n_units: The interleaved units.
        numbers: How many elements, strips and columns a map has.
        strip_tops: Output, as in Scratch of kernel.py.
        column_tops: Output, as in Scratch; may be empty.
        lows: Output, as in Scratch.
    """
    words, tops, columns, lowest = address_of(bits), address_of(strip_tops), address_of(column_tops), address_of(lows)
    n_elements, n_strips, n_columns = np.uint64(numbers[0]), np.uint64(numbers[1]), np.uint64(numbers[2])
    start, stride, n_units = np.uint64(start), np.uint64(stride), np.uint64(n_units)
    width, n_lanes = np.uint64(strip_width(n_units)), lane_count(words)
    lows[:] = np.iinfo(bits.dtype).max
    # Some strips at a time, so that their tops stay in the cache until all rows are merged.
    n_at_once = max(np.uint64(1), np.uint64(CACHED_TOPS) // width)
    for first in range(np.uint64(0), n_strips, n_at_once):
        end, row = min(first + n_at_once, n_strips), 0
        for offset in range(np.uint64(0), n_elements, STRIP_ROWS * n_strips):
            for strip in range(first, min(end, n_elements - offset)):
                index = strip + offset
                at0 = start + index * stride
                # A row beyond the last one is replaced by the first of these four. That can only make the bound of the
                # second largest too large, and the strip is then read again.
                step = n_strips * stride
                at1 = at0 + step if index + n_strips < n_elements else at0
                at2 = at1 + step if index + 2 * n_strips < n_elements else at0
                at3 = at2 + step if index + 3 * n_strips < n_elements else at0
                for unit in range(np.uint64(0), n_units, n_lanes):
                    places, n = (at0 + unit, at1 + unit, at2 + unit, at3 + unit), n_units - unit
                    merge_rows(words, places, n, row, tops, strip * width + offset_of(unit), lowest, unit)
            row += STRIP_ROWS
        if len(column_tops) > 0:
            for strip in range(first, end):
                at_column = strip % n_columns * (width // np.uint64(2))
                for unit in range(np.uint64(0), n_units, n_lanes):
                    top = load(tops, strip * width + offset_of(unit))
                    if strip >= n_columns:
                        top = higher(top, load(columns, at_column + unit))
                    store(columns, at_column + unit, top)


@compiled
def merge_rows(words, places, n, row, tops, at, lows, unit):
    """Merge STRIP_ROWS = 4 elements of a strip of some units, one in each lane, into their tops and lowest keys.

    Args:
        words: Address of the bit patterns.
        places: Where the elements of the first unit are, a tuple of 4.
        n: How many units there are from the first one on; if they are fewer than lanes, the other lanes do not matter.
        row: Number of the first element in the strip.
        tops: Address of the tops.
        at: Position in the tops of the strip's top of the first unit.
        lows: Address of the lowest keys.
        unit: Number of the first unit.
    """
    # The processor itself fetches numbers ahead only up to the end of a page of memory.
    for place in places:
        prefetch(words, place + np.uint64(AHEAD))
    key0, key1 = load_keys(words, places[0], n), load_keys(words, places[1], n)
    key2, key3 = load_keys(words, places[2], n), load_keys(words, places[3], n)
    high01, low01 = higher(key0, key1), lower(key0, key1)
    high23, low23 = higher(key2, key3), lower(key2, key3)
    row01 = if_greater(key1, key0, fill(words, row + 1), fill(words, row))
    row23 = if_greater(key3, key2, fill(words, row + 3), fill(words, row + 2))
    high, rows = higher(high01, high23), if_greater(high23, high01, row23, row01)
    second = higher(lower(high01, high23), higher(low01, low23))
    store(lows, unit, lower(load(lows, unit), lower(low01, low23)))
    mask, at_second = fill(words, ROW_MASK), at + np.uint64(BLOCK)
    if row > 0:
        before, packed = load(tops, at), load(tops, at_second)
        second = higher(higher(lower(high, before), second), plus(bits_of_either(packed, mask), fill(words, 1)))
        rows = if_greater(high, before, rows, bits_of_both(packed, mask))
        high = higher(high, before)
    store(tops, at, high)
    # The bound is the second largest, rounded up to a multiple of ROW_MASK + 1. It is stored less 1, with the row of
    # the largest in its lowest bits. 0 stays 0: where most elements are 0, a strip with one other need not be read.
    upper_bits = bits_of_both(plus(second, fill(words, -1)), fill(words, ~ROW_MASK))
    store(tops, at_second, bits_of_either(upper_bits, rows))


@compiled
def load_keys(words, at, n):
    """Return the keys of the next n units from a place on, or of as many as there are lanes; see key_at."""
    lanes = load(words, at) if n >= lane_count(words) else load_first(words, at, np.int64(n))
    return if_greater(fill(words, 0), lanes, minus(smallest(words), lanes), lanes)


@compiled
def offset_of(unit):
    """Return where the top of an interleaved unit is in the tops of a strip."""
    number = np.uint64(unit)
    return number // np.uint64(BLOCK) * np.uint64(2 * BLOCK) + number % np.uint64(BLOCK)


@compiled
def tops_by_unit(columns, first, width, tops):
    """Write the tops of as many units as there are lanes, in columns that are `width` apart, to tops, (lanes, columns).

    If there are fewer units, the other rows do not matter.
    """
    n_columns, n_lanes = np.uint64(tops.shape[1]), lane_count(address_of(columns))
    starts = np.empty(n_lanes, np.uint64)
    for lane in range(n_lanes):
        starts[lane] = lane * np.uint64(width) + np.uint64(first)
    n_in_vectors = n_columns - n_columns % n_lanes
    for column in range(np.uint64(0), n_in_vectors, n_lanes):
        offset = column * np.uint64(width)
        transpose(address_of(columns), address_of(starts), offset, address_of(tops), column, n_columns)
    for column in range(n_in_vectors, n_columns):
        for lane in range(n_lanes):
            tops[lane, column] = columns[column * np.uint64(width) + np.uint64(first) + lane]


@compiled
def pick(tops, columns, strip_tops, offset, width, strips, n_strips, spare, floor):
    """Write the strips that have an element ≥ the floor to `strips`, and return their number."""
    n_columns, is_strip = np.uint64(len(tops)), len(tops) == n_strips
    picked = strips if is_strip else columns
    n_picked = np.uint64(0)
    for first in range(np.uint64(0), n_columns, np.uint64(64)):
        wanted = not_below(address_of(tops), first, min(np.uint64(64), n_columns - first), floor)
        while wanted != 0:
            picked[n_picked] = np.int64(first) + trailing_zeros(wanted)
            n_picked += np.uint64(1)
            wanted &= wanted - np.uint64(1)
    if is_strip:
        return np.int64(n_picked)
    # Without branches: each strip is written, and the position moves on only if it is wanted. The indices are unsigned
    # because signed ones would be tested for being negative.
    least = tops.dtype.type(floor)
    # First all strips of the columns, so that no write waits for a top to be read from far away.
    n_read = np.uint64(0)
    for i in range(n_picked):
        strip = np.uint64(columns[i])
        while strip < np.uint64(n_strips):
            top = strip_tops[strip * np.uint64(width) + np.uint64(offset)]
            spare[n_read] = (np.int64(top) << 32) | np.int64(strip)
            n_read += np.uint64(1)
            strip += n_columns
    n = np.uint64(0)
    for i in range(n_read):
        strips[n] = spare[i] & 0xFFFFFFFF
        n += np.uint64(spare[i] >> 32 >= least)
    return np.int64(n)


@compiled
def not_below(numbers, first, n, least):
    """Return a word in which bit i says whether the i-th number, counted from `first` on, is ≥ `least`.

    Args:
        numbers: Address of the numbers.
        first: Position of the first number.
        n: How many numbers, at most 64.
        least: Greater than the smallest integer, as each floor is.
    """
    word = np.uint64(0)
    for i in range(np.uint64(0), n, lane_count(numbers)):
        lanes = load_first(numbers, first + i, np.int64(n - i))
        word |= greater(lanes, fill(numbers, least - 1)) << i
    return word


@compiled
def gather_tops(strip_tops, offset, width, strips, n_picked, n_strips, items, floor, ceiling):
    """Write to `items` the tops below the ceiling of the interleaved strips with no second element ≥ the floor.

    Of the second largest element only a bound is known, so a few of these strips count as others.

    Returns:
        The number of items, and the number of the other strips, which are moved to the front of `strips`.
    """
    for i in range(n_picked):
        strip = np.uint64(strips[i])
        at = strip * np.uint64(width) + np.uint64(offset)
        packed = np.int64(strip_tops[at + np.uint64(BLOCK)])
        index = strip + np.uint64(packed & ROW_MASK) * np.uint64(n_strips)
        items[2 * i] = (-np.int64(strip_tops[at]) << 32) | np.int64(index)
        items[2 * i + 1] = (packed | ROW_MASK) + 1  # the bound of the second largest
    first = np.int64(1 - ceiling) << 32
    n = n_others = np.uint64(0)
    for i in range(n_picked):
        item, is_alone, strip = items[2 * i], items[2 * i + 1] < floor, strips[i]
        items[n] = item
        n += np.uint64(is_alone & (item >= first))
        strips[n_others] = strip
        n_others += np.uint64(not is_alone)
    return np.int64(n), np.int64(n_others)


@compiled
def gather(bits, start, stride, n_elements, strips, n_picked, n_strips, items, n, floor, ceiling):
    """Append the elements of the strips with floor ≤ key < ceiling to n items, and return the new number of items.

    An item is −key in the upper 32 bits and the element's index in the lower 32.
    """
    least, most = bits.dtype.type(floor), bits.dtype.type(ceiling - 1)
    n_read, step = np.uint64(n), np.uint64(n_strips)
    for i in range(n_picked):
        index = np.uint64(strips[i])
        while index < np.uint64(n_elements):
            key = key_at(bits, np.uint64(start) + index * np.uint64(stride))
            items[n_read] = (-np.int64(key) << 32) | np.int64(index)
            n_read += np.uint64((least <= key) & (key <= most))
            index += step
    return np.int64(n_read)


@compiled
def count_elements(bits, start, stride, n_elements, strips, n_picked, n_strips, floor):
    """Return how many elements of the strips are ≥ the floor."""
    floor = bits.dtype.type(floor)
    n = 0
    for i in range(n_picked):
        for index in range(strips[i], n_elements, n_strips):
            n += key_at(bits, start + index * stride) >= floor
    return n
