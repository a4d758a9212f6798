"""Rules for torch functions: how the channels of a function's output depend on those of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prune_fe.tracing.attention_rules import couple_inside, follow_matrix_product, follow_scaled_dot_product
from prune_fe.tracing.channel_ids import (
    NO_CHANNEL,
    IdArray,
    broadcast_size,
    expand_along,
    ids_along,
    is_resized,
    narrow_to,
    resize,
    rows_along,
    varying_dims,
)
from prune_fe.tracing.dependency_graph import GraphBuilder
from prune_fe.tracing.einsum_rule import follow_einsum
from prune_fe.tracing.layer_functions import convolve, gate_halves, pool_regions
from prune_fe.tracing.nested import tensors_in
from prune_fe.tracing.ops import Kind, Trait, names
from prune_fe.tracing.own_code import follow_norm_function, record_statistic

NEW_TENSOR = names(Kind.NEW_TENSOR)
REARRANGING = names(Kind.REARRANGING)
FLOATS_ONLY = names(Kind.REARRANGING, traits=Trait.FLOATS_ONLY)
SPLITTING = names(Kind.REARRANGING, traits=Trait.SPLITS)
JOINING = names(Kind.REARRANGING, traits=Trait.JOINS)
PADDING = names(Kind.PADDING)
MERGING = frozenset({"view", "reshape", "flatten"})
REDUCING = names(Kind.REDUCING)
SELECTING = names(Kind.REDUCING, traits=Trait.SELECTS)
MATRIX_PRODUCTS = names(Kind.MATRIX_PRODUCT)
CONVOLUTIONS = names(Kind.CONVOLUTION)
EINSUM = names(Kind.EINSUM)
GATED_HALVES = names(Kind.GATED_HALVES)
REGION_POOLING = names(Kind.REGION_POOLING)
NORMS = names(Kind.NORM)
OPAQUE = names(Kind.OPAQUE, Kind.NORM)
TRANSPARENT = REARRANGING | PADDING | names(Kind.ELEMENTWISE, Kind.ACTIVATION, Kind.IDENTITY, Kind.RESAMPLING) | {"exp"}
"""The functions through which own tensors with several wide dimensions are followed before they meet channels."""


@dataclass(frozen=True)
class Call:
    """A call of a torch function.

    Attributes:
        name: The function's plain name.
        function: The function.
        args: Its positional arguments.
        kwargs: Its keywords.
        output: What it returned.
        inputs: The tensors among the arguments that have ids; there is at least one.
        outputs: The tensors in the output that have at least one dimension.
    """

    name: str
    function: Any
    args: Any
    kwargs: Any
    output: Any
    inputs: list[Tensor]
    outputs: list[Tensor]


def follow_function(builder: GraphBuilder, call: Call) -> None:
    """Follow the channels through a call of a function.

    A function that is not in the table of operators is tried as an elementwise function and then as a pooling. If it
    can be neither, the channels that it receives are fixed.

    Args:
        builder: Collects the dependency graph.
        call: The call; at least one of its inputs has ids.
    """
    ids, shape = builder.ids[call.inputs[0]], call.inputs[0].shape
    # where() with one argument returns the positions of true values, which are no channels.
    is_opaque = call.name in OPAQUE or (call.name == "where" and not isinstance(call.output, Tensor))
    if call.name == "setitem":
        _set_item(builder, *call.args)
    elif call.name in NEW_TENSOR:
        return
    elif call.name in REARRANGING:
        _rearrange(builder, call, ids)
    elif call.name in PADDING:
        kwargs = {key: value for key, value in call.kwargs.items() if key != "input"}
        builder.ids[call.output] = _pad(builder, ids, *call.args[1:], **kwargs)
    elif call.name in REDUCING and len(call.inputs) == 1 and call.outputs[0].shape != shape:
        _reduce(builder, call, ids)
    elif rule := _find_rule(call.name):
        rule(builder, call)
    elif not is_opaque and len(call.outputs) == 1 and _combine(builder, call):
        return
    elif not is_opaque and len(call.inputs) == 1 and all(is_resized(ids, value) for value in call.outputs):
        for value in call.outputs:
            builder.ids[value] = resize(ids, value.shape)
    else:
        for value in call.inputs:
            builder.fix(builder.ids[value], f"its channels go through {call.name}() in {builder.location}")


def follow_candidates(builder: GraphBuilder, call: Call) -> None:
    """Follow what is computed from own tensors with several wide dimensions, before it is combined with channels.

    Args:
        builder: Collects the dependency graph.
        call: A call of a function, none of whose arguments has ids.
    """
    values = [value for value in tensors_in((call.args, call.kwargs)) if value in builder.candidates]
    if not values or call.name not in TRANSPARENT or any(value in builder.candidates for value in call.outputs):
        return
    first, *others = values
    found: list[list[Tensor]] = [[] for _ in call.outputs]
    builder.follows_candidates = True
    for candidate in builder.candidates[first]:
        builder.ids[first] = candidate
        met = [dim - first.ndim for dim in varying_dims(candidate)]
        known = [first]
        for other in others:
            if other not in builder.ids and (ids := builder.ids_along(other, met)) is not None:
                builder.ids[other] = ids
                known.append(other)
        follow_function(builder, replace(call, inputs=known))
        for value, candidates in zip(call.outputs, found, strict=True):
            if (ids := builder.ids.pop(value, None)) is not None:
                candidates.append(ids)
        for value in known:
            builder.ids.pop(value, None)
    builder.follows_candidates = False
    for value, candidates in zip(call.outputs, found, strict=True):
        builder.candidates[value] = candidates


def _find_rule(name: str) -> Callable[[GraphBuilder, Call], None] | None:
    """Return the rule for a function that computes each output from several channels or parameters, by name."""
    rules = (
        (MATRIX_PRODUCTS, follow_matrix_product),
        ({"scaled_dot_product_attention"}, follow_scaled_dot_product),
        (CONVOLUTIONS, convolve),
        (NORMS, follow_norm_function),
        (EINSUM, follow_einsum),
        (GATED_HALVES, gate_halves),
        (REGION_POOLING, pool_regions),
    )
    return next((rule for known, rule in rules if name in known), None)


def _rearrange(builder: GraphBuilder, call: Call, ids: Tensor) -> None:
    """Apply the function to the ids of its tensors, which gives the ids of its output."""
    try:
        rearranged = _apply_to_ids(builder, call, ids)
    except (RuntimeError, TypeError):  # torch computes the function for floating point numbers only
        builder.fix(ids, f"its channels go through {call.name}() in {builder.location}")
        return
    for value, value_ids in zip(tensors_in(call.output), tensors_in(rearranged), strict=True):
        builder.ids[value] = value_ids
    varying = varying_dims(ids)
    if call.name in MERGING and len(varying) > 1:
        _merge(builder, call, ids, varying, rearranged)
    if len(varying) != 1:
        return
    (dim,) = varying
    if call.name in JOINING:
        _join(builder, call, dim)
    elif call.name in SPLITTING or call.name == "getitem":
        parts = [rows_along(part, dim)[0] for part in tensors_in(rearranged) if part.ndim == ids.ndim and part.numel()]
        _split(builder, call.name, rows_along(ids, dim)[0], parts)
    elif call.name in ("view", "reshape", "unflatten"):
        outer = varying_dims(rearranged)
        if len(outer) == 1:
            channels = rows_along(rearranged, outer[0])[0]
            builder.count(channels)
            _note_size(builder, call, channels, outer[0])
        elif outer:  # a shuffle, or attention heads: all parts must keep equally many channels
            divided = ids_along(rearranged, outer)
            builder.divide(divided, f"{call.name}() in {builder.location} into {len(divided)} parts")
    elif "channel_shuffle" in call.name:
        groups = call.args[1] if len(call.args) > 1 else call.kwargs["groups"]
        _merge_dims(builder, rows_along(ids, dim)[0].reshape(groups, -1).T)


def _join(builder: GraphBuilder, call: Call, dim: int) -> None:
    """Couple the channels of tensors that are joined along another dimension, because they must have equally many.

    The output then has the ids of the first tensor.
    """
    along = call.kwargs.get("dim", call.kwargs.get("axis", call.args[1] if len(call.args) > 1 else 0))
    first, *others = call.inputs
    if call.name != "stack" and along % first.ndim == dim:
        return
    channels, are_coupled = rows_along(builder.ids[first], dim)[0], True
    for other in others:
        ids = builder.ids[other]
        if varying_dims(ids) == [dim]:
            builder.couple(channels, rows_along(ids, dim)[0])
        else:
            are_coupled = False
    if are_coupled and call.name != "stack" and len(call.inputs) == len(tensors_in(call.args[:1] or call.kwargs)):
        builder.ids[call.output] = expand_along(channels, dim, call.output.shape)


def _apply_to_ids(builder: GraphBuilder, call: Call, ids: Tensor) -> Any:
    """Return what the function returns for ids in place of its tensors."""
    if call.name in FLOATS_ONLY:
        return call.function(ids.double(), *call.args[1:], **call.kwargs).long()
    # A view needs strides that expanded ids do not have.
    function = {"view": Tensor.reshape, "view_as": Tensor.reshape_as}.get(call.name, call.function)
    # The first argument is what is rearranged. Integers and booleans behind it are indices.
    args = [_with_ids(builder, value, may_be_index=number > 0) for number, value in enumerate(call.args)]
    rearranged = ("self", "input", "tensors")
    kwargs = {key: _with_ids(builder, value, key not in rearranged) for key, value in call.kwargs.items()}
    return function(*args, **kwargs)


def _with_ids(builder: GraphBuilder, value: Any, may_be_index: bool) -> Any:
    """Return an argument with ids in place of its tensors: NO_CHANNEL for those without, except for indices."""
    if isinstance(value, Tensor):
        if may_be_index and not value.is_floating_point():
            return value.cpu()
        none = torch.full((), NO_CHANNEL, dtype=torch.int64).expand(value.shape)
        return builder.ids.get(value, none)
    if type(value) not in (tuple, list):
        return value
    return type(value)(_with_ids(builder, entry, may_be_index) for entry in value)


def _merge(builder: GraphBuilder, call: Call, ids: Tensor, varying: Sequence[int], merged: Tensor) -> None:
    """Follow several dimensions of channels that become fewer, such as the heads and the channels inside them."""
    left = varying_dims(merged)
    if len(left) < len(varying):
        _merge_dims(builder, ids_along(ids, varying))
    if len(left) == 1:
        builder.count(rows_along(merged, left[0])[0])
        _note_size(builder, call, ids_along(ids, varying), left[0])


def _note_size(builder: GraphBuilder, call: Call, channels: IdArray, dim: int) -> None:
    """Note channels whose number stands in the arguments of a view or reshape.

    Args:
        builder: Collects the dependency graph.
        call: The call.
        channels: The channels, in one dimension or more.
        dim: The dimension that they have in the output.
    """
    sizes: Sequence[Any] = call.args[1:] if call.name in ("view", "reshape") else ()
    sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
    if builder.runs and not builder.follows_candidates and len(sizes) == call.output.ndim and sizes[dim] != -1:
        builder.runs[-1].viewed.append(channels)


def _merge_dims(builder: GraphBuilder, ids: IdArray) -> None:
    """Couple channels that become interleaved when several dimensions of channels become one.

    Rows of neighbouring ids that are put one after another may lose channels independently. Where they are
    interleaved, the position of a channel depends on what the other rows lost before it, unless all lose the same.
    """
    if (np.diff(ids, axis=-1) != 1).any():
        for other in range(1, ids.shape[-1]):
            builder.couple(ids[..., 0].ravel(), ids[..., other].ravel())


def _split(builder: GraphBuilder, name: str, every: IdArray, parts: Sequence[IdArray]) -> None:
    """Require that parts of equal size stay equal, unless the module's code knows the size of each.

    Args:
        builder: The graph.
        name: Of the function.
        every: The channels that are split.
        parts: Those of each part.
    """
    parts = [part for part in parts if len(part) < len(every)]
    sizes = [len(part) for part in parts]
    if not parts or len(set(sizes)) > 1 or len(every) % sizes[0]:
        builder.count(*parts, *([every] if parts else ()))
        return
    builder.count(*parts, every)
    attributes = vars(builder.modules[builder.running[-1]]).values()
    if name == "getitem":
        # A slice of one half does not say that the other half has another size.
        is_known = len(every) != 2 * sizes[0] and any(type(value) is int and value == sizes[0] for value in attributes)
    else:
        is_known = any(isinstance(value, list | tuple) and list(value) == sizes for value in attributes)
    if is_known:
        return
    blocks = every.reshape(-1, sizes[0])
    if all((blocks == part).all(axis=1).any() for part in parts):
        what = "slicing" if name == "getitem" else f"{name}()"
        builder.balance(list(blocks), f"{what} in {builder.location} into {len(blocks)} parts")


def _set_item(builder: GraphBuilder, target: Tensor, index: Any, value: Any) -> None:
    """Write the ids of `value` into those of `target`."""
    old = builder.ids.get(target)
    new = torch.full(target.shape, NO_CHANNEL, dtype=torch.int64) if old is None else old.clone()
    value_ids = builder.ids.get(value) if isinstance(value, Tensor) else None
    if old is not None and value_ids is not None:  # what is overwritten has as many channels as what replaces it
        builder.couple(*(ids.numpy().ravel() for ids in torch.broadcast_tensors(old[index], value_ids)))
    new[index] = torch.full((), NO_CHANNEL, dtype=torch.int64) if value_ids is None else value_ids
    builder.ids[target] = new


def _pad(builder: GraphBuilder, ids: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Tensor:
    """Return the ids of a padded tensor. The parameters are those of F.pad."""
    shape, varying = list(ids.shape), varying_dims(ids)
    for number, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        dim = ids.ndim - 1 - number
        shape[dim] += before + after
        if dim not in varying:
            ids = ids.narrow(dim, 0, 1)
            continue
        if mode != "constant":
            builder.fix(ids, f"padding by {mode} over the channels")
        # A negative width crops.
        start, length = max(-before, 0), ids.shape[dim] + min(before, 0) + min(after, 0)
        zeros = [
            ids.new_full([*ids.shape[:dim], max(width, 0), *ids.shape[dim + 1 :]], NO_CHANNEL)
            for width in (before, after)
        ]
        ids = torch.cat([zeros[0], ids.narrow(dim, start, length), zeros[1]], dim)
    return ids.expand(shape)


def _reduce(builder: GraphBuilder, call: Call, ids: Tensor) -> None:
    """Couple channels that are reduced to one value where other channels stay."""
    dims, varying = _reduced_dims(call), varying_dims(ids)
    is_over_channels = len(varying) == 1 and (dims is None or varying[0] in [dim % ids.ndim for dim in dims])
    if is_over_channels and call.name not in SELECTING:
        record_statistic(builder, ids, varying[0])
        builder.mix(rows_along(ids, varying[0])[0], f"{call.name}() over the channels in {builder.location}")
    if dims is None:
        return
    dims = [dim % ids.ndim for dim in dims]
    reduced = [dim for dim in varying if dim in dims]
    if reduced and len(reduced) == len(varying):
        # One value of all channels: verification finds out whether removing a channel changes it. But a selection may
        # change with other images only.
        if call.name in SELECTING:
            builder.fix(ids, f"{call.name}() over the channels in {builder.location}")
        return
    for dim in reduced:
        rows = ids.transpose(0, dim)
        for row in rows[1:]:
            builder.couple(rows[0].numpy().ravel(), row.numpy().ravel())
    kept = narrow_to(ids, [dim for dim in varying if dim not in reduced])
    kept = kept.expand([1 if dim in dims else size for dim, size in enumerate(ids.shape)])
    for value in call.outputs:
        builder.ids[value] = kept.reshape(value.shape)


def _reduced_dims(call: Call) -> list[int] | None:
    """Return the dimensions that a reduction takes away; None for all."""
    argument = 2 if "norm" in call.name else 1  # the norms take their order first
    positional = call.args[argument] if len(call.args) > argument else None
    dims = next((call.kwargs[key] for key in ("dim", "axis") if key in call.kwargs), positional)
    if dims is None or isinstance(dims, Tensor):
        return None
    return [dims] if isinstance(dims, int) else list(dims)


def _combine(builder: GraphBuilder, call: Call) -> bool:
    """Couple the channels that meet at one position of an elementwise function.

    Returns:
        False if this is no elementwise function: its operands are not broadcast to its output.
    """
    output = call.output
    operands = [value for value in tensors_in((call.args, call.kwargs)) if value.ndim]
    try:
        if torch.broadcast_shapes(*(value.shape for value in operands)) != output.shape:
            return False
    except RuntimeError:
        return False
    operand_ids = [builder.ids[value].expand(output.shape) for value in operands if value in builder.ids]
    varying = sorted({dim for ids in operand_ids for dim in varying_dims(ids)})
    for value in operands:
        if value in builder.ids:
            continue
        wide = [dim for dim in varying if broadcast_size(value, dim, output.ndim) > 1]
        own = builder.ids_along(value, [dim - output.ndim for dim in varying]) if wide else None
        heads = [] if own is None else [dim for dim in varying if dim not in wide]
        if own is not None and not heads:
            operand_ids.append(own.expand(output.shape))
        elif own is not None:  # such as rotary embeddings: the same for every head, so that heads go as a whole
            for ids in operand_ids:
                if set(heads) <= set(varying_dims(ids)):
                    couple_inside(builder, ids, heads)
        elif wide:
            values = value.shape[wide[0] - output.ndim]
            for ids in operand_ids:
                builder.fix(ids, f"combined with {values} values that no layer with units gave, in {builder.location}")
    with_channels = [ids for ids in operand_ids if varying_dims(ids)]
    # The operand with channels in the most dimensions says what the output has.
    base = max(with_channels or operand_ids, key=lambda ids: len(varying_dims(ids)))
    for ids in with_channels:
        if ids is not base:
            builder.couple(ids_along(base, varying).ravel(), ids_along(ids, varying).ravel())
    builder.ids[output] = base
    return True
