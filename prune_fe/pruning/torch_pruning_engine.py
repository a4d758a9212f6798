"""Find groups and cut networks with torch-pruning (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning").

Its graph is turned into a `DependencyGraph`, so that planning, verification and records are the same with both engines.
Then torch-pruning's groups cut the network, and every tensor is compared with what the verified index mapping selects,
because torch-pruning can remove wrong channels without an error, behind some splits for example.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prune_fe.errors import InputError, describe_error
from prune_fe.pruning.channel_limits import EndlessSearchError, SearchGuard
from prune_fe.pruning.cut import AxisKey, Cutter, KeptChannels
from prune_fe.pruning.grouped_convolutions import register
from prune_fe.scorers.tp_criteria import import_torch_pruning
from prune_fe.tracing.branches import taking_training_branches
from prune_fe.tracing.channel_ids import to_tensor
from prune_fe.tracing.copying import copy_sharing_weights, find_listed_tensors, restoring_state, restoring_weights
from prune_fe.tracing.dependency_graph import OUTPUT, Axis, DependencyGraph, GraphBuilder, SetId
from prune_fe.tracing.memory_format import keep_memory_format
from prune_fe.tracing.module_rules import convolution_axes, count_positions, fix_if_computed
from prune_fe.tracing.nested import Inputs, count_rows, run, tensors_in
from prune_fe.tracing.shared_tensors import find_shared_tensors, full_name, named_tensors, set_tensor
from prune_fe.tracing.watching import Watch, evaluating

Indices = NDArray[np.int64]
"""Numbers of channels."""

Part = tuple[AxisKey | None, Indices, Indices]
"""An axis, the channels of it that are removed, and the unit that each of them is removed with. The axis is None for
the network's output."""

ADVICE = 'the engine "trace" may be able to cut it'
"""What the errors of this engine recommend."""


def build_graph(model: nn.Module, example: Inputs, has_branches: bool = False) -> DependencyGraph:
    """Return the dependency graph of a network, made of torch-pruning's groups.

    Args:
        model: The network. It is left as it was.
        example: Inputs of the network.
        has_branches: Whether the network takes other branches in training, which are followed too.

    Raises:
        EnvironmentFault: torch-pruning is not installed.
        InputError: torch-pruning cannot build its graph, or has no rule for a module.
    """
    twin = copy_sharing_weights(model)
    with restoring_weights(twin):
        return _build_graph(twin, example, has_branches)


def _build_graph(twin: nn.Module, example: Inputs, has_branches: bool) -> DependencyGraph:
    """Return the dependency graph of a copy of a network, whose parameters may be written to."""
    shapes, shapes_in_training = _Shapes(), _Shapes()
    with evaluating(twin), torch.no_grad():
        with shapes.watching(dict(twin.named_modules())):
            run(twin, example)
        if has_branches:
            with shapes_in_training.watching(dict(twin.named_modules())):
                _run_in_training(twin, example)
    outputs = shapes_in_training.outputs | shapes.outputs
    groups = _Groups(twin, example, has_branches, check_numbers=True)
    builder = GraphBuilder(groups.modules, {})
    for name in groups.modules:
        axes = [groups.add_axis(builder, name, side, outputs.get(name, ())) for side in groups.sides(name)]
        fix_if_computed(builder, name, axes)
    for name, positions in shapes.positions.items():
        builder.apply_at(name, positions)
    for name, side in groups.roots():
        root = groups.add_axis(builder, name, side)
        narrower = _couple(builder, groups, (name, side))
        for key in narrower:
            _couple(builder, groups, key)
        if groups.is_output(name):
            builder.fix(to_tensor(root.channels), OUTPUT)
    groups.free_maps()
    return builder.build(count_rows(example))


def _couple(builder: GraphBuilder, groups: _Groups, key: AxisKey) -> list[AxisKey]:
    """Couple the channels of an axis with all that are in torch-pruning's group of them.

    Args:
        builder: The graph so far.
        groups: torch-pruning's groups.
        key: The axis.

    Returns:
        The axes of the group whose channels each consist of several channels of `key`, as where the units of a linear
        layer are viewed as maps. torch-pruning couples such a channel with only one of them, so these axes have to be
        coupled from their own side too.
    """
    root, narrower = groups.add_axis(builder, *key), []
    for other, channels, root_channels in groups.parts(groups.find_group(key[0], range(len(root.channels)), key[1])):
        if other is None:
            builder.fix(to_tensor(root.channels[root_channels]), OUTPUT)
            continue
        axis = groups.add_axis(builder, *other)
        if channels.max() >= len(axis.channels) or root_channels.max() >= len(root.channels):
            raise InputError(
                f"engine torch-pruning: its group of layer {key[0]!r} names channels that do not exist: numbers up "
                f"to {root_channels.max()} for the {len(root.channels)} channels of the layer, and up to "
                f"{channels.max()} for the {len(axis.channels)} of {other[0]!r}; {ADVICE}"
            )
        builder.couple(root.channels[root_channels], axis.channels[channels])
        times, rest = divmod(len(root.channels), len(axis.channels))
        if times > 1 and not rest and other[0] in groups.modules and np.array_equal(root_channels // times, channels):
            narrower.append(other)
    return narrower


def cut(
    cutter: Cutter,
    model: nn.Module,
    before: KeptChannels,
    after: KeptChannels,
    example: Inputs,
    has_branches: bool = False,
) -> None:
    """Remove channels from a network, in place, with torch-pruning's groups.

    Args:
        cutter: The index mapping, made from `build_graph`.
        model: The network with the channels of `before`. Its parameters may have the memory of another network's: they
            are replaced, not written to.
        before: The channels that it has.
        after: The channels to keep, a part of `before`.
        example: Inputs of the network.
        has_branches: Whether the network takes other branches in training.

    Raises:
        InputError: torch-pruning cuts a tensor in another way than was verified.
    """
    # What code writes into them when it runs is undone before they are cut.
    old = named_tensors(model)
    # torch-pruning does not see the lists and dicts in which code holds some of them.
    listed, names = find_listed_tensors(model), {id(tensor): name for name, tensor in old.items()}
    # Where layers share a parameter, torch-pruning gives each of them a parameter of its own.
    shared = find_shared_tensors(model)
    first_names = {full_name(other): full_name(first) for first, *others in shared for other in others}
    flags = {name: tensor.requires_grad for name, tensor in model.named_parameters()}
    with restoring_weights(model), restoring_state(model):
        groups = _Groups(model, example, has_branches)
    _remove(groups, before, after)
    groups.free_maps()
    for name, tensor in named_tensors(model).items():
        first_name = first_names.get(name, name)
        expected = cutter.select(first_name, old[first_name].detach(), before, after)
        if tensor.shape != expected.shape or not torch.equal(tensor, expected):
            module = name.rpartition(".")[0]
            raise InputError(
                f"engine torch-pruning: it cuts {name!r} of layer {module!r} to {tuple(tensor.shape)} in another way "
                f"than was verified; {ADVICE}"
            )
        if name in old and tensor.shape != old[name].shape:
            _keep_form(model, name, tensor, old[name], flags)
    for first, *others in shared:
        tensor = getattr(model.get_submodule(first[0]), first[1])
        for module, attribute in others:
            set_tensor(model.get_submodule(module), attribute, tensor)
    now = named_tensors(model)
    for container, key, tensor in listed:
        container[key] = now[names[id(tensor)]]
    cutter.set_sizes(model, before, after)


def _remove(groups: _Groups, before: KeptChannels, after: KeptChannels) -> None:
    """Remove channels with torch-pruning's groups, layer by layer, without those that an earlier group has removed."""
    now = dict(before)
    for name, side in groups.roots():
        key = (name, side)
        # A grouped convolution with one channel left in each group has another side, which the mapping does not know.
        removed = np.flatnonzero(~np.isin(now[key], after[key])) if key in now else np.empty(0)
        if not removed.size:
            continue
        for part, channels, _ in groups.prune(name, removed):
            if part is not None:
                now[part] = np.delete(now[part], channels[channels < len(now[part])])


def can_cut(model: nn.Module, example: Inputs, has_branches: bool, cutter: Cutter, removed: Sequence[SetId]) -> bool:
    """Return whether torch-pruning's groups remove coupled sets from a copy of a network as a cutter does.

    Args:
        model: The network.
        example: Inputs of it.
        has_branches: Whether it takes other branches in training.
        cutter: The index mapping, made from `build_graph`.
        removed: The coupled sets.
    """
    try:
        twin = copy_sharing_weights(model)
        cut(cutter, twin, cutter.all_channels(), cutter.channels_without(removed), example, has_branches)
    except InputError:
        return False
    return True


def _run_in_training(model: nn.Module, inputs: Inputs) -> Any:
    """Return the outputs of a network's training branches; None if its code fails there."""
    # Many networks cannot be trained like this: they want the labels too, for example.
    with taking_training_branches(model), suppress(Exception):
        return run(model, inputs)
    return None


def _keep_form(model: nn.Module, name: str, tensor: Tensor, old: Tensor, flags: Mapping[str, bool]) -> None:
    """Give a cut tensor the memory format and the `requires_grad` of the old one, which torch-pruning does not keep."""
    owner, _, attribute = name.rpartition(".")
    kept = keep_memory_format(tensor.detach(), old)
    set_tensor(model.get_submodule(owner), attribute, nn.Parameter(kept, flags[name]) if name in flags else kept)


class _Shapes(Watch):
    """Records the shapes of the outputs of modules, and the positions at which layers are applied."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, torch.Size] = {}
        self.positions: dict[str, int] = {}
        self.modules: Mapping[str, nn.Module] = {}

    def watching(self, modules: Mapping[str, nn.Module]) -> Any:
        """Watch the modules while the block runs, and remember them."""
        self.modules = modules
        return super().watching(modules)

    def after_module(self, name: str, inputs: tuple[Any, ...], output: Any) -> None:
        """Record a run of a module."""
        if not isinstance(output, Tensor):
            return
        self.outputs[name] = output.shape
        module = self.modules[name]
        if isinstance(module, _ConvNd | nn.Linear):
            self.positions[name] = self.positions.get(name, 0) + count_positions(module, inputs[0], output)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Groups:
    """torch-pruning's graph of a network, with the names of its modules and parameters.

    Attributes:
        modules: The modules that the graph has, by name.
    """

    def __init__(
        self, model: nn.Module, example: Inputs, has_branches: bool = False, *, check_numbers: bool = False
    ) -> None:
        """Build the graph.

        Args:
            model: The network.
            example: Inputs of it.
            has_branches: Whether the network takes other branches in training, which are followed too.
            check_numbers: Whether a group that names channels that do not exist is an error; only before any cut.

        Raises:
            EnvironmentFault: torch-pruning is not installed.
            InputError: torch-pruning cannot build its graph.
        """
        self._library = import_torch_pruning()
        self._graph = self._library.DependencyGraph()
        register(self._graph, self._library)
        flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
        try:
            # torch-pruning follows autograd's graph, which leaves out frozen weights.
            for parameter in flags:
                parameter.requires_grad_(True)
            with evaluating(model), torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._graph.build_dependency(
                    model,
                    (example,),
                    forward_fn=lambda network, inputs: (
                        run(network, inputs[0]),
                        _run_in_training(network, inputs[0]) if has_branches else None,
                    ),
                    output_transform=lambda output: [each for each in tensors_in(output) if each.grad_fn is not None],
                    verbose=False,
                )
        except Exception as error:  # any rule of torch-pruning may fail on an unknown network
            raise InputError(
                f"engine torch-pruning: it cannot build the graph of {type(model).__name__} "
                f"({describe_error(error)}); {ADVICE}"
            ) from error
        finally:
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)
        names = {id(module): name for name, module in model.named_modules()}
        self.modules = {
            names[id(module)]: module
            for module in self._graph.module2node
            if isinstance(module, nn.Module) and id(module) in names
        }
        if not self.modules:
            raise InputError(
                f"engine torch-pruning: it follows gradients, and none flows from what {type(model).__name__} returns "
                f"to its weights; {ADVICE}"
            )
        self._names = names
        # Found before any cut, which may turn a grouped convolution into a depthwise one with other sides.
        self._sides = {name: self._find_sides(module) for name, module in self.modules.items()}
        self._model = model
        self._name_parameters()
        self._guard = SearchGuard(self._graph, self._size if check_numbers else None)

    def free_maps(self) -> None:
        """Free the feature maps that torch-pruning's graph keeps. No group can be found after that."""
        for node in self._graph.module2node.values():
            node.grad_fn = None

    def sides(self, name: str) -> tuple[str, ...]:
        """Return the sides of a module that torch-pruning cuts: "in" and "out", or "both"."""
        return self._sides[name]

    def _find_sides(self, module: nn.Module) -> tuple[str, ...]:
        pruner = self._graph.get_pruner_of_module(module)
        if pruner is None or pruner.get_out_channels(module) is None:
            return ()
        return ("both",) if pruner.prune_in_channels == pruner.prune_out_channels else ("in", "out")

    def add_axis(self, builder: GraphBuilder, name: str, side: str, shape: Sequence[int] = ()) -> Axis:
        """Return an axis of a module in a graph; the first call for it creates it.

        Args:
            builder: The graph.
            name: Name of the module.
            side: "in", "out" or "both", or the name of a parameter.
            shape: The shape of the module's output; only the first call needs it.
        """
        if side not in ("in", "out", "both"):  # a parameter of its own
            ((dim, width),) = _wide_dims(self._model.get_submodule(name).get_parameter(side))
            return builder.axis(name, side, width, dim=dim)
        module, pruner = self.modules[name], self._graph.get_pruner_of_module(self.modules[name])
        if isinstance(module, _ConvNd) and side != "both":
            return convolution_axes(builder, name, module, 1 - len(shape))[side == "out"]
        size = pruner.get_in_channels(module) if side == "in" else pruner.get_out_channels(module)
        blocks = module.num_groups if isinstance(module, nn.GroupNorm) else 1
        is_last = isinstance(module, nn.Linear | nn.LayerNorm)
        if isinstance(module, nn.LayerNorm) and type(module) is not nn.LayerNorm and len(shape) > 2:
            is_last = shape[1] != size  # its own code may move the channels to the end and back
        return builder.axis(name, side, size, blocks, -1 if is_last else 1 - len(shape))

    def roots(self) -> Iterator[tuple[str, str]]:
        """Yield the layers, each with the side of its outputs."""
        for name, module in self.modules.items():
            if isinstance(module, _ConvNd | nn.Linear):
                yield name, self.sides(name)[-1]

    def is_output(self, name: str) -> bool:
        """Return whether nothing in the network reads the outputs of a layer."""
        return not self._graph.module2node[self.modules[name]].outputs

    def parts(self, group: Any) -> Iterator[Part]:
        """Yield the channels that are removed with one of torch-pruning's groups.

        Args:
            group: From `find_group`.
        """
        for item in group:
            target = item.dep.target
            channels, roots = np.array(item.idxs, int), np.array(item.root_idxs, int)
            if target.type == self._library.ops.OPTYPE.OUTPUT:
                yield None, channels, roots
            elif (key := self._key(item.dep)) is not None:
                yield key, channels, roots

    def prune(self, name: str, units: Iterable[int]) -> list[Part]:
        """Remove units of a layer and the channels that are removed with them, and return what `parts` yields."""
        group = self.find_group(name, units)
        removed = list(self.parts(group))
        try:
            group.prune()
        except Exception as error:
            raise InputError(
                f"engine torch-pruning: it cannot cut layer {name!r} ({describe_error(error)}); {ADVICE}"
            ) from error
        self._name_parameters()
        return removed

    def find_group(self, name: str, units: Iterable[int], side: str = "out") -> Any:
        """Return torch-pruning's group of units of a layer, by their numbers in the network as it is now."""
        module = self.modules[name]
        pruner = self._graph.get_pruner_of_module(module)
        function = pruner.prune_in_channels if side == "in" else pruner.prune_out_channels
        self._guard.start()
        try:
            return self._graph.get_pruning_group(module, function, list(map(int, units)))
        except EndlessSearchError as error:
            raise InputError(f"engine torch-pruning: its group of layer {name!r} {error}; {ADVICE}") from error
        except Exception as error:  # torch-pruning loses count of channels in recurrent layers, for example
            raise InputError(
                f"engine torch-pruning: it cannot find the group of layer {name!r} ({describe_error(error)}); {ADVICE}"
            ) from error

    def _name_parameters(self) -> None:
        """Record the names of the parameters; call it again after a cut, which replaces parameters."""
        self._parameters = {id(parameter): name for name, parameter in self._model.named_parameters()}

    def _size(self, dependency: Any) -> tuple[str, int] | None:
        """Return the layer whose channels a dependency removes, and their number; None for an operation."""
        module = dependency.target.module
        name = self._names.get(id(module))
        if name is None or not self._sides.get(name):
            return None
        pruner, is_out = self._graph.get_pruner_of_module(module), self._is_out(dependency)
        return name, pruner.get_out_channels(module) if is_out else pruner.get_in_channels(module)

    def _is_out(self, dependency: Any) -> bool:
        return self._graph.is_out_channel_pruning_fn(dependency.handler)

    def _key(self, dependency: Any) -> AxisKey | None:
        """Return the axis that a dependency removes channels of; None for an operation without channels of its own."""
        module = dependency.target.module
        if isinstance(module, nn.Parameter):
            owner, _, attribute = self._parameters[id(module)].rpartition(".")
            if len(_wide_dims(module)) != 1:
                raise InputError(
                    f"engine torch-pruning: parameter {self._parameters[id(module)]!r} of shape {tuple(module.shape)} "
                    f"belongs to no layer, and torch-pruning only guesses which of its dimensions has the channels; "
                    f"{ADVICE}"
                )
            return owner, attribute
        name = self._names.get(id(module)) if isinstance(module, nn.Module) else None
        if name is None or not (sides := self.sides(name)):
            return None
        return name, sides[-1] if self._is_out(dependency) else sides[0]


def _wide_dims(tensor: Tensor) -> list[tuple[int, int]]:
    """Return the dimensions of a tensor that are larger than 1, each with its size."""
    return [(dim, size) for dim, size in enumerate(tensor.shape) if size > 1]
