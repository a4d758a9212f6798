"""Join torch-pruning's dependency graph with prune_fe's own, which knows more about the network's code.

torch-pruning follows the channels from layer to layer. It does not see that a norm, or code, computes a mean over
channels, from which the masked network must leave out the removed ones. Nor does it see that code knows numbers of
channels: the sizes of a split, the width of a view, the heads of attention. prune_fe's own graph has all this, for the
same layers; here it is translated into the coupled sets of torch-pruning's graph.

torch-pruning says which channels go together. Where its groups fail, `tie_as_traced` couples more of their channels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn
from torch.nn.modules.conv import _ConvNd

from prune_fe.tracing.channel_ids import NO_CHANNEL, IdArray
from prune_fe.tracing.dependency_graph import OUTPUT, Axis, BalanceConstraint, DependencyGraph, SetId
from prune_fe.tracing.shared_tensors import find_axis_tensors


def join_graphs(graph: DependencyGraph, traced: DependencyGraph, model: nn.Module) -> DependencyGraph:
    """Return torch-pruning's graph with all that only prune_fe's own graph has, except for the couplings.

    Args:
        graph: torch-pruning's graph, which has layers and parameters only.
        traced: prune_fe's graph of the same network.
        model: The network, or a copy of it.
    """
    translation = _Translation(graph, traced)
    own = translation.known_part().with_sets(translation.sets)
    return replace(
        graph,
        axes={**graph.axes, **translation.mixing_axes(dict(model.named_modules()))},
        counted_sets=[*graph.counted_sets, *own.counted_sets],
        mixed_sets=[*graph.mixed_sets, *own.mixed_sets],
        possible_constraints=own.possible_constraints,
        outputs=own.outputs,
        output_positions={**graph.output_positions, **traced.output_positions},
        products=own.products,
        balance_constraints=[*own.balance_constraints, *graph.balance_constraints],
        balance_causes=[*own.balance_causes, *graph.balance_causes],
    )


def tie_as_traced(graph: DependencyGraph, traced: DependencyGraph, failed: Collection[SetId]) -> DependencyGraph:
    """Return torch-pruning's graph with more channels coupled: those that prune_fe's own graph couples.

    The couplings of torch-pruning's graph stay, so that torch-pruning's groups can remove the channels.

    Args:
        graph: torch-pruning's graph.
        traced: prune_fe's graph of the same network.
        failed: Coupled sets of torch-pruning's graph that cannot be removed as they are. Only these are coupled with
            others.
    """
    same, none = list(_same_axes(graph, traced)), np.zeros(0, int)
    sets = np.concatenate([none, *(graph.coupled_set[channels] for _, channels, _ in same)])
    partners = np.concatenate([none, *(traced.coupled_set[others] for _, _, others in same)])
    is_tied = np.isin(partners, partners[np.isin(sets, list(failed))])
    size = int(graph.coupled_set.max()) + 1
    nodes = size + int(traced.coupled_set.max()) + 1  # the coupled sets of both graphs
    links = coo_array((np.ones(is_tied.sum(), bool), (sets[is_tied], size + partners[is_tied])), (nodes, nodes))
    joined = connected_components(links, directed=False)[1]

    fixed: dict[SetId, str] = {}
    for set_id, reason in graph.fixed_sets.items():
        if reason == OUTPUT or int(joined[set_id]) not in fixed:
            fixed[SetId(int(joined[set_id]))] = reason
    return replace(graph.with_sets(lambda sets: joined[sets]), coupled_set=joined[graph.coupled_set], fixed_sets=fixed)


def _same_axes(graph: DependencyGraph, traced: DependencyGraph) -> Iterator[tuple[str, IdArray, IdArray]]:
    """Yield the side of each axis that both graphs have, and its channels: torch-pruning's, prune_fe's."""
    for key, axis in traced.axes.items():
        if key in graph.axes and len(axis.channels) == len(graph.axes[key].channels):
            yield key[1], graph.axes[key].channels, axis.channels


class _Translation:
    """Translates coupled sets of prune_fe's own graph into those of torch-pruning's graph, by the channels of layers.

    Args:
        graph: torch-pruning's graph.
        traced: prune_fe's graph of the same network.
    """

    def __init__(self, graph: DependencyGraph, traced: DependencyGraph) -> None:
        self._graph, self._traced = graph, traced
        self._channel_of: dict[int, int] = {}  # coupled set of `traced` -> a channel of `graph`
        for side, channels, others in _same_axes(graph, traced):
            if side in ("out", "both"):
                pairs = zip(traced.coupled_set[others].tolist(), channels.tolist(), strict=True)
                self._channel_of = dict(pairs) | self._channel_of

    def knows(self, sets: IdArray) -> bool:
        """Return whether all coupled sets have channels in torch-pruning's graph."""
        return self._channel_of.keys() >= set(sets.ravel().tolist())

    def channels(self, sets: IdArray) -> IdArray:
        """Return a channel of torch-pruning's graph for each coupled set of prune_fe's; NO_CHANNEL for none."""
        return np.array([self._channel_of.get(set_id, NO_CHANNEL) for set_id in sets.tolist()], int)

    def sets(self, sets: IdArray) -> IdArray:
        """Return the coupled set of torch-pruning's graph for each coupled set of prune_fe's own graph."""
        translated: IdArray = self._graph.coupled_set[self.channels(sets)]
        return translated

    def known_part(self) -> DependencyGraph:
        """Return prune_fe's graph without sizes and constraints of channels that torch-pruning's graph lacks."""
        own = self._traced
        return replace(
            own,
            counted_sets=[(module, sets) for module, sets in own.counted_sets if self.knows(sets)],
            possible_constraints=self._known(own.possible_constraints),
            balance_constraints=[],
            balance_causes=[],
        ).with_constraints(self._known(own.constraints))

    def _known(self, constraints: Sequence[BalanceConstraint]) -> list[BalanceConstraint]:
        """Return the balance constraints of channels that torch-pruning's graph has."""
        return [(blocks, cause) for blocks, cause in constraints if all(map(self.knows, blocks))]

    def mixing_axes(self, modules: Mapping[str, nn.Module]) -> dict[tuple[str, str], Axis]:
        """Translate the axes of norms, and of statistics that code computes, that torch-pruning's graph lacks.

        Of a norm that torch-pruning does not know, its graph has the parameters only, each as an axis of its own.

        Args:
            modules: The network's modules by name.
        """
        axes = {}
        for (name, side), axis in self._traced.axes.items():
            sets, module = self._traced.coupled_set[axis.channels], modules[name]
            is_norm = side == "both" and not isinstance(module, _ConvNd | nn.Linear)
            if (name, side) not in self._graph.axes and self.knows(sets) and (is_norm or axis.call is not None):
                tensors = find_axis_tensors(module, axis) if is_norm else ()
                if all((name, attribute) in self._graph.axes for attribute, _ in tensors):
                    axes[name, side] = replace(axis, channels=self.channels(sets))
        return axes
