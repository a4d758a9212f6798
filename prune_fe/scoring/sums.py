"""Addition of what scorers measure: the only reduction over batches, workers and processes."""

from __future__ import annotations

from functools import reduce

from torch import Tensor

from prune_fe.scorers.base import Sums


def add_sums(a: Sums, b: Sums) -> Sums:
    """Return the sum of two measurements with the same keys, entry by entry."""
    return {key: a[key] + b[key] for key in a}  # type: ignore[operator]


class RunningSum:
    """The sum of the measurements of one scorer at one layer, batch by batch.

    Tensors are added at once, in the order of the batches. Counts and rows grow with every batch, so they are first
    merged with parts of the same size, as in a binary counter: a large part is copied O(log batches) times and not
    once a batch. Their sum does not depend on the order.
    """

    def __init__(self) -> None:
        self._dense: Sums = {}
        self._parts: list[tuple[int, Sums]] = []
        """Partial sums of counts and rows, each with its level: a part of level n holds 2**n batches."""

    def add(self, sums: Sums) -> None:
        """Add the measurement of one batch."""
        dense: Sums = {key: value for key, value in sums.items() if isinstance(value, Tensor)}
        growing = {key: value for key, value in sums.items() if key not in dense}
        self._dense = add_sums(self._dense, dense) if self._dense else dense
        level = 0
        while growing and self._parts and self._parts[-1][0] == level:
            growing, level = add_sums(self._parts.pop()[1], growing), level + 1
        if growing:
            self._parts.append((level, growing))

    def total(self) -> Sums:
        """Return the sum of all measurements added so far; an empty dict before the first."""
        return self._dense | (reduce(add_sums, (sums for _, sums in self._parts)) if self._parts else {})
