"""Run a network on an example and follow its channels, to build its dependency graph."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from prune_fe.errors import InputError
from prune_fe.tracing.attention_modules import follow_attention
from prune_fe.tracing.branches import note_values
from prune_fe.tracing.calls import CallRecorder
from prune_fe.tracing.dependency_graph import OUTPUT, DependencyGraph, GraphBuilder
from prune_fe.tracing.function_rules import Call, follow_candidates, follow_function
from prune_fe.tracing.module_rules import follow_module, has_module_rule
from prune_fe.tracing.nested import Inputs, count_rows, describe, run, tensors_in
from prune_fe.tracing.ops import plain_name
from prune_fe.tracing.own_code import (
    begin_run,
    count_call,
    end_run,
    follow_borrowed_layer,
    follow_own_layer,
    is_own_layer,
)
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

    def __init__(self, model: nn.Module) -> None:
        """Prepare to trace a network.

        Args:
            model: The network. The caller runs it once while it is traced, in evaluation mode and without gradients;
                `prune_fe.tracing.branches` may run it again afterwards.
        """
        self._model, modules = model, dict(model.named_modules())
        super().__init__({name for name, module in modules.items() if has_module_rule(module)})
        self.builder = GraphBuilder(modules, _own_tensors(modules, self.whole))
        self.parameter_uses: dict[int, set[tuple[str, str]]] = {}
        self.ran: set[str] = set()
        self.values_in: dict[str, list[Tensor]] = {}
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
        return self.builder.build(images)

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
        note_values(self, name, inputs)
        note_values(self, self.builder.running[-1], output)
        if not name:
            self._output, self._has_output = describe(output), self._has_output or bool(tensors_in(output))
            for tensor in tensors_in(output):
                self.builder.fix(self.builder.ids.get(tensor), OUTPUT)

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
            if follow_own_layer(self.builder, call) or follow_borrowed_layer(self.builder, call):
                pass
            elif inputs and (outputs or name == "setitem"):
                follow_function(self.builder, call)
            elif outputs and not inputs:
                follow_candidates(self.builder, call)
        except Exception as error:  # functions can be called in more ways than the rules know
            for value in inputs:
                reason = f"{name}() in {self.builder.location} cannot be followed ({error})"
                self.builder.fix(self.builder.ids[value], reason)
        note_values(self, self.builder.running[-1], output)
