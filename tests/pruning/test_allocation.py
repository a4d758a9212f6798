"""A target is met exactly, at a predicted loss that is hardly above the smallest possible one."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prune_fe.errors import InputError
from prune_fe.models.small_vgg import SmallVGG
from prune_fe.pruning.allocation import TOLERANCE, Allocation, Array, Budget, Choices, choose_counts
from prune_fe.pruning.budget import Capacity, counts_for_target
from prune_fe.pruning.groups import Group, GroupId
from prune_fe.pruning.loss_curves import CurvePoint, LossCurve, Sensitivity, describe
from prune_fe.pruning.options import PruneOptions
from prune_fe.pruning.plan import Quota, start_plan
from prune_fe.pruning.prune import prune
from prune_fe.scoring.score import score
from prune_fe.scoring.scores import Scores
from prune_fe.tracing.dependency_graph import SetId

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
IMAGE = torch.zeros(1, 3, 16, 16)


def chain(widths: Sequence[int], seed: int) -> tuple[Budget, list[Capacity]]:
    """Groups of layers in a row, each of which costs its outputs times its inputs, with random rising curves."""
    generator = np.random.default_rng(seed)
    ends = np.cumsum([0, *widths])
    groups = []
    for start, width in zip(ends, widths, strict=False):
        # Measured at five ratios, and sometimes not convex.
        losses = np.cumsum([0, *generator.exponential(size=5) * generator.choice([0, 0.1, 1, 3], size=5)])
        increases = np.interp(np.arange(width), np.linspace(0, width - 1, 6), losses)
        groups.append(Choices(tuple(range(width)), increases, [SetId(int(start + unit)) for unit in range(width)]))

    def count_channels(sets: Sequence[SetId]) -> Array:
        return np.histogram(sets, bins=ends)[0].astype(float)

    def shares_without(channels: Array) -> Array:
        kept = np.concatenate([np.ones((*channels.shape[:-1], 1)) * 3, np.array(widths) - channels], axis=-1)
        whole = [3, *widths]
        costs = (kept[..., 1:] * kept[..., :-1]).sum(axis=-1)
        return costs / sum(a * b for a, b in itertools.pairwise(whole))

    return Budget(groups, count_channels, shares_without), [Capacity(w, tuple(range(w))) for w in widths]


def test_the_predicted_loss_is_mostly_the_smallest_of_all_choices() -> None:
    generator = np.random.default_rng(3)
    ratios = []
    for seed in range(40):
        widths, target = generator.integers(20, 36, 3).tolist(), float(generator.uniform(0.15, 0.9))
        budget, capacities = chain(widths, seed)
        chosen = choose_counts(budget, capacities, target)
        assert budget.share_left(chosen) == pytest.approx(target, rel=0.01)
        every = np.array(list(itertools.product(*(group.counts for group in budget.groups))))
        increases = sum(group.increases[every[:, number]] for number, group in enumerate(budget.groups))
        is_near = abs(budget.shares_without(every.astype(float)) - target) <= TOLERANCE * target
        ratios.append((budget.increase(chosen) + 0.01) / (increases[is_near].min() + 0.01))
    assert np.quantile(ratios, 0.8) < 1.01
    assert np.quantile(ratios, 0.9) < 1.5


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("target", [0.2, 0.5, 0.8])
def test_wide_layers_meet_the_target_with_less_loss_than_the_same_share_of_each(seed: int, target: float) -> None:
    budget, capacities = chain([24, 48, 96, 40, 64], seed)
    chosen = choose_counts(budget, capacities, target)
    uniform = counts_for_target(capacities, budget.share_left, target, ranked=False)
    assert budget.share_left(chosen) == pytest.approx(target, rel=TOLERANCE)
    assert budget.increase(chosen) < 0.8 * budget.increase(uniform)


def test_flat_curves_and_targets_out_of_reach() -> None:
    budget, capacities = chain([6, 6], 0)
    flat = replace(budget, groups=[replace(group, increases=np.zeros(6)) for group in budget.groups])
    assert flat.share_left(choose_counts(flat, capacities, 0.5)) == pytest.approx(0.5, abs=0.05)
    assert choose_counts(budget, capacities, 0.001) == [5, 5]
    assert choose_counts(budget, capacities, 1.0) == [0, 0]
    assert choose_counts(replace(budget, groups=[]), [], 0.5) == []


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return SmallVGG(classes=4, stages=((20, 20), (30,))).eval()


def measured(net: nn.Module, scores: Scores, slopes: dict[str, float], ratios: Sequence[float] = RATIOS) -> Sensitivity:
    """Curves that rise in proportion to the share that is removed."""
    curves = []
    for layer, keep in scores.keep.items():
        points = [CurvePoint(r, int(r * len(keep)), 0.5, 1 + r * slopes[layer], 1.0, 1.0) for r in ratios]
        curves.append(LossCurve((layer,), len(keep), tuple(points)))
    return Sensitivity(tuple(curves), 0.9, 1.0, 10, describe(net, scores) | {"reduction": "mean"})


def lost(pruned: Any) -> dict[str, int]:
    return {step.layers[0]: step.count for step in pruned.steps}


SLOPES = {"features.0": 0.01, "features.3": 5.0, "features.7": 0.01}


def test_prune_spares_the_sensitive_layer_and_meets_the_target(net: nn.Module) -> None:
    scores = score(net, scorer="random", example=IMAGE)
    found = measured(net, scores, SLOPES)
    pruned = prune(net, scores, "auto", IMAGE, target_macs=0.5, sensitivity=found)
    assert pruned.macs == pytest.approx(0.5, abs=0.005)
    assert lost(pruned)["features.3"] <= 1
    assert lost(pruned)["features.0"] > 5
    (note,) = pruned.notes
    assert "is predicted on the images of the sensitivity (1.0000 of the whole network), if the increases" in note
    other = prune(
        net, scores, "auto", IMAGE, target_macs=0.5, sensitivity=measured(net, scores, SLOPES | {"features.3": 0})
    )
    assert lost(other)["features.3"] > 5


def test_the_limit_of_a_layer_its_width_and_its_curve_are_kept(net: nn.Module) -> None:
    scores = score(net, scorer="random", example=IMAGE)
    found = measured(net, scores, SLOPES)
    least = prune(net, scores, "auto", IMAGE, target_macs=0.01, sensitivity=found)
    assert lost(least) == {"features.0": 18, "features.3": 18, "features.7": 27}
    assert {step.left for step in least.steps} == {"max_ratio 0.9 allows no more"}
    assert "% of the multiply-adds are left, not 1.0%" in least.notes[0]
    half = prune(
        net, scores, "auto", IMAGE, target_macs=0.3, sensitivity=found, max_ratio={"features.0": 0.5}, round_to=4
    )
    assert 0 < lost(half)["features.0"] <= 10
    assert {(step.units - step.count) % 4 for step in half.steps if step.count} == {0}
    short = prune(net, scores, "auto", IMAGE, target_macs=0.01, sensitivity=measured(net, scores, SLOPES, RATIOS[:3]))
    assert lost(short) == {"features.0": 10, "features.3": 10, "features.7": 15}
    assert "features.0, features.3, features.7 lost as many units as were measured" in short.notes[-1]


def test_rounds_come_to_the_same_target(net: nn.Module) -> None:
    scores = score(net, scorer="random", example=IMAGE)
    found, seen = measured(net, scores, SLOPES), list[float]()
    pruned = prune(
        net,
        scores,
        "auto",
        IMAGE,
        target_params=0.5,
        sensitivity=found,
        rounds=2,
        after=lambda _, steps: seen.append(1),
    )
    assert pruned.parameters == pytest.approx(0.5, abs=0.01)
    assert len(seen) == 2
    protected = prune(net, scores, "auto", IMAGE, target_params=0.7, sensitivity=found, protect="features.7")
    assert (lost(protected)["features.7"], protected.parameters) == (0, pytest.approx(0.7, abs=0.01))


def test_auto_without_a_target_or_curves_is_refused(net: nn.Module) -> None:
    scores = score(net, scorer="random", example=IMAGE)
    with pytest.raises(InputError, match="ratio: auto needs a target to spread"):
        prune(net, scores, "auto", IMAGE)
    with pytest.raises(InputError, match="ratio: auto needs sensitivity="):
        prune(net, scores, "auto", IMAGE, target_macs=0.5)


def test_parts_of_other_sizes_lose_the_same_share() -> None:
    sizes = (4, 8)
    units = Group({"a": tuple((n,) for n in range(12))}, (0,) * 4 + (1,) * 8, tuple(map(SetId, range(12))))
    options, seen = PruneOptions(ratio="auto", target_macs=0.3), list[Array]()
    plan = start_plan((units,), {"a": 12}, {"a": np.arange(12.0)}, options)

    class Cost:
        def count_channels(self, sets: Sequence[SetId]) -> Array:
            seen.append(np.histogram(sets, bins=[0, 4, 12])[0].astype(float))
            return seen[-1]

        def shares_without(self, _: object, channels: Array) -> Array:
            return 1 - channels.sum(axis=-1) / 12

    curve = LossCurve(("a",), 12, (CurvePoint(0.75, 9, 0.5, 2.0, 0.25, 0.25),))
    allocation = Allocation({GroupId(0): curve}, 1.0, Cost())  # type: ignore[arg-type]
    assert allocation.plan_quotas(plan, options, Fraction(1)) == {0: Quota(9, 9)}
    assert all(removed[0] * sizes[1] == removed[1] * sizes[0] for removed in seen)
