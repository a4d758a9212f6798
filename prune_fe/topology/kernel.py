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

strips.py reads the maps, graph.py has the graph, and equal_edges.py the linear system.
"""

from typing import NamedTuple

import numpy as np

from prune_fe.topology.compiling import aligned_empty, compiled, inlined
from prune_fe.topology.equal_edges import add_group, gives_hole, group_around
from prune_fe.topology.graph import (
    add_neighbour,
    adjacent,
    clear,
    fill_reached,
    hub,
    share_a_neighbour,
    unite,
    vertices,
)
from prune_fe.topology.lanes import address_of, lane_count, trailing_zeros
from prune_fe.topology.sorting import bit_length, sort
from prune_fe.topology.strips import (
    count_elements,
    fill_interleaved_tops,
    fill_tops,
    gather,
    gather_tops,
    key_at,
    largest,
    offset_of,
    pick,
    slice_size,
    strip_counts,
    strip_width,
    tops_by_unit,
)

NOT_FINITE = -1  # in place of a birth time: the map has NaN or an infinite element
NO_HOLE = -1  # in place of a position in a slice: the slice gives no hole
CONE = -2  # the slice gives no hole, and no later one will
UNSURE = -3  # the remaining elements must enter before it is known
MAX_FIRST_SLICE = 42  # births in large maps of trained networks need fewer elements than in random maps
SLICE_GROWTH = 1.5  # how many times as many elements a slice should have as the one before
LARGE_SLICE = 3  # a slice that should have more than this, times slice_size(), is large: its floor is from a sample
LARGE_GROWTH = 3  # how many times as many elements a slice should have as a large one before
MAX_SAMPLED = 1024  # the size of the sample from which the floor of a large slice is chosen
MIN_SAMPLED = 4  # how many elements of the sample the slice should have at least, for a fair estimate
EQUAL_STRIPS = 32  # how many strips enter_equal reads first, since a few of them may give a cone already
MAX_PAIRS, MAX_TESTS = 8, 3  # find_later_hole gives up if there are more pairs a vertex to be read, or to be tested


class Scratch(NamedTuple):
    """Arrays that one thread needs to process maps of one size and type; nothing in them outlives a map.

    Attributes:
        strip_tops: The largest element of each strip, (strips,). For interleaved units, (strips · blocks · 2 · BLOCK,):
            for each block of units the largest elements, and a bound of the second largest, see merge_rows.
        column_tops: (columns · blocks · BLOCK,), the largest element of each column, if the maps are interleaved and a
            column is more than one strip; otherwise empty.
        tops: (1 or lanes, columns), the largest element of each column, of one unit or some interleaved ones.
        lows: (blocks · BLOCK,), the smallest element of each of the interleaved units.
        columns: (columns + 1,) int32, the columns that have elements of a slice.
        strips: (strips + 1,) int32, the strips that have elements of a slice.
        sample: (at most MAX_SAMPLED,), every n-th element.
        order: (m²,) int64, the items of a slice, sorted.
        spare: (2 · m² + 2,) int64, the items of a slice, unsorted, or what has been read to choose them.
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


@compiled
def make_scratch(size, like, n_units, neighbours):
    """Allocate the scratch arrays of one thread for maps of one size and type.

    Args:
        size: Rows of a map.
        like: An array of integers of the type in which the maps are given.
        n_units: The largest number of interleaved units that are read at once; 1 if the maps are not interleaved.
        neighbours: The array of this name, in one of its two shapes.
    """
    n_elements, is_interleaved = size * size, n_units > 1
    n_strips, n_columns = strip_counts(size, is_interleaved)
    # numba has no conditions inside a call with that many keywords.
    width, n_rows = (strip_width(n_units), np.int64(lane_count(address_of(like)))) if is_interleaved else (1, 1)
    n_merged = n_columns if is_interleaved and n_columns < n_strips else 0
    return Scratch(
        strip_tops=aligned_empty(n_strips * width, like),
        column_tops=aligned_empty(n_merged * width // 2, like),
        tops=aligned_empty(n_rows * n_columns, like).reshape((n_rows, n_columns)),
        lows=aligned_empty(width // 2, like),
        columns=np.empty(n_columns + 1, np.int32),
        strips=np.empty(n_strips + 1, np.int32),
        sample=np.empty(-(-n_elements // sample_step(n_elements)), like.dtype),
        order=np.empty(n_elements, np.int64),
        spare=np.empty(2 * n_elements + 2, np.int64),
        neighbours=neighbours,
        later_neighbours=np.empty_like(neighbours),
        labels=np.empty(size, np.int32),
        later_labels=np.empty(size, np.int32),
        reached=np.empty((size + 63) // 64, np.uint64),
        degrees=np.empty(size, np.int32),
        pending=np.empty((n_elements, 2), np.int32),
        unknowns=np.zeros((size, size), np.int32),
    )


@inlined
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
    later_neighbours = scratch.later_neighbours
    pending, unknowns = scratch.pending, scratch.unknowns
    size, n_strips, n_columns = len(labels), len(strips) - 1, len(columns) - 1
    is_interleaved, n_elements = stride > 1, size * size
    width = strip_width(n_units) if is_interleaved else 1
    unit, image, offset, tops, n_lanes = -1, 0, 0, tops_of_lanes[0], len(tops_of_lanes)
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
            if unit % n_lanes == 0:
                if len(column_tops) > 0:
                    tops_by_unit(column_tops, unit, width // 2, tops_of_lanes)
                else:
                    tops_by_unit(strip_tops, offset, width, tops_of_lanes)
            tops = tops_of_lanes[unit % n_lanes]
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
            values, n_wanted, is_large = tops, n_slice, n_slice > LARGE_SLICE * slice_size(size)
            if n_entered > 0:
                # After that many elements most vertices are connected, and find_later_hole has few pairs to test.
                if n_entered >= size:
                    last_floor = max(last_floor, cone_floor(bits, start, stride, neighbours, degrees))
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
                if is_large:
                    fill_sample(bits, start, stride, n_elements, sample)
                    values, n_wanted = sample, max(MIN_SAMPLED, n_slice * len(sample) // n_elements)
            floor = choose_floor(values, n_wanted, last_floor, ceiling)
            n_picked = pick(tops, columns, strip_tops, offset, width, strips, n_strips, spare, floor)
            n = 0
            if is_interleaved:
                n, n_picked = gather_tops(strip_tops, offset, width, strips, n_picked, n_strips, spare, floor, ceiling)
            if floor == ceiling - 1:  # All elements of the slice are equal.
                n, n_new_values, group = enter_equal(bits, start, stride, scratch, n, n_picked, floor)
            else:
                n = gather(bits, start, stride, n_elements, strips, n_picked, n_strips, spare, n, floor, ceiling)
                sort(spare, order, n, 1 - ceiling, bit_length(ceiling - floor - 1))
                n_new_values, group = enter_slice(
                    order, n, neighbours, later_neighbours, labels, degrees, pending, unknowns
                )
            n_values += n_new_values
            if group >= 0:
                births[i] = n_values if by_edges else n_entered + group + 1
            if group != NO_HOLE:
                break
            n_entered += n
            ceiling = floor
            n_slice = np.int64(n_slice * (LARGE_GROWTH if is_large else SLICE_GROWTH))


@compiled
def find_later_hole(bits, start, stride, scratch, last_floor, ceiling):
    """Find the first hole among the elements below the ceiling, without entering them.

    Let W be the edges' weights. An edge {a, b} closes a triangle when it enters if some c has both W(a, c) and
    W(b, c) above W(a, b). All other edges form the relative neighbourhood graph, which contains a maximum spanning
    tree. Its first edge that is not in the tree is the first birth. The edges that have entered already exclude most
    pairs from it.

    Returns:
        The position in `order` of the item that gives the hole; NO_HOLE if there is none; UNSURE if equal weights leave
        it open or too many pairs would have to be read or tested.
    """
    neighbours, labels, reached = scratch.neighbours, scratch.later_labels, scratch.reached
    items, size = scratch.spare, len(labels)
    n_far = n_tests = n = 0
    for a in range(size):
        # The elements of each pair are anywhere in the map, and read so slowly that it is faster to enter more edges.
        if n_far > MAX_PAIRS * size:
            return UNSURE
        fill_reached(neighbours, a, reached)
        for i in range(a >> 6, len(reached)):
            far = ~reached[i]
            # For each set bit, from the lowest on.
            while far != 0:
                items[n_far] = a * size + (i << 6) + trailing_zeros(far)
                n_far += 1
                far &= far - np.uint64(1)
    # Nothing else in this loop, so that the elements, which are far apart, are read at the same time.
    for i in range(n_far):
        a, b = vertices(items[i], size)
        weight = np.int64(weight_of(bits, start, stride, size, a, b))
        items[n_tests] = (-weight << 32) | items[i]
        n_tests += weight >= last_floor
    if n_tests > MAX_TESTS * size:
        return UNSURE
    for i in range(n_tests):
        a, b = vertices(items[i], size)
        weight = -(items[i] >> 32)
        # Equal weights enter together, so which of them closes a triangle depends on the whole group.
        closing = closing_weight(bits, start, stride, size, a, b, weight)
        if closing == weight:
            return UNSURE
        items[n] = items[i]
        n += closing < weight
    sort(items, scratch.order, n, 1 - ceiling, bit_length(ceiling - last_floor))
    labels[:] = scratch.labels
    # As in Kruskal's algorithm: the first edge within one component is not in the spanning tree.
    for position in range(n):
        a, b = vertices(scratch.order[position], size)
        if labels[a] == labels[b]:
            return position
        unite(labels, a, b)
    return NO_HOLE


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
def cone_floor(bits, start, stride, neighbours, degrees):
    """Return a floor below which no element gives a hole.

    It is the smallest key above that of the last edge of the vertex with most neighbours: once this vertex has all
    others as neighbours, the complex is a cone.
    """
    size = len(degrees)
    vertex = np.argmax(degrees)
    last = np.iinfo(bits.dtype).max
    for other in range(size):
        # The edges that have entered are above all others.
        if not adjacent(neighbours, vertex, other):
            last = min(last, weight_of(bits, start, stride, size, vertex, other))
    return np.int64(last) + 1


@compiled
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
def enter_slice(order, n, neighbours, later_neighbours, labels, degrees, pending, unknowns):
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
        if gives_hole(neighbours, later_neighbours, labels, degrees, pending, unknowns):
            return n_values, begin
        if degrees.max() == len(labels) - 1:
            return n_values, CONE
        i = end
    return n_values, NO_HOLE


@compiled
def enter_equal(bits, start, stride, scratch, n, n_picked, key):
    """Enter the elements of one key, without sorting them, and stop early if one vertex has all others as neighbours.

    Args:
        bits: The bit patterns.
        start: Where the map begins.
        stride: Distance between two elements of the map.
        scratch: From make_scratch, with some items of this key in `spare` and the strips of the others in `strips`.
        n: Number of items in `spare`.
        n_picked: Number of strips in `strips`.
        key: The key of all these elements. The elements with larger keys have entered.

    Returns:
        The number of elements read; 1 if they brought a new edge, otherwise 0; and 0 if they gave a hole, else NO_HOLE
        or CONE, as in `enter_slice`.
    """
    items, strips, n_strips = scratch.spare, scratch.strips, len(scratch.strips) - 1
    neighbours, later_neighbours = scratch.neighbours, scratch.later_neighbours
    labels, degrees = scratch.labels, scratch.degrees
    size, n_elements = len(labels), len(scratch.order)
    later_neighbours[:] = neighbours
    total = n_read = 0
    while True:
        total += n
        for i in range(n):
            a, b = vertices(items[i], size)
            add_neighbour(later_neighbours, a, b)
            add_neighbour(later_neighbours, b, a)
        if n > 0 and hub(later_neighbours)[1] == size:
            return total, 1, CONE
        if n_read == n_picked:
            break
        # Ever more, so that `hub` is called a few times only.
        picked = strips[n_read : min(max(EQUAL_STRIPS, 2 * n_read), n_picked)]
        n = gather(bits, start, stride, n_elements, picked, len(picked), n_strips, items, 0, key, key + 1)
        n_read += len(picked)
    is_new = int((later_neighbours != neighbours).any())
    has_hole = is_new and gives_hole(neighbours, later_neighbours, labels, degrees, scratch.pending, scratch.unknowns)
    return total, is_new, 0 if has_hole else NO_HOLE
