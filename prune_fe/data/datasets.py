"""Data sets: images in memory, and images whose values are multiplied by factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class DecodedWhenDrawn(InMemory):
    """Images of files, of which those that are drawn are decoded once and kept in memory as uint8.

    Args:
        images: A torchvision `ImageFolder`.
        to_pixels: Transform from an image of `images.loader` to uint8 (channels, height, width).
        normalise: Transform from an image in uint8 to the network's input.
    """

    def __init__(self, images: Any, to_pixels: Callable[[Any], Tensor], normalise: Normalise) -> None:
        names = image_names(images, range(len(images.targets)))
        super().__init__(torch.empty(0, dtype=torch.uint8), images.targets, images.classes, normalise, names)
        self.images, self.to_pixels = images, to_pixels
        self.rows: dict[int, int] = {}
        """Index of an image -> its row in `pixels`, for the images that are decoded."""

    def decode(self, indices: Sequence[int], count_decoded: Callable[[], None] | None = None) -> None:
        """Decode those of the images that are not decoded yet.

        Args:
            indices: Which images; a later call adds its own.
            count_decoded: Called after each image.
        """
        missing = [index for index in indices if index not in self.rows]
        if not missing:
            return
        before = len(self.pixels)
        first = self._decode_one(missing[0])
        pixels = torch.empty(before + len(missing), *first.shape, dtype=torch.uint8)
        if before:
            pixels[:before] = self.pixels
        for number, index in enumerate(missing):
            pixels[before + number] = self._decode_one(index) if number else first
            if count_decoded is not None:
                count_decoded()
        self.pixels, self.rows = pixels, self.rows | {index: before + n for n, index in enumerate(missing)}

    def _decode_one(self, index: int) -> Tensor:
        """Return the pixels of an image from its file."""
        return self.to_pixels(self.images.loader(self.images.samples[index][0]))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self.pixels[self.rows[index]] if index in self.rows else self._decode_one(index)
        return self.normalise(pixels), self.targets[index]


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
