"""Plan which units each group loses, and say why it keeps the others. No model is touched here."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prune_fe.pruning.budget import (
    Capacity,
    counts_for_ranking,
    counts_for_ratio,
    counts_for_target,
    feasible_counts,
    kept_count,
    largest_count,
)
from prune_fe.pruning.by_name import choose_values, match_layers
from prune_fe.pruning.groups import Group, GroupId, list_demands
from prune_fe.pruning.options import Normalise, PruneOptions
from prune_fe.pruning.ranking import Array, comparable_scores, group_scores, units_with_scores
from prune_fe.pruning.remaining_cost import Resource
from prune_fe.tracing.dependency_graph import SetId

CostShare = Callable[[Resource, Iterable[SetId]], float]
"""Function from a resource and the coupled sets that are removed to the share that is left, as RemainingCost.share."""


@dataclass(frozen=True)
class Quota:
    """How many units a group is to have lost by the end of a round.

    Attributes:
        asked: The number that the options ask for.
        count: The largest feasible count that is not above it.
    """

    asked: int = 0
    count: int = 0


@dataclass(frozen=True)
class GroupState:
    """A group in the course of pruning.

    Attributes:
        group: The group.
        ratio: Share of its units that the ratio asks for.
        scores: (positions,) scores, higher = keep; empty for a group that is not pruned.
        existing: (positions,) whether the units of a position existed when the scores were computed.
        quota: How many units the group is to have lost by the end of the current round.
        removed: The positions that are removed.
        reason: Why the group loses no more units; None while it can.
        max_ratio: The largest share of its units that it may lose; None for all that can go.
        notes: Messages for the user about the options that hold for the group.
    """

    group: Group
    ratio: float
    scores: Array
    existing: NDArray[np.bool_]
    quota: Quota = Quota()
    removed: tuple[int, ...] = ()
    reason: str | None = None
    max_ratio: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[int, ...]:
        """The positions that are not removed."""
        removed = set(self.removed)
        return tuple(position for position in range(len(self.group.sets)) if position not in removed)

    def removal_order(self) -> list[list[int]]:
        """Return for each block its positions in the order in which they are removed."""
        return self.group.removal_order(self.scores, self.removed)

    def sets_by_step(self) -> list[SetId]:
        """Return the group's coupled sets in the order in which they are removed, so that every count is balanced.

        Units are taken from all blocks of the group step by step.
        """
        order = self.removal_order()
        steps = [self.group.take_steps(order, step, step + 1) for step in range(self.group.count_steps(order))]
        return [self.group.sets[position] for step in steps for block in step for position in block]

    def capacity(self, round_to: int, normalise: Normalise = "group") -> Capacity:
        """Return how many units the group can lose.

        Args:
            round_to: Number that the remaining units have to be a multiple of.
            normalise: How the scores become comparable with those of other groups.
        """
        step, order = self.group.step, self.removal_order()
        free = self.group.count_steps(order)
        comparable = comparable_scores(self.scores, self.existing, normalise)
        shares = zip(order, self.group.shares, strict=True)
        # One row for each unit of a step, one column for each step.
        scores = np.concatenate([comparable[block[: free * share]].reshape(free, share).T for block, share in shares])
        weakest = np.repeat(np.mean(scores, axis=0), step)
        return Capacity(
            units=len(self.group.sets),
            feasible_counts=self._feasible_counts(free, round_to, self.max_ratio),
            removed=len(self.removed),
            # A unit cannot be removed before the weaker ones of its group.
            weakest=tuple(np.maximum.accumulate(weakest)),
        )

    def _feasible_counts(self, free: int, round_to: int, max_ratio: float | None) -> tuple[int, ...]:
        """Return how many units the group can lose.

        Args:
            free: The largest number of steps.
            round_to: Number that the remaining units have to be a multiple of.
            max_ratio: The largest share of the units; None for no limit.
        """
        units, step = len(self.group.sets), self.group.step
        most = free * step if max_ratio is None else min(free * step, largest_count(units, max_ratio, step))
        feasible = [count for count in feasible_counts(units, step, 1) if count <= most]
        for size, divisor in self.group.multiples(round_to):
            # All units, or a block, lose the same share as the group.
            allowed = {lost * units // size for lost in feasible_counts(size, size * step // units, divisor)}
            feasible = [count for count in feasible if count in allowed]
        return tuple(feasible)

    def is_limited(self, round_to: int) -> bool:
        """Return whether the group has lost all that its `max_ratio` allows, and could lose more without it."""
        free, removed = self.group.count_steps(self.removal_order()), len(self.removed)
        allowed, possible = (self._feasible_counts(free, round_to, limit) for limit in (self.max_ratio, None))
        return removed >= allowed[-1] and len(possible) > len(allowed)

    def fill_quota(self) -> GroupState:
        """Return the state with as many units removed as the quota says."""
        parts = self.group.take_steps(self.removal_order(), 0, self.quota.count // self.group.step)
        chosen = [position for block in parts for position in block]
        removed = set(self.removed)
        return replace(self, removed=(*self.removed, *(p for p in chosen if p not in removed)))

    def total_asked(self, options: PruneOptions) -> int:
        """Return how many units the group is to lose in all rounds, as far as that is known."""
        if not options.has_ratio_per_layer:
            return self.quota.asked
        units = len(self.group.sets)
        return units - kept_count(units, self.ratio, self.group.step, options.rounding)

    def explain(self, options: PruneOptions, asked: int) -> str | None:
        """Return why fewer units than asked for, or none, are removed; None where nothing needs a reason."""
        if self.reason is not None:
            return self.reason
        if (len(self.removed) < asked or not options.has_ratio_per_layer) and self.is_limited(options.round_to):
            return f"max_ratio {self.max_ratio:g} allows no more"
        if len(self.removed) < asked:
            several = options.round_to > 1
            return f"widths are multiples of {options.round_to}" if several else "each of its parts keeps a unit"
        if self.removed:
            return None
        what = "the budget" if options.target is not None else "the ranking"
        what = f"ratio {self.ratio:g}" if options.has_ratio_per_layer else what
        blocks = f" in {self.group.block_count} blocks" if self.group.block_count > 1 else ""
        who = f" ({list_demands(self.group.demands)})" if blocks and self.group.demands else ""
        return f"{what} removes none of {len(self.group.sets)} units{blocks}{who}"

    def explain_blocks(self, options: PruneOptions) -> str | None:
        """Return how the group's blocks change the number of units that it loses at its ratio; None if they do not."""
        units, blocks = len(self.group.sets), self.group.block_count
        if not options.has_ratio_per_layer or blocks == 1 or not self.removed:
            return None
        usual = units - kept_count(units, self.ratio, rounding=options.rounding)
        if len(self.removed) == usual or len(self.removed) != self.total_asked(options):
            return None  # The blocks change nothing, or explain() gives the reason.
        what = f"{self.group.layers[0]!r} {len(self.removed)} of {units} instead of {usual}"
        return f"{what} (a multiple of {self.group.step}: {list_demands(self.group.demands)})"


@dataclass(frozen=True)
class PruningPlan:
    """Which units of every group are removed; `states` are in the order of the groups."""

    states: tuple[GroupState, ...]

    @property
    def open_groups(self) -> list[GroupId]:
        """The groups that can lose more units."""
        return [GroupId(number) for number, state in enumerate(self.states) if state.reason is None]

    @property
    def removed_sets(self) -> list[SetId]:
        """The coupled sets that are removed."""
        return [state.group.sets[position] for state in self.states for position in state.removed]

    @property
    def sets_of_stopped_groups(self) -> list[SetId]:
        """The coupled sets that were removed from groups that lose no more units; they count towards a target too."""
        stopped = [state for state in self.states if state.reason is not None]
        return [state.group.sets[position] for state in stopped for position in state.removed]

    def with_quotas(self, quotas: Mapping[GroupId, Quota]) -> PruningPlan:
        """Return the plan with these quotas."""
        return self._replacing({group: replace(self.states[group], quota=quota) for group, quota in quotas.items()})

    def with_scores(
        self,
        groups: Iterable[GroupId],
        layer_scores: Mapping[str, Array],
        widths: Mapping[str, int],
        options: PruneOptions,
        others: Collection[str] = (),
    ) -> PruningPlan:
        """Return the plan with new scores of some groups.

        Args:
            groups: The groups.
            layer_scores: Layer -> (units,) scores in the unit numbers of the whole network, NaN for removed units.
            widths: Layer -> number of its units in the whole network.
            options: The options of pruning.
            others: As in `group_scores`.
        """
        changed = {}
        for group in groups:
            state = self.states[group]
            existing = np.ones(len(state.group.sets), bool)
            existing[list(state.removed)] = False
            scores = group_scores(state.group, layer_scores, widths, options.reduction, others)
            changed[group] = replace(state, scores=scores, existing=existing)
        return self._replacing(changed)

    def filling_quotas(self, groups: Iterable[GroupId]) -> PruningPlan:
        """Return the plan in which these groups have lost what their quotas say."""
        return self._replacing({group: self.states[group].fill_quota() for group in groups})

    def sets_added_since(self, earlier: PruningPlan) -> dict[GroupId, list[SetId]]:
        """Return the coupled sets that are removed here and not in an earlier plan, for every group that has some."""
        added = {}
        for number, (state, before) in enumerate(zip(self.states, earlier.states, strict=True)):
            if sets := [state.group.sets[position] for position in state.removed[len(before.removed) :]]:
                added[GroupId(number)] = sets
        return added

    def stopping(self, reasons: Mapping[GroupId, str]) -> PruningPlan:
        """Return the plan in which some groups lose no more units, each for a reason."""
        return self._replacing({group: replace(self.states[group], reason=why) for group, why in reasons.items()})

    def _replacing(self, changed: Mapping[GroupId, GroupState]) -> PruningPlan:
        return PruningPlan(tuple(changed.get(GroupId(number), state) for number, state in enumerate(self.states)))


def start_plan(
    groups: Sequence[Group],
    widths: Mapping[str, int],
    layer_scores: Mapping[str, Array],
    options: PruneOptions,
    others: Collection[str] = (),
) -> PruningPlan:
    """Return a plan that removes nothing, with a reason for every group that loses none.

    Args:
        groups: The groups of the network.
        widths: Layer, or other module with scores -> number of its units, for all layers in the order in which they
            run.
        layer_scores: Layer, or other module -> (units,) scores, higher = keep.
        options: The options of pruning.
        others: As in `group_scores`.

    Raises:
        InputError: A name or pattern in the options matches no layer, equally specific ones give different values to
            layers that can only be pruned together, or the scores belong to another model.
    """
    blocks = {module for group in groups for module in group.outputs}
    protected = match_layers(options.protect, [name for name in widths if name not in blocks])
    ratios = choose_values(groups, options.ratio_or_default, "ratio")
    limits = choose_values(groups, options.max_ratio, "max_ratio")
    states = []
    for group, ratio, limit in zip(groups, ratios, limits, strict=True):
        reason = _reason_to_keep_all(group, protected, layer_scores, options)
        is_ranked = reason is None
        scores = group_scores(group, layer_scores, widths, options.reduction, others) if is_ranked else np.zeros(0)
        state = GroupState(
            group=group,
            ratio=ratio.value or 0.0,
            scores=scores,
            existing=np.ones(len(group.sets), bool),
            reason=reason,
            max_ratio=options.default_max_ratio if limit.value is None else limit.value,
            notes=tuple(choice.note for choice in (ratio, limit) if choice.note is not None and reason is None),
        )
        states.append(state)
    return PruningPlan(tuple(states))


def plan_quotas(
    plan: PruningPlan, options: PruneOptions, progress: Fraction, cost_share: CostShare
) -> dict[GroupId, Quota]:
    """Return how many units each open group is to have lost at some point of the schedule.

    Args:
        plan: What is removed so far.
        options: The options of pruning.
        progress: How much of the schedule is then completed, in (0, 1].
        cost_share: The cost of the network without some coupled sets.
    """
    open_groups = plan.open_groups
    states = [plan.states[group] for group in open_groups]
    capacities = [state.capacity(options.round_to, options.normalise) for state in states]
    if options.target is not None:
        counts = _counts_for_target(plan, capacities, options, progress, cost_share)
    elif options.ranking == "global":
        total = Fraction(str(options.ratio_or_default)) * progress * sum(capacity.units for capacity in capacities)
        counts = counts_for_ranking(capacities, math.floor(total))
    else:
        asked = [_asked_so_far(state, options, progress) for state in states]
        counts = counts_for_ratio(capacities, asked)
        return {group: Quota(*pair) for group, *pair in zip(open_groups, asked, counts, strict=True)}
    return {group: Quota(count, count) for group, count in zip(open_groups, counts, strict=True)}


def _counts_for_target(
    plan: PruningPlan, capacities: Sequence[Capacity], options: PruneOptions, progress: Fraction, cost_share: CostShare
) -> list[int]:
    """Return the counts of the open groups whose cost comes closest to the target at some point of the schedule."""
    assert options.target is not None
    resource, target = options.target
    orders = [plan.states[group].sets_by_step() for group in plan.open_groups]
    lost = plan.sets_of_stopped_groups

    def share_left(counts: Sequence[int]) -> float:
        removed = [set_id for sets, count in zip(orders, counts, strict=True) for set_id in sets[:count]]
        return cost_share(resource, lost + removed)

    target_now = 1 - (1 - target) * float(progress)
    return counts_for_target(capacities, share_left, target_now, ranked=options.ranking == "global")


def _asked_so_far(state: GroupState, options: PruneOptions, progress: Fraction) -> int:
    """Return how many units a ratio asks of a group at some point of the schedule, in steps of all its blocks."""
    # Rounded down to a step, so that the last round reaches exactly what is asked in all.
    step = state.group.step
    return step * math.floor(progress * (state.total_asked(options) // step))


def _reason_to_keep_all(
    group: Group, protected: set[str], layer_scores: Mapping[str, Any], options: PruneOptions
) -> str | None:
    """Return why a group loses no unit; None if it can lose some."""
    if group.reason is not None:
        return group.reason
    if not protected.isdisjoint(group.layers):
        return "protected"
    if options.scope == "inner" and group.is_residual:
        return "coupled by a residual sum"
    return None if units_with_scores(group, layer_scores) else "not scored"
