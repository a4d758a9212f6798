"""Follow branches that a network takes in training only, and keep channels that layers which never ran may read.

A network may have branches that evaluation does not take, such as GoogLeNet's auxiliary classifiers. Their layers may
read channels that are removed, so they are followed too: the network runs once more with its code in training mode. A
layer that does not run even then may run on images of other sizes or with other values. Every channel that it could
read is kept, unless the code around the layer never names it: then nothing calls it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from prune_fe.tracing.channel_ids import varying_dims
from prune_fe.tracing.nested import Inputs, run, tensors_in
from prune_fe.tracing.ops import NORM_MODULES, Kind, functions
from prune_fe.tracing.shared_tensors import find_shared_tensors, full_name
from prune_fe.tracing.watching import evaluating

if TYPE_CHECKING:
    from prune_fe.tracing.channel_tracer import ChannelTracer


@contextmanager
def taking_training_branches(model: nn.Module) -> Iterator[None]:
    """Put the code of a network in training mode for a context.

    Norms and dropout stay in evaluation mode, and so do modules without parameters, such as stochastic depth: they
    change values in training, but take no other branch.

    Args:
        model: The network.
    """
    with evaluating(model), _WithoutDropout():
        for module in model.modules():
            module.training = _may_branch(module)
        yield


def _may_branch(module: nn.Module) -> bool:
    """Return whether a module may hold layers that run in one mode only."""
    return not isinstance(module, (*NORM_MODULES, _DropoutNd)) and next(module.parameters(), None) is not None


NAMELESS_ACCESS = frozenset(
    "children named_children modules named_modules _modules getattr get_submodule __getattr__".split()
)
"""Names in code that may reach a module without naming it."""


def names_in(kind: type[nn.Module]) -> frozenset[str]:
    """Return the names that the methods of a class read, without those in `__init__` and in torch's own code.

    `extra_repr` does not count either: a forward pass does not call it.
    """
    read: set[str] = set()
    replaced = {"__init__", "extra_repr"}
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn."):
            continue
        for name, method in vars(base).items():
            if isinstance(method, FunctionType) and name not in replaced:
                names = _names_in_code(method.__code__)
                read |= names
                if names.isdisjoint(("super", name)):  # It does not call the method that it replaces.
                    replaced.add(name)
    return frozenset(read)


def _names_in_code(code: CodeType) -> frozenset[str]:
    """Return the names that code reads, including the functions defined in it."""
    inner = (_names_in_code(part) for part in code.co_consts if isinstance(part, CodeType))
    return frozenset(code.co_names).union(*inner)


class _WithoutDropout(TorchFunctionMode):
    """Turns off the dropout functions that a network's code calls in training."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in DROPOUTS and len(args) > 2:
            args = (*args[:2], False, *args[3:])
        elif func in DROPOUTS:
            kwargs["training"] = False
        return func(*args, **kwargs)


DROPOUTS = frozenset(function for function in functions(Kind.IDENTITY) if "dropout" in function.__name__)
"""The functions that drop values or channels at random in training."""


def follow_training(tracer: ChannelTracer, inputs: Inputs) -> bool:
    """Follow a network as in training, if its code may take other branches there.

    Args:
        tracer: The tracer, which has followed the network in evaluation.
        inputs: Inputs of the network.

    Returns:
        Whether the network calls other modules or functions than in evaluation.
    """
    kinds = {type(module) for module in tracer.builder.modules.values() if _may_branch(module)}
    if not any("training" in names_in(kind) for kind in kinds) and not _find_unreached(tracer):
        return False
    in_evaluation = list(tracer.calls)
    tracer.calls.clear()
    _run_again(tracer, inputs, in_training=True)
    is_other = tracer.calls != in_evaluation
    tracer.calls[:] = in_evaluation
    return is_other


def keep_unreached(tracer: ChannelTracer, inputs: Inputs) -> None:
    """Fix the channels that may be read by layers that ran neither in evaluation nor as in training.

    Such a layer may read any value of the innermost module around it that ran: its inputs and what its code computed.

    Args:
        tracer: The tracer, which has followed the network in evaluation and as in training.
        inputs: Inputs of the network.
    """
    modules, unreached, unread = tracer.builder.modules, _find_unreached(tracer), _find_unread(tracer)
    if not unreached and not unread:
        return
    holders = {name: _find_holder(name, tracer.ran) for name in (*unreached, *unread)}
    calls, tracer.values_in = list(tracer.calls), {holder: [] for holder in holders.values()}
    for in_training in (False, True):
        _run_again(tracer, inputs, in_training)
    tracer.calls[:] = calls
    for name, sizes in unread.items():
        reason = f"parameter {name!r} may be combined with them, but nothing reads it in evaluation or in training"
        for ids in tracer.values_in[holders[name]]:
            if any(ids.shape[dim] in sizes for dim in varying_dims(ids)):
                tracer.builder.fix(ids, reason)
    for name in unreached:
        holder = holders[name]
        reason = f"layer {name!r} may read them, but it does not run on the example, in evaluation or in training"
        for ids in tracer.values_in[holder]:
            if _has_width(ids, unreached[name], isinstance(modules[name], nn.Linear)):
                tracer.builder.fix(ids, reason)
    tracer.values_in = {}


def _find_unreached(tracer: ChannelTracer) -> dict[str, int]:
    """Return the layers and norms that did not run but might on other inputs, and how many channels each reads.

    A layer is left out if other code read its weights, or if the code of the module that holds it never names it.
    """
    modules, read = tracer.builder.modules, tracer.parameter_uses.keys()
    # A norm or layer that shares a tensor with one that ran is cut like it.
    shared = ({module for module, _ in names} for names in find_shared_tensors(modules[""]))
    sharing = {module for owners in shared if not tracer.ran.isdisjoint(owners) for module in owners}
    names = [
        name
        for name in tracer.whole - tracer.ran - sharing
        if read.isdisjoint(map(id, modules[name].parameters()))
        and _is_named(name, modules, tracer.ran)
        and not any(name.startswith(f"{outer}.") for outer in tracer.whole)
    ]
    widths = {name: _count_inputs(modules[name]) for name in sorted(names)}
    return {name: width for name, width in widths.items() if width > 1}


def _find_unread(tracer: ChannelTracer) -> dict[str, set[int]]:
    """Return the parameters that code might have read but did not, of modules that hold layers and ran.

    Returns:
        Parameter -> its sizes of more than one. A parameter is left out if the module's code does not name it.
    """
    unread = {}
    for name, module in tracer.builder.modules.items():
        holds_layers = any(next(child.parameters(), None) is not None for child in module.children())
        if name not in tracer.ran or name in tracer.whole or not holds_layers:
            continue
        for attribute, weight in module._parameters.items():
            own_name = full_name((name, attribute))
            if weight is None or id(weight) in tracer.parameter_uses or weight.numel() == 1:
                continue
            if _is_named(own_name, tracer.builder.modules, tracer.ran):
                unread[own_name] = {size for size in weight.shape if size > 1}
    return unread


def _run_again(tracer: ChannelTracer, inputs: Inputs, in_training: bool) -> None:
    """Follow a network once more; if its code fails, what ran is followed."""
    builder = tracer.builder
    ran_before = dict(builder.run_counts)
    builder.run_counts.clear()
    mode = taking_training_branches if in_training else evaluating
    try:
        with tracer.tracing(), mode(builder.modules[""]), torch.no_grad():
            run(builder.modules[""], inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # Many networks cannot be trained like this: they want the labels too, for example.
        tracer.whole_running = 0
        builder.running[:] = [""]
        builder.runs.clear()
    finally:
        builder.run_counts |= {name: runs for name, runs in ran_before.items() if name not in builder.run_counts}


def _count_inputs(module: nn.Module) -> int:
    """Return the number of channels that a module with a rule reads."""
    if isinstance(module, _ConvNd):
        return module.in_channels
    if isinstance(module, nn.Linear):
        return module.in_features
    return max((weight.numel() for weight in module.parameters()), default=0)


def _find_holder(name: str, ran: set[str]) -> str:
    """Return the innermost module that ran and holds the module `name`, or is it; "" for the network."""
    while name and name not in ran:
        name = name.rpartition(".")[0]
    return name


def _is_named(name: str, modules: Mapping[str, nn.Module], ran: set[str]) -> bool:
    """Return whether the code of the innermost module that ran and holds a layer may reach the layer."""
    holder = _find_holder(name, ran)
    kind, attribute = type(modules[holder]), name.removeprefix(f"{holder}.").split(".")[0]
    if kind.__module__.startswith("torch.nn."):
        return True
    read = names_in(kind)
    return attribute in read or not read.isdisjoint(NAMELESS_ACCESS)


def _has_width(ids: Tensor, width: int, is_flattened: bool) -> bool:
    """Return whether a layer may read a tensor.

    Args:
        ids: The ids of the tensor.
        width: The number of channels that the layer reads.
        is_flattened: Whether the tensor may be flattened before the layer reads it.
    """
    sizes: Sequence[int] = ids.shape
    if is_flattened and math.prod(sizes[1:]) == width:
        return True
    return any(sizes[dim] == width for dim in varying_dims(ids))


def note_values(tracer: ChannelTracer, module: str, values: Any) -> None:
    """Note the ids of what a module was called with or computed, if the module is one of `tracer.values_in`."""
    if module in tracer.values_in:
        ids = tracer.builder.ids
        tracer.values_in[module] += [ids[value] for value in tensors_in(values) if value in ids]
