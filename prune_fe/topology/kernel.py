"""The birth times of many maps on the CPU, compiled by numba.

The elements of a map enter in falling order, groups of equal ones together, until the graph has a hole.

Why no homology need be computed: let Y be a graph whose clique complex has H¹ = 0 (coefficients in GF(2), so H¹ = 0
just when H₁ = 0), and let K be Y plus some edges P, each within one component of Y. A cocycle f of K is a coboundary
on Y; subtract that coboundary, and f is zero on Y. It is then the only such cocycle of its class: Y and K have the
same components, and a coboundary that is zero on Y comes from a function that is constant on each. Hence

    H¹(K) = {f : P -> GF(2), extended by zero to Y, that sums to zero over every triangle of K}.            (1)

For a single edge, f is zero if the edge closes a triangle and free if it does not. So an edge with a common neighbour
leaves H¹ = 0 and joins Y; so does an edge between two components, through which no cycle passes; any other single
edge gives a hole. For several edges of equal value, (1) is a linear system in a few unknowns, of which nearly every
equation says that one unknown is zero or that two are equal.

Once most vertices are connected, the first hole among the remaining elements can be found without sorting them
(find_later_hole).

Maps are read where they lie: each by itself, or interleaved as in PyTorch's channels-last format, where the elements of
all units at one position lie side by side. A map is divided into strips, each of every n-th element, and the strips
into columns, each of every n-th strip (for small maps, a column is one strip). One pass over all elements finds the
largest of each strip, its top. The columns' tops show how large the first few elements of the map are, and only strips
with such a top are read again. For interleaved maps the pass takes all units at once, because memory is read in whole
cache lines and fastest in order, and it keeps the second largest of each strip too: most strips need not be read again.
"""

import math
from typing import NamedTuple

import numpy as np

from prune_fe.topology.compiling import aligned_empty, compiled, entry_point
from prune_fe.topology.lanes import (
    address_of,
    bits_of_both,
    bits_of_either,
    fill,
    higher,
    if_greater,
    lane_count,
    load,
    load_first,
    lower,
    minus,
    smallest,
    store,
)

NOT_FINITE = -1  # in place of a birth time: the map has NaN or an infinite element
NO_HOLE = -1  # in place of a position in a slice: the slice gives no hole
CONE = -2  # the slice gives no hole, and no later one will
UNSURE = -3  # the remaining elements must enter before it is known

MAX_FIRST_SLICE = 42  # births in large maps of trained networks need fewer elements than in random maps
SLICE_GROWTH = 3  # how many times as many elements each slice should have as the one before
MAX_SAMPLED = 1024  # the size of the sample from which the floor of a later slice is chosen
MIN_SAMPLED = 4  # how many elements of the sample the slice should have at least, for a fair estimate
MAX_TESTS = 3  # how many pairs a vertex find_later_hole tests before it gives up
LANES = 16  # how many interleaved units' tops are transposed at once: a cache line of 32-bit numbers
BLOCK = 64  # how many interleaved units lie side by side in the tops of a strip
STRIP_ROWS = 4  # how many elements of a strip of interleaved units are merged at once
ROW_MASK = 15  # the bits of a number that tell which row of an interleaved strip its top is
MAX_ROWS_OF_ONE_WORD = 64  # up to this size, a set of vertices is one word, and a column one strip
MAX_RANKED = 128  # beyond this many items a radix sort is faster than rank_sort
DIGIT_BITS = 8  # of the radix sort

QUOTIENT_BITS = 42
MAX_ROWS = 1 << QUOTIENT_BITS // 3  # up to this size, vertices() divides every index exactly


@entry_point
def slice_size(size):
    """Return how many elements the first slice should have: about as many as a birth needs on size × size maps."""
    return 14 + size // 4


class Scratch(NamedTuple):
    """Arrays that one thread needs to process maps of one size and type; nothing in them outlives a map.

    Attributes:
        strip_tops: The largest element of each strip, (strips,). For interleaved units, (strips · blocks · 2 · BLOCK,):
            for each block of units the largest elements, and the second largest ones, whose lowest bits (ROW_MASK) are
            replaced by the row of the strip in which the largest is.
        column_tops: (columns · blocks · BLOCK,), the largest element of each column, if the maps are interleaved and a
            column is more than one strip; otherwise empty.
        tops: (1 or LANES, columns), the largest element of each column, of one unit or some interleaved ones.
        lows: (blocks · BLOCK,), the smallest element of each of the interleaved units.
        columns: (columns + 1,) int32, the columns that have elements of a slice.
        strips: (strips + 1,) int32, the strips that have elements of a slice.
        sample: (at most MAX_SAMPLED,), every n-th element.
        order: (m²,) int64, the items of a slice, sorted.
        spare: (2 · m² + 2,) int64, the items of a slice, unsorted.
        neighbours: (m,) or (m, words) uint64; bit b of row a is set if {a, b} is an edge, or a = b.
        later_neighbours: The same for the graph with all edges of the current group.
        labels: (m,) int32, equal for two vertices of one component.
        later_labels: (m,) int32, the same for the graph with later edges.
        reached: (words,) uint64, a set of vertices.
        degrees: (m,) int32, the number of each vertex's edges.
        pending: (m², 2) int32, edges of the current group that may not join.
        unknowns: (m, m) int32, symmetric: the number of the unknown f(a, b) of eq. 1; 0 = known to be zero.
    """

    strip_tops: np.ndarray
    column_tops: np.ndarray
    tops: np.ndarray
    lows: np.ndarray
    columns: np.ndarray
    strips: np.ndarray
    sample: np.ndarray
    order: np.ndarray
    spare: np.ndarray
    neighbours: np.ndarray
    later_neighbours: np.ndarray
    labels: np.ndarray
    later_labels: np.ndarray
    reached: np.ndarray
    degrees: np.ndarray
    pending: np.ndarray
    unknowns: np.ndarray


def strip_counts(size: int, is_interleaved: bool) -> tuple[int, int]:
    """Return how many strips a map of size × size elements is divided into, and how many columns the strips are."""
    n_elements = size * size
    elements_per_wanted = n_elements / (1.5 * slice_size(size))
    if is_interleaved:
        # Each row is a place from which the memory is read in order; with 16 of them it is read half as fast.
        n_rows = STRIP_ROWS if size <= 20 else 2 * STRIP_ROWS
    else:
        n_rows = max(1, round(elements_per_wanted ** (1 / 2 if size <= MAX_ROWS_OF_ONE_WORD else 1 / 3)))
    n_strips = -(-n_elements // n_rows)
    if size <= MAX_ROWS_OF_ONE_WORD:
        return n_strips, n_strips
    return n_strips, min(n_strips, math.ceil(elements_per_wanted ** (1 / 3) * 1.5 * slice_size(size)))


def make_scratch(n_elements: int, dtype: np.dtype, n_units: int = 1) -> Scratch:
    """Return scratch arrays for maps of m² elements that are given as integers of this type.

    Args:
        n_elements: m².
        dtype: Of the integers.
        n_units: The largest number of interleaved units that are read at once; 1 if the maps are not interleaved.
    """
    size = math.isqrt(n_elements)
    is_interleaved = n_units > 1
    n_strips, n_columns = strip_counts(size, is_interleaved)
    n_words = (size + 63) // 64
    width = strip_width(n_units)
    return Scratch(
        strip_tops=aligned_empty((n_strips * (width if is_interleaved else 1),), dtype),
        column_tops=aligned_empty((n_columns * width // 2 if is_interleaved and n_columns < n_strips else 0,), dtype),
        tops=aligned_empty((LANES if is_interleaved else 1, n_columns), dtype),
        lows=aligned_empty((width // 2,), dtype),
        columns=np.empty(n_columns + 1, np.int32),
        strips=np.empty(n_strips + 1, np.int32),
        sample=np.empty(len(range(0, n_elements, sample_step(n_elements))), dtype),
        order=np.empty(n_elements, np.int64),
        spare=np.empty(2 * n_elements + 2, np.int64),
        neighbours=np.empty(size if n_words == 1 else (size, n_words), np.uint64),
        later_neighbours=np.empty(size if n_words == 1 else (size, n_words), np.uint64),
        labels=np.empty(size, np.int32),
        later_labels=np.empty(size, np.int32),
        reached=np.empty(n_words, np.uint64),
        degrees=np.empty(size, np.int32),
        pending=np.empty((n_elements, 2), np.int32),
        unknowns=np.zeros((size, size), np.int32),
    )


@entry_point
def strip_width(n_units):
    """Return the length of a strip's tops of interleaved units: two numbers a unit, in whole blocks."""
    return 2 * BLOCK * -(-n_units // BLOCK)


@entry_point
def fill_births(  # noqa: PLR0912, PLR0915 - calls with arrays are slow
    bits, starts, n_units, stride, infinity, by_edges, scratch, births
):
    """Write each map's birth time to `births`: 0 for none, NOT_FINITE for a map with NaN or an infinite element.

    The elements enter in ever lower slices, each sorted by itself, because a birth usually needs only the first few.
    The elements of the lowest value never enter: with them the graph is complete, and has no hole.

    Args:
        bits: 1-d int16 or int32, the bit patterns of IEEE numbers.
        starts: int64, (maps,): where each map begins; or (images,): where the first map of each image begins.
        n_units: 1; or the interleaved units of each image, whose maps begin at consecutive places.
        stride: Distance between two elements of a map, row after row: 1; or more, for interleaved units.
        infinity: The bit pattern of +∞.
        by_edges: Whether births are numbered by the edge weights, not by the elements.
        scratch: From make_scratch, for maps of this size and type and at least n_units units.
        births: Output, (maps,) or (images · n_units,) int32.
    """
    # Unpacked once: taking an array out of a tuple, or passing it to a function, costs as much as many edges.
    strip_tops, column_tops, tops_of_lanes, lows = scratch.strip_tops, scratch.column_tops, scratch.tops, scratch.lows
    columns, strips, sample, order, spare = (
        scratch.columns,
        scratch.strips,
        scratch.sample,
        scratch.order,
        scratch.spare,
    )
    neighbours, labels, degrees = scratch.neighbours, scratch.labels, scratch.degrees
    later_neighbours, reached = scratch.later_neighbours, scratch.reached
    pending, unknowns = scratch.pending, scratch.unknowns
    size, n_strips, n_columns = len(labels), len(strips) - 1, len(columns) - 1
    is_interleaved, n_elements = stride > 1, size * size
    width = strip_width(n_units) if is_interleaved else 1
    unit, image, offset, tops = -1, 0, 0, tops_of_lanes[0]
    for i in range(len(births)):
        unit += 1
        if unit == n_units:
            unit, image = 0, image + 1
        start = starts[image] + unit
        if is_interleaved:
            if unit == 0:
                numbers = n_elements, n_strips, n_columns
                fill_interleaved_tops(bits, start, stride, n_units, numbers, strip_tops, column_tops, lows)
            offset = offset_of(unit)
            if unit % LANES == 0:
                n_lanes = min(LANES, n_units - unit)
                if len(column_tops) > 0:
                    transpose(column_tops, unit, width // 2, n_lanes, tops_of_lanes)
                else:
                    transpose(strip_tops, offset, width, n_lanes, tops_of_lanes)
            tops = tops_of_lanes[unit % LANES]
            lowest, highest = lows[unit], largest(tops)
        else:
            lowest, highest = fill_tops(bits, start, n_elements, strip_tops, tops)
        births[i] = 0
        if lowest <= -infinity or highest >= infinity:
            births[i] = NOT_FINITE
            continue
        # A slice holds the elements with floor ≤ key < ceiling, and none goes below last_floor.
        ceiling, last_floor = np.int64(highest) + 1, np.int64(lowest) + 1
        n_slice = min(slice_size(size), MAX_FIRST_SLICE)
        n_entered = n_values = 0
        clear(neighbours, labels, degrees)
        while ceiling > last_floor:
            values, n_wanted = tops, n_slice
            if n_entered > 0:
                # After that many elements most vertices are connected, and find_later_hole has few pairs to test.
                if n_entered >= size:
                    last_floor = max(last_floor, cone_floor(bits, start, stride, degrees))
                    if last_floor >= ceiling:
                        break
                    position = find_later_hole(bits, start, stride, scratch, last_floor, ceiling)
                    if position == NO_HOLE:
                        break
                    if position >= 0 and not by_edges:
                        least = 1 - (order[position] >> 32)
                        n = pick(tops, columns, strip_tops, offset, width, strips, n_strips, spare, least)
                        births[i] = 1 + count_elements(bits, start, stride, n_elements, strips, n, n_strips, least)
                        break
                # A column may have several elements above a floor, so its top tells ever less about their number.
                n_wanted = min(n_slice, n_columns // 4)
                if n_slice > SLICE_GROWTH * slice_size(size):
                    fill_sample(bits, start, stride, n_elements, sample)
                    values, n_wanted = sample, max(MIN_SAMPLED, n_slice * len(sample) // n_elements)
            floor = choose_floor(values, n_wanted, last_floor, ceiling)
            n_picked = pick(tops, columns, strip_tops, offset, width, strips, n_strips, spare, floor)
            n = 0
            if is_interleaved:
                n, n_picked = gather_tops(strip_tops, offset, width, strips, n_picked, n_strips, spare, floor, ceiling)
            n = gather(bits, start, stride, n_elements, strips, n_picked, n_strips, spare, n, floor, ceiling)
            sort(spare, order, n, 1 - ceiling, bit_length(ceiling - floor - 1))
            n_new_values, group = enter_slice(
                order, n, neighbours, later_neighbours, reached, labels, degrees, pending, unknowns
            )
            n_values += n_new_values
            if group >= 0:
                births[i] = n_values if by_edges else n_entered + group + 1
            if group != NO_HOLE:
                break
            n_entered += n
            ceiling = floor
            n_slice *= SLICE_GROWTH


@entry_point
def fill_ranks(values, ranks):
    """Write the rank of each value within its map, 0, 1, …; the largest integer throughout a map that is not finite.

    Births depend on the order of the elements only, so ranks can replace bit patterns.

    Args:
        values: (maps, m²) float64.
        ranks: Output, (maps, m²) int32.
    """
    for i in range(len(values)):
        order = np.argsort(values[i])
        rank = 0
        for j in range(len(order)):
            if j > 0 and values[i, order[j]] > values[i, order[j - 1]]:
                rank += 1
            ranks[i, order[j]] = rank
        if not np.isfinite(values[i]).all():
            ranks[i] = np.iinfo(np.int32).max


@compiled
def key_at(bits, index):
    """Return an integer in the order of the IEEE numbers, for the one with these bits; −0 and +0 give the same.

    An IEEE number is a sign and a magnitude, so ±magnitude has the numbers' order.
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
        strip_tops: Output, as in Scratch.
        column_tops: Output, as in Scratch; may be empty.
        lows: Output, as in Scratch.
    """
    words, tops, columns, lowest = address_of(bits), address_of(strip_tops), address_of(column_tops), address_of(lows)
    n_elements, n_strips, n_columns = np.uint64(numbers[0]), np.uint64(numbers[1]), np.uint64(numbers[2])
    start, stride, n_units = np.uint64(start), np.uint64(stride), np.uint64(n_units)
    width, n_lanes = np.uint64(strip_width(n_units)), lane_count(words)
    lows[:] = np.iinfo(bits.dtype).max
    for strip in range(n_strips):
        row = 0
        for index in range(strip, n_elements, STRIP_ROWS * n_strips):
            at0 = start + index * stride
            # A row beyond the last one is replaced by the strip's first. That can only make the second largest too
            # large, and the strip is then read again.
            step = n_strips * stride
            at1 = at0 + step if index + n_strips < n_elements else at0
            at2 = at1 + step if index + 2 * n_strips < n_elements else at0
            at3 = at2 + step if index + 3 * n_strips < n_elements else at0
            for unit in range(np.uint64(0), n_units, n_lanes):
                places, n = (at0 + unit, at1 + unit, at2 + unit, at3 + unit), n_units - unit
                merge_rows(words, places, n, row, tops, strip * width + offset_of(unit), lowest, unit)
            row += STRIP_ROWS
        if len(column_tops) > 0:
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
        at: Where the tops of the strip have that of the first unit.
        lows: Address of the lowest keys.
        unit: Number of the first unit.
    """
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
        second = higher(higher(lower(high, before), second), bits_of_either(packed, mask))
        rows = if_greater(high, before, rows, bits_of_both(packed, mask))
        high = higher(high, before)
    store(tops, at, high)
    store(tops, at_second, bits_of_either(bits_of_both(second, fill(words, ~ROW_MASK)), rows))


@compiled
def load_keys(words, at, n):
    """Return the keys of the first n units from a place on, or of as many as there are lanes; see key_at."""
    lanes = load(words, at) if n >= lane_count(words) else load_first(words, at, np.int64(n))
    return if_greater(fill(words, 0), lanes, minus(smallest(words), lanes), lanes)


@compiled
def offset_of(unit):
    """Return where the tops of a strip have the top of an interleaved unit."""
    number = np.uint64(unit)
    return number // np.uint64(BLOCK) * np.uint64(2 * BLOCK) + number % np.uint64(BLOCK)


@compiled
def transpose(columns, first, width, n_lanes, tops):
    """Write the tops of n_lanes units, in columns that are `width` apart, to tops, (LANES, columns)."""
    for column in range(tops.shape[1]):
        for lane in range(n_lanes):
            tops[np.uint64(lane), np.uint64(column)] = columns[np.uint64(column * width + first + lane)]


@compiled
def find_later_hole(bits, start, stride, scratch, last_floor, ceiling):
    """Find the first hole among the elements below the ceiling, without entering them.

    Let W be the edges' weights. An edge {a, b} closes a triangle when it enters if some c has both W(a, c) and
    W(b, c) above W(a, b). All other edges form the relative neighbourhood graph, which contains a maximum spanning
    tree. Its first edge that is not in the tree is the first birth. The edges that have entered already exclude most
    pairs from it.

    Returns:
        The position in `order` of the item that gives the hole; NO_HOLE if there is none; UNSURE if equal weights leave
        it open or too many pairs would have to be tested.
    """
    neighbours, labels, reached = scratch.neighbours, scratch.later_labels, scratch.reached
    size = len(labels)
    n = n_tests = 0
    for a in range(size):
        fill_reached(neighbours, a, reached)
        for i in range(a >> 6, len(reached)):
            far = ~reached[i]
            # For each set bit, from the lowest on.
            while far != 0:
                b = (i << 6) + trailing_zeros(far)
                far &= far - np.uint64(1)
                weight = weight_of(bits, start, stride, size, a, b)
                if weight < last_floor:
                    continue
                n_tests += 1
                if n_tests > MAX_TESTS * size:
                    return UNSURE
                # Equal weights enter together, so which of them closes a triangle depends on the whole group.
                closing = closing_weight(bits, start, stride, size, a, b, weight)
                if closing == weight:
                    return UNSURE
                if closing < weight:
                    scratch.spare[n] = (-np.int64(weight) << 32) | (a * size + b)
                    n += 1
    sort(scratch.spare, scratch.order, n, 1 - ceiling, bit_length(ceiling - last_floor))
    labels[:] = scratch.labels
    # As in Kruskal's algorithm: the first edge within one component is not in the spanning tree.
    for position in range(n):
        a, b = vertices(scratch.order[position], size)
        if labels[a] == labels[b]:
            return position
        unite(labels, a, b)
    return NO_HOLE


@compiled
def fill_reached(neighbours, a, reached):
    """Write the set of vertices b whose pair {a, b} need not be tested: within two edges of a, or b ≤ a."""
    size = len(neighbours)
    for i in range(len(reached)):
        reached[i] = 0
    for i in range(len(reached)):
        near = word(neighbours, a, i)
        while near != 0:
            c = (i << 6) + trailing_zeros(near)
            near &= near - np.uint64(1)
            for j in range(len(reached)):
                reached[j] |= word(neighbours, c, j)
    # All b ≤ a, and the bits beyond the last vertex.
    reached[a >> 6] |= (np.uint64(2) << np.uint64(a & 63)) - np.uint64(1)
    if size & 63:
        reached[size >> 6] |= ~np.uint64(0) << np.uint64(size & 63)


@compiled
def weight_of(bits, start, stride, size, a, b):
    """Return the weight of the edge {a, b}."""
    return max(key_at(bits, start + (a * size + b) * stride), key_at(bits, start + (b * size + a) * stride))


@compiled
def closing_weight(bits, start, stride, size, a, b, enough):
    """Return the weight at which the first triangle on {a, b} has its other two edges.

    If that is above `enough`, any weight above `enough` is returned.
    """
    closing = np.iinfo(bits.dtype).min
    for c in range(size):
        if c not in (a, b):
            one, other = weight_of(bits, start, stride, size, a, c), weight_of(bits, start, stride, size, b, c)
            closing = max(closing, min(one, other))
            if closing > enough:
                break
    return closing


@compiled
def cone_floor(bits, start, stride, degrees):
    """Return a floor below which no element gives a hole.

    It is the smallest key above that of the last edge of the vertex with most neighbours: once this vertex has all
    others as neighbours, the complex is a cone.
    """
    size = len(degrees)
    vertex = np.argmax(degrees)
    last = np.iinfo(bits.dtype).max
    for other in range(size):
        if other != vertex:
            last = min(last, weight_of(bits, start, stride, size, vertex, other))
    return np.int64(last) + 1


@entry_point
def sample_step(n_elements):
    """Return the distance between two elements of the sample."""
    return 1 + n_elements // MAX_SAMPLED


@compiled
def fill_sample(bits, start, stride, n_elements, sample):
    """Write every n-th element to `sample`."""
    step = sample_step(n_elements)
    for i in range(len(sample)):
        sample[i] = key_at(bits, start + i * step * stride)


@compiled
def choose_floor(values, n_wanted, lowest, ceiling):
    """Return a floor such that about n_wanted to 2·n_wanted values are ≥ it and below the ceiling.

    Returns `lowest` if there are at most 2·n_wanted values between it and the ceiling.
    """
    n_above = count(values, ceiling)
    if count(values, lowest) - n_above <= 2 * n_wanted:
        return lowest
    # Floors that many values reach are near the largest value, compared with all numbers between it and the lowest: so
    # steps down that double, and then bisection of the last one.
    step, floor, n = (ceiling - lowest >> 8) + 1, ceiling, 0
    while n < n_wanted and floor > lowest:
        ceiling, floor = floor, max(lowest, floor - step)
        step *= 2
        n = count(values, floor) - n_above
    while n > 2 * n_wanted and ceiling - floor > 1:
        middle = (floor + ceiling) >> 1
        n_middle = count(values, middle) - n_above
        if n_middle < n_wanted:
            ceiling = middle
        else:
            floor, n = middle, n_middle
    return floor


@compiled
def count(values, floor):
    """Return how many values are ≥ the floor."""
    floor, n = values.dtype.type(floor), np.int32(0)
    for i in range(len(values)):
        n = np.int32(n + np.int32(values[i] >= floor))  # in 32 bits, so that a vector counts twice as many
    return np.int64(n)


@compiled
def count_elements(bits, start, stride, n_elements, strips, n_picked, n_strips, floor):
    """Return how many elements of the strips are ≥ the floor."""
    floor = bits.dtype.type(floor)
    n = 0
    for i in range(n_picked):
        for index in range(strips[i], n_elements, n_strips):
            n += key_at(bits, start + index * stride) >= floor
    return n


@compiled
def pick(tops, columns, strip_tops, offset, width, strips, n_strips, spare, floor):
    """Write the strips that have an element ≥ the floor to `strips`, and return their number."""
    # Without branches: each column is written, and the position moves on only if it is wanted. The indices are
    # unsigned because signed ones would be tested for being negative.
    least = tops.dtype.type(floor)
    n_columns = np.uint64(len(tops))
    is_strip = len(tops) == n_strips
    picked = strips if is_strip else columns
    n_picked = np.uint64(0)
    for column in range(n_columns):
        picked[n_picked] = column
        n_picked += np.uint64(tops[column] >= least)
    if is_strip:
        return np.int64(n_picked)
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
def gather_tops(strip_tops, offset, width, strips, n_picked, n_strips, items, floor, ceiling):
    """Write the tops below the ceiling of the interleaved strips that have no second element ≥ the floor to `items`.

    Returns:
        The number of items; and the number of the other strips, which are moved to the front.
    """
    for i in range(n_picked):
        strip = np.uint64(strips[i])
        at = strip * np.uint64(width) + np.uint64(offset)
        packed = np.int64(strip_tops[at + np.uint64(BLOCK)])
        index = strip + np.uint64(packed & ROW_MASK) * np.uint64(n_strips)
        items[2 * i] = (-np.int64(strip_tops[at]) << 32) | np.int64(index)
        items[2 * i + 1] = packed | ROW_MASK  # not below the second largest
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


@compiled
def enter_slice(order, n, neighbours, later_neighbours, reached, labels, degrees, pending, unknowns):
    """Enter the elements of a slice, one group of equal ones after the other, until there is a hole after a group.

    An edge has two elements and enters with the larger one; when the other one enters, the edge exists already.

    Returns:
        The number of groups that brought a new edge; and the position in the slice at which the group with the hole
        begins, or NO_HOLE, or CONE if a vertex has all others as neighbours: a cone has no hole, and stays a cone.
    """
    n_values = i = 0
    counted = (order[0] >> 32) - 1  # the last −key that was counted, at first smaller than any
    while i < n:
        a, b = vertices(order[i], len(labels))
        if adjacent(neighbours, a, b):
            i += 1
            continue
        n_values += order[i] >> 32 != counted
        counted = order[i] >> 32
        # Both conditions are evaluated (|, not `or`): a branch that cannot be predicted costs more.
        if share_a_neighbour(neighbours, a, b) | (labels[a] != labels[b]):
            # connect(), inlined: passing the arrays would cost more than its body.
            add_neighbour(neighbours, a, b)
            add_neighbour(neighbours, b, a)
            degrees[a] += 1
            degrees[b] += 1
            if labels[a] != labels[b]:
                # A vertex without other edges is a component by itself: no pass over the labels is needed.
                if degrees[b] == 1:
                    labels[b] = labels[a]
                elif degrees[a] == 1:
                    labels[a] = labels[b]
                else:
                    unite(labels, a, b)
            if max(degrees[a], degrees[b]) == len(labels) - 1:
                return n_values, CONE
            i += 1
            continue
        # The edge closes no triangle within one component: alone it is a hole, otherwise the group decides.
        begin, end = group_around(order, n, i)
        if i + 1 == end:
            return n_values, begin
        add_group(order, i, end, neighbours, later_neighbours)
        if join_group(neighbours, later_neighbours, reached, labels, degrees):
            return n_values, begin
        n_pending = fill_pending(neighbours, later_neighbours, pending)
        if n_pending > 0 and has_hole(neighbours, labels, degrees, unknowns, pending, n_pending):
            return n_values, begin
        if degrees.max() == len(labels) - 1:
            return n_values, CONE
        i = end
    return n_values, NO_HOLE


@compiled
def group_around(order, n, i):
    """Return where the group of items with the key of the i-th begins and ends."""
    begin, end = i, i + 1
    while begin > 0 and order[begin - 1] >> 32 == order[i] >> 32:
        begin -= 1
    while end < n and order[end] >> 32 == order[i] >> 32:
        end += 1
    return begin, end


@compiled
def add_group(order, begin, end, neighbours, later_neighbours):
    """Write the graph with the edges of a group, which has not entered yet, to `later_neighbours`."""
    later_neighbours[:] = neighbours
    for i in range(begin, end):
        a, b = vertices(order[i], len(neighbours))
        add_neighbour(later_neighbours, a, b)
        add_neighbour(later_neighbours, b, a)


@compiled
def join_group(neighbours, later_neighbours, reached, labels, degrees):
    """Enter all edges of a group that join with H¹ = 0 in some order, and return whether one of the others is a hole.

    Among them an edge is a hole for certain that closes no triangle even when all have entered: its unknown in eq. 1 is
    in no equation. Several passes are needed because an edge that has joined may let another one close a triangle.
    """
    has_joined = True
    while has_joined:
        has_joined = False
        for a in range(len(labels)):
            is_reached_known = False
            for i in range(a >> 6, n_words(neighbours)):
                pending = word(later_neighbours, a, i) & ~word(neighbours, a, i)
                if i == a >> 6:
                    pending &= ~((np.uint64(2) << np.uint64(a & 63)) - np.uint64(1))  # each edge once, as a < b
                if pending == 0:
                    continue
                if not is_reached_known:
                    fill_reached(neighbours, a, reached)
                    is_reached_known = True
                # For each set bit, from the lowest on.
                while pending != 0:
                    b = (i << 6) + trailing_zeros(pending)
                    pending &= pending - np.uint64(1)
                    if (reached[i] >> np.uint64(b & 63)) & np.uint64(1) != 0 or labels[a] != labels[b]:
                        connect(neighbours, labels, degrees, a, b)
                        has_joined = True
                    elif next_common(later_neighbours, a, b, 0) < 0:
                        return True
    return False


@compiled
def fill_pending(neighbours, later_neighbours, pending):
    """Write the edges that have not entered to `pending`, and return their number."""
    n_pending = 0
    for a in range(len(neighbours)):
        for i in range(a >> 6, n_words(neighbours)):
            others = word(later_neighbours, a, i) & ~word(neighbours, a, i)
            while others != 0:
                b = (i << 6) + trailing_zeros(others)
                others &= others - np.uint64(1)
                if a < b:
                    pending[n_pending, 0] = a
                    pending[n_pending, 1] = b
                    n_pending += 1
    return n_pending


@compiled
def vertices(item, size):
    """Return the row and the column of an item's element.

    By a multiplication: a division costs more than all else that is done with most elements.
    """
    index = np.uint64(item & 0xFFFFFFFF)
    row = (index * np.uint64((1 << QUOTIENT_BITS) // size + 1)) >> np.uint64(QUOTIENT_BITS)
    return row, index - row * np.uint64(size)


@compiled
def clear(neighbours, labels, degrees):
    """Remove all edges from the graph."""
    neighbours[:] = 0
    degrees[:] = 0
    for vertex in range(len(labels)):
        labels[vertex] = vertex
        add_neighbour(neighbours, vertex, vertex)


@compiled
def n_words(neighbours):
    """Return how many words a vertex's set of neighbours has; if it is one, the compiler knows."""
    return 1 if neighbours.ndim == 1 else neighbours.shape[1]


@compiled
def word(neighbours, vertex, i):
    """Return the i-th word of a vertex's set of neighbours."""
    return neighbours[vertex] if neighbours.ndim == 1 else neighbours[vertex, i]


@compiled
def add_neighbour(neighbours, a, b):
    """Add b to the neighbours of a."""
    if neighbours.ndim == 1:
        neighbours[a] |= np.uint64(1) << np.uint64(b)
    else:
        neighbours[a, b >> 6] |= np.uint64(1) << np.uint64(b & 63)


@compiled
def adjacent(neighbours, a, b):
    """Return whether {a, b} is an edge, or a = b."""
    return (word(neighbours, a, b >> 6) >> np.uint64(b & 63)) & np.uint64(1) != 0


@compiled
def connect(neighbours, labels, degrees, a, b):
    """Add the edge {a, b}."""
    add_neighbour(neighbours, a, b)
    add_neighbour(neighbours, b, a)
    degrees[a] += 1
    degrees[b] += 1
    if labels[a] != labels[b]:
        unite(labels, a, b)


@compiled
def unite(labels, a, b):
    """Merge the components of a and b."""
    # For so few vertices a vectorised pass is faster than a union–find tree.
    old, new = labels[b], labels[a]
    for vertex in range(len(labels)):
        labels[vertex] = new if labels[vertex] == old else labels[vertex]


@compiled
def share_a_neighbour(neighbours, a, b):
    """Return whether {a, b}, which is not an edge yet, would close a triangle."""
    common = np.uint64(0)
    for i in range(n_words(neighbours)):
        common |= word(neighbours, a, i) & word(neighbours, b, i)
    return common != 0


@compiled
def has_hole(neighbours, labels, degrees, unknowns, pending, n_pending):
    """Add the pending edges, each of which closes a triangle with others, and return whether there is a hole then."""
    number_unknowns(neighbours, labels, degrees, unknowns, pending, n_pending)
    hole = has_nonzero_solution(neighbours, unknowns, pending, n_pending)
    clear_unknowns(unknowns, pending, n_pending)
    return hole


@compiled
def number_unknowns(neighbours, labels, degrees, unknowns, pending, n_pending):
    """Add the pending edges, and number their unknowns from 1 on."""
    for i in range(n_pending):
        a, b = pending[i, 0], pending[i, 1]
        unknowns[a, b] = unknowns[b, a] = i + 1
        connect(neighbours, labels, degrees, a, b)


@compiled
def clear_unknowns(unknowns, pending, n_pending):
    """Set the unknowns of the pending edges back to zero."""
    for i in range(n_pending):
        a, b = pending[i, 0], pending[i, 1]
        unknowns[a, b] = unknowns[b, a] = 0


@compiled
def has_nonzero_solution(neighbours, unknowns, pending, n_pending):
    """Return whether eq. 1 has a solution other than zero."""
    # Most equations identify two unknowns; only what is left needs elimination.
    classes = np.arange(n_pending + 1).astype(np.int32)
    while identify(neighbours, unknowns, pending, n_pending, classes):
        pass
    n_columns = renumber(classes)
    return n_columns > 0 and not is_full_rank(neighbours, unknowns, pending, n_pending, classes, n_columns)


@compiled
def identify(neighbours, unknowns, pending, n_pending, classes):
    """Merge unknowns that one equation shows to be equal, or zero (class 0), and return whether any were merged."""
    merged = False
    for i in range(n_pending):
        a, b = pending[i, 0], pending[i, 1]
        c = next_common(neighbours, a, b, 0)
        while c >= 0:
            x, y, z = equation(unknowns, classes, a, b, c)
            merged |= deduce(classes, x, y, z) or deduce(classes, y, z, x) or deduce(classes, z, x, y)
            c = next_common(neighbours, a, b, c + 1)
    return merged


@compiled
def equation(unknowns, classes, a, b, c):
    """Return the classes of the three unknowns of the triangle {a, b, c}, whose sum is zero."""
    return find_root(classes, unknowns[a, b]), find_root(classes, unknowns[b, c]), find_root(classes, unknowns[a, c])


@compiled
def deduce(classes, x, y, z):
    """Merge what x + y + z = 0 implies, and return whether any were merged.

    Over GF(2), if x = 0 then y = z, and if y = z then x = 0.
    """
    return (x == 0 or y == z) and (merge(classes, y, z) or merge(classes, x, 0))


@compiled
def find_root(classes, unknown):
    """Return the smallest member of a class of unknowns, which represents it (union–find with path halving)."""
    while classes[unknown] != unknown:
        classes[unknown] = classes[classes[unknown]]
        unknown = classes[unknown]
    return unknown


@compiled
def merge(classes, a, b):
    """Merge two classes, and return whether they were different."""
    a, b = find_root(classes, a), find_root(classes, b)
    classes[max(a, b)] = min(a, b)  # so that class 0, which is zero, keeps its number
    return a != b


@compiled
def renumber(classes):
    """Number the classes other than zero 1, 2, …, in place, and return how many there are."""
    n_columns = 0
    for unknown in range(1, len(classes)):
        if classes[unknown] == unknown:
            n_columns += 1
            classes[unknown] = n_columns
        else:
            # Roots come before their members, so the parent has its new number already.
            classes[unknown] = classes[classes[unknown]]
    return n_columns


@compiled
def is_full_rank(neighbours, unknowns, pending, n_pending, columns, n_columns):
    """Return whether the remaining equations, in three different unknowns each, allow only zero.

    By Gaussian elimination over GF(2).

    Args:
        neighbours: The graph with the pending edges.
        unknowns: The number of each pending edge's unknown.
        pending: The pending edges.
        n_pending: How many there are.
        columns: (unknowns + 1,) int32, the class of each unknown; 0 = zero.
        n_columns: How many classes there are besides zero.
    """
    basis = np.zeros((n_columns + 1, (n_columns >> 6) + 1), np.uint64)  # row c: the vector whose first column is c
    rank = 0
    for i in range(n_pending):
        a, b = pending[i, 0], pending[i, 1]
        c = next_common(neighbours, a, b, 0)
        while c >= 0:
            x, y, z = unknowns[a, b], unknowns[b, c], unknowns[a, c]
            # Each triangle once, and only if none of its unknowns is known to be zero.
            if x > y and x > z and columns[x] * columns[y] * columns[z] != 0:
                flip_bit(basis[0], columns[x])
                flip_bit(basis[0], columns[y])
                flip_bit(basis[0], columns[z])
                rank += extend_basis(basis)
                if rank == n_columns:
                    return True
            c = next_common(neighbours, a, b, c + 1)
    return False


@compiled
def flip_bit(vector, column):
    """Add 1 to one column of a vector over GF(2)."""
    vector[column >> 6] ^= np.uint64(1) << np.uint64(column & 63)


@compiled
def extend_basis(basis):
    """Reduce row 0 by the basis in the other rows and move it there.

    Returns:
        1, or 0 if it was a sum of basis vectors.
    """
    vector = basis[0]
    for word in range(len(vector)):
        # Eliminate the columns in rising order until one has no pivot yet.
        while vector[word] != 0:
            column = (word << 6) + trailing_zeros(vector[word])
            pivot = basis[column]
            if pivot[word] == 0:
                pivot[:] = vector
                vector[:] = 0
                return 1
            for later in range(word, len(vector)):
                vector[later] ^= pivot[later]
    return 0


@compiled
def next_common(neighbours, a, b, start):
    """Return the first common neighbour ≥ `start` of the neighbours a and b, −1 if there is none."""
    mask = ~np.uint64(0) << np.uint64(start & 63)
    for i in range(start >> 6, n_words(neighbours)):
        common = word(neighbours, a, i) & word(neighbours, b, i) & mask
        # a and b are in both sets, since each vertex counts as its own neighbour.
        for end in (a, b):
            if end >> 6 == i:
                common &= ~(np.uint64(1) << np.uint64(end & 63))
        if common != 0:
            return (i << 6) + trailing_zeros(common)
        mask = ~np.uint64(0)
    return -1


@compiled
def trailing_zeros(word):
    """Return the position of the lowest set bit."""
    n = 0
    # Halve the word as long as its lower half is zero.
    for step in (32, 16, 8, 4, 2, 1):
        if word & ((np.uint64(1) << np.uint64(step)) - np.uint64(1)) == 0:
            word >>= np.uint64(step)
            n += step
    return n
