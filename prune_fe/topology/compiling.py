"""How the kernels are compiled: without the interpreter's lock, and kept on disk where that is possible."""

from collections.abc import Callable

import numba


def compiled(function: Callable) -> Callable:
    """Compile on the first call; later processes load the machine code from the cache.

    Not numba's `parallel=True`: its OpenMP runtime clashes with torch's and dies in forked data loader workers.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        return numba.njit(nogil=True)(function)
