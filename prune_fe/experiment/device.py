"""The device that an experiment runs on."""

from __future__ import annotations

import torch
from torch import nn

from prune_fe.distributed import local_rank, world_size
from prune_fe.errors import InputError


def prepare_device(device: str, threads: int | None) -> torch.device:
    """Set torch up so that one seed gives the same numbers each time, and return the device.

    Args:
        device: "auto" for a GPU where there is one, or torch's name of a device.
        threads: Number of CPU threads; None leaves torch's choice.

    Raises:
        InputError: The device cannot be used on this machine.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if device == "auto":
        return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    if device == "cuda" and world_size() > 1:
        device = f"cuda:{local_rank()}"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def to_device(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to the device, its filters in the memory format in which convolutions are fastest."""
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
