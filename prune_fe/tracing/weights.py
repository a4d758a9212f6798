"""Refuse networks whose weights nothing can be computed from, with the name of the layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prune_fe.errors import InputError

STATISTICS = ("running_mean", "running_var")
"""The buffers that are checked like weights: those of batch norms. Others, such as masks, may hold infinite values."""


def require_network(model: Any, name: str = "model") -> None:
    """Check that something is a network with weights.

    Args:
        model: What the caller gave.
        name: Name of the argument.

    Raises:
        InputError: It is no module, or has no parameters.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} is a {type(model).__name__}; it must be an nn.Module")
    if next(model.parameters(), None) is None:
        raise InputError(f"{name} is a {type(model).__name__} without any parameters")


def require_sound_weights(model: Any, name: str = "model") -> None:
    """Check that the weights of a network, and the statistics of its batch norms, are finite real numbers.

    Args:
        model: What the caller gave.
        name: Name of the argument.

    Raises:
        InputError: It is no network, or a weight is NaN, infinite, complex, sparse or without values; the text names
            the layer.
    """
    require_network(model, name)
    for layer, module in model.named_modules():
        tensors = {key: tensor for key, tensor in module._parameters.items() if tensor is not None}
        tensors |= {key: module._buffers[key] for key in STATISTICS if module._buffers.get(key) is not None}
        for key, tensor in tensors.items():
            if fault := find_fault(tensor):
                where = f"layer {layer!r}" if layer else type(model).__name__
                raise InputError(f"{where}: {key} {fault}")


def find_fault(tensor: Tensor) -> str | None:
    """Return what is wrong with a weight, as the end of a sentence about it; None if nothing is."""
    if is_lazy(tensor):
        return "has no values yet; run the network on an image first"
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"is {'nested' if tensor.is_nested else str(tensor.layout).removeprefix('torch.')}, not dense"
    if tensor.is_meta:
        return "has no values: it is on the meta device"
    if tensor.is_complex():
        return f"is complex ({tensor.dtype})"
    if tensor.is_floating_point() and not (finite := tensor.isfinite()).all():
        return f"holds {int((~finite).sum())} NaN or infinite values of {tensor.numel()}"
    return None
