"""The first birth of many maps: the elements in falling order, one group of equal ones after the other."""

import math
from typing import NamedTuple

import numpy as np

from prune_fe.topology import clique
from prune_fe.topology.compiling import compiled

FIRST_SLICE = 14
SLICE_GROWTH = 3
RANK_SORT = 192
NOT_FINITE = -1
LOWEST = np.int32(-0x7FFFFFFF)


class Scratch(NamedTuple):
    """What one thread needs to work on maps of one size; nothing in it outlives a map."""

    keys: np.ndarray  # (m²,) int32, in the order of the map's elements
    tops: np.ndarray  # (classes,) int32: the largest key of the elements i, i + classes, i + 2·classes, …
    lows: np.ndarray  # (classes,) int32: their smallest key
    best: np.ndarray  # (classes,) int32
    order: np.ndarray  # (m²,) int64: key and index of the elements that are being entered
    spare: np.ndarray
    neighbours: np.ndarray  # (m, words) uint64: bit b of row a is set when {a, b} is an edge
    parents: np.ndarray  # (m,) int32: union–find over the vertices
    pending: np.ndarray  # (m², 2) int32: edges of the current group that may not join yet
    unknowns: np.ndarray  # (m, m) int32, symmetric: the unknown f(a, b) of eq. 1 in clique.py; 0 = known to be zero


def make_scratch(n_elements: int) -> Scratch:
    """Room for maps of m² elements."""
    size = math.isqrt(n_elements)
    n_classes = n_elements // 4 if n_elements < 1024 else n_elements // 32 if n_elements < 10000 else n_elements//64
    n_classes = max(1, n_classes)
    return Scratch(
        keys=np.empty(n_elements, np.int32),
        tops=np.empty(n_classes, np.int32),
        lows=np.empty(n_classes, np.int32),
        best=np.empty(n_classes + 1, np.int32),
        order=np.empty(n_elements + 1, np.int64),
        spare=np.empty(n_elements + 1, np.int64),
        neighbours=np.empty((size, (size + 63) // 64), np.uint64),
        parents=np.empty(size, np.int32),
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
            births[i] = first_birth(scratch, lowest, by_edges)


@compiled
def load(bits, keys, tops, lows):
    """Fill in keys, tops and lows; returns the lowest and the highest key.

    An IEEE number is a sign and a magnitude, so as integers ±magnitude has the numbers' order, and −0 = +0.
    """
    tops[:] = LOWEST
    lows[:] = -LOWEST
    mask = 0x7FFFFFFF if bits.itemsize == 4 else 0x7FFF
    width = len(tops)
    for start in range(0, len(bits), width):
        row_bits = bits[start : start + width]
        row_keys = keys[start : start + width]
        for j in range(len(row_bits)):
            key = np.int32(row_bits[j]) if row_bits[j] >= 0 else np.int32(-(row_bits[j] & mask))
            row_keys[j] = key
            tops[j] = max(tops[j], key)
            lows[j] = min(lows[j], key)
    lowest, highest = lows[0], tops[0]
    for j in range(width):
        lowest = min(lowest, lows[j])
        highest = max(highest, tops[j])
    return lowest, highest


@compiled
def first_birth(scratch, lowest, by_edges):
    """The birth time of the loaded map.

    The elements enter in ever lower slices, sorted slice by slice, for a birth usually needs the first few only. The
    lowest ones need not enter at all: after them the graph is complete, and has no hole.
    """
    keys, tops, best, order, spare = scratch.keys, scratch.tops, scratch.best, scratch.order, scratch.spare
    neighbours, parents = scratch.neighbours, scratch.parents
    pending, unknowns = scratch.pending, scratch.unknowns
    clique.clear(neighbours, parents)
    ceiling = np.int64(-LOWEST) + 1
    n_slice = FIRST_SLICE + len(parents) // 4
    n_entered = n_values = 0
    while ceiling > lowest + 1:
        floor = choose_floor(tops, n_slice, lowest + 1, ceiling)
        n = gather(keys, tops, best, order, spare, floor, ceiling)
        n_slice *= SLICE_GROWTH
        ceiling = floor
        start = 0
        while start < n:
            end = group_end(order, start, n)
            n_new, hole = enter(order, start, end, neighbours, parents, pending, unknowns)
            n_values += n_new > 0
            if hole:
                return n_values if by_edges else n_entered + start + 1
            start = end
        n_entered += n
    return 0


@compiled
def choose_floor(tops, n_slice, lowest, ceiling):
    """A floor, at least `lowest`, with n_slice to 2·n_slice tops from there to below the ceiling, where there is one."""
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
def gather(keys, tops, best, order, spare, floor, ceiling):
    """List the elements with floor ≤ key < ceiling in falling order; returns their number."""
    n_rows = 0
    for j in range(len(tops)):
        best[n_rows] = j
        n_rows += tops[j] >= floor
    n = 0
    for row in range(n_rows):
        for i in range(best[row], len(keys), len(tops)):
            key = np.int64(keys[i])
            spare[n] = (-key << 32) | i
            n += (floor <= key) & (key < ceiling)
    sort(spare, order, n)
    return n


@compiled
def sort(items, order, n):
    if n > RANK_SORT:
        order[:n] = items[:n]
        order[:n].sort()
        return
    for i in range(n):
        item = items[i]
        rank = 0
        for j in range(n):
            rank += items[j] < item
        order[rank] = item


@compiled
def group_end(order, start, n):
    """Where the group of equal keys that begins at `start` ends."""
    key = order[start] >> 32
    end = start + 1
    while end < n and order[end] >> 32 == key:
        end += 1
    return end


@compiled
def enter(order, start, end, neighbours, parents, pending, unknowns):
    """Enter a group of equal elements; returns the number of new edges, and whether there is a hole at its end.

    An edge has two elements and enters with the larger one; at the other it is there already.
    """
    n_new = n_pending = 0
    for i in range(start, end):
        a, b = divmod(order[i] & 0xFFFFFFFF, len(parents))
        if a != b and not clique.adjacent(neighbours, a, b):
            n_new += 1
            if not clique.joins(neighbours, parents, a, b):
                n_pending = clique.postpone(pending, n_pending, a, b)
    if n_pending == 0:
        return n_new, False
    n_pending = clique.settle(neighbours, parents, pending, n_pending)
    return n_new, n_pending > 0 and clique.has_hole(neighbours, unknowns, pending, n_pending)
