"""Rules for functions that do what a layer does, but take no parameters of a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prune_fe.tracing.channel_ids import expand_along, ids_along, resize, rows_along, varying_dims

if TYPE_CHECKING:
    from prune_fe.tracing.dependency_graph import GraphBuilder
    from prune_fe.tracing.function_rules import Call


def convolve(builder: GraphBuilder, call: Call) -> None:
    """Follow a depthwise convolution that is called as a function; fix the channels of any other convolution.

    Args:
        builder: Collects the dependency graph.
        call: The call.
    """
    value, weight = (*call.args, *call.kwargs.values())[:2]
    ids, groups, dim = builder.ids.get(value), weight.shape[0], call.output.ndim - 1 - (weight.ndim - 2)
    if ids is None or weight.shape[1] != 1 or not ids.shape[dim] == groups == call.output.shape[dim]:
        for tensor in (value, weight):
            builder.fix(
                builder.ids.get(tensor), f"convolved with a tensor that belongs to no layer in {builder.location}"
            )
        return
    if builder.is_own_tensor(weight):
        builder.connect(builder.own_axis(weight, groups), ids, dim)
    builder.count(*rows_along(ids, dim)[:1])
    builder.ids[call.output] = resize(ids, call.output.shape)


def gate_halves(builder: GraphBuilder, call: Call) -> None:
    """Couple the channels of the first half to those of the second half, which gate them.

    Args:
        builder: Collects the dependency graph.
        call: A call of `glu`.
    """
    arguments = dict(zip(("input", "dim"), call.args, strict=False)) | call.kwargs
    first, second = builder.ids[arguments["input"]].chunk(2, arguments.get("dim", -1))
    dims = sorted({*varying_dims(first), *varying_dims(second)})
    builder.couple(ids_along(first, dims).ravel(), ids_along(second, dims).ravel())
    builder.ids[call.output] = first


def pool_regions(builder: GraphBuilder, call: Call) -> None:
    """Give the pooled regions, (regions, channels, height, width), the channels of the maps that they are read from.

    Args:
        builder: Collects the dependency graph.
        call: A call of a function of torchvision such as `roi_align`.
    """
    maps = call.kwargs["input"] if "input" in call.kwargs else call.args[0]
    for value in call.inputs:
        if value is not maps or varying_dims(builder.ids[value]) != [1]:
            builder.fix(builder.ids[value], f"its channels go through {call.name}() in {builder.location}")
    if builder.has_ids(maps):
        channels = ids_along(builder.ids[maps], [1])
        regions = call.outputs[0]  # roi_pool() also returns the positions of the largest values.
        builder.ids[regions] = expand_along(channels, 1, regions.shape)
