"""The part of a network behind a layer, by itself: what masking a unit of that layer changes, and nothing else.

The network is traced (torch.fx) and run once; the value that is the layer's map parts the graph. What depends on it is
the tail. Whatever else the tail reads, such as the other branch of a residual sum, is computed once with the maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from prune_fe.layers import Layer, evaluating, follow, mask


@dataclass(frozen=True)
class Tail:
    """`head` gives what `rest` is given: the layer's maps (images, units, ...) first, then whatever else it reads.

    by_image: which of these values have a row for each image; the others are the same whatever the images are.
    """

    head: nn.Module
    rest: nn.Module
    by_image: tuple[bool, ...]


@dataclass(frozen=True)
class NoTail:
    """Why the network cannot be parted."""

    why: str


def split(model: nn.Module, layer: Layer, images: Tensor) -> Tail | NoTail:
    """The network in two parts, in evaluation mode, with the network's own weights.

    images: two of them; the parts must give for them what the masked network gives, whatever is masked.
    """
    with evaluating(model), torch.no_grad():
        try:
            graph = fx.symbolic_trace(model).graph
        except Exception as error:  # what a network's code may raise at a proxy
            return NoTail(f"it cannot be traced ({_first_line(error)})")
        try:
            node = _node_of(model, graph, layer, images)
            if node is None:
                return NoTail(f"the trace has no value that is the map of {layer.name!r}")
            head, rest = _parted(model, graph, node)
            one, two = head(images[:1]), head(images)
            if odd := [value for value in two if not isinstance(value, Tensor)]:
                return NoTail(f"the part behind {layer.name!r} is given a {type(odd[0]).__name__}")
            tail = Tail(head, rest, tuple(a.shape != b.shape for a, b in zip(one, two, strict=True)))
            fault = _difference(model, tail, layer, images)
        except Exception as error:
            return NoTail(f"its parts do not run ({_first_line(error)})")
    return NoTail(fault) if fault else tail


class _Watching(fx.Interpreter):
    """Runs a graph and notes the node whose value is the layer's map."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(model, graph), garbage_collect_values=False)
        self.maps: list[Tensor] = []
        self.found: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if self.maps and self.found is None and value is self.maps[0]:
            self.found = n
        return value


def _node_of(model: nn.Module, graph: fx.Graph, layer: Layer, images: Tensor) -> fx.Node | None:
    watching = _Watching(model, graph)

    def keep(_: Layer, maps: Tensor, in_place: bool) -> Tensor:
        watching.maps.append(maps)
        return maps

    with follow(watching.module, [layer], keep):
        watching.run(images)
    return watching.found


def _parted(model: nn.Module, graph: fx.Graph, node: fx.Node) -> tuple[nn.Module, nn.Module]:
    behind = {node}
    for other in graph.nodes:
        if not behind.isdisjoint(other.all_input_nodes):
            behind.add(other)
    behind.discard(node)
    stored = {other for other in graph.nodes if other.op == "get_attr"}
    read = [other for later in graph.nodes if later in behind for other in later.all_input_nodes]
    given = list(dict.fromkeys([node, *(other for other in read if other not in behind | stored)]))

    copied: dict[fx.Node, fx.Node] = {}
    before = fx.Graph()
    for other in graph.nodes:
        if other not in behind:
            copied[other] = before.node_copy(other, copied.__getitem__)
    before.output(tuple(copied[other] for other in given))

    after = fx.Graph()
    copied.clear()
    for number, other in enumerate(given):
        copied[other] = after.placeholder(f"given_{number}")
    for other in graph.nodes:
        if other in behind | stored:
            copied[other] = after.node_copy(other, copied.__getitem__)
    return fx.GraphModule(model, before), fx.GraphModule(model, after)


def _difference(model: nn.Module, tail: Tail, layer: Layer, images: Tensor) -> str:
    """What is wrong with the parts, tried with some units masked; "" for nothing."""
    units = list(range(0, layer.units, 2))
    keep = torch.ones(2, layer.units, dtype=torch.bool, device=images.device)
    keep[1, units] = False
    found = run_rest(tail, tail.head(images), keep)
    for masked, logits in zip(([], units), found, strict=True):
        with mask(model, [layer], {layer.name: masked}):
            expected = model(images)
        if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=1e-3, atol=1e-4):
            return f"its parts give other outputs than the whole (with {len(masked)} units masked)"
    return ""


def run_rest(tail: Tail, values: Sequence[Tensor], keep: Tensor) -> Tensor:
    """The outputs (masks, images, classes) for each mask keep (masks, units) bool; values: what the head gave."""
    n_masks, n_images = len(keep), len(values[0])
    maps = values[0][None] * keep[:, None, :, None, None].to(values[0].dtype)
    others = [
        value.expand(n_masks, *value.shape).flatten(0, 1) if by_image else value
        for value, by_image in zip(values[1:], tail.by_image[1:], strict=True)
    ]
    output = tail.rest(maps.flatten(0, 1), *(value.clone() for value in others))  # it may write over them
    return output.view(n_masks, n_images, *output.shape[1:])


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
