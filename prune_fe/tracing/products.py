"""Count the multiply-adds of products that no layer computes, such as those of queries and keys in attention.

The functions are those that `prune_fe.measure.cost` counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from prune_fe.tracing.attention_rules import matrix_factors, split_attention
from prune_fe.tracing.channel_ids import IdArray, ids_along, varying_dims
from prune_fe.tracing.einsum_rule import parse_equation
from prune_fe.tracing.nested import tensors_in
from prune_fe.tracing.ops import Kind, names

if TYPE_CHECKING:
    from prune_fe.tracing.dependency_graph import Axis, GraphBuilder
    from prune_fe.tracing.function_rules import Call

MATRIX_PRODUCTS, EINSUM, CONVOLUTIONS = (names(kind) for kind in (Kind.MATRIX_PRODUCT, Kind.EINSUM, Kind.CONVOLUTION))


@dataclass(frozen=True)
class Product:
    """A product that no layer computes.

    Attributes:
        macs: Its multiply-adds: for one image in a graph, for all images of the example while the graph is built.
        channels: Arrays of channels, at most two: the multiply-adds are proportional to the share of each array that is
            kept. They are coupled sets in a graph, and ids of channels while it is built.
    """

    macs: float
    channels: tuple[IdArray, ...] = ()


def count_products(builder: GraphBuilder, call: Call) -> None:
    """Record the multiply-adds of a function, if it is one that multiplies.

    Args:
        builder: Collects the dependency graph.
        call: A call of any function by code that belongs to no layer.
    """
    if call.name == "scaled_dot_product_attention":
        query, key, value, _ = split_attention(call)
        with_heads = any(dim < query.ndim - 2 for dim in _varying(builder, query))
        pairs = query[..., 0].numel() * key.shape[-2]
        builder.multiply(pairs * query.shape[-1], _channels(builder, [query]))
        # All heads of the queries may share their keys and values, which then have no heads.
        builder.multiply(pairs * value.shape[-1], _channels(builder, [query if with_heads else value]))
    elif call.name in MATRIX_PRODUCTS:
        factors = matrix_factors(call)
        builder.multiply(call.output.numel() * factors[0].shape[-1], _channels(builder, factors))
    elif call.name in EINSUM:
        _count_einsum(builder, call)
    elif call.name in CONVOLUTIONS:
        value, weight = _arguments(call, "input", "weight")
        positions = value if "transpose" in call.name else call.output
        builder.multiply(positions.numel() * weight[0].numel(), _channels(builder, [value]))
    elif call.name == "linear":
        _, weight = _arguments(call, "input", "weight")
        builder.multiply(call.output.numel() * weight.shape[-1])
    elif call.name == "addmm":
        _, left = _arguments(call, "input", "mat1")
        builder.multiply(call.output.numel() * left.shape[-1])


def _arguments(call: Call, *names: str) -> list[Tensor]:
    """Return the first arguments of a call, which may be given by name and in any order."""
    given = dict(zip(names, call.args, strict=False)) | dict(call.kwargs)
    return [given[name] for name in names]


def _count_einsum(builder: GraphBuilder, call: Call) -> None:
    factors = tensors_in((call.args[1:], call.kwargs))
    terms = parse_equation(call.args[0], [factor.ndim for factor in factors])
    if terms is None or len(factors) != 2:
        return  # Not counted with more factors, because their sizes decide in which order they are multiplied.
    sizes: dict[str, int] = {}
    for factor, term in zip(factors, terms, strict=False):
        for index, size in zip(term, factor.shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    builder.multiply(math.prod(sizes.values()), _channels(builder, factors))


def _varying(builder: GraphBuilder, value: Tensor) -> Sequence[int]:
    ids = builder.ids.get(value)
    return [] if ids is None else varying_dims(ids)


def _channels(builder: GraphBuilder, factors: Sequence[Tensor]) -> tuple[IdArray, ...]:
    """Return the channels of the first factor that has any.

    The rules couple its channels to those of the other factors, or fix all of them, so that one array is enough.
    """
    for factor in factors:
        if dims := _varying(builder, factor):
            return (ids_along(builder.ids[factor], dims).ravel(),)
    return ()


def count_attention(
    builder: GraphBuilder, module: nn.MultiheadAttention, inputs: Sequence[Tensor], axes: Sequence[Axis], heads: IdArray
) -> None:
    """Record the multiply-adds of `nn.MultiheadAttention` that its projections do not have in the graph.

    These are the products of queries and keys, and of attention weights and values. The graph applies all three
    projections at the positions of the queries, so that the difference is recorded where keys and values have others.

    Args:
        builder: Collects the dependency graph.
        module: The module.
        inputs: The query, the key and the value.
        axes: The axes of the channels that queries, keys and values are made of.
        heads: (3, heads, channels) the channels of the heads: of queries, keys and values.
    """
    query, key, width = inputs[0], inputs[1 if len(inputs) > 1 else 0], module.embed_dim
    positions, key_positions = query[..., 0].numel(), key[..., 0].numel()
    length = key.shape[1 if key.ndim == 3 and module.batch_first else 0]
    length += (module.bias_k is not None) + module.add_zero_attn
    for part in (heads[0], heads[2]):
        builder.multiply(positions * length * width, (part.ravel(),))
    for axis, part in zip(axes[1:], heads[1:], strict=True) if key_positions != positions else ():
        macs = (key_positions - positions) * len(axis.channels) * width
        builder.multiply(macs, (axis.channels, part.ravel()))
