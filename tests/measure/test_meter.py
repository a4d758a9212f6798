"""Timing in alternating blocks, and the memory of a piece of work. No test depends on how fast this machine is."""

import mmap
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from prune_fe.measure import meter
from prune_fe.measure.meter import MEMORY_USES, Meter, ProcessorShare, is_disturbed, quartiles, seconds_in_turn

CPU = torch.device("cpu")


def test_blocks_alternate_and_last_equally_long_behind_a_warm_up(clock: list[float]) -> None:
    order: list[str] = []

    def task(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            order.append(name)
            clock[0] += seconds

        return run

    slow, fast = seconds_in_turn([task("A", 4.0), task("B", 1.0)], 160.0, CPU)  # a block is 160 / 20 = 8 s
    assert slow == [4.0] * 20
    assert fast == [1.0] * 20
    warm = ["A"] * 4 + ["B"] * 16  # a tenth of the time each
    assert order == warm + (["A"] * 2 + ["B"] * 8) * 20


def test_a_task_longer_than_the_time_gets_its_blocks(clock: list[float]) -> None:
    def run() -> None:
        clock[0] += 100.0

    assert seconds_in_turn([run, run], 1.0, CPU, blocks=7) == [[100.0] * 7] * 2


def test_the_share_with_a_processor_is_that_of_the_blocks_without_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, wall, own, share = 0, 0.0, 0.0, ProcessorShare()
    clock = types.SimpleNamespace(perf_counter=lambda: wall, thread_time=lambda: own)
    monkeypatch.setattr(meter, "time", clock)

    def task() -> None:
        nonlocal calls, wall, own
        calls += 1
        wall += 1.0
        own += 1.0 if calls <= 2 else 0.5

    seconds_in_turn([task], 10.0, CPU, around=share)
    assert (share.seconds, share.value) == (10.0, 0.5)


@pytest.mark.parametrize(
    ("low", "high", "share", "expected"),
    [
        (2.0, 2.9, None, False), (2.0, 3.1, None, True),
        (2.0, 2.0, 0.95, False), (2.0, 2.0, 0.85, True), (2.0, 3.1, 1.0, True),
    ],
)  # fmt: skip
def test_a_timing_is_disturbed_if_it_varies_or_waits(low: float, high: float, share: float, expected: bool) -> None:
    assert is_disturbed(low, high, share) == expected


def test_quartiles_are_interpolated() -> None:
    assert quartiles([4.0, 1.0, 2.0, 3.0]) == (1.75, 2.5, 3.25)
    assert quartiles([2.0]) == (2.0, 2.0, 2.0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_seconds_add_up_and_the_largest_peak_stays(clock: list[float]) -> None:
    meter_ = Meter(CPU)
    for megabytes in (64, 1):
        with meter_.measuring():
            clock[0] += 2.0
            # Mapped, since malloc may give memory that is resident already.
            np.frombuffer(mmap.mmap(-1, megabytes << 20), np.uint8)[:] = 1
    assert meter_.seconds == 4.0
    assert meter_.peak_bytes is None or 48 << 20 < meter_.peak_bytes < 256 << 20


def test_the_memory_of_each_part_is_measured_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    part, measured = "", []
    monkeypatch.setattr(Meter, "_reset_peak", lambda _: measured.append(part))
    meter_ = Meter(CPU)
    for part in ["one", "two"] * (MEMORY_USES + 2):
        with meter_.measuring(part):
            pass
    assert measured == ["one", "two"] * MEMORY_USES


def test_work_that_raises_is_measured_too(clock: list[float]) -> None:
    meter_ = Meter(CPU)
    with pytest.raises(KeyError), meter_.measuring():
        clock[0] += 3.0
        raise KeyError
    assert meter_.seconds == 3.0


@pytest.mark.parametrize("file", ["STATUS", "CLEAR_REFS"])
def test_a_system_without_proc_has_no_peak(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, file, tmp_path / "missing" / "file")
    meter_ = Meter(CPU)
    with meter_.measuring():
        pass
    assert meter_.peak_bytes is None
