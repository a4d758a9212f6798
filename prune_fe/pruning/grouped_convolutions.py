"""Let torch-pruning's groups remove channels from grouped convolutions as the verified index mapping does.

torch-pruning's own function for convolutions removes the same positions from every group of channels: in each group it
keeps the positions of the inputs that remain in the first group. prune_fe ranks the channels of each group separately,
so that different positions remain in each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

SIDES = ("in", "out")
"""Inputs and outputs."""


def register(graph: Any, library: Any) -> None:
    """Let a graph of torch-pruning remove channels from convolutions with `ConvolutionPruner`; call before it is built.

    Args:
        graph: A `torch_pruning.DependencyGraph`.
        library: The package torch_pruning.
    """
    kind = library.ops.OPTYPE.CONV
    pruner = ConvolutionPruner(graph.REGISTERED_PRUNERS[kind])
    graph.REGISTERED_PRUNERS[kind] = pruner
    # These two sets tell torch-pruning which functions remove inputs and which remove outputs.
    graph._in_channel_pruning_fn.add(pruner.prune_in_channels)
    graph._out_channel_pruning_fn.add(pruner.prune_out_channels)


class ConvolutionPruner:
    """Removes channels from convolutions, with the methods that torch-pruning calls.

    Every group of channels of a grouped convolution has to lose equally many. torch-pruning may remove the channels in
    several calls, one for each layer that gives them; the tensors are cut when all groups have lost equally many.
    """

    def __init__(self, plain: Any) -> None:
        """Start with no channel removed.

        Args:
            plain: torch-pruning's own pruner of convolutions, for those without groups.
        """
        self.pruning_dim = 1  # an attribute that torch-pruning sets
        self._plain = plain
        # Grouped convolution whose tensors are still to be cut -> side -> the channels that remain.
        self._waiting: dict[nn.Module, dict[str, NDArray[np.int64]]] = {}

    def prune_out_channels(self, layer: _ConvNd, idxs: Sequence[int]) -> nn.Module:
        """Remove outputs of a convolution, in place."""
        return self._plain.prune_out_channels(layer, idxs) if layer.groups == 1 else self._remove(layer, "out", idxs)

    def prune_in_channels(self, layer: _ConvNd, idxs: Sequence[int]) -> nn.Module:
        """Remove inputs of a convolution, in place."""
        return self._plain.prune_in_channels(layer, idxs) if layer.groups == 1 else self._remove(layer, "in", idxs)

    def get_out_channels(self, layer: _ConvNd) -> int:
        """Return the number of outputs."""
        return layer.out_channels

    def get_in_channels(self, layer: _ConvNd) -> int:
        """Return the number of inputs."""
        return layer.in_channels

    def get_out_channel_groups(self, layer: _ConvNd) -> int:
        """Return the number of groups of outputs."""
        return layer.groups

    def get_in_channel_groups(self, layer: _ConvNd) -> int:
        """Return the number of groups of inputs."""
        return layer.groups

    def _remove(self, layer: _ConvNd, side: str, channels: Iterable[int]) -> nn.Module:
        """Remove channels from a grouped convolution, by their numbers among those that remain."""
        whole = {"in": layer.in_channels, "out": layer.out_channels}
        kept = self._waiting.setdefault(layer, {key: np.arange(size) for key, size in whole.items()})
        kept[side] = np.delete(kept[side], list(channels))
        layer.in_channels, layer.out_channels = (len(kept[key]) for key in SIDES)
        self._cut(layer, kept)
        return layer

    def _cut(self, layer: _ConvNd, kept: dict[str, NDArray[np.int64]]) -> None:
        """Cut the tensors of a grouped convolution, unless some of its groups have more channels left than others."""
        rows, columns = reversed(SIDES) if not layer.transposed else SIDES
        widths = {rows: len(layer.weight) // layer.groups, columns: layer.weight.shape[1]}
        counts = {side: np.bincount(kept[side] // widths[side], minlength=layer.groups) for side in SIDES}
        # A group without inputs goes as a whole, as where several outputs are computed from one input.
        left = np.flatnonzero(counts["in"])
        if any(len(set(count[left])) != 1 or count.sum() != count[left].sum() for count in counts.values()):
            return
        parts = zip(kept[rows].reshape(len(left), -1), kept[columns].reshape(len(left), -1), strict=True)
        layer.weight = _parameter([layer.weight[row][:, column % widths[columns]] for row, column in parts])
        if layer.bias is not None:
            layer.bias = _parameter([layer.bias[kept["out"]]])
        layer.groups = len(left)
        del self._waiting[layer]


def _parameter(parts: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.cat([part.detach() for part in parts]))
