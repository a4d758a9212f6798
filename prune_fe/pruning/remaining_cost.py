"""Calculate the cost of a network without some of its channels, without removing them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from prune_fe.pruning.cut import Cutter
from prune_fe.tracing.dependency_graph import SetId

Resource = Literal["macs", "parameters"]

Cost = tuple[float, Sequence[int]]
"""The cost of a tensor or a product, and the numbers of the axes that it shrinks with."""


class RemainingCost:
    """The multiply-adds and the parameters of a network as functions of the coupled sets that are removed.

    Multiply-adds are those that `prune_fe.measure.cost` counts: of convolutions, linear layers and matrix products,
    such as those of attention.
    """

    def __init__(self, model: nn.Module, cutter: Cutter) -> None:
        # The arrays of channels of products count as further axes.
        products = cutter.graph.products
        axis_sets = [*cutter.axis_sets.values(), *(sets for product in products for sets in product.channels)]
        self._sets = np.concatenate(axis_sets)
        self._lengths = np.array([len(sets) for sets in axis_sets])
        # All axes in one array, so that one call counts the kept channels of each.
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._set_count = cutter.set_count
        axis_numbers = {key: number for number, key in enumerate(cutter.axis_sets)}
        axes_of = {name: [axis_numbers[key] for key, _ in axes] for name, axes in cutter.tensor_axes.items()}
        parameters = [(weight.numel(), axes_of.get(name, ())) for name, weight in model.named_parameters()]
        positions = cutter.graph.output_positions
        macs: list[Cost] = []
        # A shared weight is one parameter, but each of its layers multiplies it.
        for name, weight in model.named_parameters(remove_duplicate=False):
            module, _, attribute = name.rpartition(".")
            if module in positions and (attribute == "weight" or attribute.endswith("_proj_weight")):
                macs.append((weight.numel() * positions[module], axes_of.get(name, ())))
        further = count(len(axis_numbers))
        macs += [(product.macs, [next(further) for _ in product.channels]) for product in products]
        self._terms = {"macs": self._as_arrays(macs), "parameters": self._as_arrays(parameters)}

    def _as_arrays(self, costs: Sequence[Cost]) -> tuple[np.ndarray, np.ndarray]:
        """Return (n,) the costs and (n, 2) the axes that each shrinks with.

        One more axis, behind the last, never shrinks.
        """
        constant = len(self._lengths)
        # There are at most two: the outputs and the inputs of a layer, or the arrays of channels of a product.
        axes = [([*axes, constant, constant])[:2] for _, axes in costs]
        return np.array([cost for cost, _ in costs], float), np.array(axes, int).reshape(-1, 2)

    def total(self, resource: Resource) -> float:
        """Return the multiply-adds for one image, or the parameters, of the whole network."""
        return float(self._terms[resource][0].sum())

    def share(self, resource: Resource, removed: Iterable[SetId]) -> float:
        """Return the share of a resource that remains without some coupled sets, in [0, 1].

        Args:
            resource: Multiply-adds or parameters.
            removed: The coupled sets.
        """
        return float(self.shares_without(resource, self.count_channels(removed)))

    def count_channels(self, sets: Iterable[SetId]) -> NDArray[np.float64]:
        """Return (axes,) how many channels of each axis some coupled sets have.

        The counts of groups add up, since each coupled set is of one group.
        """
        chosen = np.zeros(self._set_count)
        chosen[list(sets)] = 1
        return np.add.reduceat(chosen[self._sets], self._starts)

    def shares_without(self, resource: Resource, channels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of a resource that remains without some channels, for several choices of them at once.

        Args:
            resource: Multiply-adds or parameters.
            channels: (..., axes) how many channels of each axis are removed.

        Returns:
            (...,) shares in [0, 1].
        """
        kept = (self._lengths - channels) / self._lengths
        shares = np.concatenate([kept, np.ones((*kept.shape[:-1], 1))], axis=-1)
        costs, axes = self._terms[resource]
        return shares[..., axes].prod(axis=-1) @ costs / self.total(resource)
