"""Split a network behind a layer, so that many masks of the layer's units can be tried without running the rest again.

The network is traced (torch.fx) and run once; the value that is the layer's map splits the graph. What depends on it is
the tail. Whatever else the tail reads, such as the other branch of a residual sum, is computed once with the maps. The
same goes for the prefix of the tail that acts on each channel separately, such as ReLU and pooling: a unit is then
masked behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from prune_fe.errors import describe_error
from prune_fe.tracing.copying import convert, copy_model
from prune_fe.tracing.feature_maps import follow, mask
from prune_fe.tracing.layers import Layer
from prune_fe.tracing.watching import evaluating

TRIALS = 3
"""Number of random masks that are tried to decide whether an operation keeps the channels apart."""


@dataclass(frozen=True)
class TailInputs:
    """The inputs of the rest of a split network for some images.

    Attributes:
        unmasked: (images, units, ...), the values of each unit when it is not masked.
        masked: The same, or (1, units, ...), when it is masked.
        others: All other values that it reads.
        per_image: Which of the others have a row for each image.
    """

    unmasked: Tensor
    masked: Tensor
    others: tuple[Tensor, ...]
    per_image: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.unmasked)

    @property
    def image_bytes(self) -> int:
        """The memory that one image takes."""
        values = [self.unmasked, self.masked, *self.others]
        per_image = [True, len(self.masked) > 1, *self.per_image]
        own = (value for value, has_rows in zip(values, per_image, strict=True) if has_rows)
        return sum(value[0].numel() * value.element_size() for value in own)

    def select(self, images: slice) -> Self:
        """Return the inputs of some of the images."""
        masked = self.masked[images] if len(self.masked) == len(self) else self.masked
        others = (
            value[images] if has_rows else value for value, has_rows in zip(self.others, self.per_image, strict=True)
        )
        return type(self)(self.unmasked[images], masked, tuple(others), self.per_image)

    def repeated_others(self, times: int) -> list[Tensor]:
        """Return copies of the other values, those with a row for each image several times one after the other."""
        return _cloned(
            [
                value.expand(times, *value.shape).flatten(0, 1) if has_rows else value
                for value, has_rows in zip(self.others, self.per_image, strict=True)
            ]
        )


@dataclass(frozen=True)
class SplitNetwork:
    """A network in three parts that run one after another.

    Attributes:
        head: Computes from the images the layer's maps and all other values that the tail reads.
        channelwise: The prefix of the tail that acts on each channel separately. It reads the maps and the first
            `channelwise_inputs` of the other values.
        rest: The rest of the tail. It reads the output of `channelwise` and the remaining other values.
        channelwise_inputs: The number of other values that `channelwise` reads.
        per_image: Which of the other values have a row for each image; the rest are the same for all images.
    """

    head: nn.Module
    channelwise: nn.Module
    rest: nn.Module
    channelwise_inputs: int
    per_image: tuple[bool, ...] = ()

    def tail_inputs(self, images: Tensor) -> TailInputs:
        """Run the network up to its rest, once with and once without the layer's maps.

        Args:
            images: (images, channels, height, width).
        """
        maps, *others = self.head(images)
        beside, others = others[: self.channelwise_inputs], others[self.channelwise_inputs :]
        unmasked = self.channelwise(maps.clone(), *_cloned(beside))
        masked = self.channelwise(torch.zeros_like(maps), *_cloned(beside))
        # Usually a masked unit has the same values for every image, and one row of them saves memory.
        if torch.equal(masked, masked[:1].expand_as(masked)):
            masked = masked[:1]
        return TailInputs(unmasked, masked, tuple(others), self.per_image[self.channelwise_inputs :])

    def run_tail(self, maps: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return the network's outputs for given maps, (images, classes).

        Args:
            maps: The layer's maps, (images, units, height, width), which may be overwritten.
            others: The other values that `head` returned with them.
        """
        beside, others = others[: self.channelwise_inputs], others[self.channelwise_inputs :]
        output: Tensor = self.rest(self.channelwise(maps, *_cloned(beside)), *_cloned(others))
        return output

    def logits(self, inputs: TailInputs, keep: Tensor) -> Tensor:
        """Run the rest of the network for every mask.

        Args:
            inputs: From `tail_inputs`.
            keep: (masks, units) bool, False for the units that a mask sets to zero.

        Returns:
            The network's outputs, (masks, images, classes).
        """
        n_masks, n_images = len(keep), len(inputs)
        keep = keep.view(n_masks, 1, -1, *[1] * (inputs.unmasked.ndim - 2))
        values = torch.where(keep, inputs.unmasked[None], inputs.masked[None]).flatten(0, 1)
        output = self.rest(values, *inputs.repeated_others(n_masks))
        return output.view(n_masks, n_images, *output.shape[1:])


@dataclass(frozen=True)
class NotSplit:
    """Says why a network cannot be split.

    Attributes:
        reason: The reason.
    """

    reason: str


def split(model: nn.Module, layer: Layer, images: Tensor) -> SplitNetwork | NotSplit:
    """Split a network behind a layer. The parts are in evaluation mode and have the network's own weights.

    Args:
        model: The network.
        layer: Its layer, from `find_layers`.
        images: (2, channels, height, width). The parts must give for them what the masked network gives.
    """
    with evaluating(model), torch.no_grad():
        try:
            graph = _Tracer(layer.name).trace(model)
        except Exception as error:  # a network's code may raise anything at a proxy
            return NotSplit(f"it cannot be traced ({describe_error(error)})")
        try:
            return _split_graph(model, graph, layer, images)
        except Exception as error:  # and at a part of its graph
            return NotSplit(f"its parts do not run ({describe_error(error)})")


def _split_graph(model: nn.Module, graph: fx.Graph, layer: Layer, images: Tensor) -> SplitNetwork | NotSplit:
    """Split a traced network with the longest prefix of the tail that acts on each channel separately."""
    node = _find_map(model, graph, layer, images)
    if node is None:
        return NotSplit(f"the trace has no value that is the map of {layer.name!r}")
    network: SplitNetwork | None = None
    for candidate in _candidates(model, graph, node):
        of_one, of_two = candidate.head(images[:1]), candidate.head(images)
        if others := [value for value in of_two if not isinstance(value, Tensor)]:
            return NotSplit(
                f"the part behind {layer.name!r} reads a value of type {type(others[0]).__name__}, which is no tensor"
            )
        if network is not None and not _is_channelwise(candidate, of_two):
            break
        per_image = tuple(one.shape != two.shape for one, two in zip(of_one[1:], of_two[1:], strict=True))
        network = replace(candidate, per_image=per_image)
    assert network is not None
    fault = _find_difference(model, network, layer, images)
    return NotSplit(fault) if fault else network


class _Tracer(fx.Tracer):
    """Traces the layer as one operation, also where it is a block, so that its output is a value of the graph."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one operation of the graph."""
        return module_qualified_name == self.layer or super().is_leaf_module(m, module_qualified_name)


class _MapFinder(fx.Interpreter):
    """Runs a graph and notes the node whose value is the layer's map."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(model, graph), garbage_collect_values=False)
        self.maps: list[Tensor] = []
        self.node: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and compare its value with the map, once that exists."""
        value = super().run_node(n)
        if self.maps and self.node is None and value is self.maps[0]:
            self.node = n
        return value


def _find_map(model: nn.Module, graph: fx.Graph, layer: Layer, images: Tensor) -> fx.Node | None:
    """Return the node of a graph whose value is the layer's map."""
    finder = _MapFinder(model, graph)

    def note(_: Layer, maps: Tensor, in_place: bool) -> Tensor:
        finder.maps.append(maps)
        return maps

    with follow(finder.module, [layer], note):
        finder.run(images)
    return finder.node


def _candidates(model: nn.Module, graph: fx.Graph, node: fx.Node) -> Iterator[SplitNetwork]:
    """Yield the network split behind `node`, with an empty `channelwise` and then with longer and longer ones.

    A longer one ends at a value through which all of the rest depends on the layer.
    """
    behind: list[fx.Node] = []
    for other in graph.nodes:
        if not {node, *behind}.isdisjoint(other.all_input_nodes):
            behind.append(other)
    stored = {other for other in graph.nodes if other.op == "get_attr"}
    before = [other for other in graph.nodes if other not in behind]
    for length, meeting in enumerate([node, *behind[:-1]]):  # the last one is the output
        early, late = behind[:length], behind[length:]
        if not {node, *early}.isdisjoint(set(inputs_of(late)) - {meeting}):
            continue
        known = {node, *behind} | stored
        beside, others = ([value for value in inputs_of(part) if value not in known] for part in (early, late))
        yield SplitNetwork(
            head=subgraph(model, before, stored, (), [node, *beside, *others]),
            channelwise=subgraph(model, early, stored, [node, *beside], meeting),
            rest=subgraph(model, late, stored, [meeting, *others]),
            channelwise_inputs=len(beside),
        )


def inputs_of(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the nodes that some nodes read, each once."""
    return list(dict.fromkeys(value for node in nodes for value in node.all_input_nodes))


def subgraph(
    model: nn.Module,
    nodes: Sequence[fx.Node],
    stored: Set[fx.Node],
    inputs: Sequence[fx.Node],
    outputs: fx.Node | Sequence[fx.Node] = (),
) -> fx.GraphModule:
    """Return some nodes of a graph as a network.

    Args:
        model: Owns the modules and tensors.
        nodes: The nodes, in their order.
        stored: Nodes of the whole graph that read a parameter or buffer; those that are needed are added.
        inputs: The nodes whose values become the network's inputs.
        outputs: The nodes whose values it returns; none if the graph's output is among `nodes`.
    """
    part, copies = fx.Graph(), {}
    for number, node in enumerate(inputs):
        copies[node] = part.placeholder(f"given_{number}")
    returned = [outputs] if isinstance(outputs, fx.Node) else list(outputs)
    loaded = [node for node in inputs_of(nodes) + returned if node in stored and node not in set(nodes)]
    for node in (*dict.fromkeys(loaded), *nodes):
        if node not in copies:
            copies[node] = part.node_copy(node, copies.__getitem__)
    if isinstance(outputs, fx.Node):
        part.output(copies[outputs])
    elif returned:
        part.output(tuple(copies[node] for node in returned))
    return fx.GraphModule(model, part)


def _is_channelwise(network: SplitNetwork, values: Sequence[Tensor]) -> bool:
    """Return whether each channel of what `channelwise` returns depends on its own map only.

    It is tried with random maps, because those of a network may be zero, and compared to the last bit and in double
    precision, because an operation may mix the channels only weakly.

    Args:
        network: The network in parts.
        values: What its head returns.
    """
    channelwise = convert(copy_model(network.channelwise), "cpu", torch.float64)
    others = [value.double().cpu() if value.is_floating_point() else value.cpu() for value in values[1:]]
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(values[0].shape, generator=generator, dtype=torch.float64)

    def run(some_maps: Tensor) -> Any:
        return channelwise(some_maps.clone(), *_cloned(others[: network.channelwise_inputs]))

    unmasked, masked = run(maps), run(torch.zeros_like(maps))
    if not isinstance(unmasked, Tensor) or unmasked.shape[:2] != maps.shape[:2]:
        return False
    for _ in range(TRIALS):
        keep = torch.rand(maps.shape[1], generator=generator) < 0.5
        expected = torch.where(keep.view(1, -1, *[1] * (unmasked.ndim - 2)), unmasked, masked)
        if not torch.equal(run(maps * keep.view(1, -1, 1, 1)), expected):
            return False
    return True


def _find_difference(model: nn.Module, network: SplitNetwork, layer: Layer, images: Tensor) -> str:
    """Compare the parts with the whole network, without a mask and with every other unit masked.

    Returns:
        What is wrong with the parts; "" for nothing.
    """
    units = list(range(0, layer.units, 2))
    keep = torch.ones(2, layer.units, dtype=torch.bool, device=images.device)
    keep[1, units] = False
    of_parts = network.logits(network.tail_inputs(images), keep)
    for masked, logits in zip(([], units), of_parts, strict=True):
        with mask(model, [layer], {layer.name: masked}):
            expected = model(images)
        if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=1e-3, atol=1e-4):
            return f"its parts give other outputs than the whole (with {len(masked)} units masked)"
    return ""


def _cloned(values: Sequence[Tensor]) -> list[Tensor]:
    """Return copies, for a part of a network that may overwrite its inputs."""
    return [value.clone() for value in values]
