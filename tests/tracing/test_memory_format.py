"""Memory formats of weights: told apart by their strides, and kept."""

from typing import Any

import pytest
import torch

from prune_fe.tracing.memory_format import is_channels_last, keep_memory_format, to_channels_last


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (4, 3, 1, 1), (4, 1, 3, 3), (4, 3, 2, 2, 2), (4, 3, 1, 1, 1)])
def test_channels_last_is_told_from_the_usual_format(shape: tuple[int, ...]) -> None:
    plain = torch.randn(shape)
    other = to_channels_last(plain)
    assert (is_channels_last(plain), is_channels_last(other)) == (False, True)
    assert torch.equal(plain, other)
    memory_format = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    model: Any = torch.nn.Module()
    model.weight = torch.nn.Parameter(plain)
    assert model.to(memory_format=memory_format).weight.stride() == other.stride()
    assert keep_memory_format(plain, plain) is plain
    assert keep_memory_format(plain[:2], other).stride() == to_channels_last(plain[:2]).stride()


@pytest.mark.parametrize(
    "tensor", [torch.ones(3), torch.ones(3, 4), torch.ones(2, 3, 4), torch.ones(2, 3, 4, 5)[:, ::2]]
)
def test_other_tensors_have_no_such_format(tensor: torch.Tensor) -> None:
    assert not is_channels_last(tensor)
