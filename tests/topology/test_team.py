"""The threads of a call: torch's own, or helpers where these cannot be used."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from prune_fe.topology import birth_times, team
from prune_fe.topology.team import run_in_team

TASKS = Path("/proc/self/task")


def c_function(function: Callable[[], object]) -> Callable[[int], None]:
    return team.C_FUNCTION(lambda _: function() and None)


@pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP is called on Linux only")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_thread_of_torch_runs_the_function(threads: int) -> None:
    found: list[int] = []
    all_have_begun = threading.Barrier(threads)

    def note() -> None:
        all_have_begun.wait(60)
        found.append(threading.get_native_id())

    run_in_team(c_function(note), 0, threads)
    assert len(set(found)) == threads
    assert threading.get_native_id() in found


@pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP is called on Linux only")
@pytest.mark.skipif(not TASKS.exists(), reason="the threads cannot be listed on this system")
def test_no_thread_is_started_beside_those_of_torch() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.ones(1 << 20).exp()  # large enough for two threads
        threads = set(TASKS.iterdir())
        birth_times(torch.rand(2000, 20, 20))
        assert set(TASKS.iterdir()) == threads
    finally:
        torch.set_num_threads(before)


def test_the_argument_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[int] = []
    function = team.C_FUNCTION(received.append)
    run_in_team(function, 41, 1)
    run_in_team(function, 42, 2)
    monkeypatch.setattr(team, "openmp_parallel", lambda: None)
    run_in_team(function, 43, 2)
    assert set(received) == {41, 42, 43}


def test_without_the_threads_of_torch_there_are_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.rand(2000, 20, 20)
    expected = birth_times(maps, threads=1)
    monkeypatch.setattr(team, "openmp_parallel", lambda: None)
    found: list[int] = []
    both_have_begun = threading.Barrier(2)

    def note() -> None:
        both_have_begun.wait(60)
        found.append(threading.get_native_id())

    run_in_team(c_function(note), 0, 2)
    assert len(set(found)) == 2
    assert torch.equal(birth_times(maps, threads=2), expected)


def test_nobody_waits_for_a_helper_that_has_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    release = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(release.wait, 60)  # the only helper is busy
        monkeypatch.setattr(team, "openmp_parallel", lambda: None)
        monkeypatch.setattr(team, "helpers", lambda process: pool)
        run_in_team(c_function(lambda: calls.append(1)), 0, 3)
        assert not release.is_set()
        assert calls == [1]
        release.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_waits_for_no_thread_of_its_parent() -> None:
    maps = torch.rand(2000, 20, 20)
    expected = birth_times(maps, threads=3)
    child = multiprocessing.get_context("fork").Process(target=_check_in_child, args=(maps, expected))
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0


def _check_in_child(maps: torch.Tensor, expected: torch.Tensor) -> None:
    """Fail, or never end if the process waits for threads that it does not have."""
    births = torch.zeros_like(expected)
    births.copy_(birth_times(maps, threads=3))
    assert team.helpers(os.getpid()).submit(abs, -1).result(30) == 1
    assert torch.equal(births, expected)
