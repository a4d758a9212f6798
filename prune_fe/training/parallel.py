"""Train one network in several processes: torch's DistributedDataParallel around it."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from prune_fe.distributed import world_size
from prune_fe.tracing.nested import Inputs, move, run, tensors_in
from prune_fe.tracing.watching import evaluating
from prune_fe.training.options import TrainOptions


def distribute(network: nn.Module, weights: Mapping[str, nn.Parameter], example: Inputs) -> nn.Module:
    """Return a network whose gradients are averaged over the processes while the backward pass goes on.

    All processes begin with the weights and buffers of process 0. One process gets the network itself.

    Args:
        network: The network, on this process's device.
        weights: The trained weights by name.
        example: Inputs of the network.
    """
    if world_size() == 1:
        return network
    device = next(iter(weights.values())).device
    # torch 2.14 has another name for it, and warns of the old one.
    known = inspect.signature(DistributedDataParallel).parameters
    sync = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in known)
    settings: dict[str, Any] = {sync: False}
    return DistributedDataParallel(
        network,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=_has_unused(network, list(weights.values()), move(example, device)),
        # Each process keeps its batch norms' statistics, and they are averaged at the end of the epoch.
        **settings,
    )


def _has_unused(network: nn.Module, weights: list[nn.Parameter], example: Inputs) -> bool:
    """Return whether some trained weights have no part in the network's output."""
    with evaluating(network), torch.enable_grad():
        outputs = [tensor for tensor in tensors_in(run(network, example)) if tensor.requires_grad]
        if not outputs:
            return True
        total = torch.stack([output.float().sum() for output in outputs]).sum()
        gradients = torch.autograd.grad(total, weights, allow_unused=True)
    return any(gradient is None for gradient in gradients)


def without_averaging(network: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which gradients are added up in each process, for the parts of a step but the last."""
    inner = getattr(network, "_orig_mod", network)  # of a compiled network
    return inner.no_sync() if isinstance(inner, DistributedDataParallel) else nullcontext()


def weigh(loss: Tensor, n_images: int, n_all: int) -> Tensor:
    """Return a loss so that the mean of the processes' gradients is the gradient of the mean loss of all images.

    Args:
        loss: The mean loss of some images of a step.
        n_images: How many they are.
        n_all: Images of the step, over all processes.
    """
    factor = n_images * world_size() / n_all
    return loss if factor == 1 else loss * factor


def smallest_batch(modules: Collection[nn.Module], options: TrainOptions) -> int:
    """Return how many images a batch needs at least, so that batch norms have two in each process.

    In one process every last batch of a single image is left out, whatever the network.

    Args:
        modules: The modules that are trained.
        options: Whether batch norms are synchronised.
    """
    if world_size() == 1 or options.sync_batchnorm:
        return 2
    return 2 * world_size() if any(isinstance(module, _BatchNorm) for module in modules) else 2
