"""Images that lie encoded in files or containers, and are decoded as they are read."""

from __future__ import annotations

import copy
import io
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prune_fe.data.preprocessing import Preprocessing
from prune_fe.data.texts import PackedTexts
from prune_fe.errors import DataError


class StoredImages(Dataset[Any]):
    """A data set of encoded images, such as JPEGs; a source of them derives from it.

    What it knows of each image is kept in tensors, so that a million images take some 100 MB once, however many
    processes read them.

    Args:
        classes: The name of each class.
        labels: The label of each image, (images,) int64.
        names: A name for each image, which identifies it in results.
        sizes: The size of each encoded image in bytes, (images,) int64.
        transform: Function from what `load` returns to the network's input; None changes nothing.

    Attributes:
        steps: The steps of `transform`; None where they are not known.
        crops_in_training: Whether training reads random crops instead of what `transform` returns.
    """

    steps: Preprocessing | None = None
    crops_in_training: bool = False

    per_image: tuple[str, ...] = ("labels", "sizes")
    """The attributes that are tensors with an entry for each image."""

    def __init__(
        self,
        classes: Sequence[str],
        labels: Tensor,
        names: Sequence[str],
        sizes: Tensor,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.classes, self.labels, self.sizes, self.transform = tuple(classes), labels, sizes, transform or _unchanged
        self.names = names if isinstance(names, PackedTexts) else PackedTexts(names)

    @property
    def targets(self) -> list[int]:
        """The label of each image."""
        labels: list[int] = self.labels.tolist()
        return labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.load(index)), int(self.labels[index])

    def load(self, index: int) -> Any:
        """Return an image as PIL's RGB image, upright, or as uint8 (3, height, width)."""
        raise NotImplementedError

    def read_bytes(self, index: int, count: int | None = None) -> bytes:
        """Return the first `count` bytes of an encoded image; None is all of them.

        Raises:
            DataError: It cannot be read.
        """
        raise NotImplementedError

    def pixel_size(self, index: int) -> tuple[int, int]:
        """Return width and height of an image as it is stored, in pixels; it is not decoded.

        Raises:
            DataError: It cannot be read.
        """
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.read_bytes(index))) as image:
                return image.size
        except DataError:
            raise
        except Exception as error:  # Decoders raise nearly everything at a damaged file.
            raise DataError(f"{self.where(index)}: not an image that can be read ({error})") from error

    def where(self, index: int) -> str:
        """Return where an image lies, for messages."""
        return self.names[index]

    def state(self) -> bytes | None:
        """Return what changes with any image and its place; None where that is not known without reading them."""
        return None

    def without(self, indices: Iterable[int]) -> Self:
        """Return the images but those with some indices."""
        excluded = set(indices)
        return self.select([index for index in range(len(self)) if index not in excluded]) if excluded else self

    def select(self, indices: Sequence[int]) -> Self:
        """Return the images with some indices, in their order."""
        other, rows = copy.copy(self), torch.tensor(indices, dtype=torch.int64)
        other.names = self.names.select(indices)
        for name in self.per_image:
            setattr(other, name, getattr(self, name)[rows])
        return other

    def in_order_of_names(self) -> Self:
        """Return the images ordered as a folder of classes has them: class by class, each by name.

        A draw, and the order of summation, are then the same in whatever order a container holds the images.
        """
        labels = self.labels.tolist()
        keys = [(os.path.dirname(name), name) for name in self.names]
        return self.select(sorted(range(len(self)), key=lambda index: (labels[index], keys[index])))


def _unchanged(image: Any) -> Any:
    return image
