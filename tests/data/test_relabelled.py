"""Labels that are replaced: which, by what, and that everything else stays."""

from typing import Any, cast

import torch
from torch.utils.data import Subset

from prune_fe.data.batches import make_loader
from prune_fe.data.datasets import PixelBatch
from prune_fe.data.digits import digits
from prune_fe.data.labels import class_names, image_labels, image_names
from prune_fe.data.relabelled import Relabelled, corrupt_labels

TRAIN: Any = digits(8).train


def test_the_share_of_the_labels_is_replaced_by_random_ones_of_all_classes():
    true = image_labels(TRAIN)
    for share in (0.0, 0.2, 0.8, 1.0):
        labels = image_labels(corrupt_labels(TRAIN, share, seed=3))
        changed = [new for new, old in zip(labels, true, strict=True) if new != old]
        # A tenth of the random labels are the true ones.
        assert abs(len(changed) / len(true) - 0.9 * share) < 0.03
        assert set(changed) == (set(range(10)) if share else set())
    assert image_labels(TRAIN) == true


def test_a_smaller_share_replaces_some_of_the_same_labels_by_the_same_ones():
    true = image_labels(TRAIN)
    few, many = (image_labels(corrupt_labels(TRAIN, share, seed=3)) for share in (0.2, 0.6))
    assert all(one in (old, other) for one, other, old in zip(few, many, true, strict=True))
    assert few == image_labels(corrupt_labels(TRAIN, 0.2, seed=3))
    assert few != image_labels(corrupt_labels(TRAIN, 0.2, seed=4))


def test_images_names_and_classes_stay_and_batches_have_the_new_labels():
    noisy = corrupt_labels(TRAIN, 0.5, seed=0)
    assert len(noisy) == len(TRAIN)
    assert class_names(noisy) == class_names(TRAIN)
    assert image_names(noisy, [0, 5]) == image_names(TRAIN, [0, 5])
    batch = noisy.__getitems__([4, 0])
    assert isinstance(batch, PixelBatch)
    ((images, labels),) = make_loader(Subset(noisy, [4, 0]), 2)
    assert labels.tolist() == [noisy.targets[4], noisy.targets[0]]
    assert torch.equal(images, torch.stack([TRAIN[4][0], TRAIN[0][0]]))


def test_a_data_set_that_reads_single_images_works_too():
    pairs: Any = [(torch.full((1, 2, 2), float(number)), 0) for number in range(3)]
    data = Relabelled(pairs, [2, 1, 0])
    assert data[0][1] == 2
    rows: Any = data.__getitems__([2, 0])
    assert [(float(image.max()), label) for image, label in rows] == [(2.0, 0), (0.0, 2)]
    assert len(corrupt_labels(cast(Any, [(None, 3), (None, 0)]), 1.0, seed=0)) == 2
