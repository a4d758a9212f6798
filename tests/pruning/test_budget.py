"""How many units go: never more than there are, in order, and as close to the budget as single units allow."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prune_fe.pruning.budget import (
    MAX_GLOBAL_SHARE,
    Capacity,
    counts_for_ranking,
    counts_for_ratio,
    counts_for_target,
    feasible_counts,
)

SIZES = st.lists(st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 4])), min_size=1, max_size=5)


def stocks_of(sizes: Sequence[tuple[int, int]], round_to: int = 1, seed: int = 0) -> list[Capacity]:
    generator = np.random.default_rng(seed)
    found = []
    for size, blocks in sizes:
        weakness = np.repeat(np.sort(generator.normal(size=size).round(1)), blocks)
        found.append(Capacity(size * blocks, feasible_counts(size * blocks, blocks, round_to), 0, tuple(weakness)))
    return found


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 9))
def test_levels_keep_something_equal_parts_and_multiples(size: int, blocks: int, round_to: int) -> None:
    found = feasible_counts(size * blocks, blocks, round_to)
    assert found[0] == 0
    for level in found[1:]:
        left = size * blocks - level
        assert left >= blocks
        assert level % blocks == left % round_to == 0


@given(SIZES, st.integers(0, 60), st.integers(0, 99))
def test_a_ranking_takes_no_more_than_asked_and_leaves_nothing_weaker(
    sizes: list[tuple[int, int]], total: int, seed: int
) -> None:
    stocks = stocks_of(sizes, seed=seed)
    counts = counts_for_ranking(stocks, total)
    assert sum(counts) <= total
    assert all(
        count in stock.feasible_counts and count <= MAX_GLOBAL_SHARE * stock.units
        for count, stock in zip(counts, stocks, strict=True)
    )
    taken = [stock.weakest[i] for stock, count in zip(stocks, counts, strict=True) for i in range(count)]
    open_ = [
        s.weakest[c]
        for s, c in zip(stocks, counts, strict=True)
        if c + s.feasible_counts[-1:][0] and any(c < level <= MAX_GLOBAL_SHARE * s.units for level in s.feasible_counts)
    ]
    assert not taken or not open_ or max(taken) <= min(open_)


@given(SIZES, st.floats(0, 1), st.booleans())
def test_a_budget_is_missed_by_less_than_the_smallest_step_that_is_left(
    sizes: list[tuple[int, int]], target: float, ranked: bool
) -> None:
    stocks = stocks_of(sizes)
    units = sum(stock.units for stock in stocks)

    def left(counts: Sequence[int]) -> float:
        return 1 - sum(counts) / units

    counts = counts_for_target(stocks, left, target, ranked=ranked)
    error = abs(left(counts) - target)
    for number, stock in enumerate(stocks):
        for level in stock.feasible_counts:
            other = left([*counts[:number], level, *counts[number + 1 :]])
            near = abs(stock.feasible_counts.index(level) - stock.feasible_counts.index(counts[number])) == 1
            assert not near or abs(other - target) >= error - 1e-3


def test_what_is_gone_stays_gone() -> None:
    stock = Capacity(10, feasible_counts(10, 1, 1), removed=4, weakest=tuple(map(float, range(10))))
    assert counts_for_ranking([stock], 2) == [4]
    assert counts_for_target([stock], lambda counts: 1 - counts[0] / 10, 0.9, ranked=False) == [4]


def test_a_ratio_takes_the_highest_level_that_is_due() -> None:
    stocks = [Capacity(20, feasible_counts(20, 1, 8)), Capacity(6, feasible_counts(6, 2, 1))]
    assert counts_for_ratio(stocks, [Fraction(11), Fraction(3)]) == [4, 2]
