"""The birth time of a feature map's first hole: how many elements must enter, largest first, until there is one."""

from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch

from prune_fe.errors import InputError
from prune_fe.topology import graph, jobs, kernel, portable, strips
from prune_fe.topology.jobs import Layout, run_job

Rank = Literal["elements", "edges"]
Maps = TypeVar("Maps", torch.Tensor, np.ndarray)

# The integer type as which the kernel reads each type, and the bits of +∞. It takes at most 32 bits: the elements of
# float64 maps are replaced by ranks first, and the infinity is the rank in maps that are not finite.
INTEGER: dict[str, np.dtype] = {
    "float16": np.dtype(np.int16),
    "bfloat16": np.dtype(np.int16),
    "float32": np.dtype(np.int32),
    "float64": np.dtype(np.int32),
}
INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FFFFFFF}

# Elements that one thread takes at a time, where there are so many: a tenth of a millisecond of work, far more than it
# costs to take them.
CHUNK_ELEMENTS = 1 << 18

# How often each thread can take some, so that none waits long for the last one.
CHUNKS = 4

MIN_UNITS = 64
"""Interleaved units that one thread takes at least, where there are so many: fewer would split what lies together."""

MAX_RANKED = 1 << 22
"""Elements of float64 maps whose ranks are in the memory at a time."""

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
        own = births.reshape(-1)
        fill_births(layout_of(maps), dtype, maps.shape[-1], rank, threads or torch.get_num_threads(), own)
        if own.min() < 0:
            check_finite(maps, births != kernel.NOT_FINITE)
    return torch.from_numpy(births) if isinstance(maps, torch.Tensor) else births


def compile_kernel() -> None:
    """Compile what computes the birth times of float32 maps: once an installation, and kept on the disk."""
    jobs.compile_births(INTEGER["float32"])


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


def layout_of(maps: torch.Tensor | np.ndarray) -> Layout:
    """Describe where maps (..., m, m) lie in the memory; copy them first if neither contiguous nor interleaved.

    A network has many layers, so this has to be quick. Integers of Python are quicker than an array's functions.

    Args:
        maps: At least one map of at least one element.
    """
    if maps.ndim != 4:  # (images, units, m, m)
        maps = maps[(None,) * (4 - maps.ndim)]
        maps = maps.reshape(-1, *maps.shape[-3:])
    n_images, n_units, size = maps.shape[:3]
    if isinstance(maps, torch.Tensor):
        maps = maps.detach().resolve_neg()
        image_stride, unit_stride, row_stride, stride = maps.stride()
        address, is_whole = maps.data_ptr(), True
    else:
        image_stride, unit_stride, row_stride, stride = (step // maps.itemsize for step in maps.strides)
        address = maps.ctypes.data
        is_whole = (
            maps.flags.aligned and min(maps.strides) >= 0 and not any(step % maps.itemsize for step in maps.strides)
        )
    if size == 1:
        row_stride = stride = 1
    is_interleaved = n_units > 1 and unit_stride == 1 and stride > 1
    if not (is_whole and row_stride == size * stride and (stride == 1 or is_interleaved)):
        return layout_of(maps.contiguous() if isinstance(maps, torch.Tensor) else np.array(maps, order="C"))
    starts = np.arange(n_images) * image_stride
    if not is_interleaved:
        starts = (starts[:, None] + np.arange(n_units) * unit_stride).reshape(-1)
    n_numbers = (n_images - 1) * image_stride + (n_units - 1) * unit_stride + (size * size - 1) * stride + 1
    return Layout(maps, address, n_numbers, starts, n_units if is_interleaved else 1, stride)


def fill_births(maps: Layout, dtype: str, size: int, rank: Rank, threads: int, births: np.ndarray) -> None:
    """Write the birth time of each map to `births`, on several threads if that pays.

    Args:
        maps: The maps.
        dtype: Name of their number type.
        size: Rows of a map.
        rank: How births are numbered.
        threads: The largest number of threads.
        births: The output, (maps,) int32.
    """
    by_edges, infinity = rank == "edges", INFINITY[dtype]
    function = jobs.compile_births(INTEGER[dtype])
    if dtype != "float64":
        run_job(function, maps, size, births, chunk_shape(maps, size, threads), threads, infinity, by_edges)
        return
    starts = (maps.starts[:, None] + np.arange(maps.n_units)).reshape(-1)
    n = max(1, MAX_RANKED // size**2)
    for first in range(0, len(starts), n):
        some = maps._replace(starts=starts[first : first + n], n_units=1)
        ranks = np.empty((len(some.starts), size, size), np.int32)
        chunk = chunk_size(len(ranks), size**2, threads), 1
        run_job(jobs.compile_ranks(), some, size, ranks, chunk, threads)
        run_job(function, layout_of(ranks), size, births[first : first + n], chunk, threads, infinity, by_edges)


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
    """Choose how many images, or maps that are not interleaved, a thread takes at a time.

    Args:
        n: How many there are.
        n_elements: Elements of each.
        threads: Number of threads.
    """
    return max(1, min(CHUNK_ELEMENTS // n_elements, -(-n // (CHUNKS * threads))))
