"""Splits: stratified, disjoint, complete."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Subset

from prune_fe.data.splits import (
    Splits,
    draw_of_each_class,
    hold_out,
    hold_out_of_test,
    split_by_class,
    with_all_training_images,
)
from prune_fe.errors import DataError
from tests.data.pictures import Labelled


@settings(max_examples=500, deadline=None)
@given(
    targets=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_split_is_stratified_disjoint_and_complete(targets, share, seed):
    kept, held_out = split_by_class(targets, share, seed)
    assert sorted(kept + held_out) == list(range(len(targets)))
    assert (kept, held_out) == split_by_class(targets, share, seed)
    held = Counter(targets[i] for i in held_out)
    for label, count in Counter(targets).items():
        assert held[label] == min(max(round(share * count), 1), count - 1)


TARGETS = [0] * 9 + [1] * 4 + [2] * 12


def limited(number: int | None, seed: int = 3, share: float = 0.25) -> Splits:
    data = Labelled(TARGETS)
    return hold_out(Splits(data, data, data, ("ant", "bee", "cow"), 1, 2), share, seed, number)


@pytest.mark.parametrize(("number", "counts"), [(2, [2, 2, 2]), (6, [6, 4, 6]), (10, [9, 4, 10]), (99, [9, 4, 12])])
def test_at_most_the_given_number_of_each_class_is_drawn(number: int, counts: list[int]) -> None:
    drawn = draw_of_each_class(TARGETS, ("ant", "bee", "cow"), number, 0)
    assert drawn == sorted(set(drawn))
    assert [Counter(TARGETS[i] for i in drawn)[label] for label in range(3)] == counts


def test_which_images_of_a_class_are_drawn_does_not_depend_on_the_other_classes() -> None:
    both = draw_of_each_class(TARGETS, ("ant", "bee", "cow"), 5, 1)
    alone = draw_of_each_class([0] * 12, ("cow",), 5, 1)
    assert [i - 13 for i in both if TARGETS[i] == 2] == alone
    assert alone != draw_of_each_class([0] * 12, ("cow",), 5, 2)
    assert alone != draw_of_each_class([0] * 12, ("ant",), 5, 1)


def test_a_larger_number_includes_the_images_of_a_smaller_one() -> None:
    few, more = (set(draw_of_each_class(TARGETS, "abc", number, 1)) for number in (3, 5))
    assert few < more


def test_validation_images_are_held_out_of_those_that_were_drawn() -> None:
    splits = limited(8)
    train, validation = splits.train, splits.validation
    assert isinstance(train, Subset)
    assert isinstance(validation, Subset)
    assert sorted([*train.indices, *validation.indices]) == draw_of_each_class(TARGETS, ("ant", "bee", "cow"), 8, 3)
    assert Counter(TARGETS[i] for i in validation.indices) == {0: 2, 1: 1, 2: 2}
    assert len(splits.test) == len(TARGETS)  # type: ignore[arg-type]


def test_a_number_above_that_of_every_class_is_the_same_as_none() -> None:
    every, none = limited(99), limited(None)
    assert every.train.indices == none.train.indices  # type: ignore[attr-defined]
    assert every.validation.indices == none.validation.indices  # type: ignore[attr-defined]


def test_another_seed_draws_from_all_images_again() -> None:
    splits = limited(3, seed=1)
    again = hold_out(splits, 0.25, 2, 3)
    assert again.train.indices == limited(3, seed=2).train.indices  # type: ignore[attr-defined]
    assert again.train.indices != splits.train.indices  # type: ignore[attr-defined]


def test_what_is_saved_with_a_network_says_how_many_images_there_were() -> None:
    assert limited(5).about["images_per_class"] == 5
    assert "images_per_class" not in limited(None).about


def test_validation_images_may_come_from_the_test_images_and_all_training_images_are_trained_on() -> None:
    before = limited(None)
    splits = hold_out_of_test(before, 0.25)
    assert isinstance(splits.validation, Subset)
    assert isinstance(splits.test, Subset)
    assert sorted([*splits.validation.indices, *splits.test.indices]) == list(range(len(TARGETS)))
    assert Counter(TARGETS[i] for i in splits.validation.indices) == {0: 2, 1: 1, 2: 3}
    assert isinstance(splits.train, Subset)
    assert list(splits.train.indices) == list(range(len(TARGETS)))
    # Another seed draws other training images, and no other test images.
    again = with_all_training_images(splits, seed=5)
    assert isinstance(again.validation, Subset)
    assert again.validation.indices == splits.validation.indices


def test_a_class_with_one_test_image_gives_none_for_validation() -> None:
    data, test = Labelled(TARGETS), Labelled([0, 1, 2])
    with pytest.raises(DataError, match="no class has 2 test images"):
        hold_out_of_test(hold_out(Splits(data, data, test, ("a", "b", "c"), 1, 2), 0.25, 0), 0.25)
