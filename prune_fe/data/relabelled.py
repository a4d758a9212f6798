"""A data set with other labels, and labels that are replaced by random ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Dataset

from prune_fe.data.datasets import PixelBatch
from prune_fe.data.labels import class_names, image_labels, image_names


class Relabelled(Dataset[Any]):
    """The images of another data set with other labels; the other data set is left as it is.

    Args:
        data: A map-style data set of (image, label).
        targets: The new label of each image.

    Raises:
        ValueError: There are more or fewer labels than images.
    """

    def __init__(self, data: Dataset[Any], targets: Sequence[int]) -> None:
        if len(targets) != len(data):  # type: ignore[arg-type]
            raise ValueError(f"{len(targets)} labels for {len(data)} images")  # type: ignore[arg-type]
        self.data, self.targets, self.classes = data, list(targets), class_names(data)
        self.names = image_names(data, range(len(self.targets)))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.data[index][0], self.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> PixelBatch | list[tuple[Any, int]]:
        read = getattr(self.data, "__getitems__", None)
        batch = [self.data[index] for index in indices] if read is None else read(indices)
        labels = [self.targets[index] for index in indices]
        if isinstance(batch, PixelBatch):
            return replace(batch, labels=torch.tensor(labels))
        return [(image, label) for (image, _), label in zip(batch, labels, strict=True)]


def corrupt_labels(data: Dataset[Any], share: float, seed: int) -> Relabelled:
    """Return the images with a share of their labels replaced by random ones (Zhang et al. 2017, section 2.2).

    A random label is drawn from all classes, so that it is the true one now and then. The images of a smaller share are
    among those of a larger one, with the same random labels: with one seed, data sets differ in the share only.

    Args:
        data: A map-style data set of (image, label). One without the names of its classes has as many classes as its
            largest label says.
        share: Share of the labels that are replaced, from 0 to 1, rounded to whole images.
        seed: Seed of the draws.
    """
    targets = list(image_labels(data))
    n_images, n_classes = len(targets), len(class_names(data)) or max(targets, default=0) + 1
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n_images, generator=generator).tolist()
    labels = torch.randint(n_classes, (n_images,), generator=generator).tolist()
    for index in order[: round(share * n_images)]:
        targets[index] = labels[index]
    return Relabelled(data, targets)
