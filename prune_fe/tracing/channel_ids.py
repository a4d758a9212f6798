"""Tensors of channel ids: a tensor of integers beside a tensor of the network, with the id of each value's channel.

Ids have the shape of the tensor that they describe. They usually differ along one dimension and are expanded along the
others, which takes no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NewType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ChannelId = NewType("ChannelId", int)
"""Identifies one channel of one axis in the whole network."""

IdArray = NDArray[Any]
"""Integers: ids of channels or of coupled sets."""

NO_CHANNEL = ChannelId(0)
"""The id of values that belong to no channel: padding, constants."""


def to_tensor(ids: IdArray) -> Tensor:
    """Return an array of ids as a tensor."""
    return torch.from_numpy(np.ascontiguousarray(ids))


def expand_along(ids: IdArray, dim: int, shape: Sequence[int]) -> Tensor:
    """Return ids of `shape` that differ along one dimension.

    Args:
        ids: (channels,), the ids along that dimension.
        dim: The dimension, from 0.
        shape: The shape of the tensor that has these channels.
    """
    return to_tensor(ids).view([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)


def varying_dims(ids: Tensor) -> list[int]:
    """Return the dimensions along which the ids are not all the same: those that hold channels."""
    # An expanded dimension has stride 0; without it, few values are left to compare.
    wide = [dim for dim, (size, stride) in enumerate(zip(ids.shape, ids.stride(), strict=True)) if size > 1 and stride]
    values = narrow_to(ids, wide).numpy()
    return [dim for dim in wide if values.size and bool((values != values.take([0], dim)).any())]


def narrow_to(ids: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the ids with size 1 in every dimension that is not in `dims`."""
    # One view in place of a narrow() for each dimension: this is called several times for each function of a network.
    return ids.as_strided([size if dim in dims else min(1, size) for dim, size in enumerate(ids.shape)], ids.stride())


def ids_along(ids: Tensor, dims: Sequence[int]) -> IdArray:
    """Return the ids along `dims`, ascending, at the first position of the other dimensions.

    Returns:
        An array with one dimension for each of `dims`.
    """
    return narrow_to(ids, dims).reshape([ids.shape[dim] for dim in dims]).numpy()


def resize(ids: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the ids for a tensor of another size in the dimensions that hold no channels."""
    return narrow_to(ids, varying_dims(ids)).expand(shape)


def is_resized(ids: Tensor, value: Tensor) -> bool:
    """Return whether the dimensions of `value` that hold channels have the size that they had, as after a pooling."""
    return value.ndim == ids.ndim and all(value.shape[dim] == ids.shape[dim] for dim in varying_dims(ids))


def rows_along(ids: Tensor, dim: int) -> IdArray:
    """Return every different row of ids along a dimension, (rows, channels)."""
    rows = narrow_to(ids, sorted({dim, *varying_dims(ids)})).movedim(dim, -1).reshape(-1, ids.shape[dim]).numpy()
    return rows if len(rows) == 1 else np.unique(rows, axis=0)


def broadcast_size(value: Tensor, dim: int, ndim: int) -> int:
    """Return the size of `value` in dimension `dim` of the `ndim` dimensions that it is broadcast to."""
    own_dim = dim - ndim + value.ndim
    return value.shape[own_dim] if own_dim >= 0 else 1
