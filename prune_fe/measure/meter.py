"""Measure the seconds that a block of code takes, and the memory that it needs in addition to that in use before."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Of the process, on Linux (man 5 proc). They are opened without a buffer and as bytes, which takes less time."""

BLOCKS = 20
"""Number of blocks into which the calls of a timed task are divided."""

MEMORY_USES = 3
"""How often the memory of each part is measured: that takes as long as measuring some small maps."""

UNSTEADY = 1.5
"""If the quartiles of a timing differ by more than this factor, other work on the machine disturbed it."""

BUSY = 0.9
"""Least share of the time for which a thread that always computes has a processor, unless the machine is busy."""


class Meter:
    """Adds up the seconds of all uses of `measuring`, and keeps the largest peak of their memory.

    Attributes:
        seconds: Seconds of all uses.
        peak_bytes: Largest additional memory of the first `MEMORY_USES` uses for each part: on CUDA what torch
            allocated, on Linux the resident memory of the process; None where neither is known.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self.peak_bytes: int | None = None
        self._uses: Counter[str | None] = Counter()
        self._cuda = device if device.type == "cuda" else None

    @contextmanager
    def measuring(self, part: str | None = None) -> Iterator[None]:
        """Measure the body of a `with` statement, also one that raises.

        Args:
            part: What the body works on, such as the name of a layer; None for the whole.
        """
        self._uses[part] += 1
        self._synchronize()
        before = self._reset_peak() if self._uses[part] <= MEMORY_USES else None
        start = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            self.seconds += time.perf_counter() - start
            if before is not None:
                self.peak_bytes = max(self.peak_bytes or 0, self._peak() - before)

    def _synchronize(self) -> None:
        """Wait for the kernels that CUDA runs asynchronously, so that the clock counts those of the body alone."""
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)

    def _reset_peak(self) -> int | None:
        """Start a new peak and return the bytes in use now; None if the system does not tell."""
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            return self._allocated_bytes("current")
        try:
            with CLEAR_REFS.open("wb", buffering=0) as file:
                file.write(b"5")  # sets the peak to the memory that is resident now
            return _process_bytes(b"VmRSS")
        except (OSError, ValueError):
            return None

    def _peak(self) -> int:
        return _process_bytes(b"VmHWM") if self._cuda is None else self._allocated_bytes("peak")

    def _allocated_bytes(self, when: str) -> int:
        # torch.cuda.memory_allocated sorts all the numbers of these nested dicts into another one first.
        return torch.cuda.memory_stats_as_nested_dict(self._cuda)["allocated_bytes"]["all"][when]


class ProcessorShare:
    """Measures the share of the time inside its `with` statements in which the calling thread had a processor.

    It is close to 1 for a thread that computes, and lower where other processes take the processor. The spread of
    repeated timings does not show this if the machine is equally busy all the time.
    """

    def __init__(self) -> None:
        self.seconds = self.own_seconds = 0.0

    @property
    def value(self) -> float:
        """The share, at most 1."""
        return min(self.own_seconds / max(self.seconds, 1e-9), 1.0)

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._start[0]
        self.own_seconds += time.thread_time() - self._start[1]


def is_disturbed(low: float, high: float, processor_share: float | None) -> bool:
    """Return whether other work on the machine disturbed a timing.

    Args:
        low: Lower quartile of the times or of the speeds.
        high: Upper quartile.
        processor_share: Share of the time in which the timed thread had a processor; None if that is not known.
    """
    return high > UNSTEADY * low or (processor_share is not None and processor_share < BUSY)


def seconds_in_turn(
    tasks: Sequence[Callable[[], object]],
    seconds: float,
    device: torch.device,
    blocks: int = 1,
    around: AbstractContextManager[object] | None = None,
) -> list[list[float]]:
    """Time tasks in alternating blocks of calls (A B A B …), after a warm-up.

    Other work on the machine then affects all tasks alike, and the n-th times of two tasks form a pair.

    Args:
        tasks: Functions without arguments.
        seconds: Each task is timed for at least this long.
        device: Device that the tasks use; it is synchronised before and after each block.
        blocks: Each task is timed in at least this many blocks.
        around: A context manager that is entered for each timed block, such as a `ProcessorShare`; None for none.

    Returns:
        For each task the seconds of one call, a number for each block.
    """
    # Blocks of several calls, because a single one may be shorter than the clock resolves.
    calls = [max(1, round(seconds / BLOCKS / _warm_up(task, seconds / 10, device))) for task in tasks]
    times: list[list[float]] = [[] for _ in tasks]
    around = nullcontext() if around is None else around
    while len(times[0]) < blocks or min(n * sum(spent) for n, spent in zip(calls, times, strict=True)) < seconds:
        for task, n, spent in zip(tasks, calls, times, strict=True):
            with around:
                spent.append(_seconds_per_call(task, n, device))
    return times


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return low, median, high


def _warm_up(task: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Call a task at least twice and for `seconds`, and return the seconds of the last call.

    The first calls also pay for allocation and for the choice of kernels.
    """
    spent = [_seconds_per_call(task, 1, device), _seconds_per_call(task, 1, device)]
    while sum(spent) < seconds:
        spent.append(_seconds_per_call(task, 1, device))
    return max(spent[-1], 1e-9)


def _seconds_per_call(task: Callable[[], object], calls: int, device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        task()
    _synchronize(device)
    return (time.perf_counter() - start) / calls


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _process_bytes(entry: bytes) -> int:
    """Return an entry of /proc/self/status, such as VmRSS (resident memory) or VmHWM (its peak), in bytes."""
    with STATUS.open("rb", buffering=0) as file:
        match = re.search(rb"^" + entry + rb":\s+(\d+) kB", file.read(1 << 14), re.MULTILINE)
    if match is None:
        raise ValueError(f"{STATUS} has no entry {entry.decode()}")
    return int(match[1]) << 10


def describe_threads(count: int) -> str:
    """Return a number of threads with its noun.

    >>> describe_threads(1), describe_threads(2)
    ('1 thread', '2 threads')
    """
    return f"{count} thread{'s' * (count != 1)}"
