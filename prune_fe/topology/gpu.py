"""The birth times of many maps on a GPU: Triton kernels that return the same integers as kernel.py.

The maps are read in place, whatever their strides. A map is divided into strips, each of every n-th element.
`fill_tops` reads all elements once and keeps the largest of each strip, its top. `fill_births` runs one program a map.
It repeats: take the largest top as the next value; enter all elements of that value, from the strips that have it;
replace the tops of those strips by their next smaller elements.

The elements of one value are a group, in which several edges may have to wait for each other. A waiting edge that
closes no triangle when all have entered is a hole for certain (kernel.py, eq. 1: its unknown is in no equation). If
each of them closes a triangle, the map is left UNDECIDED, for the caller to decide.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton reads the annotations itself: only constants of the compilation may have one.

import torch
import triton
import triton.language as tl
from torch import Tensor

from prune_fe.errors import InputError

UNDECIDED = -2
"""In place of the birth time of a map whose equal edges need the linear system of kernel.py."""

LOWEST = tl.constexpr(-0x80000000)
MAX_ROWS = 256
TILE = 1024
"""Elements that a program of fill_tops reads at once."""

NEIGHBOURS = 32
"""Neighbouring units of a channels-last tensor that are read at once: whole cache lines."""

BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}


@triton.jit
def ordered(bits):
    """Return integers in the order of the IEEE numbers with these bits; −0 and +0 give the same.

    An IEEE number is a sign and a magnitude, so ±magnitude has the numbers' order.
    """
    words = bits.to(tl.int32)
    mask = 0x7FFFFFFF if bits.dtype == tl.int32 else 0x7FFF
    return tl.where(words < 0, -(words & mask), words)


@triton.jit
def offset_of(index, size, row_stride, column_stride):
    """Return the offset of an element from the first element of its map."""
    return (index // size).to(tl.int64) * row_stride + (index % size) * column_stride


@triton.jit
def fill_tops(
    maps,
    tops,
    lows,
    n_units,
    size,
    n_strips,
    n_parts,
    image_stride,
    unit_stride,
    row_stride,
    column_stride,
    STRIPS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Write the largest element of each strip to `tops`, and the smallest element of each part to `lows`.

    A strip is every n_strips-th element, counted from the strip's number. A part is STRIPS strips. One program handles
    one part of UNITS units of an image.

    Args:
        maps: Bit patterns, addressed by the strides.
        tops: Output, (maps, strips).
        lows: Output, (maps, parts).
        n_units: Units of each image.
        size: Rows of a map.
        n_strips: Strips of a map.
        n_parts: Parts of a map.
        image_stride: Stride between images.
        unit_stride: Stride between units.
        row_stride: Stride between rows.
        column_stride: Stride between columns.
        STRIPS: Strips of a part, a power of 2.
        UNITS: Units of a program, a power of 2.
    """
    group, part = tl.program_id(0), tl.program_id(1)
    n_groups = tl.cdiv(n_units, UNITS)
    image, units = group // n_groups, (group % n_groups) * UNITS + tl.arange(0, UNITS)
    strips = part * STRIPS + tl.arange(0, STRIPS)
    known = (units < n_units)[None, :]
    start = maps + image.to(tl.int64) * image_stride + units.to(tl.int64)[None, :] * unit_stride
    top = tl.full((STRIPS, UNITS), LOWEST, tl.int32)
    low = tl.full((STRIPS, UNITS), 0x7FFFFFFF, tl.int32)
    for first in range(0, size * size, n_strips):
        index = first + strips
        exists = ((strips < n_strips) & (index < size * size))[:, None] & known
        offset = offset_of(index, size, row_stride, column_stride)[:, None]
        key = ordered(tl.load(start + offset, mask=exists, other=0))
        top = tl.maximum(top, tl.where(exists, key, LOWEST))
        low = tl.minimum(low, tl.where(exists, key, 0x7FFFFFFF))
    number = (image.to(tl.int64) * n_units + units)[None, :]
    tl.store(tops + number * n_strips + strips[:, None], top, mask=known & (strips < n_strips)[:, None])
    tl.store(lows + number * n_parts + part, tl.min(low, axis=0)[None, :], mask=known)


@triton.jit
def row_of(sets, ROWS: tl.constexpr, vertex):
    """Return the neighbours of one vertex as a set, (words,)."""
    return tl.sum(tl.where(tl.arange(0, ROWS)[:, None] == vertex, sets, 0), axis=0)


@triton.jit
def with_edge(sets, ROWS: tl.constexpr, WORDS: tl.constexpr, a, b):
    """Return the sets of neighbours, (ROWS, WORDS), with the edge {a, b} added."""
    rows, words = tl.arange(0, ROWS)[:, None], tl.arange(0, WORDS)[None, :]
    ends = ((rows == a) & (words == b // 32)).to(tl.int32) << (b % 32)
    return sets | ends | ((rows == b) & (words == a // 32)).to(tl.int32) << (a % 32)


@triton.jit
def has(row, WORDS: tl.constexpr, vertex):
    """Return 1 if the vertex is in the set (words,), otherwise 0."""
    return tl.sum(tl.where(tl.arange(0, WORDS) == vertex // 32, (row >> (vertex % 32)) & 1, 0), axis=0)


@triton.jit
def fill_births(  # noqa: PLR0912, PLR0915 - a kernel is one function
    maps,
    tops,
    lows,
    births,
    infinity,
    n_units,
    size,
    n_strips,
    n_parts,
    image_stride,
    unit_stride,
    row_stride,
    column_stride,
    BY_EDGES: tl.constexpr,
    STRIPS: tl.constexpr,
    LENGTH: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    NOT_FINITE: tl.constexpr,
    UNDECIDED: tl.constexpr,
):
    """Write the birth time of each map to `births`: 0 for none, NOT_FINITE, or UNDECIDED. One program handles one map.

    Args:
        maps: Bit patterns, addressed by the strides.
        tops: What fill_tops wrote, (maps, strips).
        lows: What fill_tops wrote, (maps, parts).
        births: Output, (maps,).
        infinity: The bit pattern of +∞.
        n_units: Units of each image.
        size: Rows of a map.
        n_strips: Strips of a map.
        n_parts: Parts of a map.
        image_stride: Stride between images.
        unit_stride: Stride between units.
        row_stride: Stride between rows.
        column_stride: Stride between columns.
        BY_EDGES: Whether births are numbered by the edge weights, not by the elements.
        STRIPS: At least n_strips, a power of 2.
        LENGTH: At least the number of elements of a strip, a power of 2.
        PARTS: At least n_parts, a power of 2.
        ROWS: At least `size`, a power of 2: the number of sets of neighbours.
        WORDS: Words of 32 bits of each set, a power of 2.
        NOT_FINITE: The output for a map with NaN or an infinite element.
        UNDECIDED: The output for a map whose equal edges need the linear system.
    """
    number = tl.program_id(0)
    image, unit = number // n_units, number % n_units
    start = maps + image.to(tl.int64) * image_stride + unit.to(tl.int64) * unit_stride
    strips, along = tl.arange(0, STRIPS), tl.arange(0, LENGTH)
    top = tl.load(tops + number.to(tl.int64) * n_strips + strips, mask=strips < n_strips, other=LOWEST)
    parts = tl.arange(0, PARTS)
    low = tl.min(tl.load(lows + number.to(tl.int64) * n_parts + parts, mask=parts < n_parts, other=0x7FFFFFFF), axis=0)
    value = tl.max(top, axis=0)
    # The bit patterns of NaN lie beyond those of infinity, so one comparison finds both.
    birth = tl.where((low <= -infinity) | (value >= infinity), NOT_FINITE, 0)

    vertices, words = tl.arange(0, ROWS), tl.arange(0, WORDS)
    own = (vertices[:, None] // 32 == words[None, :]).to(tl.int32) << (vertices[:, None] % 32)
    everyone = tl.sum(tl.where(vertices[:, None] < size, own, 0), axis=0)
    neighbours, all_neighbours = own, own  # all_neighbours: with the edges that wait
    labels = vertices
    n_entered = 0
    n_values = 0
    cone = 0
    # With the elements of the lowest value the graph is complete.
    while (value > low) & (birth == 0) & (cone == 0):
        # Passes over the group. Step 0, repeated until nothing changes: add the edges that give no hole. Step 1: add
        # the waiting edges to all_neighbours. Step 2: count the waiting edges that close no triangle. Step 3: finished.
        step = 0
        new = 0
        n_group = 0
        next_top = top
        while step < 3:
            n_group = 0
            n_joined = 0
            n_waiting = 0
            n_free = 0
            remaining = tl.where(top == value, strips, STRIPS)
            strip = tl.min(remaining, axis=0)
            while strip < STRIPS:
                # All elements of one strip that has the value: enter those equal to it, and find its next top.
                index = strip + along * n_strips
                exists = index < size * size
                offset = offset_of(index, size, row_stride, column_stride)
                key = tl.where(exists, ordered(tl.load(start + offset, mask=exists, other=0)), LOWEST)
                below = tl.max(tl.where(key < value, key, LOWEST), axis=0)
                next_top = tl.where(strips == strip, below, next_top)
                equal = tl.where(key == value, index, 0x7FFFFFFF)
                element = tl.min(equal, axis=0)
                while element < 0x7FFFFFFF:
                    a = element // size
                    b = element % size
                    n_group += 1
                    of_a = row_of(neighbours, ROWS, a)
                    of_b = row_of(neighbours, ROWS, b)
                    if has(of_a, WORDS, b) == 0:
                        new = 1
                        if step == 0:
                            label_a = tl.sum(tl.where(vertices == a, labels, 0), axis=0)
                            label_b = tl.sum(tl.where(vertices == b, labels, 0), axis=0)
                            # A common neighbour, or two components: the edge gives no hole (kernel.py, eq. 1).
                            shared = tl.max((of_a & of_b != 0).to(tl.int32), axis=0)
                            if (shared == 1) | (label_a != label_b):
                                neighbours = with_edge(neighbours, ROWS, WORDS, a, b)
                                labels = tl.where(labels == label_b, label_a, labels)
                                n_joined += 1
                                # A vertex with all others as neighbours makes a cone, which never gets a hole.
                                missing_a = tl.max((row_of(neighbours, ROWS, a) != everyone).to(tl.int32), axis=0)
                                missing_b = tl.max((row_of(neighbours, ROWS, b) != everyone).to(tl.int32), axis=0)
                                cone = tl.maximum(cone, 1 - missing_a * missing_b)
                            else:
                                n_waiting += 1
                        elif step == 1:
                            all_neighbours = with_edge(all_neighbours, ROWS, WORDS, a, b)
                        else:
                            both = row_of(all_neighbours, ROWS, a) & row_of(all_neighbours, ROWS, b)
                            # Every vertex is its own neighbour: a and b alone are no triangle.
                            themselves = row_of(own, ROWS, a) | row_of(own, ROWS, b)
                            n_free += 1 - tl.max((both != themselves).to(tl.int32), axis=0)
                    equal = tl.where(equal == element, 0x7FFFFFFF, equal)
                    element = tl.min(equal, axis=0)
                remaining = tl.where(remaining == strip, STRIPS, remaining)
                strip = tl.min(remaining, axis=0)
            if step == 0:
                if n_waiting == 0:
                    step = 3
                elif n_joined == 0:
                    step = 1
                    all_neighbours = neighbours
            elif step == 1:
                step = 2
            else:
                birth = tl.where(n_free > 0, 1, UNDECIDED)
                step = 3
        n_values += new
        if birth == 0:
            n_entered += n_group
        top = next_top
        value = tl.max(top, axis=0)
    if birth == 1:
        birth = n_values if BY_EDGES else n_entered + 1
    tl.store(births + number, birth)


def first_births(maps: Tensor, by_edges: bool, not_finite: int) -> Tensor:
    """Return the birth time of each map.

    Args:
        maps: (..., m, m) float16, bfloat16 or float32, with m ≤ MAX_ROWS.
        by_edges: Whether births are numbered by "edges", not by "elements".
        not_finite: What to return for a map with NaN or an infinite element.

    Returns:
        (...) int32 on the same device: 0 for no birth, and UNDECIDED for a map whose equal edges need the linear
        system.

    Raises:
        InputError: The maps have more than MAX_ROWS rows.
    """
    size = maps.shape[-1]
    if size > MAX_ROWS:
        raise InputError(f"maps have {size} rows; allowed here: at most {MAX_ROWS}")
    bits = maps.detach().view(BITS[maps.dtype])
    bits = bits if bits.ndim == 4 else bits.reshape(1, -1, size, size)
    n_images, n_units = bits.shape[:2]
    births = torch.zeros(n_images * n_units, dtype=torch.int32, device=maps.device)
    if births.numel() == 0 or size == 0:
        return births.view(maps.shape[:-2])
    infinity = int(torch.tensor(torch.inf, dtype=maps.dtype).view(BITS[maps.dtype]))
    # Each step of fill_births reads all tops and one strip, so neither may be long.
    n_strips = min(TILE, triton.next_power_of_2(max(1, 4 * size)), size * size)
    # In channels-last memory the elements of neighbouring units lie side by side.
    together = NEIGHBOURS if bits.stride(1) == 1 and n_units > 1 else 1
    tile = max(1, min(triton.next_power_of_2(n_strips), TILE // together))
    n_parts = triton.cdiv(n_strips, tile)
    tops = torch.empty(len(births), n_strips, dtype=torch.int32, device=maps.device)
    lows = torch.empty(len(births), n_parts, dtype=torch.int32, device=maps.device)
    fill_tops[(n_images * triton.cdiv(n_units, together), n_parts)](
        bits, tops, lows, n_units, size, n_strips, n_parts, *bits.stride(), STRIPS=tile, UNITS=together
    )
    strips, length = triton.next_power_of_2(n_strips), triton.next_power_of_2(triton.cdiv(size * size, n_strips))
    fill_births[(len(births),)](
        bits,
        tops,
        lows,
        births,
        infinity,
        n_units,
        size,
        n_strips,
        n_parts,
        *bits.stride(),
        BY_EDGES=by_edges,
        STRIPS=strips,
        LENGTH=length,
        PARTS=triton.next_power_of_2(n_parts),
        ROWS=triton.next_power_of_2(size),
        WORDS=triton.next_power_of_2(triton.cdiv(size, 32)),
        NOT_FINITE=not_finite,
        UNDECIDED=UNDECIDED,
        num_warps=1 if size <= 64 else 4,
    )
    return births.view(maps.shape[:-2])
