"""The first birth of many maps, compiled: elements in falling order, groups of equal ones, holes decided exactly.

Why no homology need be computed. Let Y be a graph whose clique complex has H¹ = 0 (coefficients in GF(2), so H¹ = 0
just when H₁ = 0), and let K be Y plus some edges P, each within one component of Y. A cocycle f of K is a coboundary
on Y; subtract that coboundary, and f is zero on Y. It is then the only such cocycle of its class: Y and K have the
same components, and a coboundary that is zero on Y comes from a function that is constant on each. Hence

    H¹(K) = {f : P -> GF(2), extended by zero to Y, that sums to zero over every triangle of K}.            (1)

For a single edge, f is zero if the edge closes a triangle and free if it does not. So an edge with a common neighbour
leaves H¹ = 0 and joins Y; so does an edge between two components, through which no cycle passes; any other single
edge is a birth. For several edges of equal value, (1) is a linear system in a few unknowns, of which nearly every
equation says that one unknown is zero or that two are equal.

All compiled functions are in this one file because numba notices a change only in the file of the function it loads
from its cache, not in those of the functions that one calls.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np

NOT_FINITE = -1  # in place of a birth time
NO_HOLE = -1  # in place of a group's position: none in this slice,
CONE = -2  # and none later either

LOWEST = np.int32(-0x7FFFFFFF)
SLICE_GROWTH = 3  # each slice of elements wants this many times as many as the one before
MOST_RANKED = 128  # beyond this many items a radix sort is faster than counting the smaller ones
DIGIT_BITS = 8


def compiled(function: Callable) -> Callable:
    """Compile on the first call, for any thread to run; later processes load the machine code from the disk.

    Not numba's `parallel=True`: its OpenMP runtime clashes with torch's and dies in forked data loader workers.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return numba.njit(nogil=True)(function)


@compiled
def slice_size(size):
    """How many elements to enter at first: about as many as a birth needs on maps of size × size."""
    return 14 + size // 4


class Scratch(NamedTuple):
    """What one thread needs to work on maps of one size; nothing in it outlives a map."""

    keys: np.ndarray  # (rows, columns) int32: the map's elements in their order, then LOWEST
    tops: np.ndarray  # (columns,) int32: the largest key of each column
    lows: np.ndarray  # (columns,) int32: the smallest
    picked: np.ndarray  # (columns + 1,) int32: columns that are being gathered
    order: np.ndarray  # (m²,) int64: elements that enter, in falling order, as items
    spare: np.ndarray  # (rows · columns + 1,) int64: the same unsorted
    neighbours: np.ndarray  # (m, words) uint64: bit b of row a is set when {a, b} is an edge
    labels: np.ndarray  # (m,) int32: equal for two vertices of one component
    degrees: np.ndarray  # (m,) int32: the number of each vertex's edges
    pending: np.ndarray  # (m², 2) int32: edges of the current group that may not join yet
    unknowns: np.ndarray  # (m, m) int32, symmetric: the unknown f(a, b) of eq. 1; 0 = known to be zero


def make_scratch(n_elements: int) -> Scratch:
    """Room for maps of m² elements."""
    size = math.isqrt(n_elements)
    n_rows = max(1, round(math.sqrt(n_elements / (1.5 * slice_size(size)))))
    n_columns = -(-n_elements // n_rows)
    return Scratch(
        keys=np.full((n_rows, n_columns), LOWEST),
        tops=np.empty(n_columns, np.int32),
        lows=np.empty(n_columns, np.int32),
        picked=np.empty(n_columns + 1, np.int32),
        order=np.empty(n_elements, np.int64),
        spare=np.empty(n_rows * n_columns + 1, np.int64),
        neighbours=np.empty((size, (size + 63) // 64), np.uint64),
        labels=np.empty(size, np.int32),
        degrees=np.empty(size, np.int32),
        pending=np.empty((n_elements, 2), np.int32),
        unknowns=np.zeros((size, size), np.int32),
    )


@compiled
def fill_births(bits, infinity, by_edges, scratch, births):
    """Write each map's birth time, 0 for none, NOT_FINITE for a map with NaN or an infinite element.

    bits: (maps, m²) int16 or int32, the bit patterns of IEEE numbers; infinity: the bit pattern of +∞.
    """
    for i in range(len(bits)):
        lowest, highest = load(bits[i], scratch.keys, scratch.tops, scratch.lows)
        if lowest <= -infinity or highest >= infinity:
            births[i] = NOT_FINITE
        else:
            births[i] = first_birth(scratch, lowest, highest, by_edges)


@compiled
def fill_ranks(values, ranks):
    """Replace each map's values by 0, 1, … in their order, or all by the largest integer if some are not finite.

    values: (maps, m²) float64; ranks: (maps, m²) int32. Births depend on the order only, so ranks serve as bits.
    """
    for i in range(len(values)):
        order = np.argsort(values[i])
        rank = 0
        for j in range(len(order)):
            if j > 0 and values[i, order[j]] > values[i, order[j - 1]]:
                rank += 1
            ranks[i, order[j]] = rank
        if not np.isfinite(values[i]).all():
            ranks[i] = -LOWEST


@compiled
def load(bits, keys, tops, lows):
    """Fill in keys, tops and lows; returns the lowest and the highest key.

    An IEEE number is a sign and a magnitude, so as integers ±magnitude has the numbers' order, and −0 = +0.
    """
    tops[:] = LOWEST
    lows[:] = -LOWEST
    mask = 0x7FFFFFFF if bits.itemsize == 4 else 0x7FFF
    n_columns = len(tops)
    for row in range(len(keys)):
        row_bits = bits[row * n_columns : (row + 1) * n_columns]
        row_keys = keys[row]
        for column in range(len(row_bits)):
            word = row_bits[column]
            key = np.int32(word) if word >= 0 else np.int32(-(word & mask))
            row_keys[column] = key
            tops[column] = max(tops[column], key)
            lows[column] = min(lows[column], key)
    lowest, highest = lows[0], tops[0]
    for column in range(n_columns):
        lowest = min(lowest, lows[column])
        highest = max(highest, tops[column])
    return lowest, highest


@compiled
def first_birth(scratch, lowest, highest, by_edges):
    """The birth time of the loaded map.

    The elements enter in ever lower slices, sorted slice by slice, for a birth usually needs the first few only. The
    lowest ones need not enter at all: with them the graph is complete, and has no hole.
    """
    keys, tops, picked = scratch.keys, scratch.tops, scratch.picked
    order, spare = scratch.order, scratch.spare
    neighbours, labels, degrees = scratch.neighbours, scratch.labels, scratch.degrees
    pending, unknowns = scratch.pending, scratch.unknowns
    clear(neighbours, labels, degrees)
    ceiling = np.int64(highest) + 1
    n_slice = slice_size(len(labels))
    n_entered = n_values = 0
    while ceiling > lowest + 1:
        floor = choose_floor(tops, n_slice, lowest + 1, ceiling)
        n = gather(keys, tops, picked, spare, floor, ceiling)
        sort(spare, order, n, 1 - ceiling, bit_length(ceiling - floor - 1))
        n_new_values, group = enter(order, n, neighbours, labels, degrees, pending, unknowns)
        n_values += n_new_values
        if group == CONE:
            return 0
        if group >= 0:
            return n_values if by_edges else n_entered + group + 1
        n_entered += n
        ceiling = floor
        n_slice *= SLICE_GROWTH
    return 0


@compiled
def choose_floor(tops, n_slice, lowest, ceiling):
    """A floor with n_slice to 2·n_slice tops from it to below the ceiling, or nearly; `lowest` if there are too few."""
    n_wanted = count(tops, ceiling) + n_slice
    if n_wanted > len(tops):
        return lowest
    floor = lowest
    while ceiling - floor > 1:
        middle = (floor + ceiling) >> 1
        n = count(tops, middle)
        if n < n_wanted:
            ceiling = middle
        else:
            floor = middle
            if n <= n_wanted + n_slice:
                break
    return floor


@compiled
def count(tops, floor):
    """How many tops are not below the floor."""
    n = 0
    for j in range(len(tops)):
        n += tops[j] >= floor
    return n


@compiled
def gather(keys, tops, picked, items, floor, ceiling):
    """List the elements with floor ≤ key < ceiling as items (−key, index); returns their number.

    Without branches: always write, and move on only if what was written is wanted.
    """
    n_columns = len(tops)
    n_picked = 0
    for column in range(n_columns):
        picked[n_picked] = column
        n_picked += tops[column] >= floor
    n = 0
    for i in range(n_picked):
        column = picked[i]
        for row in range(len(keys)):
            key = np.int64(keys[row, column])
            items[n] = (-key << 32) | (row * n_columns + column)
            n += (floor <= key) & (key < ceiling)
    return n


@compiled
def sort(items, order, n, base, n_bits):
    """Write the first n items to `order` in rising order, and overwrite them; −key − base is below 2 to the n_bits."""
    if n <= MOST_RANKED:
        rank_sort(items, order, n)
        return
    for shift in range(0, n_bits, 2 * DIGIT_BITS):
        sort_digit(items, order, n, base, shift)
        sort_digit(order, items, n, base, shift + DIGIT_BITS)
    order[:n] = items[:n]


@compiled
def rank_sort(items, order, n):
    """Each item goes where the number of smaller ones says: n² steps, but vectorised and without branches."""
    for i in range(n):
        item = items[i]
        rank = 0
        for j in range(n):
            rank += items[j] < item
        order[rank] = item


@compiled
def sort_digit(items, order, n, base, shift):
    """Sort stably by one digit of −key − base: one pass of a radix sort."""
    places = np.zeros((1 << DIGIT_BITS) + 1, np.int64)
    for i in range(n):
        places[digit_of(items[i], base, shift) + 1] += 1
    for digit in range(1 << DIGIT_BITS):
        places[digit + 1] += places[digit]
    for i in range(n):
        digit = digit_of(items[i], base, shift)
        order[places[digit]] = items[i]
        places[digit] += 1


@compiled
def digit_of(item, base, shift):
    """The digit of −key − base at a bit position."""
    return ((item >> 32) - base) >> shift & ((1 << DIGIT_BITS) - 1)


@compiled
def bit_length(number):
    """How many bits a number that is not negative has."""
    n = 0
    while number >> n:
        n += 1
    return n


@compiled
def enter(order, n, neighbours, labels, degrees, pending, unknowns):
    """Enter a slice's elements, the groups of equal ones one after the other, until there is a hole after a group.

    An edge has two elements and enters with the larger one; at the other it is there already.
    Returns at how many groups a new edge came, and where in the slice the group with the hole begins; in its place
    NO_HOLE, or CONE when a vertex has all others as neighbours: a cone has no hole, and it stays one.
    """
    n_values = group = n_new = n_pending = 0
    for i in range(n):
        a, b = divmod(order[i] & 0xFFFFFFFF, len(labels))
        if a != b and not adjacent(neighbours, a, b):
            n_new += 1
            if not joins(neighbours, labels, degrees, a, b):
                n_pending = postpone(pending, n_pending, a, b)
            elif max(degrees[a], degrees[b]) == len(labels) - 1:
                return n_values, CONE
        if i + 1 < n and order[i + 1] >> 32 == order[i] >> 32:
            continue
        n_values += n_new > 0
        if n_pending > 0:
            n_pending = settle(neighbours, labels, degrees, pending, n_pending)
            if n_pending > 0 and has_hole(neighbours, labels, degrees, unknowns, pending, n_pending):
                return n_values, group
            if degrees.max() == len(labels) - 1:
                return n_values, CONE
        group = i + 1
        n_new = n_pending = 0
    return n_values, NO_HOLE


@compiled
def clear(neighbours, labels, degrees):
    """Remove all edges."""
    neighbours[:] = 0
    degrees[:] = 0
    for vertex in range(len(labels)):
        labels[vertex] = vertex


@compiled
def adjacent(neighbours, a, b):
    """Whether {a, b} is an edge."""
    return (neighbours[a, b >> 6] >> np.uint64(b & 63)) & np.uint64(1) != 0


@compiled
def connect(neighbours, labels, degrees, a, b):
    """Add the edge {a, b}."""
    neighbours[a, b >> 6] |= np.uint64(1) << np.uint64(b & 63)
    neighbours[b, a >> 6] |= np.uint64(1) << np.uint64(a & 63)
    degrees[a] += 1
    degrees[b] += 1
    old, new = labels[b], labels[a]
    if old != new:
        # For the few vertices of a map one vectorised pass is faster than a union–find tree.
        for vertex in range(len(labels)):
            labels[vertex] = new if labels[vertex] == old else labels[vertex]


@compiled
def share_a_neighbour(neighbours, a, b):
    """Whether {a, b} closes a triangle."""
    common = np.uint64(0)
    for word in range(neighbours.shape[1]):
        common |= neighbours[a, word] & neighbours[b, word]
    return common != 0


@compiled
def joins(neighbours, labels, degrees, a, b):
    """Add the edge {a, b} if the first cohomology stays zero for certain; says whether it was added."""
    # Both are looked up whatever the first says: a branch that cannot be predicted costs more.
    allowed = share_a_neighbour(neighbours, a, b) | (labels[a] != labels[b])
    if allowed:
        connect(neighbours, labels, degrees, a, b)
    return allowed


@compiled
def postpone(pending, n_pending, a, b):
    """Append {a, b} to the pending edges; returns their new number."""
    pending[n_pending, 0] = a
    pending[n_pending, 1] = b
    return n_pending + 1


@compiled
def settle(neighbours, labels, degrees, pending, n_pending):
    """Join pending edges until none can join any more; returns how many are left.

    An edge that joined may be what another one lacked to close a triangle.
    """
    before = n_pending + 1
    while 0 < n_pending < before:
        before, n_pending = n_pending, 0
        for i in range(before):
            a, b = pending[i, 0], pending[i, 1]
            # An edge whose two elements are equal is pending twice.
            if not adjacent(neighbours, a, b) and not joins(neighbours, labels, degrees, a, b):
                n_pending = postpone(pending, n_pending, a, b)
    return n_pending


@compiled
def has_hole(neighbours, labels, degrees, unknowns, pending, n_pending):
    """Add the pending edges, none of which can join by itself, and say whether there is a hole now."""
    n_unknowns = name_unknowns(neighbours, labels, degrees, unknowns, pending, n_pending)
    hole = (
        n_unknowns == 1
        or has_free_edge(neighbours, pending, n_pending)
        or has_solution(neighbours, unknowns, pending, n_pending, n_unknowns)
    )
    forget_unknowns(unknowns, pending, n_pending)
    return hole


@compiled
def name_unknowns(neighbours, labels, degrees, unknowns, pending, n_pending):
    """Add the pending edges and number their unknowns 1, 2, …; returns how many different ones there are."""
    n_unknowns = 0
    for i in range(n_pending):
        a, b = pending[i, 0], pending[i, 1]
        if not adjacent(neighbours, a, b):
            n_unknowns += 1
            unknowns[a, b] = unknowns[b, a] = n_unknowns
            connect(neighbours, labels, degrees, a, b)
    return n_unknowns


@compiled
def forget_unknowns(unknowns, pending, n_pending):
    """Leave the table of unknowns zero again."""
    for i in range(n_pending):
        a, b = pending[i, 0], pending[i, 1]
        unknowns[a, b] = unknowns[b, a] = 0


@compiled
def has_free_edge(neighbours, pending, n_pending):
    """Whether some pending edge closes no triangle: its unknown is in no equation."""
    for i in range(n_pending):
        a, b = pending[i, 0], pending[i, 1]
        if not share_a_neighbour(neighbours, a, b):
            return True
    return False


@compiled
def has_solution(neighbours, unknowns, pending, n_pending, n_unknowns):
    """Whether eq. 1 has a solution besides zero."""
    classes = np.arange(n_unknowns + 1).astype(np.int32)
    while identify(neighbours, unknowns, pending, n_pending, classes):
        pass
    n_columns = compact(classes)
    return n_columns > 0 and not is_full_rank(neighbours, unknowns, pending, n_pending, classes, n_columns)


@compiled
def identify(neighbours, unknowns, pending, n_pending, classes):
    """Merge unknowns that one equation shows to be equal, or zero (class 0); says whether it merged any."""
    merged = False
    for i in range(n_pending):
        a, b = pending[i, 0], pending[i, 1]
        c = next_common(neighbours, a, b, 0)
        while c >= 0:
            x, y, z = equation(unknowns, classes, a, b, c)
            merged |= conclude(classes, x, y, z) or conclude(classes, y, z, x) or conclude(classes, z, x, y)
            c = next_common(neighbours, a, b, c + 1)
    return merged


@compiled
def equation(unknowns, classes, a, b, c):
    """The classes of the three unknowns whose sum over the triangle {a, b, c} is zero."""
    return root(classes, unknowns[a, b]), root(classes, unknowns[b, c]), root(classes, unknowns[a, c])


@compiled
def conclude(classes, x, y, z):
    """Of x + y + z = 0: if x = 0 then y = z, and if y = z then x = 0. Says whether that was news."""
    return (x == 0 or y == z) and (merge(classes, y, z) or merge(classes, x, 0))


@compiled
def root(classes, unknown):
    """The representative of a class of unknowns, which is its smallest member; halves the path on its way."""
    while classes[unknown] != unknown:
        classes[unknown] = classes[classes[unknown]]
        unknown = classes[unknown]
    return unknown


@compiled
def merge(classes, a, b):
    """Make two classes one; False if they were one already."""
    a, b = root(classes, a), root(classes, b)
    classes[max(a, b)] = min(a, b)
    return a != b


@compiled
def compact(classes):
    """Number the classes other than zero 1, 2, …, in place; returns how many there are."""
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
    """Whether the equations left, each with three different unknowns, allow only zero: Gaussian elimination.

    columns: (unknowns + 1,) int32, the class of each unknown; 0 = zero.
    """
    basis = np.zeros((n_columns + 1, (n_columns >> 6) + 1), np.uint64)  # row c: the vector with first column c
    rank = 0
    for i in range(n_pending):
        a, b = pending[i, 0], pending[i, 1]
        c = next_common(neighbours, a, b, 0)
        while c >= 0:
            x, y, z = unknowns[a, b], unknowns[b, c], unknowns[a, c]
            # Each triangle once, and none that has become 0 = 0 or x = x.
            if x > y and x > z and columns[x] * columns[y] * columns[z] != 0:
                flip(basis[0], columns[x])
                flip(basis[0], columns[y])
                flip(basis[0], columns[z])
                rank += extend(basis)
                if rank == n_columns:
                    return True
            c = next_common(neighbours, a, b, c + 1)
    return False


@compiled
def flip(vector, column):
    """Add 1 in one column."""
    vector[column >> 6] ^= np.uint64(1) << np.uint64(column & 63)


@compiled
def extend(basis):
    """Move row 0 into the basis, reduced by the others; returns 1, or 0 if it was their sum."""
    vector = basis[0]
    for word in range(len(vector)):
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
    """The first common neighbour of a and b from vertex `start` on; −1 if there is none."""
    word = start >> 6
    mask = ~np.uint64(0) << np.uint64(start & 63)
    while word < neighbours.shape[1]:
        common = neighbours[a, word] & neighbours[b, word] & mask
        if common != 0:
            return (word << 6) + trailing_zeros(common)
        mask = ~np.uint64(0)
        word += 1
    return -1


@compiled
def trailing_zeros(word):
    """The position of the lowest set bit."""
    n = 0
    for step in (32, 16, 8, 4, 2, 1):
        if word & ((np.uint64(1) << np.uint64(step)) - np.uint64(1)) == 0:
            word >>= np.uint64(step)
            n += step
    return n
