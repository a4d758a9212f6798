"""Random crops: of the seed, the epoch and the image alone."""

from typing import Any

import pytest
import torch

from prune_fe.data.batches import make_loader
from prune_fe.data.labels import image_labels, image_names
from prune_fe.data.random_crops import crop_at_random
from prune_fe.data.registry import load_data
from prune_fe.models.small_vgg import SmallVGG
from prune_fe.training.loop import finetune
from tests.data.pictures import images_of, photos


@pytest.fixture
def splits(tmp_path: Any) -> Any:
    return load_data(source="folder", path=str(photos(tmp_path, train=6)), size=32, transform="imagenet")


def test_crops_depend_on_seed_epoch_and_image(splits: Any) -> None:
    crops: Any = crop_at_random(splits.train, 3, augment=False)
    state = torch.get_rng_state()
    first = images_of(crops)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, images_of(crops))
    assert torch.equal(first, torch.cat([images for images, _ in make_loader(crops, 2, 1)]))
    crops.set_epoch(1)
    second = images_of(crops)
    assert not torch.equal(first, second)
    assert len({tuple(image.flatten().tolist()) for image in (*first, *second)}) == 2 * len(crops)
    assert not torch.equal(first, images_of(crop_at_random(splits.train, 4, augment=False)))
    assert crops.names == image_names(splits.train, range(len(crops)))
    assert crops.targets == image_labels(splits.train)


def test_the_epoch_reaches_the_processes_that_read(splits: Any) -> None:
    class Order(list):
        epoch = 0

    crops: Any = crop_at_random(splits.train, 3, augment=False)
    order = Order(range(len(crops)))
    loader = make_loader(crops, 4, 1, sampler=order)
    read = []
    for epoch in (1, 2, 1):
        order.epoch = epoch
        read.append(torch.cat([images for images, _ in loader]))
    assert torch.equal(read[0], read[2])
    assert not torch.equal(read[0], read[1])


def test_which_images_are_cropped_in_training(tmp_path: Any) -> None:
    photos(tmp_path, train=6)
    expected = {"paper": (False, False), "crop": (False, True), "imagenet": (True, True)}
    for transform, cropped in expected.items():
        train = load_data(source="folder", path=str(tmp_path), size=8, transform=transform).train
        assert tuple(crop_at_random(train, 0, augment=augment) is not None for augment in (False, True)) == cropped
    assert crop_at_random(load_data(source="digits", size=8).train, 0, augment=True) is None


def test_training_reads_crops_and_scoring_does_not(splits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import prune_fe.data.random_crops as module

    read: list[tuple[int, int]] = []
    crop = module.RandomCrops._crop

    def recorded(self: Any, index: int) -> torch.Tensor:
        read.append((int(self._epoch), index))
        return crop(self, index)

    monkeypatch.setattr(module.RandomCrops, "_crop", recorded)
    torch.manual_seed(0)
    before = images_of(splits.train)
    finetune(SmallVGG(2, 3), splits.train, splits.validation, lr=1e-3, final_lr=1e-4, epochs=2, batch_size=4)
    epochs = [epoch for epoch, _ in read if epoch > 0]
    assert sorted(epochs) == [1] * len(splits.train) + [2] * len(splits.train)
    assert torch.equal(before, images_of(splits.train))
