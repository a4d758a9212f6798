"""Batch norms that use the statistics of a whole step, over all processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm
from torch.overrides import TorchFunctionMode

from prune_fe.distributed import world_size

ARGUMENTS = inspect.signature(F.batch_norm)


class SyncBatchNorms(TorchFunctionMode):
    """Replaces each batch norm in training that runs in its context by one over all processes.

    torch.nn.SyncBatchNorm needs other modules, and it does not know those of timm, which have an activation too. Here
    the function is replaced that all of them call.

    Attributes:
        counts: Whether this process's images count; without them it only takes part.
        all_count: Whether those of all processes do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts, self.all_count = True, True

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a torch function, or the synchronised batch norm in place of a batch norm."""
        if func is F.batch_norm:
            bound = ARGUMENTS.bind(*args, **(kwargs or {}))
            bound.apply_defaults()
            if bound.arguments["training"]:
                return self._normalise(**bound.arguments)
        return func(*args, **(kwargs or {}))

    def _normalise(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Tensor:
        if input.is_cuda and self.all_count:
            group = distributed.group.WORLD
            size = world_size()
            output: Tensor = SyncBatchNorm.apply(
                input, weight, bias, running_mean, running_var, eps, momentum, group, size
            )
            return output
        axes = [axis for axis in range(input.ndim) if axis != 1]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        # Half precision has too few digits for sums.
        values = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        own = float(self.counts)
        count = _Sum.apply(values.new_tensor([own * values.numel() / values.shape[1]]))
        mean = _Sum.apply(own * values.sum(dim=axes)) / count
        centred = values - mean.view(shape)
        var = _Sum.apply(own * centred.square().sum(dim=axes)) / count
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((var * count / (count - 1).clamp(min=1)).to(running_var.dtype), momentum)
        output = centred * (var + eps).rsqrt().view(shape)
        if weight is not None:
            output = output * weight.view(shape)
        if bias is not None:
            output = output + bias.view(shape)
        return output.to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes, through which gradients flow back from all of them."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """Return the sum."""
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the sum of the gradients."""
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total
