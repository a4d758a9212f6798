"""Batches of images and labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from prune_fe.data.datasets import PixelBatch
from prune_fe.data.splits import Splits
from prune_fe.errors import DataError, InputError

Batch = tuple[Tensor, Tensor]
Batches = Iterable[Batch]
"""(images (n, channels, height, width) float, labels (n,) int64), readable more than once."""

Images = Dataset[Any] | Batches
"""The type of arguments that hold images: a map-style data set of (image, label), or batches."""


def make_loader(data: Dataset[Any], batch_size: int, workers: int = 0, **options: Any) -> Loader:
    """Return a DataLoader of `data`.

    Args:
        data: A map-style data set of (image, label).
        batch_size: Images a batch, at least 1.
        workers: Processes that read images; 0 reads them in this one.
        options: More keywords of `torch.utils.data.DataLoader`.

    Raises:
        InputError: `batch_size` or `workers` is out of range.
    """
    if batch_size < 1 or workers < 0:
        raise InputError(f"batch_size={batch_size}, workers={workers}: there must be at least 1 image and 0 workers")
    return Loader(
        data,
        batch_size,
        collate_fn=_collate,
        num_workers=workers,
        # Workers are spawned: the threads of numba and OpenMP do not survive a fork.
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        **options,
    )


class Loader(DataLoader[Any]):
    """A DataLoader that normalises images in memory batch by batch instead of one by one."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield (images, labels) on the CPU."""
        return self.on(None)

    def on(self, device: torch.device | None) -> Iterator[Any]:
        """Yield (images, labels) with the images of a `PixelBatch` on a device, where they are normalised."""
        for batch in super().__iter__():
            yield (batch.to_images(device), batch.labels) if isinstance(batch, PixelBatch) else batch


def _collate(samples: Any) -> Any:
    """Return a `PixelBatch` as it is, and anything else as a DataLoader does."""
    return samples if isinstance(samples, PixelBatch) else default_collate(samples)


def validate_batches(batches: Batches, device: torch.device | None = None) -> Iterator[Batch]:
    """Yield the batches that hold an image, with their labels as int64 on the CPU.

    Args:
        batches: The batches.
        device: Where images in memory are normalised; a GPU does that sooner. Other images stay where they are.

    Raises:
        InputError: A batch is not (images, labels); the message says what it is.
    """
    if isinstance(batches, Splits):
        raise InputError("data is Splits: pass its .train, .validation or .test")
    if not isinstance(batches, Iterable) or isinstance(batches, str | bytes | Tensor):
        raise InputError(f"data is a {type(batches).__name__}; it must be a data set or batches of (images, labels)")
    for number, batch in enumerate(batches.on(device) if isinstance(batches, Loader) else batches):
        pair = list(batch) if isinstance(batch, tuple | list) else []
        if [isinstance(part, Tensor) for part in pair] != [True, True]:
            kind = type(batch).__name__
            raise InputError(f"data: batch {number} is a {kind}; it must be two tensors, images and labels")
        images, labels = pair
        if images.ndim < 2 or labels.shape != images.shape[:1] or labels.is_floating_point():
            shapes = f"images {tuple(images.shape)} and labels {tuple(labels.shape)} of {labels.dtype}"
            raise InputError(f"data: batch {number} holds {shapes}; every image needs one whole number as its label")
        if len(images):
            yield images, labels.cpu().long()


def count_images(batches: Batches) -> int:
    """Return the number of images in the data set behind a DataLoader; 0 for batches without a data set."""
    data = getattr(batches, "dataset", None)
    return len(data) if isinstance(data, Sized) else 0


def first_image(batches: Batches) -> Tensor:
    """Return the first image, as a batch of one: (1, channels, height, width).

    Raises:
        DataError: There is no image.
    """
    for images, _ in validate_batches(batches):
        return images[:1]
    raise DataError("no images: the data is empty")
