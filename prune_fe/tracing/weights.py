"""Refuse networks whose weights nothing can be computed from, with the name of the layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from prune_fe.errors import InputError
from prune_fe.tracing.nested import leaves
from prune_fe.tracing.quantised import ADVICE, find_quantised

STATISTICS = ("running_mean", "running_var")
"""The buffers that are checked like weights: those of batch norms. Others, such as masks, may hold infinite values."""

NO_VALUES_YET = "has no values yet; run the network on an image first"
"""What is wrong with the weights of torch's lazy layers before their first run."""


def require_module(model: Any, name: str = "model") -> None:
    """Check that something is a module.

    Args:
        model: What the caller gave.
        name: Name of the argument.

    Raises:
        InputError: It is none.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} is a {type(model).__name__}; it must be an nn.Module")


def require_network(model: Any, name: str = "model") -> None:
    """Check that something is a network with weights.

    Args:
        model: What the caller gave.
        name: Name of the argument.

    Raises:
        InputError: It is no module, or has no parameters, or some that have no values before the first run.
    """
    require_module(model, name)
    if next(model.parameters(), None) is None:
        if fault := find_quantised(model):
            raise InputError(f"{fault}, without floating-point weights; {ADVICE}")
        raise InputError(f"{name} is a {type(model).__name__} without any parameters")
    # The first run would give it values, and the channel counts of its layer, which are then undone.
    if lazy := [where for where, weight in model.named_parameters() if is_lazy(weight)]:
        layer, _, key = lazy[0].rpartition(".")
        raise InputError(f"layer {layer!r}: {key} {NO_VALUES_YET}")


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
    if scripted := [layer for layer, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]:
        what = f"layer {scripted[0]!r}" if scripted[0] else name
        raise InputError(
            f"{what} is TorchScript, whose code cannot be followed; pass the network that was scripted or traced"
        )
    for layer, module in model.named_modules():
        tensors = {key: tensor for key, tensor in module._parameters.items() if tensor is not None}
        tensors |= {key: module._buffers[key] for key in STATISTICS if module._buffers.get(key) is not None}
        for key, tensor in tensors.items():
            if fault := find_fault(tensor):
                where = f"layer {layer!r}" if layer else type(model).__name__
                raise InputError(f"{where}: {key} {fault}")


def require_trainable(model: nn.Module) -> None:
    """Check that autograd and updates in place may use the weights and buffers of a network.

    Raises:
        InputError: One of them was made under torch.inference_mode(); the text names it.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_inference():
            raise InputError(
                f"{name!r} was made under torch.inference_mode(), so that torch can neither train nor change it; build "
                "the network outside of that, or use copy.deepcopy(model)"
            )


def require_example(example: Any, name: str = "example") -> None:
    """Check that something can be the inputs of a network: dense tensors with at least one image.

    Args:
        example: What the caller gave: a tensor, a tuple of positional arguments or a dict of keyword arguments.
        name: Name of the argument.

    Raises:
        InputError: It holds no tensor, an empty, sparse or complex one, or is a tensor with fewer than two dimensions.
    """
    tensors = {path: leaf for path, leaf in leaves(example) if isinstance(leaf, Tensor)}
    if not tensors:
        raise InputError(
            f"{name} is {'empty' if isinstance(example, list) and not example else f'a {type(example).__name__}'}; it "
            "must be a tensor (images, channels, height, width), a tuple of positional arguments or a dict of keyword "
            "arguments"
        )
    for path, tensor in tensors.items():
        fault = find_layout_fault(tensor) or (f"is complex ({tensor.dtype})" if tensor.is_complex() else None)
        if fault:
            raise InputError(f"{name}{path} {fault}")
        if not tensor.numel() or (tensor is example and tensor.ndim < 2):
            shape = tuple(tensor.shape)
            raise InputError(f"{name}{path} is {shape}; it must hold an image (images, channels, height, width)")


def find_fault(tensor: Tensor) -> str | None:
    """Return what is wrong with a weight, as the end of a sentence about it; None if nothing is."""
    if is_lazy(tensor):
        return NO_VALUES_YET
    if fault := find_layout_fault(tensor):
        return fault
    if tensor.is_complex():
        return f"is complex ({tensor.dtype})"
    if tensor.is_floating_point() and not all_finite(tensor):
        return f"holds {int((~tensor.isfinite()).sum())} NaN or infinite values of {tensor.numel()}"
    return None


def all_finite(tensor: Tensor) -> bool:
    """Return whether no value of a floating-point tensor is NaN or infinite."""
    # A finite sum has finite terms, and takes a small part of the time of isfinite(), which makes several tensors of
    # the same size. The sum of large finite values may be infinite: then isfinite() decides.
    tensor = tensor.detach()
    total = tensor.sum(dtype=torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    return bool(total.isfinite() or tensor.isfinite().all())


def find_layout_fault(tensor: Tensor) -> str | None:
    """Return why a tensor has no dense values, as the end of a sentence about it; None if it has."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"is {'nested' if tensor.is_nested else str(tensor.layout).removeprefix('torch.')}, not dense"
    if tensor.is_meta:
        return "has no values: it is on the meta device"
    return None
