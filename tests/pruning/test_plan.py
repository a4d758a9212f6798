"""Plans are made from groups, scores and options alone."""

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from prune_fe.errors import InputError
from prune_fe.pruning.groups import Group, GroupId
from prune_fe.pruning.options import PruneOptions
from prune_fe.pruning.plan import PruningPlan, Quota, plan_quotas, start_plan
from prune_fe.tracing.dependency_graph import SetId

WIDTHS = {"a": 4, "b": 6, "c": 10}


def group(layer: str, units: int, first: int, **rest: Any) -> Group:
    return Group(
        layer_units={layer: tuple((unit,) for unit in range(units))},
        block_ids=rest.pop("block_ids", (0,) * units),
        sets=tuple(map(SetId, range(first, first + units))),
        **rest,
    )


GROUPS = (group("a", 4, 0), group("b", 6, 4, block_ids=(0, 0, 0, 1, 1, 1)), group("c", 10, 10))
TIED = Group(layer_units={"a": ((0,),), "b": ((0,),)}, block_ids=(0,), sets=(SetId(0),))
SCORES = {"a": np.arange(4.0), "b": np.array([5.0, 1, 3, 0, 2, 4]), "c": np.arange(10.0)[::-1]}


def share_of_units(_: object, removed: Iterable[SetId]) -> float:
    return 1 - len(set(removed)) / 20


def planned(options: PruneOptions, progress: Fraction = Fraction(1), groups: tuple[Group, ...] = GROUPS) -> PruningPlan:
    plan = start_plan(groups, WIDTHS, SCORES, options)
    plan = plan.with_quotas(plan_quotas(plan, options, progress, share_of_units))
    return plan.filling_quotas(plan.open_groups)


def test_every_layer_loses_its_share_and_blocks_equally_many() -> None:
    plan = planned(PruneOptions(ratio=0.5))
    assert [state.quota for state in plan.states] == [Quota(2, 2), Quota(4, 4), Quota(5, 5)]
    assert [state.removed for state in plan.states] == [(0, 1), (1, 2, 3, 4), (9, 8, 7, 6, 5)]
    assert plan.states[1].kept == (0, 5)
    assert plan.removed_sets == [0, 1, 5, 6, 7, 8, 19, 18, 17, 16, 15]


def test_half_of_the_schedule_is_half_of_the_units() -> None:
    plan = planned(PruneOptions(ratio=0.5), Fraction(1, 2))
    assert [len(state.removed) for state in plan.states] == [1, 2, 2]
    assert [state.total_asked(PruneOptions(ratio=0.5)) for state in plan.states] == [2, 4, 5]


def test_a_plan_goes_on_from_what_is_removed() -> None:
    options = PruneOptions(ratio=0.5)
    half = planned(options, Fraction(1, 2))
    whole = half.with_quotas(plan_quotas(half, options, Fraction(1), share_of_units)).filling_quotas(half.open_groups)
    assert sorted(whole.removed_sets) == sorted(planned(options).removed_sets)
    assert whole.sets_added_since(half) == {0: [1], 1: [6, 8], 2: [17, 16, 15]}
    assert whole.sets_added_since(whole) == {}


def test_planning_changes_no_plan() -> None:
    options = PruneOptions(ratio=0.5)
    plan = start_plan(GROUPS, WIDTHS, SCORES, options)
    plan.with_quotas(plan_quotas(plan, options, Fraction(1), share_of_units)).filling_quotas(plan.open_groups)
    plan.stopping({GroupId(0): "why"})
    assert plan.removed_sets == []
    assert plan.open_groups == [0, 1, 2]


@pytest.mark.parametrize("ranking", ["layer", "global"])
def test_a_target_is_met(ranking: Any) -> None:
    plan = planned(PruneOptions(target_params=0.6, ranking=ranking))
    assert share_of_units("parameters", plan.removed_sets) == pytest.approx(0.6)


def test_a_target_counts_what_stopped_groups_have_lost() -> None:
    options = PruneOptions(target_macs=0.5)
    plan = start_plan(GROUPS, WIDTHS, SCORES, options).with_quotas({GroupId(2): Quota(4, 4)})
    plan = plan.filling_quotas([GroupId(2)]).stopping({GroupId(2): "fails"})
    plan = plan.with_quotas(plan_quotas(plan, options, Fraction(1), share_of_units)).filling_quotas(plan.open_groups)
    assert [len(state.removed) for state in plan.states] == [2, 4, 4]


def test_a_stopped_group_loses_no_more_and_the_others_go_on() -> None:
    options = PruneOptions(ratio=0.5)
    plan = start_plan(GROUPS, WIDTHS, SCORES, options).stopping({GroupId(1): "fails"})
    assert plan.open_groups == [0, 2]
    assert plan_quotas(plan, options, Fraction(1), share_of_units).keys() == {0, 2}
    assert plan.states[1].explain(options, asked=4) == "fails"


def test_after_new_scores_a_ranking_over_all_groups_compares_the_units_that_are_left() -> None:
    options = PruneOptions(ratio=0.3, ranking="global")
    groups, widths = (group("a", 10, 0), group("b", 10, 10)), {"a": 10, "b": 10}
    first = {"a": np.array([0.0] * 3 + [10] * 7), "b": np.array([0.0] * 5 + [1] * 5)}
    plan = start_plan(groups, widths, first, options)
    plan = plan.with_quotas(plan_quotas(plan, options, Fraction(1, 2), share_of_units))
    plan = plan.filling_quotas(plan.open_groups)
    assert [state.removed for state in plan.states] == [(0, 1, 2), ()]
    # The lowest score of a is 2.4 deviations below the mean of its seven units, those of b are 1.5 below.
    second = {"a": np.array([np.nan] * 3 + [0.0] + [10] * 6), "b": np.array([0.0] * 3 + [1] * 7)}
    plan = plan.with_scores(plan.open_groups, second, widths, options)
    plan = plan.with_quotas(plan_quotas(plan, options, Fraction(1), share_of_units))
    plan = plan.filling_quotas(plan.open_groups)
    assert [state.removed for state in plan.states] == [(0, 1, 2, 3), (0, 1)]


@pytest.mark.parametrize(
    ("options", "rest", "reason"),
    [
        (PruneOptions(protect=("c*",)), {}, "protected"),
        (PruneOptions(scope="inner"), {"is_residual": True}, "coupled by a residual sum"),
        (PruneOptions(), {"is_residual": True}, None),
        (PruneOptions(), {"reason": "unknown code"}, "unknown code"),
    ],
)
def test_why_a_group_keeps_all_units(options: PruneOptions, rest: dict[str, Any], reason: str | None) -> None:
    plan = start_plan((group("c", 10, 0, **rest),), WIDTHS, SCORES, options)
    assert plan.states[0].reason == reason


def test_layers_without_scores_keep_all_units() -> None:
    plan = start_plan(GROUPS, WIDTHS, {"b": SCORES["b"]}, PruneOptions())
    assert [state.reason for state in plan.states] == ["not scored", None, "not scored"]


@pytest.mark.parametrize(
    ("options", "asked", "text"),
    [
        (PruneOptions(ratio=0.1), 0, "ratio 0.1 removes none of 6 units in 2 blocks"),
        (PruneOptions(target_macs=0.9), 0, "the budget removes none of 6 units in 2 blocks"),
        (PruneOptions(ranking="global"), 0, "the ranking removes none of 6 units in 2 blocks"),
        (PruneOptions(round_to=8), 2, "widths are multiples of 8"),
        (PruneOptions(), 2, "each of its parts keeps a unit"),
    ],
)
def test_why_fewer_units_are_removed(options: PruneOptions, asked: int, text: str) -> None:
    state = start_plan(GROUPS, WIDTHS, SCORES, options).states[1]
    assert state.explain(options, asked) == text


def test_what_demands_blocks_is_named_when_none_or_another_number_goes() -> None:
    norm, options = "GroupNorm 'norm' with 5 groups", PruneOptions(ratio=0.3)
    pairs = group("c", 10, 0, block_ids=(0, 0, 1, 1, 2, 2, 3, 3, 4, 4), demands=(norm,))
    (state,) = planned(options, groups=(pairs,)).states
    assert state.explain_blocks(options) == f"'c' 5 of 10 instead of 3 (a multiple of 5: {norm})"
    assert state.explain(options, 5) is None
    rounded = PruneOptions(ratio=0.4, round_to=4)
    state = planned(rounded).states[1]
    assert (len(state.removed), state.explain_blocks(rounded)) == (2, None)
    assert state.explain(rounded, state.total_asked(rounded)) == "widths are multiples of 4"
    half = PruneOptions(ratio=0.5)
    assert planned(half, groups=(pairs,)).states[0].explain_blocks(half) is None
    (state,) = planned(options, groups=(group("c", 10, 0, block_ids=tuple(range(10)), demands=(norm,)),)).states
    assert state.explain(options, 0) == f"ratio 0.3 removes none of 10 units in 10 blocks ({norm})"
    assert state.explain_blocks(options) is None


def test_nothing_is_explained_where_a_group_lost_what_was_asked() -> None:
    options = PruneOptions(ratio=0.5)
    half = planned(options, Fraction(1, 2))
    assert [state.explain(options, state.quota.asked) for state in half.states] == [None, None, None]


def test_the_best_unit_of_each_part_stays() -> None:
    options = PruneOptions(ratio=0.9)
    groups = (group("a", 4, 0, keep_one_of=((0, 1),)),)
    state = planned(options, groups=groups).states[0]
    assert (state.quota, state.removed) == (Quota(3, 3), (0, 2, 3))


def test_blocks_of_different_sizes_lose_the_same_share() -> None:
    heads = Group(
        layer_units={
            "a": (*((unit,) for unit in range(8)), *((),) * 4),
            "b": (*((),) * 8, *((h, h + 4) for h in range(4))),
        },
        block_ids=(0,) * 8 + (1,) * 4,
        sets=tuple(map(SetId, range(12))),
    )
    widths, scores = {"a": 8, "b": 8}, {"a": np.arange(8.0), "b": np.array([7.0, 1, 6, 5, 7, 3, 6, 5])}
    (state,) = start_plan((heads,), widths, scores, PruneOptions(ratio=0.5)).states
    assert (heads.step, state.capacity(1).feasible_counts, state.total_asked(PruneOptions(ratio=0.5))) == (
        3,
        (0, 3, 6, 9),
        6,
    )
    assert replace(state, quota=Quota(6, 6)).fill_quota().removed == (0, 1, 2, 3, 9, 11)
    # The heads, of two channels each, may become any number; the 8 units have to be a multiple of 4.
    assert state.capacity(4).feasible_counts == (0, 6)
    only = replace(heads, layer_units={"b": heads.layer_units["b"][8:]}, block_ids=(0,) * 4, sets=heads.sets[8:])
    assert replace(state, group=only, scores=np.arange(4.0), existing=np.ones(4, bool)).capacity(4).feasible_counts == (
        0,
        2,
    )


def test_names_win_over_patterns() -> None:
    plan = start_plan(GROUPS, WIDTHS, SCORES, PruneOptions(ratio={"*": 0.25, "b": 0.5}))
    assert [state.ratio for state in plan.states] == [0.25, 0.5, 0.25]


def test_layers_that_are_pruned_together_have_one_ratio() -> None:
    with pytest.raises(InputError, match=r"ratio: a, b go together, but are asked for \[0.25, 0.5\] by 'a' and 'b'"):
        start_plan((TIED,), WIDTHS, SCORES, PruneOptions(ratio={"a": 0.5, "b": 0.25}))


def test_the_most_specific_pattern_decides_and_the_plan_says_so() -> None:
    options = PruneOptions(ratio={"[abc]": 0.25, "a": 0.5}, max_ratio={"*": 0.3})
    plan = start_plan((TIED, GROUPS[2]), WIDTHS, SCORES, options)
    assert [(state.ratio, state.max_ratio) for state in plan.states] == [(0.5, 0.3), (0.25, 0.3)]
    note = "ratio: 'a' (0.5) decides for a, b, which go together, not '[abc]'"
    assert [state.notes for state in plan.states] == [(note,), ()]
    kept = start_plan((TIED,), WIDTHS, SCORES, PruneOptions(ratio={"[abc]": 0.25, "a": 0.5}, protect=("a",)))
    assert kept.states[0].notes == ()


LIMITED: list[tuple[dict[str, Any], list[int], list[str | None]]] = [
    ({"ratio": 0.5, "max_ratio": 0.4}, [1, 2, 4], ["0.4", "0.4", "0.4"]),
    ({"ratio": 0.5, "max_ratio": {"[ab]": 0.3, "c": 0.9}}, [1, 0, 5], ["0.3", "0.3", None]),
    ({"ratio": 0.5, "max_ratio": {"c": 0.1}}, [2, 4, 1], [None, None, "0.1"]),
    ({"target_params": 0.5, "max_ratio": {"a": 0.25}}, [1, 2, 7], ["0.25", None, None]),
    ({"target_params": 0.5, "ranking": "global", "max_ratio": {"c": 0.3}}, [3, 4, 3], [None, None, "0.3"]),
    ({"target_params": 0.05}, [3, 4, 9], [None, None, None]),
    ({"target_params": 0.05, "ranking": "global", "max_ratio": {"a": 0.5}}, [2, 4, 9], ["0.5", None, None]),
    ({"ratio": 0.95, "ranking": "global", "max_ratio": 0.5}, [2, 2, 5], ["0.5"] * 3),
]


@pytest.mark.parametrize(("given", "counts", "limits"), LIMITED)
def test_no_layer_loses_more_than_max_ratio(given: dict[str, Any], counts: list[int], limits: list[str | None]) -> None:
    options = PruneOptions(**given)
    states = planned(options).states
    assert [len(state.removed) for state in states] == counts
    said = [state.explain(options, state.total_asked(options)) for state in states]
    assert said == [limit and f"max_ratio {limit} allows no more" for limit in limits]


def test_a_ranking_over_all_layers_leaves_a_tenth_also_for_a_target_out_of_reach() -> None:
    for options, count in (
        (PruneOptions(target_macs=0.01), 39),
        (PruneOptions(target_macs=0.01, ranking="global"), 36),
    ):
        plan = start_plan((group("a", 40, 0),), {"a": 40}, {"a": np.arange(40.0)}, options)
        quotas = plan_quotas(plan, options, Fraction(1), lambda _, removed: 1 - len(set(removed)) / 40)
        assert quotas == {0: Quota(count, count)}
    (state,) = plan.with_quotas(quotas).filling_quotas(plan.open_groups).states
    assert state.explain(options, count) == "max_ratio 0.9 allows no more"


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8, 0.99])
def test_a_raw_ranking_removes_the_lowest_scores_of_all_layers_but_the_last_unit_of_each(ratio: float) -> None:
    # As network slimming has it: one threshold for all scores.
    options = PruneOptions(ratio=ratio, ranking="global", normalise="none")
    rng = np.random.default_rng(2)
    groups, widths = (group("a", 10, 0), group("b", 30, 10)), {"a": 10, "b": 30}
    scores = {"a": rng.uniform(0, 0.2, 10), "b": rng.uniform(0, 1, 30)}  # a is the weaker layer
    plan = start_plan(groups, widths, scores, options)
    states = plan.with_quotas(plan_quotas(plan, options, Fraction(1), share_of_units)).filling_quotas([0, 1]).states  # type: ignore[list-item]
    spared = {("a", int(scores["a"].argmax())), ("b", int(scores["b"].argmax()))}
    everything = [(score, name, unit) for name in "ab" for unit, score in enumerate(scores[name])]
    weakest = [(name, unit) for _, name, unit in sorted(everything) if (name, unit) not in spared]
    removed = {(state.group.layers[0], unit) for state in states for unit in state.removed}
    assert removed == set(weakest[: int(round(ratio * 40, 9))])
    assert min(len(state.kept) for state in states) == 1 if ratio >= 0.5 else len(states[0].kept) > 1


def test_a_raw_ranking_keeps_to_a_max_ratio_that_is_given() -> None:
    options = PruneOptions(ratio=0.5, ranking="global", normalise="none", max_ratio={"a": 0.5})
    low = {"a": np.zeros(4), "b": np.ones(6), "c": np.full(10, 2.0)}
    plan = start_plan(GROUPS, WIDTHS, low, options)
    plan = plan.with_quotas(plan_quotas(plan, options, Fraction(1), share_of_units)).filling_quotas(plan.open_groups)
    assert [len(state.removed) for state in plan.states] == [2, 4, 4]
    assert plan.states[0].explain(options, 2) == "max_ratio 0.5 allows no more"


def test_floor_removed_keeps_the_unit_that_a_ratio_cuts_in_two() -> None:
    for ratio, usual, fewer in ((0.5, [2, 4, 5], [2, 2, 5]), (0.35, [2, 4, 4], [1, 2, 3])):
        for rounding, counts in (("floor_kept", usual), ("floor_removed", fewer)):
            options = PruneOptions(ratio=ratio, rounding=rounding)  # type: ignore[arg-type]
            states = planned(options).states
            assert [len(state.removed) for state in states] == counts  # b loses the same of each of its two blocks
            assert [state.total_asked(options) for state in states] == counts


def test_a_limit_that_asks_nothing_is_not_said() -> None:
    options = PruneOptions(ratio=0.5, max_ratio=0.5)
    (state,) = planned(options, groups=(GROUPS[2],)).states
    assert (len(state.removed), state.explain(options, 5)) == (5, None)
    one = PruneOptions(ratio=0.5, max_ratio=0.9)
    (state,) = start_plan((group("a", 1, 0),), {"a": 1}, {"a": np.zeros(1)}, one).states
    assert state.explain(one, 0) == "ratio 0.5 removes none of 1 units"
