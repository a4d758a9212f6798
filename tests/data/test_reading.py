"""Errors of a data set name the sample, in this process and in those that read images."""

import multiprocessing
import os
import pickle
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from prune_fe.data import reading
from prune_fe.data.batches import make_loader, validate_batches
from prune_fe.data.reading import check_label, explain_worker_errors
from prune_fe.errors import DataError, InputError
from tests.data.pictures import Labelled


class Raises(Labelled):
    def __getitem__(self, index: int) -> Any:
        if index == 5:
            raise KeyError("broken\nand more")
        return super().__getitem__(index)


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


@pytest.mark.parametrize("loader", [make_loader, DataLoader])
def test_the_death_of_a_worker_is_an_error_of_the_next_batches_only(loader: Any) -> None:
    options = {"num_workers": 1, "multiprocessing_context": "spawn"} if loader is DataLoader else {"workers": 1}
    before = set(multiprocessing.active_children())
    batches = validate_batches(loader(Labelled([0] * 300), 3, **options))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    worker.kill()
    worker.join()
    for _ in range(50):  # the network runs on the batch
        time.sleep(0.01)
    with pytest.raises(DataError, match=r"a process that reads images has died \(killed by SIGKILL: the memory may"):
        list(batches)


class Fails(Labelled):
    def __getitem__(self, index: int) -> Any:
        raise self.error  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [RuntimeError("of its own"), ConnectionResetError("of its own")])
def test_an_error_that_a_users_loader_raises_in_a_worker_stays_what_it_is(error: Exception) -> None:
    data = Fails([0] * 8)
    data.error = error  # type: ignore[attr-defined]
    with pytest.raises(type(error), match="of its own"):
        list(validate_batches(DataLoader(data, 3, num_workers=1, multiprocessing_context="spawn")))


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_may_break_the_connection_before_it_counts_as_dead(error: Exception) -> None:
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0.2,))
    worker.start()
    has_died = pytest.raises(DataError, match=r"an image: a process that reads images has died \(exit code 0\)")
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
