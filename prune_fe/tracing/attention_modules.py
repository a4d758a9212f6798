"""The rule for `nn.MultiheadAttention`, which is handled as a whole.

Its code demands that the heads together are as wide as the embedding that it reads, so that both lose the same share.
It passes the weights of its projections to functions, so that no hook sees its heads: they are masked in the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from prune_fe.tracing.attention_rules import couple_inside
from prune_fe.tracing.channel_ids import expand_along, to_tensor
from prune_fe.tracing.products import count_attention

if TYPE_CHECKING:
    from prune_fe.tracing.dependency_graph import Axis, GraphBuilder

TENSORS = {
    "in": (("in_proj_weight", 1), ("q_proj_weight", 1)),
    "key in": (("k_proj_weight", 1),),
    "value in": (("v_proj_weight", 1),),
    "out": (("in_proj_weight", 0), ("in_proj_bias", 0)),
    "query out": (("q_proj_weight", 0),),
    "key out": (("k_proj_weight", 0), ("bias_k", 2)),
    "value out": (("v_proj_weight", 0), ("bias_v", 2)),
}
"""Side of the module -> the parameters that have its channels, and their dimension.

"in" is the embedding that queries are made of, and keys and values too where all have one width. "out" are the queries,
keys and values one after the other.
"""


def find_attention_tensors(module: nn.MultiheadAttention, side: str) -> Iterator[tuple[str, int]]:
    """Yield (attribute, dimension) of each parameter that has the channels of one side."""
    for attribute, dim in TENSORS[side]:
        if getattr(module, attribute) is not None:
            yield attribute, dim


def follow_attention(builder: GraphBuilder, name: str, inputs: Sequence[Tensor], output: Tensor) -> None:
    """Follow the channels through `nn.MultiheadAttention`.

    Args:
        builder: Collects the dependency graph.
        name: The module's name.
        inputs: The query, the key and the value, perhaps followed by masks.
        output: The first tensor that it returned.
    """
    module = builder.modules[name]
    assert isinstance(module, nn.MultiheadAttention)
    width = module.embed_dim
    outs = builder.axis(name, "out", 3 * width)
    parts = outs.channels.reshape(3, module.num_heads, -1)
    couple_inside(builder, to_tensor(parts), [1])
    embedding = builder.axis(name, "in", width, dim=-1)
    ins: list[Axis] = [embedding] * 3
    if module.in_proj_weight is None:
        ins[1] = builder.axis(name, "key in", module.kdim, dim=-1)
        ins[2] = builder.axis(name, "value in", module.vdim, dim=-1)
    for axis, value in zip(ins, inputs, strict=False):
        if (ids := builder.ids.get(value)) is not None:
            builder.connect(axis, ids, ids.ndim - 1, f"{name!r} attends over the channels")
    if module.in_proj_weight is None or module.bias_k is not None:
        for side, part in zip(("query out", "key out", "value out"), parts, strict=True):
            builder.couple(builder.axis(name, side, width).channels, part.ravel())
    projection = f"{name}.out_proj"
    heads, last = builder.axis(projection, "in", width, dim=-1), builder.axis(projection, "out", width, dim=-1)
    builder.couple(heads.channels, parts[2].ravel())
    cause = f"MultiheadAttention {name!r}, whose heads have the width of its inputs"
    builder.balance([embedding.channels, heads.channels], cause)
    builder.ids[output] = expand_along(last.channels, output.ndim - 1, output.shape)
    count_attention(builder, module, inputs[:3], ins, parts)
    for owner in (name, projection):
        builder.apply_at(owner, inputs[0][..., 0].numel())
        builder.mask_in_weights(owner)


def set_attention_sizes(module: nn.MultiheadAttention, sizes: Mapping[str, int]) -> None:
    """Set the attributes that say how many channels and heads a module has; its heads keep their width.

    Args:
        module: The module.
        sizes: Side of the module -> number of channels.
    """
    module.embed_dim = sizes["in"]
    module.kdim, module.vdim = sizes.get("key in", sizes["in"]), sizes.get("value in", sizes["in"])
    module.num_heads = sizes["out"] // 3 // module.head_dim


def projection_weights(module: nn.Module) -> list[Tensor]:
    """Return the weights whose rows are the units of a layer: for attention, those of its queries, keys and values."""
    if not isinstance(module, nn.MultiheadAttention):
        return [module.get_parameter("weight")]
    weights = (module.in_proj_weight, module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    return [weight for weight in weights if weight is not None]
