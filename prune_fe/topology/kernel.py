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

Once most vertices have met, what is left can be judged without any order (later_hole).

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
UNSURE = -3  # edges of equal value have to enter before it is known

SLICE_GROWTH = 3  # each slice of elements wants this many times as many as the one before
MOST_SAMPLED = 1024  # elements by which a later slice is chosen
LEAST_SAMPLED = 4  # of them are wanted in the slice: fewer say little
MOST_TESTS = 3  # pairs a vertex that later_hole tests before it gives up
MOST_RANKED = 128  # beyond this many items a radix sort is faster than counting the smaller ones
DIGIT_BITS = 8

QUOTIENT_BITS = 42
MOST_ROWS = 1 << QUOTIENT_BITS // 3  # of larger maps the indices could not be divided as vertices() does


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
    """What one thread needs to work on maps of one size and type; nothing in it outlives a map."""

    keys: np.ndarray  # (m²,) the map's elements as integers in their order, if they are not so already
    tops: np.ndarray  # (columns,) the largest of each column, when the elements are laid out in rows of this length
    picked: np.ndarray  # (columns + 1,) int32: columns that are being gathered
    sample: np.ndarray  # (at most MOST_SAMPLED,) every so many-th element
    order: np.ndarray  # (m²,) int64: elements that enter, in falling order, as items
    spare: np.ndarray  # (m² + 1,) int64: the same unsorted
    neighbours: np.ndarray  # (m,) or (m, words) uint64: bit b of row a is set when {a, b} is an edge, or a = b
    labels: np.ndarray  # (m,) int32: equal for two vertices of one component
    later_labels: np.ndarray  # (m,) int32: the same, of the graph with later edges
    reached: np.ndarray  # (words,) uint64: a set of vertices
    degrees: np.ndarray  # (m,) int32: the number of each vertex's edges
    pending: np.ndarray  # (m², 2) int32: edges of the current group that may not join yet
    unknowns: np.ndarray  # (m, m) int32, symmetric: the unknown f(a, b) of eq. 1; 0 = known to be zero


def make_scratch(n_elements: int, dtype: np.dtype) -> Scratch:
    """Room for maps of m² elements that are given as integers of this type."""
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


@compiled
def fill_births(bits, infinity, by_edges, scratch, births):
    """Write each map's birth time, 0 for none, NOT_FINITE for a map with NaN or an infinite element.

    bits: (maps, m²) int16 or int32, the bit patterns of IEEE numbers; infinity: the bit pattern of +∞.

    A map's elements enter in ever lower slices, sorted slice by slice, for a birth usually needs the first few only.
    The lowest ones need not enter at all: with them the graph is complete, and has no hole.
    """
    # Unpacked once: to take an array out of a tuple, or to hand it over, costs as much as many edges.
    tops, picked, sample, order, spare = scratch.tops, scratch.picked, scratch.sample, scratch.order, scratch.spare
    neighbours, labels, degrees = scratch.neighbours, scratch.labels, scratch.degrees
    pending, unknowns = scratch.pending, scratch.unknowns
    for i in range(len(bits)):
        keys = bits[i]
        lowest, highest = scan(keys, tops)
        if lowest < 0:
            put_in_order(keys, scratch.keys)
            keys = scratch.keys
            lowest, highest = scan(keys, tops)
        births[i] = 0
        if lowest <= -infinity or highest >= infinity:
            births[i] = NOT_FINITE
            continue
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
                if n_entered >= len(labels):
                    place = later_hole(keys, scratch, last_floor, ceiling)
                    if place == NO_HOLE:
                        break
                    if place >= 0 and not by_edges:
                        births[i] = 1 + count(keys, 1 - (order[place] >> 32))
                        break
                # Columns in which much is large have but one top: from now on those in between must be told apart.
                take_sample(keys, sample)
                n_wanted = max(LEAST_SAMPLED, n_slice * len(sample) // len(keys))
                floor = choose_floor(sample, n_wanted, last_floor, ceiling)
            n = gather(keys, tops, picked, spare, floor, ceiling)
            sort(spare, order, n, 1 - ceiling, bit_length(ceiling - floor - 1))
            n_new_values, group = enter(order, n, neighbours, labels, degrees, pending, unknowns)
            n_values += n_new_values
            if group >= 0:
                births[i] = n_values if by_edges else n_entered + group + 1
            if group != NO_HOLE:
                break
            n_entered += n
            ceiling = floor
            n_slice *= SLICE_GROWTH


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
            ranks[i] = np.iinfo(np.int32).max


@compiled
def put_in_order(bits, keys):
    """An IEEE number is a sign and a magnitude, so as integers ±magnitude has the numbers' order, and −0 = +0."""
    largest = np.iinfo(bits.dtype).max
    for i in range(len(bits)):
        keys[i] = bits[i] if bits[i] >= 0 else -(bits[i] & largest)


@compiled
def scan(keys, tops):
    """Fill in the tops; returns the lowest and the highest key. The only reading of all elements, as a rule."""
    n_columns = len(tops)
    lowest = keys[0]
    for column in range(n_columns):
        tops[column] = keys[column]
        lowest = min(lowest, keys[column])
    for start in range(n_columns, len(keys), n_columns):
        for column in range(min(n_columns, len(keys) - start)):
            key = keys[np.uint64(start + column)]  # an index that may be negative is not vectorised
            tops[column] = max(tops[column], key)
            lowest = min(lowest, key)
    highest = tops[0]
    for column in range(n_columns):
        highest = max(highest, tops[column])
    return lowest, highest


@compiled
def later_hole(keys, scratch, last_floor, ceiling):
    """The first hole among the elements below the ceiling, without entering them: where its item is put in `order`.

    Let W be the edges' weights. An edge {a, b} closes a triangle when it enters if some c has both W(a, c) and
    W(b, c) above W(a, b). The others are the relative neighbourhood graph; a maximum spanning tree lies in it, and
    its first edge that is not in the tree is the first birth. Most pairs are not in it for what entered already.

    Returns NO_HOLE if there is none, UNSURE if an equality leaves it open or too many pairs would have to be tested.
    """
    neighbours, labels, reached = scratch.neighbours, scratch.later_labels, scratch.reached
    size = len(labels)
    n = n_tests = 0
    for a in range(size):
        reach_twice(neighbours, a, reached)
        for i in range(a >> 6, len(reached)):
            far = ~reached[i]
            while far != 0:
                b = (i << 6) + trailing_zeros(far)
                far &= far - np.uint64(1)
                weight = weight_of(keys, size, a, b)
                if weight < last_floor:
                    continue
                n_tests += 1
                if n_tests > MOST_TESTS * size:
                    return UNSURE
                closing = closing_weight(keys, size, a, b, weight)
                if closing == weight:
                    return UNSURE
                if closing < weight:
                    scratch.spare[n] = (-np.int64(weight) << 32) | (a * size + b)
                    n += 1
    sort(scratch.spare, scratch.order, n, 1 - ceiling, bit_length(ceiling - last_floor))
    labels[:] = scratch.labels
    for place in range(n):
        a, b = vertices(scratch.order[place], size)
        if labels[a] == labels[b]:
            return place
        unite(labels, a, b)
    return NO_HOLE


@compiled
def reach_twice(neighbours, a, reached):
    """Fill in what need not be looked at from a: its neighbours and theirs, what does not come after it."""
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
    reached[a >> 6] |= (np.uint64(2) << np.uint64(a & 63)) - np.uint64(1)
    if size & 63:
        reached[size >> 6] |= ~np.uint64(0) << np.uint64(size & 63)


@compiled
def weight_of(keys, size, a, b):
    """The weight of {a, b}."""
    return max(keys[a * size + b], keys[b * size + a])


@compiled
def closing_weight(keys, size, a, b, enough):
    """When the first triangle on {a, b} has its other two edges; some weight above `enough` if that is above it."""
    closing = np.iinfo(keys.dtype).min
    for c in range(size):
        if c not in (a, b):
            closing = max(closing, min(weight_of(keys, size, a, c), weight_of(keys, size, b, c)))
            if closing > enough:
                break
    return closing


@compiled
def cone_floor(keys, degrees):
    """The vertex with most neighbours will have them all: what enters from then on gives no hole.

    Returns the smallest key above that of its last edge.
    """
    size = len(degrees)
    vertex = np.argmax(degrees)
    last = np.iinfo(keys.dtype).max
    for other in range(size):
        if other != vertex:
            last = min(last, max(keys[vertex * size + other], keys[other * size + vertex]))
    return np.int64(last) + 1


@compiled
def sample_step(n_elements):
    """The distance between elements of the sample."""
    return 1 + n_elements // MOST_SAMPLED


@compiled
def take_sample(keys, sample):
    """Copy every so many-th element."""
    step = sample_step(len(keys))
    for i in range(len(sample)):
        sample[i] = keys[i * step]


@compiled
def choose_floor(values, n_wanted, lowest, ceiling):
    """A floor with n_wanted to 2·n_wanted values from it to below the ceiling, or nearly; `lowest` if too few are."""
    n_above = count(values, ceiling)
    if count(values, lowest) - n_above <= 2 * n_wanted:
        return lowest
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
    """How many values are not below the floor."""
    floor = values.dtype.type(floor)
    n = 0
    for i in range(len(values)):
        n += values[i] >= floor
    return n


@compiled
def gather(keys, tops, picked, items, floor, ceiling):
    """List the elements with floor ≤ key < ceiling as items (−key, index); returns their number.

    Without branches: always write, and move on only if what was written is wanted. Unsigned indices, because others
    might be negative and are looked at for that.
    """
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
    n_values = i = 0
    counted = (order[0] >> 32) - 1
    while i < n:
        a, b = vertices(order[i], len(labels))
        if adjacent(neighbours, a, b):
            i += 1
            continue
        n_values += order[i] >> 32 != counted
        counted = order[i] >> 32
        # Both are looked up whatever the first says: a branch that cannot be predicted costs more.
        if share_a_neighbour(neighbours, a, b) | (labels[a] != labels[b]):
            # connect(), written out: to hand over the arrays would cost more than all of this.
            add_neighbour(neighbours, a, b)
            add_neighbour(neighbours, b, a)
            degrees[a] += 1
            degrees[b] += 1
            if labels[a] != labels[b]:
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
        begin, end = group_around(order, n, i)
        if i + 1 == end or group_has_hole(order, i, end, neighbours, labels, degrees, pending, unknowns):
            return n_values, begin
        if degrees.max() == len(labels) - 1:
            return n_values, CONE
        i = end
    return n_values, NO_HOLE


@compiled
def group_around(order, n, i):
    """Where the group of items equal to the i-th begins and ends."""
    begin, end = i, i + 1
    while begin > 0 and order[begin - 1] >> 32 == order[i] >> 32:
        begin -= 1
    while end < n and order[end] >> 32 == order[i] >> 32:
        end += 1
    return begin, end


@compiled
def group_has_hole(order, begin, end, neighbours, labels, degrees, pending, unknowns):
    """Enter the rest of a group, of which the first edge may not join, and say whether there is a hole then."""
    n_pending = 0
    for i in range(begin, end):
        a, b = vertices(order[i], len(labels))
        if not adjacent(neighbours, a, b) and not joins(neighbours, labels, degrees, a, b):
            n_pending = postpone(pending, n_pending, a, b)
    n_pending = settle(neighbours, labels, degrees, pending, n_pending)
    return n_pending > 0 and has_hole(neighbours, labels, degrees, unknowns, pending, n_pending)


@compiled
def vertices(item, size):
    """Row and column of an item's element; a division costs more than all else that is done with most elements."""
    index = np.uint64(item & 0xFFFFFFFF)
    row = (index * np.uint64((1 << QUOTIENT_BITS) // size + 1)) >> np.uint64(QUOTIENT_BITS)
    return row, index - row * np.uint64(size)


@compiled
def clear(neighbours, labels, degrees):
    """Remove all edges."""
    neighbours[:] = 0
    degrees[:] = 0
    for vertex in range(len(labels)):
        labels[vertex] = vertex
        add_neighbour(neighbours, vertex, vertex)


@compiled
def n_words(neighbours):
    """How many words a vertex's set of neighbours has: known to the compiler when it is one."""
    return 1 if neighbours.ndim == 1 else neighbours.shape[1]


@compiled
def word(neighbours, vertex, i):
    """The i-th word of a vertex's set of neighbours."""
    return neighbours[vertex] if neighbours.ndim == 1 else neighbours[vertex, i]


@compiled
def add_neighbour(neighbours, a, b):
    """Put b among the neighbours of a."""
    if neighbours.ndim == 1:
        neighbours[a] |= np.uint64(1) << np.uint64(b)
    else:
        neighbours[a, b >> 6] |= np.uint64(1) << np.uint64(b & 63)


@compiled
def adjacent(neighbours, a, b):
    """Whether {a, b} is an edge, or a = b."""
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
    """Make the components of a and b one: for few vertices a vectorised pass is faster than a union–find tree."""
    old, new = labels[b], labels[a]
    for vertex in range(len(labels)):
        labels[vertex] = new if labels[vertex] == old else labels[vertex]


@compiled
def share_a_neighbour(neighbours, a, b):
    """Whether {a, b}, not an edge yet, closes a triangle."""
    common = np.uint64(0)
    for i in range(n_words(neighbours)):
        common |= word(neighbours, a, i) & word(neighbours, b, i)
    return common != 0


@compiled
def joins(neighbours, labels, degrees, a, b):
    """Add the edge {a, b} if the first cohomology stays zero for certain; says whether it was added."""
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
    free = False
    for i in range(n_pending):
        free |= next_common(neighbours, pending[i, 0], pending[i, 1], 0) < 0
    return free


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
    """The first common neighbour of the neighbours a and b, from vertex `start` on; −1 if there is none."""
    mask = ~np.uint64(0) << np.uint64(start & 63)
    for i in range(start >> 6, n_words(neighbours)):
        common = word(neighbours, a, i) & word(neighbours, b, i) & mask
        for end in (a, b):
            if end >> 6 == i:
                common &= ~(np.uint64(1) << np.uint64(end & 63))
        if common != 0:
            return (i << 6) + trailing_zeros(common)
        mask = ~np.uint64(0)
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
