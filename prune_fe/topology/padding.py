"""Fill up maps that are not square, so that topology can read them as graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MAX_ELEMENTS = 1 << 22
"""Padded maps that exist at once have at most this many elements, or are those of a single image."""


def pad_to_square(maps: Tensor) -> Tensor:
    """Return maps whose shorter side is filled up, on the right or at the bottom, with each map's smallest value.

    Args:
        maps: (..., height, width), finite, at least one element a map.

    Returns:
        (..., m, m), m the longer side; a copy.

    >>> pad_to_square(torch.tensor([[3.0, 1.0, 2.0]])).tolist()
    [[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    height, width = maps.shape[-2:]
    side = max(height, width)
    lowest = maps.amin(dim=(-2, -1), keepdim=True)
    squares = lowest.expand(*maps.shape[:-2], side, side).contiguous()
    squares[..., :height, :width] = maps
    return squares


def apply_to_squares(function: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
    """Apply a function to the padded maps, some images at a time, so that no copy of all maps is made.

    Args:
        function: Function from (images, units, m, m) to one number a map, (images, units).
        maps: (images, units, height, width).

    Returns:
        (images, units).
    """
    per_image = maps.shape[1] * max(maps.shape[-2:]) ** 2
    parts = maps.split(max(1, MAX_ELEMENTS // max(1, per_image)))
    return torch.cat([function(pad_to_square(part)) for part in parts])
