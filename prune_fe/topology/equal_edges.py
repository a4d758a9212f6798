"""Decide whether edges of equal value, which enter together, give a hole: equation 1 of kernel.py."""

import numpy as np

from prune_fe.topology.compiling import compiled
from prune_fe.topology.graph import (
    add_neighbour,
    add_neighbours,
    connect,
    count_neighbours,
    hub,
    n_words,
    next_common,
    share_a_neighbour,
    vertices,
    vertices_after,
    word,
)
from prune_fe.topology.lanes import trailing_zeros


@compiled
def group_around(order, n, i):
    """Return where the group of items that have the key of the i-th one begins and ends."""
    begin, end = i, i + 1
    while begin > 0 and order[begin - 1] >> 32 == order[i] >> 32:
        begin -= 1
    while end < n and order[end] >> 32 == order[i] >> 32:
        end += 1
    return begin, end


@compiled
def add_group(order, begin, end, neighbours, later_neighbours):
    """Write to `later_neighbours` the graph as it will be when the edges of a group have entered."""
    later_neighbours[:] = neighbours
    for i in range(begin, end):
        a, b = vertices(order[i], len(neighbours))
        add_neighbour(later_neighbours, a, b)
        add_neighbour(later_neighbours, b, a)


@compiled
def gives_hole(neighbours, later_neighbours, labels, degrees, pending, unknowns):
    """Enter a group of equal edges, and return whether that gives a hole. If it does, some edges may not have entered.

    Args:
        neighbours: The graph before, without a hole. All arrays are those of `Scratch` in kernel.py.
        later_neighbours: The graph with all edges of the group.
        labels: The components of the graph.
        degrees: The degrees of the graph's vertices.
        pending: Overwritten.
        unknowns: All zero, before and after.
    """
    if join_group(neighbours, later_neighbours, labels, degrees):
        return True
    n_pending = fill_pending(neighbours, later_neighbours, pending)
    if n_pending == 0:
        return False
    if has_nonzero_solution(neighbours, later_neighbours, unknowns, pending, n_pending):
        return True
    for i in range(n_pending):
        connect(neighbours, labels, degrees, pending[i, 0], pending[i, 1])
    return False


@compiled
def join_group(neighbours, later_neighbours, labels, degrees):
    """Add the edges of a group that can enter one by one with H¹ = 0, and return whether another one is surely a hole.

    An edge that closes no triangle even when the whole group has entered is one: no equation of eq. 1 has its unknown.
    Several passes are needed because an edge that has joined may let another one close a triangle.
    """
    # In a large group most edges are between two neighbours of one vertex. Those are added many at once.
    vertex, _ = hub(later_neighbours)
    join_around(neighbours, later_neighbours, labels, degrees, vertex)
    has_joined = True
    while has_joined:
        has_joined = False
        for a in range(len(labels)):
            for i in range(a >> 6, n_words(neighbours)):
                pending = waiting(neighbours, later_neighbours, a, i) & vertices_after(a, i)  # each edge once, as a < b
                # For each set bit, from the lowest on.
                while pending != 0:
                    b = (i << 6) + trailing_zeros(pending)
                    pending &= pending - np.uint64(1)
                    if join(neighbours, labels, degrees, a, b):
                        has_joined = True
                    elif next_common(later_neighbours, a, b, 0) < 0:
                        return True
    return False


@compiled
def join(neighbours, labels, degrees, a, b):
    """Add an edge if it closes a triangle or joins two components, so that H¹ stays 0, and return whether it does."""
    if share_a_neighbour(neighbours, a, b) or labels[a] != labels[b]:
        connect(neighbours, labels, degrees, a, b)
        return True
    return False


@compiled
def join_around(neighbours, later_neighbours, labels, degrees, vertex):
    """Add the edges of a group at a vertex, as far as H¹ stays 0, and all those between its neighbours.

    The latter close a triangle with the vertex, and so can be added many at once.
    """
    for i in range(n_words(neighbours)):
        pending = waiting(neighbours, later_neighbours, vertex, i)
        while pending != 0:
            join(neighbours, labels, degrees, vertex, (i << 6) + trailing_zeros(pending))
            pending &= pending - np.uint64(1)
    for i in range(n_words(neighbours)):
        near = word(neighbours, vertex, i)
        while near != 0:
            a = (i << 6) + trailing_zeros(near)
            near &= near - np.uint64(1)
            for j in range(n_words(neighbours)):
                add_neighbours(neighbours, a, j, word(later_neighbours, a, j) & word(neighbours, vertex, j))
            degrees[a] = count_neighbours(neighbours, a) - 1


@compiled
def waiting(neighbours, later_neighbours, vertex, i):
    """Return the i-th word of the set of vertices to which a vertex has an edge of the group that has not entered."""
    return word(later_neighbours, vertex, i) & ~word(neighbours, vertex, i)


@compiled
def fill_pending(neighbours, later_neighbours, pending):
    """Write the edges that have not entered to `pending`, and return their number."""
    n_pending = 0
    for a in range(len(neighbours)):
        for i in range(a >> 6, n_words(neighbours)):
            others = waiting(neighbours, later_neighbours, a, i) & vertices_after(a, i)
            while others != 0:
                pending[n_pending, 0] = a
                pending[n_pending, 1] = (i << 6) + trailing_zeros(others)
                n_pending += 1
                others &= others - np.uint64(1)
    return n_pending


@compiled
def has_nonzero_solution(neighbours, later_neighbours, unknowns, pending, n_pending):
    """Return whether eq. 1 has a solution other than zero.

    No pending edge closes a triangle with two edges of the graph: `join_group` has entered those that do.

    Args:
        neighbours: The graph without the pending edges.
        later_neighbours: The graph with them.
        unknowns: All zero, before and after.
        pending: The pending edges.
        n_pending: How many there are.
    """
    for i in range(n_pending):
        a, b = pending[i, 0], pending[i, 1]
        unknowns[a, b] = unknowns[b, a] = i + 1
    # Most equations identify two unknowns; only what is left needs elimination.
    classes = np.arange(n_pending + 1).astype(np.int32)
    identify_in_pairs(neighbours, later_neighbours, unknowns, classes)
    while identify(neighbours, later_neighbours, unknowns, pending, n_pending, classes):
        pass
    n_columns = renumber(classes)
    has_solution = n_columns > 0 and not is_full_rank(
        neighbours, later_neighbours, unknowns, pending, n_pending, classes, n_columns
    )
    for i in range(n_pending):
        a, b = pending[i, 0], pending[i, 1]
        unknowns[a, b] = unknowns[b, a] = 0
    return has_solution


@compiled
def identify_in_pairs(neighbours, later_neighbours, unknowns, classes):
    """Merge the unknowns of any two pending edges that form a triangle with an edge of the graph: they are equal.

    The pending edges of a vertex a lead to some vertices b, which the edges of the graph between them divide into
    components. All pending edges from a to the vertices of one component have the same unknown.
    """
    size = len(unknowns)
    others, ends = np.empty(n_words(neighbours), np.uint64), np.empty(size, np.int32)
    for a in range(size):
        for i in range(len(others)):
            others[i] = waiting(neighbours, later_neighbours, a, i)
        for i in range(len(others)):
            while others[i] != 0:
                ends[0] = (i << 6) + trailing_zeros(others[i])
                others[i] &= others[i] - np.uint64(1)
                unknown, n = unknowns[a, ends[0]], 1
                while n > 0:
                    n -= 1
                    b = ends[n]
                    for j in range(len(others)):
                        near = word(neighbours, b, j) & others[j]
                        others[j] &= ~near
                        while near != 0:
                            ends[n] = (j << 6) + trailing_zeros(near)
                            near &= near - np.uint64(1)
                            merge(classes, unknown, unknowns[a, ends[n]])
                            n += 1


@compiled
def identify(neighbours, later_neighbours, unknowns, pending, n_pending, classes):
    """Merge unknowns that a triangle of pending edges shows to be equal, or zero (class 0).

    Returns:
        Whether any were merged.
    """
    merged = False
    for i in range(n_pending):
        a, b = pending[i, 0], pending[i, 1]
        c = next_waiting(neighbours, later_neighbours, a, b, b)  # a < b < c: each triangle once
        while c >= 0:
            x, y, z = equation(unknowns, classes, a, b, c)
            merged |= deduce(classes, x, y, z) or deduce(classes, y, z, x) or deduce(classes, z, x, y)
            c = next_waiting(neighbours, later_neighbours, a, b, c)
    return merged


@compiled
def next_waiting(neighbours, later_neighbours, a, b, c):
    """Return the first vertex above c to which a and b both have a pending edge; −1 if there is none."""
    for i in range(c >> 6, n_words(neighbours)):
        common = waiting(neighbours, later_neighbours, a, i) & waiting(neighbours, later_neighbours, b, i)
        common &= vertices_after(c, i)
        if common != 0:
            return (i << 6) + trailing_zeros(common)
    return -1


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
def is_full_rank(neighbours, later_neighbours, unknowns, pending, n_pending, columns, n_columns):
    """Return whether the remaining equations, in three different unknowns each, allow only zero.

    By Gaussian elimination over GF(2).

    Args:
        neighbours: The graph without the pending edges.
        later_neighbours: The graph with them.
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
        c = next_waiting(neighbours, later_neighbours, a, b, b)
        while c >= 0:
            x, y, z = columns[unknowns[a, b]], columns[unknowns[b, c]], columns[unknowns[a, c]]
            if x * y * z != 0:
                flip_bit(basis[0], x)
                flip_bit(basis[0], y)
                flip_bit(basis[0], z)
                rank += extend_basis(basis)
                if rank == n_columns:
                    return True
            c = next_waiting(neighbours, later_neighbours, a, b, c)
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
    for i in range(len(vector)):
        # Eliminate the columns in rising order until one has no pivot yet.
        while vector[i] != 0:
            column = (i << 6) + trailing_zeros(vector[i])
            pivot = basis[column]
            if pivot[i] == 0:
                pivot[:] = vector
                vector[:] = 0
                return 1
            for later in range(i, len(vector)):
                vector[later] ^= pivot[later]
    return 0
