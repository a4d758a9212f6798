"""The birth time of a feature map's first hole: how many elements must enter, largest first, until there is one."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch

from prune_fe.errors import InputError
from prune_fe.topology import graph, kernel, portable, small_maps, strips

Rank = Literal["elements", "edges"]
Maps = TypeVar("Maps", torch.Tensor, np.ndarray)
Chunk = TypeVar("Chunk")

# The integer type with as many bits as each type, and the bits of +∞. The kernel takes at most 32 bits: float64 is
# replaced by ranks first, so it is only viewed as itself, and its infinity is the rank of maps that are not finite.
INTEGER = {"float16": "int16", "bfloat16": "int16", "float32": "int32", "float64": "float64"}
INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FFFFFFF}

# Elements that one thread takes at a time, where there are so many: a tenth of a millisecond of work, far more than it
# costs to hand out.
CHUNK_ELEMENTS = 1 << 18

# How often each thread can take some, so that none waits long for the last one.
CHUNKS = 4

MIN_UNITS = 64
"""Interleaved units that one thread takes at least, where there are so many: fewer would split what lies together."""

MAX_STRIP_TOPS = 1 << 20
"""Largest number of interleaved units' strip tops, except for MIN_UNITS units: more would not stay in the cache."""


def birth_times(maps: Maps, rank: Rank = "elements", threads: int | None = None) -> Maps:
    """Return the birth time of each map's first hole, 0 if no threshold gives a hole.

    A map U is read as the weights of a graph on its m rows: at threshold t, the edge {i, j} is present if
    max(U[i, j], U[j, i]) ≥ t, and all cliques are filled in. The first hole is born at the largest t = t* at which the
    first Betti number is not zero.

    The authors' program (github.com/liyueqiao/feature-entropy) loses some of these births. It writes one less than
    "edges", and 0 for no birth, so that a birth at the largest edge weight, as maps of few values have it (saturated or
    quantised units), counts as none. So does one that comes after 51 different edge weights, or after 80 % of as many
    as the graph could have. `FeatureEntropy(variant="program")` has its numbers.

    Args:
        maps: (..., m, m), float16, bfloat16, float32 or float64, all finite; they are not changed. On the CPU,
            contiguous maps and PyTorch's channels-last format are read where they lie; maps with other strides are
            copied.
        rank: How t* becomes a number. "elements": 1 + the number of U's m² elements > t* (Feature Entropy, ICLR 2022,
            eqs. 3 and 7). "edges": the number of different edge weights ≥ t*.
        threads: The largest number of threads for maps on the CPU; by default that of torch.

    Returns:
        (...) int32: an array for an array, a tensor on the maps' device for a tensor.

    Raises:
        InputError: The maps are of another type or shape, are too large or not finite, or an argument is not allowed.

    >>> ring = np.array([[0, 9, 0, 6], [0, 0, 8, 0], [0, 0, 0, 7], [0, 0, 0, 0]], np.float32)
    >>> birth_times(ring[None])
    array([4], dtype=int32)
    """
    if rank not in get_args(Rank):
        raise InputError(f"rank is {rank!r}; allowed: {', '.join(get_args(Rank))}")
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; allowed: 1 or more")
    dtype = check_maps(maps)
    if maps.shape[-1] > graph.MAX_ROWS:
        raise InputError(f"maps have {maps.shape[-1]} rows; allowed: at most {graph.MAX_ROWS}")
    if isinstance(maps, torch.Tensor) and maps.device.type != "cpu":
        on_device = births_on_device(maps.detach(), rank == "edges", can_use_triton(maps))
        check_finite(maps, (on_device != kernel.NOT_FINITE).cpu().numpy())
        return on_device
    births = np.zeros(maps.shape[:-2], np.int32)
    if births.size and maps.shape[-1]:
        threads = threads or torch.get_num_threads()
        fill_births(bit_patterns(maps, dtype), INFINITY[dtype], rank, threads, births)
        check_finite(maps, births != kernel.NOT_FINITE)
    return torch.from_numpy(births) if isinstance(maps, torch.Tensor) else births


@functools.cache
def compile_kernels() -> None:
    """Compile the kernels for float32: for small maps, for up to 64 rows and for more.

    They are compiled once an installation. A process calls each of them once, because a network has many layers.
    """
    for rows in (4, small_maps.MAX_ROWS + 1, 65):
        birth_times(torch.zeros(1, rows, rows))


def check_maps(maps: Any, square: bool = True) -> str:
    """Check the type and the shape of maps, and return the name of their number type.

    Raises:
        InputError: They are not maps.
    """
    if not isinstance(maps, torch.Tensor | np.ndarray):
        raise InputError(f"maps are a {type(maps).__name__}; allowed: a torch tensor, a numpy array")
    dtype = str(maps.dtype).removeprefix("torch.")
    if dtype not in INFINITY:
        raise InputError(f"maps are {dtype}; allowed: {', '.join(INFINITY)}")
    if maps.ndim < 2 or (square and maps.shape[-1] != maps.shape[-2]):
        allowed = "(..., m, m)" if square else "(..., height, width)"
        raise InputError(f"maps have shape {tuple(maps.shape)}; allowed: {allowed}")
    return dtype


def check_finite(maps: torch.Tensor | np.ndarray, finite: np.ndarray) -> None:
    """Raise InputError that names the first element that is not finite.

    Args:
        maps: (..., m, m).
        finite: Whether each map is finite, (...) bool.
    """
    wrong = np.argwhere(~finite)
    if len(wrong):
        where = tuple(wrong[0].tolist())
        values = torch.as_tensor(maps[where]).detach().cpu()
        row, column = torch.nonzero(~torch.isfinite(values))[0].tolist()
        index = ", ".join(map(str, (*where, row, column)))
        raise InputError(f"maps[{index}] is {values[row, column].item()}; allowed: finite numbers")


def can_use_triton(maps: torch.Tensor) -> bool:
    """Return whether the Triton kernels can be run on these maps."""
    if maps.device.type != "cuda" or find_spec("triton") is None:
        return False
    from prune_fe.topology import gpu

    return maps.dtype in gpu.BITS and maps.shape[-1] <= gpu.MAX_ROWS


def births_on_device(maps: torch.Tensor, by_edges: bool, use_triton: bool) -> torch.Tensor:
    """Return the birth time of each map, computed on its device, NOT_FINITE for a map that is not finite.

    The maps in which equal edges decide are few. Of them the Triton kernels leave the whole map to the CPU, and plain
    operations the graph at one threshold.

    Args:
        maps: (..., m, m).
        by_edges: Whether births are numbered by "edges", not by "elements".
        use_triton: Whether the Triton kernels are run, or else plain tensor operations.
    """
    if not use_triton:
        births = torch.full(maps.shape[:-2], kernel.NOT_FINITE, dtype=torch.int32, device=maps.device)
        is_finite = maps.isfinite().all(dim=(-2, -1))
        if is_finite.any():
            births[is_finite] = portable.first_births(maps[is_finite], by_edges, has_hole)
        return births
    from prune_fe.topology import gpu

    with torch.cuda.device(maps.device) if maps.is_cuda else nullcontext():
        births = gpu.first_births(maps, by_edges, kernel.NOT_FINITE)
    undecided = births == gpu.UNDECIDED
    if undecided.any():
        births[undecided] = birth_times(maps[undecided].cpu(), "edges" if by_edges else "elements").to(births.device)
    return births


def has_hole(above: torch.Tensor, equal: torch.Tensor) -> torch.Tensor:
    """Return whether graphs without a hole have one when more edges enter, all at one step.

    Args:
        above: The edges that have entered, (n, m, m) bool.
        equal: The edges that enter now, (n, m, m) bool.

    Returns:
        (n,) bool on the same device.
    """
    # Values 2, 1 and 0: a hole that the edges of value 1 give has birth 2, or 1 if there is no edge of value 2.
    steps = birth_times((2 * above.half() + equal.half()).cpu(), "edges")
    return (steps == 1 + above.flatten(1).any(dim=1).cpu()).to(above.device)


def bit_patterns(maps: torch.Tensor | np.ndarray, dtype: str) -> np.ndarray:
    """Return the maps as integers of the same bits, (images, units, m, m), where they lie."""
    kind = INTEGER[dtype]
    if isinstance(maps, torch.Tensor):
        bits = maps.detach().view(getattr(torch, kind)).numpy()
    else:
        bits = (maps if maps.flags.aligned else maps.copy()).view(kind)
    bits = bits[(None,) * (4 - bits.ndim)]
    return bits.reshape(-1, *bits.shape[-3:])


class Layout(NamedTuple):
    """Where maps lie in the memory.

    Attributes:
        bits: 1-d, the memory from the first element to the last.
        starts: Where each map begins, or the first map of each image, 1-d int64.
        n_units: 1, or the interleaved units of each image.
        stride: Distance between two elements of a map, row after row: 1, or more for interleaved units.
    """

    bits: np.ndarray
    starts: np.ndarray
    n_units: int
    stride: int


class _Memory:
    """Presents the memory of an array as one of n elements in a row, which nobody writes to.

    It is not marked as read-only, because that is another type for numba, and would be compiled for separately.
    """

    def __init__(self, array: np.ndarray, n: int) -> None:
        data = (array.__array_interface__["data"][0], False)
        self.__array_interface__ = {"data": data, "shape": (n,), "typestr": array.dtype.str, "version": 3}
        self.array = array  # keeps the memory alive


def layout_of(bits: np.ndarray) -> Layout:
    """Return where the maps lie, as a copy only if they are neither contiguous nor interleaved.

    Args:
        bits: (images, units, m, m), at least one element.
    """
    n_images, n_units, size = bits.shape[:3]
    image_stride, unit_stride, row_stride, stride = (step // bits.itemsize for step in bits.strides)
    if size == 1:
        row_stride = stride = 1
    is_interleaved = n_units > 1 and unit_stride == 1 and stride > 1
    is_whole = all(step % bits.itemsize == 0 for step in bits.strides) and min(image_stride, unit_stride) >= 0
    if not (is_whole and row_stride == size * stride and (stride == 1 or is_interleaved)):
        return layout_of(np.ascontiguousarray(bits))
    starts = np.arange(n_images)[:, None] * image_stride
    if not is_interleaved:
        starts = starts + np.arange(n_units) * unit_stride
    last = (n_images - 1) * image_stride + (n_units - 1) * unit_stride + (size * size - 1) * stride
    memory = np.asarray(_Memory(bits, last + 1))
    return Layout(memory, starts.reshape(-1), n_units if is_interleaved else 1, stride)


def fill_births(bits: np.ndarray, infinity: int, rank: Rank, threads: int, births: np.ndarray) -> None:
    """Write the birth time of each map to `births`, on several threads if that pays.

    Args:
        bits: What `bit_patterns` returns, (images, units, m, m).
        infinity: The bits of +∞.
        rank: How births are numbered.
        threads: The largest number of threads.
        births: The output, (images, units) int32 in any contiguous shape.
    """
    n_elements, by_edges = bits.shape[-1] ** 2, rank == "edges"
    if bits.dtype == np.float64:
        fill_births_by_rank(bits, infinity, by_edges, threads, births.reshape(-1))
        return
    layout = layout_of(bits)
    births = births.reshape(len(layout.starts), layout.n_units)
    step, width = chunk_shape(layout, bits.shape[-1], threads)
    is_small = bits.shape[-1] <= small_maps.MAX_ROWS and not by_edges
    if is_small:
        # An element takes a quarter of the time, so more of them are worth a call.
        step = max(step, min(4 * step, -(-len(births) // threads)))

    def work(chunks: Iterator[tuple[int, int]]) -> None:
        if is_small:
            small_work = small_maps.make_work(bits.shape[-1], bits.dtype)
        else:
            scratch = kernel.make_scratch(n_elements, bits.dtype, width)
        for image, unit in chunks:
            output = births[image : image + step, unit : unit + width]
            output = output.reshape(-1)  # a view: only single images are divided
            starts = layout.starts[image : image + step] + unit
            given = (layout.bits, starts, min(width, layout.n_units - unit), layout.stride)
            if is_small:
                small_maps.fill_births(*given, bits.shape[-1], infinity, small_work, output)
                fill_unsure(*given, bits.shape[-1], infinity, output)
            else:
                kernel.fill_births(*given, infinity, by_edges, scratch, output)

    share(work, [(i, j) for i in range(0, len(births), step) for j in range(0, layout.n_units, width)], threads)


def fill_unsure(
    bits: np.ndarray,
    starts: np.ndarray,
    n_units: int,
    stride: int,
    size: int,
    infinity: int,
    births: np.ndarray,
) -> None:
    """Write the birth times that `small_maps.fill_births`, which takes the same arguments, has left UNSURE."""
    unsure = np.flatnonzero(births == small_maps.UNSURE)
    if len(unsure):
        n_elements = size * size
        scratch = kernel.make_scratch(n_elements, bits.dtype)
        firsts = starts[unsure // n_units] + unsure % n_units
        maps = bits[firsts[:, None] + np.arange(n_elements) * stride]
        found = np.empty(len(unsure), np.int32)
        places = np.arange(len(unsure)) * n_elements
        kernel.fill_births(maps.reshape(-1), places, 1, 1, infinity, False, scratch, found)
        births[unsure] = found


def chunk_shape(layout: Layout, size: int, threads: int) -> tuple[int, int]:
    """Return how many images, or contiguous maps, and how many interleaved units a thread takes at a time.

    The units of several images are never divided.
    """
    n_images, n_units = len(layout.starts), layout.n_units
    width = n_units
    if n_units > 1:
        largest = MAX_STRIP_TOPS // (2 * strips.strip_counts(size, True)[0])
        if n_images < 2 * threads:
            largest = min(largest, n_units * n_images // (2 * threads))
        width = min(n_units, max(1, largest // MIN_UNITS) * MIN_UNITS)
    return (chunk_size(n_images, n_units * size**2, threads) if width == n_units else 1), width


def chunk_size(n: int, n_elements: int, threads: int) -> int:
    """Return how many of n images or maps, of so many elements each, a thread takes at a time."""
    return max(1, min(CHUNK_ELEMENTS // n_elements, -(-n // (CHUNKS * threads))))


def fill_births_by_rank(bits: np.ndarray, infinity: int, by_edges: bool, threads: int, births: np.ndarray) -> None:
    """Write the birth time of each map of float64, whose ranks within the map replace the values.

    Args:
        bits: (images, units, m, m) float64.
        infinity: The rank of what is not finite.
        by_edges: Whether births are numbered by "edges".
        threads: The largest number of threads.
        births: The output, (images · units,) int32.
    """
    n_units, n_elements = bits.shape[1], bits.shape[-1] ** 2
    step = chunk_size(len(bits) * n_units, n_elements, threads)

    def work(chunks: Iterator[tuple[int, int]]) -> None:
        scratch = kernel.make_scratch(n_elements, np.dtype(np.int32))
        for image, unit in chunks:
            words = ranks(np.require(bits[image, unit : unit + step], requirements=["C", "W"]).reshape(-1, n_elements))
            output = births[image * n_units + unit :][: len(words)]
            starts = np.arange(len(words)) * n_elements
            kernel.fill_births(words.reshape(-1), starts, 1, 1, infinity, by_edges, scratch, output)

    share(work, [(i, j) for i in range(len(bits)) for j in range(0, n_units, step)], threads)


def share(work: Callable[[Iterator[Chunk]], None], chunks: Sequence[Chunk], threads: int) -> None:
    """Call `work` in several threads with one iterator over the chunks: whoever has finished takes the next one.

    The caller's thread is one of them. It waits for no thread that has not begun when all chunks are taken: on a busy
    machine that can take longer than all chunks.
    """
    remaining = iter(chunks)
    others = [helpers().submit(work, remaining) for _ in range(min(threads, len(chunks)) - 1)]
    try:
        work(remaining)
    finally:
        begun = [other for other in others if not other.cancel()]
        wait(begun)
    for other in begun:
        other.result()


@functools.cache
def helpers() -> ThreadPoolExecutor:
    """Return the threads that help the caller's. They stay, because to start one takes longer than many a chunk."""
    return ThreadPoolExecutor(max_workers=1 << 10, thread_name_prefix="birth_times")  # started when they are needed


# A process that is forked, as workers of a data loader are, has none of the threads: it makes its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=helpers.cache_clear)


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value within its map: (maps, m²) float64 -> int32."""
    result = np.empty(values.shape, np.int32)
    kernel.fill_ranks(values, result)
    return result
