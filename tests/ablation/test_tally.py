"""What a network predicts under each mask, counted part by part."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from prune_fe.ablation.curves import Ablation
from prune_fe.ablation.tally import Tally, require_images
from prune_fe.errors import DataError


def test_parts_add_up_to_hits_calls_and_losses_of_each_mask_half_and_class() -> None:
    labels, halves = torch.tensor([0, 1, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 0])
    logits = torch.randn(2, 5, 3)
    tally = Tally(2, ("a", "b", "c"), [1])
    for masks in (slice(0, 1), slice(1, 2)):
        for images in (slice(0, 2), slice(2, 5)):
            part = logits[masks, images].flatten(0, 1)
            tally.add(masks, part, labels[images], halves[images], range(5)[images])
    found = tally.result(Ablation, layers=("x",), removed=torch.tensor([0, 1]).numpy())
    assert (found.classes, found.outputs, found.images.tolist(), found.all_images) == (("b",), 3, [3], 5)
    assert [half.images.tolist() for half in found.halves] == [[2], [1]]
    predicted, of_class = logits.argmax(2), labels == 1
    for mask in (0, 1):
        assert found.hits[mask, 0] == (predicted[mask][of_class] == 1).sum()
        assert found.called[mask, 0] == (predicted[mask] == 1).sum()
        loss = cross_entropy(logits[mask][of_class].double(), labels[of_class])
        assert found.loss[mask, 0] == pytest.approx(loss.item())


def test_a_class_without_images_is_named() -> None:
    require_images([0, 1], {0, 1}, ("cat", "dog"))
    with pytest.raises(DataError, match="class 'dog': there are no images of it to ablate on"):
        require_images([0, 1], {0}, ("cat", "dog"))
    with pytest.raises(DataError, match="class 7: there are no images"):
        require_images([7], {0}, ())
