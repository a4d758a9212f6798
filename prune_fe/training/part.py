"""The part of a network that is trained while the rest stays fixed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from prune_fe.errors import InputError
from prune_fe.pruning.plan import match_layers


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
    modules, names = (_match(model, only)) if only else (frozenset(model.modules()), set(_parameter_names(model)))
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


def _parameter_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def _match(model: nn.Module, only: Sequence[str]) -> tuple[frozenset[nn.Module], set[str]]:
    """Return the modules that run in training mode, and the names of the parameters that are selected."""
    modules = {name: module for name, module in model.named_modules() if name}
    parameters = _parameter_names(model)
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
