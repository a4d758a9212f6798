"""Summaries of ablation curves, and results of several classes that are joined."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import prune_fe
from prune_fe.ablation.curves import Ablation, Result, UnitAblation, join
from prune_fe.errors import InputError


def made_up(kind: type[Result], removed: list[int], classes: int = 3, **fields: Any) -> Result:
    """A result with random counts, of class 0 and more."""
    generator, shape = np.random.default_rng(classes), (len(removed), classes)
    names = tuple(map(str, range(classes)))
    hits = generator.integers(0, 5, shape)
    called, loss = hits + generator.integers(0, 5, shape), generator.random(shape)
    images = np.full(classes, 5)
    return kind(("c",), np.array(removed), names, images, 20, hits, called, loss, outputs=4, **fields)


def columns(whole: Result, chosen: list[int], **fields: Any) -> Result:
    """The result of some of the classes."""
    names = tuple(whole.classes[number] for number in chosen)
    hits, called, loss = (array[:, chosen] for array in (whole.hits, whole.called, whole.loss))
    images = whole.images[chosen]
    halves = tuple(columns(half, chosen, **fields) for half in whole.halves)
    counts = images, 20, hits, called, loss, 4
    return type(whole)(whole.layers, whole.removed, names, *counts, halves=halves, **fields)


def test_a_curve_is_summed_up() -> None:
    hits = np.array([[8, 1], [10, 1], [4, 0], [2, 0], [0, 0]])
    called = np.array([[10, 2], [10, 2], [4, 0], [2, 0], [0, 0]])
    found = Ablation(("c",), np.arange(5), ("a", "b"), np.array([10, 2]), 12, hits, called, np.zeros((5, 2)), outputs=4)
    np.testing.assert_allclose(found.accuracy[:, 0], [0.8, 1, 0.4, 0.2, 0])
    np.testing.assert_allclose(found.balanced_accuracy[:, 0], [0.4, 1, 0.7, 0.6, 0.5])
    np.testing.assert_allclose(found.area, [(0.4 + 1 + 0.4 + 0.2) / 4, (0.5 + 0.25) / 4])
    assert [part.tolist() for part in found.peak] == [[1.0, 0.5], [1, 0]]
    assert [part.tolist() for part in found.peak_balanced] == [[1.0, 0.7], [1, 0]]
    assert found.units_until_chance.tolist() == [3, 2]


def test_the_peak_is_chosen_on_one_half_and_reported_on_the_other() -> None:
    def half(hits: list[int]) -> Ablation:
        values = np.array(hits)[:, None]
        return Ablation(("c",), np.arange(3), ("a",), np.array([4]), 8, values, values, np.zeros((3, 1)), outputs=2)

    first, second = half([1, 4, 0]), half([2, 0, 4])
    whole = half([3, 4, 4])
    found = Ablation(**(vars(whole) | {"halves": (first, second)}))
    # Best on the first half is step 1, where the second has no hit; best on the second is step 2, likewise.
    np.testing.assert_allclose(found.peak_held_out, [0.5])


@pytest.mark.parametrize("kind", [Ablation, UnitAblation])
def test_joined_classes_are_the_whole(kind: type[Result]) -> None:
    halves = tuple(made_up(kind, [0, 1, 1]) for _ in range(2))
    whole = made_up(kind, [0, 1, 1], halves=halves)
    joined = join([columns(whole, [0]), columns(whole, [1, 2])])
    assert type(joined) is kind
    for one, other in ((joined, whole), *zip(joined.halves, whole.halves, strict=True)):
        assert one.classes == other.classes
        for name in ("images", "hits", "called", "loss"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    with pytest.raises(InputError, match="different numbers of removed units"):
        join([whole, made_up(kind, [0, 1])])


def test_a_joined_curve_has_an_order_if_all_classes_have_it() -> None:
    whole = made_up(Ablation, [0, 1, 2])
    one, same, other = (columns(whole, [n], units=units) for n, units in enumerate([(0, 1), (0, 1), (1, 0)]))
    assert join([one, same]).units == (0, 1)
    assert join([one, other]).units == ()


def test_single_units_have_no_curve() -> None:
    """The number of removed units is 0, 1, 1, 1, …, over which nothing can be integrated."""
    single = made_up(UnitAblation, [0, 1, 1, 1])
    np.testing.assert_array_equal(single.loss_increase, single.loss[1:] - single.loss[0])
    assert single.loss_increase.shape == (3, 3)
    for name in ("area", "peak", "peak_balanced", "peak_held_out", "units_until_chance"):
        assert hasattr(Ablation, name)
        assert not hasattr(single, name)
    assert prune_fe.UnitAblation is UnitAblation


def test_a_plot_shows_the_means_of_the_classes_with_images() -> None:
    found = made_up(Ablation, [0, 2, 4], classes=2)
    found = dataclasses.replace(found, images=np.array([5, 0]), hits=found.hits * [1, 0])
    rows = [row for each in found.plot().to_dict()["datasets"].values() for row in each]
    accuracy = {row["removed"]: row["value"] for row in rows if row["quantity"] == "accuracy"}
    assert accuracy == dict(zip([0, 2, 4], found.accuracy[:, 0], strict=True))
