"""Edges of equal value: the linear system that decides whether they give a hole."""

from itertools import combinations

import numpy as np
import pytest

from prune_fe.topology import birth_times


def glued_discs(words: list[str]) -> np.ndarray:
    """The graph (n, n) of a complex with one loop a letter and one disc a word, glued along the loops it spells.

    Its first Betti number over GF(2) is the number of letters less the rank of the letters' parities in the words.
    The graph is that of the barycentric subdivision, whose cliques are exactly its simplices.
    """
    triangles = set()
    n = 1 + 2 * len(set("".join(words)))
    loops = {letter: [0, 1 + 2 * i, 2 + 2 * i] for i, letter in enumerate(sorted(set("".join(words))))}
    for word in words:
        rim = [vertex for letter in word for vertex in loops[letter]]
        inner = range(n, n + len(rim))
        centre, n = n + len(rim), n + len(rim) + 1
        for i, j in zip(range(len(rim)), [*range(1, len(rim)), 0], strict=True):
            triangles |= {(rim[i], rim[j], inner[i]), (rim[j], inner[i], inner[j]), (inner[i], inner[j], centre)}
    simplices = sorted({part for corners in triangles for part in faces(corners)}, key=sorted)
    return np.array([[a < b or b < a for b in simplices] for a in simplices])


def faces(corners: tuple[int, ...]) -> set[frozenset[int]]:
    return {frozenset(part) for k in (1, 2, 3) for part in combinations(corners, k)}


@pytest.mark.parametrize(
    ("words", "has_hole"),
    [
        (["xyz", "xyw", "xzw", "yzw"], False),  # no disc by itself makes a letter zero, or two equal: elimination
        (["xyz", "xyw", "xzw"], True),
        (["xx"], True),  # the projective plane: a hole for GF(2)
        (["xxx"], False),  # torsion of order 3: none
    ],
)
def test_a_group_of_equal_edges_is_decided_by_linear_algebra(words: list[str], has_hole: bool) -> None:
    graph = glued_discs(words)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(graph)) for _ in range(10)]
    maps = np.stack([graph[np.ix_(order, order)] for order in orders]).astype(np.float32)
    assert birth_times(maps).tolist() == [int(has_hole)] * len(maps)
