"""Random crops of training images, flipped at random, as networks for ImageNet are trained (Szegedy et al. 2015)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from prune_fe.data.datasets import PixelBatch
from prune_fe.data.labels import class_names, image_labels, image_names
from prune_fe.data.preprocessing import Preprocessing
from prune_fe.data.stored_images import StoredImages
from prune_fe.data.transforms import Normalise, interpolation_mode


class RandomCrops(Dataset[Any]):
    """Stored images, of which a random part is cut out, resized to the network's input and flipped at random.

    The part has 8 to 100 % of the image's area and a shape from 3:4 to 4:3. It depends only on the seed, the epoch and
    the image, and not on the processes that read.

    Args:
        data: Stored images, what is decoded from them, or a subset.
        stored: The stored images.
        steps: How they become a network's input otherwise.
        seed: Seed of the parts.
    """

    def __init__(self, data: Dataset[Any], stored: StoredImages, steps: Preprocessing, seed: int) -> None:
        self.dataset, self.stored, self.steps, self.seed = data, stored, steps, seed
        self.normalise = Normalise(steps.mean, steps.std)
        # Shared with the processes that read images, which live longer than an epoch.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    @property
    def targets(self) -> list[int]:
        """The label of each image."""
        return image_labels(self.dataset)

    @property
    def names(self) -> list[str]:
        """The name of each image."""
        return image_names(self.dataset, range(len(self)))

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class."""
        return class_names(self.dataset)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        stored = stored_index(self.dataset, index)
        return self.normalise(self._crop(stored)), int(self.stored.labels[stored])

    def __getitems__(self, indices: Sequence[int]) -> PixelBatch:
        stored = [stored_index(self.dataset, index) for index in indices]
        return PixelBatch(
            torch.stack([self._crop(each) for each in stored]), self.stored.labels[stored], self.normalise
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, also in the processes that read images."""
        self._epoch[0] = epoch

    def _crop(self, index: int) -> Tensor:
        """Return a random part of an image, (3, size, size) uint8."""
        from torchvision.transforms import v2

        mode = interpolation_mode(self.steps.interpolation)
        steps = (v2.RandomResizedCrop(self.steps.size, interpolation=mode, antialias=True), v2.RandomHorizontalFlip())
        image = self.stored.load(index)
        digest = hashlib.sha256(f"{self.seed} {int(self._epoch)} {index}".encode()).digest()
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
            torch.random.default_generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            for step in steps:
                image = step(image)
        return image if isinstance(image, Tensor) else v2.functional.pil_to_tensor(image)


def stored_index(data: Any, index: int) -> int:
    """Return the index that an image of a data set has among the stored ones."""
    while isinstance(data, Subset):
        data, index = data.dataset, data.indices[index]
    return index


def crop_at_random(data: Any, seed: int, *, augment: bool) -> RandomCrops | None:
    """Return the training images as random crops; None for images that are not cropped in training.

    Args:
        data: The training images.
        seed: Seed of the crops.
        augment: Whether training changes images at random. Images of the transform imagenet are cropped without it
            too, and those that are resized to a square are not cropped with it.
    """
    inner = data
    while isinstance(inner, Subset):
        inner = inner.dataset
    stored = getattr(inner, "images", inner)
    if not isinstance(stored, StoredImages) or stored.steps is None:
        return None
    is_cropped = stored.crops_in_training or (augment and stored.steps.keeps_shape)
    return RandomCrops(data, stored, stored.steps, seed) if is_cropped else None


def find_crops(data: Any) -> RandomCrops | None:
    """Return the random crops that a data set, or one inside of it, consists of; None if there are none."""
    while data is not None and not isinstance(data, RandomCrops):
        inner = (getattr(data, name, None) for name in ("dataset", "data", "images"))
        data = next((each for each in inner if isinstance(each, Dataset)), None)
    return data
