"""Remove channels from the tensors of a network, and keep track of the original numbers of the others.

Which channels are removed is decided in `plan.py`, and whether that is correct in `verify.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prune_fe.errors import InputError
from prune_fe.tracing.attention_modules import set_attention_sizes
from prune_fe.tracing.copying import find_listed_tensors
from prune_fe.tracing.dependency_graph import DependencyGraph, SetId
from prune_fe.tracing.memory_format import keep_memory_format
from prune_fe.tracing.ops import NORM_MODULES
from prune_fe.tracing.shared_tensors import (
    find_axis_tensors,
    find_shared_tensors,
    full_name,
    named_tensors,
    set_tensor,
)

AxisKey = tuple[str, str]
"""(module, side) of an axis, as in DependencyGraph.axes."""

KeptChannels = dict[AxisKey, NDArray[np.int64]]
"""Axis -> the original numbers of its channels that are kept, ascending."""

CodeSizes = Mapping[tuple[str, str], Sequence[Any]]
"""(module, attribute) -> for each number in the attribute, the coupled sets that it counts, or else the number."""


class Cutter:
    """The index mapping of one architecture: which tensors have which channels along which dimension.

    Attributes:
        graph: The dependency graph of the network.
        axes: The axes of the graph.
        axis_sets: Axis -> (channels,) the coupled set of each of its channels.
        tensor_axes: Name of a parameter or buffer -> (axis, dimension of the tensor) for each of its axes.
        shared: The names of tensors that have several names.
        shapes: Name of a parameter or buffer -> its shape before anything is removed.
        code_sizes: Attributes of modules that count channels and change with them.
    """

    def __init__(self, model: nn.Module, graph: DependencyGraph) -> None:
        self.graph = graph
        self.axes = graph.axes
        self.axis_sets = {key: graph.coupled_set[axis.channels] for key, axis in self.axes.items()}
        self.set_count = int(graph.coupled_set.max()) + 1
        self.code_sizes: CodeSizes = {}
        modules = dict(model.named_modules())
        self.tensor_axes: dict[str, list[tuple[AxisKey, int]]] = {}
        for key, axis in self.axes.items():
            for attribute, dim in find_axis_tensors(modules[axis.module], axis):
                if axis.call is not None or (axis.side in ("in", "out", "both") and (key[0], attribute) in self.axes):
                    continue  # A statistic has no tensor, and a tensor that the module's code uses has its own axis.
                self.tensor_axes.setdefault(full_name((axis.module, attribute)), []).append((key, dim))
        self.shared: set[str] = set()
        for names in find_shared_tensors(model):
            # The axes of all names are coupled, so that any of them gives the channels of a dimension.
            axes = {dim: key for name in names for key, dim in self.tensor_axes.get(full_name(name), ())}
            for name in map(full_name, names) if axes else ():
                self.tensor_axes[name] = [(key, dim) for dim, key in axes.items()]
                self.shared.add(name)
        self.shapes = {name: tensor.shape for name, tensor in named_tensors(model).items()}

    def with_code_sizes(self, code_sizes: CodeSizes) -> Cutter:
        """Return a cutter that changes these attributes of modules too."""
        other = copy.copy(self)
        other.code_sizes = code_sizes
        return other

    def all_channels(self) -> KeptChannels:
        """Return the channels of the whole network."""
        return {key: np.arange(len(axis.channels)) for key, axis in self.axes.items()}

    def channels_without(self, removed: Iterable[SetId]) -> KeptChannels:
        """Return the channels that are kept when these coupled sets are removed."""
        is_kept = np.ones(self.set_count, bool)
        is_kept[list(removed)] = False
        return {key: np.flatnonzero(is_kept[sets]) for key, sets in self.axis_sets.items()}

    def select(self, name: str, tensor: Tensor, before: KeptChannels, after: KeptChannels) -> Tensor:
        """Return a tensor without the channels that are removed.

        Args:
            name: Name of the parameter or buffer that has the tensor's axes.
            tensor: A tensor with the channels of `before`.
            before: The channels that it has.
            after: The channels to keep, a part of `before`.
        """
        for key, dim, positions in self.kept_positions(name, before, after):
            axis, indices = self.axes[key], positions.to(tensor.device)
            if axis.blocks > 1 and axis.side in ("in", "out") and dim == 1:
                # The weight of a grouped convolution has (inputs / groups) columns, that of a transposed one (outputs /
                # groups). Each block of rows has its own, which are counted from the start of the block.
                rows = tensor.chunk(axis.blocks, 0)
                columns = indices.view(axis.blocks, -1) % (len(before[key]) // axis.blocks)
                tensor = torch.cat([row.index_select(1, column) for row, column in zip(rows, columns, strict=True)])
            else:
                tensor = select_channels(tensor, dim, indices)
        return tensor

    def kept_positions(
        self, name: str, before: KeptChannels, after: KeptChannels
    ) -> Iterator[tuple[AxisKey, int, Tensor]]:
        """Yield where a tensor has the channels that it keeps, for each of its axes that loses some.

        Args:
            name: Name of the parameter or buffer that has the tensor's axes.
            before: The channels that it has.
            after: The channels to keep, a part of `before`.

        Yields:
            The axis, the dimension of the tensor, and (channels,) the positions in this dimension, ascending.
        """
        # Rows first: they are the faster ones to take out, and leave fewer values to take columns from.
        for key, dim in sorted(self.tensor_axes.get(name, ()), key=lambda entry: entry[1]):
            if len(before[key]) != len(after[key]):
                # Original numbers become positions in the tensor, which may have lost channels before.
                yield key, dim, torch.from_numpy(np.searchsorted(before[key], after[key]))

    def cut(self, model: nn.Module, before: KeptChannels, after: KeptChannels) -> None:
        """Remove channels from a model, in place.

        Args:
            model: A model with the channels of `before`.
            before: The channels that it has.
            after: The channels to keep, a part of `before`.
        """
        changed = {key for key in after if len(after[key]) != len(before[key])}
        modules = dict(model.named_modules())
        # id() of an old tensor -> it and the new one. Holding the old one keeps its id from being given to another.
        cut: dict[int, tuple[Tensor, Tensor]] = {}
        listed = find_listed_tensors(model)
        listed_ids = {id(tensor) for _, _, tensor in listed}
        for name, axes in self.tensor_axes.items():
            if changed.isdisjoint(key for key, _ in axes):
                continue
            owner, _, attribute = name.rpartition(".")
            old = getattr(modules[owner], attribute)
            if id(old) in cut:
                set_tensor(modules[owner], attribute, cut[id(old)][1])
                continue
            new = keep_memory_format(self.select(name, old.detach(), before, after), old)
            # A new parameter: gradients and hooks of the old one have its old shape.
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, old.requires_grad)
            set_tensor(modules[owner], attribute, new)
            if name in self.shared or id(old) in listed_ids:
                cut[id(old)] = old, new
        for container, key, old in listed:
            if id(old) in cut:
                container[key] = cut[id(old)][1]
        self.set_sizes(model, before, after)

    def set_sizes(self, model: nn.Module, before: KeptChannels, after: KeptChannels) -> None:
        """Set the attributes of modules that count channels to the numbers of channels that are kept.

        Args:
            model: The network, which is changed in place.
            before: The channels that it had.
            after: The channels to keep.
        """
        modules = dict(model.named_modules())
        sizes: dict[str, dict[str, int]] = {}
        for (name, side), kept in after.items():
            sizes.setdefault(name, {})[side] = len(kept)
        for name in {module for module, side in after if len(after[module, side]) != len(before[module, side])}:
            _set_channel_counts(modules[name], sizes[name])
        is_kept = np.zeros(self.set_count, bool)
        for key, kept in after.items():
            is_kept[self.axis_sets[key][kept]] = True
        for (name, attribute), parts in self.code_sizes.items():
            counts = [part if isinstance(part, int) else int(is_kept[part].sum()) for part in parts]
            old = getattr(modules[name], attribute)
            setattr(modules[name], attribute, type(old)(counts) if isinstance(old, list | tuple) else counts[0])


def select_channels(tensor: Tensor, dim: int, positions: Tensor) -> Tensor:
    """Return what index_select() returns, in a small part of the time for weights of linear layers.

    Args:
        tensor: Any tensor.
        dim: The dimension.
        positions: (channels,) positions in this dimension.
    """
    if dim == 1 and math.prod(tensor.shape[2:]) == 1:
        index = positions.expand(len(tensor), -1)
        return tensor.flatten(1).gather(1, index).view(*index.shape, *tensor.shape[2:])
    return tensor.index_select(dim, positions)


def find_code_sizes(model: nn.Module, graph: DependencyGraph) -> CodeSizes:
    """Return the attributes of modules that may count channels.

    Networks keep the sizes of their splits and views in attributes, such as `width` of Res2Net's blocks. A number that
    equals the size of something that is split or viewed in the module is taken to be that size; which attributes do
    change with the channels is found by trying (`analysis.py`).
    """
    modules = dict(model.named_modules())
    counted_in: dict[str, list[NDArray[np.int64]]] = {}
    for name, sets in graph.counted_sets:
        counted_in.setdefault(name, []).append(sets)
    candidates: dict[tuple[str, str], Sequence[Any]] = {}
    for name, counted in counted_in.items():
        sizes = [len(sets) for sets in counted]
        for attribute, value in vars(modules[name]).items():
            numbers = list(value) if isinstance(value, list | tuple) else [value]
            if not all(type(number) is int for number in numbers) or set(sizes).isdisjoint(numbers):
                continue
            # A list is most likely the sizes of one split, which are counted one after the other.
            start = next((i for i in range(len(sizes)) if sizes[i : i + len(numbers)] == numbers), None)
            if start is not None:
                candidates[name, attribute] = counted[start : start + len(numbers)]
            else:
                candidates[name, attribute] = [counted[sizes.index(n)] if n in sizes else n for n in numbers]
    return candidates


def refuse_unlike_weights(tensors: Mapping[str, Tensor], model: nn.Module, what: str) -> None:
    """Check that tensors have the shapes of the parameters that they are named after.

    Args:
        tensors: Parameter name -> tensor.
        model: The model with these parameters.
        what: What the tensors are, for the error message.

    Raises:
        InputError: A parameter does not exist or has another shape.
    """
    weights = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in weights:
            raise InputError(f"{what}: {type(model).__name__} has no parameter {name!r}")
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        if shape != tuple(weights[name].shape):
            raise InputError(f"{what} of parameter {name!r} is {shape}, the parameter {tuple(weights[name].shape)}")


def _set_channel_counts(module: nn.Module, sizes: Mapping[str, int]) -> None:
    """Set the attributes of a layer or norm that say how many channels it has.

    Args:
        module: A module of torch.nn, or one that derives from it.
        sizes: Side of the module -> number of channels.
    """
    if isinstance(module, nn.MultiheadAttention):
        set_attention_sizes(module, sizes)
        return
    both = sizes.get("both", 0)
    if isinstance(module, NORM_MODULES):  # the code of a norm that derives from one of torch's uses its tensors
        both = both or next(iter(sizes.values()), 0)
    if isinstance(module, _ConvNd | nn.Linear) and not both and "in" not in sizes:
        return  # Its code uses a tensor by itself.
    if isinstance(module, _ConvNd):
        is_depthwise = both or (module.groups > 1 and module.groups == module.in_channels)
        module.in_channels, module.out_channels = both or sizes["in"], both or sizes["out"]
        module.groups = module.in_channels if is_depthwise else module.groups
    elif isinstance(module, nn.Linear):
        module.in_features, module.out_features = sizes["in"], sizes["out"]
    elif both:
        for attribute in ("num_features", "num_channels", "num_parameters"):
            if isinstance(getattr(module, attribute, None), int):
                setattr(module, attribute, both)
        if hasattr(module, "normalized_shape"):
            module.normalized_shape = (both,)  # type: ignore[assignment]
