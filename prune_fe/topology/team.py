"""Run a compiled function in several threads at once, in torch's own threads if possible.

These threads run the layers of a network. They wait for work between two layers, so they begin at once. Threads of our
own would have to be woken up, and would share the processors with the waiting ones.
"""

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

C_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
"""The type of what threads run: `void f(void *)`, called without the GIL."""

PROCESS = os.getpid()
"""A process that was forked from this one cannot use OpenMP: its threads were not copied, and GNU's waits for them."""


def run_in_team(function: Callable[[int], None], argument: int, threads: int, memory: object = None) -> None:
    """Call a compiled function in several threads, one of which is the caller's, and wait until all have returned.

    Args:
        function: A C_FUNCTION.
        argument: The pointer.
        threads: The largest number of threads. Fewer may run, so the function must not rely on any other thread.
        memory: What holds the memory that the function uses. An interruption may end the wait before a thread returns.
    """
    if threads == 1:
        function(argument)
        return
    process = os.getpid()
    parallel = openmp_parallel() if process == PROCESS else None
    if parallel is not None:
        parallel(function, argument, threads, 0)
        return

    def help_caller(memory: object) -> None:
        function(argument)

    others = [helpers(process).submit(help_caller, memory) for _ in range(threads - 1)]
    function(argument)
    # Those that have not begun are not needed any more: on a busy machine they would begin late.
    wait([other for other in others if not other.cancel()])


@functools.cache
def openmp_parallel() -> Callable[..., None] | None:
    """Return `GOMP_parallel` of the OpenMP library that torch uses; None where it is not found, as outside Linux.

    `void GOMP_parallel(void (*function)(void *), void *argument, unsigned threads, unsigned flags)` runs a function in
    the threads of the library. GCC calls it for `#pragma omp parallel`; LLVM's and Intel's libraries have it too.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # A symbol is looked up in the library and in those that it was linked to.
        parallel: Any = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [C_FUNCTION, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


@functools.cache
def helpers(process: int) -> ThreadPoolExecutor:
    """Return the pool of threads that help the caller where torch's threads cannot be used.

    They stay, because to start one takes longer than many a call.

    Args:
        process: The number of the process. A forked one has none of the threads of its parent, and makes its own.
    """
    return ThreadPoolExecutor(max_workers=1 << 10, thread_name_prefix="birth_times")  # started when they are needed
