"""The rule for torch.einsum: how the channels of a sum of products depend on those of its factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from prune_fe.tracing.attention_rules import follow_product
from prune_fe.tracing.channel_ids import IdArray, ids_along, to_tensor, varying_dims
from prune_fe.tracing.nested import tensors_in

if TYPE_CHECKING:
    from prune_fe.tracing.dependency_graph import GraphBuilder
    from prune_fe.tracing.function_rules import Call


@dataclass(frozen=True)
class _Factor:
    """A factor of the products.

    Attributes:
        value: The tensor.
        indices: The name of each of its dimensions in the equation.
        ids: Its ids; None if it has no channels.
        varying: The indices along which its ids differ.
    """

    value: Tensor
    indices: Sequence[str]
    ids: Tensor | None
    varying: frozenset[str]

    def ids_over(self, sizes: Mapping[str, int]) -> IdArray:
        """Return the ids over some indices, repeated over those that the factor does not have.

        Args:
            sizes: Index -> its size.

        Returns:
            An array of these sizes.
        """
        assert self.ids is not None
        dims = [dim for dim, index in enumerate(self.indices) if index in sizes]
        array, own = ids_along(self.ids, dims), [self.indices[dim] for dim in dims]
        array = array.transpose([own.index(index) for index in sizes if index in own])
        missing = [place for place, index in enumerate(sizes) if index not in own]
        return np.broadcast_to(np.expand_dims(array, missing), list(sizes.values()))


def follow_einsum(builder: GraphBuilder, call: Call) -> None:
    """Couple the channels that are multiplied, and give the output the channels that are not summed over.

    A product of two tensors follows `follow_product`. In a product of more tensors, all channels that are summed into
    one channel of the output are coupled. The channels are fixed where two factors have channels along different
    indices, where a factor without channels has several values along such an index, and where the equation has a form
    that is not known.

    Args:
        builder: Collects the dependency graph.
        call: The call; at least one of the factors has ids.
    """
    values = tensors_in((call.args[1:], call.kwargs))
    terms = parse_equation(call.args[0], [value.ndim for value in values])
    reason = f"its channels go through einsum() in {builder.location}"
    if terms is None:
        _fix(builder, call, reason)
        return
    if len(values) == 2:
        follow_product(builder, call, values, terms[:2], terms[2], reason)
        return
    factors = [_make_factor(builder, value, indices) for value, indices in zip(values, terms, strict=False)]
    with_channels = [factor for factor in factors if factor.ids is not None]
    base = max(with_channels, key=lambda factor: len(factor.varying))
    sizes = {index: size for index, size in zip(base.indices, base.value.shape, strict=True) if index in base.varying}
    if any(not factor.varying <= base.varying for factor in with_channels):
        _fix(builder, call, reason)
        return
    constants = [factor for factor in factors if factor.ids is None]
    if (wide := max((_count_values(factor, sizes) for factor in constants), default=1)) > 1:
        _fix(builder, call, f"combined with {wide} values that no layer with units gave, in {builder.location}")
        return
    channels = base.ids_over(sizes)
    for factor in with_channels:
        if factor is not base and factor.varying:
            builder.couple(channels.ravel(), factor.ids_over(sizes).ravel())
    if sizes:
        _sum(builder, call, channels, list(sizes), terms[-1])


def _fix(builder: GraphBuilder, call: Call, reason: str) -> None:
    for value in call.inputs:
        builder.fix(builder.ids[value], reason)


def _make_factor(builder: GraphBuilder, value: Tensor, indices: Sequence[str]) -> _Factor:
    ids = builder.ids[value] if builder.has_ids(value) else None
    return _Factor(
        value, indices, ids, frozenset() if ids is None else frozenset(indices[d] for d in varying_dims(ids))
    )


def _count_values(factor: _Factor, sizes: Mapping[str, int]) -> int:
    """Return the largest size that a factor has along some indices."""
    along = zip(factor.indices, factor.value.shape, strict=True)
    return max((size for index, size in along if index in sizes), default=1)


def _sum(
    builder: GraphBuilder, call: Call, channels: IdArray, indices: Sequence[str], output_indices: Sequence[str]
) -> None:
    """Couple the channels that are summed over, and give the output the channels that stay.

    Args:
        builder: Collects the dependency graph.
        call: The call.
        channels: The ids, one dimension for each of `indices`.
        indices: The indices along which the channels differ. Those that the output does not have are summed over.
        output_indices: The indices of the output.
    """
    kept = [index for index in output_indices if index in indices]
    if not kept:
        builder.mix(channels.ravel(), f"einsum() over the channels in {builder.location}")
        return
    summed = [index for index in indices if index not in kept]
    rows = channels.transpose([indices.index(index) for index in (*kept, *summed)])
    rows = rows.reshape(*rows.shape[: len(kept)], -1)
    for other in range(1, rows.shape[-1]):
        builder.couple(rows[..., 0].ravel(), rows[..., other].ravel())
    shape = [size if index in kept else 1 for index, size in zip(output_indices, call.output.shape, strict=True)]
    builder.ids[call.output] = to_tensor(rows[..., 0].copy()).view(shape).expand(call.output.shape)


def parse_equation(equation: Any, ndims: Sequence[int]) -> list[list[str]] | None:
    """Return the indices of each factor and of the output of an einsum.

    >>> parse_equation("n...c, cd", [4, 2])
    [['n', '...1', '...0', 'c'], ['c', 'd'], ['...1', '...0', 'd', 'n']]

    Args:
        equation: The first argument of torch.einsum.
        ndims: The number of dimensions of each factor.

    Returns:
        The indices of each factor in order, and then those of the output; None if the first argument is no equation, or
        if a tensor has the same index twice.
    """
    if not isinstance(equation, str):
        return None
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        right = "..." + "".join(sorted(index for index in set(left) - {",", "."} if left.count(index) == 1))
    spans = [ndim - len(term.replace("...", "")) for term, ndim in zip(terms, ndims, strict=True)]
    expanded = [_expand(term, span) for term, span in zip([*terms, right], [*spans, max(spans)], strict=True)]
    return expanded if all(len(set(indices)) == len(indices) for indices in expanded) else None


def _expand(term: str, span: int) -> list[str]:
    """Return the indices of a term in which an ellipsis stands for `span` dimensions, counted from the last."""
    before, dots, after = term.partition("...")
    return [*before, *(f"...{number}" for number in reversed(range(span)) if dots), *after]
