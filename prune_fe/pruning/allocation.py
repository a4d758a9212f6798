"""Spread a target cost over the groups so that the predicted loss is smallest.

The predicted loss is the sum of what the curve of each group says, as if the increases of the loss added up. The cost
is computed exactly, and is no such sum: a layer costs its outputs times its inputs, which belong to two groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from prune_fe.io import shorten
from prune_fe.pruning.budget import Capacity, counts_for_target
from prune_fe.pruning.groups import GroupId
from prune_fe.pruning.loss_curves import LossCurve
from prune_fe.pruning.options import PruneOptions
from prune_fe.pruning.plan import PruningPlan, Quota
from prune_fe.pruning.remaining_cost import RemainingCost
from prune_fe.tracing.dependency_graph import SetId

Array = NDArray[np.float64]
Counts = list[int]

CANDIDATES = 100
"""At most this many counts of a group are tried by the search; the last step tries all."""

BISECTIONS = 40
"""Number of prices of the cost that are tried."""

MAX_PRICE = 1e12
"""A target that is not reached at this price, in nats for the whole cost, cannot be reached."""

MAX_SWEEPS = 50
"""At most this many passes over the groups are made, in which the count of each is chosen, until none changes."""

STEPS, PLACES = (-4, -1, 1, 4), 11
"""In a trade the count of a group moves by one of these numbers of candidates, or to one of this number of candidates
at equal distances."""

MAX_TRADES = 30_000
"""At most this many trades are tried, which limits the time for networks of hundreds of groups."""

TOLERANCE = 0.005
"""A choice whose cost deviates from the target by less than this share of it is as good as one that meets it."""

MAX_MOVES = 20
"""At most this many groups are changed to meet the target exactly."""


@dataclass(frozen=True)
class Choices:
    """The numbers of units that one group can lose, and by how much each raises the loss.

    Attributes:
        counts: Numbers of units, ascending; the first is what it has lost already.
        increases: (counts,) the predicted increase of the loss.
        order: The coupled sets in the order in which they are removed.
    """

    counts: tuple[int, ...]
    increases: Array
    order: Sequence[SetId]


@dataclass(frozen=True)
class Budget:
    """The groups, and the cost as a function of what they lose.

    Attributes:
        groups: One entry a group.
        count_channels: Function from coupled sets to (axes,) the number of their channels on each axis.
        shares_without: Function from (n, axes) removed channels to (n,) shares of the cost that are left.
        fixed: Coupled sets of other groups that are removed in any case.
    """

    groups: Sequence[Choices]
    count_channels: Callable[[Sequence[SetId]], Array]
    shares_without: Callable[[Array], Array]
    fixed: Sequence[SetId] = ()

    def share_left(self, counts: Sequence[int]) -> float:
        """Return the share of the cost that is left when the groups lose these numbers of units."""
        removed = [s for group, count in zip(self.groups, counts, strict=True) for s in group.order[:count]]
        return float(self.shares_without(self.count_channels([*self.fixed, *removed])))

    def increase(self, counts: Sequence[int]) -> float:
        """Return the predicted increase of the loss: the sum of the groups' own."""
        return sum(
            float(group.increases[group.counts.index(count)]) for group, count in zip(self.groups, counts, strict=True)
        )


@dataclass(frozen=True)
class Allocation:
    """Spreads a target over the groups of a network by their loss curves: the ratio "auto".

    Attributes:
        curves: The loss curve of each group.
        unpruned_loss: The loss of the whole network.
        cost: The cost of the network without some coupled sets.
    """

    curves: Mapping[GroupId, LossCurve]
    unpruned_loss: float
    cost: RemainingCost

    def plan_quotas(self, plan: PruningPlan, options: PruneOptions, progress: Fraction) -> dict[GroupId, Quota]:
        """Return how many units each open group is to have lost at some point of the schedule.

        Args:
            plan: What is removed so far.
            options: The options of pruning.
            progress: How much of the schedule is then completed, in (0, 1].
        """
        assert options.target is not None
        resource, target = options.target
        groups, capacities = [], []
        for number in plan.open_groups:
            state, curve = plan.states[number], self.curves[number]
            capacity = state.capacity(options.round_to)
            most = max(curve.most_removed, capacity.removed)
            capacity = replace(capacity, feasible_counts=tuple(n for n in capacity.feasible_counts if n <= most))
            counts = tuple(count for count in capacity.feasible_counts if count >= capacity.removed)
            capacities.append(capacity)
            increases = curve.predict_increases(self.unpruned_loss, counts)
            groups.append(Choices(counts, increases, state.sets_by_step()))
        budget = Budget(
            groups,
            self.cost.count_channels,
            lambda channels: self.cost.shares_without(resource, channels),
            plan.sets_of_stopped_groups,
        )
        chosen = choose_counts(budget, capacities, 1 - (1 - target) * float(progress))
        return {group: Quota(count, count) for group, count in zip(plan.open_groups, chosen, strict=True)}

    def notes(self, plan: PruningPlan) -> Iterator[str]:
        """Yield messages for the user: what is predicted, and which groups lost all that was measured of them."""
        increase, ends = 0.0, []
        for number, state in enumerate(plan.states):
            curve, count = self.curves[GroupId(number)], len(state.removed)
            if not curve.points:
                continue
            increase += float(curve.predict_increases(self.unpruned_loss, [count])[0])
            limit = len(state.group.sets) if state.max_ratio is None else state.max_ratio * len(state.group.sets)
            if count and count == curve.most_removed and curve.points[-1].ratio * len(state.group.sets) < limit - 1:
                ends.append(state.group.layers[0])
        yield (
            f"ratio: auto: a loss of {self.unpruned_loss + increase:.4f} is predicted on the images of the sensitivity "
            f"({self.unpruned_loss:.4f} of the whole network), if the increases that single groups cause add up"
        )
        if ends:
            yield f"ratio: auto: {shorten(ends)} lost as many units as were measured, which limits them"


def choose_counts(budget: Budget, capacities: Sequence[Capacity], target: float) -> Counts:
    """Return the counts that meet a target cost and have the smallest predicted loss that the search finds.

    With a price for the cost (a Lagrange multiplier), the predicted loss plus price times cost is minimised, one group
    after the other until none changes. Bisection finds two prices: with one the cost is above the target, with the
    other it is not. There may be better choices between those of the two prices, because the cost is no sum over the
    groups. So three choices are moved to the target and improved by trades, in which one group loses more units and
    another one fewer: those of both prices, and the same share of every group. The best is returned. It is never
    predicted to be worse than the same share of every group.

    Args:
        budget: The groups and the cost.
        capacities: One for each group, with the same counts.
        target: The share of the cost to leave.
    """
    search = _Search(budget, target)
    same_share = counts_for_target(capacities, budget.share_left, target, ranked=False)
    starts = [*search.choices_around(), search.nearest(same_share)]
    met = [_meet(budget, search.counts_of(search.trade(start)), target) for start in starts]
    met.append(_meet(budget, same_share, target))

    def rank(counts: Counts) -> tuple[float, float]:
        error = abs(budget.share_left(counts) - target)
        # Of those that are not close to the target, the closest is best.
        return (max(error, TOLERANCE * target), budget.increase(counts))

    return min(met, key=rank)


class _Search:
    """The search on at most `CANDIDATES` counts of each group; a choice has the index of one of them for each group."""

    def __init__(self, budget: Budget, target: float) -> None:
        self.shares_without, self.target = budget.shares_without, target
        self.counts, self.increases, self.channels = [], [], []
        for group in budget.groups:
            chosen = np.unique(np.linspace(0, len(group.counts) - 1, CANDIDATES).round().astype(int))
            self.counts.append([group.counts[index] for index in chosen])
            self.increases.append(group.increases[chosen])
            channels = [budget.count_channels(group.order[:count]) for count in self.counts[-1]]
            self.channels.append(np.array(channels))
        self.fixed = budget.count_channels(budget.fixed)

    def counts_of(self, choice: Sequence[int]) -> Counts:
        """Return the counts of a choice."""
        return [counts[index] for counts, index in zip(self.counts, choice, strict=True)]

    def nearest(self, counts: Counts) -> list[int]:
        """Return the choice that is closest to some counts."""
        pairs = zip(self.counts, counts, strict=True)
        return [int(np.abs(np.array(known) - count).argmin()) for known, count in pairs]

    def choices_around(self) -> list[list[int]]:
        """Return the choices at the two closest prices that are found, above the target cost and not above it."""
        above, below = [0] * len(self.counts), self._minimise([0] * len(self.counts), 1.0)
        low, high = 0.0, 1.0
        while self._share(below) > self.target and high < MAX_PRICE:
            above, low, high = below, high, 4 * high
            below = self._minimise(below, high)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            choice = min(
                (self._minimise(start, middle) for start in (above, below)),
                key=lambda choice: self._increase(choice) + middle * self._share(choice),
            )
            if self._share(choice) > self.target:
                above, low = choice, middle
            else:
                below, high = choice, middle
        return [above, below]

    def trade(self, start: Sequence[int]) -> list[int]:
        """Return a choice that no trade improves: one group moves, and the one that suffers least restores the cost."""
        choice, n_tried, is_improved = self._balance(start), 0, True
        while is_improved and n_tried < MAX_TRADES:
            is_improved = False
            for number, counts in enumerate(self.counts):
                places = np.linspace(0, len(counts) - 1, PLACES).astype(int).tolist()
                for index in dict.fromkeys([*(choice[number] + step for step in STEPS), *places]):
                    if index == choice[number] or not 0 <= index < len(counts):
                        continue
                    n_tried += len(choice)
                    moved = self._balance([*choice[:number], index, *choice[number + 1 :]], fixed=number)
                    if self._is_better(moved, choice):
                        choice, is_improved = moved, True
        return choice

    def _balance(self, choice: Sequence[int], fixed: int | None = None) -> list[int]:
        """Return the choice with one group moved so that the cost is closest to the target, at the least loss.

        Args:
            choice: A choice of any cost.
            fixed: A group that is not moved.
        """
        best = list(choice)
        removed = self._removed(choice)
        for number, channels in enumerate(self.channels):
            if number != fixed:
                shares = self.shares_without(removed - channels[choice[number]] + channels)
                moved = [*choice[:number], int(np.abs(shares - self.target).argmin()), *choice[number + 1 :]]
                if self._is_better(moved, best):
                    best = moved
        return best

    def _is_better(self, choice: Sequence[int], other: Sequence[int]) -> bool:
        """Return whether a choice meets the target with less loss, or comes closer to it than one that does not."""
        tolerance = TOLERANCE * self.target
        error, others_error = (max(abs(self._share(each) - self.target), tolerance) for each in (choice, other))
        if error != others_error:
            return error < others_error
        return self._increase(choice) < self._increase(other) - 1e-12

    def _minimise(self, start: Sequence[int], price: float) -> list[int]:
        """Return, for each group, the index of its count in a minimum of predicted loss plus price times cost."""
        choice = list(start)
        removed = self._removed(choice)
        for _ in range(MAX_SWEEPS):
            before = list(choice)
            for number, (increases, channels) in enumerate(zip(self.increases, self.channels, strict=True)):
                others = removed - channels[choice[number]]
                totals = increases + price * self.shares_without(others + channels)
                # Rounding must not move a group back and forth between equal totals.
                if totals.min() < totals[choice[number]] - 1e-12 * price:
                    choice[number] = int(totals.argmin())
                removed = others + channels[choice[number]]
            if choice == before:
                break
        return choice

    def _removed(self, choice: Sequence[int]) -> Array:
        """Return (axes,) the removed channels of a choice."""
        return self.fixed + sum(channels[index] for channels, index in zip(self.channels, choice, strict=True))

    def _share(self, choice: Sequence[int]) -> float:
        return float(self.shares_without(self._removed(choice)))

    def _increase(self, choice: Sequence[int]) -> float:
        return sum(float(increases[index]) for increases, index in zip(self.increases, choice, strict=True))


def _meet(budget: Budget, counts: Counts, target: float) -> Counts:
    """Change the count of one group at a time, the one that raises the loss least, until the cost meets the target."""
    error = abs(budget.share_left(counts) - target)
    for _ in range(MAX_MOVES):
        if error < TOLERANCE * target:
            break
        moved = [_move(budget, counts, number, target) for number in range(len(counts))]
        errors = [abs(budget.share_left(each) - target) for each in moved]
        met = [number for number in range(len(moved)) if errors[number] < TOLERANCE * target]
        if met:
            best = min(met, key=lambda number: (budget.increase(moved[number]), errors[number]))
        else:
            best = min(range(len(moved)), key=lambda number: errors[number], default=-1)
        if best < 0 or errors[best] >= error:
            break
        counts, error = moved[best], errors[best]
    return counts


def _move(budget: Budget, counts: Counts, number: int, target: float) -> Counts:
    """Return the counts in which one group loses the number of units that comes closest to the target."""
    options = budget.groups[number].counts

    def with_count(index: int) -> Counts:
        return [*counts[:number], options[index], *counts[number + 1 :]]

    # The cost falls with every unit, which allows a binary search.
    low, high = 0, len(options) - 1
    while low < high:
        middle = (low + high) // 2
        if budget.share_left(with_count(middle)) <= target:
            high = middle
        else:
            low = middle + 1
    near = [with_count(index) for index in {max(low - 1, 0), low}]
    return min(near, key=lambda each: abs(budget.share_left(each) - target))
