"""The graph in bits: against sets and a search for components in Python."""

import numba
import numpy as np
import pytest

from prune_fe.topology import graph


@numba.njit
def build(edges, neighbours, labels, degrees, closing, common):
    """Add edges one by one, and write whether each closes a triangle and a common neighbour of its ends."""
    graph.clear(neighbours, labels, degrees)
    for i in range(len(edges)):
        a, b = edges[i]
        closing[i] = graph.share_a_neighbour(neighbours, a, b)
        if not graph.adjacent(neighbours, a, b):
            graph.connect(neighbours, labels, degrees, a, b)
        common[i] = graph.next_common(neighbours, a, b, 0)


@pytest.mark.parametrize("size", [5, 64, 65, 130])
def test_edges_degrees_components_and_common_neighbours(size: int) -> None:
    rng = np.random.default_rng(size)
    pairs = rng.permuted(np.argwhere(np.triu(np.ones((size, size)), 1)), axis=0)
    edges = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]][: 2 * size], axis=1), axis=0)
    words = (size + 63) // 64
    neighbours = np.zeros(size if words == 1 else (size, words), np.uint64)
    labels, degrees = np.zeros(size, np.int32), np.zeros(size, np.int32)
    closing, common = np.zeros(len(edges), bool), np.zeros(len(edges), np.int64)
    build(edges, neighbours, labels, degrees, closing, common)
    sets: list[set[int]] = [set() for _ in range(size)]
    component = {vertex: {vertex} for vertex in range(size)}
    for i, (a, b) in enumerate(edges.tolist()):
        shared = sets[a] & sets[b]
        assert closing[i] == bool(shared)
        assert common[i] == min(shared, default=-1)
        sets[a].add(b)
        sets[b].add(a)
        joined = component[a] | component[b]
        for vertex in joined:
            component[vertex] = joined
    assert degrees.tolist() == [len(others) for others in sets]
    for a in range(size):
        assert set(np.flatnonzero(labels == labels[a]).tolist()) == component[a]


@numba.njit
def divide(indices, size, places):
    """Write the row and the column of each index of a map."""
    for i in range(len(indices)):
        places[i, 0], places[i, 1] = graph.vertices(indices[i], size)


@pytest.mark.parametrize("size", [1, 2, 3, 224, graph.MAX_ROWS - 1, graph.MAX_ROWS])
def test_an_index_is_divided_exactly(size: int) -> None:
    rows = np.unique(np.linspace(0, size - 1, 2000).astype(np.int64))
    for column in (0, size // 2, size - 1):
        places = np.zeros((len(rows), 2), np.int64)
        divide(rows * size + column, size, places)
        assert places.tolist() == [[row, column] for row in rows.tolist()]
