"""The device that an experiment runs on."""

from __future__ import annotations

import torch
from torch import nn

from prune_fe.distributed import local_rank, world_size
from prune_fe.errors import InputError, first_line


def prepare_device(device: str, threads: int | None) -> torch.device:
    """Choose the device, and make torch give the same numbers each time for one seed on it.

    Args:
        device: "auto" for a GPU where there is one, or torch's name of a device.
        threads: Number of CPU threads; None leaves torch's choice.

    Returns:
        The device; with several processes each has a GPU of its own.

    Raises:
        InputError: The device cannot be used on this machine.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    # benchmark would choose kernels by their measured time, so that two runs could sum in different orders.
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if device == "auto":
        return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    if device == "cuda" and world_size() > 1:
        device = f"cuda:{local_rank()}"
    try:
        # torch.device() accepts names of devices that this machine does not have; an allocation does not.
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used here: {first_line(error)}") from error


def to_device(network: nn.Module, device: torch.device) -> nn.Module:
    """Move a network to a device, in place and in channels-last memory format, and return it."""
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
