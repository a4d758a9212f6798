"""How many units each group loses: by a ratio, by a ranking over all groups, or for a target cost.

This is arithmetic on counts; which units these are is decided by the scores inside each group (`plan.py`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from prune_fe.pruning.options import Rounding

REFINEMENTS = 20
"""At most this many changes of a single group bring the cost closer to a target."""

TARGET_PRECISION = 1e-3
"""A cost that is this close to its target, as a share of the whole network's, is not refined further."""


@dataclass(frozen=True)
class Capacity:
    """How many units one group can lose.

    Attributes:
        units: Number of units of the group.
        feasible_counts: How many of them can be removed, ascending, from 0.
        removed: How many are removed already; it is one of the feasible counts.
        weakest: (feasible_counts[-1] or more,) scores of the units in the order in which they are removed, comparable
            between the groups; needed for a ranking over all groups only.
    """

    units: int
    feasible_counts: tuple[int, ...]
    removed: int = 0
    weakest: tuple[float, ...] = ()


def feasible_counts(units: int, blocks: int, divisor: int) -> tuple[int, ...]:
    """Return how many units can be removed from equal blocks.

    All blocks lose equally many and keep at least one, and the number of remaining units is a multiple of `divisor`.

    Args:
        units: Number of units of all blocks together.
        blocks: Number of blocks.
        divisor: Number that the remaining units have to be a multiple of.

    >>> feasible_counts(6, 2, 1), feasible_counts(20, 1, 8)
    ((0, 2, 4), (0, 4, 12))
    """
    size = units // blocks
    return (0, *(k * blocks for k in range(1, size) if (size - k) * blocks % divisor == 0))


def kept_count(units: int, ratio: float, blocks: int = 1, rounding: Rounding = "floor_kept") -> int:
    """Return how many of `units` a ratio leaves, at least one of each block.

    The ratio is the decimal that it is written as: 0.9 of 10 leaves 1, although (1 - 0.9) · 10 < 1 in binary.

    Args:
        units: Number of units of all blocks together.
        ratio: Share to remove.
        blocks: Number of blocks.
        rounding: Keep floor((1 - ratio) · size) of each block ("floor_kept"), or remove floor(ratio · size)
            ("floor_removed").

    >>> kept_count(64, 0.4), kept_count(10, 0.9), kept_count(3, 0.99), kept_count(8, 0)
    (38, 1, 1, 8)
    >>> kept_count(64, 0.4, rounding="floor_removed"), kept_count(3, 0.99, rounding="floor_removed")
    (39, 1)
    """
    size = units // blocks
    if rounding == "floor_removed":
        return units - largest_count(units, ratio, blocks)
    return blocks * max(math.floor((1 - Fraction(str(ratio))) * size), 1)


def largest_count(units: int, max_ratio: float, blocks: int = 1) -> int:
    """Return the largest number of units, equally many of each block, that is not above a share of them.

    >>> largest_count(10, 0.9), largest_count(9, 0.9), largest_count(18, 0.9, 2)
    (9, 8, 16)
    """
    return blocks * math.floor(Fraction(str(max_ratio)) * (units // blocks))


def counts_for_ratio(capacities: Sequence[Capacity], asked: Sequence[int]) -> list[int]:
    """Return for each group its largest feasible count that is not above the number asked of it."""
    return [
        max(count for count in capacity.feasible_counts if count <= limit)
        for capacity, limit in zip(capacities, asked, strict=True)
    ]


def counts_for_ranking(capacities: Sequence[Capacity], total: int) -> list[int]:
    """Return the counts that remove the lowest scores of all groups.

    Args:
        capacities: One for each group.
        total: How many units are removed together; a few less where the next feasible count would be too many.

    Returns:
        One count a group. Equal scores are removed in the order of the groups.
    """
    counts = [capacity.removed for capacity in capacities]
    for _, number, count in sorted(_removals(capacities, ranked=True)):
        if sum(counts) - counts[number] + count > total:
            break
        counts[number] = count
    return counts


def counts_for_target(
    capacities: Sequence[Capacity], share_left: Callable[[Sequence[int]], float], target: float, *, ranked: bool
) -> list[int]:
    """Return the counts whose cost comes closest to a target.

    Args:
        capacities: One for each group.
        share_left: Function from one count a group to the share of the cost that is left. It falls with every unit.
        target: The share to reach.
        ranked: Remove the lowest scores of all groups first; otherwise the same share of every group.
    """
    # Later prefixes of this list cost less, which allows a binary search.
    removals = sorted(_removals(capacities, ranked))

    def counts_after(number: int) -> list[int]:
        counts = [capacity.removed for capacity in capacities]
        for _, group, count in removals[:number]:
            counts[group] = count
        return counts

    first_within = bisect_left(
        range(len(removals)), True, key=lambda number: share_left(counts_after(number)) <= target
    )
    candidates = counts_after(max(first_within - 1, 0)), counts_after(first_within)
    best = min(candidates, key=lambda counts: abs(share_left(counts) - target))
    return _refine(capacities, best, share_left, target)


def _refine(
    capacities: Sequence[Capacity], counts: list[int], share_left: Callable[[Sequence[int]], float], target: float
) -> list[int]:
    """Move single groups to a neighbouring feasible count as long as that brings the cost closer to the target."""
    error = abs(share_left(counts) - target)
    for _ in range(REFINEMENTS):
        if error < TARGET_PRECISION:
            break
        candidates = []
        for number, capacity in enumerate(capacities):
            index = capacity.feasible_counts.index(counts[number])
            for count in capacity.feasible_counts[max(index - 1, 0) : index + 2]:
                if count != counts[number] and count >= capacity.removed:
                    candidates.append([*counts[:number], count, *counts[number + 1 :]])
        errors = [abs(share_left(candidate) - target) for candidate in candidates]
        if min(errors, default=error) >= error:
            break
        counts, error = candidates[int(np.argmin(errors))], min(errors)
    return counts


def _removals(capacities: Sequence[Capacity], ranked: bool) -> Iterator[tuple[float, int, int]]:
    """Yield (priority, group, feasible count) for every count above what is removed; the lowest priority is first."""
    for number, capacity in enumerate(capacities):
        for before, count in pairwise(capacity.feasible_counts):
            if count <= capacity.removed:
                continue
            # With priorities in proportion to the size, every group has lost about the same share at any time.
            if not ranked:
                yield count / capacity.units, number, count
            else:
                yield float(np.mean(capacity.weakest[before:count])), number, count
