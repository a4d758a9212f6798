"""Run a network on an example and follow its channels, to build its dependency graph."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from prune_fe.errors import InputError
from prune_fe.tracing.attention_modules import follow_attention
from prune_fe.tracing.branches import note_values
from prune_fe.tracing.calls import CallRecorder
from prune_fe.tracing.channel_ids import IdArray, ids_along, varying_dims
from prune_fe.tracing.copying import convert, copy_sharing_weights, restoring_weights
from prune_fe.tracing.dependency_graph import OUTPUT, DependencyGraph, GraphBuilder
from prune_fe.tracing.function_rules import Call, follow_candidates, follow_function
from prune_fe.tracing.module_rules import follow_module, has_module_rule
from prune_fe.tracing.nested import Inputs, count_rows, describe, move, run, tensors_in
from prune_fe.tracing.ops import plain_name
from prune_fe.tracing.own_code import (
    begin_run,
    count_call,
    end_run,
    follow_borrowed_layer,
    follow_own_layer,
    is_own_layer,
)
from prune_fe.tracing.products import count_products
from prune_fe.tracing.shared_tensors import couple_shared_tensors
from prune_fe.tracing.watching import evaluating


def build_dependency_graph(model: nn.Module, example: Inputs) -> DependencyGraph:
    """Run a network on an example and return its dependency graph.

    Args:
        model: The network. It is run in evaluation mode and left as it was.
        example: Inputs of the network.

    Raises:
        InputError: The network returns no tensor.
    """
    tracer = ChannelTracer(model)
    with evaluating(model), torch.no_grad(), tracer.tracing():
        run(model, example)
    return tracer.build_graph(images=count_rows(example))


def find_coupled_units(model: nn.Module, example: Inputs, names: Sequence[str]) -> dict[str, IdArray]:
    """Return which units of some layers a residual sum, a gate or a depthwise convolution ties together.

    Args:
        model: The network. It is left as it was.
        example: Inputs of the network.
        names: Names of layers, and of other modules that return maps, such as residual blocks.

    Returns:
        Name -> (units,) the coupled set of each unit, for those whose units could be followed. Units that are tied
        together have the same set.

    Raises:
        InputError: The model cannot be copied, or the network returns no tensor.
    """
    twin = convert(copy_sharing_weights(model), "cpu")
    tracer = ChannelTracer(twin, names)
    with evaluating(twin), torch.no_grad(), restoring_weights(twin), tracer.tracing():
        run(twin, move(example, "cpu"))
    graph = tracer.build_graph(count_rows(example))
    layers = {name: axis for (name, side), axis in graph.axes.items() if side in ("out", "both")}
    return {
        name: graph.coupled_set[layers[name].channels] if name in layers else graph.outputs[name]
        for name in names
        if name in layers or name in graph.outputs
    }


def _own_tensors(modules: dict[str, nn.Module], whole: Collection[str]) -> Any:
    """Return the parameters and buffers with several values that belong to no module with a rule.

    Returns:
        Tensor -> the names of its module and attribute.
    """
    owners: Any = WeakIdKeyDictionary()
    prefixes = tuple(f"{name}." for name in whole)
    for name, module in modules.items():
        if name in whole or name.startswith(prefixes):
            continue
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
            if attribute == "weight" and is_own_layer(module):
                continue  # It has the channels of the layer's inputs and outputs.
            if tensor is not None and tensor.numel() > 1:
                owners[tensor] = (name, attribute)
    return owners


class ChannelTracer(CallRecorder):
    """Intercepts the calls of modules and functions and passes them to their rules.

    Attributes:
        builder: Collects the dependency graph.
        parameter_uses: id() of a parameter -> the functions that read it, each with the innermost module that was
            running.
        ran: Names of the modules that ran.
        values_in: Module -> the ids of its inputs and of what its code computed. Only modules that are keys before the
            network runs are recorded.
    """

    def __init__(self, model: nn.Module, outputs: Collection[str] = ()) -> None:
        """Prepare to trace a network.

        Args:
            model: The network. The caller runs it once while it is traced, in evaluation mode and without gradients;
                `prune_fe.tracing.branches` may run it again afterwards.
            outputs: Names of modules that are no layers, whose outputs the graph is to contain.
        """
        self._model, modules = model, dict(model.named_modules())
        super().__init__({name for name, module in modules.items() if has_module_rule(module)})
        self.builder = GraphBuilder(modules, _own_tensors(modules, self.whole))
        self.parameter_uses: dict[int, set[tuple[str, str]]] = {}
        self.ran: set[str] = set()
        self.values_in: dict[str, list[Tensor]] = {}
        self._outputs: dict[str, list[IdArray | None]] = {name: [] for name in outputs}
        self._output = "nothing"
        self._has_output = False

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Trace the network for the duration of a context."""
        with self.recording(self._model):
            yield

    def build_graph(self, images: int) -> DependencyGraph:
        """Return the dependency graph after the network ran.

        Args:
            images: The number of images that it ran on.

        Raises:
            InputError: The network returned no tensor.
        """
        if not self._has_output:
            raise InputError(f"the model returns {self._output}; prune() needs tensors to compare")
        couple_shared_tensors(self.builder, self.parameter_uses)
        graph = self.builder.build(images)
        outputs = {name: _common_sets(runs, graph.coupled_set) for name, runs in self._outputs.items()}
        return replace(graph, outputs={name: sets for name, sets in outputs.items() if sets is not None})

    def watches(self, name: str) -> bool:
        """Return True: the rules say in which module something happens."""
        return True

    def enter(self, name: str) -> None:
        """Note that a module begins to run."""
        super().enter(name)
        self.ran.add(name)
        begin_run(self.builder, name)

    def leave(self, name: str, inputs: Sequence[Any], output: Any) -> None:
        """Follow the channels through a module that has run, if it has a rule."""
        super().leave(name, inputs, output)
        value = next((entry for entry in inputs if isinstance(entry, Tensor)), None)
        end_run(self.builder, value, output)
        # A whole module inside another, such as a norm that calls a linear layer, is part of the outer one's rule.
        is_outermost = name in self.whole and not self.whole_running
        if is_outermost and isinstance(self.builder.modules[name], nn.MultiheadAttention):
            follow_attention(self.builder, name, [entry for entry in inputs if isinstance(entry, Tensor)], output[0])
        elif is_outermost and isinstance(output, Tensor) and value is not None:
            follow_module(self.builder, name, value, output)
        if name in self._outputs:
            self._outputs[name].append(self._channels_of(output))
        note_values(self, name, inputs)
        note_values(self, self.builder.running[-1], output)
        if not name:
            self._output, self._has_output = describe(output), self._has_output or bool(tensors_in(output))
            for tensor in tensors_in(output):
                self.builder.fix(self.builder.ids.get(tensor), OUTPUT)
            # Only the first run is counted: the survey of the layers may run the network again, on more images.
            self.builder.counts_positions = False

    def _channels_of(self, output: Any) -> IdArray | None:
        """Return the ids of the channels of maps (images, channels, height, width), None for anything else."""
        ids = self.builder.ids.get(output) if isinstance(output, Tensor) and output.ndim == 4 else None
        return ids_along(ids, [1]) if ids is not None and varying_dims(ids) in ([], [1]) else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = super().__torch_function__(func, types, args, kwargs)
        # What returns no tensor asks for a shape or a dtype.
        for value in tensors_in((args, kwargs)) if tensors_in(output) else ():
            if isinstance(value, nn.Parameter):
                self.parameter_uses.setdefault(id(value), set()).add((self.builder.running[-1], plain_name(func)))
        return output

    def follow(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Follow the channels through a function that no module with a rule called."""
        super().follow(func, args, kwargs, output)
        if plain_name(func) == "iter":  # A loop over a tensor has already made its parts, as unbind() does.
            func, output = torch.unbind, tuple(copy.copy(output))
        inputs = [value for value in tensors_in((args, kwargs)) if self.builder.has_ids(value)]
        outputs = [value for value in tensors_in(output) if value.ndim]
        name = plain_name(func)
        call = Call(name, func, args, kwargs, output, inputs, outputs)
        count_call(self.builder, name)
        try:
            if not (follow_own_layer(self.builder, call) or follow_borrowed_layer(self.builder, call)):
                count_products(self.builder, call)
                if inputs and (outputs or name == "setitem"):
                    follow_function(self.builder, call)
                elif outputs and not inputs:
                    follow_candidates(self.builder, call)
        except Exception as error:  # functions can be called in more ways than the rules know
            for value in inputs:
                reason = f"{name}() in {self.builder.location} cannot be followed ({error})"
                self.builder.fix(self.builder.ids[value], reason)
        note_values(self, self.builder.running[-1], output)


def _common_sets(runs: Sequence[IdArray | None], coupled_set: IdArray) -> IdArray | None:
    """Return the coupled sets of the channels that a module returned in all its runs.

    Args:
        runs: The ids of the channels of each run, None for a run that returned something else.
        coupled_set: Array indexed by channel id: the coupled set.

    Returns:
        (channels,) the coupled sets, or None where they differ or there are none.
    """
    found = [None if ids is None else coupled_set[ids] for ids in runs]
    first = found[0] if found else None
    if first is None or any(sets is None or not np.array_equal(first, sets) for sets in found):
        return None
    return first
