"""Images in memory, and rescaled ones."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from prune_fe.data.batches import make_loader, validate_batches
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


def random_images(n: int = 9) -> InMemory:
    pixels = torch.randint(0, 256, (n, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = [number % 3 for number in range(n)]
    return InMemory(pixels, labels, "abc", Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def test_the_arithmetic_of_normalising_has_not_changed() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    normalise = Normalise((0.485,), (0.229,))
    assert torch.equal(normalise(pixels), pixels * normalise.scale - normalise.shift)


@pytest.mark.parametrize("kind", ["all", "part", "rescaled", "part of rescaled"])
def test_a_batch_has_the_bits_of_its_images_one_by_one(kind: str) -> None:
    data: Any = random_images()
    if "rescaled" in kind:
        data = Rescaled.at_random(data, 0.5, 1.5, 0)
    if "part" in kind:
        data = Subset(Rescaled(data, 0.3) if kind == "part of rescaled" else data, [7, 0, 3, 4, 4])
    one_by_one = [data[index] for index in range(len(data))]
    loaded = list(make_loader(data, 2))
    assert torch.equal(torch.cat([images for images, _ in loaded]), torch.stack([image for image, _ in one_by_one]))
    assert torch.cat([labels for _, labels in loaded]).tolist() == [label for _, label in one_by_one]
    assert loaded[0][1].dtype == torch.int64


@pytest.mark.parametrize("factors", [None, 0.7])
def test_another_loader_reads_the_images_of_a_batch_as_samples(factors: float | None) -> None:
    data: Any = random_images() if factors is None else Rescaled(random_images(), factors)
    ((images, labels),) = DataLoader(data, 9)
    assert torch.equal(images, images_of(data))
    assert labels.tolist() == image_labels(data)


class Grey(InMemory):
    """Reads single images in a way of its own."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = super().__getitem__(index)
        return image.mean(dim=0, keepdim=True), label


class Turned(Rescaled):
    """Reads single images in a way of its own."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image, label = super().__getitem__(index)
        return image.flip(1), label


def test_a_subclass_that_reads_images_in_its_own_way_is_asked_for_each() -> None:
    whole = random_images()
    grey = Grey(whole.pixels, whole.targets, "abc", whole.normalise)
    for data in (grey, Rescaled(grey, 1.0), Turned(whole, 0.5)):
        ((images, _),) = make_loader(data, 9)
        assert torch.equal(images, images_of(data))


def test_a_loader_reads_images_in_memory_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Subset(Rescaled(random_images(), 0.5), range(8))
    monkeypatch.setattr(Normalise, "__call__", counting := CountedCalls(Normalise.__call__))
    assert len(list(make_loader(data, 4))) == counting.calls == 2
    assert [len(labels) for _, labels in validate_batches(make_loader(data, 4), torch.device("cpu"))] == [4, 4]


class CountedCalls:
    """Calls a function and counts the calls."""

    def __init__(self, function: Any) -> None:
        self.function, self.calls = function, 0

    def __get__(self, instance: Any, owner: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls += 1
            return self.function(instance, *arguments)

        return call
