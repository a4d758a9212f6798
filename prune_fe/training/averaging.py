"""The moving average of a network's weights over the steps of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from prune_fe.distributed import all_reduce_mean


class MovingAverage:
    """The exponential moving average of trained weights and of buffers, as torch.optim.swa_utils computes it.

    Args:
        model: The network.
        names: The entries of its state dict that training changes.
        decay: How much of the average is left by a step, in (0, 1).
    """

    def __init__(self, model: nn.Module, names: Mapping[str, Tensor], decay: float) -> None:
        self._update = get_ema_multi_avg_fn(decay)
        self._model, self._names = model, list(names)
        self.values = {name: value.detach().clone() for name, value in self._current().items()}

    def _current(self) -> dict[str, Tensor]:
        state = self._model.state_dict()
        return {name: state[name] for name in self._names}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step into the average; whole numbers are copied."""
        current = self._current()
        floats = [name for name, value in current.items() if value.is_floating_point()]
        self._update([self.values[name] for name in floats], [current[name] for name in floats], 1)
        for name in current.keys() - set(floats):
            self.values[name].copy_(current[name])

    def average_processes(self) -> None:
        """Replace the averages of buffers, which differ between processes, by their mean over these."""
        all_reduce_mean(self.values.values())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the network have the averages for a context."""
        current = self._current()
        with torch.no_grad():
            own = {name: value.clone() for name, value in current.items()}
            for name, value in current.items():
                value.copy_(self.values[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self._current().items():
                    value.copy_(own[name])

    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Continue from the averages of an interrupted training."""
        for name, value in values.items():
            self.values[name].copy_(value)
