"""The first birth of many maps in plain tensor operations, on any device: the whole map at once, in no order.

Let W be the weights of a map's edges, W(a, b) = max(U[a, b], U[b, a]), and M(a, b) the largest min(W(a, c), W(b, c))
over the vertices c: when the first triangle on {a, b} has its other two edges. An edge with M > W closes a triangle
when it enters. The edges with M ≤ W are the relative neighbourhood graph, and a maximum spanning tree T lies in it:
an edge of T joins two components. Neither gives a hole (kernel.py says why), so the first hole is at the largest weight
of an edge with M ≤ W outside T: for certain if M < W, for the edge is then in no triangle of its complex either.
With M = W only the edges of equal weight together decide. The compiled kernel does that, for the graph at that weight.
"""

from collections.abc import Callable

import torch
from torch import Tensor

AT_ONCE = 1 << 22
"""Elements of the maps that are worked on together: some ten tensors of this size are held."""

HasHole = Callable[[Tensor, Tensor], Tensor]


def first_births(maps: Tensor, by_edges: bool, has_hole: HasHole) -> Tensor:
    """(n, m, m) finite -> (n,) int32, 0 for none.

    has_hole(above, equal): for graphs (n, m, m) bool without a hole, whether there is one when the edges `equal` enter.
    """
    n, size = len(maps), maps.shape[-1]
    step = max(1, AT_ONCE // max(1, size * size))
    parts = [_first_births(maps[i : i + step], by_edges, has_hole) for i in range(0, n, step)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int32, device=maps.device)


def _first_births(maps: Tensor, by_edges: bool, has_hole: HasHole) -> Tensor:
    n, size = len(maps), maps.shape[-1]
    if size < 4:
        return torch.zeros(n, dtype=torch.int32, device=maps.device)
    weights = torch.maximum(maps, maps.transpose(1, 2))
    weights.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    pairs = torch.ones(size, size, dtype=torch.bool, device=maps.device).triu(1)
    lowest = weights.masked_fill(~pairs, torch.inf).amin(dim=(1, 2))[:, None, None]
    closing = closing_weights(weights)
    # At the lowest weight the graph is complete.
    outside = pairs & ~spanning_tree(weights) & (weights > lowest)
    certain = _highest(weights, outside & (closing < weights))
    tied = outside & (closing == weights)
    births = certain.clone()
    while True:
        highest = _highest(weights, tied)
        open_ = (highest > births).nonzero()[:, 0]
        if len(open_) == 0:
            break
        threshold = highest[open_, None, None]
        found = has_hole(weights[open_] > threshold, weights[open_] == threshold)
        births[open_[found]] = highest[open_[found]]
        tied[open_] &= weights[open_] < threshold
    none = births.isinf()
    if by_edges:
        edges = weights[:, pairs].sort(dim=1, descending=True).values
        numbers = 1 + ((edges[:, 1:] < edges[:, :-1]) & (edges[:, 1:] >= births[:, None])).sum(dim=1)
    else:
        numbers = 1 + (maps > births[:, None, None]).sum(dim=(1, 2))
    return numbers.masked_fill(none, 0).int()


def closing_weights(weights: Tensor) -> Tensor:
    """M (n, m, m): max over c of min(W(a, c), W(b, c)), for weights that are −∞ on the diagonal, as of no edges."""
    closing = torch.full_like(weights, -torch.inf)
    for c in range(weights.shape[-1]):
        closing = torch.maximum(closing, torch.minimum(weights[:, :, c, None], weights[:, None, c, :]))
    return closing


def spanning_tree(weights: Tensor) -> Tensor:
    """(n, m, m) bool, symmetric: the edges of a maximum spanning tree, by Prim's algorithm."""
    n, size = weights.shape[:2]
    every = torch.arange(n, device=weights.device)
    tree = torch.zeros(weights.shape, dtype=torch.bool, device=weights.device)
    best, parent = weights[:, 0].clone(), torch.zeros(n, size, dtype=torch.int64, device=weights.device)
    reached = torch.zeros(n, size, dtype=torch.bool, device=weights.device)
    reached[:, 0] = True
    for _ in range(size - 1):
        vertex = best.masked_fill(reached, -torch.inf).argmax(dim=1)
        reached[every, vertex] = True
        tree[every, vertex, parent[every, vertex]] = tree[every, parent[every, vertex], vertex] = True
        better = weights[every, vertex] > best
        best = torch.where(better, weights[every, vertex], best)
        parent = torch.where(better, vertex[:, None], parent)
    return tree


def _highest(weights: Tensor, among: Tensor) -> Tensor:
    """(n,) the largest weight of the marked edges, −∞ if there are none."""
    return weights.masked_fill(~among, -torch.inf).amax(dim=(1, 2))
