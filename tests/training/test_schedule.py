"""The learning rates of both schedules, as functions and as SGD uses them."""

import math
from typing import Any

import pytest
import torch

from prune_fe.training.loop import finetune
from prune_fe.training.options import PaperTrainOptions, TrainOptions
from prune_fe.training.schedule import complete, count_epochs, epoch_rates
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
    finetune(small(), pictures(24), pictures(6), batch_size=12, schedule="step")
    assert rates == [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5]


def test_the_step_schedule_is_exact_where_dividing_twice_is_not(rates: list[float]) -> None:
    assert 3e-3 / 10 / 10 != 3e-5
    finetune(small(), pictures(), pictures(6), lr=3e-3, final_lr=3e-5, schedule="step")
    assert rates == [3e-3, 3e-3 / 10, 3e-5]


def test_the_step_schedule_goes_on_at_the_last_rate_when_epochs_are_asked_for(rates: list[float]) -> None:
    finetune(small(), pictures(), pictures(6), epochs=5, schedule="step")
    assert rates == [1e-3, 1e-4, 1e-5, 1e-5, 1e-5]


def test_the_step_schedule_ends_early_when_fewer_epochs_are_asked_for(rates: list[float]) -> None:
    finetune(small(), pictures(), pictures(6), epochs=2, schedule="step")
    assert rates == [1e-3, 1e-4]


def test_the_cosine_schedule_falls_with_every_step(rates: list[float]) -> None:
    finetune(small(), pictures(24), pictures(6), batch_size=6, lr=0.1, schedule="cosine", epochs=3)
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 12)) for step in range(12)], rel=1e-12)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (PaperTrainOptions(), 3),
        (PaperTrainOptions(lr=3e-3, final_lr=3e-5), 3),
        (PaperTrainOptions(lr=1e-3, final_lr=1e-2), 1),
        (PaperTrainOptions(epochs=5), 5),
        (PaperTrainOptions(schedule="cosine", epochs=4), 4),
    ],
)
def test_the_number_of_epochs_is_that_of_the_rates(options: TrainOptions, count: int) -> None:
    assert count_epochs(options) == len(epoch_rates(options)) == count


def test_the_rate_of_the_step_schedule_is_constant_within_an_epoch() -> None:
    assert [[rate(share) for share in (0, 0.5, 0.99)] for rate in epoch_rates(PaperTrainOptions(epochs=2))] == [
        [1e-3] * 3,
        [1e-4] * 3,
    ]


def at_each_step(options: TrainOptions, n_steps: int) -> list[float]:
    return [rate(step / n_steps) for rate in epoch_rates(options) for step in range(n_steps)]


def test_the_rate_rises_in_the_warmup_and_the_cosine_begins_behind_it() -> None:
    options = TrainOptions(lr=1.0, epochs=4, warmup=0.25)
    rates = at_each_step(options, 5)
    assert rates[:5] == pytest.approx([0.01 + 0.99 * step / 5 for step in range(5)])
    assert rates[5:] == pytest.approx([(1 + math.cos(math.pi * step / 15)) / 2 for step in range(15)])
    assert at_each_step(TrainOptions(lr=1.0, epochs=4, warmup=0.25, schedule="constant"), 5)[4:] == pytest.approx(
        [0.802, *[1.0] * 15]
    )


@pytest.mark.parametrize(
    ("given", "n_steps", "expected"),
    [
        ({}, 43, {"lr": 0.02, "warmup": 0.1, "epochs": 14}),
        ({}, 1000, {"epochs": 3}),
        ({}, 1, {"epochs": 30}),
        ({"batch_size": 256}, 43, {"lr": 0.08}),
        ({"batch_size": 256, "opt": "AdamW"}, 43, {"lr": 6e-4}),
        ({"lr": 0.1}, 43, {"lr": 0.1, "warmup": 0.0}),
        ({"schedule": "step"}, 43, {"lr": 1e-3, "warmup": 0.0, "epochs": None}),
        ({"epochs": 2, "warmup": 0.3}, 43, {"epochs": 2, "warmup": 0.3}),
    ],
)
def test_the_defaults_go_by_the_steps_the_batch_and_the_optimizer(
    given: dict[str, Any], n_steps: int, expected: dict[str, Any]
) -> None:
    completed = complete(TrainOptions(**given), n_steps)
    assert complete(TrainOptions(), n_steps, has_norms=False).lr == pytest.approx(0.002)
    assert complete(TrainOptions(), n_steps, has_own_optimizer=True).warmup == 0
    assert {name: getattr(completed, name) for name in expected} == pytest.approx(expected)


def test_few_steps_are_named() -> None:
    with pytest.warns(UserWarning, match="training takes 4 steps in all, which change a network little"):
        finetune(small(), pictures(24), pictures(6), batch_size=12, epochs=2)
