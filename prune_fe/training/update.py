"""The update of the weights: the optimizer, its learning rates, and the scaling of small gradients."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from prune_fe.errors import InputError, first_line
from prune_fe.io import nearest
from prune_fe.pruning.cut import refuse_unlike_weights
from prune_fe.training.custom import Custom
from prune_fe.training.options import TrainOptions
from prune_fe.training.part import TrainedPart, rate_factors
from prune_fe.training.precision import make_scaler

NEEDS_MORE = ("LBFGS", "SparseAdam")
"""Optimizers of torch.optim that cannot be had by name: one runs the network itself, one wants sparse gradients."""


@dataclass(frozen=True)
class Update:
    """How the weights are updated.

    Attributes:
        weights: The trained weights by name.
        optimizer: Their optimizer.
        factors: For each of its groups, the factor from the schedule's learning rate to the group's.
        scheduler: The user's scheduler, which replaces the schedule, or None.
        interval: Whether it takes a step after each "epoch" or "step".
        scaler: Scales the loss, or None.
    """

    weights: dict[str, nn.Parameter]
    optimizer: Optimizer
    factors: list[float]
    scheduler: Any
    interval: str
    scaler: torch.amp.GradScaler | None

    @property
    def rate(self) -> float:
        """The learning rate of the first group as it is, over its factor."""
        return float(self.optimizer.param_groups[0]["lr"])

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the schedule, without a scheduler of the user's."""
        if self.scheduler is None:
            for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
                new = rate * factor
                # A learning rate that is a tensor, as for a compiled optimizer, stays one.
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(new)
                else:
                    group["lr"] = new

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def take_step(self) -> None:
        """Update the weights."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.interval == "step":
            self._schedule(None)

    def end_epoch(self, validation_loss: float) -> None:
        """Let a scheduler that goes by epochs take its step."""
        if self.interval == "epoch":
            self._schedule(validation_loss)

    def _schedule(self, loss: float | None) -> None:
        if isinstance(self.scheduler, ReduceLROnPlateau):
            if loss is None:
                raise InputError("ReduceLROnPlateau goes by the validation loss: scheduler_interval='epoch'")
            self.scheduler.step(loss)
        elif self.scheduler is not None:
            self.scheduler.step()

    def momentum(self) -> dict[str, Tensor]:
        """Return copies of SGD's momentum by parameter name; a weight that had no gradient yet has none."""
        states = {name: self.optimizer.state.get(weight, {}) for name, weight in self.weights.items()}
        buffers = {name: state.get("momentum_buffer") for name, state in states.items()}
        return {name: buffer.clone() for name, buffer in buffers.items() if buffer is not None}

    def set_momentum(self, buffers: Mapping[str, Tensor]) -> None:
        """Give SGD copies of the momentum of the weights with these names."""
        for name, buffer in buffers.items():
            if name in self.weights:
                weight = self.weights[name]
                self.optimizer.state[weight]["momentum_buffer"] = torch.empty_like(weight).copy_(buffer.detach())

    def state(self) -> dict[str, Any]:
        """Return what an interrupted training needs beside the momentum; {} for plain SGD."""
        parts = {"scheduler": self.scheduler, "scaler": self.scaler}
        if type(self.optimizer) is not torch.optim.SGD or self.scheduler is not None:
            parts["optimizer"] = self.optimizer
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        parts = {"optimizer": self.optimizer, "scheduler": self.scheduler, "scaler": self.scaler}
        for name, content in state.items():
            if name in parts:
                parts[name].load_state_dict(content)


def make_update(
    part: TrainedPart, options: TrainOptions, custom: Custom, momentum_buffers: Mapping[str, Tensor]
) -> Update:
    """Return the update of the trained weights, whose momentum begins with copies of the buffers.

    Args:
        part: The trained weights.
        options: Optimizer, learning rates and precision, with a value for `lr`.
        custom: The user's optimizer and scheduler, if there are any.
        momentum_buffers: Parameter name -> momentum.

    Raises:
        InputError: The optimizer is unknown, or an argument of it, or it does not fit the weights.
    """
    assert options.lr is not None
    if momentum_buffers:
        refuse_unlike_weights(momentum_buffers, part.model, "momentum_buffers")
        if options.momentum == 0:
            raise InputError("momentum_buffers were given, but momentum is 0")
        if custom.optimizer is not None or options.opt.lower() != "sgd":
            raise InputError("momentum_buffers are SGD's; another optimizer is continued with prune_fe.carry_over")
    if custom.optimizer is None:
        optimizer, factors = _make_named(part, options)
    else:
        if options.lr_by_layer:
            raise InputError("lr_by_layer has no effect on an optimizer of your own: give it groups of weights instead")
        own = custom.optimizer
        optimizer = own if isinstance(own, Optimizer) else own(list(part.weights.values()))
        _check_own(optimizer, part)
        factors = [float(group["lr"]) / options.lr for group in optimizer.param_groups]
    scheduler = custom.scheduler
    if scheduler is not None and not isinstance(scheduler, LRScheduler):
        scheduler = scheduler(optimizer)
    if scheduler is not None and getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise InputError("scheduler belongs to another optimizer than the one that was given")
    scaler = make_scaler(next(iter(part.weights.values())).device, options)
    update = Update(part.weights, optimizer, factors, scheduler, custom.scheduler_interval, scaler)
    update.set_momentum(momentum_buffers)
    return update


def _make_named(part: TrainedPart, options: TrainOptions) -> tuple[Optimizer, list[float]]:
    """Return an optimizer by its name, and the factor of each of its groups; each factor's weights are a group."""
    kind = find_optimizer(options.opt)
    factors = rate_factors(part, options.lr_by_layer)
    distinct = list(dict.fromkeys(factors.values()))
    groups = [{"params": [part.weights[name] for name in part.weights if factors[name] == each]} for each in distinct]
    known = inspect.signature(kind).parameters
    if unknown := sorted(options.opt_args.keys() - known.keys()):
        names = [name for name in known if name != "params"]
        raise InputError(f"opt_args: {kind.__name__} has no argument {unknown[0]!r}; {nearest(unknown[0], names)}")
    common = {"lr": options.lr, "momentum": options.momentum, "weight_decay": options.weight_decay}
    arguments = {name: value for name, value in common.items() if name in known} | options.opt_args
    try:
        return kind(groups, **arguments), distinct
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"opt: {kind.__name__} refuses its arguments: {first_line(error)}") from error


def find_optimizer(name: str) -> type[Optimizer]:
    """Return an optimizer of torch.optim by its name in any case.

    Raises:
        InputError: There is none.
    """
    every = [value for value in vars(torch.optim).values() if isinstance(value, type) and issubclass(value, Optimizer)]
    known = {kind.__name__.lower(): kind for kind in every if kind is not Optimizer and kind.__name__ not in NEEDS_MORE}
    if name.lower() not in known:
        raise InputError(f"opt: unknown optimizer {name!r}; {nearest(name.lower(), sorted(known))}")
    return known[name.lower()]


def _check_own(optimizer: Any, part: TrainedPart) -> None:
    """Check that an optimizer of the user's has trained weights of the network, and all of them."""
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optimizer returns a {type(optimizer).__name__}, not an optimizer of torch.optim")
    held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    missing = [name for name, weight in part.weights.items() if id(weight) not in held]
    if len(missing) == len(part.weights):
        raise InputError(f"optimizer: none of its weights are trained ones of this {type(part.model).__name__}")
    if len(missing) > 0:
        raise InputError(
            f"optimizer: it does not have {missing[0]!r}, which is trained; add it, freeze it, or name what is "
            "trained with only="
        )
