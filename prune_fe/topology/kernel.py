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

All compiled functions are in this one file because numba compares only the file of the function that it loads from its
cache: a change in another file, of a function that is called, would go unnoticed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np

NOT_FINITE = -1  # in place of a birth time: the map has NaN or an infinite element
NO_HOLE = -1  # in place of a position in a slice: the slice gives no hole
CONE = -2  # the slice gives no hole, and no later one will
UNSURE = -3  # the remaining elements must enter before it is known

SLICE_GROWTH = 3  # how many times as many elements each slice should have as the one before
MAX_SAMPLED = 1024  # the size of the sample from which the floor of a later slice is chosen
MIN_SAMPLED = 4  # how many elements of the sample the slice should have at least, for a fair estimate
MAX_TESTS = 3  # how many pairs a vertex find_later_hole tests before it gives up
MAX_RANKED = 128  # beyond this many items a radix sort is faster than rank_sort
DIGIT_BITS = 8  # of the radix sort

QUOTIENT_BITS = 42
MAX_ROWS = 1 << QUOTIENT_BITS // 3  # up to this size, vertices() divides every index exactly


def entry_point(function: Callable) -> Callable:
    """Compile a function that Python calls, on its first call, to run without the GIL; cache its code on the disk.

    numba's `parallel=True` is no option: its OpenMP runtime clashes with torch's and dies in forked data loader
    workers.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return numba.njit(nogil=True)(function)


def compiled(function: Callable) -> Callable:
    """Compile a function that only compiled functions call.

    Without a wrapper for Python and a cache entry of its own (the entry point's contains it), it compiles faster.
    """
    return numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)  # type: ignore[call-overload]


@entry_point
def slice_size(size):
    """Return how many elements the first slice should have: about as many as a birth needs on size × size maps."""
    return 14 + size // 4


class Scratch(NamedTuple):
    """Arrays that one thread needs to process maps of one size and type; nothing in them outlives a map.

    Attributes:
        keys: (m²,), the map's elements as integers in their order, unless they are in order already.
        tops: (columns,), the largest element of each column, when the elements are laid out in rows of this length.
        picked: (columns + 1,) int32, the columns that `gather` reads.
        sample: (at most MAX_SAMPLED,), every n-th element.
        order: (m²,) int64, the items of a slice, sorted.
        spare: (m² + 1,) int64, the items of a slice, unsorted.
        neighbours: (m,) or (m, words) uint64; bit b of row a is set if {a, b} is an edge, or a = b.
        labels: (m,) int32, equal for two vertices of one component.
        later_labels: (m,) int32, the same for the graph with later edges.
        reached: (words,) uint64, a set of vertices.
        degrees: (m,) int32, the number of each vertex's edges.
        pending: (m², 2) int32, edges of the current group that may not join yet.
        unknowns: (m, m) int32, symmetric: the number of the unknown f(a, b) of eq. 1; 0 = known to be zero.
    """

    keys: np.ndarray
    tops: np.ndarray
    picked: np.ndarray
    sample: np.ndarray
    order: np.ndarray
    spare: np.ndarray
    neighbours: np.ndarray
    labels: np.ndarray
    later_labels: np.ndarray
    reached: np.ndarray
    degrees: np.ndarray
    pending: np.ndarray
    unknowns: np.ndarray


def make_scratch(n_elements: int, dtype: np.dtype) -> Scratch:
    """Return scratch arrays for maps of m² elements that are given as integers of this type."""
    size = math.isqrt(n_elements)
    n_rows = max(1, round(math.sqrt(n_elements / (1.5 * slice_size(size)))))
    n_columns = -(-n_elements // n_rows)
    n_words = (size + 63) // 64
    return Scratch(
        keys=np.empty(n_elements, dtype),
        tops=np.empty(n_columns, dtype),
        picked=np.empty(n_columns + 1, np.int32),
        sample=np.empty(len(range(0, n_elements, sample_step(n_elements))), dtype),
        order=np.empty(n_elements, np.int64),
        spare=np.empty(n_elements + 1, np.int64),
        neighbours=np.empty(size if n_words == 1 else (size, n_words), np.uint64),
        labels=np.empty(size, np.int32),
        later_labels=np.empty(size, np.int32),
        reached=np.empty(n_words, np.uint64),
        degrees=np.empty(size, np.int32),
        pending=np.empty((n_elements, 2), np.int32),
        unknowns=np.zeros((size, size), np.int32),
    )


@entry_point
def fill_births(bits, infinity, by_edges, scratch, births):
    """Write each map's birth time to `births`: 0 for none, NOT_FINITE for a map with NaN or an infinite element.

    The elements enter in ever lower slices, each sorted by itself, because a birth usually needs only the first few.
    The elements of the lowest value never enter: with them the graph is complete, and has no hole.

    Args:
        bits: (maps, m²) int16 or int32, the bit patterns of IEEE numbers.
        infinity: The bit pattern of +∞.
        by_edges: Whether births are numbered by the edge weights, not by the elements.
        scratch: From make_scratch, for maps of this size and type.
        births: Output, (maps,) int32.
    """
    # Unpacked once: taking an array out of a tuple, or passing it to a function, costs as much as many edges.
    tops, picked, sample, order, spare = scratch.tops, scratch.picked, scratch.sample, scratch.order, scratch.spare
    neighbours, labels, degrees = scratch.neighbours, scratch.labels, scratch.degrees
    pending, unknowns = scratch.pending, scratch.unknowns
    for i in range(len(bits)):
        keys = bits[i]
        lowest, highest = fill_tops(keys, tops)
        # Bit patterns of numbers ≥ 0, as after a ReLU, are in the order of the numbers already.
        if lowest < 0:
            fill_keys(keys, scratch.keys)
            keys = scratch.keys
            lowest, highest = fill_tops(keys, tops)
        births[i] = 0
        if lowest <= -infinity or highest >= infinity:
            births[i] = NOT_FINITE
            continue
        # A slice holds the elements with floor ≤ key < ceiling, and none goes below last_floor.
        ceiling, last_floor = np.int64(highest) + 1, np.int64(lowest) + 1
        n_slice = slice_size(len(labels))
        n_entered = n_values = 0
        clear(neighbours, labels, degrees)
        while ceiling > last_floor:
            if n_entered == 0:
                floor = choose_floor(tops, n_slice, last_floor, ceiling)
            else:
                last_floor = max(last_floor, cone_floor(keys, degrees))
                if last_floor >= ceiling:
                    break
                # After that many elements most vertices are connected, and find_later_hole has few pairs to test.
                if n_entered >= len(labels):
                    position = find_later_hole(keys, scratch, last_floor, ceiling)
                    if position == NO_HOLE:
                        break
                    if position >= 0 and not by_edges:
                        births[i] = 1 + count(keys, 1 - (order[position] >> 32))
                        break
                # The tops no longer tell how many elements are above a floor: a column may have several of them.
                fill_sample(keys, sample)
                n_wanted = max(MIN_SAMPLED, n_slice * len(sample) // len(keys))
                floor = choose_floor(sample, n_wanted, last_floor, ceiling)
            n = gather(keys, tops, picked, spare, floor, ceiling)
            sort(spare, order, n, 1 - ceiling, bit_length(ceiling - floor - 1))
            n_new_values, group = enter_slice(order, n, neighbours, labels, degrees, pending, unknowns)
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
def fill_keys(bits, keys):
    """Write integers in the order of the IEEE numbers with these bits to `keys`; −0 and +0 give the same.

    An IEEE number is a sign and a magnitude, so ±magnitude has the numbers' order.
    """
    largest = np.iinfo(bits.dtype).max
    for i in range(len(bits)):
        keys[i] = bits[i] if bits[i] >= 0 else -(bits[i] & largest)


@compiled
def fill_tops(keys, tops):
    """Write the largest key of each column to `tops`, and return the lowest and the highest key of the map.

    For most maps this is the only pass over all elements.
    """
    n_columns = len(tops)
    lowest = keys[0]
    for column in range(n_columns):
        tops[column] = keys[column]
        lowest = min(lowest, keys[column])
    for start in range(n_columns, len(keys), n_columns):
        for column in range(min(n_columns, len(keys) - start)):
            key = keys[np.uint64(start + column)]  # a loop with a signed index is not vectorised
            tops[column] = max(tops[column], key)
            lowest = min(lowest, key)
    highest = tops[0]
    for column in range(n_columns):
        highest = max(highest, tops[column])
    return lowest, highest


@compiled
def find_later_hole(keys, scratch, last_floor, ceiling):
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
                weight = weight_of(keys, size, a, b)
                if weight < last_floor:
                    continue
                n_tests += 1
                if n_tests > MAX_TESTS * size:
                    return UNSURE
                # Equal weights enter together, so which of them closes a triangle depends on the whole group.
                closing = closing_weight(keys, size, a, b, weight)
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
def weight_of(keys, size, a, b):
    """Return the weight of the edge {a, b}."""
    return max(keys[a * size + b], keys[b * size + a])


@compiled
def closing_weight(keys, size, a, b, enough):
    """Return the weight at which the first triangle on {a, b} has its other two edges.

    If that is above `enough`, any weight above `enough` is returned.
    """
    closing = np.iinfo(keys.dtype).min
    for c in range(size):
        if c not in (a, b):
            closing = max(closing, min(weight_of(keys, size, a, c), weight_of(keys, size, b, c)))
            if closing > enough:
                break
    return closing


@compiled
def cone_floor(keys, degrees):
    """Return a floor below which no element gives a hole.

    It is the smallest key above that of the last edge of the vertex with most neighbours: once this vertex has all
    others as neighbours, the complex is a cone.
    """
    size = len(degrees)
    vertex = np.argmax(degrees)
    last = np.iinfo(keys.dtype).max
    for other in range(size):
        if other != vertex:
            last = min(last, max(keys[vertex * size + other], keys[other * size + vertex]))
    return np.int64(last) + 1


@entry_point
def sample_step(n_elements):
    """Return the distance between two elements of the sample."""
    return 1 + n_elements // MAX_SAMPLED


@compiled
def fill_sample(keys, sample):
    """Write every n-th element to `sample`."""
    step = sample_step(len(keys))
    for i in range(len(sample)):
        sample[i] = keys[i * step]


@compiled
def choose_floor(values, n_wanted, lowest, ceiling):
    """Return a floor such that about n_wanted to 2·n_wanted values are ≥ it and below the ceiling.

    Returns `lowest` if there are at most 2·n_wanted values between it and the ceiling.
    """
    n_above = count(values, ceiling)
    if count(values, lowest) - n_above <= 2 * n_wanted:
        return lowest
    # Bisection: the number of values ≥ the middle falls as the middle rises.
    floor = lowest
    while ceiling - floor > 1:
        middle = (floor + ceiling) >> 1
        n = count(values, middle) - n_above
        if n < n_wanted:
            ceiling = middle
        else:
            floor = middle
            if n <= 2 * n_wanted:
                break
    return floor


@compiled
def count(values, floor):
    """Return how many values are ≥ the floor."""
    floor = values.dtype.type(floor)
    n = 0
    for i in range(len(values)):
        n += values[i] >= floor
    return n


@compiled
def gather(keys, tops, picked, items, floor, ceiling):
    """Write the elements with floor ≤ key < ceiling to `items`, and return their number.

    An item is −key in the upper 32 bits and the element's index in the lower 32.
    """
    # Without branches: each element is written, and the position moves on only if it is wanted. The indices are
    # unsigned because signed ones would be tested for being negative.
    least, most = tops.dtype.type(floor), tops.dtype.type(ceiling - 1)
    n_keys, n_columns = np.uint64(len(keys)), np.uint64(len(tops))
    n_picked = np.uint64(0)
    for column in range(n_columns):
        picked[n_picked] = column
        n_picked += np.uint64(tops[column] >= least)
    n = np.uint64(0)
    for i in range(n_picked):
        index = np.uint64(picked[i])
        while index < n_keys:
            key = keys[index]
            items[n] = (-np.int64(key) << 32) | np.int64(index)
            n += np.uint64((least <= key) & (key <= most))
            index += n_columns
    return np.int64(n)


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
def enter_slice(order, n, neighbours, labels, degrees, pending, unknowns):
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
        if i + 1 == end or group_has_hole(order, i, end, neighbours, labels, degrees, pending, unknowns):
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
def group_has_hole(order, begin, end, neighbours, labels, degrees, pending, unknowns):
    """Enter the rest of a group whose first edge may not join, and return whether there is a hole afterwards."""
    n_pending = 0
    for i in range(begin, end):
        a, b = vertices(order[i], len(labels))
        if not adjacent(neighbours, a, b) and not try_to_join(neighbours, labels, degrees, a, b):
            n_pending = append_pending(pending, n_pending, a, b)
    n_pending = join_pending(neighbours, labels, degrees, pending, n_pending)
    return n_pending > 0 and has_hole(neighbours, labels, degrees, unknowns, pending, n_pending)


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
def try_to_join(neighbours, labels, degrees, a, b):
    """Add the edge {a, b} if H¹ certainly stays zero, and return whether it was added."""
    allowed = share_a_neighbour(neighbours, a, b) | (labels[a] != labels[b])
    if allowed:
        connect(neighbours, labels, degrees, a, b)
    return allowed


@compiled
def append_pending(pending, n_pending, a, b):
    """Append {a, b} to the pending edges, and return their new number."""
    pending[n_pending, 0] = a
    pending[n_pending, 1] = b
    return n_pending + 1


@compiled
def join_pending(neighbours, labels, degrees, pending, n_pending):
    """Add pending edges until none can join any more, and return how many are still pending.

    Several passes are needed because an edge that has joined may let another one close a triangle.
    """
    before = n_pending + 1
    while 0 < n_pending < before:
        before, n_pending = n_pending, 0
        for i in range(before):
            a, b = pending[i, 0], pending[i, 1]
            # An edge whose two elements are equal is pending twice, and may exist already.
            if not adjacent(neighbours, a, b) and not try_to_join(neighbours, labels, degrees, a, b):
                n_pending = append_pending(pending, n_pending, a, b)
    return n_pending


@compiled
def has_hole(neighbours, labels, degrees, unknowns, pending, n_pending):
    """Add the pending edges, none of which can join by itself, and return whether there is a hole afterwards."""
    n_unknowns = number_unknowns(neighbours, labels, degrees, unknowns, pending, n_pending)
    # A single edge that may not join closes no triangle, so its unknown is free.
    hole = (
        n_unknowns == 1
        or has_free_edge(neighbours, pending, n_pending)
        or has_nonzero_solution(neighbours, unknowns, pending, n_pending, n_unknowns)
    )
    clear_unknowns(unknowns, pending, n_pending)
    return hole


@compiled
def number_unknowns(neighbours, labels, degrees, unknowns, pending, n_pending):
    """Add the pending edges, number their unknowns 1, 2, …, and return how many unknowns there are."""
    n_unknowns = 0
    for i in range(n_pending):
        a, b = pending[i, 0], pending[i, 1]
        if not adjacent(neighbours, a, b):
            n_unknowns += 1
            unknowns[a, b] = unknowns[b, a] = n_unknowns
            connect(neighbours, labels, degrees, a, b)
    return n_unknowns


@compiled
def clear_unknowns(unknowns, pending, n_pending):
    """Set the unknowns of the pending edges back to zero."""
    for i in range(n_pending):
        a, b = pending[i, 0], pending[i, 1]
        unknowns[a, b] = unknowns[b, a] = 0


@compiled
def has_free_edge(neighbours, pending, n_pending):
    """Return whether some pending edge closes no triangle: its unknown is in no equation."""
    free = False
    for i in range(n_pending):
        free |= next_common(neighbours, pending[i, 0], pending[i, 1], 0) < 0
    return free


@compiled
def has_nonzero_solution(neighbours, unknowns, pending, n_pending, n_unknowns):
    """Return whether eq. 1 has a solution other than zero."""
    # Most equations identify two unknowns; only what is left needs elimination.
    classes = np.arange(n_unknowns + 1).astype(np.int32)
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
