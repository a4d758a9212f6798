"""Count the parameters and multiply-adds of a network, and measure how many images a second it classifies."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prune_fe.measure.meter import ProcessorShare, describe_threads, is_disturbed, quartiles, seconds_in_turn
from prune_fe.options import BatchSize, validate_value
from prune_fe.tracing.copying import restoring_state
from prune_fe.tracing.nested import Inputs, map_tensors, move, run, take_rows, tensors_in
from prune_fe.tracing.watching import evaluating, explain_run, running_eagerly
from prune_fe.tracing.weights import require_example, require_network
from prune_fe.tracing.wrappers import unwrap

ATTENTION = "scaled_dot_product_attention"
COUNTED = ("conv", "linear", "addmm", "matmul", "mm", "bmm", "einsum", ATTENTION)
"""fvcore's names of the operations whose multiply-adds are counted. Norms, activations and pooling are not."""


@dataclass(frozen=True)
class Cost:
    """The size of a network and the arithmetic that it needs for one image.

    Attributes:
        parameters: Number of parameters.
        macs: Multiply-adds of convolutions, linear layers, matrix products and attention for one image.
    """

    parameters: int
    macs: int

    @property
    def flops(self) -> int:
        """Floating-point operations of one image: two for each multiply-add."""
        return 2 * self.macs


@dataclass(frozen=True)
class Speed:
    """How many images a second a network classifies in evaluation mode, and how that was measured.

    Attributes:
        images_per_second: Median over the timed blocks of forward passes.
        low: Lower quartile.
        high: Upper quartile.
        runs: Number of timed blocks.
        batch_size: Images of one forward pass.
        threads: Threads of torch.
        dtype: Data type of the weights and images, such as "float32".
        device: Device of the network, such as "cpu".
        processor_share: Share of the blocks' time in which the thread that runs the network had a processor; None where
            another device computes.
    """

    images_per_second: float
    low: float
    high: float
    runs: int
    batch_size: int
    threads: int
    dtype: str
    device: str
    processor_share: float | None = None

    @property
    def is_disturbed(self) -> bool:
        """Whether other work on the machine disturbed the timing."""
        return is_disturbed(self.low, self.high, self.processor_share)

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.dtype}, {self.device}, {describe_threads(self.threads)}"


def cost(model: nn.Module, example: Inputs) -> Cost:
    """Count the parameters of a network and its multiply-adds for one image.

    Args:
        model: The network; it is run once in evaluation mode.
        example: Inputs of the network, of which the first image is used: a tensor (images, channels, height, width), a
            tuple of positional arguments, or a dict of keyword arguments.
    """
    macs = _macs(_count_operations(model, example)[""])
    return Cost(sum(weight.numel() for weight in model.parameters()), macs)


def cost_by_module(model: nn.Module, example: Inputs) -> dict[str, Cost]:
    """Count the parameters and multiply-adds of each module, without those of the modules within it.

    Args:
        model: The network; it is run once in evaluation mode.
        example: Inputs of the network, of which the first image is used: a tensor (images, channels, height, width), a
            tuple of positional arguments, or a dict of keyword arguments.

    Returns:
        Name of the module -> its cost. What several modules share counts for the first; the sums are those of `cost`.
    """
    model = unwrap(model)
    counts = {name: _macs(count) for name, count in _count_operations(model, example).items()}
    own = dict(counts)
    for name, count in counts.items():
        if name:
            own[name.rpartition(".")[0]] -= count
    costs: dict[str, Cost] = {}
    counted: set[int] = set()
    for name, module in model.named_modules():
        weights = [weight for weight in module.parameters(recurse=False) if id(weight) not in counted]
        counted |= set(map(id, weights))
        costs[name] = Cost(sum(weight.numel() for weight in weights), own.get(name, 0))
    return costs


def _macs(counts: Mapping[str, float]) -> int:
    """Return the multiply-adds among counts of operations."""
    return sum(int(count) for operation, count in counts.items() if operation in COUNTED)


def _count_operations(model: nn.Module, example: Inputs) -> Mapping[str, Counter[str]]:
    """Return for each module, the modules within it included, the counts of its operations for one image."""
    with warnings.catch_warnings():
        # Importing fvcore scripts a function, which torch reports as FutureWarning or, before 2.12, DeprecationWarning.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        from fvcore.nn import FlopCountAnalysis

    require_network(model)
    require_example(example)
    model = unwrap(model)
    weight = next(model.parameters())
    image = move(take_rows(example, 1), weight.device, weight.dtype)
    with evaluating(model), restoring_state(model), torch.no_grad(), running_eagerly(), _without_fast_path():
        analysis = FlopCountAnalysis(_Flat(model, image), tuple(tensors_in(image)))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        # fvcore has no rule for attention and for padding="same", and counts them as 0. Its rule for products fails
        # on vectors.
        analysis.set_op_handle(f"aten::{ATTENTION}", _attention_macs)
        analysis.set_op_handle("aten::_convolution_mode", _padded_convolution_macs)
        analysis.set_op_handle("aten::matmul", _product_macs)
        with explain_run(model, image):
            counts = analysis.tracer_warnings("none").by_module_and_operator()
    return {name.removeprefix("network").removeprefix("."): count for name, count in counts.items() if name}


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """Let `nn.MultiheadAttention` and torch's encoders call one function for each product, and not one for them all."""
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


class _Flat(nn.Module):
    """Takes and returns tensors alone, as fvcore needs, around a network with inputs and outputs of any kind.

    Args:
        network: The network.
        inputs: Its inputs; the tensors that this module is called with take the place of their tensors.
    """

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.network, self.inputs = network, inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        return tuple(tensors_in(run(self.network, map_tensors(lambda _: next(given), self.inputs))))


def _attention_macs(inputs: Sequence[Any], _: Sequence[Any]) -> int:
    """Return the multiply-adds of attention: queries times keys, and attention weights times values.

    Args:
        inputs: Traced query, key and value of shape (..., length, width), and other inputs, which are ignored.
    """
    query, key, value = (entry.type().sizes() for entry in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _padded_convolution_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[str]:
    """Return the multiply-adds of a convolution with padding="same" or "valid", under the name of all convolutions.

    Args:
        inputs: Traced input, weight of shape (units, ...), and other inputs, which are ignored.
        outputs: The traced output.
    """
    return Counter({"conv": math.prod(outputs[0].type().sizes()) * math.prod(inputs[1].type().sizes()[1:])})


def _product_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Return the multiply-adds of a product of matrices or vectors.

    Args:
        inputs: The traced factors.
        outputs: The traced product.
    """
    return math.prod(outputs[0].type().sizes()) * inputs[0].type().sizes()[-1]


def speed(model: nn.Module, example: Inputs, batch_size: int = 64, seconds: float = 1.0) -> Speed:
    """Time forward passes of a network in evaluation mode.

    Args:
        model: The network.
        example: Inputs of the network, as in `cost`; copies of the first image are the batch.
        batch_size: Images of one forward pass.
        seconds: Passes are repeated for at least this long.
    """
    require_network(model)
    require_example(example)
    batch_size = validate_value(BatchSize, batch_size, "batch_size")
    weight = next(model.parameters())
    images = take_rows(move(take_rows(example, 1), weight.device, weight.dtype), batch_size)
    share = ProcessorShare()
    with evaluating(model), restoring_state(model), torch.inference_mode(), explain_run(model, images):
        (times,) = seconds_in_turn([lambda: run(model, images)], seconds, weight.device, around=share)
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
        processor_share=share.value if weight.device.type == "cpu" else None,
    )
