"""Does the clique complex of a growing graph have a hole? Exactly, and without listing its triangles.

Why this is enough. Let Y be a graph whose clique complex has H¹ = 0 (coefficients in GF(2), so H¹ = 0 just when
H₁ = 0), and let K be Y plus some edges P, each within one component of Y. A cocycle f of K is a coboundary on Y;
subtract that coboundary, and f is zero on Y. It is then the only such cocycle of its class: Y and K have the same
components, and a coboundary that is zero on Y comes from a function that is constant on each. Hence

    H¹(K) = {f : P -> GF(2), extended by zero to Y, that sums to zero over every triangle of K}.       (1)

One edge: f is zero if the edge closes a triangle and free if it does not. So an edge with a common neighbour
leaves H¹ = 0 and may join Y at once; so may an edge between two components, which has no cycle through it; and any
other single edge is a birth. For several edges of equal value, (1) is a linear system in a few unknowns of which nearly
every equation says that one unknown is zero or that two are equal.
"""

import numpy as np

from prune_fe.topology.compiling import compiled


@compiled
def clear(neighbours, labels):
    """Remove all edges."""
    neighbours[:] = 0
    for vertex in range(len(labels)):
        labels[vertex] = vertex


@compiled
def adjacent(neighbours, a, b):
    """Whether {a, b} is an edge."""
    return (neighbours[a, b >> 6] >> np.uint64(b & 63)) & np.uint64(1) != 0


@compiled
def connect(neighbours, labels, a, b):
    """Add the edge {a, b}."""
    neighbours[a, b >> 6] |= np.uint64(1) << np.uint64(b & 63)
    neighbours[b, a >> 6] |= np.uint64(1) << np.uint64(a & 63)
    # For the few vertices of a map, one vectorised pass is faster than a union–find tree.
    old, new = labels[b], labels[a]
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
def joins(neighbours, labels, a, b):
    """Add the edge {a, b} if the first cohomology stays zero for certain; says whether it was added."""
    # Both are looked up whatever the first says: a branch that cannot be predicted costs more.
    allowed = share_a_neighbour(neighbours, a, b) | (labels[a] != labels[b])
    if allowed:
        connect(neighbours, labels, a, b)
    return allowed


@compiled
def postpone(pending, n_pending, a, b):
    """Append {a, b} to the pending edges; returns their new number."""
    pending[n_pending, 0] = a
    pending[n_pending, 1] = b
    return n_pending + 1


@compiled
def settle(neighbours, labels, pending, n_pending):
    """Join pending edges until none can join any more; returns how many are left.

    An edge that joined may be what another one lacked to close a triangle.
    """
    before = n_pending + 1
    while 0 < n_pending < before:
        before, n_pending = n_pending, 0
        for i in range(before):
            a, b = pending[i, 0], pending[i, 1]
            # An edge whose two elements are equal is pending twice.
            if not adjacent(neighbours, a, b) and not joins(neighbours, labels, a, b):
                n_pending = postpone(pending, n_pending, a, b)
    return n_pending


@compiled
def has_hole(neighbours, labels, unknowns, pending, n_pending):
    """Add the pending edges, none of which can join by itself, and say whether there is a hole now."""
    n_unknowns = name_unknowns(neighbours, labels, unknowns, pending, n_pending)
    hole = (
        n_unknowns == 1
        or has_free_edge(neighbours, pending, n_pending)
        or has_solution(neighbours, unknowns, pending, n_pending, n_unknowns)
    )
    forget_unknowns(unknowns, pending, n_pending)
    return hole


@compiled
def name_unknowns(neighbours, labels, unknowns, pending, n_pending):
    """Add the pending edges and number their unknowns 1, 2, …; returns how many different ones there are."""
    n_unknowns = 0
    for i in range(n_pending):
        a, b = pending[i, 0], pending[i, 1]
        if not adjacent(neighbours, a, b):
            n_unknowns += 1
            unknowns[a, b] = unknowns[b, a] = n_unknowns
            connect(neighbours, labels, a, b)
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
