"""Errors of a data set name the sample, in this process and in those that read images."""

import os
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch

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
    with pytest.raises(DataError, match=r"^image 5: a process that reads images has died"):
        read(Dies([0] * 8), 1)


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
