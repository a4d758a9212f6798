"""Images that are kept until all have been read."""

import pytest
import torch
from torch import nn

from prune_fe.errors import InputError
from prune_fe.scorers.kept_images import keep_images, kept_images, logits_of, network_input, summed_loss
from prune_fe.scoring.sums import add_sums

IMAGES, LABELS = torch.randn(5, 2, 3, 3), torch.tensor([0, 1, 2, 1, 0])


def test_images_of_batches_are_kept_in_order_up_to_a_number() -> None:
    batch = IMAGES.clone()
    total = add_sums(keep_images(batch[:2], LABELS[:2], 5), keep_images(batch[2:], LABELS[2:], 5))
    batch.zero_()  # what is kept is a copy
    images, labels = kept_images(total)
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)
    with pytest.raises(InputError, match="each image leaves a row, at most 5 are kept"):
        add_sums(total, keep_images(IMAGES[:1], LABELS[:1], 5))


def test_images_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="the images hold NaN or infinite values"):
        keep_images(torch.full((1, 2, 3, 3), torch.nan), LABELS[:1], 5)


def test_an_input_that_is_no_tensor_is_refused() -> None:
    assert network_input(IMAGES, "own").at_input
    with pytest.raises(InputError, match="own keeps the images, which have to be one tensor; this network has other"):
        network_input({"x": IMAGES}, "own")


def test_the_loss_is_the_sum_of_the_cross_entropies() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(18, 3))
    logits = logits_of(net, IMAGES, LABELS, "own")
    expected = -logits.log_softmax(1)[torch.arange(5), LABELS].sum()
    torch.testing.assert_close(summed_loss(logits, LABELS, "own"), expected)
    with pytest.raises(InputError, match=r"own: the logits are \(5, 3\), the largest label is 3"):
        logits_of(net, IMAGES, LABELS + 1, "own")
    with pytest.raises(InputError, match=r"the model returns .*, own needs logits"):
        logits_of(nn.Conv2d(2, 3, 1), IMAGES, LABELS, "own")
    with pytest.raises(InputError, match="own: the network's cross-entropy is NaN or infinite"):
        summed_loss(logits * torch.nan, LABELS, "own")
