"""What is around the epochs of a training: the count of its steps, and the network's state after an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from prune_fe.training.custom import Epoch

Progress = Callable[[Epoch | None, int, int], None]


@contextmanager
def restoring_after_error(model: nn.Module) -> Iterator[None]:
    """Give a network the modes and gradients that it had before the block, if an error or a signal ends it."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(weight, weight.grad) for weight in model.parameters()]
    try:
        yield
    except BaseException:
        for module, training in modes:
            module.training = training
        for weight, gradient in gradients:
            weight.grad = gradient
        raise


class StepCounter:
    """Counts the finished steps, and tells the caller's `progress`.

    Args:
        progress: What `finetune` was given.
        total: Number of steps of training.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.n_done = progress, total, 0

    def expect(self, count: int) -> Callable[[], None]:
        """Add steps that come before training, and return `count_step`."""
        self.total += count
        return self.count_step

    def count_step(self) -> None:
        """Count one step."""
        self.n_done += 1
        self.report(None)

    def count_other(self, done: int, total: int) -> None:
        """Count one of `total` steps that come before training; `done` of them are finished."""
        if done == 1:
            self.expect(total)
        self.count_step()

    def report(self, epoch: Epoch | None) -> None:
        """Call `progress`, with an epoch that has ended or None."""
        if self.progress is not None:
            self.progress(epoch, self.n_done, self.total)
