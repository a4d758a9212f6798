"""Groups: units of one or several layers that can only be removed together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, NewType

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn
from torch.nn.modules.conv import _ConvNd

from prune_fe.tracing.dependency_graph import OUTPUT, DependencyGraph, SetId
from prune_fe.tracing.layers import count_units
from prune_fe.tracing.module_rules import has_module_rule

GroupId = NewType("GroupId", int)
"""Position of a group in the order in which the layers run."""

Blocks = Sequence[NDArray[np.int64]]
"""A balance constraint: arrays of coupled sets, each of which has to lose equally many."""

Constraint = tuple[Blocks, str]
"""A balance constraint and its reason: the blocks, and the function or module for which they lose equally many."""


@dataclass(frozen=True)
class Group:
    """Coupled sets that occur in the same layers, and are therefore ranked against each other.

    A coupled set is a unit of one layer, or the units of several layers that a residual sum, a gate or a depthwise
    convolution ties together. An index into the tuples below is called a position of the group.

    Attributes:
        layer_units: Layer, in the order in which they run -> for each position, the unit numbers of that layer. There
            are none where a concatenation or a split leaves the layer out, and several where it repeats a unit.
        block_ids: The block of each position. A split, a grouped convolution or a group norm demands that all blocks
            lose equally many units. Blocks of different sizes, such as an embedding's channels and the heads of
            attention, lose the same share.
        sets: The coupled set at each position.
        is_residual: Whether a coupled set has units of several layers that mix channels, as in a residual sum.
        reason: Why no unit can be removed; None where units can.
        other_modules: Modules without scores that lose the same outputs, such as the gates of squeeze-and-excite
            blocks.
        keep_one_of: Tuples of positions of which one has to stay: they are the whole input of some module, or one
            piece of a split.
        demands: The causes of the blocks, such as "GroupNorm 'norm' with 4 groups".
        outputs: Module that is no layer, such as a residual block -> for each position, the channels of its output.
    """

    layer_units: Mapping[str, tuple[tuple[int, ...], ...]]
    block_ids: tuple[int, ...]
    sets: tuple[SetId, ...]
    is_residual: bool = False
    reason: str | None = None
    other_modules: tuple[str, ...] = ()
    keep_one_of: tuple[tuple[int, ...], ...] = ()
    demands: tuple[str, ...] = ()
    outputs: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers, in the order in which they run."""
        return tuple(self.layer_units)

    @property
    def block_count(self) -> int:
        """The number of blocks."""
        return len(set(self.block_ids))

    @cached_property
    def shares(self) -> tuple[int, ...]:
        """The number of units of each block that are removed in one step: the smallest in which all lose one share."""
        sizes = [size for _, size in sorted(Counter(self.block_ids).items())]
        steps = math.gcd(*sizes)
        return tuple(size // steps for size in sizes)

    @property
    def step(self) -> int:
        """The number of units that are removed together at least: one of each block, where all are of one size."""
        return sum(self.shares)

    def count_steps(self, order: Sequence[Sequence[int]]) -> int:
        """Return in how many steps the positions that `removal_order` returned can be removed."""
        return min(len(block) // share for block, share in zip(order, self.shares, strict=True))

    def take_steps(self, order: Sequence[Sequence[int]], start: int, stop: int) -> list[list[int]]:
        """Return for each block the positions that some steps remove.

        Args:
            order: From `removal_order`.
            start: The first step, from 0.
            stop: The step after the last.
        """
        return [list(block[start * share : stop * share]) for block, share in zip(order, self.shares, strict=True)]

    def multiples(self, divisor: int) -> tuple[tuple[int, int], ...]:
        """Return which numbers of remaining units make the widths of all layers multiples of a number.

        Args:
            divisor: The number.

        Returns:
            (number of units, what the remaining ones must be a multiple of) for all units together, or for each block
            where the blocks have different sizes. For a unit that is several channels of every layer, such as a head of
            attention, this is smaller than `divisor`.
        """
        widths: dict[int, int] = {}
        keys = (0,) * len(self.sets) if len(set(self.shares)) == 1 else self.block_ids
        for units in self.layer_units.values():
            for key, count in set(zip(keys, map(len, units), strict=True)):
                widths[key] = math.gcd(widths.get(key, 0), count)
        sizes = Counter(keys)
        return tuple((sizes[key], divisor // math.gcd(divisor, widths[key])) for key in sorted(widths))

    def removal_order(
        self, scores: Sequence[float] | NDArray[np.float64], removed: Iterable[int] = ()
    ) -> list[list[int]]:
        """Return for each block its positions in the order in which they are removed.

        Args:
            scores: One number a position, higher = keep.
            removed: Positions that are removed already; they come first.

        Returns:
            Removed positions, then those that stay from the lowest score to the highest, equal scores by position.
            The highest score of each tuple in `keep_one_of` has to stay and is in no list.
        """
        away = set(removed)
        # At equal scores the last position stays, because equal scores are removed by position.
        stay = {
            max(set(positions) - away, key=lambda position: (scores[position], position))
            for positions in self.keep_one_of
        }
        is_left, is_free = np.ones((2, len(scores)), bool)
        is_left[list(away)], is_free[list(stay)] = False, False
        order = np.lexsort((np.asarray(scores), is_left))  # equal scores stay in the order of their positions
        order = order[is_free[order]]
        if self.block_count == 1:
            return [order.tolist()]
        blocks = np.array(self.block_ids)[order]
        return [order[blocks == block].tolist() for block in sorted(set(self.block_ids))]

    def units_at(self, positions: Iterable[int]) -> dict[str, tuple[int, ...]]:
        """Return layer -> the unit numbers, ascending, at some positions of the group."""
        chosen = list(positions)
        return {
            layer: tuple(sorted(chain.from_iterable(map(units.__getitem__, chosen))))
            for layer, units in self.layer_units.items()
        }


def find_groups(model: nn.Module, graph: DependencyGraph, layers: Sequence[str]) -> tuple[Group, ...]:
    """Find the groups that the units of some layers belong to, in the order of the layers.

    Args:
        model: The network.
        graph: Its dependency graph.
        layers: Names of the layers whose units are scored.

    Returns:
        The groups. Every unit of the layers is in exactly one, except for those that compute the network's outputs.
    """
    modules = dict(model.named_modules())
    outputs = {
        module: graph.coupled_set[axis.channels]
        for (module, side), axis in graph.axes.items()
        if side in ("out", "both")
    }
    traced = [layer for layer in layers if layer in outputs]
    # A layer inside a module that is handled as a whole, such as a norm, has no group of its own.
    not_followed = [layer for layer in layers if layer not in outputs and not has_module_rule(modules[layer])]
    opaque = [_opaque_group(modules[layer], layer) for layer in not_followed]
    # A residual sum ties units of several layers, so that a set may be listed by any of them.
    sets_of_layers = {set_id for layer in traced for set_id in outputs[layer].tolist()}
    listed = {set_id for set_id in sets_of_layers if graph.fixed_sets.get(set_id) != OUTPUT}
    # Layers without scores, such as gates, lose outputs too.
    weighted = [name for name in outputs if isinstance(modules[name], _ConvNd | nn.Linear)]
    names = [*traced, *(name for name in weighted if name not in traced)]
    units_of = {name: _units_by_set(outputs[name], listed) for name in names}
    channels_of = {name: _units_by_set(sets, listed) for name, sets in graph.outputs.items()}

    # Sets that occur equally often in the same layers are ranked against each other.
    places: dict[SetId, Any] = {set_id: graph.fixed_sets.get(set_id) for set_id in sorted(listed)}
    for name, units in units_of.items():
        for set_id, numbers in units.items():
            places[set_id] = (places[set_id], name, len(numbers))
    alike: dict[object, list[SetId]] = {}
    for set_id, place in places.items():
        alike.setdefault(place, []).append(set_id)
    constraints = [(blocks, cause) for blocks, cause in graph.constraints if not _is_always_balanced(blocks)]
    merged = _merge_constrained(list(alike.values()), constraints)
    number_of = {set_id: number for number, sets in enumerate(merged) for set_id in sets}
    names_of: list[set[str]] = [set() for _ in merged]
    for name, units in units_of.items():
        for number in set(map(number_of.__getitem__, units)):
            names_of[number].add(name)
    groups = [
        _make_group(sets, names, units_of, traced, modules, constraints, graph)
        for sets, names in zip(merged, names_of, strict=True)
    ]
    groups = [
        replace(group, keep_one_of=positions, outputs=_outputs_of(group.sets, channels_of))
        for group, positions in zip(groups, _indispensable(groups, graph), strict=True)
    ]
    order = list(layers)
    return tuple(sorted([*groups, *opaque], key=lambda group: (order.index(group.layers[0]), group.sets)))


def _units_by_set(outputs: NDArray[np.int64], listed: Set[SetId]) -> dict[SetId, tuple[int, ...]]:
    """Return the unit numbers of each coupled set in a layer.

    Args:
        outputs: (units,) the coupled set of each unit.
        listed: The coupled sets to return.
    """
    ids = outputs.tolist()
    if listed.isdisjoint(ids):
        return {}
    units: dict[SetId, tuple[int, ...]] = {}
    for unit, set_id in enumerate(ids):
        if set_id in listed:
            units[set_id] = (*units[set_id], unit) if set_id in units else (unit,)
    return units


def _outputs_of(
    sets: Sequence[SetId], channels_of: Mapping[str, Mapping[SetId, tuple[int, ...]]]
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the modules whose outputs have channels of some coupled sets -> the channels of each set."""
    channels_by_module = {
        name: tuple(channels.get(set_id, ()) for set_id in sets) for name, channels in channels_of.items()
    }
    return {name: positions for name, positions in channels_by_module.items() if any(positions)}


def _opaque_group(module: nn.Module, layer: str) -> Group:
    """Return the group of a layer whose forward pass is not PyTorch's and was not followed."""
    width = count_units(module)
    return Group(
        layer_units={layer: tuple((unit,) for unit in range(width))},
        block_ids=(0,) * width,
        # Negative ids cannot be confused with those of the dependency graph, which does not contain this layer.
        sets=tuple(map(SetId, range(-width, 0))),
        reason=f"layer {layer!r} is a {type(module).__name__}, whose code is not torch's",
    )


def _make_group(
    sets: Sequence[SetId],
    names: set[str],
    units_of: Mapping[str, Mapping[SetId, tuple[int, ...]]],
    layers: Sequence[str],
    modules: Mapping[str, nn.Module],
    constraints: Sequence[Constraint],
    graph: DependencyGraph,
) -> Group:
    """Return the group of some coupled sets, ordered by their units in the first layer.

    Args:
        sets: The coupled sets.
        names: The modules that have units of them.
        units_of: Module -> coupled set -> its unit numbers there.
        layers: The layers that have scores, in the order in which they run.
        modules: The network's modules by name.
        constraints: The network's balance constraints.
        graph: The dependency graph.
    """
    scored = [layer for layer in layers if layer in names]
    # Sets that the first layer does not have come last.
    first, last = units_of[scored[0]], (len(sets),)
    ordered = sorted(sets, key=lambda set_id: (first.get(set_id, last), set_id))
    layer_units = {layer: tuple(units_of[layer].get(set_id, ()) for set_id in ordered) for layer in scored}
    mixing = [layer for layer in scored if not _is_depthwise(modules[layer])]
    block_ids, demands, reason = _find_blocks(ordered, constraints)
    return Group(
        layer_units=layer_units,
        block_ids=block_ids,
        sets=tuple(ordered),
        is_residual=_occur_twice(sets, [units_of[layer].keys() for layer in mixing]),
        reason=graph.fixed_sets.get(ordered[0], reason),
        other_modules=tuple(sorted(names - layer_units.keys())),
        demands=demands,
    )


def _occur_twice(sets: Sequence[SetId], layers: Sequence[Set[SetId]]) -> bool:
    """Return whether one of some coupled sets has units in more than one of the layers.

    Args:
        sets: The coupled sets.
        layers: For each layer the coupled sets that have units in it.
    """
    own, before = set(sets), set[SetId]()
    for layer in layers:
        in_layer = own & layer
        if not before.isdisjoint(in_layer):
            return True
        before |= in_layer
    return False


def _indispensable(groups: Sequence[Group], graph: DependencyGraph) -> list[tuple[tuple[int, ...], ...]]:
    """Return `keep_one_of` of each group: the channels of every axis and every counted size within one group."""
    # Coupled set -> the number of its group, or -1, and its position there.
    number_of, position_of = np.full((2, int(graph.coupled_set.max()) + 1), -1)
    for number, group in enumerate(groups):
        number_of[list(group.sets)], position_of[list(group.sets)] = number, np.arange(len(group.sets))
    keep_one_of: list[set[tuple[int, ...]]] = [set() for _ in groups]
    axes = [graph.coupled_set[axis.channels] for axis in graph.axes.values()]
    for sets in [*axes, *(counted for _, counted in graph.counted_sets)]:
        numbers = number_of[sets]
        if numbers[0] < 0 or (numbers != numbers[0]).any():
            continue
        is_there = np.zeros(len(groups[numbers[0]].sets), bool)
        is_there[position_of[sets]] = True
        if not is_there.all():
            keep_one_of[numbers[0]].add(tuple(np.flatnonzero(is_there).tolist()))
    return [tuple(sorted(positions)) for positions in keep_one_of]


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels == module.out_channels


def _is_always_balanced(blocks: Blocks) -> bool:
    """Return whether all blocks have the same sets equally often, so that they lose equally many in any case."""
    first = np.sort(blocks[0])
    return all(np.array_equal(np.sort(block), first) for block in blocks[1:])


def _merge_constrained(lists: Sequence[list[SetId]], constraints: Sequence[Constraint]) -> list[list[SetId]]:
    """Concatenate those lists of coupled sets that a balance constraint concerns together."""
    list_of = {set_id: number for number, sets in enumerate(lists) for set_id in sets}
    links = [(number, number) for number in range(len(lists))]
    for blocks, _ in constraints:
        together = sorted({list_of[set_id] for set_id in np.concatenate(blocks).tolist() if set_id in list_of})
        links += [(together[0], number) for number in together[1:]]
    if not links:
        return []
    rows, columns = np.array(links).T
    labels = connected_components(coo_array((np.ones(len(links)), (rows, columns))), directed=False)[1]
    merged: dict[int, list[SetId]] = {}
    for sets, label in zip(lists, labels.tolist(), strict=True):
        merged.setdefault(label, []).extend(sets)
    return list(merged.values())


def _find_blocks(
    sets: Sequence[SetId], constraints: Sequence[Constraint]
) -> tuple[tuple[int, ...], tuple[str, ...], str | None]:
    """Return the block of each coupled set, what demands the blocks, and the reason where not all demands can be met.

    Sets of one block are in the same blocks of every constraint, with equally many channels. If all blocks lose the
    same share of their sets, every block of a constraint loses the same share of its channels. That meets a constraint
    whose blocks have equally many channels.
    """
    own = set(sets)
    relevant = [entry for entry in constraints if not own.isdisjoint(np.concatenate(entry[0]).tolist())]
    if not relevant:
        return (0,) * len(sets), (), None
    memberships: dict[SetId, list[tuple[int, int]]] = {set_id: [] for set_id in sets}
    for number, (blocks, _) in enumerate(relevant):
        for index, block in enumerate(blocks):
            for set_id in block.tolist():
                if set_id in own:
                    memberships[set_id].append((number, index))
    profiles = {profile: number for number, profile in enumerate(dict.fromkeys(map(tuple, memberships.values())))}
    block_ids = tuple(profiles[tuple(memberships[set_id])] for set_id in sets)
    channels = Counter(place for places in memberships.values() for place in places)
    is_even = all(
        len({channels[number, index] for index in range(len(blocks))}) == 1
        for number, (blocks, _) in enumerate(relevant)
    )
    demands = tuple(dict.fromkeys(cause for _, cause in relevant))
    sizes = Counter(block_ids).values()
    if is_even and (len(set(sizes)) == 1 or math.gcd(*sizes) > 1):
        return block_ids, demands, None
    reason = f"its units cannot keep the equal parts that are demanded by {list_demands(demands)}"
    return (0,) * len(sets), demands, reason


def list_demands(demands: Sequence[str]) -> str:
    """Return the causes of blocks as a text for messages; of more than three, the first three and a count."""
    shown = [*demands[:3], *([f"{len(demands) - 3} more"] if len(demands) > 3 else [])]
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))
