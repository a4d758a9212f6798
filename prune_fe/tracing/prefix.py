"""Split a network in front of everything that training changes, so that the part before it is computed once.

The network is traced (torch.fx) in the state in which it is trained: what depends on a parameter with `requires_grad`,
or on a module in training mode, can differ from step to step and belongs to the rest. Everything else is the prefix.
Its values that the rest reads are its features.

A network that cannot be traced is split in front of the module that gives its output, such as its classifier, if that
module holds everything that changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prune_fe.errors import describe_error
from prune_fe.tracing.split import NotSplit, inputs_of, subgraph
from prune_fe.tracing.watching import evaluating


@dataclass(frozen=True)
class PrefixSplit:
    """A network in two parts with the network's own modules and weights.

    Attributes:
        prefix: Computes from images (images, channels, height, width) their features, one row for each image,
            (images, features).
        rest: Computes from these rows the network's output.
    """

    prefix: nn.Module
    rest: nn.Module


def split_prefix(model: nn.Module, images: Tensor) -> PrefixSplit | NotSplit:
    """Split a network in front of everything that training changes.

    Args:
        model: The network. Its parameters with `requires_grad` and its modules in training mode tell what changes; the
            network itself is in evaluation mode.
        images: (2, channels, height, width). The parts must give for them what the network gives.
    """
    if model.training:
        return NotSplit("the network's own code is in training mode")
    try:
        graph = _PrefixTracer().trace(model)
        changing = {node for node in graph.nodes if _changes(model, node)}
    except Exception as error:  # a network's code may raise anything at a proxy
        graph, changing, reason = None, set(), f"it cannot be traced ({describe_error(error)})"
    in_training = {module for module in model.modules() if module.training}
    try:
        with evaluating(model), torch.no_grad():
            if graph is not None:
                return _split_graph(model, graph, changing, images)
            last = _find_last_module(model, in_training, images)
            return NotSplit(reason) if last is None else _join(model, _UpTo(model, last), last, images)
    except Exception as error:  # and at a part of its graph
        return NotSplit(f"its parts do not run ({describe_error(error)})")


class _PrefixTracer(fx.Tracer):
    """Traces every module in training mode as one operation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one operation of the graph."""
        return m.training or super().is_leaf_module(m, module_qualified_name)


def _changes(model: nn.Module, node: fx.Node) -> bool:
    """Return whether an operation gives other values after a training step, for the same inputs."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        is_trained = any(weight.requires_grad for weight in module.parameters())
        return is_trained or any(part.training for part in module.modules())
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return bool(getattr(getattr(model.get_submodule(owner), name), "requires_grad", False))
    return False


def _split_graph(model: nn.Module, graph: fx.Graph, changing: Set[fx.Node], images: Tensor) -> PrefixSplit | NotSplit:
    """Split a traced network between the nodes that change, with all that depends on them, and the others."""
    behind: dict[fx.Node, None] = {}  # a set that keeps the order
    for node in graph.nodes:
        if node in changing or node.op == "output" or not behind.keys().isdisjoint(node.all_input_nodes):
            behind[node] = None
    stored = {node for node in graph.nodes if node.op == "get_attr" and node not in behind}
    features = [node for node in inputs_of(list(behind)) if node not in behind and node not in stored]
    if all(node.op == "placeholder" for node in features):
        return NotSplit("no layer stands in front of the trained part")
    before = [node for node in graph.nodes if node not in behind]
    prefix = subgraph(model, before, stored, (), features)
    return _join(model, prefix, subgraph(model, list(behind), stored, features), images)


def _find_last_module(model: nn.Module, in_training: Set[nn.Module], images: Tensor) -> nn.Module | None:
    """Return the smallest module that gives the network's output from one tensor that does not change in training.

    Args:
        model: The network.
        in_training: Its modules in training mode; the module holds all of them.
        images: What is tried, (2, channels, height, width).
    """
    calls: list[tuple[nn.Module, Sequence[Any], Any]] = []
    hooks = [
        part.register_forward_hook(lambda module, inputs, output: calls.append((module, inputs, output)))
        for part in model.modules()
        if part is not model
    ]
    try:
        # A value that a trained weight has a part in requires a gradient.
        with torch.enable_grad(), _NoBranches():
            result = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    called = [module for module, _, _ in calls]
    candidates = [
        module
        for module, inputs, output in calls
        if output is result
        and len(inputs) == 1
        and isinstance(inputs[0], Tensor)
        and not inputs[0].requires_grad
        and in_training <= set(module.modules())
        and called.count(module) == 1
    ]
    return min(candidates, key=lambda module: len(list(module.modules())), default=None)


class _NoBranches(TorchDispatchMode):
    """Refuses code that turns an element of a tensor into a number: what it does then may depend on the batch."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("its code depends on the values of a tensor")
        return func(*args, **(kwargs or {}))


class _Reached(Exception):
    """Ends a network's pass in front of a module.

    Args:
        value: What the module reads.
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class _UpTo(nn.Module):
    """Returns what a module of a network reads, as the only one of a tuple, without running the module.

    Args:
        model: The network.
        last: The module.
    """

    def __init__(self, model: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.inner, self.last = model, last

    def forward(self, images: Tensor) -> tuple[Tensor]:
        def stop(_: nn.Module, inputs: tuple[Tensor]) -> None:
            raise _Reached(inputs[0])

        with self.last.register_forward_pre_hook(stop):
            try:
                self.inner(images)
            except _Reached as reached:
                return (reached.value,)
        raise AssertionError("the module was not reached")


def _join(model: nn.Module, prefix: nn.Module, rest: nn.Module, images: Tensor) -> PrefixSplit | NotSplit:
    """Return both parts of a network, after a check that they give what the network gives.

    Args:
        model: The network.
        prefix: Computes from images the tensors that the rest reads.
        rest: Computes from these tensors the network's output.
        images: What is tried, (2, channels, height, width).
    """
    of_two = prefix(images)
    if fault := _find_fault(prefix(images[:1]), of_two, prefix(images)):
        return NotSplit(fault)
    network = PrefixSplit(_Packed(prefix), _Unpacked(rest, of_two))
    output, expected = network.rest(network.prefix(images)), model(images)
    if output.shape != expected.shape or not torch.allclose(output, expected, rtol=1e-5, atol=1e-6):
        return NotSplit("its parts give other outputs than the whole")
    return network


def _find_fault(of_one: Sequence[Any], of_two: Sequence[Any], again: Sequence[Any]) -> str:
    """Return why the features cannot be kept; "" if they can.

    Args:
        of_one: The features of one image.
        of_two: Those of this image and another.
        again: The same, computed a second time.
    """
    if others := [value for value in of_two if not isinstance(value, Tensor)]:
        return f"the trained part reads a value of type {type(others[0]).__name__}, which is no tensor"
    if len({value.dtype for value in of_two}) > 1:
        return "the trained part reads values of several types"
    for one, two, second in zip(of_one, of_two, again, strict=True):
        if not torch.equal(two, second):
            return "its features of one image differ from call to call"
        if one.ndim == 0 or one.shape != two[:1].shape or (len(two) > 1 and one.shape == two.shape):
            return "the trained part reads a value that has no row for each image"
        if not torch.allclose(one, two[:1], rtol=1e-3, atol=1e-4 * float(two.abs().max())):
            return "its features of an image depend on the other images of the batch"
    return ""


class _Packed(nn.Module):
    """Returns the features of a prefix as one row for each image."""

    def __init__(self, prefix: nn.Module) -> None:
        super().__init__()
        self.inner = prefix

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([value.flatten(1) for value in self.inner(images)], dim=1)


class _Unpacked(nn.Module):
    """Gives the rest of a network its features from the rows in which they are kept."""

    def __init__(self, rest: nn.Module, features: Sequence[Tensor]) -> None:
        super().__init__()
        self.inner = rest
        self.shapes = [value.shape[1:] for value in features]
        self.formats = [
            torch.channels_last
            if value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last)
            else torch.contiguous_format
            for value in features
        ]

    def forward(self, rows: Tensor) -> Any:
        parts = rows.split([math.prod(shape) for shape in self.shapes], dim=1)
        values = [
            part.reshape(len(rows), *shape).contiguous(memory_format=memory_format)
            for part, shape, memory_format in zip(parts, self.shapes, self.formats, strict=True)
        ]
        return self.inner(*values)
