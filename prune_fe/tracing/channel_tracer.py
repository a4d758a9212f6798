"""Run a network on an example and follow its channels, to build its dependency graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from prune_fe.errors import InputError
from prune_fe.tracing.dependency_graph import OUTPUT, DependencyGraph, GraphBuilder
from prune_fe.tracing.function_rules import Call, follow_function
from prune_fe.tracing.module_rules import follow_module, has_module_rule
from prune_fe.tracing.ops import plain_name
from prune_fe.tracing.watching import evaluating, tensors_in


def build_dependency_graph(model: nn.Module, example: Tensor) -> DependencyGraph:
    """Run a network on an example and return its dependency graph.

    Args:
        model: The network. It is run in evaluation mode and left as it was.
        example: (images, channels, height, width), an input of the network.

    Raises:
        InputError: The network does not return one tensor.
    """
    modules = dict(model.named_modules())
    whole = {name for name, module in modules.items() if has_module_rule(module)}
    builder = GraphBuilder(modules, _own_tensors(modules, whole))
    with evaluating(model), torch.no_grad(), _Tracer(builder, whole).tracing():
        output = model(example)
    if not isinstance(output, Tensor):
        raise InputError(f"the model returns a {type(output).__name__}; prune() needs one that returns a tensor")
    builder.fix(builder.ids.get(output), OUTPUT)
    return builder.build(images=len(example))


def _own_tensors(modules: dict[str, nn.Module], whole: set[str]) -> Any:
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
            if tensor is not None and tensor.numel() > 1:
                owners[tensor] = (name, attribute)
    return owners


class _Tracer(TorchFunctionMode):
    """Intercepts the calls of modules and functions and passes them to their rules.

    Args:
        builder: Collects the dependency graph.
        whole: Names of the modules that have a rule.
    """

    def __init__(self, builder: GraphBuilder, whole: set[str]) -> None:
        super().__init__()
        self.builder = builder
        self.whole = whole
        # How many of these modules are running. While one is, its rule replaces those of the functions that it calls.
        self.whole_running = 0

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Trace the network for the duration of a context."""
        with ExitStack() as stack:
            for name, module in self.builder.modules.items():
                # Our hook runs before the network's own, because the functions that those call belong to the module.
                enter = module.register_forward_pre_hook(lambda _, args, name=name: self._enter(name), prepend=True)
                leave = module.register_forward_hook(
                    lambda _, args, kwargs, output, name=name: self._leave(name, (*args, *kwargs.values()), output),
                    with_kwargs=True,
                )
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            stack.enter_context(self)
            yield

    def _enter(self, name: str) -> None:
        self.builder.running.append(name)
        self.whole_running += name in self.whole

    def _leave(self, name: str, inputs: Sequence[Any], output: Any) -> None:
        self.builder.running.pop()
        self.whole_running -= name in self.whole
        value = next((entry for entry in inputs if isinstance(entry, Tensor)), None)
        # A whole module inside another, such as a norm that calls a linear layer, is part of the outer one's rule.
        is_outermost = name in self.whole and not self.whole_running
        if is_outermost and isinstance(output, Tensor) and value is not None:
            follow_module(self.builder, name, value, output)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self.whole_running:
            return output
        inputs = [value for value in tensors_in((args, kwargs)) if self.builder.has_ids(value)]
        outputs = [value for value in tensors_in(output) if value.ndim]
        name = plain_name(func)
        if inputs and (outputs or name == "setitem"):
            try:
                follow_function(self.builder, Call(name, func, args, kwargs, output, inputs, outputs))
            except Exception as error:  # functions can be called in more ways than the rules know
                for value in inputs:
                    reason = f"{name}() in {self.builder.location} cannot be followed ({error})"
                    self.builder.fix(self.builder.ids[value], reason)
        return output
