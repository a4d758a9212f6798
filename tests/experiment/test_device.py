"""The device of an experiment."""

import pytest
import torch

from prune_fe.errors import InputError
from prune_fe.experiment.device import prepare_device, to_device


def test_a_device_that_is_not_there_is_named() -> None:
    assert prepare_device("cpu", None) == torch.device("cpu")
    with pytest.raises(InputError, match="device 'cuda:99' cannot be used here"):
        prepare_device("cuda:99", None)


def test_threads_are_set_and_results_are_deterministic() -> None:
    before = torch.get_num_threads()
    try:
        prepare_device("cpu", 1)
        assert torch.get_num_threads() == 1
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.set_num_threads(before)


def test_filters_are_in_the_fast_memory_format() -> None:
    convolution = torch.nn.Conv2d(2, 3, 3)
    to_device(convolution, torch.device("cpu"))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
