"""Rules for attention: products of two tensors with channels, whose heads are removed as a whole.

The code of an attention layer divides its channels into heads, so that the ids of its queries, keys and values differ
along two dimensions: the heads, and the channels inside a head. A product that sums over the channels of each head
gives one matrix a head, and the scale of the scores depends on the number of channels inside a head. So all channels
of a head, in the queries, keys and values, are removed together.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from prune_fe.tracing.channel_ids import IdArray, ids_along, resize, rows_along, to_tensor, varying_dims

if TYPE_CHECKING:
    from prune_fe.tracing.dependency_graph import GraphBuilder
    from prune_fe.tracing.function_rules import Call

Labels = Sequence[Hashable]
"""One label for each dimension of a tensor. Equal labels stand for the same index, as equal letters in einsum do."""


def follow_matrix_product(builder: GraphBuilder, call: Call) -> None:
    """Follow the channels through `matmul` and its relatives.

    Args:
        builder: Collects the dependency graph.
        call: The call.
    """
    left, right = matrix_factors(call)
    batch = [list(range(-tensor.ndim, -2)) for tensor in (left, right)]
    rows = ["row"] if left.ndim > 1 else []
    columns = ["column"] if right.ndim > 1 else []
    output = [*max(batch, key=len), *rows, *columns]
    labels = [[*batch[0], *rows, "inner"], [*batch[1], "inner", *columns]]
    follow_product(builder, call, (left, right), labels, output, f"a matrix product in {builder.location}")


def matrix_factors(call: Call) -> tuple[Tensor, Tensor]:
    """Return the left and the right factor of a call of `matmul` or a relative."""
    given = [call.kwargs[name] for name in ("input", "other", "mat2") if name in call.kwargs]
    left, right = [*call.args, *given][:2]
    return (right, left) if call.name == "rmatmul" else (left, right)


def follow_product(
    builder: GraphBuilder, call: Call, factors: Sequence[Tensor], labels: Sequence[Labels], output: Labels, reason: str
) -> None:
    """Follow the channels through a sum of products of two tensors.

    Args:
        builder: Collects the dependency graph.
        call: The call.
        factors: The two tensors.
        labels: The labels of their dimensions.
        output: The labels of the dimensions of the output. Dimensions whose labels it does not have are summed over.
        reason: The reason that is given for channels that are fixed because there is no rule for the product.
    """
    ids = [builder.ids.get(factor) for factor in factors]
    varying = [
        [] if own is None else [own_labels[dim] for dim in varying_dims(own)]
        for own, own_labels in zip(ids, labels, strict=True)
    ]
    if not any(varying):
        return
    # A dimension of size 1 is repeated for each value of the other factor.
    wide = [
        {label for label, size in zip(own, factor.shape, strict=True) if size > 1}
        for own, factor in zip(labels, factors, strict=True)
    ]
    together = [label for label in varying[0] + varying[1] if label in wide[0] & wide[1]]
    heads = [label for label in output if label in together]
    summed = [label for label in dict.fromkeys(varying[0] + varying[1]) if label not in output]
    if heads and all(set(heads) <= set(own) for own in varying):
        _follow_heads(builder, call, ids, labels, heads, output)
    elif heads:
        _fix_all(builder, ids, reason)
    elif len(summed) == 1 and all(summed[0] in own for own in varying):
        # Where one factor has heads, all of them are multiplied by the same channels of the other factor.
        first, *others = [
            row
            for own, own_labels in zip(ids, labels, strict=True)
            if own is not None
            for row in rows_along(own, own_labels.index(summed[0]))
        ]
        for other in others:
            builder.couple(first, other)
    elif not summed and not (varying[0] and varying[1]):
        number = int(not varying[0])
        own = ids[number]
        assert own is not None
        builder.ids[call.output] = _place(own, labels[number], varying[number], output, call.output.shape)
    else:
        _fix_all(builder, ids, reason)


def _follow_heads(
    builder: GraphBuilder,
    call: Call,
    ids: Sequence[Tensor | None],
    labels: Sequence[Labels],
    heads: Labels,
    output: Labels,
) -> None:
    """Couple the channels of each head in two factors, and give their product the ids of its heads."""
    firsts, with_channels = [], []
    for own, own_labels in zip(ids, labels, strict=True):
        assert own is not None
        firsts.append(couple_inside(builder, own, [own_labels.index(label) for label in heads]))
        kept = [own_labels[dim] for dim in varying_dims(own) if own_labels[dim] in output]
        with_channels += [(own, own_labels, kept)] if len(kept) > len(heads) else []
    builder.couple(firsts[0].ravel(), firsts[1].ravel())
    # If only one factor has channels inside its heads that the output keeps, as the values do, the output has its ids.
    own, own_labels, kept = with_channels[0] if len(with_channels) == 1 else (ids[0], labels[0], list(heads))
    assert own is not None
    builder.ids[call.output] = _place(own, own_labels, kept, output, call.output.shape)


def couple_inside(builder: GraphBuilder, ids: Tensor, dims: Sequence[int]) -> IdArray:
    """Couple the channels that have the same position along some dimensions, such as those of one head.

    Args:
        builder: Collects the dependency graph.
        ids: The ids of a tensor.
        dims: The dimensions of the heads.

    Returns:
        The id of the first channel at each position along `dims`.
    """
    every = sorted({*dims, *varying_dims(ids)})
    channels = ids_along(ids, every)
    channels = np.moveaxis(channels, [every.index(dim) for dim in dims], range(len(dims)))
    rows = channels.reshape(*channels.shape[: len(dims)], -1)
    for other in range(1, rows.shape[-1]):
        builder.couple(rows[..., 0].ravel(), rows[..., other].ravel())
    return rows[..., 0]


def _place(ids: Tensor, labels: Labels, kept: Labels, output: Labels, shape: Sequence[int]) -> Tensor:
    """Return the ids of an output that has some of the dimensions of a tensor, and the same ids along the others.

    Args:
        ids: The ids of the tensor.
        labels: The labels of its dimensions.
        kept: The labels of the dimensions that the output has too.
        output: The labels of the output's dimensions.
        shape: The output's shape.
    """
    dims = sorted(labels.index(label) for label in kept)
    channels = ids_along(ids, dims)
    order = sorted(range(len(dims)), key=lambda place: output.index(labels[dims[place]]))
    sizes = {labels[dims[place]]: channels.shape[place] for place in order}
    placed = to_tensor(channels.transpose(order)).view([sizes.get(label, 1) for label in output])
    return placed.expand(tuple(shape))


def follow_scaled_dot_product(builder: GraphBuilder, call: Call) -> None:
    """Follow the channels through `scaled_dot_product_attention`.

    Its scale depends on the number of channels inside a head, unless it is given as an argument.

    Args:
        builder: Collects the dependency graph.
        call: The call.
    """
    *factors, options = split_attention(call)
    query, key, value = map(builder.ids.get, factors)
    reason = f"its channels go through {call.name}() in {builder.location}"
    parts = [own for own in (query, key, value) if own is not None]
    heads = [[dim - own.ndim for dim in varying_dims(own) if dim < own.ndim - 2] for own in parts]
    if any(own.ndim - 2 in varying_dims(own) for own in parts):
        _fix_all(builder, parts, reason)
    elif len(parts) == 3 and heads[0] and heads[0] == heads[1] == heads[2]:
        every = [couple_inside(builder, own, [dim + own.ndim for dim in heads[0]]) for own in parts]
        mask = options.get("attn_mask")
        if isinstance(mask, Tensor) and (own := builder.ids_along(mask, heads[0])) is not None:
            every.append(ids_along(own, [dim + own.ndim for dim in heads[0]]))
        for other in every[1:]:
            # With grouped queries, several of them share the keys and values of one head.
            repeats = every[0].shape[-1] // other.shape[-1]
            builder.couple(every[0].ravel(), np.repeat(other, repeats, axis=-1).ravel())
        builder.ids[call.output] = _expand_heads(parts[2], call.output)
    elif len(parts) == 3 and heads[0] and not heads[1] and not heads[2]:
        # All heads of the queries read the same keys and values, whose channels therefore have to stay.
        dims = [dim + parts[0].ndim for dim in heads[0]]
        firsts = couple_inside(builder, parts[0], dims)
        builder.ids[call.output] = _along_heads(firsts, dims, call.output)
        _fix_all(builder, parts[1:], f"all heads of {call.name}() in {builder.location} read its channels")
    elif not any(heads):
        if query is not None and key is not None and options.get("scale") is not None:
            builder.couple(rows_along(query, query.ndim - 1)[0], rows_along(key, key.ndim - 1)[0])
        else:
            _fix_all(builder, (query, key), f"{reason}, which scales by their number")
        if value is not None:
            builder.ids[call.output] = resize(value, call.output.shape)
    else:
        _fix_all(builder, parts, reason)


def split_attention(call: Call) -> tuple[Tensor, Tensor, Tensor, Mapping[str, Any]]:
    """Return the query, the key, the value and the other arguments of a call of `scaled_dot_product_attention`."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    arguments: dict[str, Any] = dict(zip(names, call.args, strict=False)) | dict(call.kwargs)
    query, key, value = (arguments.pop(name) for name in names[:3])
    return query, key, value, arguments


def _along_heads(channels: IdArray, dims: Sequence[int], output: Tensor) -> Tensor:
    """Return the ids of an output whose channels differ along the dimensions of its heads only."""
    shape = [size if dim in dims else 1 for dim, size in enumerate(output.shape)]
    return to_tensor(channels).view(shape).expand(output.shape)


def _expand_heads(ids: Tensor, output: Tensor) -> Tensor:
    """Return the ids of the values for the output, which has more heads where several queries share one."""
    for dim in range(output.ndim - 2):
        if 1 < ids.shape[dim] < output.shape[dim]:
            ids = ids.repeat_interleave(output.shape[dim] // ids.shape[dim], dim)
    return resize(ids, output.shape)


def _fix_all(builder: GraphBuilder, ids: Sequence[Tensor | None], reason: str) -> None:
    for own in ids:
        builder.fix(own, reason)
