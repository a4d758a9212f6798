"""Follow norms and layers whose forward pass is the user's own code, for which `module_rules.py` has no rule.

A hand-written norm, such as a layer norm for maps, computes statistics over the channels: a mean, a variance. Removed
channels do not count in them, but channels that are masked would count as zeros. Therefore the calls that compute such
statistics are recorded here, and the masked network leaves the removed channels out of them (`pruning/masked_code.py`).
Everything else that the code does is the same in the masked network.

A hand-written layer derives from one of torch's, such as a convolution that standardises its weights, and passes the
changed weights to the function that torch's layer calls. This call is followed like torch's layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prune_fe.tracing.branches import names_in
from prune_fe.tracing.channel_ids import IdArray, expand_along, ids_along, rows_along, to_tensor, varying_dims
from prune_fe.tracing.module_rules import follow_layer, has_module_rule
from prune_fe.tracing.nested import tensors_in
from prune_fe.tracing.ops import Kind, Trait, names
from prune_fe.tracing.parts import SameWidth

if TYPE_CHECKING:
    from prune_fe.tracing.dependency_graph import Axis, GraphBuilder
    from prune_fe.tracing.function_rules import Call

MIXING_NORMS = frozenset({"layer_norm", "rms_norm", "group_norm"})
"""The norm functions that compute one channel from several."""

STATISTIC_FUNCTIONS = (names(Kind.REDUCING) - names(Kind.REDUCING, traits=Trait.SELECTS)) | MIXING_NORMS
"""The functions that compute statistics and can also do so for some of the channels; their calls are counted."""

LAYER_FUNCTIONS = frozenset(name for name in names(Kind.CONVOLUTION) if "transpose" not in name) | {"linear"}
"""The functions that hand-written layers pass their weights to; they have the outputs in the first dimension."""


@dataclass
class Run:
    """A module that runs.

    Attributes:
        module: The module's name.
        number: How often it ran before.
        is_own: Whether its code is followed function by function, and no module inside it has parameters.
        calls: How often it has called functions of STATISTIC_FUNCTIONS.
        statistics: Those of these calls that compute over channels: the number of the call, the ids of the tensor, the
            dimension of its channels, and the reason why they are fixed if the module is no norm ("" for none).
        layer: The axes of the inputs and outputs, if the module is a layer and called its function.
        read: The ids of the tensors that it passed to this function; None for a tensor without channels.
        viewed: The channels whose number the code passed to a view or reshape (not -1), such as the channels of heads
            that are put one after another.
    """

    module: str
    number: int = 0
    is_own: bool = False
    calls: int = 0
    statistics: list[tuple[int, Tensor, int, str]] = field(default_factory=list)
    layer: tuple[Axis, Axis] | None = None
    read: list[Tensor | None] = field(default_factory=list)
    viewed: list[IdArray] = field(default_factory=list)


def is_own_layer(module: nn.Module) -> bool:
    """Return whether a module is a convolution or linear layer with a forward pass that is not torch's."""
    is_layer = isinstance(module, _ConvNd | nn.Linear) and not isinstance(module, _ConvTransposeNd)
    return is_layer and not has_module_rule(module)


def begin_run(builder: GraphBuilder, name: str) -> None:
    """Note that a module begins to run."""
    module = builder.modules[name]
    number = builder.run_counts[name] = builder.run_counts.get(name, -1) + 1
    has_layers = any(child._parameters for child in module.modules() if child is not module)
    is_own = bool(name) and not has_module_rule(module) and not has_layers
    builder.runs.append(Run(name, number, is_own))
    builder.running.append(name)


def end_run(builder: GraphBuilder, value: Tensor | None, output: object) -> None:
    """Note that a module has run: add the axes of its statistics, or fix the channels of a layer that reorders them.

    Args:
        builder: The graph.
        value: The first tensor that it was called with.
        output: What it returned.
    """
    builder.running.pop()
    run = builder.runs.pop()
    if run.layer is not None:
        _fix_unless_in_order(builder, run, value, output)
    elif run.statistics:
        _add_statistics(builder, run, value, output)
    if run.viewed:
        _tie_to_inputs(builder, run, value)


def _tie_to_inputs(builder: GraphBuilder, run: Run, value: Tensor | None) -> None:
    """Tie viewed channels to the module's inputs where both have the same number.

    The code may compute the number of the channels from that of its inputs. It need not do so if the module has an
    attribute with this number that its code reads: the attribute can be changed alone.
    """
    ids = builder.ids.get(value) if value is not None else None
    varying = varying_dims(ids) if ids is not None else []
    module = builder.modules[run.module]
    read = names_in(type(module))
    sizes = [size for name, size in vars(module).items() if type(size) is int and name in read]
    for channels in run.viewed if len(varying) == 1 else ():
        assert ids is not None
        inputs = rows_along(ids, varying[0])[0]
        if len(inputs) == channels.size and not np.array_equal(inputs, channels.ravel()):
            what = "heads" if channels.ndim > 1 else "channels"
            cause = f"the {what} of {run.module!r}, which have the width of its inputs"
            builder.tie_to_inputs(SameWidth(channels, inputs, channels.size in sizes), cause)


def count_call(builder: GraphBuilder, function: str) -> None:
    """Count a call of a function in the module that is running."""
    if builder.runs and function in STATISTIC_FUNCTIONS:
        builder.runs[-1].calls += 1


def record_statistic(builder: GraphBuilder, ids: Tensor, dim: int, otherwise: str = "") -> None:
    """Record that the current call computes a statistic over channels.

    Args:
        builder: The graph.
        ids: The ids of the tensor that it reads.
        dim: The dimension of its channels.
        otherwise: Why the channels are fixed if the module that is running is no norm; "" if they are not.
    """
    run = builder.runs[-1] if builder.runs else None
    if run is not None and run.is_own:
        run.statistics.append((run.calls - 1, ids, dim, otherwise))
    elif otherwise:
        builder.fix(ids, otherwise)


def _add_statistics(builder: GraphBuilder, run: Run, value: Tensor | None, output: object) -> None:
    """Add an axis for each statistic if the module is a norm: its output has the shape and channels of its input."""
    ids = builder.ids.get(output) if isinstance(output, Tensor) else None
    is_norm = value is not None and ids is not None and ids.shape == value.shape and len(varying_dims(ids)) == 1
    for call, reduced, dim, otherwise in run.statistics:
        if is_norm:
            side = f"statistic {run.number}.{call}"
            axis = builder.axis(run.module, side, reduced.shape[dim], dim=dim - reduced.ndim, call=(run.number, call))
            builder.connect(axis, reduced, dim)
        elif otherwise:
            builder.fix(reduced, otherwise)


def follow_norm_function(builder: GraphBuilder, call: Call) -> None:
    """Follow the channels through a norm that is called as a function, with parameters of a module."""
    value = call.kwargs["input"] if "input" in call.kwargs else call.args[0]
    others = tensors_in((call.args, call.kwargs))
    parameters = [tensor for tensor in others if tensor is not value and tensor.numel() > 1]
    ids, reason = builder.ids.get(value), f"its channels go through {call.name}() in {builder.location}"
    is_along_last = call.name in ("layer_norm", "rms_norm")
    shape = _second_argument(call, "normalized_shape") if is_along_last else (0,)
    normalised = list(range(value.ndim - len(shape), value.ndim)) if is_along_last else [1]
    if ids is None:  # the weights of a layer, which the norm standardises for each of its outputs
        channels = next(ids_along(builder.ids[p], [0]) for p in parameters if builder.has_ids(p))
        ids = expand_along(channels, normalised[0], value.shape)
    varying = varying_dims(ids)
    if is_along_last and set(varying).isdisjoint(normalised):
        builder.ids[call.output] = ids  # each channel is normalised by itself
        return
    if len(varying) != 1 or varying[0] not in normalised or (len(normalised) > 1 and parameters):
        builder.fix(ids, reason)
        return
    (dim,) = varying
    channels = rows_along(ids, dim)[0]
    for parameter in parameters:
        if builder.has_ids(parameter):
            builder.couple(channels, ids_along(builder.ids[parameter], [0]))
        else:
            builder.fix(
                ids, f"combined with {len(parameter)} values that no layer with units gave, in {builder.location}"
            )
    if call.name == "group_norm":
        _balance_groups(builder, channels, _second_argument(call, "num_groups"))
    if call.name in MIXING_NORMS:
        record_statistic(builder, ids, dim, reason)
    builder.count(channels)
    builder.ids[call.output] = ids


def _second_argument(call: Call, name: str) -> Any:
    return call.kwargs[name] if name in call.kwargs else call.args[1]


def _balance_groups(builder: GraphBuilder, channels: IdArray, groups: int) -> None:
    if groups > 1:
        module = builder.modules[builder.running[-1]]
        is_norm = isinstance(module, nn.GroupNorm)
        who = f"GroupNorm {builder.running[-1]!r}" if is_norm else f"group_norm() in {builder.location}"
        builder.balance(list(channels.reshape(groups, -1)), f"{who} with {groups} groups")


def follow_borrowed_layer(builder: GraphBuilder, call: Call) -> bool:
    """Follow a call in which code passes the weight of a layer to the layer's function, instead of calling the layer.

    Args:
        builder: Collects the dependency graph.
        call: Any call of a function.

    Returns:
        Whether it is such a call; other calls are not followed here.
    """
    if call.name != "linear":
        return False
    value, weight, bias = _layer_arguments(call)
    name = builder.layer_with(weight, "weight")
    if name is None:
        return False
    _, last = follow_layer(builder, name, value, call.output)
    if bias is not None and builder.layer_with(bias, "bias") != name:
        _couple_bias(builder, last, bias)
    builder.mask_in_weights(name)
    return True


def _couple_bias(builder: GraphBuilder, last: Axis, bias: Tensor) -> None:
    """Couple the outputs of a layer to a bias that is not its own."""
    if builder.has_ids(bias):
        builder.couple(last.channels, ids_along(builder.ids[bias], [bias.ndim - 1]))
    else:
        reason = f"combined with {bias.numel()} values that no layer with units gave, in {builder.location}"
        builder.fix(to_tensor(last.channels), reason)


def _layer_arguments(call: Call) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the input, the weight and the bias that a layer's function is called with."""
    given = dict(zip(("input", "weight", "bias"), call.args, strict=False)) | dict(call.kwargs)
    return given["input"], given["weight"], given.get("bias")


def follow_own_layer(builder: GraphBuilder, call: Call) -> bool:
    """Follow a call in which a hand-written layer passes its weights to the function that torch's layer calls.

    Returns:
        Whether it is such a call; other calls are not followed here.
    """
    run = builder.runs[-1] if builder.runs else None
    if run is None or call.name not in LAYER_FUNCTIONS or not is_own_layer(builder.modules[run.module]):
        return False
    module = builder.modules[run.module]
    value, weight, bias = _layer_arguments(call)
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given = dict(zip(names, call.args, strict=False)) | dict(call.kwargs)
    if weight.shape != module.weight.shape or given.get("groups", 1) != getattr(module, "groups", 1):
        return False
    run.layer = first, last = follow_layer(builder, run.module, value, call.output)
    run.read.append(builder.ids.get(value))
    if (ids := builder.ids.get(weight)) is not None:  # they were scaled by a parameter
        axis_of = {0: last} | ({1: first} if weight.shape[1] == len(first.channels) else {})
        for dim in varying_dims(ids):
            if dim in axis_of:
                builder.connect(axis_of[dim], ids, dim)
            else:
                builder.fix(ids, f"combined with the weights of a grouped layer in {builder.location}")
    if bias is not None and builder.has_ids(bias):
        builder.couple(last.channels, ids_along(builder.ids[bias], [0]))
    return True


def _fix_unless_in_order(builder: GraphBuilder, run: Run, value: Tensor | None, output: object) -> None:
    """Fix the channels of a hand-written layer unless it reads and returns them in the order of its weights."""
    assert run.layer is not None
    first, last = run.layer
    given = builder.ids.get(value) if value is not None else None
    returned = builder.ids.get(output) if isinstance(output, Tensor) else None
    is_in_order = all(
        (ids is None and given is None)
        or (ids is not None and given is not None and _same_rows(_rows_of(ids, first), _rows_of(given, first)))
        for ids in run.read
    )
    if not is_in_order or returned is None or not _same_rows(_rows_of(returned, last), last.channels[None]):
        reason = f"layer {run.module!r} is a {type(builder.modules[run.module]).__name__}, whose code is not torch's"
        for axis in (first, last):
            builder.fix(to_tensor(axis.channels), reason)


def _rows_of(ids: Tensor, axis: Axis) -> IdArray:
    """Return the distinct rows of ids along the dimension of an axis; no rows if the tensor has too few dimensions."""
    return rows_along(ids, ids.ndim + axis.dim) if ids.ndim + axis.dim >= 0 else np.zeros((0, 0), int)


def _same_rows(rows: IdArray, others: IdArray) -> bool:
    return rows.shape == others.shape and bool((rows == others).all())
