"""Mixed precision: bfloat16 on devices that compute in it."""

import warnings

import torch


def autocast(device: torch.device, amp: bool) -> torch.autocast:
    """Return a context in which convolutions and linear layers compute in bfloat16, where that was asked for.

    Args:
        device: The device that computes.
        amp: Whether it was asked for. A device without bfloat16 computes in float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=amp and has_bfloat16(device))


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16: CUDA devices, and CPUs with AVX-512 BF16 or AMX."""
    if device.type == "cpu":
        # In torch 2.11 there is no public function for it.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cuda"


def warn_without_bfloat16(device: torch.device) -> None:
    """Warn if a device has no instructions for bfloat16."""
    if not has_bfloat16(device):
        warnings.warn(f"amp: {device} has no bfloat16, so it computes in float32", stacklevel=3)
