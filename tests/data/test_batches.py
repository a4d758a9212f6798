"""Batches: what is none is refused by name."""

import pytest
import torch

from prune_fe.data.batches import first_image, hash_batches, make_loader, validate_batches
from prune_fe.data.digits import digits
from prune_fe.errors import DataError, InputError
from tests.data.pictures import Labelled


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"workers": -1}])
def test_a_loader_needs_a_batch_and_no_negative_number_of_workers(wrong):
    with pytest.raises(InputError, match="(batch_size|workers): input should be greater than or equal to"):
        make_loader(Labelled([0]), **{"batch_size": 1} | wrong)


def test_no_images_at_all_is_said():
    with pytest.raises(DataError, match="no images: the data is empty"):
        first_image([])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (digits(8), "data is Splits: pass its .train, .validation or .test"),
        ([{"image": 1}], "data: batch 0 is a dict; it must be two tensors, images and labels"),
        ([(torch.zeros(2, 1, 8, 8), [0, 1])], r"data: batch 0 is a tuple \(Tensor, list\); it must be two tensors"),
        ([(torch.zeros(2, 1, 8, 8), torch.zeros(3, dtype=torch.int64))], "every image needs one whole number"),
        ([(torch.zeros(2, 1, 8, 8), torch.zeros(2))], "of torch.float32; every image needs one whole number"),
        (7, "data is a int; it must be a data set or batches"),
    ],
)
def test_what_is_no_batch_of_images_and_labels_is_refused(batches, message):
    with pytest.raises(InputError, match=message):
        list(validate_batches(batches))


def test_empty_batches_are_passed_over_and_labels_become_int64():
    good = (torch.zeros(2, 1, 8, 8), torch.ones(2, dtype=torch.int32))
    empty = (torch.zeros(0, 1, 8, 8), torch.ones(0, dtype=torch.int64))
    (batch,) = validate_batches([good, empty])
    assert batch[1].dtype == torch.int64


def test_the_hash_is_of_all_pixels_and_labels_whatever_the_size_of_the_batches():
    images, labels = torch.rand(6, 1, 4, 4), torch.arange(6)
    whole = hash_batches([(images, labels)])
    assert whole == hash_batches([(images[:4], labels[:4]), (images[4:], labels[4:])])
    other = images.clone()
    other[5, 0, 3, 3] += 1
    pairs = [(other, labels), (images, labels.flip(0)), (images.flip(0), labels), (images[:5], labels[:5])]
    different = [hash_batches([pair]) for pair in pairs]
    assert len({whole, *different}) == 5
    assert hash_batches([({"a": images, "b": other}, labels)]) != hash_batches([({"b": images, "a": other}, labels)])
