"""The graph of the elements that have entered: neighbours as sets of bits, and a label for each component."""

import numpy as np

from prune_fe.topology.compiling import compiled
from prune_fe.topology.lanes import set_bits, trailing_zeros

QUOTIENT_BITS = 42
MAX_ROWS = 1 << QUOTIENT_BITS // 3  # up to this size, vertices() divides every index exactly


@compiled
def vertices(item, size):
    """Return the row and the column of an item's element.

    Computed by a multiplication, because a division costs more than all else that is done with most elements.
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
    """Return the number of words of a vertex's set of neighbours, as a constant where it is 1."""
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
def add_neighbours(neighbours, vertex, i, more):
    """Add the vertices of a word to the i-th word of a vertex's neighbours."""
    if neighbours.ndim == 1:
        neighbours[vertex] |= more
    else:
        neighbours[vertex, i] |= more


@compiled
def count_neighbours(neighbours, vertex):
    """Return the number of a vertex's neighbours, itself included."""
    n = 0
    for i in range(n_words(neighbours)):
        n += set_bits(word(neighbours, vertex, i))
    return n


@compiled
def hub(neighbours):
    """Return the first of the vertices with most neighbours, and how many it has, itself included."""
    vertex = most = 0
    for a in range(len(neighbours)):
        n = count_neighbours(neighbours, a)
        if n > most:
            vertex, most = a, n
    return vertex, most


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
def next_common(neighbours, a, b, start):
    """Return the first common neighbour ≥ `start` of a and b, which are neighbours; −1 if there is none."""
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
def vertices_after(vertex, i):
    """Return the i-th word of the set of all numbers above that of a vertex, for the vertex's own word or a later i."""
    return ~((np.uint64(2) << np.uint64(vertex & 63)) - np.uint64(1)) if i == vertex >> 6 else ~np.uint64(0)


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
    reached[a >> 6] |= ~vertices_after(a, a >> 6)
    if size & 63:
        reached[size >> 6] |= ~np.uint64(0) << np.uint64(size & 63)
