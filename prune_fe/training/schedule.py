"""Learning rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from prune_fe.training.options import TrainOptions

Rate = Callable[[float], float]
"""The learning rate within an epoch, as a function of the completed share of its steps, in [0, 1)."""


def epoch_rates(options: TrainOptions) -> list[Rate]:
    """Return the learning rate of every epoch.

    Args:
        options: The step schedule (the paper's) divides the learning rate by ten after each epoch, down to `final_lr`.
            The cosine schedule lowers it with every step, to zero at the end of the last epoch.
    """
    if options.schedule == "step":
        return [partial(_constant, rate) for rate in _step_rates(options)]
    assert options.epochs is not None  # TrainOptions requires it for this schedule.
    return [partial(_cosine, options.lr, epoch, options.epochs) for epoch in range(options.epochs)]


def count_epochs(options: TrainOptions) -> int:
    """Return the number of epochs that a network is trained for with these options."""
    return len(epoch_rates(options))


def _step_rates(options: TrainOptions) -> list[float]:
    rates = [options.lr]
    # In binary, 3e-3 / 10 / 10 differs from 3e-5 but 3e-3 / 100 does not.
    while options.lr / 10 ** len(rates) >= options.final_lr * (1 - 1e-9):
        rates.append(options.lr / 10 ** len(rates))
    if options.epochs is None:
        return rates
    return (rates + [rates[-1]] * options.epochs)[: options.epochs]


def _constant(rate: float, _: float) -> float:
    return rate


def _cosine(lr: float, epoch: int, n_epochs: int, share: float) -> float:
    return lr * (1 + math.cos(math.pi * (epoch + share) / n_epochs)) / 2
