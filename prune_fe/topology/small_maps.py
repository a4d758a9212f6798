"""The birth times of small maps on the CPU, many maps at once: each lane of a vector register holds another map.

Nothing is sorted and nothing depends on a map's values, so that all lanes take the same steps. Let W be the weights of
a map's edges, W(a, b) = max(U[a, b], U[b, a]); M(a, b) the largest min(W(a, c), W(b, c)) over the vertices c, the
threshold at which the first triangle on {a, b} has its other two edges; and B(a, b) the largest threshold at which a
path joins a and b. As portable.py explains,

- an edge with M > W closes a triangle when it enters, and gives no hole;
- an edge with M < W is in no triangle of the complex that it enters. It gives a hole if a path joins its ends already.

If no weight has an edge with M = W, the first hole is therefore at the largest W of an edge with M < W < B, or of one
with M < W = B that closes a cycle of edges of equal weight. There is no such cycle above a threshold t if the edges
with M < W and W > t are a forest: as many as the vertices less the components.

A map is left UNSURE, for kernel.py to decide, if there is an edge with M = W or such a cycle above the largest W of an
edge with M < W < B. Edges do not count at the threshold at which a vertex has all others as neighbours: the complex is
a cone then, and has no hole. (For later edges, M > W.)

A register holds twice as many numbers of 16 bits as of 32, so the elements of float32 maps are rounded to levels of 16
bits first, and W, M and B are levels then. What is greater as a level is greater as a number, but equal levels may be
different numbers. So a map is also left UNSURE if another edge has an element with the level of the birth, and edges at
the level of the cone count, except for the lowest and the highest level, which are those of a single number.

For kernel.py the work grows with the number of edges that must enter; here it grows with the cube of the map's size.
"""

# mypy: disable-error-code="no-untyped-def"
# The functions that numba compiles have no types for mypy.

import numpy as np

from prune_fe.topology.compiling import aligned_empty, compiled
from prune_fe.topology.kernel import NOT_FINITE
from prune_fe.topology.lanes import (
    HIGHEST_LEVEL,
    LOWEST_LEVEL,
    address_of,
    behind,
    fill,
    higher,
    if_greater,
    lane_count,
    levels_between,
    load,
    lower,
    minus,
    narrow,
    plus,
    prefetch,
    smallest,
    store,
    transpose,
)

MAX_ROWS = 28
"""Up to this size, maps are faster here than in kernel.py."""

LINES_OF_BLOCK = 8
"""How many lines of the cache are fetched with each four edges: with all edges, at least as many as a map has elements.
"""

UNSURE = -2
"""In place of a birth time: equal weights decide it, or weights of one level."""


@compiled
def make_work(size, like):
    """Allocate the memory of one thread for maps of size × size integers, of the same type as those in `like`.

    Returns:
        Memory for the maps' elements as keys, 1-d; and for levels, (4, n) int16: elements, W, paths and two rows. Keys
        of 16 bits are levels, and have the memory of the first row.
    """
    levels = np.empty(0, np.int16)
    n = even(size) ** 2 * lane_count(address_of(levels))
    rows = aligned_empty(4 * n, levels).reshape((4, n))
    keys = rows[0].view(like.dtype)
    if lane_count(address_of(like)) < lane_count(address_of(levels)):
        keys = aligned_empty(n, like)
    return keys, rows


@compiled
def even(size):
    """Return the number of vertices, an even one: vertices are taken two by two, the last may have no edges."""
    return size + (size & 1)


@compiled
def fill_births(bits, starts, n_units, stride, size, infinity, work, births):
    """Write each map's birth time to `births`: 0 for none, UNSURE, or NOT_FINITE for a map that is not finite.

    Args:
        bits: 1-d int16 or int32, the bit patterns of IEEE numbers.
        starts: int64, (maps,): where each map begins; or (images,): where the first map of each image begins.
        n_units: 1; or the interleaved units of each image, whose maps begin at consecutive places.
        stride: Distance between two elements of a map, row after row.
        size: Rows of a map.
        infinity: The bit pattern of +∞.
        work: From make_work, for maps of this size and type.
        births: Output, (maps,) or (images · n_units,) int32.
    """
    words, keys, levels, weights = address_of(bits), address_of(work[0]), address_of(work[1][0]), address_of(work[1][1])
    paths, rows = address_of(work[1][2]), address_of(work[1][3])
    n_lanes, n_vertices, n_elements = lane_count(levels), np.uint64(even(size)), np.uint64(size * size)
    zero, one, least = fill(levels, 0), fill(levels, 1), smallest(levels)
    unsure, not_finite = fill(levels, UNSURE), fill(levels, NOT_FINITE)
    is_rounded = lane_count(words) < n_lanes
    firsts = np.empty(n_lanes, np.uint64)
    unit = image = 0
    for begin in range(0, len(births), n_lanes):
        n = min(n_lanes, len(births) - begin)
        for lane in range(n):
            firsts[lane] = starts[image] + unit
            unit += 1
            if unit == n_units:
                unit, image = 0, image + 1
        firsts[n:] = firsts[0]
        is_finite = fill_levels(words, address_of(firsts), np.uint64(stride), n_elements, infinity, keys, levels)
        fill_weights(levels, np.uint64(size), n_vertices, weights, paths)
        cone = cone_level(weights, np.uint64(size), n_vertices)
        # The next maps are fetched meanwhile. Each vector of keys takes as many lines as a map has elements: `stride`
        # numbers apart if the maps are interleaved, and else one after the other.
        fetched = np.uint64(starts[min(image, len(starts) - 1)] + unit)
        line = np.uint64(stride) if stride > 1 else lane_count(words)
        second = lane_count(words) if stride > 1 else n_elements * lane_count(words)
        tied = fill_edges(weights, n_vertices, paths, words, fetched, line, n_elements, second)
        close_paths(paths, n_vertices, rows)
        birth = first_hole(paths, n_vertices)
        if is_rounded:
            lowest_or_none = if_greater(cone, fill(levels, LOWEST_LEVEL), least, cone)
            cone = if_greater(fill(levels, HIGHEST_LEVEL), cone, lowest_or_none, cone)
        # Equal weights at or below the first certain hole or the cone do not matter.
        floor = higher(birth, cone)
        n_above, n_equal = count_levels(levels, np.uint64(size), birth)
        number = plus(n_above, one)
        if is_rounded:
            number = if_greater(n_equal, one, unsure, number)
        number = if_greater(birth, least, number, zero)
        number = if_greater(tied, floor, unsure, number)
        number = if_greater(cycles_above(paths, n_vertices, floor), zero, unsure, number)
        number = if_greater(is_finite, zero, number, not_finite)
        store(levels, 0, number)
        for lane in range(n):
            births[begin + lane] = levels[lane]


@compiled
def fill_levels(words, firsts, stride, n_elements, infinity, keys, levels):
    """Write the elements' levels, or their keys if these have 16 bits.

    Args:
        words: The maps.
        firsts: Where each lane's map begins.
        stride: Distance between two elements of a map.
        n_elements: Elements of a map.
        infinity: The bit pattern of +∞.
        keys: Memory for the keys, in as many vectors as levels need: the same as that of levels if keys have 16 bits.
        levels: Output.

    Returns:
        Lanes that hold 1 for a finite map, otherwise 0.
    """
    n_lanes = lane_count(words)
    n = n_elements * n_lanes
    low, high = read_keys(words, firsts, stride, n_elements, keys)
    is_finite = is_between(keys, low, high, infinity)
    if n_lanes == lane_count(levels):
        return narrow(is_finite, is_finite)
    # A vector of levels is made of two vectors of keys, whose maps differ in range.
    second_keys = behind(keys, n)
    second_low, second_high = read_keys(words, behind(firsts, n_lanes), stride, n_elements, second_keys)
    for at in range(np.uint64(0), n, n_lanes):
        first_levels = levels_between(load(keys, at), low, high)
        second_levels = levels_between(load(second_keys, at), second_low, second_high)
        store(levels, np.uint64(2) * at, narrow(first_levels, second_levels))
    return narrow(is_finite, is_between(keys, second_low, second_high, infinity))


@compiled
def is_between(keys, lowest, highest, infinity):
    """Return lanes that hold 1 where −infinity < lowest and highest < infinity, otherwise 0."""
    zero, one = fill(keys, 0), fill(keys, 1)
    return if_greater(lowest, fill(keys, -infinity), if_greater(fill(keys, infinity), highest, one, zero), zero)


@compiled
def read_keys(words, firsts, stride, n_elements, keys):
    """Write the elements as integers in the order of the IEEE numbers; −0 and +0 give the same (strips.key_at).

    Returns:
        The lowest key of each lane, and the highest.
    """
    zero, least, n_lanes = fill(keys, 0), smallest(keys), lane_count(keys)
    lowest, highest = minus(fill(keys, -1), least), least
    are_neighbours = True
    for lane in range(n_lanes):
        are_neighbours &= firsts[lane] == firsts[0] + lane
    if not are_neighbours:
        n_in_vectors = np.uint64(0)
        if stride == 1:
            n_in_vectors = n_elements - n_elements % n_lanes
            for element in range(np.uint64(0), n_in_vectors, n_lanes):
                transpose(words, firsts, element, keys, element * n_lanes, n_lanes)
        # Lane after lane would write to ever other lines of the cache.
        for element in range(n_in_vectors, n_elements):
            for lane in range(n_lanes):
                keys[element * n_lanes + lane] = words[firsts[lane] + element * stride]
    index = firsts[0]
    for element in range(n_elements):
        lanes = load(words, index) if are_neighbours else load(keys, element * n_lanes)
        lanes = if_greater(zero, lanes, minus(least, lanes), lanes)
        lowest, highest = lower(lowest, lanes), higher(highest, lanes)
        store(keys, element * n_lanes, lanes)
        index += stride
    return lowest, highest


@compiled
def place(a, b, n_vertices, matrix):
    """Return where a matrix has the lanes of row a and column b."""
    return (a * n_vertices + b) * lane_count(matrix)


@compiled
def fill_weights(levels, size, n_vertices, weights, paths):
    """Write W to both triangles of `weights` and the lower one of `paths`; a vertex reaches itself at any threshold."""
    least = smallest(levels)
    most = minus(fill(levels, -1), least)
    for a in range(n_vertices):
        for b in range(a):
            weight = least
            if a < size:
                weight = higher(load(levels, place(a, b, size, levels)), load(levels, place(b, a, size, levels)))
            store(weights, place(a, b, n_vertices, levels), weight)
            store(weights, place(b, a, n_vertices, levels), weight)
            store(paths, place(a, b, n_vertices, levels), weight)
        store(weights, place(a, a, n_vertices, levels), least)
        store(paths, place(a, a, n_vertices, levels), most)


@compiled
def cone_level(weights, size, n_vertices):
    """Return the largest threshold at which a vertex has all others as neighbours."""
    level = smallest(weights)
    most = minus(fill(weights, -1), level)
    for a in range(size):
        last = most
        for b in range(size):
            if b != a:
                last = lower(last, load(weights, place(a, b, n_vertices, weights)))
        level = higher(level, last)
    return level


@compiled
def fill_edges(weights, n_vertices, paths, words, fetched, line, n_lines, second):
    """Write W to the upper triangle of `paths` for the edges with M < W, and the smallest integer for the others.

    Args:
        weights: W.
        n_vertices: The number of vertices, even.
        paths: Output.
        words: The maps, of which some are fetched to the cache meanwhile.
        fetched: Where the first line is that is fetched.
        line: Distance between two lines.
        n_lines: How many lines are fetched.
        second: Distance from the lines of the first vector of keys to those of the second, if levels need two.

    Returns:
        The largest weight of an edge with M = W.
    """
    tied = least = smallest(weights)
    next_row = n_vertices * lane_count(weights)
    for a in range(np.uint64(0), n_vertices, np.uint64(2)):
        for b in range(np.uint64(0), a + np.uint64(1), np.uint64(2)):
            # Four edges at once, from {a, a + 1} to {b, b + 1}, so that each weight is read for two of them.
            m00 = m01 = m10 = m11 = least
            # Without a branch: after the last line, the place behind it is fetched again and again.
            for _ in range(LINES_OF_BLOCK):
                prefetch(words, fetched)
                if lane_count(words) < lane_count(weights):
                    prefetch(words, fetched + second)
                fetched += line if n_lines > 0 else np.uint64(0)
                n_lines -= np.uint64(n_lines > 0)
            at_a, at_b = a * next_row, b * next_row
            for _ in range(n_vertices):
                a0, a1 = load(weights, at_a), load(weights, at_a + next_row)
                b0, b1 = load(weights, at_b), load(weights, at_b + next_row)
                m00, m01 = higher(m00, lower(a0, b0)), higher(m01, lower(a0, b1))
                m10, m11 = higher(m10, lower(a1, b0)), higher(m11, lower(a1, b1))
                at_a, at_b = at_a + lane_count(weights), at_b + lane_count(weights)
            tied = higher(tied, fill_edge(weights, a, b, n_vertices, m00, paths))
            tied = higher(tied, fill_edge(weights, a, b + np.uint64(1), n_vertices, m01, paths))
            tied = higher(tied, fill_edge(weights, a + np.uint64(1), b, n_vertices, m10, paths))
            tied = higher(tied, fill_edge(weights, a + np.uint64(1), b + np.uint64(1), n_vertices, m11, paths))
    return tied


@compiled
def fill_edge(weights, a, b, n_vertices, closing, paths):
    """Write one edge of fill_edges, given its M, and return its weight if M = W."""
    weight, least = load(weights, place(a, b, n_vertices, weights)), smallest(weights)
    if a != b:
        store(paths, place(min(a, b), max(a, b), n_vertices, paths), if_greater(weight, closing, weight, least))
    return if_greater(weight, closing, least, if_greater(closing, weight, least, weight))


@compiled
def close_paths(paths, n_vertices, rows):
    """Replace the weights in the lower triangle of `paths` by B, as in the algorithm of Floyd and Warshall.

    Two vertices k and k + 1 are passed at once, so that half as much is read and written.
    """
    n_lanes = lane_count(paths)
    next_row, one = n_vertices * n_lanes, np.uint64(1)
    for k in range(np.uint64(0), n_vertices, np.uint64(2)):
        between = load(paths, place(k + one, k, n_vertices, paths))
        for b in range(n_vertices):
            first = load(paths, place(max(k, b), min(k, b), n_vertices, paths))
            second = load(paths, place(max(k + one, b), min(k + one, b), n_vertices, paths))
            second = higher(second, lower(between, first))
            store(rows, b * n_lanes, higher(first, lower(between, second)))
            store(rows, next_row + b * n_lanes, second)
        for a in range(n_vertices):
            first, second = load(rows, a * n_lanes), load(rows, next_row + a * n_lanes)
            at_row = a * next_row
            for at in range(np.uint64(0), a * n_lanes, n_lanes):
                passing = higher(lower(first, load(rows, at)), lower(second, load(rows, next_row + at)))
                store(paths, at_row + at, higher(load(paths, at_row + at), passing))


@compiled
def first_hole(paths, n_vertices):
    """Return the birth of the first hole in each lane: the largest weight W of an edge with M < W < B.

    The smallest integer stands for no such edge. The top of this file explains M and B.
    """
    birth = smallest(paths)
    for a in range(n_vertices):
        for b in range(a):
            edge = load(paths, place(b, a, n_vertices, paths))
            joined = load(paths, place(a, b, n_vertices, paths))
            birth = higher(birth, if_greater(joined, edge, edge, birth))
    return birth


@compiled
def cycles_above(paths, n_vertices, floor):
    """Return how many edges with M < W and W > floor there are beyond those of a forest of the same components."""
    n, one = fill(paths, 0), fill(paths, 1)
    for a in range(n_vertices):
        nearest = smallest(paths)
        for b in range(a):
            n = if_greater(load(paths, place(b, a, n_vertices, paths)), floor, plus(n, one), n)
            nearest = higher(nearest, load(paths, place(a, b, n_vertices, paths)))
        # A vertex that is joined to an earlier one makes the components one fewer.
        n = if_greater(nearest, floor, minus(n, one), n)
    return n


@compiled
def count_levels(levels, size, birth):
    """Return how many elements are above the level of the birth, and how many edges have an element of this level.

    An element on the diagonal counts as an edge.
    """
    one = fill(levels, 1)
    n_above = n_equal = fill(levels, 0)
    for a in range(size):
        for b in range(a):
            element, mirrored = load(levels, place(a, b, size, levels)), load(levels, place(b, a, size, levels))
            n_above, n_equal = count_edge(element, mirrored, birth, one, n_above, n_equal)
        loop = load(levels, place(a, a, size, levels))
        n_above, n_equal = count_edge(loop, smallest(levels), birth, one, n_above, n_equal)
    return n_above, n_equal


@compiled
def count_edge(element, mirrored, birth, one, n_above, n_equal):
    """Add an edge's two elements to the counts of count_levels.

    If both have the level of the birth, they count once: the edge enters with the larger one.
    """
    high, low = higher(element, mirrored), lower(element, mirrored)
    n_above = if_greater(high, birth, plus(n_above, one), n_above)
    n_above = if_greater(low, birth, plus(n_above, one), n_above)
    largest_left = if_greater(high, birth, low, high)
    n_not_below = if_greater(birth, largest_left, n_equal, plus(n_equal, one))
    return n_above, if_greater(largest_left, birth, n_equal, n_not_below)
