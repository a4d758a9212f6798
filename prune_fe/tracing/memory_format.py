"""Recognise and keep the channels-last memory format of weights, which some kernels read faster."""

from __future__ import annotations

import torch
from torch import Tensor

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Number of dimensions -> the memory format that has the channels of a pixel side by side."""


def is_channels_last(tensor: Tensor) -> bool:
    """Return whether a tensor is laid out in channels-last and not also in the contiguous format.

    Weights of 1×1 kernels have their values in the same order in both formats; the strides tell which one is meant.
    """
    memory_format = CHANNELS_LAST.get(tensor.ndim)
    if memory_format is None or not tensor.is_contiguous(memory_format=memory_format):
        return False
    return tensor.stride() != torch.empty(tensor.shape, device="meta").stride()


def to_channels_last(tensor: Tensor) -> Tensor:
    """Return a copy in channels-last of a tensor with four or five dimensions."""
    return torch.empty_like(tensor, memory_format=CHANNELS_LAST[tensor.ndim]).copy_(tensor)


def keep_memory_format(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor in channels-last if `like`, which has as many dimensions, is; otherwise return it as it is."""
    return to_channels_last(tensor) if is_channels_last(like) else tensor
