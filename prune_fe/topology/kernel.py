"""The first birth of many maps: the elements in falling order, one group of equal ones after the other."""

import math
from typing import NamedTuple

import numpy as np

from prune_fe.topology import clique
from prune_fe.topology.compiling import compiled

NOT_FINITE = -1
LOWEST = np.int32(-0x7FFFFFFF)
SLICE_GROWTH = 3
RANK_SORT = 192


class Scratch(NamedTuple):
    """What one thread needs to work on maps of one size; nothing in it outlives a map."""

    keys: np.ndarray  # (rows, columns) int32: the map's elements in their order, then LOWEST
    tops: np.ndarray  # (columns,) int32: the largest key of each column
    lows: np.ndarray  # (columns,) int32: the smallest
    picked: np.ndarray  # (columns + 1,) int32: columns that are being gathered
    order: np.ndarray  # (m²,) int64: elements that enter, in falling order, as items
    spare: np.ndarray  # (rows · columns + 1,) int64: the same unsorted
    neighbours: np.ndarray  # (m, words) uint64: bit b of row a is set when {a, b} is an edge
    labels: np.ndarray  # (m,) int32: equal for two vertices of one component
    pending: np.ndarray  # (m², 2) int32: edges of the current group that may not join yet
    unknowns: np.ndarray  # (m, m) int32, symmetric: the unknown f(a, b) of eq. 1 in clique.py; 0 = known to be zero


@compiled
def slice_size(size):
    return FS + size // 4


FS = 14


def make_scratch(n_elements: int) -> Scratch:
    """Room for maps of m² elements."""
    size = math.isqrt(n_elements)
    n_rows = max(1, round(math.sqrt(n_elements / (1.5 * slice_size(size)))))
    n_columns = -(-n_elements // n_rows)
    return Scratch(
        keys=np.full((n_rows, n_columns), LOWEST),
        tops=np.empty(n_columns, np.int32),
        lows=np.empty(n_columns, np.int32),
        picked=np.empty(n_columns + 1, np.int32),
        order=np.empty(n_elements, np.int64),
        spare=np.empty(n_rows * n_columns + 1, np.int64),
        neighbours=np.empty((size, (size + 63) // 64), np.uint64),
        labels=np.empty(size, np.int32),
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
            ranks[i] = -LOWEST


@compiled
def load(bits, keys, tops, lows):
    """Fill in keys, tops and lows; returns the lowest and the highest key.

    An IEEE number is a sign and a magnitude, so as integers ±magnitude has the numbers' order, and −0 = +0.
    """
    tops[:] = LOWEST
    lows[:] = -LOWEST
    mask = 0x7FFFFFFF if bits.itemsize == 4 else 0x7FFF
    n_columns = len(tops)
    for row in range(len(keys)):
        row_bits = bits[row * n_columns : (row + 1) * n_columns]
        row_keys = keys[row]
        for column in range(len(row_bits)):
            word = row_bits[column]
            key = np.int32(word) if word >= 0 else np.int32(-(word & mask))
            row_keys[column] = key
            tops[column] = max(tops[column], key)
            lows[column] = min(lows[column], key)
    lowest, highest = lows[0], tops[0]
    for column in range(n_columns):
        lowest = min(lowest, lows[column])
        highest = max(highest, tops[column])
    return lowest, highest


@compiled
def first_birth(scratch, lowest, by_edges):
    """The birth time of the loaded map.

    The elements enter in ever lower slices, sorted slice by slice, for a birth usually needs the first few only. The
    lowest ones need not enter at all: after them the graph is complete, and has no hole.
    """
    keys, tops, picked, order, spare = (
        scratch.keys,
        scratch.tops,
        scratch.picked,
        scratch.order,
        scratch.spare,
    )
    neighbours, labels = scratch.neighbours, scratch.labels
    pending, unknowns = scratch.pending, scratch.unknowns
    clique.clear(neighbours, labels)
    ceiling = np.int64(-LOWEST) + 1
    n_slice = slice_size(len(labels))
    n_entered = n_values = 0
    while ceiling > lowest + 1:
        floor = choose_floor(tops, n_slice, lowest + 1, ceiling)
        n = gather(keys, tops, picked, spare, floor, ceiling)
        sort(spare, order, n)
        n_new_values, group = enter(order, n, neighbours, labels, pending, unknowns)
        n_values += n_new_values
        if group >= 0:
            return n_values if by_edges else n_entered + group + 1
        n_entered += n
        ceiling = floor
        n_slice *= SLICE_GROWTH
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
def gather(keys, tops, picked, items, floor, ceiling):
    """List the elements with floor ≤ key < ceiling as items (−key, index); returns their number.

    Without branches: always write, and move on only if what was written is wanted.
    """
    n_columns = len(tops)
    n_picked = 0
    for column in range(n_columns):
        picked[n_picked] = column
        n_picked += tops[column] >= floor
    n = 0
    for i in range(n_picked):
        column = picked[i]
        for row in range(len(keys)):
            key = np.int64(keys[row, column])
            items[n] = (-key << 32) | (row * n_columns + column)
            n += (floor <= key) & (key < ceiling)
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
def enter(order, n, neighbours, labels, pending, unknowns):
    """Enter a slice's elements, the groups of equal ones one after the other, until there is a hole after a group.

    An edge has two elements and enters with the larger one; at the other it is there already.
    Returns at how many groups a new edge came, and where in the slice the group with the hole begins, −1 for none.
    """
    n_values = group = n_new = n_pending = 0
    for i in range(n):
        a, b = divmod(order[i] & 0xFFFFFFFF, len(labels))
        if a != b and not clique.adjacent(neighbours, a, b):
            n_new += 1
            if not clique.joins(neighbours, labels, a, b):
                n_pending = clique.postpone(pending, n_pending, a, b)
        if i + 1 < n and order[i + 1] >> 32 == order[i] >> 32:
            continue
        n_values += n_new > 0
        if n_pending > 0:
            n_pending = clique.settle(neighbours, labels, pending, n_pending)
            if n_pending > 0 and clique.has_hole(neighbours, labels, unknowns, pending, n_pending):
                return n_values, group
        group = i + 1
        n_new = n_pending = 0
    return n_values, -1
