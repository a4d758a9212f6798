"""How many units of each group go: by a ratio, by a ranking over all groups, or within a budget.

Pure arithmetic; which units these are is decided by the scores inside each group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

MOST = 0.9
"""The largest share of a group that a ranking over all groups may take."""


@dataclass(frozen=True)
class Stock:
    """What one group can give. levels: how many units can be gone, ascending, from 0. weakness: (units,) normalised
    score of the weakest unit, the second weakest and so on, where a ranking over all groups is asked for."""

    units: int
    levels: tuple[int, ...]
    gone: int = 0
    weakness: tuple[float, ...] = ()


def levels(units: int, blocks: int, round_to: int) -> tuple[int, ...]:
    """How many of `units` can be gone when `blocks` equal parts lose equally many and keep at least one, and the
    number that is left is a multiple of `round_to`.

    >>> levels(6, 2, 1), levels(20, 1, 8)
    ((0, 2, 4), (0, 4, 12))
    """
    size = units // blocks
    return (0, *(k * blocks for k in range(1, size) if (size - k) * blocks % round_to == 0))


def kept_units(units: int, ratio: float, blocks: int = 1) -> int:
    """floor((1 − ratio) · units), at least one; with blocks, that of each block.

    The ratio is the decimal that it is written as: 0.9 of 10 leaves 1, although (1 − 0.9) · 10 < 1 in binary.

    >>> kept_units(64, 0.4), kept_units(10, 0.9), kept_units(3, 0.99), kept_units(8, 0)
    (38, 1, 1, 8)
    """
    return blocks * max(math.floor((1 - Fraction(str(ratio))) * (units // blocks)), 1)


def by_ratio(stocks: Sequence[Stock], due: Sequence[Fraction]) -> list[int]:
    """The highest level that is not above what is due of each."""
    return [max(level for level in stock.levels if level <= count) for stock, count in zip(stocks, due, strict=True)]


def by_rank(stocks: Sequence[Stock], total: int) -> list[int]:
    """The weakest units of all groups, `total` of them or a few less; equal ones in the order of the groups."""
    counts = [stock.gone for stock in stocks]
    for _, number, level in sorted(_events(stocks, ranked=True)):
        if sum(counts) - counts[number] + level > total:
            break
        counts[number] = level
    return counts


def by_budget(
    stocks: Sequence[Stock], left: Callable[[Sequence[int]], float], target: float, *, ranked: bool
) -> list[int]:
    """The counts for which left(counts), a share that falls with every unit, comes closest to `target`.

    Units go with the same share of every group, or ranked: the weakest of all groups first.
    """
    events = sorted(_events(stocks, ranked))

    def after(number: int) -> list[int]:
        counts = [stock.gone for stock in stocks]
        for _, group, level in events[:number]:
            counts[group] = level
        return counts

    low, high = 0, len(events)  # the first prefix that is within the budget
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if left(after(middle)) > target else (low, middle)
    best = min((after(max(low - 1, 0)), after(low)), key=lambda counts: abs(left(counts) - target))
    return _refined(stocks, best, left, target)


def _refined(
    stocks: Sequence[Stock], counts: list[int], left: Callable[[Sequence[int]], float], target: float
) -> list[int]:
    """Single groups a level up or down, as long as that comes closer."""
    error = abs(left(counts) - target)
    for _ in range(20):
        tries = []
        for number, stock in enumerate(stocks):
            at = stock.levels.index(counts[number])
            for level in stock.levels[max(at - 1, 0) : at + 2]:
                if level != counts[number] and level >= stock.gone:
                    tries.append([*counts[:number], level, *counts[number + 1 :]])
        closest = min(tries, key=lambda each: abs(left(each) - target), default=counts)
        if abs(left(closest) - target) >= error or error < 1e-3:
            break
        counts, error = closest, abs(left(closest) - target)
    return counts


def _events(stocks: Sequence[Stock], ranked: bool) -> Iterator[tuple[float, int, int]]:
    """(when, group, how many are gone then)."""
    for number, stock in enumerate(stocks):
        for before, level in zip(stock.levels, stock.levels[1:], strict=False):
            if level <= stock.gone:
                continue
            if not ranked:
                yield level / stock.units, number, level
            elif level <= MOST * stock.units:
                yield float(np.mean(stock.weakness[before:level])), number, level
