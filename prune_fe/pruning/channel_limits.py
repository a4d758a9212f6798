"""Stop torch-pruning's search for a group at channel numbers that do not exist.

torch-pruning follows the numbers of channels from operation to operation until it meets no new ones. It does not know
that in ``x * x[:, 3:4]`` one channel is multiplied with all the others: it ties channel 1 of the slice to channel 4 of
x, and this one, by the product, to channel 4 of the slice, and so on. The numbers grow without end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOST_STEPS = 20_000
"""A search ends after this number of changes of channel numbers at the latest. torch-pruning compares each step with
all before it, so that so many take it minutes; the largest group of DenseNet121 takes 350."""

Size = Callable[[Any], tuple[str, int] | None]
"""Function from a dependency of torch-pruning to the layer that it removes channels of and the number of these
channels; None for an operation without channels of its own."""


class EndlessSearchError(Exception):
    """torch-pruning's search met a channel that does not exist, or does not end; the message follows "its group"."""


class SearchGuard:
    """Watches torch-pruning's searches for groups in one graph.

    Every dependency that changes channel numbers (a slice, a split, a concatenation, a flattening) gets one mapping
    more, which changes nothing and raises EndlessSearchError at a number that no layer has. Such a number cannot belong
    to a group that could be used: without any further change, the search carries it to a layer with fewer channels.
    """

    def __init__(self, graph: Any, size: Size | None) -> None:
        """Put the mappings into a graph.

        Args:
            graph: A `torch_pruning.DependencyGraph` that was built.
            size: Tells the layers' channels. None: numbers are not checked, only the steps counted, as for a graph
                through which channels are removed.
        """
        self._steps = 0
        nodes = list(graph.module2node.values())
        limits = {} if size is None else _find_limits(nodes, size)
        for node in nodes:
            for dependency in filter(_changes_numbers, node.dependencies):
                limit = None if size is None else size(dependency) or limits.get(dependency.target)
                dependency.index_mapping.append(_Check(self, limit))

    def start(self) -> None:
        """Begin to count the steps of a search."""
        self._steps = 0

    def count_step(self) -> None:
        """Count a step of a search.

        Raises:
            EndlessSearchError: There were too many.
        """
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise EndlessSearchError(f"is not found within {MOST_STEPS:,} steps")


@dataclass(frozen=True)
class _Check:
    """The mapping that changes nothing.

    Attributes:
        guard: What counts the steps.
        limit: The first layer that the numbers are carried to unchanged, and how many channels it has; None if they
            are carried to none.
    """

    guard: SearchGuard
    limit: tuple[str, int] | None

    def __call__(self, indices: list[Any]) -> list[Any]:
        """Return the channel numbers, a list of torch-pruning's pairs of a number and its root's.

        Raises:
            EndlessSearchError: The layer has no such channel.
        """
        self.guard.count_step()
        if self.limit is not None and indices:
            layer, width = self.limit
            numbers = [index.idx for index in indices]
            wrong = next((number for number in (min(numbers), max(numbers)) if not 0 <= number < width), None)
            if wrong is not None:
                # autograd keeps the -1 of a slice [-1:] as an unsigned number of 64 bits
                wrong = wrong - 2**64 if wrong >= 2**63 else wrong
                raise EndlessSearchError(
                    f"names channels that do not exist: number {wrong} for the {width} of {layer!r}"
                )
        return indices


def _changes_numbers(dependency: Any) -> bool:
    return any(mapping is not None for mapping in dependency.index_mapping)


def _find_limits(nodes: list[Any], size: Size) -> dict[Any, tuple[str, int]]:
    """Return node of an operation -> the narrowest layer to which its channel numbers are carried unchanged.

    Args:
        nodes: All nodes of the graph.
        size: Tells the layers' channels.
    """
    limits: dict[Any, tuple[str, int]] = {}
    carried = [
        (node, dependency.target, size(dependency))
        for node in nodes
        # Of a layer, only one side takes part in a dependency; an operation has one side.
        if all(dependency.trigger == node.dependencies[0].trigger for dependency in node.dependencies)
        for dependency in node.dependencies
        if not _changes_numbers(dependency)
    ]
    changed = True
    while changed:
        changed = False
        for node, target, own in carried:
            limit = own or limits.get(target)
            if limit is not None and (node not in limits or limit[1] < limits[node][1]):
                limits[node] = limit
                changed = True
    return limits
