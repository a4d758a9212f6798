"""Errors of a data set name the sample, in this process and in those that read images."""

import multiprocessing
import os
import pickle
import time
import warnings
from collections.abc import Sequence
from threading import Timer
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from prune_fe.data import reading
from prune_fe.data.batches import iterate, make_loader, validate_batches
from prune_fe.data.reading import check_label, explain_worker_errors
from prune_fe.errors import DataError, InputError
from prune_fe.tracing.watching import explain_run
from tests.data.pictures import Labelled


class Raises(Labelled):
    def __getitem__(self, index: int) -> Any:
        if index == 5:
            raise KeyError("broken\nand more")
        return super().__getitem__(index)


def as_large_numpy(samples: Any) -> Any:
    """A batch that does not fit into a pipe at once, so that the worker waits while it is being sent."""
    return np.zeros((3, 1, 600, 600)), [label for _, label in samples]


class Dies(Labelled):
    def __getitem__(self, index: int) -> Any:
        if index == 5:
            os._exit(3)
        return super().__getitem__(index)


def read(data: Any, workers: int = 0) -> list[Any]:
    return list(validate_batches(make_loader(data, 3, workers)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_raises_is_named(workers: int) -> None:
    with pytest.raises(DataError, match=r"^image 5: it cannot be read \(KeyError: .*broken") as caught:
        read(Raises([0] * 8), workers)
    assert "Traceback" not in str(caught.value)


def test_a_sample_at_which_a_worker_dies_is_named() -> None:
    with pytest.raises(DataError, match=r"^image 5: a process that reads images has died \(exit code 3\)"):
        read(Dies([0] * 8), 1)


class Delegating:
    """An iterator around another one, as a data library may have."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        return next(self.inner)


class Wrapped(DataLoader[Any]):
    def __iter__(self) -> Any:
        return Delegating(super().__iter__())


SPAWN: dict[str, Any] = {"num_workers": 1, "multiprocessing_context": "spawn"}


def read_one_and_kill_a_worker(batches: Any, others: Sequence[Any]) -> None:
    """Kill the last of the processes that have begun since there were only these others."""
    next(batches)
    max(set(multiprocessing.active_children()) - set(others), key=lambda each: int(each.name.split("-")[-1])).kill()
    for _ in range(50):  # the network runs on the batch
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("loader", "options"),
    [
        (make_loader, {"workers": 1}),
        (DataLoader, SPAWN),
        (DataLoader, SPAWN | {"timeout": 600, "persistent_workers": True}),
        (DataLoader, SPAWN | {"collate_fn": as_large_numpy}),
    ],
)
def test_the_death_of_a_worker_is_an_error_of_a_later_batch_only(loader: Any, options: dict[str, Any]) -> None:
    others = multiprocessing.active_children()
    batches = iterate(loader(Labelled([0] * 300), 3, **options))
    read_one_and_kill_a_worker(batches, others)
    with pytest.raises(DataError, match=r"a process that reads images has died \(killed by SIGKILL: the memory may"):
        list(batches)


def test_a_loader_of_a_users_class_is_read_as_any_other() -> None:
    assert len(list(iterate(Wrapped(Labelled([0] * 6), 3, **SPAWN)))) == 2


def test_a_death_that_torch_reports_while_a_network_runs_is_not_the_networks_fault() -> None:
    with pytest.raises(RuntimeError, match="^DataLoader worker"), explain_run(torch.nn.Identity(), torch.zeros(1)):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")


def test_a_users_loader_is_watched_by_torch_afterwards() -> None:
    others = multiprocessing.active_children()
    loader = DataLoader(Labelled([0] * 6), 3, persistent_workers=True, **SPAWN)
    list(iterate(loader))
    with pytest.raises(RuntimeError, match="DataLoader worker .* is killed by signal"):
        read_one_and_kill_a_worker(iter(loader), others)


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "reset"), EOFError(), RuntimeError("Pin memory thread exited unexpectedly")]
)
def test_a_worker_may_break_the_connection_before_it_counts_as_dead(error: Exception) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    worker.start()
    Timer(0.2, worker.kill).start()
    has_died = pytest.raises(DataError, match=r"an image: a process that reads images has died \(killed by SIGKILL")
    with has_died, explain_worker_errors(None, [worker]):
        raise error


def test_a_broken_connection_to_a_worker_that_lives_stays_what_it_is(monkeypatch: Any) -> None:
    monkeypatch.setattr(reading, "DEATH_SECONDS", 0.1)
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    worker.start()
    try:
        with pytest.raises(ConnectionResetError), explain_worker_errors(None, [worker]):
            raise ConnectionResetError(104, "Connection reset by peer")
    finally:
        worker.kill()


class Numbers(IterableDataset[Any]):
    """Worker 0 has nothing to read."""

    def __iter__(self) -> Any:
        info = get_worker_info()
        assert info is not None
        for index in range(300 if info.id else 0):
            yield torch.full((1, 2, 2), float(index)), 0


def test_of_several_workers_the_one_that_died_is_described() -> None:
    others = multiprocessing.active_children()
    batches = iterate(DataLoader(Numbers(), 3, num_workers=2, multiprocessing_context="spawn"))
    read_one_and_kill_a_worker(batches, others)
    with pytest.raises(DataError, match="killed by SIGKILL"):
        list(batches)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone", "a.png"), ConnectionResetError(104, "reset")])
def test_an_error_in_this_process_comes_at_once_and_unchanged(error: Exception) -> None:
    data = Fails([0] * 8)
    data.error = error  # type: ignore[attr-defined]
    with pytest.raises(type(error)) as caught:
        list(iterate(DataLoader(data, 3)))
    assert caught.value is error


class Fails(Labelled):
    def __getitem__(self, index: int) -> Any:
        raise self.error  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [RuntimeError("of its own"), ConnectionResetError("of its own")])
def test_an_error_that_a_users_loader_raises_in_a_worker_stays_what_it_is(error: Exception) -> None:
    data = Fails([0] * 8)
    data.error = error  # type: ignore[attr-defined]
    with pytest.raises(type(error), match="of its own"):
        list(validate_batches(DataLoader(data, 3, num_workers=1, multiprocessing_context="spawn")))


def test_a_data_set_that_no_worker_can_get_is_refused() -> None:
    data = Labelled([0] * 8)
    data.lost = lambda: None  # type: ignore[attr-defined]
    # torch warns before it raises.
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(InputError, match="cannot be sent to the processes that read images .*use workers=0"),
    ):
        read(data, 1)


@pytest.mark.parametrize(
    "label", ["a", None, 1.5, 10**30, torch.tensor(1.0), torch.tensor([0, 1]), np.float32(1), torch.tensor(1j)]
)
def test_a_label_that_is_no_whole_number_is_named_with_its_image(label: Any) -> None:
    data = Labelled([0] * 8)
    data.targets[4] = label
    with pytest.raises(DataError, match="^image 4: .*its label is"):
        read(data)


def test_whole_numbers_of_any_type_are_labels() -> None:
    for label in (3, True, np.int16(3), torch.tensor(3), torch.tensor(3, dtype=torch.uint8)):
        check_label(label)


def test_other_errors_stay_what_they_are() -> None:
    for error in (RuntimeError("other"), TypeError("other"), pickle.UnpicklingError("other")):
        with pytest.raises(type(error), match="other"), explain_worker_errors(None):
            raise error
