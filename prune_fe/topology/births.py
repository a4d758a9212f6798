"""The birth time of a feature map's first hole: how many elements must enter, largest first, until there is one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch

from prune_fe.errors import InputError
from prune_fe.topology import kernel, portable

Rank = Literal["elements", "edges"]
Maps = TypeVar("Maps", torch.Tensor, np.ndarray)

# The integer type with as many bits as each type, and the bits of +∞. The kernel takes at most 32 bits: float64 is
# replaced by ranks first, so it is only viewed as itself, and its infinity is the rank of maps that are not finite.
INTEGER = {"float16": "int16", "bfloat16": "int16", "float32": "int32", "float64": "float64"}
INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FFFFFFF}

# Elements that one thread takes at a time: some tenths of a millisecond of work, far more than it costs to hand out,
# and little enough that no thread waits long for the last one.
CHUNK_ELEMENTS = 1 << 16


def birth_times(maps: Maps, rank: Rank = "elements", threads: int | None = None) -> Maps:
    """Return the birth time of each map's first hole, 0 if no threshold gives a hole.

    A map U is read as the weights of a graph on its m rows: at threshold t, the edge {i, j} is present if
    max(U[i, j], U[j, i]) ≥ t, and all cliques are filled in. The first hole is born at the largest t = t* at which the
    first Betti number is not zero.

    Args:
        maps: (..., m, m), float16, bfloat16, float32 or float64, all finite; they are not changed.
        rank: How t* becomes a number. "elements": 1 + the number of U's m² elements > t* (Feature Entropy, ICLR 2022,
            eqs. 3 and 7). "edges": the number of different edge weights ≥ t* (one more than the authors' program
            writes).
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
    if maps.shape[-1] > kernel.MAX_ROWS:
        raise InputError(f"maps have {maps.shape[-1]} rows; allowed: at most {kernel.MAX_ROWS}")
    if isinstance(maps, torch.Tensor) and maps.device.type != "cpu":
        on_device = births_on_device(maps.detach(), rank == "edges", can_use_triton(maps))
        check_finite(maps, (on_device != kernel.NOT_FINITE).cpu().numpy())
        return on_device
    births = np.zeros(maps.shape[:-2], np.int32)
    if births.size and maps.shape[-1]:
        threads = threads or torch.get_num_threads()
        fill_births(bit_patterns(maps, dtype), INFINITY[dtype], rank, threads, births.reshape(-1))
        check_finite(maps, births != kernel.NOT_FINITE)
    return torch.from_numpy(births) if isinstance(maps, torch.Tensor) else births


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

    Only the graph at one threshold is copied to the CPU, and only for maps in which equal edges decide.

    Args:
        maps: (..., m, m).
        by_edges: Whether births are numbered by "edges", not by "elements".
        use_triton: Whether the Triton kernels are run, or else plain tensor operations.
    """
    if not use_triton:
        births = torch.full(maps.shape[:-2], kernel.NOT_FINITE, dtype=torch.int32, device=maps.device)
        open_maps = maps.isfinite().all(dim=(-2, -1))
    else:
        from prune_fe.topology import gpu

        with torch.cuda.device(maps.device) if maps.is_cuda else nullcontext():
            births = gpu.first_births(maps, by_edges, kernel.NOT_FINITE)
        open_maps = births == gpu.UNDECIDED
    # By plain operations: all finite maps, or those that the Triton kernels left undecided.
    if open_maps.any():
        births[open_maps] = portable.first_births(maps[open_maps], by_edges, has_hole)
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
    """Return the maps as (maps, m²) integers of the same bits, as a copy only if they are strided."""
    if isinstance(maps, torch.Tensor):
        bits = maps.detach().contiguous().view(getattr(torch, INTEGER[dtype])).numpy()
    else:
        bits = np.ascontiguousarray(maps).view(INTEGER[dtype])
    return bits.reshape(-1, maps.shape[-1] ** 2)


def fill_births(bits: np.ndarray, infinity: int, rank: Rank, threads: int, births: np.ndarray) -> None:
    """Write the birth time of each map to `births`, on several threads if that pays.

    Args:
        bits: What `bit_patterns` returns, (maps, m²).
        infinity: The bits of +∞.
        rank: How births are numbered.
        threads: The largest number of threads.
        births: The output, (maps,) int32.
    """
    n_maps, n_elements = bits.shape
    step = max(1, CHUNK_ELEMENTS // n_elements)
    starts = iter(range(0, n_maps, step))

    def work(starts: Iterator[int]) -> None:
        scratch = kernel.make_scratch(n_elements, np.dtype(np.int32) if bits.dtype == np.float64 else bits.dtype)
        for start in starts:
            chunk = slice(start, start + step)
            # A read-only array is another type for numba, and would be compiled for separately: copy it.
            words = np.require(bits[chunk], requirements="W")
            words = ranks(words) if bits.dtype == np.float64 else words
            kernel.fill_births(words, infinity, rank == "edges", scratch, births[chunk])

    # The threads share one iterator: whoever has finished takes the next chunk. They live for one call only, so that
    # the process may fork between calls; the caller's thread is one of them.
    threads = min(threads, -(-n_maps // step))
    if threads == 1:
        work(starts)
        return
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(work, starts) for _ in range(threads - 1)]
        work(starts)
        for other in others:
            other.result()


def ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value within its map: (maps, m²) float64 -> int32."""
    result = np.empty(values.shape, np.int32)
    kernel.fill_ranks(values, result)
    return result
