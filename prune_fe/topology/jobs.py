"""Compute the birth times of a call's maps: each thread takes chunk after chunk of them, until none is left."""

# mypy: disable-error-code="no-untyped-def"
# The functions that numba compiles, and the callbacks that it calls, have no types for mypy.

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import carray
from numba.core import types

from prune_fe.topology import kernel, small_maps
from prune_fe.topology.compiling import c_function, compiled, inlined
from prune_fe.topology.lanes import intrinsic
from prune_fe.topology.strips import MAX_ROWS_OF_ONE_WORD
from prune_fe.topology.team import run_in_team

FIELDS = (
    *("input", "n_input", "starts", "n_starts", "output", "counts"),
    *("n_units", "stride", "size", "n_chunks", "step", "width", "infinity", "by_edges"),
)
JOB = np.dtype([(name, np.int64) for name in FIELDS])
"""What `run_job` is given, for compiled functions. Arrays are given by their address. The entries TAKEN and DONE of
`counts` say how many chunks the threads have taken, and have done."""

TAKEN, DONE = 0, 1

FIRST_RANK = 0x4B000000
"""The rank of the smallest element: the bits of 2²³ in float32. Ranks are the bits of 2²³, 2²³ + 1, … then, and evenly
spaced where small_maps.py reads them as numbers."""


class Layout(NamedTuple):
    """Where maps lie in the memory.

    Attributes:
        maps: The maps, whose memory must not be given back.
        address: Of the first element.
        n_numbers: How many numbers the memory holds from the first element to the last.
        starts: Where each map begins, counted in numbers, or the first map of each image: 1-d int64.
        n_units: 1, or the interleaved units of each image.
        stride: Distance between two elements of a map, row after row: 1, or more for interleaved units.
    """

    maps: torch.Tensor | np.ndarray
    address: int
    n_numbers: int
    starts: np.ndarray
    n_units: int
    stride: int


def run_job(
    function: Callable[[int], None],
    maps: Layout,
    size: int,
    output: np.ndarray,
    chunk: tuple[int, int],
    threads: int,
    infinity: int = 0,
    by_edges: bool = False,
) -> None:
    """Run a function of this module for all maps, in several threads if there are several chunks.

    Args:
        function: What each thread runs.
        maps: The maps.
        size: Rows of a map.
        output: What the function writes: contiguous, with a number, or a row, for each map.
        chunk: How many images (or maps that are not interleaved), and how many units of each, a thread takes at a time.
            The units of several images are not divided.
        threads: The largest number of threads.
        infinity: The bits of +∞.
        by_edges: Whether births are numbered by the edge weights, not by the elements.

    Raises:
        MemoryError: A thread found no memory.
    """
    step, width = chunk
    addresses = maps.address, maps.n_numbers, maps.starts.ctypes.data, len(maps.starts)
    counts = np.zeros(2, np.int64)
    n_chunks = -(-len(maps.starts) // step) * -(-maps.n_units // width)
    numbers = maps.n_units, maps.stride, size, n_chunks, step, width, infinity, by_edges
    job = np.array((*addresses, output.ctypes.data, counts.ctypes.data, *numbers), JOB)
    run_in_team(function, job.ctypes.data, threads if n_chunks > 1 else 1, (job, counts, maps, output))
    if counts[DONE] != n_chunks:  # numba has printed the error of the thread
        raise MemoryError(f"no memory for the birth times of {len(maps.starts) * maps.n_units} maps of {size} rows")


@functools.cache
def compile_births(dtype: np.dtype) -> Callable[[int], None]:
    """Compile the function that writes birth times, int32, for maps that are read as integers of this type."""

    def write_births(pointer: Any) -> None:
        job = carray(pointer, 1)[0]
        bits = carray(pointer_to(job.input), job.n_input, dtype)
        # The sets of neighbours have two types, and all that follows is compiled for each.
        if job.size <= MAX_ROWS_OF_ONE_WORD:
            take_chunks(job, bits, np.empty(job.size, np.uint64))
        else:
            take_chunks(job, bits, np.empty((job.size, (job.size + 63) // 64), np.uint64))

    return c_function(write_births, JOB)


@inlined
def take_chunks(job, bits, neighbours):
    """Compute birth times chunk by chunk, until all chunks are taken.

    Args:
        job: A record of JOB.
        bits: The bit patterns.
        neighbours: The array of the kernel's scratch arrays that has two types.
    """
    size, stride, infinity, by_edges = job.size, job.stride, job.infinity, job.by_edges != 0
    starts = carray(pointer_to(job.starts), job.n_starts, np.int64)
    births = carray(pointer_to(job.output), job.n_starts * job.n_units, np.int32)
    counts = carray(pointer_to(job.counts), 2, np.int64)
    n_parts = -(-job.n_units // job.width)
    is_small = size <= small_maps.MAX_ROWS and not by_edges
    work = small_maps.make_work(size if is_small else 0, bits)
    scratch = kernel.make_scratch(size, bits, 1 if is_small else job.width, neighbours)
    one_map, one_start = np.empty(size * size if is_small else 0, bits.dtype), np.zeros(1, np.int64)
    chunk = add_one(counts, TAKEN)
    while chunk < job.n_chunks:
        image, unit = chunk // n_parts * job.step, chunk % n_parts * job.width
        n_images, n_units = min(job.step, job.n_starts - image), min(job.width, job.n_units - unit)
        first = image * job.n_units + unit
        chunk_births = births[first : first + n_images * n_units]  # one piece: only single images are divided
        chunk_starts = starts[image : image + n_images] + unit
        given = bits, chunk_starts, n_units, stride, chunk_births
        i, n = 0, len(chunk_births)
        if is_small:
            small_maps.fill_births(bits, chunk_starts, n_units, stride, size, infinity, work, chunk_births)
            i = next_unsure(chunk_births, 0)
        # Of small maps the unsure ones, each by itself, and otherwise all at once. One call for both cases, because it
        # is inlined, and large.
        while i < n:
            if is_small:
                gather_map(bits, chunk_starts[i // n_units] + i % n_units, stride, one_map)
                given = one_map, one_start, 1, 1, chunk_births[i : i + 1]
            kernel.fill_births(given[0], given[1], given[2], given[3], infinity, by_edges, scratch, given[4])
            i = next_unsure(chunk_births, i) if is_small else n
        add_one(counts, DONE)
        chunk = add_one(counts, TAKEN)


@compiled
def next_unsure(births, i):
    """Return the index of the next birth time that is UNSURE, starting at i; the number of births if there is none."""
    while i < len(births) and births[i] != small_maps.UNSURE:
        i += 1
    return i


@compiled
def gather_map(numbers, start, stride, one_map):
    """Copy the elements of a map."""
    for i in range(len(one_map)):
        one_map[i] = numbers[start + i * stride]


@functools.cache
def compile_ranks() -> Callable[[int], None]:
    """Compile the function that writes the rank of each element within its map, (maps, m²) int32, for float64 maps.

    Births depend on the order of the elements only, so ranks (FIRST_RANK and on) can replace bit patterns. All are the
    largest integer in a map that is not finite.
    """

    def write_ranks(pointer: Any) -> None:
        job = carray(pointer, 1)[0]
        n_elements = job.size * job.size
        values = carray(pointer_to(job.input), job.n_input, np.float64)
        starts = carray(pointer_to(job.starts), job.n_starts, np.int64)
        ranks = carray(pointer_to(job.output), (job.n_starts, n_elements), np.int32)
        counts = carray(pointer_to(job.counts), 2, np.int64)
        one_map = np.empty(n_elements, np.float64)
        first = add_one(counts, TAKEN) * job.step
        while first < job.n_starts:
            for i in range(first, min(first + job.step, job.n_starts)):
                gather_map(values, starts[i], job.stride, one_map)
                rank_elements(one_map, ranks[i])
            add_one(counts, DONE)
            first = add_one(counts, TAKEN) * job.step

    return c_function(write_ranks, JOB)


@compiled
def rank_elements(values, ranks):
    """Write the rank of each element of a map."""
    order = np.argsort(values)
    rank = FIRST_RANK
    for i in range(len(order)):
        if i > 0 and values[order[i]] > values[order[i - 1]]:
            rank += 1
        ranks[order[i]] = rank
    if not np.isfinite(values).all():
        ranks[:] = np.iinfo(np.int32).max


@intrinsic
def pointer_to(_, address):
    """Convert an integer address to a pointer, for `numba.carray`."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def add_one(_, numbers, index):
    """Add 1 to an entry of an int64 array atomically, and return its old value."""

    def generate(context, builder, signature, arguments):
        first = context.make_array(numbers)(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", builder.gep(first, [arguments[1]]), ir.IntType(64)(1), "monotonic")

    return types.int64(numbers, types.int64), generate
