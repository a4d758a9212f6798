"""Random weights of large layers that take no memory: they are read from one pool of random numbers.

A verification needs weights with which every channel matters, not those of the network. Here the weights of a layer
follow each other in a sequence that repeats the pool. A layer reads a few of its rows at a time, each time as a view of
the pool. The length of the pool is prime, so that no two rows of a layer are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prune_fe.pruning.cut import Cutter, KeptChannels, select_channels
from prune_fe.tracing.copying import convert, copy_model
from prune_fe.tracing.shared_tensors import find_shared_tensors, full_name

PERIOD = 2**19 - 1
"""The number of different random numbers in a pool. It is prime, and they take 4 MiB in double precision."""

MIN_WEIGHTS = 2**14
"""A layer with fewer weights than this gets weights of its own."""


class WeightPool:
    """Random numbers that many layers read their weights from.

    Attributes:
        values: (PERIOD + longest row,) numbers from a normal distribution, which repeat after PERIOD.
    """

    def __init__(self, longest_row: int, dtype: torch.dtype, seed: int = 0) -> None:
        """Draw the numbers.

        Args:
            longest_row: The number of weights of one output, in the layer that has the most.
            dtype: The dtype of the weights.
            seed: Seed of the random numbers.
        """
        generator = torch.Generator().manual_seed(seed)
        self.values = torch.empty(PERIOD + longest_row, dtype=dtype)
        self.values[:PERIOD].normal_(generator=generator)
        for part in self.values[PERIOD:].split(PERIOD):
            part.copy_(self.values[: len(part)])

    def __deepcopy__(self, memo: Any) -> WeightPool:
        """Return the pool itself, because it is never changed."""
        return self


@dataclass(frozen=True)
class PooledWeight:
    """The weight of one layer.

    Attributes:
        pool: Where its values are read from.
        shape: The shape of the weight of the whole layer, (outputs, inputs, ...).
        offset: Where in the pool it begins.
        kept: Dimension, 0 or 1 -> (channels,) the numbers of the outputs or inputs that are kept, ascending. All are
            kept in a dimension that is missing.
    """

    pool: WeightPool
    shape: tuple[int, ...]
    offset: int
    kept: Mapping[int, Tensor]

    def apply(self, layer: Callable[[Tensor], Tensor], bias: Tensor | None, dim: int) -> Tensor:
        """Return the output of a layer with this weight.

        Args:
            layer: Function from a weight (some outputs, inputs, ...) to the layer's values for these outputs.
            bias: (outputs,), or None.
            dim: The dimension of the channels in the output, counted from its end.
        """
        with torch._C.DisableTorchFunction():  # what watches the network sees the layer as a whole
            parts = [layer(weight) for weight in self.parts()]
            output = parts[0] if len(parts) == 1 else torch.cat(parts, dim)
        # He's initialisation, with which values neither vanish nor overflow. The pool serves layers of every size.
        output *= (2 / math.prod(self.shape[1:])) ** 0.5
        if bias is not None:
            output += bias.view(-1, *(1,) * (-dim - 1))
        return output

    def parts(self) -> Iterator[Tensor]:
        """Yield the weight that is kept in parts, (some outputs, inputs, ...), before it is scaled."""
        first, size, values = 0, math.prod(self.shape[1:]), self.pool.values
        while first < self.shape[0]:
            start = (self.offset + first * size) % PERIOD
            count = min(self.shape[0] - first, (len(values) - start) // size)
            weight = values[start : start + count * size].view(count, *self.shape[1:])
            if 0 in self.kept:
                low, high = torch.searchsorted(self.kept[0], torch.tensor([first, first + count])).tolist()
                weight = weight.index_select(0, self.kept[0][low:high] - first)
            first += count
            if len(weight):
                yield select_channels(weight, 1, self.kept[1]) if 1 in self.kept else weight


class PooledLayer:
    """Base class of the layers that read their weights from a pool. Their parameter `weight` has a shape only."""

    pooled: PooledWeight


class PooledConv2d(PooledLayer, nn.Conv2d):
    """A convolution without groups that reads its weights from a pool."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what a convolution with these weights returns."""
        return self.pooled.apply(lambda weight: self._conv_forward(input, weight, None), self.bias, dim=-3)


class PooledLinear(PooledLayer, nn.Linear):
    """A linear layer that reads its weights from a pool."""

    def forward(self, input: Tensor) -> Tensor:
        """Return what a linear layer with these weights returns."""
        return self.pooled.apply(lambda weight: F.linear(input, weight), self.bias, dim=-1)


POOLED_CLASSES: Mapping[type[nn.Module], type[nn.Module]] = {nn.Conv2d: PooledConv2d, nn.Linear: PooledLinear}
"""The layers that can read their weights from a pool. Derived classes cannot, because they may do more."""

FUNCTIONS: Mapping[type[nn.Module], str] = {nn.Conv2d: "conv2d", nn.Linear: "linear"}
"""The functions that these layers pass their weights to."""


def find_poolable_layers(model: nn.Module, uses: Mapping[int, Collection[tuple[str, str]]]) -> list[str]:
    """Return the names of the layers that are large and whose weights can be read from a pool.

    Args:
        model: A network that has run.
        uses: From `ChannelTracer.parameter_uses`. A weight has to exist if anything but its layer reads it.
    """
    shared = {name for names in find_shared_tensors(model) for name in names}
    return [
        name
        for name, module in model.named_modules()
        if type(module) in POOLED_CLASSES
        and (name, "weight") not in shared
        and getattr(module, "groups", 1) == 1
        and module.weight.numel() >= MIN_WEIGHTS
        and {(name, FUNCTIONS[type(module)])} == uses.get(id(module.weight))
    ]


def copy_with_pooled_weights(model: nn.Module, layers: Sequence[str], dtype: torch.dtype) -> nn.Module:
    """Return a copy of a network, on the CPU, in which some layers read their weights from a pool.

    Args:
        model: The network.
        layers: Names of these layers, from `find_poolable_layers`.
        dtype: The dtype of the copy.
    """
    weights = {name: model.get_parameter(full_name((name, "weight"))) for name in layers}
    # A weight on the meta device would not survive that the copy moves to the CPU; one without numbers does.
    empty = {weight: nn.Parameter(weight.new_empty(0), requires_grad=False) for weight in weights.values()}
    twin = convert(copy_model(model, empty), "cpu", dtype)
    pool = WeightPool(max((math.prod(weight.shape[1:]) for weight in weights.values()), default=0), dtype)
    offset = 0
    for name, weight in weights.items():
        module = twin.get_submodule(name)
        module.__class__ = POOLED_CLASSES[type(module)]
        module.weight = nn.Parameter(torch.empty(weight.shape, dtype=dtype, device="meta"), requires_grad=False)
        module.pooled = PooledWeight(pool, tuple(weight.shape), offset, {})  # type: ignore[assignment]
        # Each layer begins where the one before has ended, so that layers of one shape differ.
        offset = (offset + weight.numel()) % PERIOD
    return twin


def cut_pooled_weights(twin: nn.Module, cutter: Cutter, kept: KeptChannels) -> None:
    """Let layers read only those weights that are left when channels are removed, in place.

    Args:
        twin: A copy of the whole network that was cut, which gave the weights without values their new shapes.
        cutter: The index mapping of the network.
        kept: The channels that the copy has.
    """
    whole = cutter.all_channels()
    for name, module in twin.named_modules():
        if isinstance(module, PooledLayer):
            positions = cutter.kept_positions(full_name((name, "weight")), whole, kept)
            module.pooled = replace(module.pooled, kept={dim: chosen for _, dim, chosen in positions})
