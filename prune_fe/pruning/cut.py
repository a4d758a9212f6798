"""Remove channels from the tensors of a network, and keep track of the original numbers of the others.

Which channels are removed is decided in `plan.py`, and whether that is correct in `verify.py`.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._python_dispatch import TorchDispatchMode

from prune_fe.errors import InputError
from prune_fe.tracing.dependency_graph import Axis, DependencyGraph, SetId
from prune_fe.tracing.module_rules import is_computed
from prune_fe.tracing.nested import tensors_in
from prune_fe.tracing.ops import NORM_MODULES

AxisKey = tuple[str, str]
"""(module, side) of an axis, as in DependencyGraph.axes."""

KeptChannels = dict[AxisKey, NDArray[np.int64]]
"""Axis -> the original numbers of its channels that are kept, ascending."""

CodeSizes = Mapping[tuple[str, str], Sequence[Any]]
"""(module, attribute) -> for each number in the attribute, the coupled sets that it counts, or else the number."""


EMPTIES = (dict, OrderedDict)
"""The types of the dicts of a module that are copied by a call of the type while they are empty."""


class Cutter:
    """The index mapping of one architecture: which tensors have which channels along which dimension.

    Attributes:
        graph: The dependency graph of the network.
        axes: The axes of the graph.
        axis_sets: Axis -> (channels,) the coupled set of each of its channels.
        tensor_axes: Name of a parameter or buffer -> (axis, dimension of the tensor) for each of its axes.
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
            for attribute, dim in _find_tensors(modules[axis.module], axis):
                if axis.call is not None or (axis.side in ("in", "out", "both") and (key[0], attribute) in self.axes):
                    continue  # Statistics have no tensor; a tensor that the module's code uses has its own axis.
                self.tensor_axes.setdefault(f"{axis.module}.{attribute}".lstrip("."), []).append((key, dim))
        # A weight under two names would be cut twice, or for one of two sets of channels only.
        first_names: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            first = first_names.setdefault(id(parameter), name)
            if first != name and name in self.tensor_axes:
                raise InputError(f"parameter {name!r} is also {first!r}; shared weights cannot be pruned")
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
            if axis.blocks > 1 and axis.side == "in":
                # The weight of a grouped convolution has (inputs / groups) columns. Each block of rows reads its own
                # inputs, which are counted from the start of the block.
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
        for key, dim in self.tensor_axes.get(name, ()):
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
        for name, axes in self.tensor_axes.items():
            if changed.isdisjoint(key for key, _ in axes):
                continue
            owner, _, attribute = name.rpartition(".")
            old = getattr(modules[owner], attribute)
            new = self.select(name, old.detach(), before, after)
            # A new parameter: gradients and hooks of the old one have its old shape.
            if isinstance(old, nn.Parameter):
                setattr(modules[owner], attribute, nn.Parameter(new, old.requires_grad))
            else:
                modules[owner]._buffers[attribute] = new
        for name in {module for module, _ in changed}:
            _set_channel_counts(
                modules[name], {side: len(kept) for (owner, side), kept in after.items() if owner == name}
            )
        self._set_code_sizes(modules, after)

    def _set_code_sizes(self, modules: Mapping[str, nn.Module], after: KeptChannels) -> None:
        """Write the numbers of channels that are kept into the attributes that count them."""
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


def copy_model(model: nn.Module, stand_ins: Mapping[nn.Parameter, nn.Parameter] | None = None) -> nn.Module:
    """Return a deep copy of a model, without gradients.

    Args:
        model: The model.
        stand_ins: Parameters of the model that are not copied -> what the copy has instead of them.

    Raises:
        InputError: The model cannot be copied.
    """
    memo: dict[int, Any] = {id(weight): other for weight, other in (stand_ins or {}).items()}
    # A module has ten dicts for hooks, most of them empty. deepcopy() takes most of its time for those.
    for module in model.modules():
        if is_computed(module):
            # A weight that a hook computes again in each run is the result of a computation, which has no copy.
            computed = [value for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf]
            memo |= {id(value): value.detach().clone() for value in computed}
        memo |= {id(value): type(value)() for value in vars(module).values() if type(value) in EMPTIES and not value}
    try:
        twin = copy.deepcopy(model, memo)
    except Exception as error:  # modules may hold anything: locks, files, tensors of a graph
        raise InputError(f"{type(model).__name__} cannot be copied: {error}") from error
    for weight in twin.parameters():
        weight.grad = None
    return twin


def copy_sharing_weights(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose parameters have the memory of the model's, so that it takes almost none.

    Buffers are copied. Parameters may be changed in place after `own_weights`, or under `restoring_weights`.

    Raises:
        InputError: The model cannot be copied.
    """
    # Parameters of derived classes may be more than their values, and are copied.
    plain = [weight for weight in model.parameters() if type(weight) is nn.Parameter]
    return copy_model(model, {weight: nn.Parameter(weight.detach(), weight.requires_grad) for weight in plain})


def own_weights(twin: nn.Module, model: nn.Module) -> None:
    """Give those parameters of a copy memory of their own, in place, that have that of the model's."""
    shared = {weight.data_ptr() for weight in model.parameters()}
    for weight in twin.parameters():
        if weight.data_ptr() in shared:
            weight.data = weight.data.clone()


@contextmanager
def restoring_weights(model: nn.Module) -> Iterator[None]:
    """Undo what a model's code writes into its parameters in the block; each is copied before it is written to."""
    with _SavedWeights(model) as saved:
        try:
            yield
        finally:
            for weight, value in saved.values.values():
                weight.data.copy_(value)


class _SavedWeights(TorchDispatchMode):
    """Copies a parameter of a model before an operation writes to it for the first time.

    Attributes:
        values: Address of the memory -> the parameter and its copy.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._weights = {weight.untyped_storage().data_ptr(): weight for weight in model.parameters()}
        self.values: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            for tensor in tensors_in((*args, *(kwargs or {}).values())):
                address = tensor.untyped_storage().data_ptr()
                if address in self._weights and address not in self.values:
                    weight = self._weights[address]
                    self.values[address] = weight, weight.detach().clone()
        return func(*args, **(kwargs or {}))


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


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


def _find_tensors(module: nn.Module, axis: Axis) -> Iterator[tuple[str, int]]:
    """Yield (attribute, dimension) of each tensor of a module that has the channels of one of its axes."""
    if axis.side not in ("in", "out", "both"):
        yield axis.side, axis.dim
        return
    count = len(axis.channels)
    is_transposed = isinstance(module, _ConvTransposeNd) and axis.side != "both"
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is None:
            continue
        if name == "weight" and isinstance(module, _ConvNd | nn.Linear):
            dim = int((axis.side == "in") != is_transposed)
            # In a convolution with as many groups as inputs, the weight has no dimension for the inputs.
            if axis.side != "in" or tensor.shape[dim] * axis.blocks == count:
                yield name, dim
        elif axis.side != "in":
            # Biases, scales and statistics have one number a channel, perhaps with dimensions of size 1 around it.
            wide = [dim for dim, size in enumerate(tensor.shape) if size > 1]
            if len(wide) == 1 and tensor.shape[wide[0]] == count:
                yield name, wide[0]


def _set_channel_counts(module: nn.Module, sizes: Mapping[str, int]) -> None:
    """Set the attributes of a layer or norm that say how many channels it has.

    Args:
        module: A module of torch.nn, or one that derives from it.
        sizes: Side of the module -> number of channels.
    """
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
