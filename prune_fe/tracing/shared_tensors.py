"""Find tensors that a network has under several names, such as tied weights, and couple the channels of their layers.

After a cut all names have one tensor again. So what one of the layers loses, the others lose too, even if they do not
run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prune_fe.tracing.attention_modules import TENSORS, find_attention_tensors
from prune_fe.tracing.channel_ids import to_tensor
from prune_fe.tracing.dependency_graph import Axis, GraphBuilder
from prune_fe.tracing.module_rules import convolution_axes, has_module_rule
from prune_fe.tracing.ops import NORM_MODULES

LAYERS = (_ConvNd, nn.Linear, *NORM_MODULES)
"""Layers and norms that get axes if they share a tensor, even if they did not run or have code of their own."""

TensorName = tuple[str, str]
"""The module that has a parameter or buffer, and the attribute."""


def all_tensor_names(model: nn.Module) -> Iterator[tuple[TensorName, Tensor]]:
    """Yield every name of every parameter, then of every buffer, with the tensor, once for each module."""
    modules = dict(model.named_modules())
    for kind in ("_parameters", "_buffers"):
        for module, owner in modules.items():
            for attribute, tensor in getattr(owner, kind).items():
                if tensor is not None:
                    yield (module, attribute), tensor


def find_shared_tensors(model: nn.Module) -> list[list[TensorName]]:
    """Return the names of each parameter and buffer that has several; the first is the one in `named_parameters()`."""
    names: dict[int, list[TensorName]] = {}
    for name, tensor in all_tensor_names(model):
        names.setdefault(id(tensor), []).append(name)
    return [shared for shared in names.values() if len(shared) > 1]


def find_shared_memory(model: nn.Module) -> list[tuple[str, str]]:
    """Return the names of each two parameters that have their values in the same memory, but are not one parameter."""
    first_names: dict[tuple[int, tuple[int, ...]], str] = {}
    pairs = []
    for name, weight in model.named_parameters():
        first = first_names.setdefault((weight.data_ptr(), tuple(weight.shape)), name)
        if first != name and weight.numel():
            pairs.append((first, name))
    return pairs


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by name: shared ones once, also buffers outside the state dict."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def set_tensor(module: nn.Module, attribute: str, tensor: Tensor) -> None:
    """Replace a parameter or buffer of a module."""
    store: dict[str, Tensor | None] = module._buffers
    if attribute in module._parameters:
        store = module._parameters  # type: ignore[assignment]
    store[attribute] = tensor


def full_name(name: TensorName) -> str:
    """Return the name of a tensor in the whole network.

    >>> full_name(("conv", "weight")), full_name(("", "scale"))
    ('conv.weight', 'scale')
    """
    return ".".join(filter(None, name))


def find_axis_tensors(module: nn.Module, axis: Axis) -> Iterator[tuple[str, int]]:
    """Yield (attribute, dimension) of each tensor of a module that has the channels of one of its axes."""
    if isinstance(module, nn.MultiheadAttention) and axis.side in TENSORS:
        yield from find_attention_tensors(module, axis.side)
        return
    if axis.side not in ("in", "out", "both"):
        yield axis.side, axis.dim
        return
    count = len(axis.channels)
    is_transposed = isinstance(module, _ConvTransposeNd) and axis.side != "both"
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is None:
            continue
        if name == "weight" and isinstance(module, _ConvNd | nn.Linear):
            dim = int((axis.side == "in") != is_transposed)
            # With groups, the second dimension has the channels of one group only. In a depthwise convolution its size
            # is 1, or the number of outputs for each input, and does not change when channels are removed.
            if dim == 0 or tensor.shape[1] * axis.blocks == count:
                yield name, dim
        elif axis.side != "in":
            # Biases, scales and statistics have one number a channel, perhaps with dimensions of size 1 around it.
            wide = [dim for dim, size in enumerate(tensor.shape) if size > 1]
            if len(wide) == 1 and tensor.shape[wide[0]] == count:
                yield name, wide[0]


def couple_shared_tensors(builder: GraphBuilder, uses: Mapping[int, Collection[tuple[str, str]]]) -> None:
    """Couple the channels of layers that share a tensor; call it after the network ran.

    A layer that did not run gets axes, so that its other tensors and its channel counts follow. Layers that read the
    tensor in ways that do not fit together keep their channels.

    Args:
        builder: The graph so far.
        uses: id() of a parameter -> the functions that read it, each with the innermost module that was running.
    """
    shared = find_shared_tensors(builder.modules[""])
    for names in shared:
        for name in names:
            if name[0] not in builder.run_counts and isinstance(builder.modules[name[0]], LAYERS):
                _add_axes(builder, name[0])
                _couple_own_axis(builder, *name)
    for names in shared:
        axes_of = {name: _axes_by_dim(builder, *name) for name in names}
        with_axes = {module for (module, _), axes in axes_of.items() if axes}
        # Other attributes of a layer, and those of modules without a rule, follow the names that layers read.
        read = [
            name
            for name in names
            if axes_of[name] or (name[0] not in with_axes and has_module_rule(builder.modules[name[0]]))
        ]
        for dim in sorted({dim for axes in axes_of.values() for dim in axes}):
            _couple_along(builder, read, dim, axes_of)
        _fix_if_read_elsewhere(builder, names, axes_of, uses)


def _add_axes(builder: GraphBuilder, name: str) -> None:
    """Create the axes of a layer or norm that did not run."""
    module = builder.modules[name]
    if isinstance(module, _ConvNd):
        convolution_axes(builder, name, module, -1 - len(module.kernel_size))
    elif isinstance(module, nn.Linear):
        builder.axis(name, "in", module.in_features, dim=-1)
        builder.axis(name, "out", module.out_features, dim=-1)
    else:
        tensors = (*module._parameters.values(), *module._buffers.values())
        size = max((value.numel() for value in tensors if value is not None), default=1)
        if size > 1:
            builder.axis(name, "both", size, module.num_groups if isinstance(module, nn.GroupNorm) else 1)


def _couple_own_axis(builder: GraphBuilder, module: str, attribute: str) -> None:
    """Couple the axes of a layer that did not run to the axis of its tensor, if other code used that by this name."""
    axes = [axis for axis in builder.axes_of(module) if axis.call is None]
    for own in (axis for axis in axes if axis.side == attribute):
        for axis in axes:
            if axis is not own and (attribute, own.dim) in find_axis_tensors(builder.modules[module], axis):
                builder.couple(own.channels, axis.channels)


def _axes_by_dim(builder: GraphBuilder, module: str, attribute: str) -> dict[int, Axis]:
    """Return, for each dimension of a tensor that has channels, the axis of its module that these belong to."""
    axes = {}
    tensor_axes = [axis for axis in builder.axes_of(module) if axis.call is None]
    # A tensor that the module's own code uses has an axis of its own name; the module's other axes do not count then.
    for axis in [axis for axis in tensor_axes if axis.side == attribute] or tensor_axes:
        for name, dim in find_axis_tensors(builder.modules[module], axis):
            if name == attribute:
                axes[dim] = axis
    return axes


def _couple_along(
    builder: GraphBuilder, names: Sequence[TensorName], dim: int, axes_of: Mapping[TensorName, Mapping[int, Axis]]
) -> None:
    """Couple the channels that several layers have along one dimension of the tensor that they share."""
    axes = [axes_of[name].get(dim) for name in names]
    size = getattr(builder.modules[names[0][0]], names[0][1]).shape[dim]
    layouts = {None if axis is None else (_group_count(axis, dim), len(axis.channels)) for axis in axes}
    known = [axis for axis in axes if axis is not None]
    if layouts == {(_group_count(known[0], dim), size * _group_count(known[0], dim))}:
        for axis in known[1:]:
            builder.couple(known[0].channels, axis.channels)
        return
    listed = " and ".join(repr(full_name(name)) for name in names)
    for axis in known:
        builder.fix(to_tensor(axis.channels), f"{listed} are one tensor, whose channels its layers read differently")


def _fix_if_read_elsewhere(
    builder: GraphBuilder,
    names: Sequence[TensorName],
    axes_of: Mapping[TensorName, Mapping[int, Axis]],
    uses: Mapping[int, Collection[tuple[str, str]]],
) -> None:
    """Fix the channels of a tensor with several names if code that was not followed reads it, such as an embedding."""
    tensor = getattr(builder.modules[names[0][0]], names[0][1])
    axes = [axis for by_dim in axes_of.values() for axis in by_dim.values()]
    # A tensor with an axis of its own name was followed wherever code reads it.
    if any(axis.side == attribute for (_, attribute), by_dim in axes_of.items() for axis in by_dim.values()):
        return
    elsewhere = sorted({module for module, _ in uses.get(id(tensor), ())} - {axis.module for axis in axes})
    for axis in axes if elsewhere else ():
        listed = " and ".join(repr(full_name(name)) for name in names)
        where = f"the code of {elsewhere[0]!r}" if elsewhere[0] else "the network's own code"
        builder.fix(to_tensor(axis.channels), f"{listed} are one tensor, which {where} reads too")


def _group_count(axis: Axis, dim: int) -> int:
    """Return how many times larger an axis is than the dimension of the tensor that has its channels.

    The weight of a grouped convolution has the channels of one group in its second dimension: those of its inputs, or
    of its outputs if it is transposed.
    """
    return axis.blocks if dim == 1 and axis.side in ("in", "out") else 1
