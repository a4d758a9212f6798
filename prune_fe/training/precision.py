"""Mixed precision: bfloat16 or float16 on devices that compute in it."""

import warnings

import torch

from prune_fe.training.options import TrainOptions


def autocast(device: torch.device, options: TrainOptions) -> torch.autocast:
    """Return a context in which convolutions and linear layers compute in half precision, where that was asked for.

    Args:
        device: The device that computes.
        options: Whether it was asked for, and in which precision. A device without it computes in float32.
    """
    half = getattr(torch, options.amp_dtype)
    return torch.autocast(device.type, half, enabled=options.amp and has_half(device, options.amp_dtype))


def has_half(device: torch.device, name: str) -> bool:
    """Return whether a device computes in a half precision faster than in float32.

    That is CUDA in both, and in bfloat16 a CPU with the instructions AVX-512 BF16 or AMX.

    Args:
        device: The device.
        name: "bfloat16" or "float16".
    """
    if device.type == "cpu" and name == "bfloat16":
        # In torch 2.11 there is no public function for it.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cuda"


def make_scaler(device: torch.device, options: TrainOptions) -> torch.amp.GradScaler | None:
    """Return what scales the loss so that gradients in float16 do not vanish; None where they are not in float16."""
    if options.amp and options.amp_dtype == "float16" and has_half(device, "float16"):
        return torch.amp.GradScaler(device.type)
    return None


def warn_without_half(device: torch.device, options: TrainOptions) -> None:
    """Warn if half precision was asked for and the device has no instructions for it."""
    if options.amp and not has_half(device, options.amp_dtype):
        warnings.warn(f"amp: {device} has no {options.amp_dtype}, so it computes in float32", stacklevel=3)
