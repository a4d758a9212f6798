"""How numba compiles the functions that compute birth times on the CPU, and memory for them."""

import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

CACHE_LINE = 64  # bytes


def entry_point(function: Callable) -> Callable:
    """Compile a function that Python calls, on its first call, to run without the GIL; cache its code on the disk.

    numba's `parallel=True` is no option: its OpenMP runtime clashes with torch's and dies in forked data loader
    workers.
    """
    try:
        dispatcher: Any = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return numba.njit(nogil=True)(function)
    # Of what is cached, numba compares only the file of the function itself. A change in another file, of a function
    # that is called, would go unnoticed.
    cache: Any = getattr(dispatcher._cache, "_cache_file", None)
    if hasattr(cache, "_source_stamp"):
        cache._source_stamp = (cache._source_stamp, sources_digest())
    return dispatcher


@functools.cache
def sources_digest() -> str:
    """Return the SHA-256 of the source files of this folder."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def compiled(function: Callable) -> Callable:
    """Compile a function that only compiled functions call.

    Without a wrapper for Python and a cache entry of its own (the entry point's contains it), it compiles faster.
    """
    return numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)  # type: ignore[call-overload]


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an array that begins with a line of the cache: longer vectors that begin elsewhere are read half as fast.

    numpy aligns arrays to 16 bytes.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + CACHE_LINE, np.uint8)
    first = -memory.ctypes.data % CACHE_LINE
    return memory[first : first + size].view(dtype).reshape(shape)
