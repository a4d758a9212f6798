"""Data sets: images in memory, and images whose values are multiplied by factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prune_fe.data.labels import class_names, image_labels, image_names
from prune_fe.data.transforms import Normalise


class InMemory(Dataset[Any]):
    """Images in memory as uint8, normalised as they are read.

    Args:
        pixels: (n, channels, height, width) uint8.
        targets: The label of each image.
        classes: The name of each class.
        normalise: Transform from an image in uint8 to the network's input.
        names: A name for each image; () if they have none.
    """

    def __init__(
        self,
        pixels: Tensor,
        targets: Sequence[int],
        classes: Sequence[str],
        normalise: Normalise,
        names: Sequence[str] = (),
    ) -> None:
        self.pixels, self.targets, self.classes = pixels, list(targets), tuple(classes)
        self.normalise, self.names = normalise, tuple(names)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.normalise(self.pixels[index]), self.targets[index]


class Rescaled(Dataset[Any]):
    """The images of another data set, each multiplied by a factor after normalisation.

    Args:
        data: A map-style data set.
        factors: One factor for all images, or one for each.
    """

    def __init__(self, data: Dataset[Any], factors: float | Sequence[float]) -> None:
        self.data, self.targets, self.classes = data, image_labels(data), class_names(data)
        self.factors = [float(factors)] * len(self.targets) if isinstance(factors, int | float) else list(factors)
        self.names = image_names(data, range(len(self.targets)))

    @classmethod
    def at_random(cls, data: Dataset[Any], low: float, high: float, seed: int) -> Self:
        """Return the images, each multiplied by a factor of its own, drawn uniformly from [low, high)."""
        generator = torch.Generator().manual_seed(seed)
        factors = low + (high - low) * torch.rand(len(image_labels(data)), generator=generator, dtype=torch.float64)
        return cls(data, factors.tolist())

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[index]
        return image * self.factors[index], label
