"""What a piece of work costs: seconds, and the memory it needs on top of what is held when it begins."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

BLOCKS = 20
"""In so many blocks of calls a task is timed."""


class Meter:
    """Adds up the seconds, and keeps the peak, over all uses of `measuring`.

    peak_bytes: on CUDA what torch allocated, on Linux the resident memory of the process; None where neither can be
    had.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self.peak_bytes: int | None = None
        self._cuda = device if device.type == "cuda" else None

    @contextmanager
    def measuring(self) -> Iterator[None]:
        before, start = self._begin(), time.perf_counter()
        try:
            yield
        finally:
            if self._cuda is not None:
                torch.cuda.synchronize(self._cuda)
            self.seconds += time.perf_counter() - start
            if before is not None:
                self.peak_bytes = max(self.peak_bytes or 0, self._peak() - before)

    def _begin(self) -> int | None:
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
            torch.cuda.reset_peak_memory_stats(self._cuda)
            return torch.cuda.memory_allocated(self._cuda)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is resident now (man 5 proc)
            return _resident("VmRSS")
        except (OSError, TypeError):
            return None

    def _peak(self) -> int:
        return _resident("VmHWM") if self._cuda is None else torch.cuda.max_memory_allocated(self._cuda)


def seconds_in_turn(
    tasks: Sequence[Callable[[], object]], seconds: float, device: torch.device, blocks: int = 1
) -> list[list[float]]:
    """Seconds a call of each task, one number for every block of calls; a warm-up is not among them.

    The blocks alternate (A B A B ...), so that whatever else the machine does hits all tasks alike: the n-th numbers of
    two tasks are a pair. Goes on until each task was timed for `seconds`, and for `blocks` blocks at least.
    """
    calls = [max(1, round(seconds / BLOCKS / _warm_up(task, seconds / 10, device))) for task in tasks]
    times: list[list[float]] = [[] for _ in tasks]
    while len(times[0]) < blocks or min(count * sum(own) for count, own in zip(calls, times, strict=True)) < seconds:
        for task, count, own in zip(tasks, calls, times, strict=True):
            own.append(_seconds_of(task, count, device))
    return times


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper one."""
    low, middle, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    return low.item(), middle.item(), high.item()


def _warm_up(task: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Seconds of the last call. The first ones pay for allocation and for the choice of kernels."""
    spent = [_seconds_of(task, 1, device), _seconds_of(task, 1, device)]
    while sum(spent) < seconds:
        spent.append(_seconds_of(task, 1, device))
    return max(spent[-1], 1e-9)


def _seconds_of(task: Callable[[], object], calls: int, device: torch.device) -> float:
    """Seconds a call."""
    _wait_for(device)
    start = time.perf_counter()
    for _ in range(calls):
        task()
    _wait_for(device)
    return (time.perf_counter() - start) / calls


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _resident(entry: str) -> int:
    found = re.search(rf"^{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise TypeError(entry)
    return int(found[1]) << 10
