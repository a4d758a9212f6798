"""The count of steps, and what an error leaves of a network."""

import pytest
import torch

from prune_fe.training.progress import StepCounter, restoring_after_error
from tests.training.helpers import small


def test_steps_before_training_count() -> None:
    seen: list[tuple[int, int]] = []
    steps = StepCounter(lambda _, done, total: seen.append((done, total)), 4)
    steps.expect(2)()
    steps.count_other(1, 3)
    steps.count_other(2, 3)
    assert seen == [(1, 6), (2, 9), (3, 9)]


def test_an_error_restores_modes_and_gradients() -> None:
    model = small().eval()
    model.features[0].train()
    with pytest.raises(KeyboardInterrupt), restoring_after_error(model):
        model.train()
        model(torch.rand(2, 1, 8, 8)).sum().backward()
        raise KeyboardInterrupt
    assert model.features[0].training
    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())
