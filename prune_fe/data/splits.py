"""Training, validation and test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from prune_fe.data.labels import image_labels


@dataclass(frozen=True)
class Splits:
    """The images of a data source, in three parts that share no image.

    Attributes:
        train: Images to train on and to score with.
        validation: Images held out of the training images, to choose an epoch by.
        test: Images that nothing is trained on or chosen by.
        classes: The name of each class; a label is an index into them.
        channels: Number of channels of an image.
        size: Height and width of an image, in pixels.
        normalised: (mean, standard deviation) of each channel that the images were normalised with, for pixel values
            from 0 to 1.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    classes: tuple[str, ...]
    channels: int
    size: int
    normalised: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,), (1.0,))

    @property
    def about(self) -> dict[str, Any]:
        """Classes, size and preprocessing of the images, which are saved with a network that was trained on them."""
        mean, std = self.normalised
        steps = {"resize": [self.size, self.size], "antialias": True, "scale": 1 / 255, "mean": mean, "std": std}
        return {"classes": self.classes, "size": self.size, "channels": self.channels, "preprocessing": steps}


def hold_out(splits: Splits, validation: float, seed: int) -> Splits:
    """Return the same images with a share of the training images held out for validation.

    The split depends on `seed` alone: images that were held out before are training images again first.

    Args:
        splits: The images; `splits.validation` is replaced.
        validation: Share of the training images of each class, from 0 to less than 1.
        seed: Seed of the draw.
    """
    every = splits.train.dataset if isinstance(splits.train, Subset) else splits.train
    train, held_out = split_by_class(image_labels(every), validation, seed)
    return replace(splits, train=Subset(every, train), validation=Subset(every, held_out))


def split_by_class(labels: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split images at random into two parts, class by class.

    Args:
        labels: The label of each image.
        share: Share of each class that goes into the second part. It is rounded to whole images: at least one and
            never all of a class; of a class with a single image, none.
        seed: Seed of the draw.

    Returns:
        The indices of the images in the first part and in the second, each sorted.
    """
    generator = torch.Generator().manual_seed(seed)
    label_tensor, second = torch.tensor(labels), []
    for label in sorted(set(labels)):
        members = (label_tensor == label).nonzero().flatten()
        count = min(max(round(share * len(members)), 1), len(members) - 1) if share > 0 else 0
        second += members[torch.randperm(len(members), generator=generator)[:count]].tolist()
    chosen = set(second)
    return [index for index in range(len(labels)) if index not in chosen], sorted(second)
