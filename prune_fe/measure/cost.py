"""What a network costs: parameters, multiply-adds, and images a second on this machine."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune_fe.measure.meter import quartiles, seconds_in_turn
from prune_fe.tracing.feature_maps import evaluating

ATTENTION = "scaled_dot_product_attention"
COUNTED = ("conv", "linear", "addmm", "matmul", "bmm", "einsum", ATTENTION)
"""fvcore's names of the operations whose multiply-adds are counted. Norms, activations and pooling are not."""


@dataclass(frozen=True)
class Cost:
    """macs: multiply-adds of convolutions, linear layers and matrix products for one image."""

    parameters: int
    macs: int

    @property
    def flops(self) -> int:
        """A multiply-add counted as two."""
        return 2 * self.macs


@dataclass(frozen=True)
class Speed:
    """images_per_second: median; low and high are its quartiles over `runs` blocks of passes, in evaluation mode."""

    images_per_second: float
    low: float
    high: float
    runs: int
    batch_size: int
    threads: int
    dtype: str
    device: str

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.dtype}, {self.device}, {self.threads} thread{'s' * (self.threads != 1)}"


def cost(model: nn.Module, example: Tensor) -> Cost:
    """Parameters, and the multiply-adds of one image of the size of `example` (images, channels, height, width)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # fvcore scripts a loss of its own when it is imported
        from fvcore.nn import FlopCountAnalysis

    weight = next(model.parameters())
    image = example[:1].to(weight.device, weight.dtype)
    with evaluating(model), torch.no_grad():
        analysis = FlopCountAnalysis(model, image).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.set_op_handle(f"aten::{ATTENTION}", _attention_macs)  # unknown to fvcore
        counts = analysis.tracer_warnings("none").by_operator()
    macs = sum(int(count) for operation, count in counts.items() if operation in COUNTED)
    return Cost(sum(weight.numel() for weight in model.parameters()), macs)


def _attention_macs(inputs: Sequence[Any], _: Sequence[Any]) -> int:
    """Queries times keys, and the weights that come of it times values; inputs: traced (..., length, width)."""
    query, key, value = (entry.type().sizes() for entry in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def speed(model: nn.Module, example: Tensor, batch_size: int = 64, seconds: float = 1.0) -> Speed:
    """Time forward passes of `batch_size` copies of the first image of `example` for at least `seconds`."""
    weight = next(model.parameters())
    images = example[:1].to(weight.device, weight.dtype).expand(batch_size, *example.shape[1:]).contiguous()
    with evaluating(model), torch.inference_mode():
        (times,) = seconds_in_turn([lambda: model(images)], seconds, weight.device)
    fast, median, slow = quartiles(times)
    return Speed(
        images_per_second=batch_size / median,
        low=batch_size / slow,
        high=batch_size / fast,
        runs=len(times),
        batch_size=batch_size,
        threads=torch.get_num_threads(),
        dtype=str(weight.dtype).removeprefix("torch."),
        device=str(weight.device),
    )
