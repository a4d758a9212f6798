"""Take networks out of the wrappers in which they are trained."""

from __future__ import annotations

import copy
import inspect
import operator

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from prune_fe.tracing.copying import copy_modules, restoring_attributes, restoring_state
from prune_fe.tracing.nested import Inputs, compare_outputs, run
from prune_fe.tracing.watching import evaluating

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
"""The wrappers whose attribute `module` is the network that they run."""


def unwrap(model: nn.Module, example: Inputs | None = None) -> nn.Module:
    """Return the network that a wrapper holds; a module that is no wrapper is returned as it is.

    Wrappers are DataParallel, DistributedDataParallel, AveragedModel, what torch.compile returns, and modules that have
    a `training_step` and hold one network, such as a LightningModule. Wrappers within wrappers, and compiled parts of a
    network, are unwrapped too.

    Args:
        model: Any module.
        example: Inputs of the network. A module with a `training_step` stays as it is if it returns anything else for
            them than the network in it. Without inputs, it stays if its `forward` does more than to call the network.

    Returns:
        The network itself, or, if parts of it are compiled, a copy that has the same parameters and buffers.
    """
    while (inner := _find_wrapped(model) or _find_trained(model, example)) is not None:
        model = inner
    modules = dict(model.named_modules())
    parts = [name for name, module in modules.items() if name and _find_wrapped(module) is not None]
    if not parts and all(module._compiled_call_impl is None for module in modules.values()):
        return model
    twin = copy_modules(model)  # without what nn.Module.compile() made
    for name in reversed(parts):  # the inner ones first
        owner, _, attribute = name.rpartition(".")
        setattr(twin.get_submodule(owner), attribute, _find_wrapped(twin.get_submodule(name)))
    return twin


def _find_wrapped(model: nn.Module) -> nn.Module | None:
    """Return the network that a wrapper of torch holds; None for any other module."""
    if isinstance(model, WRAPPERS):
        return model.module
    # Its class is in torch._dynamo, which takes a second to import.
    return model._modules["_orig_mod"] if type(model).__name__ == "OptimizedModule" else None


def _find_trained(model: nn.Module, example: Inputs | None) -> nn.Module | None:
    """Return the network that a module with a `training_step` runs; None if there is none or the module does more."""
    if not callable(getattr(model, "training_step", None)) or model._parameters:
        return None
    parts = [part for part in model.children() if next(part.parameters(), None) is not None]
    if len(parts) != 1:
        return None
    if example is None:
        return parts[0] if _only_calls(model, parts[0]) else None
    with evaluating(model), restoring_state(model), torch.no_grad():
        try:
            outputs = run(model, example)
        except Exception:  # it has no `forward`, or none for these inputs
            return parts[0]
        try:
            difference, _ = compare_outputs(outputs, run(parts[0], example), "the module")
        except Exception:  # the network in it returns something else, or reads other inputs
            return None
    return parts[0] if difference == 0 else None


class _Probe(nn.Module):
    """Stands in for a network, and remembers what it is called with.

    Attributes:
        arguments: What it was called with last.
        output: What it returns.
    """

    def __init__(self) -> None:
        super().__init__()
        self.arguments: list[object] = []
        self.output = object()

    def forward(self, *positional: object, **named: object) -> object:
        """Return `output`."""
        self.arguments = [*positional, *named.values()]
        return self.output


def _only_calls(model: nn.Module, part: nn.Module) -> bool:
    """Return whether the `forward` of a module passes its arguments to the network in it and returns its outputs.

    A copy of the module is called with objects that are no tensors, so that nothing can be computed of them. A module
    without a `forward` does nothing else either. What hooks do is not known.

    Args:
        model: The module.
        part: The network in it.
    """
    if model._forward_hooks or model._forward_pre_hooks:
        return False
    if type(model).forward is nn.Module.forward:
        return True
    probe, twin = _Probe(), copy.copy(model)
    vars(twin)["_modules"] = {name: probe if child is part else child for name, child in model._modules.items()}
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(twin.forward).parameters.values()
        needed = [object() for one in parameters if one.kind in kinds and one.default is one.empty] or [object()]
        with restoring_attributes(model):  # the copy has the lists and dicts of the module
            output = twin.forward(*needed)
    except Exception:  # it does something with its inputs
        return False
    passed = probe.arguments[: len(needed)]
    return output is probe.output and len(passed) == len(needed) and all(map(operator.is_, passed, needed))
