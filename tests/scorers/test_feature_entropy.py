"""H, ε and H/ε against the paper's formulas, written out slowly."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prune_fe.errors import InputError
from prune_fe.layers import Layer
from prune_fe.scorers.base import Sums
from prune_fe.scorers.feature_entropy import FeatureEntropy, Rank, entropy_and_rate
from prune_fe.scoring import add
from prune_fe.topology import birth_times


def sums_of(births: np.ndarray, labels: np.ndarray, classes: int, top: int = 60) -> Sums:
    """births: (images, units)."""
    counts = torch.zeros(classes, births.shape[1], top, dtype=torch.int64)
    for image, label in enumerate(labels):
        for unit, birth in enumerate(births[image]):
            counts[label, unit, birth] += 1
    return {"births": counts.to_sparse()}


def by_the_paper(births: list[int], p: float, normalise: str) -> tuple[float, float]:
    """Equations 9 to 12 for one unit and one class; births: one number an image, 0 = none."""
    exists = [birth for birth in births if birth > 0]
    rate = len(exists) / len(births)
    if rate < p:
        return (1 - rate) * math.log(len(births)), rate
    divisor = len(exists) if normalise == "births" else len(births)
    shares = [count / divisor for count in Counter(exists).values()]
    return -sum(share * math.log(share) for share in shares), rate


@given(st.data(), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from(["births", "samples"]))
@settings(max_examples=300, deadline=None)
def test_entropy_and_rate_are_the_papers(data: st.DataObject, p: float, normalise: str) -> None:
    images, units, classes = (data.draw(st.integers(1, top)) for top in (20, 3, 3))
    births = np.array(data.draw(st.lists(st.lists(st.integers(0, 6), min_size=units, max_size=units),
                                         min_size=images * classes, max_size=images * classes)))  # fmt: skip
    labels = np.arange(images * classes) % classes
    entropy, rate = entropy_and_rate(sums_of(births, labels, classes)["births"], p=p, normalise=normalise)  # type: ignore[arg-type]
    for c in range(classes):
        for unit in range(units):
            expected = by_the_paper(births[labels == c, unit].tolist(), p, normalise)
            assert entropy[c, unit].item() == pytest.approx(expected[0], abs=1e-12)
            assert rate[c, unit].item() == expected[1]
            if normalise == "births":
                assert 0 <= entropy[c, unit] <= math.log(images) + 1e-12


def test_a_case_by_hand() -> None:
    # ten images of one class: births 5 5 5 5 7 7 and four without: ε = 0.6, H of (4/6, 2/6)
    births = np.array([[5], [5], [5], [5], [7], [7], [0], [0], [0], [0]])
    score = FeatureEntropy().score_layer(sums_of(births, np.zeros(10, int), 1))
    h = -(4 / 6) * math.log(4 / 6) - (2 / 6) * math.log(2 / 6)
    assert score.raw["feature_entropy_nats"].item() == pytest.approx(h)
    assert score.raw["selective_rate"].item() == 0.6
    assert score.keep.item() == pytest.approx(-h / 0.6)


def test_a_unit_without_births_goes_first_and_more_such_classes_are_worse() -> None:
    # units: steady in both classes; no birth in class 1; no birth at all; in disorder but alive
    births = np.array([[3, 3, 0, 1], [3, 3, 0, 2], [3, 3, 0, 3], [4, 0, 0, 4], [4, 0, 0, 5], [4, 0, 0, 6]])
    score = FeatureEntropy().score_layer(sums_of(births, np.array([0, 0, 0, 1, 1, 1]), 2))
    assert score.keep.argsort().tolist() == [2, 1, 3, 0]
    assert score.raw["entropy_per_rate_nats"][:, 2].isinf().all()
    assert score.keep.isfinite().all()


def test_one_infinite_class_does_not_hide_the_finite_ones() -> None:
    births = np.array([[3, 3], [3, 4], [3, 5], [0, 0], [0, 0], [0, 0]])
    keep = FeatureEntropy().score_layer(sums_of(births, np.array([0, 0, 0, 1, 1, 1]), 2)).keep
    assert keep[0] > keep[1]


def test_the_worst_finite_unit_is_better_than_one_infinite_class() -> None:
    # N = 40: one birth in each class makes the largest finite H/ε there is, (N − 1) ln N
    births = np.zeros((80, 2), int)
    births[[0, 40], 0] = 5  # alive in both classes, barely
    births[:40, 1] = 5  # perfect in class 0, dead in class 1
    keep = FeatureEntropy().score_layer(sums_of(births, np.arange(80) // 40, 2)).keep
    assert keep[0] == pytest.approx(-39 * math.log(40))
    assert keep[0] > keep[1]


def test_classes_without_images_do_not_count() -> None:
    births, labels = np.array([[3], [4], [3]]), np.array([2, 2, 2])
    score = FeatureEntropy().score_layer(sums_of(births, labels, 5))
    alone = FeatureEntropy().score_layer(sums_of(births, np.zeros(3, int), 1))
    assert score.keep.equal(alone.keep)
    assert score.raw["selective_rate"].shape == (1, 1)


@pytest.mark.parametrize("rank", ["elements", "edges"])
def test_measure_counts_the_birth_of_every_unit_and_image(rank: Rank) -> None:
    maps, labels = torch.rand(12, 5, 8, 8).relu(), torch.arange(12) % 3
    counts = FeatureEntropy(rank=rank).measure(maps, labels, 4)["births"].to_dense()
    births = birth_times(maps, rank=rank).numpy()
    for c in range(4):
        for unit in range(5):
            assert counts[c, unit].nonzero().flatten().tolist() == sorted(set(births[labels == c, unit]))
            assert counts[c, unit].sum() == (labels == c).sum()


def test_scaling_the_map_by_a_power_of_two_changes_no_bit() -> None:
    maps, labels, scorer = torch.randn(20, 6, 9, 9).relu(), torch.arange(20) % 2, FeatureEntropy()
    plain = scorer.score_layer(scorer.measure(maps, labels, 2))
    for factor in (0.5, 2.0, 1024.0):
        scaled = scorer.score_layer(scorer.measure(maps * factor, labels, 2))
        assert torch.equal(plain.keep, scaled.keep)


def test_sums_of_parts_are_the_sum_of_the_whole_to_the_bit() -> None:
    maps, labels, scorer = torch.randn(20, 6, 9, 9), torch.arange(20) % 2, FeatureEntropy()
    whole = scorer.measure(maps, labels, 2)
    parts = add(scorer.measure(maps[13:], labels[13:], 2), scorer.measure(maps[:13], labels[:13], 2))
    assert torch.equal(whole["births"].to_dense(), parts["births"].to_dense())
    assert torch.equal(scorer.score_layer(whole).keep, scorer.score_layer(parts).keep)


def test_maps_that_can_have_no_hole_are_refused_before_any_work() -> None:
    with pytest.raises(InputError, match="layer 'features.40': maps are 2×2, a hole needs at least 4×4; use a larger"):
        FeatureEntropy().check([Layer("features.40", 512, (2, 2))])
    with pytest.raises(InputError, match="layer 'stem': maps are 8×6, a map must be square"):
        FeatureEntropy().check([Layer("stem", 4, (8, 6))])


def test_wrong_settings_say_what_is_allowed() -> None:
    with pytest.raises(InputError, match="rank is 'vertices', allowed are elements, edges"):
        FeatureEntropy(rank="vertices")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="normalise is 'none', allowed are births, samples"):
        FeatureEntropy(normalise="none")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="p is 2, allowed are numbers from 0 to 1"):
        FeatureEntropy(p=2)
