"""How numba compiles the functions that compute birth times on the CPU, and memory for them."""

# mypy: disable-error-code="no-untyped-def"
# The functions that numba compiles have no types for mypy.

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core import types
from numba.core.ccallback import CFunc

from prune_fe.topology.team import C_FUNCTION

CACHE_LINE = 64  # bytes


def c_function(function: Callable, argument: np.dtype) -> Callable[[int], None]:
    """Compile a C function that takes a pointer to a record, and cache its code on the disk.

    Args:
        function: Takes a pointer, from which `numba.carray` makes an array of one record, and returns nothing.
        argument: The type of the record.

    Returns:
        A C_FUNCTION.
    """
    arguments = (types.CPointer(numba.from_dtype(argument)),)
    callback: Any = CFunc(function, (arguments, types.void), locals={}, options={})
    # This is `numba.cfunc`, except that of what is cached numba compares only the file of the function itself: a change
    # in another file, of a function that is called, would go unnoticed.
    try:
        callback.enable_caching()
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        pass
    else:
        cache = callback._cache._cache_file
        cache._source_stamp = (cache._source_stamp, sources_digest())
    callback.compile()
    return C_FUNCTION(callback.address)


@functools.cache
def sources_digest() -> str:
    """Return the SHA-256 of the source files of this folder."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def compiled(function: Callable) -> Callable:
    """Compile a function that only compiled functions call.

    Without a wrapper for Python and a cache entry of its own (the C function's contains it), it compiles faster.
    """
    return numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)  # type: ignore[call-overload]


def inlined(function: Callable) -> Callable:
    """Compile a function as a part of its only caller instead of by itself, which halves the time for large ones."""
    return numba.njit(inline="always")(function)


@compiled
def aligned_empty(n, like):
    """Allocate an array of n numbers that begins at a multiple of the cache line's size.

    Vectors as long as a line are read half as fast from elsewhere, and numba aligns arrays to 32 bytes only.

    Args:
        n: How many numbers.
        like: An array of numbers of the same type.
    """
    memory = np.empty(n + CACHE_LINE // like.itemsize, like.dtype)
    first = -memory.ctypes.data % CACHE_LINE // like.itemsize
    return memory[first : first + n]
