"""Rules for modules: how the channels of the output of a convolution, linear layer or norm depend on its input's.

A module with a rule is handled as a whole: the functions that its code calls are not followed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from prune_fe.tracing.attention_rules import couple_inside
from prune_fe.tracing.channel_ids import expand_along, to_tensor, varying_dims
from prune_fe.tracing.dependency_graph import Axis, GraphBuilder
from prune_fe.tracing.ops import NORM_MODULES, TIMM_NORM_MODULES, TRUSTED_LIBRARIES

COMPUTED_FROM = ("_g", "_orig")
"""The ends of the names of parameters from which hooks compute others: `weight_g` of weight_norm, `weight_orig` of
spectral_norm and of torch's pruning masks."""


def has_module_rule(module: nn.Module) -> bool:
    """Return whether a module is handled as a whole, whatever its code does inside."""
    # A user's subclass may override forward() and do anything there, so only known libraries' code is trusted.
    origin = f"{type(module).forward.__module__}."
    # The forward pass of a convolution calls this method, which a subclass may override as well.
    inner = f"{getattr(type(module), '_conv_forward', type(module).forward).__module__}."
    if not origin.startswith(TRUSTED_LIBRARIES) or not inner.startswith(TRUSTED_LIBRARIES):
        return False
    class_names = {base.__name__ for base in type(module).__mro__}
    is_timm_norm = origin.startswith("timm.") and not TIMM_NORM_MODULES.isdisjoint(class_names)
    return is_timm_norm or isinstance(module, (_ConvNd, nn.Linear, nn.MultiheadAttention, *NORM_MODULES))


def follow_module(builder: GraphBuilder, name: str, value: Tensor, output: Tensor) -> None:
    """Follow the channels of `value` through the module `name`, which has a rule and returned `output`."""
    module, ids = builder.modules[name], builder.ids.get(value)
    if isinstance(module, _ConvNd | nn.Linear):
        follow_layer(builder, name, value, output)
    elif ids is not None:
        _follow_norm(builder, name, module, ids, output)


def follow_layer(builder: GraphBuilder, name: str, value: Tensor, output: Tensor) -> tuple[Axis, Axis]:
    """Follow the channels of `value` through a convolution or linear layer that computed `output`.

    Returns:
        The axis of its inputs and that of its outputs; for a depthwise convolution both are the same axis.
    """
    module = builder.modules[name]
    if isinstance(module, _ConvNd):
        axes = _follow_convolution(builder, name, module, value, output)
    else:
        assert isinstance(module, nn.Linear)
        axes = _follow_linear(builder, name, module, value, output)
    fix_if_computed(builder, name, axes)
    return axes


def fix_if_computed(builder: GraphBuilder, name: str, axes: Iterable[Axis]) -> None:
    """Fix the channels of axes of a module if a parameter of it is computed from others before each use.

    Cutting such a weight would have no effect, because it is computed again.
    """
    if _is_computed(builder.modules[name]):
        for axis in axes:
            builder.fix(to_tensor(axis.channels), _describe_computed(name, builder.modules[name]))


def _is_computed(module: nn.Module) -> bool:
    """Return whether a parameter of a module is computed from others before each use, as by weight_norm."""
    hooked = (name.removesuffix(end) for name in module._parameters for end in COMPUTED_FROM if name.endswith(end))
    return parametrize.is_parametrized(module) or any(name in vars(module) for name in hooked)


def is_computed_weight(module: nn.Module, name: str) -> bool:
    """Return whether an attribute of a module is a weight that a hook computes from parameters before each use."""
    return any(f"{name}{end}" in module._parameters for end in COMPUTED_FROM)


def _describe_computed(name: str, module: nn.Module) -> str:
    """Return the reason why a module with computed weights keeps its channels."""
    if parametrize.is_parametrized(module):
        chains = module.parametrizations.values()  # type: ignore[operator]
        who = [type(part).__name__.strip("_") for chain in chains for part in chain]
    else:
        hooks = module._forward_pre_hooks.values()
        who = [type(hook).__name__ for hook in hooks if hasattr(hook, "compute_weight") or hasattr(hook, "apply_mask")]
    names = ", ".join(dict.fromkeys(who)) or "code of its own"
    return f"layer {name!r}: its weights are computed before each use (by {names}); make them plain weights first"


def count_positions(layer: _ConvNd | nn.Linear, value: Tensor, output: Tensor) -> int:
    """Return the number of positions at which a layer multiplies its weights.

    Args:
        layer: The layer.
        value: Its input.
        output: Its output.

    Returns:
        For a convolution the positions of one image, for a linear layer those of all images.
    """
    if isinstance(layer, nn.Linear):
        return output[..., 0].numel()
    # A transposed convolution multiplies its weights at every position of its input.
    positions = value if isinstance(layer, _ConvTransposeNd) else output
    return math.prod(positions.shape[-len(layer.kernel_size) :])


def _follow_convolution(
    builder: GraphBuilder, name: str, conv: _ConvNd, value: Tensor, output: Tensor
) -> tuple[Axis, Axis]:
    # Counted from the end, because an input without a batch dimension is allowed too.
    dim = output.ndim - 1 - len(conv.kernel_size)
    builder.apply_at(name, count_positions(conv, value, output))
    ids = builder.ids.get(value)
    first, last = convolution_axes(builder, name, conv, dim - output.ndim)
    if ids is not None:
        builder.connect(first, ids, dim, f"layer {name!r} convolves over the channels")
    builder.ids[output] = expand_along(last.channels, dim, output.shape)
    return first, last


def convolution_axes(builder: GraphBuilder, name: str, conv: _ConvNd, dim_from_end: int) -> tuple[Axis, Axis]:
    """Return the axis of a convolution's inputs and that of its outputs; the first call for it creates them.

    Args:
        builder: The graph so far.
        name: Name of the convolution.
        conv: The convolution.
        dim_from_end: The dimension of the channels in its input and output, counted from the end.
    """
    ins, outs, groups = conv.in_channels, conv.out_channels, conv.groups
    if groups > 1 and groups == ins == outs:
        first = last = builder.axis(name, "both", ins, dim=dim_from_end)
    else:
        blocks = groups if ins > groups else 1
        first = builder.axis(name, "in", ins, blocks, dim_from_end)
        last = builder.axis(name, "out", outs, blocks, dim_from_end)
        if blocks < groups:  # each group has one input channel, whose outputs are removed with it
            builder.couple(np.repeat(first.channels, outs // groups), last.channels)
    return first, last


def _follow_linear(
    builder: GraphBuilder, name: str, linear: nn.Linear, value: Tensor, output: Tensor
) -> tuple[Axis, Axis]:
    builder.apply_at(name, count_positions(linear, value, output))
    ids, dim = builder.ids.get(value), output.ndim - 1
    first = builder.axis(name, "in", linear.in_features, dim=-1)
    last = builder.axis(name, "out", linear.out_features, dim=-1)
    varying = [] if ids is None else varying_dims(ids)
    if ids is not None and varying and dim not in varying:  # it is applied to each channel by itself
        builder.ids[output] = ids.narrow(dim, 0, 1).expand(output.shape)
        return first, last
    if ids is not None:
        builder.connect(first, ids, dim)
    builder.ids[output] = expand_along(last.channels, dim, output.shape)
    return first, last


def _follow_norm(builder: GraphBuilder, name: str, module: nn.Module, ids: Tensor, output: Tensor) -> None:
    varying, kind = varying_dims(ids), type(module).__name__
    is_over_last = len(getattr(module, "normalized_shape", ())) == 1
    if output.shape == ids.shape and len(varying) > 1 and varying[-1] == ids.ndim - 1 and is_over_last:
        # Every head is normalised by itself with the same weights, whose number is the width of a head: it has to stay.
        couple_inside(builder, ids, varying[:-1])
        builder.ids[output] = ids
        return
    if output.shape != ids.shape or len(varying) > 1:
        builder.fix(ids, f"{kind} {name!r} receives channels in several dimensions")
        return
    if _is_computed(module):
        builder.fix(ids, _describe_computed(name, module))
    for dim in varying:
        blocks = module.num_groups if isinstance(module, nn.GroupNorm) else 1
        if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
            builder.fix(ids, f"{kind} {name!r} normalises over more than the channels")
        elif not isinstance(module, nn.PReLU) or module.num_parameters > 1:
            axis = builder.axis(name, "both", ids.shape[dim], blocks, dim - ids.ndim)
            builder.connect(axis, ids, dim)
    builder.ids[output] = ids
