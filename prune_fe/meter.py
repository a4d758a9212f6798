"""What a piece of work costs: seconds, and the memory it needs on top of what is held when it begins."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


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


def _resident(entry: str) -> int:
    found = re.search(rf"^{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise TypeError(entry)
    return int(found[1]) << 10
