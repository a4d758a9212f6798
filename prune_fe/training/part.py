"""The part of a network that is trained while the rest stays fixed."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from prune_fe.errors import InputError
from prune_fe.pruning.by_name import match_layers
from prune_fe.training.dropout import dropout_rates
from prune_fe.training.options import TrainOptions


@dataclass(frozen=True)
class TrainedPart:
    """The weights of a network that are trained, and the modules that run in training mode.

    Attributes:
        model: The network.
        weights: The trained parameters by name.
        modules: The modules that run in training mode while the network is trained; the others are fixed.
    """

    model: nn.Module
    weights: dict[str, nn.Parameter]
    modules: frozenset[nn.Module]

    @property
    def is_whole(self) -> bool:
        """Whether all modules are trained."""
        return self.model in self.modules

    @property
    def device(self) -> torch.device:
        """The device of the trained weights."""
        return next(iter(self.weights.values())).device

    def begin_training(self) -> None:
        """Put the trained modules in training mode, and the fixed ones in evaluation mode."""
        if self.is_whole:
            self.model.train()
            return
        self.model.eval()
        for module in self.modules:
            module.training = True


@contextmanager
def select_part(model: nn.Module, only: Sequence[str] = ()) -> Iterator[TrainedPart]:
    """Yield the part of a network that is trained; for the duration of the context all other weights are frozen.

    A pattern that matches a module selects everything inside it. One that matches a parameter selects the parameter,
    and the module that owns it runs in training mode. Weights that the user has frozen stay frozen.

    Args:
        model: The network.
        only: Names or shell patterns of modules and parameters; () selects the whole network.

    Raises:
        InputError: A pattern matches nothing, or no selected weight has `requires_grad`.
    """
    modules, names = (_match(model, only)) if only else (frozenset(model.modules()), set(_names(model)[1]))
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not trainable:
        raise InputError(f"{type(model).__name__} is frozen: no weight has requires_grad, there is nothing to train")
    weights = {name: weight for name, weight in trainable.items() if name in names}
    if not weights:
        why = "is frozen (requires_grad is False)" if names else "has no weights"
        raise InputError(f"only: {', '.join(only)}: what these name {why}, there is nothing to train")
    fixed = [weight for name, weight in trainable.items() if name not in weights]
    for weight in fixed:
        weight.requires_grad_(False)
    try:
        yield TrainedPart(model, weights, modules)
    finally:
        for weight in fixed:
            weight.requires_grad_(True)


def check_part(model: nn.Module, options: TrainOptions) -> None:
    """Check that the names and patterns in the options of training fit a network.

    Raises:
        InputError: One of them matches nothing, or nothing that is trained.
    """
    with select_part(model, options.only) as part, dropout_rates(model, options.dropout):
        rate_factors(part, options.lr_by_layer)


def rate_factors(part: TrainedPart, factors: Mapping[str, float]) -> dict[str, float]:
    """Return the factor of the learning rate for each trained weight, by the weight's name.

    Args:
        part: The trained weights.
        factors: Name or shell pattern of modules and parameters -> factor. The longest name that is the weight's own or
            that of a module around it decides; without any, the patterns do.

    Raises:
        InputError: A name or pattern matches nothing, or no trained weight, or patterns give a weight several factors.
    """
    modules, parameters = _names(part.model)
    match_layers(factors, [*modules, *parameters], "lr_by_layer: no module or parameter is called")
    unused, by_weight = set(factors), {}
    for weight in part.weights:
        around = [name for name in modules if weight.startswith(f"{name}.")]
        names = sorted([*around, weight], key=len, reverse=True)
        exact = [name for name in names if name in factors]
        matching = [pattern for pattern in factors if fnmatch.filter(names, pattern)]
        chosen = exact[:1] or matching
        if len({factors[pattern] for pattern in chosen}) > 1:
            raise InputError(f"lr_by_layer: {weight!r} is matched by {' and '.join(chosen)}, which differ")
        unused -= {*matching, *exact}
        by_weight[weight] = factors[chosen[0]] if chosen else 1.0
    if unused:
        raise InputError(f"lr_by_layer: {min(unused)!r} matches no weight that is trained")
    return by_weight


def _names(model: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names of all modules and of all parameters."""
    return [name for name, _ in model.named_modules() if name], [name for name, _ in model.named_parameters()]


def _match(model: nn.Module, only: Sequence[str]) -> tuple[frozenset[nn.Module], set[str]]:
    """Return the modules that run in training mode, and the names of the parameters that are selected."""
    modules = {name: module for name, module in model.named_modules() if name}
    parameters = _names(model)[1]
    names = match_layers(only, [*modules, *parameters], "only: no module or parameter is called")
    matched = [module for name, module in modules.items() if name in names]
    inside = {part for module in matched for part in module.modules()}
    selected = {id(weight) for module in inside for weight in module.parameters(recurse=False)}
    # A pattern may name a parameter alone, such as "*.bias".
    selected |= {id(weight) for name, weight in model.named_parameters() if name in names}
    owners = {
        module for module in model.modules() if any(id(weight) in selected for weight in module.parameters(False))
    }
    return frozenset(inside | owners), {name for name, weight in model.named_parameters() if id(weight) in selected}
