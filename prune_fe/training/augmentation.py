"""Random changes of training images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def flip_and_shift(
    images: Tensor, generator: torch.Generator, rows: Sequence[int] | None = None, n_all: int = 0
) -> Tensor:
    """Flip each image left to right with probability 1/2, and shift it by up to an eighth of its size each way.

    The border is filled by reflection.

    Args:
        images: (images, channels, height, width).
        generator: Source of random numbers, on the CPU.
        rows: Which of the images of a step these are, if numbers are drawn for all of them.
        n_all: Number of images of the step.

    Returns:
        A new tensor of the same shape.
    """
    count, _, height, width = images.shape
    # A reflection needs a border that is narrower than the image.
    border_y, border_x = (min(max(size // 8, 1), size - 1) for size in (height, width))
    padded = F.pad(images, (border_x, border_x, border_y, border_y), mode="reflect")
    n_drawn = count if rows is None else n_all
    down = torch.randint(0, 2 * border_y + 1, (n_drawn, 1), generator=generator)
    right = torch.randint(0, 2 * border_x + 1, (n_drawn, 1), generator=generator)
    is_flipped = torch.randint(0, 2, (n_drawn, 1), generator=generator).bool()
    if rows is not None:
        down, right, is_flipped = (drawn[list(rows)] for drawn in (down, right, is_flipped))
    columns = torch.arange(width).expand(count, width)
    columns = torch.where(is_flipped, columns.flip(1), columns) + right
    lines = torch.arange(height).expand(count, height) + down
    lines, columns = lines[:, :, None].to(images.device), columns[:, None, :].to(images.device)
    index = torch.arange(count, device=images.device)[:, None, None]
    # Indices on both sides of the slice move the channels to the end.
    return padded[index, :, lines, columns].permute(0, 3, 1, 2)
