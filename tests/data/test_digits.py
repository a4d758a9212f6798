"""The digits: their size, their values and their splits."""

from typing import Any

import torch

from prune_fe.data.digits import digits
from tests.data.pictures import images_of


def test_digits_have_the_size_that_is_asked_for_and_values_around_zero():
    splits = digits(16)
    image, label = splits.test[0]
    assert (image.shape, image.dtype, splits.channels, splits.size) == ((1, 16, 16), torch.float32, 1, 16)
    assert label in range(10)
    assert splits.classes == tuple("0123456789")
    everything = images_of(splits.train)
    assert -1 <= everything.min() < -0.9
    assert 0.9 < everything.max() <= 1


def test_digits_are_all_there_and_none_is_in_two_splits():
    splits: Any = digits(8)
    train, validation = set(splits.train.indices), set(splits.validation.indices)
    assert not train & validation
    assert len(train) + len(validation) + len(splits.test) == 1797
    assert splits.train.dataset is splits.validation.dataset is not splits.test


def test_the_test_images_do_not_depend_on_the_seed_and_the_validation_images_do():
    splits: list[Any] = [digits(8, seed=seed) for seed in (1, 2, 1)]
    one, two, again = splits
    assert torch.equal(one.test.pixels, two.test.pixels)
    assert one.validation.indices == again.validation.indices != two.validation.indices
