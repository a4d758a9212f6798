"""Data sets: images in memory, and images whose values are multiplied by factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prune_fe.data.labels import class_names, image_labels, image_names
from prune_fe.data.stored_images import StoredImages
from prune_fe.data.texts import PackedTexts
from prune_fe.data.transforms import Normalise, ToPixels

DECODED_TOGETHER = 256
"""Images that are given to the threads at once."""


@dataclass(frozen=True)
class PixelBatch:
    """Some images in uint8 with their labels, which are normalised together, on the device that needs them.

    It is what `__getitems__` of a data set gives to a DataLoader. As a sequence it has the (image, label) of each
    image, so that any other `collate_fn` works as well.

    Attributes:
        pixels: (images, channels, height, width) uint8.
        labels: (images,) int64.
        normalise: Transform from images in uint8 to the network's input.
        factors: Number that each image is multiplied by after normalisation, (images,) float32; None for 1.
    """

    pixels: Tensor
    labels: Tensor
    normalise: Normalise
    factors: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.normalise(self.pixels[index])
        return image if self.factors is None else image * self.factors[index], int(self.labels[index])

    def to_images(self, device: torch.device | None = None) -> Tensor:
        """Return the normalised images, (images, channels, height, width) float32, on a device; default the CPU."""
        images = self.normalise(self.pixels if device is None else self.pixels.to(device, non_blocking=True))
        return images if self.factors is None else images.mul_(self.factors.to(images.device).view(-1, 1, 1, 1))

    def pin_memory(self) -> PixelBatch:
        """Return the batch in memory from which a GPU copies without waiting; DataLoader calls this."""
        return replace(self, pixels=self.pixels.pin_memory())


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
        self.normalise, self.names = normalise, names if isinstance(names, PackedTexts) else tuple(names)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.normalise(self.pixels[index]), self.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> PixelBatch | list[tuple[Tensor, int]]:
        rows = self._rows(indices)
        # A subclass that reads single images in a way of its own is read image by image.
        if rows is None or type(self).__getitem__ not in READERS:
            return [self[index] for index in indices]
        labels = torch.tensor([self.targets[index] for index in indices])
        return PixelBatch(self.pixels[torch.tensor(rows)], labels, self.normalise)

    def _rows(self, indices: Sequence[int]) -> Sequence[int] | None:
        """Return the rows of `pixels` that hold these images; None if some are not in memory."""
        return indices


class DecodedWhenDrawn(InMemory):
    """Stored images, of which those that are drawn are decoded once and kept in memory as uint8.

    Args:
        images: The images.
        to_pixels: Transform from what `images.load` returns to uint8 (3, size, size).
        normalise: Transform from an image in uint8 to the network's input.
    """

    def __init__(self, images: StoredImages, to_pixels: ToPixels, normalise: Normalise) -> None:
        super().__init__(torch.empty(0, dtype=torch.uint8), images.targets, images.classes, normalise, images.names)
        self.images, self.to_pixels = images, to_pixels
        self.rows: dict[int, int] = {}
        """Index of an image -> its row in `pixels`, for the images that are decoded."""

    def decode(self, indices: Sequence[int], count_decoded: Callable[[], None] | None = None) -> None:
        """Decode those of the images that are not decoded yet, in as many threads as torch uses.

        Args:
            indices: Which images; a later call adds its own.
            count_decoded: Called after each image.
        """
        missing = [index for index in indices if index not in self.rows]
        if not missing:
            return
        n_before, size = len(self.pixels), self.to_pixels.size
        pixels = torch.empty(n_before + len(missing), 3, size, size, dtype=torch.uint8)
        if n_before:
            pixels[:n_before] = self.pixels
        # Through NumPy: torch would copy each of these small images with threads of its own.
        array = pixels.numpy()

        def decode(row: int, index: int) -> None:
            array[row] = self._decode_one(index).numpy()

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            # A part at a time: the pool decodes all that it is given, also when an image turns out to be damaged.
            for start in range(0, len(missing), DECODED_TOGETHER):
                part = missing[start : start + DECODED_TOGETHER]
                for _ in pool.map(decode, range(n_before + start, len(pixels)), part):
                    if count_decoded is not None:
                        count_decoded()
        self.pixels, self.rows = pixels, self.rows | {index: n_before + n for n, index in enumerate(missing)}

    def _decode_one(self, index: int) -> Tensor:
        """Return the pixels of an image from its file."""
        return self.to_pixels(self.images.load(index))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self.pixels[self.rows[index]] if index in self.rows else self._decode_one(index)
        return self.normalise(pixels), self.targets[index]

    def _rows(self, indices: Sequence[int]) -> Sequence[int] | None:
        return [self.rows[index] for index in indices] if all(index in self.rows for index in indices) else None


READERS = (InMemory.__getitem__, DecodedWhenDrawn.__getitem__)
"""The functions that read a single image as a `PixelBatch` holds it."""


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

    def __getitems__(self, indices: Sequence[int]) -> PixelBatch | list[tuple[Tensor, int]]:
        read = getattr(self.data, "__getitems__", None)
        if read is None or type(self).__getitem__ is not RESCALE:
            return [self[index] for index in indices]
        batch, factors = read(indices), torch.tensor([self.factors[index] for index in indices], dtype=torch.float32)
        if isinstance(batch, PixelBatch) and batch.factors is None:
            return replace(batch, factors=factors)
        return [(image * factor, label) for (image, label), factor in zip(batch, factors, strict=True)]


RESCALE = Rescaled.__getitem__
"""The function that reads a single rescaled image as a `PixelBatch` holds it."""
