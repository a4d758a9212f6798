"""The part of a network behind a layer, by itself: what masking a unit of that layer changes, and nothing else.

The network is traced (torch.fx) and run once; the value that is the layer's map parts the graph. What depends on it is
the tail. Whatever else the tail reads, such as the other branch of a residual sum, is computed once with the maps.
So is what the tail does to each unit by itself, such as ReLU and pooling: a unit is then masked behind it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from prune_fe.tracing.feature_maps import follow, mask
from prune_fe.tracing.layers import Layer
from prune_fe.tracing.watching import evaluating

TRIALS = 3
"""Random masks that decide whether an operation keeps the units apart."""


@dataclass(frozen=True)
class Given:
    """What the tail reads of some images, its own values for each unit first.

    kept: (images, units, ...), of a unit that is there; gone: the same, or (1, units, ...), of one that is masked.
    others: whatever else; by_image says which of these have a row for each image.
    """

    kept: Tensor
    gone: Tensor
    others: tuple[Tensor, ...]
    by_image: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def image_bytes(self) -> int:
        """Of one image."""
        values, by_image = [self.kept, self.gone, *self.others], [True, len(self.gone) > 1, *self.by_image]
        return sum(v[0].numel() * v.element_size() for v, own in zip(values, by_image, strict=True) if own)

    def part(self, images: slice) -> Self:
        """The same of these images."""
        gone = self.gone[images] if len(self.gone) == len(self) else self.gone
        others = (value[images] if own else value for value, own in zip(self.others, self.by_image, strict=True))
        return type(self)(self.kept[images], gone, tuple(others), self.by_image)


@dataclass(frozen=True)
class Tail:
    """A network in three parts: `head` gives the layer's maps and whatever else is read; `alone` what becomes of the
    maps as long as each unit stays by itself, from the maps and the first `n_alone` of these; `rest` does the rest.

    by_image: which of the values beside the maps have a row for each image; the others never change.
    """

    head: nn.Module
    alone: nn.Module
    rest: nn.Module
    n_alone: int
    by_image: tuple[bool, ...]

    def given(self, images: Tensor) -> Given:
        """What the rest of the network is to be given of these images."""
        maps, *others = self.head(images)
        beside, others = others[: self.n_alone], others[self.n_alone :]
        kept, gone = (self.alone(value, *_cloned(beside)) for value in (maps.clone(), torch.zeros_like(maps)))
        if torch.equal(gone, gone[:1].expand_as(gone)):
            gone = gone[:1]
        return Given(kept, gone, tuple(others), self.by_image[self.n_alone :])

    def logits(self, given: Given, keep: Tensor) -> Tensor:
        """The outputs (masks, images, classes) for each mask keep (masks, units) bool."""
        n_masks, n_images = len(keep), len(given)
        keep = keep.view(n_masks, 1, -1, *[1] * (given.kept.ndim - 2))
        values = torch.where(keep, given.kept[None], given.gone[None]).flatten(0, 1)
        others = [
            value.expand(n_masks, *value.shape).flatten(0, 1) if own else value
            for value, own in zip(given.others, given.by_image, strict=True)
        ]
        output = self.rest(values, *_cloned(others))
        return output.view(n_masks, n_images, *output.shape[1:])


@dataclass(frozen=True)
class NoTail:
    """Why the network cannot be parted."""

    why: str


def split(model: nn.Module, layer: Layer, images: Tensor) -> Tail | NoTail:
    """The network in parts, in evaluation mode, with the network's own weights.

    images: two of them; the parts must give for them what the masked network gives, whatever is masked.
    """
    with evaluating(model), torch.no_grad():
        try:
            graph = _Tracer(layer.name).trace(model)
        except Exception as error:  # what a network's code may raise at a proxy
            return NoTail(f"it cannot be traced ({_first_line(error)})")
        try:
            node = _node_of(model, graph, layer, images)
            if node is None:
                return NoTail(f"the trace has no value that is the map of {layer.name!r}")
            tail: Tail | None = None
            for longer in _parted(model, graph, node):
                one, two = longer.head(images[:1]), longer.head(images)
                if odd := [value for value in two if not isinstance(value, Tensor)]:
                    return NoTail(f"the part behind {layer.name!r} is given a {type(odd[0]).__name__}")
                if tail is not None and not _stays_apart(longer, two):
                    break
                by_image = tuple(a.shape != b.shape for a, b in zip(one[1:], two[1:], strict=True))
                tail = Tail(longer.head, longer.alone, longer.rest, longer.n_alone, by_image)
            assert tail is not None
            fault = _difference(model, tail, layer, images)
        except Exception as error:
            return NoTail(f"its parts do not run ({_first_line(error)})")
    return NoTail(fault) if fault else tail


class _Tracer(fx.Tracer):
    """Takes the layer for one operation, also where it is a block, so that what it gives is a value of the graph."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name == self.layer or super().is_leaf_module(m, module_qualified_name)


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


def _parted(model: nn.Module, graph: fx.Graph, node: fx.Node) -> Iterator[Tail]:
    """The graph parted behind `node`, with nothing in `alone`; then with more and more of the tail in it, up to each
    value that all of the rest depends on.
    """
    behind: list[fx.Node] = []
    for other in graph.nodes:
        if not {node, *behind}.isdisjoint(other.all_input_nodes):
            behind.append(other)
    stored = {other for other in graph.nodes if other.op == "get_attr"}
    before = [other for other in graph.nodes if other not in behind]
    for number, meeting in enumerate([node, *behind[:-1]]):  # the last one is the output
        early, late = behind[:number], behind[number:]
        if not {node, *early}.isdisjoint(set(_read(late)) - {meeting}):
            continue
        known = {node, *behind} | stored
        beside, others = ([value for value in _read(part) if value not in known] for part in (early, late))
        yield Tail(
            head=_cut(model, before, stored, (), [node, *beside, *others]),
            alone=_cut(model, early, stored, [node, *beside], meeting),
            rest=_cut(model, late, stored, [meeting, *others]),
            n_alone=len(beside),
            by_image=(),
        )


def _read(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    return list(dict.fromkeys(value for node in nodes for value in node.all_input_nodes))


def _cut(
    model: nn.Module,
    nodes: Sequence[fx.Node],
    stored: Set[fx.Node],
    given: Sequence[fx.Node],
    outputs: fx.Node | Sequence[fx.Node] = (),
) -> fx.GraphModule:
    """These nodes as a network of their own; outputs: none if there is one among the nodes."""
    part, copied = fx.Graph(), {}
    for number, node in enumerate(given):
        copied[node] = part.placeholder(f"given_{number}")
    wanted = [outputs] if isinstance(outputs, fx.Node) else list(outputs)
    loaded = [node for node in _read(nodes) + wanted if node in stored and node not in set(nodes)]
    for node in (*dict.fromkeys(loaded), *nodes):
        if node not in copied:
            copied[node] = part.node_copy(node, copied.__getitem__)
    if isinstance(outputs, fx.Node):
        part.output(copied[outputs])
    elif wanted:
        part.output(tuple(copied[node] for node in wanted))
    return fx.GraphModule(model, part)


def _stays_apart(tail: Tail, values: Sequence[Tensor]) -> bool:
    """Whether every unit's part of what `alone` gives depends on its own map only: tried with random maps, since those
    of a network may be zero, to the last bit and in double precision, since what mixes the units may do so weakly.
    """
    alone = copy.deepcopy(tail.alone).double().cpu()
    beside = [value.double().cpu() if value.is_floating_point() else value.cpu() for value in values[1:]]
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(values[0].shape, generator=generator, dtype=torch.float64)

    def run(some: Tensor) -> Any:
        return alone(some.clone(), *_cloned(beside[: tail.n_alone]))

    kept, gone = run(maps), run(torch.zeros_like(maps))
    if not isinstance(kept, Tensor) or kept.shape[:2] != maps.shape[:2]:
        return False
    for _ in range(TRIALS):
        keep = torch.rand(maps.shape[1], generator=generator) < 0.5
        mixed = torch.where(keep.view(1, -1, *[1] * (kept.ndim - 2)), kept, gone)
        if not torch.equal(run(maps * keep.view(1, -1, 1, 1)), mixed):
            return False
    return True


def _difference(model: nn.Module, tail: Tail, layer: Layer, images: Tensor) -> str:
    """What is wrong with the parts, tried with some units masked; "" for nothing."""
    units = list(range(0, layer.units, 2))
    keep = torch.ones(2, layer.units, dtype=torch.bool, device=images.device)
    keep[1, units] = False
    found = tail.logits(tail.given(images), keep)
    for masked, logits in zip(([], units), found, strict=True):
        with mask(model, [layer], {layer.name: masked}):
            expected = model(images)
        if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=1e-3, atol=1e-4):
            return f"its parts give other outputs than the whole (with {len(masked)} units masked)"
    return ""


def _cloned(values: Sequence[Tensor]) -> list[Tensor]:
    """For a part of a network that may write over what it is given."""
    return [value.clone() for value in values]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
