"""The birth times of many maps in plain tensor operations, on any device: the whole map at once, in no order.

Let W be the weights of a map's edges, W(a, b) = max(U[a, b], U[b, a]), and M(a, b) the largest min(W(a, c), W(b, c))
over the vertices c: the threshold at which the first triangle on {a, b} has its other two edges. An edge with M > W
closes a triangle when it enters. The edges with M ≤ W are the relative neighbourhood graph, which contains a maximum
spanning tree T: an edge of T joins two components. Neither kind gives a hole (kernel.py says why), so the first hole
is at the largest weight of an edge with M ≤ W outside T: for certain if M < W, for the edge is then in no triangle of
its complex either. If M = W, the edges of equal weight decide together; the caller's `has_hole` does that.
"""

from collections.abc import Callable

import torch
from torch import Tensor

MAX_ELEMENTS = 1 << 22
"""Elements of the maps that are processed at once; some ten tensors of this size are held."""

HasHole = Callable[[Tensor, Tensor], Tensor]


def first_births(maps: Tensor, by_edges: bool, has_hole: HasHole) -> Tensor:
    """Return the birth time of each map.

    Args:
        maps: (n, m, m), finite.
        by_edges: Whether births are numbered by "edges", not by "elements".
        has_hole: Function (above, equal) -> (n,) bool: whether graphs `above` (n, m, m) without a hole have one when
            the edges `equal` enter too.

    Returns:
        (n,) int32, 0 for no birth.
    """
    n, size = len(maps), maps.shape[-1]
    step = max(1, MAX_ELEMENTS // max(1, size * size))
    parts = [_first_births(maps[i : i + step], by_edges, has_hole) for i in range(0, n, step)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int32, device=maps.device)


def _first_births(maps: Tensor, by_edges: bool, has_hole: HasHole) -> Tensor:
    n, size = len(maps), maps.shape[-1]
    if size < 4:  # the smallest hole is a 4-cycle
        return torch.zeros(n, dtype=torch.int32, device=maps.device)
    weights = torch.maximum(maps, maps.transpose(1, 2))
    weights.diagonal(dim1=1, dim2=2).fill_(-torch.inf)  # the diagonal is no edge
    pairs = torch.ones(size, size, dtype=torch.bool, device=maps.device).triu(1)
    lowest = weights.masked_fill(~pairs, torch.inf).amin(dim=(1, 2))[:, None, None]
    closing = closing_weights(weights)
    # With the edges of the lowest weight the graph is complete, and has no hole.
    candidates = pairs & ~spanning_tree(weights) & (weights > lowest)
    births = highest_weight(weights, candidates & (closing < weights))  # the threshold t*, −∞ for none so far
    tied = candidates & (closing == weights)
    # Ties above the best threshold so far, from the highest down, until none is left that could give a hole earlier.
    while True:
        highest = highest_weight(weights, tied)
        undecided = (highest > births).nonzero()[:, 0]
        if len(undecided) == 0:
            break
        threshold = highest[undecided, None, None]
        holes = has_hole(weights[undecided] > threshold, weights[undecided] == threshold)
        births[undecided[holes]] = highest[undecided[holes]]
        tied[undecided] &= weights[undecided] < threshold
    if by_edges:
        edges = weights[:, pairs].sort(dim=1, descending=True).values
        numbers = 1 + ((edges[:, 1:] < edges[:, :-1]) & (edges[:, 1:] >= births[:, None])).sum(dim=1)
    else:
        numbers = 1 + (maps > births[:, None, None]).sum(dim=(1, 2))
    return numbers.masked_fill(births.isinf(), 0).int()


def closing_weights(weights: Tensor) -> Tensor:
    """Return M(a, b), the largest min(W(a, c), W(b, c)) over the vertices c.

    Args:
        weights: W, (n, m, m), symmetric, −∞ on the diagonal and for missing edges.

    Returns:
        (n, m, m).
    """
    # One vertex at a time: all at once would need m times the memory.
    closing = torch.full_like(weights, -torch.inf)
    for c in range(weights.shape[-1]):
        closing = torch.maximum(closing, torch.minimum(weights[:, :, c, None], weights[:, None, c, :]))
    return closing


def spanning_tree(weights: Tensor) -> Tensor:
    """Return the edges of a maximum spanning tree, by Prim's algorithm.

    Args:
        weights: (n, m, m), symmetric.

    Returns:
        (n, m, m) bool, symmetric.
    """
    n, size = weights.shape[:2]
    every = torch.arange(n, device=weights.device)
    tree = torch.zeros(weights.shape, dtype=torch.bool, device=weights.device)
    best, parent = weights[:, 0].clone(), torch.zeros(n, size, dtype=torch.int64, device=weights.device)
    reached = torch.zeros(n, size, dtype=torch.bool, device=weights.device)
    reached[:, 0] = True
    for _ in range(size - 1):
        # The vertex with the heaviest edge to the tree joins it, in every graph at once.
        vertex = best.masked_fill(reached, -torch.inf).argmax(dim=1)
        reached[every, vertex] = True
        tree[every, vertex, parent[every, vertex]] = tree[every, parent[every, vertex], vertex] = True
        better = weights[every, vertex] > best
        best = torch.where(better, weights[every, vertex], best)
        parent = torch.where(better, vertex[:, None], parent)
    return tree


def highest_weight(weights: Tensor, chosen: Tensor) -> Tensor:
    """Return the largest weight of each graph's chosen edges, −∞ if there are none: (n, m, m) -> (n,)."""
    return weights.masked_fill(~chosen, -torch.inf).amax(dim=(1, 2))
