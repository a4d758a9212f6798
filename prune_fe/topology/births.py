"""How many elements of a feature map must enter, largest first, until its clique complex has a hole?"""

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

# What holds a number's bits, and the bits of +∞. Twice as many bits do not fit: those values become ranks first.
INTEGER = {"float16": "int16", "bfloat16": "int16", "float32": "int32", "float64": "float64"}
INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FFFFFFF}

# Elements that one thread takes at a time: some tenths of a millisecond of work, far more than it costs to hand out,
# and little enough that no thread waits long for the last one.
CHUNK_ELEMENTS = 1 << 16


def birth_times(maps: Maps, rank: Rank = "elements", threads: int | None = None) -> Maps:
    """The birth time of each map's first hole; 0 when no threshold gives a hole.

    A map U is read as the weights of a graph on its m rows: at threshold t the edge {i, j} is there when
    max(U[i, j], U[j, i]) ≥ t, and all cliques are filled in. The birth is at the largest t = t* at which the first
    Betti number is not zero. As a number it is, by `rank`,
      - "elements": 1 + how many of U's m² elements are > t* (Feature Entropy, ICLR 2022, eq. 3 and 7);
      - "edges": how many different values ≥ t* the edges have (one more than the authors' program writes).

    maps: (..., m, m), float16, bfloat16, float32 or float64, all finite; left as they are, and on their device.
    threads: at most this many for maps on the CPU; torch's number by default.
    Returns (...) int32, an array for an array, a tensor on the maps' device for a tensor.

    >>> ring = np.array([[0, 9, 0, 6], [0, 0, 8, 0], [0, 0, 0, 7], [0, 0, 0, 0]], np.float32)
    >>> birth_times(ring[None])
    array([4], dtype=int32)
    """
    if rank not in get_args(Rank):
        raise InputError(f"rank is {rank!r}; allowed: {', '.join(get_args(Rank))}")
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; allowed: 1 or more")
    dtype = check(maps)
    if maps.shape[-1] > kernel.MOST_ROWS:
        raise InputError(f"maps have {maps.shape[-1]} rows; allowed: at most {kernel.MOST_ROWS}")
    if isinstance(maps, torch.Tensor) and maps.device.type != "cpu":
        found = births_on_device(maps.detach(), rank == "edges", has_kernels(maps))
        check_finite(maps, (found != kernel.NOT_FINITE).cpu().numpy())
        return found
    births = np.zeros(maps.shape[:-2], np.int32)
    if births.size and maps.shape[-1]:
        fill(
            bit_patterns(maps, dtype),
            INFINITY[dtype],
            rank,
            threads or torch.get_num_threads(),
            births.reshape(-1),
        )
        check_finite(maps, births != kernel.NOT_FINITE)
    return torch.from_numpy(births) if isinstance(maps, torch.Tensor) else births


def check(maps: Any, square: bool = True) -> str:
    """Raise InputError for what cannot be maps; returns the name of the maps' type."""
    if not isinstance(maps, torch.Tensor | np.ndarray):
        raise InputError(f"maps are a {type(maps).__name__}; allowed: a torch tensor, a numpy array")
    dtype = str(maps.dtype).removeprefix("torch.")
    if dtype not in INFINITY:
        raise InputError(f"maps are {dtype}; allowed: {', '.join(INFINITY)}")
    if maps.ndim < 2 or (square and maps.shape[-1] != maps.shape[-2]):
        allowed = "(..., m, m)" if square else "(..., height, width)"
        raise InputError(f"maps have shape {tuple(maps.shape)}; allowed: {allowed}")
    return dtype


def has_kernels(maps: torch.Tensor) -> bool:
    """Whether the Triton kernels can take these maps."""
    if maps.device.type != "cuda" or find_spec("triton") is None:
        return False
    from prune_fe.topology import gpu

    return maps.dtype in gpu.BITS and maps.shape[-1] <= gpu.MOST_ROWS


def births_on_device(maps: torch.Tensor, by_edges: bool, kernels: bool) -> torch.Tensor:
    """What birth_times returns, with NOT_FINITE, by the Triton kernels or else by plain tensor operations.

    No map leaves the device; of those that equal edges leave open, the graph at one threshold does.
    """
    if not kernels:
        births = torch.full(maps.shape[:-2], kernel.NOT_FINITE, dtype=torch.int32, device=maps.device)
        chosen = maps.isfinite().all(dim=(-2, -1))
    else:
        from prune_fe.topology import gpu

        with torch.cuda.device(maps.device) if maps.is_cuda else nullcontext():
            births = gpu.first_births(maps, by_edges, kernel.NOT_FINITE)
        chosen = births == gpu.UNDECIDED
    if chosen.any():
        births[chosen] = portable.first_births(maps[chosen], by_edges, has_hole)
    return births


def has_hole(above: torch.Tensor, equal: torch.Tensor) -> torch.Tensor:
    """For portable.first_births: whether graphs (n, m, m) without a hole have one when the edges `equal` enter too."""
    steps = birth_times((2 * above.half() + equal.half()).cpu(), "edges")
    return (steps == 1 + above.flatten(1).any(dim=1).cpu()).to(above.device)


def bit_patterns(maps: torch.Tensor | np.ndarray, dtype: str) -> np.ndarray:
    """The maps as (maps, m²) integers of the same bits; a copy only if they are strided."""
    if isinstance(maps, torch.Tensor):
        bits = maps.detach().contiguous().view(getattr(torch, INTEGER[dtype])).numpy()
    else:
        bits = np.ascontiguousarray(maps).view(INTEGER[dtype])
    return bits.reshape(-1, maps.shape[-1] ** 2)


def fill(bits: np.ndarray, infinity: int, rank: Rank, threads: int, births: np.ndarray) -> None:
    """Write the birth time of each row of bits (maps, m²) to births (maps,), on several threads if that pays."""
    n_maps, n_elements = bits.shape
    step = max(1, CHUNK_ELEMENTS // n_elements)
    starts = iter(range(0, n_maps, step))

    def work(starts: Iterator[int]) -> None:
        scratch = kernel.make_scratch(n_elements, np.dtype(np.int32) if bits.dtype == np.float64 else bits.dtype)
        for start in starts:
            chunk = slice(start, start + step)
            words = ranks(bits[chunk]) if bits.dtype == np.float64 else bits[chunk]
            kernel.fill_births(words, infinity, rank == "edges", scratch, births[chunk])

    # The threads share one iterator: who is done first takes the next chunk. They live for one call, which survives a
    # fork; the caller is one of them.
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
    """The rank of each value within its map: (maps, m²) float64 -> int32."""
    result = np.empty(values.shape, np.int32)
    kernel.fill_ranks(values, result)
    return result


def check_finite(maps: torch.Tensor | np.ndarray, finite: np.ndarray) -> None:
    """Raise InputError that names the first element of the first map (...) that is not finite."""
    wrong = np.argwhere(~finite)
    if len(wrong):
        where = tuple(wrong[0].tolist())
        values = torch.as_tensor(maps[where]).detach().cpu()
        row, column = torch.nonzero(~torch.isfinite(values))[0].tolist()
        index = ", ".join(map(str, (*where, row, column)))
        raise InputError(f"maps[{index}] is {values[row, column].item()}; allowed: finite numbers")
