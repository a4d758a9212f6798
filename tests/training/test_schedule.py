"""The learning rates of both schedules, as functions and as SGD uses them."""

import math
from typing import Any

import pytest
import torch

from prune_fe.training.loop import finetune
from prune_fe.training.options import TrainOptions
from prune_fe.training.schedule import count_epochs, epoch_rates
from tests.training.helpers import pictures, small


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of every step that SGD takes."""
    used: list[float] = []
    step = torch.optim.SGD.step

    def recorded(self: torch.optim.SGD, *args: Any) -> Any:
        used.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    return used


def test_the_step_schedule_is_the_papers_to_the_bit_and_then_stops(rates: list[float]) -> None:
    finetune(small(), pictures(24), pictures(6), batch_size=12)
    assert rates == [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5]


def test_the_step_schedule_is_exact_where_dividing_twice_is_not(rates: list[float]) -> None:
    assert 3e-3 / 10 / 10 != 3e-5
    finetune(small(), pictures(), pictures(6), lr=3e-3, final_lr=3e-5)
    assert rates == [3e-3, 3e-3 / 10, 3e-5]


def test_the_step_schedule_goes_on_at_the_last_rate_when_epochs_are_asked_for(rates: list[float]) -> None:
    finetune(small(), pictures(), pictures(6), epochs=5)
    assert rates == [1e-3, 1e-4, 1e-5, 1e-5, 1e-5]


def test_the_step_schedule_ends_early_when_fewer_epochs_are_asked_for(rates: list[float]) -> None:
    finetune(small(), pictures(), pictures(6), epochs=2)
    assert rates == [1e-3, 1e-4]


def test_the_cosine_schedule_falls_with_every_step(rates: list[float]) -> None:
    finetune(small(), pictures(24), pictures(6), batch_size=6, lr=0.1, schedule="cosine", epochs=3)
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 12)) for step in range(12)], rel=1e-12)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (TrainOptions(), 3),
        (TrainOptions(lr=3e-3, final_lr=3e-5), 3),
        (TrainOptions(lr=1e-3, final_lr=1e-2), 1),
        (TrainOptions(epochs=5), 5),
        (TrainOptions(schedule="cosine", epochs=4), 4),
    ],
)
def test_the_number_of_epochs_is_that_of_the_rates(options: TrainOptions, count: int) -> None:
    assert count_epochs(options) == len(epoch_rates(options)) == count


def test_the_rate_of_the_step_schedule_is_constant_within_an_epoch() -> None:
    assert [[rate(share) for share in (0, 0.5, 0.99)] for rate in epoch_rates(TrainOptions(epochs=2))] == [
        [1e-3] * 3,
        [1e-4] * 3,
    ]
