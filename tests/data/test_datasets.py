"""Images in memory, and rescaled ones."""

import pytest
import torch

from prune_fe.data.datasets import InMemory, Rescaled
from prune_fe.data.labels import class_names, image_labels, image_names
from prune_fe.data.transforms import Normalise
from tests.data.pictures import Labelled, images_of


def test_images_in_memory_are_normalised_as_they_are_read() -> None:
    pixels = torch.arange(2 * 3 * 4, dtype=torch.uint8).view(2, 3, 2, 2)
    images = InMemory(pixels, [1, 0], ["a", "b"], Normalise((0.5, 0.25, 0.0), (0.5, 1.0, 2.0)), ["x", "y"])
    image, label = images[0]
    mean, std = torch.tensor([0.5, 0.25, 0.0]).view(3, 1, 1), torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1)
    torch.testing.assert_close(image, (pixels[0] / 255 - mean) / std, rtol=0, atol=1e-6)
    assert (label, len(images), image_names(images, [1])) == (1, 2, ["y"])


@pytest.mark.parametrize("factors", [2.0, [2.0, 2.0, 2.0]])
def test_rescaled_images_keep_their_labels_and_names(factors: float | list[float]) -> None:
    labelled = Labelled([0, 1, 1], classes=("a", "b"))
    rescaled = Rescaled(labelled, factors)
    assert torch.equal(images_of(rescaled), 2 * images_of(labelled))
    assert (image_labels(rescaled), class_names(rescaled), len(rescaled)) == ([0, 1, 1], ("a", "b"), 3)


def test_random_factors_are_in_their_range_and_the_same_for_the_same_seed() -> None:
    labelled = Labelled([0] * 200)
    one, again, other = (Rescaled.at_random(labelled, 0.5, 1.5, seed).factors for seed in (1, 1, 2))
    assert one == again != other
    assert 0.5 <= min(one) < 0.6
    assert 1.4 < max(one) < 1.5
