"""Learning rate schedules, and the defaults of the options that depend on the number of images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

from prune_fe.training.options import TrainOptions

Rate = Callable[[float], float]
"""The learning rate within an epoch, as a function of the completed share of its steps, in [0, 1)."""

MIN_STEPS, MIN_EPOCHS, MAX_EPOCHS = 600, 3, 30
"""Without a number of epochs: the number of steps that is aimed at, and the fewest and most epochs for it."""

FEW_STEPS = 100
"""Fewer steps than these leave a network nearly as it is, at a learning rate that does not destroy it."""

REFERENCE_BATCH = 64
"""The batch that the default learning rates are for."""

SGD_LR, SGD_LR_WITHOUT_NORMS, OTHER_LR, STEP_LR = 0.02, 0.002, 3e-4, 1e-3
"""Default learning rates at the reference batch: of SGD for networks with batch norms and without, and of other
optimizers; the paper's, for the step schedule."""

WARMUP = 0.1
"""Share of the steps in which a default learning rate rises."""

WARMUP_START = 0.01
"""Factor of the learning rate at the first step of a warm-up."""


def complete(
    options: TrainOptions, n_steps: int, has_norms: bool = True, has_own_optimizer: bool = False
) -> TrainOptions:
    """Return the options with a value for each of `lr`, `warmup` and `epochs`.

    Args:
        options: The options, in which these may be None.
        n_steps: Steps of an epoch.
        has_norms: Whether the network has batch norms, with which it stands a higher learning rate.
        has_own_optimizer: Whether the user's optimizer says what the learning rate is.
    """
    is_step = options.schedule == "step"
    lr, warmup, epochs = options.lr, options.warmup, options.epochs
    if warmup is None:
        warmup = WARMUP if lr is None and not is_step and not has_own_optimizer else 0.0
    if lr is None:
        larger = options.batch_size / REFERENCE_BATCH
        sgd_lr = SGD_LR if has_norms else SGD_LR_WITHOUT_NORMS
        by_batch = sgd_lr * larger if options.opt.lower() == "sgd" else OTHER_LR * math.sqrt(larger)
        lr = STEP_LR if is_step else by_batch
    if epochs is None and not is_step:
        epochs = min(max(math.ceil(MIN_STEPS / max(n_steps, 1)), MIN_EPOCHS), MAX_EPOCHS)
    return dataclasses.replace(options, lr=lr, warmup=warmup, epochs=epochs)


def epoch_rates(options: TrainOptions) -> list[Rate]:
    """Return the learning rate of every epoch.

    Args:
        options: The step schedule (the paper's) divides the learning rate by ten after each epoch, down to `final_lr`.
            The cosine schedule lowers it with every step, to zero at the end of the last epoch. In front of both it
            rises in the warm-up. `lr`, and for these schedules `epochs`, are numbers.
    """
    assert options.lr is not None
    if options.schedule == "step":
        rates: list[Rate] = [partial(_constant, rate) for rate in _step_rates(options, options.lr)]
    else:
        assert options.epochs is not None
        shape = _cosine if options.schedule == "cosine" else _flat
        rates = [partial(shape, options, epoch) for epoch in range(options.epochs)]
    if not options.warmup:
        return rates
    return [partial(_warming, rate, options.warmup, epoch, len(rates)) for epoch, rate in enumerate(rates)]


def count_epochs(options: TrainOptions) -> int:
    """Return the number of epochs that a network is trained for with these options."""
    return len(epoch_rates(options))


def _step_rates(options: TrainOptions, lr: float) -> list[float]:
    rates = [lr]
    # In binary, 3e-3 / 10 / 10 differs from 3e-5 but 3e-3 / 100 does not.
    while lr / 10 ** len(rates) >= options.final_lr * (1 - 1e-9):
        rates.append(lr / 10 ** len(rates))
    if options.epochs is None:
        return rates
    return (rates + [rates[-1]] * options.epochs)[: options.epochs]


def _constant(rate: float, _: float) -> float:
    return rate


def _flat(options: TrainOptions, _: int, __: float) -> float:
    assert options.lr is not None
    return options.lr


def _cosine(options: TrainOptions, epoch: int, share: float) -> float:
    assert options.lr is not None
    assert options.epochs is not None
    if not options.warmup:
        return options.lr * (1 + math.cos(math.pi * (epoch + share) / options.epochs)) / 2
    # The cosine begins behind the warm-up.
    done = ((epoch + share) / options.epochs - options.warmup) / (1 - options.warmup)
    return options.lr * (1 + math.cos(math.pi * max(done, 0.0))) / 2


def _warming(rate: Rate, warmup: float, epoch: int, n_epochs: int, share: float) -> float:
    """Return the learning rate of a schedule, less in the warm-up."""
    done = (epoch + share) / n_epochs / warmup
    return rate(share) * min(WARMUP_START + (1 - WARMUP_START) * done, 1.0)
