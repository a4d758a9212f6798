"""Never more units are removed than there are, in order, and as close to a target as single units allow."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prune_fe.pruning.budget import (
    Capacity,
    counts_for_ranking,
    counts_for_ratio,
    counts_for_target,
    feasible_counts,
    kept_count,
    largest_count,
)

SIZES = st.lists(st.tuples(st.integers(1, 12), st.sampled_from([1, 2, 4])), min_size=1, max_size=5)
"""(units of a block, blocks) of each group."""

MAX_RATIO = 0.9


def draw_capacities(sizes: Sequence[tuple[int, int]], seed: int = 0, max_ratio: float = 1) -> list[Capacity]:
    generator = np.random.default_rng(seed)
    capacities = []
    for size, blocks in sizes:
        weakest = np.repeat(np.sort(generator.normal(size=size).round(1)), blocks)
        limit = largest_count(size * blocks, max_ratio, blocks)
        counts = tuple(count for count in feasible_counts(size * blocks, blocks, 1) if count <= limit)
        capacities.append(Capacity(size * blocks, counts, 0, tuple(weakest)))
    return capacities


@given(st.integers(1, 60), st.integers(1, 6), st.integers(1, 9))
def test_feasible_counts_leave_equal_blocks_and_multiples(size: int, blocks: int, divisor: int) -> None:
    counts = feasible_counts(size * blocks, blocks, divisor)
    assert counts[0] == 0
    for count in counts[1:]:
        kept = size * blocks - count
        assert kept >= blocks
        assert count % blocks == kept % divisor == 0


@given(st.integers(1, 3000), st.integers(0, 99))
def test_the_kept_count_is_the_floor_of_the_decimal(units: int, percent: int) -> None:
    assert kept_count(units, percent / 100) == max((100 - percent) * units // 100, 1)


@given(st.integers(1, 3000), st.integers(1, 6), st.integers(0, 99))
def test_floor_removed_removes_the_floor_of_the_decimal_of_each_block(size: int, blocks: int, percent: int) -> None:
    # HRank and FPGM: int(rate · n) filters go.
    kept = kept_count(size * blocks, percent / 100, blocks, "floor_removed")
    assert kept == (size - percent * size // 100) * blocks > 0
    assert 0 <= kept - kept_count(size * blocks, percent / 100, blocks) <= blocks


@given(st.integers(1, 3000), st.integers(1, 6), st.integers(0, 99))
def test_the_largest_count_is_the_floor_of_the_decimal_in_each_block(size: int, blocks: int, percent: int) -> None:
    assert largest_count(size * blocks, percent / 100, blocks) == percent * size // 100 * blocks


@given(SIZES, st.integers(0, 60), st.integers(0, 99))
def test_a_ranking_removes_no_more_than_asked_and_keeps_nothing_weaker(
    sizes: list[tuple[int, int]], total: int, seed: int
) -> None:
    capacities = draw_capacities(sizes, seed, MAX_RATIO)
    counts = counts_for_ranking(capacities, total)
    assert sum(counts) <= total
    removed: list[float] = []
    next_ones: list[float] = []
    for capacity, count in zip(capacities, counts, strict=True):
        assert count in capacity.feasible_counts
        assert count <= MAX_RATIO * capacity.units
        removed += capacity.weakest[:count]
        if any(count < more <= MAX_RATIO * capacity.units for more in capacity.feasible_counts):
            next_ones.append(capacity.weakest[count])
    assert not removed or not next_ones or max(removed) <= min(next_ones)


@given(SIZES, st.floats(0, 1), st.booleans())
def test_a_target_is_missed_by_less_than_a_neighbouring_count_of_any_group_would(
    sizes: list[tuple[int, int]], target: float, ranked: bool
) -> None:
    capacities = draw_capacities(sizes)
    units = sum(capacity.units for capacity in capacities)

    def share_left(counts: Sequence[int]) -> float:
        return 1 - sum(counts) / units

    counts = counts_for_target(capacities, share_left, target, ranked=ranked)
    error = abs(share_left(counts) - target)
    for number, capacity in enumerate(capacities):
        index = capacity.feasible_counts.index(counts[number])
        for neighbour in capacity.feasible_counts[max(index - 1, 0) : index + 2]:
            other = share_left([*counts[:number], neighbour, *counts[number + 1 :]])
            assert abs(other - target) >= error - 1e-3


def test_removed_units_are_not_put_back() -> None:
    capacity = Capacity(10, feasible_counts(10, 1, 1), removed=4, weakest=tuple(map(float, range(10))))
    assert counts_for_ranking([capacity], 2) == [4]
    assert counts_for_target([capacity], lambda counts: 1 - counts[0] / 10, 0.9, ranked=False) == [4]


def test_a_ratio_removes_the_largest_feasible_count_that_is_not_above_what_is_asked() -> None:
    capacities = [Capacity(20, feasible_counts(20, 1, 8)), Capacity(6, feasible_counts(6, 2, 1))]
    assert counts_for_ratio(capacities, [11, 3]) == [4, 2]
